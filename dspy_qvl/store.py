"""One SQLite file of vectors, which threads and processes share.

The first stored vector of a text is its vector: a second one, from another process or another batch, is ignored
and the first is read back.

The file is a convenience, never a condition: damaged, it is set aside and begun anew; where it cannot be
written, vectors live in memory. Both are said once.
"""

import contextlib
import os
import sqlite3
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.errors import QVLWarning

Vector = NDArray[np.float32]
T = TypeVar("T")


class StoreInfo(NamedTuple):
    """What is on disk for one model.

    Attributes:
        rows: number of vectors.
        bytes: their size, without SQLite's own pages.
        path: the file, or None without one.
    """

    rows: int
    bytes: int
    path: Path | None


class VectorStore:
    """Key -> float32 vector of any length, in one SQLite file in WAL mode.

    A rowid table with 32 KiB pages, `synchronous=NORMAL` and memory-mapped reads: 8 µs to read a vector of
    1,024, 46 µs to write one. Each thread of each process has a connection of its own. Each row carries a
    checksum of its key and vector, so that a damaged row is a miss and not a wrong vector.

    The file is made at the first write; only its own kind of file is ever written to.
    """

    APPLICATION_ID = 0x71766C31  # "qvl1": the schema's number is its last character
    PAGE_SIZE = 32768
    MMAP_BYTES = 2**30
    LOCK_SECONDS = 60.0
    KEYS_A_QUERY = 500

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self._identity = identity
        self._local = threading.local()
        self._lock = threading.Lock()
        self._usable = True

    def read(self, keys: Sequence[bytes]) -> dict[bytes, Vector]:
        """The stored vectors among `keys`, read-only and full-size; what is missing or damaged is left out."""
        if not keys or not self._usable or not self.path.exists():
            return {}
        return self._attempt(lambda connection: self._read(connection, keys), {})

    def write(self, keys: Sequence[bytes], vectors: Vector) -> dict[bytes, Vector]:
        """Store vectors, (n, d), in one transaction; returns those that differ because another came first."""
        if not keys or not self._usable:
            return {}
        return self._attempt(lambda connection: self._write(connection, keys, vectors), {}, create=True)

    def info(self) -> StoreInfo:
        """Rows and bytes stored for this model."""
        nothing = StoreInfo(0, 0, self.path)
        if not self._usable or not self.path.exists():
            return nothing

        def count(connection: sqlite3.Connection) -> StoreInfo:
            rows, size = connection.execute(
                "SELECT count(*), coalesce(sum(length(vector)), 0) FROM vectors "
                "WHERE model = (SELECT id FROM models WHERE identity = ?)",
                (self._identity,),
            ).fetchone()
            return StoreInfo(rows, size, self.path)

        return self._attempt(count, nothing)

    def _read(self, connection: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, Vector]:
        found: dict[bytes, Vector] = {}
        damaged: list[bytes] = []
        for start in range(0, len(keys), self.KEYS_A_QUERY):
            some = keys[start : start + self.KEYS_A_QUERY]
            query = f"SELECT key, checksum, vector FROM vectors WHERE key IN ({','.join('?' * len(some))})"
            for key, checksum, blob in connection.execute(query, some):
                if not isinstance(blob, bytes) or zlib.crc32(blob, zlib.crc32(key)) != checksum or len(blob) % 4:
                    damaged.append(key)
                else:
                    found[key] = np.frombuffer(blob, dtype="<f4")
        if damaged:
            _warn(f"{len(damaged)} damaged vector(s) in {self.path} were dropped, to be embedded again.")
            with _transaction(connection):
                connection.executemany("DELETE FROM vectors WHERE key = ?", [(key,) for key in damaged])
        return found

    def _write(self, connection: sqlite3.Connection, keys: Sequence[bytes], vectors: Vector) -> dict[bytes, Vector]:
        now = int(time.time())
        blobs = [row.tobytes() for row in np.ascontiguousarray(vectors, dtype="<f4")]
        with _transaction(connection):
            connection.execute("INSERT OR IGNORE INTO models(identity) VALUES (?)", (self._identity,))
            (model,) = connection.execute("SELECT id FROM models WHERE identity = ?", (self._identity,)).fetchone()
            before = connection.total_changes
            connection.executemany(
                "INSERT OR IGNORE INTO vectors(key, model, created, checksum, vector) VALUES (?, ?, ?, ?, ?)",
                [
                    (key, model, now, zlib.crc32(blob, zlib.crc32(key)), blob)
                    for key, blob in zip(keys, blobs, strict=True)
                ],
            )
            added = connection.total_changes - before
        return {} if added == len(keys) else self._read(connection, keys)

    def _attempt(self, action: Callable[[sqlite3.Connection], T], otherwise: T, *, create: bool = False) -> T:
        """Run an action on this thread's connection; a damaged file is set aside, any other fault ends disk use."""
        for attempt in (1, 2):
            try:
                return action(self._connection(create))
            except (sqlite3.DatabaseError, UnicodeDecodeError, OSError) as error:  # a damaged name is no UTF-8
                if attempt == 2 or not _is_damage(error):
                    self._degrade(error)
                    return otherwise
                try:
                    self._set_aside(error)
                except OSError as fault:
                    self._degrade(fault)
                    return otherwise
                if not create:
                    return otherwise
        raise AssertionError("unreachable")

    def _degrade(self, error: Exception) -> None:
        with self._lock:
            first, self._usable = self._usable, False
        if first:
            _warn(f"{self.path} cannot be used ({error}); vectors are kept in memory only and will be lost on exit.")

    def _connection(self, create: bool) -> sqlite3.Connection:
        local = self._local
        if getattr(local, "process", None) == os.getpid():  # a connection must not cross a fork
            with contextlib.suppress(OSError):
                if os.stat(self.path).st_ino == local.inode:
                    connection: sqlite3.Connection = local.connection
                    return connection
        if create and not self.path.exists():
            self._create()
        connection = _open(self.path)
        local.connection, local.process, local.inode = connection, os.getpid(), os.stat(self.path).st_ino
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        if application != self.APPLICATION_ID:
            raise sqlite3.DatabaseError("it is not a vector cache of this version of dspy_qvl")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA mmap_size = {self.MMAP_BYTES}")
        return connection

    def _create(self) -> None:
        """Make the file under another name and move it into place whole, unless another process was faster."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_name(f"{self.path.name}.{os.getpid()}-{threading.get_ident()}.new")
        try:
            connection = sqlite3.connect(draft, isolation_level=None)
            connection.executescript(
                f"""
                PRAGMA page_size = {self.PAGE_SIZE};
                PRAGMA journal_mode = WAL;
                PRAGMA application_id = {self.APPLICATION_ID};
                CREATE TABLE models(id INTEGER PRIMARY KEY, identity TEXT NOT NULL UNIQUE);
                CREATE TABLE vectors(
                    key BLOB NOT NULL PRIMARY KEY,
                    model INTEGER NOT NULL REFERENCES models(id),
                    created INTEGER NOT NULL,
                    checksum INTEGER NOT NULL,
                    vector BLOB NOT NULL
                );
                """
            )
            connection.close()
            try:
                os.link(draft, self.path)  # unlike a rename, never replaces another process's file
            except FileExistsError:
                pass
            except OSError:  # a file system without hard links
                os.replace(draft, self.path)
        finally:
            draft.unlink(missing_ok=True)

    def _set_aside(self, error: Exception) -> None:
        """Rename a damaged or foreign file, with its journal, unless another thread or process did so already."""
        with self._lock:
            connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
            inode = getattr(self._local, "inode", None)
            if connection is not None:
                connection.close()
            self._local.__dict__.clear()
            if not self.path.exists() or (inode is not None and os.stat(self.path).st_ino != inode):
                return
            number = 1
            while (aside := self.path.with_name(f"{self.path.name}.damaged-{number}")).exists():
                number += 1
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(f"{self.path}{suffix}", f"{aside}{suffix}")
        _warn(f"{self.path} could not be read ({error}); it was set aside as {aside.name} and a new cache was begun.")


def _is_damage(error: Exception) -> bool:
    """Whether the file is at fault, rather than a full disk, a read-only folder or a lock that was never released.

    SQLite reports damage as a plain DatabaseError and the others as its subclass OperationalError, but for a
    schema that lost a table or column.
    """
    if isinstance(error, sqlite3.OperationalError):
        return "no such" in str(error) or "decode" in str(error)
    return not isinstance(error, OSError)


def _open(path: Path) -> sqlite3.Connection:
    """A connection that never makes a file and waits for other writers."""
    uri = f"{path.absolute().as_uri()}?mode=rw"
    # The connection belongs to one thread; garbage collection may close it from another.
    return sqlite3.connect(
        uri, uri=True, timeout=VectorStore.LOCK_SECONDS, isolation_level=None, check_same_thread=False
    )


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlite3.OperationalError):  # a full disk has rolled back already
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _warn(message: str) -> None:
    warnings.warn(message, QVLWarning, stacklevel=2)
