"""The weights of a model, from a folder or the Hugging Face hub, as a SentenceTransformer.

    a folder ──────────────┐
    the hub's cache here ──┼─► sentence-transformers ─► weights complete? ─► pooling.py ─► the model
    the hub, asked once ───┘

A model that is nowhere is told before a package is missed, and a machine without network says so at once, instead of
after a minute of retries.
"""

import contextlib
import importlib.util
import json
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dspy_qvl.embedding.models.local.folder import check_unchanged, is_static
from dspy_qvl.embedding.models.local.pooling import with_qwen3_pooling
from dspy_qvl.embedding.models.model import listed
from dspy_qvl.errors import ModelUnavailableError

T = TypeVar("T")

HUB_SECONDS = 10.0  # after which a hub that has not answered counts as out of reach
PACKAGE = "sentence-transformers"
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True)
class ModelRequest:
    """A model and how it is to run; two learners that agree on all of it share one.

    Attributes:
        source: a folder, or a name on the Hugging Face hub.
        device: as torch names it, or None for the best one here.
        precision: of its weights and arithmetic.
        backend: "torch" or "onnx".
        revision: commit, tag or branch on the hub, or None.
        content: digest of a folder's files when the learner was made, or "": other files are another model.
    """

    source: str
    device: str | None
    precision: str
    backend: str
    revision: str | None
    content: str = ""


def load(request: ModelRequest) -> Any:
    """The requested SentenceTransformer.

    Raises:
        ModelUnavailableError: a package, the device, the weights or the network is missing, or a file is broken.
    """
    is_here = _find(request)
    try:
        import sentence_transformers  # noqa: F401
        import torch
    except Exception as error:
        if not Path(request.source).is_dir() and _is_static_in_cache(request):
            raise taken_for_another(request.source) from error
        raise unavailable(
            f"{request.source!r} runs in process and needs {_packages(request.source)} "
            f"({type(error).__name__}: {error})."
        ) from error
    if request.backend == "onnx" and not _has_onnx():
        raise ModelUnavailableError(
            "backend='onnx' needs onnxruntime and optimum: pip install 'sentence-transformers[onnx]'; "
            "or leave backend out, which gives the same vectors more slowly."
        )
    if request.device is not None:
        try:
            torch.empty(1, device=request.device)
        except Exception as error:
            raise ModelUnavailableError(
                f"device={request.device!r} is not there ({str(error).splitlines()[0][:120]}); "
                f"here is {', '.join(_devices())}; leave device out to take the best."
            ) from error
    check_unchanged(request.source, request.content)
    try:
        model = _from_anywhere(request, is_here)
    except ModelUnavailableError:
        raise
    except Exception as error:
        raise unavailable(f"{request.source!r} could not be loaded ({type(error).__name__}: {error}).") from error
    model.eval()
    return model


def _packages(source: str) -> str:
    """The package that a model needs; a static one on the hub is not recognised while the hub does not answer."""
    may_be_static = not Path(source).is_dir() and "qwen3-embedding" not in source.lower()
    static = ", or model2vec if it is a static model, with the learner made again while the hub answers"
    return f"{PACKAGE}{static if may_be_static else ''}"


def _has_onnx() -> bool:
    try:
        return all(importlib.util.find_spec(name) is not None for name in ("onnxruntime", "optimum.onnxruntime"))
    except ModuleNotFoundError:
        return False


def _devices() -> list[str]:
    import torch

    cards = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return ["cpu", *cards, *(["mps"] if torch.backends.mps.is_available() else [])]


def _find(request: ModelRequest) -> bool:
    """True if the model is on this machine, False if the hub has it.

    Raises:
        ModelUnavailableError: it is nowhere.
    """
    if Path(request.source).is_dir():
        return True
    refuse_path(request.source)
    if _is_cached(request):
        return True
    ask_hub(request.source, request.revision)
    return False


def refuse_path(source: str, package: str = PACKAGE) -> None:
    """Refuse the path of a folder that is not there.

    Raises:
        ModelUnavailableError: no model of the hub can have this name.
    """
    if not HUB_NAME.fullmatch(source):
        raise unavailable(f"there is no folder {source!r}, and a model of the hub is named owner/name.", package)


def _from_anywhere(request: ModelRequest, is_here: bool) -> Any:
    """The model from a folder, from the hub's cache if it is there, or else from the hub.

    The hub is not asked for a newer version of a cached model, whose vectors would differ from the stored ones.

    Raises:
        ModelUnavailableError: the cache holds a part of it, and the hub does not give the rest.
    """
    if Path(request.source).is_dir():
        return _sentence_transformer(request, local_only=True)
    if is_here:
        with contextlib.suppress(OSError):  # not all of it is there: an interrupted download
            return _sentence_transformer(request, local_only=True)
        ask_hub(request.source, request.revision)
    return _sentence_transformer(request, local_only=False)


def repository_of(name: str) -> str:
    """The name of a model's repository on the hub; sentence-transformers' own models go without an owner."""
    return name if "/" in name else f"sentence-transformers/{name}"


def _is_cached(request: ModelRequest) -> bool:
    """True if the hub's cache holds a model with its modules, or one that is known to have none.

    Weights alone are not enough: transformers may have stored them, and the pooling would be guessed.
    """
    modules, config = (_in_cache(request, name) for name in ("modules.json", "config.json"))
    return isinstance(modules, str) or (modules is not None and isinstance(config, str))


def _in_cache(request: ModelRequest, file: str) -> Any:
    """The path of a file in the hub's cache, None if it is not there, another object if the model is known to lack it.

    Raises:
        ModelUnavailableError: huggingface_hub refuses the name.
    """
    from huggingface_hub import try_to_load_from_cache

    cache = os.environ.get("SENTENCE_TRANSFORMERS_HOME")
    try:
        return try_to_load_from_cache(repository_of(request.source), file, cache_dir=cache, revision=request.revision)
    except ValueError as error:
        raise unavailable(f"{request.source!r} is no folder, and no name on the hub ({error}).") from error


def _is_static_in_cache(request: ModelRequest) -> bool:
    """True if the modules of a model in the hub's cache, by then, make it a static one."""
    path = _in_cache(request, "modules.json")
    try:
        modules = json.loads(Path(path).read_bytes()) if isinstance(path, str) else []
        return is_static([str(module["type"]) for module in modules])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False  # it is damaged


def taken_for_another(source: str) -> ModelUnavailableError:
    """The refusal of a static model on the hub that was not known as one when its learner was made."""
    return ModelUnavailableError(
        f"{source!r} is a static model, but that was not known when this learner was made, since the Hugging Face hub "
        "did not answer then. Make the learner again: now the model is on this machine."
    )


def ask_hub(source: str, revision: str | None, package: str = PACKAGE) -> None:
    """Fail fast if the hub lacks the model or cannot be reached; a download would be tried again for a minute.

    Raises:
        ModelUnavailableError: no network, no such model, no such revision, or no right to it.
    """
    from huggingface_hub import HfApi

    try:
        in_hub_seconds(lambda: HfApi().model_info(repository_of(source), revision=revision, timeout=HUB_SECONDS))
    except Exception as error:
        raise unavailable(
            f"{source!r} is not on this machine, and the Hugging Face hub does not give it ({brief(error)}).",
            package,
        ) from error


def in_hub_seconds(ask: Callable[[], T]) -> T:
    """The hub's answer to `ask`, which is given up after `HUB_SECONDS` in all, however often it tries again.

    Raises:
        TimeoutError: there was no answer. Exception: as `ask` raises it.
    """
    answer: futures.Future[T] = futures.Future()

    def work() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True, name="dspy_qvl-hub").start()  # left behind where it hangs
    try:
        return answer.result(HUB_SECONDS)
    except futures.TimeoutError:
        if answer.done():  # its own
            raise
        raise TimeoutError(f"no answer in {HUB_SECONDS:g} seconds") from None


def brief(error: BaseException) -> str:
    """The class of an error and the first line of its message, for a message of one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def _sentence_transformer(request: ModelRequest, local_only: bool) -> Any:
    """The model as sentence-transformers makes it, with all of its weights, and pooled as Qwen3 must be.

    Raises:
        ModelUnavailableError: weights are missing.
    """
    from sentence_transformers import SentenceTransformer

    with _missing_weights() as missing:
        model = SentenceTransformer(
            request.source,
            device="cpu" if request.backend == "onnx" else request.device,
            revision=request.revision,
            local_files_only=local_only,
            backend=request.backend,
            model_kwargs=_model_kwargs(request),
        )
    if missing:
        raise unavailable(
            f"{request.source!r} lacks weights, which would be random: {listed(missing)}; get the whole model."
        )
    return with_qwen3_pooling(model, request.source, request.revision, local_only=local_only)


@contextlib.contextmanager
def _missing_weights() -> Iterator[list[str]]:
    """The weights that transformers makes up while it loads since the file lacks them; it only logs them."""
    missing: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = re.sub(r"\x1b\[[0-9;]*m", "", record.getMessage())  # without colours
            names = re.findall(r"^\s*(\S.*?)\s*\|\s*MISSING\b", message, re.MULTILINE)
            for group in re.findall(r"newly initialized: \[(.*?)\]", message):  # transformers 4
                names += re.findall(r"'([^']+)'", group)
            missing.extend(name for name in names if "pooler" not in name)  # its output is not what is pooled here

    transformers, listener = logging.getLogger("transformers.modeling_utils"), Listener(logging.WARNING)
    level = transformers.level
    transformers.addHandler(listener)
    if not transformers.isEnabledFor(logging.WARNING):  # transformers says more to a logger whose own level is set
        transformers.setLevel(logging.WARNING)
    try:
        yield missing
    finally:
        transformers.removeHandler(listener)
        transformers.setLevel(level)


def _model_kwargs(request: ModelRequest) -> dict[str, Any]:
    import torch
    import transformers

    if request.backend == "onnx":
        return {"provider": "CPUExecutionProvider"}
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    return {"dtype" if version >= (4, 56) else "torch_dtype": getattr(torch, request.precision)}


def unavailable(problem: str, package: str = PACKAGE) -> ModelUnavailableError:
    """The refusal to embed with a model that cannot run here, with the three ways out; `package` runs it."""
    return ModelUnavailableError(
        f"{problem} Three ways out: pip install {package} on a machine that has or can fetch the weights; "
        "model_name='openrouter/qwen/qwen3-embedding-8b' with api_key or the provider's environment variable; "
        "or model_name='lexical', which needs nothing."
    )
