"""Embedding models of a provider, asked through litellm: the way of a request.

    texts ─► hosted.py ─► halving.py ─► request.py ─► exchange.py ─► provider
             pace, tries,  parts of a    key, address,  same host only,   │
             usage         failed batch  litellm        bounded answer    │
    vectors, or refused texts ◄── rows, checked ◄──── Answer ◄────────────┤
    EmbeddingError ◄── redaction.py ◄── failures.py ◄─ Failure ◄──────────┘

    providers.py   the table of providers: their variables, batch sizes and peculiarities; add new ones there
    addresses.py   the address that litellm would ask
    arguments.py   arguments of a provider's own, and the secrets among them

Contract: every text is paid for once, and what came before a failure is kept. No key, and no other secret at whatever
depth of the arguments, reaches a message, a pickle, an identity or another host.
"""

from dspy_qvl.embedding.models.hosted.addresses import address_of, check_address, public_address
from dspy_qvl.embedding.models.hosted.arguments import as_entry, check_options, plain, public, secret_strings, secrets
from dspy_qvl.embedding.models.hosted.failures import failure_of
from dspy_qvl.embedding.models.hosted.hosted import HostedModel, Limits
from dspy_qvl.embedding.models.hosted.providers import PROVIDERS, batch_size, refuse_provider
from dspy_qvl.embedding.models.hosted.redaction import without_secrets
from dspy_qvl.embedding.models.hosted.request import ask_for_embedder
