"""Figures by the number of rated texts: would more of them help?

rows beside a fold ─► 1/8 ⊂ 1/4 ⊂ 1/2 ⊂ all of them, in whole groups ─► fit ─► values of the fold
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dspy_qvl import ridge
from dspy_qvl.certainty.verdict.estimate import Estimate, estimates
from dspy_qvl.certainty.verdict.rated_rows import RatedRows
from dspy_qvl.vectors import Array

SHARES = (1 / 8, 1 / 4, 1 / 2)


@dataclass(frozen=True, eq=False)
class LearningCurve:
    """Figures on rows held out, by the number of rows learned from.

    Attributes:
        sizes: rows learned from, on average over the folds, ascending.
        figures: "r2" and "spearman" at each size.
        last: what the last doubling brought: figures at the last size less those at the one before, of the same draws;
            empty where there is one size. Where groups are large, it may be more or less than a doubling: see `sizes`.
    """

    sizes: tuple[int, ...]
    figures: tuple[Mapping[str, Estimate], ...]
    last: Mapping[str, Estimate]


def learning_curve(rated: RatedRows, values: Array) -> LearningCurve:
    """Learn from an eighth, a fourth, a half and all of the rows beside each fold, with the same penalty.

    Each part lies within the next, and holds at least two groups. A share is left out where it is too small for that,
    or where whole groups make it the same as the one before.

    Args:
        rated: the rated texts.
        values: the value of each row under the fit of all rows beside its fold, (n,).
    """
    nested = [_nested(rated, fold, number) for number, fold in enumerate(rated.folds)]
    sizes: list[int] = []
    figures = []
    for place, share in enumerate((*SHARES, 1)):
        parts = [one[place] for one in nested]
        size = round(float(np.mean([len(part) for part in parts])))
        if share < 1 and (size in sizes or min(len(set(rated.groups[part])) for part in parts) < 2):
            continue
        found, means = values.copy(), np.empty(len(rated))
        for fold, part in zip(rated.folds, parts, strict=True):
            means[fold] = rated.y[part].mean()
            if share < 1:
                found[fold] = ridge.predict(rated.X[fold], ridge.fit(rated.X[part], rated.y[part], rated.alpha))
        sizes.append(size)
        figures.append(estimates(rated.y, found, means, rated.groups.tolist(), rated.random_state))
    last = {name: figures[-1][name] - figures[-2][name] for name in figures[-1]} if len(figures) > 1 else {}
    return LearningCurve(tuple(sizes), tuple(figures), last)


def _nested(rated: RatedRows, fold: NDArray[np.intp], number: int) -> list[NDArray[np.intp]]:
    """About each share of the rows beside a fold, in whole groups drawn at random, each within the next, and all."""
    seen = np.setdiff1d(np.arange(len(rated)), fold)
    rng = np.random.default_rng([rated.random_state, number])
    names, sizes = np.unique(rated.groups[seen], return_counts=True)
    order = rng.permutation(len(names))
    ends = np.cumsum(sizes[order])
    taken = [names[order[: np.argmin(np.abs(ends - share * len(seen))) + 1]] for share in SHARES]
    return [*(seen[np.isin(rated.groups[seen], some)] for some in taken), seen]
