"""(model identity, text) -> vector, so that no text is paid for twice.

Two layers. `MemoryCache` holds vectors as they are used, bounded in bytes. `VectorStore`, below it, holds vectors as
the model gave them, in one SQLite file. `EmbeddingCache` is the face of both: it makes the key of a text, and passes
on what concerns the whole file, to `upkeep` (what is in it, what may leave) and to `transfer` (from one machine to
another).
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from dspy_qvl.embedding.cache import exporting, pruning
from dspy_qvl.embedding.cache.memory import MemoryCache
from dspy_qvl.embedding.cache.pruning import CacheInfo, Pruned
from dspy_qvl.embedding.cache.store import VectorStore
from dspy_qvl.embedding.tables import checked_vectors, first_of_each
from dspy_qvl.embedding.truncation import Truncation
from dspy_qvl.errors import InputError, check_text, check_texts, shown
from dspy_qvl.vectors import Vector, as_float32, slices

STORAGES = ("float32", "float16")
PUT_AT_ONCE = 1024  # vectors of a transaction


def _as_it_is(text: str, instruct: bool) -> str:
    return text


class EmbeddingCache:
    """The vectors of one embedding model, in a file that all models share.

    `len`, `in` and `clear()` speak of this model's vectors in memory; `put()` of this model's anywhere; `info()`,
    `prune()`, `export()` and `import_()` of the whole file.

    Args:
        identity: what makes the model's vectors its own; part of every key.
        path: the SQLite file, or None for memory only.
        truncation: how a full vector becomes one that is used; None for a model that says nothing of it.
        sent: text, and whether the instruction is put before it -> what the model is sent.
        memory_bytes: how much memory vectors may take before the least recently used ones leave.
        storage: how new vectors are stored, "float32" or "float16" (half the bytes, three digits an entry); what
            is there already is read either way.

    Raises:
        InputError: another storage.
    """

    def __init__(
        self,
        identity: str,
        path: Path | None,
        *,
        truncation: Truncation | None = None,
        sent: Callable[[str, bool], str] = _as_it_is,
        memory_bytes: int = 256 * 2**20,
        storage: str = "float32",
    ) -> None:
        if not isinstance(storage, str) or storage not in STORAGES:
            raise InputError(f'storage must be "float32" or "float16", but got {shown(storage)}.')
        self._secret = hashlib.blake2b(identity.encode(), digest_size=32).digest()
        self._truncation = truncation or Truncation("the model", None, None, None)
        self._sent = sent
        self.memory = MemoryCache(memory_bytes)
        self.store = None if path is None else VectorStore(path, identity, half=storage == "float16")

    def key(self, text: str) -> bytes:
        """16 bytes that stand for this text under this model."""
        return hashlib.blake2b(text.encode(), digest_size=16, key=self._secret).digest()

    def put(self, texts: Sequence[str], vectors: Any, *, instruct: bool = True) -> None:
        """Keep vectors that exist already, in memory and on disk, so that this model is never asked for these texts.

        They must be the model's own and whole, as it gives them; which model they came from is taken on trust, so put
        only what it would have given. The first vector of a text stays. Blank texts have none, and are left out.

        Args:
            texts: the texts, without the instruction.
            vectors: a row each, (n_texts, d), before any cut to `embedding_dim`; they need not have unit length. Read
                in pieces, so that a memory-mapped file may be larger than the memory.
            instruct: whether the texts were embedded with the learner's instruction before them, as rated texts are.
                False for texts that are valued for a query, and for passages of a reranker: of a query and a text
                it is the query that the instruction stands before. Nothing else without an instruction.

        Raises:
            InputError: texts or vectors that cannot be used, one text with two vectors, or vectors of another length
                than the model's. Nothing is kept then.
        """
        texts = check_texts(texts)
        table = checked_vectors(vectors, texts)
        places = first_of_each(texts, table)
        size = self._truncation.size
        if size not in (None, table.shape[1]):
            raise InputError(
                f"vectors has {table.shape[1]} columns, but the model gives {size}; put its full vectors, uncut."
            )
        self._truncation.keep(table.shape[1])
        for some in slices(len(places), PUT_AT_ONCE):
            rows = as_float32(table[places[some]])
            keys = [self.key(self._sent(texts[place], instruct)) for place in places[some]]
            self.add(dict(zip(keys, rows, strict=True)))

    def add(self, vectors: Mapping[bytes, Vector]) -> dict[bytes, Vector]:
        """Store full vectors and keep them in memory; as `keep`, and the first that was stored stays."""
        if self.store is not None and vectors:
            vectors = {**vectors, **self.store.write(list(vectors), np.stack(list(vectors.values())))}
        return self.keep(vectors)

    def keep(self, vectors: Mapping[bytes, Vector]) -> dict[bytes, Vector]:
        """Keep full vectors in memory, cut and scaled as they are used; the first of a text stays.

        Raises:
            EmbeddingError, InputError: as `Truncation`.
        """
        if not vectors:
            return {}
        rows = self._truncation(list(vectors.values()))
        return {key: self.memory.put(key, row) for key, row in zip(vectors, rows, strict=True)}

    def info(self) -> CacheInfo:
        """What is on disk, of every model; reads through the whole file."""
        return pruning.info(self.store)

    def prune(
        self,
        *,
        max_bytes: int | None = None,
        older_than: timedelta | float | None = None,
        model: str | None = None,
    ) -> Pruned:
        """Remove vectors from disk, and give their space back.

        Where another process stands in the way, or more than 4 GiB stay, new vectors use the space instead.

        All conditions hold together: `model` and `older_than` select rows, and all of them leave; with `max_bytes`
        only the oldest of them leave, until the rest is small enough. What leaves the disk leaves this cache's
        memory too; another process forgets at its `clear()`.

        Args:
            max_bytes: how large the selected vectors may be together.
            older_than: an age, or a number of days. Vectors that a wrong clock dated in the future have no age yet:
                they count as stored today from now on, and a warning says how many they are.
            model: one of the names in `info().models`.

        Returns:
            What was removed; less than was asked for, with a warning, where the file cannot be written.

        Raises:
            InputError: no condition, one that cannot be met, or an unknown model.
        """
        return pruning.prune(self.store, self.memory.drop, max_bytes=max_bytes, older_than=older_than, model=model)

    def export(self, path: str | os.PathLike[str], *, model: str | None = None) -> int:
        """Write vectors to one file that `import_` reads on another machine.

        The file is written whole or not at all; one that is there is replaced.

        Args:
            path: the file to write.
            model: one of the names in `info().models`; None for all.

        Returns:
            How many vectors the file holds. Damaged ones are left out.

        Raises:
            InputError: there is no cache file here, an unknown model, or a path that cannot be written.
        """
        return exporting.export(self._on_disk("export()"), path, model=model)

    def import_(self, path: str | os.PathLike[str]) -> int:
        """Add the vectors of a file that `export` wrote; rows that are here already stay as they are.

        Nothing in the file is taken for granted but what its vectors mean: whoever made it decides what texts are
        worth here, so import what you would have computed. It is only read. Rows that are damaged, hold no finite
        direction, or have another length than the model's other vectors are left out with a warning.

        Args:
            path: the file to read.

        Returns:
            How many vectors were added.

        Raises:
            InputError: there is no cache file here, no such file, or one that is damaged or no export; nothing is
                changed then.
        """
        return exporting.import_(self._on_disk("import_()"), path)

    def clear(self) -> None:
        """Forget the vectors in memory; those on disk stay, since they were paid for."""
        self.memory.clear()

    def __len__(self) -> int:
        return len(self.memory)

    def __contains__(self, text: object) -> bool:
        text = check_text(text)
        return any(self.memory.get(self.key(self._sent(text, instruct))) is not None for instruct in (True, False))

    def _on_disk(self, what: str) -> VectorStore:
        if self.store is None:
            raise InputError(f"{what} needs vectors on disk, but these are in memory only; give a cache_dir.")
        return self.store
