"""Scores texts by a value function, and judges them: how sure a value is, and whether to believe it.

An optimizer looks for texts of high value, and finds those the value function is wrong about. Five marks warn of them:

    "empty"      there is nothing to judge: its score is 0, its value what raters gave to saying nothing, where they
                 did, else what the rated texts leave for a text without any feature
    "repeated"   it says the same thing over and over
    "unlike"     its support is below .05: it is unlike the rated texts, and its value a guess
    "beyond"     its value is above all ratings, and above what any rated text is worth to the others
    "copied"     it is one of the rated texts, so its rating was seen in training
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.certainty import SUPPORTED, fewest, repeated_share
from dspy_qvl.errors import InputError, check_confidence, check_count, check_number
from dspy_qvl.learner import Inspection, Qwen3EmbeddingValueLearner
from dspy_qvl.metric.scale import check_scale, scale_of
from dspy_qvl.text import Item, RankingExample, is_blank, query_of, text_of
from dspy_qvl.vectors import Array, Vectors, slices

LOWEST = 0.0  # the score of an empty text; every other text scores higher

EMPTY, REPEATED, UNLIKE, BEYOND, COPIED = "empty", "repeated", "unlike", "beyond", "copied"

# Of 15,000 sentences, tweets, arguments and news summaries one in 250 says more than .3 of itself twice, and most of
# those are smileys and "yay yay yay"; of the answers of small language models that went in circles nearly all.
REPEATED_SHARE = 0.3
COPY = 0.999  # cosine from which on a text is a rated one, but for blanks and letter case
AT_ONCE = 256  # texts whose cosines with all rated texts are in memory


@dataclass(frozen=True)
class Judgement:
    """Value and score of one text, and the evidence for them.

    Attributes:
        text: the text.
        value: on the raters' scale.
        std: standard deviation of a rater's answer, or None where the rated texts were not kept.
        support: share of the rated texts that are as unlike the others, in (0, 1]; None where they were not kept.
        score: in (0, 1), after `pessimism` or `confidence`; 0 of an empty text, whatever its value.
        share_below: share of the rated texts with a lower score, in [0, 1].
        repeated: share of the text that repeats what it said before, in [0, 1).
        likeness: cosine with the rated text that is most like it; None where they were not kept.
        marks: reasons not to believe the value, of "empty", "repeated", "unlike", "beyond", "copied".
        above: the rated texts most like it among those with a clearly higher score, nearest first; clearly is by more
            than `std`, where there are such.
        below: the same among those with a lower score.
        query: the query that the text is valued for, or None.
        unlike: the respect in which it is most unlike the rated texts, where it is marked so; else None.
    """

    text: str
    value: float
    std: float | None
    support: float | None
    score: float
    share_below: float
    repeated: float
    likeness: float | None
    marks: tuple[str, ...]
    above: tuple[RankingExample, ...]
    below: tuple[RankingExample, ...]
    query: str | None = None
    unlike: str | None = None


class Scorer:
    """Values, scores and judges texts by a copy of a value function, which later learning does not reach.

    Args:
        learner: a fitted learner; a copy is kept.
        scale: (low, high), the values that become scores of .05 and .95; None for those of the rated texts.
        pessimism: standard deviations taken off a value before it becomes a score, >= 0.
        confidence: the lower end of the interval of this confidence takes the value's place; None for the value.
        n_neighbors: rated texts that a judgement names on either side of a value.

    Attributes:
        fit: the fit that values texts.
        lowest: the lowest rating, which is the value of a failure.
        scale: from values to scores.

    Raises:
        NotFittedError: nothing was learned yet.
        StateError: the fit belongs to another embedding model.
        InputError: an argument that cannot be used, pessimism and confidence together, or either of them with a value
            function that was saved without its texts.
    """

    def __init__(
        self,
        learner: Qwen3EmbeddingValueLearner,
        scale: tuple[float, float] | None,
        pessimism: float,
        confidence: float | None,
        n_neighbors: int,
    ) -> None:
        self.pessimism = check_number(pessimism, "pessimism")
        if self.pessimism < 0:
            raise InputError(f"pessimism must be at least 0, but got {self.pessimism:g}.")
        self.confidence = None if confidence is None else check_confidence(confidence)
        if pessimism and confidence is not None:
            raise InputError(
                "give pessimism, standard deviations to take off, or confidence, for the lower end of an interval; "
                "not both."
            )
        self.n_neighbors = check_count(n_neighbors, "n_neighbors", 1)
        self.learner = learner.deepcopy()
        self.fit = self.learner.current_fit()
        self.lowest = float(self.fit.quantiles[0])
        self.scale = scale_of(self.fit.quantiles.tolist()) if scale is None else check_scale(scale)
        if self.confidence is not None and self.fit.n_texts and self.fit.members.max() == 0:
            raise InputError(
                "confidence needs rated texts of at least two groups, but all are of one (or copies of one text), so "
                "that none can be left out; rate texts of another."
            )
        if self.confidence is not None and 0 < self.fit.n_texts < (needed := fewest(self.confidence)):
            raise InputError(
                f"confidence={self.confidence:g} needs at least {needed} rated texts, but there are "
                f"{self.fit.n_texts}; give a lower confidence, or rate more."
            )
        careful = "pessimism" if pessimism else "confidence" if confidence is not None else None
        if careful and not self.fit.n_texts:
            raise InputError(
                f"{careful} needs the texts the value function was learned from, but it was saved without them "
                f"(keep_examples=False); leave {careful} out, or give a value function that kept them."
            )

    def value(self, item: Item) -> float:
        """The value of a text, on the raters' scale, `pessimism` standard deviations lower, or its lower end."""
        text, query = text_of(item), query_of(item)
        if self.confidence is not None:
            lower: float = self.learner.predict_interval(text, query, self.confidence)[0]
            return lower
        value: float = self.learner.predict(text, query)
        return value - self.pessimism * self.learner.predict_std(text, query) if self.pessimism else value

    def values(self, items: Sequence[Item]) -> Array:
        """The values of many texts, (n_texts,), each what `value` gives."""
        texts = [text_of(item) for item in items]
        queries = [query for item in items if (query := query_of(item)) is not None] or None
        if self.confidence is not None:
            lower: Array = self.learner.predict_interval_many(texts, queries, self.confidence)[:, 0]
            return lower
        values: Array = self.learner.predict_many(texts, queries)
        if self.pessimism:
            values = values - self.pessimism * self.learner.predict_std_many(texts, queries)
        return values

    def score(self, item: Item) -> float:
        """The score of a text, in (0, 1); 0 of an empty one."""
        return LOWEST if is_blank(text_of(item)) else self.scale(self.value(item))

    def judgements(self, items: Sequence[Item]) -> Iterator[Judgement]:
        """The judgement of each text: the same as of one alone, at a fraction of the cost."""
        inspection = self.learner.inspection() if self.fit.n_texts else None
        if inspection is not None and len(items) > 1:
            inspection.foresee(items, self.confidence)
        for rows in slices(len(items), AT_ONCE):
            some = items[rows]
            cosines = [None] * len(some) if inspection is None else inspection.neighbors.rough_cosines(some)
            for item, rough in zip(some, cosines, strict=True):
                yield self._judgement(item, inspection, rough)

    def _judgement(self, item: Item, inspection: Inspection | None, rough: Vectors | None) -> Judgement:
        """The judgement of a text, given its `rough_cosines` with the rated texts, (n_texts,), where they were kept."""
        text, query, memo = text_of(item), query_of(item), self.fit.memo
        value, blank, repeated = self.learner.predict(text, query), is_blank(text), repeated_share(text)
        marks = {EMPTY: blank, REPEATED: repeated > REPEATED_SHARE}
        ranked = memo.once("ranked", lambda: np.sort(self.fit.scores) if self.fit.n_texts else self.fit.quantiles)
        share_below = float(np.searchsorted(ranked, value) / len(ranked))
        std = support = likeness = unlike = None
        above, below = (), ()
        if inspection is not None and rough is not None:
            usual = memo.once("usual", lambda: _Usual.of(inspection))
            std, support = inspection.std(item), inspection.supporting(item, rough)
            (likeness,) = inspection.neighbors.highest(item, rough, np.arange(len(rough)), 1)[1].tolist()
            if support < SUPPORTED and not blank:
                unlike = inspection.supporting.reason(item, rough)
            marks |= {UNLIKE: unlike is not None, COPIED: likeness > COPY, BEYOND: value > usual.value}
            sides = (_clearly(usual.scores - value, std), _clearly(value - usual.scores, std))
            nearest = [inspection.neighbors.highest(item, rough[rows], rows, self.n_neighbors)[0] for rows in sides]
            above, below = (tuple(self.fit.rated[row] for row in rows) for rows in nearest)
        doubts = tuple(mark for mark, holds in marks.items() if holds)
        score = self.score(item)
        return Judgement(
            text, value, std, support, score, share_below, repeated, likeness, doubts, above, below, query, unlike
        )


@dataclass(frozen=True)
class _Usual:
    """The ratings, and the highest value that they bear out.

    Attributes:
        scores: the ratings, (n_texts,).
        value: the highest rating, or value that all other texts give a text.
    """

    scores: Array
    value: float

    @staticmethod
    def of(inspection: Inspection) -> "_Usual":
        """Those of the rated texts of a fit."""
        scores = inspection.fit.scores
        value = max(float(scores.max()), float(np.nanmax(inspection.leave_one_out().values)))
        return _Usual(scores, value)


def _clearly(differences: Array, std: float) -> NDArray[np.intp]:
    """Positions of the differences above a standard deviation, or where none is, above 0."""
    return np.flatnonzero(differences > std if (differences > std).any() else differences > 0)
