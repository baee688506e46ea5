"""Vectors in a dict, an index or a store become a model: read by id, without a copy, known by their content."""

import copy
import functools
import pickle
import sqlite3
import threading
import time
import tracemalloc

import cloudpickle
import faiss
import numpy as np
import pandas as pd
import pytest

from dspy_qvl import EmbeddingError, InputError, Precomputed, Qwen3EmbeddingValueLearner, StateError, TextsRefusedError
from dspy_qvl.vectors import unit
from tests.conftest import CountingModel, rated

RATED = rated(40)
TEXTS = [text for text, _ in RATED]
ROWS = CountingModel(size=48)(TEXTS)
IDS = [10**12 + 7 * number for number in range(40)][::-1]
MANY = [f"text {number}" for number in range(1000)]
MANY_ROWS = np.random.default_rng(0).standard_normal((1000, 8)).astype(np.float32)


class Store:
    """A callable over an array that can be changed, fail, and counts what is asked of it."""

    def __init__(self, rows=MANY_ROWS):
        self.rows, self.asked, self.failure = rows.copy(), [], None

    def __call__(self, ids):
        self.asked.append(ids)
        if self.failure:
            raise self.failure
        return self.rows[ids]


class OneByOne:
    """An index that reconstructs one vector at a time."""

    def __init__(self, rows, ids):
        self.known = dict(zip(ids, rows, strict=True))

    def reconstruct(self, id_):
        return self.known[id_]


def flat(rows=ROWS):
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    return index


def with_ids(kind=faiss.IndexIDMap2, rows=ROWS, ids=IDS):
    index = kind(faiss.IndexFlatIP(rows.shape[1]))
    index.add_with_ids(rows, np.array(ids))
    return index


def inverted():
    index = faiss.index_factory(48, "IVF1,Flat")
    index.train(ROWS)
    index.add_with_ids(ROWS, np.array(IDS))
    index.set_direct_map_type(faiss.DirectMap.Hashtable)
    return index


def by_id(ids):
    return [MAPPING[id_] for id_ in ids]


def module_level(ids):
    return ROWS[ids]


def make(embedder):
    return Qwen3EmbeddingValueLearner(embedder=embedder, cache_dir=None, features=None)


MAPPING = dict(zip(IDS, ROWS, strict=True))
NAMED = [f"doc-{number}" for number in range(40)]
WAYS = {
    "a dict": lambda: Precomputed.from_vectors(dict(zip(TEXTS, ROWS, strict=True))),
    "a dict of lists": lambda: Precomputed.from_vectors(dict(zip(TEXTS, ROWS.tolist(), strict=True))),
    "rows of an array": lambda: Precomputed(TEXTS[::-1], ROWS, ids=range(39, -1, -1)),
    "a mapping to rows": lambda: Precomputed.from_vectors({text: row for row, text in enumerate(TEXTS)}, ROWS),
    "a faiss index": lambda: Precomputed(TEXTS, flat()),
    "a faiss index with ids": lambda: Precomputed(TEXTS, with_ids(), ids=np.array(IDS)),
    "an inverted index with ids": lambda: Precomputed(TEXTS, inverted(), ids=IDS),
    "an index that gives one vector": lambda: Precomputed(TEXTS, OneByOne(ROWS, IDS), ids=IDS),
    "a column of ids": lambda: Precomputed(pd.Series(TEXTS), with_ids(), ids=pd.Series(IDS)),
    "pairs": lambda: Precomputed.from_vectors(zip(TEXTS, IDS, strict=True), with_ids()),
    "pairs with vectors": lambda: Precomputed.from_vectors(zip(TEXTS, ROWS, strict=True)),
    "a callable": lambda: Precomputed.from_vectors(dict(zip(TEXTS, IDS, strict=True)), by_id),
    "a callable by position": lambda: Precomputed(TEXTS, module_level),
    "names": lambda: Precomputed(TEXTS, dict(zip(NAMED, ROWS, strict=True)), ids=NAMED),
    "huge ids": lambda: Precomputed(TEXTS[:2], lambda ids: ROWS[[id_ - 2**64 for id_ in ids]], ids=[2**64, 2**64 + 1]),
}


@pytest.mark.parametrize("way", WAYS)
def test_vectors_are_the_same_model_wherever_they_lie(way):
    table = WAYS[way]()
    texts = TEXTS[: len(table)]
    plain = Precomputed(texts, ROWS[: len(table)])
    np.testing.assert_array_equal(table(texts[::-1]), plain(texts[::-1]))
    assert table.digest == plain.digest
    assert make(table).identity == make(plain).identity
    with pytest.raises(TextsRefusedError, match="lacks 1 texts") as info:
        table([texts[1], "unheard of"])
    np.testing.assert_array_equal(info.value.vectors[0], ROWS[1])


def test_a_value_function_learned_from_an_index_is_read_with_an_array(tmp_path):
    learner = make(Precomputed(TEXTS, with_ids(), ids=IDS))
    learner.add_training_examples(RATED)
    learner.train()
    learner.save_model(tmp_path / "value.qvl")
    again = make(Precomputed(TEXTS, ROWS))
    again.load_model(tmp_path / "value.qvl")
    np.testing.assert_array_equal(again.predict_many(TEXTS), learner.predict_many(TEXTS))


def test_vectors_of_a_dict_are_not_copied_and_its_later_changes_do_not_matter():
    source = dict(zip(TEXTS, ROWS.copy(), strict=True))
    tracemalloc.start()
    table = Precomputed.from_vectors(source)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < ROWS.nbytes
    source.clear()
    np.testing.assert_array_equal(table(TEXTS), ROWS)


def test_a_column_of_a_parquet_file_is_read_where_it_lies():
    """Arrow hands out arrays like this one: they do not own their memory, and cannot be written."""
    rows = np.frombuffer(MANY_ROWS.tobytes(), dtype=np.float32).reshape(-1, 8)
    assert not rows.flags.owndata
    assert not rows.flags.writeable
    table = Precomputed(MANY, rows)
    assert table._stored.source is rows
    np.testing.assert_array_equal(table(MANY), MANY_ROWS)
    frame = pd.DataFrame({"text": MANY, "vector": list(MANY_ROWS)})
    assert Precomputed(frame["text"], np.stack(frame["vector"])).digest == table.digest


def test_a_table_over_an_index_keeps_24_bytes_a_text():
    n = 20_000
    texts = [f"text {number}" for number in range(n)]
    rows = np.random.default_rng(0).standard_normal((n, 64)).astype(np.float32)
    index = with_ids(rows=rows, ids=7 * np.arange(n))
    start = time.process_time()
    tracemalloc.start()
    table = Precomputed(texts, index, ids=7 * np.arange(n))
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.process_time() - start < 5
    assert kept < 30 * n
    assert peak < 150 * n + 3 * 4096 * 64 * 4
    np.testing.assert_array_equal(table(texts[-5:]), rows[-5:])


def test_a_source_is_never_asked_for_more_than_4096_at_once():
    store = Store(np.ones((10_000, 2), dtype=np.float32))
    texts = [f"text {number}" for number in range(10_000)]
    table = Precomputed(texts, store)
    assert table(texts).shape == (10_000, 2)
    assert max(map(len, store.asked)) == 4096
    assert type(store.asked[0][0]) is int
    asked = len(store.asked)
    assert table([]).shape == (0, 2)
    with pytest.raises(TextsRefusedError, match="lacks 1 texts"):
        table(["unheard of"])
    assert len(store.asked) == asked


# Known by a version


def test_with_a_version_256_vectors_are_read():
    store = Store()
    table = Precomputed(MANY, store, version="2024-06")
    assert sum(map(len, store.asked)) == 256
    np.testing.assert_array_equal(table(MANY), MANY_ROWS)
    same = Precomputed(MANY[::-1], MANY_ROWS[::-1].astype(np.float64), version="2024-06")
    assert same.digest == table.digest


def test_a_table_with_a_version_is_another_one_where_anything_differs_that_is_read(tmp_path):
    known = make(Precomputed(TEXTS, module_level, name="mine", version="1"))
    known.add_training_examples(RATED)
    known.train()
    known.save_model(tmp_path / "value.qvl")
    make(Precomputed(TEXTS, flat(), name="mine", version="1")).load_model(tmp_path / "value.qvl")
    changed = ROWS.copy()
    changed[7, 3] += 1e-3
    for other in (
        Precomputed(TEXTS, ROWS, name="mine", version="2"),
        Precomputed(TEXTS, ROWS, name="yours", version="1"),
        Precomputed(TEXTS, ROWS, name="mine"),
        Precomputed(TEXTS, changed, name="mine", version="1"),
        Precomputed(TEXTS[:-1], ROWS[:-1], name="mine", version="1"),
        Precomputed([*TEXTS, "one more"], np.concatenate([ROWS, ROWS[:1]]), name="mine", version="1"),
    ):
        with pytest.raises(StateError, match="another embedding model"):
            make(other).load_model(tmp_path / "value.qvl")


def test_a_change_beyond_the_sample_of_a_version_is_not_noticed_and_without_one_it_is():
    store = Store()
    before = Precomputed(MANY, store, version="1")
    read = set(store.asked[0])
    unread = next(row for row in range(1000) if row not in read)
    for row, is_noticed in ((min(read), True), (unread, False)):
        changed = MANY_ROWS.copy()
        changed[row] *= -1
        assert (Precomputed(MANY, changed, version="1").digest != before.digest) is is_noticed
        assert Precomputed(MANY, changed).digest != Precomputed(MANY, MANY_ROWS).digest


# What goes wrong when a table is made


def ragged(ids):
    return [ROWS[id_, : 5 + id_ % 2] for id_ in ids]


def shrinking(ids):
    return np.ones((len(ids), 8 if 0 in ids else 7))


def down(ids):
    raise ConnectionError("the store is down")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Precomputed(TEXTS, ROWS, ids=[1]), "ids has 1 entries for 40 texts; give one id a text"),
        (lambda: Precomputed(TEXTS, ROWS[:5]), "vectors has 5 rows for 40 texts"),
        (lambda: Precomputed(TEXTS, flat(ROWS[:5])), "the index has 5 vectors for 40 texts; give ids="),
        (lambda: Precomputed(TEXTS, with_ids()), "the index has ids of its own; give ids="),
        (lambda: Precomputed(TEXTS, MAPPING), r"vectors is a mapping .* give ids=.*from_vectors"),
        (lambda: Precomputed(["a"], ROWS, ids=[40]), r"ids\[0\] is 40, but the ids of these vectors are 0 ≤ id < 40"),
        (lambda: Precomputed(["a"], ROWS, ids=[-1]), r"ids\[0\] is -1, but the ids of these vectors are 0 ≤ id"),
        (lambda: Precomputed(["a"], flat(), ids=[-1]), r"ids\[0\] is -1, but the ids of these vectors are 0 ≤ id"),
        (lambda: Precomputed(["a"], flat(), ids=[40]), r"ids\[0\] is 40, but the ids"),
        (lambda: Precomputed(["a", "b"], with_ids(), ids=[IDS[0], 3]), "gives no vector for id 3 .*key 3 not"),
        (lambda: Precomputed(["a"], with_ids(faiss.IndexIDMap), ids=IDS[:1]), "IndexIDMap2 instead of IndexIDMap"),
        (lambda: Precomputed(["a"], MAPPING, ids=[3]), r"1 ids \(3\) could not be .*KeyError: 3"),
        (lambda: Precomputed(["a"], ROWS, ids=["x"]), r"must be whole numbers of at most 64 bits, but ids\[0\] is 'x'"),
        (lambda: Precomputed(["a"], flat(), ids=[2**64]), r"must be whole numbers of at most 64 bits"),
        (lambda: Precomputed(["a"], ROWS, ids=[0.0]), r"ids must be numbers or strings, but ids\[0\] is 0.0"),
        (lambda: Precomputed(["a"], ROWS, ids=[True]), r"but ids\[0\] is True"),
        (lambda: Precomputed(["a", "b"], by_id, ids=[1, "b"]), r"be numbers, like ids\[0\], but ids\[1\] is 'b'"),
        (lambda: Precomputed(["a", "b"], by_id, ids=["b", None]), r"be strings, like ids\[0\], but ids\[1\] is N"),
        (lambda: Precomputed(["a"], by_id, ids="a"), "ids must be a list of whole numbers or strings, but got str"),
        (lambda: Precomputed([], ROWS, ids=[]), "texts holds no text but blank ones"),
        (lambda: Precomputed(["a"], object()), "vectors must be an array, a faiss index, .* but got object"),
        (lambda: Precomputed(["a"], None), "vectors must be an array, a faiss index, .* but got NoneType: None"),
        (lambda: Precomputed(["a", "b"], lambda ids: ROWS[:1]), r"2 ids \(0, 1\) came as shape \(1, 48\) of float32"),
        (lambda: Precomputed(["a"], lambda ids: ROWS[0]), r"1 ids \(0\) came as shape \(48,\) .* of shape \(1, d\)"),
        (lambda: Precomputed(["a"], lambda ids: [None]), r"came as shape \(1,\) of object; they must be numbers"),
        (lambda: Precomputed(["a"], lambda ids: [["x"]]), r"came as shape \(1, 1\) of <U1; they must be numbers"),
        (lambda: Precomputed(["a", "b"], ragged), r"2 ids \(0, 1\) are no array of numbers .* all be of one length"),
        (lambda: Precomputed([*map(str, range(5000))], shrinking), r"904 ids \(4096, 4097, 4098, …\) have 7 c.* had 8"),
        (lambda: Precomputed(["a"], down), "could not be read: ConnectionError: the store is down"),
        (lambda: Precomputed(["a", "b"], lambda ids: ROWS[ids] * [[1], [0]]), "the vector of 'b' holds NaN"),
        (lambda: Precomputed(["a"], ROWS * np.nan, ids=[7]), r"vectors\[7\] holds NaN or infinity"),
        (lambda: Precomputed(["a", "b", "a"], flat(), ids=[0, 1, 2]), r"texts\[0\] and texts\[2\] are the same text"),
        (lambda: Precomputed(["a"], ROWS[:1], version=" "), "version must be a string that is not blank, or None"),
        (lambda: Precomputed(["a"], ROWS[:1], version=1), "version must be a string .* but got 1"),
        (lambda: Precomputed.from_vectors({}), "texts holds no text but blank ones"),
        (lambda: Precomputed.from_vectors({"a": [1.0], "b": [1.0, 2.0]}), "'b' has 2 columns, but .*'a' has 1"),
        (lambda: Precomputed.from_vectors({"a": 17}), "numbers, but got 17; where source gives ids"),
        (lambda: Precomputed.from_vectors({"a": "17"}), "the vector of 'a' must be a list of numbers, but got '17'"),
        (lambda: Precomputed.from_vectors({"a": np.ones((2, 2))}), "the vector of 'a' must be a list of numbers"),
        (lambda: Precomputed.from_vectors({"a": [np.nan]}), "the vector of 'a' holds NaN"),
        (lambda: Precomputed.from_vectors({3: [1.0]}), r"texts\[0\] must be a string, but got int"),
        (lambda: Precomputed.from_vectors(TEXTS, ROWS), r"must be a pair .*use Precomputed\(texts, vectors\)"),
        (lambda: Precomputed.from_vectors(3), r"source must be a mapping .* or pairs .* got int"),
        (lambda: Precomputed.from_vectors(pd.DataFrame({"a": [1]}), ROWS), "source must be a mapping .* got DataFrame"),
    ],
)
def test_what_cannot_be_used_is_refused_when_the_table_is_made(made, message):
    with pytest.raises(InputError, match=message):
        made()


def test_the_failure_of_a_store_is_the_cause_of_the_error():
    with pytest.raises(InputError, match="the store is down") as info:
        Precomputed(["a"], down)
    assert isinstance(info.value.__cause__, ConnectionError)


def test_a_text_twice_with_one_id_or_one_vector_is_one_text():
    rows = np.concatenate([ROWS[:2], ROWS[:1] * 2])
    once = Precomputed(["a", "b"], ROWS[:2])
    for ids in ([0, 1, 0], [0, 1, 2]):
        twice = Precomputed(["a", "b", "a"], flat(rows), ids=ids)
        assert len(twice) == 2
        assert twice.digest == once.digest


# What goes wrong later


def test_a_store_that_fails_later_is_named_and_can_recover():
    store = Store()
    learner = make(Precomputed(MANY, store, name="mine"))
    store.failure = ConnectionError("gone")
    with pytest.raises(EmbeddingError, match=r"the table 'mine' failed: the vectors of 2 ids \(1, 2\) could .*gone"):
        learner.embed(MANY[1:3])
    store.failure = None
    np.testing.assert_array_equal(learner.embed(MANY[1:3]), unit(MANY_ROWS[1:3]))


def test_positions_that_a_store_refuses_are_not_taken_for_those_of_the_batch():
    store = Store()
    table = Precomputed(MANY, store, name="mine")
    store.failure = TextsRefusedError("no", refused={0: "its own position 0"})
    with pytest.raises(EmbeddingError, match="could not be read: TextsRefusedError: no") as info:
        table(["unheard of", MANY[1]])
    assert not isinstance(info.value, TextsRefusedError)


def test_vectors_that_change_their_length_later_are_refused():
    store = Store()
    table = Precomputed(MANY, store)
    store.rows = store.rows[:, :5]
    with pytest.raises(EmbeddingError, match=r"2 ids \(1, 2\) have 5 columns, but others had 8"):
        table(MANY[1:3])


def test_an_id_that_an_index_has_lost_is_named():
    index = with_ids()
    table = Precomputed(TEXTS, index, ids=IDS)
    index.remove_ids(np.array([IDS[3]]))
    with pytest.raises(EmbeddingError, match=f"the index gives no vector for id {IDS[3]} "):
        table(TEXTS[:5])


def test_a_vector_without_a_direction_that_was_not_read_before_is_refused_by_its_text():
    store = Store()
    learner = make(Precomputed(MANY, store, version="1"))
    unread = next(row for row in range(1000) if row not in set(store.asked[0]))
    store.rows[unread] = 0
    with pytest.raises(TextsRefusedError, match=r"refused text 1 of 2 .*its vector has NaN or infinity, or is all z"):
        learner.embed([MANY[min(store.asked[0])], MANY[unread]])


# Copies, pickles, threads


@pytest.mark.parametrize(
    "way", ["a dict", "a faiss index", "a faiss index with ids", "names", "a callable by position"]
)
@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
def test_a_pickle_holds_the_vectors_and_a_copy_is_the_table(way, dumps):
    table = WAYS[way]()
    assert copy.deepcopy(table) is table
    again = pickle.loads(dumps(table))
    np.testing.assert_array_equal(again(TEXTS), ROWS)
    assert again.digest == table.digest


def test_a_pickle_of_a_mapped_file_holds_its_vectors(tmp_path):
    np.save(tmp_path / "rows.npy", MANY_ROWS)
    pickled = pickle.dumps(Precomputed(MANY, np.load(tmp_path / "rows.npy", mmap_mode="r")))
    assert len(pickled) > MANY_ROWS.nbytes
    (tmp_path / "rows.npy").unlink()
    np.testing.assert_array_equal(pickle.loads(pickled)(MANY), MANY_ROWS)


def test_a_callable_that_cannot_be_pickled_is_said_by_the_pickler():
    table = Precomputed(TEXTS, lambda ids: ROWS[ids])
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(table)
    np.testing.assert_array_equal(pickle.loads(cloudpickle.dumps(table))(TEXTS), ROWS)
    connected = Precomputed(TEXTS, functools.partial(lambda connection, ids: ROWS[ids], sqlite3.connect(":memory:")))
    with pytest.raises(TypeError, match=r"cannot pickle 'sqlite3\.Connection' object"):
        cloudpickle.dumps(make(connected))


@pytest.mark.parametrize("way", ["a dict", "a faiss index with ids", "a callable by position"])
def test_many_threads_read_one_source(way):
    table, wrong = WAYS[way](), []

    def work(start):
        for step in range(100):
            rows = [(start + step) % 40, (start * step) % 40]
            if not np.array_equal(table([TEXTS[row] for row in rows]), ROWS[rows]):
                wrong.append(rows)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_a_set_has_no_order_to_pair_texts_with_vectors_by():
    vectors = np.eye(3)
    with pytest.raises(InputError, match=r"texts must be a list of strings, but got a set, which has no order\."):
        Precomputed({"a", "b", "c"}, vectors)
    with pytest.raises(InputError, match=r"ids must be a list of whole numbers or strings, but got set\."):
        Precomputed(["a", "b", "c"], vectors, ids={0, 1, 2})


def test_half_a_character_is_in_no_table():
    assert "\ud83d" not in Precomputed(["a", "b"], np.eye(2))


def test_a_binary_index_is_refused():
    index = faiss.IndexBinaryFlat(16)
    index.add(np.zeros((2, 2), dtype=np.uint8))
    with pytest.raises(InputError, match="a binary index of faiss holds packed bits"):
        Precomputed(["a", "b"], index)
