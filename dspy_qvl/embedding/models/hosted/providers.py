"""The hosted providers, and how litellm asks each of them. To add a provider, add a line to `PROVIDERS`.

    "openrouter/qwen/qwen3-embedding-8b"
     ────┬───── ──────────┬────────────
      provider          model

A name whose first part is no key of `PROVIDERS` is no hosted model. litellm must ask the provider for embeddings
(test_litellm_asks_every_provider_but_these), name no other address (test_the_address_is_the_one_that_litellm_asks),
and send it no other provider's key (test_no_provider_is_sent_the_key_of_another).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from dspy_qvl.errors import InputError

GLOBAL = "litellm.api_base"  # the module's attribute, not a variable


@dataclass(frozen=True)
class Provider:
    """The peculiarities of requests to one provider.

    Attributes:
        addresses: environment variables in which litellm looks for its address, in litellm's order, and `GLOBAL`;
            without any it is asked at its own address, or at the one that is given.
        batch_size: texts that it is known to take in a request.
        needs_own_key: True if litellm would send it OPENAI_API_KEY where its own key is missing.
        asked_as_openai: True if litellm uses OpenAI's client without handing `max_retries` on, so that the client would
            retry by itself; asked as "openai" it is sent the same, and nothing twice: see
            test_a_request_is_never_repeated_behind_our_back.
    """

    addresses: tuple[str, ...] = ()
    batch_size: int | None = None
    needs_own_key: bool = False
    asked_as_openai: bool = False


PROVIDERS: Mapping[str, Provider] = {
    "azure": Provider((GLOBAL, "AZURE_API_BASE")),
    "bedrock": Provider(("AWS_BEDROCK_RUNTIME_ENDPOINT",)),
    "cohere": Provider(),
    "dashscope": Provider(("DASHSCOPE_API_BASE",), batch_size=10, needs_own_key=True),
    "databricks": Provider((GLOBAL, "DATABRICKS_API_BASE")),
    "fireworks_ai": Provider(("FIREWORKS_API_BASE",), needs_own_key=True, asked_as_openai=True),
    "gemini": Provider((GLOBAL, "GEMINI_API_BASE")),
    "hosted_vllm": Provider(("HOSTED_VLLM_API_BASE", GLOBAL)),
    "huggingface": Provider(("HF_API_BASE", "HUGGINGFACE_API_BASE")),
    "infinity": Provider(),
    "jina_ai": Provider(("JINA_AI_API_BASE",)),
    "litellm_proxy": Provider(("LITELLM_PROXY_API_BASE",)),
    "lm_studio": Provider(("LM_STUDIO_API_BASE", GLOBAL, "OPENAI_LIKE_API_BASE")),
    "mistral": Provider(("MISTRAL_AZURE_API_BASE",), needs_own_key=True, asked_as_openai=True),
    "nebius": Provider(("NEBIUS_API_BASE",), needs_own_key=True, asked_as_openai=True),
    "nvidia_nim": Provider(("NVIDIA_NIM_API_BASE",), needs_own_key=True),
    "ollama": Provider((GLOBAL, "OLLAMA_API_BASE")),
    "openai": Provider((GLOBAL, "OPENAI_BASE_URL", "OPENAI_API_BASE")),
    "openai_like": Provider((GLOBAL, "OPENAI_LIKE_API_BASE")),
    "openrouter": Provider((GLOBAL, "OPENROUTER_API_BASE")),
    "sagemaker": Provider(),
    "sambanova": Provider(("SAMBANOVA_API_BASE",)),
    "together_ai": Provider(("TOGETHER_AI_API_BASE",), needs_own_key=True),
    "vertex_ai": Provider((GLOBAL, "VERTEXAI_API_BASE", "VERTEX_API_BASE")),
    "volcengine": Provider(("VOLCENGINE_API_BASE",)),
    "voyage": Provider(),
    "watsonx": Provider(("WATSONX_API_BASE", "WATSONX_URL", "WX_URL", "WML_URL")),
    "xinference": Provider((GLOBAL, "XINFERENCE_API_BASE")),
}
UNKNOWN = Provider()  # a route of a caller's own embedder may name any

# Providers that litellm asks for no embeddings, though they have some: see test_litellm_asks_every_provider_but_these.
THROUGH_OPENAI = {
    "deepinfra": "https://api.deepinfra.com/v1/openai",
    "github": "https://models.github.ai/inference",
    "nscale": "https://inference.api.nscale.com/v1",
}
BATCH_SIZE = 64  # texts a request, where the provider is not known to take fewer


def provider_of(route: str) -> Provider:
    """The provider that the first part of a route names."""
    return PROVIDERS.get(route.split("/")[0], UNKNOWN)


def batch_size(route: str) -> int:
    """Texts a request that the route's provider is known to take."""
    return provider_of(route).batch_size or BATCH_SIZE


def refuse_provider(route: str) -> None:
    """Refuse a route that litellm cannot ask for embeddings.

    Raises:
        InputError: names the route that it can be asked by.
    """
    provider, _, model = route.partition("/")
    if provider in THROUGH_OPENAI and model:
        raise InputError(
            f"litellm gets no embeddings from {provider!r}; ask its endpoint for OpenAI's protocol: "
            f"'openai/{model}' with api_base={THROUGH_OPENAI[provider]!r} and api_key."
        )
