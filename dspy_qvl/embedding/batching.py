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
leaves (an exception, a cancelled task) leaves its texts to those who want them too. Ctrl-C may break off anything,
also while slots are handed over: whoever comes next makes queues and slots anew, from who is there (`_mend`).
"""

import asyncio
import contextlib
import contextvars
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from dspy_qvl.embedding.callers import Bell, Caller, Key, Outcome, Run, Wanted, by_cost

T = TypeVar("T")

# Whether this code runs inside a batch: a model that asks for vectors itself must not wait for the slot it holds.
_inside: contextvars.ContextVar[bool] = contextvars.ContextVar("_inside", default=False)


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
        self._changing = False
        self._callers: dict[Caller, None] = {}  # who waits
        self._flying: list[tuple[Caller, list[Wanted]]] = []  # batches that have a slot, and who runs them
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
        bell = Bell()
        caller = Caller(texts, known, bell.ring, run, width)
        caller.in_person = width == 1 or len(texts) <= self.batch_size
        if caller.in_person:
            caller.width = 1
        try:
            self._change(self._join, caller)
            while not caller.done:
                batch = self._change(self._take, caller) if caller.in_person else None
                if batch is not None:
                    self._run(caller, batch)
                elif not caller.done:
                    bell.wait()
        finally:
            caller.left = True
            self._say_goodbye(caller)
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

        caller = Caller(texts, known, wake, run, width)
        try:
            self._change(self._join, caller)
            while not caller.done:
                await woken.wait()
                woken.clear()
        finally:
            caller.left = True
            self._say_goodbye(caller)
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
        for key, text, cost in sorted(texts, key=by_cost):
            value = known(key)
            if value is None:
                pending.append(Wanted(key, text, cost))
            else:
                outcome[key] = value
        while pending:
            yield self._pack(pending)

    # Slots

    def _change(self, change: Callable[..., T], *args: Any) -> T:
        """Change who waits, and who has which slot; all that follows, but for `_run`, is called from here."""
        with self._lock:
            if self._changing:  # an interrupt broke off the last one
                self._mend()
            self._changing = True
            changed = change(*args)
            self._changing = False
        return changed

    def _say_goodbye(self, caller: Caller) -> None:
        try:
            self._change(self._leave, caller)
        except BaseException:
            self._change(self._leave, caller)  # others may wait for what it had
            raise

    def _mend(self) -> None:
        """Make queues and slots anew, from who is there and what is in flight."""
        for caller in self._callers:
            caller.stand_back()
        self._callers = {caller: None for caller in self._callers if not caller.left}
        self._flying = [entry for entry in self._flying if not (entry[0].left and entry[0].in_person)]
        self._free = self.slots - len(self._flying)
        self._wanted = {wanted.key: wanted for _, batch in self._flying for wanted in batch}
        for wanted in self._wanted.values():
            wanted.callers = []
        self._queue.clear()
        for caller in self._callers:
            self._want(caller)
        for caller in self._callers:
            self._queue_up(caller)
            caller.wake()
        self._grant()

    def _join(self, caller: Caller) -> None:
        self._callers[caller] = None
        self._want(caller)
        self._queue_up(caller)
        self._grant()

    def _want(self, caller: Caller) -> None:
        for key, text, cost in caller.texts:
            value = caller.outcome.get(key, caller.known(key))  # it may have been settled since the caller looked
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

    def _take(self, caller: Caller) -> list[Wanted] | None:
        """The next batch, if the caller was given a slot and there is still something to ask for."""
        if not caller.granted:
            return None
        caller.granted -= 1
        batch = self._gather(caller)
        if batch:
            self._flying.append((caller, batch))
            self._queue_up(caller)
        else:  # somebody took them along meanwhile
            self._free += 1
        self._grant()
        return batch or None

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
        n_running = sum(runs is caller for runs, _ in self._flying)
        if caller.pending and not caller.queued and n_running + caller.granted < caller.width:
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
            self._flying.append((caller, batch))
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
        context = contextvars.copy_context()  # not reset afterwards, which an interrupt could prevent
        context.run(_inside.set, True)
        try:
            outcome = context.run(caller.run, batch)
        except Exception as error:
            self._change(self._settle, caller, batch, {wanted.key: error for wanted in batch})
        except BaseException:
            self._change(self._put_back, batch)
            raise
        else:
            self._change(self._settle, caller, batch, outcome)

    def _settle(self, caller: Caller, batch: list[Wanted], outcome: Outcome) -> None:
        self._settled(caller, batch, outcome)
        self._queue_up(caller)
        self._grant()

    def _settled(self, caller: Caller, batch: list[Wanted], outcome: Outcome) -> None:
        """Hand over what became of a batch, and its slot back."""
        self._give_back_slot(batch)
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

    def _put_back(self, batch: list[Wanted]) -> None:
        """A batch that was broken off, not settled: its texts wait again, for whoever wants them."""
        if self._give_back_slot(batch):
            for wanted in batch:
                self._hand_over(wanted)
            self._grant()

    def _leave(self, caller: Caller) -> None:
        """Forget a caller; what it has not asked for yet goes to others who want it."""
        self._callers.pop(caller, None)
        if caller.awaited:
            for wanted in caller.wanted:
                with contextlib.suppress(ValueError):  # settled
                    wanted.callers.remove(caller)
            for wanted in caller.pending:
                self._hand_over(wanted)
            caller.pending.clear()
        for runs, batch in list(self._flying):
            if runs is caller and caller.in_person:  # an interrupt came between taking it and asking for it
                self._put_back(batch)
        if caller.queued:
            self._queue.remove(caller)
            caller.queued = False
        self._free += caller.granted
        caller.granted = 0
        self._grant()

    def _give_back_slot(self, batch: list[Wanted]) -> bool:
        """Tell whether the batch had one."""
        still = [entry for entry in self._flying if entry[1] is not batch]
        n_back = len(self._flying) - len(still)
        self._flying = still
        self._free += n_back
        return n_back > 0

    def _hand_over(self, wanted: Wanted) -> None:
        if not wanted.callers:
            self._wanted.pop(wanted.key, None)
            return
        heir = wanted.callers[0]
        heir.pending = deque(sorted([*heir.pending, wanted], key=lambda item: item.cost))
        self._queue_up(heir)


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
