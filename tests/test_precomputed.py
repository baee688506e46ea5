"""Vectors that exist already: a table in the place of a model, and a cache that is filled by hand."""

import copy
import multiprocessing
import pickle
import threading
import time

import cloudpickle
import dspy
import numpy as np
import pytest

from dspy_qvl import (
    EmbeddingError,
    InputError,
    Precomputed,
    QVLWarning,
    Qwen3EmbeddingValueLearner,
    StateError,
    TextsRefusedError,
)
from dspy_qvl.vectors import unit
from tests.conftest import CountingModel, rated

RATED = rated(40)
TEXTS = [text for text, _ in RATED]
NEW = [text for text, _ in rated(10, seed=1)]
ROWS = CountingModel(size=48)([*TEXTS, *NEW])


def table(name="mine", texts=(*TEXTS, *NEW), rows=ROWS):
    return Precomputed(texts, rows, name=name)


def make(embedder, cache_dir=None, **settings):
    return Qwen3EmbeddingValueLearner(embedder=embedder, cache_dir=cache_dir, features=None, **settings)


def trained(embedder, cache_dir=None, **settings):
    learner = make(embedder, cache_dir, **settings)
    learner.add_training_examples(RATED)
    learner.train()
    return learner


# A table


def test_a_table_gives_the_vector_of_each_text(tmp_path):
    learner = make(table(), tmp_path)
    np.testing.assert_array_equal(
        learner.embed([*NEW, *TEXTS[::-1], ""])[:-1], unit(ROWS)[[*range(40, 50), *range(39, -1, -1)]]
    )
    assert learner.embedding_dim == 48
    assert list(tmp_path.iterdir()) == []  # it is a file already
    assert "mine" in learner.model_name


def test_a_learner_learns_from_a_table_what_it_learns_from_the_model(tmp_path):
    from_table, from_model = trained(table()), trained(CountingModel(size=48))
    np.testing.assert_array_equal(from_table.predict_many(NEW), from_model.predict_many(NEW))
    from_table.update("", 3.0)
    from_table.update(NEW[0], 9.0)
    assert from_table.predict_std(NEW[1]) > 0


def test_a_text_that_is_not_in_the_table_is_named_by_its_position():
    learner = trained(table())
    with pytest.raises(
        TextsRefusedError,
        match=r"the table 'mine' refused text 2 and 1 more \(2, 4\) of 5 \('unheard of'\): .* has no ve",
    ) as info:
        learner.predict_many([*NEW[:2], "unheard of", "", "of nobody"])
    assert set(info.value.refused) == {2, 4}
    lonely = make(table())
    lonely.add_training_examples([*RATED, ("unheard of", 3.0)])
    with pytest.raises(TextsRefusedError, match="refused text 40 of 41"):
        lonely.train()


def test_another_table_is_noticed_and_the_same_one_in_another_order_is_not(tmp_path):
    learner = trained(table())
    learner.save_model(tmp_path / "value.qvl")
    order = np.random.default_rng(0).permutation(50)
    texts = [*TEXTS, *NEW]
    shuffled = table(texts=[texts[row] for row in order], rows=ROWS[order].astype(np.float64))
    again = make(shuffled)
    again.load_model(tmp_path / "value.qvl")
    np.testing.assert_array_equal(again.predict_many(NEW), learner.predict_many(NEW))
    changed = ROWS.copy()
    changed[7, 3] += 1e-3
    swapped = ROWS[[1, 0, *range(2, 50)]]
    for other in (table(rows=changed), table(rows=swapped), table("yours"), table(texts=texts[:-1], rows=ROWS[:-1])):
        with pytest.raises(StateError, match="another embedding model"):
            make(other).load_model(tmp_path / "value.qvl")


def test_another_table_is_noticed_by_its_vectors_too():
    """As it is where an identity says nothing: the probe of a table hangs on all of its content."""
    learner = trained(table())
    fit = learner.ridge.fit_or_refuse()
    changed = ROWS.copy()
    changed[7, 3] += 1e-3
    assert make(table()).embedder.meets(fit.probe)
    assert not make(table(rows=changed)).embedder.meets(fit.probe)


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
def test_a_table_survives_copies_pickles_and_dspys_own_saving(tmp_path, dumps):
    learner = trained(table())
    expected = learner.predict_many(NEW)
    assert copy.deepcopy(learner).embedder.spec.embedder is learner.embedder.spec.embedder
    np.testing.assert_array_equal(pickle.loads(dumps(learner)).predict_many(NEW), expected)
    learner.save(tmp_path / "value.json")
    again = make(table())
    again.load(tmp_path / "value.json")
    np.testing.assert_array_equal(again.predict_many(NEW), expected)
    learner.save(tmp_path / "program", save_program=True)
    program = dspy.load(tmp_path / "program", allow_pickle=True)
    np.testing.assert_array_equal(program.predict_many(NEW), expected)


def test_a_forked_worker_looks_up_what_its_parent_would():
    learner = trained(table())
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(learner.predict, NEW) == [learner.predict(text) for text in NEW]


def test_many_threads_look_up_at_once():
    learner = make(table())
    wrong = []

    def work(start):
        for step in range(50):
            row = (start + step) % 50
            if not np.array_equal(learner.embed([[*TEXTS, *NEW][row]])[0], unit(ROWS[[row]])[0]):
                wrong.append(row)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(0, 48, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_a_table_of_a_file_is_read_where_it_lies(tmp_path):
    n, d = 30_000, 64
    rng = np.random.default_rng(0)
    np.save(tmp_path / "rows.npy", rng.standard_normal((n, d)).astype(np.float16))
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    start = time.process_time()
    big = Precomputed([f"text {number}" for number in range(n)], rows)
    assert time.process_time() - start < 5
    assert big._stored.source is rows
    np.testing.assert_array_equal(big(["text 29999", "text 3"]), rows[[29999, 3]].astype(np.float32))
    assert "text 5" in big
    assert "text 30000" not in big
    assert repr(big) == "Precomputed(30000 texts, 64 columns, name='precomputed')"
    # Neither the texts nor a copy of the vectors: 16 bytes a text and its place.
    kept = sum(value.nbytes for value in vars(big).values() if isinstance(value, np.ndarray) and value is not rows)
    assert kept == 24 * n


def test_an_embedder_around_a_table_is_the_table():
    np.testing.assert_array_equal(make(dspy.Embedder(table())).embed(NEW), unit(ROWS[40:]))
    assert make(dspy.Embedder(table())).identity == make(table()).identity


def test_a_lookup_without_a_table_is_told_of_it(tmp_path):
    known = dict(zip(TEXTS, ROWS, strict=False))

    def look_up(texts):
        return [known[text] for text in texts]

    look_up.name = "known"
    learner = make(look_up, tmp_path)
    learner.add_training_examples(RATED)
    with pytest.raises(EmbeddingError, match=r"has no vector for 'Die Katze .* give embedder=Precomputed\(texts, v"):
        learner.train()


def test_an_instruction_has_no_effect_on_a_table_and_is_refused():
    with pytest.raises(InputError, match=r"an instruction has no effect on the table 'mine'.*Leave instruction out"):
        make(table(), instruction="Judge the tone")


@pytest.mark.parametrize(
    ("texts", "rows", "message"),
    [
        (["a", "b"], [[1.0, 2.0]], "vectors has 1 rows for 2 texts; give one vector a text"),
        (["a"], [1.0, 2.0], r"vectors must be an array of numbers of shape \(n_texts, d\), but got shape \(2,\)"),
        (["a"], [["x"]], "must be an array of numbers of shape"),
        (["a"], np.ones((1, 0)), r"got shape \(1, 0\)"),
        (["a", "b"], [[1.0], [1.0, 2.0]], "must be an array of numbers, one row a text, but got none"),
        (["a", "b"], [[1.0], [np.nan]], r"vectors\[1\] holds NaN or infinity, or is all zeros"),
        (["a", "b"], [[1e300], [1.0]], r"vectors\[0\] holds NaN or infinity, or is all zeros"),
        (["a", "b"], [[1.0], [0.0]], r"vectors\[1\] holds NaN or infinity, or is all zeros"),
        (
            ["a", "b", "a"],
            [[1.0, 0], [1.0, 0], [0, 1.0]],
            r"texts\[0\] and texts\[2\] are the same text, .*cosine 0.000",
        ),
        (["a", 3], [[1.0], [1.0]], r"texts\[1\] must be a string, but got int"),
        ("text", [[1.0]], "texts must be a list of strings, but got str"),
    ],
)
def test_what_is_no_table_is_refused_by_the_table_and_by_the_cache(tmp_path, texts, rows, message):
    with pytest.raises(InputError, match=message):
        Precomputed(texts, rows)
    learner = make(CountingModel(size=2), tmp_path)
    with pytest.raises(InputError, match=message):
        learner.embedding_cache.put(texts, rows)
    assert len(learner.embedding_cache) == 0
    assert learner.embedding_cache.info().rows == 0


def test_a_table_of_nothing_and_a_blank_name_are_refused():
    with pytest.raises(InputError, match="texts holds no text but blank ones"):
        Precomputed(["", " "], np.zeros((2, 4)))
    for name in ("", " ", 3):
        with pytest.raises(InputError, match="name must be a string that is not blank"):
            table(name)


def test_a_text_twice_with_one_vector_is_one_text():
    once = Precomputed(["a", "b"], [[1.0, 2.0], [2.0, 1.0]])
    twice = Precomputed(["a", "b", "a", ""], [[1.0, 2.0], [2.0, 1.0], [1.0, 2.00001], [0.0, 0.0]])
    assert len(twice) == 2
    assert twice.digest == once.digest


# A cache that is filled


def test_vectors_that_were_put_are_never_asked_for_again(tmp_path):
    model = CountingModel(size=48)
    learner = make(model, tmp_path)
    learner.embedding_cache.put([*TEXTS, " "], np.concatenate([ROWS[:40], np.zeros((1, 48))]))
    assert TEXTS[0] in learner.embedding_cache
    np.testing.assert_array_equal(learner.embed(TEXTS), unit(ROWS[:40]))
    assert model.asked == []
    later = CountingModel(size=48)
    assert np.array_equal(make(later, tmp_path).embed(TEXTS), unit(ROWS[:40]))
    assert later.asked == []
    learner.add_training_examples(RATED)
    learner.train()
    assert not set(model.asked) & set(TEXTS)


def test_the_first_vector_of_a_text_stays_in_memory_and_on_disk(tmp_path):
    model = CountingModel(size=48)
    learner = make(model, tmp_path)
    learner.embed(TEXTS[:5])
    learner.embedding_cache.put(TEXTS, -ROWS[:40])
    expected = unit(np.concatenate([ROWS[:5], -ROWS[5:40]]))
    np.testing.assert_array_equal(learner.embed(TEXTS), expected)
    np.testing.assert_array_equal(make(CountingModel(size=48), tmp_path).embed(TEXTS), expected)


def test_put_in_memory_only_and_cut_to_the_columns_that_are_kept(tmp_path):
    model = CountingModel(size=48)
    learner = Qwen3EmbeddingValueLearner(None, 16, embedder=model, cache_dir=None, features=None)
    learner.embedding_cache.put(TEXTS, ROWS[:40].tolist())
    np.testing.assert_array_equal(learner.embed(TEXTS), unit(ROWS[:40, :16]))
    on_disk = Qwen3EmbeddingValueLearner(None, 16, embedder=model, cache_dir=tmp_path, features=None, storage="float16")
    on_disk.embedding_cache.put(TEXTS, ROWS[:40])
    np.testing.assert_array_equal(on_disk.embed(TEXTS), unit(ROWS[:40, :16].astype(np.float16).astype(np.float32)))
    assert model.asked == []


def test_put_vectors_are_those_of_the_text_with_the_instruction_or_without(tmp_path):
    model = CountingModel(size=48)
    learner = make(model, tmp_path, instruction="Judge the tone")
    learner.embedding_cache.put(TEXTS[:2], ROWS[:2])
    learner.embedding_cache.put(TEXTS[2:4], ROWS[2:4], instruct=False)
    assert all(text in learner.embedding_cache for text in TEXTS[:4])
    learner.embed(TEXTS[:2])
    learner.embed(TEXTS[2:4], instruct=False)
    assert model.asked == []
    learner.embed(TEXTS[2:3])
    assert model.asked == [f"Instruct: Judge the tone\nQuery:{TEXTS[2]}"]


def test_vectors_of_another_length_than_the_models_are_refused(tmp_path):
    learner = make(CountingModel(size=48), tmp_path)
    learner.embed(TEXTS[:3])
    with pytest.raises(
        InputError, match=r"vectors has 20 columns, but the model gives 48; put its full vectors, uncut"
    ):
        learner.embedding_cache.put(TEXTS, ROWS[:40, :20])
    lexical = Qwen3EmbeddingValueLearner("lexical", 64, cache_dir=None)
    with pytest.raises(InputError, match="vectors has 48 columns, but the model gives 64"):
        lexical.embedding_cache.put(TEXTS, ROWS[:40])
    wide = Qwen3EmbeddingValueLearner(None, 64, embedder=CountingModel(size=48), cache_dir=tmp_path)
    with pytest.raises(InputError, match="embedding_dim=64 is more than the embedder 'counting' has"):
        wide.embedding_cache.put(TEXTS, ROWS[:40])
    assert learner.embedding_cache.info().rows == 3


def test_a_text_that_a_table_lacks_can_be_put_beside_it(tmp_path):
    learner = make(table())
    learner.embedding_cache.put(["one more"], -ROWS[:1])
    learner.add_training_examples([*RATED, ("one more", 3.0)])
    learner.train()
    learner.save_model(tmp_path / "value.qvl")
    again = make(table())
    again.load_model(tmp_path / "value.qvl")
    again.update(NEW[0], 2.0)  # the vectors of rated texts came with the file
    assert again.predict("one more") != learner.predict("one more")


def test_vectors_put_without_a_name_are_in_memory_only(tmp_path):
    with pytest.warns(QVLWarning, match="embedder has no name"):
        learner = make(lambda texts: CountingModel(size=48)(texts), tmp_path)
    learner.embedding_cache.put(TEXTS, ROWS[:40])
    assert len(learner.embedding_cache) == 40
    assert list(tmp_path.iterdir()) == []
