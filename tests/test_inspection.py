"""How sure a value function is, what it says of each rated text without it, and which rated texts a text is like."""

import copy
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import dspy
import numpy as np
import pytest

from dspy_qvl import InputError, NotFittedError, Qwen3EmbeddingValueLearner
from tests.conftest import CountingModel, rated

NEW = [text for text, _ in rated(20, seed=8)]


def make(tmp_path, examples=None, **settings):
    learner = Qwen3EmbeddingValueLearner("lexical", 256, cache_dir=tmp_path / "cache", **settings)
    learner.add_training_examples(rated(40) if examples is None else examples)
    learner.train()
    return learner


def test_a_prediction_says_how_sure_it_is(trained):
    prediction = trained(text=NEW[0])
    assert prediction.score == trained.predict(NEW[0])
    assert prediction.std == trained.predict_std(NEW[0]) > 0
    assert type(prediction.std) is float


@pytest.mark.parametrize("n", [40, 300])
@pytest.mark.parametrize("features", [None, "length", ["lexical", "length"]])
def test_many_texts_are_as_sure_as_each_of_them_alone(tmp_path, n, features):
    learner = make(tmp_path, rated(n), features=features)
    texts = [*NEW, "", "zxq wvut kjhg qqqq", NEW[0], learner.training_texts[3]]
    alone = [learner.predict_std(text) for text in texts]
    assert learner.predict_std_many(texts).tolist() == alone
    assert learner.predict_std_many(texts[::-1]).tolist() == alone[::-1]
    assert learner.predict_std_many([]).shape == (0,)
    learner.update("one more", 3.0)
    assert learner.predict_std_many(texts).tolist() == [learner.predict_std(text) for text in texts] != alone


def test_many_answers_are_as_sure_for_their_queries(tmp_path):
    learner = Qwen3EmbeddingValueLearner("lexical", 256, cache_dir=None)
    for number, (text, score) in enumerate(rated(40)):
        learner.add_training_example(text, score, query=f"which {text.split()[number % 5]}?")
    learner.train()
    queries = [f"which {text.split()[0]}?" for text in NEW]
    alone = [learner.predict_std(text, query) for text, query in zip(NEW, queries, strict=True)]
    assert learner.predict_std_many(NEW, queries).tolist() == alone
    assert learner.predict_std_many(NEW, queries[0])[0] == alone[0]
    with pytest.raises(InputError, match="there are 2 queries for 20 texts"):
        learner.predict_std_many(NEW, queries[:2])
    with pytest.raises(InputError, match=r"texts\[1\] must be a string, but got int"):
        learner.predict_std_many(["x", 3])


def test_a_subclass_with_columns_of_its_own_is_as_sure_of_many(tmp_path):
    class Louder(Qwen3EmbeddingValueLearner):
        def _get_embedding_vector(self, text):
            return np.append(super()._get_embedding_vector(text), len(text) / 100).astype(np.float32)

    learner = Louder("lexical", 256, cache_dir=tmp_path / "cache")
    learner.add_training_examples(rated(40))
    learner.train()
    assert learner.predict_std_many(NEW).tolist() == [learner.predict_std(text) for text in NEW]


@pytest.mark.parametrize("alpha", [1e-8, 1.0])
def test_a_batch_of_dspy_says_what_single_calls_say(tmp_path, alpha):
    learner = make(tmp_path, ridge_alpha=alpha)
    twin = copy.deepcopy(learner)
    twin.train()  # a fit of its own, that knows no text yet
    examples = [dspy.Example(text=text).with_inputs("text") for text in (*NEW, "", NEW[0])]
    said = learner.batch(examples, num_threads=4, disable_progress_bar=True)
    assert [one.toDict() for one in said] == [twin(text=example.text).toDict() for example in examples]
    assert len(learner.current_fit().memo.bounds) == len(set(NEW)) + 1
    examples.append(dspy.Example(text=None).with_inputs("text"))
    *_, failed, errors = learner.batch(examples, return_failed_examples=True, disable_progress_bar=True)
    assert [example.text for example in failed] == [None]
    assert "text must be a string, but got NoneType" in str(errors[0])


def test_of_a_batch_nobody_is_sure_where_the_rated_texts_were_not_kept(tmp_path):
    learner = make(tmp_path, keep_examples=False)
    learner.save_model(tmp_path / "m")
    loaded = Qwen3EmbeddingValueLearner(cache_dir=tmp_path / "cache")
    loaded.load_model(tmp_path / "m")
    said = loaded.batch([dspy.Example(text=text).with_inputs("text") for text in NEW], disable_progress_bar=True)
    assert [one.score for one in said] == learner.predict_many(NEW).tolist()
    assert {one.std for one in said} == {None}
    with pytest.raises(InputError, match=r"were not saved with it \(keep_examples=False\)"):
        loaded.predict_std_many(NEW)


def test_nothing_is_less_sure_than_a_text_of_words_never_rated(trained):
    assert trained.predict_std("zxq wvut kjhg qqqq") > max(trained.predict_std(text) for text in NEW)
    assert trained.predict_std("") > 0


@pytest.mark.parametrize("features", [None, "length", "auto"])
def test_left_out_values_are_those_of_learning_without_each_text(tmp_path, features):
    learner = make(tmp_path, features=features)
    left = learner.leave_one_out()
    assert np.allclose(left.values + left.residuals, learner.training_scores)
    fit = learner.current_fit()
    for row in range(0, 40, 7):
        table = learner._columns(fit)(fit.texts)
        others = np.delete(np.arange(40), row)
        X = fit.fitted.weighed(table.X).astype(float)
        mean, y = X[others].mean(axis=0), fit.scores
        centred = X[others] - mean
        coef = np.linalg.solve(
            centred.T @ centred + fit.alpha * np.eye(X.shape[1]), centred.T @ (y[others] - y[others].mean())
        )
        assert left.values[row] == pytest.approx((X[row] - mean) @ coef + y[others].mean(), rel=1e-6)
    assert left.std.shape == left.leverages.shape == (40,)


def test_the_nearest_rated_texts_are_those_with_the_highest_cosine(trained):
    found = trained.nearest(NEW[0], 3)
    cosines = trained.embed(trained.training_texts) @ trained.embed([NEW[0]])[0]
    best = np.argsort(-cosines)[:3]
    assert [example.text for example, _ in found] == [trained.training_texts[row] for row in best]
    assert [cosine for _, cosine in found] == pytest.approx(cosines[best].tolist(), abs=1e-6)
    assert trained.nearest(trained.training_texts[5], 1)[0][0].text == trained.training_texts[5]
    assert len(trained.nearest(NEW[0], 1000)) == 60
    with pytest.raises(InputError, match="n_neighbors must be a whole number of at least 1"):
        trained.nearest(NEW[0], 0)


def test_what_is_learned_later_makes_surer_and_leaves_a_copy_as_it_was(trained):
    text = "zxq wvut kjhg qqqq"
    before = trained.predict_std(text)
    copy = trained.deepcopy()
    trained.update(text, 6.0)
    assert trained.predict_std(text) < before
    assert copy.predict_std(text) == before
    trained.forget(text)
    assert trained.predict_std(text) == pytest.approx(before)


def test_a_saved_value_function_is_as_sure_in_another_process(trained, tmp_path):
    trained.save_model(tmp_path / "m")
    code = (
        "import sys, json, dspy_qvl\n"
        "learner = dspy_qvl.Qwen3EmbeddingValueLearner()\n"
        "learner.load_model(sys.argv[1])\n"
        "print(json.dumps([learner(text=text).std for text in json.loads(sys.argv[2])]))"
    )
    command = [sys.executable, "-c", code, tmp_path / "m", json.dumps(NEW)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [trained(text=text).std for text in NEW]


def test_threads_work_the_posterior_out_once_and_agree(tmp_path):
    learner = make(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(learner.predict_std, NEW * 4))
    assert together == [learner.predict_std(text) for text in NEW] * 4


def test_without_the_rated_texts_there_is_a_value_and_no_certainty(tmp_path):
    learner = make(tmp_path, keep_examples=False)
    assert learner(text=NEW[0]).std > 0  # as long as it lives, and so have its copies
    twin = copy.deepcopy(learner)
    assert twin(text=NEW[0]).std == learner(text=NEW[0]).std
    twin.update("one more", 3.0)
    learner.save_model(tmp_path / "m")
    loaded = Qwen3EmbeddingValueLearner(cache_dir=tmp_path / "cache")
    loaded.load_model(tmp_path / "m")
    assert loaded(text=NEW[0]).score == learner.predict(NEW[0])
    assert loaded(text=NEW[0]).std is None
    for call in (loaded.leave_one_out, lambda: loaded.predict_std("x"), lambda: loaded.nearest("x")):
        with pytest.raises(InputError, match=r"were not saved with it \(keep_examples=False\)"):
            call()


def test_a_value_and_its_certainty_are_of_one_fit(tmp_path):
    learner = make(tmp_path)
    stop, seen, real = threading.Event(), set(), set()

    def told():
        prediction = learner(text="zz sorry")
        return round(prediction.score, 6), round(prediction.std, 6)

    def change():
        while not stop.is_set():
            learner.update("zz sorry", 9.0)
            learner.forget("zz sorry")

    real.add(told())
    learner.update("zz sorry", 9.0)
    real.add(told())
    learner.forget("zz sorry")
    worker = threading.Thread(target=change)
    worker.start()
    for _ in range(1000):
        seen.add(told())
    stop.set()
    worker.join()
    assert seen <= real


def test_nothing_is_known_before_anything_was_learned(learner):
    for call in (learner.leave_one_out, lambda: learner.predict_std("x"), lambda: learner.nearest("x")):
        with pytest.raises(NotFittedError, match="nothing was learned yet"):
            call()


def test_a_callers_own_columns_are_saved_and_not_asked_for_again(tmp_path):
    asked = []

    def judge(texts):
        asked.extend(texts)
        return [[len(text) % 7] for text in texts]

    learner = make(tmp_path, features=[judge])
    learner.update("one more", 3.0)
    learner.forget(learner.training_texts[2])
    learner.save_model(tmp_path / "m")
    before = [learner(text=text).std for text in NEW]
    asked.clear()
    loaded = Qwen3EmbeddingValueLearner(features=[judge], cache_dir=tmp_path / "cache")
    loaded.load_model(tmp_path / "m")
    loaded.leave_one_out()
    loaded.train()
    assert asked == []
    loaded.load_model(tmp_path / "m")
    assert [loaded(text=text).std for text in NEW] == before
    assert set(asked) == set(NEW)


def test_a_model_of_ones_own_is_as_sure_after_loading(tmp_path):
    learner = Qwen3EmbeddingValueLearner(embedder=CountingModel(), cache_dir=None)
    learner.add_training_examples(rated(30))
    learner.train()
    learner.save_model(tmp_path / "m")
    model = CountingModel()
    loaded = Qwen3EmbeddingValueLearner(embedder=model, cache_dir=None)
    loaded.load_model(tmp_path / "m")
    assert loaded(text=NEW[1]).std == learner(text=NEW[1]).std
    assert not set(model.asked) & set(learner.training_texts)


def test_left_out_values_cannot_be_written_into_the_fit(tmp_path):
    learner = make(tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        learner.leave_one_out().residuals[0] = 9.0
    with pytest.raises(ValueError, match="read-only"):
        learner.inspection().fit.members[0] = 9
