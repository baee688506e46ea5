"""Weights of blocks of columns, chosen together with the penalty by cross-validation (banded ridge regression).

    value = sum over blocks b of  c_b x_b w_b + intercept,       one penalty on all w_b

Weighing a block more is penalising its coefficients less: banded ridge regression. All weightings are compared side
by side, on one reading of the rows (`weigher.py`); the fit that is kept is solved exactly.

Columns of words come with inverse document frequencies idf_j, and count as x_j idf_j^p: a rare word says more than a
frequent one, but how much more differs from task to task. The power p is chosen in a second step: first the weights
with the start power, then the other powers, at those weights and at every level of the blocks that the frequencies
change. The variance of these is that of the multiplied columns, so that a power changes which words count in a block,
not how much the block counts.

Source: Dupré la Tour et al. (2022), Feature-space selection with banded ridge regression.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dspy_qvl.ridge.moments import Folds
from dspy_qvl.ridge.weigher import Weigher
from dspy_qvl.vectors import Array, Matrix, MixedRows

WIDE = 16  # columns from which a block is wide: it shares its variance among many coefficients
LEVELS = {True: (0.5, 1.0, 1.5, 2.5), False: (0.1, 0.25, 0.5)}  # of wide blocks, and of narrow ones
AT_ONCE = 25  # weightings that are all tried; with more, one block after the other
ENOUGH = 3000  # rows that say as much about weights as more would
FEW = 20  # rows below which cross-validation has nothing to say about weights
POWERS = (0.0, 0.5, 1.0)  # of the inverse document frequencies
START_POWER = 0.5  # stands until another is better
STANDARD_ERRORS = 2.0  # of the difference to the start, by which another choice must be better
TIE = 1e-5  # relative difference of errors that rounding to float32 can make


@dataclass(frozen=True)
class Weighting:
    """The weights of blocks, the share of the error that each block takes away, and the power of frequencies.

    Attributes:
        weights: one for each block, the first one's is 1, in units that give all blocks one variance.
        adds: for each block but the first, the share of the cross-validated error that it takes away; NaN where
            there were too few rows to tell.
        power: that of the inverse document frequencies; 0 without any.
    """

    weights: tuple[float, ...]
    adds: tuple[float, ...]
    power: float = 0.0


def choose_weights(
    X: Matrix,
    blocks: Sequence[slice],
    y: Array,
    alphas: Sequence[float],
    folds: Folds,
    *,
    optional: bool,
    starts: Sequence[float] | None = None,
    idf: Array | None = None,
    power: float = START_POWER,
) -> Weighting:
    """The weights of blocks, and the power of frequencies, by cross-validation, each choice at its best penalty.

    The smallest levels (.5 of the first block's standard deviation for a wide block, .1 for a narrow one) cost next
    to nothing where a block is useless. They stand until another weighting is better by two standard errors of the
    difference over the folds: with 30 ratings the best of 20 weightings is mostly the luckiest. So does the start
    power, at the weights that were found with it. Of many rows, 3,000 drawn at random decide.

    Args:
        X: all columns, (n, d).
        blocks: the columns of each block, in any order; each is all dense or all sparse.
        y: targets, (n,).
        alphas: penalties, each > 0.
        folds: the rows of each fold.
        optional: True if a block may get the weight 0.
        starts: the weight of each block that stands until another is better; None for the smallest levels.
        idf: the inverse document frequency of every sparse column, each > 0, and 1 for columns that have none, (m,);
            None for no powers.
        power: the power of them that stands until another is better.
    """
    usual = [LEVELS[block.stop - block.start >= WIDE] for block in blocks[1:]]
    levels = [((0.0,) if optional else ()) + choices for choices in usual]
    start = (1.0, *((choices[0] for choices in usual) if starts is None else starts[1:]))
    start_power = 0.0 if idf is None else power
    if len(y) < FEW:
        return Weighting(start, (np.nan,) * len(levels), start_power)
    if len(y) > ENOUGH:  # of each fold its share
        rng, share = np.random.default_rng(0), ENOUGH / len(y)
        drawn = [np.sort(rng.permutation(fold)[: max(1, round(len(fold) * share))]) for fold in folds]
        rows = np.sort(np.concatenate(drawn))
        X, y, folds = X[rows], y[rows], [np.searchsorted(rows, fold) for fold in drawn]
    spread = y.std()
    y = (y - y.mean()) / (spread if spread > 0 else 1.0)  # float32 must hold its squares, whatever the raters' scale
    factors = np.ones(X.shape[1]) if idf is None else np.concatenate([np.ones(X.shape[1] - len(idf)), idf])
    trials = _Trials(lambda power: Weigher(_raised(X, factors, power), blocks, y, folds), alphas)

    grid = [(1.0, *rest) for rest in itertools.product(*levels)] if np.prod([*map(len, levels)]) <= AT_ONCE else []
    best = trials.best_of(start_power, [start, *grid])
    if not grid:
        for number, choices in enumerate(levels, start=1):
            best = trials.best_of(start_power, [best, *(_with(best, number, level) for level in choices)])
    chosen = trials.better_of((start_power, start), (start_power, best))
    if idf is not None:
        changed = [number for number, block in enumerate(blocks) if (factors[block] != 1).any()]
        near = [_with(chosen[1], number, level) for number in changed if number for level in levels[number - 1]]
        others = [(other, trials.best_of(other, [chosen[1], *near])) for other in POWERS if other != start_power]
        chosen = trials.better_of(chosen, min(others, key=trials.error))
    power, weights = chosen
    without = [_with(weights, number, 0.0) for number in range(1, len(blocks))]
    trials.best_of(power, [weights, *without])
    error = trials.error(chosen)
    return Weighting(weights, tuple(1 - error / trials.error((power, other)) for other in without), power)


def _with(weights: tuple[float, ...], number: int, weight: float) -> tuple[float, ...]:
    return (*weights[:number], weight, *weights[number + 1 :])


def _raised(X: Matrix, factors: Array, power: float) -> Matrix:
    """Every column times a power of its factor."""
    return X.times(factors**power) if isinstance(X, MixedRows) and power else X


_Trial = tuple[float, tuple[float, ...]]  # a power, and the weights of blocks


class _Trials:
    """Powers and weights that were tried, with the errors of the folds at the best penalty.

    Args:
        weigher_of: power -> what weighs the columns multiplied by that power.
        alphas: penalties, each > 0.
    """

    def __init__(self, weigher_of: "Callable[[float], Weigher]", alphas: Sequence[float]) -> None:
        self._weigher_of, self._alphas = functools.cache(weigher_of), alphas
        self._tried: dict[_Trial, Array] = {}  # (n_folds,)

    def best_of(self, power: float, weightings: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
        """The weights with the lowest error at this power."""
        new = [weights for weights in dict.fromkeys(weightings) if (power, weights) not in self._tried]
        if new:
            for weights, errors in zip(new, self._weigher_of(power).errors(new, self._alphas), strict=True):
                self._tried[power, weights] = errors[np.argmin(errors.mean(axis=1))]
        return min(weightings, key=lambda weights: self.error((power, weights)))

    def better_of(self, standing: _Trial, other: _Trial) -> _Trial:
        """The other one if it is better by two standard errors, and by more than rounding."""
        gain = self._tried[standing] - self._tried[other]
        least = max(STANDARD_ERRORS * gain.std(ddof=1) / np.sqrt(len(gain)), TIE * self.error(standing))
        return other if gain.mean() > least else standing

    def error(self, trial: _Trial) -> float:
        """Mean over the folds."""
        return float(self._tried[trial].mean())
