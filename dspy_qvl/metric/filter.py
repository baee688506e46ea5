"""A filter on values, for `dspy.BootstrapFewShot` and the like."""

from typing import Any


class ValueFilter:
    """Says whether a prediction is good enough, by a `ValueMetric` and a threshold.

    Args:
        metric: the metric.
        threshold: the score from which on a prediction passes.
    """

    def __init__(self, metric: Any, threshold: float) -> None:
        self.metric = metric
        self.threshold = threshold
        self.__name__ = "value_filter"

    def __call__(
        self, example: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
    ) -> bool:
        """Tell whether the score reaches the threshold."""
        return bool(self.metric.score(example, pred) >= self.threshold)
