"""The files of a static model on this machine: the settings that its arithmetic depends on, and damage in words."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dspy_qvl.embedding.models.local import brief
from dspy_qvl.embedding.models.static.recognition import NESTED, SETTINGS_FILES, WEIGHTS_FILE, json_of, saved_in
from dspy_qvl.embedding.models.static.table import MAX_TOKENS
from dspy_qvl.errors import ModelUnavailableError, shown

TOKENIZER_FILE = "tokenizer.json"
OTHER_WEIGHTS = "pytorch_model.bin"  # which sentence-transformers reads
TABLES = ("embedding.weight", "embeddings")  # names of the array, as either package writes it


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings of a saved model that its arithmetic depends on: where texts are cut, and if vectors are scaled.

    Raises:
        ModelUnavailableError: no number of tokens to cut at.
    """
    config = json_of(folder / "config.json")
    most = config.get("max_length", MAX_TOKENS) if isinstance(config, dict) else MAX_TOKENS
    if most is not None and (type(most) is not int or most < 1):
        raise damaged(folder, f"max_length in config.json is {shown(most)}, no number of tokens from 1 on and not null")
    return {"max_tokens": most, "normalize": (saved_in(folder) or {}).get("normalize") == "true"}


def damaged(folder: Path, problem: str) -> ModelUnavailableError:
    """The refusal of a folder that no package can make a model of."""
    return ModelUnavailableError(
        f"the folder {str(folder)!r} is damaged or incomplete ({problem}); get the whole model, or use "
        "model_name='lexical', which needs nothing."
    )


def damage(folder: Path) -> str | None:
    """The first thing wrong with the files of a model that could not be read; None if each can be read by itself."""
    for name in SETTINGS_FILES:
        if (folder / name).exists() and json_of(folder / name) is None:
            return f"{name} is no JSON"
    places = list(_places(folder))
    place = next((place for place in places if (place / WEIGHTS_FILE).is_file()), None)
    if place is None:
        has_other = any((place / OTHER_WEIGHTS).is_file() for place in places)
        return None if has_other else f"there is no {WEIGHTS_FILE}"
    try:
        return _damage_of(place)
    except Exception as error:
        return brief(error)


def _places(folder: Path) -> Iterator[Path]:
    """The folders that may hold the table: the model's own, and those that its modules name."""
    yield folder
    yield folder / NESTED
    modules = json_of(folder / SETTINGS_FILES[0])
    for module in modules if isinstance(modules, list) else ():
        if isinstance(module, dict) and isinstance(module.get("path"), str):
            yield folder / module["path"]


def _damage_of(place: Path) -> str | None:
    """The first thing wrong with the table and the tokenizer in a folder; errors of their readers go through."""
    from safetensors import safe_open
    from tokenizers import Tokenizer

    with safe_open(str(place / WEIGHTS_FILE), framework="numpy") as file:
        names = set(file.keys())
        shapes = [file.get_slice(name).get_shape() for name in TABLES if name in names]
    if not shapes:
        return f"{WEIGHTS_FILE} holds no vectors of tokens"
    shape = tuple(shapes[0])
    if len(shape) != 2:
        return f"the array of shape {shape} in {WEIGHTS_FILE} is no table"
    if not (place / TOKENIZER_FILE).is_file():
        return f"there is no {TOKENIZER_FILE}"
    try:
        n_tokens = Tokenizer.from_file(str(place / TOKENIZER_FILE)).get_vocab_size()
    except Exception as error:
        return f"{TOKENIZER_FILE}: {brief(error)}"
    few = n_tokens > shape[0] and "mapping" not in names
    return f"its table has {shape[0]:,} vectors, too few for its {n_tokens:,} tokens" if few else None
