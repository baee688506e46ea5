"""From the raters' own scale to (0, 1), where DSPy wants its scores, and back.

    0 ┈┈┈╭── .05 ─────────────── .95 ──╮┈┈┈ 1
             low       straight       high

DSPy counts a failure as 0 and GEPA takes 1 for perfection, so values lie strictly between. The map is strictly
increasing and nothing is clipped: beyond the ends the distance z from the end shrinks as the logarithm of z, with the
same slope at the end, so that values tie nowhere that float64 can tell them apart to ten digits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dspy_qvl.errors import InputError, check_score, shown

TAIL = 0.05


@dataclass(frozen=True)
class Scale:
    """A strictly increasing map from values to (0, 1).

    Attributes:
        low: the value that becomes .05.
        high: the value that becomes .95; above `low`.
    """

    low: float
    high: float

    def __call__(self, value: float) -> float:
        """The score of a value."""
        slope = (1 - 2 * TAIL) / (self.high - self.low)
        if value < self.low:
            return TAIL / (1 + math.log1p((self.low - value) * slope / TAIL))
        if value > self.high:
            return 1 - TAIL / (1 + math.log1p((value - self.high) * slope / TAIL))
        return TAIL + (value - self.low) * slope

    def value(self, score: float) -> float:
        """The value of a score in (0, 1); infinite where float64 holds none."""
        slope = (1 - 2 * TAIL) / (self.high - self.low)
        try:
            if score < TAIL:
                return self.low - TAIL / slope * math.expm1(TAIL / score - 1)
            if score > 1 - TAIL:
                return self.high + TAIL / slope * math.expm1(TAIL / (1 - score) - 1)
        except (OverflowError, ZeroDivisionError):
            return -math.inf if score < 0.5 else math.inf
        return self.low + (score - TAIL) / slope


def scale_of(quantiles: Sequence[float]) -> Scale:
    """The scale of rated texts: from the 5th percentile of their scores to the 95th, or wherever the scores differ.

    Args:
        quantiles: the lowest score, each twentieth, the highest, (21,).
    """
    low, high = float(quantiles[1]), float(quantiles[-2])
    return Scale(low, high) if high > low else Scale(float(quantiles[0]), float(quantiles[-1]))


def check_scale(scale: object) -> Scale:
    """A scale a caller gave as (low, high).

    Raises:
        InputError: not two finite numbers, the first below the second.
    """
    if not isinstance(scale, tuple | list) or len(scale) != 2:
        raise InputError(
            f"scale must be (low, high) on the raters' scale, for instance (1, 10), but got {shown(scale)}."
        )
    low, high = check_score(scale[0], "scale[0]"), check_score(scale[1], "scale[1]")
    if not low < high:
        raise InputError(f"scale must be (low, high) with low below high, but got ({low:g}, {high:g}).")
    return Scale(low, high)
