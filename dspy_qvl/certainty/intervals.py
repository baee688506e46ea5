"""Intervals that a new score lies in with a stated confidence 1 - a: jackknife+, and CV+ of many rows.

With mu_-i the fit without row i, r_i = y_i - mu_-i(x_i) and n rows, the interval of a row x has the ends

    lower = the floor(a (n + 1))-th smallest of    mu_-i(x) - |r_i|
    upper = the floor(a (n + 1))-th largest of     mu_-i(x) + |r_i|

(`jackknife_plus`). Nothing is refitted (`ridge/groups.py`). With groups a row is left out together with its group.
Beyond 4,000 rows there are 10 folds of whole groups, and mu_-i is the fit without the fold of i (CV+).

Such intervals are of nearly one width, too narrow for texts unlike the rated ones and too wide for the others. Those of
the learner (`intervals_of`) have residuals on the scale of their spread, sigma = (1 + v)^(1/4), v the variance of a
value (`ridge/posterior.py`): |r_i| becomes |r_i| sigma_-i(x) / sigma_-i(x_i). If the ridge model held, the spread of
residuals would be (1 + v)^(1/2); with rated texts it grows more slowly, about as its root. sigma is made of the columns
alone and leaves out what mu leaves out, so that the guarantee stands as it is.

The guarantee, for any model: a new score lies inside with probability at least

    1 - 2a                                          jackknife+
    1 - 2a - min(2 (1 - 1/K) / (n/K + 1), (1 - K/n) / (K + 1))     CV+ with K folds of n/K rows

if the rows and the new one are exchangeable, and if columns, weights and penalty were not chosen on these rows. Usually
it is near 1 - a. Where penalty and weights were chosen on the same rows nothing is proved; that is covered by
measurement (tests/benchmarks/coverage.py). To leave out whole groups promises less: groups are exchangeable then, not
rows; they differ in size, and a new row may belong to a known group. Beyond 4,000 rows sigma leaves out a row alone and
not its fold, and is an upper bound where columns are sparse, so that the guarantee is approximate.

Source: Barber, Candès, Ramdas & Tibshirani (2021), Predictive inference with the jackknife+, Annals of Statistics 49.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl import ridge
from dspy_qvl.errors import InputError, check_confidence
from dspy_qvl.fitting import check_alpha, make_folds
from dspy_qvl.ridge import EXACT, Linear, Posterior, Shifts, WithoutGroups, posterior_of
from dspy_qvl.vectors import Array, Matrix, MixedRows, slices

FOLDS = 10
DIGITS = 16  # binary digits of a usual residual that an end is rounded to
AT_ONCE = 256  # new rows at most whose ends are worked out together
CANDIDATES = 2**20  # the most of these rows times learned rows


def jackknife_plus(
    X: Matrix, y: Array, alpha: float, new: Matrix, confidence: float, groups: Sequence[int] | None = None
) -> tuple[Array, Array]:
    """The jackknife+ intervals of ridge regression, as published, without refitting.

    The ends are not rounded, so their last digits depend on the batch, as those of `intervals_of` do not.

    Args:
        X: learned rows, (n, d); at most 4,000 if they have sparse columns.
        y: their targets, (n,).
        alpha: penalty, > 0, in units of X squared.
        new: rows to give intervals of, (m, d).
        confidence: 1 - a, in (0, 1).
        groups: the group of each learned row, numbers; None where every row is one of its own.

    Returns:
        The lower and the upper ends, (m,) each, in the units of y; infinite where a (n + 1) < 1.

    Raises:
        InputError: a confidence or a penalty that cannot be used, arrays that do not fit each other, numbers that are
            not finite, or more than 4,000 rows with sparse columns.
    """
    _check(X, y, new, groups)
    alpha = check_alpha(alpha, "alpha")
    if not ridge.has_leave_one_out(X):
        raise InputError(f"jackknife_plus takes at most {EXACT:,} rows with sparse columns, but got {len(y):,}.")
    rank, members = _rank(confidence, len(y)), np.arange(len(y)) if groups is None else np.asarray(groups)
    posterior = posterior_of(X, y, alpha)
    without, values = WithoutGroups(X, posterior, members), ridge.predict(new, posterior.line)
    offsets = np.full((len(new), 2), (-math.inf, math.inf))
    sizes = np.nan_to_num(np.abs(without.residuals), nan=np.inf)
    for rows in _parts(len(new) if rank else 0, len(y)):
        offsets[rows] = _ends(without.many(new[rows]).values[:, without.column], sizes, rank)
    return values + offsets[:, 0], values + offsets[:, 1]


@dataclass(frozen=True, eq=False)
class Intervals:
    """The intervals around the values of one fit; everything that does not depend on a new row is worked out.

    Attributes:
        residuals: of each learned row under the fit without its group or fold, (n,), in the units of y; NaN where that
            leaves nothing to fit.
        variances: v of each learned row without its group, (n,); beyond 4,000 rows without itself alone, and of rows
            with sparse columns an upper bound then.
        exact: True for the jackknife+, False for CV+.
    """

    residuals: Array
    variances: Array
    exact: bool
    _without: "WithoutGroups | _WithoutFolds | None"  # None where all rows are one group
    _scaled: Array  # |r_i| / sigma_-i(x_i), (n,); of CV+ descending
    _column: NDArray[np.intp]  # of these rows, where the shifts of their groups stand, (n,)
    _step: float  # what ends are rounded to multiples of

    def offsets(self, X: Matrix, confidence: float) -> Array:
        """The ends of the interval of each row less its value, (m, d) -> (m, 2), in the units of y.

        Rounded to about five digits of a usual residual; the same bits for a row in any batch. The value lies between
        the ends, as a rule.

        Args:
            X: rows, (m, d).
            confidence: 1 - a, in (0, 1): 0.9 for an interval that nine in ten scores lie in.

        Returns:
            (m, 2); minus infinity and infinity where there are too few rows for such a confidence (a (n + 1) < 1, so
            0.9 needs 9 rows), or all rows are one group.

        Raises:
            InputError: a confidence that is not between 0 and 1.
        """
        rank, out = _rank(confidence, len(self._scaled)), np.full((len(X), 2), (-math.inf, math.inf))
        without = self._without
        if rank == 0 or without is None:
            return out
        for rows in _parts(len(X), len(self._scaled)):
            some = X[rows]
            shifts = without.many(some)
            ends = self._ends(shifts, rank)
            off = _reach(shifts, ends)[:, None]
            lowest, highest = self._rounded(ends - off), self._rounded(ends + off)
            for row in np.flatnonzero((lowest != highest).any(axis=1)):
                alone = without.alone(some[row : row + 1] if isinstance(some, MixedRows) else some[row])
                lowest[row] = self._rounded(self._ends(alone, rank))[0]
            out[rows] = np.sort(lowest, axis=1)  # below a confidence of .5 the ends may cross
        return out

    def _ends(self, shifts: Shifts, rank: int) -> Array:
        sigma = _sigma(shifts.variances)
        if self.exact:
            values = shifts.values
            if len(self._column) > values.shape[1]:
                values, sigma = values[:, self._column], sigma[:, self._column]
            return _ends(values, self._scaled * sigma, rank)
        # All residuals have one factor, so only those near the one of this rank can be at an end.
        spread = 2.001 * float(np.abs(shifts.values).max() / sigma.min()) + self._step
        middle = self._scaled[rank - 1]
        first, last = np.searchsorted(-self._scaled, [-middle - spread, -middle + spread], side="right")
        near = slice(first, max(last, rank))
        return _ends(shifts.values[:, self._column[near]], self._scaled[near] * sigma, rank - int(first))

    def _rounded(self, ends: Array) -> Array:
        return np.asarray(np.round(ends / self._step) * self._step) + 0.0


def intervals_of(
    X: Matrix, y: Array, alpha: float, *, groups: Sequence[int], posterior: Posterior | None = None
) -> Intervals:
    """The intervals of a ridge fit: jackknife+ of up to 4,000 rows, CV+ of more.

    Args:
        X: the learned rows as the fit saw them, (n, d).
        y: their scores, (n,).
        alpha: its penalty.
        groups: the group of each row, numbers; copies of a text share one.
        posterior: that of the fit, where it is at hand; it is then not worked out again.
    """
    posterior, members = posterior or posterior_of(X, y, alpha), np.asarray(groups)
    exact = len(y) <= EXACT
    if not exact and (members == members[0]).all():  # none can be left out
        nothing = np.full(len(y), np.nan)
        return Intervals(nothing, -nothing, exact, None, nothing, np.zeros(len(y), dtype=np.intp), 1.0)
    without = WithoutGroups(X, posterior, members) if exact else _WithoutFolds(X, y, alpha, members, posterior)
    sizes = np.abs(without.residuals)
    scaled = np.nan_to_num(sizes / _sigma(without.variances), nan=np.inf)
    order = np.arange(len(y)) if exact else np.argsort(-scaled, kind="stable")
    known = sizes[np.isfinite(sizes)]
    usual = float(np.median(known)) if len(known) else 0.0
    step = math.ldexp(1.0, math.frexp(usual or posterior.noise)[1] - DIGITS)
    return Intervals(without.residuals, without.variances, exact, without, scaled[order], without.column[order], step)


class _WithoutFolds:
    """The fits without each of K folds of whole groups, with the methods of `WithoutGroups`."""

    def __init__(self, X: Matrix, y: Array, alpha: float, groups: NDArray[Any], posterior: Posterior) -> None:
        members, line = groups.tolist(), posterior.line
        folds = make_folds(members, min(FOLDS, len(set(members))), np.random.default_rng(0))
        self.residuals, self.column = np.empty(len(y)), np.empty(len(y), dtype=np.intp)
        coefs = np.empty((X.shape[1], len(folds)))
        intercepts = np.empty(len(folds))
        for number, fold in enumerate(folds):
            seen = np.setdiff1d(np.arange(len(y)), fold)
            without = ridge.fit(X[seen], y[seen], alpha, start=line)
            self.residuals[fold] = y[fold] - ridge.predict(X[fold], without)
            self.column[fold] = number
            coefs[:, number] = without.coef - line.coef
            intercepts[number] = without.intercept - line.intercept
        self._line, self._posterior = Linear(coefs, intercepts), posterior
        h = posterior.loo.leverages if posterior.loo else posterior.leverages(X)  # type: ignore[arg-type]
        self.variances = h / np.maximum(1 - h, np.finfo(np.float64).tiny)

    def many(self, X: Matrix) -> Shifts:
        lowest, highest = self._posterior.bounds(X)
        return Shifts(self._values(X), (lowest[:, None] + highest[:, None]) / 2, np.zeros(len(X)), highest - lowest)

    def alone(self, x: Matrix) -> Shifts:
        variance = self._posterior.fit_variance(x)
        return Shifts(
            self._values(x if isinstance(x, MixedRows) else x[None]), np.array([[variance]]), *np.zeros((2, 1))
        )

    def _values(self, X: Matrix) -> Array:
        coefs, intercepts = self._line
        if isinstance(X, MixedRows):
            return np.asarray(X @ coefs + intercepts)
        return np.stack(
            [ridge.predict(X, Linear(*of_fold)) for of_fold in zip(coefs.T, intercepts, strict=True)], axis=1
        )


def _parts(m: int, n: int) -> Iterator[slice]:
    """Slices of m new rows, each of which has n candidates for an end."""
    return slices(m, max(16, min(AT_ONCE, CANDIDATES // n)))


def _check(X: Matrix, y: Array, new: Matrix, groups: Sequence[int] | None) -> None:
    """Refuse arrays that do not fit each other.

    Raises:
        InputError: says what came, and what is needed.
    """
    for what, rows in (("X", X), ("new", new)):
        if len(getattr(rows, "shape", ())) != 2:
            raise InputError(f"{what} must be an array of rows, (n, d), but got {type(rows).__name__}.")
    if not len(X):
        raise InputError("X has no rows; give at least one.")
    if X.shape[1] != new.shape[1]:
        raise InputError(f"new has {new.shape[1]} columns, but X has {X.shape[1]}; give rows of the same columns.")
    for what, column in (("y", y), ("groups", groups)):
        if column is not None and np.shape(column) != (len(X),):
            raise InputError(f"{what} has shape {np.shape(column)}, but X has {len(X)} rows; give one entry a row.")
    if not all(np.isfinite(numbers).all() for rows in (X, new, y) for numbers in _numbers(rows)):
        raise InputError("X, y and new must be finite, but one of them holds NaN or infinity.")


def _numbers(rows: Any) -> list[Any]:
    return [rows.dense, rows.sparse.data] if isinstance(rows, MixedRows) else [rows]


def _rank(confidence: float, n: int) -> int:
    """floor(a (n + 1)), the rank of the ends from outside, of n rows; 0 where they are infinite.

    Raises:
        InputError: a confidence that is not between 0 and 1.
    """
    return min(n, math.floor((1 - check_confidence(confidence)) * (n + 1) + 1e-9))


def fewest(confidence: float) -> int:
    """The fewest rows whose intervals of a confidence 1 - a are finite: 9 for 0.9."""
    return math.ceil(1 / (1 - confidence) - 1 - 1e-9)


def _sigma(variances: Array) -> Array:
    """(1 + v)^(1/4)."""
    sigma = 1 + variances
    return np.sqrt(np.sqrt(sigma, out=sigma), out=sigma)


def _ends(shifts: Array, reach: Array, rank: int) -> Array:
    """The rank-th smallest of shift - reach and the rank-th largest of shift + reach of each row, (m, n) -> (m, 2)."""
    lower, upper, last = shifts - reach, shifts + reach, shifts.shape[1] - rank
    lower.partition(rank - 1, axis=1)
    upper.partition(last, axis=1)
    return np.stack([lower[:, rank - 1], upper[:, last]], axis=1)


def _reach(shifts: Shifts, ends: Array) -> Array:
    """How far another order of summation may put an end, (m,)."""
    finite = np.where(np.isfinite(ends), np.abs(ends), 0.0)
    size = finite.max(axis=1) + np.abs(shifts.values).max(axis=1)  # at least |r| sigma of the rows at the end
    relative = shifts.off_variances / (1 + shifts.variances.min(axis=1))  # of sigma four times less
    return np.asarray(shifts.off_values + size * (relative / 2 + 16 * 2.0**-53))
