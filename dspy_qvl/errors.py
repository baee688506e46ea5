"""All errors of this package, and the checks of input that raise them.

    QVLError
    ├── InputError (ValueError)            input of the caller that cannot be used
    │   └── MissingTextError               an example or a prediction has not the text that is valued
    ├── NotFittedError (RuntimeError)      a value was asked for before anything was learned
    ├── EmbeddingError (RuntimeError)      the embedding model failed, or answered wrongly
    │   ├── ModelUnavailableError          the embedding model cannot be loaded here
    │   └── TextsRefusedError              the provider refuses some texts; the others have their vectors
    ├── FeatureError (RuntimeError)        a block of features failed, or answered wrongly
    └── StateError (ValueError)            a saved state is damaged, foreign, or of another model

    QVLWarning (UserWarning)               the call goes on, but something was changed or lost on the way

Each check returns its input in the one form the rest of the package uses, or raises an error that says
what came, what is needed, and what to do.
"""

import contextlib
import math
import sys
import warnings
from collections.abc import Iterable, Mapping
from decimal import Decimal
from enum import Enum
from numbers import Integral, Real
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

LARGEST_SCORE = 1e75  # the square of a mean squared error must stay within float64
LARGEST_COUNT = 10**100  # so that it can be written down: Python refuses integers of some thousand digits

BRACKETS: Mapping[type[Any], tuple[str, str]] = {list: ("[", "]"), tuple: ("(", ")"), set: ("{", "}"), dict: ("{", "}")}
SPELLED_BITS = 2000  # of an integer that is shown in digits: Python's limit may be set as low as 640 of them


class QVLError(Exception):
    """Root of all errors of dspy_qvl."""


class InputError(QVLError, ValueError):
    """Input of the caller that cannot be used."""


class MissingTextError(InputError):
    """An example or a prediction has not the text that is valued."""


class NotFittedError(QVLError, RuntimeError):
    """A value was asked for before anything was learned."""


class EmbeddingError(QVLError, RuntimeError):
    """The embedding model failed, or answered wrongly.

    Attributes:
        vectors: position in the batch -> vector, of the texts that did get one before it failed.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.vectors: dict[int, NDArray[np.float32]] = {}


class ModelUnavailableError(EmbeddingError):
    """The embedding model cannot be loaded here."""


class TextsRefusedError(EmbeddingError):
    """The provider refuses some texts of a batch.

    Attributes:
        refused: position in the batch -> why.
    """

    def __init__(self, message: str, *, refused: Mapping[int, str] | None = None) -> None:
        super().__init__(message)
        self.refused = dict(refused or {})


class FeatureError(QVLError, RuntimeError):
    """A block of features failed, or answered wrongly."""


class StateError(QVLError, ValueError):
    """A saved state is damaged, foreign, or of another model."""


class QVLWarning(UserWarning):
    """The call goes on, but something was changed or lost on the way."""


def warn(message: str) -> None:
    """Warn with a `QVLWarning` that points at the caller's own line, outside this package and DSPy.

    Python shows a message once for each line, so two calls of a user's program both have theirs.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("dspy_qvl", "dspy"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, QVLWarning, stacklevel=level)


def shown(value: object, limit: int = 60) -> str:
    """A value as it appears inside an error message: its repr, cut to `limit` characters.

    It never fails, and is fast for the built-in types: Python refuses to write an integer of 5,000 digits, the repr of
    a list of a million entries takes a second, and that of a caller's object may raise.
    """
    text = _spelled(value, limit)
    return text if len(text) <= limit else f"{text[:limit]}…"


def _spelled(value: Any, limit: int) -> str:
    """The repr of a value, or a beginning of it of more than `limit` characters."""
    kind = type(value)
    try:
        if isinstance(value, str | bytes):
            return repr(value[: limit + 1])
        if isinstance(value, int) and value.bit_length() > SPELLED_BITS:
            return hex(value)
        if kind not in BRACKETS or not value:
            return repr(value)
    except Exception:
        return f"<{kind.__name__} without a repr>"
    written, closing = BRACKETS[kind]
    for number, entry in enumerate(value):
        written += ", " if number else ""
        if len(written) > limit:
            return written
        written += _spelled(entry, limit - len(written))
        if kind is dict:
            written += f": {_spelled(value[entry], max(0, limit - len(written)))}"
    return written + ("," if kind is tuple and len(value) == 1 else "") + closing


def characters(text: str) -> str:
    """A string as exactly that: a (str, Enum) by its value, another subclass of `str` by its characters.

    `str(text)` is "Tone.WARM", or whatever a subclass says; and what is equal to a plain string, and hashed like it,
    must not get another value under the same key.
    """
    value = text.value if isinstance(text, Enum) else text
    return str.__str__(value if isinstance(value, str) else text)


def check_text(text: object, what: str = "text") -> str:
    """A text that can be valued: any `str` that can be written as UTF-8.

    Empty and blank texts pass: people do rate the answer that says nothing (see `embedding/encoder.py`).

    Raises:
        InputError: not a string, or a string with a lone surrogate.
    """
    if not isinstance(text, str):
        raise InputError(f"{what} must be a string, but got {type(text).__name__}: {shown(text)}.")
    text = characters(text)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} holds a lone surrogate at position {error.start}, which no model can be sent as UTF-8; "
            "repair it with text.encode('utf-8', 'replace').decode()."
        ) from None
    return text


def check_texts(texts: object, what: str = "texts") -> list[str]:
    """A list of texts that can be valued.

    Raises:
        InputError: a single string, something that cannot be iterated, or a text `check_text` refuses.
    """
    if isinstance(texts, str | bytes | Mapping) or not isinstance(texts, Iterable):
        raise InputError(f"{what} must be a list of strings, but got {type(texts).__name__}: {shown(texts)}.")
    if isinstance(texts, set | frozenset):
        raise InputError(f"{what} must be a list of strings, but got a {type(texts).__name__}, which has no order.")
    check_flat(texts, what, "a column of it, as a list")
    return [check_text(text, f"{what}[{row}]") for row, text in enumerate(texts)]


def is_list(value: object) -> TypeGuard[Iterable[Any]]:
    """True if a value can be taken entry by entry: any iterable but a string, or an array without a dimension."""
    return isinstance(value, Iterable) and not isinstance(value, str) and getattr(value, "ndim", 1) != 0


def check_flat(items: object, what: str, instead: str) -> None:
    """Refuse an array or a data frame that is no plain sequence.

    Raises:
        InputError: it has not exactly one dimension.
    """
    n_dimensions = getattr(items, "ndim", 1)
    if n_dimensions != 1:
        raise InputError(
            f"{what} must have one dimension, but the {type(items).__name__} has {n_dimensions}; give {instead}."
        )


def check_flag(flag: object, what: str) -> bool:
    """True or False.

    Raises:
        InputError: anything else.
    """
    if not isinstance(flag, bool | np.bool_):
        raise InputError(f"{what} must be True or False, but got {shown(flag)}.")
    return bool(flag)


def check_optional_string(value: object, what: str) -> str | None:
    """A string or None; the value is not shown, since it may be a secret.

    Raises:
        InputError: anything else.
    """
    if value is not None and not isinstance(value, str):
        raise InputError(f"{what} must be a string or None, but got {type(value).__name__}.")
    return value


def is_missing(value: object) -> bool:
    """True if a value stands for a missing one: None, NaN, or what pandas has in its place."""
    return (
        value is None
        or (isinstance(value, float | np.floating) and math.isnan(value))
        or type(value).__name__ in ("NAType", "NaTType")
    )


def check_number(number: object, what: str) -> float:
    """A finite number as a float, a database's Decimal too; bool, None and strings are no numbers.

    Raises:
        InputError: not a number, NaN or infinite.
    """
    if isinstance(number, bool | np.bool_) or not isinstance(number, Real | Decimal):
        raise InputError(
            f"{what} must be a number, but got {type(number).__name__}: {shown(number)}{_as_number(number)}."
        )
    try:
        value = float(number)
    except (OverflowError, ValueError):  # 10**400, Decimal("sNaN")
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{what} must be finite, but got {shown(number)}.")
    return value


def _as_number(value: Any) -> str:
    """A hint, for something that is no number but can be made one: the call to write."""
    if isinstance(value, str | bool | np.bool_) or not hasattr(value, "__len__"):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            number = float(value)
            return f"; write float({shown(value)}), which is {number:g}" if math.isfinite(number) else ""
    return ""


def check_score(score: object, what: str) -> float:
    """A rating: a finite number whose powers float64 can hold.

    Raises:
        InputError: not a number, not finite, or beyond 1e75.
    """
    value = check_number(score, what)
    if abs(value) > LARGEST_SCORE:
        raise InputError(f"{what} must lie within ±{LARGEST_SCORE:g}, but got {value:g}; rescale the scores.")
    return value


def check_count(count: object, what: str, at_least: int) -> int:
    """A whole number of at least `at_least`.

    Raises:
        InputError: not a whole number, too small, or of more than a hundred digits.
    """
    if isinstance(count, bool | np.bool_) or not isinstance(count, Integral) or count < at_least:
        raise InputError(f"{what} must be a whole number of at least {at_least}, but got {shown(count)}.")
    if int(count) > LARGEST_COUNT:
        raise InputError(f"{what} must be at most {LARGEST_COUNT:g}, but got {shown(count)}.")
    return int(count)


def check_positive(number: object, what: str) -> float:
    """A finite number above 0.

    Raises:
        InputError: not a number, not finite, or not above 0.
    """
    value = check_number(number, what)
    if value <= 0:
        raise InputError(f"{what} must be above 0, but got {value:g}.")
    return value


def check_confidence(confidence: object) -> float:
    """The share of cases that an interval is meant to hold, in (0, 1).

    Raises:
        InputError: not a number in (0, 1).
    """
    value = check_number(confidence, "confidence")
    if not 0 < value < 1:
        raise InputError(f"confidence must lie between 0 and 1, for instance .9, but got {value:g}.")
    return value


def check_fraction(fraction: object, what: str) -> float:
    """A fraction in [0, 1).

    Raises:
        InputError: not a number in [0, 1).
    """
    value = check_number(fraction, what)
    if not 0 <= value < 1:
        raise InputError(f"{what} must be at least 0 and below 1, but got {value:g}.")
    return value
