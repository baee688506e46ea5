"""From an example and a prediction to the text that is valued.

Learning and scoring must see the same string, so every way from an object to a text passes through here.
"""

import re
import string
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import dspy

from dspy_qvl.errors import InputError, MissingTextError, QVLError, characters, check_text, is_missing, shown
from dspy_qvl.text.field_values import as_string, is_string

AsText = str | Callable[[Any, Any], str]

OF_EXAMPLE = "example."  # before a field that is the example's whether input or label
NO_FIELD = re.compile(r"\s*|\d+|\w+(\.\w+|\[[^\]]*\])+")  # in braces: nothing, a position, a look into a field


class _Part(NamedTuple):
    """Literal text of a format string, and the field that follows it."""

    written: str
    name: str | None  # None at the end, where no field follows
    of_example: bool = False  # True for {example.name}: the example's, input or label


class Rendering:
    r"""Writes the text of an example and a prediction that is valued, at learning and at scoring the same.

        "answer"                                  a field of the prediction; any name a column of a table may have
        "Question: {question}\nAnswer: {answer}"  fields of the prediction; those it does not have are taken from the
                                                  example's inputs, {example.reference} from all of the example. At
                                                  least one is the prediction's
        a callable                                example, prediction -> text
        None                                      the only text the prediction has

    In braces a name may have blanks and dashes, {Review Text}, but no colon, exclamation mark or brace. Where texts are
    learned from, an example is its own prediction. A field that is no string is written as one: see `field_values.py`.

    Args:
        text: one of these.
        usual: with None, the field that is taken wherever a prediction has it.
        what: how an error names it; a "query" may be of the example alone.

    Raises:
        InputError: none of them, or a format string with more than field names in it.
    """

    def __init__(self, text: AsText | None, usual: str | None = None, *, what: str = "text") -> None:
        if text is not None and not isinstance(text, str) and not callable(text):
            raise InputError(
                f"{what} must be a field name, a format string such as 'Question: {{question}} Answer: {{answer}}', "
                f"or a callable, but got {type(text).__name__}: {shown(text)}."
            )
        self.text = check_text(text, "the format string") if isinstance(text, str) else text
        self.usual = usual
        self._parts = _parts(self.text, what) if isinstance(self.text, str) else ()

    @property
    def shape(self) -> tuple[str, ...] | None:
        """The text around the fields: equal for renderings that give the same text; None for a callable."""
        return None if callable(self.text) else tuple(part.written for part in self._parts) or ("",)

    def rated(self, example: Any) -> str:
        """The text of an example that is learned from; it may be empty.

        Raises:
            MissingTextError: a field that is asked for is missing.
            InputError: a callable failed or gave no text.
        """
        if callable(self.text):
            return self._called(example, example)
        return self._written(lambda name: _field(name, example))

    def query(self, example: Any, pred: Any) -> str:
        """The query that a prediction is an answer to: from the example's inputs, or as the prediction repeats it.

        Raises:
            MissingTextError: a field is in neither.
        """
        inputs = _inputs(example)
        said = pred if isinstance(pred, Mapping | dspy.Example) else {}
        return self._written(lambda name: _field(name, inputs if name in inputs else said))

    def __call__(self, example: Any, pred: Any) -> str:
        """The text of a prediction for an example, to be valued; never blank.

        Args:
            example: a mapping or `dspy.Example`, or None.
            pred: the same, or a string: what a program may give.

        Raises:
            MissingTextError: the prediction is missing, or a field that is asked for is missing or blank.
            InputError: no text is named and the prediction has not exactly one, or a callable failed or gave no text.
        """
        if pred is None or (isinstance(pred, Mapping | dspy.Example) and not len(pred)):
            raise MissingTextError("the program gave no prediction.")
        if callable(self.text):
            text = self._called(example, pred)
            if is_blank(text):
                raise MissingTextError("the answer is empty.")
            return text
        if isinstance(pred, str):
            pred = {self._answer_field(example): pred}
        if not isinstance(pred, Mapping | dspy.Example):
            raise MissingTextError(f"the program gave {type(pred).__name__}, not a prediction.")
        if self.text is None:
            return _said(self.usual if self.usual is not None and self.usual in pred else _only_text(pred), pred)
        if "{" not in self.text:
            return _said(self.text, pred)
        text, n_said = "", 0
        for written, name, of_example in self._parts:
            text += written
            if name and name in pred and not of_example:
                text, n_said = text + _said(name, pred), n_said + 1
            elif name:
                text += _given(name, example, pred, of_all=of_example)
        if not n_said:
            names = _listed(part.name for part in self._parts if part.name)
            raise MissingTextError(f"the prediction has none of the fields {names}; it has {_listed(pred.keys())}.")
        return text

    def _written(self, field: Callable[[str], str]) -> str:
        """The parts one after the other, each field as `field` writes it."""
        return "".join(part.written + (field(part.name) if part.name else "") for part in self._parts)

    def _answer_field(self, example: Any) -> str:
        """The field that a prediction which is a string stands for: the one the example does not give."""
        names = {part.name for part in self._parts if part.name and not part.of_example}
        open_names = sorted(names - _inputs(example).keys()) if len(names) > 1 else sorted(names)
        if not names:
            return self.usual or "text"
        if len(open_names) != 1:
            raise InputError(
                f"the program gave a string, but text={shown(self.text)} asks for the fields {_listed(sorted(names))}; "
                "let the program give a dspy.Prediction."
            )
        return open_names[0]

    def _called(self, example: Any, pred: Any) -> str:
        assert callable(self.text)
        try:
            text = self.text(example, pred)
        except QVLError:
            raise
        except Exception as error:
            missing = error.name if isinstance(error, AttributeError) and error.obj in (example, pred) else None
            if isinstance(error, KeyError) and not any(_has(one, error.args[0]) for one in (example, pred)):
                missing = error.args[0]
            if missing is not None:
                raise MissingTextError(f"the callable that gives the text found no field {missing!r}.") from error
            raise InputError(f"the callable that gives the text failed: {type(error).__name__}: {error}") from error
        if not isinstance(text, str):
            raise InputError(f"the callable that gives the text must give a string, but gave {type(text).__name__}.")
        return characters(text)


def is_blank(text: str) -> bool:
    """True if nothing of a text can be seen."""
    return not any(
        (letter.isprintable() and not letter.isspace()) or "\ud800" <= letter <= "\udfff"  # half a letter, shown as "?"
        for letter in text
    )


def _parts(text: str, what: str) -> tuple[_Part, ...]:
    """The parts of a field name or a format string.

    Raises:
        InputError: neither, or a format string with more than names of fields in its braces.
    """
    if "{" not in text and "}" not in text:
        if not text.strip():
            raise InputError(
                f"{what}={shown(text)} is neither the name of a field nor a format string; a format string names "
                "fields in braces, for instance 'Question: {question} Answer: {answer}'."
            )
        return (_Part("", text),)
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise InputError(f"{what}={shown(text)} is no format string: {error}.") from None
    found = tuple(
        _Part(written, name and name.removeprefix(OF_EXAMPLE), (name or "").startswith(OF_EXAMPLE))
        for written, name, _, _ in parts
    )
    names = [part.name for part in found if part.name is not None]
    if not names or any(NO_FIELD.fullmatch(name) for name in names) or any(spec or how for _, _, spec, how in parts):
        raise InputError(
            f"{what}={shown(text)} must hold nothing but names of fields in braces, for instance "
            "'Question: {question} Answer: {answer}'; a brace of the text itself is doubled, and a callable can do "
            "what a name cannot."
        )
    if what == "text" and all(part.of_example for part in found if part.name):
        raise InputError(
            f"text={shown(text)} names no field of the prediction, so every answer would be worth the same."
        )
    return found


def _inputs(example: Any) -> Mapping[str, Any]:
    """The fields of an example that are no labels: its inputs, or all of one that does not tell them apart."""
    if isinstance(example, dspy.Example):
        chosen = getattr(example, "_input_keys", None)
        return {name: example[name] for name in example.keys() if chosen is None or name in chosen}  # noqa: SIM118
    return example if isinstance(example, Mapping) else {}


def _given(name: str, example: Any, pred: Any, *, of_all: bool) -> str:
    """A field that the prediction does not have, from the example: from its inputs, or from all of it."""
    if of_all and not _has(example, name):
        raise MissingTextError(f"the example has no field {name!r}.")
    fields = example if of_all else _inputs(example)
    if name not in fields:
        label = ", and of the example it is no input" if _has(example, name) else ""
        raise MissingTextError(f"the prediction has no field {name!r}{label}; it has {_listed(pred.keys())}.")
    return _value(name, fields)


def _has(fields: Any, name: Any) -> bool:
    return isinstance(fields, Mapping | dspy.Example) and name in fields


def _field(name: str, fields: Any) -> str:
    """A field of an example, as a text; it may be empty."""
    if name not in fields:
        raise MissingTextError(f"there is no field {name!r} among {_listed(fields.keys())}{_braces(name, fields)}.")
    return _value(name, fields)


def _value(name: str, fields: Any) -> str:
    """A field that is there, as a text."""
    value = fields[name]
    if is_missing(value):
        raise MissingTextError(f"the field {name!r} is {value}.")
    return as_string(value)


def _said(name: str, pred: Any) -> str:
    """A field of the prediction, as a text that is not blank."""
    if name not in pred:
        raise MissingTextError(
            f"the prediction has no field {name!r}; it has {_listed(pred.keys())}{_braces(name, pred)}."
        )
    text = _value(name, pred)
    if is_blank(text):
        raise MissingTextError("the answer is empty." if len(pred) == 1 else f"the field {name!r} is empty.")
    return text


def _braces(name: str, fields: Any) -> str:
    """A hint where a name looks like a format string that lacks its braces."""
    names = [field for field in fields.keys() if isinstance(field, str)]  # noqa: SIM118
    meant = [field for field in names if re.search(rf"\b{re.escape(field)}\b", name)]
    return f"; a format string has fields in braces, {{{meant[0]}}}" if meant and not name.isidentifier() else ""


def _only_text(pred: Any) -> str:
    """The field that holds the only string, or a failed one; where there is none, the only one that stands for one."""
    fields = {name: pred[name] for name in pred.keys()}  # noqa: SIM118
    texts = [name for name, value in fields.items() if value is None or isinstance(value, str)]
    names = texts or [name for name, value in fields.items() if is_string(value)]
    if len(names) != 1:
        raise InputError(
            f"the prediction has {len(names) or 'no'} texts, among the fields {_listed(pred.keys())}; say which is "
            "valued with text=, the name of a field or a format string."
        )
    return str(names[0])


def _listed(names: Any) -> str:
    return ", ".join(shown(name if isinstance(name, str) else shown(name)) for name in names) or "none"
