"""The block "overlap": the words and n-grams that a query and a text share."""

from collections.abc import Sequence

import numpy as np

from dspy_qvl.embedding import LexicalModel
from dspy_qvl.features.packing import packed
from dspy_qvl.vectors import Vectors

# Hashed so wide that n-grams hardly ever meet: what is found in a text was in it.
OVERLAP_MODEL = LexicalModel(2**18, 0.6)


def word_weights(texts: Sequence[str]) -> list[Vectors]:
    """The words and n-grams of each text and how much each counts, n `packed` rows."""
    return packed(OVERLAP_MODEL.rows(texts))


def overlaps(queries: Sequence[Vectors], texts: Sequence[Vectors]) -> Vectors:
    """Lexical cosine, the share of the query that is found in the text, and that of the text in the query, (n, 3).

    Shares count words and n-grams as their squares in the unit vectors do: as often as they occur.

    Args:
        queries: the `word_weights` of the query of each pair.
        texts: those of the texts.
    """
    out = np.zeros((len(texts), 3), dtype=np.float32)
    spread = np.zeros(OVERLAP_MODEL.n_features, dtype=np.float32)
    start = 0
    while start < len(texts):  # the texts of one query mostly come one after the other
        query, end = queries[start], start + 1
        while end < len(texts) and queries[end] is query:
            end += 1
        rows = [row for row in range(start, end) if texts[row].shape[1]]
        start = end
        if not rows or not query.shape[1]:
            continue
        spread[query[0].view(np.int32)] = query[1]
        both = np.concatenate([texts[row] for row in rows], axis=1)
        firsts = np.cumsum([0, *(texts[row].shape[1] for row in rows[:-1])])
        met = spread[both[0].view(np.int32)]
        found = np.where(met > 0, both[1], np.float32(0))
        for column, products in enumerate((met * found, met * met, found * found)):
            out[rows, column] = np.add.reduceat(products, firsts)
        spread[query[0].view(np.int32)] = 0.0
    return out
