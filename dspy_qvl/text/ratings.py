"""A text with its rating, and a text with its query."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import dspy

from dspy_qvl.errors import InputError, check_score, check_text, shown
from dspy_qvl.text.metadata import check_metadata

REASON = "reason"  # the entry of metadata in which a rater says why


class Pair(NamedTuple):
    """A text, and the query it is worth something to."""

    query: str
    text: str


Item = str | Pair  # what is valued


def text_of(item: Item) -> str:
    """The text that is valued."""
    return item if isinstance(item, str) else item.text


def query_of(item: Item) -> str | None:
    """The query it is valued for, if there is one."""
    return None if isinstance(item, str) else item.query


@dataclass
class RankingExample:
    """A text, the score a person gave it, and whatever else is worth keeping.

    Attributes:
        text: the text that was rated.
        score: its rating, a finite number on the rater's own scale.
        metadata: anything JSON can hold, or None.
        query: the query the text was rated for (an answer's question, a summary's article), or None.
    """

    text: str
    score: float
    metadata: dict[str, Any] | None = None
    query: str | None = None

    @property
    def item(self) -> "Item":
        """The item that was rated: the text, or the text for its query."""
        return self.text if self.query is None else Pair(self.query, self.text)


def rated_text(item: object, what: str = "example") -> RankingExample:
    """A checked `RankingExample` from one of the forms people keep ratings in.

    Args:
        item: a RankingExample; a (text, score) or (text, score, metadata) tuple; a dict or `dspy.Example`
            with `text` and `score`, and optionally `metadata`.
        what: how an error names the item.

    Raises:
        InputError: another form, or a text, score or metadata that cannot be used.
    """
    fields: Any = item
    if isinstance(item, RankingExample):
        fields = vars(item)
    elif isinstance(item, tuple | list) and len(item) in (2, 3):
        fields = dict(zip(("text", "score", "metadata"), item, strict=False))
    elif not isinstance(item, Mapping | dspy.Example):
        raise InputError(
            f"{what} must be a RankingExample, a (text, score) tuple, or a dict or dspy.Example with text and score, "
            f"but got {type(item).__name__}: {shown(item)}."
        )
    missing = [name for name in ("text", "score") if name not in fields]
    if missing:
        raise InputError(f"{what} has no {' and no '.join(missing)}; it has {shown([*fields.keys()])}.")
    query = fields.get("query")
    return RankingExample(
        check_text(fields["text"], f"the text of {what}"),
        check_score(fields["score"], f"the score of {what}"),
        check_metadata(fields.get("metadata"), f"the metadata of {what}"),
        None if query is None else check_text(query, f"the query of {what}"),
    )
