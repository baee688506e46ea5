"""The posterior of a ridge fit, against explicit inverses and refits."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dspy_qvl import ridge
from dspy_qvl.ridge import projected, regression
from dspy_qvl.ridge.posterior import posterior_of
from dspy_qvl.vectors import MixedRows


def rows(n, d, seed=0, noise=0.5):
    rng = np.random.default_rng(seed)
    X = (rng.normal(size=(n, d)) + 0.7).astype(np.float32)
    X[:, d // 2 :] *= rng.random((n, d - d // 2)) < 0.3  # many zeros, as hashed words have
    return X, X.astype(float) @ rng.normal(size=d) / np.sqrt(d) + noise * rng.normal(size=n) + 3.0


def by_hand(X, x, alpha):
    """1/n + xc (Xc'Xc + alpha I)^-1 xc', by an explicit inverse."""
    wide, mean = X.astype(float), X.mean(axis=0, dtype=float)
    inverse = np.linalg.inv((wide - mean).T @ (wide - mean) + alpha * np.eye(X.shape[1]))
    return 1 / len(X) + (x - mean) @ inverse @ (x - mean)


SHAPES = pytest.mark.parametrize(("n", "d"), [(60, 9), (40, 40), (25, 300), (2, 5)])


@SHAPES
@pytest.mark.parametrize("alpha", [1e-3, 1.0, 300.0])
def test_the_variance_of_a_value_is_that_of_the_explicit_inverse(n, d, alpha):
    X, y = rows(n, d)
    new, _ = rows(20, d, seed=1)
    known = posterior_of(X, y, alpha)
    for x in (*new, np.zeros(d, dtype=np.float32)):
        assert known.fit_variance(x) == pytest.approx(by_hand(X, x.astype(float), alpha), rel=1e-8)


@SHAPES
def test_a_learned_row_has_the_variance_it_has_under_the_fit_of_all_others(n, d):
    X, y = rows(n, d)
    leverages = posterior_of(X, y, 1.0).loo.leverages
    for row in range(min(n, 6)):
        others = np.delete(X, row, axis=0)
        assert leverages[row] / (1 - leverages[row]) == pytest.approx(by_hand(others, X[row].astype(float), 1.0))


def test_the_noise_is_the_spread_of_residuals_of_rows_left_out():
    X, y = rows(50, 12)
    known = posterior_of(X, y, 2.0)
    squares = []
    for row in range(50):
        line = ridge.fit(np.delete(X, row, axis=0), np.delete(y, row), 2.0)
        missed = y[row] - X[row].astype(float) @ line.coef - line.intercept
        squares.append(missed**2 * (1 - known.loo.leverages[row]))
    assert known.noise == pytest.approx(np.sqrt(np.mean(squares)))


@pytest.mark.parametrize(("n", "d"), [(400, 30), (80, 200)])
def test_nine_in_ten_new_scores_lie_within_the_interval_of_nine_in_ten(n, d):
    inside = []
    for seed in range(20):
        X, y = rows(n + 100, d, seed=seed)
        folds = np.array_split(np.arange(n), 5)
        found = ridge.search(X[:n], y[:n], list(np.logspace(-2, 3, 11)), folds)
        known = posterior_of(X[:n], y[:n], found.alphas[found.best])
        std = np.array([known.std(known.fit_variance(x)) for x in X[n:]])
        inside.extend(np.abs(ridge.predict(X[n:], found.line) - y[n:]) < 1.645 * std)
    assert 0.87 < np.mean(inside) < 0.93


@pytest.mark.parametrize(("n", "d"), [(300, 40), (60, 200)])
def test_a_row_has_the_same_bits_in_any_thread(n, d):
    X, y = rows(n, d)
    known = posterior_of(X, y, 1.0)
    alone = [known.fit_variance(x) for x in X]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(known.fit_variance, X)) == alone


@pytest.mark.parametrize(("n", "d"), [*SHAPES.args[1], (300, 40), (60, 900)])
@pytest.mark.parametrize("alpha", [1e-6, 1e-3, 1.0, 300.0])
def test_many_rows_get_the_bits_that_each_gets_alone(n, d, alpha):
    X, y = rows(n, d)
    new = np.concatenate([X[:20], rows(150, d, seed=1)[0], np.zeros((2, d), dtype=np.float32)])
    known = posterior_of(X, y, alpha)
    alone = [known.std(known.fit_variance(x)) for x in new]
    assert known.stds(new).tolist() == alone
    assert known.stds(new[::-1]).tolist() == alone[::-1]
    assert known.stds(new[:0]).shape == (0,)
    lowest, highest = known.bounds(new)
    variances = np.array([known.fit_variance(x) for x in new])
    assert (lowest <= variances).all()
    assert (variances <= highest).all()


@pytest.mark.parametrize(("n", "d"), [(300, 40), (60, 200), (1200, 4000)])
def test_bounds_are_so_narrow_that_few_rows_are_worked_out_alone(n, d):
    X, y = rows(n, d)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    new = rows(300, d, seed=1)[0]
    new /= np.linalg.norm(new, axis=1, keepdims=True)
    known = posterior_of(X, y, 1.0)
    stds = [[known.std(v) for v in bound] for bound in known.bounds(new)]
    assert np.mean(np.array(stds[0]) != stds[1]) < 0.02
    assert known.stds(new)[:20].tolist() == [known.std(known.fit_variance(x)) for x in new[:20]]


def test_a_large_root_is_kept_in_half_the_memory_and_is_as_good():
    X, y = rows(2200, 2100)
    known = posterior_of(X, y, 5.0)
    assert known._root.dtype == np.float32
    x = rows(1, 2100, seed=3)[0][0]
    assert known.fit_variance(x) == pytest.approx(by_hand(X, x.astype(float), 5.0), rel=1e-5)
    new = rows(40, 2100, seed=4)[0]
    assert known.stds(new).tolist() == [known.std(known.fit_variance(x)) for x in new]


def mixed(n, d=6, seed=0, n_words=3000, n_each=25):
    """Rows with d dense columns and hashed words, drawn as often as words of a text are: a few often, most hardly."""
    from scipy.sparse import csr_array

    rng = np.random.default_rng(seed)
    words = np.minimum(n_words * rng.random((n, n_each)) ** 4, n_words - 1).astype(int)
    sparse = csr_array((np.ones(words.size), (np.repeat(np.arange(n), n_each), words.ravel())), shape=(n, n_words))
    sparse.sum_duplicates()
    sparse.data = np.sqrt(sparse.data / n_each).astype(np.float32)
    dense = rng.normal(size=(n, d)) / np.sqrt(max(d, 1)) + 0.3
    dense[:, -1:] *= 1e-3  # a column that says hardly anything
    X = MixedRows(dense.astype(np.float32), sparse.astype(np.float32))
    return X, X.toarray().astype(float) @ np.random.default_rng(9).normal(size=d + n_words) + rng.normal(size=n)


@pytest.mark.parametrize("d", [0, 6])
@pytest.mark.parametrize("alpha", [0.03, 3.0])
def test_rows_with_sparse_columns_have_the_posterior_of_the_same_rows_written_out(d, alpha):
    X, y = mixed(120, d)
    new, _ = mixed(40, d, seed=1)
    known, written_out = posterior_of(X, y, alpha), posterior_of(X.toarray(), y, alpha)
    assert known.noise == pytest.approx(written_out.noise)
    assert known.loo.residuals == pytest.approx(written_out.loo.residuals)
    assert known.loo.leverages == pytest.approx(written_out.loo.leverages)
    for row in range(40):
        expected = written_out.fit_variance(new.toarray()[row])
        assert known.fit_variance(new[row : row + 1]) == pytest.approx(expected, rel=1e-8)


def agree_alone_and_in_batches(known, new):
    alone = [known.std(known.fit_variance(new[row : row + 1])) for row in range(len(new))]
    assert known.stds(new).tolist() == alone
    assert known.stds(new[::-1]).tolist() == alone[::-1]
    assert known.stds(new[:0]).shape == (0,)
    lowest, highest = known.bounds(new)
    variances = np.array([known.fit_variance(new[row : row + 1]) for row in range(len(new))])
    assert (lowest <= variances).all()
    assert (variances <= highest).all()
    stds = np.array([[known.std(v) for v in bound] for bound in (lowest, highest)])
    assert np.mean(stds[0] != stds[1]) < 0.02


@pytest.mark.parametrize("d", [0, 6])
def test_many_rows_with_sparse_columns_get_the_bits_that_each_gets_alone(d):
    X, y = mixed(300, d)
    new, _ = mixed(200, d, seed=1)
    agree_alone_and_in_batches(posterior_of(X, y, 1.0), new)


class TestOfManyRows:
    """The posterior from a Gram matrix below that of the rows, of so few that the exact one is at hand."""

    @pytest.fixture
    def both(self, monkeypatch):
        def make(X, y, alpha):
            written_out = X.toarray()
            monkeypatch.setattr(regression, "EXACT", len(X) - 1)
            known = posterior_of(X, y, alpha, ridge.fit(written_out, y, alpha))
            assert not known.exact
            assert known.loo is None
            exact = posterior_of(written_out, y, alpha)
            assert exact.exact
            return known, exact

        return make

    @pytest.mark.parametrize("d", [0, 40])
    @pytest.mark.parametrize("alpha", [0.3, 1.0, 10.0])
    def test_it_is_never_too_sure_and_hardly_too_careful(self, both, d, alpha):
        X, y = mixed(900, d)
        known, exact = both(X, y, alpha)
        new, _ = mixed(300, d, seed=1)
        ratio = known.bounds(new)[0] / exact.bounds(new.toarray())[1]
        assert ratio.min() >= 1 - 1e-6
        assert 1.0001 < np.median(ratio) < 1.2
        assert np.quantile(ratio, 0.95) < 2
        assert 1 - 1e-6 <= known.noise / exact.noise < 1.1
        highest, h = known.leverages(X), exact.loo.leverages
        learned = (highest / (1 - highest)) / (h / (1 - h))
        assert learned.min() >= 1 - 1e-6
        assert np.median(learned) < 1.2

    @pytest.mark.parametrize("alpha", [1e-6, 1e-4, 1e-2])
    def test_it_is_never_too_sure_for_small_penalties(self, both, alpha):
        known, exact = both(*mixed(500, 40), alpha)
        new, _ = mixed(300, 40, seed=1)
        assert (known.bounds(new)[1] >= exact.bounds(new.toarray())[0]).all()
        assert known.noise >= exact.noise

    def test_it_is_never_too_sure_with_next_to_no_memory(self, both, monkeypatch):
        monkeypatch.setattr(projected, "TABLE", 2**14)
        known, exact = both(*mixed(900, 40), 1.0)
        new, _ = mixed(300, 40, seed=1)
        assert len(known._root) < 20
        assert (known.bounds(new)[0] >= exact.bounds(new.toarray())[1]).all()
        assert known.noise > exact.noise

    @pytest.mark.parametrize("d", [0, 40])
    def test_many_rows_get_the_bits_that_each_gets_alone(self, both, d):
        X, y = mixed(600, d)
        new, _ = mixed(100, d, seed=1)
        known, _ = both(X, y, 1.0)
        agree_alone_and_in_batches(known, new)
        again, _ = both(X, y, 1.0)
        assert again.stds(new).tolist() == known.stds(new).tolist()
        assert again.noise == known.noise
