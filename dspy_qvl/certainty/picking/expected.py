"""The expected rating of the row that is picked, in closed form.

Of N rated rows n are drawn at random without replacement, every choice of n alike. The row with the i-th lowest key is
the highest of them with probability

    w_i = C(i - 1, n - 1) / C(N, n)

so the expected rating of the row that the key picks is the sum of w_i y_i: nothing is simulated. Rows of one key share
their probability. Sums of this kind are unbiased for new rows of the same source (U-statistics).

Source: Hoeffding (1948), A class of statistics with asymptotically normal distribution.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.certainty.verdict import Estimate
from dspy_qvl.vectors import Array, slices

AT_ONCE = 2**20  # rows times bootstrap draws in memory


def gain_of_best(key: Array, y: Array, sizes: Sequence[int]) -> Array:
    """The expected rating of the row with the highest key of n, less the mean rating, (n_sizes,), in the units of y.

    Args:
        key: what rows are picked by, (n_texts,).
        y: ratings, (n_texts,).
        sizes: n, each at most n_texts.
    """
    return np.asarray(_picked(key, y, np.ones((1, len(y)), dtype=np.int64), sizes)[0] - y.mean())


def gains(key: Array, y: Array, times: NDArray[np.int64], sizes: Sequence[int]) -> list[Estimate]:
    """The gain of picking by a key at each size, with its bootstrap draws."""
    draws = np.empty((len(times), len(sizes)))
    for some in slices(len(times), max(1, AT_ONCE // len(y))):
        drawn = times[some]
        with np.errstate(divide="ignore", invalid="ignore"):
            draws[some] = _picked(key, y, drawn, sizes) - (drawn @ y / drawn.sum(axis=1))[:, None]
    draws[~np.isfinite(draws)] = math.nan
    return [Estimate(float(value), column) for value, column in zip(gain_of_best(key, y, sizes), draws.T, strict=True)]


def _picked(key: Array, y: Array, times: NDArray[np.int64], sizes: Sequence[int]) -> Array:
    """The expected rating of the row with the highest key, (n_draws, n_sizes).

    Args:
        key: what rows are picked by, (N,).
        y: ratings, (N,).
        times: how often each row occurs in each draw, (n_draws, N).
        sizes: how many rows one is picked of; NaN where there are fewer.
    """
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[order], prepend=-math.inf))
    counts = np.add.reduceat(times[:, order], starts, axis=1)  # (n_draws, n_distinct)
    with np.errstate(invalid="ignore"):
        means = np.add.reduceat(times[:, order] * y[order], starts, axis=1) / counts
    means[counts == 0] = 0.0
    below = np.cumsum(counts, axis=1)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, below[:, -1].max() + 1)))])  # log k!
    out = np.empty((len(times), len(sizes)))
    for column, n in enumerate(sizes):
        log_choices = np.where(below >= n, logs[below] - logs[np.maximum(below - n, 0)], -math.inf)  # log C(k, n) n!
        with np.errstate(invalid="ignore"):
            up_to = np.exp(log_choices - log_choices[:, -1:])
        out[:, column] = np.einsum("ij,ij->i", np.diff(up_to, axis=1, prepend=0.0), means)
    return out


def bootstrap(members: NDArray[np.intp], n_draws: int, random_state: int) -> NDArray[np.int64]:
    """How often each row occurs in each draw of the groups, (n_draws, n); no draw of a single group."""
    n_groups = int(members.max()) + 1
    if n_groups < 2:
        return np.zeros((n_draws, len(members)), dtype=np.int64)
    rng = np.random.default_rng(random_state)
    return rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_draws)[:, members]
