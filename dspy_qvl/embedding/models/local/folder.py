"""The folder of a model: the files that its vectors depend on, and the code that is refused.

Weights and settings are read, code is never run. Files that lie beside them unused (code, a README, other formats) are
no part of the model; a folder whose settings name classes of its own is refused, since sentence-transformers before 6
imports them without asking. Weights in `.bin` are pickles, which torch reads as tensors and nothing else.

    .json .safetensors .txt         read of any model, now or by version 0.1.0: always part of its identity
    .bin  without any .safetensors beside it  ┐ read instead, so part of its identity; a copy in another format, which
    .model without a tokenizer.json beside it ┘ is not read, makes no other model of it
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dspy_qvl.errors import InputError, ModelUnavailableError, shown

WEIGHTS = "weights"  # in identities
READ = (".json", ".safetensors", ".txt")
INSTEAD = {".bin": "*.safetensors", ".model": "tokenizer.json"}
EDGE = 2**20  # bytes at the start and at the end of a file that tell it from others
LARGEST_SETTINGS = 2**20  # bytes of a file of settings
LIBRARIES = ("sentence_transformers.", "torch.", "transformers.")  # whose classes settings may name


def identity_of(folder: Path, *, whole: bool = False) -> dict[str, str]:
    """Digests of a folder's files, which tell the vectors of its model from those of another.

    Args:
        folder: the folder.
        whole: True to read large files from start to end; else 1 MiB at the start and at the end tells them apart.

    Returns:
        content: of the files that are read of any model. weights: of those that are read instead, where there are any;
        version 0.1.0 did not know it, so that weights could change under one identity.

    Raises:
        InputError: code of its own, or something that is no plain file, for which loading would wait.
    """
    files = sorted(_plain_files(folder), key=lambda path: path.relative_to(folder).as_posix())
    for path in files:
        _refuse_code(path, folder)
    identity = {"content": _digest(folder, (path for path in files if path.suffix in READ), whole)}
    instead = [path for path in files if path.suffix in INSTEAD and not any(path.parent.glob(INSTEAD[path.suffix]))]
    return {**identity, WEIGHTS: _digest(folder, instead, whole)} if instead else identity


def check_unchanged(folder: str, content: str, *, whole: bool = False) -> None:
    """Refuse a folder whose files are not those that a learner was made with: its vectors would pass for theirs.

    Args:
        folder: the folder; a name on the hub is no folder, and passes.
        content: from `identity_of`, or "" to check nothing.
        whole: as there.

    Raises:
        ModelUnavailableError: the files are others.
    """
    if content and Path(folder).is_dir() and identity_of(Path(folder), whole=whole)["content"] != content:
        raise ModelUnavailableError(
            f"the files in {folder!r} have changed since this learner was made, so it is another model now; make the "
            "learner again."
        )


def is_static(types: Sequence[str]) -> bool:
    """True if these modules of sentence-transformers, by their classes, make static embeddings and nothing more."""
    first, *others = [name.rpartition(".")[2] if name.startswith(LIBRARIES) else "" for name in types] or [""]
    return first == "StaticEmbedding" and set(others) <= {"Normalize"}


def _plain_files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path
        elif path.exists() and not path.is_dir():
            raise InputError(f"{str(path)!r} is no plain file; a model's folder must hold nothing else.")


def _digest(folder: Path, files: Iterable[Path], whole: bool) -> str:
    """A digest of files: all of the small ones, and size, start and end, or all, of the large ones."""
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        with path.open("rb") as file:
            if not whole and size > 2 * EDGE:
                digest.update(file.read(EDGE))
                file.seek(size - EDGE)
            while piece := file.read(EDGE):
                digest.update(piece)
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
        return  # loading it will fail, and say so
    for name in _classes(settings):
        if "." in name and not name.startswith(LIBRARIES):
            raise InputError(
                f"{str(path.relative_to(folder))!r} names {shown(name)}, which is code of the model's own, and no code "
                "that comes with weights is run here. If you trust it, load the model yourself and give "
                "embedder=model.encode, with a name."
            )


def _classes(settings: Any) -> Iterator[str]:
    """Names of classes that sentence-transformers would import."""
    for entry in settings if isinstance(settings, list) else [settings]:
        if isinstance(entry, dict):
            types = entry.get("types")
            named = [entry.get(name) for name in ("type", "activation_function", "tokenizer_class")]
            named += types.values() if isinstance(types, dict) else ()
            yield from (name for name in named if isinstance(name, str))
