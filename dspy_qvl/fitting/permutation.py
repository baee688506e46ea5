"""Permutation test: does a value function do better than it would with shuffled ratings?

    ratings           ─► out-of-fold values, best penalty ─► R²
    199 x shuffled    ─► out-of-fold values, best penalty ─► R² of each ─► p: the share that does at least as well

All shuffles are further right-hand sides of the same factorisations, so that they cost little more than one. The best
penalty is chosen anew for each, since choosing among penalties finds something in noise too.

Scores of one group are alike (a hard question gets low scores), and a shuffle must not destroy that: scores are taken
apart into the mean of their group and what is left; the means are dealt out anew among the groups, in units of the
standard deviation that a mean of so many rows has, and what is left within each group.

    y_i = mean + t_g sd_g + r_i,      sd_g^2 = between + within / n_g

Where something is `given`, such as the lengths of the texts, the test is of what else the columns say: a straight line
through it is taken out of the ratings, what is left over is shuffled, and the line is taken out of every shuffle.

Source: Ojala & Garriga (2010), Permutation tests for studying classifier performance; Freedman & Lane (1983), A
nonstochastic interpretation of reported significance levels; Winkler et al. (2015), Multi-level block permutation;
Searle et al. (1992), Variance Components, 3.6, for between and within.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dspy_qvl import ridge
from dspy_qvl.fitting.folds import make_folds
from dspy_qvl.measures import numbered
from dspy_qvl.vectors import Array, Matrix

N_SHUFFLES = 199
ROUNDING = 1e-9  # of the standard deviation of the scores: what a line leaves over of scores that lie on it
LEVEL = 0.05  # p above which a value function cannot be told from noise


@dataclass(frozen=True)
class PermutationTest:
    """The outcome of a permutation test.

    Attributes:
        p: share of all orders of the ratings, the true one among them, that do at least as well, in (0, 1].
        r2: 1 - mean squared error / variance of the out-of-fold values, at the best penalty.
        shuffled_r2: the same of every shuffle, (n_shuffles,).
    """

    p: float
    r2: float
    shuffled_r2: Array


def permutation_test(
    X: Matrix,
    y: Array,
    alphas: Sequence[float],
    *,
    members: Sequence[Hashable],
    given: Array | None = None,
    n_folds: int = 5,
    n_shuffles: int = N_SHUFFLES,
    random_state: int = 0,
) -> PermutationTest:
    """Compare the out-of-fold values of a ridge fit with those of fits to shuffled scores.

    Nothing about X may have been chosen by these scores; the test is then exact for rows that are exchangeable.

    Args:
        X: columns, (n, d).
        y: scores, (n,); where all are equal, p is 1.
        alphas: penalties to choose from, each > 0.
        members: the group of each row, never split: (n,), at least two groups.
        given: a number known of each row, (n,), to test what X says beyond it; None to test all that X says.
        n_folds: folds at most.
        n_shuffles: the number of shuffles; p is at least 1 / (1 + n_shuffles).
        random_state: seed of folds and shuffles.
    """
    rng = np.random.default_rng(random_state)
    left, before = y if given is None else without_line(y, given), y.std()
    groups, spread = numbered(members), left.std()
    if spread <= ROUNDING * before:
        return PermutationTest(1.0, 0.0, np.zeros(n_shuffles))
    y = (left - left.mean()) / spread
    folds = make_folds(groups.tolist(), min(n_folds, int(groups.max()) + 1), rng)
    scores = np.column_stack([y, *shuffles(y, groups, n_shuffles, rng)])  # (n, 1 + n_shuffles)
    if given is not None:
        scores = without_line(scores, given)
    values = ridge.out_of_fold(X, scores, alphas, folds)  # (n_alphas, n, 1 + n_shuffles)
    errors = ((values - scores) ** 2).mean(axis=1).min(axis=0)
    r2 = 1 - errors / np.maximum(scores.var(axis=0), np.finfo(np.float64).tiny)
    as_good = int((r2[1:] >= r2[0] - 1e-9).sum())  # what rounds otherwise elsewhere counts as a tie
    return PermutationTest((1 + as_good) / (1 + n_shuffles), float(r2[0]), r2[1:])


def without_line(y: Array, given: Array) -> Array:
    """Targets less their straight line through a given number of each row, and less their mean, (n,) or (n, k)."""
    centred = given - given.mean()
    left: Array = y - y.mean(axis=0)
    spread = centred @ centred
    return left - np.multiply.outer(centred, centred @ left / spread) if spread > 0 else left


def shuffles(y: Array, groups: NDArray[np.intp], n_shuffles: int, rng: np.random.Generator) -> Array:
    """Scores in other orders, within groups as alike as before, (n_shuffles, n).

    Args:
        y: scores, (n,).
        groups: the group of each row, numbered from 0, (n,).
        n_shuffles: the number of orders.
        rng: source of the orders.
    """
    sizes = np.bincount(groups)
    means = np.bincount(groups, weights=y) / sizes
    left = y - means[groups]
    deviations = _deviations(y, groups)
    standardised = (means - y.mean()) / deviations
    out = np.empty((n_shuffles, len(y)))
    by_group = np.argsort(groups, kind="stable")
    for shuffle in out:
        order = np.lexsort((rng.random(len(y)), groups))  # group by group, at random within each
        shuffle[by_group] = left[order]
        shuffle += (y.mean() + rng.permutation(standardised) * deviations)[groups]
    return out


def variances_of(y: Array, groups: NDArray[np.intp]) -> tuple[float, float]:
    """The variance between groups and the variance within them, by the analysis of variance of unequal groups.

    Args:
        y: scores, (n,).
        groups: the group of each row, numbered from 0, (n,); fewer groups than rows.
    """
    sizes = np.bincount(groups)
    n, n_groups = len(y), len(sizes)
    means = np.bincount(groups, weights=y) / sizes
    left = y - means[groups]
    within = float(left @ left) / (n - n_groups)
    among = float(sizes @ (means - y.mean()) ** 2) / max(n_groups - 1, 1)
    return max(0.0, (among - within) * (n_groups - 1) / (n - float((sizes**2).sum()) / n)), within


def _deviations(y: Array, groups: NDArray[np.intp]) -> Array:
    """The standard deviation of each group's mean, (n_groups,)."""
    sizes = np.bincount(groups)
    if len(sizes) == len(y):
        return np.ones(len(y))
    between, within = variances_of(y, groups)
    variances = between + within / sizes
    return np.sqrt(variances) if variances.min() > 0 else np.ones(len(sizes))


def noise_warning(p: float) -> str:
    """The sentence that says that a value function cannot be told from noise."""
    return (
        f"the value function cannot be told from noise: {100 * p:.3g} % of shuffles of its ratings are learned as "
        "well (permutation test). Its values mean nothing as yet; rate more texts, and see whether two "
        "people would agree on the ratings."
    )
