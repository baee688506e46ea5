"""The ratings most at odds with the others: a slip of the rater, a scale read the wrong way round, or a rare case.

A rating is suspect by its residual under a fit that never saw it, over that residual's standard deviation: a text
unlike the others may differ more. Wrong ratings also pull the fit that they are measured by, so a second look is taken
by a fit without the most suspect ones of the first.

Source: Cook & Weisberg (1982), Residuals and Influence in Regression, 2.2; Hadi (1992), for masked outliers.
"""

from dataclasses import dataclass

import numpy as np

from dspy_qvl.ridge import LeaveOneOut, has_leave_one_out, posterior_of, predict
from dspy_qvl.vectors import Array, Matrix

# With 5 % of the labels mirrored about the mean, .67 instead of .65 of those moved far are found on vader_amazon, .87
# instead of .83 on vader_tweets (MiniLM with blocks, tests/benchmarks/suspects.py); to hide .02 does as well.
HIDDEN = 0.05  # share of the ratings that the second look hides from the fit
FEWEST = 20  # ratings: of fewer none is hidden


@dataclass(frozen=True)
class Suspect:
    """A rating that the others do not bear out.

    Attributes:
        row: the row of the rated text.
        score: its rating.
        value: its value under a fit that saw neither it nor the most suspect ratings.
        deviations: score - value, in standard deviations of that difference.
    """

    row: int
    score: float
    value: float
    deviations: float


def suspects(X: Matrix, y: Array, alpha: float, loo: LeaveOneOut, noise: float, n: int = 10) -> tuple[Suspect, ...]:
    """The ratings that differ most from what the others lead to expect, at most n, the most suspect first.

    Args:
        X: columns as the fit sees them, (n_texts, d).
        y: scores, (n_texts,).
        alpha: penalty.
        loo: score - value of each row under a fit that never saw it, and its leverage; a residual of NaN, of a row that
            no other bears on, is no suspect.
        noise: standard deviation of the noise, `Posterior.noise`.
        n: how many.
    """
    residuals, std = second_look(X, y, alpha, loo, noise)
    deviations = residuals / std
    order = np.argsort(-np.abs(deviations), kind="stable")  # NaN last
    return tuple(
        Suspect(int(row), float(y[row]), float(y[row] - residuals[row]), float(deviations[row]))
        for row in order[:n]
        if np.isfinite(deviations[row])
    )


def second_look(X: Matrix, y: Array, alpha: float, loo: LeaveOneOut, noise: float) -> tuple[Array, Array]:
    """Residuals and their standard deviations, (n_texts,) each, under fits that saw neither the row nor the suspects.

    The suspects are a twentieth of the rows; none of fewer than 20, or of more than 4,000 with sparse columns. The
    noise stays that of all ratings, since those left without the most suspect ones have too little. Arguments are those
    of `suspects`.
    """
    std = noise / _root(1 - loo.leverages)
    if len(y) < FEWEST or not has_leave_one_out(X):
        return loo.residuals, std
    order = np.argsort(-np.nan_to_num(np.abs(loo.residuals / std)), kind="stable")
    n_hidden = round(HIDDEN * len(y))
    hidden, kept = np.sort(order[:n_hidden]), np.sort(order[n_hidden:])
    posterior = posterior_of(X[kept], y[kept], alpha)
    assert posterior.loo is not None
    residuals = np.empty(len(y))
    residuals[hidden] = y[hidden] - predict(X[hidden], posterior.line)
    residuals[kept] = posterior.loo.residuals
    std[hidden] = noise * np.sqrt(1 + np.mean(posterior.bounds(X[hidden]), axis=0))
    std[kept] = noise / _root(1 - posterior.loo.leverages)
    return residuals, std


def _root(left: Array) -> Array:
    """The square root, NaN where nothing is left."""
    return np.sqrt(np.where(left > 0, left, np.nan))
