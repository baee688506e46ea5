"""The columns of a query's passages, by which an order is learned and passages are scored.

query, passages ─► vectors ─► cosine, overlap, length, text, product ─┐
                   learner ─► value                                   ├─► (n, d), block after block
                   first stage ─► rank, score                         ┘
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dspy_qvl.embedding import Probe
from dspy_qvl.errors import InputError
from dspy_qvl.features import COSINE, EMBEDDING, LENGTH, OVERLAP, PRODUCT, Features, Queries
from dspy_qvl.learner import Qwen3EmbeddingValueLearner
from dspy_qvl.reranker.head import TEXT, VALUE, Order
from dspy_qvl.reranker.judged import RANK
from dspy_qvl.reranker.passages import SCORE
from dspy_qvl.reranker.sketch import folded, unfolded
from dspy_qvl.vectors import Array, Vectors, slices

OF_PAIRS = (COSINE, OVERLAP, LENGTH, PRODUCT)  # made by `Features`
LARGEST_ENTRY = 1e38  # that float32 holds
AT_ONCE = 1024  # passages whose columns are in memory together


@dataclass(frozen=True)
class PassageColumns:
    """Makes columns and scores of passages, by a learner and an order that do not change meanwhile.

    Attributes:
        learner: lends its embedding model, and values the passages where "value" is among the blocks.
        order: the learned order; None before anything was learned.
        features: blocks to learn an order from.
        auto: True to learn from the first stage's rank and score, too, where they are known and help.
        pair_features: makes the blocks of a query and a passage.
    """

    learner: Qwen3EmbeddingValueLearner
    order: Order | None
    features: tuple[str, ...]
    auto: bool
    pair_features: Features

    @property
    def names(self) -> tuple[str, ...]:
        """The blocks of the learned order, else those to learn from."""
        return self.features if self.order is None else self.order.blocks.names

    def __call__(
        self, query: str, texts: list[str], names: Sequence[str], scores: Array | None, rows: slice | None = None
    ) -> Vectors:
        """The named blocks of columns, (n, d) float32.

        Args:
            query: the query.
            texts: all passages of the query, in the order of the first stage.
            names: blocks, in the order of their columns.
            scores: first-stage scores, one a passage, or None.
            rows: the passages whose columns are made; None for all.

        Raises:
            InputError: "score" is among the names, and there are no scores.
        """
        rows = slice(0, len(texts)) if rows is None else rows
        some = texts[rows]
        embedded, vector = self.embed(some), self.query_embedding(query)
        asked = Queries([query] * len(some), np.broadcast_to(vector, (len(some), len(vector))))
        of_pairs = [name for name in names if name in OF_PAIRS]
        made = self.pair_features(some, embedded, [EMBEDDING, *of_pairs], asked)
        columns: dict[str, Any] = made.columns
        columns[TEXT] = folded(columns[EMBEDDING])
        if PRODUCT in names:
            columns[PRODUCT] = folded(columns[PRODUCT])
        if VALUE in names:
            values = self.learner.predict_many(some, query if self.learner.current_fit().paired else None)
            columns[VALUE] = np.clip(values, -LARGEST_ENTRY, LARGEST_ENTRY)[:, None]
        if RANK in names:
            columns[RANK] = -np.log(np.arange(1 + rows.start, 1 + rows.stop))[:, None]
        if SCORE in names:
            if scores is None:
                raise InputError(
                    "this reranker has the first stage's score among its features; give scores=, or a Prediction with "
                    "scores, or fit it with features that have no 'score'."
                )
            columns[SCORE] = (scores - scores.mean())[rows, None]
        return np.concatenate([columns[name] for name in names], axis=1, dtype=np.float32)

    def cosines(self, query: str, texts: list[str]) -> Vectors:
        """Cosine of the query with each passage, (n,)."""
        return np.asarray(self(query, texts, (COSINE,), None)[:, 0])

    def scores(self, query: str, texts: list[str], scores: Array | None) -> Array:
        """Scores of passages by the learned order, or by cosine where there is none, (n,); higher is better."""
        found = np.empty(len(texts))
        for rows in slices(len(texts), AT_ONCE):
            X = self(query, texts, (COSINE,) if self.order is None else self.names, scores, rows)
            found[rows] = X[:, 0] if self.order is None else self.order.scores(X)
        return found

    def query_vector(self, query: str) -> Vectors:
        """The vector whose inner product with a passage's gives its score, (d,) float32, up to a constant factor.

        Blocks other than "cosine", "text" and "product" have none; the caller has refused them.
        """
        asked: Array = self.query_embedding(query).astype(np.float64)
        if self.order is None:
            return asked.astype(np.float32)
        vector = self.order.coef_of(COSINE) * asked
        for name in self.names[1:]:
            coef = unfolded(self.order.coef_of(name), len(asked))
            vector = vector + (coef * asked if name == PRODUCT else coef)
        vector *= min(1.0, LARGEST_ENTRY / max(np.abs(vector).max(), 1.0))  # the order is that of its direction
        return vector.astype(np.float32)

    # Vectors

    @property
    def expect(self) -> Probe | None:
        """The vectors that the model must give for the probe texts: those it gave when the order was learned."""
        return None if self.order is None else self.order.probe

    def embed(self, texts: list[str]) -> Vectors:
        """Unit vectors of passages, (n, d); the instruction stands before queries only."""
        return self.learner.embed(texts, instruct=False, expect=self.expect)

    def query_embedding(self, query: str) -> Vectors:
        """Unit vector of a query, (d,)."""
        vector: Vectors = self.learner.embed([query], expect=self.expect)[0]
        return vector

    async def embed_ahead(self, query: str, texts: list[str]) -> None:
        """Embed passages and query off the event loop, so that both are in the cache."""
        await self.learner.aembed(texts, instruct=False, expect=self.expect)
        await self.learner.aembed([query], expect=self.expect)
