"""Passages as retrievers give them: their texts and their scores."""

from collections.abc import Mapping
from typing import Any

import dspy

from dspy_qvl.errors import InputError, check_text, is_list, shown

PASSAGE_FIELDS = ("long_text", "text", "passage", "content", "page_content")  # where retrievers keep a passage's text


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
        text = passage.get(name) if isinstance(passage, Mapping | dspy.Example) else getattr(passage, name, None)
        if isinstance(text, str):
            return check_text(text, what)
    raise InputError(
        f"{what} must be a string, or have its text as one of {', '.join(PASSAGE_FIELDS)}, "
        f"but got {type(passage).__name__}: {shown(passage)}."
    )


def _texts(passages: list[Any]) -> list[str]:
    return [passage_text(passage, f"passages[{row}]") for row, passage in enumerate(passages)]
