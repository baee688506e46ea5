"""What a fit says of texts beside their value: how sure it is, and which rated texts they are like.

All of it follows from the rated texts the fit was learned from; what is worked out once is kept with the fit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.embedding import unit
from dspy_qvl.features import Table
from dspy_qvl.fit import Fit
from dspy_qvl.linear import dot_rows
from dspy_qvl.moments import slices
from dspy_qvl.text import Item, RankingExample, query_of, text_of
from dspy_qvl.uncertainty import Posterior, posterior

Array = NDArray[np.float64]
Vectors = NDArray[np.float32]

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
            "posterior", lambda: posterior(self._weighed(self.fit.items), self.fit.scores, self.fit.alpha)
        )

    def fit_variance(self, item: Item) -> float:
        """How unlike what was rated a text is, as `Posterior.fit_variance`."""
        memo = self.fit.memo
        if not self._keep:
            return self.posterior.fit_variance(self._weighed([item])[0])
        kept = memo.variances.get(item)
        if kept is not None:
            return kept
        return memo.keep(memo.variances, item, self.posterior.fit_variance(self._weighed([item])[0]))

    def std(self, item: Item) -> float:
        """Standard deviation of what a rater would say of a text, on the scale of the scores."""
        return self.posterior.std(self.fit_variance(item))

    def leave_one_out(self) -> LeftOut:
        """Every rated text under the value function that all the others give."""
        loo = self.posterior.loo
        left = 1 - loo.leverages
        std = self.posterior.noise / np.sqrt(np.where(left > 0, left, np.nan))
        return LeftOut(self.fit.scores - loo.residuals, loo.residuals, std, loo.leverages)

    def _weighed(self, items: Sequence[Item]) -> NDArray[np.float32] | Array:
        return self.fit.fitted.weighed(self._columns(items, self.fit).X)

    # Which rated texts it is like

    def cosines(self, item: Item) -> Array:
        """The cosine of a text with every rated text, (n_texts,); of a text for a query, the mean of both sides'."""
        cosines = dot_rows(self._rated, unit(self._vectors([text_of(item)], self.fit))[0])
        query = query_of(item)
        if query is None:
            return cosines
        queries = [example.query or "" for example in self.fit.rated]
        rated = self.fit.memo.once("queries", lambda: self._asked(queries, self.fit))
        return (cosines + dot_rows(rated, self._asked([query], self.fit)[0])) / 2

    def nearest(self, item: Item, n_neighbors: int) -> list[tuple[RankingExample, float]]:
        """The rated texts with the highest cosine, and that cosine, highest first."""
        cosines = self.cosines(item)
        order = np.argsort(-cosines, kind="stable")[:n_neighbors]
        return [(self.fit.rated[row], float(cosines[row])) for row in order.tolist()]

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
