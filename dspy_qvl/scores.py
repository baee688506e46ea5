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


def _correlation(statistic: Callable[..., float], y: ArrayLike, predicted: ArrayLike) -> float:
    truth, guess = _pair(y, predicted)
    if len(truth) < 2 or np.ptp(truth) == 0 or np.ptp(guess) == 0:
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's, of values that hardly differ
        return float(statistic(truth, guess))


def _pair(y: ArrayLike, predicted: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.asarray(y, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
