"""What is known of the first stage that found the passages."""

import warnings

import numpy as np
import pytest

from dspy_qvl import QVLWarning, measures
from dspy_qvl.reranker.judged import JudgedQuery, beyond_chance, known_of_first_stage


def judged(n_queries=40, noise=1.0, seed=0, n_passages=8, **said):
    """Queries whose passages come in an order that labels explain the less, the more noise."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(n_queries):
        relevance = rng.permutation([2.0, 1.0, 1.0, *[0.0] * (n_passages - 3)])
        relevance = relevance[np.argsort(-(relevance + noise * rng.normal(size=n_passages)))]
        found.append(JudgedQuery(f"q{number}", [f"p{row}" for row in range(n_passages)], relevance, **said))
    return found


def with_scores(queries, make):
    return [JudgedQuery(one.query, one.passages, one.relevance, make(one), one.first_stage) for one in queries]


def test_beyond_chance_measures_against_shuffles():
    rng = np.random.default_rng(0)
    relevances = [rng.integers(0, 4, size=n).astype(float) for n in (3, 5, 8, 8, 12)]
    relevances = [y for y in relevances if np.ptp(y) > 0]
    shuffled = [
        np.mean([measures.ndcg(rng.permutation(y), -np.arange(len(y))) for y in relevances]) for _ in range(4000)
    ]
    came, chance = np.mean([measures.ndcg(y, -np.arange(len(y))) for y in relevances]), np.mean(shuffled)
    share, deviations = beyond_chance(relevances)
    assert share == pytest.approx((came - chance) / (1 - chance), abs=0.02)
    assert deviations == pytest.approx((came - chance) / np.std(shuffled), abs=0.1)


def test_an_order_that_ranks_beyond_chance_is_a_first_stages():
    assert known_of_first_stage(judged()) == ("rank",)
    assert known_of_first_stage(judged(n_queries=10)) == ("rank",)


def test_shuffled_passages_and_those_with_the_best_last_are_in_no_order():
    taken = [known_of_first_stage(judged(noise=1e9, seed=seed)) for seed in range(100)]
    assert taken.count(()) >= 99
    assert known_of_first_stage([]) == ()
    backwards = [JudgedQuery(one.query, one.passages, one.relevance[::-1]) for one in judged()]
    assert known_of_first_stage(backwards) == ()


def test_an_order_hardly_better_than_chance_is_none_however_many_queries_there_are():
    many = judged(3000, noise=12.0)
    share, deviations = beyond_chance([one.relevance for one in many])
    assert (share < 0.1, deviations > 3) == (True, True)
    assert known_of_first_stage(many) == ()


def test_an_order_made_of_the_labels_is_left_out_with_a_warning_unless_it_is_said_what_it_is():
    with pytest.warns(QVLWarning, match=r"the rank of passages puts all relevant ones first in 100% of the judged"):
        assert known_of_first_stage(judged(noise=0)) == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert known_of_first_stage(judged(noise=0), quiet=True) == ()
        assert known_of_first_stage(judged(noise=0, first_stage=True)) == ("rank",)
        assert known_of_first_stage(judged(noise=0, first_stage=False)) == ()
        assert known_of_first_stage(judged(first_stage=False)) == ()


def test_scores_that_came_along_are_a_first_stages_unless_they_are_the_labels():
    rng = np.random.default_rng(0)
    shuffled = judged(noise=1e9, seed=1)
    scored = with_scores(shuffled, lambda one: one.relevance + rng.normal(size=len(one.relevance)))
    assert known_of_first_stage(scored) == ("score",)
    assert known_of_first_stage(with_scores(judged(), lambda one: -np.arange(8.0))) == ("rank", "score")
    with pytest.warns(QVLWarning, match="the score of passages puts all relevant ones first in 100%"):
        assert known_of_first_stage(with_scores(shuffled, lambda one: one.relevance)) == ()
    with pytest.warns(QVLWarning, match="39 of 40 judged queries have first-stage scores"):
        assert known_of_first_stage([*scored[1:], shuffled[0]]) == ()
