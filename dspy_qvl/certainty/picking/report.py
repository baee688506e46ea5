"""The worth of picking by value, as figures and in words."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dspy_qvl.certainty.verdict import Estimate
from dspy_qvl.vectors import Array

LITTLE = 0.05  # of the gain: a doubling of n that adds no more buys little


@dataclass(frozen=True, eq=False)
class BestOf:
    """The worth of taking the text with the highest value of n.

    Attributes:
        n: the number of texts to choose from.
        gain: expected rating of the text that is taken, less the mean rating, in the units of the ratings.
        judge: the same if the text with the highest rating is taken.
        share: gain / judge, at most 1.
        ceiling: the share that one who knows what the raters agree on would gain; None if their noise is not known.
    """

    n: int
    gain: Estimate
    judge: Estimate
    share: Estimate
    ceiling: float | None

    @property
    def out_of_reach(self) -> float | None:
        """The part of the gap 1 - share that nobody could close, in [0, 1]; None if the raters' noise is not known."""
        if self.ceiling is None:
            return None
        gap = 1 - self.share.value
        return min(1.0, (1 - self.ceiling) / gap) if gap > 0 else 1.0


@dataclass(frozen=True, eq=False)
class Selection:
    """The worth of picking by value, by the number of texts to choose from.

    Attributes:
        n_texts: rated texts that the figures are of.
        best_of: by n, ascending.
        enough: the least power of 2 from which on twice as many texts raise the gain by at most 5 % each time; None if
            they still raised it by more at the largest n that the rated texts can tell of.
        largest: the largest n that the rated texts can tell of: a third of their number, or of drafts of one question
            the number that half of the questions have.
    """

    n_texts: int
    best_of: tuple[BestOf, ...]
    enough: int | None
    largest: int

    @property
    def sentence(self) -> str:
        """The figures in words."""
        told = ", ".join(
            f"{one.share.value:.2f} ({one.share.lower:.2f} to {one.share.upper:.2f}) with {one.n} to choose from"
            for one in self.best_of
        )
        text = (
            "Taking the text with the highest value gains, of what a judge who knows the ratings would gain over the "
            f"mean: {told} (95 % intervals)."
        )
        if self.enough is None:
            text += f" Up to {self.largest}, the most that {self.n_texts} ratings can tell of, more drafts pay."
        else:
            text += f" From {self.enough} drafts on, twice as many gain at most {100 * LITTLE:.0f} % more."
        last = self.best_of[-1]
        if last.out_of_reach is not None:
            text += (
                f" Of what is missing with {last.n}, the raters' own noise is {100 * last.out_of_reach:.0f} %: nobody "
                "could gain that."
            )
        return text


def enough(sizes: Sequence[int], gains: Array) -> int | None:
    """The first size from which on no further one raises the gain by more than 5 %; None if the last one does."""
    few = gains[1:] - gains[:-1] <= LITTLE * np.abs(gains[:-1])
    first = len(few) - int(np.argmin(few[::-1])) if not few.all() else 0
    return sizes[first] if first < len(few) else None


def best_of(
    sizes: Sequence[int], gain: Sequence[Estimate], judge: Sequence[Estimate], highest: Array | None
) -> tuple[BestOf, ...]:
    """The figures of each size, and where they are known, with the expected highest of what raters agree on."""
    found = []
    for column, size in enumerate(sizes):
        with np.errstate(divide="ignore", invalid="ignore"):
            draws = gain[column].draws / judge[column].draws
        share = Estimate(gain[column].value / judge[column].value, draws)
        ceiling = None if highest is None else float(min(1.0, highest[column] / judge[column].value))
        found.append(BestOf(size, gain[column], judge[column], share, ceiling))
    return tuple(found)
