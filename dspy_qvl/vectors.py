"""Rows of unit length, how many of their columns are kept, and tables of vectors that a caller has."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.errors import EmbeddingError, InputError

BLOCK = 8192  # rows a product: large enough for full speed, small beside the Gram matrix

Array = NDArray[np.float64]
Vectors = NDArray[np.float32]  # (n, d)
Vector = NDArray[np.float32]  # (d,)
Rows = NDArray[np.float32] | NDArray[np.float64]  # (n, d); a memmap is one too

CHECK_AT_ONCE = 4096  # rows
SAME_COSINE = 0.999  # of two vectors of one model for one text, on whatever machine and in whatever batch


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


class Truncation:
    """A model's full vectors cut to their first columns and scaled to unit length (Matryoshka truncation).

    Args:
        model: how messages call the model.
        wanted: columns that the caller wants, or None.
        default: columns where the caller wants none, or None for all.
        size: length of a full vector, or None if only the first vector tells.

    Attributes:
        dim: columns that are kept; None until the first vector tells.
        size: length of a full vector; None until the first vector tells.

    Raises:
        InputError: the caller wants more columns than the model has.
    """

    def __init__(self, model: str, wanted: int | None, default: int | None, size: int | None) -> None:
        self.dim = default if wanted is None else wanted
        self.size = size
        self._model, self._wanted = model, wanted
        self._seen = False  # True once a full vector was kept
        if size is not None:
            self._settle(size)

    def check(self, size: int) -> None:
        """Refuse vectors of another length than the first ones had that were kept.

        Raises:
            EmbeddingError: the length changed.
        """
        if self._seen and size != self.size:
            raise EmbeddingError(
                f"{self._model} gave vectors of {self.size} columns before and of {size} now; "
                "one model must give one length, so give another model another name."
            )

    def keep(self, size: int) -> None:
        """Keep vectors of this length, and refuse others from now on.

        Raises:
            EmbeddingError: as `check`.
            InputError: the caller wants more columns.
        """
        self.check(size)
        self.size, self._seen = size, True
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


def checked_vectors(vectors: Any, texts: Sequence[str], what: str = "vectors") -> NDArray[Any]:
    """A table of vectors that a caller has, (n_texts, d), any real type; nothing of it is copied, of a file neither.

    The row of a blank text is never used, so it may hold anything.

    Args:
        vectors: an array (a memory-mapped one too) or a list of rows.
        texts: the text of each row.
        what: how an error names it.

    Raises:
        InputError: no table of numbers, the wrong count, or a row without a direction, with its position.
    """
    try:
        table = vectors if isinstance(vectors, np.ndarray) else np.asarray(vectors)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor that needs grad
        raise InputError(f"{what} must be an array of numbers, one row a text, but got none ({error}).") from None
    if table.ndim != 2 or table.dtype.kind not in "fiu" or table.shape[1] == 0:
        raise InputError(
            f"{what} must be an array of numbers of shape (n_texts, d), but got shape {table.shape} of {table.dtype}."
        )
    if len(table) != len(texts):
        raise InputError(f"{what} has {len(table)} rows for {len(texts)} texts; give one vector a text.")
    for rows in slices(len(table), CHECK_AT_ONCE):
        block = as_float32(table[rows])
        with np.errstate(invalid="ignore"):
            good = np.isfinite(block).all(axis=1) & block.any(axis=1)
        for row in np.flatnonzero(~good).tolist():
            if texts[rows.start + row].strip():
                raise InputError(
                    f"{what}[{rows.start + row}] holds NaN or infinity, or is all zeros: it has no direction to value."
                )
    return table


def as_float32(numbers: Any) -> Vectors:
    """Numbers as a contiguous float32 array; those it cannot hold become infinite, which no check lets pass.

    Raises:
        TypeError, ValueError: something that is no array of numbers.
    """
    with np.errstate(over="ignore"):
        return np.asarray(numbers, dtype=np.float32, order="C")


def first_of_each(texts: Sequence[str], table: NDArray[Any]) -> list[int]:
    """The places of texts that are not blank, each text once, at its first place.

    Raises:
        InputError: one text has two vectors that differ by more than rounding.
    """
    first: dict[str, int] = {}
    for place, text in enumerate(texts):
        if not text.strip():
            continue
        earlier = first.setdefault(text, place)
        if earlier != place:
            one, other = (unit(as_float32(table[[row]])) for row in (earlier, place))
            cosine = float(dot_rows(one, other)[0])
            if not cosine >= SAME_COSINE:
                raise InputError(
                    f"texts[{earlier}] and texts[{place}] are the same text, but their vectors differ "
                    f"(cosine {cosine:.3f}); give each text one vector."
                )
    return list(first.values())


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
