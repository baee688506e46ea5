"""Texts to unit vectors."""

from dspy_qvl.embedding.cache import EmbeddingCache, MemoryCache
from dspy_qvl.embedding.embedding import Embedding, Encoder
from dspy_qvl.embedding.loops import result_of
from dspy_qvl.embedding.models import DEFAULT_MODEL, LEXICAL, LexicalModel, ModelSpec, Precomputed, Usage, check_options
from dspy_qvl.embedding.probe import IDENTITY, PROBE, Probe, dumped_probe, other_model
