"""Ridge regression with an intercept, as plain functions on arrays.

    minimise over w, b:   |y - X w - b|^2 + alpha |w|^2,      X: (n, d), y: (n,)

The intercept is not penalised, so centring X and y over the rows removes it:

    w = (Xc'Xc + alpha I)^-1 Xc'yc,      b = mean(y) - mean(X) w            (primal, a system of size d)
    w = Xc' (Xc Xc' + alpha I)^-1 yc                                        (dual, a system of size n)

Both give the same w; the smaller system is solved. A symmetric matrix A = Q T Q', with T tridiagonal, serves
every penalty: (A + alpha I)^-1 = Q (T + alpha I)^-1 Q', and a tridiagonal system costs next to nothing.

Sums over rows add up, so the fold a model did not see is subtracted from the whole instead of summing again.

Rows are float32 at rest; every sum and every solve is float64.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rows = NDArray[np.float32] | NDArray[np.float64]
Folds = Sequence[NDArray[np.intp]]

BLOCK = 8192  # rows in float64 at a time: large enough for full speed, small beside the Gram matrix


class Linear(NamedTuple):
    """A fitted line: value = x coef + intercept."""

    coef: Array  # (d,)
    intercept: float


@dataclass(frozen=True)
class Moments:
    """Sums over rows from which any ridge fit follows; those of disjoint rows add and subtract.

    With u = x - x_shift and v = y - y_shift (the shifts only keep the sums small):
    """

    n: int
    x_shift: Array  # (d,)
    y_shift: float
    u: Array  # (d,)    sum of u
    v: float  #         sum of v
    uu: Array  # (d, d) sum of u u'
    uv: Array  # (d,)   sum of u v

    def __sub__(self, part: "Moments") -> "Moments":
        """The moments of the rows that are in the whole but not in `part` (same shifts)."""
        return Moments(
            self.n - part.n,
            self.x_shift,
            self.y_shift,
            self.u - part.u,
            self.v - part.v,
            self.uu - part.uu,
            self.uv - part.uv,
        )

    def __add__(self, other: "Moments") -> "Moments":
        """The moments of the rows of both (same shifts)."""
        return Moments(
            self.n + other.n,
            self.x_shift,
            self.y_shift,
            self.u + other.u,
            self.v + other.v,
            self.uu + other.uu,
            self.uv + other.uv,
        )

    @property
    def means(self) -> tuple[Array, float]:
        """Mean of x, (d,), and of y."""
        return self.x_shift + self.u / self.n, self.y_shift + self.v / self.n

    def centred(self) -> tuple[Array, Array]:
        """Xc'Xc, (d, d), and Xc'yc, (d,): the sums around the rows' own means."""
        gram = self.uu - np.outer(self.u, self.u / self.n)
        return gram, self.uv - self.u * (self.v / self.n)


def moments(X: Rows, y: Array, x_shift: Array, y_shift: float) -> Moments:
    """The moments of all rows, gathered block by block in float64.

    Args:
        X: rows, (n, d).
        y: targets, (n,).
        x_shift: a rough mean of the rows, (d,); the same for all moments that are to be added.
        y_shift: a rough mean of the targets.
    """
    d = X.shape[1]
    u, uu, uv = np.zeros(d), np.zeros((d, d)), np.zeros(d)
    v = y - y_shift
    for rows in _blocks(len(X)):
        block = X[rows] - x_shift  # (BLOCK, d) float64
        u += block.sum(axis=0)
        uu += block.T @ block
        uv += block.T @ v[rows]
    return Moments(len(X), x_shift, y_shift, u, float(v.sum()), uu, uv)


def fit(X: Rows, y: Array, alpha: float) -> Linear:
    """The ridge fit of y on X.

    Args:
        X: rows, (n, d), finite.
        y: targets, (n,), finite.
        alpha: penalty, > 0, in units of X squared.

    Returns:
        coef (d,) and intercept, in the units of y.
    """
    n, d = X.shape
    if n <= d:
        centred, _ = _centred_kernel(gram_of_rows(X))
        dual = solve_path(centred, y - y.mean(), [alpha])[0]  # (n,)
        dual -= dual.mean()  # Xc'a = X'(a - mean(a))
        coef = np.zeros(d)
        for rows in _blocks(n):
            coef += X[rows].astype(np.float64).T @ dual[rows]
        return Linear(coef, float(y.mean() - _mean(X) @ coef))
    whole = moments(X, y, _mean(X), float(y.mean()))
    gram, xy = whole.centred()
    coef = solve_path(gram, xy, [alpha])[0]
    x_mean, y_mean = whole.means
    return Linear(coef, float(y_mean - x_mean @ coef))


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
    x_shift, y_shift = _mean(X), float(y.mean())
    parts = [moments(X[fold], y[fold], x_shift, y_shift) for fold in folds]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    out = np.empty((len(alphas), len(y)))
    for fold, part in zip(folds, parts, strict=True):
        seen = whole - part
        gram, xy = seen.centred()
        coefs = solve_path(gram, xy, alphas)  # (n_alphas, d)
        x_mean, y_mean = seen.means
        for rows in _blocks(len(fold)):
            out[:, fold[rows]] = coefs @ (X[fold[rows]] - x_mean).T + y_mean
    return out


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
