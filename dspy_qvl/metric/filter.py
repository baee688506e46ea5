"""A filter on scores, for `dspy.BootstrapFewShot` and the like."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dspy_qvl.errors import InputError, check_number


@dataclass(frozen=True)
class ValueFilter:
    """Says if a prediction is good enough.

    Attributes:
        score: scores a prediction for an example: `ValueMetric.score`.
        threshold: the score from which on a prediction passes.
    """

    score: Callable[[Any, Any], float]
    threshold: float
    __name__ = "value_filter"

    def __call__(
        self, example: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
    ) -> bool:
        """True if the score of the prediction reaches the threshold."""
        return self.score(example, pred) >= self.threshold


def checked_threshold(threshold: object) -> float:
    """A score from which on a prediction passes.

    Raises:
        InputError: no number between 0 and 1.
    """
    value = check_number(threshold, "threshold")
    if not 0 < value < 1:
        raise InputError(f"threshold must lie between 0 and 1, where scores lie, but got {value:g}.")
    return value
