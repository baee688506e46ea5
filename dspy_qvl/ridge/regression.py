"""The calls of the engine: search, fit, leave_one_out and out_of_fold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dspy_qvl.ridge.dual import Dual
from dspy_qvl.ridge.krylov import EXACT, Krylov, refuse_leave_one_out
from dspy_qvl.ridge.line import LeaveOneOut, Linear
from dspy_qvl.ridge.moments import Folds, Source, n_features, row_blocks
from dspy_qvl.ridge.primal import Primal
from dspy_qvl.vectors import Array, MixedRows

TIE = 1e-7  # relative difference of errors that rounding can make
FEW = 1000  # rows with sparse columns, for each target, up to which their kernel is cheaper than products with them


@dataclass(frozen=True)
class Search:
    """The penalties of a search, their errors, and the fit with the best.

    Attributes:
        alphas: the penalties, (n_alphas,).
        errors: mean squared error of each penalty on each fold, (n_alphas, n_folds) or (n_alphas, n_folds, k).
        best: the index of the penalty with the lowest mean error; with several targets, each in units of its variance.
        line: the fit of all rows with it.
        loo: every row under the fit of all others with it, if asked for.
    """

    alphas: Array
    errors: Array
    best: int
    line: Linear
    loo: LeaveOneOut | None = None


def search(
    X: Source | MixedRows,
    y: Array,
    alphas: Sequence[float],
    folds: Folds,
    *,
    sample_weight: Array | None = None,
    leave_one_out: bool = False,
) -> Search:
    """Cross-validate penalties and fit all rows with the best, from one pass over the rows.

    Args:
        X: rows, (n, d), finite: an array, a memmap, a source of blocks that can be iterated again and again, or rows
            with sparse columns.
        y: targets, (n,) or (n, k), finite.
        alphas: penalties, each > 0, in units of X squared.
        folds: the rows of each fold; disjoint, together all n rows, at least two folds.
        sample_weight: weight of each row, (n,), above 0; None for 1.
        leave_one_out: True to compute leverages and leave-one-out residuals as well.

    Returns:
        A `Search`. Fold errors are weighted like the rows.

    Raises:
        InputError: leave-one-out residuals of more than 4,000 rows with sparse columns.
    """
    problem = _problem(X, y, sample_weight, leave_one_out=leave_one_out)
    errors = problem.fold_errors(alphas, folds)
    best = _best(errors, problem.y)
    line, make_loo = problem.fit(alphas[best])
    loo = make_loo() if leave_one_out else None
    if y.ndim == 1:
        errors, line, loo = errors[..., 0], line.single(), loo and loo.single()
    return Search(np.asarray(alphas, dtype=np.float64), errors, best, line, loo)


def fit(
    X: Source | MixedRows,
    y: Array,
    alpha: float,
    *,
    sample_weight: Array | None = None,
    start: Linear | None = None,
) -> Linear:
    """The ridge fit of y on X, to 1e-9 relative and better.

    Of many rows with sparse columns, 1e-9 bounds the residual of the normal equations relative to |Xc'yc|.

    Args:
        X: rows, (n, d), as in `search`.
        y: targets, (n,) or (n, k).
        alpha: penalty, > 0, in units of X squared.
        sample_weight: weight of each row, (n,), above 0; None for 1.
        start: a fit of nearly these rows with nearly this penalty, from which an iterative solution starts.

    Returns:
        coef (d,) and intercept, in the units of y; (d, k) and (k,) for k targets.
    """
    problem = _problem(X, y, sample_weight)
    if isinstance(problem, Krylov) and start is not None:
        line, _ = problem.fit(alpha, start.columns())
    else:
        line, _ = problem.fit(alpha)
    return line.single() if y.ndim == 1 else line


def leave_one_out(X: Source | MixedRows, y: Array, alpha: float, *, sample_weight: Array | None = None) -> LeaveOneOut:
    """Residual of each row under the ridge fit that never saw it, and each row's leverage.

    r_i = (y_i - yhat_i) / (1 - h_i),  h_i = s_i (1 / sum(s) + xc_i (Xc'Xc + alpha I)^-1 xc_i')
    (the 1 / sum(s) is the intercept's; without it the result is wrong for centred X).

    Args:
        X: rows, (n, d), as in `search`.
        y: targets, (n,) or (n, k).
        alpha: penalty, > 0, in units of X squared.
        sample_weight: weight of each row, (n,), above 0; None for 1.

    Returns:
        residuals (n,) or (n, k), in the units of y, and leverages (n,). A row that no other row bears on has
        leverage 1 and a residual of NaN: leaving it out leaves nothing that could predict it.

    Raises:
        InputError: more than 4,000 rows with sparse columns.

    Source: Rifkin & Lippert (2007), Notes on Regularized Least Squares.
    """
    _, make_loo = _problem(X, y, sample_weight, leave_one_out=True).fit(alpha)
    loo = make_loo()
    return loo.single() if y.ndim == 1 else loo


def out_of_fold(
    X: Source | MixedRows, y: Array, alphas: Sequence[float], folds: Folds, *, sample_weight: Array | None = None
) -> Array:
    """The value every row gets from models that did not see its fold, for every penalty.

    Args:
        X: rows, (n, d), as in `search`.
        y: targets, (n,) or (n, k).
        alphas: penalties, each > 0, in units of X squared.
        folds: the rows of each fold; disjoint, together all n rows, at least two folds.
        sample_weight: weight of each row, (n,), above 0; None for 1.

    Returns:
        (n_alphas, n) or (n_alphas, n, k), in the units of y.
    """
    out = _problem(X, y, sample_weight).out_of_fold(alphas, folds)
    return out[..., 0] if y.ndim == 1 else out


def has_leave_one_out(X: Source | MixedRows) -> bool:
    """True if leave-one-out residuals of these rows are computed."""
    return not isinstance(X, MixedRows) or len(X) <= EXACT


def _problem(
    X: Source | MixedRows, y: Array, sample_weight: Array | None, *, leave_one_out: bool = False
) -> Dual | Primal | Krylov:
    """The problem in the form that is solved fastest, of those that give what is asked; targets as columns, (n, k)."""
    n, targets = len(y), y[:, None] if y.ndim == 1 else y
    if isinstance(X, MixedRows):
        if leave_one_out and not has_leave_one_out(X):
            refuse_leave_one_out(n)
        kernel = n <= (EXACT if leave_one_out else min(EXACT, FEW * targets.shape[1]))
        return Dual(X, targets, sample_weight) if kernel else Krylov(X, targets, sample_weight)
    d = n_features(X, n)
    if n > d:
        return Primal(X, targets, sample_weight)
    rows = X if isinstance(X, np.ndarray) else np.concatenate([block for _, block in row_blocks(X, n, d)])
    return Dual(rows, targets, sample_weight)


def _best(errors: Array, y: Array) -> int:
    """The penalty with the lowest mean error, targets in units of their variance; of those that tie the first."""
    spread = y.var(axis=0)
    means = (errors.mean(axis=1) / np.where(spread > 0, spread, 1.0)).mean(axis=1)
    return int(np.flatnonzero(means <= means.min() * (1 + TIE))[0])
