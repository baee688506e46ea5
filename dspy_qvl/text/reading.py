"""Reads lists of rated examples, and fields of one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dspy

from dspy_qvl.errors import InputError, check_flat, is_missing, shown

FromExample = str | Callable[[Any], Any]  # the name of a field, or a function: example -> its value


def checked_examples(examples: Any, what: str) -> Sequence[Any]:
    """Examples that are a list of dspy.Examples or dicts, not empty."""
    check_flat(examples, what, "its rows, for instance data_frame.to_dict('records')")
    if isinstance(examples, str | bytes) or not isinstance(examples, Sequence) or not examples:
        raise InputError(
            f"{what} must be a list of examples, but got "
            f"{'an empty one' if isinstance(examples, Sequence) and not examples else type(examples).__name__}."
        )
    for row, example in enumerate(examples):
        if not isinstance(example, dspy.Example | Mapping):
            raise InputError(f"{what}[{row}] must be a dspy.Example or a dict, but got {type(example).__name__}.")
    return examples


def taken(given: FromExample, example: Any, name: str, at: str) -> Any:
    """The value of an example's field, or of a callable for the example.

    Raises:
        InputError: there is none, or no value in it, or the callable failed.
    """
    if isinstance(given, str):
        if given not in example:
            fields = shown(sorted(map(str, example.keys())), 300)
            raise InputError(f"{at} has no field {given!r} for its {name}; it has {fields}.")
        value, what = example[given], f"{at}'s {given!r}"
    else:
        try:
            value, what = given(example), f"the {name} of {at}"
        except Exception as error:
            raise InputError(
                f"the callable that gives the {name} failed for {at}: {type(error).__name__}: {error}"
            ) from error
    if is_missing(value):
        raise InputError(f"{what} is {value}; fill it in, or leave the example out.")
    return value
