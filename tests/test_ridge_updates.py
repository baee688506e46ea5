"""Rows that come and go against fits from scratch."""

import numpy as np
import pytest

from dspy_qvl import ridge
from dspy_qvl.ridge import updates
from dspy_qvl.ridge.kernel_updates import RecursiveKernelRidge
from dspy_qvl.ridge.moments import gather, rough_mean
from dspy_qvl.ridge.updates import RecursiveRidge, WarmStartedRidge
from dspy_qvl.vectors import MixedRows
from tests.test_ridge import unit_rows


def running(X: np.ndarray, y: np.ndarray, alpha: float, weights: np.ndarray | None = None) -> RecursiveRidge:
    (moments,) = gather(X, y, rough_mean(X, y), sample_weight=weights)
    return RecursiveRidge(moments, alpha)


def distance(found: ridge.Linear, X: np.ndarray, y: np.ndarray, alpha: float) -> float:
    """Relative error of the coefficients against a float64 solve from scratch, itself refined."""
    centred, target = X.astype(np.float64) - X.mean(axis=0, dtype=np.float64), y - y.mean(axis=0)
    system, right = centred.T @ centred + alpha * np.eye(X.shape[1]), centred.T @ target
    exact = np.linalg.solve(system, right)
    exact += np.linalg.solve(system, right - system @ exact)
    return float(np.linalg.norm(found.coef - exact) / np.linalg.norm(exact))


def test_ten_thousand_random_updates_are_a_refit_from_scratch():
    X, y = unit_rows(8000, 1024)
    y = y[:, None]
    rng = np.random.default_rng(0)
    order = rng.permutation(8000).tolist()
    inside, outside = order[:2000], order[2000:]
    fit = running(X[inside], y[inside], 1e-3)
    for _ in range(10_000):
        come = len(inside) < 1950 or (len(inside) < 2050 and rng.random() < 0.5)
        source, sink, change = (outside, inside, fit.add) if come else (inside, outside, fit.remove)
        row = source.pop(int(rng.integers(len(source))))
        change(X[row], y[row])
        sink.append(row)
    assert distance(fit.line, X[inside], y[inside], 1e-3) <= 1e-10


@pytest.mark.parametrize("alpha", [1e-3, 1.0])
def test_a_row_that_comes_and_goes_leaves_no_trace(alpha):
    X, y = unit_rows(300, 40)
    fit = running(X[:200], y[:200, None], alpha)
    for row in range(200, 300):
        fit.add(X[row], y[row : row + 1])
    assert distance(fit.line, X, y[:, None], alpha) <= 1e-10
    for row in range(299, 199, -1):
        fit.remove(X[row], y[row : row + 1])
    assert distance(fit.line, X[:200], y[:200, None], alpha) <= 1e-10


def test_a_row_that_alone_holds_up_a_direction_may_go():
    X, y = unit_rows(60, 8)
    X[0] = 0
    X[0, 7] = 500.0  # leverage above .999
    fit = running(X, y[:, None], 1e-3)
    fit.remove(X[0], y[:1])
    assert distance(fit.line, X[1:], y[1:, None], 1e-3) <= 1e-10


def test_weights_and_several_targets_are_kept_up_too():
    X, y = unit_rows(120, 10)
    Y = np.stack([y, np.sin(y)], axis=1)
    weights = np.random.default_rng(0).random(120) + 0.5
    fit = running(X[:80], Y[:80], 0.1, weights[:80])
    for row in range(80, 120):
        fit.add(X[row], Y[row], float(weights[row]))
    for row in range(20):
        fit.remove(X[row], Y[row], float(weights[row]))
    want = ridge.fit(X[20:], Y[20:], 0.1, sample_weight=weights[20:])
    np.testing.assert_allclose(fit.line.coef, want.coef, rtol=1e-9)
    np.testing.assert_allclose(fit.line.intercept, want.intercept, rtol=1e-11)


def test_drift_is_noticed_and_mended(monkeypatch):
    X, y = unit_rows(400, 30)
    fit = running(X[:300], y[:300, None], 0.1)
    fit._theta *= 1 + 1e-6
    for row in range(300, 300 + updates.GATHERED):
        fit.add(X[row], y[row : row + 1])
    n = 300 + updates.GATHERED
    assert distance(fit.line, X[:n], y[:n, None], 0.1) <= 1e-10


def test_a_penalty_below_rounding_gives_finite_coefficients():
    half, y = unit_rows(60, 6)
    X = np.concatenate([half, half], axis=1) * 1e4
    fit = running(X, y[:, None], 1e-12)
    fit.add(X[0], y[:1])
    assert np.isfinite(fit.line.coef).all()
    values = X.astype(np.float64) @ fit.line.coef + fit.line.intercept
    np.testing.assert_allclose(values, ridge.predict(half, ridge.fit(half, y, 1e-12))[:, None], atol=1.0)


# With fewer rows than columns


@pytest.mark.parametrize("alpha", [1e-3, 1.0])
def test_random_updates_of_a_kernel_are_a_refit_from_scratch(alpha):
    X, y = unit_rows(900, 300)
    y = y[:, None]
    rng = np.random.default_rng(0)
    order = rng.permutation(900).tolist()
    inside, outside = order[:150], order[150:]
    fit = RecursiveKernelRidge(X[inside], y[inside], alpha)
    for number in range(2500):
        come = len(inside) < 100 or (len(inside) < 280 and rng.random() < 0.5)
        source, sink, change = (outside, inside, fit.add) if come else (inside, outside, fit.remove)
        row = source.pop(int(rng.integers(len(source))))
        change(X[row], y[row])
        sink.append(row)
        if number % 500 == 499:
            assert kernel_distance(fit.line, X[inside], y[inside], alpha) <= 1e-10


def kernel_distance(found: ridge.Linear, X: np.ndarray, y: np.ndarray, alpha: float) -> float:
    centred, target = X.astype(np.float64) - X.mean(axis=0, dtype=np.float64), y - y.mean(axis=0)
    system = centred @ centred.T + alpha * np.eye(len(X))
    dual = np.linalg.solve(system, target)
    exact = centred.T @ (dual + np.linalg.solve(system, target - system @ dual))
    intercept = y.mean(axis=0) - X.mean(axis=0, dtype=np.float64) @ exact
    np.testing.assert_allclose(found.intercept, intercept, rtol=1e-9, atol=1e-11)
    return float(np.linalg.norm(found.coef - exact) / np.linalg.norm(exact))


def test_equal_rows_with_equal_targets_are_let_go_one_at_a_time():
    X, y = unit_rows(20, 40)
    X, y = np.concatenate([X, X[:3]]), np.concatenate([y, y[:3]])[:, None]
    fit = RecursiveKernelRidge(X, y, 0.1)
    fit.remove(X[0], y[0])
    assert kernel_distance(fit.line, X[1:], y[1:], 0.1) <= 1e-10
    fit.remove(X[0], y[0])
    assert kernel_distance(fit.line, np.concatenate([X[1:20], X[21:]]), np.concatenate([y[1:20], y[21:]]), 0.1) <= 1e-10


# With sparse columns


def mixed_rows(n: int, d: int, m: int = 300) -> tuple[MixedRows, np.ndarray]:
    from scipy.sparse import random_array

    rng = np.random.default_rng(n)
    sparse = random_array((n, m), density=0.03, format="csr", dtype=np.float32, rng=rng)
    X = MixedRows(rng.normal(size=(n, d)).astype(np.float32) + 0.5, sparse)
    return X, (X @ rng.normal(size=d + m) + rng.normal(size=n))[:, None]


both = pytest.mark.parametrize("solver", [RecursiveKernelRidge, WarmStartedRidge])


def at(X: MixedRows, row: int) -> MixedRows:
    return X[row : row + 1]


@both
@pytest.mark.parametrize(("d", "m", "alpha"), [(0, 2000, 0.1), (5, 40, 1e-3), (350, 300, 1.0)])
def test_random_updates_of_mixed_rows_are_a_refit_from_scratch(solver, d, m, alpha):
    X, y = mixed_rows(500, d, m)
    rng = np.random.default_rng(0)
    order = rng.permutation(500).tolist()
    inside, outside = order[:20], order[20:]
    fit = solver(X[np.array(inside)], y[inside], alpha)
    for number in range(900):  # in the end more rows than 20 left space for and, at d = 5, than there are columns
        come = len(inside) < 20 or (len(inside) < 400 and rng.random() < 0.8)
        source, sink, change = (outside, inside, fit.add) if come else (inside, outside, fit.remove)
        row = source.pop(int(rng.integers(len(source))))
        change(at(X, row), y[row])
        sink.append(row)
        if number % 300 == 299:
            assert kernel_distance(fit.line, X[np.array(inside)].toarray(), y[inside], alpha) <= 1e-9
    assert len(inside) > 350
    assert not fit.worn


@both
def test_equal_mixed_rows_go_one_at_a_time_and_none_goes_that_differs_in_a_column(solver):
    X, y = mixed_rows(20, 2)
    nearly = [at(X, 0).toarray() for _ in range(3)]
    first, second = np.flatnonzero(nearly[0][0])[-2:]
    nearly[0][0, 0] += 1  # another dense number
    nearly[1][0, first] += 1  # another sparse one
    nearly[2][0, second], nearly[2][0, second + 1] = 0, nearly[2][0, second]  # the same ones in other columns
    dense = np.concatenate([*nearly, X.toarray(), at(X, 0).toarray()])
    y = np.concatenate([y[[0, 0, 0]], y, y[:1]])
    fit = solver(mixed(dense, 2), y, 0.1)
    for left in (np.delete(np.arange(24), 3), np.delete(np.arange(24), [3, 23])):
        fit.remove(at(X, 0), y[0])
        assert kernel_distance(fit.line, dense[left], y[left], 0.1) <= 1e-9
    assert not fit.worn
    fit.remove(at(X, 0), y[0])
    assert fit.worn


def mixed(dense: np.ndarray, d: int) -> MixedRows:
    from scipy.sparse import csr_array

    return MixedRows(dense[:, :d], csr_array(dense[:, d:]))


@both
def test_a_mixed_row_with_another_target_is_not_there(solver):
    X, y = mixed_rows(20, 2)
    fit = solver(X, y, 0.1)
    fit.remove(at(X, 3), y[4])
    assert fit.worn


def test_changes_since_the_last_line_cost_one_fit_which_starts_from_it(monkeypatch):
    starts, fit_from = [], updates.fit
    monkeypatch.setattr(
        updates, "fit", lambda X, y, alpha, *, start: starts.append(start) or fit_from(X, y, alpha, start=start)
    )
    X, y = mixed_rows(40, 2)
    given = ridge.Linear(np.zeros((302, 1)), np.zeros(1))
    fit = WarmStartedRidge(X[:30], y[:30], 0.1, start=given)
    first = fit.line
    assert fit.line is first
    for row in range(30, 40):
        fit.add(at(X, row), y[row])
    fit.remove(at(X, 35), y[35])
    fit.remove(at(X, 2), y[2])
    left = np.delete(np.arange(40), [2, 35])
    assert kernel_distance(fit.line, X[left].toarray(), y[left], 0.1) <= 1e-9
    assert starts[0] is given
    assert starts[1] is first
    assert len(starts) == 2


def test_more_mixed_rows_than_a_kernel_is_kept_for_are_solved_to_the_tolerance_of_a_fit():
    X, y = mixed_rows(4200, 3, m=60)
    fit = updates.begin(X[:4150], y[:4150], 1.0)
    assert isinstance(fit, WarmStartedRidge)
    for row in range(4150, 4200):
        fit.add(at(X, row), y[row])
        if row % 20 == 0:
            assert fit.line.coef.shape == (63, 1)
    for row in range(30):
        fit.remove(at(X, row), y[row])
    rows, targets = X[30:].toarray().astype(np.float64), y[30:]
    centred, target = rows - rows.mean(axis=0), targets - targets.mean(axis=0)
    coef, intercept = fit.line
    missed = centred.T @ (target - centred @ coef) - 1.0 * coef
    assert np.linalg.norm(missed) <= 1.01e-9 * np.linalg.norm(centred.T @ target)
    np.testing.assert_allclose(intercept, targets.mean(axis=0) - rows.mean(axis=0) @ coef, rtol=1e-9)


def test_mixed_rows_always_have_a_solver(monkeypatch):
    monkeypatch.setattr(updates, "KERNEL_AT_MOST", 30)
    X, y = mixed_rows(31, 2, m=4)
    few, many = updates.begin(X[:30], y[:30], 0.1), updates.begin(X, y, 0.1)
    assert isinstance(few, RecursiveKernelRidge)
    assert few.suits(4000)
    assert not few.suits(4001)
    assert isinstance(many, WarmStartedRidge)
    assert many.suits(100_000)
    assert many.suits(29)  # a few rows to and fro are no reason to begin anew
    assert not many.suits(10)


# Sums that have lost digits


@pytest.mark.parametrize("n", [60, 20])
def test_what_held_a_far_out_row_that_is_gone_is_worn(n):
    X, y = unit_rows(n + 2, 30)
    X[n], y[n] = X[n] * 1e6, 1e9
    fit = updates.begin(X[:n], y[:n, None], 0.1)
    assert type(fit) is (RecursiveRidge if n > 30 else RecursiveKernelRidge)
    assert not fit.worn
    for row in (n, n + 1):
        fit.add(X[row], y[row : row + 1])
    assert not fit.worn
    fit.remove(X[n + 1], y[n + 1 :])
    assert not fit.worn
    fit.remove(X[n], y[n : n + 1])
    assert fit.worn


def test_what_held_a_far_out_mixed_row_that_is_gone_is_worn():
    X, y = mixed_rows(20, 2)
    fit = RecursiveKernelRidge(X[:19], y[:19], 0.1)
    far = X[19:].times(np.full(302, 1e6))
    fit.add(far, y[19])
    assert not fit.worn
    fit.remove(far, y[19])
    assert fit.worn


def test_a_row_that_a_kernel_does_not_know_cannot_be_taken_from_it():
    X, y = unit_rows(21, 40)
    fit = RecursiveKernelRidge(X[:20], y[:20, None], 0.1)
    fit.remove(X[20], y[20:])
    assert fit.worn
