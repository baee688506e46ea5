"""What is valued: a text, and a text with its rating.

Learning and scoring must see the same string, so every way from an object to a text passes through here.
"""

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import dspy

from dspy_qvl.errors import InputError, MissingTextError, check_metadata, check_score, check_text, shown

AsText = str | Callable[[Any, Any], str]


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


class Rendering:
    r"""Which text of an example and a prediction is valued: at learning and at scoring the same.

        "answer"                                  a field of the prediction
        "Question: {question}\nAnswer: {answer}"  fields of the prediction, and where it has none of that name, of
                                                  the example; at least one of the prediction
        a callable                                example, prediction -> text
        None                                      the only text the prediction has

    Where texts are learned from, an example is its own prediction. A field that is no string is written as one.

    Args:
        text: one of these.

    Raises:
        InputError: none of them, or a format string with more than field names in it.
    """

    def __init__(self, text: AsText | None) -> None:
        if text is not None and not isinstance(text, str) and not callable(text):
            raise InputError(
                f"text must be a field name, a format string such as 'Question: {{question}} Answer: {{answer}}', "
                f"or a callable, but got {type(text).__name__}: {shown(text)}."
            )
        self.text = text
        self.fields: tuple[str, ...] = ()
        if isinstance(text, str):
            self.fields = _fields(check_text(text, "the format string"))
        self.template = text if isinstance(text, str) and "{" in text else None

    def __call__(self, example: Any, pred: Any) -> str:
        """The text of an example and a prediction.

        Args:
            example: a mapping or `dspy.Example`, or None.
            pred: the same, or a string: what a program may give.

        Raises:
            MissingTextError: the prediction is missing, or a field that is asked for.
            InputError: no text is named and the prediction has not exactly one, or a callable gave no text.
        """
        if pred is None or (isinstance(pred, Mapping | dspy.Example) and not len(pred)):
            raise MissingTextError("the program gave no prediction.")
        if callable(self.text):
            return self._called(example, pred)
        if isinstance(pred, str):
            pred = {self.fields[-1] if self.fields else "text": pred}
        if not isinstance(pred, Mapping | dspy.Example):
            raise MissingTextError(f"the program gave {type(pred).__name__}, not a prediction.")
        if self.text is None:
            return _only_text(pred)
        if self.template is None:
            return _written(_field(self.text, pred))
        return self._filled(self.template, example, pred)

    def _filled(self, template: str, example: Any, pred: Any) -> str:
        filled, predicted = {}, []
        for name in self.fields:
            if pred.get(name) is not None:
                predicted.append(_written(pred[name]))
                filled[name] = predicted[-1]
            elif isinstance(example, Mapping | dspy.Example) and example.get(name) is not None:
                filled[name] = _written(example[name])
            else:
                _field(name, pred)
        if not predicted:
            raise MissingTextError(
                f"the prediction has none of the fields {_listed(self.fields)}; it has {_listed(pred.keys())}."
            )
        # Nothing said stays nothing, whatever is written around it.
        return template.format(**filled) if any(text.strip() for text in predicted) else ""

    def _called(self, example: Any, pred: Any) -> str:
        assert callable(self.text)
        try:
            text = self.text(example, pred)
        except (KeyError, AttributeError) as error:
            raise MissingTextError(f"the callable that gives the text found no field {error}.") from error
        if not isinstance(text, str):
            raise InputError(f"the callable that gives the text must give a string, but gave {type(text).__name__}.")
        return text


def _fields(text: str) -> tuple[str, ...]:
    """The fields a field name or a format string asks for, each once."""
    if "{" not in text and "}" not in text:
        if not text.isidentifier():
            raise InputError(
                f"text={shown(text)} is neither the name of a field nor a format string; a format string names fields "
                "in braces, for instance 'Question: {question} Answer: {answer}'."
            )
        return (text,)
    try:
        parts = [(name, spec, conversion) for _, name, spec, conversion in string.Formatter().parse(text)]
    except ValueError as error:
        raise InputError(f"text={shown(text)} is no format string: {error}.") from None
    names = [name for name, _, _ in parts if name is not None]
    if not names or not all(name.isidentifier() for name in names) or any(spec or how for _, spec, how in parts):
        raise InputError(
            f"text={shown(text)} must hold nothing but names of fields in braces, for instance "
            "'Question: {question} Answer: {answer}'; a brace of the text itself is doubled."
        )
    return tuple(dict.fromkeys(names))


def _field(name: str, pred: Any) -> Any:
    value = pred.get(name)
    if value is None:
        raise MissingTextError(f"the prediction has no field {name!r}; it has {_listed(pred.keys())}.")
    return value


def _only_text(pred: Any) -> str:
    texts = [name for name in pred.keys() if isinstance(pred[name], str)]  # noqa: SIM118 - an Example iterates no keys
    if len(texts) != 1:
        raise InputError(
            f"the prediction has {len(texts) or 'no'} texts, among the fields {_listed(pred.keys())}; say which is "
            f"valued with text=, the name of a field or a format string."
        )
    return str(pred[texts[0]])


def _written(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def _listed(names: Any) -> str:
    return ", ".join(repr(str(name)) for name in names) or "none"


def instructed(text: str, instruction: str | None) -> str:
    """The string a Qwen3 embedding model is sent: with an instruction, Qwen's query form; without, the text.

    Source: the model card of Qwen3-Embedding ("Instruct: {task}" newline "Query:{text}", no space after Query).
    """
    return text if instruction is None else f"Instruct: {instruction}\nQuery:{text}"
