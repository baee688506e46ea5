"""Ridge by the normal equations, a system of size d: for more rows than columns.

Sums of float32 products are right to about 1e-6. The fit from them is refined over the rows, which costs little; the
lines that cross-validation needs are as good as the sums.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from dspy_qvl.ridge.line import LeaveOneOut, Linear, left_out
from dspy_qvl.ridge.moments import (
    Folds,
    Moments,
    Source,
    fold_numbers,
    gather,
    kind_of_products,
    n_features,
    rough_mean,
    row_blocks,
)
from dspy_qvl.ridge.solve import beyond_float32, factored, inverse_root, solve_path
from dspy_qvl.vectors import Array

PASS = 256  # rows at a time where each is only multiplied with a vector: they stay in the processor's cache
REFINEMENTS = 5
REFINED = 1e-11  # relative length of the last correction


class Primal:
    """A ridge problem that is solved by its normal equations; the moments of its rows are gathered once.

    Args:
        X: rows, (n, d), n > d, or a source of blocks of them.
        y: targets, (n, k).
        sample_weight: weight of each row, (n,), above 0; None for 1.
        whole: the moments of all rows, where they were gathered already.

    Attributes:
        whole: the moments that the last fit was solved with.
        factor: the Cholesky factor of its system, or None.
    """

    def __init__(
        self, X: Source, y: Array, sample_weight: Array | None = None, *, whole: Moments | None = None
    ) -> None:
        self.X, self.y, self.sample_weight = X, y, sample_weight
        self._n, self._d = len(y), n_features(X, len(y))
        self._kind = kind_of_products(X, self._n, self._d)
        self._whole = self.whole = whole
        self.factor: Array | None = None

    def fit(self, alpha: float) -> tuple[Linear, Callable[..., LeaveOneOut]]:
        """The fit with one penalty, and a function that gives every row under the fit of all others.

        That function takes the root of the inverse of the system (`inverse_root`) where it is at hand, else makes it.

        Sums of float32 products are right to about 1e-6. The fit from them is refined: the exact gradient of the
        objective over the rows, solved with the factor at hand, is the correction, and two or three of them bring the
        coefficients to rounding. Where they do not (near-null directions and a penalty far below the sums' own
        rounding), the sums are gathered again in float64.

        Source: iterative refinement, Golub & Van Loan, Matrix Computations, 3.5.3.
        """
        X, y, sample_weight, whole = self.X, self.y, self.sample_weight, self._whole
        for precision in (np.float32, np.float64) if self._kind is np.float32 else (np.float64,):
            if whole is None:
                (whole,) = gather(X, y, rough_mean(X, y), sample_weight=sample_weight, kind=precision)
            gram, xy = whole.centred()
            x_mean, y_mean = whole.means
            solve, factor = factored(gram, alpha)
            coef: Array | None
            if precision is np.float32:
                x_mean, y_mean = self._mean(), np.average(y, axis=0, weights=sample_weight)
                coef = None if factor is None else self._refined(alpha, solve(xy), solve, x_mean, y_mean)
            else:
                coef = solve(xy)
            if coef is not None:
                break
            whole = None
        assert coef is not None
        line = Linear(coef, y_mean - x_mean @ coef)
        self.whole, self.factor = whole, factor

        def make_loo(root: Array | None = None) -> LeaveOneOut:
            if root is None:
                root = inverse_root(gram, alpha, factor)
            leverages = self._leverages(x_mean, root, triangular=factor is not None)
            return left_out(y - self._values(line.coef) - line.intercept, 1 - leverages)

        return line, make_loo

    def fold_errors(self, alphas: Sequence[float], folds: Folds) -> Array:
        """Weighted mean squared error of each penalty on each fold, (n_alphas, n_folds, k), in squared units of y."""
        lines = self._lines_without_folds(alphas, folds)
        return np.stack([fold.mean_squared_errors(coefs, intercepts) for fold, coefs, intercepts in lines], axis=1)

    def out_of_fold(self, alphas: Sequence[float], folds: Folds) -> Array:
        """The value every row gets from models that did not see its fold, (n_alphas, n, k), in the units of y."""
        lines = [(coefs, intercepts) for _, coefs, intercepts in self._lines_without_folds(alphas, folds)]
        fold_of = fold_numbers(folds, self._n)
        out = np.empty((len(alphas), *self.y.shape))
        for start, block in row_blocks(self.X, self._n, self._d):
            for number, (coefs, intercepts) in enumerate(lines):
                members = np.flatnonzero(fold_of[start : start + len(block)] == number)
                values = np.einsum("nd,adk->ank", block[members].astype(np.float64), coefs, optimize=True)
                out[:, start + members] = values + intercepts[:, None, :]
        return out

    def _lines_without_folds(self, alphas: Sequence[float], folds: Folds) -> Iterator[tuple[Moments, Array, Array]]:
        """The moments of each fold, and the lines that never saw it: coefs (n_alphas, d, k), intercepts (n_alphas, k).

        The sums are in a precision that the smallest penalty can bear; those of all rows are kept for the fit.
        """
        shift = rough_mean(self.X, self.y)
        for kind in (self._kind, np.float64):
            parts = gather(self.X, self.y, shift, folds=folds, sample_weight=self.sample_weight, kind=kind)
            self._whole = whole = sum(parts[1:], parts[0])
            if kind is np.float64 or not beyond_float32(whole.centred()[0], min(alphas)):
                break
        for part in parts:
            seen = whole - part
            gram, xy = seen.centred()
            single = self._kind is np.float32 and not beyond_float32(gram, min(alphas))
            coefs = solve_path(gram, xy, alphas, kind=np.float32 if single else np.float64)
            x_mean, y_mean = seen.means
            yield part, coefs, y_mean - np.einsum("d,adk->ak", x_mean, coefs)

    def _refined(
        self, alpha: float, coef: Array, solve: Callable[[Array], Array], x_mean: Array, y_mean: Array
    ) -> Array | None:
        """Coefficients from float32 products, refined to rounding; None where refinement does not get there."""
        for _ in range(REFINEMENTS):
            offset = y_mean - x_mean @ coef
            gradient, total = -alpha * coef, np.zeros_like(y_mean)
            for start, block in row_blocks(self.X, self._n, self._d, PASS):
                rows = block.astype(np.float64)
                residual = self.y[start : start + len(rows)] - rows @ coef - offset
                if self.sample_weight is not None:
                    residual *= self.sample_weight[start : start + len(rows), None]
                gradient += rows.T @ residual
                total += residual.sum(axis=0)
            step = solve(gradient - np.outer(x_mean, total))
            coef = coef + step
            if np.linalg.norm(step) <= REFINED * np.linalg.norm(coef):
                return coef
        return None

    def _leverages(self, x_mean: Array, root: Array, *, triangular: bool) -> Array:
        """Leverages s (1 / sum(s) + xc (Xc'Xc + alpha I)^-1 xc') of every row, s its weight, (n,).

        The product is the squared length of L^-1 xc', where L L' is the system.
        """
        from scipy.linalg import blas

        kind = self._kind
        inverse = np.asfortranarray(root, dtype=kind)
        multiply = blas.strmm if kind is np.float32 else blas.dtrmm
        out = np.empty(self._n)
        for start, block in row_blocks(self.X, self._n, self._d, 2048):
            rows = np.subtract(block, x_mean.astype(kind), dtype=kind)
            solved = multiply(1.0, inverse, rows.T, lower=1) if triangular else inverse @ rows.T  # (d, m)
            out[start : start + len(rows)] = np.einsum("ij,ij->j", solved, solved, dtype=kind)
        weights = self.sample_weight
        return out + 1 / self._n if weights is None else weights * (out + 1 / weights.sum())

    def _values(self, coef: Array) -> Array:
        """X coef, (n, k), in float64."""
        out = np.empty((self._n, coef.shape[1]))
        for start, block in row_blocks(self.X, self._n, self._d, PASS):
            out[start : start + len(block)] = block.astype(np.float64) @ coef
        return out

    def _mean(self) -> Array:
        """Weighted mean of the rows, (d,), in float64."""
        weights = np.ones(self._n) if self.sample_weight is None else self.sample_weight
        total: Array = np.zeros(self._d)
        for start, block in row_blocks(self.X, self._n, self._d, PASS):
            total += weights[start : start + len(block)] @ block.astype(np.float64)
        return total / float(weights.sum())
