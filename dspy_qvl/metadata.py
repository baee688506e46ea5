"""What is kept beside a rated text, in the form it is saved in."""

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np

from dspy_qvl.errors import InputError, characters, shown


def check_metadata(metadata: object, what: str = "metadata") -> dict[str, Any] | None:
    """Metadata in the form JSON keeps it: numpy scalars and Decimals become numbers, tuples lists, NaN None.

    Raises:
        InputError: not a dict, or something in it that JSON cannot hold.
    """
    if metadata is None:
        return None
    if not isinstance(metadata, Mapping):
        raise InputError(f"{what} must be a dict or None, but got {type(metadata).__name__}: {shown(metadata)}.")
    try:
        plain = _plain(metadata)
        json.dumps(plain).encode()
        json.dumps(plain, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{what} must hold only what JSON can (strings, numbers, lists, dicts with string keys), "
            f"because it is saved with the learner: {error}."
        ) from None
    result: dict[str, Any] = plain
    return result


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return characters(value)
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"the key {shown(key)} is not a string")
        return {characters(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    return value
