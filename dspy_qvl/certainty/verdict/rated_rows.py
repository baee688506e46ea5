"""Rated texts as arrays: all that an examination needs to know of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.fitting import Members, make_folds, sample
from dspy_qvl.measures import numbered
from dspy_qvl.vectors import Array, Matrix

N_FOLDS = 5


@dataclass(frozen=True, eq=False)
class RatedRows:
    """Rated texts, and how a value function is learned from them.

    Attributes:
        X: columns as the fit sees them, times their factors, (n, d).
        untuned: columns under weights that no rating chose (`fitting.prior_weights`), (n, d'), for the tests; X itself
            where there are no blocks to weigh.
        y: scores, (n,).
        alpha: penalty, in units of X squared.
        members: the group of each row, never split; copies of a text share one, (n,).
        texts: (n,).
        vectors: what the nearest texts are looked up by, dense or sparse, (n, k).
        random_state: seed of samples, folds, shuffles and draws.
    """

    X: Matrix
    untuned: Matrix
    y: Array
    alpha: float
    members: Members | NDArray[np.intp]
    texts: Sequence[str]
    vectors: Any
    random_state: int = 0

    def __len__(self) -> int:
        return len(self.y)

    @cached_property
    def groups(self) -> NDArray[np.intp]:
        """The group of each row, numbered from 0, (n,)."""
        return numbered(self.members)

    @cached_property
    def n_groups(self) -> int:
        """The number of groups."""
        return int(self.groups.max()) + 1

    @cached_property
    def lengths(self) -> Array:
        """log(1 + characters) of each text, (n,)."""
        return np.log1p([len(text) for text in self.texts])

    @cached_property
    def folds(self) -> list[NDArray[np.intp]]:
        """The rows of each of five folds of whole groups; of fewer groups, as many folds.

        Raises:
            InputError: all rows are one group.
        """
        rng = np.random.default_rng(self.random_state)
        return make_folds(self.groups.tolist(), max(2, min(N_FOLDS, self.n_groups)), rng)

    @cached_property
    def learned_means(self) -> Array:
        """The mean score of the rows beside each row's fold, which its value out of fold is learned from, (n,)."""
        means = np.empty(len(self))
        for fold in self.folds:
            means[fold] = np.delete(self.y, fold).mean()
        return means

    def sampled(self, at_most: int) -> "RatedRows":
        """About so many of the rows, in whole groups drawn at random (`fitting.sample`); all of fewer."""
        rows = sample(self.groups.tolist(), at_most, np.random.default_rng(self.random_state))
        if len(rows) == len(self):
            return self
        X = self.X[rows]
        return replace(
            self,
            X=X,
            untuned=X if self.untuned is self.X else self.untuned[rows],
            y=self.y[rows],
            members=self.groups[rows].tolist(),
            texts=[self.texts[row] for row in rows],
            vectors=self.vectors[rows],
        )
