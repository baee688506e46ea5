"""What is valued: a text, and a text with its rating.

Learning and scoring must see the same string, so every way from an object to a text passes through here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dspy

from dspy_qvl.errors import InputError, check_metadata, check_score, check_text, shown


@dataclass
class RankingExample:
    """A text, the score a person gave it, and whatever else is worth keeping.

    Attributes:
        text: the text that was rated.
        score: its rating, a finite number on the rater's own scale.
        metadata: anything JSON can hold, or None.
    """

    text: str
    score: float
    metadata: dict[str, Any] | None = None


def rated_text(item: object, what: str = "example") -> RankingExample:
    """A checked `RankingExample` from one of the forms people keep ratings in.

    Args:
        item: a RankingExample; a (text, score) or (text, score, metadata) tuple; a dict or `dspy.Example`
            with `text` and `score`, and optionally `metadata`.
        what: how an error names the item.

    Raises:
        InputError: another form, or a text, score or metadata that cannot be used.
    """
    metadata: object = None
    if isinstance(item, RankingExample):
        text, score, metadata = item.text, item.score, item.metadata
    elif isinstance(item, tuple | list) and len(item) in (2, 3):
        text, score, metadata = (*item, None)[:3]
    elif isinstance(item, Mapping | dspy.Example):
        missing = [name for name in ("text", "score") if name not in item]
        if missing:
            raise InputError(f"{what} has no {' and no '.join(missing)}; it has {sorted(item.keys())}.")
        text, score, metadata = item["text"], item["score"], item.get("metadata")
    else:
        raise InputError(
            f"{what} must be a RankingExample, a (text, score) tuple, or a dict or dspy.Example with text and score, "
            f"but got {type(item).__name__}: {shown(item)}."
        )
    return RankingExample(
        check_text(text, f"the text of {what}"),
        check_score(score, f"the score of {what}"),
        check_metadata(metadata, f"the metadata of {what}"),
    )


def instructed(text: str, instruction: str | None) -> str:
    """The string a Qwen3 embedding model is sent: with an instruction, Qwen's query form; without, the text.

    Source: the model card of Qwen3-Embedding ("Instruct: {task}" newline "Query:{text}", no space after Query).
    """
    return text if instruction is None else f"Instruct: {instruction}\nQuery:{text}"
