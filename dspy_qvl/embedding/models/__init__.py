"""Embedding models: built in, hosted, in this process, or a caller's own."""

from dspy_qvl.embedding.models.custom import is_plain_route
from dspy_qvl.embedding.models.hosted import ask_for_embedder, check_options, failure_of, without_secrets
from dspy_qvl.embedding.models.lexical import LexicalModel
from dspy_qvl.embedding.models.model import Backend, Refused, Unusable, Usage
from dspy_qvl.embedding.models.precomputed import Precomputed
from dspy_qvl.embedding.models.spec import DEFAULT_MODEL, LEXICAL, ModelSpec
