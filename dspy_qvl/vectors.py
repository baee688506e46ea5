"""Types of arrays, and arithmetic on their rows that gives a row the same bits in any batch."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 8192  # rows a product: large enough for full speed, small beside the Gram matrix

SAME_COSINE = 0.999  # at least that of two vectors of one model for one text, on any machine and in any batch

Array = NDArray[np.float64]
Vectors = NDArray[np.float32]  # (n, d)
Vector = NDArray[np.float32]  # (d,)
Rows = NDArray[np.float32] | NDArray[np.float64]  # (n, d); a memmap is one too


def unit(vectors: Vectors) -> Vectors:
    """Rows scaled to length 1, (n, d) -> (n, d) float32; the same bits for a row in any batch."""
    rows = vectors.astype(np.float64)
    lengths = np.sqrt(dot_rows(rows, rows))
    lengths[lengths == 0] = 1.0
    rows /= lengths[:, None]
    return rows.astype(np.float32)


def is_unit(vectors: Vectors) -> NDArray[np.bool_]:
    """True for rows of length 1, to float32's rounding, (n, d) -> (n,)."""
    with np.errstate(over="ignore"):
        return np.asarray(np.abs(dot_rows(vectors, vectors) - 1) < 1e-3)


def as_float32(numbers: Any) -> Vectors:
    """Numbers as a contiguous float32 array; those it cannot hold become infinite, which no check lets pass.

    Raises:
        TypeError, ValueError: something that is no array of numbers.
    """
    with np.errstate(over="ignore"):
        return np.asarray(numbers, dtype=np.float32, order="C")


def slices(n: int, size: int = BLOCK) -> Iterator[slice]:
    """Consecutive slices of at most `size` that cover range(n)."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


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
