"""Ridge regression with an intercept, as plain functions on arrays.

    minimise over w, b:   |y - X w - b|^2 + alpha |w|^2,      X: (n, d), y: (n,)

The intercept is not penalised, so centring X and y over the rows removes it:

    w = (Xc'Xc + alpha I)^-1 Xc'yc,      b = mean(y) - mean(X) w            (primal, a system of size d)
    w = Xc' (Xc Xc' + alpha I)^-1 yc                                        (dual, a system of size n)

Both give the same w; the smaller system is solved. A symmetric matrix A = Q T Q', with T tridiagonal, serves
every penalty: (A + alpha I)^-1 = Q (T + alpha I)^-1 Q', and a tridiagonal system costs next to nothing.

Sums over rows add up, so the fold a model did not see is subtracted from the whole instead of summing again.

Rows are float32 at rest; every sum and every solve is float64. Products of many rows are float32, where that is
good enough, and what a fit keeps is refined to rounding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rows = NDArray[np.float32] | NDArray[np.float64]
Folds = Sequence[NDArray[np.intp]]
ProductType = type[np.float32] | type[np.float64]

BLOCK = 8192  # rows at a time: large enough for full speed, small beside the Gram matrix
CHEAP = 5e8  # n d d below which float64 products are over at once
REFINEMENTS = 5
FLOAT32_REACH = 1e-6
REFINED = 1e-11  # relative length of the last correction


class Linear(NamedTuple):
    """A fitted line: value = x coef + intercept."""

    coef: Array  # (d,)
    intercept: float


@dataclass(frozen=True)
class Moments:
    """Sums over rows from which any ridge fit follows; those of disjoint rows add and subtract.

    With z = (x - x_shift, y - y_shift, 1), a row of d + 2 numbers for each text, they are the sum of z z'. The
    shifts, the same for all moments that are added, keep the sums small.

    Attributes:
        shift: x_shift and y_shift, (d + 1,).
        sums: sum of z z', (d + 2, d + 2).
    """

    shift: Array
    sums: Array

    def __add__(self, other: "Moments") -> "Moments":
        """The moments of the rows of both."""
        return Moments(self.shift, self.sums + other.sums)

    def __sub__(self, part: "Moments") -> "Moments":
        """The moments of the rows that are in the whole but not in `part`."""
        return Moments(self.shift, self.sums - part.sums)

    @property
    def n(self) -> int:
        """Number of rows."""
        return round(float(self.sums[-1, -1]))

    @property
    def means(self) -> tuple[Array, float]:
        """Mean of x, (d,), and of y."""
        means = self.shift + self.sums[-1, :-1] / self.n
        return means[:-1], float(means[-1])

    def centred(self) -> tuple[Array, Array]:
        """Xc'Xc, (d, d), and Xc'yc, (d,): the sums around the rows' own means."""
        ones = self.sums[-1, :-1]
        around = self.sums[:-1, :-1] - np.outer(ones, ones / self.n)
        return around[:-1, :-1], around[:-1, -1]


def moments(
    X: Rows, y: Array, shift: Array, rows: NDArray[np.intp] | None = None, *, kind: ProductType = np.float64
) -> Moments:
    """The moments of rows, gathered block by block: products of type `kind`, sums in float64.

    Args:
        X: rows, (n, d).
        y: targets, (n,).
        shift: see `rough_mean`.
        rows: which rows to take, or None for all of them.
        kind: float64, or float32 for half the time and sums right to about 1e-6.
    """
    d = X.shape[1]
    n_rows = len(X) if rows is None else len(rows)
    block = np.ones((min(n_rows, BLOCK), d + 2), dtype=kind)
    x_shift = shift[:-1].astype(kind)
    sums = np.zeros((d + 2, d + 2))
    for part in _blocks(n_rows):
        z = block[: part.stop - part.start]
        chosen = part if rows is None else rows[part]
        np.subtract(X[chosen], x_shift, out=z[:, :-2])
        z[:, -2] = y[chosen] - shift[-1]
        sums += z.T @ z
    return Moments(shift, sums)


def rough_mean(X: Rows, y: Array) -> Array:
    """The mean of x and y, (d + 1,), rounded to float32 so that subtracting it from float32 rows is exact enough."""
    return np.append(_mean(X).astype(np.float32).astype(np.float64), y.mean())


def fit(X: Rows, y: Array, alpha: float) -> Linear:
    """The ridge fit of y on X, to 1e-9 relative and better.

    Sums of float32 products are right to about 1e-6. The fit from them is refined: the exact gradient of the
    objective over the rows, solved with the factor at hand, is the correction, and two or three of them bring
    the coefficients to rounding. Where they do not (a penalty far below the sums' own rounding), the sums are
    gathered again in float64.

    Args:
        X: rows, (n, d), finite.
        y: targets, (n,), finite.
        alpha: penalty, > 0, in units of X squared.

    Returns:
        coef (d,) and intercept, in the units of y.

    Source: iterative refinement, Golub & Van Loan, Matrix Computations, 3.5.3.
    """
    n, d = X.shape
    if n <= d:
        centred, _ = _centred_kernel(gram_of_rows(X))
        dual = solve_path(centred, y - y.mean(), [alpha])[0]  # (n,)
        dual -= dual.mean()  # Xc'a = X'(a - mean(a))
        return _with_intercept(X, y, _transposed_times(X, dual))
    if _many_float32(X):
        coef = _refined(X, y, alpha)
        if coef is not None:
            return _with_intercept(X, y, coef)
    gram, xy = moments(X, y, rough_mean(X, y)).centred()
    return _with_intercept(X, y, solve_path(gram, xy, [alpha])[0])


def _refined(X: Rows, y: Array, alpha: float) -> Array | None:
    """Coefficients from float32 products, refined to rounding; None where refinement does not get there."""
    from scipy.linalg import LinAlgError, cho_factor, cho_solve

    gram, xy = moments(X, y, rough_mean(X, y), kind=np.float32).centred()
    np.fill_diagonal(gram, gram.diagonal() + alpha)
    try:
        factor = cho_factor(gram, lower=True, overwrite_a=True)
    except LinAlgError:
        return None
    coef: Array = cho_solve(factor, xy)
    x_mean, y_mean = _mean(X), y.mean()
    for _ in range(REFINEMENTS):
        residual = y - y_mean - (_times(X, coef) - x_mean @ coef)
        gradient = _transposed_times(X, residual) - x_mean * residual.sum() - alpha * coef
        step = cho_solve(factor, gradient)
        coef = coef + step
        if np.linalg.norm(step) <= REFINED * np.linalg.norm(coef):
            return coef
    return None


def _many_float32(X: Rows) -> bool:
    """Whether products in float32 are worth it: float32 rows, and so many that float64 would be felt."""
    n, d = X.shape
    return X.dtype == np.float32 and n * d * d > CHEAP


def _beyond_float32(gram: Array, alpha: float) -> bool:
    """Whether the rounding of float32 products could be felt: alpha is below 1e-6 of the largest eigenvalue."""
    direction = gram @ np.ones(len(gram))
    for _ in range(10):  # power iteration; a few digits are enough
        direction = gram @ (direction / np.linalg.norm(direction))
    return bool(alpha < FLOAT32_REACH * np.linalg.norm(direction))


def _with_intercept(X: Rows, y: Array, coef: Array) -> Linear:
    return Linear(coef, float(y.mean() - _mean(X) @ coef))


def _times(X: Rows, w: Array) -> Array:
    """X w, (n,), in float64."""
    return np.concatenate([X[rows].astype(np.float64) @ w for rows in _blocks(len(X))])


def _transposed_times(X: Rows, a: Array) -> Array:
    """X' a, (d,), in float64."""
    total = np.zeros(X.shape[1])
    for rows in _blocks(len(X)):
        total += X[rows].astype(np.float64).T @ a[rows]
    return total


def cross_validate(X: Rows, y: Array, alphas: Sequence[float], folds: Folds) -> Array:
    """The value every row gets from models that did not see its fold, for every penalty.

    Args:
        X: rows, (n, d).
        y: targets, (n,).
        alphas: penalties, each > 0.
        folds: the rows of each fold; disjoint, together all n rows, at least two folds.

    Returns:
        Out-of-fold predictions, (n_alphas, n), in the units of y.
    """
    n, d = X.shape
    return _cross_validate_dual(X, y, alphas, folds) if n <= d else _cross_validate_primal(X, y, alphas, folds)


def _cross_validate_primal(X: Rows, y: Array, alphas: Sequence[float], folds: Folds) -> Array:
    parts, whole = _fold_moments(X, y, folds, np.float32 if _many_float32(X) else np.float64)
    if _many_float32(X) and _beyond_float32(whole.centred()[0], min(alphas)):
        parts, whole = _fold_moments(X, y, folds, np.float64)
    out = np.empty((len(alphas), len(y)))
    for fold, part in zip(folds, parts, strict=True):
        seen = whole - part
        gram, xy = seen.centred()
        coefs = solve_path(gram, xy, alphas)  # (n_alphas, d)
        x_mean, y_mean = seen.means
        for rows in _blocks(len(fold)):
            out[:, fold[rows]] = coefs @ (X[fold[rows]] - x_mean).T + y_mean
    return out


def _fold_moments(X: Rows, y: Array, folds: Folds, kind: ProductType) -> tuple[list[Moments], Moments]:
    """The moments of every fold, and of all of them."""
    shift = rough_mean(X, y)
    parts = [moments(X, y, shift, fold, kind=kind) for fold in folds]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    return parts, whole


def _cross_validate_dual(X: Rows, y: Array, alphas: Sequence[float], folds: Folds) -> Array:
    kernel = gram_of_rows(X)  # (n, n), once for all folds
    everything = np.arange(len(y))
    out = np.empty((len(alphas), len(y)))
    for fold in folds:
        seen = np.setdiff1d(everything, fold)
        centred, row_means = _centred_kernel(kernel[np.ix_(seen, seen)])
        y_mean = y[seen].mean()
        duals = solve_path(centred, y[seen] - y_mean, alphas)  # (n_alphas, n_seen)
        duals -= duals.mean(axis=1, keepdims=True)  # then the kernel of the fold needs no centring of its own
        out[:, fold] = duals @ (kernel[np.ix_(seen, fold)] - row_means[:, None]) + y_mean
    return out


def gram_of_rows(X: Rows) -> Array:
    """X X', (n, n), summed in float64 over blocks of columns."""
    n, d = X.shape
    kernel = np.zeros((n, n))
    for columns in _blocks(d, max(1, BLOCK * 1024 // max(n, 1))):
        block = X[:, columns].astype(np.float64)
        kernel += block @ block.T
    return kernel


def _centred_kernel(kernel: Array) -> tuple[Array, Array]:
    """Xc Xc' from X X', and the row means of X X'."""
    row_means = kernel.mean(axis=1)
    return kernel - row_means[:, None] - row_means[None, :] + row_means.mean(), row_means


def solve_path(A: Array, b: Array, alphas: Sequence[float]) -> Array:
    """Solutions of (A + alpha I) x = b for every alpha, from one factorisation of A.

    One penalty is a Cholesky solve. Several share the tridiagonal form A = Q T Q'.

    Args:
        A: symmetric, positive semi-definite, (m, m); left as it is.
        b: right-hand side, (m,).
        alphas: penalties, each > 0.

    Returns:
        (n_alphas, m).

    Source: Golub & Van Loan, Matrix Computations, 8.3.1; LAPACK dsytrd, dormqr, dpttrf.
    """
    from scipy.linalg import LinAlgError, cho_factor, cho_solve, solveh_banded

    try:
        if len(alphas) == 1 or len(A) < 3:
            return np.stack([cho_solve(cho_factor(A + alpha * np.eye(len(A)), lower=True), b) for alpha in alphas])
        diagonal, off_diagonal, rotate = _tridiagonal(A)
        rotated = rotate(b, transposed=True)
        band = np.zeros((2, len(A)))
        band[1, :-1] = off_diagonal
        solutions = np.empty((len(alphas), len(A)))
        for row, alpha in enumerate(alphas):
            band[0] = diagonal + alpha
            solutions[row] = solveh_banded(band, rotated, lower=True)
        result: Array = rotate(solutions.T, transposed=False).T
        return result
    except LinAlgError:  # alpha is below the rounding of A: solve on the directions that carry anything
        eigenvalues, vectors = np.linalg.eigh(A)
        coordinates = vectors.T @ b
        eigenvalues = np.maximum(eigenvalues, 0.0)
        return np.stack([vectors @ (coordinates / (eigenvalues + alpha)) for alpha in alphas])


def _tridiagonal(A: Array) -> tuple[Array, Array, Any]:
    """The diagonal and off-diagonal of T in A = Q T Q', and a function that applies Q or Q'."""
    from scipy.linalg import lapack

    work, info = lapack.dsytrd_lwork(len(A), lower=1)
    reflectors, diagonal, off_diagonal, tau, info = lapack.dsytrd(A, lower=1, lwork=int(work))
    if info != 0:
        raise np.linalg.LinAlgError(f"dsytrd failed with info {info}")
    # Below the diagonal, dsytrd leaves a QR factor of size m - 1 that acts on all but the first coordinate.
    householder = np.asfortranarray(reflectors[1:, :-1])

    def rotate(b: Array, *, transposed: bool) -> Array:
        columns = np.array(b.reshape(len(A), -1), order="F")
        trans = "T" if transposed else "N"
        _, size, _ = lapack.dormqr("L", trans, householder, tau, columns[1:], lwork=-1)
        columns[1:], _, status = lapack.dormqr("L", trans, householder, tau, columns[1:], lwork=int(size[0]))
        if status != 0:
            raise np.linalg.LinAlgError(f"dormqr failed with info {status}")
        return columns.reshape(b.shape, order="F")

    return diagonal, off_diagonal, rotate


def predict(X: Rows, line: Linear) -> Array:
    """Values of rows, (n, d) -> (n,), the same bits for a row in any batch."""
    return dot_rows(X, line.coef) + line.intercept


def dot_rows(X: Rows, Z: Rows) -> Array:
    """Inner product of each row of X with Z, or with the same row of Z, (n, d) -> (n,), in float64.

    A row gets the same bits in any batch: BLAS sums a row differently with the number of rows beside it, and so
    does einsum once a row is longer than its buffer of 8,192; over shorter pieces it does not.
    See test_a_row_gets_the_same_bits_in_any_batch.
    """
    n, d = X.shape
    out = np.zeros(n)
    for rows in _blocks(n, 1024):
        x = np.ascontiguousarray(X[rows], dtype=np.float64)
        z = np.ascontiguousarray(Z if Z.ndim == 1 else Z[rows], dtype=np.float64)
        for columns in _blocks(d, 4096):
            out[rows] += np.einsum("ij,j->i" if Z.ndim == 1 else "ij,ij->i", x[:, columns], z[..., columns])
    return out


def _mean(X: Rows) -> Array:
    """Mean of the rows, (n, d) -> (d,), in float64."""
    mean: Array = X.mean(axis=0, dtype=np.float64)
    return mean


def _blocks(n: int, size: int = BLOCK) -> Iterator[slice]:
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
