"""x"""

from dspy_qvl.embedding.cache import EmbeddingCache, MemoryCache
from dspy_qvl.embedding.embedding import Embedding
from dspy_qvl.embedding.encoder import Encoder
from dspy_qvl.embedding.loops import result_of
from dspy_qvl.embedding.models import DEFAULT_MODEL, LEXICAL, LexicalModel, ModelSpec, Precomputed, Usage, check_options
from dspy_qvl.embedding.probe import Probe, checked_identity, checked_probe, dumped_probe, other_model
