"""What is in the file of vectors, and what may leave it.

`info` counts the vectors of every model, under the name that `models_called` finds it by again. `prune` lists the
keys that may leave, oldest first; removes them a thousand at a time, so that other processes can write in between;
and then gives the freed space back to the disk. A store of None is a cache in memory only, and holds nothing here.

A vector that is dated in the future was stored by a clock that was wrong, and would never be old. It counts as stored
at the time of the first `prune` by age that meets it.
"""

import contextlib
import json
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from dspy_qvl.embedding.cache.sqlite import bytes_at, is_damage, transaction, warn
from dspy_qvl.embedding.cache.store import VectorStore
from dspy_qvl.errors import InputError, check_count, check_number, shown

ROWS_AT_ONCE = 1000  # that leave in one transaction
GIVE_BACK_SECONDS = 2.0  # how long to wait for other processes before freed space is left in the file
LARGEST_REWRITE = 2**32  # bytes; to shrink a larger file would keep other processes from writing for too long
LARGEST_FILE = 2**48  # bytes, by SQLite's own limits
SECONDS_A_DAY = 86400.0
AHEAD = 86400  # seconds that another machine's clock may be before this one's


@dataclass(frozen=True)
class ModelInfo:
    """What is on disk for one model.

    Attributes:
        model: what the model is called; `prune` and `export` take this. Settings of one model (its instruction's
            prefix, its endpoint) may have an entry each, of one name.
        identity: what makes its vectors its own.
        rows: number of vectors.
        bytes: their size, without SQLite's own pages.
        oldest: when the first of them was stored, or None where the file tells no time.
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
    """What is on disk, of every model.

    Attributes:
        rows: number of vectors.
        bytes: their size, without SQLite's own pages.
        path: the file, or None without one.
        file_bytes: size on disk, with what is not merged into the file yet.
        models: one entry a model, in the order in which they came.
    """

    rows: int
    bytes: int
    path: Path | None
    file_bytes: int
    models: tuple[ModelInfo, ...]


@dataclass(frozen=True)
class Pruned:
    """What left the disk.

    Attributes:
        rows: number of vectors.
        bytes: their size, without SQLite's own pages.
    """

    rows: int
    bytes: int


def info(store: VectorStore | None) -> CacheInfo:
    """What is on disk, of every model; reads through the whole file."""
    if store is None:
        return CacheInfo(0, 0, None, 0, ())
    models = tuple(model for _, model in _models(store))
    size = bytes_at(str(store.path)) + bytes_at(f"{store.path}-wal")
    n_rows, n_bytes = sum(model.rows for model in models), sum(model.bytes for model in models)
    return CacheInfo(n_rows, n_bytes, store.path, size, models)


def models_called(store: VectorStore | None, name: str | None) -> list[int] | None:
    """The numbers in the file of the models that a name stands for; None for all.

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
    store: VectorStore | None,
    forget: Callable[[Iterable[bytes]], None],
    *,
    max_bytes: int | None,
    older_than: timedelta | float | None,
    model: str | None,
) -> Pruned:
    """Remove vectors that meet every condition, the oldest first, and give their space back.

    Args:
        store: where they are.
        forget: told the keys of what has left the disk.
        max_bytes: how large the selected vectors may be together.
        older_than: an age, or a number of days; what is dated in the future is as old as today from now on.
        model: one of the names in `info(store).models`.

    Returns:
        What was removed; less than was asked for, with a warning, where the file cannot be written.

    Raises:
        InputError: no condition, one that cannot be met, or an unknown model.
    """
    if max_bytes is None and older_than is None and model is None:
        raise InputError("prune() would remove every vector; give max_bytes, older_than or model.")
    most = 0 if max_bytes is None else min(check_count(max_bytes, "max_bytes", 0), LARGEST_FILE)
    before = None if older_than is None else int(time.time() - _seconds(older_than))
    chosen = models_called(store, model)
    if store is None:
        return Pruned(0, 0)
    return store.attempt(_remove, forget, chosen, before, most, otherwise=Pruned(0, 0))


def _models(store: VectorStore | None) -> list[tuple[int, ModelInfo]]:
    """Every model that has vectors, with its number in the file."""
    nothing: list[tuple[int, ModelInfo]] = []
    return nothing if store is None else store.attempt(_count, otherwise=nothing)


def _count(connection: sqlite3.Connection) -> list[tuple[int, ModelInfo]]:
    rows = connection.execute(
        "SELECT id, identity, n, size, oldest, newest FROM models JOIN (SELECT model, count(*) AS n, "
        "sum(length(vector)) AS size, min(created) AS oldest, max(created) AS newest FROM vectors GROUP BY model) "
        "ON model = id ORDER BY id"
    )
    models = []
    for number, identity, n_rows, size, oldest, newest in rows:
        label, parsed = _label(str(identity))
        models.append((number, ModelInfo(label, parsed, n_rows, size, _moment(oldest), _moment(newest))))
    return models


def _label(identity: str) -> tuple[str, dict[str, Any]]:
    """What a model is called, and its identity's parts."""
    try:
        parsed = json.loads(identity)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        return identity, {}
    name = parsed.get("model")
    return name if isinstance(name, str) else identity, parsed


def _moment(seconds: object) -> datetime | None:
    """Seconds since 1970 as a time in UTC, or None for what is none."""
    if not isinstance(seconds, int):
        return None
    try:
        return datetime.fromtimestamp(seconds, timezone.utc)
    except (ValueError, OverflowError, OSError):
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
    n_rows, n_bytes = 0, 0
    try:
        if before is not None:
            _date_anew(connection, chosen)
        n_leaving, surplus = _list_leaving(connection, chosen, before, most)
        for start in range(0, n_leaving, ROWS_AT_ONCE):
            gone: dict[bytes, int] = {}
            with transaction(connection):
                for key, created, size in _oldest(connection, start):
                    if surplus <= 0:
                        break
                    surplus -= size
                    if connection.execute("DELETE FROM vectors WHERE key = ? AND created = ?", (key, created)).rowcount:
                        gone[key] = size
            n_rows, n_bytes = n_rows + len(gone), n_bytes + sum(gone.values())
            forget(gone)
            if surplus <= 0:
                break
        connection.execute("DROP TABLE temp.leaving")
        if n_rows:
            _give_back(connection)
    except sqlite3.OperationalError as error:
        if is_damage(error):
            raise
        warn(f"the cache could not be pruned further ({error}); {n_rows} vectors were removed.")
    return Pruned(n_rows, n_bytes)


def _date_anew(connection: sqlite3.Connection, chosen: Collection[int] | None) -> None:
    """Give rows that are dated in the future the date of today."""
    now = int(time.time())
    of_models, late = _of(chosen), (now + AHEAD,)
    if connection.execute(f"SELECT 1 FROM vectors WHERE {of_models} AND created > ? LIMIT 1", late).fetchone() is None:
        return
    with transaction(connection):
        n_rows = connection.execute(
            f"UPDATE vectors SET created = ? WHERE {of_models} AND created > ?", (now, *late)
        ).rowcount
    warn(
        f"{n_rows} vector(s) in the cache were dated in the future, by a clock that was wrong or because this one is; "
        "they count as stored today."
    )


def _of(chosen: Collection[int] | None) -> str:
    """The condition that a row is of some models, or of any."""
    return "1" if chosen is None else f"model IN ({', '.join(str(int(number)) for number in chosen)})"


def _list_leaving(
    connection: sqlite3.Connection, chosen: Collection[int] | None, before: int | None, most: int
) -> tuple[int, int]:
    """List the rows that may leave, oldest first: how many they are, and how many bytes of them are too many."""
    # Keys, since a rowid may come to stand for another row meanwhile.
    connection.execute("DROP TABLE IF EXISTS temp.leaving")
    connection.execute(
        "CREATE TEMP TABLE leaving AS SELECT key, created, length(vector) AS size FROM vectors "
        f"WHERE {_of(chosen)} AND created < coalesce(?, created + 1) ORDER BY created, rowid",
        (before,),
    )
    n_leaving, surplus = connection.execute(
        "SELECT count(*), coalesce(sum(size), 0) - ? FROM leaving", (most,)
    ).fetchone()
    return n_leaving, surplus


def _oldest(connection: sqlite3.Connection, start: int) -> list[tuple[bytes, int, int]]:
    """The next rows that are to leave: key, created, bytes."""
    return connection.execute(
        "SELECT key, created, size FROM leaving WHERE rowid > ? ORDER BY rowid LIMIT ?", (start, ROWS_AT_ONCE)
    ).fetchall()


def _give_back(connection: sqlite3.Connection) -> None:
    """Forget models without rows and shrink the file; where others use it, its free pages are used again instead."""
    wait = _pragma(connection, "busy_timeout")
    connection.execute(f"PRAGMA busy_timeout = {int(GIVE_BACK_SECONDS * 1000)}")
    try:
        with contextlib.suppress(sqlite3.OperationalError):
            with transaction(connection):
                connection.execute("DELETE FROM models WHERE id NOT IN (SELECT DISTINCT model FROM vectors)")
            n_pages, n_free, size = (
                _pragma(connection, name) for name in ("page_count", "freelist_count", "page_size")
            )
            if (n_pages - n_free) * size <= LARGEST_REWRITE:
                connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        connection.execute(f"PRAGMA busy_timeout = {wait}")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    value: int = connection.execute(f"PRAGMA {name}").fetchone()[0]
    return value
