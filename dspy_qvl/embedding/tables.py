"""Checks of tables of texts and vectors that a caller has."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.errors import InputError
from dspy_qvl.vectors import SAME_COSINE, as_float32, dot_rows, slices, unit

CHECK_AT_ONCE = 4096  # rows


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
