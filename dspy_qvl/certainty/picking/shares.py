"""The share of a judge's gain that picking by value has.

    gain(n)    expected rating of the row picked by value - mean(y)
    judge(n)   expected rating of the row picked by rating - mean(y)
    share(n) = gain(n) / judge(n)

All texts are in one pool (`selection`). Where they answer different questions, a part of such a gain is to tell easy
questions from hard ones; `selection_within` takes the n from the drafts of one question, and the mean over questions.
"""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.certainty.picking.expected import bootstrap, gain_of_best, gains
from dspy_qvl.certainty.picking.luck import expected_highest
from dspy_qvl.certainty.picking.report import Selection, best_of, enough
from dspy_qvl.certainty.verdict import Estimate
from dspy_qvl.errors import InputError, check_count, shown
from dspy_qvl.measures import numbered
from dspy_qvl.vectors import Array

SIZES = (4, 16, 64, 256)
ROWS_A_DRAFT = 3  # rows needed for each of n: with fewer, the figure hangs on the three highest values


def selection(
    y: Array,
    values: Array,
    *,
    groups: Sequence[Hashable] | NDArray[np.intp] | None = None,
    n: Sequence[int] = SIZES,
    noise: Array | float | None = None,
    n_draws: int = 500,
    random_state: int = 0,
) -> Selection:
    """Measure what taking the text with the highest value of n is worth.

    Args:
        y: ratings, (n_texts,).
        values: the value of each text under a fit that never saw its rating, (n_texts,). Those of different folds are
            ranked together: give each less the mean rating of the rows its fit learned from.
        groups: the group of each text, drawn together for the intervals; None where every text is one of its own.
        n: how many texts to choose from, each at least 2; numbers above a third of the ratings are left out.
        noise: the variance of the error of each rating, (n_texts,), or of every one; None if it is not known. That of
            the mean of m raters is the variance between them over m, their scales brought to one; from few raters too,
            since it is averaged over texts of about the same rating. See `noise_of_copies`.
        n_draws: bootstrap draws of the groups.
        random_state: seed of the draws.

    Raises:
        InputError: ratings, values, groups or noise of different lengths or not finite, ratings that are all equal, a
            negative noise, a number of n that is none, or too few ratings for any.
    """
    y, values = _finite("y", y), _finite("values", values)
    n_texts = len(y)
    _check_length("values", len(values), n_texts)
    members = np.arange(n_texts) if groups is None else numbered(groups)
    _check_length("groups", len(members), n_texts)
    largest = n_texts // ROWS_A_DRAFT
    sizes = _sizes(n, n_texts, largest)
    if np.ptp(y) == 0:
        raise InputError(f"all {n_texts} ratings are {y[0]:g}, so no text is better than another; rate on a scale.")
    doublings = _doublings(largest)
    times = bootstrap(members, n_draws, random_state)
    gain, judge = (gains(key, y, times, sizes) for key in (values, y))
    highest = None if noise is None else expected_highest(y, _noise(noise, n_texts), sizes)
    found = gain_of_best(values, y, doublings)
    return Selection(n_texts, best_of(sizes, gain, judge, highest), enough(doublings, found), largest)


def selection_within(
    y: Array,
    values: Array,
    pools: Sequence[Hashable] | NDArray[np.intp],
    *,
    n: Sequence[int] = SIZES,
    n_draws: int = 500,
    random_state: int = 0,
) -> Selection:
    """Measure the same where the n texts to choose from are drafts of one question; means over questions.

    Args:
        y: ratings, (n_texts,).
        values: the value of each text under a fit that saw no rating of its question, (n_texts,).
        pools: the question of each text, drawn for the intervals, (n_texts,).
        n: how many drafts to choose from, each at least 2; of a question with fewer rated drafts nothing is known, and
            numbers that fewer than half of the questions have are left out.
        n_draws: bootstrap draws of the questions.
        random_state: seed of the draws.

    Raises:
        InputError: as `selection`.
    """
    y, values = _finite("y", y), _finite("values", values)
    _check_length("values", len(values), len(y))
    questions = numbered(pools)
    _check_length("pools", len(questions), len(y))
    counts = np.bincount(questions)
    largest = int(np.sort(counts)[len(counts) // 2])
    wanted = _checked(n)
    sizes = [size for size in wanted if size <= largest]
    if not sizes:
        raise InputError(
            f"fewer than half of the {len(counts)} questions have {wanted[0]} rated drafts, the least n of {shown(n)}; "
            f"take n up to {largest}, or rate more drafts of each."
        )
    doublings = _doublings(largest)
    of_values, of_ratings = (np.empty((len(counts), len(sizes) + len(doublings))) for _ in range(2))
    for question in range(len(counts)):
        rows = questions == question
        for key, out in ((values, of_values), (y, of_ratings)):
            out[question] = gain_of_best(key[rows], y[rows], [*sizes, *doublings])
    times = bootstrap(np.arange(len(counts)), n_draws, random_state)
    gain, judge = (_means(found, times) for found in (of_values, of_ratings))
    if not any(one.value > 0 for one in judge):
        raise InputError("the drafts of each question have equal ratings, so none is better than another.")
    found = np.array([one.value for one in gain[len(sizes) :]])
    return Selection(len(y), best_of(sizes, gain, judge, None), enough(doublings, found), largest)


def _means(gains: Array, times: NDArray[np.int64]) -> list[Estimate]:
    """The mean of each column over the questions where it is known, (n_questions, k), with its bootstrap draws."""
    known = np.isfinite(gains)
    sums = np.where(known, gains, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = (times @ sums) / (times @ known.astype(np.int64))
    values = sums.sum(axis=0) / known.sum(axis=0)
    return [Estimate(float(value), column) for value, column in zip(values, draws.T, strict=True)]


def _doublings(largest: int) -> list[int]:
    """2, 4, 8, ... up to the largest."""
    return [2**power for power in range(1, largest.bit_length()) if 2**power <= largest]


def _checked(n: Sequence[int]) -> list[int]:
    """Numbers of texts to choose from, ascending and each once."""
    if isinstance(n, str) or not np.iterable(n):
        raise InputError(f"n must be a list of numbers of texts, for instance {SIZES}, but got {shown(n)}.")
    wanted = sorted({check_count(size, f"n[{place}]", 2) for place, size in enumerate(n)})
    if not wanted:
        raise InputError(f"n is empty; give at least one number of texts, for instance {SIZES}.")
    return wanted


def _sizes(n: Sequence[int], n_texts: int, largest: int) -> list[int]:
    """The sizes that so many texts can tell of, ascending and each once."""
    wanted = _checked(n)
    sizes = [size for size in wanted if size <= largest]
    if not sizes:
        raise InputError(
            f"picking the best of n takes {ROWS_A_DRAFT} n ratings, {ROWS_A_DRAFT * wanted[0]} for the best of "
            f"{wanted[0]}, but there are {n_texts}."
        )
    return sizes


def _noise(noise: Array | float, n_texts: int) -> Array:
    found = _finite("noise", np.full(n_texts, noise) if np.ndim(noise) == 0 else noise)
    _check_length("noise", len(found), n_texts)
    if (found < 0).any():
        raise InputError(f"noise must be variances, at least 0, but got {found.min():g}.")
    return found


def _finite(what: str, numbers: object) -> Array:
    """An array of finite numbers, (n,), in float64."""
    try:
        found = np.asarray(numbers, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{what} must be numbers, one a text, but got {shown(numbers)}.") from None
    if found.ndim != 1 or not np.isfinite(found).all():
        raise InputError(f"{what} must be finite numbers, one a text, but got {shown(numbers)}.")
    return found


def _check_length(what: str, n: int, n_texts: int) -> None:
    if n != n_texts:
        raise InputError(f"there are {n} {what} for {n_texts} ratings; give one a text.")
