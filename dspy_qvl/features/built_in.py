"""The table of built-in blocks; a new one is one entry of `BUILT_IN`.

    "lexical"        hashed words, pairs of words and character n-grams (`lexical.py`), sparse: the words themselves,
                     where an embedding holds the meaning of a text
    "length"         log(1 + characters): longer is better, or worse

What a text is worth to a query is not in the text alone. Beside a pair's text, whose vector is the embedding, stand

    "cosine"         of the query's vector and the text's
    "overlap"        of their words and n-grams: lexical cosine, and what share of either is found in the other
    "product"        of the two vectors, column by column
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dspy_qvl.embedding import LexicalModel
from dspy_qvl.features.overlap import overlaps, word_weights
from dspy_qvl.vectors import Vectors, dot_rows

Make = Callable[[Sequence[str]], Any]  # n texts -> n rows

LEXICAL, LENGTH = "lexical", "length"
COSINE, OVERLAP, PRODUCT = "cosine", "overlap", "product"

# Chosen on training folds of four sets: pairs of words are worth .01 on reviews and news, 2^20 columns nothing more.
HASHED = LexicalModel(2**18, 0.61, 0.51)
# The dense block of value functions that were learned up to schema 4 of the saved state.
LEXICAL_8192 = "lexical-8192"
RETIRED = (LEXICAL_8192,)  # cannot be asked for


@dataclass(frozen=True)
class BuiltIn:
    """A block that this package makes: row by row of each text, or of a query's row joined with a text's.

    Attributes:
        width: its columns; None for as many as the embedding has.
        make: the row of each text, and in a block of pairs of each query; None for their vectors.
        join: for a block of pairs, n rows of queries and n of texts -> (n, width) float32.
        kept: False where a row is made as fast as it is looked up, or is not worth its memory.
        sparse: True if `make` gives a scipy `csr_array`.
    """

    width: int | None
    make: Make | None = None
    join: Callable[[Any, Any], Vectors] | None = None
    kept: bool = True
    sparse: bool = False


def log_lengths(texts: Sequence[str]) -> Vectors:
    """log(1 + characters), (n, 1)."""
    return np.log1p(np.array([[len(text)] for text in texts], dtype=np.float32))


def cosines(queries: Vectors, texts: Vectors) -> Vectors:
    """Inner products of unit vectors, (n, d) and (n, d) -> (n, 1)."""
    return dot_rows(queries, texts).astype(np.float32)[:, None]


BUILT_IN: Mapping[str, BuiltIn] = {
    LEXICAL: BuiltIn(HASHED.n_features, HASHED.sparse, kept=False, sparse=True),
    LEXICAL_8192: BuiltIn(8192, LexicalModel(8192, 0.8)),
    LENGTH: BuiltIn(1, log_lengths, kept=False),
    COSINE: BuiltIn(1, join=cosines),
    OVERLAP: BuiltIn(3, word_weights, overlaps),
    PRODUCT: BuiltIn(None, join=np.multiply),
}
PAIRED = tuple(name for name, block in BUILT_IN.items() if block.join)  # blocks of a query and a text
WIDTHS = {name: block.width for name, block in BUILT_IN.items() if block.width}  # without those of the embedding's
SPARSE = frozenset(name for name, block in BUILT_IN.items() if block.sparse)
