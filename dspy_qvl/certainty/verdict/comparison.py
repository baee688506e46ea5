"""Values out of fold, and those of the baselines on the same folds."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dspy_qvl import ridge
from dspy_qvl.certainty.verdict.estimate import Estimate, estimates
from dspy_qvl.certainty.verdict.rated_rows import N_FOLDS, RatedRows
from dspy_qvl.fitting import BASELINES, make_folds
from dspy_qvl.vectors import Array


@dataclass(frozen=True, eq=False)
class Comparison:
    """Figures of a value function and of baselines, on rows that none of them learned from.

    Attributes:
        values: the value of each row under the fit that never saw its fold, (n,).
        figures: "r2" and "spearman" of the value function.
        baselines: the same of each baseline, by its name.
        differences: figures of the value function less those of each baseline, of the same draws.
    """

    values: Array = field(repr=False)
    figures: Mapping[str, Estimate]
    baselines: Mapping[str, Mapping[str, Estimate]]
    differences: Mapping[str, Mapping[str, Estimate]]

    @property
    def better(self) -> tuple[str, ...]:
        """The baselines that order the texts clearly better: their own Spearman and what they gain exclude 0."""
        return tuple(
            name
            for name, less in self.differences.items()
            if less["spearman"].upper < 0 < self.baselines[name]["spearman"].lower
        )


def beside_baselines(rated: RatedRows, baselines: Iterable[str] = tuple(BASELINES)) -> Comparison:
    """Value every row by fits that never saw its fold, and by baselines that did not either.

    Intervals are of the rows, drawn by whole groups; the fits are not drawn again, so they are a little too narrow.

    Args:
        rated: the rated texts.
        baselines: names of `fitting.BASELINES`.
    """
    y, means, groups, seed = rated.y, rated.learned_means, rated.groups.tolist(), rated.random_state
    values = ridge.out_of_fold(rated.X, y, [rated.alpha], rated.folds)[0]
    figures = estimates(y, values, means, groups, seed)
    of = {name: estimates(y, out_of_fold_baseline(rated, name), means, groups, seed) for name in baselines}
    less = {name: {key: figures[key] - one[key] for key in figures} for name, one in of.items()}
    return Comparison(values, figures, of, less)


def out_of_fold_baseline(rated: RatedRows, name: str) -> Array:
    """The value every row gets from a baseline of the rows beside its fold, (n,), in the units of y."""
    view, rule = BASELINES[name]
    columns = {"length": rated.lengths, "embedding": rated.vectors, "text": np.array(rated.texts, dtype=object)}[view]
    values = np.empty(len(rated))
    for fold in rated.folds:
        seen = np.setdiff1d(np.arange(len(rated)), fold)
        known, new = columns[seen], columns[fold]
        if len(seen) < 2:  # too few for the folds of words, and one score is the value of all texts
            values[fold] = rated.y[seen].mean()
            continue
        values[fold] = rule((known.tolist(), _inner(rated, seen)) if view == "text" else known, rated.y[seen], new)
    return values


def _inner(rated: RatedRows, seen: NDArray[np.intp]) -> ridge.Folds:
    """Folds of the rows that a baseline learns from, to choose its penalty on; of one group, of its rows."""
    members = rated.groups[seen].tolist()
    members = members if len(set(members)) > 1 else list(range(len(seen)))
    return make_folds(members, min(N_FOLDS, len(set(members))), np.random.default_rng(rated.random_state))
