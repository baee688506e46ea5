"""Scores against their definitions."""

import math

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV

from dspy_qvl import measures
from dspy_qvl.fitting.baselines import WORD_ALPHAS, length_baseline, nearest_baseline, words_baseline
from tests.conftest import rated

Y = np.array([1.0, 2.0, 2.0, 4.0, 8.0])
GUESS = np.array([1.5, 1.0, 2.5, 3.0, 9.0])


def ranks(values):
    return np.array([np.mean([np.sum(values < v), np.sum(values <= v) - 1]) for v in values])


def test_scores_follow_their_definitions():
    assert measures.mse(Y, GUESS) == pytest.approx(np.mean((Y - GUESS) ** 2))
    assert measures.r2(Y, GUESS) == pytest.approx(1 - np.sum((Y - GUESS) ** 2) / np.sum((Y - Y.mean()) ** 2))
    assert measures.pearson(Y, GUESS) == pytest.approx(np.corrcoef(Y, GUESS)[0, 1])
    assert measures.spearman(Y, GUESS) == pytest.approx(np.corrcoef(ranks(Y), ranks(GUESS))[0, 1])


@pytest.mark.parametrize("score", [measures.r2, measures.pearson, measures.spearman])
def test_what_is_not_defined_is_nan(score):
    assert math.isnan(score([1.0], [1.0]))
    assert math.isnan(score([], []))
    assert math.isnan(score([2.0, 2.0], [1.0, 3.0]))


def test_a_constant_guess_has_no_correlation_but_an_error():
    assert math.isnan(measures.pearson(Y, np.ones(5)))
    assert measures.r2(Y, np.full(5, Y.mean())) == pytest.approx(0.0)
    assert math.isnan(measures.mse([], []))


def test_the_length_baseline_is_a_straight_line():
    lengths = np.log1p([3, 10, 40, 90, 200])
    slope, intercept = np.polyfit(lengths, Y, 1)
    np.testing.assert_allclose(
        length_baseline(lengths, Y, np.array([1.0, 6.0])), intercept + slope * np.array([1, 6.0])
    )
    np.testing.assert_allclose(length_baseline(np.ones(5), Y, np.array([7.0])), [Y.mean()])


def test_the_nearest_baseline_is_the_mean_of_the_five_highest_cosines():
    rng = np.random.default_rng(0)
    vectors, new = rng.normal(size=(30, 8)).astype(np.float32), rng.normal(size=(4, 8)).astype(np.float32)
    y = rng.normal(size=30)
    cosines = new @ vectors.T / np.linalg.norm(vectors, axis=1) / np.linalg.norm(new, axis=1)[:, None]
    expected = [y[np.argsort(-row)[:5]].mean() for row in cosines]
    np.testing.assert_allclose(nearest_baseline(vectors, y, new), expected)
    np.testing.assert_allclose(nearest_baseline(vectors[:2], y[:2], new), np.full(4, y[:2].mean()))
    assert nearest_baseline(vectors, y, new[:0]).shape == (0,)


def test_the_words_baseline_is_the_pipeline_that_scikit_learn_makes():
    texts, scores = zip(*rated(80), strict=True)
    y, new = np.array(scores), [text for text, _ in rated(30, seed=9)] + ["Unheard-of words", "", "!"]
    folds = np.array_split(np.random.default_rng(0).permutation(80), 5)
    rows = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    X = rows.fit_transform(texts).toarray()  # frequencies of all rated texts, as in a pipeline
    splits = [(np.setdiff1d(np.arange(80), fold), fold) for fold in folds]
    search = GridSearchCV(Ridge(), {"alpha": WORD_ALPHAS}, scoring="neg_mean_squared_error", cv=splits).fit(X, y)
    values = words_baseline((texts, folds), y, new)
    np.testing.assert_allclose(values, search.predict(rows.transform(new).toarray()), atol=1e-5)
    assert np.std(values) > 0.1


@pytest.mark.parametrize("texts", [["!", "a", "?? b"], ["", "", ""]])
def test_without_words_the_words_baseline_is_the_mean(texts):
    folds = [np.array([0]), np.array([1, 2])]
    assert words_baseline((texts, folds), np.array([1.0, 2.0, 6.0]), ["new words", "!"]).tolist() == [3.0, 3.0]


@pytest.mark.parametrize("texts", [["good one", "bad one"], ["很好用", "坏了", "还可以"], ["good", "!", "bad", "?"]])
def test_the_words_baseline_takes_a_few_texts(texts):
    y, folds = np.arange(len(texts), dtype=float), [np.array([0]), np.arange(1, len(texts))]
    values = words_baseline((texts, folds), y, texts)
    assert values[-1] > values[0]
    assert words_baseline((texts, folds), y, []).shape == (0,)


FIGURES = ("mse", "r2", "pearson", "spearman")


def test_a_bootstrap_draw_scores_the_rows_that_it_drew():
    rng = np.random.default_rng(1)
    y = rng.integers(0, 5, 40).astype(float) + 100  # ties, far from 0
    guess, groups = y + rng.normal(size=40).round(1), [f"g{row % 9}" for row in range(40)]
    drawn = measures.bootstrap(y, guess, groups, n_draws=20, random_state=7)
    times = np.random.default_rng(7).multinomial(9, np.full(9, 1 / 9), size=20)
    for draw in range(20):
        rows = np.repeat(np.arange(40), times[draw][[row % 9 for row in range(40)]])
        for name in FIGURES:
            assert drawn[name][draw] == pytest.approx(getattr(measures, name)(y[rows], guess[rows]), rel=1e-9), name


def test_the_standard_error_of_a_bootstrap_is_the_spread_over_fresh_samples():
    rng = np.random.default_rng(2)

    def sample(n):
        y = rng.normal(size=n)
        return y, y + rng.normal(size=n)

    spread = np.std([measures.spearman(*sample(60)) for _ in range(400)])
    errors = [np.std(measures.bootstrap(*sample(60))["spearman"]) for _ in range(20)]
    assert np.mean(errors) == pytest.approx(spread, rel=0.15)


def test_rows_of_one_group_count_as_one():
    rng = np.random.default_rng(3)
    y = np.repeat(rng.normal(size=30), 4)
    guess = y + np.repeat(rng.normal(size=30), 4)
    alone, together = (
        np.std(measures.bootstrap(y, guess, groups)["mse"]) for groups in (None, np.repeat(range(30), 4))
    )
    assert together > 1.5 * alone
    assert all(np.isnan(measures.bootstrap(y, guess, [1] * 120)[name]).all() for name in FIGURES)


def test_a_draw_of_equal_scores_has_no_correlation():
    drawn = measures.bootstrap([3.3, 3.3, 3.3, 7.1], [0.1, 0.2, 0.4, 0.9], n_draws=200)
    times = np.random.default_rng(0).multinomial(4, np.full(4, 1 / 4), size=200)
    one_score = (times[:, 3] == 0) | (times[:, :3].sum(axis=1) == 0)
    one_value = (times > 0).sum(axis=1) < 2
    assert 20 < one_score.sum() < 180
    np.testing.assert_array_equal(np.isnan(drawn["r2"]), one_score)
    np.testing.assert_array_equal(np.isnan(drawn["spearman"]), one_score | one_value)


def test_the_reciprocal_rank_is_one_over_the_place_of_the_first_passage_above_the_lowest():
    rng = np.random.default_rng(0)
    for _ in range(20):
        relevance, values = rng.integers(1, 4, size=9).astype(float), rng.permutation(9)
        relevance[0] = 1.0
        best_first = relevance[np.argsort(-values)]
        place = next((n for n, one in enumerate(best_first, start=1) if one > 1), None)
        for k in (None, 3):
            expected = math.nan if place is None else 0.0 if k is not None and place > k else 1 / place
            assert measures.reciprocal_rank(relevance, values, k) == pytest.approx(expected, nan_ok=True)


def test_a_tie_earns_no_reciprocal_rank_and_a_query_without_a_difference_has_none():
    assert measures.reciprocal_rank([1.0, 0.0], [0.5, 0.5]) == 0.5
    assert measures.reciprocal_rank([1.0, 0.0], [0.5, 0.5], 1) == 0.0
    assert math.isnan(measures.reciprocal_rank([2.0, 2.0], [0.1, 0.2]))
    assert math.isnan(measures.reciprocal_rank([], []))
