"""Readers of examples: rated texts for value functions, judged passages for rerankers.

    trainset, valset ─► reader.read ─► fit ─► for each module that is meant: fit(module) ─► its report

A reader checks every example before it returns; what it returns fits one module and reports on it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import dspy
import numpy as np

from dspy_qvl import measures
from dspy_qvl.errors import InputError, check_count, check_flag, check_score, check_text, is_list, shown, warn
from dspy_qvl.fitting import LEVEL, check_alphas, check_scores_differ, noise_warning
from dspy_qvl.learner import Examples, Qwen3EmbeddingValueLearner
from dspy_qvl.reranker import SCORE, SCORES, JudgedQuery, Reranker, as_list, checked_scores, passage_text, scores_within
from dspy_qvl.text import REASON, RankingExample, Rendering, check_metadata, checked_examples, taken

Fit = Callable[[Any], dict[str, Any]]  # fits one module on the examples that were read, and returns its report
Rated = list[RankingExample]


class Reader(Protocol):
    """Reads examples for modules of one kind."""

    kind: type[Any]

    def read(self, trainset: Any, valset: Any, modules: Iterable[Any], /) -> Fit:
        """Read and check all examples; return a function that fits a module and reports on it."""


class RatedTextReader:
    """Reads rated texts, and fits value functions on them; see `FitValue` for the arguments.

    Raises:
        InputError: an argument that cannot be used.
    """

    kind: type[Any] = Qwen3EmbeddingValueLearner

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.text = Rendering(arguments["text"])
        if self.text.text is None:
            raise InputError("text must say which text of an example was rated: a field, a format string, a callable.")
        self.score, self.group = arguments["score"], arguments["group"]
        for name in ("score",) if self.group is None else ("score", "group"):
            if not (_is_field(arguments[name]) or callable(arguments[name])):
                raise InputError(f"{name} must be the name of a field or a callable, but got {shown(arguments[name])}.")
        self.query_template, self.query = arguments["query"], _query_rendering(arguments["query"])
        self.alphas, self.cv = check_alphas(arguments["alphas"], "alphas"), check_count(arguments["cv"], "cv", 2)

    def read(self, trainset: Any, valset: Any, learners: Iterable[Qwen3EmbeddingValueLearner]) -> Fit:
        """Read rated texts; see `Reader`.

        Raises:
            InputError: an example that cannot be used, or ratings that teach nothing.
        """
        rated, groups = self._rated(trainset, "trainset")
        check_scores_differ([example.score for example in rated])
        unseen = self._unseen(valset)
        return lambda learner: self._fit(learner, rated, groups, unseen)

    def _fit(
        self, learner: Qwen3EmbeddingValueLearner, rated: Rated, groups: list[Any] | None, unseen: Rated
    ) -> dict[str, Any]:
        """Fit a value function on the rated texts alone, and report on it."""
        template = self.text.text if isinstance(self.text.text, str) else None
        # Not by `examples`, which would forget the fit, and with it the vectors that were loaded.
        learner.ridge.put(examples=Examples(rated), template=template, query_template=self.query_template)
        chosen = learner.optimize_hyperparameters(self.alphas, self.cv, groups=groups)
        y = [example.score for example in rated]
        report = {
            "n_texts": len(rated),
            "alpha": chosen["best_alpha"],
            "cv_mse": chosen["best_mse"],
            "cv_r2": 1 - chosen["best_mse"] / measures.mse(y, [sum(y) / len(y)] * len(y)),
            "alphas": {alpha: row["mse_mean"] for alpha, row in chosen["results"].items()},
            "blocks": chosen["blocks"],
            "permutation_p": chosen["permutation_p"],
            **{name: figure for name, figure in chosen.items() if name.startswith("oof_")},
        }
        if chosen["permutation_p"] > LEVEL:
            report["warning"] = noise_warning(chosen["permutation_p"])
        if unseen:
            truth = [example.score for example in unseen]
            queries = [example.query for example in unseen if example.query is not None]
            values = learner.predict_many([example.text for example in unseen], queries or None)
            report["val"] = {"n_texts": len(unseen), **measures.figures(truth, values)}
        return report

    def _unseen(self, valset: Any) -> Rated:
        """Rated examples to report on; none where nothing of the valset is rated, as in a step of `BetterTogether`."""
        if _is_nothing(valset):
            return []
        if (
            isinstance(valset, Sequence)
            and isinstance(self.score, str)
            and all(isinstance(row, dspy.Example | Mapping) and self.score not in row for row in valset)
        ):
            warn(
                f"no example of the valset has a {self.score!r}, so nothing is reported on it.",
            )
            return []
        return self._rated(valset, "valset")[0]

    def _rated(self, examples: Any, what: str) -> tuple[Rated, list[Any] | None]:
        """Rated texts, and the group of each, from examples."""
        rated, groups = [], []
        for row, example in enumerate(checked_examples(examples, what)):
            at = f"{what}[{row}]"
            try:
                text = self.text.rated(example)
            except InputError as error:
                raise InputError(f"{at} has no text to learn from: {error}") from error
            score = check_score(taken(self.score, example, "score", at), f"the score of {at}")
            metadata = check_metadata(_metadata(example), f"the metadata of {at}")
            query = None if self.query is None else _query(self.query, example, at)
            rated.append(RankingExample(check_text(text, f"the text of {at}"), score, metadata, query))
            if self.group is not None:
                groups.append(taken(self.group, example, "group", at))
        return rated, None if self.group is None else groups


class JudgedPassageReader:
    """Reads judged passages, and fits rerankers on them; see `FitValue` for the arguments.

    Raises:
        InputError: an argument that cannot be used.
    """

    kind: type[Any] = Reranker

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        for name in ("passages", "relevance"):
            if not _is_field(arguments[name]):
                raise InputError(f"{name} must be the name of a field, but got {shown(arguments[name])}.")
        self.passages, self.relevance = arguments["passages"], arguments["relevance"]
        query, first_stage, k = _query_rendering(arguments["query"]), arguments["first_stage"], arguments["k"]
        if query is None:
            raise InputError("passages are ranked for a query; say which field it is with query=.")
        self.query, self.cv = query, check_count(arguments["cv"], "cv", 2)
        self.first_stage = None if first_stage is None else check_flag(first_stage, "first_stage")
        self.k = None if k is None else check_count(k, "k", 1)

    def read(self, trainset: Any, valset: Any, rerankers: Iterable[Reranker]) -> Fit:
        """Read judged passages; see `Reader`.

        Raises:
            InputError: an example that cannot be used.
        """
        scored = self.relevance != SCORES and any(
            SCORE in reranker.features or (reranker.auto and self.first_stage is not False) for reranker in rerankers
        )
        unseen = [] if _is_nothing(valset) else self._judged(valset, "valset", scored=scored)
        judged = self._judged(trainset, "trainset", scored=scored)

        def fit(reranker: Reranker) -> dict[str, Any]:
            report = reranker.learn(judged, cv=self.cv, k=self.k)
            return {**report, "val": reranker.judge(unseen, k=self.k)} if unseen else report

        return fit

    def _judged(self, examples: Any, what: str, *, scored: bool) -> list[JudgedQuery]:
        """Judged queries from examples."""
        judged = []
        for row, example in enumerate(checked_examples(examples, what)):
            at = f"{what}[{row}]"
            query = _query(self.query, example, at)
            given = taken(self.passages, example, "passages", at)
            passages = as_list(given, f"the passages of {at}")
            relevance = taken(self.relevance, example, "relevance", at)
            if not is_list(relevance):
                raise InputError(f"the relevance of {at} must be a list of numbers, but got {shown(relevance)}.")
            numbers = [
                float(one) if isinstance(one, bool | np.bool_) else check_score(one, f"the relevance of {at}")
                for one in relevance
            ]
            if len(numbers) != len(passages):
                raise InputError(f"{at} has {len(passages)} passages but {len(numbers)} relevances; each needs one.")
            scores = example.get(SCORES) if scored else None
            if scored and scores is None:
                scores = scores_within(given, passages)
            texts = [passage_text(passage, f"a passage of {at}") for passage in passages]
            scores = checked_scores(scores, len(passages), f"the scores of {at}")
            retrieved = isinstance(given, dspy.Prediction) or None
            first_stage = retrieved if self.first_stage is None else self.first_stage
            judged.append(JudgedQuery(query, texts, np.array(numbers, dtype=np.float64), scores, first_stage))
        return judged


def _query_rendering(query: object) -> Rendering | None:
    """How the query of an example is read; None where there is none.

    Raises:
        InputError: neither the name of a field nor a format string.
    """
    if query is not None and not isinstance(query, str):
        raise InputError(f"query must be the name of a field or a format string, but got {shown(query)}.")
    return None if query is None else Rendering(query, what="query")


def _query(rendering: Rendering, example: Any, at: str) -> str:
    """The query of an example.

    Raises:
        InputError: there is none.
    """
    try:
        return check_text(rendering.rated(example), f"the query of {at}")
    except InputError as error:
        raise InputError(f"{at} has no query: {error}") from error


def _is_nothing(valset: Any) -> bool:
    """True for None and for an empty list."""
    return valset is None or (isinstance(valset, Sequence) and not len(valset))


def _is_field(name: object) -> bool:
    """True for a name that a field may have."""
    return isinstance(name, str) and bool(name.strip())


def _metadata(example: Any) -> dict[str, Any] | None:
    """The metadata that is kept with a rated text, the rater's reason in it; None for none."""
    kept = example.get("metadata")
    metadata = dict(kept) if isinstance(kept, Mapping) else {}
    if isinstance(example.get(REASON), str):
        metadata.setdefault(REASON, example[REASON])
    return metadata or None
