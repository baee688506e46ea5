"""What is written down: arrays inside JSON, and one file that is whole or refused.

    dspy_qvl 4 <blake2b of what follows, hex>
    {"settings": …, "head": …}

The digest tells damage, not malice: whoever reads a state checks every value in it all the same. How large a file may
be is said in `bounded_json.py`.
"""

import base64
import binascii
import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.errors import InputError, StateError, shown
from dspy_qvl.state.bounded_json import check_size, from_json, to_json
from dspy_qvl.state.drafts import draft_of, sweep

SCHEMA = 4
READABLE = (3, SCHEMA)  # 4: the p-value of the permutation test; parts of DSPy's state are `Sealed`
LONGEST_SIDE = 2**31  # of an array; its bytes are in the file, but where another side is 0
_HEADER = re.compile(rb"dspy_qvl ([0-9]{1,9}) ([0-9a-f]{32})\n")
_LONGEST_HEADER = 64


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
        entry: what was read.
        what: how an error names it.
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
    n_items = 1
    for length in lengths:
        n_items *= length
    if len(raw) != n_items * kind.itemsize:
        raise StateError(f"{what} has {len(raw)} bytes, but its shape {lengths} needs {n_items * kind.itemsize}.")
    array = np.frombuffer(raw, dtype=kind).reshape(lengths).astype(np.dtype(dtype), copy=False)
    if not np.isfinite(array).all():
        raise StateError(f"{what} holds NaN or infinity.")
    array.setflags(write=False)
    return array


class Sealed(str):
    """An entry of a state as JSON: the whole of it as a string, and one entry to whoever takes a state apart.

    MLflow's autolog writes every leaf of a program's state down as a parameter of the run, and cuts long ones: rated
    texts among them. Of this one `str()` says what it is; json, orjson and pickle have the characters.
    """

    about: str

    def __new__(cls, characters: str, about: str) -> "Sealed":
        """Keep what `str()` is to say beside the characters."""
        entry = super().__new__(cls, characters)
        entry.about = about
        return entry

    def __reduce__(self) -> tuple[Any, ...]:
        return Sealed, (str.__str__(self), self.about)

    def __str__(self) -> str:
        return self.about

    def __repr__(self) -> str:
        return f"<{self.about}>"


def sealed(content: Mapping[str, Any] | None, about: str) -> Sealed | None:
    """A part of a state as one entry, None where there is none.

    Raises:
        InputError: it is too large to be read again.
    """
    if content is None:
        return None
    return Sealed(to_json(content, "the state"), about)


def opened(state: object, name: str, what: str) -> Mapping[str, Any] | None:
    """A part of a state that was `sealed`, or that lies open, as states of old and files do.

    Raises:
        StateError: it is missing, neither, or too large.
    """
    entry = take(state, name, (Mapping, str, type(None)), what)
    if not isinstance(entry, str):
        return entry  # type: ignore[no-any-return]
    return from_json(entry, f"{name!r} in {what}")


def take(state: object, name: str, kind: type | tuple[type, ...], what: str) -> Any:
    """An entry of a state, of one of the given types.

    Raises:
        StateError: the state is no dict, the entry is missing or of another type.
    """
    if not isinstance(state, Mapping):
        raise StateError(f"{what} must be a dict, but is {type(state).__name__}.")
    if name not in state:
        raise StateError(f"{what} has no {name!r}; it is damaged or was not written by dspy_qvl.")
    value = state[name]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise StateError(f"{name!r} in {what} has the wrong type: {shown(value)}.")
    return value


def check_schema(schema: int, what: str) -> None:
    """Refuse a state of a schema that cannot be read here.

    Raises:
        StateError: names both.
    """
    if schema not in READABLE:
        raise StateError(
            f"{what} has schema {shown(schema)}, this version of dspy_qvl reads schemas "
            f"{' and '.join(map(str, READABLE))}; read it with the version that wrote it, or train again."
        )


def write_file(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write a state to one file: all of it, or nothing and what was there before stays.

    Raises:
        InputError: a path that is a folder or cannot be written, or content that is too large to be read again.
    """
    target = checked_target(path)
    body = to_json(content, "the value function").encode()
    header = f"dspy_qvl {SCHEMA} {hashlib.blake2b(body, digest_size=16).hexdigest()}\n".encode()
    draft, advice = draft_of(target), "give another path"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(draft, "xb") as file:
            advice = "nothing was changed"
            usual = os.stat(target if target.exists() else draft).st_mode & 0o777
            os.chmod(draft, 0o600)  # while it is empty: nobody else may read it unless they may read the target
            file.write(header + body)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(draft, usual)
        sweep(target, draft)
        os.replace(draft, target)
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error.strerror or error}); {advice}.") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(draft)


def checked_path(path: object) -> Path:
    """A path that a file could have.

    Raises:
        InputError: no path, or one with characters no file name can hold.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"path must be a string or a path, but got {type(path).__name__}: {shown(path)}.")
    try:
        name = os.fspath(path)
        target = Path(name if isinstance(name, str) else os.fsdecode(name))
        if b"\0" in os.fsencode(target):
            raise ValueError("a NUL character")
        target.exists()
    except (ValueError, OSError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{shown(path)} cannot be the path of a file ({why}).") from None
    return target


def checked_target(path: object) -> Path:
    """Where a file is to be written, whole, in place of what is there; a link is followed.

    Raises:
        InputError: no path of a file, or of something that is no plain file: a folder, a device, a pipe.
    """
    target = Path(os.path.realpath(checked_path(path)))
    if target.is_dir():
        raise InputError(f"{target} is a folder; give the path of a file.")
    if target.exists() and not target.is_file():
        raise InputError(f"{target} is no plain file, and writing would replace it; give another path.")
    return target


def read_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content `write_file` wrote.

    Kind of file, header and size are looked at before the rest is read, and the checksum before anything is parsed.

    Raises:
        InputError: there is no such file, or it is no plain one.
        StateError: a pickle, another kind of file, another schema, a truncated or altered file, one too large.
    """
    target = checked_path(path)
    try:
        with open(target, "rb", opener=_plain_only) as file:
            body = _checked_body(file, target)
    except MemoryError:
        raise StateError(f"{target} needs more memory than there is; load it where there is more.") from None
    except OSError as error:
        raise InputError(f"{target} cannot be read ({error.strerror or error}).") from error
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise StateError(f"{target} holds no JSON: {error}.") from None
    del body
    return from_json(text, str(target))


def _plain_only(path: str, flags: int) -> int:
    """Open a file for `open`, without waiting for one that is none: a pipe, a device.

    Raises:
        OSError: it is no regular file.
    """
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is no regular file")
    return descriptor


def _checked_body(file: BinaryIO, target: Path) -> bytes:
    """What follows the header, as it was written."""
    start = file.read(_LONGEST_HEADER)
    if start[:1] == b"\x80":
        raise StateError(f"{target} is a pickle; dspy_qvl never loads pickles, since they can run any code.")
    header = _HEADER.match(start)
    if header is None:
        raise StateError(f"{target} was not written by save_model: it does not begin with dspy_qvl's header.")
    check_schema(int(header[1]), str(target))
    size = os.fstat(file.fileno()).st_size - header.end()
    check_size(size, str(target))
    file.seek(header.end())
    body = file.read(size + 1)
    if hashlib.blake2b(body, digest_size=16).hexdigest().encode() != header[2]:
        raise StateError(f"{target} is truncated or was altered: its checksum does not match; restore a good copy.")
    return body
