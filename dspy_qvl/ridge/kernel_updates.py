"""A ridge fit of few rows kept up to date, row by row, by the kernel of the rows.

With K = Z Z' of the rows z = x - shift (`kept_rows.py`),

    a = P (y - b 1),    b = 1'P y / 1'P 1,    P = (K + alpha I)^-1,    coef = Z'a

P gains a row and a column when a text comes (bordering), and loses them when it goes; K is the truth, from which P is
made anew after 1,000 rows, and when it has drifted so far from K that a few steps of refinement do not mend it, as
with many rows of few columns.

Source: Golub & Van Loan, Matrix Computations, 2.1.4; Engel et al. (2004), Kernel RLS.
"""

import numpy as np

from dspy_qvl.ridge.kept_rows import KeptMixedRows, KeptRows, Row
from dspy_qvl.ridge.line import Linear
from dspy_qvl.vectors import Array, Matrix, MixedRows, slices

AT_MOST = 1000  # rows between two factorisations
LEFT = 0.01  # share of alpha in the pivot of a row that comes below which P is made anew
DRIFT = 1e-8  # relative change of coef by a step of refinement that asks for another; its square is beyond rounding
REFINEMENTS = 5  # steps after which P is made anew
WORN = 1e4  # times the spread of the rows: what K once held more of than this has cost the rest its last digits
KERNEL_AT_MOST = 4000  # rows whose kernel and its inverse, n^2 float64 each, are kept


class RecursiveKernelRidge:
    """The ridge fit of rows that come and go, fewer than they have columns; equal to one from scratch to 1e-10.

    Args:
        X: the rows the fit begins with, (n, d), dense or mixed. The shift, about the mean of dense columns, stays.
        y: their targets, (n, k).
        alpha: penalty, > 0.
    """

    def __init__(self, X: Matrix, y: Array, alpha: float) -> None:
        n, d = X.shape
        self.alpha = alpha
        self._most = KERNEL_AT_MOST if isinstance(X, MixedRows) else min(d, KERNEL_AT_MOST)
        self._rows = KeptMixedRows(X) if isinstance(X, MixedRows) else KeptRows(X)
        self._y = y.copy()
        size = n + n // 8 + 64
        self._K = np.empty((size, size))
        self._K[:n, :n] = self._rows.kernel()
        self._P = np.empty_like(self._K)
        self._n = n
        self._largest = float(self._K.diagonal()[:n].max())  # squared distance from the shift that a row ever had
        self._foreign: bool = False
        self._factorise()

    @property
    def line(self) -> Linear:
        """The current fit: coef (d, k) and intercept (k,), in the units of y."""
        a, b, sound = self._solved()
        if not sound and self._n_since:
            self._factorise()
            a, b, _ = self._solved()
        coef = self._rows.sum(a)
        coef -= np.outer(self._rows.shift, a.sum(axis=0))
        return Linear(coef, b - self._rows.shift @ coef)

    @property
    def worn(self) -> bool:
        """True if K has lost digits to rows that are gone, or a row was to be removed that is not there."""
        K = self._K[: self._n, : self._n]
        spread = float((np.trace(K) - K.sum() / self._n) / self._n)
        return self._foreign or self._largest > WORN * (spread + self.alpha)

    def suits(self, n: int) -> bool:
        """True if n rows are better kept up to date like this than fitted from scratch."""
        return n <= self._most

    def add(self, x: Row, y: Array) -> None:
        """Add a row with its targets, (k,)."""
        n = self._n
        if n == len(self._K):
            self._grow()
        self._y = np.concatenate([self._y, y[None]])
        self._K[: n + 1, n] = self._K[n, : n + 1] = self._rows.add(x)
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
        same = self._rows.equal(x, np.flatnonzero((self._y == y).all(axis=1)))
        if not len(same):  # what makes its columns gave others this time
            self._foreign = True
            return
        row, last = int(same[0]), n - 1
        for matrix in (self._K, self._P):  # the last row takes its place, so that it can go from the end
            matrix[[row, last], :n] = matrix[[last, row], :n]
            matrix[:n, [row, last]] = matrix[:n, [last, row]]
        self._rows.drop(row)
        self._y[row] = self._y[last]
        self._y = self._y[:last]
        self._n = last
        self._n_since += 1
        v, p = self._P[:last, last].copy(), self._P[last, last]
        if self._n_since >= AT_MOST:
            self._factorise()
            return
        for rows in slices(last, 256):
            self._P[rows, :last] -= np.multiply.outer(v[rows] / p, v)

    def _solved(self) -> tuple[Array, Array, bool]:
        """a, (n, k), and b, (k,), refined; and True if that took them to rounding, which with a good P is one step."""
        K, P = self._K[: self._n, : self._n], self._P[: self._n, : self._n]
        pulled, ones = P @ self._y, P.sum(axis=1)
        b = pulled.sum(axis=0) / ones.sum()
        a = pulled - np.outer(ones, b)
        for _ in range(REFINEMENTS):
            product = K @ a
            step = P @ (self._y - b - product - self.alpha * a)
            moved, length = (step * (K @ step)).sum(), (a * product).sum()  # squares of coef's change and its length
            change = (a + step).sum(axis=0) / ones.sum()  # a sums to zero
            a, b = a + step - np.outer(ones, change), b + change
            if moved <= DRIFT**2 * length:
                return a, b, True
        return a, b, False

    def _grow(self) -> None:
        n, more = self._n, self._n + self._n // 8 + 64
        K, P = np.empty((more, more)), np.empty((more, more))
        K[:n, :n], P[:n, :n] = self._K, self._P
        self._K, self._P = K, P

    def _factorise(self) -> None:
        """Make P anew from K."""
        n = self._n
        system = self._K[:n, :n] + self._K[:n, :n].T
        system /= 2
        system[np.arange(n), np.arange(n)] += self.alpha
        self._P[:n, :n] = np.linalg.inv(system)
        self._n_since = 0
