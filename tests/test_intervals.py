"""Intervals and left-out groups in closed form, against refits one by one."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.sparse import csr_array

from dspy_qvl import ridge
from dspy_qvl.certainty import intervals, intervals_of, jackknife_plus
from dspy_qvl.errors import InputError
from dspy_qvl.fitting import make_folds
from dspy_qvl.ridge import posterior_of, regression
from dspy_qvl.vectors import MixedRows

KINDS = ["more rows than columns", "fewer", "sparse columns"]


def rows(kind, n=60, seed=0):
    """Rows, (n, d), and targets whose noise grows along the first column."""
    rng = np.random.default_rng(seed)
    weights = np.random.default_rng(99)
    if kind == "sparse columns":
        dense = rng.normal(size=(n, 6)).astype(np.float32) + 0.5
        words = (rng.random((n, 400)) < 0.1) * rng.random((n, 400))
        X = MixedRows(dense, csr_array(words.astype(np.float32)))
    else:
        X = rng.normal(size=(n, 9 if kind == KINDS[0] else 100)).astype(np.float32) + 0.7
    wide = dense_of(X)
    y = wide @ weights.normal(size=wide.shape[1]) / 3 + rng.normal(size=n) * (1 + np.abs(wide[:, 0])) + 3
    return X, y


def dense_of(X):
    return (X.toarray() if isinstance(X, MixedRows) else X).astype(float)


def groups_of(kind, n):
    return np.arange(n) if kind == "alone" else np.random.default_rng(5).integers(0, n // 4, n)


def variances_of(X, new, alpha):
    """1/n + xc (Xc'Xc + alpha I)^-1 xc' of new rows, (m,), by explicit products."""
    mean = X.mean(axis=0)
    Xc, xc = X - mean, new - mean
    return 1 / len(X) + np.einsum("ij,ji->i", xc, np.linalg.solve(Xc.T @ Xc + alpha * np.eye(X.shape[1]), xc.T))


def refitted(X, y, alpha, groups, new):
    """Residuals and variances of rows, and values and variances of new rows, (m, n), each by a fit without a group."""
    X, new, n = dense_of(X), dense_of(new), len(y)
    r, v, values, variances = np.empty(n), np.empty(n), np.empty((len(new), n)), np.empty((len(new), n))
    for group in np.unique(groups):
        inside = groups == group
        line = ridge.fit(X[~inside], y[~inside], alpha)
        r[inside] = y[inside] - ridge.predict(X[inside], line)
        values[:, inside] = ridge.predict(new, line)[:, None]
        v[inside] = variances_of(X[~inside], X[inside], alpha)
        variances[:, inside] = variances_of(X[~inside], new, alpha)[:, None]
    return r, v, values, variances


def ends(values, reach, confidence):
    """The ends as they are defined, from the values and the reach of every row's fit, (m, n)."""
    n = values.shape[1]
    rank = round((1 - confidence) * (n + 1) - 0.5 + 1e-9)
    return np.sort(values - reach)[:, rank - 1], np.sort(values + reach)[:, n - rank]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grouped", ["alone", "groups"])
@pytest.mark.parametrize("alpha", [0.3, 20.0])
def test_intervals_are_those_of_refits_without_each_group(kind, grouped, alpha):
    X, y = rows(kind)
    new, groups = rows(kind, 12, seed=1)[0], groups_of(grouped, len(y))
    r, v, values, variances = refitted(X, y, alpha, groups, new)
    known = intervals_of(X, y, alpha, groups=groups)
    assert known.exact
    np.testing.assert_allclose(known.residuals, r, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(known.variances, v, rtol=1e-7)
    value = ridge.predict(new, ridge.fit(X, y, alpha))
    for confidence in (0.5, 0.9):
        plain = jackknife_plus(X, y, alpha, new, confidence, groups)
        np.testing.assert_allclose(plain, ends(values, np.abs(r), confidence), rtol=1e-8)
        reach = np.abs(r) * ((1 + variances) / (1 + v)) ** 0.25
        lower, upper = ends(values, reach, confidence)
        coarse = 2.0**-15 * np.median(np.abs(r))
        np.testing.assert_allclose(known.offsets(new, confidence).T + value, [lower, upper], atol=coarse)


@pytest.mark.parametrize("kind", KINDS)
def test_groups_have_any_numbers(kind):
    X, y = rows(kind)
    groups, new = groups_of("groups", len(y)), rows(kind, 5, seed=1)[0]
    names = np.array([7, -3, 100, *range(20, 80)])[groups]
    np.testing.assert_array_equal(
        intervals_of(X, y, 1.0, groups=groups).offsets(new, 0.8),
        intervals_of(X, y, 1.0, groups=names).offsets(new, 0.8),
    )


@pytest.fixture
def few_are_many(monkeypatch):
    """Beyond 40 rows there are folds, and posteriors of rows with sparse columns are bounds."""
    monkeypatch.setattr(intervals, "EXACT", 40)
    monkeypatch.setattr(regression, "EXACT", 40)


@pytest.mark.parametrize("kind", KINDS)
def test_many_rows_have_cv_plus_intervals_of_whole_groups(kind, few_are_many):
    X, y = rows(kind, 90)
    new, groups = rows(kind, 12, seed=1)[0], groups_of("groups", len(y))
    folds = make_folds(groups.tolist(), 10, np.random.default_rng(0))
    of_fold = np.empty(len(y), dtype=int)
    for number, fold in enumerate(folds):
        of_fold[fold] = number
    assert all(len(set(of_fold[groups == group])) == 1 for group in groups)
    r, _, values, _ = refitted(X, y, 2.0, of_fold, new)
    known, posterior = intervals_of(X, y, 2.0, groups=groups), posterior_of(X, y, 2.0)
    assert not known.exact
    np.testing.assert_allclose(known.residuals, r, rtol=1e-6, atol=1e-6)
    h = posterior.loo.leverages if posterior.loo else posterior.leverages(X)
    np.testing.assert_allclose(known.variances, h / (1 - h))
    variances = [posterior.fit_variance(new[i : i + 1] if kind == KINDS[2] else new[i]) for i in range(12)]
    reach = np.abs(r) * (1 - h) ** 0.25 * (1 + np.array(variances)[:, None]) ** 0.25
    expected = np.stack(ends(values, reach, 0.9)) - ridge.predict(new, posterior.line)
    np.testing.assert_allclose(known.offsets(new, 0.9).T, expected, atol=2.0**-15 * np.median(np.abs(r)))


def test_the_jackknife_plus_refuses_rows_that_have_no_leave_one_out(few_are_many):
    X, y = rows(KINDS[2], 50)
    with pytest.raises(InputError, match="takes at most 40 rows with sparse columns, but got 50"):
        jackknife_plus(X, y, 1.0, X, 0.9)


def some(X, chosen):
    return X[np.asarray(chosen)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grouped", ["alone", "groups"])
@pytest.mark.parametrize("many", [False, True])
def test_a_row_has_the_same_bits_in_any_batch_order_and_thread(kind, grouped, many, request):
    if many:
        request.getfixturevalue("few_are_many")
    X, y = rows(kind, 120)
    new = rows(kind, 80, seed=1)[0]
    known = intervals_of(X, y, 0.5, groups=groups_of(grouped, len(y)))
    whole = known.offsets(new, 0.9)
    assert len(np.unique(whole)) > 100
    with ThreadPoolExecutor(4) as pool:
        alone = list(pool.map(lambda row: known.offsets(some(new, [row]), 0.9)[0], range(80)))
    np.testing.assert_array_equal(whole, alone)
    order = np.random.default_rng(0).permutation(80)
    np.testing.assert_array_equal(known.offsets(some(new, order), 0.9), whole[order])
    np.testing.assert_array_equal(known.offsets(some(new, order[:7]), 0.9), whole[order[:7]])
    assert known.offsets(some(new, np.arange(0)), 0.9).shape == (0, 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grouped", ["alone", "groups"])
@pytest.mark.parametrize("alpha", [1e-3, 1.0])
def test_rounding_is_within_its_bounds(kind, grouped, alpha):
    X, y = rows(kind, 120)
    new = rows(kind, 40, seed=1)[0]
    without = ridge.WithoutGroups(X, posterior_of(X, y, alpha), groups_of(grouped, len(y)))
    many = without.many(new)
    for row in range(40):
        alone = without.alone(new[row : row + 1] if kind == KINDS[2] else new[row])
        assert np.abs(alone.values - many.values[row]).max() <= many.off_values[row]
        assert np.abs(alone.variances - many.variances[row]).max() <= many.off_variances[row]
    usual = np.median(np.abs(without.residuals))
    assert np.median(many.off_values) < 1e-6 * usual  # else every row would be worked out alone


def test_rows_whose_bounds_round_apart_are_worked_out_alone(monkeypatch):
    X, y = rows(KINDS[0])
    new, known = rows(KINDS[0], 30, seed=1)[0], intervals_of(X, y, 1.0, groups=range(len(y)))
    expected, asked = known.offsets(new, 0.9), []
    alone = ridge.WithoutGroups.alone
    monkeypatch.setattr(intervals, "_reach", lambda shifts, ends: np.full(len(ends), 1e-3))
    monkeypatch.setattr(ridge.WithoutGroups, "alone", lambda self, x: asked.append(x) or alone(self, x))
    np.testing.assert_array_equal(known.offsets(new, 0.9), expected)
    assert len(asked) == 30


@pytest.mark.parametrize(
    ("n", "confidence", "finite"), [(9, 0.9, True), (8, 0.9, False), (19, 0.95, True), (2, 0.5, True)]
)
def test_too_few_rows_for_a_confidence_have_infinite_intervals(n, confidence, finite):
    X, y = rows(KINDS[0], n)
    offsets = intervals_of(X, y, 1.0, groups=range(n)).offsets(X, confidence)
    lower, upper = jackknife_plus(X, y, 1.0, X, confidence)
    for low, high in ((offsets[:, 0], offsets[:, 1]), (lower, upper)):
        assert np.isfinite(low).all() == np.isfinite(high).all() == finite
        assert finite or ((low == -np.inf).all() and (high == np.inf).all())


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_that_is_all_there_is_cannot_be_left_out(kind):
    for n in range(2, 40):
        X, y = rows(kind, n, seed=n)
        known = intervals_of(X, y, 0.1, groups=[0] * n)
        assert np.isnan(known.residuals).all()
        assert (known.variances == np.inf).all()
        assert (known.offsets(X, 0.5) == (-np.inf, np.inf)).all()


def test_equal_scores_have_intervals_of_no_width():
    X, _ = rows(KINDS[1], 30)
    offsets = intervals_of(X, np.full(30, 2.5), 1.0, groups=range(30)).offsets(X, 0.9)
    np.testing.assert_allclose(offsets, 0.0, atol=1e-12)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -0.1, float("nan")])
def test_a_confidence_is_between_0_and_1(confidence):
    X, y = rows(KINDS[0], 20)
    known = intervals_of(X, y, 1.0, groups=range(20))
    for ask in (lambda: known.offsets(X, confidence), lambda: jackknife_plus(X, y, 1.0, X, confidence)):
        with pytest.raises(InputError, match=r"confidence must (lie between 0 and 1|be finite)"):
            ask()


def test_more_confidence_is_never_narrower():
    X, y = rows(KINDS[1], 100)
    new, known = rows(KINDS[1], 20, seed=1)[0], intervals_of(X, y, 3.0, groups=range(100))
    widths = [np.ptp(known.offsets(new, confidence), axis=1) for confidence in (5e-324, 0.5, 0.8, 0.9, 0.95)]
    assert (np.diff(widths, axis=0) >= 0).all()
    assert (widths[1] > 0).all()


def test_nine_in_ten_new_scores_lie_inside_an_interval_of_nine_in_ten():
    inside = []
    for seed in range(12):
        X, y = rows(KINDS[0], 500, seed)
        offsets = intervals_of(X[:300], y[:300], 5.0, groups=range(300)).offsets(X[300:], 0.9)
        missed = y[300:] - ridge.predict(X[300:], ridge.fit(X[:300], y[:300], 5.0))
        inside.extend((offsets[:, 0] <= missed) & (missed <= offsets[:, 1]))
    assert 0.88 < np.mean(inside) < 0.92


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"new": np.zeros((2, 4))}, "new has 4 columns, but X has 3"),
        ({"new": np.zeros(3)}, r"new must be an array of rows, \(n, d\)"),
        ({"X": [[1.0, 2.0, 3.0]] * 20}, r"X must be an array of rows, \(n, d\), but got list"),
        ({"X": np.zeros((0, 3))}, "X has no rows"),
        ({"y": np.zeros(19)}, r"y has shape \(19,\), but X has 20 rows"),
        ({"groups": [1, 2]}, r"groups has shape \(2,\), but X has 20 rows"),
        ({"y": np.full(20, np.nan)}, "must be finite"),
        ({"alpha": -1.0}, "alpha must be above 0"),
        ({"confidence": 1.0}, "must lie between 0 and 1"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, message):
    rng = np.random.default_rng(0)
    given = {"X": rng.normal(size=(20, 3)), "y": rng.normal(size=20), "alpha": 1.0, "new": np.zeros((2, 3))}
    with pytest.raises(InputError, match=message):
        jackknife_plus(**(given | {"confidence": 0.9} | change))


def test_a_group_that_is_all_there_is_cannot_be_left_out_of_many_rows_either(monkeypatch):
    monkeypatch.setattr(intervals, "EXACT", 19)
    X, y = rows(KINDS[0], 20)
    assert (intervals_of(X, y, 0.1, groups=[3] * 20).offsets(X, 0.5) == (-np.inf, np.inf)).all()
