"""Sums over rows: they add, subtract, and say what the rows would have said."""

import numpy as np
import pytest

from dspy_qvl import InputError
from dspy_qvl.ridge.moments import gather, rough_mean, row_blocks
from tests.test_ridge import Blocks, unit_rows


def columns(y: np.ndarray) -> np.ndarray:
    return y[:, None]


def test_moments_of_disjoint_rows_add_and_subtract():
    X, y = unit_rows(500, 20)
    shift = rough_mean(X, columns(y))
    first, second = gather(X, columns(y), shift, folds=[np.arange(123), np.arange(123, 500)])
    (whole,) = gather(X, columns(y), shift)
    for combined, expected in [(first + second, whole), (whole - first, second)]:
        for mine, theirs in zip(combined.centred(), expected.centred(), strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-10)
        assert combined.weight == expected.weight


def test_centred_moments_are_sums_around_the_mean_whatever_the_shift():
    X, y = unit_rows(300, 10)
    centred = X.astype(np.float64) - X.mean(axis=0, dtype=np.float64)
    for shift in (rough_mean(X, columns(y)), np.append(np.full(10, 0.3), 99.0), np.zeros(11)):
        (found,) = gather(X, columns(y), shift)
        gram, xy = found.centred()
        np.testing.assert_allclose(gram, centred.T @ centred, atol=1e-9)
        np.testing.assert_allclose(xy[:, 0], centred.T @ (y - y.mean()), atol=1e-9)
        np.testing.assert_allclose(found.means[0], X.mean(axis=0, dtype=np.float64), atol=1e-12)
        assert found.means[1][0] == pytest.approx(y.mean())


def test_a_row_of_weight_three_counts_as_three_rows():
    X, y = unit_rows(200, 6)
    weights = np.random.default_rng(0).integers(1, 4, size=200)
    shift = rough_mean(X, columns(y))
    (weighted,) = gather(X, columns(y), shift, sample_weight=weights.astype(float))
    (repeated,) = gather(np.repeat(X, weights, axis=0), columns(np.repeat(y, weights)), shift)
    np.testing.assert_allclose(weighted.sums, repeated.sums, rtol=1e-12, atol=1e-12)


def test_blocks_from_a_source_and_rows_from_an_array_give_the_same_sums():
    X, y = unit_rows(900, 12)
    shift = rough_mean(X, columns(y))
    folds = [np.arange(0, 900, 3), np.arange(1, 900, 3), np.arange(2, 900, 3)]
    for sizes in ([900], [1, 400, 499], [100] * 9):
        for mine, theirs in zip(
            gather(Blocks(X, sizes), columns(y), shift, folds=folds),
            gather(X, columns(y), shift, folds=folds),
            strict=True,
        ):
            np.testing.assert_allclose(mine.sums, theirs.sums, rtol=1e-12, atol=1e-12)


def test_mean_squared_errors_from_sums_are_those_of_the_rows():
    X, y = unit_rows(400, 8)
    targets = np.stack([y, y**2], axis=1)
    weights = np.random.default_rng(1).random(400) + 0.5
    (found,) = gather(X, targets, rough_mean(X, targets), sample_weight=weights)
    coefs = np.random.default_rng(0).normal(size=(3, 8, 2))
    intercepts = np.random.default_rng(2).normal(size=(3, 2))
    values = np.einsum("nd,adk->ank", X.astype(np.float64), coefs) + intercepts[:, None]
    expected = np.average((values - targets) ** 2, axis=1, weights=weights)
    np.testing.assert_allclose(found.mean_squared_errors(coefs, intercepts), expected, rtol=1e-9)


def test_a_source_that_can_be_read_only_once_or_gives_other_rows_is_refused():
    X, y = unit_rows(50, 4)
    shift = rough_mean(X, columns(y))
    with pytest.raises(InputError, match="can be read only once"):
        gather((X[i : i + 10] for i in range(0, 50, 10)), columns(y), shift)
    with pytest.raises(InputError, match="gave more rows than the 50 there are targets for"):
        gather([X, X], columns(y), shift)
    with pytest.raises(InputError, match="gave 20 rows, but there are targets for 50"):
        gather([X[:20]], columns(y), shift)
    with pytest.raises(InputError, match=r"gave a block of shape \(10, 3\); every block must be \(m, 4\)"):
        gather([X[:40], X[:10, :3]], columns(y), shift)
    with pytest.raises(InputError, match=r"gave a block of shape \(4,\)"):
        list(row_blocks([X[0]], 1, None))
