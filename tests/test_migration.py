"""Rated texts learned anew with another embedding model, and how values move."""

import copy
import json
import warnings

import dspy
import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from dspy_qvl import (
    EmbeddingError,
    FitValue,
    InputError,
    NotFittedError,
    QVLWarning,
    Qwen3EmbeddingValueLearner,
    Reranker,
    StateError,
)
from dspy_qvl.state.files import write_file
from tests.conftest import CountingModel, rated

ALPHAS = [0.0001, 0.001, 0.01, 0.1, 1.0, 10.0]
NEW = [text for text, _ in rated(20, seed=8)]


def of(model, tmp_path, **settings):
    return Qwen3EmbeddingValueLearner(embedder=model, cache_dir=tmp_path / "cache", **settings)


def lexical(tmp_path, **settings):
    return Qwen3EmbeddingValueLearner("lexical", 512, cache_dir=tmp_path / "cache", **settings)


def taught(learner, n=60, queries=False):
    noise = np.random.default_rng(1).normal(0, 2.5, n).round(3)  # else the smallest penalty would be the best
    for number, (text, score) in enumerate(rated(n)):
        query = f"which {text.split()[number % 5]}?" if queries else None
        learner.add_training_example(text, score + noise[number], {"n": number, "by": number % 7}, query)
    learner.optimize_hyperparameters(ALPHAS)
    return learner


def state(learner):
    """All that may not change when a migration fails."""
    fit = learner.ridge.fitted
    kept = (learner.training_texts, learner.training_scores, learner.training_metadata, learner.ridge.template)
    return kept, learner.ridge_alpha, fit, None if fit is None else learner.predict_many(NEW).tolist()


def test_a_file_of_another_model_is_refused_and_its_advice_works(tmp_path):
    old = taught(of(CountingModel("old"), tmp_path))
    old.ridge.template = "{question} {answer}"
    old.save_model(tmp_path / "m")
    learner = of(CountingModel("new", size=48), tmp_path, embedding_dim=32)
    with pytest.raises(StateError, match=r"saved with embedding_dim=64, .* made with 32; .*migrate\(path\)"):
        learner.load_model(tmp_path / "m")
    learner = of(CountingModel("new", size=48), tmp_path)
    with pytest.raises(StateError, match=r"another embedding model: model: 'old' saved, 'new' here.*migrate\(path\)"):
        learner.load_model(tmp_path / "m")
    migration = learner.migrate(tmp_path / "m", ALPHAS)
    fresh = of(CountingModel("new", size=48), tmp_path)
    fresh.add_training_examples(list(old.ridge.examples))
    assert fresh.optimize_hyperparameters(ALPHAS) == migration.chosen
    assert learner.predict_many(NEW).tolist() == fresh.predict_many(NEW).tolist()
    assert learner.training_metadata == old.training_metadata
    assert learner.training_scores == old.training_scores
    assert learner.ridge.template == "{question} {answer}"
    assert learner.ridge.alpha_tuned
    learner.save_model(tmp_path / "anew")
    again = of(CountingModel("new", size=48), tmp_path)
    again.load_model(tmp_path / "anew")
    assert again.predict_many(NEW).tolist() == fresh.predict_many(NEW).tolist()


@pytest.mark.parametrize("queries", [False, True])
@pytest.mark.parametrize("features", ["auto", None, "own"])
def test_old_values_are_those_of_the_old_learner_without_each_text(tmp_path, queries, features):
    def judge(texts):
        return [[len(text) % 7, text.count("e")] for text in texts]

    features = ["length", judge] if features == "own" else features
    old = taught(of(CountingModel("old"), tmp_path, features=features), queries=queries)
    old.save_model(tmp_path / "m")
    old.predict(NEW[0], "which?" if queries else None)
    learner = lexical(tmp_path)  # neither the old model nor its features are here
    migration = learner.migrate(tmp_path / "m")
    before, after = old.leave_one_out().values, learner.leave_one_out().values
    assert migration.old_values == pytest.approx(before, rel=1e-9)
    assert migration.new_values.tolist() == after.tolist()
    assert migration.n_texts == 60
    assert migration.pearson == pytest.approx(pearsonr(before, after).statistic)
    assert migration.spearman == pytest.approx(spearmanr(before, after).statistic)
    ratings = old.training_scores
    assert migration.old["spearman"] == pytest.approx(spearmanr(before, ratings).statistic)
    assert migration.new["mse"] == pytest.approx(np.mean((after - ratings) ** 2))
    largest = np.argsort(-np.abs(after - before))[:10]
    assert [move.text for move in migration.moves] == [old.training_texts[row] for row in largest]
    move = migration.moves[0]
    assert (move.old, move.new) == pytest.approx((before[largest[0]], after[largest[0]]))
    assert (move.score, move.query) == (ratings[largest[0]], old.ridge.examples[largest[0]].query)
    assert f"{move.old:.3g} -> {move.new:.3g}, rated {move.score:.3g}: '{move.text[:40]}" in str(migration)


def test_the_built_in_model_gives_way_to_a_real_one(tmp_path):
    old = taught(lexical(tmp_path))
    old.update("one more, delightful", 9.0)
    old.add_training_example("waits for the next fit", 5.0)
    old.save_model(tmp_path / "m")
    learner = of(CountingModel(), tmp_path)
    migration = learner.migrate(tmp_path / "m", groups=[number % 9 for number in range(62)])
    assert migration.old_values == pytest.approx(old.leave_one_out().values)  # no vectors in the file: made anew
    assert migration.n_texts == 61
    assert len(learner.training_texts) == learner.current_fit().n_texts == 62


def test_groups_are_kept_together_by_the_name_of_a_metadata_entry(tmp_path):
    taught(of(CountingModel("old"), tmp_path)).save_model(tmp_path / "m")
    learner, fresh = lexical(tmp_path), lexical(tmp_path)
    migration = learner.migrate(tmp_path / "m", cv_folds=3, groups="by")
    fresh.add_training_examples(list(learner.ridge.examples))
    assert migration.chosen == fresh.optimize_hyperparameters(cv_folds=3, groups="by")
    with pytest.raises(InputError, match="groups='who' names a metadata entry that text 0 does not have"):
        learner.migrate(tmp_path / "m", groups="who")


def test_a_program_that_dspy_loaded_with_another_model_learns_anew_the_texts_it_holds(tmp_path):
    class Desk(dspy.Module):
        def __init__(self, value):
            super().__init__()
            self.value = value

    old = taught(of(CountingModel("old"), tmp_path))
    Desk(old).save(tmp_path / "p.json")
    desk = Desk(of(CountingModel("new"), tmp_path))
    desk.load(tmp_path / "p.json")
    with pytest.raises(StateError, match=r"another embedding model.*migrate\(\) where it is loaded"):
        desk.value.predict("a text")
    migration = desk.value.migrate()
    assert migration.old_values == pytest.approx(old.leave_one_out().values)
    assert np.isfinite(desk.value.predict("a text"))
    desk.save(tmp_path / "anew.json")
    again = Desk(of(CountingModel("new"), tmp_path))
    again.load(tmp_path / "anew.json")
    assert again.value.predict_many(NEW).tolist() == desk.value.predict_many(NEW).tolist()


class Changed(CountingModel):
    """A model that calls itself as another one does, and is not it."""

    def __call__(self, texts):
        return super().__call__(texts)[:, ::-1]


def test_what_was_loaded_before_the_model_was_found_to_be_another_is_learned_from_its_own_vectors(tmp_path):
    taught(of(CountingModel(), tmp_path)).save_model(tmp_path / "m")
    model = Changed()
    learner = Qwen3EmbeddingValueLearner(embedder=model, cache_dir=tmp_path / "elsewhere")
    learner.load_model(tmp_path / "m")
    learner.predict(learner.training_texts[0])  # from the vectors that came along
    with pytest.raises(StateError, match=r"other vectors for a probe text .* migrate\(\) where it is loaded"):
        learner.predict("a new text")
    migration = learner.migrate()
    assert set(learner.training_texts) <= set(model.asked)
    fresh = Qwen3EmbeddingValueLearner(embedder=Changed(), cache_dir=None)
    fresh.add_training_examples(list(learner.ridge.examples))
    fresh.optimize_hyperparameters()
    assert learner.predict_many(NEW).tolist() == fresh.predict_many(NEW).tolist()
    assert migration.spearman > 0.9  # the same columns in another order


def test_a_file_of_the_same_model_is_learned_anew_and_no_value_moves(tmp_path):
    old = taught(of(CountingModel(), tmp_path))
    old.save_model(tmp_path / "m")
    learner = of(CountingModel(), tmp_path)
    migration = learner.migrate(tmp_path / "m", [old.ridge_alpha])
    assert migration.new_values == pytest.approx(migration.old_values)
    assert migration.spearman == pytest.approx(1.0)
    assert migration.old == pytest.approx(migration.new)


def test_what_cannot_be_migrated_is_refused_and_nothing_changes(tmp_path):
    taught(lexical(tmp_path, keep_examples=False)).save_model(tmp_path / "without")
    old = taught(of(CountingModel("old"), tmp_path))
    old.save_model(tmp_path / "m")
    (tmp_path / "damaged").write_bytes((tmp_path / "m").read_bytes()[:-100])

    class Dying(CountingModel):
        dead = False

        def __call__(self, texts):
            if self.dead:
                raise ConnectionError("connection reset")
            return super().__call__(texts)

    model = Dying("dying")
    learner = taught(of(model, tmp_path), 30)
    learner.ridge.template = "text"
    learner.predict_many(NEW)
    before = state(learner)
    model.dead = True
    for path, settings, error, message in [
        ("without", {}, InputError, r"without was saved without its rated texts \(keep_examples=False\)"),
        ("absent", {}, InputError, "cannot be read"),
        ("damaged", {}, StateError, "is truncated or was altered"),
        ("m", {"alpha_range": []}, InputError, "alpha_range is empty"),
        ("m", {"groups": [1, 2]}, InputError, "groups has 2 entries but there are 60 texts"),
        ("m", {}, EmbeddingError, "connection reset"),
    ]:
        with pytest.raises(error, match=message):
            learner.migrate(tmp_path / path, **settings)
    model.dead = False
    assert state(learner) == before
    loaded = lexical(tmp_path)
    loaded.load_model(tmp_path / "without")
    with pytest.raises(InputError, match="this value function was saved without its rated texts"):
        loaded.migrate()
    with pytest.raises(NotFittedError, match="nothing was learned yet"):
        lexical(tmp_path).migrate()


def test_where_old_values_cannot_be_told_the_report_says_so(tmp_path):
    class Louder(Qwen3EmbeddingValueLearner):
        def _get_embedding_vector(self, text):
            return np.append(super()._get_embedding_vector(text), len(text) / 100).astype(np.float32)

    learner = taught(Louder("lexical", 256, cache_dir=None))
    learner.save_model(tmp_path / "m")
    migration = lexical(tmp_path).migrate(tmp_path / "m")
    assert np.isnan([migration.pearson, migration.spearman, *migration.old.values(), *migration.old_values]).all()
    assert migration.new["spearman"] > 0.5
    assert migration.moves == ()
    assert "does not tell the old values" in str(migration)
    assert learner.migrate().new["spearman"] > 0.5  # a subclass migrates with its own columns


def test_a_copy_made_before_stays_as_it_was_and_a_copy_made_after_is_alike(tmp_path):
    old = taught(of(CountingModel("old"), tmp_path))
    old.save_model(tmp_path / "m")
    learner = taught(lexical(tmp_path), 30)
    twin = copy.deepcopy(learner)
    before = state(twin)
    learner.migrate(tmp_path / "m")
    assert state(twin) == before
    assert state(copy.deepcopy(learner)) == state(learner)
    assert old.predict_many(NEW).tolist() != learner.predict_many(NEW).tolist()


def test_what_a_raters_own_columns_cost_is_not_paid_again(tmp_path):
    asked = []

    def judge(texts):
        asked.extend(texts)
        return [[len(text) % 7] for text in texts]

    taught(of(CountingModel("old"), tmp_path, features=[judge])).save_model(tmp_path / "m")
    asked.clear()
    learner = of(CountingModel("new"), tmp_path, features=[judge])
    learner.migrate(tmp_path / "m")
    assert asked == []
    assert np.isfinite(learner.predict(NEW[0]))


def test_ratings_that_are_noise_are_warned_of(tmp_path):
    old = lexical(tmp_path)
    rng = np.random.default_rng(0)
    old.add_training_examples([(text, float(rng.normal())) for text, _ in rated(60)])
    with pytest.warns(QVLWarning, match="cannot be told from noise"):
        old.train()
    old.save_model(tmp_path / "m")
    with pytest.warns(QVLWarning, match="cannot be told from noise"):
        of(CountingModel(), tmp_path).migrate(tmp_path / "m")


def test_a_reranker_of_another_model_learns_anew_as_its_error_advises(tmp_path):
    judged = [
        dspy.Example(query=f"which {text.split()[0]}?", passages=[text, f"{text} broke"], relevance=[1.0, 0.0])
        for text in NEW
    ]
    fit = FitValue(query="query", passages="passages", relevance="relevance", first_stage=False)
    reranker = fit.compile(Reranker(of(CountingModel("old"), tmp_path)), trainset=judged)
    reranker.save(tmp_path / "r.json")
    other = Reranker(of(CountingModel("new"), tmp_path))
    other.load(tmp_path / "r.json")
    with pytest.raises(StateError, match=r"another embedding model.*a reranker's judged queries with unfit\(\)"):
        other(query="which cup?", passages=["the cup", "the lamp"])
    other.unfit()
    again = fit.compile(other, trainset=judged)
    assert len(again(query="which cup?", passages=["the cup", "the lamp"]).passages) == 2


def test_a_file_that_lacks_a_query_vector_is_migrated_without_old_values(tmp_path):
    taught(of(CountingModel("old"), tmp_path), queries=True).save_model(tmp_path / "m")
    content = json.loads((tmp_path / "m").read_bytes().split(b"\n", 1)[1])
    content["head"]["fit"]["queried"] = None
    write_file(tmp_path / "forged", content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        migration = lexical(tmp_path).migrate(tmp_path / "forged")
    assert np.isnan(migration.old_values).all()


def test_values_no_better_than_the_mean_have_no_correlation(tmp_path):
    old = Qwen3EmbeddingValueLearner("lexical", 64, cache_dir=None, features=None)
    old.add_training_examples([(text, float(row % 2)) for row, (text, _) in enumerate(rated(60))])
    old.train()
    old.save_model(tmp_path / "m")
    report = Qwen3EmbeddingValueLearner("lexical", 32, cache_dir=None, features=None).migrate(tmp_path / "m", [1000.0])
    assert report.new["r2"] <= 0
    assert np.isnan([report.new["spearman"], report.new["pearson"]]).all()
    assert "no better than their mean" in str(report)
