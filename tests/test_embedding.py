"""The embedding path: asked once, checked, stored, cut, and the same bits every time."""

import copy
import hashlib
import logging
import multiprocessing
import pickle
import random
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import dspy
import numpy as np
import pytest

from dspy_qvl import (
    EmbeddingError,
    InputError,
    QVLWarning,
    Qwen3EmbeddingValueLearner,
    StateError,
    TextsRefusedError,
)
from dspy_qvl.embedding.embedding import Embedding
from dspy_qvl.embedding.models.lexical import LexicalModel
from dspy_qvl.embedding.models.spec import ModelSpec
from dspy_qvl.embedding.probe import PROBE_TEXTS, Probe
from dspy_qvl.vectors import unit
from tests.conftest import CountingModel, rated

TEXTS = [text for text, _ in rated(40)]


def make(model, tmp_path, dim=None, **settings):
    return Embedding(ModelSpec("", dim, embedder=model), cache_dir=tmp_path / "cache", **settings)


def test_vectors_are_cut_then_scaled_to_unit_length(model, tmp_path):
    vectors = make(model, tmp_path, 16)(TEXTS)
    full = CountingModel()(TEXTS)[:, :16]
    assert vectors.shape == (40, 16)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, full / np.linalg.norm(full, axis=1, keepdims=True), atol=1e-6)


def test_every_distinct_text_is_asked_for_once(model, tmp_path):
    embedding = make(model, tmp_path)
    embedding([*TEXTS, *TEXTS[:7], TEXTS[3]])
    embedding(TEXTS[::-1])
    embedding.encoder().vector(TEXTS[5])
    assert sorted(model.asked) == sorted(TEXTS)


def test_misses_are_asked_for_by_length_in_batches(model, tmp_path):
    make(model, tmp_path, batch_size=7)(TEXTS)
    assert [len(batch) for batch in model.batches] == [7, 7, 7, 7, 7, 5]
    lengths = [len(text) for text in model.asked]
    assert lengths == sorted(lengths)


def test_a_second_process_reads_what_the_first_stored(model, tmp_path):
    first = make(model, tmp_path)(TEXTS)
    again = CountingModel()
    np.testing.assert_array_equal(make(again, tmp_path)(TEXTS), first)
    assert again.asked == []


def test_full_vectors_are_stored_and_cut_on_reading(model, tmp_path):
    make(model, tmp_path, 8)(TEXTS)
    again = CountingModel()
    wide = make(again, tmp_path, 64)(TEXTS)
    assert again.asked == []
    np.testing.assert_allclose(wide, unit(CountingModel()(TEXTS)), atol=1e-6)


def test_two_models_never_share_a_vector(tmp_path):
    # DSPy's own cache would hand the second model the vectors of the first: it is keyed by the callable's source.
    one, other = CountingModel("one", scale=1.0), CountingModel("other", scale=-1.0)
    first, second = make(one, tmp_path)(TEXTS), make(other, tmp_path)(TEXTS)
    np.testing.assert_allclose(first, -second, atol=1e-6)
    assert len(other.asked) == len(TEXTS)


def test_dspys_own_cache_is_never_used(tmp_path):
    class Constant:
        def __init__(self, number):
            self.name, self.number = f"constant {number}", number

        def __call__(self, texts):
            return np.full((len(texts), 3), self.number) + np.arange(3)

    one, other = Constant(1.0), Constant(-5.0)
    shared = [dspy.Embedder(model, caching=True) for model in (one, other)]
    vectors = [make(embedder, tmp_path)(["a", "b"]) for embedder in shared]
    assert not np.allclose(vectors[0], vectors[1])


def test_an_instruction_is_part_of_what_is_sent_and_of_the_key(model, tmp_path):
    make(model, tmp_path)(["fine"])
    make(model, tmp_path, instruction="Judge the tone")(["fine"])
    assert model.asked == ["fine", "Instruct: Judge the tone\nQuery:fine"]


def test_a_text_has_the_same_bits_in_any_order_batch_or_thread(model, tmp_path):
    embedding = make(model, tmp_path, 48, batch_size=5)
    expected = {text: embedding.encoder().vector(text).tobytes() for text in TEXTS}
    fresh = make(CountingModel(), tmp_path, 48)

    def one(text):
        return text, fresh.encoder().vector(text).tobytes()

    with ThreadPoolExecutor(8) as pool:
        assert dict(pool.map(one, TEXTS * 3)) == expected
    batch = make(CountingModel(), tmp_path, 48)(TEXTS[::-1])
    assert {text: row.tobytes() for text, row in zip(TEXTS[::-1], batch, strict=True)} == expected


def test_a_blank_text_is_valued_as_a_zero_vector_and_never_sent(model, tmp_path):
    embedding = make(model, tmp_path)
    vectors = embedding(["", "  \n\t", "word"])
    assert not vectors[:2].any()
    assert model.asked == ["word"]
    assert not embedding.encoder().vector(" ").any()


def test_a_blank_text_first_of_all_finds_out_how_long_a_vector_is(model, tmp_path):
    assert make(model, tmp_path)(["", " "]).shape == (2, 64)


def test_vectors_are_handed_out_read_only(model, tmp_path):
    embedding = make(model, tmp_path)
    for text in ("new", "new", ""):
        with pytest.raises(ValueError, match="read-only"):
            embedding.encoder().vector(text)[0] = 1.0


def test_odd_but_valid_texts_pass(model, tmp_path):
    odd = ["nul \0 inside", "\0", "🙂", "a" * 1_000_000, "line\nline", "\u200b", "ünïcödé"]
    vectors = make(model, tmp_path)(odd)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda texts: np.ones((len(texts) + 1, 4)), "gave 4 vectors for 3 texts"),
        (lambda texts: np.ones((len(texts) - 1, 4)), "gave 2 vectors for 3 texts"),
        (lambda texts: [[1.0, 2.0]] + [[1.0]] * (len(texts) - 1), "gave vectors of different lengths for one batch"),
        (lambda texts: np.full((len(texts), 4), np.nan), "gave NaN or infinity for text 0"),
        (lambda texts: np.full((len(texts), 4), np.inf), "gave NaN or infinity for text 0"),
        (lambda texts: np.zeros((len(texts), 4)), "gave a vector of zeros for text 0"),
        (lambda texts: np.ones(len(texts)), r"gave an array of shape \(3,\)"),
        (lambda texts: np.ones((len(texts), 0)), r"gave an array of shape \(3, 0\)"),
        (lambda texts: [["a", "b"]] * len(texts), "failed: ValueError"),
        (lambda texts: None, "failed: TypeError"),
        (lambda texts: 1 / 0, "the embedder 'bad' failed: ZeroDivisionError"),
    ],
)
def test_a_wrong_answer_of_the_model_is_refused_and_nothing_of_it_is_kept(tmp_path, answer, message):
    def bad(texts):
        return answer(texts)

    bad.name = "bad"
    embedding = make(bad, tmp_path)
    with pytest.raises(EmbeddingError, match=message):
        embedding(["a", "b", "c"])
    assert len(embedding.cache) == 0
    assert embedding.cache.info().rows == 0


@pytest.mark.parametrize("sizes", [(16, 16, 32), (32, 32, 16)])
def test_a_model_whose_vectors_change_length_is_refused(tmp_path, sizes):
    class Fickle(CountingModel):
        def __call__(self, texts):
            self._model = LexicalModel(sizes[min(len(self.batches), 2)])
            return super().__call__(texts)

    model = Fickle()
    with pytest.raises(EmbeddingError, match=rf"gave vectors of {sizes[0]} columns before and of {sizes[2]} now"):
        make(model, tmp_path, batch_size=5)(TEXTS)
    again = CountingModel(size=sizes[2])
    with pytest.raises(EmbeddingError, match="one model must give one length"):
        make(again, tmp_path)([*TEXTS, "new"])


def test_batches_before_a_failure_are_kept_and_only_the_rest_is_asked_again(tmp_path):
    class Failing(CountingModel):
        healthy = False

        def __call__(self, texts):
            if len(self.batches) == 3 and not self.healthy:
                raise ConnectionError("line dropped")
            return super().__call__(texts)

    model = Failing()
    embedding = make(model, tmp_path, batch_size=10)
    with pytest.raises(EmbeddingError, match=r"line dropped \(30 of 40 new texts are embedded"):
        embedding(TEXTS)
    assert embedding.cache.info().rows == 30
    model.healthy = True
    embedding(TEXTS)
    assert sorted(model.asked) == sorted(TEXTS)
    restarted = CountingModel()
    make(restarted, tmp_path)(TEXTS)
    assert restarted.asked == []


def test_more_columns_than_the_model_has_are_refused_and_nothing_paid_for_is_lost(model, tmp_path):
    with pytest.raises(InputError, match=r"embedding_dim=65 is more than the embedder 'counting' has \(64\)"):
        make(model, tmp_path, 65)(TEXTS)
    make(model, tmp_path, 64)(TEXTS[:1])
    assert sorted(model.asked) == sorted(TEXTS)


def test_an_anonymous_callable_works_and_is_not_stored_on_disk(tmp_path):
    model = CountingModel()
    with pytest.warns(QVLWarning, match="embedder has no name, so its vectors are not stored on disk"):
        embedding = make(lambda texts: model(texts), tmp_path)
    assert embedding(TEXTS).shape == (40, 64)
    assert not (tmp_path / "cache").exists()


def test_the_lexical_model_is_never_written_to_disk(tmp_path):
    embedding = Embedding(ModelSpec("lexical"), cache_dir=tmp_path / "cache")
    assert embedding(TEXTS).shape == (40, 4096)
    assert not (tmp_path / "cache").exists()


def test_another_model_under_the_same_name_is_noticed_before_it_values_anything(tmp_path):
    class Changed(CountingModel):
        def __call__(self, texts):
            return super().__call__(texts)[:, ::-1]

    probe = make(CountingModel(), tmp_path).probe()
    changed = Changed()
    embedding = make(changed, tmp_path / "elsewhere")
    with pytest.raises(StateError, match=r"gives other vectors for a probe text \(cosine 0\.\d+, needed 0.999\)"):
        embedding.encoder(probe)(TEXTS)
    assert sorted(changed.asked) == sorted(PROBE_TEXTS)
    assert embedding.cache.info().rows == 0


def test_the_right_model_is_asked_for_the_probe_texts_once_and_only_when_it_is_needed(tmp_path):
    probe = make(CountingModel(), tmp_path).probe()
    make(CountingModel(), tmp_path)(TEXTS[:20])
    model = CountingModel()
    embedding = make(model, tmp_path)
    embedding.encoder(probe)(TEXTS[:20])
    assert model.asked == []  # all from disk, stored under the same identity
    embedding.encoder(probe)(TEXTS[:21])
    embedding.encoder(probe)(TEXTS)
    assert sorted(model.asked) == sorted([*PROBE_TEXTS, *TEXTS[20:]])


def test_slightly_different_vectors_of_the_same_model_pass_the_probe(model, tmp_path):
    embedding = make(model, tmp_path)
    probe = embedding.probe()
    noise = np.random.default_rng(0).normal(size=probe.vectors.shape) * 1e-3
    make(CountingModel(), tmp_path / "new").encoder(Probe(probe.texts, unit(probe.vectors + noise)))(TEXTS)


def test_clearing_the_memory_keeps_what_was_paid_for(model, tmp_path):
    embedding = make(model, tmp_path)
    embedding(TEXTS)
    assert TEXTS[0] in embedding.cache
    assert len(embedding.cache) == 40
    embedding.cache.clear()
    assert TEXTS[0] not in embedding.cache
    assert len(embedding.cache) == 0
    embedding(TEXTS)
    assert len(model.asked) == 40


def test_a_deep_copy_is_the_same_shared_resource(model, tmp_path):
    embedding = make(model, tmp_path)
    assert copy.deepcopy(embedding) is embedding


def test_pickling_drops_keys_clients_and_open_files(tmp_path):
    hosted = Embedding(ModelSpec("openrouter/qwen/qwen3-embedding-8b", api_key="sk-secret"), cache_dir=tmp_path)
    raw = pickle.dumps(hosted)
    assert b"sk-secret" not in raw
    again = pickle.loads(raw)
    assert again.identity == hosted.identity
    assert again.spec.api_key is None
    own = make(dspy.Embedder("openai/text-embedding-3-small", api_key="sk-other", dimensions=8), tmp_path)
    raw = pickle.dumps(own)
    assert b"sk-other" not in raw
    assert pickle.loads(raw).spec.embedder.default_kwargs == {"dimensions": 8}


def test_a_bar_is_shown_only_where_embedding_takes_long_and_logging_is_not_quiet(tmp_path, capsys, monkeypatch):
    class Slow(CountingModel):
        def __call__(self, texts):
            time.sleep(0.05)
            return super().__call__(texts)

    monkeypatch.setattr("dspy_qvl.embedding.source.BAR_AFTER_SECONDS", 0.02)
    make(Slow("a"), tmp_path, batch_size=10)(TEXTS)
    assert "embedding: 100%" in capsys.readouterr().err
    make(Slow("b"), tmp_path, batch_size=40)(TEXTS)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("dspy_qvl.embedding.source.BAR_AFTER_SECONDS", 60)
    make(Slow("c"), tmp_path, batch_size=10)(TEXTS)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("dspy_qvl.embedding.source.BAR_AFTER_SECONDS", 0.02)
    logging.getLogger("dspy_qvl").setLevel(logging.ERROR)
    try:
        make(Slow("d"), tmp_path, batch_size=10)(TEXTS)
    finally:
        logging.getLogger("dspy_qvl").setLevel(logging.NOTSET)
    assert capsys.readouterr().err == ""


def test_importing_the_package_loads_no_heavy_library():
    heavy = ["scipy", "sklearn", "litellm", "torch", "sentence_transformers", "pandas", "matplotlib"]
    code = (
        "import sys, dspy_qvl\n"
        f"loaded = [name for name in {heavy} if any(module.startswith(name + '.') for module in sys.modules)]\n"
        "print(loaded)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Digests:
    """A named embedder of 64 columns that is cheap, and writes down how many texts it was asked for."""

    name = "digests"

    def __init__(self, log):
        self.log = log

    def __call__(self, texts):
        with self.log.open("a") as file:
            file.write(f"{len(texts)}\n")
        digests = b"".join(hashlib.blake2b(text.encode(), digest_size=64).digest() for text in texts)
        return np.frombuffer(digests, dtype=np.uint8).reshape(len(texts), 64).astype(np.float32) - 127.5

    def __deepcopy__(self, memo):
        return self


def test_a_text_whose_vector_cannot_be_used_is_named_and_the_others_are_kept(tmp_path):
    def moody(texts):
        moody.asked += texts
        return [[float("nan")] * 4 if "bad" in text else [1.0, 2.0, 3.0, len(text)] for text in texts]

    moody.name, moody.asked = "moody", []
    embedding = make(moody, tmp_path)
    with pytest.raises(TextsRefusedError, match=r"refused text 2 of 4 \('bad'\): its vector has NaN") as info:
        embedding(["a", "bb", "bad", "cccc"])
    assert set(info.value.refused) == {2}
    embedding(["a", "bb", "cccc"])
    assert sorted(moody.asked) == ["a", "bad", "bb", "cccc"]


@pytest.mark.parametrize("cache_dir", ["a\0b", "x" * 300, " ", "~nobody-of-that-name/cache"])
def test_a_cache_dir_that_can_be_no_folder_is_refused(model, cache_dir):
    with pytest.raises(InputError, match=r"cache_dir|cannot be the path of a file"):
        Embedding(ModelSpec("", embedder=model), cache_dir=cache_dir)


def test_a_cache_dir_in_the_home_folder_is_found(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    Embedding(ModelSpec("", embedder=model), cache_dir="~/vectors")(["a text"])
    assert (tmp_path / "vectors").is_dir()


def test_a_relative_cache_dir_is_meant_from_where_the_learner_was_made(model, tmp_path, monkeypatch):
    """A process that goes elsewhere pays for nothing twice, and nor does a copy, a pickle or a loaded learner."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    learner = Qwen3EmbeddingValueLearner(embedder=model, cache_dir="cache", features=None)
    learner.embed(TEXTS[:5])
    learner.add_training_examples(rated(5))
    learner.train(cv_folds=2)
    learner.save_model("value.qvl")
    monkeypatch.chdir("elsewhere")
    learner.embed(TEXTS)
    raw = pickle.dumps(learner)
    assert learner.cache_dir == str(tmp_path / "cache")
    n_asked = len(model.asked)
    for copied in (copy.deepcopy(learner), pickle.loads(raw), learner):
        if copied is learner:
            learner.load_model(tmp_path / "value.qvl")
        copied.embedding_cache.clear()
        copied.embed(TEXTS)
        assert copied.cache_dir == str(tmp_path / "cache")
        assert len(copied.embedder.spec.embedder.asked) == n_asked
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_relative_cache_dir_lies_below_the_folder_of_a_machine_that_has_not_the_one_it_came_from(
    tmp_path, monkeypatch
):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    raw = pickle.dumps(Embedding(ModelSpec("", embedder=CountingModel()), cache_dir="cache"))
    monkeypatch.chdir(tmp_path / "there")
    (tmp_path / "here").rmdir()
    assert pickle.loads(raw).cache_dir == tmp_path / "there" / "cache"


def test_a_blank_name_is_no_name(tmp_path):
    class Nameless(CountingModel):
        pass

    with pytest.warns(QVLWarning, match="embedder has no name"):
        make(Nameless(name=""), tmp_path)(["a"])
    assert not (tmp_path / "cache").exists()
    with pytest.raises(InputError, match="must not be blank"):
        make(Nameless(name=" "), tmp_path)


def test_killed_20_times_while_embedding_20000_texts_it_asks_only_for_what_is_not_stored(tmp_path):
    texts, log, rng = [f"text {number}" for number in range(20_000)], tmp_path / "asked.txt", random.Random(1)
    context = multiprocessing.get_context("fork")
    n_killed = 0
    for _ in range(20):
        worker = context.Process(target=lambda: make(Digests(log), tmp_path, batch_size=50)(texts))
        worker.start()
        worker.join(0.05 + 0.25 * rng.random())
        n_killed += worker.is_alive()
        worker.kill()
        worker.join(10)
    assert n_killed >= 10
    vectors = make(Digests(log), tmp_path, batch_size=50)(texts)
    np.testing.assert_array_equal(vectors, unit(Digests(log)(texts)))
    asked = sum(map(int, log.read_text().split())) - len(texts)  # without the line above
    assert len(texts) <= asked <= len(texts) + 50 * n_killed
    with sqlite3.connect(tmp_path / "cache" / "vectors-1.sqlite") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM vectors").fetchone() == (len(texts),)
