"""Is it only the length? How much of the values a straight line in log length explains, and a test of the rest."""

from dataclasses import dataclass

from dspy_qvl.certainty.verdict.rated_rows import RatedRows
from dspy_qvl.fitting import ALPHA_RANGE, ENOUGH, permutation_test, without_line
from dspy_qvl.vectors import Array


@dataclass(frozen=True)
class BeyondLength:
    """How much of a value function is length.

    Attributes:
        share: of the variance of the values, out of fold, what a straight line in log length explains, in [0, 1].
        beyond: of the variance of the scores that length and values explain together, the share that length does not,
            in [0, 1]; 0 where they explain nothing.
        p: permutation test of what the columns say beyond length, in (0, 1].
    """

    share: float
    beyond: float
    p: float


def beyond_length(rated: RatedRows, values: Array) -> BeyondLength:
    """Tell the length of a text apart from what else its value says.

    The test is `fitting.permutation_test` of what a straight line in log length leaves over of the scores, on at most
    1,000 rows, with the penalty chosen anew for every shuffle.

    Args:
        rated: the rated texts.
        values: the value of each row under a fit that never saw it, (n,).
    """
    some = rated.sampled(ENOUGH)
    seed, members = rated.random_state, some.groups.tolist()
    test = permutation_test(some.untuned, some.y, ALPHA_RANGE, members=members, given=some.lengths, random_state=seed)
    y, plain, lengths = rated.y - rated.y.mean(), values - values.mean(), rated.lengths - rated.lengths.mean()
    rest = without_line(values, rated.lengths)
    of_length, of_rest = _explained(y, lengths), _explained(y, rest) if rest @ rest > 1e-12 * (plain @ plain) else 0.0
    both = of_length + of_rest
    return BeyondLength(_explained(plain, lengths), of_rest / both if both > 0 else 0.0, test.p)


def _explained(y: Array, x: Array) -> float:
    """Share of the squares of y that a line through x explains, both centred; 0 where either is constant."""
    squares = float(y @ y) * float(x @ x)
    return float(y @ x) ** 2 / squares if squares > 0 else 0.0
