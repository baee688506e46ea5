"""HTTP exchanges of this package stay with the host that was asked, and read no more than vectors can take.

    with bounded(n_bytes):               a thread, or a coroutine and what it awaits
        litellm.embedding(…)      ─► request ─► answer ─► read as it unpacks, to the bound ─► litellm
                                        ▲          ├────► redirect to the same host
                                        └──────────┘
                                                   └────► redirect to another host: ExchangeError

litellm keeps a client for each provider, which follows redirects anywhere, with texts and often with the key, and reads
and unpacks whatever comes; only some providers can be asked through a client of one's own. All of them are httpx's, so
its `send` is wrapped, once a process. Outside of `bounded` it does what it did.
"""

import contextlib
import contextvars
import functools
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

MOST_OF_AN_ERROR = 2**13  # bytes of a refusal that are read; litellm's patterns take seconds for 2**16
MOST_REDIRECTS = 5
ENCODING = "gzip"  # unpacked here, piece by piece; others make gigabytes of one piece
SHOWN_URL = 100  # characters
CANNOT_BE_READ = "an answer that cannot be read"


class ExchangeError(Exception):
    """An exchange was given up.

    Attributes:
        what: the kind of fault, in a few words.
        status: HTTP status of the answer that it was given up for.
    """

    def __init__(self, what: str, why: str, status: int) -> None:
        super().__init__(why)
        self.what = what
        self.status = status


@dataclass(frozen=True)
class Bound:
    """The limits of an exchange, and the answers that came within them.

    Attributes:
        n_bytes: most bytes of an answer, unpacked.
        seconds: most seconds from the start of an exchange to the last byte of its answer.
        bodies: of the successful answers, unpacked.
    """

    n_bytes: int
    seconds: float
    bodies: list[bytes] = field(default_factory=list)


_bound: contextvars.ContextVar[Bound | None] = contextvars.ContextVar("_bound", default=None)


@contextlib.contextmanager
def bounded(n_bytes: int, seconds: float) -> Iterator[Bound]:
    """Keep the exchanges that are made inside to their host, to so many unpacked bytes and so many seconds each.

    An exchange that goes beyond raises `ExchangeError`, which clients wrap in errors of theirs.
    """
    _wrap_clients()
    bound = Bound(n_bytes, seconds)
    token = _bound.set(bound)
    try:
        yield bound
    finally:
        _bound.reset(token)


def _wrap_clients() -> None:
    """Wrap the clients of httpx, and of its successor where OpenAI's client has loaded it."""
    import httpx

    for module in (httpx, sys.modules.get("httpx2")):
        for name, wrapped in (("Client", _sync), ("AsyncClient", _async)):
            client: Any = getattr(module, name, None)
            if client is not None and not hasattr(client.send, "keeps_bounds"):  # twice would do no harm
                send = wrapped(client.send)
                send.keeps_bounds = True
                client.send = send


def _sync(original: Any) -> Any:
    @functools.wraps(original)
    def send(client: Any, request: Any, **given: Any) -> Any:
        bound = _bound.get()
        if bound is None:
            return original(client, request, **given)
        exchange = _Exchange(bound, client, request, given)
        while True:
            response = original(client, exchange.request, **exchange.given)
            with contextlib.closing(response):
                if exchange.is_redirected(response):
                    continue
                if response.is_stream_consumed:  # by a hook of the client's
                    return response
                for piece in response.iter_raw():
                    if not exchange.take(piece, response):
                        break
                return exchange.answer(response)

    return send


def _async(original: Any) -> Any:
    @functools.wraps(original)
    async def send(client: Any, request: Any, **given: Any) -> Any:
        bound = _bound.get()
        if bound is None:
            return await original(client, request, **given)
        exchange = _Exchange(bound, client, request, given)
        while True:
            response = await original(client, exchange.request, **exchange.given)
            async with contextlib.aclosing(response):
                if exchange.is_redirected(response):
                    continue
                if response.is_stream_consumed:  # by a hook of the client's
                    return response
                async for piece in response.aiter_raw():
                    if not exchange.take(piece, response):
                        break
                return exchange.answer(response)

    return send


class _Exchange:
    """One request with its redirects, and the part of its answer that was read so far."""

    def __init__(self, bound: Bound, client: Any, request: Any, given: dict[str, Any]) -> None:
        self.request = request
        self.given = {**given, "stream": True, "follow_redirects": False}
        follows = given.get("follow_redirects")
        self._follows = follows if isinstance(follows, bool) else client.follow_redirects
        self._bound = bound
        self._started = time.monotonic()
        self._n_redirects = 0
        self._body = bytearray()
        self._unpack: Any = None
        request.headers["accept-encoding"] = ENCODING

    def is_redirected(self, response: Any) -> bool:
        """True if a redirect is to be followed, which becomes `request`; otherwise the answer can be read.

        Raises:
            ExchangeError: it leads to another host, nowhere, or the answer is packed in a way that was not asked for.
        """
        following = response.next_request
        if following is not None and self._follows:
            here, there = response.request.url, following.url
            if not _is_same_host(here, there):
                raise ExchangeError(
                    "a redirect to another host",
                    f"{_host(here)} points to {_host(there)}, which is sent no text and no key; if that is meant, give "
                    "it as api_base",
                    response.status_code,
                )
            self._n_redirects += 1
            if self._n_redirects > MOST_REDIRECTS:
                raise ExchangeError("too many redirects", f"the last to {_host(there)}", response.status_code)
            self.request = following
            return True
        packed = response.headers.get("content-encoding", "identity").strip().lower()
        if packed in (ENCODING, "x-gzip", "deflate"):
            self._unpack = zlib.decompressobj(wbits=47).decompress  # either header
        elif packed not in ("identity", ""):
            why = f"it is packed as {packed[:20]!r}, and {ENCODING!r} was asked for"
            raise ExchangeError(CANNOT_BE_READ, why, response.status_code)
        return False

    def take(self, piece: bytes, response: Any) -> bool:
        """Add the next piece of an answer; False once enough of it was read.

        Raises:
            ExchangeError: the answer is too long, takes too long, or cannot be unpacked.
        """
        is_error = response.status_code >= 400
        most = MOST_OF_AN_ERROR if is_error else self._bound.n_bytes
        n_left = most - len(self._body)
        try:
            self._body += self._unpack(piece, n_left + 1) if self._unpack else piece[: n_left + 1]
        except zlib.error as error:
            raise ExchangeError(CANNOT_BE_READ, f"it cannot be unpacked ({error})", response.status_code) from None
        if len(self._body) > most:
            if is_error:  # its beginning says enough
                del self._body[most:]
                return False
            raise ExchangeError(
                "an answer that is too large",
                f"it is longer than {most:,} bytes, more than vectors of these texts can take; this may be no "
                "embedding endpoint",
                response.status_code,
            )
        if time.monotonic() - self._started > self._bound.seconds:
            import httpx

            raise httpx.ReadTimeout(f"no whole answer within {self._bound.seconds:g} s")
        return True

    def answer(self, response: Any) -> Any:
        """The response as the client would have given it, with the body that was read."""
        body = bytes(self._body)
        if response.status_code < 300:
            self._bound.bodies.append(body)
        headers = response.headers.copy()
        for name in ("content-encoding", "content-length", "transfer-encoding"):
            headers.pop(name, None)
        answer = type(response)(
            response.status_code,
            headers=headers,
            content=body,
            request=response.request,
            extensions={name: value for name, value in response.extensions.items() if name != "network_stream"},
        )
        answer.elapsed = timedelta(seconds=time.monotonic() - self._started)
        answer.next_request = response.next_request
        return answer


def _is_same_host(here: Any, there: Any) -> bool:
    """True for the same name and port, or the same name from http to https at their default ports."""
    if here.host != there.host:
        return False
    is_upgrade = (here.scheme, there.scheme) == ("http", "https") and here.port is None and there.port is None
    return is_upgrade or (here.scheme, here.port) == (there.scheme, there.port)


def _host(url: Any) -> str:
    """The scheme, name and port of an address; the rest may be secret."""
    named = f"{url.scheme}://{url.netloc.decode('ascii', 'replace')}"
    return named if len(named) <= SHOWN_URL else f"{named[:SHOWN_URL]}…"
