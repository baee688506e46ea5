"""How much each block counts: against plain cross-validation of columns weighed by hand."""

import numpy as np
import pytest
from scipy import sparse

from dspy_qvl import ridge
from dspy_qvl.ridge.banded import choose_weights
from dspy_qvl.ridge.weigher import Weigher, block_scales, combined, krylov_path
from dspy_qvl.vectors import MixedRows

ALPHAS = [0.1, 1.0, 10.0]


def blocks_of(n: int, widths: tuple[int, ...], useful: tuple[float, ...], seed: int = 0):
    """Blocks of columns with falling spectra, and scores that draw on some of them."""
    rng = np.random.default_rng(seed)
    parts = [rng.normal(size=(n, width)) * np.geomspace(1, 0.05, width) for width in widths]
    y = sum(use * part @ rng.normal(size=width) for part, width, use in zip(parts, widths, useful, strict=True))
    X = np.concatenate([part * scale for part, scale in zip(parts, (1, 30, 0.01, 5), strict=False)], axis=1)
    ends = np.cumsum((0, *widths))
    blocks = [slice(start, start + width) for start, width in zip(ends, widths, strict=False)]
    folds = [np.sort(fold) for fold in np.array_split(rng.permutation(n), 4)]
    return X.astype(np.float32), blocks, y + rng.normal(size=n), folds


@pytest.mark.parametrize(("n", "widths"), [(60, (20, 80, 1)), (400, (20, 80, 1))])
def test_fold_errors_are_those_of_ridge_on_weighed_columns(n, widths):
    X, blocks, y, folds = blocks_of(n, widths, (1, 1, 1))
    weightings = [(1.0, 0.0, 0.0), (1.0, 0.5, 0.1), (1.0, 2.5, 0.5)]
    weigher = Weigher(X, blocks, y, folds)
    found = weigher.errors(weightings, ALPHAS)
    for weights, errors in zip(weightings, found, strict=True):
        factors = np.repeat(np.array(weights) * block_scales(X, blocks), widths)
        for row, alpha in enumerate(ALPHAS):
            for number, fold in enumerate(folds):
                seen = np.setdiff1d(np.arange(n), fold)
                line = ridge.fit(X[seen].astype(np.float64) * factors, y[seen], alpha)
                guess = X[fold].astype(np.float64) * factors @ line.coef + line.intercept
                # The smallest penalty is stopped early; the others have converged.
                rtol = 1e-2 if alpha < 1 else 1e-4
                np.testing.assert_allclose(errors[row, number], np.mean((guess - y[fold]) ** 2), rtol=rtol)


def test_blocks_are_scaled_to_the_variance_of_the_first():
    X, blocks, _, _ = blocks_of(200, (20, 40, 1), (1, 1, 1))
    scales = block_scales(X, blocks)
    spreads = [
        (X[:, block].astype(np.float64) * scale).var(axis=0).sum() for block, scale in zip(blocks, scales, strict=True)
    ]
    np.testing.assert_allclose(spreads, spreads[0], rtol=1e-6)
    X[:, blocks[2]] = 3.0
    assert block_scales(X, blocks)[2] == 1.0


def test_a_block_that_tells_everything_is_weighed_up_and_one_that_tells_nothing_is_not():
    X, blocks, y, folds = blocks_of(300, (20, 60, 1), (0.05, 3.0, 0.0))
    found = choose_weights(X, blocks, y, ALPHAS, folds, optional=True)
    assert found.weights[1] > 0.5
    assert found.adds[0] > 0.3
    assert abs(found.adds[1]) < 0.02


def test_with_few_rows_the_smallest_weights_stand():
    X, blocks, y, folds = blocks_of(19, (20, 60, 1), (0.0, 3.0, 0.0))
    found = choose_weights(X, blocks, y, ALPHAS, folds, optional=True)
    assert found.weights == (1.0, 0.5, 0.1)
    assert np.isnan(found.adds).all()


def test_blocks_that_tell_nothing_are_seldom_weighed_up_by_luck():
    noise = [blocks_of(60, (20, 60, 1), (0.0, 0.0, 0.0), seed) for seed in range(10)]
    chosen = [choose_weights(*problem[:3], ALPHAS, problem[3], optional=True).weights for problem in noise]
    assert sum(weights[1] <= 0.5 and weights[2] <= 0.1 for weights in chosen) >= 8


def test_blocks_that_are_always_used_are_never_given_up():
    X, blocks, y, folds = blocks_of(300, (20, 60, 1), (3.0, 0.0, 0.0))
    for optional, least in [(True, 0.0), (False, 0.1)]:
        assert min(choose_weights(X, blocks, y, ALPHAS, folds, optional=optional).weights) >= least


def test_many_blocks_are_weighed_one_after_the_other():
    X, blocks, y, folds = blocks_of(300, (20, 40, 40, 40), (0.2, 0.0, 3.0, 0.0))
    found = choose_weights(X, blocks, y, ALPHAS, folds, optional=True)
    assert found.weights[2] == max(found.weights)
    assert found.adds[1] == max(found.adds)


def test_a_krylov_space_holds_the_solutions_of_every_column():
    rng = np.random.default_rng(0)
    systems = [(lambda F: F @ F.T)(rng.normal(size=(50, 20 + 10 * column))) for column in range(3)]
    b = rng.normal(size=(50, 3))
    b[:, 2] = 0.0
    single = [system.astype(np.float32) for system in systems]
    vectors = []

    def apply(V):
        vectors.append(V)
        return np.stack([system @ v for system, v in zip(single, V.T, strict=True)], axis=1)

    *_, small = krylov_path(apply, b, [5.0, 50.0])
    found = combined(vectors, small)
    for column, system in enumerate(systems):
        for row, alpha in enumerate([5.0, 50.0]):
            want = np.linalg.solve(system + alpha * np.eye(50), b[:, column])
            np.testing.assert_allclose(found[:, column, row], want, atol=2e-4 * max(np.abs(want).max(), 1e-9))


def test_of_many_rows_a_sample_decides(monkeypatch):
    X, blocks, y, folds = blocks_of(500, (20, 60, 1), (0.05, 3.0, 0.0))
    monkeypatch.setattr("dspy_qvl.ridge.banded.ENOUGH", 200)
    seen = []
    monkeypatch.setattr("dspy_qvl.ridge.banded.Weigher", lambda *given: seen.append(given) or Weigher(*given))
    found = choose_weights(X, blocks, y, ALPHAS, folds, optional=True)
    assert found.weights[1] > 0.5
    rows, _, targets, parts = seen[0]
    assert len(rows) == len(targets) == sum(map(len, parts)) == 200
    drawn = [int(np.flatnonzero((row == X).all(axis=1))[0]) for row in rows]
    y_mean, y_std = y[drawn].mean(), y[drawn].std()
    for row in np.concatenate([part[:3] for part in parts]):
        number = int(np.flatnonzero((rows[row] == X).all(axis=1))[0])
        assert targets[row] == pytest.approx((y[number] - y_mean) / y_std)
        assert any(number in fold for fold in folds)
    assert choose_weights(X, blocks, y, ALPHAS, folds, optional=True) == found


def words_of(n: int, n_words: int, power: float, seed: int = 0):
    """Rows of length 1 that count words, of falling frequency, their inverse document frequencies, and scores.

    A word's effect is normal, with a standard deviation of idf^power.
    """
    rng = np.random.default_rng(seed)
    counts = rng.poisson(0.7 * np.geomspace(1, 0.01, n_words), size=(n, n_words)) ** 0.5
    counts /= np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)
    idf = np.log((1 + n) / (1 + (counts > 0).sum(axis=0))) + 1
    y = counts * idf**power @ rng.normal(size=n_words)
    return sparse.csr_array(counts.astype(np.float32)), idf, (y - y.mean()) / y.std()


def mixed_of(n: int, power: float, seed: int = 0):
    """Words behind dense blocks of 20 columns and of 1, and scores that draw on the first block and the words."""
    X, blocks, y, folds = blocks_of(n, (20, 1), (0.3, 0.0), seed)
    words, idf, effect = words_of(n, 400, power, seed)
    return MixedRows(X, words), [*blocks, slice(21, 421)], y / 2 + 2 * effect, folds, idf


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1)], ids=["embedding first", "words first"])
@pytest.mark.parametrize("power", [0.0, 1.0])
def test_errors_of_words_are_those_of_ridge_on_weighed_dense_columns(order, power, monkeypatch):
    monkeypatch.setattr("dspy_qvl.ridge.weigher.FREQUENT", 50)
    X, blocks, y, folds, idf = mixed_of(150, power)
    X, blocks = X.times(np.concatenate([np.ones(21), idf**power])), [blocks[number] for number in order]
    dense = X.toarray().astype(np.float64)
    scales = block_scales(X, blocks)
    np.testing.assert_allclose(scales, block_scales(dense, blocks), rtol=1e-6)
    weightings = [(1.0, 0.1, 0.5)[: len(order)], (1.0, 0.5, 2.5)[: len(order)], (1.0, 0.0, 0.0)[: len(order)]]
    alphas = [0.1, 1.0, 10.0]
    found = Weigher(X, blocks, y, folds).errors(weightings, alphas)
    for weights, errors in zip(weightings, found, strict=True):
        factors = np.zeros(421)
        for block, weight, scale in zip(blocks, weights, scales, strict=True):
            factors[block] = weight * scale
        for row, alpha in enumerate(alphas):
            for number, fold in enumerate(folds):
                seen = np.setdiff1d(np.arange(len(y)), fold)
                line = ridge.fit(dense[seen] * factors, y[seen], alpha)
                want = np.mean((dense[fold] * factors @ line.coef + line.intercept - y[fold]) ** 2)
                np.testing.assert_allclose(errors[row, number], want, rtol=1e-2 if alpha < 1 else 1e-3)


@pytest.mark.parametrize(("made_with", "power"), [(-2.0, 0.0), (2.0, 1.0)])
def test_the_power_nearest_to_that_of_the_scores_is_found(made_with, power):
    X, blocks, y, folds, idf = mixed_of(400, made_with)
    found = choose_weights(X, blocks, y, ALPHAS, folds, optional=True, idf=idf)
    assert found.power == power
    assert found.weights[2] >= 1.0
    assert found.adds[1] > 0.2
    assert choose_weights(X, blocks, y, ALPHAS, folds, optional=True, idf=idf) == found
    first = choose_weights(X, [blocks[2], blocks[1]], y, ALPHAS, folds, optional=False, idf=idf)
    assert (first.power, first.weights) == (power, (1.0, 0.1))
    assert choose_weights(X, blocks[2:], y, ALPHAS, folds, optional=False, idf=idf).power == power


def test_the_power_is_found_among_many_blocks():
    X, blocks, y, folds, idf = mixed_of(400, 2.0)
    halves = [slice(0, 5), slice(5, 10), slice(10, 20)]
    found = choose_weights(X, [*halves, *blocks[1:]], y, ALPHAS, folds, optional=True, idf=idf)
    assert found.power == 1.0
    assert found.weights[-1] >= 1.0


def test_the_start_power_stands_where_others_are_no_better():
    for seed in range(3):
        X, blocks, y, folds, idf = mixed_of(100, 0.0, seed)
        noise = np.random.default_rng(seed).normal(size=len(y))
        for start in (0.0, 0.5):
            found = choose_weights(X, blocks, noise, ALPHAS, folds, optional=True, idf=idf, power=start)
            assert found.power == start
    assert choose_weights(X[:19], blocks, y[:19], ALPHAS, folds, optional=True, idf=idf, power=1.0).power == 1.0
    assert choose_weights(X, blocks, y, ALPHAS, folds, optional=True).power == 0.0


def test_words_that_tell_nothing_are_left_out_only_where_that_is_allowed():
    X, blocks, _, folds, idf = mixed_of(300, 0.0)
    y = X.dense[:, :20].sum(axis=1).astype(np.float64)
    for optional, least in [(True, 0.0), (False, 0.5)]:
        found = choose_weights(X, blocks, y, ALPHAS, folds, optional=optional, idf=idf, starts=[1.0, 0.1, 2.5])
        assert found.weights[2] == least
