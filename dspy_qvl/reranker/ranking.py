"""Ridge for orders: coefficients by which passages of a query are ranked, never worse than the order they came in.

Only differences within a query say which of its passages is better, so rows and relevances are centred around each
query's mean. Some single columns are orders already, the priors: the cosine, and what a first stage says. With its own
least-squares slope b0 the best of them is what a fit falls back to, and what is learned is the difference from one,

    minimise over v:   sum over queries |yc - Xc (w0 + C v)|^2 + alpha |v|^2,      w0 = b0 e_prior,  w = w0 + C v

C holds the weight of each block, in units that give every block one variance. The penalty is absolute: few labels
leave v small, many let it grow. Prior, weights and penalty are chosen by cross-validation over queries, by nDCG: prior
and weights of the best, and with them the highest penalty that is within half a standard error of it. Nothing in a
prior order is fitted, so its nDCG over all queries is out of fold too: where none that was learned has a higher one,
the prior itself is kept.

Rows are asked for query by query, so that no more than a chunk of them is in memory.

Source: Järvelin & Kekäläinen (2002) for nDCG; Breiman et al. (1984), 3.4.3, for the rule of standard errors.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from dspy_qvl.features import Blocks
from dspy_qvl.measures import ndcg, reciprocal_rank
from dspy_qvl.ridge import Folds, solve_path
from dspy_qvl.vectors import Array, Rows

Weights = tuple[float, ...]

WIDE = 16  # columns from which a block is wide
WIDE_LEVELS = (0.5, 1.5)  # weights of wide blocks that are tried; narrow ones count 1
FEW = 20  # queries below which a wide block would learn the passages and not what makes them relevant
ALPHAS = tuple(float(10.0**power) for power in np.linspace(-3, 2, 8))  # per row of a query
CHUNK = 4096  # rows whose products are taken at once
STANDARD_ERRORS = 0.5


@dataclass(frozen=True)
class Quality:
    """Mean nDCG and mean reciprocal rank over queries; cross-validated where anything was learned."""

    ndcg: float
    mrr: float


@dataclass(frozen=True)
class RankingFit:
    """The best fit of a search.

    Attributes:
        coef: (d,), over the columns as the caller gave them.
        factors: the factor of each block's columns; 0 for a block that is not used.
        alpha: the penalty; infinite where a prior order was kept.
        prior: the number of the block whose order the fit departs from.
        quality: nDCG and reciprocal rank of the fit.
        prior_qualities: the same of each prior order.
    """

    coef: Array
    factors: tuple[float, ...]
    alpha: float
    prior: int
    quality: Quality
    prior_qualities: tuple[Quality, ...]


def fit_ranking(
    rows: Callable[[int], Rows],
    relevances: Sequence[Array],
    blocks: Blocks,
    folds: Folds,
    *,
    priors: Sequence[int] = (0,),
    optional: Collection[int] = (),
    k: int | None = None,
) -> RankingFit:
    """Fit an order of passages to their relevances.

    Args:
        rows: gives the columns of a query's passages, (n_i, d), by the query's number.
        relevances: relevance of each query's passages, (n_i,), some better than others, in any units.
        blocks: names and widths of the blocks of columns.
        folds: the queries of each fold; disjoint, together all, at least two folds.
        priors: numbers of the blocks of a single column that rank by themselves.
        optional: numbers of the blocks that are left out where the fit is better without them, by half a standard
            error.
        k: passages from the top that figures look at; None for all.
    """
    n_queries, n_rows, n_priors = len(relevances), sum(len(y) for y in relevances), len(priors)
    spans, d = list(blocks.slices.values()), sum(blocks.widths)
    weightings = _weightings(blocks, n_queries, optional)
    ways = [(weighting, prior) for weighting in weightings for prior in priors if weighting[prior]]
    alphas = [alpha * max(n_rows / n_queries, 1.0) for alpha in ALPHAS]
    figures = np.full((2, n_queries, n_priors + len(ways) * len(alphas)), np.nan)  # nDCG, reciprocal rank

    def read(query: int) -> Rows:
        X = rows(query)
        figures[:, query, :n_priors] = _figures(relevances[query], X[:, [spans[prior].start for prior in priors]], k)
        return X

    sums = np.stack([_products(read, relevances, fold.tolist(), d) for fold in folds])
    whole = sums.sum(axis=0)
    variances = [np.trace(whole[span, span]) / n_rows for span in spans]
    scales = np.array([1 / np.sqrt(max(variance, 1e-30)) if variance else 0.0 for variance in variances])
    for fold, part in zip(folds, sums, strict=True):
        solved = [_solutions(whole - part, blocks, scales, weighting, priors, alphas) for weighting in weightings]
        coefs = np.concatenate([one[:, :, 1:].reshape(d, -1) for one in solved], axis=1)
        for query in fold.tolist():
            values = rows(query).astype(np.float64) @ coefs
            figures[:, query, n_priors:] = _figures(relevances[query], values, k)
    n_in = sum(all(weighting[number] for number in optional) for weighting, _ in ways)
    chosen = _careful_best(figures[0], n_priors, len(alphas), n_in)
    if chosen < n_priors:
        level, prior = -1, priors[chosen]
        weighting: Weights = tuple(float(number == prior) for number in range(len(spans)))
    else:
        number, level = divmod(chosen - n_priors, len(alphas))
        weighting, prior = ways[number]
    coef = _solutions(whole, blocks, scales, weighting, [prior], alphas)[:, 0, 1 + level]
    factors = tuple((np.array(weighting) * scales).tolist())
    quality, *priors_quality = (_quality(figures[:, :, column]) for column in (chosen, *range(n_priors)))
    return RankingFit(coef, factors, np.inf if level < 0 else alphas[level], prior, quality, tuple(priors_quality))


def best_first(values: Rows) -> list[int]:
    """Positions of values from the highest to the lowest, (n,); equal ones stay in the order they came."""
    order: list[int] = np.argsort(-values, kind="stable").tolist()
    return order


def quality_of(relevances: Sequence[Array], values: Sequence[Rows], k: int | None = None) -> Quality:
    """The quality of an order; NaN without queries.

    Args:
        relevances: relevance of each query's passages, (n_i,), some better than others.
        values: values of the same passages, higher first; a tie earns nothing.
        k: passages from the top that count; None for all.
    """
    columns = [_figures(y, value[:, None], k)[:, 0] for y, value in zip(relevances, values, strict=True)]
    return _quality(np.reshape(columns, (-1, 2)).T)


def _weightings(blocks: Blocks, n_queries: int, optional: Collection[int]) -> list[Weights]:
    """The weights of blocks to try, from the simplest: narrow blocks alone, then with wide ones; then some left out."""
    wide = [width >= WIDE for width in blocks.widths]
    levels = [0.0, *(WIDE_LEVELS if any(wide) and n_queries >= FEW else ())]
    return [
        tuple(0.0 if number in left_out else level if is_wide else 1.0 for number, is_wide in enumerate(wide))
        for left_out in ([(), optional] if optional else [()])
        for level in levels
    ]


def _products(rows: Callable[[int], Rows], relevances: Sequence[Array], queries: Sequence[int], d: int) -> Array:
    """Sums of products of columns and relevances, centred within each query, (d + 1, d + 1)."""
    sums, waiting, n_waiting = np.zeros((d + 1, d + 1)), [], 0
    for number, query in enumerate(queries, start=1):
        z = np.concatenate([rows(query), relevances[query][:, None]], axis=1, dtype=np.float64)
        waiting.append(z - z.mean(axis=0))
        n_waiting += len(z)
        if n_waiting >= CHUNK or number == len(queries):
            z = np.concatenate(waiting)
            sums += z.T @ z
            waiting, n_waiting = [], 0
    return sums


def _solutions(
    sums: Array, blocks: Blocks, scales: Array, weighting: Weights, priors: Sequence[int], alphas: Sequence[float]
) -> Array:
    """Coefficients of prior orders, and of a weighting that departs from each of them at every penalty.

    Returns:
        (d, n, 1 + n_alphas) for the n priors that the weighting counts; of each, its own order first.
    """
    scale, weight = blocks.spread(scales.tolist()), blocks.spread(weighting)
    gram, xy = sums[:-1, :-1] * scale * scale[:, None], sums[:-1, -1] * scale
    spans = list(blocks.slices.values())
    firsts = [spans[prior].start for prior in priors if weighting[prior]]
    starts = np.zeros((len(scale), len(firsts)))
    for number, first in enumerate(firsts):
        # However few the labels, or misleading: the higher in the prior order, the better.
        starts[first, number] = max(xy[first] / gram[first, first], 1e-6) if gram[first, first] > 0 else 1.0
    missed = weight[:, None] * (xy[:, None] - gram @ starts)
    used = weight > 0
    found = solve_path((gram * weight * weight[:, None])[np.ix_(used, used)], missed[used], alphas)
    coefs = np.repeat(starts[:, :, None], 1 + len(alphas), axis=2)
    coefs[used, :, 1:] += weight[used, None, None] * np.moveaxis(found, 0, 2)
    scale[firsts] = np.where(scale[firsts] > 0, scale[firsts], 1.0)
    return coefs * scale[:, None, None]


def _careful_best(figures: Array, n_priors: int, n_alphas: int, n_in: int) -> int:
    """The column of the best prior, or of the best way at the highest penalty within half a standard error of it.

    A way is a weighting with the prior that it departs from. One that leaves optional blocks out must be better by half
    a standard error. No penalty makes a way worse than a prior.

    Args:
        figures: nDCG of each query by each column, (n_queries, n_columns): the priors', then each way's at every
            penalty.
        n_priors: number of priors.
        n_alphas: number of penalties.
        n_in: number of ways that leave nothing out; they come first.
    """
    if len(figures) < 2:
        return 0
    means = figures.mean(axis=0)

    def behind(column: int, best: int) -> bool:
        """Return whether a column is worse than the best one by more than half a standard error."""
        less = figures[:, best] - figures[:, column]
        return bool(less.mean() > STANDARD_ERRORS * less.std(ddof=1) / np.sqrt(len(less)))

    best_prior = means[:n_priors].max()
    best, best_in = int(means.argmax()), int(means[: n_priors + n_in * n_alphas].argmax())
    if not behind(best_in, best):
        best = best_in
    if best < n_priors:
        return best
    first = best - (best - n_priors) % n_alphas
    penalised = range(first + n_alphas - 1, first - 1, -1)
    return next(c for c in penalised if c == best or (means[c] >= best_prior and not behind(c, best)))


def _figures(relevance: Array, values: Rows, k: int | None) -> Array:
    """The nDCG and reciprocal rank of a query by each column of values, (n, m) -> (2, m)."""
    return np.array([[of(relevance, column, k) for column in values.T] for of in (ndcg, reciprocal_rank)])


def _quality(figures: Array) -> Quality:
    """The means of the figures of queries, (2, n)."""
    return Quality(*(float(row.mean()) if len(row) else math.nan for row in figures))
