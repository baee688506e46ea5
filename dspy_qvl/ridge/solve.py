"""Solutions of (A + alpha I) x = b, A symmetric and positive semi-definite, for one penalty or for many.

    factored         one penalty: a Cholesky factor, and a function that solves with it
    inverse_root     a root of the inverse, for what is quadratic in it
    solve_path       many: one factorisation of A serves them all
    beyond_float32   True if the rounding of float32 would be felt

Where rounding leaves no factor, the system is solved on the directions that carry anything, and a warning says so.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.errors import warn
from dspy_qvl.ridge.moments import ProductType
from dspy_qvl.vectors import Array

TRIDIAGONAL = 2000  # size of a system above which Choleskys are cheaper than its tridiagonal form
DECADES = 1.5  # of alpha from one Cholesky to the next
FLOAT32_REACH = 1e-6
UNCERTAIN = 1e-13  # reciprocal condition below which digits are lost that a caller may count on


def factored(A: Array, alpha: float) -> tuple[Callable[[Array], Array], Array | None]:
    """A function that solves (A + alpha I) x = b, and the Cholesky factor it uses.

    Where rounding leaves no factor, there is None, and directions that carry nothing are left alone.
    """
    from scipy.linalg import LinAlgError, cho_factor, cho_solve, lapack

    system = A.copy()
    np.fill_diagonal(system, system.diagonal() + alpha)
    norm = np.abs(system).sum(axis=0).max()
    try:
        factor, _ = cho_factor(system, lower=True, overwrite_a=True, check_finite=False)
    except LinAlgError:
        _warn_ill_conditioned(alpha)
        return _spectral(A, alpha), None
    reciprocal, _ = lapack.dpocon(factor, norm, uplo="L")
    if reciprocal < UNCERTAIN:
        _warn_ill_conditioned(alpha)
    return lambda b: np.asarray(cho_solve((factor, True), b, check_finite=False)), factor


def inverse_root(A: Array, alpha: float, factor: Array | None) -> Array:
    """R with R'R = (A + alpha I)^-1: the inverse of `factored`'s Cholesky factor, lower triangular, or without one a
    root from eigenvectors.
    """
    from scipy.linalg import lapack

    if factor is None:
        eigenvalues, vectors = np.linalg.eigh(A)
        root: Array = (vectors / np.sqrt(np.maximum(eigenvalues, 0.0) + alpha)).T
        return root
    return np.tril(lapack.dtrtri(factor, lower=1)[0])  # above the diagonal a factor holds anything


def _spectral(A: Array, alpha: float) -> Callable[[Array], Array]:
    """As `factored`, on the directions that carry anything: for an alpha below the rounding of A."""
    eigenvalues, vectors = np.linalg.eigh(A)
    eigenvalues = np.maximum(eigenvalues, 0.0) + alpha
    return lambda b: np.asarray(vectors @ ((vectors.T @ b) / eigenvalues[:, None]))


def _warn_ill_conditioned(alpha: float) -> None:
    warn(
        f"the ridge system with alpha={alpha:g} is ill-conditioned: along directions in which the rows hardly differ "
        "the coefficients are rounding. Values of texts like the rated ones are sound; for sound coefficients, "
        "raise alpha.",
    )


def beyond_float32(gram: Array, alpha: float) -> bool:
    """True if the rounding of float32 products could be felt: alpha is below 1e-6 of the largest eigenvalue."""
    direction = gram @ np.ones(len(gram))
    for _ in range(10):  # power iteration; a few digits are enough
        norm = np.linalg.norm(direction)
        if norm == 0:
            return False
        direction = gram @ (direction / norm)
    return bool(alpha < FLOAT32_REACH * np.linalg.norm(direction))


def solve_path(A: Array, b: Array, alphas: Sequence[float], *, kind: ProductType = np.float64) -> Array:
    """Solutions of (A + alpha I) x = b for every alpha, from one factorisation of A.

    One penalty is a Cholesky solve. Several share the tridiagonal form A = Q T Q', since
    (A + alpha I)^-1 = Q (T + alpha I)^-1 Q' and a tridiagonal system costs next to nothing; of a large A, several
    share the span of the solutions at a few penalties, and of their derivatives with respect to it.

    Args:
        A: symmetric, positive semi-definite, (m, m); not changed.
        b: right-hand sides, (m,) or (m, k).
        alphas: penalties, each > 0.
        kind: float32 for factorisations in half the time, where 1e-6 of the largest eigenvalue is below every alpha.

    Returns:
        (n_alphas, m) or (n_alphas, m, k).
    """
    columns = b[:, None] if b.ndim == 1 else b
    if len(alphas) == 1 or len(A) < 3:
        solutions = np.stack([factored(A, alpha)[0](columns) for alpha in alphas])
    else:
        several = _solve_tridiagonal if len(A) <= TRIDIAGONAL else _solve_projected
        try:
            solutions = several(A, columns, alphas, kind)
        except np.linalg.LinAlgError:
            solutions = np.stack([_spectral(A, alpha)(columns) for alpha in alphas])
    return solutions[..., 0] if b.ndim == 1 else solutions


def _solve_tridiagonal(A: Array, b: Array, alphas: Sequence[float], kind: ProductType) -> Array:
    """All solutions from A = Q T Q'. Source: Golub & Van Loan, 8.3.1; LAPACK sytrd, ormqr, pttrf."""
    from scipy.linalg import solveh_banded

    diagonal, off_diagonal, rotate = _tridiagonal(A.astype(kind, copy=False))
    m, k = b.shape
    rotated = rotate(b, transposed=True).astype(np.float64)
    band = np.zeros((2, m))
    band[1, :-1] = off_diagonal
    solutions = np.empty((m, len(alphas), k))
    for number, alpha in enumerate(alphas):
        band[0] = diagonal.astype(np.float64) + alpha
        solutions[:, number] = solveh_banded(band, rotated, lower=True, check_finite=False)
    back = rotate(solutions.reshape(m, -1), transposed=False).astype(np.float64)
    return np.moveaxis(back.reshape(m, len(alphas), k), 0, 1)


def _tridiagonal(A: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], Any]:
    """The diagonal and off-diagonal of T in A = Q T Q', and a function that applies Q or Q'."""
    from scipy.linalg import get_lapack_funcs

    sytrd, sytrd_lwork, ormqr = get_lapack_funcs(("sytrd", "sytrd_lwork", "ormqr"), dtype=A.dtype)
    work, info = sytrd_lwork(len(A), lower=1)
    reflectors, diagonal, off_diagonal, tau, info = sytrd(A, lower=1, lwork=int(work))
    if info != 0:
        raise np.linalg.LinAlgError(f"sytrd failed with info {info}")
    # Below the diagonal, sytrd leaves a QR factor of size m - 1 that acts on all but the first coordinate.
    householder = np.asfortranarray(reflectors[1:, :-1])

    def rotate(b: Array, *, transposed: bool) -> NDArray[Any]:
        columns = np.array(b, order="F", dtype=A.dtype)
        trans = "T" if transposed else "N"
        _, size, _ = ormqr("L", trans, householder, tau, columns[1:], lwork=-1)
        columns[1:], _, status = ormqr("L", trans, householder, tau, columns[1:], lwork=int(size[0]))
        if status != 0:
            raise np.linalg.LinAlgError(f"ormqr failed with info {status}")
        return columns

    return diagonal, off_diagonal, rotate


def _solve_projected(A: Array, b: Array, alphas: Sequence[float], kind: ProductType) -> Array:
    """All solutions from a Galerkin projection on the solutions, and their derivatives, at a few penalties.

    x(alpha) is smooth in log(alpha), and in the energy norm no vector of the basis' span is nearer to it than the
    projection's. A factor needs only span well, so float32 will do where it exists.
    """
    from scipy.linalg import cho_factor, cho_solve, qr

    n_anchors = max(4, int(np.ceil(np.log10(max(alphas) / min(alphas)) / DECADES)) + 1)
    anchors = np.unique(np.geomspace(min(alphas), max(alphas), n_anchors))
    basis = []
    for anchor in anchors:
        system: NDArray[Any] = A.astype(kind)
        np.fill_diagonal(system, system.diagonal() + anchor)
        factor = cho_factor(system, lower=True, overwrite_a=True, check_finite=False)
        solution = b
        for _ in range(3):  # x, and up to a factor its first and second derivative
            solution = cho_solve(factor, solution, check_finite=False).astype(np.float64)
            basis.append(solution / np.linalg.norm(solution, axis=0).clip(1e-300))
    V, _ = qr(np.concatenate(basis, axis=1), mode="economic", check_finite=False)
    small, right = V.T @ (A @ V), V.T @ b
    eigenvalues, vectors = np.linalg.eigh((small + small.T) / 2)
    rotated, back = vectors.T @ right, V @ vectors
    eigenvalues = np.maximum(eigenvalues, 0.0)
    return np.stack([back @ (rotated / (eigenvalues + alpha)[:, None]) for alpha in alphas])
