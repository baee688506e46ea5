"""Scores texts by a value function, and judges them: how sure a value is, and whether to believe it.

An optimizer looks for texts of high value, and finds those the value function is wrong about. Five marks warn of them:

    "empty"      there is nothing to judge: its score is 0, its value what raters gave to saying nothing, where they
                 did, else what the rated texts leave for a text without any feature
    "repeated"   it says the same thing over and over
    "unlike"     nothing like it was rated: its value is a guess
    "beyond"     its value is above all ratings, and above what any rated text is worth to the others
    "copied"     it is one of the rated texts, so its rating was seen in training
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.errors import InputError, check_count, check_number
from dspy_qvl.learner import Inspection, Qwen3EmbeddingValueLearner
from dspy_qvl.metric.scale import check_scale, scale_of
from dspy_qvl.text import Item, RankingExample, is_blank, query_of, text_of
from dspy_qvl.vectors import Array, Vectors, slices

LOWEST = 0.0  # the score of an empty text; every other text scores higher

EMPTY, REPEATED, UNLIKE, BEYOND, COPIED = "empty", "repeated", "unlike", "beyond", "copied"

# Of 15,000 sentences, tweets, arguments and news summaries one in 250 says more than .3 of itself twice, and most of
# those are smileys and "yay yay yay"; of the answers of small language models that went in circles nearly all.
PIECE, REPEATED_SHARE = 10, 0.3
COPY = 0.999  # cosine from which on a text is a rated one, but for blanks and letter case
AT_ONCE = 256  # texts whose cosines with all rated texts are in memory
RARE = 0.01  # share of the rated texts themselves that are as unlike the others as a text that is marked


@dataclass(frozen=True)
class Judgement:
    """Value and score of one text, and the evidence for them.

    Attributes:
        text: the text.
        value: on the raters' scale.
        std: standard deviation of a rater's answer, or None where the rated texts were not kept.
        score: in (0, 1), after `pessimism`; 0 of an empty text, whatever its value.
        share_below: share of the rated texts with a lower score, in [0, 1].
        repeated: share of the text that repeats what it said before, in [0, 1).
        likeness: cosine with the rated text that is most like it; None where they were not kept.
        marks: reasons not to believe the value, of "empty", "repeated", "unlike", "beyond", "copied".
        above: the rated texts most like it among those with a clearly higher score, nearest first; clearly is by more
            than `std`, where there are such.
        below: the same among those with a lower score.
        query: the query that the text is valued for, or None.
    """

    text: str
    value: float
    std: float | None
    score: float
    share_below: float
    repeated: float
    likeness: float | None
    marks: tuple[str, ...]
    above: tuple[RankingExample, ...]
    below: tuple[RankingExample, ...]
    query: str | None = None


class Scorer:
    """Values, scores and judges texts by a copy of a value function, which later learning does not reach.

    Args:
        learner: a fitted learner; a copy is kept.
        scale: (low, high), the values that become scores of .05 and .95; None for those of the rated texts.
        pessimism: standard deviations taken off a value before it becomes a score, >= 0.
        n_neighbors: rated texts that a judgement names on either side of a value.

    Attributes:
        fit: the fit that values texts.
        lowest: the lowest rating, which is the value of a failure.
        scale: from values to scores.

    Raises:
        NotFittedError: nothing was learned yet.
        StateError: the fit belongs to another embedding model.
        InputError: an argument that cannot be used, or pessimism about a value function that was saved without its
            texts.
    """

    def __init__(
        self, learner: Qwen3EmbeddingValueLearner, scale: tuple[float, float] | None, pessimism: float, n_neighbors: int
    ) -> None:
        self.pessimism = check_number(pessimism, "pessimism")
        if self.pessimism < 0:
            raise InputError(f"pessimism must be at least 0, but got {self.pessimism:g}.")
        self.n_neighbors = check_count(n_neighbors, "n_neighbors", 1)
        self.learner = learner.deepcopy()
        self.fit = self.learner.current_fit()
        self.lowest = float(self.fit.quantiles[0])
        self.scale = scale_of(self.fit.quantiles.tolist()) if scale is None else check_scale(scale)
        if pessimism and not self.fit.n_texts:
            raise InputError(
                "pessimism needs the texts the value function was learned from, but it was saved without them "
                "(keep_examples=False); give pessimism=0, or a value function that kept them."
            )

    def value(self, item: Item) -> float:
        """The value of a text, on the raters' scale, `pessimism` standard deviations lower."""
        text, query = text_of(item), query_of(item)
        value: float = self.learner.predict(text, query)
        return value - self.pessimism * self.learner.predict_std(text, query) if self.pessimism else value

    def values(self, items: Sequence[Item]) -> Array:
        """The values of many texts, (n_texts,), each what `value` gives."""
        texts = [text_of(item) for item in items]
        queries = [query for item in items if (query := query_of(item)) is not None] or None
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
            inspection.foresee(items)
        for rows in slices(len(items), AT_ONCE):
            some = items[rows]
            cosines = [None] * len(some) if inspection is None else inspection.rough_cosines(some)
            for item, rough in zip(some, cosines, strict=True):
                yield self._judgement(item, inspection, rough)

    def _judgement(self, item: Item, inspection: Inspection | None, rough: Vectors | None) -> Judgement:
        """The judgement of a text, given its `rough_cosines` with the rated texts, (n_texts,), where they were kept."""
        text, query, memo = text_of(item), query_of(item), self.fit.memo
        value, blank, repeated = self.learner.predict(text, query), is_blank(text), repeated_share(text)
        marks = {EMPTY: blank, REPEATED: repeated > REPEATED_SHARE}
        ranked = memo.once("ranked", lambda: np.sort(self.fit.scores) if self.fit.n_texts else self.fit.quantiles)
        share_below = float(np.searchsorted(ranked, value) / len(ranked))
        std = likeness = None
        above, below = (), ()
        if inspection is not None and rough is not None:
            usual = memo.once("usual", lambda: _Usual.of(inspection))
            std = inspection.std(item)
            (likeness,) = inspection.highest(item, rough, np.arange(len(rough)), 1)[1].tolist()
            unlike = inspection.exceeds(item, usual.variance) or (query is None and likeness < usual.likeness)
            marks |= {UNLIKE: unlike and not blank, COPIED: likeness > COPY, BEYOND: value > usual.value}
            sides = (_clearly(usual.scores - value, std), _clearly(value - usual.scores, std))
            nearest = [inspection.highest(item, rough, rows, self.n_neighbors)[0] for rows in sides]
            above, below = (tuple(self.fit.rated[row] for row in rows) for rows in nearest)
        doubts = tuple(mark for mark, holds in marks.items() if holds)
        score = self.score(item)
        return Judgement(text, value, std, score, share_below, repeated, likeness, doubts, above, below, query)


@dataclass(frozen=True)
class _Usual:
    """Limits that few or none of the rated texts are beyond.

    Attributes:
        scores: the ratings, (n_texts,).
        value: the highest rating, or value that all other texts give a text.
        variance: `fit_variance` that few rated texts are above.
        likeness: cosine with the nearest other one that few rated texts are below.
    """

    scores: Array
    value: float
    variance: float
    likeness: float

    @staticmethod
    def of(inspection: Inspection) -> "_Usual":
        """The limits of the rated texts of a fit."""
        scores = inspection.fit.scores
        value = max(float(scores.max()), float(np.nanmax(inspection.leave_one_out().values)))
        variance = float(np.quantile(inspection.posterior.fit_variances, 1 - RARE))
        return _Usual(scores, value, variance, float(np.quantile(inspection.nearest_other(), RARE)))


def _clearly(differences: Array, std: float) -> NDArray[np.intp]:
    """Positions of the differences above a standard deviation, or where none is, above 0."""
    return np.flatnonzero(differences > std if (differences > std).any() else differences > 0)


def repeated_share(text: str) -> float:
    """Share of a text's pieces of 10 characters that it has said before, in [0, 1)."""
    n_pieces = len(text) - PIECE + 1
    if n_pieces <= 0:
        return 0.0
    return 1 - len({text[start : start + PIECE] for start in range(n_pieces)}) / n_pieces
