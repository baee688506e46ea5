"""Files of value functions: the settings of a learner beside what it has learned.

    save_model ─► {"settings": …, "head": …} ─► one file          load_model ─► settings that agree ─► Vectorizer

A setting that the caller left at its default is taken from the file; one that the file contradicts is refused.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from types import NoneType
from typing import Any

from dspy_qvl.embedding import Embedding
from dspy_qvl.errors import InputError, StateError, shown
from dspy_qvl.features import AUTO, Features
from dspy_qvl.fitting import check_alpha
from dspy_qvl.learner.fit_state import dumped
from dspy_qvl.learner.head import RidgeHead
from dspy_qvl.learner.learned import Learned
from dspy_qvl.learner.vectorizer import Vectorizer
from dspy_qvl.state import read_file, take

SETTINGS: dict[str, tuple[Any, Any]] = {  # the default of each, and its type in a file
    "model_name": (None, (str, NoneType)),
    "embedding_dim": (None, int),
    "instruction": (None, (str, NoneType)),
    "ridge_alpha": (1.0, (int, float)),
    "features": (AUTO, (str, list)),
}


def content_of(learned: Learned, vectorizer: Vectorizer, *, keep_examples: bool) -> dict[str, Any]:
    """The content of a file, as JSON; arrays as base64."""
    embedding = vectorizer.embedding
    settings = {
        **vectorizer.settings,
        "model_name": None if embedding.spec.embedder is not None else embedding.spec.model_name,
        "embedding_dim": embedding.dim or learned.fit_or_refuse().probe.vectors.shape[1],
        "instruction": embedding.instruction,
    }
    return {"settings": settings, "head": dumped(learned, keep_examples=keep_examples)}


def read(path: str | os.PathLike[str]) -> tuple[Mapping[str, Any], Learned]:
    """The content of a file, its settings unchecked, and what it has learned.

    Raises:
        InputError: there is no such file.
        StateError: nothing was learned, or something cannot be used.
    """
    content = read_file(path)
    head = RidgeHead()
    head.load_state(take(content, "head", Mapping, str(path)))
    if head.fitted is None:
        raise StateError(f"{path} holds no fitted value function.")
    return content, head.now


def vectorizer_for(
    path: str | os.PathLike[str], content: Mapping[str, Any], learned: Learned, mine: Vectorizer, *, trust_model: bool
) -> Vectorizer:
    """The vectorizer that a file asks for, where the caller's settings leave that open.

    Args:
        path: the file.
        content: of the file.
        learned: what the file has learned.
        mine: the learner's own; given back where the file asks for nothing else.
        trust_model: True if the file may name a hosted model that the caller did not.

    Raises:
        StateError: another embedding model, a hosted one that the caller did not name, features that are missing, or a
            setting that the file contradicts.
    """
    fit = learned.fit_or_refuse()
    told, blocks, embedding, spec = mine.settings, mine.blocks, mine.embedding, mine.embedding.spec
    try:
        settings = _checked(take(content, "settings", Mapping, str(path)), mine, trust_model=trust_model)
        is_named = spec.embedder is not None or told["model_name"] is not None
        name = spec.model_name if is_named else settings["model_name"]
        dim, instruction = settings["embedding_dim"], settings["instruction"]
        if (name, dim, instruction) != (spec.model_name, embedding.dim, embedding.instruction):
            embedding = Embedding(
                replace(spec, model_name=name, embedding_dim=dim).like(fit.identity),
                cache_dir=embedding.given_dir,
                instruction=instruction,
                batch_size=mine.batch_size,
                storage=embedding.storage,
            )
        embedding = embedding.like(fit.identity)
        wanted = blocks.wanted if settings["features"] == told["features"] else settings["features"]
        if wanted is not blocks.wanted or not blocks.suits(embedding):
            blocks = Features.beside(embedding, wanted)
        settings["model_name"] = told["model_name"]
        vectorizer = Vectorizer(settings, embedding, blocks, mine.batch_size)
        vectorizer.check_blocks(fit.blocks)
    except (StateError, InputError) as error:
        raise StateError(f"{path} does not fit this learner: {error}") from error
    vectorizer.check_model(fit)
    return mine if settings == told and embedding is mine.embedding and blocks is mine.blocks else vectorizer


def _checked(saved: Mapping[str, Any], mine: Vectorizer, *, trust_model: bool) -> dict[str, Any]:
    """The settings of a file, none of which contradicts the caller's.

    Raises:
        StateError: names the setting, and how to go on.
    """
    settings = {name: take(saved, name, kind, "the saved settings") for name, (_, kind) in SETTINGS.items()}
    settings["ridge_alpha"] = check_alpha(settings["ridge_alpha"])
    name, told, blocks, spec = settings["model_name"], mine.settings, mine.blocks, mine.embedding.spec
    is_mine = spec.embedder is not None or told["model_name"] is not None or name in (None, spec.model_name)
    if not (is_mine or trust_model) and replace(spec, model_name=name).is_routed:
        raise StateError(
            f"it was saved with the hosted model {shown(name, 200)}, which would be sent every text that is valued "
            f"here, with the key of the environment. If that is meant, make this learner with model_name="
            f"{shown(name, 200)}, or load the file with trust_model=True."
        )
    if settings["features"] != AUTO:
        mine.check_blocks([str(name) for name in settings["features"]])
        if sorted(settings["features"]) == sorted(blocks.names) and not blocks.auto:
            settings["features"] = told["features"]  # in whatever order
    for name, value in settings.items():
        # A model is compared by its identity, not by its name: see `Vectorizer.check_model`.
        if name != "model_name" and told[name] not in (SETTINGS[name][0], value):
            raise StateError(
                f"it was saved with {name}={shown(value)}, but this learner was made with {shown(told[name])}; leave "
                f"{name} out, or let this learner learn its rated texts anew: migrate(path)."
            )
    if settings["model_name"] is None and spec.embedder is None:
        raise StateError(
            "it was saved with an embedder of its own; give that embedder to this learner, or let this one learn "
            "its rated texts anew: migrate(path)."
        )
    return settings
