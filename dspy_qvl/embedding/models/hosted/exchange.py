"""An HTTP exchange of ours: it stays with the host that was asked, and brings no more than was asked for.

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


class ExchangeError(Exception):
    """An exchange was given up.

    Attributes:
        what: the kind of fault, in a few words.
        status: of the answer that it was given up for.
        unreadable: whether the answer is at fault.
    """

    def __init__(self, what: str, why: str, status: int, *, unreadable: bool = False) -> None:
        super().__init__(why)
        self.what = what
        self.status = status
        self.unreadable = unreadable


@dataclass(frozen=True)
class Bound:
    """What an exchange may bring, unpacked, and how long it may take from its start to the last byte.

    Attributes:
        bodies: of the answers that came, which nobody has read yet.
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
            try:
                if not exchange.goes_on(response):
                    if response.is_stream_consumed:  # by a hook of the client's
                        return response
                    for piece in response.iter_raw():
                        if not exchange.take(piece, response):
                            break
                    return exchange.answer(response)
            finally:
                response.close()

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
            try:
                if not exchange.goes_on(response):
                    if response.is_stream_consumed:  # by a hook of the client's
                        return response
                    async for piece in response.aiter_raw():
                        if not exchange.take(piece, response):
                            break
                    return exchange.answer(response)
            finally:
                await response.aclose()

    return send


class _Exchange:
    """One request, where it is redirected to, and what was read of its answer so far."""

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

    def goes_on(self, response: Any) -> bool:
        """Tell whether a redirect is to be followed, which becomes `request`; otherwise prepare to read the answer.

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
            raise self._unreadable(response, f"it is packed as {packed[:20]!r}, and {ENCODING!r} was asked for")
        return False

    def take(self, piece: bytes, response: Any) -> bool:
        """Take in what came next; False where that is enough.

        Raises:
            ExchangeError: the answer is too long, takes too long, or cannot be unpacked.
        """
        most = MOST_OF_AN_ERROR if response.status_code >= 400 else self._bound.n_bytes
        room = most - len(self._body)
        try:
            self._body += self._unpack(piece, room + 1) if self._unpack else piece[: room + 1]
        except zlib.error as error:
            raise self._unreadable(response, f"it cannot be unpacked ({error})") from None
        if len(self._body) > most:
            if response.status_code >= 400:  # its beginning says enough
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
        """A response as the client would have given it, with what was read."""
        body = bytes(self._body)
        if response.status_code < 300:
            self._bound.bodies.append(body)
        headers = [
            (name, value)
            for name, value in response.headers.multi_items()
            if name.lower() not in ("content-encoding", "content-length", "transfer-encoding")
        ]
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

    @staticmethod
    def _unreadable(response: Any, why: str) -> ExchangeError:
        return ExchangeError("an answer that cannot be read", why, response.status_code, unreadable=True)


def _is_same_host(here: Any, there: Any) -> bool:
    """The same name and port, or the same name from http to https at their own ports."""
    if here.host != there.host:
        return False
    is_upgrade = (here.scheme, there.scheme) == ("http", "https") and here.port is None and there.port is None
    return is_upgrade or (here.scheme, here.port) == (there.scheme, there.port)


def _host(url: Any) -> str:
    """The scheme, name and port of an address; what else it holds may be secret."""
    named = f"{url.scheme}://{url.netloc.decode('ascii', 'replace')}"
    return named if len(named) <= SHOWN_URL else f"{named[:SHOWN_URL]}…"
