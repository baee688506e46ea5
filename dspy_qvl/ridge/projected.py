"""A posterior of many rows with sparse columns, from a Gram matrix that lies below theirs: never too sure.

With U of p columns, each orthogonal to the constant, and U'U <= I, the matrix G = Xc'UU'Xc lies below Xc'Xc in the
Loewner order, so that

    1/n + xc (G + alpha I)^-1 xc'  >=  1/n + xc (Xc'Xc + alpha I)^-1 xc'

for every row x. By the kernel of the p combinations U'Xc of the rows, the left side is

    1/n + (|xc|^2 - kc (M + alpha I)^-1 kc') / alpha,      M = U'Xc Xc'U,      kc = U'Xc xc'

U spans the p columns Z of Xc with the largest sums of squares: all of an embedding, and the commonest words. What the
rows say about these columns is kept whole, and of what they say about the others, as much as these foretell. With
LL' = Z'Z + epsilon I, U = Z L^-T has U'U <= I however alike columns are, and Z'U = L - epsilon L^-T.

Columns that few rows fill take no memory of their own: their products with U are sums of rows of U.

Source: Higham & Cheng (1998) and Golub & Van Loan, 8.1, for the order; Quinonero-Candela & Rasmussen (2005), A Unifying
View of Sparse Approximate Gaussian Process Regression, for projections of a kernel.
"""

from typing import Any, NamedTuple

import numpy as np

from dspy_qvl.ridge.across import Across, squared_lengths
from dspy_qvl.ridge.bounds import Kernel
from dspy_qvl.ridge.line import Linear
from dspy_qvl.ridge.solve import factored, inverse_root
from dspy_qvl.vectors import Array, MixedRows, Vectors, dot_rows, slices

WORK = 7.2e9  # n p^2: 896 combinations of 9,000 rows
FEWEST = 640  # combinations of any number of rows, within TABLE
TABLE = 2**27  # numbers of the products with U at most: 512 MB
RARE = 10  # rows that fill a column, below which its products with U are sums of rows of U
DAMPED = 0.01  # epsilon / alpha: costs a direction that the rows say 1 alpha of a hundredth of it
FILLED = 0.03  # share of numbers that are not 0, from which on a product is cheaper with all of them
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

    # The table: products of the chosen words, of the other common ones, and U, whose rows rare ones are sums of.
    is_chosen = np.zeros(d - n_dense, dtype=bool)
    is_chosen[words] = True
    common = np.flatnonzero((filled >= RARE) & ~is_chosen)
    common = common[np.argsort(-filled[common], kind="stable")]
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
    for part in slices(len(common), 256):
        found, some = table[len(words) + part.start : len(words) + part.stop], by_column[common[part]]
        found[:] = (some if some.nnz < FILLED * n * len(found) else some.toarray()) @ U
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
    _, factor = factored(system, alpha)
    kernel = Kernel(columns, columns.alone(_one_row(mean, n_dense)), np.zeros(len(chosen)))
    return Projected(kernel, inverse_root(system, alpha, factor), mean, U)


def leverages(X: MixedRows, known: Projected, alpha: float, rows: Any) -> Array:
    """Upper bounds on the leverages of some of the learned rows, (m,), in (0, 1).

    1 - h = alpha f'(Kc + alpha I)^-1 f with f the row's own direction, centred; a projection on the span of f and U
    bounds that from below.
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


def careful_noise(X: MixedRows, y: Array, line: Linear, known: Projected, alpha: float) -> tuple[float, Array]:
    """An estimate of s that is not below that of exact leverages but for sampling, and h / (1 - h), ascending, (m,).

    s^2 = mean(e^2 / (1 - h)), e the residuals of the learned rows; h are upper bounds on the leverages of a sample, and
    s^2 / mean(e^2) is the sample's.
    """
    e = y - dot_rows(X, line.coef) - line.intercept
    rows = np.arange(0, len(X), -(-len(X) // SAMPLE))
    h = leverages(X, known, alpha, rows)
    sampled = e[rows] ** 2
    grown = float(np.sum(sampled / (1 - h)) / np.sum(sampled)) if sampled.any() else 1.0
    return float(np.sqrt(np.mean(e**2) * grown)), np.sort(h / (1 - h))


def _squares(X: MixedRows) -> Array:
    """The sum of the squares of each column, (d,)."""
    sparse = np.bincount(X.sparse.indices, X.sparse.data.astype(np.float64) ** 2, minlength=X.sparse.shape[1])
    return np.concatenate([np.einsum("ij,ij->j", X.dense, X.dense, dtype=np.float64), sparse])


def _n_combinations(n: int, n_dense: int, n_common: int, n_varied: int) -> int:
    """p: more where rows are few, or most columns are dense; within the memory, the rows and the varied columns."""
    wanted = max(int((WORK / n) ** 0.5), FEWEST, min(n_dense + 256, 2048))
    return max(1, min(wanted, TABLE // (n + n_common), n // 2, n_varied))


def _combine(X: MixedRows, dense: Any, words: Any, mean: Array, alpha: float, U: Vectors) -> tuple[Array, float]:
    """Fills U = Z L^-T, (n, p), from the chosen columns Z; gives L, (p, p), and epsilon."""
    n_dense, p = X.dense.shape[1], U.shape[1]
    middle = mean[np.concatenate([dense, words + n_dense])]
    sparse = X.sparse[:, words]
    gram = np.zeros((p, p))
    for rows in slices(len(X), AT_ONCE):
        block = np.concatenate([X.dense[rows][:, dense], sparse[rows].toarray()], axis=1) - middle
        U[rows] = block
        gram += block.T @ block
    damping = DAMPED * alpha + 1e-13 * float(np.trace(gram))
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
    """Where the table has each sparse column: in a row, or in those rows of U that fill it; (s, rows of the table)."""
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
