"""Ridge by the kernel of the rows, a system of size n: for no more rows than columns."""

from collections.abc import Callable, Sequence

import numpy as np

from dspy_qvl.ridge.line import LeaveOneOut, Linear, fold_errors, left_out
from dspy_qvl.ridge.moments import Folds, kind_of_products
from dspy_qvl.ridge.solve import beyond_float32, factored, inverse_root, solve_path
from dspy_qvl.vectors import Array, Matrix, MixedRows, slices

CANCELLED = 1e-4  # 1 - leverage below which a difference of two sums has lost digits


class Dual:
    """A ridge problem that is solved by the kernel of its rows, X X'; the kernel is made once.

    Args:
        X: rows, (n, d), dense or with sparse columns; fast for n <= d.
        y: targets, (n, k).
        sample_weight: weight of each row, (n,), above 0; None for 1.

    Attributes:
        factor: the Cholesky factor of the system of the last fit, or None.
    """

    factor: Array | None = None

    def __init__(self, X: Matrix, y: Array, sample_weight: Array | None = None) -> None:
        self.X, self.y, self.sample_weight = X, y, sample_weight
        self.kernel = gram_of_rows(X)
        self._weights = np.ones(len(y)) if sample_weight is None else sample_weight

    def fit(self, alpha: float) -> tuple[Linear, Callable[..., LeaveOneOut]]:
        """The fit with one penalty, and a function that gives every row under the fit of all others.

        That function takes the root of the inverse of the system (`inverse_root`) where it is at hand, else makes it.
        """
        X, y, weights = self.X, self.y, self._weights
        root, total = np.sqrt(weights), weights.sum()
        centred, _ = centred_kernel(self.kernel, weights)
        y_mean = np.average(y, axis=0, weights=weights)
        solve, self.factor = factored(centred, alpha)
        factor = self.factor
        right = root[:, None] * (y - y_mean)
        dual = solve(right)  # (n, k)
        pull = root[:, None] * dual
        pull -= np.outer(weights, pull.sum(axis=0) / total)  # Xc'a = X'(a - mean(a))
        if isinstance(X, MixedRows):
            coef, x_mean = X.T @ pull, X.T @ (weights / total)
        else:
            coef = np.concatenate([X[:, columns].T.astype(np.float64) @ pull for columns in slices(X.shape[1])])
            x_mean = np.average(X, axis=0, weights=weights).astype(np.float64)
        line = Linear(coef, y_mean - x_mean @ coef)

        def make_loo(inverse: Array | None = None) -> LeaveOneOut:
            if inverse is None and factor is not None:
                inverse = inverse_root(centred, alpha, factor)
            return self._left_out(centred, inverse if factor is not None else None, alpha, right, dual)

        return line, make_loo

    def _left_out(self, centred: Array, inverse: Array | None, alpha: float, right: Array, dual: Array) -> LeaveOneOut:
        """Every row under the fit of all others, from the system of all, its right-hand sides and its solutions."""
        root, total = np.sqrt(self._weights), self._weights.sum()
        # 1 - h = alpha (K + alpha I)^-1_ii - s_i / sum(s), and y - yhat = alpha a / root(s)
        missed, left = alpha * dual, np.zeros(len(dual))
        if inverse is not None:
            left = alpha * np.einsum("ij,ij->j", inverse, inverse) - self._weights / total
        if left.min() < CANCELLED:  # the two nearly cancel: leave out the direction of the intercept instead
            constant = root / np.sqrt(total)
            apart = centred + (1 + 2 * np.trace(centred)) * np.outer(
                constant, constant
            )  # its eigenvalue is the largest
            eigenvalues, vectors = np.linalg.eigh(apart)
            kept, shrunk = vectors[:, :-1], alpha / (np.maximum(eigenvalues[:-1], 0.0) + alpha)
            left = kept**2 @ shrunk
            missed = kept @ (shrunk[:, None] * (kept.T @ right))
        return left_out(missed / root[:, None], left)

    def fold_errors(self, alphas: Sequence[float], folds: Folds) -> Array:
        """Weighted mean squared error of each penalty on each fold, (n_alphas, n_folds, k), in squared units of y."""
        return fold_errors(self.out_of_fold(alphas, folds), self.y, folds, self.sample_weight)

    def out_of_fold(self, alphas: Sequence[float], folds: Folds) -> Array:
        """The value every row gets from models that did not see its fold, (n_alphas, n, k), in the units of y."""
        y, n = self.y, len(self.y)
        single = kind_of_products(self.X, n, n) is np.float32
        out = np.empty((len(alphas), n, y.shape[1]))
        for fold in folds:
            seen = np.setdiff1d(np.arange(n), fold)
            s = self._weights[seen]
            centred, row_means = centred_kernel(self.kernel[np.ix_(seen, seen)], s)
            y_mean = np.average(y[seen], axis=0, weights=s)
            kind = np.float32 if single and not beyond_float32(centred, min(alphas)) else np.float64
            right = np.sqrt(s)[:, None] * (y[seen] - y_mean)
            duals = solve_path(centred, right, alphas, kind=kind)  # (n_alphas, n_seen, k)
            duals *= np.sqrt(s)[:, None]
            duals -= duals.sum(axis=1, keepdims=True) * (s / s.sum())[:, None]  # then the fold's rows need no centring
            across = self.kernel[np.ix_(seen, fold)] - row_means[:, None]
            out[:, fold] = np.einsum("ask,sf->afk", duals, across, optimize=True) + y_mean
        return out


def gram_of_rows(X: Matrix) -> Array:
    """X X', (n, n), summed in float64 over blocks of columns, or of sparse ones over blocks of rows."""
    if isinstance(X, MixedRows):
        kernel, sparse = gram_of_rows(X.dense), X.sparse.astype(np.float64)
        across = sparse.T.tocsr()
        for rows in slices(len(X), 256):
            kernel[rows] += (sparse[rows] @ across).toarray()
        return kernel
    n, d = X.shape
    kernel = np.zeros((n, n))
    for columns in slices(d, max(1, 2**23 // max(n, 1))):
        block = X[:, columns].astype(np.float64)
        kernel += block @ block.T
    return kernel


def centred_kernel(kernel: Array, weights: Array) -> tuple[Array, Array]:
    """Xc Xc' of weighted rows from X X', (n, n), and the inner products of each row with their mean, (n,)."""
    means = kernel @ (weights / weights.sum())
    centred = kernel - means[:, None]
    centred += weights @ means / weights.sum() - means[None, :]
    if not (weights == 1).all():
        root = np.sqrt(weights)
        centred *= root[:, None]
        centred *= root[None, :]
    return centred, means
