"""A value function learned from rated texts, living inside DSPy.

Reading order: text, ridge, embedding (over models and cache), features, fitting, certainty, learner, reranker, metric,
comparison, optimizer.
"""

from dspy_qvl.comparison import compare
from dspy_qvl.embedding import Precomputed
from dspy_qvl.errors import (
    EmbeddingError,
    FeatureError,
    InputError,
    MissingTextError,
    ModelUnavailableError,
    NotFittedError,
    QVLError,
    QVLWarning,
    StateError,
    TextsRefusedError,
)
from dspy_qvl.learner import Qwen3EmbeddingValueLearner, RidgeHead
from dspy_qvl.metric import ValueMetric
from dspy_qvl.optimizer import FitValue
from dspy_qvl.reranker import RankedPassage, Reranker
from dspy_qvl.text import RankingExample

__all__ = [
    "EmbeddingError",
    "FeatureError",
    "FitValue",
    "InputError",
    "MissingTextError",
    "ModelUnavailableError",
    "NotFittedError",
    "Precomputed",
    "QVLError",
    "QVLWarning",
    "Qwen3EmbeddingValueLearner",
    "RankedPassage",
    "RankingExample",
    "Reranker",
    "RidgeHead",
    "StateError",
    "TextsRefusedError",
    "ValueMetric",
    "compare",
]

__version__ = "0.2.0.dev0"
