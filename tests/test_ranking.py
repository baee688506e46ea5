"""Ridge for orders, on arrays."""

import numpy as np
import pytest

from dspy_qvl import measures
from dspy_qvl.features import Blocks
from dspy_qvl.fitting import make_folds
from dspy_qvl.reranker import ranking


def queries(n_queries, n_passages=8, d=30, signal=1.0, seed=0, shift=0.0):
    """Columns and relevances: the first column is the prior, three of the wide block matter."""
    rng = np.random.default_rng(seed)
    X = [rng.normal(size=(n_passages, 2 + d)).astype(np.float32) + shift * rng.normal() for _ in range(n_queries)]
    w = np.zeros(2 + d)
    w[0], w[2:5] = 1.0, signal
    return X, [np.round(x @ w + rng.normal(size=len(x)) * 0.5 + 3 * shift * rng.normal()) for x in X]


BLOCKS = Blocks(("prior", "narrow", "wide"), (1, 1, 30))


def fit(X, y, n_folds=5, blocks=BLOCKS):
    return ranking.fit_ranking(X.__getitem__, y, blocks, make_folds(range(len(X)), n_folds, np.random.default_rng(0)))


def mean_ndcg(coef, X, y):
    return np.nanmean([measures.ndcg(relevance, x @ coef) for x, relevance in zip(X, y, strict=True)])


def test_what_labels_teach_beats_the_prior_on_other_queries():
    X, y = queries(200)
    found = fit(X[:150], y[:150])
    prior = np.eye(len(found.coef))[0]
    assert mean_ndcg(found.coef, X[150:], y[150:]) > mean_ndcg(prior, X[150:], y[150:]) + 0.05
    assert found.quality.ndcg > found.prior_qualities[0].ndcg + 0.05
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


def two_priors(n_queries, seed, good=1.0, n_passages=6):
    """Columns and relevances: two orders, of which the second is the better one, and three that say nothing."""
    rng = np.random.default_rng(seed)
    y = [rng.integers(0, 3, size=n_passages).astype(float) for _ in range(n_queries)]
    X = [rng.normal(size=(n_passages, 5)).astype(np.float32) for _ in range(n_queries)]
    for x, relevance in zip(X, y, strict=True):
        x[:, 0] += 0.3 * relevance
        x[:, 1] += good * relevance
    return X, y


def fit_two(X, y, **settings):
    blocks = Blocks(("first", "second", "rest"), (1, 1, 3))
    X, y = zip(*[(x, relevance) for x, relevance in zip(X, y, strict=True) if np.ptp(relevance)], strict=True)
    folds = make_folds(range(len(X)), 5, np.random.default_rng(0))
    return ranking.fit_ranking(X.__getitem__, y, blocks, folds, priors=(0, 1), **settings)


def test_with_two_prior_orders_it_does_not_fall_below_the_better_one_on_other_queries():
    held, truth = two_priors(300, seed=1)
    alone = [np.nanmean([measures.ndcg(r, x[:, c]) for x, r in zip(held, truth, strict=True)]) for c in (0, 1)]
    assert alone[0] + 0.05 < alone[1]
    for n_queries, loss in ((20, 0.02), (300, 0.0)):
        found = fit_two(*two_priors(n_queries, seed=n_queries))
        assert mean_ndcg(found.coef, held, truth) >= alone[1] - loss
        assert found.prior_qualities[0].ndcg < found.prior_qualities[1].ndcg


def test_out_of_fold_no_fit_is_below_any_of_several_prior_orders():
    kept = 0
    for seed in range(60):
        X, y = two_priors(8, seed, good=0.5)
        found = fit_two(X, y)
        assert found.quality.ndcg >= max(prior.ndcg for prior in found.prior_qualities)
        if found.alpha == np.inf:
            kept += 1
            assert np.flatnonzero(found.coef).tolist() == [found.prior]
            assert found.quality == found.prior_qualities[found.prior]
    assert kept >= 5


def test_an_optional_order_is_left_out_where_it_misleads_and_kept_where_it_helps():
    X, y = two_priors(200, seed=2)
    assert fit_two(X, y, optional=(1,)).factors[1] > 0
    rng = np.random.default_rng(0)
    for x in X:
        x[:, 1] = rng.normal(size=len(x))
    few = [fit_two(X[start : start + 8], y[start : start + 8], optional=(1,)) for start in range(0, 200, 8)]
    assert sum(found.factors[1] == 0 for found in few) >= 10
    assert all(found.coef[1] == 0 for found in few if found.factors[1] == 0)


@pytest.mark.parametrize("k", [None, 1, 3])
def test_figures_look_at_the_first_k_passages(k):
    X, y = two_priors(40, seed=3)
    found = fit_two(X, y, k=k)
    for column, prior in enumerate(found.prior_qualities):
        pairs = [(r, x[:, column]) for x, r in zip(X, y, strict=True)]
        assert prior.ndcg == pytest.approx(np.nanmean([measures.ndcg(*pair, k) for pair in pairs]))
        assert prior.mrr == pytest.approx(np.nanmean([measures.reciprocal_rank(*pair, k) for pair in pairs]))
        assert prior == ranking.quality_of(*zip(*[pair for pair in pairs if np.ptp(pair[0])], strict=True), k)


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
        assert measures.ndcg(relevance, values, k) == pytest.approx(ndcg_score([relevance], [values], k=k))
    assert measures.average_precision(relevance > 0, values) == pytest.approx(
        average_precision_score(relevance > 0, values)
    )


def test_a_tie_earns_nothing_and_a_query_without_a_difference_has_no_score():
    assert measures.ndcg([1.0, 0.0], [0.5, 0.5]) == pytest.approx(1 / np.log2(3))
    assert measures.average_precision([1.0, 0.0], [0.5, 0.5]) == 0.5
    assert np.isnan(measures.ndcg([2.0, 2.0], [0.1, 0.2]))
    assert np.isnan(measures.ndcg([], []))
    assert np.isnan(measures.average_precision([0.0, 0.0], [0.1, 0.2]))
