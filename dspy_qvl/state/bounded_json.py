"""JSON that may come from anyone, parsed only if memory is sure to hold it.

Parsed JSON takes far more memory than its text: an empty list is three characters and 72 bytes, a dict of one entry
eight characters and 200 bytes, so that 60 MB fill 2 GB. Every list, dict, key and entry has a mark before or behind
it, one of , : [ or { outside of strings. They are counted before anything is parsed: one stands for at most 70 bytes.
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.errors import InputError, StateError

# Vectors are most of a state, 4 bytes a column and a third more as base64: 2 GiB hold those of 390,000 texts
# with 1,024 columns, or of 98,000 with 4,096.
LARGEST_JSON = 2**31
# A rated text has four marks of its own and two for each entry of its metadata: enough for a million texts with three
# entries each. They take up to 700 MB of memory beside the characters, and 10 seconds.
MOST_MARKS = 10_000_000

MARKS = ",:[{"
CHUNK = 2**22

_IS_MARK = np.isin(np.arange(256), list(MARKS.encode()))


def to_json(content: Mapping[str, Any], what: str) -> str:
    """Write content as JSON that `from_json` reads.

    Args:
        content: dicts, lists, strings, finite numbers, booleans and None.
        what: its name in errors.

    Raises:
        InputError: NaN, infinity, a lone surrogate, another type, or more than `from_json` reads.
    """
    try:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        n_bytes = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{what} cannot be saved: {error}.") from None
    beyond = _too_large(n_bytes) or _too_many(text)
    if beyond is not None:
        raise InputError(
            f"{what} cannot be saved: it has {beyond}. Keep less metadata, fewer columns (embedding_dim), or no "
            "rated texts (keep_examples=False)."
        )
    return text


def from_json(text: str, what: str) -> dict[str, Any]:
    """Parse a JSON text that holds a dict.

    Args:
        text: the text.
        what: its name in errors.

    Raises:
        StateError: no JSON, no dict, or more than memory is sure to hold.
    """
    check_size(len(text), what)
    _refuse(what, _too_many(text), "MOST_MARKS")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StateError(f"{what} holds no JSON: {error}.") from None
    except MemoryError:
        raise StateError(f"{what} needs more memory than there is; load it where there is more.") from None
    if not isinstance(content, dict):
        raise StateError(f"{what} must hold a dict, but holds {type(content).__name__}.")
    return content


def check_size(n_bytes: int, what: str) -> None:
    """Refuse JSON that is too large before it is read.

    Raises:
        StateError: it has more than 2 GiB.
    """
    _refuse(what, _too_large(n_bytes), "LARGEST_JSON")


def _refuse(what: str, beyond: str | None, limit: str) -> None:
    if beyond is not None:
        raise StateError(
            f"{what} has {beyond}. Where you trust it and have the memory, raise dspy_qvl.state.bounded_json.{limit}."
        )


def _too_large(n_bytes: int) -> str | None:
    return f"{n_bytes:,} bytes, more than the {LARGEST_JSON:,} that are read" if n_bytes > LARGEST_JSON else None


def _too_many(text: str) -> str | None:
    if sum(map(text.count, MARKS)) <= MOST_MARKS:  # within strings too: nearly always enough to know
        return None
    if all(n_marks <= MOST_MARKS for n_marks in itertools.accumulate(_marks_outside(text))):
        return None
    return f"more than {MOST_MARKS:,} lists, dicts and entries, the most that are read"


def _marks_outside(text: str) -> Iterator[int]:
    """Count the marks outside of strings, chunk by chunk; takes memory for one chunk only."""
    start, inside = 0, False
    while start < len(text):
        chunk = text[start : start + CHUNK]
        if (len(chunk) - len(chunk.rstrip("\\"))) % 2:  # the character after a backslash belongs to it
            chunk = text[start : start + CHUNK + 1]
        start += len(chunk)
        plain = chunk.replace("\\\\", "  ").replace('\\"', "  ").encode("latin-1", "replace")
        letters = np.frombuffer(plain, dtype=np.uint8)
        within: NDArray[np.bool_] = (np.cumsum(letters == ord('"'), dtype=np.uint32) + inside) % 2 == 1
        inside = bool(within[-1])
        yield int(np.count_nonzero(_IS_MARK[letters] & ~within))
