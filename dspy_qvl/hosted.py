"""Texts -> vectors over the network: one embedding route of litellm, asked politely and paid for once.

    texts ─► batches the provider takes ─► turn (pace) ─► litellm ─► rows in order, checked ─► usage counted
                     ▲                                       │
                     └── halves, where a batch was refused ◄─┴─► the same again, where the failure may pass

A failure that may pass (rate limit, server error, timeout, lost connection) is tried again, with jitter and bounds.
A refused batch is halved until it is clear whether it was too large or which text it was: that text is named, the
others keep their vectors. Everything else fails at once, in words that hold no key.

All requests of a process run on one event loop of our own, in a thread of its own: callers wait for it from threads
or from their own loops. litellm keeps connections and a log worker per process that break where loops change or run
side by side (see test_several_threads_each_with_its_own_loop). It also means that what a model keeps
(pace, usage, limits) is touched by one thread only, and needs no lock.
"""

import asyncio
import base64
import contextlib
import json
import os
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields, replace
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tenacity import AsyncRetrying, RetryCallState, retry_if_result

from dspy_qvl.errors import EmbeddingError, TextsRefusedError, check_count, check_positive

Vector = NDArray[np.float32]
T = TypeVar("T")

BATCH_SIZE = 64
BATCH_SIZES = {"dashscope": 10}  # providers that take fewer texts a request
PROBE = "text"  # harmless: a route that refuses it refuses everything
LONGEST_WAIT = 30.0  # seconds between two tries, where the provider names none
LONGEST_REASON = 300  # characters of a provider's message

TOO_LARGE_OR_UNUSABLE = {400, 413, 422}  # what one text, or too many of them, can cause
MAY_PASS = {408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529}  # 52x: Cloudflare's; 529: overloaded

# litellm sends these through OpenAI's client without handing `max_retries` on, so the client would retry by itself;
# asked as "openai" they are sent alike: see test_a_request_is_never_repeated_behind_our_back.
RETRIED_BY_THE_CLIENT = {"fireworks_ai", "mistral", "nebius"}
# litellm falls back to OPENAI_API_KEY for most of these, which would hand one provider's key to another.
NEEDS_ITS_OWN_KEY = RETRIED_BY_THE_CLIENT | {"dashscope", "nvidia_nim", "together_ai"}
# Servers of one's own (LM Studio, TEI, vLLM) often need no key, but OpenAI's client does.
MAY_NEED_NO_KEY = {"openai", "litellm_proxy"}
NO_KEY = "none"


class NoRetries(int):
    """0 for OpenAI's client, but true: litellm says `max_retries or 2`."""

    def __bool__(self) -> bool:
        return True


@dataclass(frozen=True)
class Limits:
    """How hard a provider may be asked, and how long it is waited for.

    Attributes:
        requests_per_minute: evenly spaced starts, or None for no limit.
        max_concurrency: requests at the same time; the caller of a `HostedModel` keeps to it.
        timeout: seconds one request may take.
        max_attempts: tries of one request.
        max_wait: seconds one request may wait between its tries.
        first_wait: seconds before the second try, doubled for each one after it, less up to half of it at random.

    Raises:
        InputError: a limit that is no number above 0.
    """

    requests_per_minute: float | None = None
    max_concurrency: int = 8
    timeout: float = 60.0
    max_attempts: int = 6
    max_wait: float = 120.0
    first_wait: float = 0.5

    def __post_init__(self) -> None:
        if self.requests_per_minute is not None:
            check_positive(self.requests_per_minute, "requests_per_minute")
        check_count(self.max_concurrency, "max_concurrency", 1)
        check_positive(self.timeout, "timeout")
        check_count(self.max_attempts, "max_attempts", 1)
        check_positive(self.max_wait, "max_wait")
        check_positive(self.first_wait, "first_wait")


@dataclass(frozen=True)
class Usage:
    """What was asked of a provider so far; the difference of two says what happened in between.

    Attributes:
        requests: HTTP requests that were answered, refusals among them.
        texts: vectors that came back.
        tokens: as the provider counted them.
        cost: US dollars, of the requests whose price litellm knows.
        unpriced: requests with vectors whose price it does not know.
        retries: tries after a failure that may pass.
    """

    requests: int = 0
    texts: int = 0
    tokens: int = 0
    cost: float = 0.0
    unpriced: int = 0
    retries: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(*(getattr(self, field.name) - getattr(other, field.name) for field in fields(self)))

    def __str__(self) -> str:
        counted = ((self.requests, "request"), (self.texts, "text"), (self.tokens, "token"))
        parts = [_counted(count, what) for count, what in counted]
        if self.cost > 0 or not self.unpriced:
            parts.append(f"${self.cost:.4f}" if self.cost >= 1e-4 else "less than $0.0001" if self.cost > 0 else "$0")
        if self.unpriced:
            parts.append(
                "price unknown" if self.cost <= 0 else f"{_counted(self.unpriced, 'request')} of unknown price"
            )
        if self.retries:
            parts.append(f"{self.retries:,} retries" if self.retries > 1 else "1 retry")
        return ", ".join(parts)


def batch_size(route: str) -> int:
    """Texts a request that the route's provider is known to take."""
    return BATCH_SIZES.get(route.split("/")[0], BATCH_SIZE)


class HostedModel:
    """An embedding route of litellm: texts -> full-size vectors, from threads and event loops alike.

    A shared resource: a copy is the model itself, and a pickled one has lost its key.

    Args:
        route: provider and model, for instance "openrouter/qwen/qwen3-embedding-8b".
        api_key: the provider's key, or None for its environment variable.
        api_base: where it is served, or None for the provider's own address.
        limits: how hard it may be asked.

    Attributes:
        name: the route.
        usage: what was asked of it so far.
        batch_limit: texts a request, lowered where the provider refuses more.
    """

    def __init__(
        self, route: str, *, api_key: str | None = None, api_base: str | None = None, limits: Limits | None = None
    ) -> None:
        self.name = route
        self.limits = limits or Limits()
        self.usage = Usage()
        self.batch_limit: int | None = BATCH_SIZES.get(route.split("/")[0])
        self._api_base = api_base
        self._key: Callable[[], str | None] = lambda: api_key  # a closure shows in no repr and no vars()
        self._pace = _Pace(self.limits.requests_per_minute)
        # Processes that were refused together must not come back together.
        self._random = random.Random(f"{os.getpid()} {route}")
        self._answers = False  # whether it has answered since it last refused a lone text

    def __repr__(self) -> str:
        return f"HostedModel({self.name!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "HostedModel":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _remake, (self.name, _without_login(self._api_base), self.limits)

    def __call__(self, texts: Sequence[str]) -> list[Vector]:
        """Full-size vectors of texts, in their order.

        Raises:
            TextsRefusedError: some texts have no vector; the error carries those of the others.
            EmbeddingError: the route failed, or answered wrongly.
        """
        future = _on_our_loop(self._embed(list(texts)))
        try:
            return future.result()
        finally:
            future.cancel()  # the caller was interrupted; otherwise it is done

    async def acall(self, texts: Sequence[str]) -> list[Vector]:
        """The same without blocking the event loop; cancelling it drops the request."""
        return await asyncio.wrap_future(_on_our_loop(self._embed(list(texts))))

    # Batches

    async def _embed(self, texts: list[str]) -> list[Vector]:
        rows: dict[int, Vector | _Refused] = {}
        try:
            await self._fill(rows, texts, range(len(texts)))
            self._check(rows)
        except EmbeddingError as error:  # what was paid for is kept
            error.vectors = {place: row for place, row in rows.items() if not isinstance(row, _Refused)}
            raise
        return [row for _, row in sorted(rows.items()) if not isinstance(row, _Refused)]

    async def _fill(self, rows: "dict[int, Vector | _Refused]", texts: list[str], places: range) -> None:
        """Put a vector or a refusal at each place, in as few requests as the provider allows."""
        if not places:
            return
        if self.batch_limit is not None and len(places) > self.batch_limit:
            return await self._fill_parts(rows, texts, places, self.batch_limit)
        outcome = await self._ask([texts[place] for place in places])
        if not isinstance(outcome, _Failure):
            rows.update(zip(places, outcome, strict=True))
        elif len(places) == 1:
            rows[places[0]] = await self._refused_alone(outcome)
        else:
            half = (len(places) + 1) // 2
            await self._fill_parts(rows, texts, places, half)
            if not any(isinstance(rows[place], _Refused) for place in places):  # no text was bad, they were too many
                self.batch_limit = min(half, self.batch_limit or half)

    async def _fill_parts(
        self, rows: "dict[int, Vector | _Refused]", texts: list[str], places: range, size: int
    ) -> None:
        for start in range(0, len(places), size):
            await self._fill(rows, texts, places[start : start + size])

    def _check(self, rows: "dict[int, Vector | _Refused]") -> None:
        refused = {place: row.reason for place, row in sorted(rows.items()) if isinstance(row, _Refused)}
        if len({len(row) for row in rows.values() if not isinstance(row, _Refused)}) > 1:
            rows.clear()
            raise EmbeddingError(f"the route {self.name!r} gave vectors of different lengths for one batch.")
        if refused and all(isinstance(row, _Unusable) for row in rows.values()):
            n_texts = _counted(len(rows), "text")
            raise EmbeddingError(f"the route {self.name!r} gave no usable vector for {n_texts}: {refused[0]}.")
        if refused:
            raise TextsRefusedError(self._refusal(refused, len(rows)), refused=refused)

    async def _refused_alone(self, failure: "_Failure") -> "_Refused":
        """Whether it was the text, or the route that refuses everything: a wrong model name may be a 400 too."""
        if not self._answers:
            probe = await self._ask([PROBE])
            if isinstance(probe, _Failure):
                raise EmbeddingError(self._failed(failure))
        self._answers = False
        return _Refused(f"{failure.what}: {failure.reason}")

    def _refusal(self, refused: Mapping[int, str], n_texts: int) -> str:
        shown = "; ".join(f"text {place} ({reason})" for place, reason in list(refused.items())[:3])
        more = f" and {len(refused) - 3} more" if len(refused) > 3 else ""
        rest = f"; the other {n_texts - len(refused)} have their vectors" if len(refused) < n_texts else ""
        return f"the route {self.name!r} refused {len(refused)} of {n_texts} texts: {shown}{more}{rest}."

    # One request

    async def _ask(self, texts: list[str]) -> "list[Vector | _Refused] | _Failure":
        """Rows, or a failure that only other texts could change.

        Raises:
            EmbeddingError: any other failure, after as many tries as make sense.
        """
        tries = AsyncRetrying(
            retry=retry_if_result(lambda outcome: isinstance(outcome, _Failure) and outcome.may_pass),
            wait=self._wait,
            stop=lambda state: state.attempt_number >= self.limits.max_attempts or self._waited_enough(state),
            before_sleep=lambda state: self._count(Usage(retries=1)),
            retry_error_callback=lambda state: state,  # out of tries: the state knows how many
        )
        started = time.monotonic()
        outcome: list[Vector | _Refused] | _Failure | RetryCallState = await tries(self._try, texts)
        if isinstance(outcome, RetryCallState):
            raise EmbeddingError(self._failed(_outcome(outcome), outcome, time.monotonic() - started))
        if isinstance(outcome, _Failure) and outcome.status not in TOO_LARGE_OR_UNUSABLE:
            raise EmbeddingError(self._failed(outcome))
        if not isinstance(outcome, _Failure):
            self._answers = True
        return outcome

    async def _try(self, texts: list[str]) -> "list[Vector | _Refused] | _Failure":
        """One request. Raises nothing of litellm's: its errors and their frames hold the key."""
        await self._pace.turn()
        response = await _request(self.name, texts, self._key(), self._api_base, self.limits.timeout)
        if isinstance(response, _Failure):
            self._count(Usage(requests=int(response.status is not None or response.unreadable)))
            if response.may_pass and response.retry_after is not None and response.retry_after <= self.limits.max_wait:
                self._pace.hold(response.retry_after)
            if response.unreadable and self._answers:  # a known address: garbled on the way, not a wrong page
                return replace(response, may_pass=True)
            return response
        rows = _in_order(response.data)
        tokens = int(getattr(response.usage, "total_tokens", 0) or 0)
        cost = response._hidden_params.get("response_cost")
        self._count(Usage(1, len(rows), tokens, float(cost or 0.0), int(cost is None)))
        if len(rows) != len(texts):
            counts = f"{_counted(len(rows), 'vector')} for {_counted(len(texts), 'text')}"
            raise EmbeddingError(f"the route {self.name!r} gave {counts}; it must give one a text.")
        try:
            return [_vector(row["embedding"]) for row in rows]
        except (ValueError, TypeError, KeyError) as error:
            unreadable = f"the route {self.name!r} gave something that is no vector ({error})."
        raise EmbeddingError(unreadable)

    def _wait(self, state: RetryCallState) -> float:
        failure = _outcome(state)
        if failure.retry_after is not None:
            return failure.retry_after
        longest = min(self.limits.first_wait * 2.0 ** (state.attempt_number - 1), LONGEST_WAIT)
        return longest * self._random.uniform(0.5, 1.0)

    def _waited_enough(self, state: RetryCallState) -> bool:
        return state.idle_for + state.upcoming_sleep > self.limits.max_wait

    def _count(self, more: Usage) -> None:
        self.usage += more

    def _failed(self, failure: "_Failure", state: RetryCallState | None = None, seconds: float = 0.0) -> str:
        """What a user is told of a failure: route, what happened, tries and seconds, what to do."""
        tries = "" if state is None else f" after {_counted(state.attempt_number, 'attempt')} in {seconds:.1f} s"
        advice = failure.advice
        if state is not None and failure.retry_after is not None and self._waited_enough(state):
            advice = (
                f" It asks to wait {failure.retry_after:g} s, and one request may wait {self.limits.max_wait:g} s "
                "(max_wait): try again later."
            )
        return f"the route {self.name!r} failed with {failure.what}{tries}: {failure.reason}.{advice}"


def _remake(route: str, api_base: str | None, limits: Limits) -> HostedModel:
    return HostedModel(route, api_base=api_base, limits=limits)


# Answers


@dataclass(frozen=True)
class _Refused:
    """A text the provider gives no vector for."""

    reason: str


class _Unusable(_Refused):
    """A text whose vector cannot be used."""


def _in_order(rows: Sequence[Any]) -> Sequence[Any]:
    """Rows by their index; as they came where a server leaves it out or writes 0 everywhere."""
    try:
        numbered = sorted(rows, key=lambda row: int(row["index"]))
        return numbered if [row["index"] for row in numbered] == list(range(len(rows))) else rows
    except (KeyError, AttributeError, TypeError):
        return rows


def _vector(embedding: Any) -> "Vector | _Refused":
    """One row as float32, (d,); base64 is OpenAI's other form of it, float32 little endian.

    Raises:
        ValueError: neither numbers nor base64 of them.
    """
    if isinstance(embedding, str):
        vector = np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4").astype(np.float32)
    else:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
            vector = np.asarray(embedding, dtype=np.float32)
    if vector.ndim != 1:
        raise ValueError(f"an array of {vector.ndim} dimensions")
    if not np.isfinite(vector).all():
        return _Unusable("its vector holds NaN or infinity")
    return vector if vector.any() else _Unusable("its vector is all zeros")


# Failures


@dataclass(frozen=True)
class _Failure:
    """What became of a request that gave no vectors.

    Attributes:
        what: "HTTP 503 (Service Unavailable)", "a timeout" and the like.
        reason: the provider's or the system's words, without anything secret.
        status: the HTTP status, or None without an answer.
        may_pass: whether the same request may succeed later.
        retry_after: seconds the provider asks to wait, or None.
        unreadable: whether there was an answer that could not be read.
    """

    what: str
    reason: str
    status: int | None = None
    may_pass: bool = False
    retry_after: float | None = None
    unreadable: bool = False

    @property
    def advice(self) -> str:
        """What to do about it, as a sentence after a space, or nothing."""
        if self.status in (401, 403):
            return " Check api_key, or the provider's environment variable."
        if self.status == 404:
            return " Check the name of the model, and api_base."
        if self.unreadable:
            return " Check api_base: this may be no embedding endpoint."
        return ""


def _failure(error: BaseException, key: str | None, timeout: float) -> _Failure:
    """What an error of litellm means.

    litellm guesses its error classes from words (a 400 that mentions "rate limit" is a RateLimitError, a lost
    connection an InternalServerError with status 500), so the HTTP status is taken from the response itself, which
    is further down the chain.
    """
    import httpx

    chain = list(_chain(error))
    lost = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError, ConnectionError)
    response = next((link.response for link in reversed(chain) if isinstance(link, httpx.HTTPStatusError)), None)
    status = response.status_code if response is not None else _status_inside(chain[-1])
    if status is not None:
        text = _said(response, error) if response is not None else str(chain[-1])
        return _Failure(
            f"HTTP {status}",
            _reason(text, key),
            status=status,
            may_pass=status in MAY_PASS and "insufficient_quota" not in text,  # a 429 that only money ends
            retry_after=_retry_after(response.headers) if response is not None else None,
        )
    if any(isinstance(link, httpx.TimeoutException | TimeoutError | asyncio.TimeoutError) for link in chain):
        return _Failure("a timeout", f"no answer within {timeout:g} s", may_pass=True)
    for link in chain:
        if isinstance(link, lost):
            refused_certificate = any(isinstance(cause, ssl.SSLCertVerificationError) for cause in chain)
            text = str(chain[-1]) or str(link)
            what = f"no connection ({type(link).__name__})"
            return _Failure(what, _reason(text, key), may_pass=not refused_certificate)
    for link in chain:
        if isinstance(link, json.JSONDecodeError | UnicodeDecodeError | AttributeError | KeyError | TypeError):
            reason = _reason(f"{type(link).__name__}: {link}", key)
            return _Failure("an answer that cannot be read", reason, unreadable=True)
    return _Failure(type(error).__name__, _reason(str(error), key))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it came from, and so on; hidden contexts too, since they hold what really happened."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def _status_inside(root: BaseException) -> int | None:
    """The code of an error that came as a body with status 200, as OpenRouter does; litellm makes it an Exception."""
    status = getattr(root, "status_code", None)
    return status if type(root) is Exception and isinstance(status, int) else None


def _said(response: Any, error: BaseException) -> str:
    """The message inside a refusal."""
    try:
        text: str = response.text
        body = json.loads(text)
        found = body.get("error") or body.get("message") or body.get("detail") or text
        return str(found.get("message") or found) if isinstance(found, dict) else str(found)
    except (ValueError, AttributeError):
        return text.strip() or type(error).__name__
    except Exception:  # a body that was never read
        return type(error).__name__


def _reason(text: str, key: str | None) -> str:
    line = " ".join(without_secrets(text, key).split()).rstrip(".")
    return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]}…"


def without_secrets(text: str, key: str | None = None) -> str:
    """A message without the key, the values of secret environment variables, and logins of addresses."""
    secret = re.compile("KEY|TOKEN|SECRET|PASSWORD", re.I)
    secrets = {value for name, value in os.environ.items() if secret.search(name) and len(value) >= 8}
    for value in sorted(secrets | ({key} if key and len(key) >= 4 else set()), key=len, reverse=True):
        text = text.replace(value, "<key>")
    text = re.sub(r"(?i)\bbearer\s+[^\s'\",}]+", "Bearer <key>", text)
    text = re.sub(r"(?i)([?&](?:api_?)?(?:key|token)=)[^&\s'\"]+", r"\1<key>", text)
    return re.sub(r"://[^/\s@]+@", "://<login>@", text)


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


def _outcome(state: RetryCallState) -> _Failure:
    assert state.outcome is not None  # set before tenacity asks how long to wait
    failure: _Failure = state.outcome.result()
    return failure


# Requests


async def _request(route: str, texts: list[str], key: str | None, api_base: str | None, timeout: float) -> Any:
    """The answer of litellm, or a `_Failure`."""
    import litellm

    litellm.suppress_debug_info = True  # its advice would be printed to stdout at every error
    with contextlib.suppress(ImportError):
        # Keeps litellm's log worker out: it serves one event loop a process, and the caller's may be another.
        from litellm._internal_context import is_internal_call

        is_internal_call.set(True)
    address = _address(route, key, api_base)
    if isinstance(address, _Failure):
        return address
    try:
        response = await asyncio.wait_for(
            litellm.aembedding(input=texts, timeout=timeout, max_retries=NoRetries(0), **address), timeout
        )
    except Exception as error:
        return _failure(error, key, timeout)
    if address["model"] != route:
        response._hidden_params["response_cost"] = _price(route, response)
    return response


def _address(route: str, key: str | None, api_base: str | None) -> "dict[str, str | None] | _Failure":
    """What litellm needs for a route: model, api_key, api_base."""
    import litellm

    provider = route.split("/")[0]
    model = route
    if provider in NEEDS_ITS_OWN_KEY or provider == "litellm_proxy":
        bare, _, own, address = litellm.get_llm_provider(route, api_key=key, api_base=api_base)
        key = own or litellm.api_key
        if provider in RETRIED_BY_THE_CLIENT:
            model, api_base = f"openai/{bare}", address
        if key is None and provider in NEEDS_ITS_OWN_KEY:
            names = " or ".join(litellm.validate_environment(route)["missing_keys"]) or "its environment variable"
            return _Failure("a missing key", f"give api_key, or set {names}")
    elif provider == "openai":
        key = key or litellm.api_key or litellm.openai_key or os.environ.get("OPENAI_API_KEY")
    if provider in MAY_NEED_NO_KEY and api_base is not None:
        key = key or NO_KEY
    return {"model": model, "api_key": key, "api_base": api_base}


def _price(route: str, response: Any) -> float | None:
    """US dollars of an answer, or None where litellm does not know."""
    import litellm

    try:
        prompt, _ = litellm.cost_per_token(
            model=route, prompt_tokens=response.usage.prompt_tokens, call_type="embedding"
        )
        return float(prompt)
    except Exception:
        return None


class _Pace:
    """When the next request may start: evenly spaced, and after what the provider asked to wait."""

    def __init__(self, requests_per_minute: float | None) -> None:
        self._gap = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._free = 0.0  # when the next turn begins
        self._held = 0.0  # until when nobody may start

    async def turn(self) -> None:
        """Wait for a turn; the first goes at once."""
        while True:
            now = time.monotonic()
            start = max(now, self._free, self._held)
            self._free = start + self._gap
            if start > now:
                await asyncio.sleep(start - now)
            if self._held <= start:  # nobody was asked to wait meanwhile
                return

    def hold(self, seconds: float) -> None:
        """Let nobody start for so long."""
        self._held = max(self._held, time.monotonic() + seconds)


# The event loop

_LOOPS: dict[int, asyncio.AbstractEventLoop] = {}  # by process: threads do not survive a fork, connections must not
_STARTING = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_STARTING.acquire, after_in_parent=_STARTING.release, after_in_child=_STARTING.release)


def _on_our_loop(coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
    """Run a coroutine on this process's loop for requests."""
    with _STARTING:
        loop = _LOOPS.get(os.getpid())
        if loop is None:
            loop = _LOOPS[os.getpid()] = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="dspy_qvl hosted", daemon=True).start()
    return asyncio.run_coroutine_threadsafe(coroutine, loop)


def _without_login(api_base: str | None) -> str | None:
    """An address that may be stored: without user, password and query."""
    return re.sub(r"://[^/\s@]+@", "://", api_base).split("?")[0] if api_base else None


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
