"""Types of arrays, and arithmetic on their rows that gives a row the same bits in any batch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

AT_ONCE = 16384  # rows whose sparse numbers are in memory in float64
BLOCK = 8192  # rows a product: large enough for full speed, small beside the Gram matrix

SAME_COSINE = 0.999  # at least that of two vectors of one model for one text, on any machine and in any batch

Array = NDArray[np.float64]
Vectors = NDArray[np.float32]  # (n, d)
Vector = NDArray[np.float32]  # (d,)
Rows = NDArray[np.float32] | NDArray[np.float64]  # (n, d); a memmap is one too


@dataclass(frozen=True, eq=False)
class MixedRows:
    """Rows whose first columns are dense and whose others are sparse, (n, d + m): an embedding and hashed words.

    `X @ V` and `X.T @ U` are sums in float64, in an order that does not depend on the other rows.

    Attributes:
        dense: (n, d), float32 or float64; d may be 0.
        sparse: a scipy `csr_array`, (n, m), float32 or float64; of a row each column once, ascending.
    """

    dense: Rows
    sparse: Any

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, (n, d + m)."""
        return len(self.dense), self.dense.shape[1] + int(self.sparse.shape[1])

    @property
    def dtype(self) -> "np.dtype[Any]":
        """Type of the dense numbers."""
        return self.dense.dtype

    def __len__(self) -> int:
        return len(self.dense)

    def __getitem__(self, rows: slice | NDArray[np.intp]) -> "MixedRows":
        """Some of the rows."""
        return MixedRows(self.dense[rows], self.sparse[rows])

    def __matmul__(self, V: Rows) -> Array:
        """X V, (d + m,) -> (n,) or (d + m, k) -> (n, k)."""
        d = self.dense.shape[1]
        out = (
            np.stack([dot_rows(self.dense, v) for v in V[:d].T], axis=1) if V.ndim > 1 else dot_rows(self.dense, V[:d])
        )
        for rows in slices(len(self), AT_ONCE):
            out[rows] += (self.sparse if len(self) <= AT_ONCE else self.sparse[rows]) @ V[d:]
        return np.asarray(out)

    @property
    def T(self) -> "_Transposed":
        """The transposed rows, for `X.T @ U`."""
        return _Transposed(self)

    def times(self, factors: Array) -> "MixedRows":
        """Every column times its factor, (d + m,)."""
        d, sparse = self.dense.shape[1], self.sparse
        of_sparse = factors[d:].astype(sparse.dtype) if sparse.nnz > len(factors) else factors[d:]
        data = sparse.data * of_sparse[sparse.indices].astype(sparse.dtype, copy=False)
        weighed = type(sparse)((data, sparse.indices, sparse.indptr), shape=sparse.shape)
        dense = self.dense if (factors[:d] == 1).all() else self.dense * factors[:d].astype(self.dtype)
        return MixedRows(dense, weighed)

    def column_means(self) -> Array:
        """The mean of each column, (d + m,), in float64."""
        sums = np.bincount(self.sparse.indices, self.sparse.data, minlength=self.sparse.shape[1])
        return np.concatenate([self.dense.mean(axis=0, dtype=np.float64), sums / len(self)])

    def toarray(self) -> Rows:
        """All columns dense, (n, d + m)."""
        return np.concatenate([self.dense, self.sparse.toarray()], axis=1)


@dataclass(frozen=True, eq=False)
class _Transposed:
    """The transpose of rows."""

    rows: MixedRows

    def __matmul__(self, U: Array) -> Array:
        """X' U, (n,) -> (d + m,) or (n, k) -> (d + m, k)."""
        X, d = self.rows, self.rows.dense.shape[1]
        out = np.zeros((X.shape[1], *U.shape[1:]))
        for rows in slices(len(X), 1024):
            out[:d] += X.dense[rows].T.astype(np.float64) @ U[rows]
        for rows in slices(len(X), AT_ONCE):
            out[d:] += (X.sparse if len(X) <= AT_ONCE else X.sparse[rows]).T @ U[rows]
        return out


Matrix = Rows | MixedRows  # (n, d)


def times(X: Matrix, factors: Array) -> Any:
    """X with every column times its factor, (d,); dense rows themselves where all of them are 1."""
    if isinstance(X, MixedRows):
        return X.times(factors)
    return X if (factors == 1).all() else X * factors.astype(X.dtype)


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


def column_variances(X: Rows) -> Array:
    """The variance of each column, (n, d) -> (d,); numpy copies what it is given to float64, so a few at a time."""
    parts = np.array_split(X, max(1, X.shape[1] // 32), axis=1)
    return np.concatenate([part.var(axis=0, dtype=np.float64) for part in parts])


def slices(n: int, size: int = BLOCK) -> Iterator[slice]:
    """Consecutive slices of at most `size` that cover range(n)."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def dot_rows(X: Matrix, Z: Rows) -> Array:
    """Inner product of each row of X with Z, or where X is dense with the same row of Z, (n, d) -> (n,), in float64.

    A row gets the same bits in any batch: BLAS sums a row differently with the number of rows beside it, and so
    does einsum once a row is longer than its buffer of 8,192; over shorter pieces it does not.
    See test_a_row_gets_the_same_bits_in_any_batch.
    """
    if isinstance(X, MixedRows):
        return X @ Z
    n, d = X.shape
    out = np.zeros(n)
    for rows in slices(n, 1024):
        x = np.ascontiguousarray(X[rows], dtype=np.float64)
        z = np.ascontiguousarray(Z if Z.ndim == 1 else Z[rows], dtype=np.float64)
        for columns in slices(d, 4096):
            out[rows] += np.einsum("ij,j->i" if Z.ndim == 1 else "ij,ij->i", x[:, columns], z[..., columns])
    return out
