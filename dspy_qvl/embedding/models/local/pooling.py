"""The pooling of a model, tokens -> one vector: as its folder says, or for a bare Qwen3 as Qwen does it.

    modules.json is there     ─► its pooling, and padding on the left for Qwen3
    a Qwen3 without it        ─► end token ─► last position ─► unit length, no chat template
    any other model           ─► what sentence-transformers takes

sentence-transformers would take the mean of a bare Qwen3 (before 5.4) or put each text into a chat template, and leaves
the length as it is: see test_a_bare_qwen3_is_what_its_modules_would_make_it. To add another pooling, add a case to
`with_qwen3_pooling`, build its modules as `_last_token` does, and let `LocalModel.identity` name it: else the cache
would serve vectors of the old pooling.
"""

import os
from pathlib import Path
from typing import Any

QWEN3 = "qwen3"  # as the config of transformers names it
QWEN3_END = "<|endoftext|>"


def with_qwen3_pooling(model: Any, source: str, revision: str | None, *, local_only: bool) -> Any:
    """A SentenceTransformer whose pooling is right where it is a Qwen3; any other as it came.

    Args:
        model: as sentence-transformers made it.
        source: its folder, or its name on the hub.
        revision: commit, tag or branch on the hub, or None.
        local_only: True if the hub must not be asked.
    """
    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    if getattr(config, "model_type", None) != QWEN3:
        return model
    if not _says_its_pooling(source, revision, local_only):
        model = _last_token(model)
    elif Path(source).is_dir() and not (Path(source) / "tokenizer.json").exists():
        _ensure_end_token(model.tokenizer)  # it is in that file; vocab.json and merges.txt say nothing of it
    model.tokenizer.padding_side = "left"
    return model


def _says_its_pooling(source: str, revision: str | None, local_only: bool) -> bool:
    """True if the model has modules.json, which says how its tokens become a vector."""
    from sentence_transformers.util import is_sentence_transformer_model

    cache = os.environ.get("SENTENCE_TRANSFORMERS_HOME")
    found: bool = is_sentence_transformer_model(
        source, cache_folder=cache, revision=revision, local_files_only=local_only
    )
    return found


def _last_token(model: Any) -> Any:
    """A Qwen3 of transformers as an embedding model: end token, last position, unit length, no chat template."""
    from sentence_transformers import SentenceTransformer

    try:
        from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
    except ImportError:
        from sentence_transformers.models import Normalize, Pooling

    transformer = model[0]
    if hasattr(transformer, "modality_config"):
        transformer.modality_config = {"text": transformer.modality_config["text"]}
    _ensure_end_token(model.tokenizer)
    pooling = Pooling(transformer.auto_model.config.hidden_size, pooling_mode="lasttoken")
    return SentenceTransformer(modules=[transformer, pooling, Normalize()], device=str(model.device))


def _ensure_end_token(tokenizer: Any) -> None:
    """Let the tokenizer append Qwen3's end token, as the one of Qwen3-Embedding does; truncation never cuts it."""
    from tokenizers import processors

    end = tokenizer.convert_tokens_to_ids(QWEN3_END)
    if end is None or tokenizer("a")["input_ids"][-1] == end:
        return
    append = processors.TemplateProcessing(
        single=f"$A:0 {QWEN3_END}:0",
        pair=f"$A:0 {QWEN3_END}:0 $B:1 {QWEN3_END}:1",
        special_tokens=[(QWEN3_END, end)],
    )
    before = tokenizer.backend_tokenizer.post_processor
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([*([] if before is None else [before]), append])
