"""What copies of a program share, and what each has for itself.

DSPy's optimizers copy programs by the hundred, and pickle them. What was worked out once is shared by all copies; a
lock belongs to one object, and a copy has a fresh one.
"""

import os
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

KEPT_TEXTS = 50_000  # texts of which something is kept
KEPT_BYTES = 128 * 2**20  # of memory that they may take
ENTRY_BYTES = 500  # of what is kept of a text, and of its place in a dict


class Lock:
    """A re-entrant lock that a copy or a pickle has a fresh one of, and a forked process does not find locked.

    It is taken by `with lock.held:`, since no interrupt falls between a lock of Python's own being taken and the block
    that will give it back; in methods of ours it could.
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
    """Make locks anew that threads hold which only the parent has."""
    for lock in [reference() for reference in list(_alive)]:
        if lock is not None and lock.held.acquire(blocking=False):
            lock.held.release()
        elif lock is not None:
            lock.held = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free_after_fork)


class KeptTexts(dict[Hashable, T]):
    """What is known of texts: of 50,000 of them at most, and of 128 MiB; the first that came leave first.

    Read it as a dict, and put into it with `keep` alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self._n_bytes = 0
        self._lock = threading.Lock()

    def keep(self, item: Hashable, known: T) -> T:
        """Keep what is known of a text, or of a text for a query."""
        with self._lock:
            if item not in self:
                self._n_bytes += _size(item)
                while self and (len(self) >= KEPT_TEXTS or self._n_bytes > KEPT_BYTES):
                    first = next(iter(self))
                    del self[first]
                    self._n_bytes -= _size(first)
            self[item] = known
        return known

    def __reduce__(self) -> tuple[Any, ...]:
        return KeptTexts, ()


def _size(item: Hashable) -> int:
    """Bytes that a text and what is known of it take at most."""
    parts: Iterable[Any] = item if isinstance(item, tuple) else (item,)
    return ENTRY_BYTES + sum(len(part) * (1 if part.isascii() else 4) for part in parts)


class Memo:
    """What follows from something that never changes, worked out once; shared by copies, left out of a pickle.

    Attributes:
        values: of texts that were valued one by one, so that a text is an inner product only once.
        variances: the same for how unlike the rated texts a text is.
        bounds: between which numbers that lies, of texts that were looked at together.
        accepted: the same fit, as one that is known to belong to what makes the columns of texts; by that.
    """

    def __init__(self) -> None:
        self.values: KeptTexts[float] = KeptTexts()
        self.variances: KeptTexts[float] = KeptTexts()
        self.bounds: KeptTexts[tuple[float, float]] = KeptTexts()
        self.accepted: dict[Hashable, Any] = {}
        self._lock = Lock()
        self._known: dict[str, Any] = {}

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What `make` gives, made at the first call of that name; other threads wait for it."""
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
