"""Ratings that come and go, slips of the pen among them: always the fit that training on the rest would give."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest

from dspy_qvl import Qwen3EmbeddingValueLearner
from tests.conftest import BAD, GOOD, PLAIN, CountingModel, rated, ridge_by_hand, weighed_columns


def shouting(texts):
    return [[text.count("!"), len(text.split())] for text in texts]


def some_text(rng: random.Random, number: int) -> tuple[str, float]:
    n_good = rng.randint(0, 4)
    words = rng.choices(GOOD, k=n_good) + rng.choices(BAD, k=4 - n_good) + rng.choices(PLAIN, k=rng.randint(0, 3))
    return " ".join([*words, "!" * rng.randint(0, 3), f"no{number}"]), 2.0 * n_good


def refit_error(learner) -> float:
    """How far the coefficients are from those of a fit from scratch, relative to their length."""
    fit = learner.ridge.fitted
    coef, intercept = ridge_by_hand(weighed_columns(learner), learner.training_scores, fit.alpha)
    want = coef * fit.fitted.column_factors
    assert learner.ridge.intercept_ == pytest.approx(intercept, rel=1e-9)
    return float(np.linalg.norm(learner.ridge.coef_ - want) / np.linalg.norm(want))


@pytest.mark.parametrize("features", ["none", "length", "lexical", "own", "pairs"])
def test_ratings_and_slips_that_come_and_go_are_refits_from_scratch(features):
    given = {"none": None, "own": shouting, "pairs": "auto"}.get(features, features)
    rng = random.Random(features)
    queries = ["lamp", "cup", "quick", "red chair", "blue", "phone"] if features == "pairs" else [None]
    # Now more rated texts than the embedding has columns, now fewer: both ways of keeping a fit up to date.
    learner = Qwen3EmbeddingValueLearner(embedder=CountingModel(size=40), cache_dir=None, features=given)
    for number in range(40):
        text, score = some_text(rng, number)
        learner.add_training_example(text, score, query=rng.choice(queries))
    learner.train(cv_folds=2)
    slips, worst = [], 0.0
    for step in range(2000):
        n = len(learner.training_texts)
        if n < 25 or (n < 60 and rng.random() < 0.5):
            text, score = some_text(rng, 1000 + step)
            if rng.random() < 0.02:
                score = rng.choice([-1e6, 1e3, 1e6])
                slips.append(text)
            learner.update(text, score, query=rng.choice(queries))
        else:
            learner.forget(rng.choice(learner.training_texts))
        if step % 400 == 399:
            worst = max(worst, refit_error(learner))
    for text in set(slips) & set(learner.training_texts):
        learner.forget(text)
    assert len(slips) > 10
    assert max(worst, refit_error(learner)) <= 1e-9


@pytest.mark.parametrize("features", [None, "length", "lexical", shouting, "auto"])
@pytest.mark.parametrize("slip", [9000.0, -1e6, 1e12])
def test_a_slip_of_the_pen_is_forgotten_without_a_trace(features, slip):
    learner = Qwen3EmbeddingValueLearner(embedder=CountingModel(size=16), cache_dir=None, features=features)
    learner.add_training_examples(rated(60))
    learner.train(cv_folds=2)
    learner.update("a lamp", 3.0)
    coef = learner.ridge.coef_
    learner.update("typo", slip)
    learner.update("another lamp", 7.0)
    learner.forget("typo")
    learner.forget("another lamp")
    assert "typo" not in learner.training_texts
    assert np.linalg.norm(learner.ridge.coef_ - coef) <= 1e-11 * np.linalg.norm(coef)
    assert refit_error(learner) <= 1e-11


def test_a_slip_in_the_first_training_is_forgotten_without_a_trace():
    learner = Qwen3EmbeddingValueLearner(embedder=CountingModel(size=16), cache_dir=None, features="length")
    learner.add_training_examples([*rated(60), ("typo", 1e9)])
    learner.train(cv_folds=2)
    learner.update("a lamp", 3.0)
    learner.forget("typo")
    assert refit_error(learner) <= 1e-11


@pytest.mark.parametrize("n", [60, 12])
def test_a_text_whose_features_are_far_out_is_forgotten_without_a_trace(n):
    def odd(texts):
        return [[1e9 if "odd" in text else len(text)] for text in texts]

    learner = Qwen3EmbeddingValueLearner(embedder=CountingModel(size=16), cache_dir=None, features=odd)
    learner.add_training_examples(rated(n))
    learner.train(cv_folds=2)
    learner.update("a lamp", 3.0)
    learner.ridge.fitted = unbounded(learner.ridge.fitted)
    learner.update("an odd lamp", 5.0)
    learner.update("another lamp", 7.0)
    learner.forget("an odd lamp")
    assert refit_error(learner) <= 1e-9


def unbounded(fit):
    """The fit, without the bounds that columns are held within."""
    return replace(fit, fitted=replace(fit.fitted, bounds=(None,) * len(fit.fitted.bounds)))


def test_columns_that_come_out_otherwise_when_a_text_leaves_do_no_harm(monkeypatch):
    calls = itertools.count()

    def moody(texts):
        return [[len(text) + next(calls) * 1e-3] for text in texts]

    learner = Qwen3EmbeddingValueLearner(embedder=CountingModel(size=64), cache_dir=None, features=moody)
    learner.add_training_examples(rated(30))
    learner.train(cv_folds=2)
    learner.update("a lamp", 3.0)
    kept = learner.ridge.fitted
    learner._vectorizer.blocks._memory["moody"].clear()  # as when there are more texts than memory holds
    learner.forget("a lamp")
    assert learner.ridge.fitted.n_texts == kept.n_texts - 1
    learner._vectorizer.blocks._memory["moody"].clear()
    current = learner.current_fit()
    current.remember()
    assert refit_error(learner) <= 1e-9


def test_groups_follow_the_texts_that_come_and_go(tmp_path):
    learner = Qwen3EmbeddingValueLearner("lexical", 64, cache_dir=None)
    for number, (text, score) in enumerate(rated(12)):
        learner.add_training_example(text, score, {"product": f"p{number % 4}"})
    learner.train(cv_folds=3, groups="product")
    learner.update("a lamp of p2", 3.0, {"product": "p2"})
    learner.update("a lamp of a product that is new", 4.0, {"product": "p9"})
    learner.update("a lamp of no product", 5.0)
    learner.update("another lamp of no product", 6.0)
    for row in (1, 5, 9):  # all of p1
        learner.forget(rated(12)[row][0])
    learner.save_model(tmp_path / "saved.qvl")
    again = Qwen3EmbeddingValueLearner("lexical", 64, cache_dir=None)
    again.load_model(tmp_path / "saved.qvl")
    for one in (learner, again):
        fit = one.ridge.fitted
        assert fit.groups.by == "product"
        assert fit.groups.numbers.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 1, 3, 4, 5]
        assert fit.members.tolist() == fit.groups.numbers.tolist()


def test_copies_of_a_text_are_left_out_together_where_no_groups_were_given():
    learner = Qwen3EmbeddingValueLearner("lexical", 64, cache_dir=None)
    learner.add_training_examples([("One lamp", 1.0), ("a cup", 2.0), ("one  LAMP", 3.0), ("a chair", 2.5)])
    learner.train(validation_split=0.0, cv_folds=2)
    assert learner.ridge.fitted.groups is None
    assert learner.ridge.fitted.members.tolist() == [0, 1, 0, 2]


def test_a_copy_that_is_learned_belongs_to_the_group_of_its_text():
    learner = Qwen3EmbeddingValueLearner("lexical", 64, cache_dir=None)
    learner.add_training_examples(rated(12))
    learner.train(validation_split=0.0, cv_folds=3, groups=[number // 4 for number in range(12)])
    learner.update(rated(12)[0][0].upper(), 3.0)
    learner.update("something new", 3.0)
    assert learner.ridge.fitted.members.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [0, 3]
