"""Columns beside the embedding: made once, weighed, bounded, saved and loaded."""

import asyncio
import copy
import math
import pickle
import threading

import dspy
import numpy as np
import pytest

from dspy_qvl import FeatureError, InputError, Qwen3EmbeddingValueLearner, StateError
from dspy_qvl.features import LEXICAL, WIDTHS, Features
from dspy_qvl.features.table import Blocks, Table
from tests.conftest import BAD, GOOD, CountingModel, rated, ridge_by_hand, weighed_columns

NEW = [text for text, _ in rated(20, seed=8)]


def judge(texts):
    """A judge's score and how sure it is."""
    judge.asked.extend(texts)
    good = [sum(word in GOOD for word in text.split()) for text in texts]
    return np.array([[count, count % 2] for count in good], dtype=float)


judge.asked = []


def make(features, folder=None, **settings):
    learner = Qwen3EmbeddingValueLearner(
        embedder=CountingModel(size=settings.pop("size", 16)), cache_dir=folder, features=features, **settings
    )
    learner.add_training_examples(rated(60))
    return learner


# What features may be


@pytest.mark.parametrize(
    ("features", "names"),
    [
        (None, ()),
        ([], ()),
        ("auto", ("lexical", "length")),
        ("length", ("length",)),
        (["lexical", "length"], ("lexical", "length")),
        (judge, ("judge",)),
        (("length", judge), ("length", "judge")),
    ],
)
def test_features_are_named(features, names):
    assert make(features).features == names


def test_beside_the_lexical_model_auto_is_the_length():
    assert Qwen3EmbeddingValueLearner("lexical", cache_dir=None).features == ("length",)
    assert Qwen3EmbeddingValueLearner(" Lexical", cache_dir=None).features == ("length",)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ("words", "features knows no block 'words'"),
        (["auto", "length"], "features knows no block 'auto'"),
        (["length", "length"], "two blocks named 'length'"),
        (3, "features must be 'auto', None, or a list"),
        ({"length": 1}, "features must be 'auto', None, or a list"),
        ([3], "a block of features must be a name or a callable, but got int"),
        (lambda texts: texts, "needs a name by which a saved value function can ask for it"),
    ],
)
def test_features_that_cannot_be_used_are_refused(features, message):
    with pytest.raises(InputError, match=message):
        make(features)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda texts: [1.0] * (len(texts) + 1), r"the feature block 'own' gave an array of shape \(61,\)"),
        (lambda texts: np.ones((len(texts), 0)), r"must be \(60, k\) with k > 0"),
        (lambda texts: 1.0, r"gave an array of shape \(\)"),
        (lambda texts: ["a"] * len(texts), "not a table of numbers"),
        (lambda texts: [math.nan] * len(texts), "gave NaN or infinity for text 0 of 60"),
        (lambda texts: [1e300] * len(texts), "gave NaN or infinity"),
        (lambda texts: 1 / 0, "the feature block 'own' failed: ZeroDivisionError"),
    ],
)
def test_a_block_that_answers_wrongly_is_refused_and_the_fit_stays(answer, message):
    def own(texts):
        return answer(texts)

    learner = make(own)
    with pytest.raises(FeatureError, match=message):
        learner.train()
    assert learner.ridge.fitted is None


# What they do


def test_values_are_an_inner_product_with_the_columns_side_by_side():
    learner = make(["lexical", "length", judge])
    metrics = learner.train()
    fitted = learner.ridge.fitted.fitted
    assert fitted.blocks.names == ("embedding", "lexical", "length", "judge")
    assert fitted.blocks.widths == (16, WIDTHS[LEXICAL], 1, 2)
    assert set(metrics["blocks"]) == set(fitted.blocks.names)
    columns = learner._columns(learner.ridge.fitted)(NEW).X.toarray().astype(np.float64)
    lengths = np.log1p([len(text) for text in learner.training_texts])
    columns[:, 16] = np.clip(columns[:, 16], np.float32(lengths.min()), np.float32(lengths.max()))
    by_hand = columns @ learner.ridge.coef_ + learner.ridge.intercept_
    np.testing.assert_allclose(learner.predict_many(NEW), by_hand, rtol=1e-9)
    assert [learner.predict(text) for text in NEW] == learner.predict_many(NEW).tolist()


def test_a_judge_that_knows_the_answer_is_found_out():
    learner, plain = make([judge]), make(None)
    with_judge, without = learner.train(), plain.train()
    assert with_judge["val_spearman"] > 0.95 > without["val_spearman"]
    assert with_judge["blocks"]["judge"]["adds"] > 0.5


def test_a_block_that_earns_no_place_is_left_out_by_auto_and_kept_when_named():
    scores = np.random.default_rng(0).normal(size=200)
    texts = [" ".join(np.random.default_rng(row).choice(GOOD + BAD, size=5)) for row in range(200)]
    for features, least in [("auto", 0.0), (["lexical", "length"], 0.1)]:
        learner = Qwen3EmbeddingValueLearner(embedder=CountingModel(), cache_dir=None, features=features)
        learner.add_training_examples(list(zip(texts, scores, strict=True)))
        blocks = learner.optimize_hyperparameters([300.0])["blocks"]
        assert min(block["weight"] for block in blocks.values()) >= least
        used = [name for name, block in blocks.items() if block["weight"] > 0]
        assert list(learner.ridge.fitted.fitted.blocks.names) == used


def test_each_text_is_asked_of_a_block_once():
    judge.asked.clear()
    learner = make([judge])
    learner.train()
    learner.train()
    assert sorted(judge.asked) == sorted(learner.training_texts)
    learner.predict_many([*NEW, *NEW])
    learner.predict(NEW[0])
    assert len(judge.asked) == 60 + len(set(NEW))


def test_a_length_beyond_the_rated_ones_counts_as_the_nearest_rated_one():
    learner = make("length")
    learner.train()
    fit = learner.ridge.fitted
    low, high = fit.fitted.bounds[1][:, 0]
    row = learner._columns(fit)(["x"]).X
    for length, counted in [(0.0, low), (50.0, high), (float(low + high) / 2, (low + high) / 2)]:
        row[0, -1] = length
        bounded = row.copy()
        bounded[0, -1] = counted
        assert fit.predict(row)[0] == fit.predict(bounded)[0]


def test_weights_chosen_with_alpha_are_used_from_then_on_and_alpha_by_hand_ends_them():
    learner = make("auto")
    chosen = learner.optimize_hyperparameters([0.3])["blocks"]
    metrics = learner.train()
    weights = {name: block["weight"] for name, block in chosen.items() if block["weight"] > 0}
    assert {name: block["weight"] for name, block in metrics["blocks"].items()} == weights
    assert metrics["alpha_saw_validation"]
    learner.ridge_alpha = 1.0
    assert learner.ridge.weights is None


def test_an_override_of_the_embedding_and_blocks_work_side_by_side():
    class Halved(Qwen3EmbeddingValueLearner):
        def _get_embedding_vector(self, text):
            return super()._get_embedding_vector(text)[:8]

    learner = Halved(embedder=CountingModel(size=16), cache_dir=None, features=["length"])
    learner.add_training_examples(rated(30))
    learner.train()
    assert learner.ridge.fitted.fitted.blocks.widths == (8, 1)
    learner.update("a lovely lamp", 9.0)
    assert math.isfinite(learner.predict("lamp"))


def test_a_table_of_some_blocks_keeps_their_order():
    table = Table(np.arange(12, dtype=np.float32).reshape(2, 6), Blocks(("embedding", "a", "b"), (3, 2, 1)))
    np.testing.assert_array_equal(table.only(["b", "embedding"]).X, table.X[:, [0, 1, 2, 5]])
    assert table.only(["b", "embedding"]).blocks.names == ("embedding", "b")
    assert table.only(["embedding", "a", "b"]) is table


def test_blank_texts_are_one_text_to_every_block():
    features = Features("length", beside_lexical=False)
    table = features(["", "  \n"], np.zeros((2, 3), np.float32), ["embedding", "length"])
    np.testing.assert_array_equal(table.X, np.zeros((2, 4)))


# Saved, loaded, copied


@pytest.mark.parametrize("features", ["auto", ["lexical", "length"], "length", None])
def test_a_saved_file_brings_its_blocks(tmp_path, features):
    learner = make(features, tmp_path)
    learner.optimize_hyperparameters([0.3])
    learner.save_model(tmp_path / "m")
    learner.save(tmp_path / "m.json")
    fresh = Qwen3EmbeddingValueLearner(embedder=CountingModel(size=16), cache_dir=tmp_path)
    fresh.load_model(tmp_path / "m")
    assert fresh.features == learner.features
    assert fresh.ridge.weights == learner.ridge.weights
    by_dspy = Qwen3EmbeddingValueLearner(embedder=CountingModel(size=16), cache_dir=tmp_path, features=features)
    by_dspy.load(tmp_path / "m.json")
    values, metrics = learner.predict_many(NEW).tobytes(), learner.train()
    for loaded in (fresh, by_dspy):
        assert loaded.predict_many(NEW).tobytes() == values
        np.testing.assert_equal(loaded.train(), metrics)


def test_features_given_otherwise_than_the_file_are_refused(tmp_path):
    learner = make(["length"], tmp_path)
    learner.train()
    learner.save_model(tmp_path / "m")
    other = Qwen3EmbeddingValueLearner(embedder=CountingModel(size=16), cache_dir=tmp_path, features=["lexical"])
    with pytest.raises(
        StateError, match=r"saved with features=\['length'\], but this learner was made with \['lexical'\]"
    ):
        other.load_model(tmp_path / "m")


def test_a_value_function_asks_for_the_callables_it_was_fitted_with(tmp_path):
    learner = make([judge], tmp_path)
    learner.train()
    learner.save_model(tmp_path / "m")
    learner.save(tmp_path / "m.json")
    without = Qwen3EmbeddingValueLearner(embedder=CountingModel(size=16), cache_dir=tmp_path)
    with pytest.raises(StateError, match="the caller's own features 'judge'"):
        without.load_model(tmp_path / "m")
    without.load(tmp_path / "m.json")
    with pytest.raises(StateError, match=r"the caller's own features 'judge'; give this learner features="):
        without.predict("lamp")
    again = Qwen3EmbeddingValueLearner(embedder=CountingModel(size=16), cache_dir=tmp_path, features=judge)
    again.load_model(tmp_path / "m")
    assert again.predict_many(NEW).tobytes() == learner.predict_many(NEW).tobytes()


def test_copies_and_whole_programs_keep_their_blocks(tmp_path):
    learner = Qwen3EmbeddingValueLearner("lexical", 256, cache_dir=tmp_path, features=["length"])
    learner.add_training_examples(rated(60))
    learner.train()
    want = learner.predict_many(NEW).tobytes()
    assert copy.deepcopy(learner).predict_many(NEW).tobytes() == want
    assert learner.reset_copy().predict_many(NEW).tobytes() == want
    learner.save(tmp_path / "whole", save_program=True)
    assert dspy.load(tmp_path / "whole", allow_pickle=True).predict_many(NEW).tobytes() == want
    assert asyncio.run(learner.acall(text=NEW[0])).score == learner(text=NEW[0]).score == learner.predict(NEW[0])


# Update and forget


@pytest.mark.parametrize("features", [None, ["length", judge], "auto"])
@pytest.mark.parametrize("n", [10, 60])
def test_an_update_is_a_fit_from_scratch_and_forgetting_takes_it_back(features, n):
    learner = Qwen3EmbeddingValueLearner(embedder=CountingModel(size=16), cache_dir=None, features=features)
    learner.add_training_examples(rated(n))
    learner.train(cv_folds=2)
    before, coef = copy.deepcopy(learner), learner.ridge.coef_
    for text, score in rated(5, seed=3):
        learner.update(text, score, {"from": "update"})
    assert learner.training_texts[n:] == [text for text, _ in rated(5, seed=3)]
    assert_fitted_from_scratch(learner)
    learner.update(rated(5, seed=3)[0][0], 0.5)  # rated twice
    assert_fitted_from_scratch(learner)
    for text in dict.fromkeys(text for text, _ in rated(5, seed=3)):
        learner.forget(text)
        assert text not in learner.training_texts
        assert_fitted_from_scratch(learner)
    np.testing.assert_allclose(learner.ridge.coef_, coef, rtol=1e-7, atol=1e-9 * np.abs(coef).max())
    assert learner.ridge.alpha == before.ridge.alpha
    np.testing.assert_array_equal(before.ridge.coef_, coef)
    assert len(before.training_texts) == n


def assert_fitted_from_scratch(learner):
    fit = learner.ridge.fitted
    coef, intercept = ridge_by_hand(weighed_columns(learner), learner.training_scores, fit.alpha)
    want = coef * fit.fitted.column_factors
    assert np.linalg.norm(learner.ridge.coef_ - want) <= 1e-9 * np.linalg.norm(want)
    assert learner.ridge.intercept_ == pytest.approx(intercept, rel=1e-9)


def test_a_copy_made_between_updates_goes_its_own_way():
    learner = make(None)
    learner.train()
    learner.update("a lovely lamp", 9.0)
    twin = copy.deepcopy(learner)
    value = twin.predict("lamp")
    learner.update("an awful lamp", 0.0)
    assert twin.predict("lamp") == value
    twin.update("a dull lamp", 5.0)
    for one in (learner, twin):
        assert_fitted_from_scratch(one)


def test_an_update_learns_what_was_waiting_too():
    learner = make(None)
    learner.train()
    learner.add_training_example("a lovely lamp", 9.0)
    learner.update("an awful lamp", 0.0)
    assert learner.ridge.fitted.n_texts == 62
    assert_fitted_from_scratch(learner)
    learner.add_training_example("a waiting lamp", 1.0)
    fit = learner.ridge.fitted
    learner.forget("a waiting lamp")  # never learned: nothing to take back
    assert learner.ridge.fitted is fit
    assert len(learner.training_texts) == 62


def test_an_updated_value_function_is_saved_and_goes_on_being_updated(tmp_path):
    learner = make(["length"], tmp_path)
    learner.train()
    learner.update("a lovely lamp", 9.0)
    learner.save_model(tmp_path / "m")
    model = CountingModel(size=16)
    loaded = Qwen3EmbeddingValueLearner(embedder=model, cache_dir=tmp_path / "elsewhere")
    loaded.load_model(tmp_path / "m")
    assert loaded.predict_many(NEW).tobytes() == learner.predict_many(NEW).tobytes()
    loaded.forget("a lovely lamp")
    assert_fitted_from_scratch(loaded)
    assert not set(model.asked) & set(learner.training_texts)


def test_what_cannot_be_updated_or_forgotten_is_refused_and_nothing_changes(tmp_path):
    learner = make(None, tmp_path)
    with pytest.raises(Exception, match="nothing was learned yet"):
        learner.update("lamp", 1.0)
    learner.train()
    state = learner.ridge.dump_state()
    with pytest.raises(InputError, match="'never seen' was never rated; training_texts lists the 60 that were"):
        learner.forget("never seen")
    with pytest.raises(InputError, match="the score of example must be a number"):
        learner.update("lamp", "9")
    with pytest.raises(InputError, match="text must be a string"):
        learner.forget(3)
    assert learner.ridge.dump_state() == state
    learner.ridge.keep_examples = False
    learner.save_model(tmp_path / "m")
    bare = Qwen3EmbeddingValueLearner(embedder=CountingModel(size=16), cache_dir=tmp_path)
    bare.load_model(tmp_path / "m")
    for change in (lambda: bare.update("lamp", 1.0), lambda: bare.forget("lamp")):
        with pytest.raises(InputError, match=r"keep_examples=False|was never rated"):
            change()


def test_an_embedder_that_fails_during_an_update_changes_nothing():
    learner = make(None)
    learner.train()
    learner.update("a lovely lamp", 9.0)
    state = learner.ridge.dump_state()

    def broken(texts):
        raise ConnectionError("gone")

    learner._embedding._sources.current()._checked._embedder.model = broken
    with pytest.raises(Exception, match="gone"):
        learner.update("another lamp", 1.0)
    assert learner.ridge.dump_state() == state
    learner.update("a lovely lamp", 8.0)  # its vector is known
    assert_fitted_from_scratch(learner)


def test_forgetting_too_much_forgets_the_value_function_and_says_so():
    from dspy_qvl import NotFittedError, QVLWarning

    learner = Qwen3EmbeddingValueLearner("lexical", 64, cache_dir=None)
    learner.add_training_examples([("good", 9.0), ("bad", 1.0)])
    with pytest.warns(QVLWarning, match="nothing is held out"):
        learner.train(cv_folds=2)
    with pytest.warns(QVLWarning, match="fewer than two different scores are left"):
        learner.forget("bad")
    assert learner.training_texts == ["good"]
    with pytest.raises(NotFittedError, match="nothing was learned yet"):
        learner.predict("good")


# Found by attack


def test_learning_from_several_threads_loses_and_mixes_up_nothing():
    started, go, slow = threading.Event(), threading.Event(), [False]

    def judged(texts):
        if slow[0]:
            started.set()
            go.wait(10)
        return [len(text) for text in texts]

    learner = make(judged)
    learner.train()
    learner.add_training_example("new", 1.0)
    slow[0] = True
    training = threading.Thread(target=learner.train)
    training.start()
    started.wait(10)
    slow[0] = False
    changes = [threading.Thread(target=learner.update, args=(f"zap {number}", 4.0)) for number in range(4)]
    changes += [threading.Thread(target=learner.add_training_example, args=(f"added {n}", 2.0)) for n in range(20)]
    changes += [threading.Thread(target=learner.forget, args=(rated(60)[0][0],))]
    for thread in changes:
        thread.start()
    go.set()
    for thread in [training, *changes]:
        thread.join()
    assert len(learner.training_texts) == 60 + 1 + 4 + 20 - 1
    learner.update("the last one", 3.0)
    assert_fitted_from_scratch(learner)
    vectors = learner._embedding(learner.training_texts)
    np.testing.assert_array_equal(np.stack(learner.ridge.fitted.vectors), vectors)


@pytest.mark.parametrize("n", [10, 60])
@pytest.mark.parametrize("score", [1e6, 1e15, 1e74])
def test_a_slip_of_the_pen_is_forgotten_without_a_trace(n, score):
    learner = Qwen3EmbeddingValueLearner(embedder=CountingModel(size=16), cache_dir=None, features=None)
    learner.add_training_examples(rated(n))
    learner.train(cv_folds=2)
    before = learner.predict("a lovely lamp")
    learner.update("oops", score)
    learner.forget("oops")
    assert learner.predict("a lovely lamp") == pytest.approx(before, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-70, 1e-40, 1e40, 1e70])
def test_the_scale_of_the_scores_changes_no_weight(scale):
    learners = [Qwen3EmbeddingValueLearner("lexical", 64, cache_dir=None, features=["length", judge]) for _ in range(2)]
    for learner, factor in zip(learners, (1.0, scale), strict=True):
        learner.add_training_examples([(text, score * factor) for text, score in rated(60)])
    plain, scaled = (learner.train() for learner in learners)
    assert {name: block["weight"] for name, block in plain["blocks"].items()} == {
        name: block["weight"] for name, block in scaled["blocks"].items()
    }
    assert scaled["val_spearman"] == pytest.approx(plain["val_spearman"])


@pytest.mark.parametrize("scale", [1e-22, 1e17, 1e30])
def test_the_scale_of_a_block_changes_no_value(scale):
    def scaled(texts):
        return judge(texts) * scale

    learners = [make(judge), make(scaled)]
    for learner in learners:
        learner.train()
    np.testing.assert_allclose(learners[1].predict_many(NEW), learners[0].predict_many(NEW), rtol=1e-4)


def test_a_fold_that_is_one_text_is_no_trouble():
    learner = make("length")
    with pytest.warns(Warning, match="cv_folds=5 is more than"):
        learner.train(validation_split=0, groups=["small"] + ["big"] * 59)
    assert math.isfinite(learner.predict("lamp"))


def test_a_block_that_changes_its_width_is_refused():
    def fickle(texts):
        return np.ones((len(texts), 2 if len(texts) > 5 else 3))

    learner = make(fickle)
    learner.train()
    for call in (lambda: learner.predict("new one"), lambda: learner.update("new one", 3.0)):
        with pytest.raises(FeatureError, match="'fickle' gave 2 columns before and 3 now"):
            call()


def test_an_iterator_of_features_is_kept_and_a_callable_cannot_empty_its_list(tmp_path):
    def greedy(texts):
        lengths = [float(len(text)) for text in texts]
        texts.clear()
        return lengths

    learner = make(iter(["length", greedy]))
    assert learner.train()["n_train"] == 48
    assert pickle.loads(pickle.dumps(Features(iter(["length"]), beside_lexical=False))).names == ("length",)


def test_blocks_may_be_named_in_another_order_than_the_file_has_them(tmp_path):
    learner = make(["length", judge], tmp_path)
    learner.train()
    learner.save_model(tmp_path / "m")
    other = Qwen3EmbeddingValueLearner(embedder=CountingModel(size=16), cache_dir=tmp_path, features=[judge, "length"])
    other.load_model(tmp_path / "m")
    assert other.predict_many(NEW).tobytes() == learner.predict_many(NEW).tobytes()


def test_a_rating_that_waits_can_be_forgotten_whatever_was_loaded(tmp_path):
    learner = make(None, tmp_path, keep_examples=False)
    learner.train()
    learner.save_model(tmp_path / "m")
    bare = Qwen3EmbeddingValueLearner(embedder=CountingModel(size=16), cache_dir=tmp_path)
    bare.load_model(tmp_path / "m")
    bare.add_training_example("waiting", 1.0)
    bare.forget("waiting")
    assert bare.training_texts == []
    with pytest.raises(InputError, match="were not saved with it"):
        bare.forget(rated(60)[0][0])


def test_values_kept_beside_a_fit_are_its_own_and_in_no_pickle():
    learner = make(None)
    learner.train()
    value = learner.predict("a secret lamp")
    assert learner.predict("a secret lamp") == value == learner.predict_many(["a secret lamp"])[0]
    learner.update("another lamp", 9.0)
    assert learner.predict("a secret lamp") == learner.predict_many(["a secret lamp"])[0] != value
    assert b"secret" not in pickle.dumps(learner.ridge)
    assert "secret" not in str(learner.ridge.dump_state())
