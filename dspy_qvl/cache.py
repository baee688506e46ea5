"""(model identity, text) -> vector, so that no text is paid for twice.

Two layers. `MemoryCache` holds vectors as they are used, bounded in bytes. `VectorStore`, rooms below, holds vectors as
the model gave them, in one SQLite file. `EmbeddingCache` is the face of both: it makes the key of a text, and passes
on what concerns the whole file, to `upkeep` (what is in it, what may leave) and to `transfer` (from one machine to
another).
"""

import contextlib
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from pathlib import Path

import numpy as np

from dspy_qvl import transfer, upkeep
from dspy_qvl.errors import InputError, check_text, shown
from dspy_qvl.store import Vector, VectorStore
from dspy_qvl.upkeep import CacheInfo, Pruned
from dspy_qvl.vectors import Truncation

STORAGES = ("float32", "float16")


def _as_it_is(text: str, instruct: bool) -> str:
    return text


class EmbeddingCache:
    """The vectors of one embedding model, in a file that all models share.

    `len`, `in` and `clear()` speak of this model's vectors in memory; `info()`, `prune()`, `export()`
    and `import_()` of the whole file.

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
        return upkeep.info(self.store)

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
            older_than: an age, or a number of days.
            model: one of the names in `info().models`.

        Returns:
            What was removed; less than was asked for, with a warning, where the file cannot be written.

        Raises:
            InputError: no condition, one that cannot be met, or an unknown model.
        """
        return upkeep.prune(self.store, self.memory.drop, max_bytes=max_bytes, older_than=older_than, model=model)

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
        return transfer.export(self._on_disk("export()"), path, model=model)

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
        return transfer.import_(self._on_disk("import_()"), path)

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


class MemoryCache:
    """Key -> read-only vector, bounded in bytes; the least recently used leave first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._vectors: OrderedDict[bytes, Vector] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> Vector | None:
        """The vector, or None."""
        vector = self._vectors.get(key)
        if vector is not None:
            with contextlib.suppress(KeyError):  # another thread may have let it go meanwhile
                self._vectors.move_to_end(key)
        return vector

    def put(self, key: bytes, vector: Vector) -> Vector:
        """Keep a copy of the vector unless there is one already; returns the one that is kept."""
        with self._lock:
            first = self._vectors.get(key)
            if first is not None:
                return first
            kept = vector.copy()  # a row of a batch would keep the whole batch alive
            kept.setflags(write=False)
            self._vectors[key] = kept
            self._bytes += kept.nbytes
            while self._bytes > self._max_bytes and len(self._vectors) > 1:
                self._bytes -= self._vectors.popitem(last=False)[1].nbytes
            return kept

    def drop(self, keys: Iterable[bytes]) -> None:
        """Forget some."""
        with self._lock:
            for key in keys:
                vector = self._vectors.pop(key, None)
                if vector is not None:
                    self._bytes -= vector.nbytes

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._vectors.clear()
            self._bytes = 0

    def __len__(self) -> int:
        return len(self._vectors)
