"""One file for a state, written whole or not at all, and refused if it is not whole.

    dspy_qvl 4 <blake2b of the rest, hex>
    {"settings": …, "head": …}

The checksum tells damage, not malice: every value in the file is checked all the same (`fields.py`).
"""

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from dspy_qvl.errors import InputError, StateError, shown
from dspy_qvl.state.bounded_json import check_size, from_json, to_json
from dspy_qvl.state.drafts import replacing
from dspy_qvl.state.entries import SCHEMA, check_schema

_HEADER = re.compile(rb"dspy_qvl ([0-9]{1,9}) ([0-9a-f]{32})\n")
_LONGEST_HEADER = 64


def write_file(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write a state to one file, whole, or not at all; then a file that was there stays.

    Raises:
        InputError: a path that is a folder or cannot be written, or content that is too large to be read again.
    """
    body = to_json(content, "the value function").encode()
    header = f"dspy_qvl {SCHEMA} {hashlib.blake2b(body, digest_size=16).hexdigest()}\n".encode()
    write_bytes(path, header + body)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write one file, whole, or not at all; then a file that was there stays.

    Raises:
        InputError: a path that is a folder or cannot be written.
    """
    target = checked_target(path)
    advice = "give another path"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as draft:
            with open(draft, "xb") as file:
                advice = "nothing was changed"
                usual = os.stat(target if target.exists() else draft).st_mode & 0o777
                os.chmod(draft, 0o600)  # while it is empty: nobody else may read it unless they may read the target
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(draft, usual)
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error.strerror or error}); {advice}.") from error


def checked_path(path: object) -> Path:
    """A path that a file can have.

    Raises:
        InputError: no path, or one with characters that no file name can hold.
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
    """The path of a file to be written, in place of one that is there; links are followed.

    Raises:
        InputError: no path of a file, or that of a folder, a device, a pipe.
    """
    target = Path(os.path.realpath(checked_path(path)))
    if target.is_dir():
        raise InputError(f"{target} is a folder; give the path of a file.")
    if target.exists() and not target.is_file():
        raise InputError(f"{target} is no plain file, and writing would replace it; give another path.")
    return target


def read_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the content that `write_file` wrote.

    Kind of file, header and size are checked before the rest is read, and the checksum before anything is parsed.

    Raises:
        InputError: there is no such file, or it is no plain one.
        StateError: a pickle, another kind of file, another schema, a truncated or altered file, one too large.
    """
    target = checked_path(path)
    try:
        with opened_plain(target) as file:
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


def opened_plain(target: Path) -> BinaryIO:
    """A regular file, opened to be read.

    Raises:
        OSError: there is none, or it is no regular file.
    """
    return open(target, "rb", opener=_plain_only)


def _plain_only(path: str, flags: int) -> int:
    """Opener for `open` that takes regular files only, and does not wait for a pipe or a device.

    Raises:
        OSError: it is no regular file.
    """
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is no regular file")
    return descriptor


def _checked_body(file: BinaryIO, target: Path) -> bytes:
    """The bytes after the header, with the right checksum."""
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
