"""A caller's own embedder, a `dspy.Embedder` or a callable: its name, its address, its identity and its secrets."""

import copy
from collections.abc import Mapping
from typing import Any

import dspy

from dspy_qvl.embedding.models.hosted import address_of as address_of_route
from dspy_qvl.embedding.models.hosted import as_entry, plain, public, secret_strings
from dspy_qvl.errors import InputError, shown

ADDRESSES = ("api_base", "base_url")  # default arguments that hold an address; the first that is given counts


def model_of(embedder: Any) -> Any:
    """The route of litellm or the callable inside a `dspy.Embedder`; a callable itself."""
    return embedder.model if isinstance(embedder, dspy.Embedder) else embedder


def name_of(embedder: Any) -> str | None:
    """The name that the caller gave an embedder or its model, else its route; None for an anonymous callable.

    Raises:
        InputError: no embedder, or a name that is no string or blank.
    """
    if not callable(embedder):
        raise InputError(
            f"embedder must be a dspy.Embedder or a callable, but got {type(embedder).__name__}; for vectors that "
            "exist already, give Precomputed(texts, vectors)."
        )
    model = model_of(embedder)
    own = model if isinstance(model, str) else getattr(model, "name", None)
    name = getattr(embedder, "name", None) or own or None
    if name is not None and not isinstance(name, str):
        raise InputError(f"the name of an embedder must be a string, but got {type(name).__name__}: {shown(name)}.")
    if name is not None and not name.strip():
        raise InputError("the name of an embedder must not be blank: it keeps its vectors apart from those of others.")
    return name


def identity_of(embedder: Any) -> dict[str, str] | None:
    """The name of an embedder and its default arguments but for secret ones: all that its vectors depend on."""
    name = name_of(embedder)
    if name is None:
        return None
    own = _defaults(embedder)
    own.pop(_address_argument(own) or "", None)  # told apart as the endpoint
    return {"model": name, "backend": "embedder", **as_entry(own)}


def former_identity(embedder: Any) -> dict[str, str] | None:
    """The identity in version 0.1.0, which knew neither default arguments nor the name of a route."""
    model = model_of(embedder)
    name = model if isinstance(model, str) else name_of(embedder)
    return None if name is None else {"model": name, "backend": "embedder"}


def is_route(embedder: Any) -> bool:
    """True if litellm is asked."""
    return isinstance(embedder, dspy.Embedder) and isinstance(embedder.model, str)


def is_plain_route(embedder: Any) -> bool:
    """True if litellm is asked, and nothing else is done to its answers."""
    return is_route(embedder) and type(embedder).__call__ is dspy.Embedder.__call__


def address_of(embedder: Any) -> str | None:
    """The address that an embedder asks now, or None where it says nothing."""
    own = _defaults(embedder)
    argument = _address_argument(own)
    given = str(own[argument]) if argument else None
    if not is_route(embedder):
        return given
    provider = own.get("custom_llm_provider")
    return address_of_route(f"{provider}/{embedder.model}" if provider else embedder.model, given)


def sent_to(embedder: Any, address: str | None) -> dict[str, Any]:
    """Arguments of a call that keep it to this address: litellm ignores `base_url`, and variables change."""
    if address is None or not is_plain_route(embedder) or _defaults(embedder).get("api_base") == address:
        return {}
    return {"api_base": address}


def secret_strings_of(embedder: Any) -> list[str]:
    """The secrets among an embedder's default and bound arguments and its attributes; no message may hold them."""
    found = set(secret_strings(_defaults(embedder)))
    for held in (embedder, model_of(embedder)):
        bound = {**getattr(held, "__dict__", {}), **(getattr(held, "keywords", None) or {})}
        found |= {*secret_strings({name: value for name, value in bound.items() if isinstance(value, str)})}
    return sorted(found, key=len, reverse=True)


def without_secrets(embedder: Any) -> Any:
    """A copy of a `dspy.Embedder` that holds no secret, to be pickled; a callable itself."""
    if not isinstance(embedder, dspy.Embedder):
        return embedder
    kept = public(embedder.default_kwargs)
    kept = plain(kept) if is_route(embedder) else kept  # what else a route is given are clients and sessions
    bare = copy.copy(embedder)
    own = {name: value for name, value in vars(embedder).items() if name in ("model", "name")}
    bare.__dict__ = {**public(vars(embedder)), **own, "default_kwargs": kept}
    return bare


def _defaults(embedder: Any) -> dict[str, Any]:
    return dict(embedder.default_kwargs) if isinstance(embedder, dspy.Embedder) else {}


def _address_argument(own: Mapping[str, Any]) -> str | None:
    return next(filter(own.get, ADDRESSES), None)
