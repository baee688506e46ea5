"""Cross-validated errors of weightings of blocks: one reading of the rows serves them all.

The weights c_b of blocks enter a Gram matrix, and a kernel, as plain factors,

    G_c = diag(c) G diag(c)   (dense, n > d: from the moments of each fold)       K_c = sum_b c_b^2 K_b   (otherwise)

All weightings are solved side by side, for every penalty at once, in a Krylov space of a few dozen products (Lanczos).
With kernels so are all folds, each with its own rows held at 0, and the products end as soon as the lowest error of
every weighting stands still. Where a space has not converged, the penalty is so small that stopping early acts as a
larger one.

A kernel of a few dense columns is never formed: it acts as X (X'V). That of sparse columns is the product of the
frequent ones as dense columns plus that of the rare ones as sparse columns.

Source: Golub & Van Loan, 10.1.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from dspy_qvl.ridge.moments import Folds, Moments, fold_numbers, gather, rough_mean
from dspy_qvl.vectors import Array, Matrix, MixedRows, Vector, Vectors, column_variances, slices

FREQUENT = 1024  # columns, those in most rows, that are multiplied as dense ones
SIDE_BY_SIDE = 256  # at most about as many Krylov spaces at once
STEPS = (16, 24, 32, 40, 48, 64)  # products in a Krylov space after which errors are looked at; the last ends it
SETTLED = 3e-4  # relative change of every weighting's lowest error, from look to look, that ends the products
WHOLE = 1e-5  # relative length of a Krylov vector below which its space is whole
NO_SPREAD = 1e-60  # of the first block's variance
PIECE = 1 << 22  # numbers of a sparse block that become float64 at once

Kernel = Callable[[Vectors], Vectors]  # V -> K V


class Weigher:
    """Fold errors of weightings of blocks; the rows are read once, when it is made.

    Args:
        X: all columns, (n, d).
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
            mean, change = errors.mean(axis=2), np.abs(errors - before).mean(axis=2)
            best = np.arange(q), mean.argmin(axis=1)
            if (change[best] <= SETTLED * mean[best]).all():
                break
        return errors

    def _each_column(self, factors: Array) -> Array:
        """The factor of every column from those of the blocks, (n_blocks, …) -> (d, …)."""
        out = np.zeros((max(block.stop for block in self._blocks), *factors.shape[1:]))
        for block, factor in zip(self._blocks, factors, strict=True):
            out[block] = factor
        return out


def _kernel(columns: Any, scale: float) -> Kernel:
    """Products with the kernel of a block's rows, its columns times `scale`: (n, q) -> (n, q).

    Products are centred over the rows of each fold by the caller. Columns with large means are centred before, since
    float32 would lose their differences.
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
    """S S' with the frequent columns of S around their means, (n, m) CSR -> (n, n) float32.

    Those are multiplied as dense columns: for 3,000 texts of 170 numbers that takes half the time of a sparse product.
    """
    S = S.astype(np.float32)
    frequency = np.bincount(S.indices, minlength=S.shape[1])
    shared = np.flatnonzero(frequency > 1)
    frequent = shared[np.argsort(-frequency[shared], kind="stable")[:FREQUENT]]
    dense = S[:, frequent].toarray()
    dense -= dense.mean(axis=0)
    rare = np.ones(S.shape[1], dtype=np.float32)
    rare[frequent] = 0.0
    S.data *= rare[S.indices]
    S.eliminate_zeros()
    kernel: Vectors = (S @ S.T).toarray()
    kernel += dense @ dense.T
    return kernel


def block_scales(X: Matrix, blocks: Sequence[slice], factors: Array | None = None) -> Array:
    """The factor that gives each block the total variance of the first one, (n_blocks,).

    1 where either has none, or next to none: float32 must hold the factor. `factors`, (d,), are of the columns: the
    variances are of columns times their factors.
    """
    spreads = _spreads(X, blocks, factors)
    usable = (spreads > NO_SPREAD * spreads[0]) & (spreads[0] > 0)
    scales: Array = np.ones(len(blocks))
    scales[usable] = np.sqrt(spreads[0] / spreads[usable])
    return scales


def _columns(X: Matrix, block: slice) -> Any:
    """The columns of a block, dense or sparse."""
    if not isinstance(X, MixedRows):
        return X[:, block]
    d = X.dense.shape[1]
    if block.stop <= d:
        return X.dense[:, block]
    everything = (block.start, block.stop) == (d, X.shape[1])
    return X.sparse if everything else X.sparse[:, block.start - d : block.stop - d]


def _spreads(X: Matrix, blocks: Sequence[slice], factors: Array | None = None) -> Array:
    """The total variance of every block, (n_blocks,), each column times its factor, (d,)."""
    factors = np.ones(X.shape[1]) if factors is None else factors
    return np.array([_spread(_columns(X, block), factors[block]) for block in blocks])


def _spread(columns: Any, factors: Array) -> float:
    """The variance of every column times its factor, summed: of sparse ones as mean |x|^2 - |mean|^2."""
    if isinstance(columns, np.ndarray):
        return float((column_variances(columns) * factors**2).sum())
    n, m = columns.shape
    squares, sums = 0.0, np.zeros(m)
    for part in slices(columns.nnz, PIECE):
        numbers = columns.data[part] * factors[columns.indices[part]]
        squares += float(numbers @ numbers)
        sums += np.bincount(columns.indices[part], numbers, minlength=m)
    return float(max(squares / n - sums @ sums / n**2, 0.0))


def krylov_path(apply: Kernel, b: Array, alphas: Sequence[float], steps: Sequence[int] = STEPS) -> Iterator[Array]:
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


def _coordinates(diagonals: list[Vector], off_diagonals: list[Vector], length: Array, alphas: Sequence[float]) -> Array:
    """The solutions in Krylov vectors, in which each A_j is tridiagonal, (n_steps, q, n_alphas)."""
    from scipy.linalg import eigh_tridiagonal

    shifts = np.asarray(alphas, dtype=np.float64)
    small = np.empty((len(diagonals), len(length), len(shifts)))
    for column in range(len(length)):
        eigenvalues, rotation = eigh_tridiagonal(
            np.array([row[column] for row in diagonals], dtype=np.float64),
            np.array([row[column] for row in off_diagonals], dtype=np.float64),
            check_finite=False,
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
