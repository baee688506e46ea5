"""A lock and a memo that survive deepcopy and pickle.

DSPy's optimizers copy programs by the hundred, and pickle them. A memo is shared by all copies, so that nothing is
computed twice; a lock belongs to one object, and each copy gets a new one.
"""

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

KEPT_TEXTS = 50_000  # texts whose results are kept
KEPT_BYTES = 128 * 2**20  # memory of the texts and their results
ENTRY_BYTES = 500  # memory of one result and its place in a dict


class Lock:
    """A re-entrant lock; copies and pickles get a new one, and a forked process never finds it locked.

    Take it by `with lock.held:`. Python lets no interrupt fall between taking its own lock and entering the block that
    releases it; between two lines of a method of ours one could.
    """

    def __init__(self) -> None:
        self.held = threading.RLock()
        _alive.add(weakref.ref(self, _alive.discard))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Lock":
        return Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Lock, ()


_alive: "set[weakref.ref[Lock]]" = set()  # a WeakSet forgets by a function in Python, which would swallow a Ctrl-C


def _free_after_fork() -> None:
    """Replace the locks held by threads of the parent process, which a fork does not copy."""
    for lock in [reference() for reference in list(_alive)]:
        if lock is not None and lock.held.acquire(blocking=False):
            lock.held.release()
        elif lock is not None:
            lock.held = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free_after_fork)


class KeptTexts(OrderedDict[Hashable, T]):
    """A dict of results by text, of at most 50,000 texts and 128 MiB; the oldest leave first.

    Read it as a dict; write with `keep` only. A plain dict passes over all that have left to find its first entry.
    """

    def __init__(self) -> None:
        super().__init__()
        self._n_bytes = self._n_left = 0
        self._lock = threading.Lock()

    def keep(self, item: Hashable, known: T) -> T:
        """Keep the result of a text, or of a text for a query, and return it."""
        with self._lock:
            if item not in self:
                self._n_bytes += _size(item)
                while self and (len(self) >= KEPT_TEXTS or self._n_bytes > KEPT_BYTES):
                    first, _ = self.popitem(last=False)
                    self._n_bytes -= _size(first)
                    self._n_left += 1
            self[item] = known
        return known

    def after(self, n: int) -> tuple[list[Any], int]:
        """The texts that are kept, without the first n that ever came; and the number of those that ever came."""
        with self._lock:
            return list(self)[max(0, n - self._n_left) :], self._n_left + len(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return KeptTexts, ()


def _size(item: Hashable) -> int:
    """The most bytes that a text and its result take."""
    parts: Iterable[Any] = item if isinstance(item, tuple) else (item,)
    return ENTRY_BYTES + sum(len(part) * (1 if part.isascii() else 4) for part in parts)


class Memo:
    """Results that follow from an immutable object, computed once; shared by copies, left out of pickles.

    Attributes:
        values: the values of texts, so that each text costs one inner product only once.
        variances: `Posterior.fit_variance` of texts, how unlike the rated texts they are.
        bounds: a lower and an upper bound of that, of texts that were examined together.
        intervals: the ends of intervals, by confidence and text.
        supports: the support of texts.
        accepted: by vectorizer, the same fit with that vectorizer, once it is known to belong to it.
    """

    def __init__(self) -> None:
        self.values: KeptTexts[float] = KeptTexts()
        self.variances: KeptTexts[float] = KeptTexts()
        self.bounds: KeptTexts[tuple[float, float]] = KeptTexts()
        self.intervals: KeptTexts[tuple[float, float]] = KeptTexts()
        self.supports: KeptTexts[float] = KeptTexts()
        self.accepted: dict[Hashable, Any] = {}
        self._lock = Lock()
        self._known: dict[str, Any] = {}

    def once(self, name: str, make: Callable[[], T]) -> T:
        """The result of `make`, called at the first call with that name only; other threads wait for it."""
        if name not in self._known:
            with self._lock.held:
                if name not in self._known:
                    self._known[name] = make()
        known: T = self._known[name]
        return known

    def __deepcopy__(self, memo: dict[int, Any]) -> "Memo":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Memo, ()
