"""The rated texts that a text is like: those whose embeddings have the highest cosine with its own.

    text ─► its vector ─► cosines with all rated texts by one product, rounded ─► of the highest, those of each row

Cosines of products of many rows round with their number; so those that may be among the highest are worked out again,
each in one order of summation, and a text has the same neighbours in any batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.learner.columns import Columns
from dspy_qvl.learner.fit import Fit
from dspy_qvl.text import Item, RankingExample, query_of, text_of
from dspy_qvl.vectors import Array, Vectors, dot_rows, unit


@dataclass(frozen=True, eq=False)
class Neighbors:
    """Rated texts by their cosine with a text.

    Attributes:
        fit: the fit, its rated texts kept.
        columns: items -> columns, by the embedding model of the fit.
    """

    fit: Fit
    columns: Columns

    def cosines(self, item: Item, rows: Any = slice(None)) -> Array:
        """The cosine of a text with rated texts, (n_rows,); of a pair, the mean of the texts' and the queries'."""
        cosines = dot_rows(self.rated[rows], unit(self.columns.vectors([text_of(item)]))[0])
        query = query_of(item)
        if query is None:
            return cosines
        return (cosines + dot_rows(self._asked_vectors[rows], self.columns.queries([query])[0])) / 2

    def rough_cosines(self, items: Sequence[Item], rows: Any = slice(None)) -> Vectors:
        """`cosines` of many texts with rated texts, (m, n_rows), off by less than `roughness`."""
        cosines: Vectors = unit(self.columns.vectors([text_of(item) for item in items])) @ self.rated[rows].T
        queries = [query for item in items if (query := query_of(item)) is not None]
        if queries:
            cosines = (cosines + self.columns.queries(queries) @ self._asked_vectors[rows].T) / 2
        return cosines

    @property
    def roughness(self) -> float:
        """The largest rounding error of an inner product of unit vectors in float32."""
        return 2.0**-23 * float(self.rated.shape[1] + 4)

    def highest(self, item: Item, rough: Vectors, rows: NDArray[np.intp], n: int) -> tuple[NDArray[np.intp], Array]:
        """The rated texts among `rows` with the highest cosine, at most n, and that cosine, highest first.

        Args:
            item: the text.
            rough: its `rough_cosines` with these, (n_rows,).
            rows: the rated texts, ascending, (n_rows,).
            n: how many.
        """
        if n < len(rows):
            rows = rows[rough >= np.partition(rough, -n)[-n] - 2 * self.roughness]
        cosines = self.cosines(item, rows)
        order = np.argsort(-cosines, kind="stable")[:n]
        return rows[order], cosines[order]

    def nearest(self, item: Item, n_neighbors: int) -> list[tuple[RankingExample, float]]:
        """The rated texts with the highest cosine, and that cosine, highest first."""
        rows, cosines = self.highest(item, self.rough_cosines([item])[0], np.arange(self.fit.n_texts), n_neighbors)
        return [(self.fit.rated[row], float(cosine)) for row, cosine in zip(rows, cosines, strict=True)]

    @property
    def compared(self) -> Vectors:
        """Unit vectors whose inner products are the `cosines`: of the rated texts, or of them and their queries."""
        if not self.columns.paired:
            return self.rated
        both: Vectors = (np.concatenate([self.rated, self._asked_vectors], axis=1) / np.sqrt(2)).astype(np.float32)
        return both

    @property
    def rated(self) -> Vectors:
        """Unit vectors of the rated texts, (n_texts, dim)."""
        return self.fit.memo.once("rated", lambda: unit(self.columns.vectors(self.fit.texts)))

    @property
    def _asked_vectors(self) -> Vectors:
        """Unit vectors of the queries of the rated texts, (n_texts, dim)."""
        queries = [example.query or "" for example in self.fit.rated]
        return self.fit.memo.once("queries", lambda: self.columns.queries(queries))
