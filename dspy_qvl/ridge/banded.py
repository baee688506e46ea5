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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.ridge.moments import Folds, Moments, fold_numbers, gather, rough_mean
from dspy_qvl.vectors import Array, Matrix, MixedRows, Vector, Vectors, slices

WIDE = 16  # columns from which a block is wide: it shares its variance among many coefficients
LEVELS = {True: (0.5, 1.0, 1.5, 2.5), False: (0.1, 0.25, 0.5)}  # of wide blocks, and of narrow ones
AT_ONCE = 25  # weightings that are all tried; with more, one block after the other
ENOUGH = 3000  # rows that say as much about weights as more would
FEW = 20  # rows below which cross-validation has nothing to say about weights
POWERS = (0.0, 0.5, 1.0)  # of the inverse document frequencies
START_POWER = 0.5  # stands until another is better
FREQUENT = 1024  # columns that are in most rows: as dense ones they multiply faster
STANDARD_ERRORS = 2.0
TIE = 1e-5  # relative difference of errors that rounding to float32 can make
STEPS = (24, 32, 48, 64)  # products in a Krylov space after which errors are looked at; the last ends it
SIDE_BY_SIDE = 256  # at most about as many Krylov spaces at once
NEAR = 1.2  # times the lowest error of a weighting: penalties below that may turn out the best
SETTLED = 1e-4  # relative change of errors from one look to the next that ends the products
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
    power: float = 0.0


_Candidate = tuple[float, tuple[float, ...]]  # the power, and the weights of blocks


def choose_weights(
    X: Matrix,
    blocks: Sequence[slice],
    y: Array,
    alphas: Sequence[float],
    folds: Folds,
    *,
    optional: bool,
    starts: Sequence[float] | None = None,
    idf: Array | None = None,
    power: float = START_POWER,
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
    factors = None if idf is None else np.concatenate([np.ones(X.shape[1] - len(idf)), idf])
    power = power if factors is not None else 0.0
    if len(y) < FEW:
        return Weighting(start, (np.nan,) * len(levels), power)
    if len(y) > ENOUGH:  # of each fold its share
        rng, share = np.random.default_rng(0), ENOUGH / len(y)
        drawn = [np.sort(rng.permutation(fold)[: max(1, round(len(fold) * share))]) for fold in folds]
        rows = np.sort(np.concatenate(drawn))
        X, y, folds = X[rows], y[rows], [np.searchsorted(rows, fold) for fold in drawn]
    spread = y.std()
    y = (y - y.mean()) / (spread if spread > 0 else 1.0)  # float32 must hold its squares, whatever the raters' scale
    weighers: dict[float, Weigher] = {}
    tried: dict[_Candidate, Array] = {}  # fold errors at the best penalty, (n_folds,)

    def best_of(candidates: Sequence[_Candidate]) -> _Candidate:
        for power in dict.fromkeys(power for power, _ in candidates):
            if power not in weighers:
                weighers[power] = Weigher(_raised(X, factors, power), blocks, y, folds)
            new = [c for c in dict.fromkeys(candidates) if c[0] == power and c not in tried]
            if new:
                for candidate, errors in zip(new, weighers[power].errors([c[1] for c in new], alphas), strict=True):
                    tried[candidate] = errors[np.argmin(errors.mean(axis=1))]
        return min(candidates, key=lambda candidate: float(tried[candidate].mean()))

    def better_of(standing: _Candidate, other: _Candidate) -> _Candidate:
        gain = tried[standing] - tried[other]
        least = max(STANDARD_ERRORS * gain.std(ddof=1) / np.sqrt(len(gain)), TIE * tried[standing].mean())
        return other if gain.mean() > least else standing

    grid = [(1.0, *rest) for rest in itertools.product(*levels)] if np.prod([*map(len, levels)]) <= AT_ONCE else []
    best = best_of([(power, start), *((power, weights) for weights in grid)])
    if not grid:
        for number, choices in enumerate(levels, start=1):
            best = best_of([best, *((power, _with(best[1], number, level)) for level in choices)])
    chosen = better_of((power, start), best)
    if factors is not None:
        weights = chosen[1]
        near = [weights]
        for number, (block, choices) in enumerate(zip(blocks[1:], levels, strict=True), start=1):
            if (factors[block] != 1).any():
                near += [_with(weights, number, level) for level in choices]
        chosen = better_of(chosen, best_of([(other, w) for other in POWERS if other != power for w in near]))
    without = [(chosen[0], _with(chosen[1], number, 0.0)) for number in range(1, len(blocks))]
    best_of([chosen, *without])
    error = tried[chosen].mean()
    return Weighting(chosen[1], tuple(float(1 - error / tried[other].mean()) for other in without), chosen[0])


def _with(weights: tuple[float, ...], number: int, weight: float) -> tuple[float, ...]:
    return (*weights[:number], weight, *weights[number + 1 :])


def _raised(X: Matrix, factors: Array | None, power: float) -> Matrix:
    """Every column times a power of its factor."""
    return X.times(factors**power) if isinstance(X, MixedRows) and factors is not None and power else X


class Weigher:
    """Fold errors of weightings of blocks; the rows are read once, when it is made.

    Args:
        X: all columns, (n, d), block after block.
        blocks: the columns of each block.
        y: targets, (n,).
        folds: the rows of each fold; disjoint, together all n rows, at least two folds.
    """

    def __init__(self, X: Matrix, blocks: Sequence[slice], y: Array, folds: Folds) -> None:
        self._blocks, self._y, self._folds = blocks, y, folds
        n, d = X.shape
        # Every block with variance 1, and the penalty with it: float32 must hold their squares.
        self._variance = _spreads(X, blocks[:1])[0] or 1.0
        scales = block_scales(X, blocks) / np.sqrt(self._variance)
        self._parts: list[Moments] = []
        if isinstance(X, np.ndarray) and n > d:
            X = (X * self._each_column(scales)).astype(np.float32)
            targets = y[:, None]
            self._parts = gather(X, targets, rough_mean(X, targets), folds=folds, kind=np.float32)
            self._whole = sum(self._parts[1:], self._parts[0])
        else:
            self._kernels = [_kernel(_columns(X, block), scale) for block, scale in zip(blocks, scales, strict=True)]

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
        if self._parts:
            return np.stack([self._primal(number, factors, alphas) for number in range(len(self._folds))], axis=2)
        some = slices(len(self._folds), max(1, SIDE_BY_SIDE // len(factors)))
        return np.concatenate([self._dual(self._folds[part], factors, alphas) for part in some], axis=2)

    def _primal(self, number: int, factors: Array, alphas: Sequence[float]) -> Array:
        part = self._parts[number]
        seen = self._whole - part
        gram, xy = seen.centred()
        single = gram.astype(np.float32)
        columns = self._each_column(factors.T)  # the factor of every column, (d, q)
        scale = columns.astype(np.float32)
        vectors: list[Vectors] = []

        def apply(V: Vectors) -> Vectors:
            vectors.append(V)
            return scale * (single @ (scale * V))

        (small,) = krylov_path(apply, columns * xy, alphas, STEPS[-1:])
        solutions = combined(vectors, small)  # (d, q, n_alphas)
        coefs = (columns[:, :, None] * solutions).reshape(len(gram), -1).T[:, :, None]
        x_mean, y_mean = seen.means
        errors = part.mean_squared_errors(coefs, y_mean - np.einsum("d,mdk->mk", x_mean, coefs))
        return errors.reshape(len(factors), len(alphas))

    def _dual(self, folds: Folds, factors: Array, alphas: Sequence[float]) -> Array:
        """As `errors`, of some folds side by side: of n coordinates those of a fold's own rows are held at 0."""
        n, n_folds, q = len(self._y), len(folds), len(factors)
        fold_of = fold_numbers(folds, n)
        seen = fold_of[:, None] != np.arange(n_folds)  # (n, n_folds)
        means = self._y @ seen / seen.sum(axis=0)
        share = (seen / seen.sum(axis=0)).astype(np.float32)
        squares = np.tile(factors**2, (n_folds, 1)).T.astype(np.float32)  # (n_blocks, n_folds q)
        values: list[Vectors] = []  # of each Krylov vector the values of every row under its fold's, (n, q)

        def apply(V: Vectors) -> Vectors:
            products = (kernel(V * square) for kernel, square in zip(self._kernels, squares, strict=True))
            image = np.asarray(sum(products)).reshape(n, n_folds, q)
            image -= np.einsum("nfq,nf->fq", image, share)
            values.append(image[np.arange(n), fold_of])
            image *= seen[:, :, None]
            return image.reshape(n, -1)

        target = (self._y[:, None] - means) * seen
        errors = np.full((q, len(alphas), n_folds), np.nan)
        for small in krylov_path(apply, np.repeat(target, q, axis=1), alphas, STEPS):
            before, errors = errors, np.empty_like(errors)
            for number, fold in enumerate(folds):
                guesses = combined([each[fold] for each in values], small[:, number * q : (number + 1) * q])
                residuals = guesses - (self._y[fold] - means[number])[:, None, None]
                errors[:, :, number] = (residuals**2).mean(axis=0)
            lowest = errors.mean(axis=2).min(axis=1)[:, None]
            near = errors.mean(axis=2) <= NEAR * lowest
            if (np.abs(errors - before).max(axis=2) <= SETTLED * lowest)[near].all():
                break
        return errors

    def _each_column(self, factors: Array) -> Array:
        """The factor of every column from those of the blocks, (n_blocks, …) -> (d, …)."""
        out = np.zeros((max(block.stop for block in self._blocks), *factors.shape[1:]))
        for block, factor in zip(self._blocks, factors, strict=True):
            out[block] = factor
        return out


Product = Callable[[Vectors], Vectors]


def _kernel(columns: Any, scale: float) -> Product:
    """The product with the inner products of rows of a block, dense or sparse, times a factor: (n, q) -> (n, q).

    They are centred for vectors on each side that sum to 0.
    """
    n, k = columns.shape
    if not isinstance(columns, np.ndarray):
        kernel = sparse_kernel(columns * scale)
        return lambda V: kernel @ V
    centred = (columns * scale).astype(np.float32)
    centred -= centred.mean(axis=0)
    if 2 * k < n:
        return lambda V: centred @ (centred.T @ V)
    kernel = centred @ centred.T
    return lambda V: kernel @ V


def sparse_kernel(S: Any) -> Vectors:
    """S S' up to a centring of S, (n, m) CSR -> (n, n) float32.

    The columns of most rows are multiplied as dense ones, around their means; the others as sparse ones.
    """
    S = S.astype(np.float32)
    frequent = np.argsort(-np.bincount(S.indices, minlength=S.shape[1]), kind="stable")[:FREQUENT]
    dense = S[:, frequent].toarray()
    dense -= dense.mean(axis=0)
    rare = np.ones(S.shape[1], dtype=np.float32)
    rare[frequent] = 0.0
    S.data *= rare[S.indices]
    S.eliminate_zeros()
    kernel: Vectors = (S @ S.T).toarray()
    kernel += dense @ dense.T
    return kernel


def block_scales(X: Matrix, blocks: Sequence[slice]) -> Array:
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


def _columns(X: Matrix, block: slice) -> Any:
    """The columns of a block, dense or sparse."""
    if not isinstance(X, MixedRows):
        return X[:, block]
    d = X.dense.shape[1]
    return X.dense[:, block] if block.stop <= d else X.sparse[:, block.start - d : block.stop - d]


def _spreads(X: Matrix, blocks: Sequence[slice]) -> Array:
    """The total variance of every block, (n_blocks,)."""
    return np.array([_spread(_columns(X, block)) for block in blocks])


def _spread(columns: Any) -> float:
    """The variance of every column, summed: of sparse ones as mean |x|^2 - |mean|^2."""
    if isinstance(columns, np.ndarray):
        return float(columns.var(axis=0, dtype=np.float64).sum())
    n, m = columns.shape
    numbers = columns.data.astype(np.float64)
    means = np.bincount(columns.indices, numbers, minlength=m) / n
    return max(float(numbers @ numbers / n - means @ means), 0.0)


def krylov_path(
    apply: Product, b: Array, alphas: Sequence[float], steps: Sequence[int] = STEPS
) -> Iterator[Array]:
    """Solutions of (A_j + alpha I) x = b_j for every column j and every alpha, by Lanczos in float32.

    Args:
        apply: V -> (A_1 v_1, …, A_q v_q), (m, q) -> (m, q), each A_j symmetric and positive semi-definite.
        b: right-hand sides, (m, q).
        alphas: penalties, each > 0.
        steps: the numbers of products after which solutions are wanted, ascending; the last ends the products, as
            does a space that holds the solutions.

    Yields:
        (n_steps, q, n_alphas): the solutions as combinations of the vectors V that `apply` was given (`combined`).
    """
    q = b.shape[1]
    length = np.linalg.norm(b, axis=0)
    vector = (b / np.where(length > 0, length, 1.0)).astype(np.float32)
    before, off = np.zeros_like(vector), np.zeros(q, dtype=np.float32)
    diagonals, off_diagonals = [], []
    largest = np.zeros(q)
    last = min(steps[-1], len(b))
    for step in range(1, last + 1):
        image = apply(vector) - off * before
        diagonal = np.einsum("mq,mq->q", vector, image)
        image -= diagonal * vector
        off = np.sqrt(np.einsum("mq,mq->q", image, image))
        largest = np.maximum(largest, diagonal)
        off[off <= WHOLE * largest] = 0.0
        diagonals.append(diagonal)
        off_diagonals.append(off)
        whole = step == last or not off.any()
        if whole or step in steps:
            yield _coordinates(diagonals, off_diagonals[:-1], length, alphas)
        if whole:
            break
        before, vector = vector, np.where(off > 0, image / np.where(off > 0, off, 1.0), 0.0).astype(np.float32)


def _coordinates(
    diagonals: list[Vector], off_diagonals: list[Vector], length: Array, alphas: Sequence[float]
) -> Array:
    """The solutions in Krylov vectors, in which each A_j is tridiagonal, (n_steps, q, n_alphas)."""
    from scipy.linalg import eigh_tridiagonal

    shifts = np.asarray(alphas, dtype=np.float64)
    small = np.empty((len(diagonals), len(length), len(shifts)))
    for column in range(len(length)):
        eigenvalues, rotation = eigh_tridiagonal(
            np.array([row[column] for row in diagonals], dtype=np.float64),
            np.array([row[column] for row in off_diagonals], dtype=np.float64),
        )
        eigenvalues = np.maximum(eigenvalues, 0.0)
        small[:, column] = rotation @ (rotation[0][:, None] * length[column] / (eigenvalues[:, None] + shifts))
    return small


def combined(vectors: Sequence[Vectors], small: Array) -> Array:
    """Combinations of vectors, n_steps times (m, q), and (n_steps, q, n_alphas) -> (m, q, n_alphas)."""
    space = np.stack(vectors)
    solutions = np.empty((space.shape[1], *small.shape[1:]))
    for column in range(small.shape[1]):
        solutions[:, column] = space[:, :, column].T @ small[:, column]
    return solutions
