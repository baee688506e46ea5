"""The part of a judge's gain that is the luck of ratings.

Ratings err, and the judge who knows them picks texts that were also lucky. With y_i = t_i + e_i, e_i normal with a
variance that depends on the level t_i, the distribution of t is the one under which the ratings are most likely, on a
grid, and

    ceiling(n) = (expected highest of n draws of t - mean of t) / judge(n)

is the share that one who knows t would gain, so of the gap 1 - share(n) nobody could close 1 - ceiling(n).

Raters agree more at the ends of a scale. One variance for all levels would take too much of the gain for luck: on
simulated ratings on a bounded scale the ceiling of n = 64 was .68 by one variance, .89 by levels, and .88 in truth.

Source: Kiefer & Wolfowitz (1956), Consistency of the maximum likelihood estimator in the presence of infinitely many
incidental parameters.
"""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.measures import numbered
from dspy_qvl.vectors import Array

N_LEVELS, N_STEPS = 100, 300  # of the grid of t, and of the search for its distribution
NEIGHBOURS, FEWEST = 0.1, 10  # share of the texts that tell the noise at one level, and ratings that tell it at all


def noise_of_copies(y: Array, copied: Sequence[Hashable] | NDArray[np.intp]) -> Array | None:
    """The variance of the error of each rating, (n,), from texts that were rated more than once.

    It is that of the texts whose mean rating is about the same.

    Args:
        y: ratings, each of one rater, (n,); those of raters whose scales differ brought to one scale.
        copied: the same for the rows of one text, (n,).

    Returns:
        None if there are fewer than ten ratings beside the first one of each text.
    """
    texts = numbered(copied)
    counts = np.bincount(texts)
    repeated = np.flatnonzero(counts > 1)
    more = counts[repeated] - 1
    if more.sum() < FEWEST:
        return None
    means = np.bincount(texts, weights=y) / counts
    squares = np.bincount(texts, weights=(y - means[texts]) ** 2).astype(np.float64)
    return by_level(y, means[repeated], squares[repeated], more.astype(np.float64))


def expected_highest(y: Array, noise: Array, sizes: Sequence[int]) -> Array:
    """The expected highest of n draws of what the raters agree on, less its mean, (n_sizes,).

    The distribution on the grid comes by expectation and maximisation, from the even one. The variance of the error at
    a level of the grid is that of ratings about there; errors below half a step of the grid count as that.
    """
    levels = np.linspace(y.min(), y.max(), N_LEVELS)
    variances = by_level(levels, y, noise, np.ones(len(y)))
    std = np.maximum(np.sqrt(variances), (levels[1] - levels[0]) / 2)
    fits = -0.5 * ((y[:, None] - levels) / std) ** 2 - np.log(std)
    likely = np.exp(fits - fits.max(axis=1, keepdims=True))
    shares = np.full(N_LEVELS, 1 / N_LEVELS)
    for _ in range(N_STEPS):
        shares = shares * (likely.T @ (1 / (likely @ shares))) / len(y)
    below = np.cumsum(shares)[:, None] ** np.array(sizes)
    return np.asarray(levels @ np.diff(below, axis=0, prepend=0.0) - levels @ shares)


def by_level(levels: Array, ratings: Array, sums: Array, counts: Array) -> Array:
    """The mean at each level of what texts rated about so high sum up to, (n_levels,), over a tenth of them or ten.

    Args:
        levels: where it is wanted, (n_levels,).
        ratings: by which texts are near to each other, (n,).
        sums: the sum over each text, (n,).
        counts: how many numbers that is the sum of, (n,).
    """
    order = np.argsort(ratings, kind="stable")
    half, places = max(FEWEST, round(NEIGHBOURS * len(order))) // 2, np.arange(len(order))
    first, last = np.maximum(places - half, 0), np.minimum(places + half + 1, len(order))
    sums, counts = (np.concatenate([[0.0], np.cumsum(part[order])]) for part in (sums, counts))
    return np.asarray(np.interp(levels, ratings[order], (sums[last] - sums[first]) / (counts[last] - counts[first])))
