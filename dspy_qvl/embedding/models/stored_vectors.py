"""Vectors by their ids: rows of an array, or what a faiss index, a mapping or a callable gives for an id."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.embedding.tables import as_table
from dspy_qvl.errors import EmbeddingError, InputError, is_list, shown
from dspy_qvl.vectors import Vectors, as_float32

Ids = NDArray[Any]  # (n,), int64; or objects: strings, or integers beyond int64


class StoredVectors:
    """A reader of vectors by id, where they lie; none is copied beforehand, and none is kept.

        an array (n, d)                        ids are rows
        a faiss index                          `reconstruct_batch(ids)`, or `reconstruct(id)` for each
        a mapping id -> vector                 `vectors[id]` for each
        a callable, list of ids -> (n, d)      a row an id, in the order of the ids; called from any thread

    Args:
        source: one of these.

    Attributes:
        source: the same.
        size: columns of a vector; None until some are read.

    Raises:
        InputError: none of these.
    """

    def __init__(self, source: Any) -> None:
        self.size: int | None = None
        self._read: Callable[[Ids], Any]
        # An index and a mapping may be callable, and a callable may have a length: the narrower meaning goes first.
        if hasattr(source, "reconstruct"):
            if type(source).__name__.startswith("IndexBinary"):
                raise InputError("a binary index of faiss holds packed bits, which are no vectors; give another index.")
            self._read = functools.partial(_reconstructed, source)
        elif isinstance(source, Mapping):
            self._read = functools.partial(_looked_up, source)
        elif callable(source) and not hasattr(source, "__array__"):
            self._read = functools.partial(_asked, source)
        elif not is_list(source) and not hasattr(source, "__array__"):
            raise InputError(
                "vectors must be an array, a faiss index, a mapping from id to vector, or a callable from a list of "
                f"ids to an array, but got {type(source).__name__}: {shown(source)}."
            )
        else:
            source = as_table(source)
            self.size = source.shape[1]
            self._read = functools.partial(_taken, source)
        self.source = source

    @property
    def is_array(self) -> bool:
        """True if ids are rows of an array."""
        return isinstance(self.source, np.ndarray)

    def ids_of(self, texts: Sequence[str], ids: object = None) -> Ids:
        """The id of each text.

        Args:
            texts: the texts.
            ids: whole numbers or strings, one per text; None for 0, 1, 2, …

        Raises:
            InputError: the wrong count, another type, or ids that the source cannot have.
        """
        low, high = _range_of(self.source)
        if ids is None:
            if self.is_array:
                as_table(self.source, len(texts))
            if hasattr(self.source, "id_map"):
                raise InputError("the index has ids of its own; give ids=, the id of each text.")
            if isinstance(self.source, Mapping):
                raise InputError(
                    "vectors is a mapping from id to vector; give ids=, the id of each text. One from text to vector "
                    "goes into Precomputed.from_vectors."
                )
            if high not in (math.inf, len(texts)):
                raise InputError(f"the index has {high} vectors for {len(texts)} texts; give ids=, one a text.")
            return np.arange(len(texts))
        found = _as_ids(ids)
        if len(found) != len(texts):
            raise InputError(f"ids has {len(found)} entries for {len(texts)} texts; give one id a text.")
        if found.dtype != np.int64:
            if self.is_array or hasattr(self.source, "reconstruct"):
                raise InputError(
                    "the ids of an array or a faiss index must be whole numbers of at most 64 bits, "
                    f"but ids[0] is {shown(found[0])}."
                )
            return found
        for place in np.flatnonzero((found < low) | (found >= high))[:1].tolist():
            raise InputError(f"ids[{place}] is {found[place]}, but the ids of these vectors are {low} ≤ id < {high}.")
        return found

    def __call__(self, ids: Ids) -> Vectors:
        """The vectors of ids, (n, size) float32.

        Raises:
            EmbeddingError: an id without a vector, a failure of the source, or an answer of another shape or length.
        """
        try:
            answer = self._read(ids)
        except Exception as error:
            raise EmbeddingError(
                f"the vectors of {len(ids)} ids ({_some(ids)}) could not be read: {type(error).__name__}: {error}"
            ) from error
        try:
            rows = np.asarray(answer)
        except (TypeError, ValueError, RuntimeError) as error:
            raise EmbeddingError(
                f"the vectors of {len(ids)} ids ({_some(ids)}) are no array of numbers ({error}); "
                "they must all be of one length."
            ) from None
        if rows.ndim != 2 or len(rows) != len(ids) or rows.dtype.kind not in "fiu" or not rows.shape[1]:
            raise EmbeddingError(
                f"the vectors of {len(ids)} ids ({_some(ids)}) came as shape {rows.shape} of {rows.dtype}; "
                f"they must be numbers of shape ({len(ids)}, d), a row an id, in the order of the ids."
            )
        if self.size not in (None, rows.shape[1]):
            raise EmbeddingError(
                f"the vectors of {len(ids)} ids ({_some(ids)}) have {rows.shape[1]} columns, but others had "
                f"{self.size}; vectors of one table are of one length."
            )
        self.size = rows.shape[1]
        return as_float32(rows)


def _range_of(source: Any) -> tuple[float, float]:
    """The lowest id that a source can have, and the first beyond its ids; infinite where only reading tells."""
    if isinstance(source, np.ndarray):
        return 0, len(source)
    # Where ids are places, faiss does not refuse a negative one: it reads the memory before its vectors.
    if hasattr(source, "ntotal") and not hasattr(source, "id_map") and not hasattr(source, "direct_map"):
        return 0, math.inf if hasattr(source, "chain") else source.ntotal  # a chain may end in an index with ids
    return -math.inf, math.inf


def _taken(table: NDArray[Any], ids: Ids) -> Any:
    return table[ids]


def _looked_up(vectors: Mapping[Any, Any], ids: Ids) -> Any:
    return [vectors[id_] for id_ in ids.tolist()]


def _asked(vectors: Callable[[list[Any]], Any], ids: Ids) -> Any:
    return vectors(ids.tolist())  # clients of databases want Python's numbers, not numpy's


def _reconstructed(index: Any, ids: Ids) -> Any:
    """The vectors of a faiss index; where it fails, the id that it failed at is found one by one.

    Raises:
        LookupError: the index has no vector for an id, or cannot reconstruct.
    """
    if hasattr(index, "reconstruct_batch"):
        try:
            return index.reconstruct_batch(ids)
        except Exception:
            pass  # faiss does not say for which id
    rows = []
    for id_ in ids.tolist():
        try:
            rows.append(index.reconstruct(id_))
        except Exception as error:
            raise LookupError(
                f"the index gives no vector for id {id_} ({type(error).__name__}: {str(error)[-120:]}). It must hold "
                "the id and be able to reconstruct: with faiss, IndexIDMap2 instead of IndexIDMap, and "
                "make_direct_map() for an IVF index."
            ) from error
    return rows


def _as_ids(ids: object) -> Ids:
    """Ids as an array, whole numbers or strings.

    Raises:
        InputError: no list, or another type.
    """
    if not is_list(ids) or isinstance(ids, Mapping | set | frozenset):
        raise InputError(f"ids must be a list of whole numbers or strings, but got {type(ids).__name__}.")
    if isinstance(ids, np.ndarray) and ids.ndim == 1 and ids.dtype.kind == "i":
        return ids.astype(np.int64, copy=False)
    entries = list(ids)
    are_numbers = not entries or isinstance(entries[0], Integral)
    for place, entry in enumerate(entries):
        if isinstance(entry, bool | np.bool_) or not isinstance(entry, Integral if are_numbers else str):
            kind = "numbers, like ids[0]" if are_numbers else "strings, like ids[0]" if place else "numbers or strings"
            raise InputError(f"ids must be {kind}, but ids[{place}] is {shown(entry)}.")
    if not are_numbers:
        return np.array(entries, dtype=object)
    try:
        return np.array(entries, dtype=np.int64)
    except OverflowError:
        return np.array([int(entry) for entry in entries], dtype=object)


def _some(ids: Ids) -> str:
    return ", ".join(shown(id_) for id_ in ids[:3].tolist()) + (", …" if len(ids) > 3 else "")
