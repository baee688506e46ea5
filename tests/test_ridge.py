"""The solver against scikit-learn, brute force and itself."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from dspy_qvl import ridge

SHAPES = [(2, 1), (3, 3), (40, 7), (40, 40), (30, 200), (1200, 64), (9000, 5)]


def unit_rows(n: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit float32 rows with a mean of norm about .9, as real Qwen3 vectors have, and noisy scores far from zero."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) / np.sqrt(d) + 2.0 * np.eye(1, d)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    return X.astype(np.float32), 100 + X @ rng.normal(size=d) + rng.normal(size=n)


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("alpha", [1e-3, 1.0, 1e3])
def test_fit_agrees_with_scikit_learn(n, d, alpha):
    X, y = unit_rows(n, d)
    line = ridge.fit(X, y, alpha)
    peer = Ridge(alpha=alpha, solver="svd").fit(X.astype(np.float64), y)
    scale = np.abs(peer.coef_).max()
    np.testing.assert_allclose(line.coef, peer.coef_, atol=1e-8 * scale, rtol=0)
    np.testing.assert_allclose(line.intercept, peer.intercept_, rtol=1e-8)


@pytest.mark.parametrize(("n", "d"), [(11, 3), (60, 60), (50, 300), (2000, 30)])
def test_cross_validation_agrees_with_refitting_every_fold(n, d):
    X, y = unit_rows(n, d)
    alphas = [1e-3, 0.1, 1.0, 10.0, 1e4]
    order = np.random.default_rng(1).permutation(n)
    folds = [np.sort(fold) for fold in np.array_split(order, 5)]
    values = ridge.cross_validate(X, y, alphas, folds)
    for fold in folds:
        seen = np.setdiff1d(np.arange(n), fold)
        for row, alpha in enumerate(alphas):
            peer = Ridge(alpha=alpha, solver="svd").fit(X[seen].astype(np.float64), y[seen])
            np.testing.assert_allclose(values[row, fold], peer.predict(X[fold].astype(np.float64)), rtol=1e-9)


def test_moments_of_disjoint_rows_add_and_subtract():
    X, y = unit_rows(500, 20)
    shift = ridge.rough_mean(X, y)
    first, second = (ridge.moments(X, y, shift, rows) for rows in (np.arange(123), np.arange(123, 500)))
    whole = ridge.moments(X, y, shift)
    for combined, expected in [(first + second, whole), (whole - first, second)]:
        for mine, theirs in zip(combined.centred(), expected.centred(), strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-10)
        assert combined.n == expected.n


def test_centred_moments_are_sums_around_the_mean_whatever_the_shift():
    X, y = unit_rows(300, 10)
    centred = X.astype(np.float64) - X.mean(axis=0, dtype=np.float64)
    for shift in (ridge.rough_mean(X, y), np.append(np.full(10, 0.3), 99.0), np.zeros(11)):
        found = ridge.moments(X, y, shift)
        gram, xy = found.centred()
        np.testing.assert_allclose(gram, centred.T @ centred, atol=1e-9)
        np.testing.assert_allclose(xy, centred.T @ (y - y.mean()), atol=1e-9)
        np.testing.assert_allclose(found.means[0], X.mean(axis=0, dtype=np.float64), atol=1e-12)
        assert found.means[1] == pytest.approx(y.mean())


@pytest.mark.parametrize("alpha", [1e-3, 1.0, 1e3])
def test_float32_products_are_refined_to_a_float64_fit(alpha):
    X, y = unit_rows(4000, 400)
    assert ridge._many_float32(X)
    assert ridge._refined(X, y, alpha) is not None
    centred = X.astype(np.float64) - X.mean(axis=0, dtype=np.float64)
    exact = np.linalg.solve(centred.T @ centred + alpha * np.eye(400), centred.T @ (y - y.mean()))
    line = ridge.fit(X, y, alpha)
    assert np.linalg.norm(line.coef - exact) <= 1e-10 * np.linalg.norm(exact)


def test_cross_validation_from_float32_products_is_right_to_a_millionth_of_the_spread():
    X, y = unit_rows(4000, 400)
    folds = np.array_split(np.arange(4000), 5)
    alphas = [1e-3, 1.0, 100.0]
    fast, exact = (ridge.cross_validate(rows, y, alphas, folds) for rows in (X, X.astype(np.float64)))
    assert np.abs(fast - exact).max() <= 1e-5 * y.std()


@pytest.mark.parametrize("alpha", [1e-9, 1e-5])
def test_columns_that_repeat_each_other_and_a_tiny_penalty_still_give_the_ridge_fit(alpha):
    half, y = unit_rows(4000, 200)
    X = np.concatenate([half, half], axis=1)  # rank 200 of 400
    folds = np.array_split(np.arange(4000), 4)
    line, values = ridge.fit(X, y, alpha), ridge.cross_validate(X, y, [alpha, 1.0], folds)[0]
    # The same fit on the half: two equal columns share a coefficient, at half the penalty.
    peer = Ridge(alpha=alpha / 2, solver="svd").fit(half.astype(np.float64), y)
    np.testing.assert_allclose(line.coef[:200] + line.coef[200:], peer.coef_, rtol=1e-6)
    np.testing.assert_allclose(line.coef[:200], line.coef[200:], rtol=1e-3, atol=1e-6 * np.abs(peer.coef_).max())
    fold = folds[0]
    seen = np.setdiff1d(np.arange(4000), fold)
    fold_peer = Ridge(alpha=alpha / 2, solver="svd").fit(half[seen].astype(np.float64), y[seen])
    np.testing.assert_allclose(values[fold], fold_peer.predict(half[fold].astype(np.float64)), atol=1e-6 * y.std())


@pytest.mark.parametrize("m", [1, 2, 3, 17, 150])
def test_one_factorisation_solves_every_penalty(m):
    rng = np.random.default_rng(m)
    factor = rng.normal(size=(m, m + 2))
    A, b = factor @ factor.T, rng.normal(size=m)
    before = A.copy()
    alphas = [1e-4, 1e-2, 1.0, 1e5]
    solutions = ridge.solve_path(A, b, alphas)
    for solution, alpha in zip(solutions, alphas, strict=True):
        np.testing.assert_allclose(solution, np.linalg.solve(A + alpha * np.eye(m), b), rtol=1e-8, atol=1e-12)
    np.testing.assert_array_equal(A, before)


def test_a_penalty_below_rounding_falls_back_to_the_directions_that_carry_something():
    direction = np.ones(50) / np.sqrt(50)
    A = 1e12 * np.outer(direction, direction)
    for alphas in ([1e-9], [1e-9, 1e-8]):
        solution = ridge.solve_path(A, direction, alphas)[0]
        assert np.isfinite(solution).all()
        np.testing.assert_allclose(direction @ solution, 1e-12, rtol=1e-6)


def test_a_row_gets_the_same_bits_in_any_batch():
    for d in (1, 3, 64, 768, 4097, 16384):
        X, _ = unit_rows(60, d)
        line = ridge.Linear(np.random.default_rng(d).normal(size=d), 0.3)
        alone = np.array([ridge.predict(row[None], line)[0] for row in X])
        order = np.random.default_rng(0).permutation(len(X))
        np.testing.assert_array_equal(ridge.predict(X, line), alone)
        np.testing.assert_array_equal(ridge.predict(X[order], line), alone[order])
        np.testing.assert_array_equal(ridge.predict(np.asfortranarray(X), line), alone)
        np.testing.assert_array_equal(ridge.predict(np.repeat(X, 40, axis=0), line), np.repeat(alone, 40))
        np.testing.assert_allclose(alone, X.astype(np.float64) @ line.coef + 0.3, rtol=1e-12, atol=1e-12)


def test_no_rows_give_no_values():
    assert ridge.predict(np.empty((0, 4), np.float32), ridge.Linear(np.ones(4), 1.0)).shape == (0,)
