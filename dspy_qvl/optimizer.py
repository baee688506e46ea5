"""`FitValue`: the DSPy optimizer that fits the value functions and the rerankers inside a program."""

import contextlib
import copy
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import dspy
import numpy as np
from dspy.teleprompt.teleprompt import Teleprompter

from dspy_qvl import scores
from dspy_qvl.errors import (
    InputError,
    MissingTextError,
    QVLWarning,
    check_alphas,
    check_count,
    check_flag,
    check_flat,
    check_metadata,
    check_score,
    check_scores_differ,
    check_text,
    shown,
)
from dspy_qvl.feedback import REASON
from dspy_qvl.judged import SCORE, JudgedQuery, as_list, checked_scores
from dspy_qvl.learner import Qwen3EmbeddingValueLearner
from dspy_qvl.reranker import Reranker
from dspy_qvl.text import AsText, RankingExample, Rendering, passage_text

logger = logging.getLogger("dspy_qvl")

ALPHAS = tuple(float(f"{10 ** (step / 2):.3g}") for step in range(-4, 7))  # .01 to 1,000, two a decade
SCORES = "scores"  # the field of an example, or of a retriever's Prediction, with those of a first stage
FromExample = str | Callable[[Any], Any]


class FitValue(Teleprompter):  # type: ignore[misc]  # dspy ships no types
    """Fits every value function inside a program from rated examples, or every reranker from judged queries.

        program = FitValue(text="reply", score="rating", group="ticket").compile(program, trainset=rated)
        program = FitValue(query="query", passages="passages", relevance="relevance").compile(program, trainset=judged)

    Args:
        text: the text of an example: the name of a field, a format string over its fields, or a callable
            (example, example) -> text; what `ValueMetric` takes, so that learning and scoring see the same.
        score: its rating: the name of a field, or a callable example -> number.
        group: what belongs together (a document, a prompt, a user), and is never split by cross-validation: the name
            of a field, or a callable. A text rated twice never is.
        alphas: penalties to choose from, each > 0.
        cv: folds, at least 2.
        query: the field that holds the query, or a format string: of judged passages, or of texts whose worth depends
            on another text (an answer's on its question); then a text is valued for its query, and the texts of one
            query are never split by cross-validation.
        passages: the field that holds the passages of a query; then the rerankers of the program are fitted, and its
            value functions left alone.
        relevance: the field that holds how relevant each passage is: a list of numbers, higher for better.
        first_stage: whether the passages of an example come in the order of a first stage (a search), the best first;
            None to find out (`judged.py`). An example's `scores`, or those of its passages where they are a
            retriever's Prediction, are the first stage's, one a passage, higher for better.
        k: passages from the top that nDCG and reciprocal ranks look at when an order is chosen and reported on; None
            for all.

    An example's `metadata`, or its `reason`, is kept with the text; feedback quotes a reason.

    Attributes:
        report: of the last `compile`, for each value function by its name in the program: `n_texts`, `alpha`, `cv_mse`,
            `cv_r2` (1 - cv_mse over the variance of the scores), `alphas` (the mean error of each), `blocks`, and,
            with a valset, `val`: `n_texts`, `mse`, `r2`, `pearson` and `spearman` on it. For each reranker what
            `Reranker.learn` returns, and as `val` what `Reranker.judge` does: nDCG and mean reciprocal rank of the
            learned order, of cosine, and of the first stage.

    Raises:
        InputError: an argument that cannot be used.
    """

    def __init__(
        self,
        text: AsText = "text",
        score: FromExample = "score",
        group: FromExample | None = None,
        alphas: Sequence[float] = ALPHAS,
        cv: int = 5,
        *,
        query: str | None = None,
        passages: str | None = None,
        relevance: str = "relevance",
        first_stage: bool | None = None,
        k: int | None = None,
    ) -> None:
        super().__init__()
        for name, field in (("passages", passages), ("relevance", relevance)):
            if not (isinstance(field, str) and field.isidentifier()) and not (field is None and name != "relevance"):
                raise InputError(f"{name} must be the name of a field, but got {shown(field)}.")
        if query is not None and not isinstance(query, str):
            raise InputError(f"query must be the name of a field or a format string, but got {shown(query)}.")
        self._asked = None if query is None else Rendering(query, what="query")
        if passages is not None and query is None:
            raise InputError("passages are ranked for a query; say which field it is with query=.")
        self.query, self.passages, self.relevance = query, passages, relevance
        self.first_stage = None if first_stage is None else check_flag(first_stage, "first_stage")
        self.k = None if k is None else check_count(k, "k", 1)
        self.rendering = Rendering(text)
        if text is None:
            raise InputError("text must say which text of an example was rated: a field, a format string, a callable.")
        for name, given in (("score", score), ("group", group)):
            if not (isinstance(given, str) or callable(given) or (name == "group" and given is None)):
                raise InputError(f"{name} must be the name of a field or a callable, but got {shown(given)}.")
        self.score = score
        self.group = group
        self.alphas = check_alphas(alphas, "alphas")
        self.cv = check_count(cv, "cv", 2)
        self.report: dict[str, dict[str, Any]] = {}

    def compile(
        self,
        student: dspy.Module,
        *,
        trainset: list[Any],
        teacher: dspy.Module | None = None,
        valset: list[Any] | None = None,
    ) -> dspy.Module:
        """A copy of the program whose value functions are fitted on the rated examples; the student stays as it is.

        What a value function of the student had been taught before does not count any more in the copy.

        Args:
            student: a learner, or a program with learners in it.
            trainset: rated examples; everything is learned and chosen on them.
            teacher: not used.
            valset: rated examples that are only reported on.

        Raises:
            InputError: a program with nothing to fit, or an example without a text or a score.
            EmbeddingError: the embedding model failed; what was embedded is not asked for again.
        """
        if not isinstance(student, dspy.Module):
            raise InputError(f"student must be a dspy.Module, but got {type(student).__name__}.")
        program = _copied(student)
        if self.passages is not None:
            self.report = self._fit_rerankers(program, trainset, valset)
            return program
        learners = dict(program.named_sub_modules(Qwen3EmbeddingValueLearner))
        if not learners:
            raise InputError(
                f"{type(student).__name__} has no Qwen3EmbeddingValueLearner in it, so there is nothing to fit; make "
                "one an attribute of the program."
            )
        rated, members = self._rated(trainset, "trainset")
        check_scores_differ([example.score for example in rated])
        unseen = self._unseen(valset)
        report = {}
        for name, learner in learners.items():
            learner.ridge.examples = list(rated)
            chosen = learner.optimize_hyperparameters(self.alphas, self.cv, groups=members)
            learner.ridge.template = self.rendering.text if isinstance(self.rendering.text, str) else None
            learner.ridge.query_template = self.query
            report[name] = _report(learner, rated, chosen, unseen)
            logger.info("fitted %s on %d texts: alpha %g", name, len(rated), chosen["best_alpha"])
        self.report = report
        return program

    def _fit_rerankers(self, program: dspy.Module, trainset: Any, valset: Any) -> dict[str, dict[str, Any]]:
        """Fit the rerankers of a program in place; the report of each."""
        rerankers = dict(program.named_sub_modules(Reranker))
        if not rerankers:
            raise InputError(
                f"{type(program).__name__} has no Reranker in it, so there is nothing to fit with passages=; make one "
                "an attribute of the program."
            )
        scored = self.relevance != SCORES and any(
            SCORE in reranker.features or (reranker.auto and self.first_stage is not False)
            for reranker in rerankers.values()
        )
        judged = self._judged(trainset, "trainset", scored=scored)
        nothing = valset is None or (isinstance(valset, Sequence) and not valset)
        unseen = [] if nothing else self._judged(valset, "valset", scored=scored)
        report = {}
        for name, reranker in rerankers.items():
            report[name] = reranker.learn(judged, cv=self.cv, k=self.k)
            if unseen:
                report[name]["val"] = reranker.judge(unseen, k=self.k)
            logger.info("fitted %s on %d queries: %s", name, report[name]["n_queries"], report[name]["features"])
        return report

    def _judged(self, examples: Any, what: str, *, scored: bool) -> list[JudgedQuery]:
        """Judged queries from examples."""
        judged = []
        for row, example in enumerate(_checked_list(examples, what)):
            at = f"{what}[{row}]"
            query = self._query_of(example, at)
            found = _taken(str(self.passages), example, "passages", at)
            passages, retrieved = as_list(found, f"the passages of {at}"), isinstance(found, dspy.Prediction)
            relevance = _taken(self.relevance, example, "relevance", at)
            if isinstance(relevance, str) or not isinstance(relevance, Iterable):
                raise InputError(f"the relevance of {at} must be a list of numbers, but got {shown(relevance)}.")
            numbers = [
                float(one) if isinstance(one, bool | np.bool_) else check_score(one, f"the relevance of {at}")
                for one in relevance
            ]
            if len(numbers) != len(passages):
                raise InputError(f"{at} has {len(passages)} passages but {len(numbers)} relevances; each needs one.")
            given = example.get(SCORES) if scored else None
            if scored and retrieved and given is None:
                given = found.get(SCORES)
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

    def _query_of(self, example: Any, at: str) -> str:
        assert self._asked is not None
        try:
            return check_text(self._asked.rated(example), f"the query of {at}")
        except MissingTextError as error:
            raise InputError(f"{at} has no query: {error}") from None

    def _unseen(self, valset: Any) -> list[RankingExample]:
        """Rated examples to report on; none where nothing of the valset is rated, as in a step of `BetterTogether`."""
        if valset is None or (isinstance(valset, Sequence) and not len(valset)):
            return []
        if (
            isinstance(valset, Sequence)
            and isinstance(self.score, str)
            and all(isinstance(row, dspy.Example | Mapping) and self.score not in row for row in valset)
        ):
            warnings.warn(
                f"no example of the valset has a {self.score!r}, so nothing is reported on it.",
                QVLWarning,
                stacklevel=4,
            )
            return []
        return self._rated(valset, "valset")[0]

    def _rated(self, examples: Any, what: str) -> tuple[list[RankingExample], list[Any] | None]:
        """Rated texts, and the group of each, from examples."""
        rated, members = [], []
        for row, example in enumerate(_checked_list(examples, what)):
            at = f"{what}[{row}]"
            try:
                text = self.rendering.rated(example)
            except MissingTextError as error:
                raise InputError(f"{at} has no text to learn from: {error}") from None
            score = check_score(_taken(self.score, example, "score", at), f"the score of {at}")
            metadata = check_metadata(_metadata(example), f"the metadata of {at}")
            query = None if self._asked is None else self._query_of(example, at)
            rated.append(RankingExample(check_text(text, f"the text of {at}"), score, metadata, query))
            members.append(None if self.group is None else _taken(self.group, example, "group", at))
        return rated, members if self.group is not None else None


def _copied(program: dspy.Module) -> dspy.Module:
    """A copy of a program that has the same retrievers: DSPy's hold a thread and cannot be copied, which it prints."""
    retrievers = {id(one): one for _, one in program.named_sub_modules(dspy.retrievers.Embeddings)}
    if retrievers:
        with contextlib.suppress(Exception):  # something else that cannot be copied: DSPy's own way shares it
            return copy.deepcopy(program, retrievers)
    return program.deepcopy()


def _checked_list(examples: Any, what: str) -> Sequence[Any]:
    """Examples that are a list of dspy.Examples or dicts, not empty."""
    check_flat(examples, what, "its rows, for instance data_frame.to_dict('records')")
    if isinstance(examples, str | bytes) or not isinstance(examples, Sequence) or not examples:
        raise InputError(
            f"{what} must be a list of rated examples, but got "
            f"{'an empty one' if isinstance(examples, Sequence) and not examples else type(examples).__name__}."
        )
    for row, example in enumerate(examples):
        if not isinstance(example, dspy.Example | Mapping):
            raise InputError(f"{what}[{row}] must be a dspy.Example or a dict, but got {type(example).__name__}.")
    return examples


def _taken(given: FromExample, example: Any, name: str, at: str) -> Any:
    """A field of an example, or what a callable makes of it."""
    if not isinstance(given, str):
        return given(example)
    value = example.get(given)
    if value is None:
        raise InputError(f"{at} has no field {given!r} for its {name}; it has {shown(sorted(example.keys()))}.")
    return value


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
        "cv_r2": 1 - chosen["best_mse"] / scores.mse(y, [sum(y) / len(y)] * len(y)),
        "alphas": {alpha: row["mse_mean"] for alpha, row in chosen["results"].items()},
        "blocks": chosen["blocks"],
    }
    if unseen:
        truth = [example.score for example in unseen]
        queries = [example.query for example in unseen if example.query is not None]
        values = learner.predict_many([example.text for example in unseen], queries or None)
        measures = {name: getattr(scores, name)(truth, values) for name in ("mse", "r2", "pearson", "spearman")}
        report["val"] = {"n_texts": len(unseen), **measures}
    return report
