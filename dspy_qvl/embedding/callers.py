"""Callers that wait for texts to be embedded, and the texts they wait for; `batching.py` makes batches of these."""

import contextvars
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

Key = bytes
Outcome = Mapping[Key, Any]


@dataclass(eq=False)
class PendingText:
    """A text that is waited for, from its first request until its batch is answered.

    Attributes:
        key: the text's key in the cache.
        text: the text as sent to the model.
        cost: its size in a batch, in tokens; in characters where tokens are not counted.
        callers: the callers that wait for it.
        asked: True once it is part of a batch.
    """

    key: Key
    text: str
    cost: int
    callers: list["Caller"] = field(default_factory=list)
    asked: bool = False


Batch = Sequence[PendingText]


@dataclass(eq=False)
class Caller:
    """One call that waits for texts.

    Attributes:
        texts: key, text and cost of each text, no key twice; sorted by cost here.
        known: key -> the outcome of its text, if that is known by now, else None.
        run: asks the model for a batch -> the outcome of each of its keys. An exception is raised in the callers that
            wait for that text, anything else is handed to them.
        width: most batches of this caller in flight at once.
        budget: most tokens of a batch as the model sees it, padded: its texts times the longest of them.
        context: the context variables that its batches see.
        own_thread: True if its batches run in the thread that waits for them, False if they run in a pool.
        notify: hands over a batch that the waiting thread must run, or None to make it look at `done` again.
        pending: texts that were in no batch when last looked at, the cheapest first.
        outcome: key -> the outcome of its text, of those that have one.
        failure: the exception of one of its texts.
        left: True once it waits no more.
    """

    texts: Sequence[tuple[Key, str, int]]
    known: Callable[[Key], Any]
    run: Callable[[Batch], Outcome]
    width: int = 1
    budget: float = math.inf
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    own_thread: bool = field(default=False, init=False)
    notify: Callable[[Batch | None], object] = field(init=False)
    pending: deque[PendingText] = field(default_factory=deque, init=False)
    outcome: dict[Key, Any] = field(default_factory=dict, init=False)
    failure: BaseException | None = field(default=None, init=False)
    left: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.texts = sorted(self.texts, key=itemgetter(2))

    @property
    def done(self) -> bool:
        """True if there is nothing left to wait for."""
        return self.failure is not None or len(self.outcome) == len(self.texts)

    def result(self) -> Outcome:
        """The outcome of every text.

        Raises:
            The failure of one of them.
        """
        if self.failure is not None:
            raise self.failure
        return self.outcome


def by_caller(batch: Batch) -> list[Batch]:
    """The parts of a batch that different callers asked for."""
    parts: dict[Caller | None, list[PendingText]] = {}
    for text in batch:
        parts.setdefault(next(iter(text.callers), None), []).append(text)  # a caller may leave meanwhile
    return list(parts.values())
