"""State of `ValueMetric`, and all it does but the call itself.

Kept apart because `Refine` shows a language model the source of `ValueMetric`, which must stay short and plain.

    example, prediction ─► item (`items.py`) ─► value (`judgement.py`) ─► score (`scale.py`)
                                             └► judgement ─► feedback (`feedback.py`)
"""

import os
from collections import Counter
from typing import Any

import dspy

from dspy_qvl.certainty import Drift, DriftTest
from dspy_qvl.errors import InputError, check_count, check_flag, check_text, shown, warn
from dspy_qvl.fitting import noise_warning
from dspy_qvl.learner import Qwen3EmbeddingValueLearner
from dspy_qvl.metric.agreement import Agreement, Answers, agreement, predictions, rated_rows, valued
from dspy_qvl.metric.calls import FAILURES, Calls, reason_of
from dspy_qvl.metric.feedback import failed, in_words
from dspy_qvl.metric.filter import ValueFilter, checked_threshold
from dspy_qvl.metric.items import ItemReader
from dspy_qvl.metric.judgement import LOWEST, Judgement, Scorer
from dspy_qvl.metric.log_file import append
from dspy_qvl.metric.objectives import Objectives, checked_objectives, objective
from dspy_qvl.metric.reward import Reward
from dspy_qvl.state import checked_target
from dspy_qvl.text import AsText, FromExample, Item, Pair, checked_examples, text_of


class ValueScores:
    """State of `ValueMetric`; a metric does not change, so that a copy of it is the metric itself.

    Attributes:
        threshold, feedback, quote, objectives: as given.
        rendering: how the text of a prediction is rendered.
    """

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
        confidence: float | None = None,
        quote: int = 160,
        n_neighbors: int = 1,
        objectives: Objectives | None = None,
    ) -> None:
        """Keep a copy of the value function; later learning does not change it.

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
            feedback: True to tell GEPA why.
            pessimism: predictive standard deviations to take off a value before it becomes a score, >= 0.
            confidence: in place of `pessimism`, for the lower end of the interval of this confidence as the value
                (`predict_interval`), for instance .9.
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
        self.threshold = checked_threshold(threshold)
        self.objectives = checked_objectives(objectives)
        self.feedback = check_flag(feedback, "feedback")
        self.quote = check_count(quote, "quote", 0)
        self._scorer = Scorer(learner, scale, pessimism, confidence, n_neighbors)
        self._calls = Calls()
        fit, now = self._scorer.fit, self._scorer.learner.ridge.now
        if fit.is_noise:
            warn(noise_warning(fit.permutation_p))
        self._items = ItemReader(text, query, now.template, now.query_template, paired=fit.paired)
        self.rendering, self.query = self._items.text, self._items.query
        self.__name__ = "value"

    # Values

    def value(self, example: Any, pred: Any) -> float:
        """The value of a prediction on the raters' own scale, `pessimism` or `confidence` taken into account.

        A failure has the value of the lowest rating, so that means stay finite; only its score is below all others.

        Raises:
            EmbeddingError: the embedding model failed: a broken connection must not pass for a bad answer. A text that
                the model refuses, while others pass, does: it is a failure.
        """
        try:
            return self._scorer.value(self._items(example, pred))
        except FAILURES:
            return self._scorer.lowest

    def judge(self, text: str, query: str | None = None) -> Judgement:
        """The judgement of a text: value, standard deviation, score, marks, the rated texts most like it.

        The score is what the metric gives an answer of this text: of an empty one 0, since an answer that says nothing
        is a failure. Its value is still the value function's, as `learner.predict("")` gives it, and may be average.
        """
        text = check_text(text)
        return self._judgement(text if query is None else Pair(check_text(query, "query"), text))

    def _judgement(self, item: Item) -> Judgement:
        known = self._calls.judgements.get(item)
        return self._calls.judgements.keep(item, next(self._scorer.judgements([item]))) if known is None else known

    @property
    def log(self) -> list[Judgement]:
        """The judgement of every text that was scored, in the order of the first calls.

        Of the last 50,000 different texts at most, and of no more than fit into 128 MiB.
        """
        return self._judgements(list(self._calls.scores))

    def _judgements(self, scored: list[Any]) -> list[Judgement]:
        new = [item for item in scored if item not in self._calls.judgements]
        for item, judgement in zip(new, self._scorer.judgements(new), strict=True):
            self._calls.judgements.keep(item, judgement)
        return [self._judgement(item) for item in scored]

    def write_log(self, path: str | os.PathLike[str]) -> int:
        """Append the judgements of the texts scored since the last call for this file, as lines of JSON.

        Call it as often as you like; a file that is there is continued. It holds each text that was scored, its query,
        value, support, marks: it is as private as these texts. Rated texts, keys and settings are not in it.

        Args:
            path: the file.

        Returns:
            The number of judgements that were written.

        Raises:
            InputError: a path that is a folder or cannot be written.
        """
        target, calls = checked_target(path), self._calls
        with calls.writing:
            before = calls.written.get(target, 0)
            new, came = calls.scores.after(before)
            if new:
                append(target, self._judgements(new))
            calls.written[target] = came
        if lost := came - before - len(new):
            warn(
                f"{lost} judgements are missing in {target}: so many texts were scored since that the first were "
                "dropped; call write_log more often."
            )
        return len(new)

    def drift(self, seed: int = 0) -> Drift:
        """Test whether the texts that were scored are still of the kind that was rated, in the order of first calls.

        By their words, length and characters, not by the embedding. `print` it; `alarm` is None, or the position of the
        text at which there is enough evidence. Copies of a text count once, and rated texts not at all.

        Args:
            seed: which rated texts the others are compared with, and how ties are broken.

        Raises:
            InputError: a value function saved without its texts, or fewer than 20 different rated texts.
        """
        fit, seed = self._scorer.fit, check_count(seed, "seed", 0)
        if not fit.n_texts:
            raise InputError(
                "drift needs the texts the value function was learned from, but it was saved without them "
                "(keep_examples=False); give a value function that kept them."
            )
        test: DriftTest = fit.memo.once(f"drift {seed}", lambda: DriftTest.of(fit.texts, fit.members, seed))
        return test(text_of(item) for item in self._calls.scores.after(0)[0])

    # Scores

    def score(self, example: Any, pred: Any) -> float:
        """The score of a prediction, in (0, 1); 0 where there is nothing to value."""
        try:
            item = self._items(example, pred)
            known = self._calls.scores.get(item)
            return self._calls.scores.keep(item, self._scorer.score(item)) if known is None else known
        except FAILURES as error:
            self._calls.count_failure(error)
            return LOWEST

    @property
    def failures(self) -> Counter[str]:
        """Number of predictions without a text to value, by reason."""
        return self._calls.failures

    def as_filter(self, threshold: float | None = None) -> ValueFilter:
        """A metric that answers True or False, for callers that test truthiness without a trace."""
        return ValueFilter(self.score, self.threshold if threshold is None else checked_threshold(threshold))

    def explained(self, example: Any, pred: Any) -> dspy.Prediction:
        """A fresh `dspy.Prediction` with the score, and the feedback on it."""
        answer = dspy.Prediction(score=self.score(example, pred))
        if self.feedback:
            answer.feedback = self._feedback(example, pred)
        return self._with_objectives(answer, example, pred)

    def reward(self, inputs: Any, pred: Any) -> Reward:
        """How people who rated texts like the answer would rate it, from 0 to 1, and in words why."""
        return Reward(**self.explained(inputs, pred).toDict())

    def _with_objectives(self, answer: dspy.Prediction, example: Any, pred: Any) -> dspy.Prediction:
        if self.objectives is not None:
            others = {name: objective(name, metric, example, pred) for name, metric in self.objectives.items()}
            answer.objective_scores = {"value": answer.score, **others}
        return answer

    def _feedback(self, example: Any, pred: Any) -> str:
        try:
            judgement = self._judgement(self._items(example, pred))
        except FAILURES as error:
            return failed(reason_of(error))
        return in_words(judgement, self._scorer, threshold=self.threshold, quote=self.quote)

    # Of a whole devset

    def answers(self, devset: Any, program: Any) -> Answers:
        """The answers of a program to a devset, each with its value on the raters' own scale.

        Args:
            devset: examples.
            program: a program, which is run once on the inputs of each example, or its predictions, one an example.

        Raises:
            InputError: no program, another number of predictions than of examples, or examples without inputs.
            EmbeddingError: the embedding model failed.
        """
        examples = checked_examples(devset, "devset")
        outputs = predictions(program, examples)
        items = [self._items.or_none(example, pred) for example, pred in zip(examples, outputs, strict=True)]
        return valued(outputs, items, self._scorer)

    def agreement(
        self, devset: Any, program: Any = None, *, score: FromExample = "score", group: FromExample | None = None
    ) -> Agreement:
        """How far values agree with the ratings of a devset: rank correlation, its interval, the rows most at odds.

        Args:
            devset: rated examples (dspy.Examples or dicts) with their text in the fields that the metric renders; best
                of texts that the value function did not learn from.
            program: gives the texts instead: a program, which is run on the inputs of each example, or its predictions,
                one an example. The ratings are then of its answers.
            score: the rating of an example: the name of a field, or a callable example -> number; on any scale.
            group: the document, prompt or user that an example belongs to, for the interval: the name of a field, or a
                callable. Copies of a text, or the answers to one query, belong together anyway.

        A text that the embedding model refuses is a failure, as in a score.

        Raises:
            InputError: an example without a text or a rating, equal ratings, or another number of predictions.
            EmbeddingError: the embedding model failed.
        """
        examples, ratings, groups = rated_rows(devset, score, group)
        if program is None:
            items = [self._items.rated(example, f"devset[{row}]") for row, example in enumerate(examples)]
        else:
            given = zip(examples, predictions(program, examples), strict=True)
            items = [self._items.or_none(example, pred) for example, pred in given]
        found = agreement(examples, ratings, groups, items, self._scorer)
        if found.n_learned:
            warn(
                f"{found.n_learned} of {found.n_rows} texts of the devset were learned from, so the value function "
                "agrees with their ratings more than with others; leave them out.",
            )
        return found

    # Copies

    def __deepcopy__(self, memo: dict[int, Any]) -> "ValueScores":
        return self

    def __copy__(self) -> "ValueScores":
        return self

    def __repr__(self) -> str:
        text = "" if self.rendering.text is None else f", text={shown(self.rendering.text)}"
        return f"{type(self).__name__}({self._scorer.learner!r}{text}, threshold={self.threshold:g})"
