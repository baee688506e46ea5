"""Where a hosted model is served: the address that litellm would send a request to.

    api_base=…  ─►  the provider's environment variable  ─►  None: the provider's own address

litellm is not loaded for it (seconds): vectors that are known are read without. But litellm reads a .env file when it
is loaded, so the address is looked up once more before anything is sent.
"""

import os
import sys
from urllib.parse import urlsplit, urlunsplit

GLOBAL = "litellm.api_base"  # the module's attribute, not a variable

# Where litellm looks for the address of a provider, in its order: see test_the_address_is_the_one_that_litellm_asks.
# A provider that is missing here is always asked at its own address, or at the one that is given.
LOOKED_UP = {
    "azure": (GLOBAL, "AZURE_API_BASE"),
    "bedrock": ("AWS_BEDROCK_RUNTIME_ENDPOINT",),
    "dashscope": ("DASHSCOPE_API_BASE",),
    "databricks": (GLOBAL, "DATABRICKS_API_BASE"),
    "fireworks_ai": ("FIREWORKS_API_BASE",),
    "gemini": (GLOBAL, "GEMINI_API_BASE"),
    "hosted_vllm": ("HOSTED_VLLM_API_BASE", GLOBAL),
    "huggingface": ("HF_API_BASE", "HUGGINGFACE_API_BASE"),
    "jina_ai": ("JINA_AI_API_BASE",),
    "litellm_proxy": ("LITELLM_PROXY_API_BASE",),
    "lm_studio": ("LM_STUDIO_API_BASE", GLOBAL, "OPENAI_LIKE_API_BASE"),
    "mistral": ("MISTRAL_AZURE_API_BASE",),
    "nebius": ("NEBIUS_API_BASE",),
    "nvidia_nim": ("NVIDIA_NIM_API_BASE",),
    "ollama": (GLOBAL, "OLLAMA_API_BASE"),
    "openai": (GLOBAL, "OPENAI_BASE_URL", "OPENAI_API_BASE"),
    "openai_like": (GLOBAL, "OPENAI_LIKE_API_BASE"),
    "openrouter": (GLOBAL, "OPENROUTER_API_BASE"),
    "sambanova": ("SAMBANOVA_API_BASE",),
    "together_ai": ("TOGETHER_AI_API_BASE",),
    "vertex_ai": (GLOBAL, "VERTEXAI_API_BASE", "VERTEX_API_BASE"),
    "volcengine": ("VOLCENGINE_API_BASE",),
    "watsonx": ("WATSONX_API_BASE", "WATSONX_URL", "WX_URL", "WML_URL"),
    "xinference": (GLOBAL, "XINFERENCE_API_BASE"),
}


def address_of(route: str, given: str | None = None) -> str | None:
    """The address that a route is asked at now, or None for the provider's own.

    Args:
        route: provider and model, for instance "hosted_vllm/Qwen/Qwen3-Embedding-0.6B".
        given: the address that the caller gave, which comes first.
    """
    provider = route.split("/")[0] if "/" in route else "openai"
    if provider == "ollama" and _looked_up(GLOBAL):  # litellm prefers its own to the one that is given
        return _looked_up(GLOBAL)
    if given:
        return given
    if _everything_through_a_proxy():
        provider = "litellm_proxy"
    return next((found for name in LOOKED_UP.get(provider, ()) if (found := _looked_up(name))), None)


def public_address(address: str | None) -> str:
    """An address without user, password, query and fragment: nothing secret reaches a key or a file."""
    if not address:
        return ""
    try:
        parts = urlsplit(address)
    except ValueError:  # no address at all; the request will say so
        return ""
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


def _looked_up(name: str) -> str | None:
    if name == GLOBAL:
        return getattr(sys.modules.get("litellm"), "api_base", None)
    return os.environ.get(name)


def _everything_through_a_proxy() -> bool:
    """Tell whether litellm was told to send every request, whatever its provider, to its own proxy."""
    said = os.environ.get("USE_LITELLM_PROXY", "").strip().lower() == "true"
    return said or getattr(sys.modules.get("litellm"), "use_litellm_proxy", False) is True
