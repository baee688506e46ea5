"""The upper layer of the cache: vectors in memory, those used last."""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterable

from dspy_qvl.vectors import Vector


class MemoryCache:
    """Key -> read-only vector, bounded in bytes of memory; the least recently used leave first.

    Threads may share one.

    Args:
        max_bytes: how much memory the vectors may take.
    """

    ENTRY_BYTES = 236  # of a vector beside its numbers: the array, the key, the place in the dict (measured)

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
        """Keep a copy of the vector unless the key has one already; returns the one that is kept."""
        with self._lock:
            first = self._vectors.get(key)
            if first is not None:
                return first
            kept = vector.copy()  # a row of a batch would keep the whole batch alive
            kept.setflags(write=False)
            self._vectors[key] = kept
            self._bytes += kept.nbytes + self.ENTRY_BYTES
            while self._bytes > self._max_bytes and len(self._vectors) > 1:
                self._bytes -= self._vectors.popitem(last=False)[1].nbytes + self.ENTRY_BYTES
            return kept

    def drop(self, keys: Iterable[bytes]) -> None:
        """Forget the vectors of some keys."""
        with self._lock:
            for key in keys:
                vector = self._vectors.pop(key, None)
                if vector is not None:
                    self._bytes -= vector.nbytes + self.ENTRY_BYTES

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._vectors.clear()
            self._bytes = 0

    def __len__(self) -> int:
        return len(self._vectors)
