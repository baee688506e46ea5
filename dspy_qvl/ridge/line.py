"""A fitted line, what it misses, and the values it gives: the same bits for a row in any batch."""

from typing import Any, NamedTuple

import numpy as np

from dspy_qvl.ridge.moments import slices
from dspy_qvl.vectors import Array, Rows


class Linear(NamedTuple):
    """A fitted line: value = x coef + intercept."""

    coef: Array  # (d,), or (d, k) for k targets
    intercept: Any  # float, or (k,)


class LeaveOneOut(NamedTuple):
    """Every row under the fit of all others."""

    residuals: Array  # (n,) or (n, k), in the units of y: what that fit misses the row by
    leverages: Array  # (n,), in (0, 1]: how much of the row's own fitted value it decides itself


def left_out(residual: Array, left: Array) -> LeaveOneOut:
    """Every row under the fit of all others, from what the fit of all misses it by, (n, k), and 1 - leverage, (n,)."""
    usable = np.where(left < 1e-14, np.nan, left)
    return LeaveOneOut(residual / usable[:, None], np.clip(1 - left, 0.0, 1.0))


def predict(X: Rows, line: Linear) -> Array:
    """Values of rows, (n, d) -> (n,), the same bits for a row in any batch."""
    values: Array = dot_rows(X, line.coef) + line.intercept
    return values


def dot_rows(X: Rows, Z: Rows) -> Array:
    """Inner product of each row of X with Z, or with the same row of Z, (n, d) -> (n,), in float64.

    A row gets the same bits in any batch: BLAS sums a row differently with the number of rows beside it, and so
    does einsum once a row is longer than its buffer of 8,192; over shorter pieces it does not.
    See test_a_row_gets_the_same_bits_in_any_batch.
    """
    n, d = X.shape
    out = np.zeros(n)
    for rows in slices(n, 1024):
        x = np.ascontiguousarray(X[rows], dtype=np.float64)
        z = np.ascontiguousarray(Z if Z.ndim == 1 else Z[rows], dtype=np.float64)
        for columns in slices(d, 4096):
            out[rows] += np.einsum("ij,j->i" if Z.ndim == 1 else "ij,ij->i", x[:, columns], z[..., columns])
    return out
