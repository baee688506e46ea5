"""Rows that come and go one at a time, with the inner products a kernel needs: dense ones, and mixed ones.

Inner products are those of z = x - shift, where the shift is about the mean of the rows that were there first. Sparse
columns are not shifted, since that would fill them.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.ridge.dual import gram_of_rows
from dspy_qvl.vectors import Array, MixedRows, Rows, slices

Positions = NDArray[np.intp]
Row = Any  # a row, (d,) or (1, d), dense or mixed as the others are; a mixed one (1, d)


class KeptRows:
    """Dense rows, in a buffer with some to spare.

    Args:
        X: the rows to begin with, (n, d).

    Attributes:
        shift: about the mean of those rows, (d,).
    """

    def __init__(self, X: Rows) -> None:
        n, d = X.shape
        self.shift = _about_mean(X)
        self._X = np.empty((n + n // 8 + 64, d), dtype=X.dtype)
        self._X[:n] = X
        self._n = n

    def kernel(self) -> Array:
        """Z Z', (n, n)."""
        X, n = self._X, self._n
        kernel = np.zeros((n, n))
        for columns in slices(X.shape[1], max(1, 2**23 // n)):
            block = X[:n, columns] - self.shift[columns]
            kernel += block @ block.T
        return kernel

    def add(self, x: Row) -> Array:
        """Put a row last; the inner products of every row with it, (n + 1,)."""
        n = self._n
        if n == len(self._X):
            X = np.empty((n + n // 8 + 64, self._X.shape[1]), dtype=self._X.dtype)
            X[:n] = self._X
            self._X = X
        self._X[n] = x
        self._n += 1
        return _products_with_last(self._X[: n + 1], self.shift)

    def drop(self, row: int) -> None:
        """Remove a row; the last one takes its place."""
        self._n -= 1
        self._X[row] = self._X[self._n]

    def equal(self, x: Row, among: Positions) -> Positions:
        """The positions, among some, of rows that are equal to one."""
        same: Positions = among[(self._X[among] == x).all(axis=1)]
        return same

    def sum(self, weights: Array) -> Array:
        """X' weights, (n, k) -> (d, k)."""
        n, d = self._n, self._X.shape[1]
        return np.concatenate([self._X[:n, columns].T.astype(np.float64) @ weights for columns in slices(d)])


class KeptMixedRows:
    """As `KeptRows`, for rows with sparse columns; a change copies all rows, little work beside the n^2 of a kernel.

    Args:
        X: the rows to begin with, (n, d + m).

    Attributes:
        shift: about the mean of their dense columns, and 0 for the sparse ones, (d + m,).
    """

    def __init__(self, X: MixedRows) -> None:
        self._X = X
        self.shift = np.zeros(X.shape[1])
        self.shift[: X.dense.shape[1]] = _about_mean(X.dense)

    def kernel(self) -> Array:
        """Z Z', (n, n)."""
        X = self._X
        return gram_of_rows(MixedRows(X.dense - self.shift[: X.dense.shape[1]], X.sparse))

    def add(self, x: Row) -> Array:
        """Put a row last; the inner products of every row with it, (n + 1,)."""
        self._X = X = stacked([self._X, x])
        z = np.zeros(X.sparse.shape[1])
        z[x.sparse.indices] = x.sparse.data
        products: Array = _products_with_last(X.dense, self.shift[: X.dense.shape[1]]) + X.sparse @ z
        return products

    def drop(self, row: int) -> None:
        """Remove a row; the last one takes its place."""
        rows = np.arange(len(self._X) - 1)
        rows[row : row + 1] = len(rows)
        self._X = self._X[rows]

    def equal(self, x: Row, among: Positions) -> Positions:
        """The positions, among some, of rows that are equal to one."""
        return equal_rows(self._X, x, among)

    def sum(self, weights: Array) -> Array:
        """X' weights, (n, k) -> (d + m, k)."""
        return self._X.T @ weights


def equal_rows(X: MixedRows, x: MixedRows, among: Positions) -> Positions:
    """The positions, among some of X's rows, of those equal to x, one row."""
    S, s = X.sparse, x.sparse
    among = among[S.indptr[among + 1] - S.indptr[among] == s.nnz]
    among = among[(X.dense[among] == x.dense).all(axis=1)]
    places = [slice(S.indptr[row], S.indptr[row + 1]) for row in among]
    same = [np.array_equal(S.indices[at], s.indices) and np.array_equal(S.data[at], s.data) for at in places]
    equal: Positions = among[np.array(same, dtype=bool)]
    return equal


def stacked(parts: list[MixedRows]) -> MixedRows:
    """The rows of several, one below the other."""
    from scipy.sparse import vstack

    return MixedRows(
        np.concatenate([part.dense for part in parts]), vstack([part.sparse for part in parts], format="csr")
    )


def _about_mean(X: Rows) -> Array:
    """The mean of the rows in float64, rounded to float32, (d,)."""
    mean: Array = X.mean(axis=0, dtype=np.float64).astype(np.float32).astype(np.float64)
    return mean


def _products_with_last(X: Rows, shift: Array) -> Array:
    """(x - shift)'(x_n - shift) for every row x and the last, x_n, (n,)."""
    z = np.asarray(X[-1], dtype=np.float64) - shift
    return np.concatenate([(X[rows] - shift) @ z for rows in slices(len(X), 256)])
