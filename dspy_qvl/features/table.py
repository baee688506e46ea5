"""Columns of texts, in named blocks."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.vectors import Rows, Vectors

EMBEDDING, LEXICAL, LENGTH, AUTO = "embedding", "lexical", "length", "auto"
COSINE, OVERLAP, PRODUCT = "cosine", "overlap", "product"
PAIRED = (COSINE, OVERLAP, PRODUCT)  # blocks of a query and a text


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
class Table:
    """All columns of some texts, block after block; the embedding is the first.

    Attributes:
        X: (n, d), float32.
        names: of the blocks.
        widths: columns of each block.
    """

    X: Rows
    names: tuple[str, ...]
    widths: tuple[int, ...]

    @property
    def blocks(self) -> list[slice]:
        """The columns of each block."""
        ends = np.cumsum((0, *self.widths)).tolist()
        return [slice(start, end) for start, end in itertools.pairwise(ends)]

    def rows(self, chosen: NDArray[np.intp]) -> "Table":
        """The same columns of some of the texts."""
        return Table(self.X[chosen], self.names, self.widths)

    def weighed(self, factors: Sequence[float]) -> Rows:
        """X with every block times its factor."""
        if all(factor == 1 for factor in factors):
            return self.X
        weighed: Rows = self.X * np.repeat(np.asarray(factors, dtype=self.X.dtype), self.widths)
        return weighed

    def only(self, names: Sequence[str]) -> "Table":
        """Some of the blocks, in the order of this table."""
        if tuple(names) == self.names:
            return self
        kept = [number for number, name in enumerate(self.names) if name in names]
        columns = np.concatenate([self.X[:, self.blocks[number]] for number in kept], axis=1)
        return Table(
            columns, tuple(self.names[number] for number in kept), tuple(self.widths[number] for number in kept)
        )
