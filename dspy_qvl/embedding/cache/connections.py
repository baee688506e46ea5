"""One connection to the file of vectors for each thread of each process, and none across a fork.

SQLite must not cross a fork with a file open: the child would take the locks of its parent for its own, so that
whoever closes last deletes a journal the other still writes to. So before a fork every connection is closed, and none
is opened until it is over (see test_rows_written_after_a_fork_survive_the_parent_closing_the_file).
"""

import os
import sqlite3
import threading
import time
import weakref
from pathlib import Path
from typing import NamedTuple

from dspy_qvl.embedding.cache import database
from dspy_qvl.state import replacing

PAGES_KIB = 2**14  # of pages that are in the journal and not in the mapped file yet; a tenth off a single read
JOURNAL_PAGES = 2000  # 64 MiB; a single write costs a quarter less than with half of it, and a batch a third
FORK_SECONDS = 5.0  # how long a fork waits for other threads at work

_ALL: "weakref.WeakSet[ThreadConnection]" = weakref.WeakSet()
_ALL_LOCK = threading.Lock()
_held_for_fork: "list[ThreadConnection]" = []


class Opened(NamedTuple):
    """An open connection, and the marks by which it is known whether it still has the right file.

    Attributes:
        connection: to the file.
        cursor: for queries that give one row; it then has no view of the file open any more.
        inode: of the file; another one means that the file was replaced.
        modified: when the file last changed, if the connection is immutable and cannot notice it by itself; else None.
    """

    connection: sqlite3.Connection
    cursor: sqlite3.Cursor
    inode: int
    modified: int | None


class ThreadConnection:
    """The connection of one thread to a file of vectors: opened at its first use, and again if the file was replaced.

    Args:
        path: the file.
        lock_seconds: how long to wait for other writers.
        mmap_bytes: how much of the file is mapped into memory.

    Attributes:
        lock: held by the thread while it uses the connection.
        opened: the connection, or None.
    """

    def __init__(self, path: Path, lock_seconds: float, mmap_bytes: int) -> None:
        self._path, self._lock_seconds, self._mmap_bytes = path, lock_seconds, mmap_bytes
        self._file = str(path)  # looked up faster than a Path
        self.lock = threading.Lock()
        self.opened: Opened | None = None
        with _ALL_LOCK:
            _ALL.add(self)

    def close(self) -> None:
        """Close the connection, if it is open."""
        opened, self.opened = self.opened, None
        if opened is not None:
            opened.connection.close()

    def connect(self, create: bool) -> sqlite3.Connection:
        """The open connection.

        Args:
            create: whether the file is made if there is none.

        Raises:
            FileNotFoundError: there is no file.
            sqlite3.DatabaseError: it is not a file of vectors.
        """
        try:
            stat = os.stat(self._file)
        except FileNotFoundError:
            if not create:
                raise
            _create(self._path)
            stat = os.stat(self._file)
        if self.opened is not None:
            connection, _, inode, modified = self.opened
            if inode == stat.st_ino and (modified is None or modified == stat.st_mtime_ns):
                database.roll_back(connection)  # an interrupt came between the transaction's begin and its statements
                return connection
            self.close()
        connection, is_immutable = self._open()
        self.opened = Opened(connection, connection.cursor(), stat.st_ino, stat.st_mtime_ns if is_immutable else None)
        if connection.execute("PRAGMA application_id").fetchone() != (database.APPLICATION_ID,):
            raise sqlite3.DatabaseError("it is not a vector cache of this version of dspy_qvl")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA mmap_size = {self._mmap_bytes}")
        connection.execute(f"PRAGMA cache_size = {-PAGES_KIB}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {JOURNAL_PAGES}")
        return connection

    def _open(self) -> tuple[sqlite3.Connection, bool]:
        """Open the file, which is never made here; returns the connection, and whether it takes the file as immutable.

        Where SQLite cannot make its shared memory (a read-only folder, a full disk), a file with an empty journal is
        whole, and is read as one that nobody writes to.
        """
        connection = database.connect(self._path, "mode=rw", self._lock_seconds)
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError as error:
            connection.close()
            if database.is_damage(error) or "locked" in str(error) or database.bytes_at(f"{self._file}-wal"):
                raise
            return database.connect(self._path, "mode=ro&immutable=1", self._lock_seconds), True
        return connection, False


def _create(path: Path) -> None:
    """Make a file of vectors under another name and move it into place whole, unless another process was faster."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, move=_link) as draft:
        database.make_file(draft, "WAL").close()


def _link(draft: Path, path: Path) -> None:
    try:
        os.link(draft, path)  # unlike a rename, never replaces another process's file
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        os.replace(draft, path)


def _before_fork() -> None:
    """Close the connections of all threads, and keep new ones from being made until the fork is over."""
    _ALL_LOCK.acquire()
    last = time.monotonic() + FORK_SECONDS
    for one in list(_ALL):
        if one.lock.acquire(timeout=max(0.0, last - time.monotonic())):
            _held_for_fork.append(one)
            one.close()


def _after_fork() -> None:
    while _held_for_fork:
        _held_for_fork.pop().lock.release()
    _ALL_LOCK.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
