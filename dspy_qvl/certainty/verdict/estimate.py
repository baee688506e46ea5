"""A figure with its doubt."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dspy_qvl import measures
from dspy_qvl.vectors import Array

N_DRAWS = 500


@dataclass(frozen=True, eq=False)
class Estimate:
    """A figure of some rows, and the same figure on bootstrap draws of their groups.

    Attributes:
        value: the figure.
        draws: (n_draws,); NaN on draws where it is not defined.
    """

    value: float
    draws: Array = field(repr=False)

    @property
    def lower(self) -> float:
        """The lower end of the 95 % percentile interval; NaN where fewer than half of the draws have the figure."""
        return self._quantile(0.025)

    @property
    def upper(self) -> float:
        """The upper end of the 95 % percentile interval; NaN where fewer than half of the draws have the figure."""
        return self._quantile(0.975)

    @property
    def se(self) -> float:
        """The standard error: the standard deviation of the draws."""
        return math.nan if math.isnan(self.value) else measures.standard_error(self.draws)

    def __sub__(self, other: "Estimate") -> "Estimate":
        """The difference of two figures of the same rows, draw by draw."""
        return Estimate(self.value - other.value, self.draws - other.draws)

    def _quantile(self, share: float) -> float:
        known = self.draws[np.isfinite(self.draws)]
        if math.isnan(self.value) or 2 * len(known) < len(self.draws):
            return math.nan
        return float(np.quantile(known, share))


def estimates(
    y: Array, values: Array, learned_means: Array, groups: Sequence[Hashable], random_state: int
) -> dict[str, Estimate]:
    """R² and Spearman of values that were not learned from these scores, by name.

    Values of several fits are ranked together, each less the mean score of the rows its fit learned from. That mean is
    high where those of the held-out rows are low: left in, it would give values that know nothing a negative Spearman.

    The draws of the same groups with the same seed are the same, so that two of them may be subtracted.

    Args:
        y: scores, (n,).
        values: their values, (n,), in the units of y.
        learned_means: the mean score of the rows that each value was learned from, (n,).
        groups: the group of each row, drawn together, (n,).
        random_state: seed of the draws.
    """
    views = {"r2": values, "spearman": values - learned_means}
    return {
        name: Estimate(
            measures.FIGURES[name](y, guess),
            measures.bootstrap(y, guess, groups, names=[name], n_draws=N_DRAWS, random_state=random_state)[name],
        )
        for name, guess in views.items()
    }
