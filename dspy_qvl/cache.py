"""(model identity, text) -> vector, so that no text is paid for twice.

Two layers. `MemoryCache` holds vectors as they are used, bounded in bytes. `VectorStore`, in the room below, holds
vectors as the model gave them, in one SQLite file.
"""

import contextlib
import hashlib
import threading
from collections import OrderedDict
from pathlib import Path

from dspy_qvl.errors import check_text
from dspy_qvl.store import StoreInfo, Vector, VectorStore


class EmbeddingCache:
    """The vectors of one embedding model.

    `len`, `in` and `clear()` speak of the vectors in memory; `info()` of those on disk.

    Args:
        identity: what makes the model's vectors its own; part of every key.
        path: the SQLite file, or None for memory only.
        memory_bytes: how much memory vectors may take before the least recently used ones leave.
    """

    def __init__(self, identity: str, path: Path | None, memory_bytes: int = 256 * 2**20) -> None:
        self._secret = hashlib.blake2b(identity.encode(), digest_size=32).digest()
        self.memory = MemoryCache(memory_bytes)
        self.store = None if path is None else VectorStore(path, identity)

    def key(self, text: str) -> bytes:
        """16 bytes that stand for this text under this model."""
        return hashlib.blake2b(text.encode(), digest_size=16, key=self._secret).digest()

    def info(self) -> StoreInfo:
        """What is on disk for this model."""
        return StoreInfo(0, 0, None) if self.store is None else self.store.info()

    def clear(self) -> None:
        """Forget the vectors in memory; those on disk stay, since they were paid for."""
        self.memory.clear()

    def __len__(self) -> int:
        return len(self.memory)

    def __contains__(self, text: object) -> bool:
        return self.memory.get(self.key(check_text(text))) is not None


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

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._vectors.clear()
            self._bytes = 0

    def __len__(self) -> int:
        return len(self._vectors)
