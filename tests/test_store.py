"""The file of vectors under kills, forks, full disks and crowds, and its float16 rows."""

import gc
import hashlib
import multiprocessing
import os
import random
import re
import resource
import signal
import sqlite3
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_int64
from multiprocessing.sharedctypes import RawValue
from pathlib import Path

import numpy as np
import pytest

from dspy_qvl import QVLWarning
from dspy_qvl.embedding.cache.pruning import info
from dspy_qvl.embedding.cache.sqlite_store import SQLiteStore

FORK = multiprocessing.get_context("fork")
N_KILLED, N_KILLS, BATCH = 20_000, 20, 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vectors.sqlite"


def keys(numbers: range, mark: bytes = b"") -> list[bytes]:
    return [hashlib.blake2b(mark + number.to_bytes(8, "big"), digest_size=16).digest() for number in numbers]


def vectors(n: int, size: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, size)).astype(np.float32)


def finish(target: Callable[..., None], *args: object) -> None:
    """Run in a forked process, where warnings are errors as they are here."""
    child = FORK.Process(target=target, args=args)
    child.start()
    child.join(120)
    assert child.exitcode == 0


def rows_of(path: Path) -> int:
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    (n_rows,) = connection.execute("SELECT count(*) FROM vectors").fetchone()
    connection.close()
    return n_rows


# Kills


def _embed_what_is_missing(path: Path, names: list[bytes], all_vectors: np.ndarray, n_embedded: c_int64) -> None:
    store = SQLiteStore(path, "m")
    for start in range(0, N_KILLED, BATCH):
        stored = store.read(names[start : start + BATCH])
        missing = [row for row in range(start, min(start + BATCH, N_KILLED)) if names[row] not in stored]
        if missing:
            n_embedded.value += len(missing)
            store.write([names[row] for row in missing], all_vectors[missing])


def test_twenty_kills_lose_no_vector_and_pay_for_at_most_one_batch_each(path):
    names, all_vectors, n_embedded = keys(range(N_KILLED)), vectors(N_KILLED), RawValue(c_int64, 0)
    rng = random.Random(0)
    moments = sorted(rng.sample(range(BATCH, N_KILLED), N_KILLS))
    n_killed = 0
    for moment in [*moments, None]:
        child = FORK.Process(target=_embed_what_is_missing, args=(path, names, all_vectors, n_embedded))
        child.start()
        if moment is not None:
            while n_embedded.value < moment and child.is_alive():
                time.sleep(1e-4)
            time.sleep(rng.random() * 1e-3)
            os.kill(child.pid, signal.SIGKILL)
            child.join(60)
            n_killed += child.exitcode == -signal.SIGKILL
        else:
            child.join(60)
            assert child.exitcode == 0
    assert n_killed == N_KILLS
    assert N_KILLED <= n_embedded.value <= N_KILLED + n_killed * BATCH
    found = SQLiteStore(path, "m").read(names)
    np.testing.assert_array_equal(np.stack([found[key] for key in names]), all_vectors)
    assert rows_of(path) == N_KILLED


# Crowds and forks


def _write_with_eight_threads(path: Path, process: int) -> None:
    warnings.simplefilter("error")  # a spawned process has no filters of pytest's
    store = SQLiteStore(path, "m")
    own, shared = vectors(400, seed=1 + process), vectors(100)
    own_keys, shared_keys = keys(range(400), bytes([process])), keys(range(100), b"shared")

    def work(thread: int) -> None:
        rows = range(thread * 50, thread * 50 + 50)
        for start in range(rows.start, rows.stop, 5):
            store.write(own_keys[start : start + 5], own[start : start + 5])
            row = start % 100
            store.write([shared_keys[row]], shared[row : row + 1])
            np.testing.assert_array_equal(store.read([own_keys[start]])[own_keys[start]], own[start])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_two_processes_of_eight_threads_lose_no_row_and_meet_no_lock(path, method):
    context = multiprocessing.get_context(method)
    workers = [context.Process(target=_write_with_eight_threads, args=(path, number)) for number in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    store = SQLiteStore(path, "m")
    for process in range(2):
        found = store.read(keys(range(400), bytes([process])))
        expected = vectors(400, seed=1 + process)
        for row, key in enumerate(keys(range(400), bytes([process]))):
            np.testing.assert_array_equal(found[key], expected[row])
    assert rows_of(path) == 2 * 400 + 20  # every fifth of the shared ones


def _write_before_and_after(path: Path, closed: threading.Event) -> None:
    store, some = SQLiteStore(path, "m"), vectors(20)
    store.write(keys(range(10)), some[:10])
    assert closed.wait(60)
    store.write(keys(range(10, 20)), some[10:])
    os._exit(0)  # as multiprocessing ends a child: nothing is closed in order


def test_rows_written_after_a_fork_survive_the_parent_closing_the_file(path):
    store = SQLiteStore(path, "m")
    store.write(keys(range(1), b"parent"), vectors(1))
    closed = FORK.Event()
    child = FORK.Process(target=_write_before_and_after, args=(path, closed))
    child.start()
    while len(SQLiteStore(path, "m").read(keys(range(10)))) < 10:
        time.sleep(0.01)
    del store
    gc.collect()
    closed.set()
    child.join(60)
    assert child.exitcode == 0
    assert len(SQLiteStore(path, "m").read(keys(range(20)))) == 20


def test_a_fork_while_threads_write_leaves_both_sides_at_work(path):
    store, some = SQLiteStore(path, "m"), vectors(200)
    names = [keys(range(200), bytes([thread])) for thread in range(4)]
    threads = [
        threading.Thread(target=lambda own=own: [store.write([own[i]], some[i : i + 1]) for i in range(200)])
        for own in names
    ]
    for thread in threads:
        thread.start()
    for number in range(5):
        finish(lambda mark: store.write(keys(range(20), mark), some[:20]), bytes([100 + number]))
    for thread in threads:
        thread.join()
    assert rows_of(path) == 4 * 200 + 5 * 20


# Writing fails, reading goes on


def _fill_the_disk(path: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store, some = SQLiteStore(path, "m"), vectors(500, 1024)
    store.write(keys(range(100)), some[:100])
    largest = max(file.stat().st_size for file in path.parent.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest + 2**18, resource.RLIM_INFINITY))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for row in range(100, 500, 20):
            assert store.write(keys(range(row, row + 20)), some[row : row + 20]) == {}
    assert [one.category for one in said] == [QVLWarning]
    assert re.search("cannot be written .* kept in memory only", str(said[0].message))
    assert len(store.read(keys(range(100)))) == 100
    with ThreadPoolExecutor(1) as pool:  # a thread that has no connection yet
        assert len(pool.submit(store.read, keys(range(100))).result()) == 100
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    before = rows_of(path)
    store.write(keys(range(480, 500)), some[480:])
    assert rows_of(path) == before  # not tried again so soon
    store.RETRY_SECONDS = 0.0
    store._paused_until[True] = time.monotonic()
    store.write(keys(range(480, 500)), some[480:])
    assert rows_of(path) == before + 20


def test_a_full_disk_ends_writing_for_a_while_but_not_reading(path):
    finish(_fill_the_disk, path)
    store = SQLiteStore(path, "m")
    found = store.read(keys(range(500)))
    assert len(found) == rows_of(path)
    for row, key in enumerate(keys(range(500))):
        if key in found:
            np.testing.assert_array_equal(found[key], vectors(500, 1024)[row])


def test_a_lock_that_is_never_released_ends_writing_but_not_reading(path):
    store = SQLiteStore(path, "m")
    store.LOCK_SECONDS = 0.1
    store.write(keys(range(5)), vectors(5))
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.warns(QVLWarning, match=r"cannot be written \(database is locked\)"):
        store.write(keys(range(5, 10)), vectors(5))
    start = time.monotonic()
    store.write(keys(range(10, 15)), vectors(5))
    assert time.monotonic() - start < 0.09  # the lock is not waited for again
    assert len(store.read(keys(range(15)))) == 5
    holder.close()


def test_a_write_that_failed_is_tried_again_later_and_quietly(path):
    store = SQLiteStore(path, "m")
    store.LOCK_SECONDS, store.RETRY_SECONDS = 0.05, 0.2
    store.write(keys(range(1)), vectors(1))
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.warns(QVLWarning, match="cannot be written"):
        store.write(keys(range(1, 2)), vectors(1))
    time.sleep(0.25)
    store.write(keys(range(1, 2)), vectors(1))  # fails again: a second warning would be an error here
    holder.execute("ROLLBACK")
    time.sleep(0.25)
    store.write(keys(range(1, 2)), vectors(1))
    assert set(store.read(keys(range(2)))) == set(keys(range(2)))
    holder.close()


def _use_a_sealed_folder(path: Path) -> None:
    if os.geteuid() == 0:
        os.seteuid(65534)  # root may write anywhere
    store = SQLiteStore(path, "m")
    assert len(store.read(keys(range(5)))) == 5
    with pytest.warns(QVLWarning, match="cannot be written"):
        store.write(keys(range(5, 10)), vectors(5))
    store.write(keys(range(5, 10)), vectors(5))
    assert set(store.read(keys(range(10)))) == set(keys(range(5)))
    assert info(store).rows == 5


@pytest.fixture
def open_to_others(tmp_path: Path) -> Iterator[Path]:
    """`tmp_path`, which a process that is no longer root can still enter."""
    closed = {}
    for parent in [tmp_path, *tmp_path.parents] if os.geteuid() == 0 else []:
        mode = parent.stat().st_mode
        if mode & 0o011 != 0o011:
            closed[parent] = mode
            parent.chmod(mode | 0o011)
    yield tmp_path
    for parent, mode in closed.items():
        parent.chmod(mode)


def test_a_file_in_a_folder_that_cannot_be_written_is_still_read(open_to_others):
    folder = open_to_others / "sealed"
    folder.mkdir()
    store = SQLiteStore(folder / "vectors.sqlite", "m")
    store.write(keys(range(5)), vectors(5))
    del store
    gc.collect()
    (folder / "vectors.sqlite").chmod(0o444)
    folder.chmod(0o555)
    try:
        finish(_use_a_sealed_folder, folder / "vectors.sqlite")
    finally:
        folder.chmod(0o755)


def test_a_single_read_leaves_no_view_of_the_file_open(path):
    store = SQLiteStore(path, "m")
    store.write(keys(range(9)), vectors(9))
    assert store.read(keys(range(1))).keys() == set(keys(range(1)))
    assert store.read(keys(range(1), b"missing")) == {}
    SQLiteStore(path, "m").write(keys(range(9, 18)), vectors(9))
    other = sqlite3.connect(path)
    assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0  # nobody was in the way
    other.close()
    assert len(store.read(keys(range(18)))) == 18


# float16


def test_a_float16_row_is_one_mark_and_two_bytes_a_column(path):
    some = vectors(7, 33)
    SQLiteStore(path, "m", half=True).write(keys(range(7)), some)
    with sqlite3.connect(path) as connection:
        blobs = dict(connection.execute("SELECT key, vector FROM vectors"))
    connection.close()
    for key, row in zip(keys(range(7)), some, strict=True):
        assert blobs[key] == b"h" + row.astype("<f2").tobytes()


def test_what_a_float16_write_tells_is_what_is_read_later(path):
    some = vectors(30, 1024)
    store = SQLiteStore(path, "m", half=True)
    told = store.write(keys(range(20)), some[:20])
    late = SQLiteStore(path, "m", half=True).write(keys(range(10, 30)), vectors(20, 1024, seed=9))
    read = SQLiteStore(path, "m").read(keys(range(30)))
    assert set(told) | set(late) == set(read)
    for key, vector in {**told, **late}.items():
        np.testing.assert_array_equal(vector, read[key])
        assert vector.dtype == np.float32
        assert not vector.flags.writeable
    np.testing.assert_array_equal(told[keys(range(1))[0]], some[0].astype(np.float16).astype(np.float32))


def test_rows_of_both_kinds_are_read_whatever_the_setting(path):
    some = vectors(10)
    SQLiteStore(path, "m").write(keys(range(5)), some[:5])
    SQLiteStore(path, "m", half=True).write(keys(range(5, 10)), some[5:])
    for half in (False, True):
        found = SQLiteStore(path, "m", half=half).read(keys(range(10)))
        for row, key in enumerate(keys(range(10))):
            expected = some[row] if row < 5 else some[row].astype(np.float16).astype(np.float32)
            np.testing.assert_array_equal(found[key], expected)


@pytest.mark.parametrize("scale", [1e5, 1e30, 1e-6, 1e-9, 1e-30])
def test_a_vector_that_float16_cannot_hold_is_stored_as_float32(path, scale):
    some = vectors(3)
    some[1] *= scale
    store = SQLiteStore(path, "m", half=True)
    told = store.write(keys(range(3)), some)
    found = store.read(keys(range(3)))
    for row, key in enumerate(keys(range(3))):
        np.testing.assert_array_equal(found[key], told[key])
        expected = some[row] if row == 1 else some[row].astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(found[key], expected)


def test_a_full_disk_still_tells_the_rounded_vectors(path):
    store = SQLiteStore(path, "m", half=True)
    store.LOCK_SECONDS = 0.05
    store.write(keys(range(1)), vectors(1))
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.warns(QVLWarning, match="cannot be written"):
        told = store.write(keys(range(1, 3)), vectors(2))
    holder.close()
    for key, row in zip(keys(range(1, 3)), vectors(2), strict=True):
        np.testing.assert_array_equal(told[key], row.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("blob", [b"", b"h", b"x" + b"\0" * 8, b"h" + b"\1" * 9, b"ab"])
def test_a_row_of_no_known_kind_is_a_miss(path, blob):
    store = SQLiteStore(path, "m")
    (key,) = keys(range(1))
    store.write([key], vectors(1))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE vectors SET vector = ?, checksum = ?", (blob, zlib.crc32(blob, zlib.crc32(key))))
    connection.close()
    with pytest.warns(QVLWarning, match=r"1 damaged vector\(s\)"):
        assert store.read([key]) == {}
