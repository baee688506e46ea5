"""Reads states by tables of their fields, so that nothing in them is used unchecked.

    PROBE = Record("the saved probe", {"texts": listed(STRING), "vectors": array("float32", "texts", None)})
    PROBE({"texts": ["a"], "vectors": {"dtype": "float32", …}})  -> {"texts": ["a"], "vectors": an array, (1, d)}
    PROBE({"texts": "a", …})  -> StateError: 'texts' in the saved probe has the wrong type: 'a'.

A reader is called with an entry, the name that errors give it, and the sizes known so far; it returns the entry in the
form the package uses, or raises. A side of an array is a length, None for any length, or a name. A name is as long as
the list, or as large as the whole number, of that name that was read before; else as the first array with that side.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from dspy_qvl.errors import QVLError, StateError, check_count, check_number, check_text, shown
from dspy_qvl.state.bounded_json import from_json
from dspy_qvl.state.entries import check_schema, decode_array

Sizes = dict[str, int]
Reader = Callable[[Any, str, Sizes], Any]  # entry, its name in errors, sizes by name -> the checked entry


@dataclass(frozen=True)
class Record:
    """Reader of a dict with named fields; entries beside them are ignored.

    Attributes:
        what: its name in errors.
        fields: a reader for each field, in the order in which they are read.
        build: makes the result of the checked fields, which it gets as keywords; a dict by default.
        older: values of fields that older schemas do not have.
    """

    what: str
    fields: Mapping[str, Reader]
    build: Callable[..., Any] = dict
    older: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, entry: Any, name: str = "", sizes: Sizes | None = None) -> Any:
        """The checked record.

        Raises:
            StateError: no dict, a field is missing or of another type.
            QVLError: as the readers of the fields, and `build`.
        """
        if not isinstance(entry, Mapping):
            raise StateError(f"{self.what} must be a dict, but is {type(entry).__name__}.")
        entry, sizes, checked = {**self.older, **entry}, {} if sizes is None else sizes, {}
        for name, reader in self.fields.items():
            if name not in entry:
                raise StateError(f"{self.what} has no {name!r}; it is damaged or was not written by dspy_qvl.")
            checked[name] = value = reader(entry[name], f"{name!r} in {self.what}", sizes)
            if isinstance(value, int | list):
                sizes[name] = value if isinstance(value, int) else len(value)
        return self.build(**checked)


def load(state: object, record: Record) -> Any:
    """A whole state, of a schema that can be read, as its record reads it.

    Raises:
        StateError: another schema, or anything in it that cannot be used.
    """
    try:
        check_schema(take(state, "schema", int, record.what), record.what)
        return record(state)
    except StateError:
        raise
    except QVLError as error:
        raise StateError(f"{record.what} cannot be used: {error}") from error


def take(state: object, name: str, kind: type | tuple[type, ...], what: str) -> Any:
    """One entry of a state, of one of the given types.

    Raises:
        StateError: the state is no dict, the entry is missing or of another type.
    """
    return Record(what, {name: of(*(kind if isinstance(kind, tuple) else (kind,)))})(state)[name]


def of(*kinds: type, check: Callable[[Any, str], Any] | None = None) -> Reader:
    """Reader of an entry of one of some types; True and False are no numbers.

    Args:
        kinds: the types.
        check: (entry, its name) -> the entry in the form the package uses; raises a QVLError.
    """

    def read(entry: Any, name: str, sizes: Sizes) -> Any:
        if not isinstance(entry, kinds) or (isinstance(entry, bool) and bool not in kinds):
            raise StateError(f"{name} has the wrong type: {shown(entry)}.")
        return entry if check is None else check(entry, name)

    return read


STRING = of(str, check=check_text)


def count(at_least: int) -> Reader:
    """Reader of a whole number of at least `at_least`."""
    return of(int, check=partial(check_count, at_least=at_least))


def number(low: float, high: float) -> Reader:
    """Reader of a number from `low` to `high`."""

    def check(entry: float, name: str) -> float:
        value = check_number(entry, name)
        if not low <= value <= high:
            raise StateError(f"{name} must lie between {low:g} and {high:g}, but is {value:g}.")
        return value

    return of(int, float, check=check)


def array(
    dtype: str, *sides: int | str | None, largest: float = np.inf, check: Callable[[Any, str], Any] | None = None
) -> Reader:
    """Reader of an array with these sides.

    Args:
        dtype: the type it must have.
        sides: a length, None for any length, or a name (see above) for each dimension.
        largest: the greatest magnitude that its entries may have.
        check: as of `of`, of the array.
    """

    def read(entry: Any, name: str, sizes: Sizes) -> Any:
        shape = tuple(sizes.get(side) if isinstance(side, str) else side for side in sides)
        values = decode_array(entry, name, dtype, shape)
        if np.abs(values).max(initial=0) > largest:
            raise StateError(f"{name} holds a number beyond ±{largest:g}.")
        sizes.update({side: length for side, length in zip(sides, values.shape, strict=True) if isinstance(side, str)})
        return values if check is None else check(values, name)

    return read


def optional(reader: Reader) -> Reader:
    """Reader of an entry that may be None."""
    return lambda entry, name, sizes: None if entry is None else reader(entry, name, sizes)


def listed(reader: Reader) -> Reader:
    """Reader of a list of entries of one kind."""
    a_list = of(list)
    return lambda entries, name, sizes: [
        reader(entry, f"entry {row} of {name}", sizes) for row, entry in enumerate(a_list(entries, name, sizes))
    ]


def named(reader: Reader) -> Reader:
    """Reader of a dict with entries of one kind under any names."""
    a_dict = of(Mapping)
    return lambda entries, name, sizes: {
        check_text(key, f"a key of {name}"): reader(entry, f"{shown(key)} of {name}", sizes)
        for key, entry in a_dict(entries, name, sizes).items()
    }


def opened(record: Record) -> Reader:
    """Reader of a record that may have been `sealed`."""
    return lambda entry, name, sizes: record(from_json(entry, name) if isinstance(entry, str) else entry, name, sizes)
