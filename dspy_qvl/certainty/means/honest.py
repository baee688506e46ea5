"""Values of rows from fits that did not see their ratings.

    rated rows ─► folds of whole groups ─► a fit without each ─► rows of the groups it left out: its values
                                                             └─► rows of groups without ratings: the mean of all fits

Source: Zrnic & Candès (2024), Cross-prediction-powered inference, PNAS 121.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dspy_qvl import ridge
from dspy_qvl.errors import InputError
from dspy_qvl.fitting import make_folds
from dspy_qvl.measures import numbered
from dspy_qvl.ridge import Linear
from dspy_qvl.vectors import Array, Matrix

N_FOLDS = 10


def honest_values(X: Matrix, ratings: ArrayLike, alpha: float, *, groups: Any = None, random_state: int = 0) -> Array:
    """Values that may stand beside the ratings they are learned from, in `mean_value` and `difference`.

    The fit of all ratings may not. It follows them: on rated rows its values are nearer to the ratings than on others,
    so their mean error there, which is to correct the rest, is about 0 whatever the error of the rest; and the less
    ratings there are beside columns, the closer it follows them. Of these fits none saw the ratings it is compared
    with, nor any of the same group, and all rows of a group are valued alike.

    Each fit is shifted to the mean of all ratings. A fold of high ratings leaves a low mean to its fit; unshifted, the
    values would run against the ratings wherever they know little.

    Penalty and weights of columns are those of the caller. That they were chosen on the same ratings is a small breach
    of the rule: a few numbers follow the ratings, not the thousands of coefficients.

    Args:
        X: columns of all rows, rated or not, as the fit sees them, (n, d). For a difference, the rows of one program
            below those of the other, with the question as group.
        ratings: NaN where nobody rated, (n,).
        alpha: penalty, > 0, in units of X squared.
        groups: the group of each row, (n,), never split; copies of a text share one. Default: each row is its own.
        random_state: seed of the folds.

    Returns:
        (n,), in the units of the ratings.

    Raises:
        InputError: lists of different lengths, or ratings of fewer than two groups.
    """
    y = np.asarray(ratings, dtype=np.float64)
    members = numbered(range(len(y)) if groups is None else groups)
    if not len(X) == len(y) == len(members):
        raise InputError(f"there are {len(X)} rows, {len(y)} ratings and {len(members)} groups; give one a row.")
    rated = np.flatnonzero(~np.isnan(y))
    n_groups = len(set(members[rated].tolist()))
    if n_groups < 2:
        raise InputError(f"values out of fold need ratings of at least two groups, but there are {n_groups}.")
    rng = np.random.default_rng(random_state)
    folds = [rated[fold] for fold in make_folds(members[rated].tolist(), min(N_FOLDS, n_groups), rng)]
    lines = []
    for fold in folds:
        seen = np.setdiff1d(rated, fold)
        coef, intercept = ridge.fit(X[seen], y[seen], alpha)
        lines.append(Linear(coef, intercept - y[seen].mean() + y[rated].mean()))
    shares = np.array([len(fold) for fold in folds]) / len(rated)
    of_fold = np.full(members.max() + 1, len(folds))
    for number, fold in enumerate(folds):
        of_fold[members[fold]] = number
    lines.append(
        Linear(
            sum(share * line.coef for share, line in zip(shares, lines, strict=True)),
            sum(share * line.intercept for share, line in zip(shares, lines, strict=True)),
        )
    )
    values = np.empty(len(y))
    for number, line in enumerate(lines):
        rows = np.flatnonzero(of_fold[members] == number)
        if len(rows):
            values[rows] = ridge.predict(X[rows], line)
    return values
