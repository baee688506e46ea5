"""How far a metric agrees with raters over a whole devset: what no mean over its rows can say.

    ratings, values ─► Spearman ─► bootstrap of whole groups ─► its interval
                    └► ranks    ─► the rows most at odds

Source: Field & Welsh (2007), Bootstrapping clustered data.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import dspy
import numpy as np

from dspy_qvl import measures
from dspy_qvl.errors import InputError, check_score, shown
from dspy_qvl.fitting import copies, folded, members_of
from dspy_qvl.learner import Fit
from dspy_qvl.measures import numbered
from dspy_qvl.text import FromExample, Item, checked_examples, query_of, taken, text_of
from dspy_qvl.vectors import Array

LEVEL = 0.95  # of the interval
N_DRAWS = 1000
N_AT_ODDS = 10
FEWEST = 5  # groups below which draws of them say nothing of others


@dataclass(frozen=True)
class AtOdds:
    """A row that raters and metric rank differently.

    Attributes:
        example: the row as it was given.
        text: the text that was valued; "" where there was none.
        query: what it was valued for, or None.
        rating: what raters gave it.
        value: what the metric gives it, on the scale of the ratings it was learned from.
        rating_above: share of the other rows with a lower rating, ties for half, in [0, 1].
        value_above: the same of values.
    """

    example: Any
    text: str
    query: str | None
    rating: float
    value: float
    rating_above: float
    value_above: float


@dataclass(frozen=True, eq=False)
class Agreement:
    """How far values agree with ratings; as a float, its Spearman correlation.

    Attributes:
        spearman: rank correlation of values and ratings, in [-1, 1]; NaN where all values are equal.
        low: lower end of its 95 % interval, over bootstrap draws of whole groups; NaN for fewer than 5 groups.
        high: upper end.
        pearson: linear correlation.
        n_rows: rows of the devset.
        n_groups: groups of rows that are not independent of each other: the caller's, and texts that stand in several.
        n_failed: rows without a text, which have the lowest value.
        n_learned: rows whose text the value function learned from: it agrees with those more than with others.
        at_odds: the rows that raters and metric rank most differently, at most 10, the worst first.
    """

    spearman: float
    low: float
    high: float
    pearson: float
    n_rows: int
    n_groups: int
    n_failed: int
    n_learned: int
    at_odds: tuple[AtOdds, ...]

    def __float__(self) -> float:
        return self.spearman

    def __str__(self) -> str:
        groups = "" if self.n_groups == self.n_rows else f" in {self.n_groups} groups"
        interval = f"{100 * LEVEL:.0f} % interval {self.low:.2f} to {self.high:.2f}"
        if math.isnan(self.low):
            interval = "too few groups, or too alike, for an interval"
        lines = [f"Spearman {self.spearman:.2f} ({interval}) of values and ratings, {self.n_rows} rows{groups}"]
        if self.n_failed:
            lines.append(f"{self.n_failed} rows have no text, and the lowest value")
        if self.n_learned:
            lines.append(f"{self.n_learned} rows were learned from; texts never seen agree less")
        lines += ["most at odds:"] if self.at_odds else []
        lines += [
            f"  rated {row.rating:.3g}, above {100 * row.rating_above:.0f} % of the others; "
            f"valued {row.value:.3g}, above {100 * row.value_above:.0f} %: {shown(row.text)}"
            for row in self.at_odds
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class Row:
    """A rated example.

    Attributes:
        example: as it was given.
        rating: what raters gave it.
        group: what it belongs to, as far as the caller says.
        item: what is valued; None where there is no text.
    """

    example: Any
    rating: float
    group: Hashable
    item: Item | None


def rated_rows(
    devset: Any,
    score: FromExample,
    group: FromExample | None,
    items: Callable[[Sequence[Any]], Sequence[Item | None]],
) -> list[Row]:
    """The rows of a devset.

    Args:
        devset: rated examples.
        score: the rating of each.
        group: what each belongs to; None where every row is one of its own.
        items: gives what is valued of each example.

    Raises:
        InputError: an example that cannot be used, or fewer than two different ratings.
    """
    examples = checked_examples(devset, "devset")
    places = [f"devset[{row}]" for row in range(len(examples))]
    ratings = [
        check_score(taken(score, example, "score", at), f"the score of {at}")
        for example, at in zip(examples, places, strict=True)
    ]
    if len(set(ratings)) < 2:
        raise InputError(
            f"the ratings of the devset's {len(ratings)} examples are all {ratings[0]:g}; there is nothing to agree "
            "with until two of them differ."
        )
    groups = [
        row if group is None else taken(group, example, "group", at)
        for row, (example, at) in enumerate(zip(examples, places, strict=True))
    ]
    try:
        set(groups)
    except TypeError as error:
        raise InputError(f"the groups of the devset must be strings or numbers: {error}.") from None
    return [Row(*one) for one in zip(examples, ratings, groups, items(examples), strict=True)]


def predictions(program: Any, examples: Sequence[Any]) -> Sequence[Any]:
    """What a program gives for the inputs of each example, None where it fails; or what it gave.

    Raises:
        InputError: no program and no list, another number of predictions than of examples, or examples without inputs.
    """
    if isinstance(program, Sequence) and not isinstance(program, str):
        if len(program) != len(examples):
            raise InputError(f"there are {len(program)} predictions for {len(examples)} examples; give one an example.")
        return program
    if not callable(program):
        raise InputError(
            f"program must be a program, or its predictions for the devset, but got {type(program).__name__}."
        )
    for row, example in enumerate(examples):
        if getattr(example, "_input_keys", None) is None:
            raise InputError(
                f"devset[{row}] does not say what the program is given; use example.with_inputs('question')."
            )
    run = dspy.Parallel(disable_progress_bar=True, max_errors=len(examples) + 1)  # a crash is a failure, not an end
    given: Sequence[Any] = run([(program, one.inputs()) for one in examples])
    return given


def agreement(rows: Sequence[Row], values: Array, fit: Fit) -> Agreement:
    """The agreement of the values of rows, (n_rows,), with their ratings; of the fit that gave the values."""
    ratings = np.array([row.rating for row in rows])
    members = _members(rows, paired=fit.paired)
    draws = measures.bootstrap(ratings, values, members, n_draws=N_DRAWS)["spearman"]
    known = draws[np.isfinite(draws)]
    low, high, n_groups = math.nan, math.nan, int(numbered(members).max()) + 1
    if n_groups >= FEWEST and 2 * len(known) >= len(draws):
        low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    of_rating, of_value = _lower(ratings), _lower(values)
    apart = np.abs(of_rating - of_value)
    worst = [row for row in np.argsort(-apart, kind="stable")[:N_AT_ODDS].tolist() if apart[row] > 0]
    learned = {_copied(item) for item in fit.items}
    return Agreement(
        measures.spearman(ratings, values),
        low,
        high,
        measures.pearson(ratings, values),
        len(rows),
        n_groups,
        sum(row.item is None for row in rows),
        sum(row.item is not None and _copied(row.item) in learned for row in rows),
        tuple(
            AtOdds(
                rows[row].example,
                "" if (item := rows[row].item) is None else text_of(item),
                None if item is None else query_of(item),
                rows[row].rating,
                float(values[row]),
                float(of_rating[row]) / (len(rows) - 1),
                float(of_value[row]) / (len(rows) - 1),
            )
            for row in worst
        ),
    )


def _members(rows: Sequence[Row], *, paired: bool) -> list[Hashable]:
    """The group of each row: the caller's, copies of a text (or the answers to one query) together."""
    side = [None if row.item is None else query_of(row.item) if paired else text_of(row.item) for row in rows]
    copied = copies(
        [f"\0{number}" if text is None else text for number, text in enumerate(side)]
    )  # failures stay apart
    return members_of([row.group for row in rows], copied)


def _copied(item: Item) -> tuple[str | None, str]:
    """A text and its query without what tells copies apart."""
    query = query_of(item)
    return None if query is None else folded(query), folded(text_of(item))


def _lower(numbers: Array) -> Array:
    """For each number, how many of the others are lower, ties for half, (n,)."""
    from scipy.stats import rankdata

    lower: Array = rankdata(numbers) - 1
    return lower
