"""One request to a provider, through litellm: vectors in the order of the texts, or the failure in plain terms.

    route, texts ─► address (model, key, server) ─► litellm ─► Answer   a row a text: a vector, or why it has none
                                                       └─────► Failure  HTTP status, may it pass, when to try again

Nothing is raised here: litellm's errors, and the frames they carry, hold the key. Where litellm stumbles over an answer
that came, over its usage for instance, it is read from the body: it was paid for.
"""

import asyncio
import base64
import contextlib
import copy
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.embedding.models.hosted.addresses import address_of
from dspy_qvl.embedding.models.hosted.arguments import secret_strings
from dspy_qvl.embedding.models.hosted.exchange import CANNOT_BE_READ, Bound, ExchangeError, bounded
from dspy_qvl.embedding.models.hosted.failures import Failure, failure_of
from dspy_qvl.embedding.models.hosted.providers import provider_of
from dspy_qvl.embedding.models.hosted.redaction import reason
from dspy_qvl.embedding.models.model import Refused, Unusable
from dspy_qvl.errors import shown
from dspy_qvl.vectors import Vector

MOST_COLUMNS = 16_384  # of a vector; the largest that is sold has 12,288
BYTES_A_NUMBER = 64  # of JSON; 24 hold any float64, with a comma and a blank
BYTES_BESIDE = 2**20  # what an answer holds beside its vectors
LITELLM_TIMEOUT = 600.0  # seconds that litellm takes where none are given
MOST_TOKENS, MOST_DOLLARS = 10**9, 10**6  # of one request; more is a provider's error

NO_KEY = "none"  # servers of one's own (LM Studio, TEI, vLLM) often need no key, but OpenAI's client does


class NoRetries(int):
    """0 for OpenAI's client, but true: litellm says `max_retries or 2`."""

    def __bool__(self) -> bool:
        return True


@dataclass(frozen=True)
class Answer:
    """The answer to a request: a row for each text, and the usage.

    Attributes:
        rows: a vector of the full size, (d,) float32, or why it cannot be used; in the order of the texts.
        tokens: as the provider counted them.
        cost: US dollars, or None where litellm does not know the price.
    """

    rows: list[Vector | Refused]
    tokens: int
    cost: float | None


async def ask(
    route: str,
    texts: list[str],
    key: str | None,
    api_base: str | None,
    timeout: float,
    *,
    key_lost: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Answer | Failure:
    """One request, never repeated.

    Args:
        route: provider and model, as litellm names them.
        texts: at least one.
        key: the provider's key, or None for its environment variable.
        api_base: where it is served, or None for the provider's own address.
        timeout: seconds.
        key_lost: True if a key was given once that is not here any more, as in another process.
        options: arguments of the provider's own, sent along.
    """
    import litellm

    litellm.suppress_debug_info = True  # its advice would be printed to stdout at every error
    with contextlib.suppress(ImportError):
        # Keeps litellm's log worker out: it serves one event loop a process, and the caller's may be another.
        # Where a callback listens to litellm, it is let in.
        from litellm._internal_context import is_internal_call

        is_internal_call.set(not (litellm.callbacks or litellm.success_callback or litellm.failure_callback))
    options = copy.deepcopy(dict(options or {}))  # litellm changes what it is given
    address = _address(route, key, api_base, key_lost)
    if isinstance(address, Failure):
        return address
    keys = {key, address["api_key"]} - {NO_KEY}  # the second may come from the environment, or from litellm itself
    secrets = [*filter(None, keys), *secret_strings(options)]
    with bounded(most_bytes(len(texts)), timeout) as bound:
        try:
            # Never with `dimensions`: servers treat it differently, so vectors are cut here.
            request = litellm.aembedding(input=texts, timeout=timeout, max_retries=NoRetries(0), **address, **options)
            response = await asyncio.wait_for(request, timeout)  # Ollama's handler knows no timeout
        except Exception as error:
            response = paid_for(bound)
            if response is None:
                return failure_of(error, secrets, timeout)
    try:
        rows = [_vector(row["embedding"]) for row in in_order(response.data)]
    except Exception as error:  # whatever it was made of
        return Failure(CANNOT_BE_READ, reason(str(error), secrets), unreadable=True)
    return Answer(rows, _tokens(response), _price(route, response))  # no reason to lose vectors where these are unknown


def ask_for_embedder(route: str, texts: list[str], **arguments: Any) -> list[NDArray[np.float32]]:
    """Vectors from litellm for a `dspy.Embedder`, in the order of the texts; by itself it takes rows as they come.

    Raises:
        What litellm raises, or ExchangeError: an answer that cannot be read.
    """
    import litellm

    timeout = arguments.get("timeout")
    patience = float(timeout) if isinstance(timeout, int | float) and timeout > 0 else LITELLM_TIMEOUT
    with bounded(most_bytes(len(texts)), patience) as bound:
        try:
            response = litellm.embedding(model=route, input=texts, caching=False, **arguments)
        except Exception:
            response = paid_for(bound)
            if response is None:
                raise
    try:
        return [_numbers(row["embedding"]) for row in in_order(response.data)]
    except Exception as error:
        raise ExchangeError(CANNOT_BE_READ, str(error)[:1000], 200) from None


def most_bytes(n_texts: int) -> int:
    """Bytes that vectors of so many texts can take as JSON, generously."""
    return n_texts * MOST_COLUMNS * BYTES_A_NUMBER + BYTES_BESIDE


def _address(route: str, key: str | None, api_base: str | None, key_lost: bool) -> "dict[str, str | None] | Failure":
    """The arguments that litellm needs for a route (model, api_key, api_base), or the failure for lack of one."""
    import litellm

    provider, model, own_ways = route.split("/")[0], route, provider_of(route)
    if own_ways.needs_own_key or provider == "litellm_proxy":
        bare, _, own, address = litellm.get_llm_provider(route, api_key=key, api_base=api_base)
        key = own or litellm.api_key
        if address is None and provider == "litellm_proxy":  # litellm would send the texts to OpenAI
            return Failure("a missing address", "give api_base, or set LITELLM_PROXY_API_BASE")
        if own_ways.asked_as_openai:
            model, api_base = f"openai/{bare}", address
        if key is None and own_ways.needs_own_key:
            names = " or ".join(litellm.validate_environment(route)["missing_keys"]) or "its environment variable"
            return Failure("a missing key", f"give api_key, or set {names}")
    elif provider == "openai":
        key = key or litellm.api_key or litellm.openai_key or os.environ.get("OPENAI_API_KEY")
        is_openai = address_of(route, api_base) is None
        if key is None and is_openai and not key_lost and not os.environ.get("OPENAI_ADMIN_KEY"):
            return Failure("a missing key", "give api_key, or set OPENAI_API_KEY")
    elif provider == "hosted_vllm" and address_of(route, api_base) is None:
        return Failure("a missing address", "give api_base, or set HOSTED_VLLM_API_BASE")
    if provider == "litellm_proxy" or (provider == "openai" and api_base is not None):
        if key is None and key_lost:
            own = f"{provider.upper()}_API_KEY"
            return Failure("a missing key", f"api_key= does not travel to another process or a file; set {own} there")
        key = key or NO_KEY
    return {"model": model, "api_key": key, "api_base": api_base}


# Answers


def paid_for(bound: Bound) -> SimpleNamespace | None:
    """The answer that came although litellm failed, where it is of OpenAI's shape; it often stumbles over usage."""
    try:
        body = json.loads(bound.bodies[-1])
        rows = body["data"]
    except (LookupError, TypeError, ValueError, RecursionError):
        return None
    usage = body.get("usage")
    counts = SimpleNamespace(**usage) if isinstance(usage, dict) else None
    return SimpleNamespace(data=rows, usage=counts, _hidden_params={})


def in_order(rows: object) -> list[Any]:
    """Rows by their index; as they came where a server leaves it out or writes 0 everywhere.

    Raises:
        ValueError: no rows, or indexes that do not number them.
    """
    if not isinstance(rows, list | tuple):
        raise ValueError(f"its data are of type {type(rows).__name__}, not a list")
    indexes: list[Any] = [row.get("index") if isinstance(row, Mapping) else getattr(row, "index", None) for row in rows]
    kinds = set(map(type, indexes))
    if kinds <= {type(None)} or (kinds == {int} and not any(indexes)):
        return list(rows)
    if kinds != {int} or sorted(indexes) != list(range(len(rows))):
        raise ValueError(f"its rows are numbered {shown(indexes)}, and must be from 0 to {len(rows) - 1}, each once")
    return sorted(rows, key=lambda row: int(row["index"]))


def _vector(embedding: Any) -> "Vector | Refused":
    """One row as float32, (d,), or why it cannot be used.

    Raises:
        Exception: neither numbers nor base64 of them.
    """
    vector = _numbers(embedding)
    if not np.isfinite(vector).all():
        return Unusable("its vector holds NaN or infinity")
    return vector if vector.any() else Unusable("its vector is all zeros")


def _numbers(embedding: Any) -> Vector:
    """One row as float32, (d,); base64 is OpenAI's other form of it, float32 little endian."""
    if isinstance(embedding, str):
        vector = np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4").astype(np.float32)
    else:
        given = np.asarray(embedding)
        if given.dtype.kind not in "iufO":  # NumPy would make numbers of strings, and of True and False
            raise ValueError("a vector of something else than numbers")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
            vector = given.astype(np.float32)
    if vector.ndim != 1:
        raise ValueError(f"an array of {vector.ndim} dimensions")
    return vector


def _tokens(response: Any) -> int:
    """Tokens as the provider counted them, or 0 where that cannot be read."""
    counted = getattr(getattr(response, "usage", None), "total_tokens", None)
    return int(counted) if isinstance(counted, int | float) and 0 <= counted <= MOST_TOKENS else 0


def _price(route: str, response: Any) -> float | None:
    """US dollars of a response, or None where litellm does not know."""
    import litellm

    known = None
    with contextlib.suppress(Exception):
        known = response._hidden_params.get("response_cost")
        if known is None and provider_of(route).asked_as_openai:  # litellm looked under "openai"
            tokens = response.usage.prompt_tokens
            known, _ = litellm.cost_per_token(model=route, prompt_tokens=tokens, call_type="embedding")
    return float(known) if isinstance(known, int | float) and 0 <= known <= MOST_DOLLARS else None
