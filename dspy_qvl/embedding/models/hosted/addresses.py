"""The address of a hosted model: the one that litellm would send a request to.

    api_base=…  ─►  the provider's environment variable  ─►  None: the provider's own address

litellm is not loaded for it (seconds): vectors that are known are read without. But litellm reads a .env file when it
is loaded, so the address is looked up once more before anything is sent.
"""

import os
import sys
from urllib.parse import urlsplit, urlunsplit

from dspy_qvl.embedding.models.hosted.providers import GLOBAL, provider_of
from dspy_qvl.errors import InputError


def address_of(route: str, given: str | None = None) -> str | None:
    """The address that a route is asked at now, or None for the provider's own.

    Args:
        route: provider and model, for instance "hosted_vllm/Qwen/Qwen3-Embedding-0.6B".
        given: the address that the caller gave, which comes first.
    """
    provider = route.split("/")[0] if "/" in route else "openai"
    if provider == "ollama" and (own := _looked_up(GLOBAL)):  # litellm prefers its own to the one that is given
        return own
    if given:
        return given
    provider = "litellm_proxy" if _everything_through_a_proxy() else provider
    return next(filter(None, map(_looked_up, provider_of(provider).addresses)), None)


def check_address(address: str | None, key: str | None) -> None:
    """Refuse an address or a key that no request could be sent with; neither is shown.

    Raises:
        InputError: no URL, one with a user or password, or a key with characters that no header can hold.
    """
    if key is not None and (not key.strip() or not key.isascii() or key != key.strip()):
        raise InputError("api_key is blank, or holds spaces or characters that no key has; leave it out if need be.")
    if address is None:
        return
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none
        usable = False
    if not usable:
        raise InputError("api_base must be an address such as 'http://localhost:8000/v1', or left out.")
    if "@" in parts.netloc:
        raise InputError("api_base must not hold a user or password, which would show in errors; use api_key.")


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
    """True if litellm was told to send every request, whatever its provider, to its own proxy."""
    by_variable = os.environ.get("USE_LITELLM_PROXY", "").strip().lower() == "true"
    return by_variable or getattr(sys.modules.get("litellm"), "use_litellm_proxy", False) is True
