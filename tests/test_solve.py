"""One factorisation, every penalty."""

import warnings

import numpy as np
import pytest

from dspy_qvl import QVLWarning
from dspy_qvl.ridge import solve
from dspy_qvl.ridge.solve import beyond_float32, factored, solve_path


@pytest.mark.parametrize("m", [1, 2, 3, 17, 150])
def test_one_factorisation_solves_every_penalty(m):
    rng = np.random.default_rng(m)
    factor = rng.normal(size=(m, m + 2))
    A, b = factor @ factor.T, rng.normal(size=m)
    before = A.copy()
    alphas = [1e-4, 1e-2, 1.0, 1e5]
    solutions = solve_path(A, b, alphas)
    for solution, alpha in zip(solutions, alphas, strict=True):
        np.testing.assert_allclose(solution, np.linalg.solve(A + alpha * np.eye(m), b), rtol=1e-8, atol=1e-12)
    np.testing.assert_array_equal(A, before)


def test_a_penalty_below_rounding_falls_back_to_the_directions_that_carry_something():
    direction = np.ones(50) / np.sqrt(50)
    A = 1e12 * np.outer(direction, direction)
    for alphas in ([1e-9], [1e-9, 1e-8]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", QVLWarning)  # said by test_an_ill_conditioned_system_is_said
            solution = solve_path(A, direction, alphas)[0]
        assert np.isfinite(solution).all()
        np.testing.assert_allclose(direction @ solution, 1e-12, rtol=1e-6)


def spread_system(m: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A system with eigenvalues from 1e-4 to 1e2, and three right-hand sides."""
    rng = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(rng.normal(size=(m, m)))
    return (Q * np.geomspace(1e-4, 1e2, m)) @ Q.T, rng.normal(size=(m, 3))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_large_system_is_projected_on_a_few_solutions_and_loses_nothing_that_counts(monkeypatch, kind):
    A, b = spread_system(400)
    monkeypatch.setattr(solve, "TRIDIAGONAL", 100)
    alphas = np.geomspace(1e-3, 1e3, 25).tolist()
    energy = np.empty(len(alphas))
    for row, (solution, alpha) in enumerate(zip(solve_path(A, b, alphas, kind=kind), alphas, strict=True)):
        system = A + alpha * np.eye(400)
        error = solution - np.linalg.solve(system, b)
        energy[row] = np.sqrt((error * (system @ error)).sum() / (b * np.linalg.solve(system, b)).sum())
    assert energy.max() < 0.02  # of the size of the solution, in the norm that the ridge objective is measured in
    assert np.median(energy) < 1e-3


def test_several_right_hand_sides_are_solved_as_each_alone():
    A, b = spread_system(60)
    together = solve_path(A, b, [0.1, 1.0])
    for column in range(3):
        np.testing.assert_allclose(together[..., column], solve_path(A, b[:, column], [0.1, 1.0]), rtol=1e-12)


def test_float32_factorisations_are_right_to_float32():
    A, b = spread_system(120)
    exact, single = (solve_path(A, b, [1e-2, 1.0], kind=kind) for kind in (np.float64, np.float32))
    assert np.abs(single - exact).max() < 1e-3 * np.abs(exact).max()
    assert np.abs(single - exact).max() > 0


def test_an_ill_conditioned_system_is_said_and_a_sound_one_is_not():
    A = np.diag([1e9, 1.0, 0.0])
    with pytest.warns(QVLWarning, match="alpha=1e-06 is ill-conditioned"):
        factored(A, 1e-6)
    factored(A, 1e-3)


def test_a_penalty_is_beyond_float32_where_it_is_below_a_millionth_of_the_largest_eigenvalue():
    A, _ = spread_system(50)
    assert beyond_float32(A, 1e-5)
    assert not beyond_float32(A, 1e-3)
    assert not beyond_float32(np.zeros((3, 3)), 1e-9)
