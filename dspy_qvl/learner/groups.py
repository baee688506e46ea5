"""Groups of rated texts: those that depend on each other, and are held out or left out together."""

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.fitting import Members, copies, folded, members_of
from dspy_qvl.measures import numbered
from dspy_qvl.text import RankingExample


@dataclass(frozen=True, eq=False)
class Groups:
    """The group of each rated text (its document, prompt or user), as training was given it.

    Attributes:
        by: the entry of metadata that holds it; None where groups were given as a list.
        numbers: that of each text's group, (n_texts,) int32, from 0 in order of appearance.
    """

    by: str | None
    numbers: NDArray[np.int32]

    @classmethod
    def of(cls, groups: Sequence[Hashable], by: str | None = None) -> "Groups":
        """The groups that are told by what is equal, one entry a text."""
        numbers = numbered(groups).astype(np.int32)
        numbers.setflags(write=False)
        return cls(by, numbers)

    def after(
        self, rated: Sequence[RankingExample], coming: Sequence[RankingExample], leaving: Collection[int]
    ) -> "Groups":
        """The groups after some texts came or went.

        A text that comes belongs to the group of a text with the same entry of metadata, else to that of a copy of it,
        else to one of its own.

        Args:
            rated: the texts before.
            coming: those that are put behind them.
            leaving: the positions of those that go.
        """
        known: dict[Any, int] = {}
        for example, number in zip(rated, self.numbers.tolist(), strict=True):
            known |= {folded(example.text): number, ("entry", _entry(example, self.by)): number}
        new = int(self.numbers.max(initial=-1)) + 1
        numbers = [number for row, number in enumerate(self.numbers.tolist()) if row not in leaving]
        for example in coming:
            entry = _entry(example, self.by)
            number = known.setdefault(folded(example.text) if entry is None else ("entry", entry), new)
            numbers.append(number)
            new = max(new, number + 1)
        return Groups.of(numbers, self.by)


def rated_members(rated: Sequence[RankingExample], vectors: Any, groups: Groups | None) -> Members:
    """The group of each rated text, copies of a text in one; of texts for queries it is the query that counts.

    Args:
        rated: the texts.
        vectors: their embedding, (n, dim); None to find copies by the texts alone.
        groups: those that were given, or None.
    """
    queries = [example.query or "" for example in rated]
    by_query = len(set(queries)) > 1  # an answer may be given to many queries
    copied = copies(queries) if by_query else copies([example.text for example in rated], vectors)
    return copied if groups is None else members_of(groups.numbers.tolist(), copied)


def _entry(example: RankingExample, by: str | None) -> Any:
    """The entry of metadata that tells the group of a rated text, or None."""
    entry = None if by is None else (example.metadata or {}).get(by)
    return repr(entry) if isinstance(entry, list | dict) else entry
