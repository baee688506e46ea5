"""How sure a fit is of a text.

    text ─► its columns ─► posterior of the fit ─► standard deviation, interval

All of it follows from the rated texts that the fit was learned from; results are kept in `Fit.memo`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dspy_qvl.certainty import Intervals, intervals_of
from dspy_qvl.fitting import left_out
from dspy_qvl.learner.columns import Columns
from dspy_qvl.learner.fit import Fit
from dspy_qvl.learner.neighbors import Neighbors
from dspy_qvl.learner.supporting import SupportingTexts
from dspy_qvl.ridge import Posterior, posterior_of
from dspy_qvl.text import Item
from dspy_qvl.vectors import Array, MixedRows, slices

AT_ONCE = 4096  # texts whose columns are in memory


@dataclass(frozen=True)
class LeftOut:
    """Every rated text, valued by a fit that never saw it, in the order of the texts.

    Attributes:
        values: (n_texts,), on the scale of the scores.
        residuals: score - value, (n_texts,).
        std: standard deviation of the residual, (n_texts,).
        leverages: share of its own fitted value that each text decides, (n_texts,), in (0, 1]; where `exact` is False
            no less than that share.
        exact: True if each text is valued by the fit of all the others; False if by that of the four fifths of the
            texts without it, as where hashed words are among the columns of more than 4,000 texts.
    """

    values: Array
    residuals: Array
    std: Array
    leverages: Array
    exact: bool = True


class Inspection:
    """A fit, examined through the rated texts it was learned from.

    Args:
        fit: the fit, its rated texts kept.
        columns: items -> the columns that the fit values them by.
    """

    def __init__(self, fit: Fit, columns: Columns) -> None:
        self.fit = fit
        self._columns = columns
        self._keep = columns.owner is None  # a subclass may give other columns each time

    @property
    def neighbors(self) -> Neighbors:
        """The rated texts that a text is like."""
        return Neighbors(self.fit, self._columns)

    @property
    def supporting(self) -> SupportingTexts:
        """The rated texts as support of a value."""
        return SupportingTexts(self.fit, self._columns)

    @property
    def posterior(self) -> Posterior:
        """The posterior of the coefficients and of the noise; the first call works it out."""
        fit = self.fit

        def make() -> Posterior:
            made = posterior_of(self._weighed(fit.items), fit.scores, fit.alpha, fit.fitted.weighed_line())
            for array in made.loo or ():  # `LeftOut` hands them out
                array.setflags(write=False)
            return made

        return fit.memo.once("posterior", make)

    def fit_variance(self, item: Item) -> float:
        """How unlike the rated texts a text is, as `Posterior.fit_variance`."""
        memo = self.fit.memo.variances
        kept = memo.get(item) if self._keep else None
        if kept is None:
            row = self._weighed([item])
            kept = self.posterior.fit_variance(row if isinstance(row, MixedRows) else row[0])
            if self._keep:
                memo.keep(item, kept)
        return kept

    def std(self, item: Item) -> float:
        """Standard deviation of a rater's score of a text, on the scale of the scores."""
        known = self.fit.memo.bounds.get(item) if self._keep else None
        if known is not None:
            lowest, highest = map(self.posterior.std, known)
            if lowest == highest:
                return lowest
        return self.posterior.std(self.fit_variance(item))

    def foresee(self, items: Sequence[Item], confidence: float | None = None) -> None:
        """Compute and keep the values of texts and bounds of their variances, all by matrix products; and intervals.

        Later calls for one of these texts give the same bits as without, but sooner.

        Args:
            items: the texts.
            confidence: of their intervals; None for none.
        """
        memo = self.fit.memo
        new = [
            item
            for item in dict.fromkeys(items)
            if not (item in memo.values and item in memo.bounds)
            or (confidence is not None and _interval_key(item, confidence) not in memo.intervals)
        ]
        for rows in slices(len(new) if self._keep else 0, AT_ONCE):
            X = self._columns(new[rows]).X
            values = self.fit.predict(X)
            for item, value in zip(new[rows], values.tolist(), strict=True):
                memo.values.keep(item, value)
            if not self.fit.n_texts:
                continue
            X = self.fit.fitted.weighed(X)
            for item, *bounds in zip(new[rows], *self.posterior.bounds(X), strict=True):
                memo.bounds.keep(item, (float(bounds[0]), float(bounds[1])))
            if confidence is not None:
                self._keep_intervals(new[rows], confidence, values[:, None] + self._intervals.offsets(X, confidence))

    def stds(self, items: Sequence[Item]) -> Array:
        """The `std` of each of many texts, bit for bit the same, (n_texts,), by matrix products."""
        std = np.empty(len(items))
        for rows in slices(len(items), AT_ONCE):
            std[rows] = self.posterior.stds(self._weighed(items[rows]))
        return std

    # Intervals

    def interval(self, item: Item, confidence: float) -> tuple[float, float]:
        """The ends of the interval of one text, as `intervals`."""
        known = self.fit.memo.intervals.get(_interval_key(item, confidence)) if self._keep else None
        if known is not None:
            return known
        lower, upper = self.intervals([item], confidence)[0].tolist()
        return lower, upper

    def intervals(self, items: Sequence[Item], confidence: float) -> Array:
        """The lower and the upper end of the interval of each text, (m, 2), the same bits in any batch."""
        ends = np.empty((len(items), 2))
        for rows in slices(len(items), AT_ONCE):
            X = self._columns(items[rows]).X
            offsets = self._intervals.offsets(self.fit.fitted.weighed(X), confidence)
            ends[rows] = self.fit.predict(X)[:, None] + offsets
            self._keep_intervals(items[rows], confidence, ends[rows])
        return ends

    @property
    def _intervals(self) -> Intervals:
        fit = self.fit

        def make() -> Intervals:
            X = self._weighed(fit.items)
            return intervals_of(X, fit.scores, fit.alpha, groups=fit.members.tolist(), posterior=self.posterior)

        return fit.memo.once("intervals", make)

    def _keep_intervals(self, items: Sequence[Item], confidence: float, ends: Array) -> None:
        for item, (lower, upper) in zip(items if self._keep else (), ends.tolist(), strict=False):
            self.fit.memo.intervals.keep(_interval_key(item, confidence), (lower, upper))

    def leave_one_out(self) -> LeftOut:
        """Every rated text, valued by a fit that never saw it."""
        fit, posterior = self.fit, self.posterior
        residuals, leverages = posterior.loo or fit.memo.once("left out", self._out_of_fold)
        left = 1 - leverages
        std = posterior.noise / np.sqrt(np.where(left > 0, left, np.nan))
        return LeftOut(fit.scores - residuals, residuals, std, leverages, posterior.loo is not None)

    def _out_of_fold(self) -> tuple[Array, Array]:
        """The residuals of rated texts under fits that never saw them, and the most that their leverages may be."""
        X = self._weighed(self.fit.items)
        found = left_out(X, self.fit.scores, self.fit.alpha, self.fit.texts), self.posterior.leverages(X)
        for array in found:
            array.setflags(write=False)
        return found

    def _weighed(self, items: Sequence[Item]) -> Any:
        return self.fit.fitted.weighed(self._columns(items).X)


def _interval_key(item: Item, confidence: float) -> tuple[str, ...]:
    """The name of an interval in the memo."""
    return (repr(confidence), item) if isinstance(item, str) else (repr(confidence), *item)
