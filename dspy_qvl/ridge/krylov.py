"""Ridge by products with the rows alone: for many rows with sparse columns, whose Gram matrices would be too large.

With the roots of the rows' weights, r, and A = diag(r) (X - 1 mean'), which is never formed,

    A v = r * (X v - mean'v)           A'u = X'(r * u) - mean * r'u

Golub-Kahan bidiagonalisation of A, started from b = r * (y - mean(y)), gives orthonormal U and V, and a lower
bidiagonal B, with A'U = V B'. The span of U serves every penalty:

    w(alpha) = A'a(alpha),     a(alpha) = U z(alpha),     (B B' + alpha I) z = |b| e_1

It grows until the residual of the normal equations, A'b - (A'A + alpha I) w, is small for each of them, at most to
256 vectors: penalties too small for that act as larger ones, and a warning says so where one of them is the best. Only
U is kept, (steps, n), and each of its vectors is made orthogonal to all before. The products are in float32, or in
float64 where the smallest penalty is below 2e-7 of the largest eigenvalue of A'A.

The fit that is kept is refined: its residual is computed in float64, and the same method solves for the correction,
until the residual is at most 1e-9 of |A'b|.

Source: Golub & Kahan (1965), Calculating the singular values and pseudo-inverse of a matrix; Simon & Zha (2000),
Low-rank matrix approximation using the Lanczos bidiagonalization process, for orthogonality on one side.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.errors import InputError, warn
from dspy_qvl.ridge.line import LeaveOneOut, Linear, fold_errors
from dspy_qvl.ridge.moments import Folds, ProductType
from dspy_qvl.ridge.solve import FLOAT32_REACH
from dspy_qvl.vectors import Array, MixedRows, column_variances

Product = Callable[[NDArray[Any]], NDArray[Any]]  # v -> A v, or u -> A'u

EXACT = 4000  # rows up to which a kernel of all rows gives leave-one-out residuals
SINGLE = 2e-7  # of the largest eigenvalue: errors of folds with smaller penalties are not right to 3 digits in float32
SEARCHED = 1e-4  # residual of the normal equations relative to |A'b|: errors of folds are then right to 4 digits
VALUED = 1e-6  # the same, for the values that one penalty gives
FITTED = 1e-9  # the same, of the fit that is kept
INNER = 1e-5  # the same, of one correction in float32
FAR = 10.0  # standard deviations from 0
STEPS = 256  # vectors in a space; where it has not converged, stopping early acts as a larger penalty
ROUNDS = 50  # corrections at most
PROGRESS, IDLE = 0.9, 5  # so many corrections in a row that leave more of the lowest residual are the last


class Krylov:
    """A ridge problem that is solved by products with its rows.

    Args:
        X: rows, (n, d).
        y: targets, (n, k).
        sample_weight: weight of each row, (n,), above 0; None for 1.
    """

    def __init__(self, X: MixedRows, y: Array, sample_weight: Array | None = None) -> None:
        self.X, self.y, self.sample_weight = X, y, sample_weight
        self._weights = np.ones(len(y)) if sample_weight is None else sample_weight

    def fit(self, alpha: float, start: Linear | None = None) -> tuple[Linear, Callable[[], LeaveOneOut]]:
        """The fit with one penalty, to `FITTED` or with a warning, and a function that refuses leave-one-out.

        Args:
            alpha: penalty, > 0.
            start: the fit, coef (d, k), of nearly these rows with nearly this penalty: it saves steps.
        """
        rows = _Centred(self.X, np.arange(len(self.y)), self._weights)
        y_mean, targets = rows.centred(self.y)
        coef, worst = np.zeros((len(targets), self.X.shape[1])), 0.0
        for number, b in enumerate(targets):
            guess = np.zeros(len(b))
            if start is not None:  # of a solution, A'a = w with a = (b - A w) / alpha
                guess = (b - rows.times(start.coef[rows.columns, number])) / alpha
            dual, reached = rows.refined(guess, b, alpha, FITTED)
            coef[number, rows.columns] = rows.transposed(dual)
            worst = max(worst, reached)
        if worst > FITTED:
            warn(
                f"the ridge fit with alpha={alpha:g} stopped where the residual of its normal equations is "
                f"{worst:.1e} of |X'y|, above {FITTED:g}: along directions in which the rows hardly differ its "
                "coefficients are inexact. Values of texts like the rated ones are sound; for sound coefficients, "
                "raise alpha."
            )
        return rows.line(coef.T, y_mean), lambda: refuse_leave_one_out(len(self.y))

    def fold_errors(self, alphas: Sequence[float], folds: Folds) -> Array:
        """Weighted mean squared error of each penalty on each fold, (n_alphas, n_folds, k), in squared units of y."""
        values, reached = self._without_folds(alphas, folds)
        errors = fold_errors(values, self.y, folds, self.sample_weight)
        best = errors.mean(axis=1).argmin(axis=0)  # of each target, (k,)
        if (reached[best] > SEARCHED).any():
            warn(
                f"cross-validation stopped after {STEPS} steps for alpha={alphas[int(best.max())]:g}, which has the "
                "lowest error: its error may be that of a larger penalty. Cross-validate larger penalties too."
            )
        return errors

    def out_of_fold(self, alphas: Sequence[float], folds: Folds) -> Array:
        """The value every row gets from models that did not see its fold, (n_alphas, n, k), in the units of y."""
        return self._without_folds(alphas, folds)[0]

    def _without_folds(self, alphas: Sequence[float], folds: Folds) -> tuple[Array, Array]:
        """The values that `out_of_fold` gives, and the largest residual of each penalty relative to |A'b|."""
        out, worst = np.empty((len(alphas), *self.y.shape)), np.zeros(len(alphas))
        for fold in folds:
            for number, (coefs, intercepts, reaches) in enumerate(self._lines_without(fold, alphas)):
                out[:, fold, number] = (self.X[fold] @ coefs + intercepts).T
                worst = np.maximum(worst, reaches)
        return out, worst

    def _lines_without(self, fold: NDArray[np.intp], alphas: Sequence[float]) -> list[tuple[Array, Array, Array]]:
        """The lines that never saw a fold, of each target: coefs (d, n_alphas), intercepts, and what residuals remain.

        The copy of the other rows is freed before the next fold has its own.
        """
        seen = np.setdiff1d(np.arange(len(self.y)), fold)
        rows, lines = _Centred(self.X, seen, self._weights[seen]), []
        y_mean, targets = rows.centred(self.y[seen])
        for number, b in enumerate(targets):
            if len(alphas) == 1:
                dual, reached = rows.refined(np.zeros(len(b)), b, alphas[0], VALUED)
                duals, reaches = dual[None], np.array([reached])
            else:
                duals, reaches = rows.path(b, alphas)
            coefs = np.zeros((self.X.shape[1], len(alphas)))
            coefs[rows.columns] = rows.transposed(duals.T)
            lines.append((*rows.line(coefs, y_mean[number]), reaches))
        return lines


class _Centred:
    """Weighted rows around their mean: the operator A.

    The rows lack their empty sparse columns, and dense columns far from 0 are taken around about their mean: what
    differs is then held by float32, and next to nothing is rounded away.

    Args:
        X: rows, (n, d).
        chosen: the rows that count, (m,).
        weights: their weights, (m,), above 0.

    Attributes:
        columns: the number that each column has in X, (d',).
    """

    def __init__(self, X: MixedRows, chosen: NDArray[np.intp], weights: Array) -> None:
        dense = X.dense[chosen] if len(chosen) < len(X) else X.dense
        self._shift = dense.mean(axis=0, dtype=np.float64).astype(dense.dtype)
        self._shift[np.abs(self._shift) < FAR * np.sqrt(column_variances(dense))] = 0.0
        if self._shift.any():
            dense = dense - self._shift
        sparse, used = without_empty(X.sparse[chosen])
        self.X, self.weights, self.root = MixedRows(dense, sparse), weights, np.sqrt(weights)
        self.columns = np.concatenate([np.arange(dense.shape[1]), dense.shape[1] + used])
        self.mean: Array = self.X.T @ (weights / weights.sum())

    def line(self, coef: Array, y_mean: Any) -> Linear:
        """The line over the columns of X, coef (d, k), that gives the mean row the mean target, (k,) or a number."""
        mean = self.mean.copy()
        mean[: len(self._shift)] += self._shift
        return Linear(coef, y_mean - mean @ coef[self.columns])

    def centred(self, y: Array) -> tuple[Array, Array]:
        """Weighted means of targets, (k,), and right-hand sides b, (k, n), from targets (n, k)."""
        y_mean = np.average(y, axis=0, weights=self.weights)
        return y_mean, self.root * (y - y_mean).T

    def times(self, v: Array) -> Array:
        """A v, (d,) -> (n,), in float64."""
        return self.root * (self.X @ v - self.mean @ v)

    def transposed(self, u: Array) -> Array:
        """A'u, (n,) -> (d,) or (n, k) -> (d, k), in float64."""
        product: Array = self.X.T @ (self.root * u.T).T
        product -= np.multiply.outer(self.mean, self.root @ u)
        return product

    def path(self, b: Array, alphas: Sequence[float]) -> tuple[Array, Array]:
        """The duals a of many penalties from one space, (n_alphas, n), and their residuals relative to |A'b|."""
        shifts = np.asarray(alphas, dtype=np.float64)
        space = _solve_in_space(self.products(np.float32), b, np.float32, shifts, SEARCHED)
        if shifts.min() < FLOAT32_REACH * space.largest:
            space = _solve_in_space(self.products(np.float64), b, np.float64, shifts, SEARCHED)
        return space.duals, space.residuals

    def refined(self, dual: Array, b: Array, alpha: float, tolerance: float) -> tuple[Array, float]:
        """The dual a of one penalty, (n,), corrected until its residual relative to |A'b| is at most `tolerance`.

        Args:
            dual: what to start from, (n,): zeros, or a guess; a guess that is worse than zeros is not used.
            b: right-hand side, (n,).
            alpha: penalty, > 0.
            tolerance: of the residual.

        Returns:
            The dual, and the residual that was reached; of corrections that did not get there, the best.
        """
        size = float(np.linalg.norm(self.transposed(b))) or 1.0

        def residual(dual: Array) -> tuple[Array, float]:
            left = b - self.times(self.transposed(dual)) - alpha * dual
            return left, float(np.linalg.norm(self.transposed(left))) / size

        left, reached = residual(dual)
        if not reached <= 1:
            dual, left, reached = np.zeros(len(b)), b, 1.0
        best, lowest, idle = dual, reached, 0
        kind: ProductType = np.float32
        for _ in range(ROUNDS):
            if reached <= tolerance or idle == IDLE:
                break
            enough = max(INNER, tolerance / reached / 2)
            space = _solve_in_space(self.products(kind), left, kind, np.array([alpha]), enough)
            if kind is np.float32 and alpha < FLOAT32_REACH * space.largest:
                kind = np.float64
                continue
            dual = dual + space.duals[0]
            left, reached = residual(dual)
            idle = 0 if reached < PROGRESS * lowest else idle + 1
            if reached < lowest:
                best, lowest = dual, reached
        return best, lowest

    def products(self, kind: ProductType) -> tuple[Product, Product]:
        """A v and A'u in one precision, as functions."""
        dense, sparse = self.X.dense.astype(kind, copy=False), self.X.sparse.astype(kind, copy=False)
        d, root, mean = dense.shape[1], self.root.astype(kind), self.mean.astype(kind)
        columns = sparse.T

        def times(v: NDArray[Any]) -> NDArray[Any]:
            return np.asarray(root * (dense @ v[:d] + sparse @ v[d:] - mean @ v))

        def transposed(u: NDArray[Any]) -> NDArray[Any]:
            weighed = root * u
            return np.asarray(np.concatenate([dense.T @ weighed, columns @ weighed]) - mean * weighed.sum())

        return times, transposed


class _Space(NamedTuple):
    """The solutions in a Krylov space."""

    duals: Array  # a of every penalty, (n_alphas, n)
    residuals: Array  # of the normal equations, relative to |A'b|, (n_alphas,)
    largest: float  # eigenvalue of AA', about


def _solve_in_space(
    products: tuple[Product, Product], b: Array, kind: ProductType, shifts: Array, tolerance: float
) -> _Space:
    """Golub-Kahan bidiagonalisation from b, until the residual of every penalty is at most `tolerance` |A'b|.

    B has `across` on its diagonal and `down` below it. The elimination of B B' + shift I, which is tridiagonal with
    `coupling` off its diagonal, goes on with every step; the last entry of its solution z gives the residual.

    Args:
        products: A v and A'u, of vectors of one precision.
        b: right-hand side, (n,).
        kind: that precision.
        shifts: penalties, (n_alphas,).
        tolerance: of the residuals.
    """
    times, transposed = products  # here of b / |b|
    size, rounding = float(np.linalg.norm(b)), float(np.finfo(kind).eps)
    basis: Any = np.empty((min(STEPS, len(b)), len(b)), dtype=kind)
    down, across, longest, start = 0.0, 0.0, 0.0, 0.0
    u: Any = (b / (size or 1.0)).astype(kind)
    v: Any = 0.0
    couplings: list[float] = []
    pivots: list[Array] = []
    rights: list[Array] = []
    residuals = np.zeros(len(shifts))
    for step in range(len(basis)):
        v = transposed(u) - down * v
        coupling, across = down * across, float(np.linalg.norm(v))
        pivot, right = across**2 + down**2 + shifts, np.ones(len(shifts))
        if step == 0:
            start = across or 1.0  # |A'b| / |b|
        else:
            last = rights[-1] / pivots[-1]
            residuals = coupling * np.abs(last) * np.hypot(across, down) / start
            if residuals.max() <= tolerance:
                break
            pivot, right = pivot - coupling**2 / pivots[-1], -coupling * last
            couplings.append(coupling)
        basis[step] = u
        pivots.append(pivot)
        rights.append(right)
        longest = max(longest, np.hypot(across, down))
        if across > rounding * longest:
            v /= across
            u = times(v) - across * u
            known = basis[: step + 1]
            u -= (known @ u) @ known
            down = float(np.linalg.norm(u))
        if not min(across, down) > rounding * longest:  # the space holds all that b reaches
            residuals = np.zeros(len(shifts))
            break
        u /= down
    solutions = [rights[-1] / pivots[-1]]
    for coupling, pivot, right in zip(couplings[::-1], pivots[-2::-1], rights[-2::-1], strict=True):
        solutions.append((right - coupling * solutions[-1]) / pivot)
    z = np.stack(solutions[::-1], axis=1).astype(kind)  # (n_alphas, steps)
    return _Space(size * (z @ basis[: len(pivots)]).astype(np.float64), residuals, longest**2)


def without_empty(sparse: Any) -> tuple[Any, NDArray[np.intp]]:
    """A scipy CSR matrix without its empty columns, and the number that each column left had; it is used up.

    The most frequent columns come first: their entries of a vector then lie together, which saves a tenth of the time
    of a product.
    """
    counts = np.bincount(sparse.indices, minlength=sparse.shape[1])
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    number = np.zeros(sparse.shape[1], dtype=sparse.indices.dtype)
    number[order] = np.arange(len(order))
    np.take(number, sparse.indices, out=sparse.indices, mode="clip")  # else numpy copies them first
    renumbered = type(sparse)((sparse.data, sparse.indices, sparse.indptr), shape=(sparse.shape[0], len(order)))
    renumbered.sort_indices()
    return renumbered, order


def refuse_leave_one_out(n: int) -> NoReturn:
    """Raise the error that says how many rows leave-one-out residuals can be computed for."""
    raise InputError(
        f"leave-one-out residuals of rows with sparse columns are computed for at most {EXACT:,} rows, and there are "
        f"{n:,}; use out_of_fold, whose residuals are of rows that a fit did not see either."
    )
