"""Many callers, few batches: texts wanted at the same time are embedded together, each of them once.

    caller A ─┐                                  ┌─► a batch in flight ─┐
    caller B ─┼─► wanted, by caller ─► a slot ───┤                      ├─► settled: everyone who waits for it wakes
    caller C ─┘   (each text once)               └─► …as many at once   ┘
                                                     as the model runs well

There is no timer, and no thread that gathers. A caller that finds a slot free asks at once, so that a lone caller waits
for nothing; while the slots are taken, those who come later gather, and whoever gets the next slot takes all of them
along. Slots are handed over in the order of coming: a caller with a thousand batches gets one, then goes to the end.

Threads and event loops meet here. A thread with a single batch asks in person; the batches of an event loop, and of a
thread that may have several in flight, run in threads of our own. So no batch ever depends on somebody's event loop,
which may stand still or be closed. Each caller of a batch that fails gets the failure, and nobody else; a caller that
leaves (an exception, a cancelled task) leaves its texts to those who want them too.
"""

import asyncio
import contextlib
import contextvars
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

Key = bytes
Outcome = Mapping[Key, Any]
Run = Callable[[Sequence["Wanted"]], Outcome]

# Whether this code runs inside a batch: a model that asks for vectors itself must not wait for the slot it holds.
_inside: contextvars.ContextVar[bool] = contextvars.ContextVar("_inside", default=False)


@dataclass(eq=False)
class Wanted:
    """One text that somebody waits for.

    Attributes:
        key: what stands for the text.
        text: as sent to the model.
        cost: what it adds to a batch, in tokens; or its length in characters where tokens are not counted.
    """

    key: Key
    text: str
    cost: int
    callers: list["Caller"] = field(default_factory=list)  # the first has it among its `pending`


class Caller:
    """Who waits, and for what.

    Attributes:
        wake: called when there is something for it to do, or nothing more to wait for.
        run: what makes its batches.
        width: how many batches it can have in flight at once.
        in_person: whether it asks itself, instead of a thread of ours.
        pending: texts that are not in flight yet, the cheapest first.
        awaited: how many texts are not settled.
        outcome: what the settled ones became.
        failure: what ended a batch of its texts.
    """

    def __init__(self, wake: Callable[[], None], run: Run, width: int) -> None:
        self.wake = wake
        self.run = run
        self.width = width
        self.in_person = False
        self.pending: deque[Wanted] = deque()
        self.outcome: dict[Key, Any] = {}
        self.failure: Exception | None = None
        self.wanted: list[Wanted] = []
        self.awaited = 0
        self.granted = 0  # slots it was given and has not used yet
        self.running: list[list[Wanted]] = []  # batches in flight
        self.queued = False

    @property
    def done(self) -> bool:
        """Whether there is nothing left to wait for."""
        return self.awaited == 0 or self.failure is not None


class Coalescer:
    """Slots for batches, and the texts that wait for one.

    Args:
        slots: batches in flight at once.
        batch_size: most texts of a batch.
        budget: most tokens of a batch as the model sees it, padded: its texts times the longest of them. None where
            costs are not tokens.
    """

    def __init__(self, slots: int, batch_size: int, budget: int | None = None) -> None:
        self.slots = slots
        self.batch_size = batch_size
        self.budget = budget
        self._begin()
        _alive.add(self)

    @classmethod
    def shared(cls, key: Hashable, slots: int, batch_size: int) -> "Coalescer":
        """The one that everybody of this process uses who gives this key, as long as somebody does."""
        with _sharing:
            coalescer = _shared.get(key)
            if coalescer is None:
                coalescer = _shared[key] = cls(slots, batch_size)
            return coalescer

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._free = self.slots
        self._wanted: dict[Key, Wanted] = {}
        self._queue: deque[Caller] = deque()  # callers with pending texts, that could use a slot
        self._threads: ThreadPoolExecutor | None = None

    # Callers

    def __call__(
        self, texts: Sequence[tuple[Key, str, int]], known: Callable[[Key], Any], run: Run, *, width: int = 1
    ) -> Outcome:
        """What `run` makes of texts, waiting for it.

        Args:
            texts: key, text and cost of each, in any order; no key twice.
            known: what is known of a key by now, or None.
            run: batch -> what becomes of each of its keys: an exception is raised for those who wait for that text,
                anything else is handed to them.
            width: how many batches of this caller may be in flight at once.

        Raises:
            What `run` raised for a batch with one of the texts, or gave for one of them.
        """
        if _inside.get():
            return self._alone(texts, known, run)
        woken = threading.Event()
        caller = Caller(woken.set, run, width)
        caller.in_person = width == 1 or len(texts) <= self.batch_size
        if caller.in_person:
            caller.width = 1
        try:
            self._join(caller, texts, known)
            while not caller.done:
                batch = self._take(caller) if caller.in_person else None
                if batch is not None:
                    self._run(caller, batch)
                elif not caller.done:
                    woken.wait()
                    woken.clear()
        finally:
            if caller.in_person:
                for batch in caller.running:  # an interrupt came between taking it and asking for it
                    self._put_back(caller, batch)
            self._leave(caller)
        return _outcome(caller)

    async def acall(
        self, texts: Sequence[tuple[Key, str, int]], known: Callable[[Key], Any], run: Run, *, width: int = 1
    ) -> Outcome:
        """As `__call__`, without blocking the event loop; `run` is called in a thread.

        A batch in flight outlives a caller that is cancelled: what was asked for is paid for, and kept.
        """
        if _inside.get():
            return await asyncio.to_thread(self._alone, texts, known, run)
        loop, woken = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # a loop that is closed has nobody left to wake
                loop.call_soon_threadsafe(woken.set)

        caller = Caller(wake, run, width)
        try:
            self._join(caller, texts, known)
            while not caller.done:
                await woken.wait()
                woken.clear()
        finally:
            self._leave(caller)
        return _outcome(caller)

    def _alone(self, texts: Sequence[tuple[Key, str, int]], known: Callable[[Key], Any], run: Run) -> Outcome:
        """For a model that asks for vectors itself: waiting for a slot, it might wait for its own."""
        outcome: dict[Key, Any] = {}
        for batch in self._batches(texts, known, outcome):
            outcome.update(_raised(run(batch)))
        return outcome

    def _batches(
        self, texts: Sequence[tuple[Key, str, int]], known: Callable[[Key], Any], outcome: dict[Key, Any]
    ) -> Iterator[list[Wanted]]:
        """Batches of what is not known, without waiting for anybody."""
        pending: deque[Wanted] = deque()
        for key, text, cost in sorted(texts, key=_by_cost):
            value = known(key)
            if value is None:
                pending.append(Wanted(key, text, cost))
            else:
                outcome[key] = value
        while pending:
            yield self._pack(pending)

    # Slots; all but `_join`, `_take`, `_run`, `_settle`, `_put_back` and `_leave` runs under the lock

    def _join(self, caller: Caller, texts: Iterable[tuple[Key, str, int]], known: Callable[[Key], Any]) -> None:
        with self._lock:
            for key, text, cost in sorted(texts, key=_by_cost):
                value = known(key)  # it may have been settled since the caller looked
                if value is not None:
                    caller.outcome[key] = value
                    continue
                wanted = self._wanted.get(key)
                if wanted is None:
                    wanted = self._wanted[key] = Wanted(key, text, cost)
                    caller.pending.append(wanted)
                wanted.callers.append(caller)
                caller.wanted.append(wanted)
                caller.awaited += 1
            self._queue_up(caller)
            self._grant()

    def _take(self, caller: Caller) -> list[Wanted] | None:
        """The next batch, if the caller was given a slot and there is still something to ask for."""
        with self._lock:
            if not caller.granted:
                return None
            caller.granted -= 1
            batch = self._gather(caller)
            if not batch:  # somebody took them along meanwhile
                self._free += 1
                self._grant()
                return None
            caller.running.append(batch)
            self._queue_up(caller)
            self._grant()
            return batch

    def _gather(self, caller: Caller) -> list[Wanted]:
        """A batch of the caller's own texts, and of every other caller's who waits and fits in whole."""
        batch = self._pack(caller.pending)
        if not batch:
            return []
        longest = batch[-1].cost
        for other in list(self._queue):
            if len(batch) >= self.batch_size:
                break
            if other is caller or not other.pending:
                continue
            n = len(batch) + len(other.pending)
            widest = max(longest, other.pending[-1].cost)
            if n <= self.batch_size and (self.budget is None or n * widest <= self.budget):
                batch += other.pending
                longest = widest
                other.pending.clear()
                self._queue.remove(other)
                other.queued = False
        return batch

    def _pack(self, pending: deque[Wanted]) -> list[Wanted]:
        """The cheapest texts that make up one batch; at least one, if there is any."""
        batch: list[Wanted] = []
        while pending and len(batch) < self.batch_size:
            if batch and self.budget is not None and (len(batch) + 1) * pending[0].cost > self.budget:
                break
            batch.append(pending.popleft())
        return batch

    def _queue_up(self, caller: Caller) -> None:
        if caller.pending and not caller.queued and len(caller.running) + caller.granted < caller.width:
            caller.queued = True
            self._queue.append(caller)

    def _grant(self) -> None:
        """Give free slots to those who wait the longest."""
        while self._free and self._queue:
            caller = self._queue.popleft()
            caller.queued = False
            if not caller.pending:
                continue
            self._free -= 1
            if caller.in_person:
                caller.granted += 1
                caller.wake()
                continue
            batch = self._gather(caller)
            caller.running.append(batch)
            self._queue_up(caller)
            self._start(caller, batch)

    def _start(self, caller: Caller, batch: list[Wanted]) -> None:
        """Run a batch in a thread of ours."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.slots, thread_name_prefix="dspy_qvl")
        try:
            self._threads.submit(self._run, caller, batch)
        except RuntimeError as error:  # the interpreter is about to end
            self._settled(caller, batch, {wanted.key: error for wanted in batch})

    # Batches

    def _run(self, caller: Caller, batch: list[Wanted]) -> None:
        token = _inside.set(True)
        try:
            outcome = caller.run(batch)
        except Exception as error:
            self._settle(caller, batch, {wanted.key: error for wanted in batch})
        except BaseException:
            self._put_back(caller, batch)
            raise
        else:
            self._settle(caller, batch, outcome)
        finally:
            _inside.reset(token)

    def _settle(self, caller: Caller, batch: list[Wanted], outcome: Outcome) -> None:
        with self._lock:
            self._settled(caller, batch, outcome)
            self._queue_up(caller)
            self._grant()

    def _settled(self, caller: Caller, batch: list[Wanted], outcome: Outcome) -> None:
        """Hand over what became of a batch, and its slot back."""
        self._give_back_slot(caller, batch)
        waking: dict[Caller, None] = {caller: None}
        for wanted in batch:
            if self._wanted.get(wanted.key) is wanted:
                del self._wanted[wanted.key]
            value = outcome[wanted.key]
            for waiting in wanted.callers:
                waiting.awaited -= 1
                if isinstance(value, Exception):
                    waiting.failure = value
                else:
                    waiting.outcome[wanted.key] = value
                if waiting.done:
                    waking[waiting] = None
            wanted.callers.clear()
        for waiting in waking:
            waiting.wake()

    def _put_back(self, caller: Caller, batch: list[Wanted]) -> None:
        """A batch that was broken off, not settled: its texts wait again, for whoever wants them."""
        with self._lock:
            if not any(running is batch for running in caller.running):
                return
            self._give_back_slot(caller, batch)
            for wanted in batch:
                self._hand_over(wanted)
            self._grant()

    def _leave(self, caller: Caller) -> None:
        """Forget a caller; what it has not asked for yet goes to others who want it."""
        with self._lock:
            if caller.awaited:
                for wanted in caller.wanted:
                    with contextlib.suppress(ValueError):  # settled
                        wanted.callers.remove(caller)
                for wanted in caller.pending:
                    self._hand_over(wanted)
                caller.pending.clear()
            if caller.queued:
                self._queue.remove(caller)
                caller.queued = False
            self._free += caller.granted
            caller.granted = 0
            self._grant()

    def _give_back_slot(self, caller: Caller, batch: list[Wanted]) -> None:
        self._free += 1
        caller.running = [running for running in caller.running if running is not batch]

    def _hand_over(self, wanted: Wanted) -> None:
        if not wanted.callers:
            self._wanted.pop(wanted.key, None)
            return
        heir = wanted.callers[0]
        heir.pending = deque(sorted([*heir.pending, wanted], key=lambda item: item.cost))
        self._queue_up(heir)


def by_caller(batch: Sequence[Wanted]) -> list[list[Wanted]]:
    """The parts of a batch that different callers asked for."""
    parts: dict[Caller | None, list[Wanted]] = {}
    for wanted in batch:
        parts.setdefault(wanted.callers[0] if wanted.callers else None, []).append(wanted)
    return list(parts.values())


def _by_cost(text: tuple[Key, str, int]) -> int:
    return text[2]


def _outcome(caller: Caller) -> Outcome:
    if caller.failure is not None:
        raise caller.failure
    return caller.outcome


def _raised(outcome: Outcome) -> Outcome:
    for value in outcome.values():
        if isinstance(value, Exception):
            raise value
    return outcome


_shared: "weakref.WeakValueDictionary[Hashable, Coalescer]" = weakref.WeakValueDictionary()
_sharing = threading.Lock()

# A forked process has none of the threads that held locks and slots.
_alive: "weakref.WeakSet[Coalescer]" = weakref.WeakSet()


def _begin_anew() -> None:
    global _sharing
    _sharing = threading.Lock()
    for coalescer in list(_alive):
        coalescer._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
