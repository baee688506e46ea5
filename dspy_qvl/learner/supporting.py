"""The support that rated texts give to the value of a text: is the text like them?

text ─► its words, their order, its length ─┐
     ─► the nearest rated text ─────────────┴─► signals ─► `Support`: the share of rated texts that are as unlike
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dspy_qvl.certainty import SIGNALS, Support, Wording, left_out_distances
from dspy_qvl.learner.columns import Columns
from dspy_qvl.learner.fit import Fit
from dspy_qvl.learner.neighbors import Neighbors
from dspy_qvl.text import Item, text_of
from dspy_qvl.vectors import Array, Vectors, slices

AT_ONCE = 256  # texts whose cosines with rated texts are in memory
COMPARED = 5000  # rated texts at most that the nearest one is looked for among


@dataclass(frozen=True, eq=False)
class SupportingTexts:
    """The rated texts of a fit as support of values; a text has the same support in any batch.

    Attributes:
        fit: the fit, its rated texts kept.
        columns: items -> the columns that the fit values them by. Where they come without the embedding model, the
            words alone tell.
    """

    fit: Fit
    columns: Columns

    def __call__(self, item: Item, rough: Vectors | None = None) -> float:
        """The share of rated texts that are as unlike the others as a text, in (0, 1].

        Args:
            item: the text.
            rough: its `rough_cosines` with all rated texts, (n_texts,), where they are at hand.
        """
        memo, keep = self.fit.memo.supports, self.columns.owner is None
        kept = memo.get(item) if keep else None
        if kept is None:
            kept = self._known[0](self._signals(item, None if rough is None else rough[self._compared]))
            if keep:
                memo.keep(item, kept)
        return kept

    def many(self, items: Sequence[Item]) -> Array:
        """The support of each of many texts, (n_texts,)."""
        memo, keep = self.fit.memo.supports, self.columns.owner is None
        known = {item: kept for item in items if keep and (kept := memo.get(item)) is not None}
        new = [item for item in dict.fromkeys(items) if item not in known]
        for rows in slices(len(new), AT_ONCE):
            some, rough = new[rows], [None] * len(new[rows])
            if self.columns.asks_model:
                rough = list(Neighbors(self.fit, self.columns).rough_cosines(some, self._compared))
            for item, cosines in zip(some, rough, strict=True):
                known[item] = self._known[0](self._signals(item, cosines))
                if keep:
                    memo.keep(item, known[item])
        return np.array([known[item] for item in items], dtype=np.float64)

    def reason(self, item: Item, rough: Vectors) -> str:
        """The respect in which a text is most unlike the rated texts, in words that follow "because".

        Args:
            item: the text.
            rough: its `rough_cosines` with all rated texts, (n_texts,).
        """
        return self._known[0].reason(self._signals(item, rough[self._compared]))

    def _signals(self, item: Item, rough: Vectors | None) -> tuple[float, ...]:
        """How unlike the rated texts a text is, by each of the signals of `Support`.

        Args:
            item: the text.
            rough: its cosines with `_compared`, (n_rows,), if they are at hand.
        """
        signals = self._known[1].signals(text_of(item))
        if not self.columns.asks_model:
            return signals
        neighbors, rows = Neighbors(self.fit, self.columns), self._compared
        if rough is None:
            rough = neighbors.rough_cosines([item], rows)[0]
        _, (cosine,) = neighbors.highest(item, rough, np.arange(self.fit.n_texts)[rows], 1)
        return (*signals, 1 - float(cosine))

    @property
    def _compared(self) -> slice:
        """The rated texts that the nearest one is looked for among, evenly spaced."""
        n = self.fit.n_texts
        return slice(0, n, -(-n // COMPARED))

    @property
    def _known(self) -> tuple[Support, Wording]:
        def make() -> tuple[Support, Wording]:
            fit = self.fit
            wording = Wording.of(fit.texts, fit.members)
            names: tuple[str, ...] = SIGNALS
            left = wording.left_out
            if self.columns.asks_model:
                vectors, among = Neighbors(fit, self.columns).compared, np.arange(fit.n_texts)[self._compared]
                distances = left_out_distances(vectors, fit.members, wording.rows, among)
                names, left = (*names, "distance"), np.column_stack([left, distances])
            return Support.of(names, left), wording

        return self.fit.memo.once("supporting", make)
