"""Ridge for orders, on arrays."""

import numpy as np
import pytest

from dspy_qvl import ranking, scores
from dspy_qvl.folds import make_folds


def queries(n_queries, n_passages=8, d=30, signal=1.0, seed=0, shift=0.0):
    """Columns and relevances: the first column is the prior, three of the wide block matter."""
    rng = np.random.default_rng(seed)
    X = [rng.normal(size=(n_passages, 2 + d)).astype(np.float32) + shift * rng.normal() for _ in range(n_queries)]
    w = np.zeros(2 + d)
    w[0], w[2:5] = 1.0, signal
    return X, [np.round(x @ w + rng.normal(size=len(x)) * 0.5 + 3 * shift * rng.normal()) for x in X]


BLOCKS = [slice(0, 1), slice(1, 2), slice(2, 32)]


def fit(X, y, n_folds=5, blocks=BLOCKS):
    return ranking.fit_ranking(X.__getitem__, y, blocks, make_folds(range(len(X)), n_folds, np.random.default_rng(0)))


def mean_ndcg(coef, X, y):
    return np.nanmean([scores.ndcg(relevance, x @ coef) for x, relevance in zip(X, y, strict=True)])


def test_what_labels_teach_beats_the_prior_on_other_queries():
    X, y = queries(200)
    found = fit(X[:150], y[:150])
    prior = np.eye(len(found.coef))[0]
    assert mean_ndcg(found.coef, X[150:], y[150:]) > mean_ndcg(prior, X[150:], y[150:]) + 0.05
    assert found.ndcg > found.prior_ndcg + 0.05
    assert all(factor > 0 for factor in found.factors)


def test_where_the_prior_is_all_there_is_it_is_kept_or_hardly_left():
    for seed in range(5):
        X, y = queries(12, signal=0.0, seed=seed)
        held, truth = queries(100, signal=0.0, seed=seed + 50)
        found = fit(X, y)
        prior = np.eye(len(found.coef))[0]
        assert mean_ndcg(found.coef, held, truth) > mean_ndcg(prior, held, truth) - 0.03


def test_a_prior_that_labels_contradict_still_points_upward():
    X, y = queries(2, seed=3)
    y = [-relevance for relevance in y]
    found = fit(X, y, n_folds=2)
    if found.alpha == np.inf:
        assert found.coef[0] > 0


def test_differences_between_queries_teach_nothing():
    plain, shifted = queries(100), queries(100, shift=0.0)
    moved = [x + np.float32(number) for number, x in enumerate(shifted[0])]
    raised = [relevance + 100.0 * number for number, relevance in enumerate(shifted[1])]
    assert fit(moved, raised).coef == pytest.approx(fit(*plain).coef, rel=1e-3, abs=1e-3)


def test_the_solution_is_that_of_the_normal_equations():
    X, y = queries(80)
    found = fit(X, y)
    factors = np.repeat(found.factors, [1, 1, 30])
    rows = np.concatenate([x - x.mean(axis=0) for x in X]).astype(float) * factors
    centred = np.concatenate([relevance - relevance.mean() for relevance in y])
    scale = 1 / np.sqrt((np.concatenate([x - x.mean(axis=0) for x in X])[:, 0].astype(float) ** 2).mean())
    first = np.concatenate([x - x.mean(axis=0) for x in X])[:, 0] * scale
    slope = first @ centred / (first @ first)
    missed = centred - first * slope
    learned = np.linalg.solve(rows.T @ rows + found.alpha * np.eye(32), rows.T @ missed) * factors
    learned[0] += slope * scale
    assert found.coef == pytest.approx(learned, rel=1e-4, abs=1e-6)


def test_few_queries_leave_wide_blocks_alone():
    X, y = queries(ranking.FEW - 1)
    assert fit(X, y).factors[2] == 0.0


def test_queries_whose_passages_are_all_as_good_count_nothing():
    X, y = queries(40)
    more = [*X, *queries(10, seed=9)[0]]
    found = fit(more, [*y, *[np.ones(8)] * 10])
    assert found.n_queries == 40


def test_chunks_make_no_difference(monkeypatch):
    X, y = queries(60)
    whole = fit(X, y).coef
    monkeypatch.setattr(ranking, "CHUNK", 20)
    assert fit(X, y).coef == pytest.approx(whole)


@pytest.mark.parametrize("seed", range(5))
def test_ndcg_and_average_precision_are_those_of_scikit_learn(seed):
    from sklearn.metrics import average_precision_score, ndcg_score

    rng = np.random.default_rng(seed)
    relevance, values = rng.integers(0, 3, size=12).astype(float), rng.normal(size=12)
    relevance[0] = 0.0
    for k in (None, 5):
        assert scores.ndcg(relevance, values, k) == pytest.approx(ndcg_score([relevance], [values], k=k))
    assert scores.average_precision(relevance > 0, values) == pytest.approx(
        average_precision_score(relevance > 0, values)
    )


def test_a_tie_earns_nothing_and_a_query_without_a_difference_has_no_score():
    assert scores.ndcg([1.0, 0.0], [0.5, 0.5]) == pytest.approx(1 / np.log2(3))
    assert scores.average_precision([1.0, 0.0], [0.5, 0.5]) == 0.5
    assert np.isnan(scores.ndcg([2.0, 2.0], [0.1, 0.2]))
    assert np.isnan(scores.ndcg([], []))
    assert np.isnan(scores.average_precision([0.0, 0.0], [0.1, 0.2]))
