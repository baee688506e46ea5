"""Vectors that were paid for, in memory and in one file."""

from dspy_qvl.embedding.cache.cache import EmbeddingCache
from dspy_qvl.embedding.cache.memory import MemoryCache
