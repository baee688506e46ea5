"""The two layers of the cache: what is kept, what is shared, and what happens to a bad file."""

import multiprocessing
import os
import sqlite3
import threading
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dspy_qvl import QVLWarning
from dspy_qvl.embedding.cache.cache import EmbeddingCache
from dspy_qvl.embedding.cache.memory import MemoryCache
from dspy_qvl.embedding.cache.pruning import info
from dspy_qvl.embedding.cache.sqlite_store import SQLiteStore

KEYS = [bytes([i]) * 16 for i in range(20)]
VECTORS = np.random.default_rng(0).normal(size=(20, 33)).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "vectors.sqlite"


def test_vectors_come_back_bit_for_bit_and_read_only(path):
    store = SQLiteStore(path, "m")
    assert store.write(KEYS, VECTORS) == {}
    found = store.read([*KEYS, b"?" * 16])
    assert sorted(found) == KEYS
    for key, vector in zip(KEYS, VECTORS, strict=True):
        np.testing.assert_array_equal(found[key], vector)
        assert not found[key].flags.writeable


def test_the_first_stored_vector_of_a_text_is_its_vector(path):
    SQLiteStore(path, "m").write(KEYS[:2], VECTORS[:2])
    late = SQLiteStore(path, "m").write(KEYS[:4], VECTORS[10:14])
    np.testing.assert_array_equal(late[KEYS[0]], VECTORS[0])
    np.testing.assert_array_equal(late[KEYS[3]], VECTORS[13])


def test_the_file_is_written_ahead_in_large_pages(path):
    SQLiteStore(path, "m").write(KEYS, VECTORS)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA page_size").fetchone() == (32768,)
    assert [name for name in path.parent.iterdir() if name.suffix == ".new"] == []


def test_keys_of_two_models_differ():
    one, other = EmbeddingCache("a", None), EmbeddingCache("b", None)
    assert one.key("text") != other.key("text")
    assert one.key("text") == EmbeddingCache("a", None).key("text")


def test_info_counts_the_rows_of_each_model(path):
    store = SQLiteStore(path, "m")
    assert info(store).models == ()
    store.write(KEYS[:5], VECTORS[:5])
    SQLiteStore(path, "other").write(KEYS[5:], VECTORS[5:])
    told = info(store)
    assert [(model.model, model.rows, model.bytes) for model in told.models] == [
        ("m", 5, 5 * 33 * 4),
        ("other", 15, 15 * 33 * 4),
    ]
    assert (told.rows, told.path) == (20, path)


def test_many_threads_write_and_read_at_once(path):
    store = SQLiteStore(path, "m")

    def work(worker: int) -> int:
        for row in np.random.default_rng(worker).permutation(20):
            store.write([KEYS[row]], VECTORS[row : row + 1])
            np.testing.assert_array_equal(store.read([KEYS[row]])[KEYS[row]], VECTORS[row])
        return worker

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(work, range(8))) == list(range(8))
    assert info(store).rows == 20


def _write_some(path: Path, worker: int) -> None:
    rng = np.random.default_rng(worker)
    store = SQLiteStore(path, "m")
    for number in range(50):
        key = bytes([worker, number]) * 8
        store.write([key, bytes([255, number]) * 8], rng.normal(size=(2, 8)).astype(np.float32))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_that_begin_one_file_together_lose_nothing(path, method):
    context = multiprocessing.get_context(method)
    workers = [context.Process(target=_write_some, args=(path, worker)) for worker in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert info(SQLiteStore(path, "m")).rows == 3 * 50 + 50


def test_a_connection_is_not_carried_across_a_fork(path):
    store = SQLiteStore(path, "m")
    store.write(KEYS[:1], VECTORS[:1])
    child = multiprocessing.get_context("fork").Process(target=lambda: store.write(KEYS[1:2], VECTORS[1:2]))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert set(store.read(KEYS)) == set(KEYS[:2])


@pytest.mark.parametrize("content", [b"not a database at all, but long enough to have a header" * 50, b"", b"SQLite"])
def test_a_damaged_file_is_set_aside_with_a_warning(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    store = SQLiteStore(path, "m")
    with pytest.warns(QVLWarning, match="set aside as .*damaged-1 and a new cache was begun"):
        assert store.read(KEYS) == {}
    assert (path.parent / "vectors.sqlite.damaged-1").read_bytes() == content
    store.write(KEYS, VECTORS)
    assert len(SQLiteStore(path, "m").read(KEYS)) == 20


def test_somebody_elses_database_is_left_whole(path):
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE precious(value)")
        connection.execute("INSERT INTO precious VALUES (42)")
    connection.close()
    with pytest.warns(QVLWarning, match="not a vector cache of this version"):
        SQLiteStore(path, "m").write(KEYS, VECTORS)
    kept = sqlite3.connect(path.with_name("vectors.sqlite.damaged-1"))
    assert kept.execute("SELECT value FROM precious").fetchall() == [(42,)]
    assert len(SQLiteStore(path, "m").read(KEYS)) == 20


def test_a_file_damaged_in_the_middle_never_gives_a_wrong_vector(path):
    SQLiteStore(path, "m").write(KEYS, VECTORS)
    sound = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(40):
        broken = bytearray(sound)
        for position in rng.integers(0, len(sound), 200):
            broken[position] ^= int(rng.integers(1, 256))
        for leftover in path.parent.iterdir():
            leftover.unlink()
        path.write_bytes(broken)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", QVLWarning)
            store = SQLiteStore(path, "m")
            found = store.read(KEYS)
            store.write(KEYS, VECTORS)
            after = store.read(KEYS)
        for key, vector in [*found.items(), *after.items()]:
            np.testing.assert_array_equal(vector, VECTORS[KEYS.index(key)])


def test_one_flipped_byte_of_a_vector_makes_it_a_miss(path):
    SQLiteStore(path, "m").write(KEYS, VECTORS)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE vectors SET vector = ? WHERE key = ?", (VECTORS[1].tobytes(), KEYS[0]))
    connection.close()
    store = SQLiteStore(path, "m")
    with pytest.warns(QVLWarning, match=r"1 damaged vector\(s\) .* were dropped"):
        assert set(store.read(KEYS)) == set(KEYS[1:])
    store.write(KEYS[:1], VECTORS[:1])
    np.testing.assert_array_equal(store.read(KEYS[:1])[KEYS[0]], VECTORS[0])


def _read_only_write(folder: Path) -> None:
    os.chdir(folder)
    if os.geteuid() == 0:
        os.seteuid(65534)  # root may write anywhere
    store = SQLiteStore(Path("vectors.sqlite"), "m")
    with pytest.warns(QVLWarning, match="kept in memory only"):
        store.write(KEYS, VECTORS)
    store.write(KEYS, VECTORS)  # silently: a second warning would be an error here
    assert store.read(KEYS) == {}


def test_a_folder_that_cannot_be_written_degrades_to_memory_with_one_warning(tmp_path):
    folder = tmp_path / "sealed"
    folder.mkdir()
    folder.chmod(0o555)
    child = multiprocessing.get_context("fork").Process(target=_read_only_write, args=(folder,))
    child.start()
    child.join(60)
    folder.chmod(0o755)
    assert child.exitcode == 0


def test_a_deleted_file_is_begun_anew(path):
    store = SQLiteStore(path, "m")
    store.write(KEYS, VECTORS)
    for leftover in path.parent.iterdir():
        leftover.unlink()
    assert store.read(KEYS) == {}
    store.write(KEYS[:3], VECTORS[:3])
    assert set(store.read(KEYS)) == set(KEYS[:3])


def test_memory_is_bounded_and_the_least_recently_used_leave_first():
    memory = MemoryCache(max_bytes=5 * (VECTORS[0].nbytes + MemoryCache.ENTRY_BYTES))
    for key, vector in zip(KEYS, VECTORS, strict=True):
        memory.put(key, vector)
        memory.get(KEYS[0])
    assert len(memory) == 5
    assert memory.get(KEYS[0]) is not None
    assert memory.get(KEYS[1]) is None
    assert memory.get(KEYS[19]) is not None


def test_memory_counts_what_short_vectors_really_take():
    memory = MemoryCache(max_bytes=2**20)
    tracemalloc.start()
    for number in range(20_000):
        memory.put(number.to_bytes(16, "big"), VECTORS[0][:1])
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 2**19 < taken < 1.5 * 2**20


def test_memory_keeps_the_first_vector_and_hands_out_read_only_ones():
    memory = MemoryCache(max_bytes=10**6)
    mine = VECTORS[0].copy()
    memory.put(KEYS[0], mine)
    mine[:] = 0
    kept = memory.put(KEYS[0], VECTORS[5])
    np.testing.assert_array_equal(kept, VECTORS[0])
    with pytest.raises(ValueError, match="read-only"):
        kept[0] = 1.0


def test_memory_under_threads_stays_within_its_bound():
    memory = MemoryCache(max_bytes=4 * (VECTORS[0].nbytes + MemoryCache.ENTRY_BYTES))
    barrier = threading.Barrier(8)

    def work(worker: int) -> None:
        barrier.wait()
        for row in np.random.default_rng(worker).integers(0, 20, 500):
            kept = memory.put(KEYS[row], VECTORS[row])
            np.testing.assert_array_equal(kept, VECTORS[row])
            memory.get(KEYS[(row + 1) % 20])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(memory) == 4
    memory.clear()
    assert len(memory) == 0
