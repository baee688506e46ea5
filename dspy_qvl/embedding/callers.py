"""Who waits for texts to be embedded, and for which; `coalescing.py` puts them together."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Key = bytes
Outcome = Mapping[Key, Any]
Run = Callable[[Sequence["Wanted"]], Outcome]


class Bell:
    """What a thread sleeps by until somebody rings; a ring that comes before is not lost.

    Unlike a `threading.Event`, which is made in Python, it is still whole after an interrupt.
    """

    def __init__(self) -> None:
        self._silent = threading.Lock()
        self._silent.acquire()

    def ring(self) -> None:
        """Wake who waits, or who will."""
        with contextlib.suppress(RuntimeError):  # it rings already
            self._silent.release()

    def wait(self) -> None:
        """Sleep until it rings."""
        self._silent.acquire()


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
        texts: key, text and cost of what it wants, the cheapest first.
        known: what is known of a key by now, or None.
        wake: called when there is something for it to do, or nothing more to wait for.
        run: what makes its batches.
        width: how many batches it can have in flight at once.
        in_person: whether it asks itself, instead of a thread of ours.
        pending: texts that are not in flight yet, the cheapest first.
        awaited: how many texts are not settled.
        outcome: what the settled ones became.
        failure: what ended a batch of its texts.
        left: whether it waits no more.
    """

    def __init__(
        self,
        texts: Iterable[tuple[Key, str, int]],
        known: Callable[[Key], Any],
        wake: Callable[[], None],
        run: Run,
        width: int,
    ) -> None:
        self.texts = sorted(texts, key=by_cost)
        self.known = known
        self.wake = wake
        self.run = run
        self.width = width
        self.in_person = False
        self.outcome: dict[Key, Any] = {}
        self.failure: Exception | None = None
        self.left = False
        self.stand_back()

    def stand_back(self) -> None:
        """Be in no queue, with no slot."""
        self.pending: deque[Wanted] = deque()
        self.wanted: list[Wanted] = []
        self.awaited = 0
        self.granted = 0  # slots it was given and has not used yet
        self.queued = False

    @property
    def done(self) -> bool:
        """Tell whether there is nothing left to wait for."""
        return self.awaited == 0 or self.failure is not None


def by_caller(batch: Sequence[Wanted]) -> list[list[Wanted]]:
    """The parts of a batch that different callers asked for."""
    parts: dict[Caller | None, list[Wanted]] = {}
    for wanted in batch:
        parts.setdefault(wanted.callers[0] if wanted.callers else None, []).append(wanted)
    return list(parts.values())


def by_cost(text: tuple[Key, str, int]) -> int:
    """The cost of a text."""
    return text[2]
