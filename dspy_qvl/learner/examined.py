"""How sure a value function is: answers with their doubt, and the rated texts behind them.

    text ─► item ─► value
              └─► Inspection ─► standard deviation, interval, support, neighbours

As in `value_function.py`, no call takes a lock.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import dspy

from dspy_qvl.certainty import MOST_EXAMINED, RatedRows, Selection, beside_baselines
from dspy_qvl.errors import InputError, QVLError, check_confidence, check_count, check_text, check_texts
from dspy_qvl.learner.choosing import SuggestedText, rated_rows, suggested, worth_of_picking
from dspy_qvl.learner.columns import item_of, items_of
from dspy_qvl.learner.diagnosis import Diagnosis, diagnosis_of
from dspy_qvl.learner.fit import Fit
from dspy_qvl.learner.inspection import Inspection, LeftOut
from dspy_qvl.learner.value_function import ValueFunction
from dspy_qvl.text import Item, RankingExample
from dspy_qvl.vectors import Array


class ExaminedValueFunction(ValueFunction):
    """A value function that says how sure it is; base class of `TrainableValueFunction`.

    Attributes:
        random_state: seed of every split and shuffle.
    """

    random_state: int

    # As a DSPy module

    def forward(self, text: str, query: str | None = None, confidence: float | None = None) -> dspy.Prediction:
        """The value of a text as `dspy.Prediction(score=…, std=…, support=…)`, and how far it is to be believed.

        An empty text is valued too, and its value may be average (see `embedding/encoder.py`); `ValueMetric` takes an
        empty answer for a failure. Value and `std` are on the scale of the scores. `std` and `support` are as
        `predict_std` and `support` give them, or None where the rated texts were not kept.

        Args:
            text: the text.
            query: where texts were rated for queries, the query.
            confidence: adds `lower` and `upper`, as `predict_interval` gives them; for instance .9.

        Raises:
            InputError: not a text, a confidence that is not between 0 and 1, or one that is asked of a value function
                saved without its texts.
            NotFittedError, StateError: as `predict`.
        """
        text, confidence, fit = check_text(text), _checked(confidence), self.current_fit()
        return self._answer(item_of(text, query, paired=fit.paired), fit, confidence)

    def _answer(self, item: Item, fit: Fit, confidence: float | None) -> dspy.Prediction:
        if not fit.n_texts and confidence is None:
            return dspy.Prediction(score=self._predict(item, fit), std=None, support=None)
        inspection, interval = self._inspection(_kept(fit)), {}
        inspection.foresee([item], confidence)
        if confidence is not None:
            interval = dict(zip(("lower", "upper"), inspection.interval(item, confidence), strict=True))
        std, support = inspection.std(item), inspection.supporting(item)
        return dspy.Prediction(score=self._predict(item, fit), std=std, support=support, **interval)

    async def aforward(self, text: str, query: str | None = None, confidence: float | None = None) -> dspy.Prediction:
        """As `forward`, off the event loop; a hosted model is sent as many requests at once as it may be."""
        text, confidence = check_text(text), _checked(confidence)
        fit = self._known(self.ridge.now)
        if fit is None:
            fit = await asyncio.to_thread(self.current_fit)  # it may ask the model
        item = item_of(text, query, paired=fit.paired)
        await self._columns(fit).prepare(item)
        return await asyncio.to_thread(self._answer, item, fit, confidence)

    def batch(self, examples: Sequence[Any], *args: Any, **settings: Any) -> Any:
        """As `dspy.Module.batch`: the same predictions, computed for all the texts together."""
        examples = list(examples)
        with contextlib.suppress(QVLError):  # whatever is wrong, the single calls will raise it
            fit = self.current_fit()
            by_confidence: dict[float | None, list[Item]] = {}
            for example in examples:
                with contextlib.suppress(QVLError, KeyError):
                    item = item_of(check_text(example["text"]), example.get("query"), paired=fit.paired)
                    by_confidence.setdefault(_checked(example.get("confidence")), []).append(item)
            for confidence, items in by_confidence.items():
                inspection = self._inspection(fit)
                inspection.foresee(items, confidence)
                if fit.n_texts:
                    inspection.supporting.many(items)
        return super().batch(examples, *args, **settings)

    # How sure, and why

    def predict_std(self, text: str, query: str | None = None) -> float:
        """Standard deviation of a rater's score of a text, on the scale of the scores.

        That of the posterior predictive of the ridge fit (`ridge/posterior.py`): the raters' own noise, and more where
        nothing like the text was rated. The first call after learning or loading works out the posterior.

        Raises:
            InputError: not a text, or a value function saved without its texts.
            NotFittedError, StateError: as `predict`.
        """
        text, inspection = check_text(text), self.inspection()
        return inspection.std(item_of(text, query, paired=inspection.fit.paired))

    def predict_std_many(self, texts: Sequence[str], queries: Sequence[str] | str | None = None) -> Array:
        """The standard deviations of texts, (n_texts,), each what `predict_std` gives; `queries` as `predict_many`.

        Raises:
            InputError, NotFittedError, StateError: as `predict_std`.
        """
        checked, inspection = check_texts(texts), self.inspection()
        return inspection.stds(items_of(checked, queries, paired=inspection.fit.paired))

    def predict_interval(self, text: str, query: str | None = None, confidence: float = 0.9) -> tuple[float, float]:
        """The interval in which a rater's score of a text lies with some confidence, on the scale of the scores.

        The jackknife+ of the rated texts, each left out together with its group and its copies; beyond 4,000 texts
        CV+ (`certainty/intervals.py`). The first call after learning or loading works out what all texts share.

        With .9, about nine in ten scores lie inside, of texts that are drawn as the rated ones were. Proved is eight in
        ten (in general 2 confidence - 1), where penalty and weights were not chosen on the same ratings; where they
        were, it is measured (`tests/benchmarks/coverage.py`). It holds for no single text, and promises nothing of
        texts unlike the rated ones (see `support`). Where `groups` were given it is meant for texts of new groups, and
        is too wide for those of known ones.

        Args:
            text: the text.
            query: where texts were rated for queries, the query.
            confidence: the share of scores to hold, in (0, 1).

        Returns:
            The lower and the upper end; infinite where fewer texts were rated than such a confidence needs (9 for .9),
            or all of them are one group.

        Raises:
            InputError, NotFittedError, StateError: as `predict_std`.
        """
        text, level, inspection = check_text(text), check_confidence(confidence), self.inspection()
        return inspection.interval(item_of(text, query, paired=inspection.fit.paired), level)

    def predict_interval_many(
        self, texts: Sequence[str], queries: Sequence[str] | str | None = None, confidence: float = 0.9
    ) -> Array:
        """The lower and the upper ends of the intervals of texts, (n_texts, 2), each as `predict_interval` gives them.

        Raises:
            InputError, NotFittedError, StateError: as `predict_std`.
        """
        checked, level, inspection = check_texts(texts), check_confidence(confidence), self.inspection()
        return inspection.intervals(items_of(checked, queries, paired=inspection.fit.paired), level)

    def support(self, text: str, query: str | None = None) -> float:
        """How like the rated texts a text is: the share of them that are at least as unlike the others, in (0, 1].

        A conformal p-value (`certainty/support`) of the text's words, their order, its characters, its length, and
        where the embedding model is asked its nearest rated text (and query). About 5 % of texts that are drawn as the
        rated ones were have a support below .05; of texts that are not, most. A small support says that the value is a
        guess; a large one does not say that it is right. A text without words, such as an empty one, has nothing that
        is unlike.

        Raises:
            InputError, NotFittedError, StateError: as `predict_std`.
        """
        text, inspection = check_text(text), self.inspection()
        return inspection.supporting(item_of(text, query, paired=inspection.fit.paired))

    def support_many(self, texts: Sequence[str], queries: Sequence[str] | str | None = None) -> Array:
        """The support of texts, (n_texts,), each as `support` gives it.

        Raises:
            InputError, NotFittedError, StateError: as `predict_std`.
        """
        checked, inspection = check_texts(texts), self.inspection()
        return inspection.supporting.many(items_of(checked, queries, paired=inspection.fit.paired))

    def leave_one_out(self) -> LeftOut:
        """Every rated text, valued by the fit of all the others: exact, without refitting.

        Of more than 4,000 texts with hashed words among their columns, each is valued by the fit of four fifths of the
        texts without it, and `LeftOut.exact` is False.

        A text that was rated twice, or hardly differs from another, is then not really left out; and penalty and
        weights, where cross-validation chose them, were chosen with it.

        Raises:
            InputError: a value function saved without its texts.
            NotFittedError, StateError: as `predict`.
        """
        return self.inspection().leave_one_out()

    def nearest(self, text: str, n_neighbors: int = 5, query: str | None = None) -> list[tuple[RankingExample, float]]:
        """The rated texts whose embeddings are most like that of a text, and their cosine with it, nearest first.

        Where texts were rated for queries, the mean of the texts' cosine and the queries'.

        Raises:
            InputError, NotFittedError, StateError: as `predict_std`.
        """
        text, n_neighbors, inspection = check_text(text), check_count(n_neighbors, "n_neighbors", 1), self.inspection()
        return inspection.neighbors.nearest(item_of(text, query, paired=inspection.fit.paired), n_neighbors)

    def diagnose(self, n_ratings: int = 5) -> Diagnosis:
        """A report on the value function: is it of use, what are its figures worth, which ratings need a second look?

        Print it, end a notebook cell with it, or take `to_dict()`. It takes seconds: some twenty fits, and two tests of
        199 shuffles. Of more than 4,000 rated texts a sample is examined. Groups are those of the last training.

        Args:
            n_ratings: how many ratings to name that are at odds with the others, and that move values most.

        Raises:
            InputError: a value function saved without its texts, or whose texts are all one group.
            NotFittedError, StateError: as `predict`.
            EmbeddingError, FeatureError: the model or a block failed.
        """
        n_ratings, now = check_count(n_ratings, "n_ratings", 0), self.ridge.now
        inspection, rows = self._rated_rows()
        return diagnosis_of(inspection, rows, tuned=now.alpha_tuned, n=n_ratings)

    def selection(self, n: Sequence[int] | None = None) -> Selection:
        """The worth of picking by value, on texts that were not learned from.

        It is the share, of what a judge who knows the ratings gains over the mean by taking the best of n texts, that
        taking the text of the highest value gains.

        Of texts that were rated for queries, the n are those of one query. Where enough texts were rated more than
        once, the part of the gap that the raters' own noise makes is told too. Print its `sentence` to read it.

        Args:
            n: the numbers of texts to choose from, each at least 2; those that the ratings cannot tell of are left out.
                Default: 4, 16, 64, 256; of one query 2, 4, 8, 16.

        Returns:
            A `Selection`; each figure has its 95 % interval over draws of whole groups.

        Raises:
            InputError: too few rated texts for any n, or as `diagnose`.
            NotFittedError, StateError: as `predict`.
        """
        inspection, rows = self._rated_rows()
        some = rows.sampled(MOST_EXAMINED)
        return worth_of_picking(some, beside_baselines(some, []), n, paired=inspection.fit.paired)

    def suggest(
        self,
        candidates: Sequence[str],
        k: int = 10,
        audit: float = 0.2,
        queries: Sequence[str] | str | None = None,
    ) -> tuple[SuggestedText, ...]:
        """The texts among unrated ones that are worth rating next.

        Most of them are those whose ratings would lower the variance of all candidates' values most, the best first; a
        share is drawn at random, since the former say nothing of the mean of all (`certainty/suggestion.py`). Rate
        them, and `update` or train anew.

        Args:
            candidates: texts; copies of each other and of rated texts are left out.
            k: how many to suggest.
            audit: the share of k that is drawn at random, in [0, 1].
            queries: where texts were rated for queries, one for each, or one for all.

        Raises:
            InputError: an argument that cannot be used, no candidate without a rating, or as `predict_std`.
            NotFittedError, StateError: as `predict`.
        """
        texts, inspection = check_texts(candidates, "candidates"), self.inspection()
        items = items_of(texts, queries, paired=inspection.fit.paired)
        return suggested(inspection, self._columns(inspection.fit), items, k, audit, self.random_state)

    def _rated_rows(self) -> tuple[Inspection, RatedRows]:
        inspection = self.inspection()
        columns = self._columns(inspection.fit), self._training_columns(self.ridge.now)
        return inspection, rated_rows(inspection, *columns, self.random_state)

    def inspection(self) -> Inspection:
        """The current fit, examined through the texts it was learned from.

        Raises:
            InputError, NotFittedError, StateError: as `predict_std`.
        """
        return self._inspection(self._with_examples())

    def _inspection(self, fit: Fit) -> Inspection:
        return Inspection(fit, self._columns(fit))

    def _with_examples(self) -> Fit:
        """The current fit, its rated texts kept.

        Raises:
            NotFittedError, StateError: as `current_fit`.
            InputError: they were not kept.
        """
        return _kept(self.current_fit())


def _kept(fit: Fit) -> Fit:
    """The fit, if its rated texts were kept.

    Raises:
        InputError: they were not.
    """
    if fit.n_texts == 0:
        raise InputError(
            "the texts this value function was learned from were not saved with it (keep_examples=False), so it "
            "cannot be changed, and cannot say how sure it is; rate texts anew and train."
        )
    return fit


def _checked(confidence: float | None) -> float | None:
    return None if confidence is None else check_confidence(confidence)
