"""What to rate next: against refits with each candidate added, and means over draws of the audit."""

import time

import numpy as np
import pytest
from scipy.sparse import csr_array

from dspy_qvl.certainty import suggest
from dspy_qvl.certainty.suggestion import ALIKE
from dspy_qvl.errors import InputError
from dspy_qvl.ridge import posterior_of, regression
from dspy_qvl.vectors import MixedRows

KINDS = [(8, "dense"), (90, "dense"), (90, "mixed")]


def columns(n, d, kind="dense", seed=0):
    rng = np.random.default_rng(seed)
    X = (rng.normal(size=(n, d)) * rng.gamma(1.0, size=(n, 1))).astype(np.float32)
    if kind == "mixed":
        X[:, 4:] *= rng.random((n, d - 4)) < 0.3
        return MixedRows(X[:, :4], csr_array(X[:, 4:]))
    return X


def plain(X):
    return X.toarray().astype(float) if isinstance(X, MixedRows) else X.astype(float)


def case(d=8, kind="dense", n=30, m=40, seed=0):
    """A posterior of n rated rows, and m candidates."""
    X = columns(n + m, d, kind, seed)
    y = np.random.default_rng(seed).normal(size=n) + np.asarray(plain(X)[:n, 0])
    return posterior_of(X[:n], y, 2.0), X[:n], X[n:]


def chosen(posterior, rated, candidates, **options):
    return suggest(posterior, candidates, plain(candidates), plain(rated), **options)


def mean_variance(rated, rows, new, alpha=2.0):
    """The mean variance of values of new rows under the fit of rated rows and some more, by inversion."""
    learned = np.concatenate([rated, rows])
    centred, new = learned - learned.mean(axis=0), new - learned.mean(axis=0)
    inverse = np.linalg.inv(centred.T @ centred + alpha * np.eye(len(new.T)))
    return np.mean(1 / len(learned) + np.einsum("ij,jk,ik->i", new, inverse, new))


@pytest.mark.parametrize(("d", "kind"), KINDS)
def test_covariances_are_those_of_the_inverted_system(d, kind):
    posterior, rated, candidates = case(d, kind)
    X, new = plain(rated), plain(candidates)
    centred, new = X - X.mean(axis=0), new - X.mean(axis=0)
    exact = 1 / len(X) + new @ np.linalg.inv(centred.T @ centred + 2.0 * np.eye(d)) @ new.T
    np.testing.assert_allclose(posterior.covariances(candidates), exact, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("d", "kind"), KINDS)
def test_each_row_lowers_the_mean_variance_more_than_any_other_would(d, kind):
    posterior, rated, candidates = case(d, kind)
    found = chosen(posterior, rated, candidates, k=6, audit=0)
    X, new, taken = plain(rated), plain(candidates), []
    at_first = mean_variance(X, new[:0], new)
    before = at_first
    for one in found:
        left = {row: mean_variance(X, new[[*taken, row]], new) for row in range(len(new)) if row not in taken}
        assert one.row == min(left, key=left.get)
        assert one.gain == pytest.approx((before - left[one.row]) / at_first, rel=1e-5)
        taken.append(one.row)
        before = left[one.row]
    assert [(one.inclusion, one.audit) for one in found] == [(1.0, False)] * 6


def test_beyond_exact_posteriors_the_rows_are_nearly_the_same(monkeypatch):
    posterior, rated, candidates = case(90, "mixed")
    exact = {one.row for one in chosen(posterior, rated, candidates, k=10, audit=0)}
    monkeypatch.setattr(regression, "EXACT", 0)
    bound = posterior_of(rated, np.arange(30.0), 2.0)
    assert not bound.exact
    assert len(exact & {one.row for one in chosen(bound, rated, candidates, k=10, audit=0)}) >= 8


def test_near_copies_of_rated_or_taken_texts_are_passed_over():
    posterior, rated, candidates = case()
    best = chosen(posterior, rated, candidates, k=1, audit=0)[0].row
    twin = np.concatenate([candidates, candidates[[best]] * 1.01])
    both = [one.row for one in chosen(posterior, rated, twin, k=8, audit=0)]
    assert len({best, 40} & set(both)) == 1
    assert best not in [one.row for one in suggest(posterior, candidates, candidates, candidates[[best]], k=8, audit=0)]
    cosines = candidates / np.linalg.norm(candidates, axis=1)[:, None]
    taken = [one.row for one in chosen(posterior, rated, candidates, k=8, audit=0)]
    assert (cosines[taken] @ cosines[taken].T)[~np.eye(8, dtype=bool)].max() < ALIKE


def test_sparse_vectors_of_any_length_tell_near_copies_too():
    posterior, rated, candidates = case()
    dense = suggest(posterior, candidates, candidates, rated, k=5)
    assert dense == suggest(posterior, candidates, csr_array(candidates * 3), csr_array(rated), k=5)


def test_the_audit_keeps_means_over_candidates_unbiased():
    posterior, rated, candidates = case()
    y = (plain(candidates) ** 2).sum(axis=1)  # those that tell most are not like the others
    means, plain_means = [], []
    for seed in range(600):
        found = chosen(posterior, rated, candidates, k=10, audit=0.4, random_state=seed)
        means.append(sum(y[one.row] / one.inclusion for one in found) / len(y))
        plain_means.append(np.mean([y[one.row] for one in found]))
    error = np.std(means) / np.sqrt(len(means))
    assert abs(np.mean(means) - y.mean()) < 4 * error
    assert abs(np.mean(plain_means) - y.mean()) > 20 * error


def test_rows_taken_do_not_depend_on_the_draw_and_inclusion_is_its_share():
    posterior, rated, candidates = case()
    drawn = np.zeros(len(candidates))
    for seed in range(800):
        found = chosen(posterior, rated, candidates, k=10, audit=0.2, random_state=seed)
        drawn[[one.row for one in found]] += 1
    inclusion = {one.row: one.inclusion for one in found if not one.audit}
    assert len(inclusion) == 8
    assert all(drawn[row] == 800 for row in inclusion)
    others = np.delete(drawn, list(inclusion)) / 800
    np.testing.assert_allclose(others, 2 / 32, atol=5 * np.sqrt(2 / 32 / 800))
    assert {one.inclusion for one in found if one.audit} == {2 / 32}


@pytest.mark.parametrize(("d", "kind"), KINDS)
def test_the_order_of_candidates_does_not_matter(d, kind):
    posterior, rated, candidates = case(d, kind)
    order = np.random.default_rng(0).permutation(40)
    found = chosen(posterior, rated, candidates, k=8, audit=0)
    other = chosen(posterior, rated, candidates[order], k=8, audit=0)
    assert [one.row for one in found] == [order[one.row] for one in other]


@pytest.mark.parametrize(
    ("k", "audit", "n_drawn"), [(10, 0.2, 2), (10, 0.01, 1), (10, 1.0, 10), (1, 0.2, 1), (3, 0, 0)]
)
def test_the_audit_is_its_share_of_k(k, audit, n_drawn):
    found = chosen(*case(), k=k, audit=audit)
    assert len({one.row for one in found}) == k
    assert [one.audit for one in found] == [False] * (k - n_drawn) + [True] * n_drawn
    assert all((one.gain is None) == one.audit for one in found)


def test_where_all_are_near_copies_the_others_are_drawn_at_random():
    posterior, _, candidates = case()
    alike = np.ones((40, 3))
    found = suggest(posterior, candidates, alike, -np.ones((30, 3)), k=5, audit=0)
    assert [one.audit for one in found] == [False, True, True, True, True]
    assert {one.inclusion for one in found} == {1.0, 4 / 39}


def test_fewer_candidates_than_k_are_all_chosen():
    posterior, rated, candidates = case(m=4)
    found = chosen(posterior, rated, candidates, k=10)
    assert {one.row for one in found} == {0, 1, 2, 3}
    assert {one.inclusion for one in found} == {1.0}


def test_thousands_of_candidates_take_seconds():
    posterior, rated, candidates = case(64, n=300, m=6000)
    start = time.process_time()
    found = chosen(posterior, rated, candidates, k=20)
    assert time.process_time() - start < 10
    assert len({one.row for one in found}) == 20
    assert found[-1].inclusion == 4 / (6000 - 16)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"k": 0}, "k must be a whole number of at least 1"),
        ({"audit": 1.5}, "audit must be a share between 0 and 1"),
        ({"candidates": np.empty((0, 8), dtype=np.float32)}, "no candidates"),
        ({"vectors": np.ones((3, 8))}, "3 vectors for 40 candidates"),
    ],
)
def test_input_that_chooses_nothing_is_refused(changed, message):
    posterior, rated, candidates = case()
    given = {"candidates": candidates, "vectors": candidates, "rated_vectors": rated} | changed
    with pytest.raises(InputError, match=message):
        suggest(posterior, **given)
