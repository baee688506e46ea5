"""Embedding models in this process."""

from dspy_qvl.embedding.models.local.folder import WEIGHTS, identity_of
from dspy_qvl.embedding.models.local.local import LocalModel
