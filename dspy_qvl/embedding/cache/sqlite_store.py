"""The lower layer of the cache: vectors in one SQLite file, which threads and processes share.

The first stored vector of a text is its vector: a second one, from another process or another batch, is ignored
and the first is read back.

The file is a convenience, never a condition. Damaged, it is set aside and begun anew. Where it cannot be written
(a full disk, a read-only folder, a lock that is never released), its rows can still be read, and new vectors are kept
in memory. Each is warned of once.
"""

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar
from zlib import crc32

import numpy as np

from dspy_qvl.embedding.cache import database
from dspy_qvl.embedding.cache.connections import ThreadConnection
from dspy_qvl.embedding.cache.rows import FLOAT32, Row, checksum, decode, encode
from dspy_qvl.errors import warn
from dspy_qvl.vectors import Vector

T = TypeVar("T")

READ_ONE = "SELECT checksum, vector FROM vectors WHERE key = ?"
INSERT_ONE = (
    "INSERT OR IGNORE INTO vectors(model, key, created, checksum, vector) "
    "SELECT id, ?, ?, ?, ? FROM models WHERE identity = ?"
)
FAULTS = (sqlite3.DatabaseError, UnicodeDecodeError, OSError)  # a damaged name of a model is no UTF-8


class SQLiteStore:
    """Key -> float32 vector of any length, in one SQLite file in WAL mode.

    A rowid table with 32 KiB pages, `synchronous=NORMAL` and memory-mapped reads: see tests/benchmarks/cache.py.
    Each thread of each process has a connection of its own.

    The file is made at the first write; only its own kind of file is ever written to.

    Args:
        path: the file.
        identity: the settings that make the model's vectors comparable, as JSON.
        half: store float16, half the bytes; rows of either kind are read in any case.
    """

    MMAP_BYTES = 2**30
    LOCK_SECONDS = 60.0
    RETRY_SECONDS = 15.0  # after a failure; a full disk or a held lock would make every batch wait
    KEYS_A_QUERY = 500

    def __init__(self, path: Path, identity: str, *, half: bool = False) -> None:
        self.path = path
        self._file = str(path)  # a string is looked up faster than a Path
        self._identity = identity
        self._half = half
        self._local = threading.local()
        self._lock = threading.Lock()
        self._paused_until = {False: 0.0, True: 0.0}  # monotonic time, of reading and of writing

    def read(self, keys: Sequence[bytes]) -> dict[bytes, Vector]:
        """The stored vectors of some keys, full-size, read-only; missing and damaged ones are left out."""
        if len(keys) == 1:
            found = self._read_one(keys)
            if found is not None:
                return found
        return self.attempt(self._read, keys, otherwise={}) if keys else {}

    def write(self, keys: Sequence[bytes], vectors: Vector) -> dict[bytes, Vector]:
        """Store vectors, (n, d), in one transaction.

        Returns:
            The stored vectors that differ from the given ones: another was stored first, or they were rounded to
            float16. They are bit for bit what a later read gives.
        """
        if not keys:
            return {}
        now = int(time.time())
        blobs = encode(vectors, half=self._half)
        rows = [(key, now, checksum(key, blob), blob) for key, blob in zip(keys, blobs, strict=True)]
        first: dict[bytes, Vector] = self.attempt(self._write, rows, otherwise={}, writes=True)
        if not self._half:
            return first
        rounded = {key: vector for key, _, told, blob in rows if (vector := decode(key, told, blob)) is not None}
        return {**rounded, **first}

    def attempt(self, action: Callable[..., T], *details: object, otherwise: T, writes: bool = False) -> T:
        """Run an action on this thread's connection.

        A damaged file is set aside. After any other fault no action of this kind (reading, writing) is run for a while.

        Args:
            action: called with the connection and `details`; it may not use the store itself.
            details: further arguments of the action.
            otherwise: the answer if there is no file or the file fails.
            writes: whether the action writes; then the file is made if there is none.
        """
        pause = self._paused_until[writes]
        if pause and time.monotonic() < pause:
            return otherwise
        try:
            mine: ThreadConnection = self._local.mine
        except AttributeError:
            mine = self._local.mine = ThreadConnection(self.path, self.LOCK_SECONDS, self.MMAP_BYTES)
        with mine.lock:
            try:
                return action(mine.connect(writes), *details)
            except FAULTS as error:
                if isinstance(error, FileNotFoundError) and not writes:
                    return otherwise
                fault: Exception = error
            try:
                if database.is_damage(fault):
                    self._set_aside(mine, fault)
                    return action(mine.connect(writes), *details) if writes else otherwise
            except FAULTS as error:
                fault = error
            self._pause(mine, writes, fault)
            return otherwise

    def _read_one(self, keys: Sequence[bytes]) -> dict[bytes, Vector] | None:
        """Read one key by the shortest way, or return None if anything is unusual, which `attempt` then handles."""
        try:
            mine: ThreadConnection = self._local.mine
            with mine.lock:
                if mine.opened is None:
                    return None
                _, cursor, inode, modified = mine.opened
                if os.stat(self._file).st_ino != inode or modified is not None:
                    return None
                row = cursor.execute(READ_ONE, keys).fetchone()
            if row is None:
                return {}
            (key,), (told, blob) = keys, row
            if len(blob) % 4 or not blob or crc32(blob, crc32(key)) != told:
                return None  # damaged, or float16
            return {key: np.frombuffer(blob, FLOAT32)}
        except (AttributeError, TypeError, OSError, sqlite3.Error):
            return None

    def _read(self, connection: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, Vector]:
        found: dict[bytes, Vector] = {}
        damaged: list[bytes] = []
        for start in range(0, len(keys), self.KEYS_A_QUERY):
            some = keys[start : start + self.KEYS_A_QUERY]
            query = f"SELECT key, checksum, vector FROM vectors WHERE key IN ({','.join('?' * len(some))})"
            for key, told, blob in connection.execute(query, some):
                vector = decode(key, told, blob)
                if vector is None:
                    damaged.append(key)
                else:
                    found[key] = vector
        if damaged:
            self._drop(connection, damaged)
        return found

    def _drop(self, connection: sqlite3.Connection, damaged: Sequence[bytes]) -> None:
        warn(f"{len(damaged)} damaged vector(s) in {self.path} were dropped, to be embedded again.")
        try:
            with database.transaction(connection):
                connection.executemany("DELETE FROM vectors WHERE key = ?", [(key,) for key in damaged])
        except sqlite3.OperationalError as error:
            if database.is_damage(error):
                raise  # else they stay, and are a miss again: a file that cannot be written is still read

    def _write(self, connection: sqlite3.Connection, rows: Sequence[Row]) -> dict[bytes, Vector]:
        # By far the most common single write is of a model that is there: one statement is its own transaction.
        if len(rows) == 1 and connection.execute(INSERT_ONE, (*rows[0], self._identity)).rowcount == 1:
            return {}
        with database.transaction(connection):
            added = database.insert(connection, self._identity, rows)
        return {} if added == len(rows) else self._read(connection, [row[0] for row in rows])

    def _pause(self, mine: ThreadConnection, writes: bool, error: Exception) -> None:
        """Do no more work of this kind for a while, and warn of it the first time."""
        if mine.opened is not None and mine.opened.modified is not None:
            mine.close()  # it can never write
        with self._lock:
            is_first = not self._paused_until[writes]
            self._paused_until[writes] = time.monotonic() + self.RETRY_SECONDS
        if is_first:
            what, lost = ("written", "new vectors") if writes else ("read", "vectors")
            warn(f"{self.path} cannot be {what} ({error}); {lost} are kept in memory only and will be lost on exit.")

    def _set_aside(self, mine: ThreadConnection, error: Exception) -> None:
        """Rename a damaged or foreign file, with its journal, unless another thread or process did so already."""
        with self._lock:
            inode = None if mine.opened is None else mine.opened.inode
            mine.close()
            if not self.path.exists() or (inode is not None and os.stat(self.path).st_ino != inode):
                return
            number = 1
            while (aside := self.path.with_name(f"{self.path.name}.damaged-{number}")).exists():
                number += 1
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(f"{self.path}{suffix}", f"{aside}{suffix}")
        warn(f"{self.path} could not be read ({error}); it was set aside as {aside.name} and a new cache was begun.")
