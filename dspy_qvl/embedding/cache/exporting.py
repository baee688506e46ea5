"""Carrying vectors from one machine to another, in one file.

`export` copies the sound rows into a draft beside the target, which takes the target's place once it is whole.

`import_` trusts nothing of the file it is given, which somebody else may have made. It opens it frozen and read-only;
wants our tables, unbroken; lets no row out of SQLite whose types and sizes are not a row's; keeps those whose checksum
holds and whose vector is as long as its model's others; and adds, some at a time, the ones that are not here yet.
"""

import contextlib
import os
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dspy_qvl.embedding.cache.pruning import models_called
from dspy_qvl.embedding.cache.rows import decode
from dspy_qvl.embedding.cache.sqlite import (
    APPLICATION_ID,
    FILE_SCHEMA,
    bytes_at,
    connect,
    make_file,
    remove_draft,
    transaction,
    warn,
)
from dspy_qvl.embedding.cache.store import Row, VectorStore, insert
from dspy_qvl.errors import InputError, shown
from dspy_qvl.state import checked_path, checked_target, draft_of, sweep

ROWS_AT_ONCE = 1000  # in memory; fewer where their vectors come to
BYTES_AT_ONCE = 2**24
LONGEST_VECTOR = 2**20  # bytes that are read of a row of somebody else's file
LONGEST_IDENTITY = 2**16
MOST_MODELS, LETTERS_OF_MODELS = 10_000, 2**24  # whose identities are in memory together
LONGEST_DEFINITION = 2**16  # of a table


def export(store: VectorStore, path: str | os.PathLike[str], *, model: str | None) -> int:
    """Write the vectors of a model, or None for all, to a file, whole or not at all; returns how many it holds.

    Raises:
        InputError: an unknown model, or a path that cannot be written.
    """
    target = checked_target(path)
    if _same_file(target, store.path) or _is_cache(target):
        raise InputError(f"{target} is a cache, which an export would destroy; give another path.")
    chosen = models_called(store, model)
    draft = draft_of(target)
    try:
        with contextlib.closing(make_file(draft, "DELETE")) as copy, transaction(copy):
            n_rows = store.attempt(_copy, copy, chosen, otherwise=None) if store.path.exists() else 0
        if n_rows is None:
            raise InputError(f"{store.path} could not be read, so nothing was exported; try again.")
        sweep(target, draft)
        os.replace(draft, target)
    except (OSError, sqlite3.Error) as error:
        raise InputError(f"{target} cannot be written ({error}); give another path.") from error
    finally:
        with contextlib.suppress(OSError):
            remove_draft(draft)
    return n_rows


def import_(store: VectorStore, path: str | os.PathLike[str]) -> int:
    """Add the sound vectors of a file that `export` wrote to those that are here; returns how many were new.

    Raises:
        InputError: no such file, or one that is damaged or no export; nothing is changed then.
    """
    source = checked_path(path)
    if _same_file(source, store.path):
        raise InputError(f"{source} is this cache itself; give a file that export() wrote.")
    added = 0
    with _foreign(source) as connection:
        names = _names(connection)
        sizes = _usual_sizes(connection)
        sizes.update(store.attempt(_known_sizes, names, otherwise=sizes))
        (n_skipped,) = connection.execute("SELECT count(*) FROM vectors NOT INDEXED").fetchone()
        for chunk in _chunks(_foreign_rows(connection)):
            sound = _sound_rows(chunk, names, sizes)
            new = store.attempt(_add, sound, otherwise=None, writes=True)
            if new is None:
                warn(f"the import of {source} stopped, {store.path} cannot be written; import it again later.")
                return added
            added += new
            n_skipped -= sum(map(len, sound.values()))
    if n_skipped:
        warn(f"{n_skipped} vector(s) in {source} are damaged or of another length, and were left out.")
    return added


def _is_cache(path: Path) -> bool:
    """Tell whether a file is a cache rather than an export: SQLite's header says that it is written ahead."""
    if any(Path(f"{path}{end}").exists() for end in ("-wal", "-journal")):
        return True
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(20)[18:20] == b"\2\2"
    return False


def _same_file(one: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):
        return one.samefile(other)
    return one.resolve() == other.resolve()


def _copy(connection: sqlite3.Connection, copy: sqlite3.Connection, chosen: Collection[int] | None) -> int:
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
        InputError: no such file, one in use, no file of vectors, a damaged one, or one of too many models.
    """
    if not path.is_file():
        raise InputError(f"path must be a file that export() wrote, but {path} is {_kind(path)}.")
    if any(bytes_at(f"{path}{end}") for end in ("-wal", "-journal")):
        raise InputError(f"{path} is a cache in use, so a copy of it may be torn; use export() to make a whole one.")
    try:
        # Frozen, so that SQLite makes no file beside it, takes none that lies there and waits for no lock.
        with contextlib.closing(connect(path, "mode=ro&immutable=1", 0.0)) as connection:
            for setting in ("trusted_schema = OFF", "query_only = ON", "cell_size_check = ON", "mmap_size = 0"):
                connection.execute(f"PRAGMA {setting}").fetchone()
            if connection.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
                raise InputError(f"{path} is a database, but not one that export() of this version wrote.")
            tables = connection.execute(
                "SELECT substr(name, 1, ?), substr(sql, 1, ?) FROM sqlite_master WHERE sql IS NOT NULL LIMIT ?",
                (LONGEST_DEFINITION, LONGEST_DEFINITION, len(FILE_SCHEMA) + 1),
            ).fetchall()
            if _bare(tables) != _bare(FILE_SCHEMA.items()):
                raise InputError(f"{path} has other tables than export() writes; export it again.")
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise InputError(f"{path} is damaged ({shown(verdict)}); copy or export it again.")
            n_models, n_letters = connection.execute(
                "SELECT count(*), coalesce(sum(length(identity)), 0) FROM models"
            ).fetchone()
            if n_models > MOST_MODELS or n_letters > LETTERS_OF_MODELS:
                raise InputError(
                    f"{path} has vectors of {n_models:,} models, named with {n_letters:,} letters; at most "
                    f"{MOST_MODELS:,} are read, and {LETTERS_OF_MODELS:,} letters."
                )
            yield connection
    except (sqlite3.Error, UnicodeDecodeError, OSError) as error:
        raise InputError(
            f"{path} cannot be read, is damaged or no export ({error}); copy or export it again."
        ) from error


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
