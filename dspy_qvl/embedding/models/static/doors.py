"""The files of a static model, read through model2vec, or through sentence-transformers where that is asked for.

    folder, or name on the hub ─► folder on this machine ─► model2vec ─────────────┐
                                                        └─► sentence-transformers ─┴─► StaticTable

Both only read: what is computed with tokenizer and table is one arithmetic, so either gives the same vectors.
"""

import functools
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspy_qvl.embedding.models.local import (
    HUB_NAME,
    PROCESS,
    ModelRequest,
    ask_hub,
    check_unchanged,
    load,
    repository_of,
    unavailable,
)
from dspy_qvl.embedding.models.static.recognition import NESTED, WEIGHTS_FILE, caches, saved_in
from dspy_qvl.embedding.models.static.table import MAX_TOKENS, StaticTable
from dspy_qvl.errors import ModelUnavailableError

PACKAGE = "model2vec"
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
    through_torch = request.backend == "torch"
    if not through_torch:
        try:
            import model2vec  # noqa: F401
        except Exception as error:
            through_torch = importlib.util.find_spec("sentence_transformers") is not None
            if not through_torch:
                problem = f"{request.source!r} is a static model and needs {PACKAGE} ({type(error).__name__}: {error})."
                raise _unavailable(problem) from error
    folder = _folder_of(request)
    check_unchanged(request.source, request.content, whole=True)
    read = _through_sentence_transformers if through_torch else _through_model2vec
    try:
        return StaticTable(**read(folder), **_settings(folder))
    except ModelUnavailableError:
        raise
    except Exception as error:
        raise _unavailable(f"{request.source!r} could not be loaded ({type(error).__name__}: {error}).") from error


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


def _settings(folder: Path) -> dict[str, Any]:
    """The settings of a saved model that its arithmetic depends on: where texts are cut, and if vectors are scaled."""
    path = folder / "config.json"
    config = json.loads(path.read_bytes()) if path.exists() else {}
    saved = saved_in(folder) or {}
    return {"max_tokens": config.get("max_length", MAX_TOKENS), "normalize": saved.get("normalize") == "true"}


def _folder_of(request: StaticRequest) -> Path:
    """The folder of a model: given, or of the hub's cache, into which it is fetched once.

    Raises:
        ModelUnavailableError: it is nowhere.
    """
    if Path(request.source).is_dir():
        return Path(request.source)
    if not HUB_NAME.fullmatch(request.source):
        raise unavailable(
            f"there is no folder {request.source!r}, and a model of the hub is named owner/name.", PACKAGE
        )
    from huggingface_hub import snapshot_download

    named: dict[str, Any] = {"repo_id": repository_of(request.source), "revision": request.revision}
    for cache in caches():
        try:
            folder = Path(snapshot_download(**named, cache_dir=cache, local_files_only=True))
        except Exception:  # nothing of it is there
            continue
        if any(part.exists() for part in (folder / WEIGHTS_FILE, folder / NESTED / WEIGHTS_FILE)):
            return folder
    ask_hub(request.source, request.revision, PACKAGE)
    try:
        return Path(snapshot_download(**named, allow_patterns=FILES))
    except Exception as error:
        raise _unavailable(f"{request.source!r} could not be fetched ({type(error).__name__}: {error}).") from error
