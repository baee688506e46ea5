"""How sure a fit is of a text, and which rated texts the text is like.

    text ─► its columns ─► posterior of the fit ─► standard deviation
    text ─► its vector ─► cosines with the rated texts

All of it follows from the rated texts that the fit was learned from; results are kept in `Fit.memo`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.fitting import left_out
from dspy_qvl.learner.columns import Columns
from dspy_qvl.learner.fit import Fit
from dspy_qvl.ridge import Posterior, posterior_of
from dspy_qvl.text import Item, RankingExample, query_of, text_of
from dspy_qvl.vectors import Array, MixedRows, Vectors, dot_rows, slices, unit

AT_ONCE = 4096  # texts whose columns are in memory
SAMPLE = 1000  # rated texts whose nearest other rated text is looked up


@dataclass(frozen=True)
class LeftOut:
    """Every rated text, valued by a fit that never saw it, in the order of the texts.

    Attributes:
        values: (n_texts,), on the scale of the scores.
        residuals: score - value, (n_texts,).
        std: standard deviation of the residual, (n_texts,).
        leverages: share of its own fitted value that each text decides, (n_texts,), in (0, 1]; where `exact` is False
            no less than that share.
        exact: True if each text is valued by the fit of all the others; False if by that of the four fifths of the
            texts without it, as where hashed words are among the columns of more than 4,000 texts.
    """

    values: Array
    residuals: Array
    std: Array
    leverages: Array
    exact: bool = True


class Inspection:
    """A fit, examined through the rated texts it was learned from.

    Args:
        fit: the fit, its rated texts kept.
        columns: items -> the columns that the fit values them by.
    """

    def __init__(self, fit: Fit, columns: Columns) -> None:
        self.fit = fit
        self._columns = columns
        self._keep = columns.owner is None  # a subclass may give other columns each time

    # How sure

    @property
    def posterior(self) -> Posterior:
        """The posterior of the coefficients and of the noise; the first call works it out."""
        fit = self.fit

        def make() -> Posterior:
            return posterior_of(self._weighed(fit.items), fit.scores, fit.alpha, fit.fitted.weighed_line())

        return fit.memo.once("posterior", make)

    def fit_variance(self, item: Item) -> float:
        """How unlike the rated texts a text is, as `Posterior.fit_variance`."""
        memo = self.fit.memo.variances
        kept = memo.get(item) if self._keep else None
        if kept is None:
            row = self._weighed([item])
            kept = self.posterior.fit_variance(row if isinstance(row, MixedRows) else row[0])
            if self._keep:
                memo.keep(item, kept)
        return kept

    def std(self, item: Item) -> float:
        """Standard deviation of a rater's score of a text, on the scale of the scores."""
        known = self.fit.memo.bounds.get(item) if self._keep else None
        if known is not None:
            lowest, highest = map(self.posterior.std, known)
            if lowest == highest:
                return lowest
        return self.posterior.std(self.fit_variance(item))

    def exceeds(self, item: Item, limit: float) -> bool:
        """True if the `fit_variance` of a text is above a limit."""
        lowest, highest = (self.fit.memo.bounds.get(item) if self._keep else None) or (0.0, math.inf)
        if lowest <= limit < highest:
            return self.fit_variance(item) > limit
        return lowest > limit

    def foresee(self, items: Sequence[Item]) -> None:
        """Compute and keep the values of texts and bounds of their variances, all by matrix products.

        Later calls for one of these texts give the same bits as without, but sooner.
        """
        memo = self.fit.memo
        new = [item for item in dict.fromkeys(items) if not (item in memo.values and item in memo.bounds)]
        for rows in slices(len(new) if self._keep else 0, AT_ONCE):
            X = self._columns(new[rows]).X
            for item, value in zip(new[rows], self.fit.predict(X).tolist(), strict=True):
                memo.values.keep(item, value)
            if self.fit.n_texts:
                for item, *bounds in zip(new[rows], *self.posterior.bounds(self.fit.fitted.weighed(X)), strict=True):
                    memo.bounds.keep(item, (float(bounds[0]), float(bounds[1])))

    def stds(self, items: Sequence[Item]) -> Array:
        """The `std` of each of many texts, bit for bit the same, (n_texts,), by matrix products."""
        std = np.empty(len(items))
        for rows in slices(len(items), AT_ONCE):
            std[rows] = self.posterior.stds(self._weighed(items[rows]))
        return std

    def leave_one_out(self) -> LeftOut:
        """Every rated text, valued by a fit that never saw it."""
        fit, posterior = self.fit, self.posterior
        residuals, leverages = posterior.loo or fit.memo.once("left out", self._out_of_fold)
        left = 1 - leverages
        std = posterior.noise / np.sqrt(np.where(left > 0, left, np.nan))
        return LeftOut(fit.scores - residuals, residuals, std, leverages, posterior.loo is not None)

    def _out_of_fold(self) -> tuple[Array, Array]:
        """The residuals of rated texts under fits that never saw them, and the most that their leverages may be."""
        X = self._weighed(self.fit.items)
        found = left_out(X, self.fit.scores, self.fit.alpha, self.fit.texts), self.posterior.leverages(X)
        for array in found:
            array.setflags(write=False)
        return found

    def _weighed(self, items: Sequence[Item]) -> Any:
        return self.fit.fitted.weighed(self._columns(items).X)

    # Which rated texts it is like

    def cosines(self, item: Item, rows: Any = slice(None)) -> Array:
        """The cosine of a text with rated texts, (n_rows,); of a pair, the mean of the texts' and the queries'."""
        cosines = dot_rows(self._rated[rows], unit(self._columns.vectors([text_of(item)]))[0])
        query = query_of(item)
        if query is None:
            return cosines
        return (cosines + dot_rows(self._asked_vectors[rows], self._columns.queries([query])[0])) / 2

    def rough_cosines(self, items: Sequence[Item]) -> Vectors:
        """`cosines` of many texts with all rated texts, (m, n_texts), off by less than `roughness`."""
        cosines = unit(self._columns.vectors([text_of(item) for item in items])) @ self._rated.T
        queries = [query for item in items if (query := query_of(item)) is not None]
        if queries:
            cosines = (cosines + self._columns.queries(queries) @ self._asked_vectors.T) / 2
        return cosines

    @property
    def roughness(self) -> float:
        """The largest rounding error of an inner product of unit vectors in float32."""
        return 2.0**-23 * float(self._rated.shape[1] + 4)

    def highest(self, item: Item, rough: Vectors, rows: NDArray[np.intp], n: int) -> tuple[NDArray[np.intp], Array]:
        """The rated texts among `rows` with the highest cosine, at most n, and that cosine, highest first.

        Args:
            item: the text.
            rough: its `rough_cosines`, (n_texts,).
            rows: the rated texts, ascending.
            n: how many.
        """
        if n < len(rows):
            least = np.partition(rough[rows], -n)[-n] - 2 * self.roughness
            rows = rows[rough[rows] >= least]
        cosines = self.cosines(item, rows)
        order = np.argsort(-cosines, kind="stable")[:n]
        return rows[order], cosines[order]

    def nearest(self, item: Item, n_neighbors: int) -> list[tuple[RankingExample, float]]:
        """The rated texts with the highest cosine, and that cosine, highest first."""
        rows, cosines = self.highest(item, self.rough_cosines([item])[0], np.arange(self.fit.n_texts), n_neighbors)
        return [(self.fit.rated[row], float(cosine)) for row, cosine in zip(rows, cosines, strict=True)]

    def nearest_other(self) -> Array:
        """Each sampled rated text's cosine with its nearest other rated text, (m,), ascending; m is at most 1,000."""

        def make() -> Array:
            rated = self._rated
            chosen = np.arange(0, len(rated), -(-len(rated) // SAMPLE))
            nearest = np.full(len(chosen), -np.inf, dtype=np.float32)
            for rows in slices(len(rated), 1024):
                cosines = rated[chosen] @ rated[rows].T
                itself = np.flatnonzero((chosen >= rows.start) & (chosen < rows.stop))
                cosines[itself, chosen[itself] - rows.start] = -np.inf
                np.maximum(nearest, cosines.max(axis=1), out=nearest)
            return np.sort(np.round(nearest.astype(np.float64), 5))  # the same digits with any BLAS

        return self.fit.memo.once("nearest other", make)

    @property
    def _rated(self) -> Vectors:
        """Unit vectors of the rated texts, (n_texts, dim)."""
        return self.fit.memo.once("rated", lambda: unit(self._columns.vectors(self.fit.texts)))

    @property
    def _asked_vectors(self) -> Vectors:
        """Unit vectors of the queries of the rated texts, (n_texts, dim)."""
        queries = [example.query or "" for example in self.fit.rated]
        return self.fit.memo.once("queries", lambda: self._columns.queries(queries))
