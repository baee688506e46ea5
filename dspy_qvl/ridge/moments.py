"""Sums over rows, from which every ridge fit follows.

With z = (x - x_shift, y - y_shift, 1), a row of d + k + 1 numbers for each text, the moments of some rows are the
sum of s z z', where s is the row's weight. They are gathered in one pass over blocks of rows, add and subtract, and
are small beside the rows: a fold is taken away from the whole instead of summing the rest again, shards are summed
wherever they lie, a row is added or forgotten.

    moments of each fold ─► whole - fold ─► Xc'Xc, Xc'yc of the rows that fold did not hold

The shifts, one for all moments that are to be added, keep the sums small: real embeddings have a mean of norm .9,
which would otherwise drown their differences.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.errors import InputError
from dspy_qvl.vectors import BLOCK, Array, Matrix, MixedRows, Rows, slices

Source = Rows | Iterable[Rows]  # or anything whose iteration gives consecutive blocks of rows, anew every time
ProductType = type[np.float32] | type[np.float64]
Folds = Sequence[NDArray[np.intp]]

CHEAP = 5e8  # n d d below which float64 products are over at once
SAMPLE = 1024  # rows from which a rough mean is taken


@dataclass(frozen=True)
class Moments:
    """The sums of some rows.

    Attributes:
        shift: x_shift and y_shift, (d + k,).
        sums: sum of s z z', (d + k + 1, d + k + 1).
        n_targets: k.
    """

    shift: Array
    sums: Array
    n_targets: int = 1

    def __add__(self, other: "Moments") -> "Moments":
        """The moments of the rows of both."""
        return Moments(self.shift, self.sums + other.sums, self.n_targets)

    def __sub__(self, part: "Moments") -> "Moments":
        """The moments of the rows that are in the whole but not in `part`."""
        return Moments(self.shift, self.sums - part.sums, self.n_targets)

    @property
    def n_features(self) -> int:
        """Number of features, d."""
        return len(self.shift) - self.n_targets

    @property
    def weight(self) -> float:
        """Sum of the weights: without weights, the number of rows."""
        return float(self.sums[-1, -1])

    @property
    def means(self) -> tuple[Array, Array]:
        """Weighted means of x, (d,), and of y, (k,)."""
        means = self.shift + self.sums[-1, :-1] / self.weight
        return means[: self.n_features], means[self.n_features :]

    def centred(self) -> tuple[Array, Array]:
        """Xc'Xc, (d, d), and Xc'yc, (d, k): the weighted sums around the rows' own means."""
        d, ones = self.n_features, self.sums[-1, :-1]
        gram = np.multiply.outer(ones[:d], ones[:d] / -self.weight)
        gram += self.sums[:d, :d]
        return gram, self.sums[:d, d:-1] - np.outer(ones[:d], ones[d:] / self.weight)

    def mean_squared_errors(self, coefs: Array, intercepts: Array) -> Array:
        """Weighted mean squared error of lines over these rows, from the sums alone.

        Args:
            coefs: (m, d, k), in units of y / x.
            intercepts: (m, k).

        Returns:
            (m, k), in squared units of y.
        """
        m, d, k = coefs.shape
        errors = np.empty((m, k))
        x_shift, y_shift = self.shift[:d], self.shift[d:]
        for target in range(k):
            residual = np.zeros((m, d + k + 1))  # y - x coef - intercept, as a combination of z
            residual[:, :d] = -coefs[:, :, target]
            residual[:, d + target] = 1.0
            residual[:, -1] = y_shift[target] - coefs[:, :, target] @ x_shift - intercepts[:, target]
            squares = np.einsum("ij,ij->i", residual @ self.sums, residual)
            errors[:, target] = np.maximum(squares, 0.0) / self.weight
        return errors


def gather(
    X: Source,
    y: Array,
    shift: Array,
    *,
    folds: Folds | None = None,
    sample_weight: Array | None = None,
    kind: ProductType = np.float64,
) -> list[Moments]:
    """The moments of each fold, in one pass over the rows: products of type `kind`, sums in float64.

    Args:
        X: rows, (n, d), or a source of blocks of them.
        y: targets, (n, k).
        shift: see `rough_mean`.
        folds: the rows of each fold, disjoint; rows in none are left out. None for all rows as one.
        sample_weight: weight of each row, (n,), above 0; None for 1.
        kind: float64, or float32 for half the time and sums right to about 1e-6.

    Returns:
        One `Moments` a fold.

    Raises:
        InputError: a source that gives another number of rows than there are targets, or blocks of different widths.
    """
    n, k = y.shape
    d = len(shift) - k
    n_folds = 1 if folds is None else len(folds)
    fold_of = np.zeros(n, dtype=np.intp) if folds is None else fold_numbers(folds, n)
    weight_root = None if sample_weight is None else np.sqrt(sample_weight)
    x_shift, y_shift = shift[:d].astype(kind), shift[d:]
    buffer = np.empty((min(n, BLOCK), d + k + 1), dtype=kind)
    sums = np.zeros((n_folds, d + k + 1, d + k + 1))
    for start, block in row_blocks(X, n, d, BLOCK * n_folds):
        for number in range(n_folds):
            members = np.flatnonzero(fold_of[start : start + len(block)] == number)
            for part in slices(len(members)):
                rows = members[part]
                z = buffer[: len(rows)]
                np.subtract(block[part] if folds is None else block[rows], x_shift, out=z[:, :d])
                z[:, d:-1] = y[start + rows] - y_shift
                z[:, -1] = 1.0
                if weight_root is not None:
                    z *= weight_root[start + rows, None].astype(kind)
                sums[number] += z.T @ z
    return [Moments(shift, total, k) for total in sums]


def fold_numbers(folds: Folds, n: int) -> NDArray[np.intp]:
    """The number of the fold that each of n rows is in, (n,); -1 for rows in none."""
    numbers = np.full(n, -1, dtype=np.intp)
    for number, rows in enumerate(folds):
        numbers[rows] = number
    return numbers


def rough_mean(X: Source, y: Array) -> Array:
    """About the mean of x and y, (d + k,): x from a sample, in float32 so that subtracting it from rows is exact."""
    sample = (
        X[:: max(1, len(X) // SAMPLE)] if isinstance(X, np.ndarray) else next(row_blocks(X, len(y), None))[1][:SAMPLE]
    )
    x_mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32).astype(np.float64)
    return np.concatenate([x_mean, y.mean(axis=0)])


def row_blocks(X: Source, n: int, d: int | None, size: int = BLOCK) -> Iterator[tuple[int, Rows]]:
    """Consecutive blocks of at most `size` rows, each with the number of its first row.

    Raises:
        InputError: a source that gives other than n rows, or blocks that are not (m, d).
    """
    if isinstance(X, np.ndarray):
        for part in slices(n, size):
            yield part.start, X[part]
        return
    if iter(X) is X:
        raise InputError("the source of rows can be read only once; give one that starts anew at every iteration.")
    start = 0
    for given in X:
        block: NDArray[Any] = np.asarray(given)
        if block.ndim != 2 or (d is not None and block.shape[1] != d):
            raise InputError(f"the source of rows gave a block of shape {block.shape}; every block must be (m, {d}).")
        d = block.shape[1]
        if start + len(block) > n:
            raise InputError(f"the source of rows gave more rows than the {n} there are targets for.")
        for part in slices(len(block), size):
            yield start + part.start, block[part]
        start += len(block)
    if start < n:
        raise InputError(f"the source of rows gave {start} rows, but there are targets for {n}.")


def kind_of_products(X: Source | MixedRows, n: int, d: int) -> ProductType:
    """The type of products: float32 where rows are float32 and so many that float64 would be felt."""
    return np.float32 if n * d * d > CHEAP and _first_rows(X, n).dtype == np.float32 else np.float64


def n_features(X: Source | MixedRows, n: int) -> int:
    """Columns of the rows."""
    return int(_first_rows(X, n).shape[1])


def _first_rows(X: Source | MixedRows, n: int) -> Matrix:
    """All rows of an array, or the first block of a source."""
    return X if isinstance(X, np.ndarray | MixedRows) else next(row_blocks(X, n, None))[1]
