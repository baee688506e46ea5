"""Rows of sparse blocks one by one, as arrays that are kept in memory and saved."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from dspy_qvl.vectors import Vectors

NARROW = 16  # columns below which a block is dense however it comes: those of narrow blocks are bounded


def as_csr(matrix: Any) -> Any:
    """A scipy sparse matrix as a `csr_array` of float32: of a row each column once, ascending.

    Raises:
        TypeError, ValueError: its numbers are no numbers, or its positions lie outside it.
    """
    from scipy.sparse import csr_array

    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        array = csr_array(matrix, dtype=np.float32, copy=True)
    array.check_format(full_check=True)
    array.sum_duplicates()
    array.eliminate_zeros()
    return array


def packed(matrix: Any) -> list[Vectors]:
    """The rows of a scipy CSR matrix, n of (2, m): columns that are not zero, as the bits of an int32; their values."""
    both = np.stack([matrix.indices.astype(np.int32, copy=False).view(np.float32), matrix.data])
    return [both[:, start:end] for start, end in itertools.pairwise(matrix.indptr.tolist())]


def unpacked(rows: Sequence[Vectors], width: int) -> Any:
    """The scipy `csr_array` of packed rows, (n, width)."""
    from scipy.sparse import csr_array

    both = np.concatenate(rows, axis=1)
    ends = np.cumsum([0, *(row.shape[1] for row in rows)])
    if ends[-1] < 2**31:  # scipy gives both kinds of positions one type
        ends = ends.astype(np.int32)
    return csr_array((both[1], both[0].view(np.int32), ends), shape=(len(rows), width))
