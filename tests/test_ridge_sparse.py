"""Ridge on rows with sparse columns: the same as on the dense rows, by the kernel and by products."""

import warnings

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import csr_array, random_array

from dspy_qvl import ridge
from dspy_qvl.errors import InputError, QVLWarning
from dspy_qvl.ridge import krylov, regression
from dspy_qvl.ridge.krylov import Krylov
from dspy_qvl.vectors import MixedRows

Array = NDArray[np.float64]
ALPHAS = [0.01, 0.3, 10.0]


def mixed(n: int, d: int, m: int, *, k: int = 0, density: float = 0.1, seed: int = 0) -> tuple[MixedRows, Array]:
    """Rows with a mean far from 0, some empty columns and one nearly full, and targets of which they say something."""
    rng = np.random.default_rng(seed)
    dense = (rng.standard_normal((n, d)) + 3).astype(np.float32)
    sparse = random_array((n, m), density=density, rng=rng, data_sampler=rng.random).tolil()
    if m > 2:
        sparse[: n - 1, 1] = 1.0
    rows = MixedRows(dense, csr_array(sparse.tocsr().astype(np.float32)))
    coef = rng.standard_normal((d + m, k or 1))
    y = rows.toarray().astype(np.float64) @ coef + rng.standard_normal((n, k or 1)) + 5
    return rows, y if k else y[:, 0]


def exact(X: MixedRows, y: Array, alpha: float, weights: Array | None = None) -> tuple[Array, Array]:
    """coef and intercept from the dense normal equations in float64, the intercept as a column of its own."""
    Z = np.column_stack([X.toarray().astype(np.float64), np.ones(len(X))])
    s = np.ones(len(y)) if weights is None else weights
    penalty = np.full(Z.shape[1], alpha)
    penalty[-1] = 0.0
    line = np.linalg.solve(Z.T @ (s[:, None] * Z) + np.diag(penalty), Z.T @ (s * y.T).T)
    return line[:-1], line[-1]


@pytest.fixture(params=["kernel", "products"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to solve, on rows few enough for either."""
    if request.param == "products":
        monkeypatch.setattr(regression, "FEW", 0)
    return str(request.param)


SHAPES = [(60, 5, 200), (200, 4, 40), (50, 0, 90), (80, 12, 0), (90, 8, 30)]


@pytest.mark.parametrize(("n", "d", "m"), SHAPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("k", [0, 3])
def test_a_fit_is_that_of_the_dense_rows(engine: str, n: int, d: int, m: int, weighted: bool, k: int) -> None:
    X, y = mixed(n, d, m, k=k)
    weights = np.random.default_rng(1).uniform(0.2, 3, n) if weighted else None
    for alpha in ALPHAS:
        line = ridge.fit(X, y, alpha, sample_weight=weights)
        coef, intercept = exact(X, y, alpha, weights)
        assert line.coef.shape == coef.shape
        s = np.ones(n) if weights is None else weights
        centred = X.toarray().astype(np.float64)
        centred -= np.average(centred, axis=0, weights=s)
        right = y - np.average(y, axis=0, weights=s)
        gradient = centred.T @ (s * (right - centred @ line.coef).T).T - alpha * line.coef
        assert np.linalg.norm(gradient) <= 1.5e-9 * np.linalg.norm(centred.T @ (s * right.T).T)
        assert np.linalg.norm(line.coef - coef) <= 1e-6 * np.linalg.norm(coef)
        np.testing.assert_allclose(line.intercept, intercept, rtol=1e-6)


@pytest.mark.parametrize(("n", "d", "m"), SHAPES)
@pytest.mark.parametrize("k", [0, 2])
def test_values_without_a_fold_are_those_of_dense_fits(engine: str, n: int, d: int, m: int, k: int) -> None:
    X, y = mixed(n, d, m, k=k)
    rng = np.random.default_rng(2)
    weights, folds = rng.uniform(0.2, 3, n), np.array_split(rng.permutation(n), 3)
    expected = np.empty((len(ALPHAS), *y.shape))
    for number, alpha in enumerate(ALPHAS):
        for fold in folds:
            seen = np.setdiff1d(np.arange(n), fold)
            coef, intercept = exact(X[seen], y[seen], alpha, weights[seen])
            expected[number, fold] = X[fold] @ coef + intercept
    values = ridge.out_of_fold(X, y, ALPHAS, folds, sample_weight=weights)
    np.testing.assert_allclose(values[0], expected[0], atol=3e-2 * y.std())  # one space for all: the smallest is worst
    np.testing.assert_allclose(values[1:], expected[1:], atol=2e-3 * y.std())
    (single,) = ridge.out_of_fold(X, y, ALPHAS[:1], folds, sample_weight=weights)
    np.testing.assert_allclose(single, expected[0], atol=1e-4 * y.std())

    found = ridge.search(X, y, ALPHAS, folds, sample_weight=weights)
    squares = (expected - y) ** 2
    errors = np.stack([np.average(squares[:, fold], axis=1, weights=weights[fold]) for fold in folds], axis=1)
    np.testing.assert_allclose(found.errors[0], errors[0], rtol=1e-2)
    np.testing.assert_allclose(found.errors[1:], errors[1:], rtol=1e-3)
    np.testing.assert_array_equal(found.line.coef, ridge.fit(X, y, ALPHAS[found.best], sample_weight=weights).coef)


def test_leave_one_out_residuals_are_those_of_refitting(engine: str) -> None:
    X, y = mixed(70, 5, 200)
    weights = np.random.default_rng(1).uniform(0.2, 3, 70)
    loo = ridge.leave_one_out(X, y, 0.3, sample_weight=weights)
    for row in range(0, 70, 9):
        rest = np.delete(np.arange(70), row)
        coef, intercept = exact(X[rest], y[rest], 0.3, weights[rest])
        np.testing.assert_allclose(loo.residuals[row], (y[[row]] - X[np.array([row])] @ coef - intercept)[0], rtol=1e-8)
    folds = [np.arange(0, 35), np.arange(35, 70)]
    found = ridge.search(X, y, [0.3], folds, sample_weight=weights, leave_one_out=True)
    assert found.loo is not None
    np.testing.assert_array_equal(found.loo.residuals, loo.residuals)


def test_leave_one_out_is_refused_beyond_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regression, "EXACT", 69)
    X, y = mixed(70, 5, 200)
    with pytest.raises(InputError, match="at most 4,000 rows, and there are 70; use out_of_fold"):
        ridge.leave_one_out(X, y, 1.0)
    with pytest.raises(InputError, match="leave-one-out"):
        ridge.search(X, y, [1.0], [np.arange(35), np.arange(35, 70)], leave_one_out=True)


def test_a_constant_target_has_no_coefficients(engine: str) -> None:
    X, _ = mixed(60, 5, 100)
    line = ridge.fit(X, np.full(60, 2.5), 1.0)
    np.testing.assert_allclose(line.coef, 0.0, atol=1e-12)
    assert line.intercept == pytest.approx(2.5)
    values = ridge.out_of_fold(X, np.full(60, 2.5), ALPHAS, np.array_split(np.arange(60), 3))
    np.testing.assert_allclose(values, 2.5)


def test_columns_that_no_row_fills_have_the_coefficient_0(engine: str) -> None:
    X, y = mixed(60, 3, 400, density=0.004)
    empty = np.flatnonzero(X.sparse.sum(axis=0) == 0) + 3
    assert len(empty) > 50
    assert (ridge.fit(X, y, 1.0).coef[empty] == 0).all()


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_units_of_rows_and_targets_do_not_matter(engine: str, scale: float) -> None:
    X, y = mixed(60, 5, 200)
    units = np.full(X.shape[1], scale)
    line = ridge.fit(X.times(units), y * scale**9, 0.3 * scale**2)
    expected = ridge.fit(X, y, 0.3)
    np.testing.assert_allclose(line.coef / scale**8, expected.coef, rtol=1e-4, atol=1e-6 * np.abs(expected.coef).max())


def test_the_same_rows_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regression, "FEW", 0)
    X, y = mixed(90, 8, 300)
    folds = np.array_split(np.arange(90), 3)
    first, second = (ridge.search(X, y, ALPHAS, folds) for _ in range(2))
    np.testing.assert_array_equal(first.errors, second.errors)
    np.testing.assert_array_equal(first.line.coef, second.line.coef)


def test_a_fit_that_starts_near_the_solution_takes_fewer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = mixed(300, 8, 400)
    rows = np.arange(299)
    start = Krylov(X[rows], y[rows, None], None).fit(0.3)[0]
    n_steps = []
    solve = krylov._solve_in_space
    counted: list[int] = []

    def counting(products: tuple[krylov.Product, krylov.Product], *rest: object) -> object:
        def times(v: NDArray[np.float32]) -> NDArray[np.float32]:
            counted.append(1)
            return products[0](v)

        return solve((times, products[1]), *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(krylov, "_solve_in_space", counting)
    for given in (None, start):
        counted.clear()
        line, _ = Krylov(X, y[:, None], None).fit(0.3, given)
        n_steps.append(len(counted))
        coef, _ = exact(X, y, 0.3)
        np.testing.assert_allclose(line.coef[:, 0], coef, atol=1e-6 * np.abs(coef).max())
    assert n_steps[1] < 0.9 * n_steps[0]
    again, _ = Krylov(X, y[:, None], None).fit(1e4, start)  # a start that is worse than none does no harm
    np.testing.assert_allclose(again.coef[:, 0], exact(X, y, 1e4)[0], rtol=1e-6, atol=1e-9)


def test_a_tiny_penalty_is_solved_in_double_precision() -> None:
    X, y = mixed(120, 6, 300)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        line, _ = Krylov(X, y[:, None], None).fit(1e-6)
    coef, _ = exact(X, y, 1e-6)
    np.testing.assert_allclose(line.coef[:, 0], coef, atol=1e-5 * np.abs(coef).max())


def test_a_fit_that_stops_early_says_what_it_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regression, "FEW", 0)
    monkeypatch.setattr(krylov, "ROUNDS", 1)
    X, y = mixed(200, 8, 300)
    with pytest.warns(QVLWarning, match=r"alpha=0\.01 stopped where the residual .* of \|X'y\|, above 1e-09"):
        ridge.fit(X, y, 0.01)


def test_a_best_penalty_that_did_not_converge_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(krylov, "STEPS", 6)
    X, y = mixed(300, 8, 100, density=0.3)
    with pytest.warns(QVLWarning, match=r"cross-validation stopped after 6 steps for alpha=0\.02"):
        Krylov(X, y[:, None], None).fold_errors([0.01, 0.02], np.array_split(np.arange(300), 3))


def test_several_targets_share_the_kernel_of_more_rows() -> None:
    X, y = mixed(30, 2, 20, k=2)
    rows = np.repeat(np.arange(30), 50)
    assert isinstance(regression._problem(X[rows], y[rows], None), regression.Dual)
    assert isinstance(regression._problem(X[rows], y[rows, 0], None), Krylov)
