"""Columns beside the embedding."""

from dspy_qvl.features.features import BUILT_IN, WIDTHS, Features
from dspy_qvl.features.table import AUTO, COSINE, EMBEDDING, LENGTH, OVERLAP, PAIRED, PRODUCT, Blocks, Queries, Table
