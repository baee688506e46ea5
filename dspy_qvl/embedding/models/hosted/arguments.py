"""Arguments of a provider's own: they are sent with each request, and kept without their secrets.

    {"input_type": "query", "extra_headers": {"Authorization": "Bearer …", "X-Version": "2"}, "timeout": 60}
        ├─► public     {"input_type": "query", "extra_headers": {"X-Version": "2"}, "timeout": 60}   in a pickle
        ├─► canonical  '{"extra_headers":{"X-Version":"2"},"input_type":"query"}'                    in an identity
        └─► secrets    {"extra_headers.Authorization": "Bearer …"}                                   nowhere

A secret is told by its name, at whatever depth, or by its looks: "Bearer …", "sk-…". In headers and in the query of an
address, where gateways want their credentials under names of their own, a long mix of letters and digits is one too.
Addresses lose user, password and query.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dspy_qvl.embedding.models.hosted.addresses import public_address
from dspy_qvl.errors import InputError
from dspy_qvl.text import check_metadata

SECRET_NAME = re.compile(
    r"key|secret|credential|passw|passphrase|pwd|signature|^sig$|jwt|bearer|cookie|auth(?!or(?!i[sz]))"
    r"|token(?!s|iz|_?(length|limit|count|budget|type))",
    re.I,
)
SECRET_VALUE = re.compile(
    r"bearer\s+\S+$"
    r"|(sk-|sk_|pk-|rk-|gsk_|hf_|pa-|nvapi-|jina_|xai-|ghp_|gho_|github_pat_|glpat-|xox[abp]-|dapi)[\w.-]{8,}$"
    r"|(?-i:AKIA|ASIA|AIza|ya29\.|eyJ)[\w.-]{12,}$",
    re.I,
)
OPAQUE = re.compile(
    r"(basic|token|apikey|digest|negotiate)\s+\S+$"
    r"|[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$"
    r"|(?=\S*\d)(?=\S*[a-z])[\w+/=]{20,}$",
    re.I,
)
GATEWAY = re.compile(r"header|query", re.I)  # arguments that hold credentials under any name
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.I)

# These change how a request is made, and no vector.
HOW_IT_IS_ASKED = frozenset("timeout request_timeout num_retries max_retries caching user metadata client".split())
# Arguments that this package sends itself -> the setting that they come from.
OURS = {"model": "model_name", "input": "the texts", "api_key": "api_key", "caching": "cache_dir"}
OURS |= dict.fromkeys(("api_base", "base_url"), "api_base")
OURS |= dict.fromkeys(("timeout", "request_timeout"), "timeout")
OURS |= dict.fromkeys(("num_retries", "max_retries"), "nothing: what may pass is tried again")
LONGEST = 2000  # characters of an identity's part
CONTAINERS = (Mapping, list, tuple)
DATA = (type(None), str, bytes, int, float, np.generic, np.ndarray)
_SECRET = object()  # in the place of a value with nothing left in it


def check_options(options: object) -> dict[str, Any] | None:
    """`provider_options` as JSON has them; their values are not shown, since they may be secret.

    Raises:
        InputError: no dict, something that JSON cannot hold, or an argument that the learner has a setting for.
    """
    if options is None:
        return None
    if not isinstance(options, Mapping):
        raise InputError(f"provider_options must be a dict or None, but got {type(options).__name__}.")
    for name in options:
        if name in OURS:
            raise InputError(f"provider_options must not hold {name!r}; the learner says it by {OURS[name]}.")
        if name == "extra_query":
            raise InputError("provider_options must not hold 'extra_query': litellm would send it in the body.")
    try:
        return check_metadata(options, "provider_options")
    except InputError:
        raise InputError(
            "provider_options must hold only what JSON can: strings, numbers, lists, dicts with string keys."
        ) from None


def public(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments without their secrets; a dict or list that held nothing else is left out, an empty one stays."""
    return {} if (kept := _kept(arguments, (), {})) is _SECRET else dict(kept)


def secrets(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The secrets among arguments: the place of each ("extra_headers.Authorization") -> the value."""
    found: dict[str, Any] = {}
    _kept(arguments, (), found)
    return found


def secret_strings(arguments: Mapping[str, Any]) -> list[str]:
    """The strings that must not appear in a message, the longest first."""
    strings = {text for text in _leaves(secrets(arguments)) if isinstance(text, str)}
    # A server repeats "Bearer sk-…" with or without its first word.
    parts = {part for text in strings for part in text.split() if len(part) >= 8}
    return sorted({text for text in strings if len(text) >= 4} | parts, key=len, reverse=True)


def canonical(arguments: Mapping[str, Any]) -> str:
    """The part of arguments that changes vectors, as JSON that is the same for the same arguments; "" for none.

    Secrets and `HOW_IT_IS_ASKED` are left out; an object is its name, an array a digest, and the whole a digest where
    it is long.
    """
    counted = public({name: value for name, value in arguments.items() if name not in HOW_IT_IS_ASKED})
    counted = {name: value for name, value in counted.items() if not isinstance(value, CONTAINERS) or value}
    if not counted:
        return ""
    written = json.dumps(_with_string_keys(counted), sort_keys=True, separators=(",", ":"), default=_as_json)
    return written if len(written) <= LONGEST else hashlib.blake2b(written.encode(), digest_size=16).hexdigest()


def as_entry(arguments: Mapping[str, Any]) -> dict[str, str]:
    """The entry of an identity that tells arguments apart; none where they change no vector."""
    written = canonical(arguments)
    return {"arguments": written} if written else {}


def plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that are data, not clients, sessions or functions."""
    return {name: value for name, value in arguments.items() if all(isinstance(leaf, DATA) for leaf in _leaves(value))}


def _kept(value: Any, path: tuple[str, ...], found: dict[str, Any]) -> Any:
    """A value without its secrets, or `_SECRET` where nothing is left; `found` gets the secrets by their places."""

    def secret(what: Any = value, name: str = ".".join(path)) -> Any:
        found[name] = what
        return _SECRET

    if value is None or isinstance(value, bool):
        return value
    if path and (SECRET_NAME.search(path[-1]) or hasattr(value, "get_secret_value")):
        return secret()
    in_gateway = any(GATEWAY.search(part) for part in path)
    if isinstance(value, CONTAINERS):
        if isinstance(value, Mapping):
            named = value.get("name", value.get("key"))
            if "value" in value and isinstance(named, str) and SECRET_NAME.search(named):
                return secret()  # {"name": "Cookie", "value": …}
        elif in_gateway and len(value) == 2 and isinstance(value[0], str) and SECRET_NAME.search(value[0]):
            return secret(value[1], ".".join((*path[:-1], value[0])))  # ("Authorization", …)
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        kept = {key: _kept(item, (*path, str(key)), found) for key, item in items}
        kept = {key: item for key, item in kept.items() if item is not _SECRET}
        if value and not kept:
            return _SECRET
        return kept if isinstance(value, Mapping) else (tuple if isinstance(value, tuple) else list)(kept.values())
    if isinstance(value, str):
        if SECRET_VALUE.match(value.strip()) or (in_gateway and OPAQUE.match(value.strip())):
            return secret()
        if ADDRESS.match(value) and (address := public_address(value)) != value.rstrip("/"):
            secret()
            return address
    return value


def _leaves(value: Any) -> Iterator[Any]:
    """Every value in dicts and lists, at whatever depth; of a secret (pydantic's and the like) its content."""
    if hasattr(value, "get_secret_value"):
        yield from _leaves(value.get_secret_value())
    elif isinstance(value, CONTAINERS):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _leaves(item)
    else:
        yield value


def _with_string_keys(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _with_string_keys(item) for key, item in value.items()}
    return [_with_string_keys(item) for item in value] if isinstance(value, list | tuple) else value


def _as_json(value: Any) -> Any:
    """The stand-in for something that JSON cannot hold; the same in every process."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, bytes | np.ndarray):
        content = value if isinstance(value, bytes) else f"{value.dtype} {value.shape} ".encode() + value.tobytes()
        return hashlib.blake2b(content, digest_size=16).hexdigest()
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"
