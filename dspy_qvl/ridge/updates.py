"""A ridge fit kept up to date, row by row: recursive least squares.

With z = (x - shift, 1) and D = diag(alpha, …, alpha, 0), since the intercept is not penalised,

    theta = B^-1 c,      B = sum s z z' + D,      c = sum s z y

A row of weight s that comes (sign +1) or goes (sign -1) changes the inverse P = B^-1 by rank one:

    P <- P - g Pz (Pz)',      theta <- theta + g Pz (y - z theta),      g = sign s / (1 + sign s z'Pz)

That is the fast path; the outer products wait until a few can be subtracted in one go. B and c, which only ever have
rows added and subtracted, are the truth: from them P and theta are made anew after 1,000 rows, when theta has drifted
from them, and when a row goes that alone held up a direction. Where rows have gone beside which those that
are left are small, such as a slip of the pen of 10^6 among ratings from 0 to 8, even the sums have lost digits: they
are `worn`, and whoever has the rows begins anew.

With fewer rows than columns the same is done with the kernel of the rows (`kernel_updates.py`). Of mixed rows beyond
those a kernel is kept for, the rows themselves are kept, and the fit after some came or went is iterated from the last.

Source: Sherman & Morrison (1950); Golub & Van Loan, Matrix Computations, 2.1.4.
"""

import numpy as np

from dspy_qvl.ridge.kept_rows import Row, equal_rows, stacked
from dspy_qvl.ridge.kernel_updates import AT_MOST, KERNEL_AT_MOST, WORN, RecursiveKernelRidge
from dspy_qvl.ridge.line import Linear
from dspy_qvl.ridge.moments import Moments, gather, rough_mean
from dspy_qvl.ridge.regression import fit
from dspy_qvl.vectors import Array, Matrix, MixedRows

GATHERED = 32  # rows that B and P take at once: a product of many rows costs little more than that of one
LEFT = 0.01  # 1 - leverage of a row below which its going is a matter for the sums, not for rank one
DRIFT = 1e-11  # |c - B theta| / |c| that asks for a factorisation


def begin(
    X: Matrix, y: Array, alpha: float, *, start: Linear | None = None
) -> "RecursiveRidge | RecursiveKernelRidge | WarmStartedRidge | None":
    """An incremental solver for the fit of rows, (n, d) with targets (n, k).

    None where both rows and columns are many and dense: a fit from scratch is cheaper there.

    Args:
        X: rows, dense or mixed.
        y: their targets.
        alpha: penalty, > 0.
        start: a line near the fit, coef (d, k) and intercept (k,), such as that of most of the rows; it saves a
            solver that iterates some of its steps.
    """
    n, d = X.shape
    if isinstance(X, MixedRows):
        return RecursiveKernelRidge(X, y, alpha) if n <= KERNEL_AT_MOST else WarmStartedRidge(X, y, alpha, start=start)
    if n > d:
        (moments,) = gather(X, y, rough_mean(X, y))
        return RecursiveRidge(moments, alpha)
    return RecursiveKernelRidge(X, y, alpha) if n <= KERNEL_AT_MOST else None


class RecursiveRidge:
    """The ridge fit of rows that come and go; equal to a fit from scratch to 1e-10 relative.

    Args:
        moments: those of the rows the fit begins with, in float64. Their shift stays.
        alpha: penalty, > 0.
    """

    def __init__(self, moments: Moments, alpha: float) -> None:
        d = moments.n_features
        self.alpha = alpha
        self._shift = moments.shift
        kept = np.append(np.arange(d), d + moments.n_targets)  # x and 1, without y
        self._B = np.asfortranarray(moments.sums[np.ix_(kept, kept)])
        self._B[np.arange(d), np.arange(d)] += alpha
        self._c = moments.sums[kept, d:-1].copy()  # (d + 1, k)
        self._totals = moments.sums[-1].copy()  # of x, y and 1 about the shift, (d + k + 1,)
        self._squares = moments.sums.diagonal().copy()
        self._largest = self._squares.copy()  # the largest they ever were
        self._rows, self._weights = np.empty((GATHERED, d + 1)), np.empty(GATHERED)  # not yet in B
        self._pulled, self._gains = np.empty((GATHERED, d + 1)), np.empty(GATHERED)  # not yet in P
        self._n_waiting = self._n_since = 0
        self._P: Array  # of B and P, the lower triangle counts
        self._theta: Array
        self._factorise()

    @property
    def line(self) -> Linear:
        """The current fit: coef (d, k) and intercept (k,), in the units of y."""
        coef = self._theta[:-1].copy()
        d = len(coef)
        return Linear(coef, self._shift[d:] + self._theta[-1] - self._shift[:d] @ coef)

    @property
    def worn(self) -> bool:
        """True if sums of the rows that are left have lost digits to rows that are gone."""
        spread = self._squares - self._totals**2 / self._totals[-1]
        spread[: len(self._theta) - 1] += self.alpha
        return bool((self._largest > WORN * spread)[:-1].any())

    def suits(self, n: int) -> bool:
        """True if n rows are better kept up to date like this than fitted from scratch."""
        return n > len(self._theta) - 1 or n <= KERNEL_AT_MOST

    def add(self, x: Row, y: Array, sample_weight: float = 1.0) -> None:
        """Add a row with its targets, (k,)."""
        self._change(x, y, sample_weight)

    def remove(self, x: Row, y: Array, sample_weight: float = 1.0) -> None:
        """Remove a row that was added before with the same targets and weight."""
        self._change(x, y, -sample_weight)

    def _change(self, x: Row, y: Array, signed_weight: float) -> None:
        from scipy.linalg import blas

        d, waiting = len(self._shift) - len(y), self._n_waiting
        z = np.append(x - self._shift[:d], 1.0)
        target = y - self._shift[d:]
        row = np.concatenate([z[:-1], target, z[-1:]])
        self._totals += signed_weight * row
        self._squares += signed_weight * row**2
        np.maximum(self._largest, self._squares, out=self._largest)
        self._c += np.multiply.outer(signed_weight * z, target)
        before = self._pulled[:waiting]
        pulled = blas.dsymv(1.0, self._P, z, lower=1) - (self._gains[:waiting] * (before @ z)) @ before
        left = 1 + signed_weight * float(z @ pulled)
        gain = signed_weight / left if left >= LEFT else 0.0
        self._rows[waiting], self._weights[waiting] = z, signed_weight
        self._pulled[waiting], self._gains[waiting] = pulled, gain
        self._n_waiting += 1
        self._n_since += 1
        if left < LEFT or self._n_since >= AT_MOST:
            self._factorise()
            return
        self._theta += np.multiply.outer(gain * pulled, target - z @ self._theta)
        if self._n_waiting == GATHERED:
            self._gather()
            missed = self._c - _symmetric_product(self._B, self._theta)
            if np.linalg.norm(missed) > DRIFT * np.linalg.norm(self._c):
                self._factorise()

    def _gather(self) -> None:
        """Add the waiting rows to B and P."""
        n = self._n_waiting
        self._B = _plus_squares(self._B, self._rows[:n], self._weights[:n])
        self._P = _plus_squares(self._P, self._pulled[:n], -self._gains[:n])
        self._n_waiting = 0

    def _factorise(self) -> None:
        """Make P and theta anew from B and c; theta with one step of refinement."""
        from scipy.linalg import lapack

        self._B = _plus_squares(self._B, self._rows[: self._n_waiting], self._weights[: self._n_waiting])
        self._n_waiting = self._n_since = 0
        factor, info = lapack.dpotrf(self._B, lower=1)
        if info == 0:
            self._P, info = lapack.dpotri(factor, lower=1)
        if info != 0:  # alpha is below the rounding of B: leave alone the directions that carry nothing
            eigenvalues, vectors = np.linalg.eigh(self._B, UPLO="L")
            least = np.finfo(np.float64).eps * eigenvalues[-1]
            self._P = np.asfortranarray((vectors / np.maximum(eigenvalues, least)) @ vectors.T)
        self._theta = _symmetric_product(self._P, self._c)
        self._theta += _symmetric_product(self._P, self._c - _symmetric_product(self._B, self._theta))


class WarmStartedRidge:
    """The ridge fit of many mixed rows that come and go, iterated from the last fit when it is next asked for.

    It is a fit from scratch, to the tolerance of one (`fit`); the rows are kept as they are, so nothing wears out.

    Args:
        X: the rows the fit begins with, (n, d + m).
        y: their targets, (n, k).
        alpha: penalty, > 0.
        start: a line near their fit, or None.
    """

    def __init__(self, X: MixedRows, y: Array, alpha: float, *, start: Linear | None = None) -> None:
        self.alpha = alpha
        self._X, self._y = X, y
        self._stays = np.ones(len(y), dtype=bool)
        self._coming: list[tuple[MixedRows, Array]] = []
        self._line, self._current = start, False
        self._foreign = False

    @property
    def line(self) -> Linear:
        """The current fit: coef (d + m, k) and intercept (k,), in the units of y."""
        if self._line is None or not self._current:
            self._gather()
            if not self._stays.all():
                rows = np.flatnonzero(self._stays)
                self._X, self._y, self._stays = self._X[rows], self._y[rows], self._stays[rows]
            self._line = fit(self._X, self._y, self.alpha, start=self._line)
            self._current = True
        return self._line

    @property
    def worn(self) -> bool:
        """True if a row was to be removed that is not there."""
        return self._foreign

    def suits(self, n: int) -> bool:
        """True if n rows are better kept up to date like this than by a new solver."""
        return n > KERNEL_AT_MOST // 2  # a kernel costs n^3 to begin

    def add(self, x: Row, y: Array) -> None:
        """Add a row with its targets, (k,)."""
        self._coming.append((x, y))
        self._current = False

    def remove(self, x: Row, y: Array) -> None:
        """Remove a row that was added before with the same targets; without such a row the solver is `worn`."""
        self._gather()
        same = equal_rows(self._X, x, np.flatnonzero(self._stays & (self._y == y).all(axis=1)))
        self._stays[same[:1]] = False
        self._foreign = self._foreign or not len(same)
        self._current = False

    def _gather(self) -> None:
        """Put the rows that came below the others."""
        if self._coming:
            rows, targets = zip(*self._coming, strict=True)
            self._X, self._y = stacked([self._X, *rows]), np.concatenate([self._y, targets])
            self._stays = np.append(self._stays, np.ones(len(rows), dtype=bool))
            self._coming = []


def _symmetric_product(A: Array, right: Array) -> Array:
    """A right, (m, k), of a symmetric A whose lower triangle counts."""
    from scipy.linalg import blas

    return np.stack([blas.dsymv(1.0, A, column, lower=1) for column in right.T], axis=1)


def _plus_squares(A: Array, rows: Array, weights: Array) -> Array:
    """A + sum of w z z' over rows, in the place of A; of both the lower triangle."""
    from scipy.linalg import blas

    for sign in (1.0, -1.0):
        chosen = sign * weights > 0
        if chosen.any():
            scaled = rows[chosen] * np.sqrt(sign * weights[chosen])[:, None]
            A = blas.dsyrk(sign, scaled.T, beta=1.0, c=A, lower=1, overwrite_c=1)
    return A
