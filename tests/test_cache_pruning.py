"""What is in the file of vectors, what may leave it, and how it goes from one machine to another."""

import json
import multiprocessing
import os
import resource
import signal
import sqlite3
import time
import warnings
import zlib
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest

from dspy_qvl import InputError, QVLWarning
from dspy_qvl.embedding.cache.cache import EmbeddingCache
from dspy_qvl.embedding.cache.pruning import Pruned
from dspy_qvl.embedding.cache.sqlite_store import SQLiteStore

SIZE = 16
DAY = 86400
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vectors.sqlite"


def cache(path: Path | None, model: str = "A", **settings: str) -> EmbeddingCache:
    storage = settings.pop("storage", "float32")
    return EmbeddingCache(json.dumps({"model": model, **settings}, sort_keys=True), path, storage=storage)


def fill(cache: EmbeddingCache, n: int, *, start: int = 0, size: int = SIZE, days_ago: float = 0) -> list[bytes]:
    """Store vectors of texts "start", "start + 1", ... as if some days ago."""
    keys = [cache.key(str(number)) for number in range(start, start + n)]
    cache.store.write(keys, vectors_of(n, start, size))
    if days_ago:
        with sqlite3.connect(cache.store.path) as connection:
            connection.executemany(
                "UPDATE vectors SET created = ? WHERE key = ?", [(int(time.time() - days_ago * DAY), k) for k in keys]
            )
        connection.close()
    return keys


def vectors_of(n: int, start: int = 0, size: int = SIZE) -> np.ndarray:
    rows = [np.random.default_rng(number).normal(size=size) for number in range(start, start + n)]
    return np.stack(rows).astype(np.float32)


def change(path: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(statement, values)
    connection.close()


def row(key: bytes, vector: np.ndarray | bytes) -> tuple[bytes, int, bytes]:
    blob = vector if isinstance(vector, bytes) else vector.astype("<f4").tobytes()
    return key, zlib.crc32(blob, zlib.crc32(key)), blob


# info


def test_info_tells_every_models_share_of_the_file(path):
    a, b = cache(path, "A", endpoint="https://one"), cache(path, "B", storage="float16")
    fill(a, 5, days_ago=3)
    fill(a, 5, start=5)
    fill(b, 20)
    info = a.info()
    assert info == b.info()
    assert (info.rows, info.bytes, info.path) == (30, 10 * SIZE * 4 + 20 * (SIZE * 2 + 1), path)
    assert info.file_bytes == sum(os.stat(f"{path}{end}").st_size for end in ("", "-wal"))
    assert [(model.model, model.rows, model.bytes) for model in info.models] == [
        ("A", 10, 10 * SIZE * 4),
        ("B", 20, 20 * (SIZE * 2 + 1)),
    ]
    assert info.models[0].identity == {"model": "A", "endpoint": "https://one"}
    now = datetime.now(timezone.utc)
    assert timedelta(days=2.9) < now - info.models[0].oldest < timedelta(days=3.1)
    assert timedelta(0) <= now - info.models[0].newest < timedelta(minutes=1)


@pytest.mark.parametrize("identity", ["plain", "[1, 2]", '{"name": "x"}', '{"model": 7}', "{", "", "9" * 5000])
def test_an_identity_without_a_models_name_is_its_own_label(path, identity):
    one = EmbeddingCache(identity, path)
    fill(one, 1)
    (model,) = one.info().models
    assert model.model == identity
    assert model.identity == (json.loads(identity) if identity.endswith("}") else {})


def test_info_without_a_file_is_empty(path):
    assert cache(path).info().models == ()
    assert (cache(path).info().rows, cache(path).info().file_bytes, cache(path).info().path) == (0, 0, path)
    assert cache(None).info().path is None
    assert not path.exists()


def test_a_time_that_is_none_is_not_told(path):
    one = cache(path)
    fill(one, 2)
    change(path, "UPDATE vectors SET created = ?", 2**62)
    (model,) = one.info().models
    assert (model.rows, model.oldest, model.newest) == (2, None, None)


@pytest.mark.parametrize("storage", ["float64", "half", "", None, 16, ["float16"]])
def test_another_storage_is_refused(path, storage):
    with pytest.raises(InputError, match='storage must be "float32" or "float16", but got'):
        EmbeddingCache("m", path, storage=storage)


# prune


def test_prune_by_model_removes_all_of_it_and_nothing_else(path):
    a, b = cache(path, "A"), cache(path, "B")
    keys_a, keys_b = fill(a, 30), fill(b, 20)
    assert a.prune(model="A") == Pruned(30, 30 * SIZE * 4)
    assert a.store.read(keys_a) == {}
    assert len(b.store.read(keys_b)) == 20
    assert [model.model for model in a.info().models] == ["B"]
    fill(a, 3)
    assert [(model.model, model.rows) for model in a.info().models] == [("B", 20), ("A", 3)]


@pytest.mark.parametrize("age", [timedelta(days=5), 5, 5.0, np.float64(5)])
def test_prune_by_age_removes_what_is_older(path, age):
    one = cache(path)
    old, young = fill(one, 10, days_ago=6), fill(one, 7, start=10, days_ago=4)
    assert one.prune(older_than=age).rows == 10
    assert one.store.read(old) == {}
    assert len(one.store.read(young)) == 7


def test_rows_dated_in_the_future_count_as_stored_when_prune_first_meets_them(path):
    a, b = cache(path, "A"), cache(path, "B")
    ahead, soon, old = fill(a, 4), fill(a, 3, start=4, days_ago=-0.9), fill(a, 2, start=7, days_ago=40)
    fill(b, 5)
    change(path, "UPDATE vectors SET created = ? WHERE model = 2", int(time.time()) + 9 * DAY)
    for number, key in enumerate(ahead):
        change(path, "UPDATE vectors SET created = ? WHERE key = ?", ["soon", 2**62, 2**40, b"x"][number], key)
    with pytest.warns(
        QVLWarning, match=r"4 vector\(s\) in the cache were dated in the future, by a clock that was wrong"
    ):
        assert a.prune(older_than=30, model="A").rows == len(old)
    (of_a, of_b) = a.info().models
    assert (of_a.rows, of_b.rows) == (7, 5)
    assert timedelta(days=-1) < datetime.now(timezone.utc) - of_a.newest < timedelta(minutes=1)
    assert of_b.newest > datetime.now(timezone.utc) + timedelta(days=8)  # prune was not asked about these
    assert a.prune(older_than=30, model="A").rows == 0  # no warning again
    change(path, "UPDATE vectors SET created = created - ? WHERE model = 1", DAY * 61 // 2)  # a month later
    assert a.prune(older_than=30, model="A").rows == len(ahead)
    assert set(a.store.read(ahead + soon)) == set(soon)


def test_prune_by_size_removes_the_oldest_until_the_rest_is_small_enough(path):
    one = cache(path)
    young, old = fill(one, 10), fill(one, 10, start=10, days_ago=2)
    assert one.prune(max_bytes=13 * SIZE * 4 + 3) == Pruned(7, 7 * SIZE * 4)
    assert set(one.store.read(old)) == set(old[7:])  # of one age, the first that came
    assert len(one.store.read(young)) == 10
    assert one.info().bytes == 13 * SIZE * 4
    assert one.prune(max_bytes=10**30) == Pruned(0, 0)
    assert one.prune(older_than=1e300) == Pruned(0, 0)
    assert one.prune(max_bytes=0).rows == 13
    assert one.info().models == ()


def test_all_conditions_of_prune_hold_together(path):
    a, b = cache(path, "A"), cache(path, "B")
    old, _ = fill(a, 10, days_ago=9), fill(a, 10, start=10)
    fill(b, 10, days_ago=9)
    assert a.prune(model="A", older_than=5, max_bytes=4 * SIZE * 4).rows == 6
    assert set(a.store.read(old)) == set(old[6:])
    assert [model.rows for model in a.info().models] == [14, 10]


def test_prune_forgets_in_memory_what_left_the_disk_and_nothing_else(path):
    one = cache(path)
    old, young = fill(one, 4, days_ago=3), fill(one, 4, start=4)
    for key, vector in zip(old + young, vectors_of(8), strict=True):
        one.memory.put(key, vector)
    one.prune(older_than=1)
    assert [str(number) in one for number in range(8)] == [False] * 4 + [True] * 4
    one.memory.clear()
    assert len(one) == 0


def test_prune_gives_the_space_back_to_the_disk(path):
    one = cache(path)
    fill(one, 4000, size=512)
    before = one.info().file_bytes
    one.prune(max_bytes=100 * 512 * 4)
    assert one.info().file_bytes < before / 10
    assert len(one.store.read([one.key(str(number)) for number in range(4000)])) == 100


def test_prune_removes_many_rows_in_several_transactions(path):
    one = cache(path)
    fill(one, 3500, size=4)
    assert one.prune(max_bytes=40 * 16) == Pruned(3460, 3460 * 16)
    assert one.info().rows == 40


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({}, r"prune\(\) would remove every vector; give max_bytes, older_than or model"),
        ({"max_bytes": -1}, "max_bytes must be a whole number of at least 0, but got -1"),
        ({"max_bytes": 1.5}, "max_bytes must be a whole number of at least 0"),
        ({"max_bytes": True}, "max_bytes must be a whole number of at least 0"),
        ({"older_than": 0}, "older_than must be above 0 days, but got 0"),
        ({"older_than": timedelta(days=-1)}, "older_than must be above 0 days, but got -1"),
        ({"older_than": "5"}, "older_than must be a number, but got str"),
        ({"older_than": float("nan")}, "older_than must be finite"),
        ({"model": "C"}, "model 'C' has no vectors on disk; there is 'A', 'B'"),
        ({"model": "C", "max_bytes": 1}, "model 'C' has no vectors on disk"),
    ],
)
def test_prune_refuses_what_it_cannot_do_and_removes_nothing(path, conditions, message):
    a, b = cache(path, "A"), cache(path, "B")
    fill(a, 2)
    fill(b, 2)
    with pytest.raises(InputError, match=message):
        a.prune(**conditions)
    assert a.info().rows == 4


def test_prune_without_a_file_removes_nothing(path):
    assert cache(path).prune(older_than=1).rows == 0
    assert cache(None).prune(max_bytes=1).rows == 0
    with pytest.raises(InputError, match="model 'A' has no vectors on disk; there is no model at all"):
        cache(path).prune(model="A")


def test_a_prune_that_meets_a_lock_says_so_and_keeps_the_cache_in_use(path):
    one = cache(path)
    one.store.LOCK_SECONDS = 0.05
    keys = fill(one, 5)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.warns(QVLWarning, match=r"could not be pruned further \(database is locked\); 0 vectors were removed"):
        assert one.prune(max_bytes=0).rows == 0
    holder.close()
    assert len(one.store.read(keys)) == 5
    assert one.prune(max_bytes=0).rows == 5


def test_a_reader_with_an_old_view_does_not_stop_a_prune(path):
    one = cache(path)
    fill(one, 50)
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM vectors").fetchone() == (50,)
    assert one.prune(max_bytes=0).rows == 50
    assert reader.execute("SELECT count(*) FROM vectors").fetchone() == (50,)
    reader.close()


def _write_and_read(path: Path, stop: multiprocessing.Event, begun: multiprocessing.Event) -> None:
    one = cache(path)
    number = 1000
    while not stop.is_set():
        keys = fill(one, 20, start=number)
        found = one.store.read(keys)
        expected = vectors_of(20, number)
        for key, vector in found.items():
            np.testing.assert_array_equal(vector, expected[keys.index(key)])
        number += 20
        begun.set()
    assert number > 1020


def test_a_process_that_writes_and_reads_survives_prunes(path):
    one = cache(path)
    stop, begun = FORK.Event(), FORK.Event()
    worker = FORK.Process(target=_write_and_read, args=(path, stop, begun))
    worker.start()
    assert begun.wait(30)
    for number in range(8):
        fill(one, 400, start=100_000 + 400 * number, days_ago=2)
        assert one.prune(older_than=1).rows == 400
        assert one.prune(max_bytes=10 * SIZE * 4).rows >= 0
    stop.set()
    worker.join(60)
    assert worker.exitcode == 0
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


# export and import


def test_an_export_is_one_file_that_another_machine_imports_bit_for_bit(path, tmp_path):
    a, b = cache(path, "A"), cache(path, "B", storage="float16")
    keys_a, keys_b = fill(a, 1500, days_ago=3), fill(b, 700)
    out = tmp_path / "out.sqlite"
    assert a.export(out) == 2200
    assert sorted(file.name for file in tmp_path.glob("out*")) == ["out.sqlite"]
    connection = sqlite3.connect(out)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    connection.close()
    elsewhere = cache(tmp_path / "elsewhere" / "vectors.sqlite", "C")
    assert elsewhere.import_(out) == 2200
    assert elsewhere.info().models == a.info().models
    there, here = elsewhere.store.read(keys_a + keys_b), a.store.read(keys_a + keys_b)
    for key, vector in here.items():
        np.testing.assert_array_equal(there[key], vector)
    assert sorted(file.name for file in tmp_path.glob("out*")) == ["out.sqlite"]
    assert elsewhere.import_(str(out)) == 0


def test_export_of_one_model_holds_only_its_vectors(path, tmp_path):
    a, b = cache(path, "A"), cache(path, "B")
    fill(a, 5)
    keys = fill(b, 3)
    assert a.export(tmp_path / "b.sqlite", model="B") == 3
    elsewhere = cache(tmp_path / "other.sqlite", "B")
    assert elsewhere.import_(tmp_path / "b.sqlite") == 3
    assert set(elsewhere.store.read(keys)) == set(keys)
    assert [model.model for model in elsewhere.info().models] == ["B"]


def test_an_export_replaces_an_older_one(path, tmp_path):
    one, out = cache(path), tmp_path / "out.sqlite"
    fill(one, 3)
    assert one.export(out) == 3
    fill(one, 3, start=3)
    assert one.export(out) == 6
    assert cache(tmp_path / "other.sqlite").import_(out) == 6


def test_an_export_of_nothing_is_a_file_without_vectors(path, tmp_path):
    assert cache(path).export(tmp_path / "out.sqlite") == 0
    assert cache(tmp_path / "other.sqlite").import_(tmp_path / "out.sqlite") == 0


def test_export_leaves_damaged_rows_out(path, tmp_path):
    one = cache(path)
    keys = fill(one, 5)
    change(path, "UPDATE vectors SET checksum = checksum + 1 WHERE key = ?", keys[2])
    assert one.export(tmp_path / "out.sqlite") == 4


def test_export_refuses_the_live_cache_and_any_cache_in_use(path, tmp_path):
    one, other = cache(path), cache(tmp_path / "theirs.sqlite")
    fill(one, 3)
    fill(other, 3)
    link = tmp_path / "link.sqlite"
    link.symlink_to(path)
    for target in (path, path.parent / "." / path.name, link, other.store.path):
        with pytest.raises(InputError, match="is a cache, which an export would destroy"):
            one.export(target)
    assert (one.info().rows, other.info().rows) == (3, 3)
    with pytest.raises(InputError, match="is a cache, which an export would destroy"):
        cache(tmp_path / "not-yet.sqlite").export(tmp_path / "not-yet.sqlite")


def test_export_refuses_what_it_cannot_write(path, tmp_path):
    one = cache(path)
    fill(one, 3)
    with pytest.raises(InputError, match="is a folder; give the path of a file"):
        one.export(tmp_path)
    with pytest.raises(InputError, match=r"cannot be written \(unable to open database file\)"):
        one.export(tmp_path / "missing" / "out.sqlite")
    with pytest.raises(InputError, match="path must be a string or a path, but got int: 3"):
        one.export(3)
    with pytest.raises(InputError, match="model 'Z' has no vectors on disk; there is 'A'"):
        one.export(tmp_path / "out.sqlite", model="Z")
    with pytest.raises(InputError, match=r"export\(\) needs vectors on disk, .* give a cache_dir"):
        cache(None).export(tmp_path / "out.sqlite")
    assert sorted(file.name.removeprefix(path.name) for file in tmp_path.iterdir()) == ["", "-shm", "-wal"]


def test_export_replaces_no_other_cache_and_nothing_but_plain_files(path, tmp_path):
    one, other = cache(path), cache(tmp_path / "other.sqlite")
    fill(one, 3)
    fill(other, 3)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is no plain file, and writing would replace it"):
        one.export(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a cache, which an export would destroy"):
        one.export(tmp_path / "other.sqlite")
    for end in ("-wal", "-shm"):  # as a cache lies there when nobody uses it
        Path(f"{tmp_path / 'other.sqlite'}{end}").unlink(missing_ok=True)
    with pytest.raises(InputError, match="is a cache, which an export would destroy"):
        one.export(tmp_path / "other.sqlite")
    (tmp_path / "link").symlink_to(tmp_path / "export.sqlite")
    assert one.export(tmp_path / "link") == 3
    assert (tmp_path / "link").is_symlink()
    assert one.export(tmp_path / "export.sqlite") == 3  # an earlier export is replaced


def _export_onto_a_full_disk(path: Path, out: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, resource.RLIM_INFINITY))
    one = cache(path)
    with pytest.raises(InputError, match="cannot be written"):
        one.export(out)
    assert one.info().rows == 400  # and nobody blames the cache


def test_an_export_onto_a_full_disk_leaves_the_older_one_and_no_draft(path, tmp_path):
    one, out = cache(path), tmp_path / "out" / "out.sqlite"
    out.parent.mkdir()
    out.write_bytes(b"the older one")
    fill(one, 400, size=1024)
    child = FORK.Process(target=_export_onto_a_full_disk, args=(path, out))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert list(out.parent.iterdir()) == [out]
    assert out.read_bytes() == b"the older one"


def test_an_import_takes_no_more_names_of_models_and_tables_into_memory_than_it_must(path, tmp_path):
    one, out = cache(path), tmp_path / "out.sqlite"
    fill(one, 3)
    for statement, message in [
        ("INSERT INTO models(identity) SELECT value || '' FROM json_each(?)", "has vectors of 10,002 models, named"),
        (
            "INSERT INTO models(identity) SELECT value || hex(zeroblob(9000)) FROM json_each(?) LIMIT 1000",
            "18,0.* letters",
        ),
        (f"CREATE TABLE other(a DEFAULT '{'x' * 10**6}' CHECK (? IS NULL))".replace("?", "a"), "has other tables"),
    ]:
        one.export(out)
        change(out, statement, *([json.dumps(list(range(10_001)))] if "?" in statement else []))
        with pytest.raises(InputError, match=message):
            cache(tmp_path / "other.sqlite").import_(out)


def test_rows_that_are_here_stay_as_they_are(path, tmp_path):
    one, other, out = cache(path), cache(tmp_path / "other.sqlite"), tmp_path / "out.sqlite"
    keys = fill(one, 10)
    other.store.write(keys[:4], vectors_of(4, 500))
    one.export(out)
    assert other.import_(out) == 6
    found = other.store.read(keys)
    np.testing.assert_array_equal(np.stack([found[key] for key in keys[:4]]), vectors_of(4, 500))
    np.testing.assert_array_equal(np.stack([found[key] for key in keys[4:]]), vectors_of(10)[4:])


def test_rows_that_cannot_be_vectors_of_the_model_are_left_out_with_one_warning(path, tmp_path):
    one, out = cache(path), tmp_path / "out.sqlite"
    keys = fill(one, 20)
    one.export(out)
    good = vectors_of(1)[0]
    bad = {
        0: row(keys[0], np.where(np.arange(SIZE) == 3, np.nan, good)),
        1: row(keys[1], np.where(np.arange(SIZE) == 3, np.inf, good)),
        2: row(keys[2], np.zeros(SIZE)),
        3: row(keys[3], good[:-1]),
        4: row(keys[4], b"x" + good.astype("<f2").tobytes()),
        5: row(keys[5], b"h" + np.full(SIZE, np.inf, "<f2").tobytes()),
        6: (keys[6], 12345, good.tobytes()),
        7: row(keys[7], b""),
    }
    for number, (_, told, blob) in bad.items():
        change(out, "UPDATE vectors SET checksum = ?, vector = ? WHERE key = ?", told, blob, keys[number])
    change(out, "UPDATE vectors SET created = -1 WHERE key = ?", keys[8])
    change(out, "UPDATE vectors SET created = 'then' WHERE key = ?", keys[9])
    change(out, "UPDATE vectors SET checksum = 1.5 WHERE key = ?", keys[10])
    change(out, "UPDATE vectors SET vector = 'a text' WHERE key = ?", keys[11])
    change(out, "UPDATE vectors SET model = 99 WHERE key = ?", keys[12])
    change(out, "UPDATE vectors SET key = ? WHERE key = ?", b"short", keys[13])
    change(out, "UPDATE vectors SET key = 'sixteen letters!' WHERE key = ?", keys[14])
    change(out, "UPDATE vectors SET vector = CAST(x'ff' AS TEXT) WHERE key = ?", keys[15])
    other = cache(tmp_path / "other.sqlite")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert other.import_(out) == 4
    assert [str(one.message) for one in said] == [
        f"16 vector(s) in {out} are damaged or of another length, and were left out."
    ]
    assert set(other.store.read(keys)) == set(keys[16:])


def test_imported_vectors_have_the_length_of_those_that_are_here(path, tmp_path):
    one, other, out = cache(path), cache(tmp_path / "other.sqlite"), tmp_path / "out.sqlite"
    fill(one, 9, size=32)
    one.export(out)
    fill(other, 1, start=100, size=SIZE)
    with pytest.warns(QVLWarning, match=r"9 vector\(s\) .* of another length, and were left out"):
        assert other.import_(out) == 0


def test_an_imported_time_to_come_is_taken_for_now(path, tmp_path):
    one, other, out = cache(path), cache(tmp_path / "other.sqlite"), tmp_path / "out.sqlite"
    fill(one, 3)
    one.export(out)
    change(out, "UPDATE vectors SET created = ?", int(time.time()) + 10**9)
    assert other.import_(out) == 3
    assert other.info().models[0].newest <= datetime.now(timezone.utc)


def break_not_a_database(out: Path) -> None:
    out.write_bytes(b"not a database at all" * 1000)


def break_empty(out: Path) -> None:
    out.write_bytes(b"")


def break_short(out: Path) -> None:
    out.write_bytes(out.read_bytes()[:70_000])


def break_middle(out: Path) -> None:
    content = bytearray(out.read_bytes())
    content[32768 * 3 : 32768 * 3 + 400] = os.urandom(400)
    out.write_bytes(content)


def break_application(out: Path) -> None:
    change(out, "PRAGMA application_id = 7")


def break_by_a_view(out: Path) -> None:
    change(out, "ALTER TABLE vectors RENAME TO others")
    change(out, "CREATE VIEW vectors AS SELECT * FROM others")


def break_by_a_trigger(out: Path) -> None:
    change(out, "CREATE TRIGGER t AFTER INSERT ON vectors BEGIN DELETE FROM vectors; END")


def break_by_another_table(out: Path) -> None:
    change(out, "CREATE TABLE more(x)")


def break_by_a_column(out: Path) -> None:
    change(out, "ALTER TABLE vectors ADD COLUMN more DEFAULT 5")


def break_by_use(out: Path) -> None:
    Path(f"{out}-wal").write_bytes(b"something")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_not_a_database, "damaged or no export .* copy or export it again"),
        (break_empty, "but not one that export"),
        (break_short, "damaged"),
        (break_middle, "damaged"),
        (break_application, "but not one that export"),
        (break_by_a_view, "has other tables than export"),
        (break_by_a_trigger, "has other tables than export"),
        (break_by_another_table, "has other tables than export"),
        (break_by_a_column, "has other tables than export"),
        (break_by_use, "is a cache in use"),
    ],
)
def test_a_file_that_is_no_whole_export_is_refused_and_nothing_changes(path, tmp_path, damage, message):
    one, other, out = cache(path), cache(tmp_path / "other.sqlite"), tmp_path / "out.sqlite"
    fill(one, 100, size=512)
    fill(other, 3, start=700, size=512)
    one.export(out)
    damage(out)
    left, before = out.read_bytes(), other.info()
    with pytest.raises(InputError, match=message):
        other.import_(out)
    assert other.info() == before
    assert out.read_bytes() == left


def test_import_never_takes_a_wrong_vector_from_a_damaged_file(path, tmp_path):
    one, out = cache(path), tmp_path / "out.sqlite"
    keys = fill(one, 60)
    one.export(out)
    sound, rng = out.read_bytes(), np.random.default_rng(0)
    for number in range(60):
        broken = bytearray(sound)
        for position in rng.integers(0, len(sound), 1 + number):
            broken[position] ^= int(rng.integers(1, 256))
        out.write_bytes(broken)
        other = cache(tmp_path / f"other-{number}.sqlite")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", QVLWarning)
            try:
                added = other.import_(out)
            except InputError:
                assert not other.store.path.exists()
                continue
        found = other.store.read(keys)
        assert added >= len(found)  # a damaged key stands for no text
        for key, vector in found.items():
            np.testing.assert_array_equal(vector, vectors_of(60)[keys.index(key)])


def test_import_refuses_what_is_no_file_for_it(path, tmp_path):
    one = cache(path)
    fill(one, 3)
    with pytest.raises(InputError, match="is this cache itself"):
        one.import_(path)
    with pytest.raises(InputError, match="is not there"):
        one.import_(tmp_path / "missing.sqlite")
    with pytest.raises(InputError, match="is a folder"):
        one.import_(tmp_path)
    with pytest.raises(InputError, match="path must be a string or a path, but got NoneType"):
        one.import_(None)
    with pytest.raises(InputError, match=r"import_\(\) needs vectors on disk, .* give a cache_dir"):
        cache(None).import_(path)


def test_an_import_that_cannot_write_says_so(path, tmp_path):
    one, other, out = cache(path), cache(tmp_path / "other.sqlite"), tmp_path / "out.sqlite"
    other.store.LOCK_SECONDS = 0.05
    fill(one, 3)
    fill(other, 1)
    one.export(out)
    holder = sqlite3.connect(other.store.path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert other.import_(out) == 0
    holder.close()
    assert any("the import of" in str(one.message) and "stopped" in str(one.message) for one in said)


def _import_within(out: Path, target: Path, limit: int) -> None:
    one = cache(target)
    one.import_(out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert peak < limit, f"{peak / 2**20:.0f} MiB"


def test_import_and_export_take_bounded_memory(path, tmp_path):
    one, out = cache(path), tmp_path / "out.sqlite"
    for start in range(0, 24_000, 2000):
        rows = np.random.default_rng(start).normal(size=(2000, 1024)).astype(np.float32)
        one.store.write([one.key(str(number)) for number in range(start, start + 2000)], rows)
    SQLiteStore.MMAP_BYTES, mapped = 0, SQLiteStore.MMAP_BYTES  # mapped pages would be counted as memory
    try:
        assert one.export(out) == 24_000
        base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        child = FORK.Process(target=_import_within, args=(out, tmp_path / "other.sqlite", base + 80 * 2**20))
        child.start()
        child.join(120)
    finally:
        SQLiteStore.MMAP_BYTES = mapped
    assert child.exitcode == 0
