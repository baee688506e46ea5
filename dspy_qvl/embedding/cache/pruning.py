"""Counts the vectors in the file, and removes some of them.

`info` counts the vectors of every model, under the name that `models_called` finds it by again. `prune` lists the
keys to remove, oldest first; removes them a thousand at a time, so that other processes can write in between; and
then gives the freed space back to the disk. A store of None is a cache in memory only, and has no vectors here.

A vector that is dated in the future was stored by a wrong clock, and would never be old. It counts as stored at the
time of the first `prune` by age that meets it.
"""

import contextlib
import json
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Protocol

from dspy_qvl.embedding.cache import database
from dspy_qvl.embedding.cache.memory import MemoryCache
from dspy_qvl.embedding.cache.sqlite_store import SQLiteStore
from dspy_qvl.errors import InputError, check_count, check_number, shown, warn

ROWS_AT_ONCE = 1000  # removed in one transaction
GIVE_BACK_SECONDS = 2.0  # how long to wait for other processes before freed space is left in the file
LARGEST_REWRITE = 2**32  # bytes; to shrink a larger file would keep other processes from writing for too long
LARGEST_FILE = 2**48  # bytes, by SQLite's own limits
SECONDS_A_DAY = 86400.0
AHEAD = 86400  # seconds that another machine's clock may be before this one's


class Layers(Protocol):
    """The two layers of a cache."""

    memory: MemoryCache
    store: SQLiteStore | None


@dataclass(frozen=True)
class ModelInfo:
    """The stored vectors of one model.

    Attributes:
        model: the model's name, which `prune` and `export` take. Settings of one model (its instruction's prefix,
            its endpoint) may have an entry each, of one name.
        identity: the settings that make its vectors comparable.
        rows: number of vectors.
        bytes: their size, without SQLite's own pages.
        oldest: when the first of them was stored, or None if the file has no valid time.
        newest: when the last of them was stored, or None.
    """

    model: str
    identity: dict[str, Any]
    rows: int
    bytes: int
    oldest: datetime | None
    newest: datetime | None


@dataclass(frozen=True)
class CacheInfo:
    """The stored vectors of every model.

    Attributes:
        rows: number of vectors.
        bytes: their size, without SQLite's own pages.
        path: the file, or None without one.
        file_bytes: size on disk, with the journal that is not merged into the file yet.
        models: one entry a model, in the order in which they came.
    """

    rows: int
    bytes: int
    path: Path | None
    file_bytes: int
    models: tuple[ModelInfo, ...]


@dataclass(frozen=True)
class Pruned:
    """The vectors that were removed from disk.

    Attributes:
        rows: number of vectors.
        bytes: their size, without SQLite's own pages.
    """

    rows: int
    bytes: int


def info(store: SQLiteStore | None) -> CacheInfo:
    """Count the stored vectors of every model; reads through the whole file."""
    if store is None:
        return CacheInfo(0, 0, None, 0, ())
    models = tuple(model for _, model in _models(store))
    size = database.bytes_at(str(store.path)) + database.bytes_at(f"{store.path}-wal")
    n_rows, n_bytes = sum(model.rows for model in models), sum(model.bytes for model in models)
    return CacheInfo(n_rows, n_bytes, store.path, size, models)


def models_called(store: SQLiteStore | None, name: str | None) -> list[int] | None:
    """The ids in the file of the models of one name; None for all.

    Raises:
        InputError: no model of this name has vectors.
    """
    if name is None:
        return None
    stored = _models(store)
    chosen = [number for number, model in stored if model.model == name]
    if not chosen:
        known = ", ".join(dict.fromkeys(repr(model.model) for _, model in stored)) or "no model at all"
        raise InputError(f"model {shown(name)} has no vectors on disk; there is {known}.")
    return chosen


def prune(
    cache: Layers,
    *,
    max_bytes: int | None = None,
    older_than: timedelta | float | None = None,
    model: str | None = None,
) -> Pruned:
    """Remove vectors from disk, and give their space back.

    Where another process stands in the way, or more than 4 GiB stay, new vectors use the space instead.

    All conditions hold together: `model` and `older_than` select rows, and all of them are removed; with `max_bytes`
    only the oldest of them, until the rest is small enough. They are removed from this cache's memory too; another
    process forgets them at its `clear()`.

    Args:
        cache: the cache.
        max_bytes: how large the selected vectors may be together.
        older_than: an age, or a number of days. Vectors that a wrong clock dated in the future have no age yet:
            they count as stored today from now on, and a warning says how many they are.
        model: one of the names in `info().models`.

    Returns:
        What was removed; less than was asked for, with a warning, where the file cannot be written.

    Raises:
        InputError: no condition, one that cannot be met, or an unknown model.
    """
    if max_bytes is None and older_than is None and model is None:
        raise InputError("prune() would remove every vector; give max_bytes, older_than or model.")
    most = 0 if max_bytes is None else min(check_count(max_bytes, "max_bytes", 0), LARGEST_FILE)
    before = None if older_than is None else int(time.time() - _seconds(older_than))
    chosen, nothing = models_called(cache.store, model), Pruned(0, 0)
    if cache.store is None:
        return nothing
    return cache.store.attempt(_remove, cache.memory.drop, chosen, before, most, otherwise=nothing)


def _models(store: SQLiteStore | None) -> list[tuple[int, ModelInfo]]:
    """Every model that has vectors, with its id in the file."""
    return [] if store is None else store.attempt(_count, otherwise=[])


def _count(connection: sqlite3.Connection) -> list[tuple[int, ModelInfo]]:
    rows = connection.execute(
        "SELECT id, identity, n, size, oldest, newest FROM models JOIN (SELECT model, count(*) AS n, "
        "sum(length(vector)) AS size, min(created) AS oldest, max(created) AS newest FROM vectors GROUP BY model) "
        "ON model = id ORDER BY id"
    )
    return [
        (number, ModelInfo(*_label(str(identity)), n_rows, size, _time(oldest), _time(newest)))
        for number, identity, n_rows, size, oldest, newest in rows
    ]


def _label(identity: str) -> tuple[str, dict[str, Any]]:
    """A model's name and settings, from its identity in the file."""
    parsed: object = None
    with contextlib.suppress(ValueError, RecursionError):
        parsed = json.loads(identity)
    settings = parsed if isinstance(parsed, dict) else {}
    name = settings.get("model")
    return name if isinstance(name, str) else identity, settings


def _time(seconds: Any) -> datetime | None:
    """Seconds since 1970 as a time in UTC; None for anything else."""
    with contextlib.suppress(TypeError, ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(seconds, timezone.utc)
    return None


def _seconds(age: timedelta | float) -> float:
    """An age in seconds.

    Raises:
        InputError: no timedelta and no number of days, or not above 0.
    """
    days = age.total_seconds() / SECONDS_A_DAY if isinstance(age, timedelta) else check_number(age, "older_than")
    if days <= 0:
        raise InputError(f"older_than must be above 0 days, but got {days:g}.")
    return min(days * SECONDS_A_DAY, time.time())


def _remove(
    connection: sqlite3.Connection,
    forget: Callable[[Iterable[bytes]], None],
    chosen: Collection[int] | None,
    before: int | None,
    most: int,
) -> Pruned:
    """Remove the oldest rows of some models, older than a time, until at most some bytes of them are left.

    Args:
        connection: to the file.
        forget: called with the keys that were removed.
        chosen: ids of the models; None for all.
        before: seconds since 1970; None for rows of any age.
        most: bytes that may be left.
    """
    n_rows, n_bytes = 0, 0
    of_models = "1" if chosen is None else f"model IN ({', '.join(str(int(number)) for number in chosen)})"
    try:
        if before is not None:
            _date_anew(connection, of_models)
        # Keys, since a rowid may come to stand for another row meanwhile.
        connection.execute("DROP TABLE IF EXISTS temp.leaving")
        connection.execute(
            "CREATE TEMP TABLE leaving AS SELECT key, created, size FROM (SELECT key, created, rowid AS number, "
            "length(vector) AS size, sum(length(vector)) OVER (ORDER BY created DESC, rowid DESC) AS kept "
            f"FROM vectors WHERE {of_models} AND created < coalesce(?, created + 1)) "
            "WHERE kept > ? ORDER BY created, number",
            (before, most),
        )
        (n_leaving,) = connection.execute("SELECT count(*) FROM leaving").fetchone()
        for start in range(0, n_leaving, ROWS_AT_ONCE):
            rows = connection.execute(
                "SELECT key, created, size FROM leaving WHERE rowid > ? ORDER BY rowid LIMIT ?", (start, ROWS_AT_ONCE)
            ).fetchall()
            gone: dict[bytes, int] = {}
            with database.transaction(connection):
                for key, created, size in rows:
                    if connection.execute("DELETE FROM vectors WHERE key = ? AND created = ?", (key, created)).rowcount:
                        gone[key] = size
            n_rows, n_bytes = n_rows + len(gone), n_bytes + sum(gone.values())
            forget(gone)
        connection.execute("DROP TABLE temp.leaving")
        if n_rows:
            _give_back(connection)
    except sqlite3.OperationalError as error:
        if database.is_damage(error):
            raise
        warn(f"the cache could not be pruned further ({error}); {n_rows} vectors were removed.")
    return Pruned(n_rows, n_bytes)


def _date_anew(connection: sqlite3.Connection, of_models: str) -> None:
    """Give rows that are dated in the future the date of today."""
    now = int(time.time())
    late = f"{of_models} AND created > {now + AHEAD}"
    if connection.execute(f"SELECT 1 FROM vectors WHERE {late} LIMIT 1").fetchone() is None:
        return  # without the lock that an UPDATE takes
    with database.transaction(connection):
        n_rows = connection.execute(f"UPDATE vectors SET created = ? WHERE {late}", (now,)).rowcount
    warn(
        f"{n_rows} vector(s) in the cache were dated in the future, by a clock that was wrong or because this one is; "
        "they count as stored today."
    )


def _give_back(connection: sqlite3.Connection) -> None:
    """Remove models without rows and shrink the file; where others use it, its free pages are used again instead."""
    wait = _pragma(connection, "busy_timeout")
    connection.execute(f"PRAGMA busy_timeout = {int(GIVE_BACK_SECONDS * 1000)}")
    try:
        with contextlib.suppress(sqlite3.OperationalError):
            with database.transaction(connection):
                connection.execute("DELETE FROM models WHERE id NOT IN (SELECT DISTINCT model FROM vectors)")
            n_used = _pragma(connection, "page_count") - _pragma(connection, "freelist_count")
            if n_used * _pragma(connection, "page_size") <= LARGEST_REWRITE:
                connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        connection.execute(f"PRAGMA busy_timeout = {wait}")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    value: int = connection.execute(f"PRAGMA {name}").fetchone()[0]
    return value
