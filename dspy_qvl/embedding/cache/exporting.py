"""Carries vectors from one machine to another, in one file.

`export` copies undamaged rows into a draft beside the target, and moves it into the target's place once it is whole.

`import_` trusts nothing in the file it is given, which may come from anyone. It opens the file as immutable; refuses
other tables than ours, and damaged ones; lets no row out of SQLite whose types and sizes are not those of a row; keeps
rows whose checksum matches and whose vector is as long as the model's others; and adds, some at a time, the new ones.
"""

import contextlib
import os
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dspy_qvl.embedding.cache import database
from dspy_qvl.embedding.cache.pruning import Layers, models_called
from dspy_qvl.embedding.cache.rows import Row, decode
from dspy_qvl.embedding.cache.sqlite_store import SQLiteStore
from dspy_qvl.errors import InputError, shown, warn
from dspy_qvl.state import checked_path, checked_target, replacing

ROWS_AT_ONCE = 1000  # in memory; fewer where their vectors come to
BYTES_AT_ONCE = 2**24
LONGEST_VECTOR = 2**20  # bytes that are read of a row of an imported file
LONGEST_IDENTITY = 2**16
MOST_MODELS, LETTERS_OF_MODELS = 10_000, 2**24  # whose identities are in memory together
LONGEST_DEFINITION = 2**16  # of a table

# Checked of an imported row before it leaves SQLite; the declared type of a column binds no one.
FROM_ROWS = (
    "FROM vectors NOT INDEXED WHERE "
    "typeof(key) = 'blob' AND length(key) = 16 AND typeof(model) = 'integer' AND typeof(created) = 'integer' "
    f"AND typeof(checksum) = 'integer' AND typeof(vector) = 'blob' AND length(vector) <= {LONGEST_VECTOR}"
)


def export(cache: Layers, path: str | os.PathLike[str], *, model: str | None = None) -> int:
    """Write vectors to one file that `import_` reads on another machine.

    The file is written whole or not at all; one that is there is replaced.

    Args:
        cache: the cache.
        path: the file to write.
        model: one of the names in `info().models`; None for all.

    Returns:
        How many vectors the file holds. Damaged ones are left out.

    Raises:
        InputError: there is no cache file here, an unknown model, or a path that cannot be written.
    """
    store, target = _on_disk(cache, "export()"), checked_target(path)
    if _same_file(target, store.path) or _is_cache(target):
        raise InputError(f"{target} is a cache, which an export would destroy; give another path.")
    chosen = models_called(store, model)
    try:
        with (
            replacing(target) as draft,
            contextlib.closing(database.make_file(draft, "DELETE")) as copy,
            database.transaction(copy),
        ):
            n_rows = store.attempt(_copy, copy, chosen, otherwise=None) if store.path.exists() else 0
            if n_rows is None:
                raise InputError(f"{store.path} could not be read, so nothing was exported; try again.")
    except (OSError, sqlite3.Error) as error:
        raise InputError(f"{target} cannot be written ({error}); give another path.") from error
    return n_rows


def import_(cache: Layers, path: str | os.PathLike[str]) -> int:
    """Add the vectors of a file that `export` wrote; rows that are here already stay as they are.

    The file is only read, and nothing in it is trusted but the meaning of its vectors: whoever made it decides what
    texts are worth here, so import only a file of someone you trust. Rows that are damaged, hold no finite direction,
    or have another length than the model's other vectors are left out with a warning.

    Args:
        cache: the cache.
        path: the file to read.

    Returns:
        How many vectors were added.

    Raises:
        InputError: there is no cache file here, no such file, or one that is damaged or no export; nothing is
            changed then.
    """
    store, source = _on_disk(cache, "import_()"), checked_path(path)
    if _same_file(source, store.path):
        raise InputError(f"{source} is this cache itself; give a file that export() wrote.")
    added = 0
    with _foreign(source) as connection:
        names: dict[int, str] = dict(
            connection.execute(
                "SELECT id, identity FROM models WHERE typeof(identity) = 'text' AND length(identity) <= ?",
                (LONGEST_IDENTITY,),
            )
        )
        sizes = _usual_sizes(connection)
        sizes.update(store.attempt(_known_sizes, names, otherwise=sizes))
        (n_skipped,) = connection.execute("SELECT count(*) FROM vectors NOT INDEXED").fetchone()
        for chunk in _chunks(connection.execute(f"SELECT model, key, created, checksum, vector {FROM_ROWS}")):
            rows = _usable(chunk, names, sizes)
            new = store.attempt(_add, rows, otherwise=None, writes=True)
            if new is None:
                warn(f"the import of {source} stopped, {store.path} cannot be written; import it again later.")
                return added
            added += new
            n_skipped -= sum(map(len, rows.values()))
    if n_skipped:
        warn(f"{n_skipped} vector(s) in {source} are damaged or of another length, and were left out.")
    return added


def _on_disk(cache: Layers, what: str) -> SQLiteStore:
    if cache.store is None:
        raise InputError(f"{what} needs vectors on disk, but these are in memory only; give a cache_dir.")
    return cache.store


def _is_cache(path: Path) -> bool:
    """True if a file is a cache, not an export: a journal lies beside it, or its header says that it is in WAL mode."""
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
    """Copy undamaged rows of some models into another file; returns how many."""
    n_rows = 0
    for number, identity in connection.execute("SELECT id, identity FROM models ORDER BY id").fetchall():
        if chosen is not None and number not in chosen:
            continue
        rows = connection.execute("SELECT key, created, checksum, vector FROM vectors WHERE model = ?", (number,))
        for chunk in _chunks(rows):
            undamaged = [row for row in chunk if decode(row[0], row[2], row[3]) is not None]
            try:
                n_rows += database.insert(copy, identity, undamaged)
            except sqlite3.Error as error:  # else this cache would be taken for the faulty one
                raise InputError(f"the export cannot be written ({error}); give another path.") from error
    return n_rows


def _chunks(rows: Iterable[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    """Group rows, whose last entry is an encoded vector, by what memory should hold at once."""
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
    """A read-only connection to a file of vectors from elsewhere, once its tables were checked.

    Raises:
        InputError: no such file, one in use, no file of vectors, a damaged one, or one of too many models.
    """
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no file" if path.exists() else "not there"
        raise InputError(f"path must be a file that export() wrote, but {path} is {kind}.")
    if any(database.bytes_at(f"{path}{end}") for end in ("-wal", "-journal")):
        raise InputError(f"{path} is a cache in use, so a copy of it may be torn; use export() to make a whole one.")
    try:
        # Frozen, so that SQLite makes no file beside it, takes none that lies there and waits for no lock.
        with contextlib.closing(database.connect(path, "mode=ro&immutable=1", 0.0)) as connection:
            for setting in ("trusted_schema = OFF", "query_only = ON", "cell_size_check = ON", "mmap_size = 0"):
                connection.execute(f"PRAGMA {setting}").fetchone()
            if connection.execute("PRAGMA application_id").fetchone() != (database.APPLICATION_ID,):
                raise InputError(f"{path} is a database, but not one that export() of this version wrote.")
            tables = connection.execute(
                "SELECT substr(name, 1, ?), substr(sql, 1, ?) FROM sqlite_master WHERE sql IS NOT NULL LIMIT ?",
                (LONGEST_DEFINITION, LONGEST_DEFINITION, len(database.FILE_SCHEMA) + 1),
            ).fetchall()
            if _bare(tables) != _bare(database.FILE_SCHEMA.items()):
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


def _usual_sizes(connection: sqlite3.Connection) -> dict[int, int]:
    """Columns of most vectors of each model, by its id in the file: a float16 row is a byte longer than 2 a column."""
    return dict(
        connection.execute(
            "SELECT model, CASE length(vector) % 2 WHEN 1 THEN length(vector) / 2 ELSE length(vector) / 4 END AS size "
            f"{FROM_ROWS} GROUP BY model, size ORDER BY count(*)"
        )
    )


def _known_sizes(connection: sqlite3.Connection, names: dict[int, str]) -> dict[int, int]:
    """Columns of the vectors of this cache, for models of an imported file by their ids there."""
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


def _usable(chunk: list[tuple[Any, ...]], names: dict[int, str], sizes: dict[int, int]) -> dict[str, list[Row]]:
    """The rows of an imported file that can be vectors of their model, by its identity."""
    usable: dict[str, list[Row]] = {}
    now = int(time.time())
    for model, key, created, told, blob in chunk:
        vector = decode(key, told, blob)
        if vector is None or model not in names or len(vector) != sizes.get(model) or created < 0:
            continue
        if np.isfinite(vector).all() and vector.any():
            usable.setdefault(names[model], []).append((key, min(created, now), told, blob))
    return usable


def _add(connection: sqlite3.Connection, rows: dict[str, list[Row]]) -> int:
    with database.transaction(connection):
        return sum(database.insert(connection, identity, some) for identity, some in rows.items())
