"""Columns of texts, in named blocks."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.vectors import Array, Rows, Vectors

EMBEDDING, AUTO = "embedding", "auto"


@dataclass(frozen=True)
class Queries:
    """The queries of some texts, one each.

    Attributes:
        texts: checked queries, n of them.
        vectors: their unit vectors, (n, d).
    """

    texts: Sequence[str]
    vectors: Vectors


@dataclass(frozen=True)
class Blocks:
    """Names and widths of blocks of columns that stand side by side.

    Attributes:
        names: those of the blocks, each once.
        widths: the number of columns of each block.
    """

    names: tuple[str, ...]
    widths: tuple[int, ...]

    @cached_property
    def slices(self) -> dict[str, slice]:
        """The columns of each block, by name."""
        ends = list(itertools.accumulate(self.widths, initial=0))
        return {name: slice(*span) for name, span in zip(self.names, itertools.pairwise(ends), strict=True)}

    def of(self, X: Rows) -> dict[str, Rows]:
        """The columns of each block of X, (n, d) -> (n, width) by name; views."""
        return {name: X[:, block] for name, block in self.slices.items()}

    def spread(self, factors: Sequence[float]) -> Array:
        """One factor a block -> one a column, (d,)."""
        return np.repeat(np.asarray(factors, dtype=np.float64), self.widths)

    def only(self, names: Sequence[str]) -> "Blocks":
        """Some of the blocks, in the order they have here."""
        kept = [(name, width) for name, width in zip(self.names, self.widths, strict=True) if name in names]
        return Blocks(tuple(name for name, _ in kept), tuple(width for _, width in kept))


@dataclass(frozen=True)
class Table:
    """All columns of some texts, block after block; the embedding is the first.

    Attributes:
        X: (n, d), float32.
        blocks: their names and widths.
    """

    X: Rows
    blocks: Blocks

    @property
    def columns(self) -> dict[str, Rows]:
        """The columns of each block, (n, width) by name; views."""
        return self.blocks.of(self.X)

    def rows(self, chosen: NDArray[np.intp]) -> "Table":
        """The same columns of some of the texts."""
        return Table(self.X[chosen], self.blocks)

    def weighed(self, factors: Sequence[float]) -> Rows:
        """X with every block times its factor."""
        if all(factor == 1 for factor in factors):
            return self.X
        weighed: Rows = self.X * self.blocks.spread(factors).astype(self.X.dtype)
        return weighed

    def only(self, names: Sequence[str]) -> "Table":
        """Some of the blocks, in the order of this table."""
        if tuple(names) == self.blocks.names:
            return self
        kept, columns = self.blocks.only(names), self.columns
        return Table(np.concatenate([columns[name] for name in kept.names], axis=1), kept)
