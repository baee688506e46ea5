"""From the columns of rated texts to a fit: the penalty, and how much each block counts.

    table ─► weights of blocks ─► columns times factors ─► ridge ─► a line over the plain columns

Weights, scales and factors are told apart in the package's guide. Factors enter the coefficients once a fit is made,
so a value is an inner product with the plain columns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from dspy_qvl import ridge
from dspy_qvl.errors import InputError, check_number, is_list, shown
from dspy_qvl.features import EMBEDDING, LEXICAL, PAIRED, Blocks, Table
from dspy_qvl.fitting.frequencies import Frequencies
from dspy_qvl.ridge import LEVELS, START_POWER, WIDE, Folds, block_scales, choose_weights
from dspy_qvl.vectors import Array, Matrix, MixedRows, Vectors, times

ALPHA_RANGE = (0.01, 0.1, 1.0, 10.0, 100.0)  # `optimize_hyperparameters` tries these; `FitValue` its own `ALPHAS`

SMALLEST_ALPHA = 1e-12  # rows have unit length, so sums over a million of them round at about 1e-10
LARGEST_ALPHA = 1e100  # its products with sums of squares must stay within float64

# The weight that narrow blocks of pairs start with: that the likeness of two texts matters is known before any rating.
# On train articles of summeval it gives .409 where the smallest level gives .399 (mean Spearman within articles).
START_OF_PAIRED = 0.5
# Beside MiniLM cross-validation chose 1 to 2.5 on the train rows of four sets; its error at .5 is up to 6 % higher.
START_OF_LEXICAL = 1.0


@dataclass(frozen=True)
class Weights:
    """The weights of the blocks that a value function is learned from.

    Attributes:
        blocks: by name, that of the first block is 1.
        power: of the inverse document frequencies of "lexical" (`frequencies.py`).
    """

    blocks: Mapping[str, float]
    power: float = 0.0


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
        frequencies: those by which the columns of "lexical" were multiplied too, or None.
    """

    line: ridge.Linear
    blocks: Blocks
    factors: tuple[float, ...]
    bounds: tuple[Vectors | None, ...]
    frequencies: Frequencies | None = None

    def within(self, X: Matrix) -> Any:
        """Columns of these blocks, those of narrow ones within their bounds, (n, d)."""
        if not any(bound is not None for bound in self.bounds):
            return X
        dense = X.dense if isinstance(X, MixedRows) else X
        bounded = dense.copy()
        for block, bound in zip(self.blocks.slices.values(), self.bounds, strict=True):
            if bound is not None:
                np.clip(dense[:, block], bound[0], bound[1], out=bounded[:, block])
        return replace(X, dense=bounded) if isinstance(X, MixedRows) else bounded

    def weighed(self, X: Matrix) -> Any:
        """Columns of these blocks as a fit sees them: within their bounds, times their factors, (n, d)."""
        return times(self.within(X), self.column_factors)

    @cached_property
    def column_factors(self) -> Array:
        """The factor of every column, (d,): that of its block, and of hashed words idf^power."""
        return _column_factors(self.blocks, self.factors, self.frequencies)

    def plain(self, line: ridge.Linear) -> ridge.Linear:
        """A line over weighed columns as a line over the plain ones."""
        return ridge.Linear(line.coef * self.column_factors, float(line.intercept))

    def with_line(self, line: ridge.Linear) -> "Fitted":
        """The same with another line over the plain columns; what follows from the factors is kept."""
        twin = replace(self, line=line)
        twin.__dict__["column_factors"] = self.column_factors
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {name: part for name, part in self.__dict__.items() if name != "column_factors"}

    def weighed_line(self) -> ridge.Linear:
        """The line over weighed columns."""
        return ridge.Linear(self.line.coef / self.column_factors, self.line.intercept)

    def predict(self, table: Table) -> Array:
        """Values of texts, (n,)."""
        return ridge.predict(self.within(table.only(self.blocks.names).X), self.line)


@dataclass(frozen=True)
class Tuned:
    """A fit whose penalty, and the weights of whose blocks, cross-validation judged.

    Attributes:
        alpha: the penalty with the lowest mean squared error over the folds.
        errors: mean squared error of each penalty on each fold, with these weights.
        weights: those of the blocks that are used.
        adds: for each block beside the first, the share of the cross-validated error that it takes away.
        fitted: the fit of all rows.
    """

    alpha: float
    errors: dict[float, Array]
    weights: Weights
    adds: dict[str, float]
    fitted: Fitted


def tune(
    table: Table,
    y: Array,
    alphas: Sequence[float],
    folds: Folds,
    *,
    weights: Weights | None = None,
    optional: bool = False,
) -> Tuned:
    """Choose a penalty, and unless given the weights of blocks, by cross-validation; fit all rows with them.

    Args:
        table: the columns of the rated texts.
        y: their scores, (n,).
        alphas: penalties, each > 0.
        folds: the rows of each fold.
        weights: those of the blocks to use; None to choose them.
        optional: True if a block may be left out.
    """
    adds: dict[str, float] = {}
    if weights is None:
        weights = prior_weights(table)
        names = table.blocks.names
        if len(names) > 1 or LEXICAL in names:
            starts, slices = list(weights.blocks.values()), list(table.blocks.slices.values())
            idf = None
            if LEXICAL in names:
                idf = _column_factors(table.blocks, [1.0] * len(names), _frequencies(table))[table.blocks.n_dense :]
            found = choose_weights(
                table.X, slices, y, alphas, folds, optional=optional, starts=starts, idf=idf, power=weights.power
            )
            weights = Weights({name: w for name, w in zip(names, found.weights, strict=True) if w > 0}, found.power)
            adds = dict(zip(names[1:], found.adds, strict=True))
    used = _Used(table, weights)
    search = ridge.search(used.X, y, alphas, folds)
    errors = dict(zip(alphas, search.errors, strict=True))
    return Tuned(alphas[search.best], errors, weights, adds, used.fitted(search.line))


def prior_weights(table: Table) -> Weights:
    """The weights of blocks that stand until ratings speak for others."""
    names, widths = table.blocks.names, table.blocks.widths
    paired = bool(set(names) & set(PAIRED))
    narrow, wide = START_OF_PAIRED if paired else LEVELS[False][0], LEVELS[True][0]
    weights = {name: wide if width >= WIDE else narrow for name, width in zip(names, widths, strict=True)}
    if LEXICAL in names:
        weights[LEXICAL] = START_OF_LEXICAL
    # Rare words are those of one query: on train articles of summeval power 0 gives .425, 1/2 .417 (MiniLM).
    power = START_POWER if LEXICAL in names and not paired else 0.0
    return Weights({**weights, names[0]: 1.0}, power)


def weighed(table: Table, weights: Weights) -> Any:
    """The columns of the blocks that have a weight, times their factors, (n, d)."""
    return _Used(table, weights).X


def refit(table: Table, y: Array, alpha: float, weights: Weights) -> Fitted:
    """The fit of rated texts with one penalty and the given weights of blocks."""
    used = _Used(table, weights)
    return used.fitted(ridge.fit(used.X, y, alpha))


class _Used:
    """The blocks that have a weight, as a fit sees them.

    Attributes:
        table: their plain columns.
        factors: weight x scale of each.
        frequencies: of hashed words, if they count.
        X: their columns times their factors, (n, d).
    """

    def __init__(self, table: Table, weights: Weights) -> None:
        self.table = table.only(list(weights.blocks))
        blocks, slices = self.table.blocks, self.table.blocks.slices
        used = LEXICAL in slices and weights.power > 0
        self.frequencies = replace(_frequencies(self.table), power=weights.power) if used else None
        scales = np.ones(len(slices))
        if len(slices) > 1:
            idf = _column_factors(blocks, scales, self.frequencies)
            scales = block_scales(self.table.X, list(slices.values()), idf)
        scaled = zip(slices, scales, strict=True)
        self.factors = tuple(weights.blocks[name] * float(scale) for name, scale in scaled)
        self.X = times(self.table.X, _column_factors(blocks, self.factors, self.frequencies))

    def fitted(self, line: ridge.Linear) -> Fitted:
        """A line over X as one over the plain columns, with the bounds of narrow blocks."""
        blocks = self.table.blocks
        bounds = tuple(
            np.stack([columns.min(axis=0), columns.max(axis=0)]).astype(np.float32)
            if name not in (EMBEDDING, *blocks.sparse) and columns.shape[1] < WIDE
            else None
            for name, columns in self.table.columns.items()
        )
        fitted = Fitted(line, blocks, self.factors, bounds, self.frequencies)
        return replace(fitted, line=fitted.plain(line))


def _frequencies(table: Table) -> Frequencies:
    return Frequencies.of(table.columns[LEXICAL])


def _column_factors(blocks: Blocks, factors: Sequence[float] | Array, frequencies: Frequencies | None) -> Array:
    """The factor of every column, (d,): that of its block, and of hashed words idf^power."""
    spread = blocks.spread(factors)
    if frequencies is not None:
        spread[blocks.slices[LEXICAL]] *= frequencies.factors
    return spread


def block_report(tuned: Tuned) -> dict[str, dict[str, float]]:
    """The weight of every block, the share of the cross-validated error it takes away where that was measured, and of
    hashed words the power of their inverse document frequencies.
    """
    weights, adds, report = tuned.weights.blocks, tuned.adds, {}
    for name in dict.fromkeys([*weights, *adds]):
        report[name] = {"weight": weights.get(name, 0.0)} | ({"adds": adds[name]} if name in adds else {})
        if name == LEXICAL and weights.get(name):
            report[name]["idf_power"] = tuned.weights.power
    return report


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
