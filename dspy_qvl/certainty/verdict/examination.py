"""All that can be said of a value function from its rated texts, at a bounded cost."""

from dataclasses import dataclass, field

from dspy_qvl.certainty.verdict.comparison import Comparison, beside_baselines
from dspy_qvl.certainty.verdict.curve import LearningCurve, learning_curve
from dspy_qvl.certainty.verdict.length import BeyondLength, beyond_length
from dspy_qvl.certainty.verdict.rated_rows import RatedRows
from dspy_qvl.certainty.verdict.verdict import Verdict, verdict_on
from dspy_qvl.fitting import ALPHA_RANGE, ENOUGH, permutation_test

MOST_EXAMINED = 4000  # rows: more of them would narrow intervals that are narrow


@dataclass(frozen=True, eq=False)
class Examination:
    """A value function, examined.

    Attributes:
        n: rated texts.
        rows: those that the figures are of; of more than 4,000 a sample.
        compared: figures out of fold beside those of the baselines.
        p: permutation test against noise.
        length: how much of it is length.
        curve: figures by the number of rated texts.
        verdict: one of five.
    """

    n: int
    rows: RatedRows = field(repr=False)
    compared: Comparison
    p: float
    length: BeyondLength
    curve: LearningCurve
    verdict: Verdict

    @property
    def n_examined(self) -> int:
        """The number of rated texts that the figures are of."""
        return len(self.rows)


def examine(rated: RatedRows) -> Examination:
    """Examine a value function on its rated texts, or on a sample of about 4,000 of them.

    Args:
        rated: the rated texts.

    Raises:
        InputError: all rows are one group.
    """
    some, p = rated.sampled(MOST_EXAMINED), against_noise(rated)
    compared = beside_baselines(some)
    length = beyond_length(some, compared.values)
    curve = learning_curve(some, compared.values)
    return Examination(len(rated), some, compared, p, length, curve, verdict_on(some, p, compared, length))


def against_noise(rated: RatedRows) -> float:
    """The p of the permutation test on at most 1,000 rows, the penalty chosen anew for every shuffle."""
    some = rated.sampled(ENOUGH)
    members, seed = some.groups.tolist(), rated.random_state
    return permutation_test(some.untuned, some.y, ALPHA_RANGE, members=members, random_state=seed).p
