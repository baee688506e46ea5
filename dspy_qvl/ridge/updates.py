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

With fewer rows than columns the same is done with the kernel, K = Z Z' of the rows z = x - shift:

    a = P (y - b 1),    b = 1'P y / 1'P 1,    P = (K + alpha I)^-1,    coef = Z'a

P gains a row and a column when a text comes (bordering), and loses them when it goes; K is the truth.

Source: Sherman & Morrison (1950); Golub & Van Loan, Matrix Computations, 2.1.4; Engel et al. (2004), Kernel RLS.
"""

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.ridge.line import Linear
from dspy_qvl.ridge.moments import Moments, gather, rough_mean
from dspy_qvl.vectors import Array, Rows, slices

Row = NDArray[np.float32] | Array

AT_MOST = 1000  # rows between two factorisations
GATHERED = 32  # rows that B and P take at once: a product of many rows costs little more than that of one
LEFT = 0.01  # 1 - leverage of a row below which its going is a matter for the sums, not for rank one
DRIFT = 1e-11  # |c - B theta| / |c| that asks for a factorisation
WORN = 1e4  # times the spread of the rows: what sums once held more of than this has cost the rest its last digits
KERNEL_AT_MOST = 4000  # rows whose kernel and its inverse, n^2 float64 each, are kept


def begin(X: Rows, y: Array, alpha: float) -> "RecursiveRidge | RecursiveKernelRidge | None":
    """An incremental solver for the fit of rows, (n, d) with targets (n, k).

    None where both rows and columns are many: a fit from scratch is cheaper there.
    """
    n, d = X.shape
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
        """Add a row, (d,), with its targets, (k,)."""
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


class RecursiveKernelRidge:
    """The ridge fit of rows that come and go, fewer than they have columns; equal to one from scratch to 1e-10.

    Args:
        X: the rows the fit begins with, (n, d). The shift, about their mean, stays.
        y: their targets, (n, k).
        alpha: penalty, > 0.
    """

    def __init__(self, X: Rows, y: Array, alpha: float) -> None:
        n, d = X.shape
        self.alpha = alpha
        self._shift = X.mean(axis=0, dtype=np.float64).astype(np.float32).astype(np.float64)
        self._X = np.empty((n + n // 8 + 64, d), dtype=X.dtype)
        self._X[:n] = X
        self._y = y.copy()
        self._K = np.empty((len(self._X), len(self._X)))
        for columns in slices(d, max(1, 2**23 // n)):
            block = X[:, columns] - self._shift[columns]
            self._K[:n, :n] = block @ block.T + (self._K[:n, :n] if columns.start else 0.0)
        self._P = np.empty_like(self._K)
        self._n = n
        self._largest = float(self._K.diagonal()[:n].max())  # squared distance from the shift that a row ever had
        self._foreign: bool = False
        self._factorise()

    @property
    def line(self) -> Linear:
        """The current fit: coef (d, k) and intercept (k,), in the units of y."""
        n, P = self._n, self._P[: self._n, : self._n]
        pulled, ones = P @ self._y, P.sum(axis=1)
        b = pulled.sum(axis=0) / ones.sum()
        a = pulled - np.outer(ones, b)
        step = P @ (self._y - b - self._K[:n, :n] @ a - self.alpha * a)  # one step of refinement
        change = (a + step).sum(axis=0) / ones.sum()  # a sums to zero
        a, b = a + step - np.outer(ones, change), b + change
        coef = np.concatenate([self._X[:n, columns].T.astype(np.float64) @ a for columns in slices(self._X.shape[1])])
        coef -= np.outer(self._shift, a.sum(axis=0))
        return Linear(coef, b - self._shift @ coef)

    @property
    def worn(self) -> bool:
        """True if K has lost digits to rows that are gone, or a row was to be removed that is not there."""
        K = self._K[: self._n, : self._n]
        spread = float((np.trace(K) - K.sum() / self._n) / self._n)
        return self._foreign or self._largest > WORN * (spread + self.alpha)

    def suits(self, n: int) -> bool:
        """True if n rows are better kept up to date like this than fitted from scratch."""
        return bool(n <= self._X.shape[1]) and n <= KERNEL_AT_MOST

    def add(self, x: Row, y: Array) -> None:
        """Add a row, (d,), with its targets, (k,)."""
        if self._n == len(self._X):
            self._grow()
        n = self._n
        self._X[n], self._y = x, np.concatenate([self._y, y[None]])
        z = np.asarray(self._X[n], dtype=np.float64) - self._shift
        for rows in slices(n + 1, 256):
            self._K[rows, n] = self._K[n, rows] = (self._X[rows] - self._shift) @ z
        self._largest = max(self._largest, float(self._K[n, n]))
        self._n += 1
        self._n_since += 1
        P, k = self._P[:n, :n], self._K[:n, n]
        u = P @ k
        left = self._K[n, n] + self.alpha - float(k @ u)
        if left < LEFT * self.alpha or self._n_since >= AT_MOST:  # by rounding alone: it is at least alpha
            self._factorise()
            return
        for rows in slices(n, 256):
            P[rows] += np.multiply.outer(u[rows] / left, u)
        self._P[:n, n] = self._P[n, :n] = -u / left
        self._P[n, n] = 1 / left

    def remove(self, x: Row, y: Array) -> None:
        """Remove a row that was added before with the same targets; without such a row the solver is `worn`."""
        n = self._n
        same = np.flatnonzero((self._X[:n] == x).all(axis=1) & (self._y == y).all(axis=1))
        if not len(same):  # what makes its columns gave others this time
            self._foreign = True
            return
        row, last = int(same[0]), n - 1
        for matrix in (self._K, self._P):  # the last row takes its place, so that it can go from the end
            matrix[[row, last], :n] = matrix[[last, row], :n]
            matrix[:n, [row, last]] = matrix[:n, [last, row]]
        self._X[row], self._y[row] = self._X[last], self._y[last]
        self._y = self._y[:last]
        self._n = last
        self._n_since += 1
        v, p = self._P[:last, last].copy(), self._P[last, last]
        if self._n_since >= AT_MOST:
            self._factorise()
            return
        for rows in slices(last, 256):
            self._P[rows, :last] -= np.multiply.outer(v[rows] / p, v)

    def _grow(self) -> None:
        n, more = self._n, len(self._X) + len(self._X) // 8 + 64
        X, K, P = np.empty((more, self._X.shape[1]), self._X.dtype), np.empty((more, more)), np.empty((more, more))
        X[:n], K[:n, :n], P[:n, :n] = self._X[:n], self._K[:n, :n], self._P[:n, :n]
        self._X, self._K, self._P = X, K, P

    def _factorise(self) -> None:
        """Make P anew from K."""
        n = self._n
        system = self._K[:n, :n] + self.alpha * np.eye(n)
        self._P[:n, :n] = np.linalg.inv((system + system.T) / 2)
        self._n_since = 0


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
