"""`Reranker`: a DSPy module that puts the passages of a query in order, best first, as people judged others.

Before anything was learned it ranks by cosine. What is learned departs from the better of cosine and the order of the
first stage, where passages come in one, and only as far as labels ask for it (`ranking.py`).
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dspy
import numpy as np

from dspy_qvl.errors import InputError, StateError, check_count, check_text, is_list, shown, warn
from dspy_qvl.features import AUTO, COSINE, LENGTH, OVERLAP, PRODUCT, Features
from dspy_qvl.learner import Qwen3EmbeddingValueLearner
from dspy_qvl.reranker.columns import PassageColumns
from dspy_qvl.reranker.head import BLOCKS, TEXT, VALUE, Order, RankingHead
from dspy_qvl.reranker.judged import RANK, JudgedQuery
from dspy_qvl.reranker.learning import figures_of, learn_order
from dspy_qvl.reranker.passages import SCORE, SCORES, as_list, checked_scores, passage_texts, scores_within
from dspy_qvl.reranker.ranking import best_first
from dspy_qvl.vectors import Array, Vectors

DEFAULT = (COSINE, OVERLAP, LENGTH, VALUE, TEXT)  # beside rank and score of a known first stage
LINEAR = (COSINE, TEXT, PRODUCT)  # linear functions of the passage's vector


@dataclass(frozen=True)
class RankedPassage:
    """A passage with its place.

    Attributes:
        doc_id: as given, or its position among the passages.
        text: the text of the passage.
        score: higher is better; comparable within one query.
        rank: 1 for the best.
        metadata: as given, or None.
    """

    doc_id: Any
    text: str
    score: float
    rank: int
    metadata: Any = None


class Reranker(dspy.Module):  # type: ignore[misc]  # dspy ships no types
    """Puts the passages of a query into the order that judged passages teach.

        reranker = Reranker(learner)                                    # by cosine
        fit = FitValue(query="query", passages="passages", relevance="relevance")
        reranker = fit.compile(reranker, trainset=judged)
        reranker(query="How do I return a lamp?", passages=found)       # passages, scores, indices; best first

    Args:
        learner: lends its embedding model, cache and instruction (for queries only); where it is fitted, the value
            of a passage is one of the features.
        k: passages to give back; None for all.
        features: some of "cosine" (always among them), "overlap" (words and n-grams that query and passage share),
            "length", "value" (the learner's), "text" (the passage's own vector), "product" (of both vectors), and of
            the first stage "rank" and "score". "auto" for all but "product"; "rank" and "score" then only where the
            judged passages are known to come from a first stage (`judged.py` says when), one that does not rank by
            the same cosine, and where cross-validation is not against them.

    A reranker that learned from "rank" must be given passages in the first stage's order, the best first, and cannot
    tell when they are not; one that learned from "score" must be given scores. The report names what it learned from.

    Raises:
        InputError: no learner, or a feature there is not.
    """

    def __init__(
        self, learner: Qwen3EmbeddingValueLearner, *, k: int | None = None, features: Sequence[str] = AUTO
    ) -> None:
        super().__init__()
        if not isinstance(learner, Qwen3EmbeddingValueLearner):
            raise InputError(f"learner must be a Qwen3EmbeddingValueLearner, but got {type(learner).__name__}.")
        self.k = None if k is None else check_count(k, "k", 1)
        self.auto = isinstance(features, str) and features == AUTO
        self.features = DEFAULT if self.auto else _checked_features(features)
        self.learner = learner
        self.ridge = RankingHead()
        self._warned: str | None = None  # digest of the learner's fit that was warned of
        self._pair_features = Features(None, beside_lexical=True)

    # Ranking

    def forward(self, query: str, passages: Any, scores: Sequence[float] | None = None) -> dspy.Prediction:
        """The passages, best first.

        Args:
            query: the query.
            passages: strings, dicts, objects with their text as `long_text`, `text`, …, or a retriever's Prediction.
            scores: first-stage scores, where "score" is a feature; a Prediction brings its own.

        Returns:
            `dspy.Prediction(passages, scores, indices)`: the passages as given but in order, those of one score in the
            order they came; scores are plain floats, indices the positions among the passages that were given. Fields
            of a Prediction that are as long as its passages are put into the same order: its own indices take the
            place of positions, its scores are `first_stage_scores`.

        Raises:
            InputError: something that is no passage, or first-stage scores that are missing or too many.
            StateError: fitted with another embedding model, or with a value function that is not there.
        """
        now = self._checked_snapshot()
        items = self._items(passages, now)
        values = self._scores(now, query, passages, items, passage_texts(items), scores)
        order = best_first(values)[: self.k]
        fields: dict[str, Any] = {"passages": [items[row] for row in order], "indices": order}
        for name, along in passages.items() if isinstance(passages, dspy.Prediction) else ():
            if name != "passages" and isinstance(along, list | tuple | np.ndarray) and len(along) == len(items):
                fields["first_stage_scores" if name == SCORES else name] = [along[row] for row in order]
        return dspy.Prediction(scores=[float(values[row]) for row in order], **fields)

    async def aforward(self, query: str, passages: Any, scores: Sequence[float] | None = None) -> dspy.Prediction:
        """As `forward`, off the event loop."""
        now = self._snapshot()
        query, items = check_text(query, "query"), self._items(passages, now)
        await now.embed_ahead(query, passage_texts(items))
        given = passages if isinstance(passages, dspy.Prediction) else items  # an iterator is spent by now
        return await asyncio.to_thread(Reranker.forward, self, query, given, scores)

    def rank(
        self,
        query: str,
        docs: Any,
        doc_ids: Sequence[Any] | None = None,
        metadata: Sequence[Any] | None = None,
        top_k: int | None = None,
        scores: Sequence[float] | None = None,
    ) -> list[RankedPassage]:
        """The documents in ranked order, the best first.

        Args:
            query: the query.
            docs: passages, as in `forward`.
            doc_ids: the name of each; left out, its position.
            metadata: returned with each.
            top_k: documents to give back; None for all (`k` does not count here).
            scores: first-stage scores, as in `forward`.

        Raises:
            InputError: as `forward`, or another number of ids or metadata than of documents.
        """
        now = self._checked_snapshot()
        items = self._items(docs, now)
        doc_ids = _one_each(doc_ids, "doc_ids", list(range(len(items))))
        metadata = _one_each(metadata, "metadata", [None] * len(items))
        top_k = None if top_k is None else check_count(top_k, "top_k", 1)
        texts = passage_texts(items)
        values = self._scores(now, query, docs, items, texts, scores)
        return [
            RankedPassage(doc_ids[row], texts[row], float(values[row]), rank, metadata[row])
            for rank, row in enumerate(best_first(values)[:top_k], start=1)
        ]

    def _scores(
        self, now: PassageColumns, query: str, passages: Any, items: list[Any], texts: list[str], scores: Any
    ) -> Array:
        """Scores of passages, (n,); first-stage scores that are needed and not given are read from the passages."""
        if scores is None and SCORE in now.names:
            scores = scores_within(passages, items)
        return now.scores(check_text(query, "query"), texts, checked_scores(scores, len(items)))

    # An index of vectors

    def query_vector(self, query: str) -> Vectors:
        """The vector whose inner product with `embed_passages` gives the learned order, (d,) float32.

        Any index that searches by inner product ranks by it. Of the passages' vectors: those of this model, cut to
        `embedding_dim` and scaled to unit length, as `embed_passages` gives them.

        Raises:
            InputError: a feature that is no linear function of the passage's vector.
        """
        others = [name for name in self._snapshot().names if name not in LINEAR]
        if others:
            raise InputError(
                f"{', '.join(map(repr, others))} cannot be had from the passage's vector alone, so no index can rank "
                "by them; make the reranker with features=('cosine', 'text', 'product') or some of these, and fit it."
            )
        return self._checked_snapshot().query_vector(check_text(query, "query"))

    def embed_passages(self, passages: Any) -> Vectors:
        """Unit vectors of passages, (n, d) float32, for an index of vectors; each is embedded once and kept."""
        return self._snapshot().embed(passage_texts(as_list(passages)))

    # Learning

    def learn(
        self, judged: Sequence[JudgedQuery], *, cv: int = 5, random_state: int = 0, k: int | None = None
    ) -> dict[str, Any]:
        """Learn an order from judged queries; `FitValue` does this for the rerankers of a program.

        Args:
            judged: queries with passages of different relevance; others teach nothing.
            cv: folds of the cross-validation over queries, at least 2.
            random_state: seed of the folds.
            k: passages from the top that nDCG and reciprocal ranks look at, in the choice and in the report; None for
                all.

        Returns:
            n_queries, n_passages: those it learned from.
            cv_ndcg, cv_mrr: mean cross-validated nDCG and reciprocal rank of the learned order. Where a first stage is
                known, the nDCG is neither below its nor below cosine's.
            cosine_ndcg, cosine_mrr: those of cosine.
            first_stage_ndcg, first_stage_mrr: those of the first stage's scores, or of its order; NaN where neither
                is known.
            k: as given.
            alpha: the penalty; infinite where the prior order was kept.
            prior: the order that the learned one departs from: "cosine", "rank" or "score".
            features: those that are used.

        Raises:
            InputError: fewer than 2 queries that teach anything, or first-stage scores that are missing.
            EmbeddingError: the model failed; an earlier order stays, and what was embedded is not asked for again.
        """
        cv, random_state = check_count(cv, "cv", 2), check_count(random_state, "random_state", 0)
        k = None if k is None else check_count(k, "k", 1)
        self.ridge.fitted, report = learn_order(self._snapshot(), judged, cv=cv, random_state=random_state, k=k)
        return report

    def judge(self, judged: Sequence[JudgedQuery], *, k: int | None = None) -> dict[str, Any]:
        """Figures of the order on judged queries.

        Args:
            judged: queries with passages of different relevance; others show nothing.
            k: passages from the top that the figures look at; None for all.

        Returns:
            n_queries: those with passages of different relevance.
            ndcg, mrr: mean nDCG and reciprocal rank.
            cosine_ndcg, cosine_mrr, first_stage_ndcg, first_stage_mrr: see `learn`.
            k: as given.
        """
        k = None if k is None else check_count(k, "k", 1)
        return figures_of(self._checked_snapshot(), judged, k)

    def unfit(self) -> None:
        """Forget the learned order, and rank by cosine."""
        self.ridge.unfit()

    # Inside

    def _snapshot(self) -> PassageColumns:
        """Learner and order of this moment, which learning or loading during the call does not change."""
        learner, order = self.learner.snapshot(), self.ridge.fitted
        return PassageColumns(learner, order, self.features, self.auto, self._pair_features)

    def _checked_snapshot(self) -> PassageColumns:
        """A snapshot whose order is known to belong to its learner."""
        self._check(self.learner, self.ridge.fitted)  # the learner itself, which remembers the check
        now = self._snapshot()
        self._check(now.learner, now.order)  # another may have been loaded meanwhile
        return now

    def _check(self, learner: Qwen3EmbeddingValueLearner, order: Order | None) -> None:
        """Check that an order belongs to a learner; warn once where its values are of another fit.

        Raises:
            StateError: the order belongs to another embedding model, or needs values and the learner is not fitted.
        """
        if order is None:
            return
        learner.check_model(order)
        if VALUE not in order.blocks.names:
            return
        if learner.ridge.fitted is None:
            raise StateError(
                "this reranker was fitted with the learner's value as a feature, but the learner has learned "
                "nothing; load it as well, or fit the reranker again."
            )
        digest = learner.current_fit().digest
        if digest not in (order.value_of, self._warned):
            self._warned = digest
            warn(
                "the learner has learned anew since this reranker was fitted with its value as a feature; fit the "
                "reranker again.",
            )

    def _items(self, passages: Any, now: PassageColumns) -> list[Any]:
        """Passages as a list.

        Raises:
            InputError: they have no order, and the first stage's rank is a feature.
        """
        if isinstance(passages, set | frozenset) and RANK in now.names:
            raise InputError(
                "this reranker has the first stage's rank among its features, and a set has no order; give passages as "
                "a list, the first stage's best first."
            )
        return as_list(passages)

    def __repr__(self) -> str:
        return f"Reranker({self.learner!r}, features={self.features}, {self.ridge!r})"


def _one_each(given: Any, name: str, default: list[Any]) -> list[Any]:
    """The entries that a caller gave for documents, one each, as a list.

    Raises:
        InputError: no list, or another number of entries than the default has.
    """
    entries = default if given is None else as_list(given, name)
    if len(entries) != len(default):
        raise InputError(f"{name} has {len(entries)} entries for {len(default)} documents; give one a document.")
    return entries


def _checked_features(features: object) -> tuple[str, ...]:
    """Names of features.

    Raises:
        InputError: no list of such names, or "cosine" is not among them.
    """
    if not is_list(features):
        raise InputError(f"features must be a list of {', '.join(BLOCKS)}, or 'auto', but got {shown(features)}.")
    names = tuple(features)
    unknown = [name for name in names if not isinstance(name, str) or name not in BLOCKS]
    if unknown:
        raise InputError(f"a reranker has no feature {shown(unknown[0])}; there are {', '.join(BLOCKS)}.")
    if COSINE not in names:
        raise InputError("features must have 'cosine': it is the order that what is learned departs from.")
    return names
