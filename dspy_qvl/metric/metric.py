"""One metric for `dspy.Evaluate` and every optimizer, made of a value function.

    caller                                    call                                         answer
    Evaluate, MIPROv2, COPRO, SIMBA, ReAnchor  metric(example, pred)                        float in [0, 1)
    Bootstrap*, InferRules, KNNFewShot         metric(example, pred, trace)                 bool
    GEPA                                       metric(gold, pred, trace, name, pred_trace)  Prediction(score, feedback)
    BestOfN, Refine                            metric(kwargs, pred)                         float in [0, 1)
                                               metric.reward(kwargs, pred)                  Reward(score, feedback)

The bool is `score >= threshold`, and overrides a `metric_threshold` of Bootstrap*: True passes any.

`Refine` shows a language model the source of the reward, and what it gave: of `reward_fn=metric` the class, which holds
the call and nothing else, and the number; of `reward_fn=metric.reward` one method, the score and why.
"""

import logging
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import dspy
import numpy as np

from dspy_qvl.errors import (
    InputError,
    MissingTextError,
    QVLError,
    QVLWarning,
    TextsRefusedError,
    check_count,
    check_flag,
    check_number,
    check_text,
    shown,
)
from dspy_qvl.fitting import noise_warning
from dspy_qvl.learner import KeptTexts, Qwen3EmbeddingValueLearner
from dspy_qvl.metric import feedback as words
from dspy_qvl.metric.agreement import Agreement, agreement, predictions, rated_rows
from dspy_qvl.metric.filter import ValueFilter
from dspy_qvl.metric.judgement import LOWEST, Judge, Judgement
from dspy_qvl.metric.reward import Reward
from dspy_qvl.metric.scale import check_scale
from dspy_qvl.text import AsText, FromExample, Item, Pair, Rendering, is_blank, plain

logger = logging.getLogger("dspy_qvl")

REASON_AT_MOST = 1000  # characters of why there is nothing to value
REASONS_AT_MOST = 1000  # different ones that are counted
OTHER_REASONS = "other reasons"


class ValueScores:
    """What a `ValueMetric` knows; see there."""

    def __init__(
        self,
        learner: Qwen3EmbeddingValueLearner,
        *,
        text: AsText | None = None,
        query: str | None = None,
        scale: tuple[float, float] | None = None,
        threshold: float = 0.5,
        feedback: bool = True,
        pessimism: float = 0.0,
        quote: int = 160,
        n_neighbors: int = 1,
        objectives: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        """Keep a copy of the value function as it is now; what the learner learns later does not reach it.

        Args:
            learner: a fitted learner.
            text: the text that is valued: the name of a field of the prediction, a format string over its fields and
                the example's inputs (labels as {example.name}), or a callable (example, prediction) -> text. Left out:
                as `FitValue` rendered the rated texts, else the only text the prediction has.
            query: where texts were rated for queries, the query's field, or a format string over the example's inputs.
                Left out: as `FitValue` rendered it.
            scale: (low, high) on the raters' scale, which become .05 and .95; left out, the 5th and the 95th
                percentile of the ratings.
            threshold: the score, in (0, 1), from which on a text passes where DSPy asks for yes or no (Bootstrap*);
                it overrides their `metric_threshold`.
            feedback: whether GEPA is told why.
            pessimism: how many predictive standard deviations to take off a value before it becomes a score, >= 0.
            quote: characters of a rated text that feedback may quote; 0 for none. Raters' reasons are quoted anyway.
                GEPA and Refine put feedback into prompts, so rated texts and reasons are read by a language model;
                what could pass for structure there is broken (`quoting.py`), what they say in plain words is not.
            n_neighbors: rated texts that feedback names on either side of a value.
            objectives: further metrics, each (example, prediction) -> number, by name; they come back as
                `objective_scores` beside "value", for GEPA over several objectives.

        Raises:
            NotFittedError: nothing was learned yet.
            StateError: the fit belongs to another embedding model.
            InputError: an argument that cannot be used.
        """
        if not isinstance(learner, Qwen3EmbeddingValueLearner):
            raise InputError(f"learner must be a Qwen3EmbeddingValueLearner, but got {type(learner).__name__}.")
        self.threshold = _check_threshold(threshold)
        pessimism = check_number(pessimism, "pessimism")
        if pessimism < 0:
            raise InputError(f"pessimism must be at least 0, but got {pessimism:g}.")
        if objectives is not None and not (
            isinstance(objectives, Mapping)
            and all(isinstance(name, str) and callable(one) for name, one in objectives.items())
        ):
            raise InputError(f"objectives must be a dict of metrics by name, but got {shown(objectives)}.")
        if objectives is not None and "value" in objectives:
            raise InputError("objectives has a metric named 'value', which is what the learned value is called.")
        self.feedback = check_flag(feedback, "feedback")
        self.quote = check_count(quote, "quote", 0)
        self.objectives = None if objectives is None else dict(objectives)
        self._judge = Judge(
            learner,
            None if scale is None else check_scale(scale),
            pessimism,
            check_count(n_neighbors, "n_neighbors", 1),
        )
        if self._judge.fit.is_noise:
            warnings.warn(noise_warning(self._judge.fit.permutation_p), QVLWarning, stacklevel=2)
        learned = self._judge.learner.ridge.now
        self.rendering = _rendering(text, learned.template)
        self.query = _query(query, learned.query_template, paired=self._judge.fit.paired)
        self.__name__ = "value"
        self._forget_calls()

    def _forget_calls(self) -> None:
        self.failures: Counter[str] = Counter()
        self._known: KeptTexts[float] = KeptTexts()
        self._judged: KeptTexts[Judgement] = KeptTexts()
        self._lock = threading.Lock()

    # Values

    def value(self, example: Any, pred: Any) -> float:
        """The value of a prediction on the raters' own scale, `pessimism` taken off.

        A failure has the value of the lowest rating, so that means stay finite; only its score is below all others.

        Raises:
            EmbeddingError: the embedding model failed: a broken connection must not pass for a bad answer. A text that
                the model refuses, while others pass, does: it is a failure.
        """
        item, _ = self._item(example, pred)
        lowest = float(self._judge.fit.quantiles[0])
        try:
            return lowest if item is None else self._judge.value(item)
        except TextsRefusedError:
            return lowest

    def judge(self, text: str, query: str | None = None) -> Judgement:
        """All there is to say of a text: value, standard deviation, score, marks, the rated texts most like it.

        The score is what the metric gives an answer of this text: of an empty one 0, since an answer that says nothing
        is a failure. Its value is still the value function's, as `learner.predict("")` gives it, and may be average.
        """
        text = check_text(text)
        return self._judgement(text if query is None else Pair(check_text(query, "query"), text))

    def _judgement(self, item: Item) -> Judgement:
        known = self._judged.get(item)
        if known is None:
            known = self._judged.keep(item, self._judge(item))
        return known

    @property
    def log(self) -> list[Judgement]:
        """What is said of every text that was scored, in the order of the first calls.

        Of the last 50,000 different texts at most, and of no more than fit into 128 MiB.
        """
        scored: list[Any] = list(self._known)
        new = [item for item in scored if item not in self._judged]
        for item, judgement in zip(new, self._judge.many(new), strict=True):
            self._judged.keep(item, judgement)
        return [self._judgement(item) for item in scored]

    def as_filter(self, threshold: float | None = None) -> "ValueFilter":
        """A metric that answers True or False, for callers that test truthiness without a trace."""
        return ValueFilter(self, self.threshold if threshold is None else _check_threshold(threshold))

    # Scores

    def score(self, example: Any, pred: Any) -> float:
        """The score of a prediction, in (0, 1); 0 where there is nothing to value."""
        item, reason = self._item(example, pred)
        if item is None:
            self._count(reason)
            return LOWEST
        known = self._known.get(item)
        if known is not None:
            return known
        try:
            value = self._judge.value(item)
        except TextsRefusedError as error:  # too long, or filtered: the answer's fault, and no broken connection
            self._count(_refused(error))
            return LOWEST
        return self._known.keep(item, self._judge.scale(value))

    def explained(self, example: Any, pred: Any) -> dspy.Prediction:
        """A fresh `dspy.Prediction` with the score, and what there is to say for it."""
        answer = dspy.Prediction(score=self.score(example, pred))
        if self.feedback:
            answer.feedback = self._feedback(example, pred)
        return self._with_objectives(answer, example, pred)

    def reward(self, inputs: Any, pred: Any) -> Reward:
        """How people who rated texts like the answer would rate it, from 0 to 1, and in words why."""
        return Reward(**self.explained(inputs, pred).toDict())

    def _with_objectives(self, answer: dspy.Prediction, example: Any, pred: Any) -> dspy.Prediction:
        if self.objectives is not None:
            others = {name: _objective(name, metric, example, pred) for name, metric in self.objectives.items()}
            answer.objective_scores = {"value": answer.score, **others}
        return answer

    def _feedback(self, example: Any, pred: Any) -> str:
        item, reason = self._item(example, pred)
        if item is None:
            return words.failed(reason)
        try:
            judgement = self._judgement(item)
        except TextsRefusedError as error:
            return words.failed(_refused(error))
        return words.in_words(
            judgement,
            scale=self._judge.scale,
            threshold=self.threshold,
            pessimism=self._judge.pessimism,
            n_texts=self._judge.fit.n_texts,
            quote=self.quote,
            caution=noise_warning(self._judge.fit.permutation_p) if self._judge.fit.is_noise else None,
        )

    def _item(self, example: Any, pred: Any) -> tuple[Item | None, str]:
        """What to value, or None and why there is nothing."""
        try:
            text = _sendable(self.rendering(example, pred))
            return (text if self.query is None else Pair(_sendable(self.query.query(example, pred)), text)), ""
        except MissingTextError as error:
            return None, plain(str(error), REASON_AT_MOST)

    def _count(self, reason: str) -> None:
        with self._lock:
            first = not self.failures
            is_kept = reason in self.failures or len(self.failures) < REASONS_AT_MOST
            self.failures[reason if is_kept else OTHER_REASONS] += 1
        if first:
            warnings.warn(
                f"{reason} It gets the lowest score, {LOWEST:g}; so does whatever else cannot be valued, and "
                "metric.failures counts it.",
                QVLWarning,
                stacklevel=4,
            )

    # Of a whole devset

    def agreement(
        self, devset: Any, program: Any = None, *, score: FromExample = "score", group: FromExample | None = None
    ) -> Agreement:
        """How far values agree with the ratings of a devset: rank correlation, its interval, the rows most at odds.

        Args:
            devset: rated examples (dspy.Examples or dicts) with their text in the fields that the metric renders; best
                of texts that the value function did not learn from.
            program: what gives the texts instead: a program, which is run on the inputs of each example, or what it
                gave, one prediction an example. The ratings are then of its answers.
            score: the rating of an example: the name of a field, or a callable example -> number; on any scale.
            group: what belongs together (a document, a prompt, a user), for the interval: the name of a field, or a
                callable. Copies of a text, or the answers to one query, belong together anyway.

        A text that the embedding model refuses is a failure, as in a score.

        Raises:
            InputError: an example without a text or a rating, equal ratings, or another number of predictions.
            EmbeddingError: the embedding model failed.
        """

        def items(examples: Sequence[Any]) -> list[Item | None]:
            if program is None:
                return [self._rated_item(example, f"devset[{row}]") for row, example in enumerate(examples)]
            given = zip(examples, predictions(program, examples), strict=True)
            return [self._item(example, pred)[0] for example, pred in given]

        rows, fit = rated_rows(devset, score, group, items), self._judge.fit
        values = np.full(len(rows), fit.quantiles[0])  # as `value` has it of failures
        said = [number for number, row in enumerate(rows) if row.item is not None]
        while said:
            try:
                values[said] = self._judge.values([item for row in said if (item := rows[row].item) is not None])
            except TextsRefusedError as error:  # a failure, as in `score`; the others are embedded by now
                if not error.refused:
                    raise
                for place in error.refused:
                    rows[said[place]] = replace(rows[said[place]], item=None)
                said = [row for place, row in enumerate(said) if place not in error.refused]
            else:
                break
        found = agreement(rows, values, fit)
        if found.n_learned:
            warnings.warn(
                f"{found.n_learned} of {len(rows)} texts of the devset were learned from, so the value function agrees "
                "with their ratings more than with others; leave them out.",
                QVLWarning,
                stacklevel=2,
            )
        return found

    def _rated_item(self, example: Any, at: str) -> Item | None:
        """What to value of an example that holds the text itself; None for a blank one.

        Raises:
            InputError: it has no such text.
        """
        usual, rendering = self.rendering.usual, self.rendering
        if rendering.text is None and usual is not None and usual in example:
            rendering = Rendering(usual)
        try:
            text = _sendable(rendering(example, example) if rendering.text is None else rendering.rated(example))
            query = None if self.query is None else _sendable(self.query.rated(example))
        except InputError as error:
            raise InputError(f"{at} has no text to value: {error}") from error
        if is_blank(text):
            return None
        return text if query is None else Pair(query, text)

    # Copies

    def __deepcopy__(self, memo: dict[int, Any]) -> "ValueScores":
        """Itself: it does not change, and what it has logged belongs together."""
        return self

    def __copy__(self) -> "ValueScores":
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("failures", "_known", "_judged", "_lock")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_calls()  # a worker has a log of its own

    def __repr__(self) -> str:
        text = "" if self.rendering.text is None else f", text={shown(self.rendering.text)}"
        return f"{type(self).__name__}({self._judge.learner!r}{text}, threshold={self.threshold:g})"


class ValueMetric(ValueScores):
    """Scores a prediction by how people who rated texts like it would rate its text: from 0, the worst, to 1.

    The score is a function of the text alone, learned from their ratings. It cannot check facts.
    """

    def __call__(
        self, example: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
    ) -> Any:
        """The score; with a trace, whether it is good enough; with the name of a predictor, also why."""
        if pred_name is not None:
            return self.explained(example, pred)
        if trace is not None:
            return self.score(example, pred) >= self.threshold
        if self.objectives is not None:
            return self._with_objectives(dspy.Prediction(score=self.score(example, pred)), example, pred)
        return self.score(example, pred)


def _rendering(text: AsText | None, learned: str | None) -> Rendering:
    """How predictions are rendered, given how the rated texts were."""
    if text is None:
        return Rendering(learned) if learned is not None and "{" in learned else Rendering(None, usual=learned)
    rendering = Rendering(text)
    if learned is not None and rendering.shape is not None and rendering.shape != Rendering(learned).shape:
        warnings.warn(
            f"the value function was learned from texts rendered as {learned!r}, but predictions are rendered as "
            f"{text!r}; values of texts rendered in another way are off. Leave out text= to render them alike.",
            QVLWarning,
            stacklevel=4,
        )
    return rendering


def _query(query: str | None, learned: str | None, *, paired: bool) -> Rendering | None:
    """How queries are rendered; None where texts are valued by themselves.

    Raises:
        InputError: a query too many or too few.
    """
    if not paired and query is not None:
        raise InputError("the value function values texts by themselves, as they were rated; leave out query=.")
    if not paired:
        return None
    template = learned if query is None else query
    if template is None:
        raise InputError("the value function values a text for a query; say which field holds it with query=.")
    return Rendering(template, what="query")


def _sendable(text: str) -> str:
    """A text without halves of letters, which no model can be sent."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _refused(error: TextsRefusedError) -> str:
    """Why there is no value for a text that the embedding model refuses."""
    return f"the embedding model refuses the text: {next(iter(error.refused.values()), str(error))}."


def _objective(name: str, metric: Callable[..., Any], example: Any, pred: Any) -> float:
    """The number that a further metric gives; the lowest where there is no prediction.

    Raises:
        InputError: it failed, or gave no finite number.
    """
    if pred is None:
        return LOWEST
    try:
        score = metric(example, pred)
    except QVLError:
        raise
    except Exception as error:
        raise InputError(f"the objective {name!r} failed: {type(error).__name__}: {error}") from error
    number = score.get("score") if isinstance(score, dspy.Prediction) else score
    return check_number(float(number) if isinstance(number, bool) else number, f"what the objective {name!r} gave")


def _check_threshold(threshold: object) -> float:
    value = check_number(threshold, "threshold")
    if not 0 < value < 1:
        raise InputError(f"threshold must lie between 0 and 1, where scores lie, but got {value:g}.")
    return value
