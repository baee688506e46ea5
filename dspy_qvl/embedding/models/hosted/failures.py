"""Failures of requests to a provider, in plain terms.

    litellm's error ─► the errors it came from ─► Failure  HTTP status, may it pass, when to try again

litellm guesses error classes from words, so that a 400 that mentions "rate limit" is a RateLimitError, and a lost
connection, a TLS fault or an answer that is no HTTP an InternalServerError with the words "Connection error". So the
cause is read further down the chain of errors.
"""

import asyncio
import json
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import numpy as np

from dspy_qvl.embedding.models.hosted.exchange import CANNOT_BE_READ, ExchangeError
from dspy_qvl.embedding.models.hosted.redaction import reason

MAY_PASS = {408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529}  # 52x: Cloudflare's; 529: overloaded
KEY_ADVICE = " Check api_key, or the provider's environment variable."
ADVICE = {401: KEY_ADVICE, 403: KEY_ADVICE, 404: " Check the name of the model, and api_base."}
# Errors of clients over an answer of another shape than they expect.
UNREADABLE = (json.JSONDecodeError, UnicodeDecodeError, AttributeError, LookupError, TypeError, RecursionError)


@dataclass(frozen=True)
class Failure:
    """A request that gave no vectors, and why.

    Attributes:
        what: "HTTP 503 (Service Unavailable)", "a timeout" and the like.
        reason: the provider's or the system's words, without anything secret.
        status: the HTTP status, or None without an answer.
        may_pass: True if the same request may succeed later.
        retry_after: seconds the provider asks to wait, or None.
        unreadable: True if there was an answer that could not be read.
        seconds: how long it took, where the caller keeps the time.
    """

    what: str
    reason: str
    status: int | None = None
    may_pass: bool = False
    retry_after: float | None = None
    unreadable: bool = False
    seconds: float = 0.0

    @property
    def was_refused(self) -> bool:
        """True if a server answered with the status of a refusal."""
        return self.status is not None and self.status >= 400

    @property
    def advice(self) -> str:
        """A way to mend it, as a sentence after a space, or nothing."""
        otherwise = " Check api_base: this may be no embedding endpoint." if self.unreadable else ""
        return ADVICE.get(self.status or 0, otherwise)


def failure_of(error: BaseException, secrets: Sequence[str], timeout: float | None = None) -> Failure:
    """The failure that an error of litellm stands for.

    Args:
        error: as litellm raised it.
        secrets: strings that must not appear in it.
        timeout: seconds that the request was given, where they are known.
    """
    import httpx
    from aiohttp.http_exceptions import HttpProcessingError

    chain = list(_chain(error))

    def first(*kinds: type[BaseException]) -> Any:
        return next((link for link in chain if isinstance(link, kinds)), None)

    def last(kind: type[BaseException]) -> Any:
        return next((link for link in reversed(chain) if isinstance(link, kind)), None)

    if link := first(ExchangeError):
        is_unreadable = link.what == CANNOT_BE_READ
        return Failure(link.what, reason(str(link), secrets), status=link.status, unreadable=is_unreadable)
    response = getattr(last(httpx.HTTPStatusError), "response", None)
    status = response.status_code if response is not None else _status_inside(chain[-1])
    if status is not None:
        body = _body(response) if response is not None else str(chain[-1])
        return Failure(
            f"HTTP {status}",
            reason(_message(body) or type(error).__name__, secrets),
            status=status,
            may_pass=status in MAY_PASS and "insufficient_quota" not in body,  # a 429 that only money ends
            retry_after=_retry_after(response.headers) if response is not None else None,
        )
    if first(httpx.TimeoutException, TimeoutError, asyncio.TimeoutError):
        return Failure("a timeout", "no answer" + (f" within {timeout:g} s" if timeout else " in time"), may_pass=True)
    if link := last(ssl.SSLError):
        said = f"{reason(str(link), secrets)}; check that api_base speaks https, and that its certificate is known here"
        return Failure("a TLS fault", said, may_pass=isinstance(link, ssl.SSLEOFError | ssl.SSLZeroReturnError))
    lost = first(httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError, ConnectionError)
    if lost is None and (link := first(HttpProcessingError)):
        return Failure("an answer that is no proper HTTP", reason(link.message, secrets), unreadable=True)
    if link := lost or first(httpx.RequestError):
        said = reason(str(chain[-1]) or str(link), secrets)
        return Failure(f"a connection error ({type(link).__name__})", said, may_pass=lost is not None)
    if link := first(*UNREADABLE):
        return Failure(CANNOT_BE_READ, reason(f"{type(link).__name__}: {link}", secrets), unreadable=True)
    return Failure(type(error).__name__, reason(str(error), secrets))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, the one it came from, and so on; hidden contexts too, since they hold the first cause."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def _status_inside(root: BaseException) -> int | None:
    """The code of an error that came as a body with status 200, as OpenRouter does; litellm makes it an Exception."""
    status = getattr(root, "status_code", None)
    return status if type(root) is Exception and isinstance(status, int) else None


def _body(response: Any) -> str:
    try:
        return str(response.text)
    except RuntimeError:  # httpx: it was never read
        return ""


def _message(body: str) -> str:
    """The words inside the body of a refusal: OpenAI's error.message, FastAPI's detail, or all of it."""
    try:
        said = json.loads(body)
        if not isinstance(said, dict):
            return body
        found = said.get("error") or said.get("message") or said.get("detail") or body
        return str(found.get("message") or found) if isinstance(found, dict) else str(found)
    except (ValueError, RecursionError):
        return body.strip()


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds a provider asks to wait: Retry-After as seconds or as a date, or OpenAI's retry-after-ms."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except KeyError:
            continue
        except ValueError:
            try:
                seconds = parsedate_to_datetime(headers[name]).timestamp() - time.time()
            except (ValueError, TypeError):
                continue
        if np.isfinite(seconds):
            return max(seconds, 0.0)
    return None
