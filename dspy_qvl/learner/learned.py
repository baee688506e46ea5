"""Everything that a value function has learned, as one immutable object.

A change makes another `Learned` and puts it in the place of the first in one step. So a reader on any thread has the
one from before the change or the one from after it, for as long as it likes.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from dspy_qvl.errors import NotFittedError
from dspy_qvl.fitting import Weights
from dspy_qvl.learner.fit import Fit
from dspy_qvl.learner.memo import Lock
from dspy_qvl.learner.vectorizer import Vectorizer
from dspy_qvl.text import RankingExample

_adding = Lock()


class Examples(Sequence[RankingExample]):
    """An immutable sequence of rated texts, in the order they were added.

    The result of `plus` shares the storage of its source, so a hundred thousand may be added one by one, and copies
    of a program cost nothing.
    """

    def __init__(self, examples: Iterable[RankingExample] = ()) -> None:
        self._stored = list(examples)
        self._n = len(self._stored)

    def plus(self, added: Sequence[RankingExample]) -> "Examples":
        """A sequence of these and some more."""
        longer = Examples()
        with _adding.held:
            # Behind these, the storage may hold additions of a copy, or interrupted ones, which must not come along.
            longer._stored = self._stored if len(self._stored) == self._n else self._stored[: self._n]
            longer._stored.extend(added)
        longer._n = self._n + len(added)
        return longer

    def without(self, rows: Collection[int]) -> "Examples":
        """A sequence of these without those at some positions."""
        return Examples(example for row, example in enumerate(self) if row not in rows)

    def __len__(self) -> int:
        return self._n

    def __iter__(self) -> Iterator[RankingExample]:
        return iter(self._stored[: self._n])

    @overload
    def __getitem__(self, row: int) -> RankingExample: ...
    @overload
    def __getitem__(self, row: slice) -> list[RankingExample]: ...
    def __getitem__(self, row: int | slice) -> RankingExample | list[RankingExample]:
        return self._stored[: self._n][row] if isinstance(row, slice) else self._stored[range(self._n)[row]]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Examples":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Examples, (self[:],)


@dataclass(frozen=True, eq=False)
class Learned:
    """Everything that a value function has learned; immutable, and shared by copies of a program.

    Attributes:
        examples: the rated texts, in the order they were added: first those of the fit, then those for the next one.
        alpha: penalty of the next fit.
        alpha_tuned: whether cross-validation chose it.
        weights: of the blocks of the next fit, if cross-validation chose them with alpha; else None.
        template: the field name or format string by which `FitValue` rendered the rated texts; None for neither.
        query_template: the same for their queries.
        fitted: the current fit, or None.
        vectorizer: makes the columns of texts, if it was loaded; None for the one that the learner was made with.
    """

    examples: Examples = field(default_factory=Examples)
    alpha: float = 1.0
    alpha_tuned: bool = False
    weights: Weights | None = None
    template: str | None = None
    query_template: str | None = None
    fitted: Fit | None = None
    vectorizer: Vectorizer | None = None

    def fit_or_refuse(self) -> Fit:
        """The current fit.

        Raises:
            NotFittedError: nothing was fitted.
        """
        if self.fitted is None:
            raise NotFittedError(
                "nothing was learned yet; add rated texts and call train(), or load a saved value function."
            )
        return self.fitted
