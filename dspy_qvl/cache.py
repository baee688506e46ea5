"""(model identity, text) -> vector, so that no text is paid for twice.

Two layers. `MemoryCache` holds vectors as they are used, bounded in bytes. `VectorStore`, in the room below, holds
vectors as the model gave them, in one SQLite file. This room also keeps that file: what is in it, what may leave,
and how it goes from one machine to another.
"""

import contextlib
import hashlib
import json
import os
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np

from dspy_qvl.errors import InputError, check_count, check_number, check_text, shown
from dspy_qvl.store import (
    APPLICATION_ID,
    SCHEMA,
    Row,
    Vector,
    VectorStore,
    bytes_at,
    connect,
    decode,
    draft_of,
    insert,
    is_damage,
    make_file,
    remove_draft,
    transaction,
    warn,
)

STORAGES = ("float32", "float16")
ROWS_AT_ONCE = 1000
BYTES_AT_ONCE = 2**24
LONGEST_VECTOR = 2**20  # bytes that are read of a row of somebody else's file
LONGEST_IDENTITY = 2**16
GIVE_BACK_SECONDS = 2.0  # how long to wait for other processes before freed space is left in the file
LARGEST_REWRITE = 2**32  # bytes; to shrink a larger file would keep other processes from writing for too long
LARGEST_FILE = 2**48  # bytes, by SQLite's own limits
SECONDS_A_DAY = 86400.0


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


class EmbeddingCache:
    """The vectors of one embedding model, in a file that all models share.

    `len`, `in` and `clear()` speak of this model's vectors in memory; `info()`, `prune()`, `export()` and
    `import_()` of the whole file.

    Args:
        identity: what makes the model's vectors its own; part of every key.
        path: the SQLite file, or None for memory only.
        memory_bytes: how much memory vectors may take before the least recently used ones leave.
        storage: how new vectors are stored, "float32" or "float16" (half the bytes, three digits an entry); what
            is there already is read either way.

    Raises:
        InputError: another storage.
    """

    def __init__(
        self, identity: str, path: Path | None, *, memory_bytes: int = 256 * 2**20, storage: str = "float32"
    ) -> None:
        if not isinstance(storage, str) or storage not in STORAGES:
            raise InputError(f'storage must be "float32" or "float16", but got {shown(storage)}.')
        self._secret = hashlib.blake2b(identity.encode(), digest_size=32).digest()
        self.memory = MemoryCache(memory_bytes)
        self.store = None if path is None else VectorStore(path, identity, half=storage == "float16")

    def key(self, text: str) -> bytes:
        """16 bytes that stand for this text under this model."""
        return hashlib.blake2b(text.encode(), digest_size=16, key=self._secret).digest()

    def info(self) -> CacheInfo:
        """What is on disk, of every model; reads through the whole file."""
        if self.store is None:
            return CacheInfo(0, 0, None, 0, ())
        models = tuple(model for _, model in self._models())
        path = self.store.path
        size = bytes_at(str(path)) + bytes_at(f"{path}-wal")
        return CacheInfo(sum(model.rows for model in models), sum(model.bytes for model in models), path, size, models)

    def prune(
        self,
        *,
        max_bytes: int | None = None,
        older_than: timedelta | float | None = None,
        model: str | None = None,
    ) -> Pruned:
        """Remove vectors from disk, and give their space back.

        Where another process stands in the way, or more than 4 GiB stay, new vectors use the space instead.

        All conditions hold together: `model` and `older_than` select rows, and all of them leave; with `max_bytes`
        only the oldest of them leave, until the rest is small enough. What leaves the disk leaves this cache's
        memory too; another process forgets at its `clear()`.

        Args:
            max_bytes: how large the selected vectors may be together.
            older_than: an age, or a number of days.
            model: one of the names in `info().models`.

        Returns:
            What was removed; less than was asked for, with a warning, where the file cannot be written.

        Raises:
            InputError: no condition, one that cannot be met, or an unknown model.
        """
        if max_bytes is None and older_than is None and model is None:
            raise InputError("prune() would remove every vector; give max_bytes, older_than or model.")
        most = None if max_bytes is None else min(check_count(max_bytes, "max_bytes", 0), LARGEST_FILE)
        before = None if older_than is None else int(time.time() - _seconds(older_than))
        chosen = self._models_called(model)
        if self.store is None:
            return Pruned(0, 0)
        return self.store.attempt(self._prune, chosen, before, most, otherwise=Pruned(0, 0))

    def export(self, path: str | os.PathLike[str], *, model: str | None = None) -> int:
        """Write vectors to one file that `import_` reads on another machine.

        The file is written whole or not at all; one that is there is replaced.

        Args:
            path: the file to write.
            model: one of the names in `info().models`; None for all.

        Returns:
            How many vectors the file holds. Damaged ones are left out.

        Raises:
            InputError: there is no cache file here, an unknown model, or a path that cannot be written.
        """
        store = self._on_disk("export()")
        target = _path(path)
        if target.is_dir():
            raise InputError(f"path must be a file, but {target} is a folder; give a file in it.")
        if _same_file(target, store.path) or any(Path(f"{target}{end}").exists() for end in ("-wal", "-journal")):
            raise InputError(f"{target} is a cache in use, which an export would destroy; give another path.")
        chosen = self._models_called(model)
        draft = draft_of(target)
        try:
            with contextlib.closing(make_file(draft, "DELETE")) as copy, transaction(copy):
                n_rows = store.attempt(_copy, copy, chosen, otherwise=None) if store.path.exists() else 0
            if n_rows is None:
                raise InputError(f"{store.path} could not be read, so nothing was exported; try again.")
            os.replace(draft, target)
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"{target} cannot be written ({error}); give another path.") from error
        finally:
            with contextlib.suppress(OSError):
                remove_draft(draft)
        return n_rows

    def import_(self, path: str | os.PathLike[str]) -> int:
        """Add the vectors of a file that `export` wrote; rows that are here already stay as they are.

        Nothing in the file is taken for granted but what its vectors mean: whoever made it decides what texts are
        worth here, so import what you would have computed. It is only read. Rows that are damaged, hold no finite
        direction, or have another length than the model's other vectors are left out with a warning.

        Args:
            path: the file to read.

        Returns:
            How many vectors were added.

        Raises:
            InputError: there is no cache file here, no such file, or one that is damaged or no export; nothing is
                changed then.
        """
        store = self._on_disk("import_()")
        source = _path(path)
        if _same_file(source, store.path):
            raise InputError(f"{source} is this cache itself; give a file that export() wrote.")
        added, n_skipped, n_left = 0, 0, 0
        with _foreign(source) as connection:
            names = _names(connection)
            sizes = _usual_sizes(connection)
            sizes.update(store.attempt(_known_sizes, names, otherwise=sizes))
            n_left = connection.execute("SELECT count(*) FROM vectors NOT INDEXED").fetchone()[0]
            for chunk in _chunks(_foreign_rows(connection)):
                sound = _sound_rows(chunk, names, sizes)
                new = store.attempt(_add, sound, otherwise=None, writes=True)
                if new is None:
                    warn(f"the import of {source} stopped, {store.path} cannot be written; import it again later.")
                    return added
                added += new
                n_left -= len(chunk)
                n_skipped += len(chunk) - sum(map(len, sound.values()))
        n_skipped += n_left  # of types that are no row's
        if n_skipped:
            warn(f"{n_skipped} vector(s) in {source} are damaged or of another length, and were left out.")
        return added

    def clear(self) -> None:
        """Forget the vectors in memory; those on disk stay, since they were paid for."""
        self.memory.clear()

    def __len__(self) -> int:
        return len(self.memory)

    def __contains__(self, text: object) -> bool:
        return self.memory.get(self.key(check_text(text))) is not None

    def _on_disk(self, what: str) -> VectorStore:
        if self.store is None:
            raise InputError(f"{what} needs vectors on disk, but these are in memory only; give a cache_dir.")
        return self.store

    def _models(self) -> list[tuple[int, ModelInfo]]:
        nothing: list[tuple[int, ModelInfo]] = []
        return nothing if self.store is None else self.store.attempt(_models, otherwise=nothing)

    def _models_called(self, name: str | None) -> list[int] | None:
        """The rows of `models` that a label stands for; None for all."""
        if name is None:
            return None
        stored = self._models()
        chosen = [number for number, model in stored if model.model == name]
        if not chosen:
            known = ", ".join(dict.fromkeys(repr(model.model) for _, model in stored)) or "no model at all"
            raise InputError(f"model {shown(name)} has no vectors on disk; there is {known}.")
        return chosen

    def _prune(
        self, connection: sqlite3.Connection, chosen: Sequence[int] | None, before: int | None, most: int | None
    ) -> Pruned:
        n_rows, n_bytes = 0, 0
        try:
            # Keys, since a rowid may come to stand for another row meanwhile.
            connection.execute("DROP TABLE IF EXISTS temp.leaving")
            connection.execute(
                "CREATE TEMP TABLE leaving AS SELECT key, created, length(vector) AS size FROM vectors "
                f"WHERE {_of(chosen)} AND created < coalesce(?, created + 1) ORDER BY created, rowid",
                (before,),
            )
            (surplus,) = connection.execute("SELECT coalesce(sum(size), 0) - ? FROM leaving", (most or 0,)).fetchone()
            for start in range(0, _count(connection, "leaving"), ROWS_AT_ONCE):
                gone: dict[bytes, int] = {}
                with transaction(connection):
                    for key, created, size in _oldest(connection, start):
                        if surplus <= 0:
                            break
                        surplus -= size
                        if connection.execute(
                            "DELETE FROM vectors WHERE key = ? AND created = ?", (key, created)
                        ).rowcount:
                            gone[key] = size
                n_rows, n_bytes = n_rows + len(gone), n_bytes + sum(gone.values())
                self.memory.drop(gone)
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

    def drop(self, keys: Iterable[bytes]) -> None:
        """Forget some."""
        with self._lock:
            for key in keys:
                vector = self._vectors.pop(key, None)
                if vector is not None:
                    self._bytes -= vector.nbytes

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._vectors.clear()
            self._bytes = 0

    def __len__(self) -> int:
        return len(self._vectors)


def _models(connection: sqlite3.Connection) -> list[tuple[int, ModelInfo]]:
    """Every model that has vectors, with its number in the file."""
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


def _path(path: object) -> Path:
    """A path.

    Raises:
        InputError: anything else.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"path must be a path, but got {type(path).__name__}: {shown(path)}.")
    return Path(path)


def _same_file(one: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):
        return one.samefile(other)
    return one.resolve() == other.resolve()


def _of(chosen: Collection[int] | None) -> str:
    """A condition on the rows of some models; None for all."""
    return "1" if chosen is None else f"model IN ({', '.join(str(int(number)) for number in chosen)})"


def _count(connection: sqlite3.Connection, table: str) -> int:
    n_rows: int = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    return n_rows


def _oldest(connection: sqlite3.Connection, start: int) -> list[tuple[bytes, int, int]]:
    """The next rows that are to leave: key, created, bytes."""
    return connection.execute(
        "SELECT key, created, size FROM leaving WHERE rowid > ? ORDER BY rowid LIMIT ?", (start, ROWS_AT_ONCE)
    ).fetchall()


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    value: int = connection.execute(f"PRAGMA {name}").fetchone()[0]
    return value


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


def _copy(connection: sqlite3.Connection, copy: sqlite3.Connection, chosen: Sequence[int] | None) -> int:
    """Copy sound rows of some models into another file."""
    n_rows = 0
    for number, identity in connection.execute("SELECT id, identity FROM models ORDER BY id").fetchall():
        if chosen is not None and number not in chosen:
            continue
        rows = connection.execute("SELECT key, created, checksum, vector FROM vectors WHERE model = ?", (number,))
        for chunk in _chunks(rows):
            sound = [row for row in chunk if decode(row[0], row[2], row[3]) is not None]
            try:
                n_rows += insert(copy, identity, sound)
            except sqlite3.Error as error:  # else this cache would be taken for the faulty one
                raise InputError(f"the export cannot be written ({error}); give another path.") from error
    return n_rows


def _chunks(rows: Iterable[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    """Rows whose last entry is a vector, as many at once as memory should hold."""
    chunk: list[tuple[Any, ...]] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += len(row[-1])
        if len(chunk) == ROWS_AT_ONCE or size >= BYTES_AT_ONCE:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


@contextlib.contextmanager
def _foreign(path: Path) -> Iterator[sqlite3.Connection]:
    """Somebody else's file of vectors, checked and only ever read.

    Raises:
        InputError: no such file, one in use, no file of vectors, or a damaged one.
    """
    if not path.is_file():
        raise InputError(f"path must be a file that export() wrote, but {path} is {_kind(path)}.")
    if any(bytes_at(f"{path}{end}") for end in ("-wal", "-journal")):
        raise InputError(f"{path} is a cache in use, so a copy of it may be torn; use export() to make a whole one.")
    try:
        # Frozen, so that SQLite makes no file beside it and takes none that lies there.
        with contextlib.closing(connect(path, "mode=ro&immutable=1", GIVE_BACK_SECONDS)) as connection:
            for setting in ("trusted_schema = OFF", "query_only = ON", "cell_size_check = ON", "mmap_size = 0"):
                connection.execute(f"PRAGMA {setting}").fetchone()
            if connection.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
                raise InputError(f"{path} is a database, but not one that export() of this version wrote.")
            tables = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
            if _bare(tables) != _bare(SCHEMA.items()):
                raise InputError(f"{path} has other tables than export() writes; export it again.")
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise InputError(f"{path} is damaged ({shown(verdict)}); copy or export it again.")
            yield connection
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged or no export ({error}); copy or export it again.") from error


def _bare(tables: Iterable[tuple[object, object]]) -> set[tuple[str, str]]:
    """Tables by name and definition, without white space."""
    return {(str(name), "".join(str(sql).split())) for name, sql in tables}


def _kind(path: Path) -> str:
    return "a folder" if path.is_dir() else "no file" if path.exists() else "not there"


def _names(connection: sqlite3.Connection) -> dict[int, str]:
    """The identities in somebody else's file."""
    return dict(
        connection.execute(
            "SELECT id, identity FROM models WHERE typeof(identity) = 'text' AND length(identity) <= ?",
            (LONGEST_IDENTITY,),
        )
    )


# What a row must be before it leaves SQLite; a column's declared type binds no one.
_ROW_OF_VECTORS = (
    "typeof(key) = 'blob' AND length(key) = 16 AND typeof(model) = 'integer' AND typeof(created) = 'integer' "
    f"AND typeof(checksum) = 'integer' AND typeof(vector) = 'blob' AND length(vector) <= {LONGEST_VECTOR}"
)


def _foreign_rows(connection: sqlite3.Connection) -> sqlite3.Cursor:
    return connection.execute(
        f"SELECT model, key, created, checksum, vector FROM vectors NOT INDEXED WHERE {_ROW_OF_VECTORS}"
    )


def _usual_sizes(connection: sqlite3.Connection) -> dict[int, int]:
    """Columns of most vectors of each model: a float16 row is a byte longer than 2 a column."""
    return dict(
        connection.execute(
            "SELECT model, CASE length(vector) % 2 WHEN 1 THEN length(vector) / 2 ELSE length(vector) / 4 END AS size "
            f"FROM vectors NOT INDEXED WHERE {_ROW_OF_VECTORS} GROUP BY model, size ORDER BY count(*)"
        )
    )


def _known_sizes(connection: sqlite3.Connection, names: dict[int, str]) -> dict[int, int]:
    """Columns of the vectors that are here, of the models that are there."""
    sizes = {}
    for number, identity in names.items():
        row = connection.execute(
            "SELECT key, checksum, vector FROM vectors "
            "WHERE model = (SELECT id FROM models WHERE identity = ?) LIMIT 1",
            (identity,),
        ).fetchone()
        vector = None if row is None else decode(*row)
        if vector is not None:
            sizes[number] = len(vector)
    return sizes


def _sound_rows(chunk: list[tuple[Any, ...]], names: dict[int, str], sizes: dict[int, int]) -> dict[str, list[Row]]:
    """By model, the rows of somebody else's file that a vector of the model can be."""
    sound: dict[str, list[Row]] = {}
    now = int(time.time())
    for model, key, created, told, blob in chunk:
        vector = decode(key, told, blob)
        if vector is None or model not in names or len(vector) != sizes.get(model) or created < 0:
            continue
        if np.isfinite(vector).all() and vector.any():
            sound.setdefault(names[model], []).append((key, min(created, now), told, blob))
    return sound


def _add(connection: sqlite3.Connection, rows: dict[str, list[Row]]) -> int:
    with transaction(connection):
        return sum(insert(connection, identity, some) for identity, some in rows.items())
