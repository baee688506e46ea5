"""Rows of unit length, and how many of their columns are kept."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.errors import EmbeddingError, InputError
from dspy_qvl.linear import dot_rows

Vectors = NDArray[np.float32]

SAME_COSINE = 0.999  # of two vectors of one model for one text, on whatever machine and in whatever batch


def unit(vectors: Vectors) -> Vectors:
    """Rows scaled to length 1, (n, d) -> (n, d) float32; the same bits for a row in any batch."""
    rows = vectors.astype(np.float64)
    lengths = np.sqrt(dot_rows(rows, rows))
    lengths[lengths == 0] = 1.0
    rows /= lengths[:, None]
    return rows.astype(np.float32)


def is_unit(vectors: Vectors) -> NDArray[np.bool_]:
    """Which rows have length 1, to float32's rounding, (n, d) -> (n,)."""
    with np.errstate(over="ignore"):
        close: NDArray[np.bool_] = np.abs(dot_rows(vectors, vectors) - 1) < 1e-3
    return close


class Truncation:
    """A model's full vectors cut to their first columns and scaled to unit length (Matryoshka truncation).

    Args:
        model: how messages call the model.
        wanted: columns that the caller wants, or None.
        default: columns where the caller wants none, or None for all.
        size: length of a full vector, or None if only the first vector tells.

    Attributes:
        dim: columns that are kept; None until the first vector tells.

    Raises:
        InputError: the caller wants more columns than the model has.
    """

    def __init__(self, model: str, wanted: int | None, default: int | None, size: int | None) -> None:
        self.dim = default if wanted is None else wanted
        self._model = model
        self._wanted = wanted
        self._size: int | None = None  # of a full vector, once one was seen
        if size is not None:
            self._settle(size)

    def check(self, size: int) -> None:
        """Refuse vectors of another length than the first ones had that were kept.

        Raises:
            EmbeddingError: the length changed.
        """
        if size != (self._size or size):
            raise EmbeddingError(
                f"{self._model} gave vectors of {self._size} columns before and of {size} now; "
                "one model must give one length, so give another model another name."
            )

    def keep(self, size: int) -> None:
        """Vectors of this length are kept: the others must have it too.

        Raises:
            EmbeddingError: as `check`.
            InputError: the caller wants more columns.
        """
        self.check(size)
        self._size = size
        self._settle(size)

    def __call__(self, vectors: Sequence[Vectors]) -> Vectors:
        """Unit vectors of full ones, n of (size,) -> (n, dim).

        Raises:
            EmbeddingError, InputError: as `keep`.
        """
        for size in {len(vector) for vector in vectors}:
            self.keep(size)
        return unit(np.stack([vector[: self.dim] for vector in vectors]))

    def _settle(self, size: int) -> None:
        if self._wanted is not None and self._wanted > size:
            raise InputError(
                f"embedding_dim={self._wanted} is more than {self._model} has ({size}); "
                f"give embedding_dim={size} or less."
            )
        self.dim = min(size, self.dim or size)
