"""What a value function has to say of one text: its value, how sure that is, and whether to believe it.

An optimizer looks for texts of high value, and finds those the value function is wrong about. Five marks tell them:

    "empty"      there is nothing to judge
    "repeated"   it says the same thing over and over
    "unlike"     nothing like it was rated: its value is a guess
    "beyond"     its value is above all ratings, and above what any rated text is worth to the others
    "copied"     it is one of the rated texts: what it is worth was not learned but told
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.errors import InputError
from dspy_qvl.learner import Qwen3EmbeddingValueLearner
from dspy_qvl.scale import Scale, scale_of
from dspy_qvl.text import Item, RankingExample, is_blank, query_of, text_of

Array = NDArray[np.float64]

EMPTY, REPEATED, UNLIKE, BEYOND, COPIED = "empty", "repeated", "unlike", "beyond", "copied"

# Of 15,000 sentences, tweets, arguments and news summaries one in 250 says more than .3 of itself twice, and most of
# those are smileys and "yay yay yay"; of the answers of small language models that went in circles nearly all.
PIECE, REPEATED_SHARE = 10, 0.3
COPY = 0.999  # cosine from which on a text is a rated one, but for blanks and letter case
RARE = 0.01  # share of the rated texts themselves that are as unlike the others as a text that is marked


@dataclass(frozen=True)
class Judgement:
    """What is said of one text.

    Attributes:
        text: the text.
        query: what it is valued for, or None.
        value: on the raters' scale.
        std: standard deviation of what a rater would say, or None where the rated texts were not kept.
        score: in (0, 1), after `pessimism`.
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

    def __call__(self, item: Item) -> Judgement:
        """All that is said of a text."""
        learner, fit = self.learner, self.fit
        text, query = text_of(item), query_of(item)
        value = learner.predict(text, query)
        marks = [EMPTY] if is_blank(text) else []
        repeated = repeated_share(text)
        if repeated > REPEATED_SHARE:
            marks.append(REPEATED)
        std: float | None = None
        likeness: float | None = None
        above: tuple[RankingExample, ...] = ()
        below: tuple[RankingExample, ...] = ()
        ranked = np.sort(fit.scores) if fit.n_texts else fit.quantiles
        if fit.n_texts:
            inspection = learner.inspection()
            std, cosines = inspection.std(item), inspection.cosines(item)
            likeness = float(cosines.max())
            far = inspection.fit_variance(item) > np.quantile(inspection.posterior.fit_variances, 1 - RARE)
            lonely = query is None and likeness < np.quantile(inspection.nearest_other(), RARE)
            if not is_blank(text) and (far or lonely):
                marks.append(UNLIKE)
            if likeness > COPY:
                marks.append(COPIED)
            if value > max(fit.scores.max(), np.nanmax(inspection.leave_one_out().values)):
                marks.append(BEYOND)
            nearest = np.argsort(-cosines, kind="stable")
            differences = fit.scores[nearest] - value
            above, below = (
                tuple(fit.rated[row] for row in nearest[_clearly(side, std)][: self.n_neighbors])
                for side in (differences, -differences)
            )
        return Judgement(
            text,
            value,
            std,
            self.scale(self.value(item)),
            float(np.searchsorted(ranked, value) / len(ranked)),
            repeated,
            likeness,
            tuple(marks),
            above,
            below,
            query,
        )


def _clearly(differences: Array, std: float) -> NDArray[np.bool_]:
    """Which differences are above a standard deviation, or where none is, above 0."""
    return differences > std if (differences > std).any() else differences > 0


def repeated_share(text: str) -> float:
    """Share of a text's pieces of 10 characters that it has said before, in [0, 1)."""
    n_pieces = len(text) - PIECE + 1
    if n_pieces <= 0:
        return 0.0
    return 1 - len({text[start : start + PIECE] for start in range(n_pieces)}) / n_pieces
