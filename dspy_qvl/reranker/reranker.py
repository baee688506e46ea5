"""`Reranker`: the passages of a query, best first, as people judged them; a DSPy module.

    query ─► vector ─┐
                     ├─► cosine, overlap of words, the passage itself, … ─► a learned order (`ranking.py`)
    passages ─► vectors (once, kept)

Before anything was learned it ranks by cosine. What is learned departs from the better of cosine and the order of the
first stage, where passages come in one, and only as far as labels ask for it.
"""

import asyncio
import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dspy
import numpy as np

from dspy_qvl.errors import InputError, QVLWarning, StateError, check_count, check_text, is_list, shown
from dspy_qvl.features import AUTO, COSINE, EMBEDDING, LENGTH, OVERLAP, PRODUCT, Blocks, Features, Queries
from dspy_qvl.fitting import copies, make_folds
from dspy_qvl.learner import Qwen3EmbeddingValueLearner
from dspy_qvl.reranker.head import BLOCKS, TEXT, VALUE, Order, RankingHead, width_of
from dspy_qvl.reranker.judged import (
    RANK,
    SCORE,
    JudgedQuery,
    checked_scores,
    first_stage_values,
    known_of_first_stage,
    scores_within,
    telling,
)
from dspy_qvl.reranker.passages import _texts, as_list
from dspy_qvl.reranker.ranking import Quality, fit_ranking, quality_of
from dspy_qvl.reranker.sketch import folded, unfolded
from dspy_qvl.vectors import Array, Vectors, slices

DEFAULT = (COSINE, OVERLAP, LENGTH, VALUE, TEXT)  # and of the first stage what is known
FIRST_STAGE = (RANK, SCORE)
OF_PAIRS = (COSINE, OVERLAP, LENGTH, PRODUCT)  # made by `features.py`
LINEAR = (COSINE, TEXT, PRODUCT)  # of the passage's vector
ALIKE = 0.9  # of the queries
LARGEST_ENTRY = 1e38  # that float32 holds
AT_ONCE = 1024  # passages whose columns are in memory together


@dataclass(frozen=True)
class RankedPassage:
    """A passage with its place.

    Attributes:
        doc_id: as given, or its position among the passages.
        text: of the passage.
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
    tell when they are not; one that learned from "score" must be given scores. What it learned from is in the report.

    Raises:
        InputError: no learner, or a feature there is not.
    """

    auto = False  # of one that was pickled before there was "auto"

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
        self._warned: str | None = None  # the digest of the learner's fit that was warned of
        self._blocks = Features([name for name in OF_PAIRS if name in self.features], beside_lexical=True)

    # Ranking

    def forward(self, query: str, passages: Any, scores: Sequence[float] | None = None) -> dspy.Prediction:
        """The passages, best first.

        Args:
            query: what was asked.
            passages: strings, dicts, objects with their text as `long_text`, `text`, …, or a retriever's Prediction.
            scores: of the first stage, where "score" is a feature; a Prediction brings its own.

        Returns:
            `dspy.Prediction(passages, scores, indices)`, as given but in order, those of one score in the order they
            came; scores are plain floats, indices the positions among the passages that were given. Fields of a
            Prediction that are as long as its passages are put into the same order: its own indices take the place of
            positions, its scores are `first_stage_scores`.

        Raises:
            InputError: something that is no passage, or first-stage scores that are missing or too many.
            StateError: fitted with another embedding model, or with a value function that is not there.
        """
        return self._reading()._ranked(query, passages, scores)

    def _ranked(self, query: str, passages: Any, scores: Sequence[float] | None) -> dspy.Prediction:
        query, items = check_text(query, "query"), self._items(passages)
        given = passages if isinstance(passages, dspy.Prediction) else None
        if scores is None and SCORE in self._names():
            scores = None if given is None else given.get("scores")
            scores = scores_within(items) if scores is None else scores
        values = self._scores(query, _texts(items), checked_scores(scores, len(items)))
        order = np.argsort(-values, kind="stable")[: self.k].tolist()
        fields: dict[str, Any] = {"passages": [items[row] for row in order], "indices": order}
        for name in given.keys() if given is not None else ():
            along = given[name] if given is not None else None
            if name != "passages" and isinstance(along, list | tuple | np.ndarray) and len(along) == len(items):
                fields["first_stage_scores" if name == "scores" else name] = [along[row] for row in order]
        return dspy.Prediction(scores=[float(values[row]) for row in order], **fields)

    async def aforward(self, query: str, passages: Any, scores: Sequence[float] | None = None) -> dspy.Prediction:
        """As `forward`, off the event loop."""
        now = self._snapshot()
        query, items = check_text(query, "query"), now._items(passages)
        expect = None if now.ridge.fitted is None else now.ridge.fitted.probe
        await now.learner.aembed(_texts(items), instruct=False, expect=expect)
        await now.learner.aembed([query], expect=expect)
        given = passages if isinstance(passages, dspy.Prediction) else items  # an iterator is spent by now
        return await asyncio.to_thread(lambda: self._reading()._ranked(query, given, scores))

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
            query: what was asked.
            docs: passages, as in `forward`.
            doc_ids: the name of each; left out, its position.
            metadata: what to hand back with each.
            top_k: how many to give back; None for all (`k` does not count here).
            scores: of the first stage, where "score" is a feature.

        Raises:
            InputError: as `forward`, or another number of ids or metadata than of documents.
        """
        now = self._reading()
        items = now._items(docs)
        doc_ids, metadata = (
            None if along is None else as_list(along, name)
            for name, along in (("doc_ids", doc_ids), ("metadata", metadata))
        )
        for name, along in (("doc_ids", doc_ids), ("metadata", metadata)):
            if along is not None and len(along) != len(items):
                raise InputError(f"{name} has {len(along)} entries for {len(items)} documents; give one a document.")
        top_k = None if top_k is None else check_count(top_k, "top_k", 1)
        texts = _texts(items)
        if scores is None and SCORE in now._names():
            scores = scores_within(items)
        values = now._scores(check_text(query, "query"), texts, checked_scores(scores, len(texts)))
        return [
            RankedPassage(
                row if doc_ids is None else doc_ids[row],
                texts[row],
                float(values[row]),
                rank,
                None if metadata is None else metadata[row],
            )
            for rank, row in enumerate(np.argsort(-values, kind="stable")[:top_k].tolist(), start=1)
        ]

    def _scores(self, query: str, texts: list[str], given: Array | None) -> Array:
        """Scores of passages, (n,)."""
        order = self._ready()
        if given is not None and len(given):
            given = given - given.mean()
        values = np.empty(len(texts))
        for part in slices(len(texts), AT_ONCE):
            names = (COSINE,) if order is None else order.blocks.names
            X = self._columns(query, texts[part], names, part.start, None if given is None else given[part])
            values[part] = X[:, 0] if order is None else order.scores(X)
        return values

    # An index of vectors

    def query_vector(self, query: str) -> Vectors:
        """The vector whose inner product with `embed_passages` gives the learned order, (d,) float32.

        Any index that searches by inner product ranks by it. Of the passages' vectors: those of this model, cut to
        `embedding_dim` and scaled to unit length, as `embed_passages` gives them.

        Raises:
            InputError: a feature that is no linear function of the passage's vector.
        """
        now = self._snapshot()
        others = [name for name in now._names() if name not in LINEAR]
        if others:
            raise InputError(
                f"{', '.join(map(repr, others))} cannot be had from the passage's vector alone, so no index can rank "
                "by them; make the reranker with features=('cosine', 'text', 'product') or some of these, and fit it."
            )
        now = self._reading()
        vector: Array = now._asked(check_text(query, "query"), 1)[0].astype(np.float64)
        order = now.ridge.fitted
        if order is not None:
            text, product = (unfolded(order.coef_of(name), len(vector)) for name in (TEXT, PRODUCT))
            vector = order.coef_of(COSINE) * vector + text + product * vector
            vector *= min(1.0, LARGEST_ENTRY / max(np.abs(vector).max(), 1.0))  # the order is that of its direction
        single: Vectors = vector.astype(np.float32)
        return single

    def embed_passages(self, passages: Any) -> Vectors:
        """Unit vectors of passages, (n, d) float32, for an index of vectors; each is embedded once and kept."""
        return self._embedded(_texts(as_list(passages)))

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
            n_queries, n_passages: what was learned from.
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
        useful = telling(judged)
        if len({one.query for one in useful}) < 2:
            raise InputError(
                f"{len(useful)} of {len(judged)} queries have passages of different relevance; an order is learned "
                "from at least 2 different ones."
            )
        now = self._snapshot()
        now._embedded([text for one in useful for text in one.passages])
        now.learner.embed([one.query for one in useful])
        known = self._known_of_first_stage(useful, self.features, warn=self.auto)
        new = [name for name in known if self.auto and not now._ranks_by_cosine(useful, name)]
        names = tuple(name for name in BLOCKS if name in (*self.features, *new))
        if VALUE in names and not now._may_use_value([text for one in useful for text in one.passages]):
            names = tuple(name for name in names if name != VALUE)
        d = now.learner.embed([useful[0].query]).shape[1]
        blocks = Blocks(names, tuple(width_of(name, d) for name in names))
        priors = [number for number, name in enumerate(names) if name in (COSINE, *FIRST_STAGE)]
        fitted = fit_ranking(
            lambda number: now._columns(
                useful[number].query, useful[number].passages, names, 0, _centred(useful[number].scores)
            ),
            [one.relevance for one in useful],
            list(blocks.slices.values()),
            make_folds(copies([one.query for one in useful]), cv, np.random.default_rng(random_state)),
            priors=priors,
            optional=priors[1:] if self.auto else (),
            k=k,
        )
        used = [name for name, factor in zip(names, fitted.factors, strict=True) if factor > 0]
        self.ridge.fitted = now._order(fitted.coef, blocks, used, len(useful))
        return {
            "n_queries": len(useful),
            "n_passages": sum(len(one.passages) for one in useful),
            **_told(fitted.quality, "cv_"),
            **_told(fitted.prior_qualities[0], "cosine_"),
            **_told(_first_stage_quality(useful, known, k), "first_stage_"),
            "k": k,
            "alpha": fitted.alpha,
            "prior": names[fitted.prior],
            "features": used,
        }

    def _order(self, coef: Array, blocks: Blocks, used: Sequence[str], n_queries: int) -> Order:
        """The learned order; a first stage that is not used is left out, so that nobody is asked for it."""
        kept = blocks.only([name for name in blocks.names if name in used or name not in FIRST_STAGE])
        coef = np.concatenate([coef[blocks.slices[name]] for name in kept.names])
        coef.setflags(write=False)
        return Order(
            coef,
            kept,
            self.learner.identity,
            self.learner.probe(),
            n_queries,
            self.learner.current_fit().digest if VALUE in blocks.names else None,
        )

    def judge(self, judged: Sequence[JudgedQuery], *, k: int | None = None) -> dict[str, Any]:
        """How good the order is on judged queries.

        Args:
            judged: queries with passages of different relevance; others tell nothing.
            k: passages from the top that the figures look at; None for all.

        Returns:
            n_queries: those that tell.
            ndcg, mrr: mean nDCG and reciprocal rank.
            cosine_ndcg, cosine_mrr, first_stage_ndcg, first_stage_mrr: see `learn`.
            k: as given.
        """
        k = None if k is None else check_count(k, "k", 1)
        useful, now = telling(judged), self._reading()
        known = self._known_of_first_stage(useful, now._names(), warn=False)
        relevances = [one.relevance for one in useful]
        learned = [now._scores(one.query, one.passages, one.scores) for one in useful]
        return {
            "n_queries": len(useful),
            **_told(quality_of(relevances, learned, k), ""),
            **_told(quality_of(relevances, [now._cosines(one) for one in useful], k), "cosine_"),
            **_told(_first_stage_quality(useful, known, k), "first_stage_"),
            "k": k,
        }

    def unfit(self) -> None:
        """Forget the learned order, and rank by cosine."""
        self.ridge.unfit()

    # Inside

    def _snapshot(self) -> "Reranker":
        """Itself as it is at this moment: what it, or its learner, learns or loads meanwhile does not reach it."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__, ridge=copy.copy(self.ridge), learner=self.learner.snapshot())
        return twin

    def _reading(self) -> "Reranker":
        """A snapshot to rank by, once it is known that the learned order belongs to this embedding model."""
        self._ready()  # what the learner finds out of its model stays with it, and what was warned of
        return self._snapshot()

    def _items(self, passages: Any) -> list[Any]:
        """Passages as a list, in an order where one is needed."""
        if isinstance(passages, set | frozenset) and RANK in self._names():
            raise InputError(
                "this reranker has the first stage's rank among its features, and a set has no order; give passages as "
                "a list, the first stage's best first."
            )
        return as_list(passages)

    def _ready(self) -> Order | None:
        """The learned order, known to belong to this embedding model, or None."""
        order = self.ridge.fitted
        if order is not None:
            self.learner.check_model(order)
            if VALUE in order.blocks.names and self.learner.ridge.fitted is None:
                raise StateError(
                    "this reranker was fitted with the learner's value as a feature, but the learner has learned "
                    "nothing; load it as well, or fit the reranker again."
                )
            if VALUE in order.blocks.names and self._other_value(order):
                warnings.warn(
                    "the learner has learned anew since this reranker was fitted with its value as a feature; fit the "
                    "reranker again.",
                    QVLWarning,
                    stacklevel=4,
                )
        return order

    def _names(self) -> tuple[str, ...]:
        """The features of the learned order, or those to learn from."""
        return self.features if self.ridge.fitted is None else self.ridge.fitted.blocks.names

    def _other_value(self, order: Order) -> bool:
        """Tell whether the learner is not the one that the order was learned with, the first time that is seen."""
        digest = self.learner.current_fit().digest
        if digest in (order.value_of, self._warned):
            return False
        self._warned = digest
        return True

    def _may_use_value(self, texts: Sequence[str]) -> bool:
        """Whether the learner's values can be learned from: it is fitted, and did not learn from these passages."""
        if self.learner.ridge.fitted is None:
            return False
        rated = set(self.learner.current_fit().texts)
        n_known = sum(text in rated for text in texts)
        if n_known:
            warnings.warn(
                f"{n_known} of {len(texts)} judged passages are texts the learner was rated on, so its values know "
                "more of them than of new ones; 'value' is left out. Rate other texts to have it.",
                QVLWarning,
                stacklevel=4,
            )
        return not n_known

    def _embedded(self, texts: list[str]) -> Vectors:
        order = self.ridge.fitted
        return self.learner.embed(texts, instruct=False, expect=None if order is None else order.probe)

    def _asked(self, query: str, n_passages: int) -> Vectors:
        """The query's vector, once for each passage, (n_passages, d)."""
        order = self.ridge.fitted
        vector = self.learner.embed([query], expect=None if order is None else order.probe)
        every: Vectors = np.broadcast_to(vector, (n_passages, vector.shape[1]))
        return every

    def _columns(self, query: str, texts: list[str], names: Sequence[str], first: int, given: Array | None) -> Vectors:
        """The columns of passages, (n, d); `first` is the place of the first of them in the first stage's order."""
        embedded, asked = self._embedded(texts), self._asked(query, len(texts))
        made = [name for name in names if name in OF_PAIRS]
        table = self._blocks(texts, embedded, made, Queries([query] * len(texts), asked))
        columns: dict[str, Any] = table.columns
        columns[TEXT] = folded(columns[EMBEDDING])
        if PRODUCT in names:
            columns[PRODUCT] = folded(columns[PRODUCT])
        if VALUE in names:
            values = self.learner.predict_many(texts, query if self._values_pairs() else None)
            columns[VALUE] = np.clip(values, -LARGEST_ENTRY, LARGEST_ENTRY)[:, None]
        if RANK in names:
            columns[RANK] = -np.log(np.arange(1 + first, 1 + first + len(texts)))[:, None]
        if SCORE in names:
            if given is None:
                raise InputError(
                    "this reranker has the first stage's score among its features; give scores=, or a Prediction with "
                    "scores, or fit it with features that have no 'score'."
                )
            columns[SCORE] = given[:, None]
        return np.concatenate([columns[name] for name in names], axis=1, dtype=np.float32)

    def _cosines(self, one: JudgedQuery) -> Vectors:
        """Of a query and its passages, (n,)."""
        cosines: Vectors = self._columns(one.query, one.passages, (COSINE,), 0, None)[:, 0]
        return cosines

    def _known_of_first_stage(self, judged: list[JudgedQuery], asked: Sequence[str], *, warn: bool) -> tuple[str, ...]:
        """What somebody asked for of a first stage, else what is known of it."""
        return tuple(name for name in FIRST_STAGE if name in asked) or known_of_first_stage(judged, warn=warn)

    def _ranks_by_cosine(self, judged: list[JudgedQuery], name: str) -> bool:
        """Tell whether a first stage ranks nearly every query's passages as cosine does, and says nothing new."""
        orders = [(np.argsort(-self._cosines(one), kind="stable"), first_stage_values(one, name)) for one in judged]
        same = [np.array_equal(order, np.argsort(-values, kind="stable")) for order, values in orders]
        return bool(np.mean(same) >= ALIKE)

    def _values_pairs(self) -> bool:
        return self.learner.current_fit().paired

    def __repr__(self) -> str:
        return f"Reranker({self.learner!r}, features={self.features}, {self.ridge!r})"


def _first_stage_quality(judged: list[JudgedQuery], known: Sequence[str], k: int | None) -> Quality | None:
    """The quality of the first stage's scores, or of its order; None where neither is known."""
    if not known:
        return None
    return quality_of([one.relevance for one in judged], [first_stage_values(one, known[-1]) for one in judged], k)


def _told(quality: Quality | None, whose: str) -> dict[str, float]:
    """A quality as entries of a report; NaN where there is none."""
    quality = quality or Quality(math.nan, math.nan)
    return {f"{whose}ndcg": quality.ndcg, f"{whose}mrr": quality.mrr}


def _checked_features(features: object) -> tuple[str, ...]:
    if not is_list(features):
        raise InputError(f"features must be a list of {', '.join(BLOCKS)}, or 'auto', but got {shown(features)}.")
    names = tuple(features)
    unknown = [name for name in names if not isinstance(name, str) or name not in BLOCKS]
    if unknown:
        raise InputError(f"a reranker has no feature {shown(unknown[0])}; there are {', '.join(BLOCKS)}.")
    if COSINE not in names:
        raise InputError("features must have 'cosine': it is the order that what is learned departs from.")
    return names


def _centred(given: Array | None) -> Array | None:
    return None if given is None else given - given.mean()
