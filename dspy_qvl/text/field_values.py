"""Writes the value of a field as a text: the same content, the same text, whatever the type.

A program's typed output at scoring, and the row of a JSON file at learning, must not differ:

    "warm"                                    warm                          strings unchanged
    Tone.WARM = "warm"                        warm                          an Enum by its value
    Literal, bool, int, float                 warm, True, 3, 0.5            as Python writes them
    Noul, Score, Choice of dspy.experimental  True, 0.5, warm               by what was decided
    dspy.Code, dspy.Reasoning                 x = 1                         by their content
    a pydantic model, a dataclass, a dict     {"open": true, "tone": "warm"}  as JSON, keys sorted at every depth
    a list, a tuple, a set, an array          ["warm", 3, null]             as JSON, sets sorted
    anything else                             2024-01-01                    as `str` writes it, inside JSON as pydantic

Inside JSON a whole float is written as an integer: a pydantic field of type float makes 8.0 of the 8 in a file.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Set
from enum import Enum
from typing import Any

import dspy
import numpy as np
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from dspy_qvl.errors import InputError, characters, shown

ADDRESS = re.compile(r"<.* at 0x[0-9a-fA-F]+>")
EXACT = 2.0**53  # from here on a float is no count, and its digits as an integer are noise


def as_string(value: Any) -> str:
    """A value as the text it is valued by.

    Raises:
        InputError: an object that says nothing but where it lies in memory, that holds itself, or that Python cannot
            write, as an integer of 5,000 digits.
    """
    try:
        plain = _plain(value)
        if isinstance(plain, dict | list):
            return json.dumps(plain, ensure_ascii=False, sort_keys=True)
    except RecursionError:
        raise InputError(f"a {type(value).__name__} holds itself, so it cannot be written as a text.") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"{shown(value)} cannot be written as a text: {error}.") from None
    return plain if isinstance(plain, str) else _said(plain)


def is_string(value: Any) -> bool:
    """True if a value is a string, or stands for one: an Enum or a `Choice` of strings, `dspy.Code`."""
    return isinstance(value, str | Enum | BaseModel) and isinstance(_plain(value), str)


def _plain(value: Any) -> Any:
    """A value as strings, numbers, lists and dicts with string keys; another value unchanged."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, str):
        return characters(value)
    if isinstance(value, BaseModel):
        if isinstance(value, dspy.Type) and {"value", "confidence"} <= type(value).model_fields.keys():
            return _plain(value.value)
        return _plain(value.model_dump(by_alias=False, warnings=False))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping | dspy.Example):
        return {_key(name): _inner(entry) for name, entry in value.items()}
    if isinstance(value, Set):
        return sorted((_inner(entry) for entry in value), key=lambda entry: json.dumps(entry, sort_keys=True))
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim):
        return [_inner(entry) for entry in value]
    return value


def _inner(value: Any) -> Any:
    """A value inside others, as JSON has it."""
    plain = _plain(value.item() if isinstance(value, np.bool_ | np.integer) else value)
    if isinstance(plain, np.floating):
        plain = float(str(plain))  # the digits it shows: 0.1 of float32 is .10000000149 as a float
    if isinstance(plain, float) and plain.is_integer() and abs(plain) < EXACT:
        return int(plain)
    if isinstance(plain, str | float | int | dict | list | None):
        return plain
    try:
        return to_jsonable_python(plain, fallback=_said)
    except ValueError:  # bytes that are no UTF-8
        return _said(plain)


def _key(name: Any) -> str:
    plain = _inner(name)
    return plain if isinstance(plain, str) else json.dumps(plain)


def _said(value: Any) -> str:
    """The `str` of a value, refused if that is no more than its address."""
    try:
        said = str(value)
    except Exception as error:
        raise InputError(f"{shown(value)} cannot be written as a text: {error}.") from None
    if ADDRESS.fullmatch(said):
        raise InputError(
            f"a {type(value).__name__} says nothing of what it holds, so it cannot be valued; give a string, a number, "
            "a list, a dict, a dataclass or a pydantic model."
        )
    return said
