"""One embedding route of litellm, texts -> vectors: requests are paced, retried, halved, and paid for once.

    texts ─► batches the provider takes ─► turn (pace) ─► provider ─► rows, checked ─► usage counted
                        ▲                      ▲              │
                        │                      └── again ─────┤ may pass: rate limit, server error, timeout
                        └───────────────────────── halves ────┘ caused by texts: refused, or failing at every try

A failure that may pass is tried again, with jitter and bounds; a provider's Retry-After holds back every request. A
batch that is refused, or fails at every try while a harmless text passes, is halved until it is clear whether it was
too large or which texts were at fault: they are named, the others keep their vectors (`halving.py`, which states the
bounds). Everything else fails at once, in words that hold no key.

All requests of a process run on one event loop of this package, in a thread of its own; callers wait for it in their
threads. litellm keeps connections and a log worker a process, which break where loops change or run side by
side: see test_threads_with_loops_of_their_own_share_a_model. And the state of a model (pace, usage, limits) is touched
by one thread only, so it needs no lock.
"""

import asyncio
import functools
import logging
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dspy_qvl.embedding.loops import on_our_loop
from dspy_qvl.embedding.models.hosted.addresses import public_address
from dspy_qvl.embedding.models.hosted.arguments import public
from dspy_qvl.embedding.models.hosted.failures import Failure
from dspy_qvl.embedding.models.hosted.halving import Batch, Fault, Row, is_refusal, may_be_a_text
from dspy_qvl.embedding.models.hosted.providers import provider_of
from dspy_qvl.embedding.models.hosted.request import Answer, ask
from dspy_qvl.embedding.models.model import Refused, Unusable, Usage, counted, listed
from dspy_qvl.errors import EmbeddingError, TextsRefusedError, check_count, check_positive
from dspy_qvl.vectors import Vector

logger = logging.getLogger("dspy_qvl")

LONGEST_WAIT = 30.0  # seconds between two tries, where the provider names none
MOST_HANGS = 2  # tries of a request that nobody answers


@dataclass(frozen=True)
class Limits:
    """Limits of the requests to a provider: their rate, their number at once, their tries and their time.

    Attributes:
        requests_per_minute: evenly spaced starts, or None for no limit.
        max_concurrency: requests at the same time; the caller of a `HostedModel` keeps to it.
        timeout: seconds one request may take.
        max_attempts: tries of one request; at most 2 where it hangs, and fewer of parts of a batch that failed.
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
        for name, value in vars(self).items():
            if name in ("max_concurrency", "max_attempts"):
                check_count(value, name, 1)
            elif value is not None or name != "requests_per_minute":
                check_positive(value, name)


class HostedModel:
    """An embedding route of litellm: texts -> full-size vectors, from threads and event loops alike.

    A shared resource: a copy is the model itself, and a pickled one has lost its key.

    Args:
        route: provider and model, for instance "openrouter/qwen/qwen3-embedding-8b".
        api_key: the provider's key, or None for its environment variable.
        api_base: where it is served, or None for the provider's own address.
        limits: of its requests.
        key_lost: True if it had a key of its own that was left behind.
        options: arguments of the provider's own, sent with each request.

    Attributes:
        name: the route.
        usage: counts of its requests so far.
        batch_limit: texts a request, lowered where the provider refuses more.
    """

    def __init__(
        self,
        route: str,
        *,
        api_key: str | None = None,
        api_base: str | None = None,
        limits: Limits | None = None,
        key_lost: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = route
        self.limits = limits or Limits()
        self.usage = Usage()
        self.batch_limit: int | None = provider_of(route).batch_size
        self._api_base = api_base
        self._key_lost = key_lost and not api_key
        self._key: Callable[[], str | None] = lambda: api_key  # a closure shows in no repr and no vars()
        self._options: Callable[[], Mapping[str, Any] | None] = lambda: options
        self._pace = _Pace(self.limits.requests_per_minute)
        # Processes that were refused together must not come back together.
        self._random = random.Random(f"{os.getpid()} {route}")
        self._answers = False  # True once it has answered

    def __repr__(self) -> str:
        return f"HostedModel({self.name!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "HostedModel":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        again = functools.partial(
            HostedModel,
            api_base=public_address(self._api_base) or None,
            limits=self.limits,
            key_lost=self._key_lost or self._key() is not None,
            options=public(self._options() or {}),
        )
        return again, (self.name,)

    def __call__(self, texts: Sequence[str]) -> list[Vector]:
        """Full-size vectors of texts, in their order.

        Raises:
            TextsRefusedError: some texts have no vector; the error carries those of the others.
            EmbeddingError: the route failed, or answered wrongly.
        """
        future = on_our_loop(self._embed(list(texts)))
        try:
            return future.result()
        finally:
            future.cancel()  # the caller was interrupted; otherwise it is done

    # Batches

    async def _embed(self, texts: list[str]) -> list[Vector]:
        if not texts:
            return []
        batch = Batch(texts, self._ask, limit=self.batch_limit, timeout=self.limits.timeout)
        try:
            await batch.fill()
            self._check(batch)
        except EmbeddingError as error:
            error.vectors = batch.vectors  # they were paid for
            raise
        finally:
            known = [limit for limit in (self.batch_limit, batch.limit) if limit is not None]
            self.batch_limit = min(known, default=None)
        return [row for _, row in sorted(batch.vectors.items())]

    def _check(self, batch: Batch) -> None:
        """Refuse a batch whose rows are not a usable vector each.

        Raises:
            TextsRefusedError: some texts were refused; it says why.
            EmbeddingError: vectors of different lengths, which are dropped, or none that can be used.
        """
        refused = {place: row.reason for place, row in sorted(batch.rows.items()) if isinstance(row, Refused)}
        route, n_texts = f"the route {self.name!r}", counted(len(batch.rows), "text")
        if len(set(map(len, batch.vectors.values()))) > 1:
            batch.rows.clear()
            raise EmbeddingError(f"{route} gave vectors of different lengths for one batch.")
        if refused and all(isinstance(row, Unusable) for row in batch.rows.values()):
            raise EmbeddingError(f"{route} gave no usable vector for {n_texts}: {refused[0]}.")
        if refused:
            named = listed([f"text {place} ({reason})" for place, reason in refused.items()], "; ")
            rest = f"; the other {len(batch.vectors)} have their vectors" if batch.vectors else ""
            raise TextsRefusedError(f"{route} refused {len(refused)} of {n_texts}: {named}{rest}.", refused=refused)

    # One request

    async def _ask(self, texts: list[str], tries: int | None = None) -> list[Row] | Fault:
        """Rows, or a fault that other texts might not have met.

        Args:
            texts: at least one.
            tries: of a failure that may be a text's fault, or None for `max_attempts`.

        Raises:
            EmbeddingError: any other failure, after as many tries as make sense.
        """
        failures: list[Failure] = []
        started, waited = time.monotonic(), 0.0
        while isinstance(outcome := await self._try(texts), Failure):
            failures.append(outcome)
            wait = self._wait(outcome, len(failures))
            if not outcome.may_pass or self._enough(failures, tries) or waited + wait > self.limits.max_wait:
                return self._fault(failures, time.monotonic() - started, waited)
            logger.info("%s: %s (%s); asking again in %.1f s", self.name, outcome.what, outcome.reason, wait)
            self.usage += Usage(retries=1)
            waited += wait
            await asyncio.sleep(wait)
        self._answers = True
        if len(outcome.rows) != len(texts):
            counts = f"{counted(len(outcome.rows), 'vector')} for {counted(len(texts), 'text')}"
            return Fault(counts, f"the route {self.name!r} gave {counts}; it must give one a text.")
        return outcome.rows

    async def _try(self, texts: list[str]) -> Answer | Failure:
        await self._pace.turn()
        key, options, limits = self._key(), self._options(), self.limits
        started = time.monotonic()
        outcome = await ask(
            self.name, texts, key, self._api_base, limits.timeout, key_lost=self._key_lost, options=options
        )
        if isinstance(outcome, Answer):
            n_unpriced = int(outcome.cost is None)
            self.usage += Usage(1, len(outcome.rows), outcome.tokens, outcome.cost or 0.0, n_unpriced)
            return outcome
        self.usage += Usage(requests=int(outcome.status is not None or outcome.unreadable))
        if outcome.may_pass and outcome.retry_after is not None and outcome.retry_after <= limits.max_wait:
            self._pace.hold(outcome.retry_after)  # all requests: the next one would be refused as well
        garbled = outcome.unreadable and self._answers  # a known address: garbled on the way, no wrong page
        return replace(outcome, may_pass=outcome.may_pass or garbled, seconds=time.monotonic() - started)

    def _wait(self, failure: Failure, n_tries: int) -> float:
        """Seconds before the next try: doubled for each, with jitter, and at least what the provider asks for."""
        longest = min(self.limits.first_wait * 2.0 ** (n_tries - 1), LONGEST_WAIT)
        return max(longest * self._random.uniform(0.5, 1.0), failure.retry_after or 0.0)

    def _enough(self, failures: Sequence[Failure], tries: int | None) -> bool:
        """True once a request was tried often enough: less often where a text may be at fault, or it hangs."""
        if len(failures) >= self.limits.max_attempts:
            return True
        own = [failure.seconds for failure in failures if may_be_a_text(failure)]
        n_hangs = round(sum(own) / self.limits.timeout)
        return may_be_a_text(failures[-1]) and (n_hangs >= MOST_HANGS or (tries is not None and len(own) >= tries))

    def _fault(self, failures: Sequence[Failure], seconds: float, waited: float) -> Fault:
        """The last failure of a request as a fault, in words for a user.

        Args:
            failures: one a try.
            seconds: from the start of the first try to the end of the last.
            waited: seconds of them between tries.

        Raises:
            EmbeddingError: no other texts would have fared better.
        """
        failure, n_tries, limits = failures[-1], len(failures), self.limits
        tries = f" after {counted(n_tries, 'attempt')} in {seconds:.1f} s" if failure.may_pass or n_tries > 1 else ""
        advice = failure.advice
        if failure.may_pass and waited + (failure.retry_after or 0.0) > limits.max_wait:
            advice = (
                f" It asks to wait {failure.retry_after:g} s, and one request may wait {limits.max_wait:g} s "
                "(max_wait): try again later."
            )
        message = f"the route {self.name!r} failed with {failure.what}{tries}: {failure.reason}.{advice}"
        is_flagged = failure.status == 403 and self._answers  # by moderation: the key was good enough before
        if not (is_refusal(failure) or may_be_a_text(failure) or is_flagged):
            raise EmbeddingError(message)
        lost = sum(failure.seconds for failure in failures)
        return Fault(f"{failure.what}: {failure.reason}", message, is_refusal(failure), lost)


class _Pace:
    """The start of the next request: evenly spaced, and after the time that the provider asked to wait."""

    def __init__(self, requests_per_minute: float | None) -> None:
        self._gap = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._free = 0.0  # when the next turn begins
        self._held = 0.0  # no request starts before

    async def turn(self) -> None:
        """Wait for a turn; the first goes at once."""
        while True:
            now = time.monotonic()
            start = max(now, self._free, self._held)
            self._free = start + self._gap
            if start > now:
                await asyncio.sleep(start - now)
            if self._held <= start:  # the provider asked for no wait meanwhile
                return

    def hold(self, seconds: float) -> None:
        """Let no request start for so many seconds."""
        self._held = max(self._held, time.monotonic() + seconds)
