"""Many callers, few batches: texts that are requested at the same time are embedded together, each of them once.

    caller A ─┐                                   ┌─► a batch in flight ─┐
    caller B ─┼─► pending texts ─► a free slot ───┤                      ├─► settled: every caller that waits for one
    caller C ─┘   (each text once)                └─► …as many at once   ┘   of its texts is handed that outcome
                                                      as the model runs well

There is no timer. A caller that finds a slot free asks at once, so a lone caller waits for nothing. While all slots are
taken, the texts of later callers gather, and the next free slot takes along as many as fit into one batch. Slots go
round: a caller with a thousand batches gets one, then the others have their turn.

Threads and event loops share the slots. A thread that has one batch at a time runs it itself: the thread may hold a
lock that the model needs, since a model may change the learner that asks it; from another thread it would wait forever.
The batches of an event loop, and of a thread with several in flight, run in threads of a pool, so that no batch depends
on an event loop that is blocked or closed. The pool is our own: an interrupt can leave a `ThreadPoolExecutor` locked. A
failure reaches the callers of the texts it is about and no others. A caller that leaves (an exception, a cancelled
task) leaves its texts to the other callers that wait for them.

Ctrl-C may interrupt anything in the main thread, also a change of the state kept here. The next change then rebuilds it
from the callers still waiting and the batches still running (`_rebuild`). So that nothing is lost on the way, a batch
is handed over before it is counted as in flight, and a caller is notified before it is forgotten; done twice, both are
harmless.
"""

import asyncio
import atexit
import contextlib
import contextvars
import os
import threading
import time
import weakref
from _thread import start_new_thread  # an interrupt in `threading.Thread.start` may leave the thread waiting forever
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from functools import partial
from queue import SimpleQueue
from typing import Any

from dspy_qvl.embedding.callers import Batch, Caller, Key, Outcome, PendingText

Jobs = SimpleQueue[Callable[[], None] | None]

# True inside a batch: a model that asks for vectors itself must not wait for the slot it holds.
_inside: contextvars.ContextVar[bool] = contextvars.ContextVar("_inside", default=False)


class Coalescer:
    """Slots for batches, and the callers that wait for one.

    Args:
        slots: batches in flight at once.
        batch_size: most texts of a batch.
    """

    def __init__(self, slots: int, batch_size: int) -> None:
        self.slots = slots
        self.batch_size = batch_size
        self._reset()
        _alive.add(self)

    @classmethod
    def shared(cls, key: Hashable, slots: int, batch_size: int) -> "Coalescer":
        """The coalescer of this key, one a process; it lives as long as it is used."""
        with _sharing:
            return _shared.setdefault(key, cls(slots, batch_size))

    def __del__(self) -> None:
        self._jobs.put(None)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._changing = False
        self._callers: OrderedDict[Caller, None] = OrderedDict()  # those who wait; the first has the next turn
        self._texts: dict[Key, PendingText] = {}  # that are waited for
        self._in_flight: list[tuple[Caller, Batch]] = []  # batches that hold a slot, and their runners
        self._jobs: Jobs = SimpleQueue()
        self._n_threads = 0  # of the pool

    # Callers

    def __call__(self, caller: Caller) -> Outcome:
        """The outcome of each text of a caller, waiting for it.

        Raises:
            What `run` raised for a batch with one of the texts, or gave for one of them.
        """
        slots = Coalescer(1, self.batch_size) if _inside.get() else self
        inbox: SimpleQueue[Batch | None] = SimpleQueue()  # an interrupt may leave a `threading.Event` locked
        caller.notify = inbox.put
        caller.own_thread = slots is not self or caller.width == 1 or len(caller.texts) <= self.batch_size
        try:
            slots._change(slots._join, caller)
            while not caller.done:
                batch = inbox.get()
                if batch is not None:
                    slots._run(caller, batch)
        finally:
            caller.left = True
            slots._forget(caller)
        return caller.result()

    async def acall(self, caller: Caller) -> Outcome:
        """As `__call__`, without blocking the event loop; batches run in the pool.

        A batch in flight outlives a caller that is cancelled: what was asked for is paid for, and kept.
        """
        if _inside.get():
            return await asyncio.to_thread(self, caller)
        loop, woken = asyncio.get_running_loop(), asyncio.Event()

        def wake(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(woken.set)

        caller.notify = wake
        try:
            self._change(self._join, caller)
            while not caller.done:
                await woken.wait()
                woken.clear()
        finally:
            caller.left = True
            self._forget(caller)
        return caller.result()

    def _run(self, caller: Caller, batch: Batch) -> None:
        """Ask the model for a batch, with the context variables of the caller, and settle it."""
        context = caller.context.copy()
        context.run(_inside.set, True)
        try:
            outcome = context.run(caller.run, batch)
        except BaseException as error:
            if caller.own_thread and not isinstance(error, Exception):
                raise  # an interrupt is no answer
            outcome = {text.key: error for text in batch}
        self._change(self._settle, caller, batch, outcome)

    # State

    def _change(self, change: Callable[..., None], *args: Any) -> None:
        """Change the state, from one thread at a time."""
        with self._lock:
            if self._changing:  # the last change was interrupted
                self._rebuild()
            self._changing = True
            change(*args)
            self._changing = False

    def _forget(self, caller: Caller) -> None:
        """Forget a caller, also if an interrupt comes meanwhile."""
        try:
            self._change(self._leave, caller)
        except BaseException:
            self._change(self._leave, caller)  # others may wait for its texts
            raise

    # The methods below are called by `_change` alone.

    def _rebuild(self) -> None:
        """Make the state anew from the callers still waiting and the batches still running."""
        self._in_flight = [entry for entry in self._in_flight if not (entry[0].own_thread and entry[0].left)]
        self._texts = {text.key: text for _, batch in self._in_flight for text in batch}
        for text in self._texts.values():
            text.callers.clear()
        for caller in list(self._callers):
            if caller.left:
                del self._callers[caller]
                continue
            caller.pending.clear()
            self._request(caller)
            caller.notify(None)
        self._start_batches()

    def _join(self, caller: Caller) -> None:
        self._callers[caller] = None
        self._request(caller)
        self._start_batches()

    def _request(self, caller: Caller) -> None:
        """Wait for the texts of a caller that have no outcome yet."""
        for key, text, cost in caller.texts:
            value = caller.outcome.get(key, caller.known(key))  # it may have been settled since the caller looked
            if value is not None:
                caller.outcome[key] = value
                continue
            pending = self._texts.get(key)
            if pending is None:
                pending = self._texts[key] = PendingText(key, text, cost)
            pending.callers.append(caller)
            if not pending.asked:
                caller.pending.append(pending)

    def _start_batches(self) -> None:
        """Start batches in the free slots."""
        while len(self._in_flight) < self.slots:
            for caller in self._callers:
                if batch := self._next_batch(caller):
                    break
            else:
                return
            try:
                if caller.own_thread:
                    caller.notify(batch)
                else:
                    if self._n_threads < self.slots:
                        start_new_thread(_work, (self._jobs,))
                        self._n_threads += 1
                    self._jobs.put(partial(self._run, caller, batch))
            except RuntimeError as error:  # no more threads, or the interpreter is about to end
                self._deliver(batch, {text.key: error for text in batch})
            else:
                self._in_flight.append((caller, batch))

    def _next_batch(self, caller: Caller) -> Batch:
        """The next batch of a caller, its cheapest texts, and all texts of other callers where these fit in whole."""
        batch: list[PendingText] = []
        if sum(runner is caller for runner, _ in self._in_flight) >= (1 if caller.own_thread else caller.width):
            return batch
        while caller.pending and len(batch) < self.batch_size:
            if batch and (len(batch) + 1) * caller.pending[0].cost > caller.budget:
                break
            _move(caller.pending, batch)
        longest = batch[-1].cost if batch else 0
        for other in self._callers if batch else ():
            if len(batch) == self.batch_size:
                break
            if other.pending:
                n_texts, widest = len(batch) + len(other.pending), max(longest, other.pending[-1].cost)
                if n_texts <= self.batch_size and n_texts * widest <= caller.budget:
                    longest = widest
                    while other.pending:
                        _move(other.pending, batch)
        return batch

    def _settle(self, caller: Caller, batch: Batch, outcome: Outcome) -> None:
        """Hand over the outcome of a batch, and its slot to the caller whose turn it is."""
        self._in_flight = [entry for entry in self._in_flight if entry[1] is not batch]
        if caller in self._callers:
            self._callers.move_to_end(caller)
        self._deliver(batch, outcome)
        self._start_batches()

    def _deliver(self, batch: Batch, outcome: Outcome) -> None:
        """Hand the outcome of each text to the callers that wait for it."""
        for text in batch:
            value = outcome[text.key]
            if self._texts.get(text.key) is text:
                del self._texts[text.key]
            for waiting in text.callers:
                if isinstance(value, BaseException):
                    waiting.failure = value
                else:
                    waiting.outcome[text.key] = value
                if waiting.done and waiting in self._callers:
                    waiting.notify(None)
                    del self._callers[waiting]
            text.callers.clear()

    def _leave(self, caller: Caller) -> None:
        """Remove a caller, and those of its texts that no other caller waits for."""
        self._callers.pop(caller, None)
        waits_for = caller.texts if len(caller.outcome) < len(caller.texts) else ()
        for key, _, _ in waits_for:
            text = self._texts.get(key)
            if text is not None and caller in text.callers:
                text.callers.remove(caller)
                if not (text.callers or text.asked):
                    del self._texts[key]
        if caller.own_thread and any(runner is caller for runner, _ in self._in_flight):  # its batch was broken off
            self._rebuild()


def _move(pending: deque[PendingText], batch: list[PendingText]) -> None:
    """Move a caller's cheapest text into a batch, unless a batch has it already."""
    text = pending.popleft()
    if not text.asked:
        text.asked = True
        batch.append(text)


def _work(jobs: Jobs) -> None:
    """Run batches in a thread of the pool, until the coalescer is gone."""
    for job in iter(jobs.get, None):
        job()
        del job  # it holds the coalescer
    jobs.put(None)  # for the other threads


_shared: "weakref.WeakValueDictionary[Hashable, Coalescer]" = weakref.WeakValueDictionary()
_sharing = threading.Lock()

# A forked process has none of the threads that held locks and slots.
_alive: "weakref.WeakSet[Coalescer]" = weakref.WeakSet()


def _begin_anew() -> None:
    global _sharing
    _sharing = threading.Lock()
    for coalescer in list(_alive):
        coalescer._reset()


@atexit.register
def _finish() -> None:
    """Wait for the batches of the pools: they are paid for, and ending a thread inside a library in C may crash."""
    while any(not runner.own_thread for coalescer in list(_alive) for runner, _ in coalescer._in_flight):
        time.sleep(0.01)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
