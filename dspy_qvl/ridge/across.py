"""Products of mixed rows with a wide matrix whose rows are the columns: x A, (m, d + s) and (d + s, k) -> (m, k).

Every row's sums are made in one order, whatever the other rows; but for `Across.many`.
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.vectors import Array, MixedRows, Rows, Vectors, dot_rows

FREQUENT = 256  # sparse columns with the most entries; most of the products are theirs, and BLAS is faster at them


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
        """The products of many rows, (m, k); those of the dense and of frequent columns come from BLAS."""
        products: Array = X.dense.astype(np.float64) @ self.dense
        if self.table is not None:
            return np.asarray(products + self._looked_up(X))
        places, frequent, others = self._by_frequency
        place = places[X.sparse.indices]
        is_frequent = place < len(frequent)
        products += _entries(X, place, is_frequent, len(frequent)).toarray() @ frequent
        place -= len(frequent)
        is_other = ~is_frequent & (place < others.shape[0])
        products += (_entries(X, place, is_other, others.shape[0]) @ others).toarray()
        return products

    @functools.cached_property
    def _by_frequency(self) -> tuple[NDArray[np.int32], Array, Any]:
        """Where each sparse column stands in the order of frequency, and in that order the first ones, and the rest."""
        counts = np.diff(self.sparse.indptr)
        used = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        places = np.full(len(counts), len(used), dtype=np.int32)
        places[used] = np.arange(len(used))
        return places, self.sparse[used[:FREQUENT]].toarray(), self.sparse[used[FREQUENT:]]

    def _looked_up(self, X: MixedRows) -> Any:
        found = X.sparse.astype(np.float64) @ self.sparse
        return found.toarray() if self.table is None else found.astype(np.float32) @ self.table


def _entries(X: MixedRows, place: NDArray[np.int32], chosen: NDArray[np.bool_], width: int) -> Any:
    """Some of the entries of the sparse columns, at other places, (m, width)."""
    at = np.flatnonzero(chosen)
    ends = np.searchsorted(at, X.sparse.indptr).astype(place.dtype)
    return type(X.sparse)((X.sparse.data[at].astype(np.float64), place[at], ends), shape=(len(X), width))


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
