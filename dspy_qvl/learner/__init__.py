"""The value function as a DSPy module."""

from dspy_qvl.learner.fit import Fit
from dspy_qvl.learner.head import RidgeHead
from dspy_qvl.learner.inspection import Inspection
from dspy_qvl.learner.learned import Examples
from dspy_qvl.learner.learner import Qwen3EmbeddingValueLearner
from dspy_qvl.learner.memo import KeptTexts
