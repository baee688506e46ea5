"""Ridge regression with an intercept, as plain functions on arrays.

    minimise over w, b:   sum_i s_i (y_i - x_i w - b)^2 + alpha |w|^2,      X: (n, d), y: (n,) or (n, k)

The intercept is not penalised, so centring X and y over the rows removes it; with the weights' roots taken into
the rows, Xc and yc,

    w = (Xc'Xc + alpha I)^-1 Xc'yc,      b = mean(y) - mean(X) w            (primal, a system of size d)
    w = Xc' (Xc Xc' + alpha I)^-1 yc                                        (dual, a system of size n)

Both give the same w; the smaller system is solved. One factorisation of a system serves every penalty: up to 2,000
rows and columns its tridiagonal form, beyond that a few Choleskys and a projection (`solve_path`). The model that
never saw a fold comes by subtracting the fold's moments from the whole (`moments.py`, `primal.py`, `dual.py`).

Rows are float32 at rest; every sum and every solve is float64. Products of many rows are float32, where that is
good enough, and what a fit keeps is refined to rounding.

A fit is the same bits on one machine. BLAS sums in another order with another number of threads, and on another
processor: coefficients then differ by rounding (3e-14 of the largest, 300 texts, 1 and 2 threads), and penalties whose
errors do not differ by more count as tied.

    search          which penalty: the error of each on each fold, and the fit with the best, from one pass
    fit             the fit with one penalty
    leave_one_out   the residual of each row under a fit that never saw it, without refitting
    out_of_fold     the value of each row under the fit that never saw its fold, for every penalty
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dspy_qvl.ridge.dual import fit_dual, gathered, gram_of_rows, out_of_fold_dual
from dspy_qvl.ridge.line import LeaveOneOut, Linear, predict
from dspy_qvl.ridge.moments import Folds, Source, kind_of_products, n_features, row_blocks
from dspy_qvl.ridge.primal import fit_primal, fold_moments, unseen
from dspy_qvl.vectors import Array

TIE = 1e-7  # relative difference of errors that rounding can make

__all__ = ["LeaveOneOut", "Linear", "Search", "fit", "leave_one_out", "out_of_fold", "predict", "search"]


@dataclass(frozen=True)
class Search:
    """The penalties of a search, and what came of it.

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
    X: Source,
    y: Array,
    alphas: Sequence[float],
    folds: Folds,
    *,
    sample_weight: Array | None = None,
    leave_one_out: bool = False,
) -> Search:
    """Cross-validate penalties and fit all rows with the best, from one pass over the rows.

    Args:
        X: rows, (n, d), finite: an array, a memmap, or a source of blocks that can be iterated again and again.
        y: targets, (n,) or (n, k), finite.
        alphas: penalties, each > 0, in units of X squared.
        folds: the rows of each fold; disjoint, together all n rows, at least two folds.
        sample_weight: weight of each row, (n,), above 0; None for 1.
        leave_one_out: whether to compute leverages and leave-one-out residuals as well.

    Returns:
        A `Search`. Fold errors are weighted like the rows.
    """
    targets, n = _columns(y), len(y)
    d = n_features(X, n)
    if n <= d:
        rows = gathered(X, n, d)
        kernel = gram_of_rows(rows)
        values = out_of_fold_dual(
            kernel, targets, alphas, folds, sample_weight, kind_of_products(rows, n, n)
        )  # (n_alphas, n, k)
        squares = (values - targets) ** 2
        errors = np.stack(
            [
                np.average(squares[:, f], axis=1, weights=None if sample_weight is None else sample_weight[f])
                for f in folds
            ],
            axis=1,
        )
        best = _best(errors, targets)
        line, loo = fit_dual(rows, kernel, targets, alphas[best], sample_weight, leave_one_out)
    else:
        parts, whole = fold_moments(X, targets, alphas, folds, sample_weight)
        errors = np.empty((len(alphas), len(folds), targets.shape[1]))
        for number, (part, coefs, intercepts) in enumerate(unseen(parts, whole, alphas, kind_of_products(X, n, d))):
            errors[:, number] = part.mean_squared_errors(coefs, intercepts)
        best = _best(errors, targets)
        line, loo = fit_primal(X, targets, alphas[best], sample_weight, leave_one_out, whole)
    if y.ndim == 1:
        errors, line, loo = errors[..., 0], _single(line), _single_loo(loo)
    return Search(np.asarray(alphas, dtype=np.float64), errors, best, line, loo)


def fit(X: Source, y: Array, alpha: float, *, sample_weight: Array | None = None) -> Linear:
    """The ridge fit of y on X, to 1e-9 relative and better.

    Args:
        X: rows, (n, d), as in `search`.
        y: targets, (n,) or (n, k).
        alpha: penalty, > 0, in units of X squared.
        sample_weight: weight of each row, (n,), above 0; None for 1.

    Returns:
        coef (d,) and intercept, in the units of y; (d, k) and (k,) for k targets.
    """
    line, _ = _fit(X, y, alpha, sample_weight, want_loo=False)
    return line


def leave_one_out(X: Source, y: Array, alpha: float, *, sample_weight: Array | None = None) -> LeaveOneOut:
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

    Source: Rifkin & Lippert (2007), Notes on Regularized Least Squares.
    """
    _, loo = _fit(X, y, alpha, sample_weight, want_loo=True)
    assert loo is not None
    return loo


def _fit(
    X: Source, y: Array, alpha: float, sample_weight: Array | None, *, want_loo: bool
) -> tuple[Linear, LeaveOneOut | None]:
    targets, n = _columns(y), len(y)
    d = n_features(X, n)
    if n <= d:
        rows = gathered(X, n, d)
        line, loo = fit_dual(rows, gram_of_rows(rows), targets, alpha, sample_weight, want_loo)
    else:
        line, loo = fit_primal(X, targets, alpha, sample_weight, want_loo)
    return (_single(line), _single_loo(loo)) if y.ndim == 1 else (line, loo)


def out_of_fold(
    X: Source, y: Array, alphas: Sequence[float], folds: Folds, *, sample_weight: Array | None = None
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
    targets, n = _columns(y), len(y)
    d = n_features(X, n)
    if n <= d:
        rows = gathered(X, n, d)
        out = out_of_fold_dual(gram_of_rows(rows), targets, alphas, folds, sample_weight, kind_of_products(rows, n, n))
    else:
        parts, whole = fold_moments(X, targets, alphas, folds, sample_weight)
        fold_of = np.empty(n, dtype=np.intp)
        for number, fold in enumerate(folds):
            fold_of[fold] = number
        lines = [
            (coefs, intercepts) for _, coefs, intercepts in unseen(parts, whole, alphas, kind_of_products(X, n, d))
        ]
        out = np.empty((len(alphas), n, targets.shape[1]))
        for start, block in row_blocks(X, n, d):
            for number, (coefs, intercepts) in enumerate(lines):
                members = np.flatnonzero(fold_of[start : start + len(block)] == number)
                values = np.einsum("nd,adk->ank", block[members].astype(np.float64), coefs, optimize=True)
                out[:, start + members] = values + intercepts[:, None, :]
    return out[..., 0] if y.ndim == 1 else out


def _best(errors: Array, y: Array) -> int:
    """The penalty with the lowest mean error, targets in units of their variance; of those that tie the first."""
    spread = y.var(axis=0)
    means = (errors.mean(axis=1) / np.where(spread > 0, spread, 1.0)).mean(axis=1)
    return int(np.flatnonzero(means <= means.min() * (1 + TIE))[0])


def _columns(y: Array) -> Array:
    """Targets or right-hand sides as columns, (n, k)."""
    return y[:, None] if y.ndim == 1 else y


def _single(line: Linear) -> Linear:
    return Linear(line.coef[:, 0], float(line.intercept[0]))


def _single_loo(loo: LeaveOneOut | None) -> LeaveOneOut | None:
    return None if loo is None else LeaveOneOut(loo.residuals[:, 0], loo.leverages)
