"""The rows that means are taken of: values of all, ratings of some, checked."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dspy_qvl.errors import LARGEST_SCORE, InputError, check_flat, is_list, is_missing, shown
from dspy_qvl.fitting import check_group_list
from dspy_qvl.measures import numbered
from dspy_qvl.vectors import Array


@dataclass(frozen=True, eq=False)
class Side:
    """The rows of one program.

    Attributes:
        values: of all rows, (n,).
        ratings: NaN where nobody rated, (n,).
        weights: one over the probability that a row is rated, relative to the others; 0 where nobody rated, (n,).
        units: the question of each row, numbered over both programs, (n,).
        groups: the group of each row, numbered over both programs, (n,).
    """

    values: Array
    ratings: Array
    weights: Array
    units: NDArray[np.intp]
    groups: NDArray[np.intp]

    @property
    def rated(self) -> NDArray[np.bool_]:
        """True where a row was rated, (n,)."""
        return np.isfinite(self.ratings)


def one_side(values: ArrayLike, ratings: ArrayLike, groups: Any, inclusion: Any) -> Side:
    """The rows of one program.

    Raises:
        InputError: as `mean_value`.
    """
    v, y = _values_and_ratings(values, ratings, "")
    members = _members(groups, len(v), "groups")
    weights = _weights(inclusion, y, "inclusion")
    return Side(v, y, weights, np.arange(len(v)), numbered(range(len(v)) if members is None else members))


def two_sides(
    values: Sequence[ArrayLike], ratings: Sequence[ArrayLike], groups: Any, inclusion: Any, *, paired: bool
) -> tuple[Side, Side]:
    """The rows of two programs; row i is the same question in both where they are paired.

    Raises:
        InputError: as `difference`.
    """
    (va, ya), (vb, yb) = (_values_and_ratings(values[i], ratings[i], f"_{'ab'[i]}") for i in range(2))
    if paired and len(va) != len(vb):
        raise InputError(
            f"values_a has {len(va)} entries but values_b has {len(vb)}; give each question to both programs, in the "
            "same order, or say paired=False."
        )
    groups_a, groups_b = (groups, groups) if paired else _pair(groups, "groups")
    inclusion_a, inclusion_b = _pair(inclusion, "inclusion") if not paired or _is_pair(inclusion) else [inclusion] * 2
    units_a, units_b = np.arange(len(va)), np.arange(len(vb)) + (0 if paired else len(va))
    of_a, of_b = _members(groups_a, len(va), "groups"), _members(groups_b, len(vb), "groups")
    if (of_a is None) != (of_b is None):
        raise InputError("groups has those of one program and None for the other; give both or none.")
    members = numbered([*units_a, *units_b] if of_a is None or of_b is None else [*of_a, *of_b])
    return (
        Side(va, ya, _weights(inclusion_a, ya, "inclusion"), units_a, members[: len(va)]),
        Side(vb, yb, _weights(inclusion_b, yb, "inclusion"), units_b, members[len(va) :]),
    )


def _is_pair(given: object) -> bool:
    return isinstance(given, tuple | list) and len(given) == 2 and any(one is None or is_list(one) for one in given)


def _pair(given: Any, what: str) -> tuple[Any, Any]:
    if given is None:
        return None, None
    if not _is_pair(given):
        raise InputError(f"{what} must be a tuple of two lists with paired=False, one for each program.")
    return tuple(given)


def _numbers(given: Any, what: str, *, missing: bool) -> Array:
    """Numbers as float64, (n,); a missing one is NaN where that is allowed.

    Raises:
        InputError: not a list of numbers, none, one that is not finite or too large, or a missing one.
    """
    if isinstance(given, Mapping | set | frozenset) or not is_list(given):
        raise InputError(f"{what} must be a list of numbers, but got {type(given).__name__}: {shown(given)}.")
    check_flat(given, what, "one number a row")
    if getattr(given, "dtype", None) is None or given.dtype == object:  # type: ignore[attr-defined]
        given = [np.nan if is_missing(entry) else entry for entry in given]
    try:
        if any(isinstance(entry, str | bytes) for entry in given):
            raise TypeError("a string")
        numbers = np.array(given, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{what} must hold numbers{' or NaN' if missing else ''}, but got {shown(given)}.") from None
    if not len(numbers):
        raise InputError(f"{what} is empty; there is nothing to take a mean of.")
    wrong = np.flatnonzero(~(np.abs(numbers) <= LARGEST_SCORE) & ~(missing & np.isnan(numbers)))
    if len(wrong):
        row, number = int(wrong[0]), numbers[wrong[0]]
        raise InputError(f"{what}[{row}] is {number:g}; it must be a number within ±{LARGEST_SCORE:g}.")
    return numbers


def _values_and_ratings(values: Any, ratings: Any, end: str) -> tuple[Array, Array]:
    v, y = _numbers(values, f"values{end}", missing=False), _numbers(ratings, f"ratings{end}", missing=True)
    if len(v) != len(y):
        raise InputError(
            f"values{end} has {len(v)} entries but ratings{end} has {len(y)}; give one rating a value, NaN where "
            "nobody rated."
        )
    if np.isnan(y).all():
        raise InputError(
            f"ratings{end} holds no rating, only NaN; values alone say nothing of what people think: rate some rows "
            "drawn at random."
        )
    return v, y


def _members(groups: Any, n: int, what: str) -> list[Hashable] | None:
    return None if groups is None else check_group_list(groups, n, what, "row")


def _weights(inclusion: Any, ratings: Array, what: str) -> Array:
    """One over each rated row's probability of having been rated, over their mean; 0 elsewhere, (n,)."""
    rated = np.isfinite(ratings)
    if inclusion is None:
        return rated.astype(np.float64)
    chances = _numbers(inclusion, what, missing=True)
    if len(chances) != len(ratings):
        raise InputError(f"{what} has {len(chances)} entries but there are {len(ratings)} rows; give one a row.")
    wrong = np.flatnonzero(~((chances > 0) & (chances <= 1)))
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            f"{what}[{row}] is {chances[row]:g}, of a row that {'was' if rated[row] else 'was not'} rated; each row's "
            "probability of having been rated must be above 0 and at most 1. A row that was picked, and had no chance "
            "that is known, cannot stand for others: set its rating to NaN, or draw rows at random."
        )
    weights = np.where(rated, 1 / chances, 0.0)
    return np.asarray(weights / weights[rated].mean())
