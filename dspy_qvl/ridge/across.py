"""Products of mixed rows with a wide matrix whose rows are the columns: x A, (m, d + s) and (d + s, k) -> (m, k).

Every row's sums are made in one order, whatever the other rows.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dspy_qvl.vectors import Array, MixedRows, Rows, Vectors, dot_rows


@dataclass(frozen=True, eq=False)
class Across:
    """A matrix A that mixed rows are multiplied with: its first rows are dense, its others sparse or looked up.

        A = [dense; sparse]    or    A = [dense; sparse table]

    Attributes:
        dense: (d, k), float64.
        sparse: a scipy `csr_array`, float64, (s, k), or (s, q) with a table.
        lengths: of the columns of A, (k,).
        table: (q, k), float32; or None.
    """

    dense: Array
    sparse: Any
    lengths: Array
    table: Vectors | None = None

    @staticmethod
    def transposed(X: MixedRows) -> "Across":
        """X'."""
        dense = np.ascontiguousarray(X.dense.T, dtype=np.float64)
        return Across(dense, X.sparse.T.tocsr().astype(np.float64), np.sqrt(squared_lengths(X)))

    def alone(self, x: MixedRows) -> Array:
        """The product of one row, (k,): sums in one order."""
        dense = np.einsum("ji,j->i", self.dense, x.dense[0].astype(np.float64))
        return np.asarray(dense + self._looked_up(x)[0])

    def many(self, X: MixedRows) -> Array:
        """The products of many rows, (m, k); those of the dense columns come from BLAS."""
        return np.asarray(X.dense.astype(np.float64) @ self.dense + self._looked_up(X))

    def _looked_up(self, X: MixedRows) -> Any:
        found = X.sparse.astype(np.float64) @ self.sparse
        return found.toarray() if self.table is None else found.astype(np.float32) @ self.table


class MixedLeft:
    """Mixed rows as the left factor of products.

    Attributes:
        counts: how many products each row's sums have, (m,).
        squares: squared length of each row, (m,).
    """

    def __init__(self, X: MixedRows) -> None:
        self._rows = X
        self.counts = X.dense.shape[1] + np.diff(X.sparse.indptr)
        self.squares = squared_lengths(X)

    def __matmul__(self, A: Across | Rows) -> Array:
        """The products with A, (m, k)."""
        products: Array = A.many(self._rows) if isinstance(A, Across) else self._rows @ A
        return products


def squared_lengths(X: MixedRows) -> Array:
    """Squared length of each row, (m,), the same bits in any batch."""
    rows = np.repeat(np.arange(len(X)), np.diff(X.sparse.indptr))
    squares = np.bincount(rows, X.sparse.data.astype(np.float64) ** 2, minlength=len(X))
    return np.asarray(dot_rows(X.dense, X.dense) + squares)
