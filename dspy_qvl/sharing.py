"""What copies of a program share, and what each has for itself.

DSPy's optimizers copy programs by the hundred, and pickle them. What was worked out once is shared by all copies; a
lock belongs to one object, and a copy has a fresh one.
"""

import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")

KEPT_TEXTS = 50_000  # texts whose numbers are kept


class Lock:
    """A re-entrant lock that a copy, or a pickle, has a fresh one of."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Lock":
        return Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Lock, ()


class Memo:
    """What follows from something that never changes, worked out once; shared by copies, left out of a pickle.

    Attributes:
        values: of texts that were valued one by one, so that a text is an inner product only once.
        variances: the same for how unlike the rated texts a text is.
        bounds: between which numbers that lies, of texts that were looked at together.
    """

    def __init__(self) -> None:
        self.values: dict[Hashable, float] = {}
        self.variances: dict[Hashable, float] = {}
        self.bounds: dict[Hashable, tuple[float, float]] = {}
        self._lock = threading.RLock()
        self._known: dict[str, Any] = {}

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What `make` gives, made at the first call of that name; other threads wait for it."""
        if name not in self._known:
            with self._lock:
                if name not in self._known:
                    self._known[name] = make()
        known: T = self._known[name]
        return known

    def keep(self, kept: dict[Hashable, T], text: Hashable, number: T) -> T:
        """Keep a number of a text in one of the above."""
        if len(kept) >= KEPT_TEXTS:
            kept.clear()
        kept[text] = number
        return number

    def __deepcopy__(self, memo: dict[int, Any]) -> "Memo":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Memo, ()
