"""Ridge for orders: which passages of a query come first, and never worse than what was there before.

Only differences within a query tell which of its passages is better, so rows and relevances are centred around each
query's mean. The first block is a prior order (the cosine): with its own least-squares slope b0 it is what a fit
falls back to, and what is learned is the difference from it,

    minimise over v:   sum over queries |yc - Xc (w0 + C v)|^2 + alpha |v|^2,      w0 = b0 e_0,  w = w0 + C v

C holds the weight of each block, in units that give every block one variance. The penalty is absolute: few labels
leave v small, many let it grow. Weights and penalty are chosen by cross-validation over queries, by nDCG: the weights
of the best, and with them the highest penalty that is within half a standard error of it.

Rows are asked for query by query, so that no more than a chunk of them is in memory.

Source: Järvelin & Kekäläinen (2002) for nDCG; Breiman et al. (1984), 3.4.3, for the rule of standard errors.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dspy_qvl.moments import Array, Folds, Rows
from dspy_qvl.scores import ndcg
from dspy_qvl.solve import solve_path

WIDE = 16  # columns from which a block is wide
WIDE_LEVELS = (0.5, 1.5)  # weights of wide blocks that are tried; narrow ones count 1
FEW = 20  # queries below which a wide block would learn the passages and not what makes them relevant
ALPHAS = tuple(float(10.0**power) for power in np.linspace(-3, 2, 8))  # per row of a query
CHUNK = 4096  # rows whose products are taken at once
STANDARD_ERRORS = 0.5


@dataclass(frozen=True)
class RankingFit:
    """What came of a search.

    Attributes:
        coef: (d,), over the columns as they are.
        factors: what the columns of each block were multiplied with; 0 for one that is not used.
        alpha: the penalty; infinite where the prior order was kept.
        ndcg: mean cross-validated nDCG of the fit.
        prior_ndcg: that of the prior order.
        n_queries: queries with passages of different relevance.
    """

    coef: Array
    factors: tuple[float, ...]
    alpha: float
    ndcg: float
    prior_ndcg: float
    n_queries: int


def fit_ranking(
    rows: Callable[[int], Rows], relevances: Sequence[Array], blocks: Sequence[slice], folds: Folds
) -> RankingFit:
    """The order of passages that relevances teach.

    Args:
        rows: gives the columns of a query's passages, (n_i, d), by the query's number.
        relevances: of each query's passages, (n_i,), higher for better, in any units.
        blocks: the columns of each block; the first one is a single column, the prior order.
        folds: the queries of each fold; disjoint, together all, at least two folds.
    """
    useful = np.array([np.ptp(y) > 0 for y in relevances])
    n_queries, n_rows = int(useful.sum()), sum(len(y) for y in relevances)
    d = blocks[-1].stop
    sums = np.stack([_products(rows, relevances, fold[useful[fold]], d) for fold in folds])
    whole = sums.sum(axis=0)
    scales = np.array([1 / np.sqrt(max(np.trace(whole[block, block]) / max(n_rows, 1), 1e-30)) for block in blocks])
    scales[[not np.trace(whole[block, block]) for block in blocks]] = 0.0
    weightings = _weightings(blocks, n_queries)
    alphas = [alpha * max(n_rows / max(len(relevances), 1), 1.0) for alpha in ALPHAS]
    judged = np.full((len(relevances), 1 + len(weightings) * len(alphas)), np.nan)
    for fold, part in zip(folds, sums, strict=True):
        coefs = _solutions(whole - part, blocks, scales, weightings, alphas)
        for query in fold[useful[fold]].tolist():
            values = rows(query).astype(np.float64) @ coefs
            judged[query] = [ndcg(relevances[query], column) for column in values.T]
    judged = judged[useful]
    chosen = _careful_best(judged, len(alphas))
    number, level = divmod(chosen - 1, len(alphas))
    weights = np.ones(len(blocks)) * (np.arange(len(blocks)) == 0) if chosen == 0 else np.array(weightings[number])
    picked = [] if chosen == 0 else [weightings[number]]
    coef = _solutions(whole, blocks, scales, picked, alphas)[:, 0 if chosen == 0 else 1 + level]
    return RankingFit(
        coef,
        tuple((weights * scales).tolist()),
        np.inf if chosen == 0 else alphas[level],
        float(judged[:, chosen].mean()) if n_queries else np.nan,
        float(judged[:, 0].mean()) if n_queries else np.nan,
        n_queries,
    )


def _weightings(blocks: Sequence[slice], n_queries: int) -> list[tuple[float, ...]]:
    """The weights of blocks to try, from the simplest: narrow blocks alone, then with wide ones."""
    wide = [block.stop - block.start >= WIDE for block in blocks]
    levels = [0.0, *(WIDE_LEVELS if any(wide) and n_queries >= FEW else ())]
    return [tuple(level if is_wide else 1.0 for is_wide in wide) for level in levels]


def _products(rows: Callable[[int], Rows], relevances: Sequence[Array], queries: Sequence[int], d: int) -> Array:
    """Sums of products of columns and relevances, centred within each query, (d + 1, d + 1)."""
    sums = np.zeros((d + 1, d + 1))
    for z in _chunks(rows, relevances, queries):
        sums += z.T @ z
    return sums


def _chunks(rows: Callable[[int], Rows], relevances: Sequence[Array], queries: Sequence[int]) -> Iterator[Array]:
    waiting: list[Array] = []
    n_waiting = 0
    for query in queries:
        z = np.concatenate([rows(int(query)), relevances[query][:, None]], axis=1, dtype=np.float64)
        waiting.append(z - z.mean(axis=0))
        n_waiting += len(z)
        if n_waiting >= CHUNK:
            yield np.concatenate(waiting)
            waiting, n_waiting = [], 0
    if waiting:
        yield np.concatenate(waiting)


def _solutions(
    sums: Array,
    blocks: Sequence[slice],
    scales: Array,
    weightings: Sequence[tuple[float, ...]],
    alphas: Sequence[float],
) -> Array:
    """Coefficients of the prior order and of every weighting at every penalty, (d, 1 + n_weightings * n_alphas)."""
    widths = [block.stop - block.start for block in blocks]
    scale = np.repeat(scales, widths)
    gram, xy = sums[:-1, :-1] * scale * scale[:, None], sums[:-1, -1] * scale
    prior = np.zeros(len(scale))
    # However few the labels, or misleading: the higher the cosine, the better.
    prior[0] = max(xy[0] / gram[0, 0], 1e-6) if gram[0, 0] > 0 else 1.0
    missed = xy - gram @ prior
    prior_scale = scale.copy()
    prior_scale[0] = scale[0] if scale[0] > 0 else 1.0
    columns = [prior * prior_scale]
    for weighting in weightings:
        weight = np.repeat(weighting, widths)
        used = weight > 0
        ridge = solve_path((gram * weight * weight[:, None])[np.ix_(used, used)], (weight * missed)[used], alphas)
        for solution in ridge:
            learned = prior.copy()
            learned[used] += weight[used] * solution
            columns.append(learned * prior_scale)
    return np.stack(columns, axis=1)


def _careful_best(judged: Array, n_alphas: int) -> int:
    """The best weighting's column of the highest penalty that is within half a standard error of the best."""
    if len(judged) < 2:
        return 0
    best = int(judged.mean(axis=0).argmax())
    if best == 0:
        return 0
    behind = judged[:, [best]] - judged
    error = behind.std(axis=0, ddof=1) / np.sqrt(len(judged))
    first = best - (best - 1) % n_alphas
    penalised = range(first + n_alphas - 1, first - 1, -1)
    return next(c for c in penalised if c == best or behind[:, c].mean() <= STANDARD_ERRORS * error[c])
