"""From the columns of rated texts to a fit: the penalty, and how much each block counts.

    table ─► weights of blocks ─► columns times factors ─► ridge ─► a line over the plain columns

Weights, scales and factors are told apart in the package's guide. Factors enter the coefficients once a fit is made,
so a value is an inner product with the plain columns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dspy_qvl import ridge
from dspy_qvl.errors import InputError, check_number, is_list, shown
from dspy_qvl.features import EMBEDDING, PAIRED, Blocks, Table
from dspy_qvl.ridge import LEVELS, WIDE, Folds, block_scales, choose_weights
from dspy_qvl.vectors import Array, Rows, Vectors

ALPHA_RANGE = (0.01, 0.1, 1.0, 10.0, 100.0)  # `optimize_hyperparameters` tries these; `FitValue` its own `ALPHAS`

SMALLEST_ALPHA = 1e-12  # rows have unit length, so sums over a million of them round at about 1e-10
LARGEST_ALPHA = 1e100  # its products with sums of squares must stay within float64

# The weight that narrow blocks of pairs start with: that the likeness of two texts matters is known before any rating.
# On train articles of summeval it gives .409 where the smallest level gives .399 (mean Spearman within articles).
START_OF_PAIRED = 0.5


@dataclass(frozen=True)
class Fitted:
    """A line over the plain columns of some blocks.

    Attributes:
        line: coefficients of the plain columns, the factors multiplied in.
        blocks: names and widths of the blocks.
        factors: one for each block, by which its columns were multiplied for the fit.
        bounds: for each narrow block the lowest and the highest value of every column among the rated texts, (2, k);
            None for a wide one. A value beyond counts as the bound: nothing was learned there, and a line through
            the lengths of rated texts says nothing of a text of one word.
    """

    line: ridge.Linear
    blocks: Blocks
    factors: tuple[float, ...]
    bounds: tuple[Vectors | None, ...]

    def within(self, X: Rows) -> Rows:
        """Columns of these blocks, those of narrow ones within their bounds, (n, d)."""
        if not any(bound is not None for bound in self.bounds):
            return X
        bounded = X.copy()
        for block, bound in zip(self.blocks.slices.values(), self.bounds, strict=True):
            if bound is not None:
                np.clip(X[:, block], bound[0], bound[1], out=bounded[:, block])
        return bounded

    def weighed(self, X: Rows) -> Rows:
        """Columns of these blocks as a fit sees them: within their bounds, times their factors, (n, d)."""
        return Table(self.within(X), self.blocks).weighed(self.factors)

    def plain(self, line: ridge.Linear) -> ridge.Linear:
        """A line over weighed columns as a line over the plain ones."""
        return ridge.Linear(line.coef * self.blocks.spread(self.factors), float(line.intercept))

    def predict(self, table: Table) -> Array:
        """Values of texts, (n,)."""
        return ridge.predict(self.within(table.only(self.blocks.names).X), self.line)


@dataclass(frozen=True)
class Tuned:
    """A fit whose penalty, and the weights of whose blocks, cross-validation judged.

    Attributes:
        alpha: the penalty with the lowest mean squared error over the folds.
        errors: mean squared error of each penalty on each fold, with these weights.
        weights: those of the blocks that are used, by name; the embedding's is 1.
        adds: for each block beside the embedding, the share of the cross-validated error that it takes away.
        fitted: the fit of all rows.
    """

    alpha: float
    errors: dict[float, Array]
    weights: dict[str, float]
    adds: dict[str, float]
    fitted: Fitted


def tune(
    table: Table,
    y: Array,
    alphas: Sequence[float],
    folds: Folds,
    *,
    weights: Mapping[str, float] | None = None,
    optional: bool = False,
) -> Tuned:
    """Choose a penalty, and unless given the weights of blocks, by cross-validation; fit all rows with them.

    Args:
        table: the columns of the rated texts.
        y: their scores, (n,).
        alphas: penalties, each > 0.
        folds: the rows of each fold.
        weights: those of the blocks to use, by name; None to choose them.
        optional: True if a block may be left out.
    """
    adds: dict[str, float] = {}
    if weights is None:
        weights = prior_weights(table)
        names = table.blocks.names
        if len(names) > 1:
            starts, slices = list(weights.values()), list(table.blocks.slices.values())
            found = choose_weights(table.X, slices, y, alphas, folds, optional=optional, starts=starts)
            weights = {name: w for name, w in zip(names, found.weights, strict=True) if w > 0}
            adds = dict(zip(names[1:], found.adds, strict=True))
    used = _Used(table, weights)
    search = ridge.search(used.X, y, alphas, folds)
    errors = dict(zip(alphas, search.errors, strict=True))
    return Tuned(alphas[search.best], errors, dict(weights), adds, used.fitted(search.line))


def prior_weights(table: Table) -> dict[str, float]:
    """The weights of blocks that stand until ratings speak for others, by name."""
    names, widths = table.blocks.names, table.blocks.widths
    narrow, wide = START_OF_PAIRED if set(names) & set(PAIRED) else LEVELS[False][0], LEVELS[True][0]
    weights = {name: wide if width >= WIDE else narrow for name, width in zip(names, widths, strict=True)}
    return {**weights, EMBEDDING: 1.0}


def weighed(table: Table, weights: Mapping[str, float]) -> Rows:
    """The columns of the blocks that have a weight, times their factors, (n, d)."""
    return _Used(table, weights).X


def refit(table: Table, y: Array, alpha: float, weights: Mapping[str, float]) -> Fitted:
    """The fit of rated texts with one penalty and the given weights of blocks."""
    used = _Used(table, weights)
    return used.fitted(ridge.fit(used.X, y, alpha))


class _Used:
    """The blocks that have a weight, as a fit sees them.

    Attributes:
        table: their plain columns.
        factors: weight x scale of each.
        X: their columns times their factors, (n, d).
    """

    def __init__(self, table: Table, weights: Mapping[str, float]) -> None:
        self.table = table.only(list(weights))
        blocks = self.table.blocks.slices
        scales = block_scales(self.table.X, list(blocks.values())) if len(blocks) > 1 else np.ones(1)
        self.factors = tuple(weights[name] * float(scale) for name, scale in zip(blocks, scales, strict=True))
        self.X = self.table.weighed(self.factors)

    def fitted(self, line: ridge.Linear) -> Fitted:
        """A line over X as one over the plain columns, with the bounds of narrow blocks."""
        blocks = self.table.blocks
        bounds = tuple(
            np.stack([columns.min(axis=0), columns.max(axis=0)]).astype(np.float32)
            if name != EMBEDDING and columns.shape[1] < WIDE
            else None
            for name, columns in self.table.columns.items()
        )
        return Fitted(
            ridge.Linear(line.coef * blocks.spread(self.factors), line.intercept), blocks, self.factors, bounds
        )


def block_report(tuned: Tuned) -> dict[str, dict[str, float]]:
    """The weight of every block, and the share of the cross-validated error it takes away where that was measured."""
    names = dict.fromkeys([*tuned.weights, *tuned.adds])
    return {
        name: {"weight": tuned.weights.get(name, 0.0)} | ({"adds": tuned.adds[name]} if name in tuned.adds else {})
        for name in names
    }


def check_alpha(alpha: object, what: str = "ridge_alpha") -> float:
    """A ridge penalty: finite and > 0.

    Raises:
        InputError: not a number, not finite, or not above 0.
    """
    value = check_number(alpha, what)
    if value <= 0:
        raise InputError(f"{what} must be above 0, but got {value:g}; without a penalty there is no unique ridge fit.")
    if value < SMALLEST_ALPHA:
        raise InputError(
            f"{what} must be at least {SMALLEST_ALPHA:g}, but got {value:g}; "
            "a smaller penalty is lost in the rounding of float64."
        )
    if value > LARGEST_ALPHA:
        raise InputError(
            f"{what} must be at most {LARGEST_ALPHA:g}, but got {value:g}; it leaves nothing but the mean."
        )
    return value


def check_alphas(alphas: object, what: str = "alpha_range") -> list[float]:
    """Ridge penalties to choose from, ascending and each once.

    Raises:
        InputError: not a list, empty, or an entry `check_alpha` refuses.
    """
    if not is_list(alphas):
        raise InputError(f"{what} must be a list of numbers, but got {type(alphas).__name__}: {shown(alphas)}.")
    values = sorted({check_alpha(alpha, f"{what}[{i}]") for i, alpha in enumerate(alphas)})
    if not values:
        raise InputError(f"{what} is empty; give at least one penalty, for instance [0.1, 1.0, 10.0].")
    return values
