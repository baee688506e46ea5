"""Lower and upper bounds on the variances of many rows, from products of all of them.

A row's variance must be the same bits alone and among a thousand, and products of many rows round with their number.
So `posterior.py` works it out row by row, in one order of summation; here many rows get bounds that what comes of
any order lies between. Where both bounds say the same there is nothing left to work out.

A sum of k products, in whatever order, is off by at most k u of the sum of their magnitudes, u one rounding.

Source: Higham (2002), Accuracy and Stability of Numerical Algorithms, 3.1.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.ridge.across import Across, MixedLeft
from dspy_qvl.vectors import Array, Matrix, MixedRows, Rows, slices

FOLDED = 2**22  # numbers of a root times the learned rows up to which that is worth its memory
AT_ONCE = 2**22  # numbers of a block of products
TRIANGLE = 128  # columns of a product with a triangle that are made at once
FILLED = 0.12  # share of rows in which a column is not zero, from which on it is cheaper taken whole
ROUNDING = 2.0**-53  # u


class Kernel(NamedTuple):
    """The products of a row x with m rows L: the learned rows, (m, d), or combinations of them whose weights sum to 0.

    Lc (x - mean)' = L x' - L mean' - ones (mean x' - |mean|^2)
    """

    columns: Rows | Across  # L', (d, m): a text's words are few of the d
    row_means: Array  # L mean', (m,)
    ones: Array  # 1 for learned rows, 0 for combinations, (m,)


class Solved(NamedTuple):
    """Rows multiplied with the root, and what that says of their variances."""

    s: Array  # (m, len(R))
    off: Array  # how far s is at most from that of another order of summation, by its length, (m,)
    unit: Array  # the same of a sum of so many products, relative to the sum of their magnitudes, (m,)
    lowest: Array  # lower bounds on v, (m,)
    highest: Array  # and upper ones, (m,)


class Bounds:
    """Bounds on v = 1/n + |s|^2 of many rows, or where they come from the kernel 1/n + (|xc|^2 - |s|^2) / alpha.

        s = R (x - mean)',    or from the kernel    s = R Lc (x - mean)'

    Args:
        n: learned rows.
        root: R, (m, m).
        mean: the mean of the learned rows, (d,).
        alpha: penalty.
        kernel: L, or None.
    """

    def __init__(self, n: int, root: Rows, mean: Array, alpha: float, kernel: Kernel | None) -> None:
        self.n, self.root, self.mean = n, root, mean
        self.mean_squared = float(np.einsum("j,j->", mean, mean))
        self.kernel, self.alpha = kernel, alpha
        parts = slices(len(root), TRIANGLE)
        self.triangular = not any(root[part, part.stop :].any() for part in parts)  # then half of it is left out
        self.second = False  # True if a row is multiplied with the root after `columns`
        if kernel is None:
            self.columns: Any = root.T
            self.offset, self.ones = self._rooted(mean[None])[0], np.zeros(len(root))
            self.slope, self.level = _norm(root), _length(root, np.abs(mean))
            return
        columns, row_means, ones = kernel
        self.offset, self.ones = self._rooted(np.stack([row_means - self.mean_squared * ones, ones]))
        if isinstance(columns, Across):
            self.second, self.columns, lengths = True, columns, columns.lengths
        else:
            self.second = columns.size > FOLDED
            self.columns = columns if self.second else SparseRows(columns) @ root.T
            lengths = np.sqrt(np.einsum("ji,ji->i", columns, columns, dtype=np.float64))
        self.slope = _length(root, lengths + math.sqrt(self.mean_squared) * ones)
        self.level = _length(root, np.abs(row_means) + self.mean_squared * ones)

    def __call__(self, X: Matrix) -> tuple[Array, Array]:
        """The bounds of rows, (m, d) -> (m,) and (m,)."""
        out = np.empty((2, len(X)))
        wide = X.dense.shape[1] if isinstance(X, MixedRows) else X.shape[1]
        for rows in slices(len(X), max(64, AT_ONCE // max(wide, len(self.root)))):
            out[:, rows] = self.solved(X[rows])[-2:]
        return out[0], out[1]

    def solved(self, rows: Matrix) -> Solved:
        """The rows, (m, d), multiplied with the root, and the bounds."""
        X = MixedLeft(rows) if isinstance(rows, MixedRows) else SparseRows(rows)
        with_mean = X @ self.mean[:, None]
        solved = X @ self.columns
        if self.second:
            solved = self._rooted(solved)
        solved -= self.offset
        if self.kernel is not None:
            solved -= with_mean * self.ones
        squares, lengths = np.einsum("ij,ij->i", solved, solved), np.sqrt(X.squares)
        # Every product passes through at most k additions on its way into s, and with k more into |s|^2.
        unit = 1.02 * ROUNDING * (len(self.root) + X.counts + 16)
        off = unit * (lengths * self.slope + self.level)
        doubt = 2 * np.sqrt(squares) * off + 3 * off**2 + unit * squares
        v = 1 / self.n + squares
        if self.kernel is not None:
            squared = X.squares - 2 * with_mean[:, 0] + self.mean_squared
            v = 1 / self.n + np.maximum(0.0, squared - squares) / self.alpha
            doubt = (doubt + unit * (lengths + math.sqrt(self.mean_squared)) ** 2) / self.alpha
        doubt = 2 * doubt + 16 * ROUNDING * v  # this and the other way of working it out may both be off
        return Solved(solved, off, unit, np.maximum(v - doubt, 0.0), v + doubt)

    def _rooted(self, Z: Array) -> Array:
        """Z R', (m, len(R)), in float64."""
        out = np.empty((len(Z), len(self.root)))
        for part in slices(len(self.root), TRIANGLE):
            rows = self.root[part]
            end = part.stop if self.triangular else rows.shape[1]
            out[:, part] = Z[:, :end] @ rows[:, :end].T.astype(np.float64)
        return out


class SparseRows:
    """Rows as the left factor of products in float64; of hashed words most entries are zero, and left out.

    Attributes:
        counts: how many entries of each row are not zero, (m,).
        squares: squared length of each row, (m,).
    """

    def __init__(self, X: Rows) -> None:
        m, d = X.shape
        filled = X != 0
        self._whole: NDArray[np.intp] = np.arange(d)
        self._others: Any = None
        if filled.all():
            self.counts = np.full(m, d)
        else:
            from scipy.sparse import csr_array

            at = np.flatnonzero(filled)
            columns = at % d
            self.counts = np.diff(np.searchsorted(at, np.arange(m + 1) * d))
            whole = np.bincount(columns, minlength=d) > FILLED * m
            self._whole = np.flatnonzero(whole)
            at, columns = at[~whole[columns]], columns[~whole[columns]]
            ends = np.searchsorted(at, np.arange(m + 1) * d)
            self._others = csr_array((X.reshape(-1)[at].astype(np.float64), columns, ends), shape=(m, d))
        self._dense = X[:, self._whole].astype(np.float64)
        self.squares = np.einsum("ij,ij->i", self._dense, self._dense)
        if self._others is not None:
            self.squares += self._others.power(2).sum(axis=1)

    def __matmul__(self, columns: Rows) -> Array:
        """The products with columns, (m, d) and (d, k) -> (m, k)."""
        out = np.zeros((len(self._dense), columns.shape[1]))
        for part in slices(columns.shape[1], max(1, AT_ONCE // len(columns))):
            some = columns[:, part]
            if len(self._whole) == len(columns):
                out[:, part] = self._dense @ some.astype(np.float64, copy=False)
            elif len(self._whole):
                out[:, part] = self._dense @ some[self._whole].astype(np.float64)
            if self._others is not None:
                out[:, part] += self._others @ some.astype(np.float64, copy=False)
        return out


def _length(root: Rows, a: Array) -> float:
    """| |R| a |."""
    return math.sqrt(sum(float(np.sum((np.abs(root[part]) @ a) ** 2)) for part in slices(len(root), 512)))


def _norm(root: Rows) -> float:
    """The root of the largest sum of a row of |R| times that of a column: | |R| a | is at most that times |a|."""
    rows, columns = 0.0, np.zeros(root.shape[1])
    for part in slices(len(root), 512):
        magnitudes = np.abs(root[part].astype(np.float64))
        rows, columns = max(rows, float(magnitudes.sum(axis=1).max())), columns + magnitudes.sum(axis=0)
    return math.sqrt(rows * float(columns.max()))
