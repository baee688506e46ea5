"""Rated examples: a list of them, and what one of their fields holds."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dspy

from dspy_qvl.errors import InputError, check_flat, shown

FromExample = str | Callable[[Any], Any]  # the name of a field, or what makes of an example what it would hold


def checked_examples(examples: Any, what: str) -> Sequence[Any]:
    """Examples that are a list of dspy.Examples or dicts, not empty.

    Raises:
        InputError: anything else.
    """
    check_flat(examples, what, "its rows, for instance data_frame.to_dict('records')")
    if isinstance(examples, str | bytes) or not isinstance(examples, Sequence) or not examples:
        raise InputError(
            f"{what} must be a list of rated examples, but got "
            f"{'an empty one' if isinstance(examples, Sequence) and not examples else type(examples).__name__}."
        )
    for row, example in enumerate(examples):
        if not isinstance(example, dspy.Example | Mapping):
            raise InputError(f"{what}[{row}] must be a dspy.Example or a dict, but got {type(example).__name__}.")
    return examples


def taken(given: FromExample, example: Any, name: str, at: str) -> Any:
    """A field of an example, or what a callable makes of it.

    Raises:
        InputError: there is no such field.
    """
    if not isinstance(given, str):
        return given(example)
    value = example.get(given)
    if value is None:
        raise InputError(f"{at} has no field {given!r} for its {name}; it has {shown(sorted(example.keys()))}.")
    return value
