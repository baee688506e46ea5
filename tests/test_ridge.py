"""The solver against scikit-learn, brute force and itself."""

from itertools import pairwise

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from threadpoolctl import threadpool_limits

from dspy_qvl import ridge
from dspy_qvl.fitting.permutation import permutation_test
from dspy_qvl.ridge.moments import CHEAP, kind_of_products

SHAPES = [(2, 1), (3, 3), (40, 7), (40, 40), (30, 200), (1200, 64), (9000, 5)]


class Blocks:
    """A source of rows that gives them in blocks of the given sizes, anew at every iteration."""

    def __init__(self, X: np.ndarray, sizes: list[int]) -> None:
        self._X, self._ends = X, np.cumsum([0, *sizes])

    def __iter__(self):
        return (self._X[start:end] for start, end in pairwise(self._ends))


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
    values = ridge.out_of_fold(X, y, alphas, folds)
    for fold in folds:
        seen = np.setdiff1d(np.arange(n), fold)
        for row, alpha in enumerate(alphas):
            peer = Ridge(alpha=alpha, solver="svd").fit(X[seen].astype(np.float64), y[seen])
            np.testing.assert_allclose(values[row, fold], peer.predict(X[fold].astype(np.float64)), rtol=1e-9)


@pytest.mark.parametrize("alpha", [1e-3, 1.0, 1e3])
def test_float32_products_are_refined_to_a_float64_fit(alpha):
    X, y = unit_rows(4000, 400)
    assert kind_of_products(X, 4000, 400) is np.float32
    centred = X.astype(np.float64) - X.mean(axis=0, dtype=np.float64)
    exact = np.linalg.solve(centred.T @ centred + alpha * np.eye(400), centred.T @ (y - y.mean()))
    line = ridge.fit(X, y, alpha)
    assert np.linalg.norm(line.coef - exact) <= 1e-10 * np.linalg.norm(exact)


def test_cross_validation_from_float32_products_is_right_to_a_millionth_of_the_spread():
    X, y = unit_rows(4000, 400)
    folds = np.array_split(np.arange(4000), 5)
    alphas = [1e-3, 1.0, 100.0]
    fast, exact = (ridge.out_of_fold(rows, y, alphas, folds) for rows in (X, X.astype(np.float64)))
    assert np.abs(fast - exact).max() <= 1e-5 * y.std()


@pytest.mark.parametrize("alpha", [1e-9, 1e-5])
def test_columns_that_repeat_each_other_and_a_tiny_penalty_still_give_the_ridge_fit(alpha):
    half, y = unit_rows(4000, 200)
    X = np.concatenate([half, half], axis=1)  # rank 200 of 400
    folds = np.array_split(np.arange(4000), 4)
    line, values = ridge.fit(X, y, alpha), ridge.out_of_fold(X, y, [alpha, 1.0], folds)[0]
    # The same fit on the half: two equal columns share a coefficient, at half the penalty.
    peer = Ridge(alpha=alpha / 2, solver="svd").fit(half.astype(np.float64), y)
    np.testing.assert_allclose(line.coef[:200] + line.coef[200:], peer.coef_, rtol=1e-6)
    np.testing.assert_allclose(line.coef[:200], line.coef[200:], rtol=1e-3, atol=1e-6 * np.abs(peer.coef_).max())
    fold = folds[0]
    seen = np.setdiff1d(np.arange(4000), fold)
    fold_peer = Ridge(alpha=alpha / 2, solver="svd").fit(half[seen].astype(np.float64), y[seen])
    np.testing.assert_allclose(values[fold], fold_peer.predict(half[fold].astype(np.float64)), atol=1e-6 * y.std())


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


# Weights, several targets, sources of blocks


def problem(n: int, d: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[np.ndarray]]:
    X, y = unit_rows(n, d)
    weights = np.random.default_rng(5).integers(1, 5, size=n).astype(float)
    order = np.random.default_rng(1).permutation(n)
    return X, np.stack([y, np.cos(7 * y)], axis=1), weights, [np.sort(fold) for fold in np.array_split(order, 4)]


@pytest.mark.parametrize(("n", "d"), [(60, 9), (30, 90), (3000, 450)])
@pytest.mark.parametrize("weighted", [False, True])
def test_weights_and_several_targets_agree_with_scikit_learn(n, d, weighted):
    X, Y, weights, folds = problem(n, d)
    sample_weight = weights if weighted else None
    alphas = [1e-2, 1.0, 30.0]
    found = ridge.search(X, Y, alphas, folds, sample_weight=sample_weight)
    values = ridge.out_of_fold(X, Y, alphas, folds, sample_weight=sample_weight)
    exact = X.astype(np.float64)
    for row, alpha in enumerate(alphas):
        peer = Ridge(alpha=alpha).fit(exact, Y, sample_weight=sample_weight)
        line = ridge.fit(X, Y, alpha, sample_weight=sample_weight)
        np.testing.assert_allclose(line.coef, peer.coef_.T, rtol=1e-7, atol=1e-8 * np.abs(peer.coef_).max())
        np.testing.assert_allclose(line.intercept, peer.intercept_, rtol=1e-8)
        for number, fold in enumerate(folds):
            seen = np.setdiff1d(np.arange(n), fold)
            weight = None if sample_weight is None else sample_weight[seen]
            guess = Ridge(alpha=alpha).fit(exact[seen], Y[seen], sample_weight=weight).predict(exact[fold])
            np.testing.assert_allclose(values[row, fold], guess, rtol=1e-4, atol=1e-5 * Y.std())
            expected = np.average((guess - Y[fold]) ** 2, axis=0, weights=None if weight is None else weights[fold])
            np.testing.assert_allclose(found.errors[row, number], expected, rtol=1e-4)
    np.testing.assert_array_equal(
        found.line.coef, ridge.fit(X, Y, alphas[found.best], sample_weight=sample_weight).coef
    ) if n <= d else np.testing.assert_allclose(
        found.line.coef, ridge.fit(X, Y, alphas[found.best], sample_weight=sample_weight).coef, rtol=1e-7, atol=1e-10
    )


def test_the_best_penalty_has_the_lowest_mean_error():
    X, Y, _, folds = problem(200, 30)
    found = ridge.search(X, Y[:, 0], [1e-3, 0.1, 1.0, 100.0], folds)
    assert found.errors.shape == (4, 4)
    assert found.best == int(np.argmin(found.errors.mean(axis=1)))


@pytest.mark.parametrize(("n", "d"), [(700, 20), (40, 300), (3000, 450)])
def test_a_source_of_blocks_gives_the_fit_of_an_array(n, d, tmp_path):
    X, Y, weights, folds = problem(n, d)
    np.save(tmp_path / "rows.npy", X)
    on_disk = np.load(tmp_path / "rows.npy", mmap_mode="r")
    alphas = [0.1, 1.0]
    want = ridge.search(X, Y, alphas, folds, sample_weight=weights, leave_one_out=True)
    for source in (Blocks(X, [n // 3, n - n // 3]), Blocks(X, [n]), on_disk):
        found = ridge.search(source, Y, alphas, folds, sample_weight=weights, leave_one_out=True)
        np.testing.assert_allclose(found.line.coef, want.line.coef, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(found.errors, want.errors, rtol=1e-4)
        np.testing.assert_allclose(found.loo.residuals, want.loo.residuals, rtol=1e-4, atol=1e-5)
        values = ridge.out_of_fold(source, Y, alphas, folds)
        np.testing.assert_allclose(values, ridge.out_of_fold(X, Y, alphas, folds), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("n", "d"), [(40, 7), (12, 60), (2100, 500)])
@pytest.mark.parametrize("weighted", [False, True])
def test_loo_residuals_match_refitting_without_each_text(n, d, weighted):
    X, y = unit_rows(n, d)
    weights = np.random.default_rng(3).random(n) + 0.5 if weighted else None
    loo = ridge.leave_one_out(X, y, 0.3, sample_weight=weights)
    exact = X.astype(np.float64)
    for row in range(0, n, max(1, n // 12)):
        others = np.delete(np.arange(n), row)
        peer = Ridge(alpha=0.3).fit(exact[others], y[others], None if weights is None else weights[others])
        expected = y[row] - peer.predict(exact[row : row + 1])[0]
        np.testing.assert_allclose(loo.residuals[row], expected, rtol=2e-6 if n * d * d > CHEAP else 1e-8)
    assert ((loo.leverages > 0) & (loo.leverages < 1)).all()


def test_leverages_say_how_a_fitted_value_follows_its_own_score():
    X, y = unit_rows(60, 9)
    leverages = ridge.leave_one_out(X, y, 0.5).leverages
    for row in (0, 31):
        moved = y.copy()
        moved[row] += 1.0
        change = ridge.predict(X, ridge.fit(X, moved, 0.5)) - ridge.predict(X, ridge.fit(X, y, 0.5))
        assert change[row] == pytest.approx(leverages[row], rel=1e-8)


def test_a_text_that_nothing_bears_on_has_no_leave_one_out_residual():
    X, y = np.eye(1, 3), np.ones(1)
    assert np.isnan(ridge.leave_one_out(X, y, 1.0).residuals[0])


def test_a_search_with_leave_one_out_gives_what_leave_one_out_gives():
    X, y = unit_rows(2200, 500)
    folds = np.array_split(np.arange(2200), 3)
    found = ridge.search(X, y, [0.1, 1.0, 10.0], folds, leave_one_out=True)
    alone = ridge.leave_one_out(X, y, float(found.alphas[found.best]))
    np.testing.assert_allclose(found.loo.residuals, alone.residuals, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.loo.leverages, alone.leverages, rtol=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("alpha", [1e-8, 1e-4])
def test_leave_one_out_of_few_rows_and_a_tiny_penalty_does_not_cancel(alpha, weighted):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(30, 400)), rng.normal(size=30)
    rtol = 1e-4 if alpha < 1e-6 else 1e-5  # the system's condition is 4e10, the peer's own too
    X[7], X[8] = X[6], X[5]  # equal rows: more null directions than the intercept's
    weights = rng.random(30) + 0.5 if weighted else None
    loo = ridge.leave_one_out(X, y, alpha, sample_weight=weights)
    for row in range(0, 30, 3):
        others = np.delete(np.arange(30), row)
        peer = Ridge(alpha=alpha, solver="svd" if weights is None else "cholesky")
        peer.fit(X[others], y[others], None if weights is None else weights[others])
        np.testing.assert_allclose(loo.residuals[row], y[row] - peer.predict(X[row : row + 1])[0], rtol=rtol, atol=rtol)


def test_penalties_that_differ_only_by_rounding_are_tied_and_the_first_is_taken():
    rng = np.random.default_rng(0)
    for seed in range(20):
        X, y = 1e-7 * rng.normal(size=(40, 10)), rng.normal(size=40)
        folds = [np.arange(first, 40, 5) for first in range(5)]
        found = ridge.search(X, y, [1.0, 10.0, 100.0], folds)
        assert np.ptp(found.errors.mean(axis=1)) < 1e-12 * found.errors.mean()
        assert found.best == 0, seed


@pytest.mark.parametrize("shape", [(60, 200), (300, 40)])
def test_threads_of_blas_change_a_fit_by_no_more_than_rounding(shape):
    rng = np.random.default_rng(1)
    X = rng.normal(size=shape).astype(np.float32)
    y = X[:, 0] + rng.normal(size=len(X))
    folds = [np.arange(first, len(X), 5) for first in range(5)]
    found = []
    for n_threads in (1, 2):
        with threadpool_limits(n_threads):
            found.append(ridge.search(X, y, [0.1, 1.0, 10.0, 100.0], folds))
            p = permutation_test(X, y, [1.0, 100.0], members=range(len(X))).p
            assert p == permutation_test(X, y, [1.0, 100.0], members=range(len(X))).p
            found.append(p)
    one, p_of_one, two, p_of_two = found
    assert (one.best, p_of_one) == (two.best, p_of_two)
    np.testing.assert_allclose(two.line.coef, one.line.coef, rtol=0, atol=2e-13 * np.abs(one.line.coef).max())
