"""The files of a static model, read through model2vec, or through sentence-transformers where model2vec cannot.

    folder, or name on the hub ─► folder on this machine ─► model2vec ─────────────┐
                                                        └─► sentence-transformers ─┴─► StaticTable

Both only read: what is computed with tokenizer and table is one arithmetic, so either gives the same vectors.
"""

import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspy_qvl.embedding.models.local import (
    PROCESS,
    ModelRequest,
    ask_hub,
    brief,
    check_unchanged,
    load,
    refuse_path,
    repository_of,
    unavailable,
)
from dspy_qvl.embedding.models.static.files import damage, damaged, settings_of
from dspy_qvl.embedding.models.static.recognition import NESTED, WEIGHTS_FILE, caches
from dspy_qvl.embedding.models.static.table import StaticTable
from dspy_qvl.errors import ModelUnavailableError

PACKAGE, OTHER_PACKAGE = "model2vec", "sentence-transformers"
FILES = [
    "config.json", "modules.json", "config_sentence_transformers.json", WEIGHTS_FILE, "tokenizer.json", f"{NESTED}/*",
]  # fmt: skip


@dataclass(frozen=True)
class StaticRequest:
    """A static model; learners that agree on all of it share one table.

    Attributes:
        source: a folder, or a name on the Hugging Face hub.
        revision: commit, tag or branch on the hub, or None.
        backend: "torch" for sentence-transformers, or None for model2vec where it is installed.
        content: digest of a folder's files when the learner was made, or "": other files are another model.
    """

    source: str
    revision: str | None
    backend: str | None
    content: str = ""


_unavailable = functools.partial(unavailable, package=PACKAGE)
_tables: dict[StaticRequest, StaticTable] = {}


def table_of(request: StaticRequest) -> StaticTable:
    """The requested table, loaded once per process.

    Raises:
        ModelUnavailableError: it cannot be loaded here; the next call tries again.
    """
    if request not in _tables:
        with PROCESS.loading:
            if request not in _tables:
                _tables[request] = _loaded(request)
    return _tables[request]


def _loaded(request: StaticRequest) -> StaticTable:
    folder = _folder_here(request)
    if folder is None:
        ask_hub(request.source, request.revision, PACKAGE)
    doors = _doors(request)
    folder = _fetched(request) if folder is None else folder
    check_unchanged(request.source, request.content, whole=True)
    settings = settings_of(folder)
    parts = _parts(request, folder, doors)
    try:
        return StaticTable(**parts, **settings)
    except Exception as error:
        raise damaged(folder, str(error)) from error


def _doors(request: StaticRequest) -> list[str]:
    """The packages to read a model through, in order.

    Raises:
        ModelUnavailableError: neither is installed.
    """
    if request.backend == "torch":
        return [OTHER_PACKAGE]
    has_other = importlib.util.find_spec("sentence_transformers") is not None
    try:
        import model2vec  # noqa: F401
    except Exception as error:
        if has_other:
            return [OTHER_PACKAGE]
        raise _unavailable(f"{request.source!r} is a static model and needs {PACKAGE} ({brief(error)}).") from error
    return [PACKAGE, *([OTHER_PACKAGE] if has_other else [])]


def _parts(request: StaticRequest, folder: Path, doors: Sequence[str]) -> dict[str, Any]:
    """The tokenizer and the table of a folder, through the first package that can read it.

    Raises:
        ModelUnavailableError: the folder is damaged, a package is missing, or none can read it.
    """
    failures = []
    for door in doors:
        try:
            return _through_model2vec(folder) if door == PACKAGE else _through_sentence_transformers(folder)
        except Exception as error:
            if problem := damage(folder):
                raise damaged(folder, problem) from error
            if isinstance(error, ModelUnavailableError) and isinstance(error.__cause__, ImportError):
                raise
            failures.append(
                f"{door} cannot read the static model {request.source!r} ({brief(error.__cause__ or error)})"
            )
    if len(doors) > 1:
        way = "save it anew, for instance in float32"
    elif PACKAGE in doors:
        way = f"pip install {OTHER_PACKAGE}, which reads more kinds of files (backend='torch' asks for it)"
    else:
        way = f"leave backend out and pip install {PACKAGE}, which may read this kind of file"
    raise ModelUnavailableError(f"{', and '.join(failures)}; {way}.")


def _through_model2vec(folder: Path) -> dict[str, Any]:
    """The tokenizer and the table of a folder; weights and rows of tokens, where tokens share vectors."""
    from model2vec import StaticModel

    model = StaticModel.from_pretrained(folder)
    return {
        "tokenizer": model.tokenizer,
        "vectors": model.embedding,
        "weights": getattr(model, "weights", None),
        "mapping": getattr(model, "token_mapping", None),
    }


def _through_sentence_transformers(folder: Path) -> dict[str, Any]:
    """The tokenizer and the table of a folder, a row a token.

    Raises:
        ModelUnavailableError: sentence-transformers is missing, or cannot read it.
    """
    module = load(ModelRequest(str(folder), "cpu", "float32", "torch", None))[0]
    return {"tokenizer": module.tokenizer, "vectors": module.embedding.weight.detach().float().numpy()}


def _named(request: StaticRequest) -> dict[str, Any]:
    return {"repo_id": repository_of(request.source), "revision": request.revision}


def _folder_here(request: StaticRequest) -> Path | None:
    """The folder of a model on this machine: given, or of the hub's cache; None if the hub has to be asked.

    Raises:
        ModelUnavailableError: the path of a folder that is not there.
    """
    if Path(request.source).is_dir():
        return Path(request.source)
    refuse_path(request.source, PACKAGE)
    from huggingface_hub import snapshot_download

    for cache in caches():
        try:
            folder = Path(snapshot_download(**_named(request), cache_dir=cache, local_files_only=True))
        except (OSError, ValueError):  # nothing of it is there, or the name is none of the hub
            continue
        if any(part.exists() for part in (folder / WEIGHTS_FILE, folder / NESTED / WEIGHTS_FILE)):
            return folder
    return None


def _fetched(request: StaticRequest) -> Path:
    """The folder of the hub's cache that a model is fetched into, once.

    Raises:
        ModelUnavailableError: the hub does not give it.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(**_named(request), allow_patterns=FILES))
    except Exception as error:
        raise _unavailable(f"{request.source!r} could not be fetched ({brief(error)}).") from error
