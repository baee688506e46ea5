"""Static models told from others by the files that they were saved as, before anything is loaded.

    modules.json: a StaticEmbedding, and nothing after it but Normalize  ┐
    config.json: "model_type": "model2vec"                               ├─► {"normalize": …, "precision": …}, or None
    0_StaticEmbedding/, or a table with the key of sentence-transformers ┘

A name on the hub is looked up in the hub's cache, and only if it is not there is the hub asked, for these two small
files. While the hub does not answer, a model counts as one of sentence-transformers.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dspy_qvl.embedding.models.local import HUB_NAME, HUB_SECONDS, in_hub_seconds, is_static, repository_of

STATIC = "static"  # in identities
SETTINGS_FILES = ("modules.json", "config.json", "config_sentence_transformers.json")
NESTED = "0_StaticEmbedding"
WEIGHTS_FILE = "model.safetensors"
LARGEST_FILE = 2**20  # bytes of a file of settings, and of the header of a table
ASK_AGAIN_SECONDS = 60.0  # a hub that did not answer is left alone for so long
PRECISIONS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I8": "int8"}

_unanswered: dict[tuple[str, str | None], float] = {}  # what the hub was asked in vain -> when, in seconds


def saved_in(folder: Path) -> dict[str, str] | None:
    """How the static model in a folder was saved, or None for another kind of model.

    Returns:
        normalize: "true" if it scales its vectors to length 1. precision: numbers of its table, where a file tells.
    """
    header = _header(folder / WEIGHTS_FILE) or _header(folder / NESTED / WEIGHTS_FILE)
    modules, config = (json_of(folder / name) for name in SETTINGS_FILES[:2])
    saved = _saved(modules, config)
    is_bare = modules is None and (folder / SETTINGS_FILES[2]).exists()
    if saved is None and is_bare and "embedding.weight" in header:
        saved = {"normalize": "false"}
    table = header.get("embedding.weight", header.get("embeddings"))
    if saved is None or not isinstance(table, dict):
        return saved
    dtype = str(table.get("dtype"))
    return {**saved, "precision": PRECISIONS.get(dtype, dtype.lower())}


def saved_on_hub(name: str, revision: str | None) -> dict[str, str] | None:
    """As `saved_in`, of a model on the Hugging Face hub; None too if nothing here tells and the hub does not answer.

    Args:
        name: owner/name, or a model of sentence-transformers without its owner.
        revision: commit, tag or branch, or None.
    """
    if not HUB_NAME.fullmatch(name):
        return None
    files = dict(_cached(name, revision)) or _asked(name, revision)
    modules, config = (json_of(files[file]) if file in files else None for file in SETTINGS_FILES[:2])
    return _saved(modules, config)


def caches() -> Iterator[str | None]:
    """The folders of the hub's cache: its own, then that of sentence-transformers where it has another."""
    yield None
    if folder := os.environ.get("SENTENCE_TRANSFORMERS_HOME"):
        yield folder


def _saved(modules: Any, config: Any) -> dict[str, str] | None:
    config = config if isinstance(config, dict) else {}
    types = [str(one.get("type")) for one in modules if isinstance(one, dict)] if isinstance(modules, list) else []
    if not (is_static(types) if types else config.get("model_type") == "model2vec"):
        return None
    saved = {"normalize": "true" if config.get("normalize") is True or len(types) > 1 else "false"}
    precision = config.get("embedding_dtype")
    return {**saved, "precision": precision} if isinstance(precision, str) else saved


def _cached(name: str, revision: str | None) -> Iterator[tuple[str, Path]]:
    """The settings of a model that lie in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    for cache in caches():
        for file in SETTINGS_FILES[:2]:
            with contextlib.suppress(ValueError):  # huggingface_hub refuses the name
                path = try_to_load_from_cache(repository_of(name), file, cache_dir=cache, revision=revision)
                if isinstance(path, str):
                    yield file, Path(path)


def _asked(name: str, revision: str | None) -> dict[str, Path]:
    """The settings of a model as the hub gives them now; none where it does not answer, or may not be asked."""
    from huggingface_hub import constants

    asked, now = (name, revision), time.monotonic()
    if constants.HF_HUB_OFFLINE or now - _unanswered.get(asked, -ASK_AGAIN_SECONDS) < ASK_AGAIN_SECONDS:
        return {}
    try:
        return in_hub_seconds(lambda: _fetched(repository_of(name), revision))
    except Exception:  # those of httpx, requests and huggingface_hub have no base in common: none of them is an answer
        _unanswered[asked] = time.monotonic()
        return {}


def _fetched(repository: str, revision: str | None) -> dict[str, Path]:
    from huggingface_hub import HfApi, hf_hub_download

    # Without a network this fails at once, where a download would be tried again for 20 seconds.
    told = HfApi().model_info(repository, revision=revision, timeout=HUB_SECONDS)
    there = {one.rfilename for one in told.siblings or ()}
    return {
        file: Path(hf_hub_download(repository, file, revision=revision, etag_timeout=HUB_SECONDS))
        for file in SETTINGS_FILES[:2]
        if file in there
    }


def json_of(path: Path) -> Any:
    """The content of a file of settings; None if there is none that can be read."""
    try:
        with _plain(path).open("rb") as file:
            return json.loads(file.read(LARGEST_FILE))
    except (OSError, ValueError, RecursionError):
        return None


def _header(path: Path) -> dict[str, Any]:
    """The arrays of a safetensors file by name, their numbers unread; none if there is no such file."""
    try:
        with _plain(path).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= LARGEST_FILE else None
    except (OSError, ValueError, RecursionError):
        header = None
    return header if isinstance(header, dict) else {}


def _plain(path: Path) -> Path:
    """The path of a plain file; opening a pipe would wait.

    Raises:
        FileNotFoundError: it is none.
    """
    if not path.is_file():
        raise FileNotFoundError(path)
    return path
