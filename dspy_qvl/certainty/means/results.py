"""Means and differences of ratings: the functions to call, and what they return."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import ArrayLike

from dspy_qvl.certainty.means.powered import Powered, Spread, powered
from dspy_qvl.certainty.means.sample import one_side, two_sides
from dspy_qvl.errors import check_confidence, check_flag, check_positive


@dataclass(frozen=True)
class Interval:
    """A figure and its confidence interval.

    Attributes:
        value: the figure.
        lower, upper: the ends; infinite where there are too few ratings for any.
        se: the standard error.
    """

    value: float
    lower: float
    upper: float
    se: float

    @property
    def half_width(self) -> float:
        """Half the distance of the ends."""
        return (self.upper - self.lower) / 2

    def __str__(self) -> str:
        half, digits = self.half_width, _digits(self.half_width)
        return f"{self.value:.{digits}f} ± " + (f"{half:.{digits}f}" if math.isfinite(half) else "unknown")


@dataclass(frozen=True)
class Mean(Interval):
    """The mean rating of texts like these, from ratings of some and values of all.

    Attributes:
        confidence: the share of such intervals that hold the mean.
        ratings_alone: what the ratings say without values: the classical interval.
        values_alone: what the values say without ratings. Its interval knows nothing of how wrong they are: where they
            are too high or too low on the whole, more rows make it more certain and no better.
        power: what the values are multiplied by, lambda; 0 where they bring nothing.
        n_rated: rows with a rating.
        n_rows: all rows.
        n_groups: groups with a rating; as many as rows where there are no groups.
    """

    confidence: float
    ratings_alone: Interval
    values_alone: Interval
    power: float
    n_rated: int
    n_rows: int
    n_groups: int
    _found: Powered = field(repr=False)

    def plan_ratings(self, half_width: float) -> int | None:
        """The number of further ratings, of rows at hand drawn as before, that bring the interval to a half-width.

        An expectation from the spread seen so far, as uncertain as that. Rows of groups without ratings are taken to
        come first, as many of each as of the groups rated so far.

        Args:
            half_width: the distance of an end from the figure, > 0, in the units of the ratings.

        Returns:
            The number, 0 if the interval is narrow enough; None where ratings of all rows would not do, so that more
            rows are needed, or where there are too few ratings to tell.

        Raises:
            InputError: a half-width that is not a number above 0.
        """
        half_width = check_positive(half_width, "half_width")
        if self.half_width <= half_width:
            return 0
        enough, too_few = self.n_rows, self.n_rated
        if not self._half_width_with(enough) <= half_width:
            return None
        while enough - too_few > 1:
            middle = (enough + too_few) // 2
            if self._half_width_with(middle) <= half_width:
                enough = middle
            else:
                too_few = middle
        return enough - self.n_rated

    def _half_width_with(self, n_rated: int) -> float:
        """The half-width to expect with so many rated rows in all."""
        shares, k = self._found.shares, self.n_groups
        more = n_rated / self.n_rated
        groups = min(max(self._found.n_groups, k), k * more)
        variance = shares.values + shares.between * k / groups + shares.within / more
        return _quantile(self.confidence, self._found.both.df + groups - k) * math.sqrt(variance)

    _what = "mean"
    _rows = "rows"

    def __str__(self) -> str:
        lines = [f"{self._what} {Interval.__str__(self)} ({self._ends()})"]
        said = self._said()
        if said:
            lines.append(f"    {said}")
        rated, valued = _counted(self.n_rated, self._rows), _counted(self.n_rows, self._rows)
        lines.append(f"    ratings alone   {self.ratings_alone}   {rated} rated{self._grouped()}")
        lines.append(f"    values alone    {self.values_alone}   {valued} valued, no rating used")
        lines.append(f"    {self._advice()}")
        return "\n".join(lines)

    def _ends(self) -> str:
        if not math.isfinite(self.half_width):
            return "too few ratings for an interval"
        digits = _digits(self.half_width)
        return f"{100 * self.confidence:g} %: {self.lower:.{digits}f} to {self.upper:.{digits}f}"

    def _said(self) -> str:
        return ""

    def _grouped(self) -> str:
        return f" in {_counted(self.n_groups, 'groups')}" if self.n_groups < self.n_rated else ""

    def _advice(self) -> str:
        if not math.isfinite(self.half_width):
            return "rate more: an interval needs ratings of at least two rows, and of two groups"
        if self.half_width == 0:
            return "all ratings are equal, so that nothing tells how far others may be: rate more"
        more = self.plan_ratings(self.half_width / 2)
        if more is not None:
            return f"rate {more} more to halve it"
        if self.n_rated == self.n_rows:
            return f"all are rated: it takes more {self._rows} to narrow it"
        least = self._half_width_with(self.n_rows)
        return f"rating all {self._rows} would bring it to ± {least:.{_digits(least)}f}; less takes more {self._rows}"


@dataclass(frozen=True)
class Difference(Mean):
    """The mean rating of program A less that of program B.

    Fields as in `Mean`; counts, also those of `plan_ratings`, are of questions, each rated of as many programs as so
    far.
    """

    _what = "A - B"
    _rows = "questions"

    @property
    def better(self) -> str | None:
        """The program with the higher mean, "A" or "B"; None where the interval holds 0."""
        return "A" if self.lower > 0 else "B" if self.upper < 0 else None

    def _said(self) -> str:
        if self.better:
            return f"{self.better} is better"
        return "which is better cannot be told yet: the interval holds 0"


def mean_value(
    values: ArrayLike, ratings: ArrayLike, *, groups: Any = None, inclusion: Any = None, confidence: float = 0.95
) -> Mean:
    """The mean rating of texts like these, with a confidence interval.

    Args:
        values: the value of each row, (n,), from a fit that did not see these ratings (see the package's guide).
        ratings: the rating of each row, NaN where nobody rated, (n,).
        groups: the group of each row, (n,), whose rows are alike: one document, one question. Default: rows are
            independent of each other. With ten groups the interval is that of ten observations, however many rows.
        inclusion: the probability of each row to be rated, in (0, 1], (n,). Default: the rated rows were drawn with
            equal probabilities.
        confidence: in (0, 1).

    Returns:
        A `Mean`; print it to read it. The ends are infinite where fewer than two rows, or groups, have ratings.

    Raises:
        InputError: lists of different lengths, something that is no number, no rating at all, a row without a
            probability of being rated, or a confidence that is not between 0 and 1.
    """
    confidence = check_confidence(confidence)
    found = powered([one_side(values, ratings, groups, inclusion)])
    return Mean(**_fields(found, confidence))


def difference(
    values_a: ArrayLike,
    values_b: ArrayLike,
    ratings_a: ArrayLike,
    ratings_b: ArrayLike,
    *,
    groups: Any = None,
    inclusion: Any = None,
    paired: bool = True,
    confidence: float = 0.95,
) -> Difference:
    """The mean rating of program A less that of program B, with a confidence interval.

    Where both answered the same questions, what is hard for both cancels, above all where the same questions are rated
    of both. The values of both are from one value function: they have one power.

    Args:
        values_a: the values of A's answers, as in `mean_value`, (n,).
        values_b: those of B's, (n,).
        ratings_a: the ratings of A's answers, NaN where nobody rated, (n,).
        ratings_b: those of B's, (n,); a question may be rated of both programs, of one or of none.
        groups: the group of each question, (n,); with `paired=False` a tuple of two lists, and a group that occurs in
            both is one.
        inclusion: the probability of each question to be rated, (n,); a tuple of two lists where they differ between
            the programs, and with `paired=False`.
        paired: True if row i is the same question in all lists.
        confidence: in (0, 1).

    Returns:
        A `Difference`; print it to read it. Its counts are of questions.

    Raises:
        InputError: as `mean_value`, or lists of different lengths that are said to be paired.
    """
    confidence, paired = check_confidence(confidence), check_flag(paired, "paired")
    sides: Sequence[Any] = two_sides((values_a, values_b), (ratings_a, ratings_b), groups, inclusion, paired=paired)
    return Difference(**_fields(powered(sides), confidence))


def _fields(found: Powered, confidence: float) -> dict[str, Any]:
    one = _interval(found.both, confidence)
    return {
        **one.__dict__,
        "confidence": confidence,
        "ratings_alone": _interval(found.ratings, confidence),
        "values_alone": _interval(found.values, confidence),
        "power": found.power,
        "n_rated": found.n_rated,
        "n_rows": found.n_units,
        "n_groups": found.n_rated_groups,
        "_found": found,
    }


def _interval(spread: Spread, confidence: float) -> Interval:
    half = _quantile(confidence, spread.df) * spread.se if math.isfinite(spread.se) else math.inf
    return Interval(spread.value, spread.value - half, spread.value + half, spread.se)


def _counted(n: int, things: str) -> str:
    return f"{n:,} {things if n != 1 else things[:-1]}"


def _digits(half: float) -> int:
    """Decimals that show two digits of a half-width."""
    return min(max(1 - math.floor(math.log10(half)), 0), 12) if 0 < half < math.inf else 2


def _quantile(confidence: float, df: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(df, (1 + confidence) / 2)) if df > 0 else math.inf
