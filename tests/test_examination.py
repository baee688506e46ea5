"""Figures of a value function with their doubt: every one against explicit refits."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.linear_model import LinearRegression, Ridge

from dspy_qvl import InputError, measures
from dspy_qvl.certainty import Estimate, RatedRows, beside_baselines, beyond_length, examine, learning_curve
from dspy_qvl.certainty.verdict import curve, examination
from dspy_qvl.fitting import ALPHA_RANGE, BASELINES, make_folds, permutation_test
from dspy_qvl.fitting.permutation import shuffles
from dspy_qvl.vectors import MixedRows
from tests.conftest import refitted_r2

WORDS = "lamp glass wind sea stone bread road bird fire snow".split()


def rated(n=80, d=6, *, per_group=1, signal=1.0, of_length=0.0, alpha=3.0, seed=0):
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, size=rng.integers(3, 30))) + f" {row}" for row in range(n)]
    X = rng.normal(size=(n, d)).astype(np.float32)
    lengths = np.log1p([len(text) for text in texts])
    X[:, 0] = (lengths - lengths.mean()) / lengths.std()
    y = signal * X[:, 1:4].sum(axis=1) + of_length * X[:, 0] + rng.normal(size=n)
    return RatedRows(X, X, y.astype(float), alpha, (np.arange(n) // per_group).tolist(), texts, X)


def refitted(one, values_of):
    """Values of each fold under a rule of the rows beside it."""
    values = np.empty(len(one))
    for fold in one.folds:
        seen = np.setdiff1d(np.arange(len(one)), fold)
        values[fold] = values_of(seen, fold)
    return values


# Figures and baselines


@pytest.mark.parametrize("per_group", [1, 4])
def test_the_figures_are_those_of_refits_and_of_baselines_on_the_same_folds(per_group):
    one = rated(per_group=per_group)
    assert [len(fold) for fold in one.folds] == [16] * 5
    assert all(set(one.groups[fold]).isdisjoint(np.delete(one.groups, fold)) for fold in one.folds)
    found = beside_baselines(one)
    X, y = one.X.astype(float), one.y
    means = refitted(one, lambda seen, fold: y[seen].mean())
    values = refitted(one, lambda seen, fold: Ridge(alpha=3.0).fit(X[seen], y[seen]).predict(X[fold]))
    np.testing.assert_allclose(found.values, values, atol=1e-6)
    assert found.figures["r2"].value == pytest.approx(measures.r2(y, values), abs=1e-6)
    assert found.figures["spearman"].value == pytest.approx(measures.spearman(y, values - means))
    length = one.lengths[:, None]
    by_length = refitted(one, lambda seen, fold: LinearRegression().fit(length[seen], y[seen]).predict(length[fold]))
    assert set(found.baselines) == set(BASELINES)
    assert found.baselines["length"]["r2"].value == pytest.approx(measures.r2(y, by_length))
    assert found.baselines["mean"]["r2"].value == pytest.approx(measures.r2(y, means))
    for name, figures in found.baselines.items():
        for key, figure in figures.items():
            less = found.differences[name][key]
            np.testing.assert_array_equal(less.draws, found.figures[key].draws - figure.draws)
    assert found.better == ()


def test_a_baseline_that_is_clearly_better_is_named():
    one = rated(200)
    line = one.X[:, 1:4].sum(axis=1, keepdims=True)
    told = RatedRows(one.X[:, :1], one.X[:, :1], one.y, 3.0, one.members, one.texts, np.hstack([line, 1 + 0 * line]))
    assert beside_baselines(told).better == ("nearest",)


def test_values_that_know_nothing_get_no_spearman_from_the_means_of_their_folds():
    one = rated(60, signal=0.0, alpha=1e9)
    means = refitted(one, lambda seen, fold: one.y[seen].mean())
    assert measures.spearman(one.y, means) < -0.15
    found = beside_baselines(one, ("mean",))
    mean = found.baselines["mean"]["spearman"]
    assert np.isnan([mean.value, mean.lower, mean.upper, mean.se]).all()
    drawn = [beside_baselines(rated(40, signal=0.0, seed=seed), ()).figures["spearman"].value for seed in range(60)]
    assert np.mean(drawn) == pytest.approx(0, abs=0.06)


def test_an_interval_holds_the_middle_of_its_draws():
    draws = np.append(np.random.default_rng(0).permutation(1001) / 1000, np.nan)
    one = Estimate(0.5, draws)
    assert (one.lower, one.upper) == pytest.approx((0.025, 0.975))
    assert one.se == pytest.approx(np.nanstd(draws, ddof=1))
    assert np.isnan(Estimate(0.5, np.append(draws[:3], [np.nan] * 4)).lower)


# Length


def test_the_test_beyond_length_is_that_of_refits_to_what_length_leaves_over():
    one = rated(30, of_length=2.0, signal=0.4)
    found = permutation_test(one.X, one.y, ALPHA_RANGE, members=range(30), given=one.lengths, n_shuffles=9)
    rng, length = np.random.default_rng(0), one.lengths[:, None]

    def left_over(target):
        return target - LinearRegression().fit(length, target).predict(length)

    y = left_over(one.y)
    y /= y.std()
    folds, X = make_folds(list(range(30)), 5, rng), one.X.astype(float)
    r2 = refitted_r2(X, map(left_over, (y, *shuffles(y, np.arange(30), 9, rng))), ALPHA_RANGE, folds)
    assert found.r2 == pytest.approx(r2[0], abs=1e-6)
    np.testing.assert_allclose(found.shuffled_r2, r2[1:], atol=1e-6)
    assert found.p == (1 + sum(other >= r2[0] for other in r2[1:])) / 10


def test_of_ratings_that_are_length_and_noise_one_in_twenty_is_taken_for_more():
    p = [beyond_length(one, one.X[:, 0]).p for one in (rated(40, 4, signal=0, of_length=2, seed=s) for s in range(80))]
    assert np.mean(np.array(p) <= 0.05) <= 0.11
    assert np.mean(p) == pytest.approx(0.5, abs=0.1)
    assert beyond_length(rated(40, 4, signal=1, of_length=2), np.arange(40.0)).p == 1 / 200


def test_ratings_that_lie_on_a_line_through_length_leave_nothing_over():
    one = rated(40, signal=0)
    line = RatedRows(one.X, one.X, 3 * one.lengths + 5, 3.0, one.members, one.texts, one.X)
    found = beyond_length(line, one.lengths)
    assert (found.p, found.share, found.beyond) == (1.0, pytest.approx(1.0), 0.0)


def test_how_much_is_length_is_told_by_the_shares_of_variance():
    one = rated(of_length=1.0)
    values = one.X[:, :3].sum(axis=1).astype(float)
    found = beyond_length(one, values)
    assert found.share == pytest.approx(np.corrcoef(values, one.lengths)[0, 1] ** 2)
    both = LinearRegression().fit(np.column_stack([one.lengths, values]), one.y)
    explained = both.score(np.column_stack([one.lengths, values]), one.y)
    of_length = np.corrcoef(one.y, one.lengths)[0, 1] ** 2
    assert found.beyond == pytest.approx((explained - of_length) / explained)
    constant = beyond_length(one, np.ones(len(one)))
    assert (constant.share, constant.beyond) == (0.0, 0.0)


# Learning curve


@pytest.mark.parametrize("per_group", [1, 4])
def test_the_learning_curve_is_that_of_refits_on_nested_parts(per_group, monkeypatch):
    one, parts = rated(160, per_group=per_group), []
    nested = curve._nested
    monkeypatch.setattr(curve, "_nested", lambda *args: parts.append(nested(*args)) or parts[-1])
    values = beside_baselines(one).values
    found = learning_curve(one, values)
    assert found.sizes == (16, 32, 64, 128)
    X, y = one.X.astype(float), one.y
    for place, figures in enumerate(found.figures):
        again, means = np.empty(160), np.empty(160)
        for fold, of_fold in zip(one.folds, parts, strict=True):
            part = of_fold[place]
            assert set(one.groups[part]).isdisjoint(one.groups[fold])
            assert np.isin(one.groups, one.groups[part]).sum() == len(part)  # whole groups
            assert set(part) <= set(of_fold[min(place + 1, 3)])
            again[fold] = Ridge(alpha=3.0).fit(X[part], y[part]).predict(X[fold])
            means[fold] = y[part].mean()
        assert figures["r2"].value == pytest.approx(measures.r2(y, again), abs=1e-6)
        assert figures["spearman"].value == pytest.approx(measures.spearman(y, again - means), abs=1e-6)
        assert figures["r2"].se > 0
    last = found.last["spearman"]
    assert last.value == found.figures[-1]["spearman"].value - found.figures[-2]["spearman"].value
    assert 0 < last.se < found.figures[-2]["spearman"].se  # the same draws: their doubt is in common


def test_few_rows_have_a_short_curve():
    one = rated(15)
    assert learning_curve(one, beside_baselines(one).values).sizes == (3, 6, 12)
    two = rated(4, per_group=2)
    found = learning_curve(two, beside_baselines(two).values)
    assert (found.sizes, found.last) == ((2,), {})


def test_large_groups_never_give_one_size_twice():
    sizes = [60, 1, 1, 1, 2, 1, 60, 2]  # an eighth and a fourth both are the small groups, before the first large one
    one = rated(sum(sizes))
    one = RatedRows(one.X, one.X, one.y, 3.0, np.repeat(np.arange(8), sizes), one.texts, one.X, random_state=196)
    assert learning_curve(one, beside_baselines(one, ()).values).sizes == (4, 40, 102)


# All of it


@pytest.mark.parametrize(("n", "per_group"), [(2, 1), (3, 2), (5, 1), (6, 2)])
def test_the_fewest_ratings_are_examined_too(n, per_group):
    found = examine(rated(n, per_group=per_group))
    assert found.verdict.name == "too few to tell"
    assert np.isfinite(found.compared.values).all()
    assert all(np.isfinite(figures["r2"].value) for figures in found.compared.baselines.values())


def test_one_group_cannot_be_examined():
    with pytest.raises(InputError, match="are all one group"):
        examine(rated(6, per_group=6))


def test_many_rows_are_sampled_in_whole_groups(monkeypatch):
    assert examination.MOST_EXAMINED == 4000
    monkeypatch.setattr(examination, "MOST_EXAMINED", 160)
    one = rated(400, per_group=8)
    some = one.sampled(160)
    assert len(some) == 160
    assert (np.bincount(some.groups) == 8).all()
    rows = [one.texts.index(text) for text in some.texts]
    np.testing.assert_array_equal(some.X, one.X[rows])
    np.testing.assert_array_equal(some.y, one.y[rows])
    found = examine(one)
    assert (found.n, found.n_examined) == (400, 160)
    np.testing.assert_array_equal(found.compared.values, beside_baselines(some).values)


@pytest.mark.parametrize("kind", ["dense", "mixed"])
def test_the_same_rows_and_seed_give_the_same_examination(kind):
    plain = rated(50)
    X = plain.X if kind == "dense" else MixedRows(plain.X[:, :2], csr_array(plain.X[:, 2:]))
    same, again = (
        examine(RatedRows(X, X, plain.y, 3.0, plain.members, plain.texts, plain.X, random_state=4)) for _ in range(2)
    )
    assert same.verdict == again.verdict
    assert same.length == again.length
    np.testing.assert_array_equal(same.compared.values, again.compared.values)
    np.testing.assert_array_equal(same.curve.figures[0]["r2"].draws, again.curve.figures[0]["r2"].draws)
