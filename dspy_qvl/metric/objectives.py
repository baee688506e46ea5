"""Further metrics beside the value, for GEPA over several objectives."""

from collections.abc import Callable, Mapping
from typing import Any

import dspy

from dspy_qvl.errors import InputError, QVLError, check_number, shown
from dspy_qvl.metric.judgement import LOWEST

Objectives = Mapping[str, Callable[..., Any]]  # each (example, prediction) -> number, by name


def checked_objectives(objectives: object) -> Objectives | None:
    """Further metrics, or None.

    Raises:
        InputError: no dict of metrics by name, or one of them is called "value".
    """
    if objectives is None:
        return None
    if not isinstance(objectives, Mapping) or not all(
        isinstance(name, str) and callable(one) for name, one in objectives.items()
    ):
        raise InputError(f"objectives must be a dict of metrics by name, but got {shown(objectives)}.")
    if "value" in objectives:
        raise InputError("objectives has a metric named 'value', which is what the learned value is called.")
    return dict(objectives)


def objective(name: str, metric: Callable[..., Any], example: Any, pred: Any) -> float:
    """The number that a further metric gives; the lowest where there is no prediction.

    Raises:
        InputError: it failed, or gave no finite number.
    """
    if pred is None:
        return LOWEST
    try:
        score = metric(example, pred)
    except QVLError:
        raise
    except Exception as error:
        raise InputError(f"the objective {name!r} failed: {type(error).__name__}: {error}") from error
    number = score.get("score") if isinstance(score, dspy.Prediction) else score
    return check_number(float(number) if isinstance(number, bool) else number, f"what the objective {name!r} gave")
