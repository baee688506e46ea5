"""A fitted line, its leave-one-out residuals, and the values it gives: the same bits for a row in any batch."""

from typing import Any, NamedTuple

import numpy as np

from dspy_qvl.ridge.moments import Folds
from dspy_qvl.vectors import Array, Matrix, dot_rows


class Linear(NamedTuple):
    """A fitted line: value = x coef + intercept."""

    coef: Array  # (d,), or (d, k) for k targets
    intercept: Any  # float, or (k,)

    def single(self) -> "Linear":
        """The line of the only target: coef (d,) and a float."""
        return Linear(self.coef[:, 0], float(self.intercept[0]))

    def columns(self) -> "Linear":
        """The same with targets as columns: coef (d, k) and intercept (k,)."""
        return self if self.coef.ndim > 1 else Linear(self.coef[:, None], np.array([self.intercept]))


class LeaveOneOut(NamedTuple):
    """Every row under the fit of all others."""

    residuals: Array  # (n,) or (n, k), in the units of y: what that fit misses the row by
    leverages: Array  # (n,), in (0, 1]: how much of the row's own fitted value it decides itself

    def single(self) -> "LeaveOneOut":
        """The residuals of the only target, (n,), and the same leverages."""
        return LeaveOneOut(self.residuals[:, 0], self.leverages)


def left_out(residual: Array, left: Array) -> LeaveOneOut:
    """Every row under the fit of all others, from what the fit of all misses it by, (n, k), and 1 - leverage, (n,)."""
    usable = np.where(left < 1e-14, np.nan, left)
    return LeaveOneOut(residual / usable[:, None], np.clip(1 - left, 0.0, 1.0))


def predict(X: Matrix, line: Linear) -> Array:
    """Values of rows, (n, d) -> (n,), the same bits for a row in any batch."""
    values: Array = dot_rows(X, line.coef) + line.intercept
    return values


def fold_errors(values: Array, y: Array, folds: Folds, sample_weight: Array | None) -> Array:
    """Weighted mean squared error on each fold, (n_alphas, n_folds, k), of values (n_alphas, n, k), targets (n, k)."""
    squares, weights = (values - y) ** 2, sample_weight
    errors = [
        np.average(squares[:, fold], axis=1, weights=None if weights is None else weights[fold]) for fold in folds
    ]
    return np.stack(errors, axis=1)
