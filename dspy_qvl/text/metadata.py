"""Metadata of rated texts, in the form JSON saves it."""

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np

from dspy_qvl.errors import InputError, characters, shown

DEEPEST = 100  # lists and dicts within each other: copies recurse twice a level, and Python stops at 1,000
INTEGERS = (-(2**63), 2**64 - 1)  # what JSON holds in every language


def check_metadata(metadata: object, what: str = "metadata", *, saved: bool = False) -> dict[str, Any] | None:
    """Metadata in the form JSON keeps it.

    numpy scalars and Decimals become numbers, tuples and arrays lists; NaN and infinity, which JSON has no word for,
    None.

    Args:
        metadata: a dict, or None.
        what: how an error names it.
        saved: True for metadata of a file: integers of any size stay then, as earlier versions saved them.

    Raises:
        InputError: not a dict, or something in it that JSON cannot hold: an object, a key that is no string, a lone
            surrogate, an integer of more than 64 bits, more than 100 lists and dicts within each other.
    """
    if metadata is None:
        return None
    if not isinstance(metadata, Mapping):
        raise InputError(f"{what} must be a dict or None, but got {type(metadata).__name__}: {shown(metadata)}.")
    try:
        plain: dict[str, Any] = _plain(metadata, DEEPEST, saved)
        json.dumps(plain, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{what} must hold only what JSON can (strings, numbers, lists, dicts with string keys), "
            f"because it is saved with the learner: {error}."
        ) from None
    return plain


def _plain(value: Any, levels: int, saved: bool) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return characters(value)
    if isinstance(value, Decimal):
        value = float(value) if value.is_finite() else math.nan
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, int) and not (saved or INTEGERS[0] <= value <= INTEGERS[1]):
        raise ValueError(f"the integer {shown(value)} has more than 64 bits; keep it as a string")
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, Mapping | list | tuple):
        return value
    if not levels:
        raise ValueError(f"lists and dicts lie within each other more than {DEEPEST} deep; keep less, or a string")
    if not isinstance(value, Mapping):
        return [_plain(item, levels - 1, saved) for item in value]
    for key in value:
        if not isinstance(key, str):
            raise TypeError(f"the key {shown(key)} is not a string")
    return {characters(key): _plain(item, levels - 1, saved) for key, item in value.items()}
