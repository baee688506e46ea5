"""A value function learned from rated texts, living inside DSPy.

Reading order: text, embedding (over backends and cache), features, ridge, head, learner, judge, metric, optimizer.
"""

from dspy_qvl.embedding.models.precomputed import Precomputed
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
from dspy_qvl.learner.head import RidgeHead
from dspy_qvl.learner.learner import Qwen3EmbeddingValueLearner
from dspy_qvl.metric.metric import ValueMetric
from dspy_qvl.optimizer.optimizer import FitValue
from dspy_qvl.reranker.reranker import RankedPassage, Reranker
from dspy_qvl.text.rendering import RankingExample

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
]

__version__ = "0.2.0.dev0"
