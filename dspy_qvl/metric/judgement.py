"""What a value function has to say of one text: its value, how sure that is, and whether to believe it.

An optimizer looks for texts of high value, and finds those the value function is wrong about. Five marks tell them:

    "empty"      there is nothing to judge: its score is 0, its value what raters gave to saying nothing, where they
                 did, else what the rated texts leave for a text without any feature
    "repeated"   it says the same thing over and over
    "unlike"     nothing like it was rated: its value is a guess
    "beyond"     its value is above all ratings, and above what any rated text is worth to the others
    "copied"     it is one of the rated texts: what it is worth was not learned but told
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.errors import InputError
from dspy_qvl.learner import Inspection, Qwen3EmbeddingValueLearner
from dspy_qvl.metric.scale import Scale, scale_of
from dspy_qvl.text import Item, RankingExample, is_blank, query_of, text_of
from dspy_qvl.vectors import Array, Vectors, slices

LOWEST = 0.0  # the score of what says nothing; every other text scores higher

EMPTY, REPEATED, UNLIKE, BEYOND, COPIED = "empty", "repeated", "unlike", "beyond", "copied"

# Of 15,000 sentences, tweets, arguments and news summaries one in 250 says more than .3 of itself twice, and most of
# those are smileys and "yay yay yay"; of the answers of small language models that went in circles nearly all.
PIECE, REPEATED_SHARE = 10, 0.3
COPY = 0.999  # cosine from which on a text is a rated one, but for blanks and letter case
AT_ONCE = 256  # texts whose cosines with all rated texts are in memory
RARE = 0.01  # share of the rated texts themselves that are as unlike the others as a text that is marked


@dataclass(frozen=True)
class Judgement:
    """What is said of one text.

    Attributes:
        text: the text.
        query: what it is valued for, or None.
        value: on the raters' scale.
        std: standard deviation of what a rater would say, or None where the rated texts were not kept.
        score: in (0, 1), after `pessimism`; 0 of an empty text, whatever its value.
        share_below: share of the rated texts with a lower score, in [0, 1].
        repeated: share of the text that repeats what it said before, in [0, 1).
        likeness: cosine with the rated text that is most like it; None where they were not kept.
        marks: why its value may not be believed, of "empty", "repeated", "unlike", "beyond", "copied".
        above: the rated texts most like it among those with a clearly higher score, nearest first; clearly is by more
            than `std`, where there are such.
        below: the same among those with a lower score.
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


class Judge:
    """A value function as it is now, and what it says of texts; what the learner learns later does not reach it.

    Args:
        learner: a fitted learner; a copy is kept.
        scale: from values to scores; None for that of the rated texts.
        pessimism: standard deviations taken off a value before it becomes a score, >= 0.
        n_neighbors: how many rated texts to name on either side of a value.

    Raises:
        NotFittedError: nothing was learned yet.
        StateError: the fit belongs to another embedding model.
        InputError: pessimism about a value function that was saved without its texts.
    """

    def __init__(
        self, learner: Qwen3EmbeddingValueLearner, scale: Scale | None, pessimism: float, n_neighbors: int
    ) -> None:
        self.learner = learner.deepcopy()
        self.fit = self.learner.current_fit()
        self.scale = scale_of(self.fit.quantiles.tolist()) if scale is None else scale
        self.pessimism = pessimism
        self.n_neighbors = n_neighbors
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
        """What `value` gives for each of many texts, (n_texts,)."""
        texts = [text_of(item) for item in items]
        queries = [query for item in items if (query := query_of(item)) is not None] or None
        values: Array = self.learner.predict_many(texts, queries)
        if self.pessimism:
            values = values - self.pessimism * self.learner.predict_std_many(texts, queries)
        return values

    def __call__(self, item: Item) -> Judgement:
        """All that is said of a text."""
        return next(self.many([item]))

    def many(self, items: Sequence[Item]) -> Iterator[Judgement]:
        """All that is said of each text: the same as of one alone, at a fraction of the cost."""
        inspection = self.learner.inspection() if self.fit.n_texts else None
        if inspection is not None and len(items) > 1:
            inspection.foresee(items)
        for rows in slices(len(items), AT_ONCE):
            some = items[rows]
            if inspection is None:
                yield from (self._judged(item, None, None) for item in some)
                continue
            for item, rough in zip(some, inspection.rough_cosines(some), strict=True):
                yield self._judged(item, inspection, rough)

    def _judged(self, item: Item, inspection: Inspection | None, rough: Vectors | None) -> Judgement:
        """What is said of a text, whose `rough_cosines` with the rated texts are known."""
        text, query, memo = text_of(item), query_of(item), self.fit.memo
        value = self.learner.predict(text, query)
        marks = [EMPTY] if is_blank(text) else []
        repeated = repeated_share(text)
        if repeated > REPEATED_SHARE:
            marks.append(REPEATED)
        std: float | None = None
        likeness: float | None = None
        above: tuple[RankingExample, ...] = ()
        below: tuple[RankingExample, ...] = ()
        ranked = memo.once("ranked", lambda: np.sort(self.fit.scores) if self.fit.n_texts else self.fit.quantiles)
        if inspection is not None and rough is not None:
            usual = memo.once("usual", lambda: _Usual.of(inspection))
            std = inspection.std(item)
            (likeness,) = inspection.highest(item, rough, np.arange(len(rough)), 1)[1].tolist()
            far, lonely = inspection.exceeds(item, usual.variance), query is None and likeness < usual.likeness
            if not is_blank(text) and (far or lonely):
                marks.append(UNLIKE)
            if likeness > COPY:
                marks.append(COPIED)
            if value > usual.value:
                marks.append(BEYOND)
            above, below = (
                tuple(
                    self.fit.rated[row]
                    for row in inspection.highest(item, rough, _clearly(side, std), self.n_neighbors)[0]
                )
                for side in (usual.scores - value, value - usual.scores)
            )
        return Judgement(
            text,
            value,
            std,
            LOWEST if is_blank(text) else self.scale(self.value(item)),
            float(np.searchsorted(ranked, value) / len(ranked)),
            repeated,
            likeness,
            tuple(marks),
            above,
            below,
            query,
        )


@dataclass(frozen=True)
class _Usual:
    """What is usual for rated texts, and unusual beyond.

    Attributes:
        scores: (n_texts,).
        value: the highest score, or value that all others give a text.
        variance: what few rated texts' `fit_variance` is above.
        likeness: what few rated texts' cosine with the nearest other one is below.
    """

    scores: Array
    value: float
    variance: float
    likeness: float

    @staticmethod
    def of(inspection: Inspection) -> "_Usual":
        """What is usual for the rated texts of a fit."""
        scores = inspection.fit.scores
        return _Usual(
            scores,
            max(float(scores.max()), float(np.nanmax(inspection.leave_one_out().values))),
            float(np.quantile(inspection.posterior.fit_variances, 1 - RARE)),
            float(np.quantile(inspection.nearest_other(), RARE)),
        )


def _clearly(differences: Array, std: float) -> NDArray[np.intp]:
    """Which differences are above a standard deviation, or where none is, above 0."""
    return np.flatnonzero(differences > std if (differences > std).any() else differences > 0)


def repeated_share(text: str) -> float:
    """Share of a text's pieces of 10 characters that it has said before, in [0, 1)."""
    n_pieces = len(text) - PIECE + 1
    if n_pieces <= 0:
        return 0.0
    return 1 - len({text[start : start + PIECE] for start in range(n_pieces)}) / n_pieces
