"""One SQLite file of vectors, which threads and processes share.

The first stored vector of a text is its vector: a second one, from another process or another batch, is ignored
and the first is read back.

The file is a convenience, never a condition. Damaged, it is set aside and begun anew. Where it cannot be written
(a full disk, a read-only folder, a lock that is never released), what it holds can still be read, and new vectors
live in memory. Each is said once.
"""

import contextlib
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar
from zlib import crc32

import numpy as np

from dspy_qvl.embedding.cache.rows import FLOAT32, checksum, decode, encode
from dspy_qvl.embedding.cache.sqlite import (
    APPLICATION_ID,
    bytes_at,
    connect,
    is_damage,
    make_file,
    remove_draft,
    roll_back,
    transaction,
    warn,
)
from dspy_qvl.state import draft_of, sweep
from dspy_qvl.vectors import Vector

Row = tuple[bytes, int, int, bytes]  # key, created, checksum, vector
T = TypeVar("T")

READ_ONE = "SELECT checksum, vector FROM vectors WHERE key = ?"
INSERT_ONE = (
    "INSERT OR IGNORE INTO vectors(model, key, created, checksum, vector) "
    "SELECT id, ?, ?, ?, ? FROM models WHERE identity = ?"
)


class Opened(NamedTuple):
    """A connection, and what tells that it is no longer the right one.

    Attributes:
        connection: to the file.
        cursor: for queries that give one row; it then has no view of the file open any more.
        inode: of the file; another one means that the file was replaced.
        modified: when the file last changed, where the connection cannot notice it by itself; else None.
    """

    connection: sqlite3.Connection
    cursor: sqlite3.Cursor
    inode: int
    modified: int | None


class Desk:
    """A thread's place at a store: its connection, and the lock that it holds while it works with it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.opened: Opened | None = None

    def close(self) -> None:
        """Let go of the connection."""
        opened, self.opened = self.opened, None
        if opened is not None:
            opened.connection.close()


class VectorStore:
    """Key -> float32 vector of any length, in one SQLite file in WAL mode.

    A rowid table with 32 KiB pages, `synchronous=NORMAL` and memory-mapped reads: see tests/benchmarks/cache.py.
    Each thread of each process has a connection of its own.

    The file is made at the first write; only its own kind of file is ever written to.

    Args:
        path: the file.
        identity: what makes the model's vectors its own.
        half: store float16, half the bytes; rows of either kind are read whatever this says.
    """

    MMAP_BYTES = 2**30
    PAGES_KIB = 2**14  # of pages that are in the journal and not in the mapped file yet; a tenth off a single read
    JOURNAL_PAGES = 2000  # 64 MiB; a single write costs a quarter less than with half of it, and a batch a third
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
        self._read_from = self._written_from = 0.0  # monotonic time until which the file is left alone

    def read(self, keys: Sequence[bytes]) -> dict[bytes, Vector]:
        """The stored vectors among `keys`, read-only and full-size; what is missing or damaged is left out."""
        if len(keys) == 1:
            found = self._glance(keys)
            if found is not None:
                return found
        nothing: dict[bytes, Vector] = {}
        return self.attempt(self._read, keys, otherwise=nothing) if keys else nothing

    def write(self, keys: Sequence[bytes], vectors: Vector) -> dict[bytes, Vector]:
        """Store vectors, (n, d), in one transaction.

        Returns:
            Those that are not what was given: another came first, or they are stored as float16 and these are
            the rounded ones, bit for bit what a later read gives.
        """
        if not keys:
            return {}
        now = int(time.time())
        blobs = encode(vectors, half=self._half)
        rows = [(key, now, checksum(key, blob), blob) for key, blob in zip(keys, blobs, strict=True)]
        kept: dict[bytes, Vector] = {}
        first = self.attempt(self._write, rows, otherwise=kept, writes=True)
        if self._half:
            kept = {key: vector for key, _, told, blob in rows if (vector := decode(key, told, blob)) is not None}
        return {**kept, **first}

    def attempt(self, action: Callable[..., T], *details: object, otherwise: T, writes: bool = False) -> T:
        """Run an action on this thread's connection.

        A damaged file is set aside. After any other fault this kind of work is left alone for a while.

        Args:
            action: called with the connection and `details`; it may not use the store itself.
            details: what else the action needs.
            otherwise: the answer where there is no file or the file fails.
            writes: whether the action writes; the file is made for it where there is none.
        """
        pause = self._written_from if writes else self._read_from
        if pause and time.monotonic() < pause:
            return otherwise
        try:
            desk: Desk = self._local.desk
        except AttributeError:
            desk = self._local.desk = _new_desk()
        with desk.lock:
            try:
                return action(self._connection(desk, writes), *details)
            except (sqlite3.DatabaseError, UnicodeDecodeError, OSError) as error:  # a damaged name is no UTF-8
                if isinstance(error, FileNotFoundError) and not writes:
                    return otherwise
                fault: Exception = error
            try:
                if is_damage(fault):
                    self._set_aside(desk, fault)
                    return action(self._connection(desk, writes), *details) if writes else otherwise
            except (sqlite3.DatabaseError, UnicodeDecodeError, OSError) as error:
                fault = error
            self._pause(desk, writes, fault)
            return otherwise

    def _glance(self, keys: Sequence[bytes]) -> dict[bytes, Vector] | None:
        """What a read of one key finds, or None where anything is out of the ordinary: `attempt` sees to that."""
        try:
            desk: Desk = self._local.desk
            with desk.lock:
                if desk.opened is None:
                    return None
                _, cursor, inode, modified = desk.opened
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
            with transaction(connection):
                connection.executemany("DELETE FROM vectors WHERE key = ?", [(key,) for key in damaged])
        except sqlite3.OperationalError as error:
            if is_damage(error):
                raise  # else they stay, and are a miss again: a file that cannot be written is still read

    def _write(self, connection: sqlite3.Connection, rows: Sequence[Row]) -> dict[bytes, Vector]:
        # By far the most common single write is of a model that is there: one statement is its own transaction.
        if len(rows) == 1 and connection.execute(INSERT_ONE, (*rows[0], self._identity)).rowcount == 1:
            return {}
        with transaction(connection):
            added = insert(connection, self._identity, rows)
        return {} if added == len(rows) else self._read(connection, [row[0] for row in rows])

    def _pause(self, desk: Desk, writes: bool, error: Exception) -> None:
        """Leave the file alone for a while, and say so the first time."""
        if desk.opened is not None and desk.opened.modified is not None:
            desk.close()  # it can never write
        until = time.monotonic() + self.RETRY_SECONDS
        with self._lock:
            if writes:
                first, self._written_from = not self._written_from, until
            else:
                first, self._read_from = not self._read_from, until
        if first:
            what, lost = ("written", "new vectors") if writes else ("read", "vectors")
            warn(f"{self.path} cannot be {what} ({error}); {lost} are kept in memory only and will be lost on exit.")

    def _connection(self, desk: Desk, create: bool) -> sqlite3.Connection:
        """This thread's connection.

        Raises:
            FileNotFoundError: there is no file, and none is to be made.
        """
        try:
            stat = os.stat(self._file)
        except FileNotFoundError:
            if not create:
                raise
            self._create()
            stat = os.stat(self._file)
        if desk.opened is not None:
            connection, _, inode, modified = desk.opened
            if inode == stat.st_ino and (modified is None or modified == stat.st_mtime_ns):
                roll_back(connection)  # an interrupt came between the transaction's begin and what it was for
                return connection
            desk.close()
        connection, frozen = self._open()
        desk.opened = Opened(connection, connection.cursor(), stat.st_ino, stat.st_mtime_ns if frozen else None)
        if connection.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
            raise sqlite3.DatabaseError("it is not a vector cache of this version of dspy_qvl")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA mmap_size = {self.MMAP_BYTES}")
        connection.execute(f"PRAGMA cache_size = {-self.PAGES_KIB}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {self.JOURNAL_PAGES}")
        return connection

    def _open(self) -> tuple[sqlite3.Connection, bool]:
        """A connection that never makes a file and waits for other writers, and whether it takes it as frozen.

        Where SQLite cannot make its shared memory (a read-only folder, a full disk), a file without anything in
        its journal is whole, and is read as one that nobody writes to.
        """
        connection = connect(self.path, "mode=rw", self.LOCK_SECONDS)
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError as error:
            connection.close()
            if is_damage(error) or "locked" in str(error) or bytes_at(f"{self._file}-wal"):
                raise
            return connect(self.path, "mode=ro&immutable=1", self.LOCK_SECONDS), True
        return connection, False

    def _create(self) -> None:
        """Make the file under another name and move it into place whole, unless another process was faster."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = draft_of(self.path)
        try:
            make_file(draft, "WAL").close()
            sweep(self.path, draft)
            try:
                os.link(draft, self.path)  # unlike a rename, never replaces another process's file
            except FileExistsError:
                pass
            except OSError:  # a file system without hard links
                os.replace(draft, self.path)
        finally:
            remove_draft(draft)

    def _set_aside(self, desk: Desk, error: Exception) -> None:
        """Rename a damaged or foreign file, with its journal, unless another thread or process did so already."""
        with self._lock:
            inode = None if desk.opened is None else desk.opened.inode
            desk.close()
            if not self.path.exists() or (inode is not None and os.stat(self.path).st_ino != inode):
                return
            number = 1
            while (aside := self.path.with_name(f"{self.path.name}.damaged-{number}")).exists():
                number += 1
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(f"{self.path}{suffix}", f"{aside}{suffix}")
        warn(f"{self.path} could not be read ({error}); it was set aside as {aside.name} and a new cache was begun.")


# SQLite must not cross a fork with a file open: the child would take the locks of its parent for its own, so that
# whoever closes last deletes a journal the other still writes to
# (see test_rows_written_after_a_fork_survive_the_parent_closing_the_file).
_DESKS: "weakref.WeakSet[Desk]" = weakref.WeakSet()
_DESKS_LOCK = threading.Lock()
_held_for_fork: list[Desk] = []
FORK_SECONDS = 5.0  # how long a fork waits for other threads at work


def _new_desk() -> Desk:
    desk = Desk()
    with _DESKS_LOCK:
        _DESKS.add(desk)
    return desk


def _before_fork() -> None:
    """Close every connection of every thread, and let none be opened until the fork is over."""
    _DESKS_LOCK.acquire()
    last = time.monotonic() + FORK_SECONDS
    for desk in list(_DESKS):
        if desk.lock.acquire(timeout=max(0.0, last - time.monotonic())):
            _held_for_fork.append(desk)
            desk.close()


def _after_fork() -> None:
    while _held_for_fork:
        _held_for_fork.pop().lock.release()
    _DESKS_LOCK.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


def insert(connection: sqlite3.Connection, identity: str, rows: Sequence[Row]) -> int:
    """Store rows of a model within a transaction; returns how many were new."""
    known = connection.execute("SELECT id FROM models WHERE identity = ?", (identity,)).fetchone()
    (model,) = known or (connection.execute("INSERT INTO models(identity) VALUES (?)", (identity,)).lastrowid,)
    before = connection.total_changes
    connection.executemany(
        "INSERT OR IGNORE INTO vectors(model, key, created, checksum, vector) VALUES (?, ?, ?, ?, ?)",
        [(model, *row) for row in rows],
    )
    return connection.total_changes - before
