"""Ratings that the others do not bear out, and how far one rating moves the values: against refits without it."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.linear_model import Ridge

from dspy_qvl.certainty import influence, suspects
from dspy_qvl.certainty.influences import MOST
from dspy_qvl.ridge import posterior_of
from dspy_qvl.vectors import MixedRows


def columns(n, d, kind="dense", seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)).astype(np.float32)
    if kind == "mixed":
        X[:, 4:] *= rng.random((n, d - 4)) < 0.3
        return MixedRows(X[:, :4], csr_array(X[:, 4:]))
    return X


def taught(n=60, d=8, kind="dense", seed=0):
    X = columns(n, d, kind, seed)
    rng = np.random.default_rng(seed + 100)
    return X, np.asarray(X @ rng.normal(size=d)) + 0.5 * rng.normal(size=n) + 7


def plain(X):
    return X.toarray().astype(float) if isinstance(X, MixedRows) else X.astype(float)


@pytest.mark.parametrize(("d", "kind"), [(8, "dense"), (90, "dense"), (90, "mixed")])
@pytest.mark.parametrize("alpha", [0.01, 30.0])
def test_the_influence_of_a_rating_is_what_a_refit_without_it_changes(d, kind, alpha):
    X, y = taught(60, d, kind)
    found = influence(posterior_of(X, y, alpha), X)
    rows, whole = plain(X), Ridge(alpha=alpha).fit(plain(X), y).predict(plain(X))
    for row in range(0, 60, 7):
        seen = np.delete(np.arange(60), row)
        without = Ridge(alpha=alpha).fit(rows[seen], y[seen]).predict(rows)
        assert found.changes[row] == pytest.approx(np.sqrt(np.mean((without - whole) ** 2)), rel=1e-6)
        moved = y.copy()
        moved[row] += 1
        share = Ridge(alpha=alpha).fit(rows, moved).predict(rows)[row] - whole[row]
        assert found.shares[row] == pytest.approx(share, rel=1e-6)


def test_a_root_in_float32_tells_the_same_influence(monkeypatch):
    X, y = taught(60, 90, "mixed")
    exact = influence(posterior_of(X, y, 1.0), X)
    monkeypatch.setattr("dspy_qvl.ridge.posterior.HALVED", 10)
    np.testing.assert_allclose(influence(posterior_of(X, y, 1.0), X).changes, exact.changes, rtol=1e-5)


def test_beyond_some_thousands_of_rows_no_influence_is_told():
    X, y = taught(MOST + 1, 3)
    assert influence(posterior_of(X, y, 1.0), X) is None
    assert influence(posterior_of(X[:-1], y[:-1], 1.0), X[:-1]).changes.shape == (MOST,)


@pytest.mark.parametrize(("d", "kind"), [(8, "dense"), (90, "mixed")])
def test_a_suspect_is_measured_by_a_fit_that_saw_neither_it_nor_the_other_suspects(d, kind):
    X, y = taught(60, d, kind)
    y[[3, 17, 40]] += [9, -9, 12]
    known = posterior_of(X, y, 1.0)
    found = suspects(X, y, 1.0, known.loo, known.noise, n=60)
    if kind == "dense":
        assert {one.row for one in found[:3]} == {3, 17, 40}
    first = np.abs(known.loo.residuals) * np.sqrt(1 - known.loo.leverages)
    hidden = np.argsort(-first)[:3]
    rows = plain(X)
    for one in found[::6]:
        seen = np.setdiff1d(np.arange(60), [*hidden, one.row])
        assert one.value == pytest.approx(Ridge(alpha=1.0).fit(rows[seen], y[seen]).predict(rows[[one.row]])[0])
        centred = rows[seen] - rows[seen].mean(axis=0)
        new = rows[one.row] - rows[seen].mean(axis=0)
        v = 1 / len(seen) + new @ np.linalg.solve(centred.T @ centred + np.eye(d), new)
        assert one.deviations == pytest.approx((y[one.row] - one.value) / (known.noise * np.sqrt(1 + v)), rel=1e-5)
        assert one.score == y[one.row]
    sizes = [abs(one.deviations) for one in found]
    assert sizes == sorted(sizes, reverse=True)


def test_of_a_few_ratings_none_is_hidden_and_one_that_stands_alone_is_no_suspect():
    X = np.zeros((12, 2), dtype=np.float32)
    X[:6, 0], X[0, 1] = np.arange(6), 1e6
    y = np.arange(12.0)
    known = posterior_of(X, y, 1e-12)
    found = suspects(X, y, 1e-12, known.loo, known.noise, n=12)
    lone = [row for row in range(12) if np.isnan(known.loo.residuals[row])]
    assert lone == [0]
    assert {one.row for one in found} == set(range(1, 12))
    for one in found:
        assert one.score - one.value == pytest.approx(known.loo.residuals[one.row])
