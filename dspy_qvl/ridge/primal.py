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
    ProductType,
    Source,
    gather,
    kind_of_products,
    n_features,
    rough_mean,
    row_blocks,
    summed,
)
from dspy_qvl.ridge.solve import beyond_float32, factored, inverse_root, solve_path
from dspy_qvl.vectors import Array

PASS = 256  # rows at a time where each is only multiplied with a vector: they stay in the processor's cache
REFINEMENTS = 5
REFINED = 1e-11  # relative length of the last correction


def fit_primal(
    X: Source, y: Array, alpha: float, sample_weight: Array | None, want_loo: bool, whole: Moments | None = None
) -> tuple[Linear, LeaveOneOut | None]:
    """The fit by the normal equations; `whole` is what was gathered already.

    Sums of float32 products are right to about 1e-6. The fit from them is refined: the exact gradient of the
    objective over the rows, solved with the factor at hand, is the correction, and two or three of them bring the
    coefficients to rounding. Where they do not (near-null directions and a penalty far below the sums' own
    rounding), the sums are gathered again in float64.

    Source: iterative refinement, Golub & Van Loan, Matrix Computations, 3.5.3.
    """
    n = len(y)
    kind = kind_of_products(X, n, n_features(X, n))
    for precision in (np.float32, np.float64) if kind is np.float32 else (np.float64,):
        if whole is None:
            shift = rough_mean(X, y)
            (whole,) = gather(X, y, shift, sample_weight=sample_weight, kind=precision)
        gram, xy = whole.centred()
        x_mean, y_mean = whole.means
        solve, factor = factored(gram, alpha)
        coef: Array | None
        if precision is np.float32:
            x_mean, y_mean = _mean(X, n, sample_weight), np.average(y, axis=0, weights=sample_weight)
            means = (x_mean, y_mean)
            coef = None if factor is None else _refined(X, y, alpha, solve(xy), solve, means, sample_weight)
        else:
            coef = solve(xy)
        if coef is not None:
            break
        whole = None
    assert coef is not None
    line = Linear(coef, y_mean - x_mean @ coef)
    if not want_loo:
        return line, None
    leverages = _leverages(X, n, x_mean, gram, alpha, factor, kind)
    if sample_weight is None:
        leverages += 1 / n
    else:
        leverages = sample_weight * (leverages + 1 / sample_weight.sum())
    return line, left_out(y - _times(X, n, coef) - line.intercept, 1 - leverages)


def _refined(
    X: Source,
    y: Array,
    alpha: float,
    coef: Array,
    solve: Callable[[Array], Array],
    means: tuple[Array, Array],
    sample_weight: Array | None,
) -> Array | None:
    """Coefficients from float32 products, refined to rounding; None where refinement does not get there."""
    x_mean, y_mean = means
    for _ in range(REFINEMENTS):
        offset = y_mean - x_mean @ coef
        gradient, total = -alpha * coef, np.zeros_like(y_mean)
        for start, block in row_blocks(X, len(y), len(coef), PASS):
            rows = block.astype(np.float64)
            residual = y[start : start + len(rows)] - rows @ coef - offset
            if sample_weight is not None:
                residual *= sample_weight[start : start + len(rows), None]
            gradient += rows.T @ residual
            total += residual.sum(axis=0)
        step = solve(gradient - np.outer(x_mean, total))
        coef = coef + step
        if np.linalg.norm(step) <= REFINED * np.linalg.norm(coef):
            return coef
    return None


def _leverages(
    X: Source, n: int, x_mean: Array, gram: Array, alpha: float, factor: Array | None, kind: ProductType
) -> Array:
    """Xc (Xc'Xc + alpha I)^-1 xc' of every row, (n,): the squared length of L^-1 xc', where L L' is the system."""
    from scipy.linalg import blas

    triangular = factor is not None
    inverse = inverse_root(gram, alpha, factor)
    inverse = np.asfortranarray(inverse, dtype=kind)
    multiply = blas.strmm if kind is np.float32 else blas.dtrmm
    out = np.empty(n)
    for start, block in row_blocks(X, n, len(x_mean), 2048):
        rows = np.subtract(block, x_mean.astype(kind), dtype=kind)
        solved = multiply(1.0, inverse, rows.T, lower=1) if triangular else inverse @ rows.T  # (d, m)
        out[start : start + len(rows)] = np.einsum("ij,ij->j", solved, solved, dtype=kind)
    return out


def fold_moments(
    X: Source, y: Array, alphas: Sequence[float], folds: Folds, sample_weight: Array | None
) -> tuple[list[Moments], Moments]:
    """The moments of every fold, and of all of them, in a precision that the smallest penalty can bear."""
    shift = rough_mean(X, y)
    kind = kind_of_products(X, len(y), len(shift) - y.shape[1])
    parts = gather(X, y, shift, folds=folds, sample_weight=sample_weight, kind=kind)
    whole = summed(parts)
    if kind is np.float32 and beyond_float32(whole.centred()[0], min(alphas)):
        parts = gather(X, y, shift, folds=folds, sample_weight=sample_weight)
        whole = summed(parts)
    return parts, whole


def unseen(
    parts: Sequence[Moments], whole: Moments, alphas: Sequence[float], kind: ProductType
) -> Iterator[tuple[Moments, Array, Array]]:
    """Each fold, and the lines that never saw it: coefs (n_alphas, d, k), intercepts (n_alphas, k)."""
    for part in parts:
        seen = whole - part
        gram, xy = seen.centred()
        exact = kind is np.float64 or beyond_float32(gram, min(alphas))
        coefs = solve_path(gram, xy, alphas, kind=np.float64 if exact else np.float32)
        x_mean, y_mean = seen.means
        yield part, coefs, y_mean - np.einsum("d,adk->ak", x_mean, coefs)


def _times(X: Source, n: int, w: Array) -> Array:
    """X w, (n, k), in float64."""
    out = np.empty((n, w.shape[1]))
    for start, block in row_blocks(X, n, len(w), PASS):
        out[start : start + len(block)] = block.astype(np.float64) @ w
    return out


def _mean(X: Source, n: int, sample_weight: Array | None) -> Array:
    """Weighted mean of the rows, (d,), in float64."""
    total: Array = np.zeros(n_features(X, n))
    for start, block in row_blocks(X, n, len(total), PASS):
        weights = np.ones(len(block)) if sample_weight is None else sample_weight[start : start + len(block)]
        total += weights @ block.astype(np.float64)
    return total / (n if sample_weight is None else sample_weight.sum())
