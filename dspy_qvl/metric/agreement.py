"""How far a metric agrees with raters over a whole devset, which no mean over its rows can say.

    ratings, values ─► Spearman ─► bootstrap of whole groups ─► its interval
                    └► ranks    ─► the rows most at odds

Source: Field & Welsh (2007), Bootstrapping clustered data.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import dspy
import numpy as np

from dspy_qvl import measures
from dspy_qvl.errors import InputError, TextsRefusedError, check_score, shown
from dspy_qvl.fitting import copies, folded, members_of
from dspy_qvl.measures import numbered
from dspy_qvl.metric.judgement import Scorer
from dspy_qvl.text import FromExample, Item, checked_examples, query_of, taken, text_of
from dspy_qvl.vectors import Array

LEVEL = 0.95  # of the interval
N_DRAWS = 1000
N_AT_ODDS = 10
FEWEST = 5  # groups; draws of fewer say nothing about other groups


@dataclass(frozen=True)
class AtOdds:
    """A row that raters and metric rank differently.

    Attributes:
        example: the row as it was given.
        text: the text that was valued; "" where there was none.
        query: the query it was valued for, or None.
        rating: the raters' rating.
        value: the metric's value, on the scale of the ratings it was learned from.
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
        n_groups: groups of rows that depend on each other: the caller's, and one for each text that is in several.
        n_failed: rows without a text, which have the lowest value.
        n_learned: rows whose text the value function learned from; it agrees with those more than with others.
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


def rated_rows(
    devset: Any, score: FromExample, group: FromExample | None
) -> tuple[Sequence[Any], Array, list[Hashable]]:
    """The examples of a devset, their ratings, (n_rows,), and the group of each; None for rows of their own.

    Raises:
        InputError: an example that cannot be used, or fewer than two different ratings.
    """
    examples = checked_examples(devset, "devset")
    ratings = []
    for row, example in enumerate(examples):
        at = f"devset[{row}]"
        ratings.append(check_score(taken(score, example, "score", at), f"the score of {at}"))
    if len(set(ratings)) < 2:
        raise InputError(
            f"the ratings of the devset's {len(ratings)} examples are all {ratings[0]:g}; there is nothing to agree "
            "with until two of them differ."
        )
    return examples, np.array(ratings), list(range(len(examples))) if group is None else groups_of(examples, group)


def groups_of(examples: Sequence[Any], group: FromExample) -> list[Hashable]:
    """The group of each example of a devset.

    Raises:
        InputError: an example without a group, or groups that cannot be compared.
    """
    groups = [taken(group, example, "group", f"devset[{row}]") for row, example in enumerate(examples)]
    try:
        set(groups)
    except TypeError as error:
        raise InputError(f"the groups of the devset must be strings or numbers: {error}.") from None
    return groups


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers to the examples of a devset, with their values.

    Attributes:
        outputs: the predictions; None where the program crashed.
        items: the text of each, or None of a failure: no prediction, no text in it, or one that the model refuses.
        values: their values, (n_rows,); a failure has the lowest rating.
        learned: the rows whose text the value function learned from.
        lowest: the lowest rating it learned from.
    """

    outputs: Sequence[Any]
    items: Sequence[Item | None]
    values: Array
    learned: Sequence[int]
    lowest: float


def valued(outputs: Sequence[Any], items: Sequence[Item | None], scorer: Scorer) -> Answers:
    """The answers with their values, given the text of each, or None where there is none."""
    values, items = _values(items, scorer)
    known = {_copied(item) for item in scorer.fit.items}
    learned = [row for row, item in enumerate(items) if item is not None and _copied(item) in known]
    return Answers(outputs, items, values, learned, scorer.lowest)


def check_program(program: Any, examples: Sequence[Any]) -> None:
    """Refuse what gives no predictions for examples.

    Raises:
        InputError: no program and no list, another number of predictions than of examples, or examples without inputs.
    """
    if isinstance(program, Sequence) and not isinstance(program, str):
        if len(program) != len(examples):
            raise InputError(f"there are {len(program)} predictions for {len(examples)} examples; give one an example.")
        return
    if not callable(program):
        raise InputError(
            f"program must be a program, or its predictions for the devset, but got {type(program).__name__}."
        )
    for row, example in enumerate(examples):
        if getattr(example, "_input_keys", None) is None:
            raise InputError(
                f"devset[{row}] does not say what the program is given; use example.with_inputs('question')."
            )


def predictions(program: Any, examples: Sequence[Any]) -> Sequence[Any]:
    """The predictions of a program for the inputs of each example, None where it fails; or those that are given.

    Raises:
        InputError: as `check_program`.
    """
    check_program(program, examples)
    if isinstance(program, Sequence):
        return program
    run = dspy.Parallel(disable_progress_bar=True, max_errors=len(examples) + 1)  # a crash is a failure, not an end
    given: Sequence[Any] = run([(program, one.inputs()) for one in examples])
    return given


def agreement(
    examples: Sequence[Any], ratings: Array, groups: Sequence[Hashable], items: Sequence[Item | None], scorer: Scorer
) -> Agreement:
    """The agreement of the values of rows with their ratings.

    Args:
        examples: the rows.
        ratings: the rating of each row, (n_rows,).
        groups: the caller's group of each row.
        items: the text of each row, or None where there is none.
        scorer: gives the values.
    """
    answers = valued(examples, items, scorer)
    values, items = answers.values, answers.items
    members = _members(groups, items, paired=scorer.fit.paired)
    draws = measures.bootstrap(ratings, values, members, names=["spearman"], n_draws=N_DRAWS)["spearman"]
    known = draws[np.isfinite(draws)]
    low, high, n_groups = math.nan, math.nan, int(numbered(members).max()) + 1
    if n_groups >= FEWEST and 2 * len(known) >= len(draws):
        low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    of_rating, of_value = _lower(ratings), _lower(values)
    apart = np.abs(of_rating - of_value)
    worst = [row for row in np.argsort(-apart, kind="stable")[:N_AT_ODDS].tolist() if apart[row] > 0]
    at_odds = tuple(
        AtOdds(
            examples[row],
            "" if (item := items[row]) is None else text_of(item),
            None if item is None else query_of(item),
            *(float(numbers[row]) for numbers in (ratings, values)),
            *(float(lower[row]) / (len(items) - 1) for lower in (of_rating, of_value)),
        )
        for row in worst
    )
    spearman, pearson = measures.spearman(ratings, values), measures.pearson(ratings, values)
    n_failed = sum(item is None for item in items)
    return Agreement(spearman, low, high, pearson, len(items), n_groups, n_failed, len(answers.learned), at_odds)


def _values(items: Sequence[Item | None], scorer: Scorer) -> tuple[Array, list[Item | None]]:
    """The values of rows, (n_rows,), the lowest for those without a text, and the items that have a value.

    An item that the embedding model refuses has none, as in a score.
    """
    values, items = np.full(len(items), scorer.lowest), list(items)
    while said := [row for row, item in enumerate(items) if item is not None]:
        try:
            values[said] = scorer.values([item for item in items if item is not None])
            break
        except TextsRefusedError as error:  # the others are embedded by now
            if not error.refused:
                raise
            for place in error.refused:
                items[said[place]] = None
    return values, items


def _members(groups: Sequence[Hashable], items: Sequence[Item | None], *, paired: bool) -> list[Hashable]:
    """The group of each row: the caller's, copies of a text (or the answers to one query) together."""
    keys = [None if item is None else query_of(item) if paired else text_of(item) for item in items]
    # Rows without a text stay apart.
    return members_of(groups, copies([f"\0{row}" if key is None else key for row, key in enumerate(keys)]))


def _copied(item: Item) -> tuple[str | None, str]:
    """A query and a text, equal for all copies of them."""
    query = query_of(item)
    return None if query is None else folded(query), folded(text_of(item))


def _lower(numbers: Array) -> Array:
    """For each number, how many of the others are lower, ties for half, (n,)."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(numbers) - 1)
