"""Many callers, few batches: texts wanted at the same time are embedded together, each of them once.

    caller A ─┐                                  ┌─► a batch in flight ─┐
    caller B ─┼─► wanted, by caller ─► a slot ───┤                      ├─► settled: everyone who waits for it wakes
    caller C ─┘   (each text once)               └─► …as many at once   ┘
                                                     as the model runs well

There is no timer and no thread that gathers. A caller that finds a slot free asks at once, so that a lone caller waits
for nothing; while the slots are taken, those who come later gather, and whoever gets the next slot takes all of them
along. Slots are handed over in the order of coming: a caller with a thousand batches gets one, then goes to the end.

Threads and event loops meet here: a caller is woken by whatever its kind can be woken by. Each caller of a batch that
fails gets the failure, and nobody else; a caller that leaves (an exception, a cancelled task) leaves its texts to those
who want them too.
"""

import asyncio
import contextlib
import contextvars
import functools
import os
import threading
import weakref
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

Key = bytes
Outcome = Mapping[Key, Any]
Run = Callable[[Sequence["Wanted"]], Outcome]
ARun = Callable[[Sequence["Wanted"]], Awaitable[Outcome]]

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
        width: how many batches it can have in flight at once.
        pending: texts that are not in flight yet, the cheapest first.
        awaited: how many texts are not settled.
        outcome: what the settled ones became.
        failure: what ended a batch of its texts.
    """

    def __init__(self, wake: Callable[[], None], width: int) -> None:
        self.wake = wake
        self.width = width
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

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._free = self.slots
        self._wanted: dict[Key, Wanted] = {}
        self._queue: deque[Caller] = deque()  # callers with pending texts, that could use a slot
        self._loops: Counter[int] = Counter()  # callers and batches on each event loop
        self._tasks: set[asyncio.Task[None]] = set()

    # Callers

    def __call__(
        self, texts: Sequence[tuple[Key, str, int]], known: Callable[[Key], Any], run: Run, *, width: int = 1
    ) -> Outcome:
        """What `run` makes of texts, waiting for it.

        Args:
            texts: key, text and cost of each, in any order; no key twice.
            known: what is known of a key by now, or None.
            run: batch -> what becomes of each of its keys: an exception is raised for those who wait for that text,
                anything else is handed to them. Called from one of the waiting threads.
            width: how many batches of this caller may be in flight at once.

        Raises:
            What `run` raised for a batch with one of the texts, or gave for one of them.
        """
        if self._must_not_wait():
            return self._alone(texts, known, run)
        woken = threading.Event()
        caller = self._join(texts, known, woken.set, width)
        caller.width = width if len(caller.pending) > self.batch_size else 1
        try:
            with _workers(caller.width) as start:
                while not caller.done:
                    batch = self._take(caller)
                    if batch is not None:
                        start(self._run, caller, batch, run)
                    elif not caller.done:
                        woken.wait()
                        woken.clear()
        finally:
            if caller.width == 1:
                for batch in caller.running:  # an interrupt came between taking it and asking for it
                    self._put_back(caller, batch)
            self._leave(caller)
        return _outcome(caller)

    async def acall(
        self, texts: Sequence[tuple[Key, str, int]], known: Callable[[Key], Any], run: ARun, *, width: int = 1
    ) -> Outcome:
        """As `__call__` with an awaitable `run`, without blocking the event loop.

        A batch in flight outlives a caller that is cancelled: what was asked for is paid for, and kept.
        """
        if _inside.get():
            outcome: dict[Key, Any] = {}
            for alone in self._batches(texts, known, outcome):
                outcome.update(_raised(await run(alone)))
            return outcome
        loop, woken = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # a loop that is closed has nobody left to wake
                loop.call_soon_threadsafe(woken.set)

        tasks: set[asyncio.Task[None]] = set()  # of this caller; `_tasks` keeps those it leaves behind alive
        with self._on(loop):
            caller = self._join(texts, known, wake, width)
            try:
                while not caller.done:
                    batch = self._take(caller)
                    if batch is not None:
                        task = loop.create_task(self._arun(caller, batch, run))
                        # A loop that is closed cancels it, perhaps before it began.
                        task.add_done_callback(functools.partial(self._put_back, caller, batch))
                        for kept in (tasks, self._tasks):
                            kept.add(task)
                            task.add_done_callback(kept.discard)
                    elif not caller.done:
                        await woken.wait()
                        woken.clear()
                if tasks:
                    await asyncio.wait(tasks)
            finally:
                self._leave(caller)
        return _outcome(caller)

    @contextlib.contextmanager
    def _on(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """While something here depends on an event loop."""
        with self._lock:
            self._loops[id(loop)] += 1
        try:
            yield
        finally:
            with self._lock:
                self._loops[id(loop)] -= 1
                if self._loops[id(loop)] <= 0:
                    del self._loops[id(loop)]

    def _must_not_wait(self) -> bool:
        """Whether what this thread would wait for could only be done by this thread itself."""
        if _inside.get():
            return True
        if not self._loops:
            return False
        try:
            return id(asyncio.get_running_loop()) in self._loops  # its callers' batches stand still while we wait
        except RuntimeError:
            return False

    def _alone(self, texts: Sequence[tuple[Key, str, int]], known: Callable[[Key], Any], run: Run) -> Outcome:
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

    # Slots; everything below `_join`, `_take`, `_settle` and `_leave` runs under the lock

    def _join(
        self,
        texts: Iterable[tuple[Key, str, int]],
        known: Callable[[Key], Any],
        wake: Callable[[], None],
        width: int,
    ) -> Caller:
        caller = Caller(wake, width)
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
        return caller

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
            if caller.pending:
                self._free -= 1
                caller.granted += 1
                caller.wake()

    # Batches

    def _run(self, caller: Caller, batch: list[Wanted], run: Run) -> None:
        token = _inside.set(True)
        try:
            outcome = run(batch)
        except Exception as error:
            self._settle(caller, batch, {wanted.key: error for wanted in batch})
        except BaseException:
            self._put_back(caller, batch)
            raise
        else:
            self._settle(caller, batch, outcome)
        finally:
            _inside.reset(token)

    async def _arun(self, caller: Caller, batch: list[Wanted], run: ARun) -> None:
        _inside.set(True)  # this task has a context of its own
        with self._on(asyncio.get_running_loop()):
            try:
                outcome = await run(batch)
            except Exception as error:
                self._settle(caller, batch, {wanted.key: error for wanted in batch})
            else:
                self._settle(caller, batch, outcome)

    def _settle(self, caller: Caller, batch: list[Wanted], outcome: Outcome) -> None:
        with self._lock:
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
            self._queue_up(caller)
            self._grant()
            for waiting in waking:
                waiting.wake()

    def _put_back(self, caller: Caller, batch: list[Wanted], _task: object = None) -> None:
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


@contextlib.contextmanager
def _workers(n: int) -> Iterator[Callable[..., Any]]:
    """What runs a batch: the caller's own thread, or for several at once threads that end with the call."""
    if n == 1:
        yield lambda call, *args: call(*args)
        return
    pool = ThreadPoolExecutor(n, thread_name_prefix="dspy_qvl")
    try:
        yield pool.submit
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


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


# A forked process has none of the threads that held locks and slots.
_alive: "weakref.WeakSet[Coalescer]" = weakref.WeakSet()


def _begin_anew() -> None:
    for coalescer in list(_alive):
        coalescer._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
