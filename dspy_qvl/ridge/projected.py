"""A posterior of many rows with sparse columns, from a Gram matrix that lies below theirs: never too sure.

With U of p columns, each orthogonal to the constant, and U'U <= I, the matrix G = Xc'UU'Xc lies below Xc'Xc in the
Loewner order, so that for every row x

    1/n + xc (G + alpha I)^-1 xc'  >=  1/n + xc (Xc'Xc + alpha I)^-1 xc'

The left side comes from the kernel of the p combinations U'Xc of the rows:

    1/n + (|xc|^2 - kc (M + alpha I)^-1 kc') / alpha,      M = U'Xc Xc'U,      kc = U'Xc xc'

U spans the p columns Z of Xc with the largest sums of squares: all of an embedding, and the commonest words. Then G
equals Xc'Xc in these columns and between them and all others; of the others among themselves it has the part that
these columns predict. With LL' = Z'Z + epsilon I, U = Z L^-T has U'U <= I even where columns are alike, and
Z'U = L - epsilon L^-T.

Products with U are float32. What that may round off is added to M, and taken from the solution, so that the variance
stays above the exact one.

Source: Horn & Johnson (2013), Matrix Analysis, 7.7, for the order; Rasmussen & Williams (2006), 8.3, for posteriors
from a part of the kernel.
"""

from typing import Any, NamedTuple

import numpy as np

from dspy_qvl.ridge.across import Across, squared_lengths
from dspy_qvl.ridge.bounds import Kernel
from dspy_qvl.ridge.line import Linear
from dspy_qvl.ridge.solve import factored, inverse_root
from dspy_qvl.vectors import Array, MixedRows, Vectors, dot_rows, slices

WORK = 5.6e9  # n p^2: 789 combinations of 9,000 rows
FEWEST = 640  # combinations of any number of rows, within TABLE
TABLE = 2**27  # numbers of the products with U at most: 512 MB
RARE = 10  # rows with a word, below which its products with U are sums of rows of U and take no memory
DAMPED = 0.01  # epsilon / alpha: a direction of Z with a sum of squares of alpha loses a hundredth
ROUNDING = 2.0**-23  # of float32 products, relative to their magnitudes
AT_ONCE = 2048  # rows or columns whose products are in memory
SAMPLE = 1000  # learned rows whose leverages are bounded


class Projected(NamedTuple):
    """A posterior from combinations of the learned rows.

    Attributes:
        kernel: the combinations U'Xc.
        root: R'R = (M + alpha I)^-1, (p, p).
        mean: the mean of the learned rows, (d,).
        combinations: U, (n, p).
    """

    kernel: Kernel
    root: Array
    mean: Array
    combinations: Vectors


def project(X: MixedRows, alpha: float) -> Projected:
    """The posterior of rows, (n, d), with one penalty, from p combinations of them."""
    n, d = X.shape
    n_dense = X.dense.shape[1]
    mean = X.column_means()
    by_column = X.sparse.T.tocsr()  # (s, n)
    filled = np.diff(by_column.indptr)
    squares = _squares(X) - n * mean**2
    p = _n_combinations(n, n_dense, int(np.sum(filled >= RARE)), int(np.sum(squares > 0)))
    chosen = np.sort(np.argsort(-squares, kind="stable")[:p])
    dense, words = chosen[chosen < n_dense], chosen[chosen >= n_dense] - n_dense

    # The table: products with U of the chosen words, then of the other common ones, then U itself.
    is_chosen = np.zeros(d - n_dense, dtype=bool)
    is_chosen[words] = True
    common = np.flatnonzero((filled >= RARE) & ~is_chosen)
    rare = np.flatnonzero((filled < RARE) & (filled > 0) & ~is_chosen)
    n_looked_up = len(words) + len(common)
    table = np.empty((n_looked_up + n, len(chosen)), dtype=np.float32)
    U = table[n_looked_up:]

    root_of_gram, damping = _combine(X, dense, words, mean, alpha, U)
    with_chosen = root_of_gram - damping * _inverse(root_of_gram).T  # Z'U
    products = np.empty((n_dense, len(chosen)))  # of the dense columns with U
    products[dense] = with_chosen[: len(dense)]
    table[: len(words)] = with_chosen[len(dense) :]
    system = with_chosen.T @ with_chosen

    others = np.setdiff1d(np.arange(n_dense), dense)
    if len(others):
        products[others] = sum((X.dense[rows][:, others].T @ U[rows]).astype(np.float64) for rows in slices(n, AT_ONCE))
        system += products[others].T @ products[others]
    for part in slices(len(common), AT_ONCE):
        found = table[len(words) + part.start : len(words) + part.stop]
        found[:] = by_column[common[part]] @ U
        system += found.T @ found
    if len(rare):
        few = by_column[rare]
        across = few.T.tocsr() @ few  # (n, n), hardly filled
        for rows in slices(n, AT_ONCE):
            system += U[rows].T @ (across[rows] @ U)

    columns = Across(
        products,
        _places(by_column, np.concatenate([words, common]), rare),
        np.sqrt(np.maximum(system.diagonal(), 0.0)),
        table,
    )
    kernel = Kernel(columns, columns.alone(_one_row(mean, n_dense)), np.zeros(len(chosen)))
    system[np.diag_indices(len(chosen))] += ROUNDING * np.trace(system)
    _, factor = factored(system, alpha)
    return Projected(kernel, (1 - 4 * ROUNDING) * inverse_root(system, alpha, factor), mean, U)


def leverages(X: MixedRows, known: Projected, alpha: float, rows: Any) -> Array:
    """Upper bounds on the leverages h of some of the learned rows, (m,), in (0, 1).

    1 - h = alpha f'(Kc + alpha I)^-1 f with f the row's unit vector, centred, (n,); the projection on the span of f
    and U bounds that from below.
    """
    n, some, u = len(X), X[rows], known.combinations[rows].astype(np.float64)
    columns: Any = known.kernel.columns
    with_mean, mean_squared = some @ known.mean, known.mean @ known.mean
    itself = squared_lengths(some) - 2 * with_mean + mean_squared + alpha * (1 - 1 / n)
    across = columns.many(some) - known.kernel.row_means + alpha * u
    a, b = across @ known.root.T, u @ known.root.T
    left = 1 - 1 / n - np.einsum("ij,ij->i", a, b)
    inverse = np.einsum("ij,ij->i", b, b) + left**2 / (itself - np.einsum("ij,ij->i", a, a))
    return np.asarray(1 - alpha * inverse)


def careful_noise(X: MixedRows, y: Array, line: Linear, known: Projected, alpha: float) -> float:
    """An estimate of the noise s, in the units of y, that is not too low.

    s^2 = mean(e^2 / (1 - h)), e the residuals of the learned rows. The h are upper bounds, of at most 1,000 rows at
    even distances; so mean(e^2) is that of all rows, and the factor by which 1 / (1 - h) raises it that of the sample.
    """
    values = [dot_rows(X[rows], line.coef) for rows in slices(len(X))]
    e = y - np.concatenate(values) - line.intercept
    rows = np.arange(0, len(X), -(-len(X) // SAMPLE))
    h = leverages(X, known, alpha, rows)
    sampled = e[rows] ** 2
    grown = float(np.sum(sampled / (1 - h)) / np.sum(sampled)) if sampled.any() else 1.0
    return float(np.sqrt(np.mean(e**2) * grown))


def _squares(X: MixedRows) -> Array:
    """The sum of the squares of each column, (d,)."""
    dense, sparse = np.zeros(X.dense.shape[1]), np.zeros(X.sparse.shape[1])
    for rows in slices(len(X)):
        some = X[rows]
        dense += np.einsum("ij,ij->j", some.dense, some.dense, dtype=np.float64)
        sparse += np.bincount(some.sparse.indices, some.sparse.data.astype(np.float64) ** 2, minlength=len(sparse))
    return np.concatenate([dense, sparse])


def _n_combinations(n: int, n_dense: int, n_common: int, n_varied: int) -> int:
    """The number p of combinations: more for fewer rows or more dense columns, as far as memory and X allow."""
    wanted = max(int((WORK / n) ** 0.5), FEWEST, min(n_dense + 256, 2048))
    return max(1, min(wanted, TABLE // (n + n_common), n // 2, n_varied))


def _combine(X: MixedRows, dense: Any, words: Any, mean: Array, alpha: float, U: Vectors) -> tuple[Array, float]:
    """Fill U = Z L^-T, (n, p), from the chosen columns Z; return L, (p, p), and epsilon."""
    n_dense, p = X.dense.shape[1], U.shape[1]
    middle = mean[np.concatenate([dense, words + n_dense])]
    sparse = X.sparse[:, words]
    gram = np.zeros((p, p))
    for rows in slices(len(X), AT_ONCE):
        block = np.concatenate([X.dense[rows][:, dense], sparse[rows].toarray()], axis=1) - middle
        U[rows] = block
        gram += block.T @ block
    damping = DAMPED * alpha + 1e-9 * float(np.trace(gram))
    gram[np.diag_indices(p)] += damping
    L: Any = np.linalg.cholesky(gram)
    inverse = _inverse(L).astype(np.float32)
    for rows in slices(len(X), AT_ONCE):
        block = U[rows].copy()
        for part in slices(p, 256):  # the inverse is triangular
            U[rows, part] = block[:, : part.stop] @ inverse[part, : part.stop].T
    return L, damping


def _inverse(L: Array) -> Array:
    """The inverse of a lower triangle."""
    from scipy.linalg import lapack

    inverse: Array = np.tril(lapack.dtrtri(L, lower=1)[0])
    return inverse


def _places(by_column: Any, looked_up: Any, rare: Any) -> Any:
    """Each word as a combination of rows of the table, (s, n_rows): one row, or of a rare word some of U."""
    from scipy.sparse import coo_array

    few = by_column[rare].tocoo()
    s, n = by_column.shape
    values = np.concatenate([np.ones(len(looked_up)), few.data])
    columns = np.concatenate([looked_up, rare[few.coords[0]]])
    rows = np.concatenate([np.arange(len(looked_up)), len(looked_up) + few.coords[1]])
    return coo_array((values, (columns, rows)), shape=(s, len(looked_up) + n)).tocsr()


def _one_row(row: Array, n_dense: int) -> MixedRows:
    """A row, (d,), as mixed rows."""
    from scipy.sparse import csr_array

    return MixedRows(row[None, :n_dense], csr_array(row[None, n_dense:]))
