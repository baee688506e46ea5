"""What a fit says of texts beside their value: how sure it is, and which rated texts they are like.

All of it follows from the rated texts the fit was learned from; what is worked out once is kept with the fit.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.features import Table
from dspy_qvl.learner.fit import Fit
from dspy_qvl.ridge import Posterior, posterior_of
from dspy_qvl.text import Item, RankingExample, query_of, text_of
from dspy_qvl.vectors import Array, Vectors, dot_rows, slices, unit

AT_ONCE = 4096  # texts whose columns are in memory
SAMPLE = 1000  # rated texts whose nearest other one says how near is usual


@dataclass(frozen=True)
class LeftOut:
    """Every rated text under the value function that all the others give, in the order of the texts.

    Attributes:
        values: (n_texts,), on the scale of the scores.
        residuals: score - value, (n_texts,).
        std: standard deviation of the residual, (n_texts,).
        leverages: how much of its own fitted value each text decides, (n_texts,), in (0, 1].
    """

    values: Array
    residuals: Array
    std: Array
    leverages: Array


class Inspection:
    """A fit, looked at through the texts it was learned from.

    Args:
        fit: the fit, its rated texts kept.
        vectors: gives the embedding of texts, (n, dim).
        columns: gives all columns of texts.
        asked: gives the vectors of queries, (n, dim).
        keep: whether a text always has the same columns, so that what follows from them may be kept.
    """

    def __init__(
        self,
        fit: Fit,
        vectors: Callable[[Sequence[str], Fit], Vectors],
        columns: Callable[[Sequence[Item], Fit], Table],
        *,
        asked: Callable[[Sequence[str], Fit], Vectors],
        keep: bool,
    ) -> None:
        self.fit = fit
        self._asked = asked
        self._keep = keep
        self._vectors = vectors
        self._columns = columns

    # How sure

    @property
    def posterior(self) -> Posterior:
        """What the fit leaves uncertain."""
        return self.fit.memo.once(
            "posterior", lambda: posterior_of(self._weighed(self.fit.items), self.fit.scores, self.fit.alpha)
        )

    def fit_variance(self, item: Item) -> float:
        """How unlike what was rated a text is, as `Posterior.fit_variance`."""
        memo = self.fit.memo
        if not self._keep:
            return self.posterior.fit_variance(self._weighed([item])[0])
        kept = memo.variances.get(item)
        if kept is not None:
            return kept
        return memo.variances.keep(item, self.posterior.fit_variance(self._weighed([item])[0]))

    def std(self, item: Item) -> float:
        """Standard deviation of what a rater would say of a text, on the scale of the scores."""
        known = self.fit.memo.bounds.get(item) if self._keep else None
        if known is not None:
            lowest, highest = map(self.posterior.std, known)
            if lowest == highest:
                return lowest
        return self.posterior.std(self.fit_variance(item))

    def exceeds(self, item: Item, limit: float) -> bool:
        """Tell whether the `fit_variance` of a text is above a limit."""
        lowest, highest = (self.fit.memo.bounds.get(item) if self._keep else None) or (0.0, math.inf)
        if lowest <= limit < highest:
            return self.fit_variance(item) > limit
        return lowest > limit

    def foresee(self, items: Sequence[Item]) -> None:
        """Work out together, at the cost of products, what values and standard deviations of texts will be asked for.

        Each text then gets the same bits as without.
        """
        memo = self.fit.memo
        new = [item for item in dict.fromkeys(items) if not (item in memo.values and item in memo.bounds)]
        for rows in slices(len(new) if self._keep else 0, AT_ONCE):
            X = self._columns(new[rows], self.fit).X
            for item, value in zip(new[rows], self.fit.predict(X).tolist(), strict=True):
                memo.values.keep(item, value)
            if self.fit.n_texts:
                for item, *bounds in zip(new[rows], *self.posterior.bounds(self.fit.fitted.weighed(X)), strict=True):
                    memo.bounds.keep(item, (float(bounds[0]), float(bounds[1])))

    def stds(self, items: Sequence[Item]) -> Array:
        """What `std` gives for each of many texts, bit for bit, (n_texts,), at the cost of products."""
        std = np.empty(len(items))
        for rows in slices(len(items), AT_ONCE):
            std[rows] = self.posterior.stds(self._weighed(items[rows]))
        return std

    def leave_one_out(self) -> LeftOut:
        """Every rated text under the value function that all the others give."""
        loo = self.posterior.loo
        left = 1 - loo.leverages
        std = self.posterior.noise / np.sqrt(np.where(left > 0, left, np.nan))
        return LeftOut(self.fit.scores - loo.residuals, loo.residuals, std, loo.leverages)

    def _weighed(self, items: Sequence[Item]) -> NDArray[np.float32] | Array:
        return self.fit.fitted.weighed(self._columns(items, self.fit).X)

    # Which rated texts it is like

    def cosines(self, item: Item, rows: Any = slice(None)) -> Array:
        """The cosine of a text with rated texts, (n_rows,); of a text for a query, the mean of both sides'."""
        cosines = dot_rows(self._rated[rows], unit(self._vectors([text_of(item)], self.fit))[0])
        query = query_of(item)
        if query is None:
            return cosines
        return (cosines + dot_rows(self._asked_vectors[rows], self._asked([query], self.fit)[0])) / 2

    def rough_cosines(self, items: Sequence[Item]) -> Vectors:
        """`cosines` of many texts with all rated texts, (m, n_texts), off by less than `roughness`."""
        cosines = unit(self._vectors([text_of(item) for item in items], self.fit)) @ self._rated.T
        queries = [query for item in items if (query := query_of(item)) is not None]
        if queries:
            cosines = (cosines + self._asked(queries, self.fit) @ self._asked_vectors.T) / 2
        return cosines

    @property
    def roughness(self) -> float:
        """The most that rounding can do to an inner product of unit vectors in float32."""
        return 2.0**-23 * float(self._rated.shape[1] + 4)

    def highest(self, item: Item, rough: Vectors, rows: NDArray[np.intp], n: int) -> tuple[NDArray[np.intp], Array]:
        """Of some rated texts, those with the highest cosine, at most n, and that cosine, highest first.

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
        """Of at most 1,000 rated texts, evenly taken, the cosine with the nearest other one, ascending."""

        def make() -> Array:
            rated = self._rated
            chosen = np.arange(0, len(rated), -(-len(rated) // SAMPLE))
            nearest = np.full(len(chosen), -np.inf, dtype=np.float32)
            for rows in slices(len(rated), 1024):
                cosines = rated[chosen] @ rated[rows].T
                itself = np.flatnonzero((chosen >= rows.start) & (chosen < rows.stop))
                cosines[itself, chosen[itself] - rows.start] = -np.inf
                np.maximum(nearest, cosines.max(axis=1), out=nearest)
            return np.sort(np.round(nearest.astype(np.float64), 5))  # what another BLAS rounds otherwise is not seen

        return self.fit.memo.once("nearest other", make)

    @property
    def _rated(self) -> Vectors:
        """Unit vectors of the rated texts, (n_texts, dim)."""
        return self.fit.memo.once("rated", lambda: unit(self._vectors(self.fit.texts, self.fit)))

    @property
    def _asked_vectors(self) -> Vectors:
        """Unit vectors of the queries of the rated texts, (n_texts, dim)."""
        queries = [example.query or "" for example in self.fit.rated]
        return self.fit.memo.once("queries", lambda: self._asked(queries, self.fit))
