"""Embedding models of a provider, asked through litellm."""

from dspy_qvl.embedding.models.hosted.addresses import address_of, check_address, public_address
from dspy_qvl.embedding.models.hosted.arguments import canonical, check_options, plain, public, secret_strings, secrets
from dspy_qvl.embedding.models.hosted.failures import failure_of
from dspy_qvl.embedding.models.hosted.hosted import HostedModel, Limits
from dspy_qvl.embedding.models.hosted.providers import PROVIDERS, batch_size, refuse_provider
from dspy_qvl.embedding.models.hosted.redaction import without_secrets
from dspy_qvl.embedding.models.hosted.request import ask_for_embedder
