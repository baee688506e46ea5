"""Parts of a state: arrays as JSON, parts sealed as one string, and the schemas that can be read."""

import base64
import binascii
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.errors import StateError, shown
from dspy_qvl.state.bounded_json import to_json

SCHEMA = 6
# 4: the p-value of the permutation test; parts of DSPy's state are `Sealed`. 5: sparse blocks, document frequencies.
# 6: the groups of rated texts
READABLE = (3, 4, 5, SCHEMA)
LONGEST_SIDE = 2**31  # of an array; its bytes must be in the state, unless another side is 0


def encode_array(array: NDArray[Any]) -> dict[str, Any]:
    """An array as JSON: its type and shape in the clear, its bytes as base64 (little-endian, row by row)."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return {
        "dtype": little.dtype.name,
        "shape": list(little.shape),
        "base64": base64.b64encode(little.tobytes()).decode("ascii"),
    }


def decode_array(entry: object, what: str, dtype: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """A read-only array from `encode_array`'s form.

    Args:
        entry: the entry.
        what: its name in errors.
        dtype: the type it must have.
        shape: the shape it must have; None for any length.

    Raises:
        StateError: another form, type or shape, bytes that do not fill the shape, NaN or infinity.
    """
    if not isinstance(entry, Mapping) or not {"dtype", "shape", "base64"} <= entry.keys():
        raise StateError(f"{what} is not an array, but {shown(entry)}.")
    lengths = entry["shape"]
    fits = (
        isinstance(lengths, list)
        and len(lengths) == len(shape)
        and all(type(length) is int and 0 <= length <= LONGEST_SIDE for length in lengths)
        and all(wanted in (None, length) for wanted, length in zip(shape, lengths, strict=True))
    )
    if entry["dtype"] != dtype or not fits:
        raise StateError(
            f"{what} must be {dtype} of shape {shape}, but is {shown(entry['dtype'])} of shape {shown(lengths)}."
        )
    try:
        raw = base64.b64decode(entry["base64"], validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise StateError(f"{what} is not valid base64: {error}.") from None
    kind = np.dtype(dtype).newbyteorder("<")
    n_bytes = math.prod(lengths) * kind.itemsize
    if len(raw) != n_bytes:
        raise StateError(f"{what} has {len(raw)} bytes, but its shape {lengths} needs {n_bytes}.")
    array = np.frombuffer(raw, dtype=kind).reshape(lengths).astype(np.dtype(dtype), copy=False)
    if not np.isfinite(array).all():
        raise StateError(f"{what} holds NaN or infinity.")
    array.setflags(write=False)
    return array


class Sealed(str):
    """A part of a state as one string of JSON, whose `str()` is a short description.

    MLflow's autolog logs `str()` of every leaf of a program's state as a parameter of the run, and cuts long ones: so
    it does not log rated texts one by one. json, orjson and pickle write the characters.
    """

    about: str

    def __new__(cls, characters: str, about: str) -> "Sealed":
        """Keep the description, `about`, beside the characters."""
        entry = super().__new__(cls, characters)
        entry.about = about
        return entry

    def __reduce__(self) -> tuple[Any, ...]:
        return Sealed, (str.__str__(self), self.about)

    def __str__(self) -> str:
        return self.about

    def __repr__(self) -> str:
        return f"<{self.about}>"


Sealed.__module__ = "dspy_qvl.state"  # the name in every version's `program.save("state.pkl")`


def sealed(content: Mapping[str, Any] | None, about: str) -> Sealed | None:
    """A part of a state as one string, or None for None.

    Raises:
        InputError: it is too large to be read again.
    """
    if content is None:
        return None
    return Sealed(to_json(content, "the state"), about)


def check_schema(schema: int, what: str) -> None:
    """Refuse a state of a schema that cannot be read here.

    Raises:
        StateError: names both.
    """
    if schema not in READABLE:
        raise StateError(
            f"{what} has schema {shown(schema)}, this version of dspy_qvl reads schemas "
            f"{READABLE[0]} to {READABLE[-1]}; read it with the version that wrote it, or train again."
        )
