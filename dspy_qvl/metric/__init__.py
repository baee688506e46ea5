"""The metric for DSPy's optimizers."""

from dspy_qvl.metric.metric import ValueMetric
