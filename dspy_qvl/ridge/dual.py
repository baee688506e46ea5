"""Ridge by the kernel of the rows, a system of size n: for no more rows than columns."""

from collections.abc import Sequence

import numpy as np

from dspy_qvl.ridge.line import LeaveOneOut, Linear, left_out
from dspy_qvl.ridge.moments import Folds, ProductType, Source, row_blocks
from dspy_qvl.ridge.solve import beyond_float32, factored, inverse_root, solve_path
from dspy_qvl.vectors import Array, Rows, slices

CANCELLED = 1e-4  # 1 - leverage below which a difference of two sums has lost digits


def fit_dual(
    X: Rows, kernel: Array, y: Array, alpha: float, sample_weight: Array | None, want_loo: bool
) -> tuple[Linear, LeaveOneOut | None]:
    """The fit by the kernel of the rows, X X'."""
    n = len(y)
    weights = np.ones(n) if sample_weight is None else sample_weight
    root, total = np.sqrt(weights), weights.sum()
    centred, _ = centred_kernel(kernel, weights)
    y_mean = np.average(y, axis=0, weights=weights)
    solve, factor = factored(centred, alpha)
    dual = solve(root[:, None] * (y - y_mean))  # (n, k)
    pull = root[:, None] * dual
    pull -= np.outer(weights, pull.sum(axis=0) / total)  # Xc'a = X'(a - mean(a))
    coef = np.concatenate([X[:, columns].T.astype(np.float64) @ pull for columns in slices(X.shape[1])])
    line = Linear(coef, y_mean - np.average(X, axis=0, weights=weights).astype(np.float64) @ coef)
    if not want_loo:
        return line, None
    # 1 - h = alpha (K + alpha I)^-1_ii - s_i / sum(s), and y - yhat = alpha a / root(s)
    missed, left = alpha * dual, np.zeros(n)
    if factor is not None:
        inverse = inverse_root(centred, alpha, factor)
        left = alpha * np.einsum("ij,ij->j", inverse, inverse) - weights / total
    if left.min() < CANCELLED:  # the two nearly cancel: leave out the direction of the intercept instead
        constant = root / np.sqrt(total)
        apart = centred + (1 + 2 * np.trace(centred)) * np.outer(constant, constant)  # its eigenvalue is the largest
        eigenvalues, vectors = np.linalg.eigh(apart)
        kept, shrunk = vectors[:, :-1], alpha / (np.maximum(eigenvalues[:-1], 0.0) + alpha)
        left = kept**2 @ shrunk
        missed = kept @ (shrunk[:, None] * (kept.T @ (root[:, None] * (y - y_mean))))
    return line, left_out(missed / root[:, None], left)


def out_of_fold_dual(
    kernel: Array, y: Array, alphas: Sequence[float], folds: Folds, sample_weight: Array | None, kind: ProductType
) -> Array:
    """The value every row gets from models that did not see its fold, (n_alphas, n, k).

    Args:
        kernel: X X', (n, n).
        y: targets, (n, k).
        alphas: penalties.
        folds: the rows of each fold.
        sample_weight: weight of each row, (n,); None for 1.
        kind: type of the factorisations, where every penalty can bear it.
    """
    n = len(y)
    weights = np.ones(n) if sample_weight is None else sample_weight
    everything = np.arange(n)
    out = np.empty((len(alphas), n, y.shape[1]))
    for fold in folds:
        seen = np.setdiff1d(everything, fold)
        s = weights[seen]
        centred, row_means = centred_kernel(kernel[np.ix_(seen, seen)], s)
        y_mean = np.average(y[seen], axis=0, weights=s)
        exact = kind is np.float64 or beyond_float32(centred, min(alphas))
        duals = solve_path(
            centred,
            np.sqrt(s)[:, None] * (y[seen] - y_mean),
            alphas,
            kind=np.float64 if exact else np.float32,
        )  # (n_alphas, n_seen, k)
        duals *= np.sqrt(s)[:, None]
        duals -= duals.sum(axis=1, keepdims=True) * (s / s.sum())[:, None]  # then the fold's rows need no centring
        across = kernel[np.ix_(seen, fold)] - row_means[:, None]
        out[:, fold] = np.einsum("ask,sf->afk", duals, across, optimize=True) + y_mean
    return out


def gram_of_rows(X: Rows) -> Array:
    """X X', (n, n), summed in float64 over blocks of columns."""
    n, d = X.shape
    kernel = np.zeros((n, n))
    for columns in slices(d, max(1, 2**23 // max(n, 1))):
        block = X[:, columns].astype(np.float64)
        kernel += block @ block.T
    return kernel


def centred_kernel(kernel: Array, weights: Array) -> tuple[Array, Array]:
    """Xc Xc' of weighted rows from X X', and the inner products of each row with their mean."""
    means = kernel @ (weights / weights.sum())
    centred = kernel - means[:, None]
    centred += weights @ means / weights.sum() - means[None, :]
    if not (weights == 1).all():
        root = np.sqrt(weights)
        centred *= root[:, None]
        centred *= root[None, :]
    return centred, means


def gathered(X: Source, n: int, d: int) -> Rows:
    """All rows as one array: of at most d of them, no more than a system of size d."""
    return X if isinstance(X, np.ndarray) else np.concatenate([block for _, block in row_blocks(X, n, d)])
