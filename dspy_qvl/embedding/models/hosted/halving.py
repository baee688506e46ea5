"""One batch of texts, and the search for those at fault: a part that failed is halved until each fault stands alone.

    texts ─► asked ─► rows
               ├─ refused at once: too many, or one unusable ──────────────────┐
               └─ failed at every try ─► a harmless text ─┬─ passes: a text's? ─┴─► halves ─► … ─► a text alone
                                                          └─ fails: the route is down

A text is named once it failed alone while a harmless one passed. Rows that came before a failure stay in `Batch.rows`:
they were paid for. A rate limit is no text's fault, and never halved.

What it costs, with `max_attempts` and `timeout` of the route and L = ceil(log2(n)) for n texts:

    a route that is down    at most max_attempts + 2 requests; where it hangs 4, one timeout each
    k texts at fault        at most max_attempts + 1 + k (2 L + 2) requests, and never more than max_attempts + 4 n
    one text that hangs     at most L + 3 timeouts
    whatever happens        an error once failed requests took 4 (L + 1) timeouts, which four texts that hang never do;
                            it tells what was found, and the rest is kept

Waits between tries (`max_wait` once, `first_wait` for each text alone), requests that a rate limit put off, batches
that were refused as too large, and a harmless text that needed a second try come on top.
"""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from dspy_qvl.embedding.models.hosted.failures import Failure
from dspy_qvl.embedding.models.model import Refused, listed
from dspy_qvl.errors import EmbeddingError, shown
from dspy_qvl.vectors import Vector

PROBE = "text"  # harmless: a route that fails for it fails for everything
TOO_LARGE_OR_UNUSABLE = {400, 413, 422}  # what one text, or too many of them, can cause
BUSY = {425, 429, 529}  # what passes by itself, whatever the texts are
HALF_TRIES = 1  # of a part of what failed: the next part is asked anyway
LONE_TRIES = 2  # of a text alone, and of the harmless one: chance must not name a text, or end a batch
MOST_HANGING = 4  # texts of a batch that are looked for


@dataclass(frozen=True)
class Fault:
    """A failed request where other texts might have had vectors.

    Attributes:
        reason: in words about a text.
        message: in words about the route.
        is_refusal: True if the texts were refused; otherwise the route itself may be down.
        lost: seconds its tries took.
    """

    reason: str
    message: str
    is_refusal: bool = False
    lost: float = 0.0


Row = Vector | Refused
Ask = Callable[[list[str], int | None], Awaitable[list[Row] | Fault]]


def is_refusal(failure: Failure) -> bool:
    """True for a refusal of the texts, or of their number."""
    return failure.status in TOO_LARGE_OR_UNUSABLE


def may_be_a_text(failure: Failure) -> bool:
    """True for a fault of the route that one text may have caused, by crashing the server or holding it up.

    A provider that is busy, or that names the time when the same request will do, blames no text.
    """
    passes_by_itself = failure.status in BUSY or bool(failure.retry_after)
    return (failure.may_pass or failure.unreadable) and not passes_by_itself


class Batch:
    """The texts of one call, and the vector or refusal of each.

    Args:
        texts: at least one.
        ask: texts, and the most tries of a failure that may be a text's fault (None: as many as of any) -> a row a
            text, or a fault; it raises a failure that no other texts could change.
        limit: texts a request, or None where no limit is known.
        timeout: seconds after which a request is given up.

    Attributes:
        rows: place -> vector or refusal, of the texts that are settled.
        limit: texts a request, lowered where more of them failed than their halves.
    """

    def __init__(self, texts: list[str], ask: Ask, *, limit: int | None, timeout: float) -> None:
        self.rows: dict[int, Row] = {}
        self.limit = limit
        self._texts = texts
        self._ask = ask
        self._lost = 0.0  # seconds that failed requests took
        self._patience = MOST_HANGING * (math.ceil(math.log2(len(texts))) + 1) * timeout

    @property
    def vectors(self) -> dict[int, Vector]:
        """Place -> vector, of the texts that have one so far."""
        return {place: row for place, row in self.rows.items() if not isinstance(row, Refused)}

    async def fill(self) -> None:
        """Put a vector or a refusal at each place, in as few requests as the provider allows.

        Raises:
            EmbeddingError: the route failed, or too many texts hang; `rows` has what came before.
        """
        await self._fill(range(len(self._texts)), suspected=False)

    async def _fill(self, places: range, *, suspected: bool) -> None:
        if self.limit is not None and len(places) > self.limit:
            return await self._fill_parts(places, self.limit, suspected=suspected)
        tries = None if not suspected else LONE_TRIES if len(places) == 1 else HALF_TRIES
        outcome = await self._ask([self._texts[place] for place in places], tries)
        if isinstance(outcome, Fault):
            await self._look_into(outcome, places, suspected=suspected)
        else:
            self.rows.update(zip(places, outcome, strict=True))

    async def _fill_parts(self, places: range, size: int, *, suspected: bool) -> None:
        for start in range(0, len(places), size):
            await self._fill(places[start : start + size], suspected=suspected)

    async def _look_into(self, fault: Fault, places: range, *, suspected: bool) -> None:
        """Settle texts that failed together; `suspected` ones are part of a batch that failed before."""
        self._lost += fault.lost
        is_new = not suspected and not fault.is_refusal
        if is_new or len(places) == 1:
            await self._check_route(fault)
        if len(places) == 1:
            self.rows[places[0]] = Refused(fault.reason)
            return
        if self._lost > self._patience:
            raise EmbeddingError(self._given_up(fault))
        half = (len(places) + 1) // 2
        await self._fill_parts(places, half, suspected=suspected or is_new)
        was_certain = is_new or fault.is_refusal  # not a single try
        if was_certain and not any(isinstance(self.rows[place], Refused) for place in places):
            self.limit = min(half, self.limit or half)  # no text was bad, they were too many

    async def _check_route(self, fault: Fault) -> None:
        """Raise a fault as the route's where a harmless text fails as well: a wrong model name may be a 400 too."""
        probe = await self._ask([PROBE], LONE_TRIES)
        if isinstance(probe, Fault):
            raise EmbeddingError(fault.message)

    def _given_up(self, fault: Fault) -> str:
        found = [shown(self._texts[place]) for place, row in self.rows.items() if isinstance(row, Refused)]
        named = f" It found {listed(found)}: leave them out or change them." if found else ""
        return (
            f"{fault.message} A harmless text passes, but the search for those at fault ended, since failed requests "
            f"took {self._lost:.0f} s.{named}"
        )
