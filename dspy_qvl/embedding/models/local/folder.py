"""The folder of a model: what its vectors depend on, and what is not let in.

Weights and settings are read, code is never run. What lies beside them unused (code, a README, other formats) is no
part of the model; a folder whose settings name classes of its own is refused, since sentence-transformers before 6
imports them without asking. Weights in `.bin` are pickles, which torch reads as tensors and nothing else.

    .json .safetensors .txt         what is read of a model, or was: always part of its identity
    .bin  without any .safetensors beside it  ┐ read instead, so part of its identity; a copy in another format, which
    .model without a tokenizer.json beside it ┘ is not read, makes no other model of it
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dspy_qvl.errors import InputError, shown

WEIGHTS = "weights"  # in identities
READ = (".json", ".safetensors", ".txt")
INSTEAD = {".bin": "*.safetensors", ".model": "tokenizer.json"}
EDGE = 2**20  # bytes at the start and at the end of a file that tell it from others
LARGEST_SETTINGS = 2**20  # bytes of a file of settings
LIBRARIES = ("sentence_transformers.", "torch.", "transformers.")  # whose classes settings may name


def identity_of(folder: Path) -> dict[str, str]:
    """What tells the vectors of a model in a folder from those of another: digests of its files.

    Returns:
        content: of what is read of any model. weights: of what is read instead, where there is such a thing; version
        0.1.0 did not know it, so that weights could change under one identity.

    Raises:
        InputError: code of its own, or something that is no plain file, for which loading would wait.
    """
    files = sorted(_plain_files(folder), key=lambda path: path.relative_to(folder).as_posix())
    for path in files:
        _refuse_code(path, folder)
    identity = {"content": _digest(folder, (path for path in files if path.suffix in READ))}
    instead = [path for path in files if path.suffix in INSTEAD and not any(path.parent.glob(INSTEAD[path.suffix]))]
    return {**identity, WEIGHTS: _digest(folder, instead)} if instead else identity


def _plain_files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path
        elif path.exists() and not path.is_dir():
            raise InputError(f"{str(path)!r} is no plain file; a model's folder must hold nothing else.")


def _digest(folder: Path, files: Iterable[Path]) -> str:
    """A digest of files: all of the small ones, size, start and end of the large ones."""
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(EDGE))
            if size > EDGE:
                file.seek(max(EDGE, size - EDGE))
                digest.update(file.read(EDGE))
    return digest.hexdigest()


def _refuse_code(path: Path, folder: Path) -> None:
    """Refuse settings that name a class which no library has.

    Raises:
        InputError: names it, and how to use the model all the same.
    """
    if path.name != "modules.json" and not path.name.endswith("config.json"):
        return
    with path.open("rb") as file:
        written = file.read(LARGEST_SETTINGS + 1)
    if len(written) > LARGEST_SETTINGS:
        raise InputError(f"{str(path)!r} has more than {LARGEST_SETTINGS:,} bytes, too many for a file of settings.")
    try:
        settings = json.loads(written)
    except (ValueError, RecursionError):
        return  # whoever loads it says so
    for name in _classes(settings):
        if "." in name and not name.startswith(LIBRARIES):
            raise InputError(
                f"{str(path.relative_to(folder))!r} names {shown(name)}, which is code of the model's own, and no code "
                "that comes with weights is run here. If you trust it, load the model yourself and give "
                "embedder=model.encode, with a name."
            )


def _classes(settings: Any) -> Iterator[str]:
    """What sentence-transformers imports by name."""
    for entry in settings if isinstance(settings, list) else [settings]:
        if isinstance(entry, dict):
            types = entry.get("types")
            named = [entry.get(name) for name in ("type", "activation_function", "tokenizer_class")]
            yield from filter(_is_name, [*named, *(types.values() if isinstance(types, dict) else ())])


def _is_name(value: object) -> bool:
    return isinstance(value, str)
