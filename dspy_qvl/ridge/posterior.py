"""The uncertainty of a value of a ridge fit, in closed form.

A ridge fit is the mean of a posterior: with y = b + x w + noise of variance s^2 and w ~ N(0, s^2 / alpha I), a row x
that was not learned from has a predictive distribution of variance

    s^2 (1 + v),      v = 1/n + xc (Xc'Xc + alpha I)^-1 xc',      xc = x - mean(X)

v is small where rows like x were learned from, and at most 1/n + |xc|^2 / alpha where none was. A learned row has
v = h / (1 - h) under the fit of all others, h its leverage; so its leave-one-out residual r has variance
s^2 / (1 - h), and s^2 is estimated by the mean of r^2 (1 - h).

With no more rows than columns, v comes from the kernel: v - 1/n = (|xc|^2 - kc (Kc + alpha I)^-1 kc') / alpha, where
Kc = Xc Xc' and kc = Xc xc'. For rows with sparse columns it always does; beyond 4,000 of them v is an
upper bound (`projected.py`): on emobank with penalties that cross-validation chooses, 1.01 to 1.04 times the exact v
in the median of 3,000 learned texts, 1.1 to 1.2 times of 7,000.

Source: Rasmussen & Williams (2006), Gaussian Processes for Machine Learning, 2.1; Rifkin & Lippert (2007).
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from dspy_qvl.ridge.across import Across, squared_lengths
from dspy_qvl.ridge.bounds import Bounds, Kernel
from dspy_qvl.ridge.dual import Dual, centred_kernel, gram_of_rows
from dspy_qvl.ridge.line import LeaveOneOut, Linear
from dspy_qvl.ridge.moments import gather, rough_mean
from dspy_qvl.ridge.primal import Primal
from dspy_qvl.ridge.projected import AT_ONCE, Projected, careful_noise, leverages, project
from dspy_qvl.ridge.regression import fit, has_leave_one_out
from dspy_qvl.ridge.solve import inverse_root
from dspy_qvl.vectors import Array, Matrix, MixedRows, Rows, dot_rows, slices

HALVED = 2048  # size of a root from which on it is kept in float32: 6e-7 of a standard deviation, half the memory


@dataclass(frozen=True, eq=False)
class Posterior:
    """The uncertainty that a ridge fit leaves; every number is the same bits for a row in any batch.

    Attributes:
        noise: s, in the units of y; careful if not exact: s^2 is the mean of e^2 / (1 - h), e the residuals of the fit
            and h upper bounds on the leverages of a sample of rows.
        loo: every learned row under the fit of all others; None if not exact.
        line: the fit.
    """

    noise: float
    loo: LeaveOneOut | None
    line: Linear
    _n: int
    _alpha: float
    _mean: Array  # (d,)
    _root: Rows  # R'R is the inverse of the system, (d, d) or (n, n)
    _kernel: Kernel | None
    _projected: Projected | None = None

    @property
    def exact(self) -> bool:
        """True if variances are exact; else they are upper bounds (`projected.py`)."""
        return self.loo is not None

    def fit_variance(self, x: Matrix) -> float:
        """The variance v of the value of one row, (d,) or mixed rows of length 1, > 0, in units of the noise's."""
        return self.solved(x)[1]

    def solved(self, x: Matrix) -> tuple[Array, float]:
        """One row multiplied with the root, (len(R),), and its `fit_variance`; sums in one order."""
        n = self._n
        if self._kernel is None:
            solved = dot_rows(self._root, np.asarray(x, dtype=np.float64) - self._mean)
            return solved, 1 / n + float(np.einsum("i,i->", solved, solved))
        across, with_mean, squared = self._products(x)
        _, row_means, ones = self._kernel
        mean_squared = self._mean_squared
        solved = dot_rows(self._root, across - row_means - with_mean * ones + mean_squared * ones)
        length = squared - 2 * with_mean + mean_squared
        return solved, 1 / n + max(0.0, length - float(np.einsum("i,i->", solved, solved))) / self._alpha

    @functools.cached_property
    def _mean_squared(self) -> float:
        return float(np.einsum("j,j->", self._mean, self._mean))

    def _products(self, x: Matrix) -> tuple[Array, float, float]:
        """The products of one row with the kernel's rows, (m,), with the mean, and with itself."""
        columns: Any = self._kernel.columns if self._kernel else None
        if isinstance(x, MixedRows):
            return columns.alone(x), float((x @ self._mean)[0]), float(squared_lengths(x)[0])
        wide = np.asarray(x, dtype=np.float64)
        some = np.flatnonzero(wide)
        used, values = columns[some].astype(np.float64), wide[some]
        with_mean, squared = np.einsum("j,j->", self._mean[some], values), np.einsum("j,j->", values, values)
        return np.einsum("ji,j->i", used, values), float(with_mean), float(squared)

    def shares_root(self, X: Matrix) -> Rows:
        """A, (len(R), n), with s A + 1/n the shares of the learned rows' scores in a row's value (`groups.py`).

        Args:
            X: the learned rows, (n, d).
        """
        if self._kernel is not None:
            return self._root
        assert not isinstance(X, MixedRows)
        from scipy.linalg import blas

        root, rows = self._root.astype(np.float64, copy=False), (X - self._mean).T
        return np.asarray(blas.dtrmm(1.0, root, rows, lower=1) if self.multiplied.triangular else root @ rows)

    def left(self, A: Rows) -> Array:
        """The part S_GG of I - H of some learned rows, (m, m), from their columns of `shares_root`, (len(R), m)."""
        inner = A.T.astype(np.float64) @ A
        return (self._alpha * inner if self._kernel is not None else np.eye(A.shape[1]) - inner) - 1 / self._n

    def leverages(self, X: MixedRows) -> Array:
        """Upper bounds on the leverages of the learned rows, (n, d) -> (n,); of a posterior that is not exact."""
        assert self._projected is not None
        return np.concatenate([leverages(X, self._projected, self._alpha, rows) for rows in slices(len(X), AT_ONCE)])

    def hat_squares(self, X: Matrix) -> Array:
        """The sum of the squares of each column of the hat matrix, which turns y into fitted values, (n, d) -> (n,).

        H = 1/n + Xc (Xc'Xc + alpha I)^-1 Xc', from the kernel 1/n + I - alpha (Kc + alpha I)^-1; only where exact.
        """
        assert self.loo is not None
        n, root, out = self._n, self._root, np.empty(self._n)
        if self._kernel is None:
            solved = (np.asarray(X, dtype=np.float64) - self._mean) @ root.T
            np.einsum("ij,ij->i", solved @ (solved.T @ solved), solved, out=out)
            return out + 1 / n
        for rows in slices(n, AT_ONCE):
            part = root[:, rows].T @ root  # (m, n)
            part[np.arange(len(part)), np.arange(n)[rows]] = 0  # 1 - alpha times it loses digits
            out[rows] = self._alpha**2 * np.einsum("ij,ij->i", part, part, dtype=np.float64)
        return out + (self.loo.leverages - 1 / n) ** 2 + 1 / n

    def covariances(self, X: Matrix) -> Array:
        """The covariances of the values of rows, (m, d) -> (m, m), in units of the noise's variance; the diagonal is v.

        cov(x, z) = 1/n + s_x s_z with s = R xc', or from the kernel 1/n + (xc zc' - s_x s_z) / alpha with s = R kc'.
        They are products of many rows, which round with their number.
        """
        solved = np.concatenate([self.multiplied.solved(X[rows]).s for rows in slices(len(X), AT_ONCE)])
        found: Array = solved @ solved.T
        if self._kernel is not None:
            with_mean = np.asarray(X @ self._mean)
            np.subtract(gram_of_rows(X), found, out=found)
            found -= with_mean[:, None]
            found -= with_mean - self._mean_squared
            found /= self._alpha
        found += 1 / self._n
        return found

    def bounds(self, X: Matrix) -> tuple[Array, Array]:
        """Lower and upper bounds on the `fit_variance` of each row, (m, d) -> (m,) and (m,), about 1e-9 apart."""
        return self.multiplied(X)

    @functools.cached_property
    def multiplied(self) -> Bounds:
        """The root as a factor of many rows."""
        return Bounds(self._n, self._root, self._mean, self._alpha, self._kernel)

    def std(self, fit_variance: float) -> float:
        """Standard deviation of a new rating, in the units of y, from a row's `fit_variance`.

        Rounded to seven digits: what another BLAS rounds otherwise is not seen.
        """
        return float(self._rounded(np.array([fit_variance]))[0])

    def stds(self, X: Matrix) -> Array:
        """The `std` of each row, (m, d) -> (m,): the same bits as row by row, at the cost of products."""
        lowest, highest = (self._rounded(bound) for bound in self.bounds(X))
        for row in np.flatnonzero(lowest != highest):
            lowest[row] = self.std(self.fit_variance(X[row : row + 1] if isinstance(X, MixedRows) else X[row]))
        return lowest

    def _rounded(self, fit_variances: Array) -> Array:
        mantissas, exponents = np.frexp(self.noise * np.sqrt(1 + fit_variances))
        return np.ldexp(mantissas.astype(np.float32).astype(np.float64), exponents)


def posterior_of(X: Matrix, y: Array, alpha: float, line: Linear | None = None) -> Posterior:
    """The posterior of the ridge fit of y on X: exact, but for rows with sparse columns beyond 4,000 of them.

    Args:
        X: rows, (n, d), as the fit saw them.
        y: targets, (n,).
        alpha: penalty, > 0, in units of X squared.
        line: the fit, where it is at hand: needed only where the posterior is not exact.
    """
    n, d = X.shape
    if isinstance(X, MixedRows) and not has_leave_one_out(X):
        known = project(X, alpha)
        line = line or fit(X, y, alpha)
        noise = careful_noise(X, y, line, known, alpha)
        return Posterior(noise, None, line, n, alpha, known.mean, known.root, known.kernel, known)
    targets = y[:, None]
    kernel: Kernel | None = None
    problem: Dual | Primal
    if isinstance(X, MixedRows) or n <= d:
        problem = Dual(X, targets)
        lines, make_loo = problem.fit(alpha)
        system, row_means = centred_kernel(problem.kernel, np.ones(n))
        if isinstance(X, MixedRows):
            columns: Any = Across.transposed(X)
            mean = X.column_means()
        else:
            columns = np.ascontiguousarray(X.T)
            mean = X.mean(axis=0, dtype=np.float64)
        kernel = Kernel(columns, row_means, np.ones(n))
    else:
        problem = Primal(X, targets, whole=gather(X, targets, rough_mean(X, targets))[0])
        lines, make_loo = problem.fit(alpha)
        assert problem.whole is not None
        system, mean = problem.whole.centred()[0], problem.whole.means[0]
    root: Rows = inverse_root(system, alpha, problem.factor)
    loo = make_loo(root).single()
    if len(root) > HALVED:
        root = root.astype(np.float32)
    left = 1 - loo.leverages
    usable = np.isfinite(loo.residuals) & (left > 0)
    noise = float(np.sqrt(np.mean(loo.residuals[usable] ** 2 * left[usable])) if usable.any() else y.std())
    return Posterior(noise, loo, lines.single(), n, alpha, mean, root, kernel)
