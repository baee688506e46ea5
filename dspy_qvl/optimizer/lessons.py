"""What an optimizer teaches: rated texts to value functions, judged passages to rerankers.

A lesson says where an example keeps what is learned from, reads it, and teaches it to one module at a time.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import dspy
import numpy as np

from dspy_qvl import measures
from dspy_qvl.errors import InputError, QVLWarning, check_count, check_flag, check_score, check_text, is_list, shown
from dspy_qvl.fitting import LEVEL, check_alphas, check_scores_differ, noise_warning
from dspy_qvl.learner import Examples, Qwen3EmbeddingValueLearner
from dspy_qvl.reranker import SCORE, JudgedQuery, Reranker, as_list, checked_scores, passage_text, scores_within
from dspy_qvl.text import (
    REASON,
    AsText,
    FromExample,
    RankingExample,
    Rendering,
    check_metadata,
    checked_examples,
    taken,
)

SCORES = "scores"  # the field of an example, or of a retriever's Prediction, with those of a first stage


@dataclass(frozen=True)
class RatedTexts:
    """Rated texts: read, and read for a report only."""

    texts: list[RankingExample]
    groups: list[Any] | None
    unseen: list[RankingExample]


@dataclass(frozen=True)
class JudgedPassages:
    """Judged queries: read, and read for a report only."""

    queries: list[JudgedQuery]
    unseen: list[JudgedQuery]


class Lesson(Protocol):
    """What is taught to modules of one kind."""

    kind: type[Any]

    def read(self, trainset: Any, valset: Any, modules: Iterable[Any], /) -> Any:
        """What they are taught, and what is only reported on."""

    def teach(self, module: Any, read: Any, /) -> dict[str, Any]:
        """Fit one of them; what `FitValue.report` says of it."""


class ValueLesson:
    """Rated texts for value functions; see `FitValue` for the arguments.

    Raises:
        InputError: an argument that cannot be used.
    """

    kind: type[Any] = Qwen3EmbeddingValueLearner

    def __init__(
        self,
        *,
        text: AsText,
        score: FromExample,
        group: FromExample | None,
        alphas: Sequence[float],
        cv: int,
        query: str | None,
    ) -> None:
        self.rendering = Rendering(text)
        if text is None:
            raise InputError("text must say which text of an example was rated: a field, a format string, a callable.")
        for name, given in (("score", score), ("group", group)):
            if not (_is_field(given) or callable(given) or (name == "group" and given is None)):
                raise InputError(f"{name} must be the name of a field or a callable, but got {shown(given)}.")
        self.score, self.group, self.query = score, group, query
        self.asked = _asked(query)
        self.alphas, self.cv = check_alphas(alphas, "alphas"), check_count(cv, "cv", 2)

    def read(self, trainset: Any, valset: Any, learners: Iterable[Qwen3EmbeddingValueLearner]) -> RatedTexts:
        """What the learners are taught, and what is reported on.

        Raises:
            InputError: an example that cannot be used, or ratings that teach nothing.
        """
        texts, groups = self._rated(trainset, "trainset")
        check_scores_differ([example.score for example in texts])
        return RatedTexts(texts, groups, self._unseen(valset))

    def teach(self, learner: Qwen3EmbeddingValueLearner, rated: RatedTexts) -> dict[str, Any]:
        """Fit a learner on the rated texts alone; what `FitValue.report` says of it."""
        template = self.rendering.text if isinstance(self.rendering.text, str) else None
        # Not by `examples`, which would forget the fit, and with it the vectors that were loaded.
        learner.ridge.put(examples=Examples(rated.texts), template=template, query_template=self.query)
        chosen = learner.optimize_hyperparameters(self.alphas, self.cv, groups=rated.groups)
        return _report(learner, rated.texts, chosen, rated.unseen)

    def _unseen(self, valset: Any) -> list[RankingExample]:
        """Rated examples to report on; none where nothing of the valset is rated, as in a step of `BetterTogether`."""
        if _is_nothing(valset):
            return []
        if (
            isinstance(valset, Sequence)
            and isinstance(self.score, str)
            and all(isinstance(row, dspy.Example | Mapping) and self.score not in row for row in valset)
        ):
            warnings.warn(
                f"no example of the valset has a {self.score!r}, so nothing is reported on it.",
                QVLWarning,
                stacklevel=6,
            )
            return []
        return self._rated(valset, "valset")[0]

    def _rated(self, examples: Any, what: str) -> tuple[list[RankingExample], list[Any] | None]:
        """Rated texts, and the group of each, from examples."""
        rated, members = [], []
        for row, example in enumerate(checked_examples(examples, what)):
            at = f"{what}[{row}]"
            try:
                text = self.rendering.rated(example)
            except InputError as error:
                raise InputError(f"{at} has no text to learn from: {error}") from error
            score = check_score(taken(self.score, example, "score", at), f"the score of {at}")
            metadata = check_metadata(_metadata(example), f"the metadata of {at}")
            query = None if self.asked is None else _query(self.asked, example, at)
            rated.append(RankingExample(check_text(text, f"the text of {at}"), score, metadata, query))
            members.append(None if self.group is None else taken(self.group, example, "group", at))
        return rated, members if self.group is not None else None


class RankingLesson:
    """Judged passages for rerankers; see `FitValue` for the arguments.

    Raises:
        InputError: an argument that cannot be used.
    """

    kind: type[Any] = Reranker

    def __init__(
        self, *, query: str | None, passages: str, relevance: str, first_stage: bool | None, k: int | None, cv: int
    ) -> None:
        for name, field in (("passages", passages), ("relevance", relevance)):
            if not _is_field(field):
                raise InputError(f"{name} must be the name of a field, but got {shown(field)}.")
        asked = _asked(query)
        if asked is None:
            raise InputError("passages are ranked for a query; say which field it is with query=.")
        self.asked, self.passages, self.relevance, self.cv = asked, passages, relevance, check_count(cv, "cv", 2)
        self.first_stage = None if first_stage is None else check_flag(first_stage, "first_stage")
        self.k = None if k is None else check_count(k, "k", 1)

    def read(self, trainset: Any, valset: Any, rerankers: Iterable[Reranker]) -> JudgedPassages:
        """What the rerankers are taught, and what is reported on.

        Raises:
            InputError: an example that cannot be used.
        """
        scored = self.relevance != SCORES and any(
            SCORE in reranker.features or (reranker.auto and self.first_stage is not False) for reranker in rerankers
        )
        unseen = [] if _is_nothing(valset) else self._judged(valset, "valset", scored=scored)
        return JudgedPassages(self._judged(trainset, "trainset", scored=scored), unseen)

    def teach(self, reranker: Reranker, judged: JudgedPassages) -> dict[str, Any]:
        """Fit a reranker on the judged passages; what `FitValue.report` says of it."""
        report = reranker.learn(judged.queries, cv=self.cv, k=self.k)
        return {**report, "val": reranker.judge(judged.unseen, k=self.k)} if judged.unseen else report

    def _judged(self, examples: Any, what: str, *, scored: bool) -> list[JudgedQuery]:
        """Judged queries from examples."""
        judged = []
        for row, example in enumerate(checked_examples(examples, what)):
            at = f"{what}[{row}]"
            query = _query(self.asked, example, at)
            found = taken(self.passages, example, "passages", at)
            passages, retrieved = as_list(found, f"the passages of {at}"), isinstance(found, dspy.Prediction)
            relevance = taken(self.relevance, example, "relevance", at)
            if not is_list(relevance):
                raise InputError(f"the relevance of {at} must be a list of numbers, but got {shown(relevance)}.")
            numbers = [
                float(one) if isinstance(one, bool | np.bool_) else check_score(one, f"the relevance of {at}")
                for one in relevance
            ]
            if len(numbers) != len(passages):
                raise InputError(f"{at} has {len(passages)} passages but {len(numbers)} relevances; each needs one.")
            given = example.get(SCORES) if scored else None
            if scored and given is None:
                given = scores_within(found, passages)
            judged.append(
                JudgedQuery(
                    query,
                    [passage_text(passage, f"a passage of {at}") for passage in passages],
                    np.array(numbers, dtype=np.float64),
                    checked_scores(given, len(passages), f"the scores of {at}"),
                    True if self.first_stage is None and retrieved else self.first_stage,
                )
            )
        return judged


def _asked(query: object) -> Rendering | None:
    if query is not None and not isinstance(query, str):
        raise InputError(f"query must be the name of a field or a format string, but got {shown(query)}.")
    return None if query is None else Rendering(query, what="query")


def _query(asked: Rendering, example: Any, at: str) -> str:
    try:
        return check_text(asked.rated(example), f"the query of {at}")
    except InputError as error:
        raise InputError(f"{at} has no query: {error}") from error


def _is_nothing(valset: Any) -> bool:
    return valset is None or (isinstance(valset, Sequence) and not len(valset))


def _is_field(name: object) -> bool:
    return isinstance(name, str) and bool(name.strip())


def _metadata(example: Any) -> dict[str, Any] | None:
    """What is kept with a rated text: its metadata, and the rater's reason."""
    kept = example.get("metadata")
    metadata = dict(kept) if isinstance(kept, Mapping) else {}
    if isinstance(example.get(REASON), str):
        metadata.setdefault(REASON, example[REASON])
    return metadata or None


def _report(
    learner: Qwen3EmbeddingValueLearner,
    rated: Sequence[RankingExample],
    chosen: dict[str, Any],
    unseen: Sequence[RankingExample],
) -> dict[str, Any]:
    """What `FitValue.report` says of one value function."""
    y = [example.score for example in rated]
    report = {
        "n_texts": len(rated),
        "alpha": chosen["best_alpha"],
        "cv_mse": chosen["best_mse"],
        "cv_r2": 1 - chosen["best_mse"] / measures.mse(y, [sum(y) / len(y)] * len(y)),
        "alphas": {alpha: row["mse_mean"] for alpha, row in chosen["results"].items()},
        "blocks": chosen["blocks"],
        "permutation_p": chosen["permutation_p"],
    }
    report |= {name: figure for name, figure in chosen.items() if name.startswith("oof_")}
    if chosen["permutation_p"] > LEVEL:
        report["warning"] = noise_warning(chosen["permutation_p"])
    if unseen:
        truth = [example.score for example in unseen]
        queries = [example.query for example in unseen if example.query is not None]
        values = learner.predict_many([example.text for example in unseen], queries or None)
        figures = {name: getattr(measures, name)(truth, values) for name in ("mse", "r2", "pearson", "spearman")}
        report["val"] = {"n_texts": len(unseen), **figures}
    return report
