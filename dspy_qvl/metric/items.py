"""Reads the item that a metric values: the text of a prediction, where texts were rated for queries with its query."""

from typing import Any

from dspy_qvl.errors import InputError, MissingTextError, warn
from dspy_qvl.text import AsText, Item, Pair, Rendering, is_blank


class ItemReader:
    """Reads items, rendered as the rated texts were.

    Args:
        text: the text that is valued, as `ValueMetric` takes it; None for `learned_text`.
        query: the query it is valued for, as `ValueMetric` takes it; None for `learned_query`.
        learned_text: the field or format string of the rated texts, or None.
        learned_query: that of their queries, or None.
        paired: True where texts were rated for queries.

    Attributes:
        text: renders texts.
        query: renders queries; None where texts are valued by themselves.

    Raises:
        InputError: an argument that cannot be used, or a query too many or too few.
    """

    def __init__(
        self,
        text: AsText | None,
        query: str | None,
        learned_text: str | None,
        learned_query: str | None,
        *,
        paired: bool,
    ) -> None:
        self.text = _text_rendering(text, learned_text)
        if query is not None and not paired:
            raise InputError("the value function values texts by themselves, as they were rated; leave out query=.")
        template = learned_query if query is None else query
        if template is None and paired:
            raise InputError("the value function values a text for a query; say which field holds it with query=.")
        self.query = Rendering(template, what="query") if paired else None

    def __call__(self, example: Any, pred: Any) -> Item:
        """The item of a prediction.

        Raises:
            MissingTextError: there is no prediction, or no text in it.
            InputError: several texts and none is named, or a callable failed.
        """
        text = _sendable(self.text(example, pred))
        return text if self.query is None else Pair(_sendable(self.query.query(example, pred)), text)

    def or_none(self, example: Any, pred: Any) -> Item | None:
        """The item of a prediction, or None where there is none."""
        try:
            return self(example, pred)
        except MissingTextError:
            return None

    def rated(self, example: Any, at: str) -> Item | None:
        """The item of an example that holds the text itself; None for a blank one.

        Raises:
            InputError: it has no such text.
        """
        rendering = self.text
        if rendering.text is None and rendering.usual is not None and rendering.usual in example:
            rendering = Rendering(rendering.usual)
        try:
            text = _sendable(rendering(example, example) if rendering.text is None else rendering.rated(example))
            query = None if self.query is None else _sendable(self.query.rated(example))
        except InputError as error:
            raise InputError(f"{at} has no text to value: {error}") from error
        if is_blank(text):
            return None
        return text if query is None else Pair(query, text)


def _text_rendering(text: AsText | None, learned: str | None) -> Rendering:
    """How texts of predictions are rendered, given how the rated texts were; warns where the two differ."""
    if text is None:
        return Rendering(learned) if learned is not None and "{" in learned else Rendering(None, usual=learned)
    rendering = Rendering(text)
    if learned is not None and rendering.shape is not None and rendering.shape != Rendering(learned).shape:
        warn(
            f"the value function was learned from texts rendered as {learned!r}, but predictions are rendered as "
            f"{text!r}; values of texts rendered in another way are off. Leave out text= to render them alike.",
        )
    return rendering


def _sendable(text: str) -> str:
    """A text without lone surrogates, which no model can be sent."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
