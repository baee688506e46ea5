"""Checks of tables of texts and vectors that a caller has."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.errors import InputError
from dspy_qvl.vectors import SAME_COSINE, Vectors, as_float32, dot_rows, slices, unit

CHECK_AT_ONCE = 4096  # rows
NO_DIRECTION = "holds NaN or infinity, or is all zeros: it has no direction to value."


def as_table(vectors: Any, n_texts: int | None = None, what: str = "vectors") -> NDArray[Any]:
    """A table of vectors that a caller has, (n, d), any real type; nothing of it is copied, of a file neither.

    Args:
        vectors: an array (a memory-mapped one too) or a list of rows.
        n_texts: rows it must have, or None for any number.
        what: how an error names it.

    Raises:
        InputError: no table of numbers, or the wrong count.
    """
    try:
        table = vectors if isinstance(vectors, np.ndarray) else np.asarray(vectors)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor that needs grad
        raise InputError(f"{what} must be an array of numbers, one row a text, but got none ({error}).") from None
    if table.ndim != 2 or table.dtype.kind not in "fiu" or table.shape[1] == 0:
        raise InputError(
            f"{what} must be an array of numbers of shape (n_texts, d), but got shape {table.shape} of {table.dtype}."
        )
    if n_texts not in (None, len(table)):
        raise InputError(f"{what} has {len(table)} rows for {n_texts} texts; give one vector a text.")
    return table


def checked_vectors(vectors: Any, texts: Sequence[str], what: str = "vectors") -> NDArray[Any]:
    """The table of `as_table`, with a usable vector in each row, (n_texts, d).

    The row of a blank text is never used, so it may hold anything.

    Raises:
        InputError: as `as_table`, or a row without a direction, with its position.
    """
    table = as_table(vectors, len(texts), what)
    for rows in slices(len(table), CHECK_AT_ONCE):
        for row in without_direction(as_float32(table[rows])):
            if texts[rows.start + row].strip():
                raise InputError(f"{what}[{rows.start + row}] {NO_DIRECTION}")
    return table


def without_direction(vectors: Vectors) -> list[int]:
    """Rows that hold NaN or infinity, or nothing but zeros."""
    with np.errstate(invalid="ignore"):
        good = np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)
    return [int(row) for row in np.flatnonzero(~good)]


def first_of_each(texts: Sequence[str], table: NDArray[Any]) -> list[int]:
    """The places of texts that are not blank, each text once, at its first place.

    Raises:
        InputError: one text has two vectors that differ by more than rounding.
    """
    first: dict[str, int] = {}
    again = [
        (earlier, place)
        for place, text in enumerate(texts)
        if text.strip() and (earlier := first.setdefault(text, place)) != place
    ]
    check_repeats(np.array(again, dtype=np.int64).reshape(-1, 2), lambda places: as_float32(table[places]))
    return list(first.values())


def check_repeats(pairs: NDArray[np.int64], rows_at: Callable[[NDArray[np.int64]], Vectors]) -> None:
    """Refuse a text that has two vectors.

    Args:
        pairs: two places of one text, (n, 2).
        rows_at: places -> their vectors, (n, d).

    Raises:
        InputError: the vectors of a pair differ by more than rounding.
    """
    for some in slices(len(pairs), CHECK_AT_ONCE):
        with np.errstate(invalid="ignore"):  # infinity has no length
            one, other = (unit(rows_at(places)) for places in pairs[some].T)
            cosines = dot_rows(one, other)
        for pair in np.flatnonzero(~(cosines >= SAME_COSINE)).tolist():
            earlier, later = pairs[some][pair].tolist()
            raise InputError(
                f"texts[{earlier}] and texts[{later}] are the same text, but their vectors differ "
                f"(cosine {cosines[pair]:.3f}); give each text one vector."
            )
