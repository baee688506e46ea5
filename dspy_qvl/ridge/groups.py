"""Rows under the fits that never saw a group of the learned rows, in closed form.

A ridge fit's value of a row x is a weighted sum of the learned scores, sum_i c_i(x) y_i; with the system's root R and
s = R (x - mean)', or from the kernel s = R Lc (x - mean)' (`posterior.py`),

    c(x) = 1/n + s A,      A = R Xc',    or from the kernel    A = R

With H the c_i of the learned rows, S = I - H and e = S y the residuals of the fit, a group G of rows gives

    r_G = S_GG^-1 e_G                         residuals of its rows under the fit without it
    1 + v_-G(x_i) = [S_GG^-1]_ii              and the variances of their values there
    mu_-G(x) = mu(x) - c_G(x) r_G             the value of any row under that fit
    v_-G(x) = v(x) + c_G(x) S_GG^-1 c_G(x)'   and its variance

A group of one row is the ordinary leave-one-out. With L L' = S_GG all of it is L^-1 times e_G and c_G.

Source: Cook & Weisberg (1982), Residuals and Influence in Regression, 3.2; Rifkin & Lippert (2007).
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.ridge.bounds import ROUNDING, TRIANGLE
from dspy_qvl.ridge.posterior import Posterior
from dspy_qvl.vectors import BLOCK, Array, Matrix, slices


class Shifts(NamedTuple):
    """Rows under the fits without each of the groups, and how far another order of summation may be from that."""

    values: Array  # mu_-G(x) - mu(x), (m, n_groups), in the units of y
    variances: Array  # v_-G(x), (m, n_groups) or (m, 1)
    off_values: Array  # (m,)
    off_variances: Array  # (m,)


class WithoutGroups:
    """The fits without each group of the learned rows; an exact posterior is needed.

    Args:
        X: the learned rows, (n, d).
        posterior: of their fit.
        groups: the group of each row, numbers, (n,).

    Attributes:
        column: of each row, where its group stands among those of `Shifts`, (n,).
        residuals: of each row under the fit without its group, (n,), in the units of y; NaN where that leaves nothing.
        variances: v of each row under that fit, (n,); infinite where that leaves nothing.
    """

    def __init__(self, X: Matrix, posterior: Posterior, groups: NDArray[np.intp]) -> None:
        loo, n = posterior.loo, len(groups)
        assert loo is not None
        left = 1 - loo.leverages
        self._posterior, self._A = posterior, posterior.shares_root(X)
        self._triangular = self._A is posterior.multiplied.root and posterior.multiplied.triangular
        _, self.column, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        self._alone = len(sizes) == n
        if self._alone:
            self.column = np.arange(n)
        self._order = np.argsort(self.column, kind="stable")
        self._starts = np.cumsum(sizes) - sizes
        self._longest = int(sizes.max())
        missed = np.where(np.isfinite(loo.residuals), loo.residuals * left, 0.0)[self._order]  # e
        with np.errstate(divide="ignore"):
            self._scale = np.where(np.isfinite(loo.residuals), 1 / np.sqrt(left), np.inf)[self._order]
        self._blocks: list[tuple[slice, Array]] = []  # L^-1 of each group of several rows
        for start, end in zip(self._starts, [*self._starts[1:], n], strict=True):
            if end - start > 1:
                rows = self._order[start:end]
                S = posterior.left(self._A[:, rows])
                np.fill_diagonal(S, left[rows])
                # All rows leave nothing: S times a column of ones is 0, but for rounding.
                inverse = _inverse_factor(S) if end - start < n else np.zeros_like(S)
                self._blocks.append((slice(start, end), inverse))
                self._scale[start:end] = 1.0
        lost = ~np.isfinite(self._scale)
        self._scale[lost] = 0.0
        self._whitened = missed * self._scale  # L^-1 e_G
        r, precision = self._whitened * self._scale, self._scale**2
        for part, inverse in self._blocks:
            self._whitened[part] = inverse @ missed[part]
            r[part], precision[part] = inverse.T @ self._whitened[part], np.einsum("ij,ij->j", inverse, inverse)
        lost |= precision == 0
        self.residuals, self.variances = np.empty(n), np.empty(n)
        self.residuals[self._order] = np.where(lost, np.nan, r)
        self.variances[self._order] = np.where(lost, np.inf, precision - 1)
        self._set_reach()

    def _set_reach(self) -> None:
        """How rounding grows on its way into L^-1 c_G, and from there into the shift of the values, at most.

        An error of s grows by |L^-1 A_G'|, one of each sum of c by |L^-1| |A_G|, and one of L^-1 c_G by |L^-1|.
        """
        lengths = np.sqrt(np.einsum("ij,ij->j", self._A, self._A, dtype=np.float64))[self._order]
        columns = np.stack([(lengths * self._scale) ** 2, lengths**2, self._scale**2, self._whitened**2])
        squares = np.add.reduceat(columns, self._starts, axis=1)
        for part, inverse in self._blocks:
            at = np.searchsorted(self._starts, part.start)
            squares[0, at] = np.sum((self._A[:, self._order[part]] @ inverse.T) ** 2)
            squares[2, at] = np.sum(inverse**2)
        of_s, length, factor, whitened = np.sqrt(squares)
        grown = np.stack([of_s, factor * length, factor])
        self._of_w, self._of_values = grown.max(axis=1), (grown * whitened).max(axis=1)

    def many(self, X: Matrix) -> Shifts:
        """The shifts of rows, (m, d), by products of all of them."""
        s, off, unit, lowest, highest = self._posterior.multiplied.solved(X)
        C = np.empty((len(s), self._A.shape[1]))
        for part in slices(C.shape[1], TRIANGLE if self._triangular else BLOCK):
            start = part.start if self._triangular else 0
            C[:, part] = s[:, start:] @ self._A[start:, part].astype(np.float64, copy=False)
        values, variances = self._of(C, (lowest + highest) / 2, np.matmul)
        unit = unit + 2 * ROUNDING * (self._longest + len(self._A))
        lengths = [np.sqrt(np.einsum("ij,ij->i", M, M)) for M in (s, C)]
        off = 2 * np.stack([off, unit * lengths[0], 2 * unit * lengths[1]], axis=1)  # both ways may be off
        off_w, off_values = off @ self._of_w, off @ self._of_values
        w = np.sqrt(np.maximum(variances.max(axis=1) - lowest, 0.0))  # at least |L^-1 c_G|
        return Shifts(values, variances, off_values, highest - lowest + (2 * w + off_w) * off_w)

    def alone(self, x: Matrix) -> Shifts:
        """The shifts of one row, (d,) or mixed rows of length 1; sums in one order."""
        s, variance = self._posterior.solved(x)
        C = np.einsum("i,ij->j", s, self._A)[None]
        return Shifts(*self._of(C, np.array([variance]), _in_order), np.zeros(1), np.zeros(1))

    def _of(self, C: Array, v: Array, multiply: Any) -> tuple[Array, Array]:
        """The shifts of values and the variances, (m, n_groups) each, from s A, (m, n), which is used up."""
        C += 1 / C.shape[1]
        if not self._alone:
            C = C[:, self._order]
        W = C * self._scale
        for part, inverse in self._blocks:
            W[:, part] = multiply(C[:, part], inverse.T)
        values, variances = -self._whitened * W, np.square(W, out=W)
        if not self._alone:
            values = np.add.reduceat(values, self._starts, axis=1)
            variances = np.add.reduceat(variances, self._starts, axis=1)
        variances += v[:, None]
        return values, variances


def _inverse_factor(S: Array) -> Array:
    """L^-1 of L L' = S; zeros where S is singular: without these rows nothing is left."""
    from scipy.linalg import lapack

    factor, info = lapack.dpotrf(S, lower=1)
    if info or np.diagonal(factor).min() < 1e-7:
        return np.zeros_like(S)
    inverse: Array = np.tril(lapack.dtrtri(factor, lower=1)[0])
    return inverse


def _in_order(c: Array, M: Array) -> Array:
    return np.asarray(np.einsum("ij,jk->ik", c, M))
