"""A reward with its reason, for `dspy.Refine` and `dspy.BestOfN`."""

from typing import Any

import dspy


class Reward(dspy.Prediction, dict[str, Any]):  # type: ignore[misc]  # dspy ships no types
    """A prediction of a score, and of feedback, that compares by its score.

    DSPy's Refine tells the language model of a reward only what JSON can hold, and of a `dspy.Prediction` not even the
    number; so it is a dict of the same fields as well. See test_refine_tells_the_language_model_why.

    Args:
        fields: `score`, and what there is beside it.
    """

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        dict.update(self, fields)

    def __reduce__(self) -> tuple[Any, ...]:
        return _remake, (self.toDict(),)


def _remake(fields: dict[str, Any]) -> Reward:
    return Reward(**fields)
