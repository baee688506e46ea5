"""The DSPy optimizer that fits value functions and rerankers."""

from dspy_qvl.optimizer.optimizer import FitValue
