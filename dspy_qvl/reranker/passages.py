"""Passages as retrievers give them: their texts, and the scores that a first stage gave them."""

from collections.abc import Mapping, Sequence
from typing import Any

import dspy
import numpy as np

from dspy_qvl.errors import InputError, check_number, check_text, is_list, shown
from dspy_qvl.vectors import Array

PASSAGE_FIELDS = ("long_text", "text", "passage", "content", "page_content")  # where retrievers keep a passage's text
SCORE, SCORES = "score", "scores"  # the fields of a passage, and of a Prediction or an example, with first-stage scores
LARGEST_FIRST_SCORE = 1e15  # float32 must hold its squares


def as_list(passages: Any, what: str = "passages") -> list[Any]:
    """Passages as a list: one that was given, or a retriever's Prediction's.

    Raises:
        InputError: a single passage, or something that cannot be iterated.
    """
    if isinstance(passages, dspy.Prediction):
        if "passages" not in passages:
            raise InputError(f"the Prediction has no passages; it has {', '.join(passages.keys()) or 'nothing'}.")
        passages = passages["passages"]
    if isinstance(passages, bytes | Mapping) or not is_list(passages):
        raise InputError(f"{what} must be a list, but got {type(passages).__name__}: {shown(passages)}.")
    return list(passages)


def passage_text(passage: object, what: str = "passage") -> str:
    """The text of a passage as a retriever gives it: a string, or a dict or an object that holds one.

    Raises:
        InputError: another form.
    """
    if isinstance(passage, str):
        return check_text(passage, what)
    for name in PASSAGE_FIELDS:
        text = _field(passage, name)
        if isinstance(text, str):
            return check_text(text, what)
    raise InputError(
        f"{what} must be a string, or have its text as one of {', '.join(PASSAGE_FIELDS)}, "
        f"but got {type(passage).__name__}: {shown(passage)}."
    )


def passage_texts(passages: Sequence[Any]) -> list[str]:
    """The texts of passages.

    Raises:
        InputError: a passage of another form, with its position.
    """
    return [passage_text(passage, f"passages[{row}]") for row, passage in enumerate(passages)]


def scores_within(given: Any, passages: Sequence[Any]) -> Any:
    """First-stage scores that come with passages, unchecked: those of a Prediction, else the `score` of each passage.

    Args:
        given: the passages as they were given.
        passages: the same as a list.

    Returns:
        One score a passage; None where a passage has none.
    """
    if isinstance(given, dspy.Prediction) and given.get(SCORES) is not None:
        return given[SCORES]
    found = [_field(passage, SCORE) for passage in passages]
    return found if found and all(score is not None for score in found) else None


def checked_scores(scores: Any, n_passages: int, what: str = "scores") -> Array | None:
    """First-stage scores, one a passage, or None.

    Raises:
        InputError: no list of finite numbers, too large ones, or another number than of passages.
    """
    if scores is None:
        return None
    if not is_list(scores):
        raise InputError(f"{what} must be a list of numbers, but got {type(scores).__name__}.")
    numbers = [check_number(score, f"{what}[{row}]") for row, score in enumerate(scores)]
    if any(abs(number) > LARGEST_FIRST_SCORE for number in numbers):
        raise InputError(f"{what} must lie within ±{LARGEST_FIRST_SCORE:g}; rescale the first stage's.")
    if len(numbers) != n_passages:
        raise InputError(f"there are {len(numbers)} scores for {n_passages} passages; give one a passage.")
    return np.array(numbers)


def _field(passage: object, name: str) -> Any:
    """A field of a passage that is a dict or an object; None where it has none."""
    return passage.get(name) if isinstance(passage, Mapping | dspy.Example) else getattr(passage, name, None)
