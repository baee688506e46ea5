"""The store of vectors that the cache uses. To keep vectors elsewhere (Redis, files), write a `Store` and make it here.

Contract: no exception when the store fails (warn, and answer with fewer vectors), and the first vector of a key stays,
whichever process stored it. `info`, `prune`, `export` and `import_` of the cache are SQL on a `SQLiteStore`, through
its `attempt`: another store brings its own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from dspy_qvl.embedding.cache.sqlite_store import SQLiteStore
from dspy_qvl.vectors import Vector


class Store(Protocol):
    """Key -> full vector of one model, on disk or elsewhere.

    Attributes:
        path: named in messages.
    """

    path: Path

    def read(self, keys: Sequence[bytes]) -> dict[bytes, Vector]:
        """The stored vectors of some keys, (d,) float32 and read-only; missing and damaged ones are left out."""

    def write(self, keys: Sequence[bytes], vectors: Vector) -> dict[bytes, Vector]:
        """Store vectors, (n, d); returns the stored vectors that differ from the given ones."""


def store_at(path: Path, identity: str, *, half: bool) -> SQLiteStore:
    """The store of one model's vectors.

    Args:
        path: its file.
        identity: the settings that make the model's vectors comparable, as JSON.
        half: store float16, half the bytes.
    """
    return SQLiteStore(path, identity, half=half)
