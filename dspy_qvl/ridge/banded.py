"""Weights of blocks of columns, chosen together with the penalty by cross-validation (banded ridge regression).

    value = sum over blocks b of  c_b x_b w_b + intercept,       one penalty on all w_b

Weighing a block more is penalising its coefficients less: banded ridge regression. The weights of a block enter a
Gram matrix, and a kernel, as plain factors,

    G_c = diag(c) G diag(c)   (n > d: from the moments of each fold)       K_c = sum_b c_b^2 K_b   (n <= d)

so the rows are read once, whatever the number of weightings. All weightings of a fold are solved side by side, for
every penalty at once, in a Krylov space of a few dozen products (Lanczos): where that has not converged, the penalty
is so small that stopping early acts as a larger one. The figures choose between weightings; the fit that is kept is
solved exactly.

Source: Dupré la Tour et al. (2022), Feature-space selection with banded ridge regression; Golub & Van Loan, 10.1.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dspy_qvl.ridge.moments import Folds, gather, rough_mean
from dspy_qvl.vectors import Array, Rows, Vectors

WIDE = 16  # columns from which a block is wide: it shares its variance among many coefficients
LEVELS = {True: (0.5, 1.0, 1.5, 2.5), False: (0.1, 0.25, 0.5)}  # of wide blocks, and of narrow ones
AT_ONCE = 25  # weightings that are all tried; with more, one block after the other
ENOUGH = 3000  # rows that say as much about weights as more would
FEW = 20  # rows below which cross-validation has nothing to say about weights
STANDARD_ERRORS = 2.0
TIE = 1e-5  # relative difference of errors that rounding to float32 can make
STEPS = 64
NO_SPREAD = 1e-60  # of the first block's variance
WHOLE = 1e-5  # relative length of a Krylov vector below which its space is whole


@dataclass(frozen=True)
class Weighting:
    """The weights of blocks, and the share of the error that each block takes away.

    Attributes:
        weights: one for each block, the first one's is 1, in units that give all blocks one variance.
        adds: for each block but the first, the share of the cross-validated error that it takes away; NaN where
            there were too few rows to tell.
    """

    weights: tuple[float, ...]
    adds: tuple[float, ...]


def choose_weights(
    X: Rows,
    blocks: Sequence[slice],
    y: Array,
    alphas: Sequence[float],
    folds: Folds,
    *,
    optional: bool,
    starts: Sequence[float] | None = None,
) -> Weighting:
    """The weights of blocks by cross-validation, each weighting at its best penalty.

    The smallest levels (.5 of the first block's standard deviation for a wide block, .1 for a narrow one) cost next
    to nothing where a block is useless. They stand until another weighting is better by two standard errors of the
    difference over the folds: with 30 ratings the best of 20 weightings is mostly the luckiest. Of many rows, 3,000
    drawn at random decide.

    Args:
        X: all columns, (n, d), block after block.
        blocks: the columns of each block.
        y: targets, (n,).
        alphas: penalties, each > 0.
        folds: the rows of each fold.
        optional: True if a block may get the weight 0.
        starts: the weight of each block that stands until another is better; None for the smallest levels.
    """
    usual = [LEVELS[width >= WIDE] for width in _widths(blocks)[1:]]
    levels = [((0.0,) if optional else ()) + choices for choices in usual]
    start = (1.0, *((choices[0] for choices in usual) if starts is None else starts[1:]))
    if len(y) < FEW:
        return Weighting(start, (np.nan,) * len(levels))
    if len(y) > ENOUGH:  # of each fold its share
        rng, share = np.random.default_rng(0), ENOUGH / len(y)
        drawn = [np.sort(rng.permutation(fold)[: max(1, round(len(fold) * share))]) for fold in folds]
        rows = np.sort(np.concatenate(drawn))
        X, y, folds = X[rows], y[rows], [np.searchsorted(rows, fold) for fold in drawn]
    spread = y.std()
    y = (y - y.mean()) / (spread if spread > 0 else 1.0)  # float32 must hold its squares, whatever the raters' scale
    weigher = Weigher(X, blocks, y, folds)
    tried: dict[tuple[float, ...], Array] = {}  # fold errors at the best penalty, (n_folds,)

    def best_of(weightings: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
        new = [weighting for weighting in dict.fromkeys(weightings) if weighting not in tried]
        if new:
            for weighting, errors in zip(new, weigher.errors(new, alphas), strict=True):
                tried[weighting] = errors[np.argmin(errors.mean(axis=1))]
        return min(weightings, key=lambda weighting: float(tried[weighting].mean()))

    grid = [(1.0, *rest) for rest in itertools.product(*levels)] if np.prod([*map(len, levels)]) <= AT_ONCE else []
    chosen = best_of([start, *grid])
    if not grid:
        for number, choices in enumerate(levels, start=1):
            chosen = best_of([chosen, *((*chosen[:number], level, *chosen[number + 1 :]) for level in choices)])
    gain = tried[start] - tried[chosen]
    least = max(STANDARD_ERRORS * gain.std(ddof=1) / np.sqrt(len(gain)), TIE * tried[start].mean())
    if gain.mean() <= least:
        chosen = start
    without = [(*chosen[:number], 0.0, *chosen[number + 1 :]) for number in range(1, len(chosen))]
    best_of([chosen, *without])
    error = tried[chosen].mean()
    return Weighting(chosen, tuple(float(1 - error / tried[weighting].mean()) for weighting in without))


class Weigher:
    """Fold errors of weightings of blocks; the rows are read once, when it is made.

    Args:
        X: all columns, (n, d), block after block.
        blocks: the columns of each block.
        y: targets, (n,).
        folds: the rows of each fold; disjoint, together all n rows, at least two folds.
    """

    def __init__(self, X: Rows, blocks: Sequence[slice], y: Array, folds: Folds) -> None:
        self._blocks, self._y, self._folds = blocks, y, folds
        n, d = X.shape
        # Every block with variance 1, and the penalty with it: float32 must hold their squares.
        self._variance = _spreads(X, blocks[:1])[0] or 1.0
        scales = block_scales(X, blocks) / np.sqrt(self._variance)
        X = (X * np.repeat(scales, _widths(blocks))).astype(np.float32)
        if n > d:
            targets = y[:, None]
            self._parts = gather(X, targets, rough_mean(X, targets), folds=folds, kind=np.float32)
            self._whole = sum(self._parts[1:], self._parts[0])
        else:
            self._parts = []
            centred = X - X.mean(axis=0)
            self._kernels = np.stack([centred[:, block] @ centred[:, block].T for block in blocks])  # (n_blocks, n, n)

    def errors(self, weightings: Sequence[Sequence[float]], alphas: Sequence[float]) -> Array:
        """Mean squared error of every weighting and penalty on every fold.

        Args:
            weightings: for each, a weight >= 0 for every block, in units that give all blocks one variance.
            alphas: penalties, each > 0.

        Returns:
            (n_weightings, n_alphas, n_folds), in squared units of y.
        """
        factors = np.asarray(weightings, dtype=np.float64)  # (q, n_blocks)
        alphas = [alpha / self._variance for alpha in alphas]
        fold_errors = self._primal if self._parts else self._dual
        return np.stack([fold_errors(number, factors, alphas) for number in range(len(self._folds))], axis=2)

    def _primal(self, number: int, factors: Array, alphas: Sequence[float]) -> Array:
        part = self._parts[number]
        seen = self._whole - part
        gram, xy = seen.centred()
        single = gram.astype(np.float32)
        columns = np.repeat(factors.T, _widths(self._blocks), axis=0)  # the factor of every column, (d, q)
        scale = columns.astype(np.float32)
        solutions = krylov_path(lambda V: scale * (single @ (scale * V)), columns * xy, alphas)  # (d, q, n_alphas)
        coefs = (columns[:, :, None] * solutions).reshape(len(gram), -1).T[:, :, None]
        x_mean, y_mean = seen.means
        errors = part.mean_squared_errors(coefs, y_mean - np.einsum("d,mdk->mk", x_mean, coefs))
        return errors.reshape(len(factors), len(alphas))

    def _dual(self, number: int, factors: Array, alphas: Sequence[float]) -> Array:
        fold = self._folds[number]
        seen = np.setdiff1d(np.arange(len(self._y)), fold)
        squares = (factors**2).astype(np.float32)  # (q, n_blocks)
        inside = self._kernels[:, seen[:, None], seen]
        means = inside.mean(axis=2)  # (n_blocks, n_seen)
        inside = inside - means[:, :, None] - means[:, None, :] + means.mean(axis=1)[:, None, None]
        across = self._kernels[:, fold[:, None], seen] - means[:, None, :]
        target = self._y[seen] - self._y[seen].mean()

        def weighed(kernels: Vectors, V: Vectors) -> Vectors:
            """Sum over blocks of square x kernel x V, (m, n_seen) x (n_seen, q) -> (m, q)."""
            products = (kernel @ (V * square) for kernel, square in zip(kernels, squares.T, strict=True))
            return np.asarray(sum(products, np.zeros((), dtype=np.float32)))

        right = np.repeat(target[:, None], len(factors), axis=1)
        duals = krylov_path(lambda V: weighed(inside, V), right, alphas)  # (n_seen, q, n_alphas)
        duals -= duals.mean(axis=0)
        out = np.empty((len(factors), len(alphas)))
        for column in range(len(alphas)):
            values = weighed(across, duals[:, :, column].astype(np.float32)) + self._y[seen].mean()
            out[:, column] = ((values - self._y[fold][:, None]) ** 2).mean(axis=0)
        return out


def block_scales(X: Rows, blocks: Sequence[slice]) -> Array:
    """The factor that gives each block the total variance of the first one, (n_blocks,).

    1 where either has none, or next to none: float32 must hold the factor.
    """
    spreads = _spreads(X, blocks)
    usable = (spreads > NO_SPREAD * spreads[0]) & (spreads[0] > 0)
    scales: Array = np.ones(len(blocks))
    scales[usable] = np.sqrt(spreads[0] / spreads[usable])
    return scales


def _widths(blocks: Sequence[slice]) -> list[int]:
    return [block.stop - block.start for block in blocks]


def _spreads(X: Rows, blocks: Sequence[slice]) -> Array:
    """The total variance of every block, (n_blocks,)."""
    return np.array([X[:, block].var(axis=0, dtype=np.float64).sum() for block in blocks])


def krylov_path(apply: Callable[[Vectors], Vectors], b: Array, alphas: Sequence[float]) -> Array:
    """Solutions of (A_j + alpha I) x = b_j for every column j and every alpha, by Lanczos in float32.

    Args:
        apply: V -> (A_1 v_1, …, A_q v_q), (m, q) -> (m, q), each A_j symmetric and positive semi-definite.
        b: right-hand sides, (m, q).
        alphas: penalties, each > 0.

    Returns:
        (m, q, n_alphas).
    """
    from scipy.linalg import eigh_tridiagonal

    m, q = b.shape
    length = np.linalg.norm(b, axis=0)
    vector = (b / np.where(length > 0, length, 1.0)).astype(np.float32)
    before, off = np.zeros_like(vector), np.zeros(q, dtype=np.float32)
    vectors, diagonals, off_diagonals = [], [], []
    largest = np.zeros(q)
    for _ in range(min(STEPS, m)):
        vectors.append(vector)
        image = apply(vector) - off * before
        diagonal = np.einsum("mq,mq->q", vector, image)
        image -= diagonal * vector
        off = np.sqrt(np.einsum("mq,mq->q", image, image))
        largest = np.maximum(largest, diagonal)
        off[off <= WHOLE * largest] = 0.0
        diagonals.append(diagonal)
        off_diagonals.append(off)
        before, vector = vector, np.where(off > 0, image / np.where(off > 0, off, 1.0), 0.0).astype(np.float32)
        if not off.any():
            break
    space = np.stack(vectors)  # (n_steps, m, q)
    shifts = np.asarray(alphas, dtype=np.float64)
    solutions = np.empty((m, q, len(shifts)))
    for column in range(q):
        eigenvalues, rotation = eigh_tridiagonal(
            np.array([row[column] for row in diagonals], dtype=np.float64),
            np.array([row[column] for row in off_diagonals[:-1]], dtype=np.float64),
        )
        eigenvalues = np.maximum(eigenvalues, 0.0)
        small = rotation @ (rotation[0][:, None] * length[column] / (eigenvalues[:, None] + shifts))
        solutions[:, column] = space[:, :, column].T @ small
    return solutions
