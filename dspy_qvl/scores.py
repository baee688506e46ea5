"""How good predictions are: thin over scipy and scikit-learn, NaN where a score is not defined."""

import math
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray


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
    from scipy.stats import pearsonr

    return _correlation(lambda a, b: pearsonr(a, b).statistic, y, predicted)


def spearman(y: ArrayLike, predicted: ArrayLike) -> float:
    """Rank correlation in [-1, 1], ties sharing their mean rank; NaN for fewer than 2 rows or a constant side."""
    from scipy.stats import spearmanr

    return _correlation(lambda a, b: spearmanr(a, b).statistic, y, predicted)


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


def _correlation(statistic: Callable[..., float], y: ArrayLike, predicted: ArrayLike) -> float:
    truth, guess = _pair(y, predicted)
    if len(truth) < 2 or np.ptp(truth) == 0 or np.ptp(guess) == 0:
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's, of values that hardly differ
        return float(statistic(truth, guess))


def _pair(y: ArrayLike, predicted: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.asarray(y, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
