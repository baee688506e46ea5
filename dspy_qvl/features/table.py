"""Columns of texts, in named blocks."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.errors import FeatureError
from dspy_qvl.vectors import Array, Matrix, MixedRows, Vectors

EMBEDDING, AUTO = "embedding", "auto"
WIDEST = 2**24  # columns of all sparse blocks: a fit has a coefficient for each in memory


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
    """Names and widths of blocks of columns: those of dense blocks side by side, then those of sparse ones.

    Attributes:
        names: those of the blocks, each once; the first is the one that the others are weighed against.
        widths: the number of columns of each block.
        sparse: the names of the sparse ones.
    """

    names: tuple[str, ...]
    widths: tuple[int, ...]
    sparse: frozenset[str] = frozenset()

    @cached_property
    def slices(self) -> dict[str, slice]:
        """The columns of each block, by name."""
        width_of = dict(zip(self.names, self.widths, strict=True))
        placed = sorted(self.names, key=self.sparse.__contains__)  # stable: dense ones first
        ends = list(itertools.accumulate((width_of[name] for name in placed), initial=0))
        spans = {name: slice(*span) for name, span in zip(placed, itertools.pairwise(ends), strict=True)}
        return {name: spans[name] for name in self.names}

    @property
    def n_dense(self) -> int:
        """The number of columns of dense blocks."""
        return sum(width for name, width in zip(self.names, self.widths, strict=True) if name not in self.sparse)

    def of(self, X: Matrix) -> dict[str, Any]:
        """The columns of each block of X, (n, d) -> (n, width) by name; views of dense ones."""
        if not isinstance(X, MixedRows):
            return {name: X[:, block] for name, block in self.slices.items()}
        d = X.dense.shape[1]
        alone = len(self.sparse) == 1  # to cut a sparse matrix by columns is slow
        return {
            name: X.dense[:, block]
            if name not in self.sparse
            else X.sparse
            if alone
            else X.sparse[:, block.start - d : block.stop - d]
            for name, block in self.slices.items()
        }

    def spread(self, factors: Sequence[float] | Array) -> Array:
        """One factor a block -> one a column, (d,)."""
        spread = np.empty(sum(self.widths))
        for block, factor in zip(self.slices.values(), factors, strict=True):
            spread[block] = factor
        return spread

    def only(self, names: Sequence[str]) -> "Blocks":
        """Some of the blocks, in the order they have here."""
        kept = [(name, width) for name, width in zip(self.names, self.widths, strict=True) if name in names]
        return Blocks(tuple(name for name, _ in kept), tuple(width for _, width in kept), self.sparse & set(names))


@dataclass(frozen=True)
class Table:
    """All columns of some texts, in blocks.

    Attributes:
        X: (n, d), float32; `MixedRows` where a block is sparse.
        blocks: their names and widths.
    """

    X: Matrix
    blocks: Blocks

    @classmethod
    def of(cls, columns: Mapping[str, Any]) -> "Table":
        """A table of blocks: (n, width) each, float32 arrays or scipy `csr_array`s, by name.

        Raises:
            FeatureError: more sparse columns than `WIDEST`.
        """
        sparse = [name for name, block in columns.items() if not isinstance(block, np.ndarray)]
        blocks = Blocks(tuple(columns), tuple(block.shape[1] for block in columns.values()), frozenset(sparse))
        parts = [block for name, block in columns.items() if name not in sparse]
        n_sparse = sum(columns[name].shape[1] for name in sparse)
        if n_sparse > WIDEST:
            raise FeatureError(
                f"the sparse blocks {', '.join(map(repr, sparse))} have {n_sparse:,} columns; they may have {WIDEST:,} "
                "at most."
            )
        if not sparse:
            return cls(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1), blocks)
        from scipy.sparse import hstack

        behind = columns[sparse[0]] if len(sparse) == 1 else hstack([columns[name] for name in sparse], format="csr")
        parts = parts or [np.empty((behind.shape[0], 0), dtype=np.float32)]
        dense = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        return cls(MixedRows(dense, behind), blocks)

    @property
    def columns(self) -> dict[str, Any]:
        """The columns of each block, (n, width) by name; views of dense ones."""
        return self.blocks.of(self.X)

    @property
    def first(self) -> Any:
        """The columns of the first block: the embedding, or what stands in its place, (n, width)."""
        return self.columns[self.blocks.names[0]]

    def rows(self, chosen: NDArray[np.intp]) -> "Table":
        """The same columns of some of the texts."""
        return Table(self.X[chosen], self.blocks)

    def only(self, names: Sequence[str]) -> "Table":
        """Some of the blocks, in the order of this table."""
        if tuple(names) == self.blocks.names:
            return self
        columns = self.columns
        return Table.of({name: columns[name] for name in self.blocks.names if name in names})
