"""Measures of values and of rankings, thin over scipy and scikit-learn.

    scores and values ─► mse, r2, pearson, spearman (`FIGURES`); their standard errors by `bootstrap`
    relevances and values of one query ─► ndcg, reciprocal_rank, average_precision

A measure that is not defined for its input is NaN, never an error.
"""

import math
import warnings
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dspy_qvl.vectors import Array

CHUNK = 2**20  # rows times draws of a bootstrap that are in memory at once
ROUNDING = 1e-24  # of the largest square: a variance below it is that of equal numbers


def mse(y: ArrayLike, predicted: ArrayLike) -> float:
    """Mean squared error, in squared units of y; NaN without rows."""
    truth, guess = _pair(y, predicted)
    return float(np.mean((truth - guess) ** 2)) if len(truth) else math.nan


def r2(y: ArrayLike, predicted: ArrayLike) -> float:
    """Share of the variance of y that is explained, at most 1; NaN for fewer than 2 rows or a constant y."""
    truth, guess = _pair(y, predicted)
    if len(truth) < 2 or np.ptp(truth) == 0:
        return math.nan
    from sklearn.metrics import r2_score

    return float(r2_score(truth, guess))


def pearson(y: ArrayLike, predicted: ArrayLike) -> float:
    """Linear correlation in [-1, 1]; NaN for fewer than 2 rows or a constant side."""
    return _correlation("pearsonr", y, predicted)


def spearman(y: ArrayLike, predicted: ArrayLike) -> float:
    """Rank correlation in [-1, 1], ties sharing their mean rank; NaN for fewer than 2 rows or a constant side."""
    return _correlation("spearmanr", y, predicted)


def ndcg(relevance: ArrayLike, values: ArrayLike, k: int | None = None) -> float:
    """Normalised discounted cumulative gain of one query in [0, 1]; NaN where no passage is better than another.

    sum of gains / log2(1 + rank) over the first k, over that of the best order; the gain is the relevance less the
    lowest of the query. Equal values count as ranked worst first, so that a tie earns nothing.

    Source: Järvelin & Kekäläinen (2002), Cumulated gain-based evaluation of IR techniques.
    """
    truth, guess = _pair(relevance, values)
    gains = truth - truth.min(initial=math.inf)
    discounts = 1 / np.log2(np.arange(2, 2 + len(gains)))[:k]
    ideal = float(np.sort(gains)[::-1][:k] @ discounts)
    if not ideal > 0:
        return math.nan
    ranked = np.lexsort((gains, -guess))
    return float(gains[ranked][:k] @ discounts) / ideal


def reciprocal_rank(relevance: ArrayLike, values: ArrayLike, k: int | None = None) -> float:
    """1 / rank of the first relevant passage of one query; NaN where no passage is better than another.

    Relevant is what is above the lowest relevance of the query; 0 where none is among the first k. Ties as in `ndcg`.

    Source: Voorhees (1999), The TREC-8 question answering track report.
    """
    truth, guess = _pair(relevance, values)
    relevant = truth > truth.min(initial=math.inf)
    if not relevant.any():
        return math.nan
    first = int(np.argmax(relevant[np.lexsort((truth, -guess))]))
    return 0.0 if k is not None and first >= k else 1 / (1 + first)


def average_precision(relevant: ArrayLike, values: ArrayLike) -> float:
    """Mean precision at each relevant passage of one query, in (0, 1]; NaN without one. Ties as in `ndcg`.

    Source: Manning, Raghavan & Schütze (2008), Introduction to Information Retrieval, 8.4.
    """
    truth, guess = _pair(relevant, values)
    found = truth > 0
    if not found.any():
        return math.nan
    hits = found[np.lexsort((truth, -guess))]
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())


FIGURES = {"mse": mse, "r2": r2, "pearson": pearson, "spearman": spearman}  # of values; `bootstrap` draws each


def figures(scores: ArrayLike, values: ArrayLike) -> dict[str, float]:
    """Each of `FIGURES` of values against scores, (n,) each, by name."""
    return {name: figure(scores, values) for name, figure in FIGURES.items()}


# Standard errors of figures


def bootstrap(
    y: ArrayLike,
    predicted: ArrayLike,
    groups: Sequence[Hashable] | None = None,
    *,
    names: Sequence[str] = tuple(FIGURES),
    n_draws: int = 200,
    random_state: int = 0,
) -> dict[str, Array]:
    """The figures on bootstrap draws of the rows: their standard deviation is the figures' standard error.

    Rows of one group are drawn together, since they are not independent of each other.

    Args:
        y: true scores, (n,).
        predicted: values, (n,), in the units of y.
        groups: the group of each row, (n,); None where every row is one of its own.
        names: those of `FIGURES` that are wanted.
        n_draws: the number of draws.
        random_state: seed of the draws.

    Returns:
        Each of them by name, (n_draws,); NaN on draws where a figure is not defined.

    Source: Efron & Tibshirani (1993), An Introduction to the Bootstrap; Field & Welsh (2007), Bootstrapping clustered
    data.
    """
    truth, guess = _pair(y, predicted)
    members = np.arange(len(truth)) if groups is None else numbered(groups)
    n_groups = int(members.max(initial=-1)) + 1
    if n_groups < 2:
        return {name: np.full(n_draws, math.nan) for name in names}
    drawn = np.random.default_rng(random_state).multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_draws)
    chunk = max(1, CHUNK // len(truth))
    parts = [_drawn_figures(truth, guess, drawn[at : at + chunk][:, members], names) for at in range(0, n_draws, chunk)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def standard_error(draws: ArrayLike) -> float:
    """The standard deviation of a figure over bootstrap draws; NaN where it is defined on fewer than half of them."""
    known = np.asarray(draws, dtype=np.float64)
    known = known[np.isfinite(known)]
    return float(known.std(ddof=1)) if len(known) > 1 and 2 * len(known) >= np.size(draws) else math.nan


def _drawn_figures(truth: Array, guess: Array, times: NDArray[np.int64], names: Sequence[str]) -> dict[str, Array]:
    """Some figures of draws in which each row occurs so many times, (n_draws, n)."""
    weights = times.astype(np.float64)

    def mse() -> Array:
        return np.asarray(weights @ (truth - guess) ** 2 / weights.sum(axis=1))

    def r2() -> Array:
        total, centred = weights.sum(axis=1), truth - truth.mean()  # far from 0 the variance would lose digits
        variance = weights @ centred**2 / total - (weights @ centred / total) ** 2
        return np.where(variance > ROUNDING * (centred**2).max(), 1 - mse() / variance, math.nan)

    def pearson() -> Array:
        return _weighted_pearson(truth, guess, weights)

    def spearman() -> Array:
        return _weighted_pearson(_weighted_ranks(truth, weights), _weighted_ranks(guess, weights), weights)

    figure = {"mse": mse, "r2": r2, "pearson": pearson, "spearman": spearman}
    with np.errstate(divide="ignore", invalid="ignore"):
        return {name: figure[name]() for name in names}


def _weighted_ranks(values: Array, weights: Array) -> Array:
    """The mean rank of every row where each occurs as often as its weight says, (n_draws, n)."""
    order = np.argsort(values, kind="stable")
    _, starts, counts = np.unique(values[order], return_index=True, return_counts=True)
    of_value = np.add.reduceat(weights[:, order], starts, axis=1)  # (n_draws, n_distinct)
    middles = np.cumsum(of_value, axis=1) - of_value / 2
    ranks = np.empty_like(weights)
    ranks[:, order] = np.repeat(middles, counts, axis=1)
    return ranks


def _weighted_pearson(a: Array, b: Array, weights: Array) -> Array:
    """Linear correlation of a and b, (n,) or (n_draws, n), under the weights of each draw, (n_draws,)."""
    share = weights / weights.sum(axis=1, keepdims=True)
    a, b = (x - np.einsum("ij,ij->i", share, np.broadcast_to(x, share.shape))[:, None] for x in (a, b))
    across, aa, bb = (np.einsum("ij,ij,ij->i", share, x, y) for x, y in ((a, b), (a, a), (b, b)))
    differ = (aa > ROUNDING * (a**2).max(initial=0)) & (bb > ROUNDING * (b**2).max(initial=0))
    return np.where(differ, across / np.sqrt(aa * bb), math.nan)


def _correlation(name: str, y: ArrayLike, predicted: ArrayLike) -> float:
    """The correlation that scipy.stats calls so, NaN where it is not defined."""
    from scipy import stats

    truth, guess = _pair(y, predicted)
    if len(truth) < 2 or np.ptp(truth) == 0 or np.ptp(guess) == 0:
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's, of values that hardly differ
        return float(getattr(stats, name)(truth, guess).statistic)


def _pair(y: ArrayLike, predicted: ArrayLike) -> tuple[Array, Array]:
    return np.asarray(y, dtype=np.float64), np.asarray(predicted, dtype=np.float64)


def numbered(groups: Iterable[Hashable]) -> NDArray[np.intp]:
    """Groups as numbers from 0, in order of appearance, (n,)."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.intp)
