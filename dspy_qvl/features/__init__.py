"""Columns beside the embedding: what an embedding forgets, told in blocks.

    texts (and their queries) ─► blocks ─► checked ─► kept in memory ─► Table: dense columns, then sparse ones

`built_in.py` holds the table of built-in blocks: a new one is one entry there. A block of the caller's own is a
callable, plain or async, texts -> (n, k): a judge's score for instance, or a scipy sparse matrix. `Features` makes the
blocks of one learner, each text's once; `Table` and `Blocks` say which columns are whose.

A value function sees the embedding and the blocks side by side. A block counts by the weight that cross-validation
gives it (`ridge/banded.py`); its columns share that weight, so columns on very different scales belong in blocks of
their own. The lexical model learns from the block "lexical" in place of its dense vectors, which are the same words in
fewer columns and stay for cosines.

Contract: a block gives one finite row of float32 a text, always of the same width, else a `FeatureError` names it. A
blank text counts as the empty one. Blocks of a query and a text are made only where there are queries.
"""

from dspy_qvl.features.built_in import (
    BUILT_IN,
    COSINE,
    LENGTH,
    LEXICAL,
    LEXICAL_8192,
    OVERLAP,
    PAIRED,
    PRODUCT,
    SPARSE,
    WIDTHS,
)
from dspy_qvl.features.features import OF_VECTORS, Features
from dspy_qvl.features.packing import packed, unpacked
from dspy_qvl.features.table import AUTO, EMBEDDING, WIDEST, Blocks, Queries, Table
