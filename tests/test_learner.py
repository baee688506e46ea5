"""Rated texts in, a value function out."""

import asyncio
import inspect
import logging
import math
import pydoc
import re
import time
import unicodedata
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dspy
import numpy as np
import pytest
from sklearn.linear_model import Ridge

from dspy_qvl import EmbeddingError, QVLWarning, Qwen3EmbeddingValueLearner, RankingExample, measures
from dspy_qvl.fitting.folds import copies, hold_out, make_folds, members_of
from tests.conftest import CountingModel, rated, ridge_by_hand, weighed_columns


def embedded(learner, texts):
    return learner._embedding(texts).astype(np.float64)


@pytest.mark.parametrize("features", [None, "auto", ["lexical", "length"]])
def test_the_kept_model_is_a_ridge_fit_on_every_rated_text(features):
    trained = Qwen3EmbeddingValueLearner(embedder=CountingModel(), cache_dir=None, features=features)
    trained.add_training_examples(rated(60))
    trained.train()
    coef, intercept = ridge_by_hand(weighed_columns(trained), trained.training_scores, 1.0)
    factors = trained.ridge.fitted.fitted.column_factors
    np.testing.assert_allclose(trained.ridge.coef_, coef * factors, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(trained.ridge.intercept_, intercept, rtol=1e-9)
    new = [text for text, _ in rated(5, seed=9)]
    np.testing.assert_allclose(trained.predict_many(new), weighed_columns(trained, new) @ coef + intercept, rtol=1e-6)


def test_training_figures_come_from_a_model_that_never_saw_the_validation_part():
    learner = Qwen3EmbeddingValueLearner("lexical", 512, cache_dir=None, features=None)
    learner.add_training_examples(rated(60))
    metrics = learner.train(validation_split=0.25, cv_folds=4)
    assert (metrics["n_train"], metrics["n_val"], metrics["cv_folds"]) == (45, 15, 4)
    rng = np.random.default_rng(0)
    seen, held = hold_out(60, 0.25, learner.training_texts, rng)
    X, y = embedded(learner, learner.training_texts), np.array(learner.training_scores)
    peer = Ridge(alpha=1.0, solver="svd").fit(X[seen], y[seen])
    assert metrics["val_mse"] == pytest.approx(measures.mse(y[held], peer.predict(X[held])))
    assert metrics["val_r2"] == pytest.approx(peer.score(X[held], y[held]))
    assert metrics["val_spearman"] == pytest.approx(measures.spearman(y[held], peer.predict(X[held])))
    assert metrics["train_mse"] == pytest.approx(measures.mse(y[seen], peer.predict(X[seen])))
    folds = make_folds([learner.training_texts[row] for row in seen], 4, rng)
    errors = []
    for fold in folds:
        rest = np.setdiff1d(np.arange(45), fold)
        fold_peer = Ridge(alpha=1.0, solver="svd").fit(X[seen[rest]], y[seen[rest]])
        errors.append(measures.mse(y[seen[fold]], fold_peer.predict(X[seen[fold]])))
    assert metrics["cv_mse_mean"] == pytest.approx(np.mean(errors))
    assert metrics["cv_mse_std"] == pytest.approx(np.std(errors))


def test_training_prints_honest_baselines(learner):
    metrics = learner.train()
    baselines = metrics["baselines"]
    assert set(baselines) == {"mean", "length", "nearest", "words"}
    assert math.isnan(baselines["mean"]["val_spearman"])
    assert baselines["mean"]["val_mse"] > metrics["val_mse"]
    assert metrics["val_r2"] > baselines["length"]["val_r2"]


def test_two_trainings_give_the_same_bits(tmp_path):
    def once():
        learner = Qwen3EmbeddingValueLearner("lexical", cache_dir=tmp_path, random_state=3)
        learner.add_training_examples(rated(50))
        return learner.train(), learner.ridge.coef_.tobytes(), learner.predict("perfect lamp")

    assert once() == once()


def test_another_seed_holds_out_other_texts(tmp_path):
    def val_mse(seed):
        learner = Qwen3EmbeddingValueLearner("lexical", cache_dir=tmp_path, random_state=seed)
        learner.add_training_examples(rated(50))
        return learner.train()["val_mse"]

    assert val_mse(0) != val_mse(1)


def test_folds_are_capped_at_the_training_rows_with_a_warning(tmp_path):
    learner = Qwen3EmbeddingValueLearner("lexical", cache_dir=tmp_path)
    learner.add_training_examples(rated(5))
    with pytest.warns(QVLWarning, match=r"cv_folds=10 is more than the 4 that can be held out"):
        metrics = learner.train(cv_folds=10)
    assert metrics["cv_folds"] == 4
    assert metrics["n_val"] == 1
    assert all(math.isnan(metrics[key]) for key in ("val_mse", "val_r2", "val_pearson", "val_spearman"))


def test_two_rated_texts_are_enough(tmp_path):
    learner = Qwen3EmbeddingValueLearner("lexical", cache_dir=tmp_path)
    learner.add_training_examples([("splendid", 9.0), ("dreadful", 1.0)])
    with pytest.warns(QVLWarning, match="nothing is held out, since there are only two texts or groups"):
        metrics = learner.train(cv_folds=2)
    assert (metrics["n_train"], metrics["n_val"]) == (2, 0)
    assert learner.predict("splendid") > learner.predict("dreadful")


def test_nothing_held_out_gives_nan_and_a_model_all_the_same(learner):
    metrics = learner.train(validation_split=0.0)
    assert metrics["n_val"] == 0
    assert math.isnan(metrics["val_r2"])
    assert math.isfinite(metrics["cv_mse_mean"])
    assert math.isfinite(learner.predict("anything"))


def test_groups_stay_on_one_side(learner):
    groups = [number // 3 for number in range(60)]
    rng = np.random.default_rng(0)
    seen, held = hold_out(60, 0.2, groups, rng)
    assert not {groups[row] for row in seen} & {groups[row] for row in held}
    assert len(held) == 12
    for fold in make_folds(groups, 5, rng):
        rest = set(range(60)) - set(fold)
        assert not {groups[row] for row in fold} & {groups[row] for row in rest}
    assert learner.train(groups=groups)["n_val"] == 12


def test_groups_too_large_for_the_split_are_held_out_all_the_same(learner):
    with pytest.warns(QVLWarning, match="cv_folds=5 is more than"):
        metrics = learner.train(groups=[number % 3 for number in range(60)])
    assert (metrics["n_train"], metrics["n_val"]) == (40, 20)


def test_the_module_is_called_from_async_code_too(trained):
    prediction = asyncio.run(trained.acall(text="lamp"))
    assert prediction.score == trained.predict("lamp")


def test_groups_may_be_a_metadata_entry(tmp_path):
    learner = Qwen3EmbeddingValueLearner("lexical", cache_dir=tmp_path)
    for number, (text, score) in enumerate(rated(40)):
        learner.add_training_example(text, score, {"product": f"p{number % 10}"})
    by_name = learner.train(groups="product")
    by_list = learner.train(groups=[metadata["product"] for metadata in learner.training_metadata])
    assert by_name == by_list


def test_a_text_rated_twice_never_stands_on_both_sides(tmp_path):
    learner = Qwen3EmbeddingValueLearner("lexical", cache_dir=tmp_path)
    learner.add_training_examples([*rated(20), *[(text, score + 1) for text, score in rated(20)]])
    seen, held = hold_out(40, 0.2, learner.training_texts, np.random.default_rng(0))
    assert not {row % 20 for row in seen} & {row % 20 for row in held}
    assert learner.train()["n_val"] == len(held) == 8


def test_the_best_alpha_has_the_lowest_cross_validated_error_and_is_used_from_then_on(learner):
    rng = np.random.default_rng(0)
    learner = Qwen3EmbeddingValueLearner("lexical", 512, cache_dir=None, features=None)
    learner.add_training_examples([(text, score + rng.normal(scale=4)) for text, score in rated(80)])
    range_ = [0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0]
    results = learner.optimize_hyperparameters(range_, cv_folds=4)
    errors = {alpha: row["mse_mean"] for alpha, row in results["results"].items()}
    assert list(errors) == range_
    assert results["best_alpha"] == min(errors, key=errors.get) == learner.ridge.alpha == learner.ridge_alpha
    assert results["best_mse"] == errors[results["best_alpha"]]
    peer = Ridge(alpha=results["best_alpha"], solver="svd")
    peer.fit(embedded(learner, learner.training_texts), learner.training_scores)
    np.testing.assert_allclose(learner.ridge.coef_, peer.coef_, rtol=1e-6, atol=1e-9)
    metrics = learner.train()
    assert metrics["alpha"] == results["best_alpha"]
    assert metrics["alpha_saw_validation"]
    learner.ridge_alpha = 5.0
    assert not learner.train()["alpha_saw_validation"]


def test_a_best_alpha_at_the_end_of_the_range_is_said_after_it_is_kept(learner):
    with pytest.warns(QVLWarning, match="the best alpha, 100, lies at the lower end of alpha_range"):
        learner.optimize_hyperparameters([100.0, 1e4])
    assert learner.ridge.alpha == 100.0
    learner.optimize_hyperparameters([2.0])  # one penalty has no end to lie at
    assert learner.ridge.alpha == 2.0


def test_ranking_sorts_by_value_and_keeps_ties_and_duplicates_in_order(trained):
    texts = ["perfect love", "useless refund", "perfect love", "", "  ", "lamp"]
    ranked = trained.rank_texts(texts)
    assert [score for _, score in ranked] == sorted((trained.predict(text) for text in texts), reverse=True)
    assert [text for text, _ in ranked if text.startswith("perfect")] == ["perfect love"] * 2
    assert [text for text, _ in ranked if not text.strip()] == ["", "  "]
    assert all(type(score) is float for _, score in ranked)
    assert trained.rank_texts([]) == []
    assert trained.rank_texts(iter(["a"]))[0][0] == "a"


def test_a_value_is_the_same_bits_alone_in_a_batch_and_in_any_thread(trained):
    texts = [text for text, _ in rated(200, seed=5)]
    expected = trained.predict_many(texts).tolist()
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(trained.predict, texts)) == expected
    order = np.random.default_rng(0).permutation(200)
    assert trained.predict_many([texts[row] for row in order]).tolist() == [expected[row] for row in order]
    assert dict(trained.rank_texts(texts)) == dict(zip(texts, expected, strict=True))


def test_an_empty_answer_can_be_rated_and_valued(trained):
    before = trained.predict("")
    assert math.isfinite(before)
    assert trained.predict(" \n") == before
    for _ in range(30):
        trained.add_training_example("", 0.0)
    trained.train()
    assert trained.predict("") < before


def test_examples_come_in_every_form_people_keep_them_in(tmp_path):
    learner = Qwen3EmbeddingValueLearner("lexical", cache_dir=tmp_path)
    learner.add_training_examples(
        [
            RankingExample("a", 1.0, {"by": "me"}),
            ("b", 2),
            ("c", np.float32(3.0), {"n": np.int64(7), "list": (1, float("nan"))}),
            {"text": "d", "score": 4.0, "metadata": None},
            dspy.Example(text="e", score=5.0).with_inputs("text"),
        ]
    )
    learner.add_training_example("f", 6, metadata={"array": np.arange(2)})
    assert learner.training_texts == list("abcdef")
    assert learner.training_scores == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert learner.training_metadata == [
        {"by": "me"},
        None,
        {"n": 7, "list": [1, None]},
        None,
        None,
        {"array": [0, 1]},
    ]


def test_the_module_gives_a_prediction_on_the_users_scale(trained):
    prediction = trained(text="perfect comfortable")
    assert isinstance(prediction, dspy.Prediction)
    assert prediction.score == trained.predict("perfect comfortable")
    assert type(prediction.score) is float


def test_left_out_settings_are_the_seeds():
    parameters = inspect.signature(Qwen3EmbeddingValueLearner.__init__).parameters
    assert list(parameters)[1:6] == ["model_name", "embedding_dim", "ridge_alpha", "cache_dir", "api_key"]
    learner = Qwen3EmbeddingValueLearner()
    assert learner.model_name == "Qwen/Qwen3-Embedding-0.6B"
    assert (learner.embedding_dim, learner.ridge_alpha) == (768, 1.0)
    assert learner.cache_dir == str(Path.cwd() / ".qwen3_embeddings")
    assert Qwen3EmbeddingValueLearner("lexical").embedding_dim == 4096
    assert Qwen3EmbeddingValueLearner("openrouter/qwen/qwen3-embedding-8b").embedding_dim == 768
    own = Qwen3EmbeddingValueLearner(embedder=CountingModel(size=48), cache_dir=None)
    assert own.embedding_dim is None
    own.add_training_examples(rated(6))
    own.train(cv_folds=2)
    assert own.embedding_dim == 48


def test_making_a_learner_loads_sends_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (None, "lexical", "openrouter/qwen/qwen3-embedding-8b"):
        Qwen3EmbeddingValueLearner(name)
    assert list(tmp_path.iterdir()) == []


class Rounded(Qwen3EmbeddingValueLearner):
    """Overrides the vector of one text; counts how often it is asked."""

    calls = 0

    def _get_embedding_vector(self, text):
        type(self).calls += 1
        return np.concatenate([np.round(super()._get_embedding_vector(text), 2), [len(text) / 100]])


def test_an_override_takes_effect_everywhere_and_embeds_in_one_batch(tmp_path):
    model = CountingModel()
    learner = Rounded(embedder=model, cache_dir=tmp_path, features=None)
    learner.add_training_examples(rated(30))
    learner.train()
    assert Rounded.calls == 30
    assert [len(batch) for batch in model.batches] == [30, 3]  # the rated texts, then the probe texts
    assert len(learner.ridge.coef_) == 65
    new = [text for text, _ in rated(10, seed=4)]
    ranked = dict(learner.rank_texts(new))
    assert len(model.batches) == 3
    assert {text: learner.predict(text) for text in new} == ranked
    features = np.array([[*np.round(learner._embedding.encoder().vector(text), 2), len(text) / 100] for text in new])
    by_hand = features.astype(np.float32).astype(np.float64) @ learner.ridge.coef_ + learner.ridge.intercept_
    np.testing.assert_allclose([ranked[text] for text in new], by_hand, rtol=1e-9)


def test_an_override_that_needs_no_model_asks_none(tmp_path):
    class Own(Qwen3EmbeddingValueLearner):
        def _get_embedding_vector(self, text):
            return np.array([len(text), text.count("e"), 1.0])

    def unreachable(texts):
        if set(texts) - set(PROBES):
            raise ConnectionError("no model here")
        return np.eye(len(texts), 4)

    from dspy_qvl.embedding.probe import PROBE_TEXTS as PROBES

    unreachable.name = "unreachable"
    learner = Own(embedder=unreachable, cache_dir=tmp_path)
    learner.add_training_examples([("e" * n, float(n)) for n in range(1, 20)])
    learner.train()
    assert learner.predict("e" * 30) > learner.predict("e" * 3)


def test_learning_goes_on_after_training(trained):
    before = trained.predict("zebra crossing")
    trained.add_training_examples([("zebra crossing", 0.0)] * 5)
    assert trained.predict("zebra crossing") == before
    trained.train()
    assert trained.predict("zebra crossing") < before


def test_unfit_forgets_the_fit_and_keeps_the_ratings(trained):
    trained.unfit()
    assert trained.ridge.fitted is None
    assert len(trained.training_texts) == 60
    trained.train()
    assert math.isfinite(trained.predict("lamp"))


def test_debug_logging_shows_every_operation(learner, tmp_path, caplog):
    with caplog.at_level(logging.DEBUG, logger="dspy_qvl"):
        learner.add_training_example("one more", 5.0)
        learner.add_training_examples([("and another", 6.0)])
        learner.train()
        learner.predict("lamp")
        learner.rank_texts(["a", "b"])
        learner.save_model(tmp_path / "m")
        learner.load_model(tmp_path / "m")
    text = caplog.text
    for piece in ("added rated text 61", "62 rated texts", "trained on 62", "embedded", "valued", "saved", "loaded"):
        assert piece in text
    assert all(record.name == "dspy_qvl" for record in caplog.records)


def test_training_is_silent_where_nothing_is_wrong(learner, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner.train()
        learner.rank_texts(["a", "b"])
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_rating_training_and_valuing_at_once_never_mixes_anything_up(trained):
    texts = [text for text, _ in rated(30, seed=6)]
    failures = []

    def value(_):
        try:
            assert np.isfinite(trained.predict_many(texts)).all()
        except Exception as error:
            failures.append(error)

    def learn(worker):
        try:
            trained.add_training_examples([(f"{text} {worker}", score) for text, score in rated(10, seed=worker)])
            trained.train(cv_folds=2)
        except Exception as error:
            failures.append(error)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda job: job[0](job[1]), [(value, 0), (learn, 1), (value, 0), (learn, 2)] * 6))
    assert failures == []
    trained.train()
    peer = Ridge(alpha=1.0, solver="svd").fit(weighed_columns(trained), trained.training_scores)
    np.testing.assert_allclose(trained.predict_many(texts), peer.predict(weighed_columns(trained, texts)), rtol=1e-6)


def test_groups_that_share_a_text_stay_apart_and_the_text_stays_whole():
    texts = [f"text {number}" for number in range(60)]
    texts[::5] = ["No response."] * 12
    groups = [number // 10 for number in range(60)]
    members = members_of(groups, copies(texts))
    assert len(set(members)) == 7
    assert len({members[row] for row in range(0, 60, 5)}) == 1
    for group in range(6):
        assert len({members[row] for row in range(60) if groups[row] == group and row % 5}) == 1


def test_near_copies_of_a_text_are_copies_whether_spelling_or_vector_says_so():
    texts = ["It broke.", "it  broke.\n", "IT BROKE.", "Café ﬁne", "cafe\u0301 fine", "Straße", "STRASSE", "other", ""]
    assert copies(texts) == [0, 0, 0, 3, 3, 5, 5, 7, 8]
    vectors = np.eye(9, dtype=np.float32)
    vectors[7] = vectors[4]
    assert copies(texts, vectors) == [0, 0, 0, 3, 3, 5, 5, 3, 8]
    assert copies(texts, np.ones((9, 2), dtype=np.float32)) == copies(texts)  # equal for all: they tell nothing


@pytest.mark.parametrize("unseen", ["\u200b", "\ufeff", "\u200e", "\x00", "\xad", "\ufe0f", "\u3164"])
def test_copies_that_differ_in_what_nobody_can_see_are_copies(unseen):
    assert copies(["it broke", f"it {unseen}broke", f"{unseen}it broke{unseen}", "it works"]) == [0, 0, 0, 3]


def test_a_hundred_thousand_texts_are_searched_for_copies_in_no_time():
    texts = [f"text number {number % 90_000} of many" for number in range(100_000)]
    vectors = np.random.default_rng(0).normal(size=(100_000, 16)).astype(np.float32)
    started = time.process_time()
    found = copies(texts, vectors)
    assert time.process_time() - started < 5  # about .5 s on a quiet machine
    assert len(set(found)) == 90_000


@pytest.mark.parametrize("copied", [str.upper, "{}\n".format, lambda text: unicodedata.normalize("NFD", text)])
def test_copies_of_noise_do_not_pass_for_skill(tmp_path, copied):
    rng = np.random.default_rng(0)
    texts = [unicodedata.normalize("NFC", f"é {text}") for text, _ in rated(120)]
    noise = rng.normal(size=120).tolist()
    learner = Qwen3EmbeddingValueLearner("lexical", 512, cache_dir=None)
    learner.add_training_examples(list(zip([*texts, *map(copied, texts)], [*noise, *noise], strict=True)))
    with pytest.warns(QVLWarning, match="cannot be told from noise"):
        learner.optimize_hyperparameters()
    with pytest.warns(QVLWarning, match="cannot be told from noise"):
        metrics = learner.train()
    assert learner.ridge_alpha >= 10
    assert metrics["val_r2"] < 0.1


@pytest.mark.parametrize("sizes", [(5, 5, 90), (90, 5, 5), (5, 90, 5)])
def test_a_small_group_is_held_out_where_there_is_one(sizes):
    groups = [number for number, size in enumerate(sizes) for _ in range(size)]
    for seed in range(5):
        seen, held = hold_out(100, 0.05, groups, np.random.default_rng(seed))
        assert (len(seen), len(held)) == (95, 5)


def test_help_shows_and_describes_every_argument_of_the_constructor():
    class Named(Qwen3EmbeddingValueLearner):
        def __init__(self, name: str) -> None:
            super().__init__("lexical", cache_dir=None)

    names = list(inspect.signature(Qwen3EmbeddingValueLearner).parameters)
    described = re.findall(r"^    (\w+): ", inspect.getdoc(Qwen3EmbeddingValueLearner), re.M)
    assert described[:-1] == names == list(inspect.signature(Qwen3EmbeddingValueLearner.__init__).parameters)[1:]
    assert "max_concurrency: int | None = None" in pydoc.plain(pydoc.render_doc(Qwen3EmbeddingValueLearner))
    assert list(inspect.signature(Named).parameters) == ["name"]
    assert list(inspect.signature(Named("x")).parameters) == ["args", "kwargs"]


def test_an_override_that_fails_in_any_way_is_named():
    class Broken(Qwen3EmbeddingValueLearner):
        def _get_embedding_vector(self, text):
            return {}["x"] if text == "key" else np.zeros(0)

    for texts, message in {
        ("key", "b"): "_get_embedding_vector failed or gave no vector",
        ("a", "b"): r"gave shapes \[\(0,\)\]",
    }.items():
        learner = Broken("lexical", 64, cache_dir=None)
        learner.add_training_examples(zip(texts, (1.0, 2.0), strict=True))
        with pytest.raises(EmbeddingError, match=message):
            learner.train()
