"""The SQLite file of vectors: its tables, transactions on it, and rows that are added to it."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from dspy_qvl.embedding.cache.rows import Row

APPLICATION_ID = 0x71766C31  # "qvl1": the schema's number is its last character
PAGE_SIZE = 32768
FILE_SCHEMA = {
    "models": "CREATE TABLE models(id INTEGER PRIMARY KEY, identity TEXT NOT NULL UNIQUE)",
    "vectors": """CREATE TABLE vectors(
        key BLOB NOT NULL PRIMARY KEY,
        model INTEGER NOT NULL REFERENCES models(id),
        created INTEGER NOT NULL,
        checksum INTEGER NOT NULL,
        vector BLOB NOT NULL
    )""",
}


def make_file(path: Path, journal_mode: str) -> sqlite3.Connection:
    """Make a file of vectors, without any yet; returns a connection to it."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")
        connection.execute(f"PRAGMA journal_mode = {journal_mode}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        for statement in FILE_SCHEMA.values():
            connection.execute(statement)
    except BaseException:
        connection.close()
        raise
    return connection


def connect(path: Path, options: str, lock_seconds: float) -> sqlite3.Connection:
    """A connection in autocommit mode: transactions are begun by `transaction` only.

    Args:
        path: the file.
        options: of SQLite's URI, for instance "mode=ro".
        lock_seconds: how long to wait for other writers.
    """
    uri = f"{path.absolute().as_uri()}?{options}"
    # One thread uses the connection; garbage collection may close it from another.
    return sqlite3.connect(uri, uri=True, timeout=lock_seconds, isolation_level=None, check_same_thread=False)


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit the statements of a block together, or none of them; waits for other writers."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
    except BaseException:
        roll_back(connection)
        raise


def roll_back(connection: sqlite3.Connection) -> None:
    """End an unfinished transaction, if there is one: other writers wait for its end."""
    with contextlib.suppress(sqlite3.OperationalError):  # a full disk has rolled back already
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def is_damage(error: Exception) -> bool:
    """True if the file itself is at fault, not a full disk, a read-only folder or a lock that is never released.

    SQLite reports damage as a plain DatabaseError and the others as its subclass OperationalError, but for a
    schema that lost a table or column.
    """
    if isinstance(error, sqlite3.OperationalError):
        return "no such" in str(error) or "decode" in str(error)
    return not isinstance(error, OSError)


def bytes_at(path: str) -> int:
    """Size of a file; 0 if there is none."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def insert(connection: sqlite3.Connection, identity: str, rows: Sequence[Row]) -> int:
    """Add rows of a model, within a transaction, but for keys that are stored already; returns how many were new."""
    known = connection.execute("SELECT id FROM models WHERE identity = ?", (identity,)).fetchone()
    (model,) = known or (connection.execute("INSERT INTO models(identity) VALUES (?)", (identity,)).lastrowid,)
    before = connection.total_changes
    connection.executemany(
        "INSERT OR IGNORE INTO vectors(model, key, created, checksum, vector) VALUES (?, ?, ?, ?, ?)",
        [(model, *row) for row in rows],
    )
    return connection.total_changes - before
