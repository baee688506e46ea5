"""The weights of a model, from a folder or the Hugging Face hub, as a SentenceTransformer.

    a folder ──────────────┐
    the hub's cache here ──┼─► sentence-transformers ─► what Qwen3 needs beside ─► the model
    the hub, asked once ───┘

sentence-transformers leaves two things to us. A Qwen3 without modules.json gets last-token pooling, its end token, unit
length and no chat template. A machine without network says so at once, instead of after a minute of retries.
"""

import contextlib
import importlib.util
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspy_qvl.errors import ModelUnavailableError

HUB_SECONDS = 10.0
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")

QWEN3 = "qwen3"
QWEN3_END = "<|endoftext|>"


@dataclass(frozen=True)
class Wanted:
    """Which model, and how it is to run: what two learners must agree on to share one.

    Attributes:
        source: a folder, or a name on the Hugging Face hub.
        device: as torch names it, or None for the best one here.
        precision: of its weights and arithmetic.
        backend: "torch" or "onnx".
        revision: commit, tag or branch on the hub, or None.
    """

    source: str
    device: str | None
    precision: str
    backend: str
    revision: str | None


def load(wanted: Wanted) -> Any:
    """The SentenceTransformer that is wanted.

    Raises:
        ModelUnavailableError: a package, the device, the weights or the network is missing, or a file is broken.
    """
    try:
        import sentence_transformers  # noqa: F401
        import torch
    except Exception as error:
        raise unavailable(
            f"{wanted.source!r} runs in process and needs sentence-transformers ({type(error).__name__}: {error})."
        ) from error
    if wanted.backend == "onnx" and not _has_onnx():
        raise ModelUnavailableError(
            "backend='onnx' needs onnxruntime and optimum: pip install 'sentence-transformers[onnx]'; "
            "or leave backend out, which gives the same vectors more slowly."
        )
    if wanted.device is not None:
        try:
            torch.empty(1, device=wanted.device)
        except Exception as error:
            raise ModelUnavailableError(
                f"device={wanted.device!r} is not there ({str(error).splitlines()[0][:120]}); "
                f"here is {', '.join(_devices())}; leave device out to take the best."
            ) from error
    try:
        model = _from_anywhere(wanted)
    except ModelUnavailableError:
        raise
    except Exception as error:
        raise unavailable(f"{wanted.source!r} could not be loaded ({type(error).__name__}: {error}).") from error
    model.eval()
    return model


def _has_onnx() -> bool:
    try:
        return all(importlib.util.find_spec(name) is not None for name in ("onnxruntime", "optimum.onnxruntime"))
    except ModuleNotFoundError:
        return False


def _devices() -> list[str]:
    import torch

    cards = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return ["cpu", *cards, *(["mps"] if torch.backends.mps.is_available() else [])]


def _from_anywhere(wanted: Wanted) -> Any:
    """The model from a folder, from the hub's cache if it is there, or else from the hub.

    A cached model is not asked about on the hub: its vectors would change under a value function's feet.

    Raises:
        ModelUnavailableError: it is nowhere.
    """
    if Path(wanted.source).is_dir():
        return _sentence_transformer(wanted, local_only=True)
    if not HUB_NAME.fullmatch(wanted.source):
        raise unavailable(f"there is no folder {wanted.source!r}, and a model of the hub is named owner/name.")
    if _is_cached(wanted):
        try:
            return _sentence_transformer(wanted, local_only=True)
        except OSError:  # not all of it is there: an interrupted download
            _ask_hub(wanted)
    else:
        _ask_hub(wanted)
    return _sentence_transformer(wanted, local_only=False)


def _repository(wanted: Wanted) -> str:
    """The name of the model on the hub; sentence-transformers' own models go without an owner."""
    return wanted.source if "/" in wanted.source else f"sentence-transformers/{wanted.source}"


def _is_cached(wanted: Wanted) -> bool:
    """Tell whether the hub's cache holds a model with its modules, or one that is known to have none.

    Weights alone are not enough: transformers may have stored them, and the pooling would be guessed.
    """
    from huggingface_hub import try_to_load_from_cache

    modules, config = (
        try_to_load_from_cache(
            _repository(wanted), name, cache_dir=os.environ.get("SENTENCE_TRANSFORMERS_HOME"), revision=wanted.revision
        )
        for name in ("modules.json", "config.json")
    )
    return isinstance(modules, str) or (modules is not None and isinstance(config, str))


def _ask_hub(wanted: Wanted) -> None:
    """Refuse at once what the hub has not or cannot be asked for; transformers would retry for a minute.

    Raises:
        ModelUnavailableError: no network, no such model, no such revision, or no right to it.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(_repository(wanted), revision=wanted.revision, timeout=HUB_SECONDS)
    except Exception as error:
        raise unavailable(
            f"{wanted.source!r} is not on this machine, and the Hugging Face hub does not give it "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0]})."
        ) from error


def _sentence_transformer(wanted: Wanted, local_only: bool) -> Any:
    """The model as sentence-transformers makes it, with what Qwen3 needs and it does not see to."""
    from sentence_transformers import SentenceTransformer

    with _missing_weights() as missing:
        model = SentenceTransformer(
            wanted.source,
            device="cpu" if wanted.backend == "onnx" else wanted.device,
            revision=wanted.revision,
            local_files_only=local_only,
            backend=wanted.backend,
            model_kwargs=_model_kwargs(wanted),
        )
    if missing:
        raise unavailable(
            f"{wanted.source!r} lacks weights, which would be random: {', '.join(missing[:3])}"
            f"{f' and {len(missing) - 3} more' if len(missing) > 3 else ''}; get the whole model."
        )
    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    if getattr(config, "model_type", None) != QWEN3:
        return model
    if not _has_modules(wanted, local_only):
        model = _bare_qwen3(model)
    elif Path(wanted.source).is_dir() and not (Path(wanted.source) / "tokenizer.json").exists():
        _ensure_end_token(model.tokenizer)  # it is in that file; vocab.json and merges.txt say nothing of it
    model.tokenizer.padding_side = "left"
    return model


@contextlib.contextmanager
def _missing_weights() -> Iterator[list[str]]:
    """The weights that transformers makes up while it loads, since the file has them not; it only logs them."""
    missing: list[str] = []

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said = re.sub(r"\x1b\[[0-9;]*m", "", record.getMessage())  # without colours
            names = re.findall(r"^\s*(\S.*?)\s*\|\s*MISSING\b", said, re.MULTILINE)
            for listed in re.findall(r"newly initialized: \[(.*?)\]", said):  # transformers 4
                names += re.findall(r"'([^']+)'", listed)
            missing.extend(name for name in names if "pooler" not in name)  # its output is not what is pooled here

    talking, listening = logging.getLogger("transformers.modeling_utils"), Listening(logging.WARNING)
    level = talking.level
    talking.addHandler(listening)
    if not talking.isEnabledFor(logging.WARNING):  # transformers says more to a logger whose own level is set
        talking.setLevel(logging.WARNING)
    try:
        yield missing
    finally:
        talking.removeHandler(listening)
        talking.setLevel(level)


def _model_kwargs(wanted: Wanted) -> dict[str, Any]:
    import torch
    import transformers

    if wanted.backend == "onnx":
        return {"provider": "CPUExecutionProvider"}
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    return {"dtype" if version >= (4, 56) else "torch_dtype": getattr(torch, wanted.precision)}


def _has_modules(wanted: Wanted, local_only: bool) -> bool:
    """Tell whether the model says itself how its tokens become a vector."""
    from sentence_transformers.util import is_sentence_transformer_model

    found: bool = is_sentence_transformer_model(
        wanted.source,
        cache_folder=os.environ.get("SENTENCE_TRANSFORMERS_HOME"),
        revision=wanted.revision,
        local_files_only=local_only,
    )
    return found


def _bare_qwen3(model: Any) -> Any:
    """A Qwen3 of transformers as an embedding model: end token, last position, unit length, no chat template.

    sentence-transformers would take the mean (before 5.4) or put each text into a chat template, and leaves the
    length as it is: see test_a_bare_qwen3_is_what_its_modules_would_make_it.
    """
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
    """Let the tokenizer append Qwen3's end token, as the one of Qwen3-Embedding does; truncation leaves room for it."""
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


def unavailable(problem: str) -> ModelUnavailableError:
    """The refusal to embed with a model that cannot run here, with the three ways out."""
    return ModelUnavailableError(
        f"{problem} Three ways out: pip install 'dspy_qvl[local]' on a machine that has or can fetch the weights; "
        "model_name='openrouter/qwen/qwen3-embedding-8b' with api_key or the provider's environment variable; "
        "or model_name='lexical', which needs nothing."
    )
