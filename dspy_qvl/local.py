"""An embedding model in this process: sentence-transformers, loaded at first use and once per process.

    texts ─► tokens, one caller at a time ─► forward pass, any number at once ─► (n, d) float32
    long text ─► "cut" to the model's window, or the "mean" over windows of it

What this room sees to, and sentence-transformers does not:
    a Qwen3 folder without modules.json has last-token pooling, its end token, unit length and no chat template;
    threads share one model, although its tokenizer serves only one caller at a time;
    a forked worker does not hang on the threads that stayed in its parent;
    a machine without network says so at once, instead of after a minute of retries.

torch is imported when the first text is embedded: what a model is called, its precision included, costs nothing.
"""

import functools
import importlib.metadata
import importlib.util
import itertools
import os
import platform
import re
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.errors import EmbeddingError, InputError, ModelUnavailableError, shown, unavailable

Vectors = NDArray[np.float32]

PRECISIONS = ("float32", "bfloat16", "float16")
BACKENDS = ("torch", "onnx")
LONG_TEXTS = ("cut", "mean")

TOKENS_A_BATCH_CPU = 2048  # padded; more only adds padding and memory on a CPU
TOKENS_A_BATCH_GPU = 16_384
COUNT_AT_ONCE = 256  # texts a call of the tokenizer
BYTES_A_TOKEN = 4  # of English prose
SURE_TOKENS_A_BYTE = 2  # no tokenizer makes more of a text, however it normalises it
SPECIAL_TOKENS = 8
NO_WINDOW = 10**9  # tokenizers without a limit state an absurd one
ROOM_TO_SPARE = 3  # tokens a window may gain because it is cut where no word ends
SMALLEST_ROOM = 8  # tokens a window must have left beside the instruction
HUB_SECONDS = 10.0
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")

QWEN3 = "qwen3"
QWEN3_END = "<|endoftext|>"
INSTRUCTION = re.compile(r"Instruct: .*?\nQuery:", re.DOTALL)  # what `text.instructed` puts before a text


@dataclass(frozen=True)
class Lengths:
    """How long texts are for a model.

    Attributes:
        tokens: what each text costs, special tokens included; of a text that is cut, what is left of it.
        over: position -> its full number of tokens, for the texts longer than the window.
        window: tokens the model sees of a text, or None for a model without a limit.
    """

    tokens: list[int]
    over: dict[int, int]
    window: int | None


def chosen_precision(precision: str | None, device: str | None, backend: str) -> str:
    """The precision a model runs in, decided without torch since it is part of the model's name.

    bfloat16 where it is fast (a CPU with instructions for it, or an NVIDIA card), else float32.

    Args:
        precision: "float32", "bfloat16", "float16", or None for the fast one.
        device: as torch names it, or None for the best one.
        backend: "torch" or "onnx"; onnx runs in float32.

    Raises:
        InputError: another precision, or one the backend has not.
    """
    if precision is not None and precision not in PRECISIONS:
        whole = re.fullmatch(r"u?int\d+|[48]bit|binary|ubinary", str(precision))
        why = (
            "; vectors of whole numbers are not offered: measured on MiniLM, their cosine with the float32 vectors "
            "is only .78 to .82, and 'bfloat16' is as fast at .9998"
            if whole
            else ""
        )
        raise InputError(f"precision must be one of {PRECISIONS} or None, but got {shown(precision)}{why}.")
    if backend == "onnx":
        if precision not in (None, "float32"):
            raise InputError(f"backend='onnx' runs in float32, but precision={precision!r} was given; leave it out.")
        return "float32"
    if precision is not None:
        return precision
    kind = None if device is None else device.partition(":")[0]
    if kind in (None, "cuda") and _has_cuda():
        return "bfloat16"
    return "bfloat16" if kind in (None, "cpu") and _cpu_has_bf16() else "float32"


def _has_cuda() -> bool:
    """Whether torch will find an NVIDIA card: a driver, not hidden, and a build of torch that can use it."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    if not any(Path(path).exists() for path in ("/dev/nvidiactl", "/proc/driver/nvidia/version")):
        return False
    try:
        return not importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return False


@functools.cache
def _cpu_has_bf16() -> bool:
    if platform.system() != "Linux":
        return False
    try:
        return has_bf16(Path("/proc/cpuinfo").read_text(errors="replace"))
    except OSError:
        return False


def has_bf16(cpuinfo: str) -> bool:
    """Whether /proc/cpuinfo tells of instructions for bfloat16, on x86 or on ARM."""
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    return match is not None and not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(match[1].split())


class LocalModel:
    """A sentence-transformers model in this process, loaded at first use, once per process and per setting.

    Copies are the model itself; pickling keeps the settings, and the precision that was chosen among them.

    Args:
        source: a folder, or a name on the Hugging Face hub.
        device: as torch names it, or None for the best one here (cuda, mps, cpu).
        precision: see `chosen_precision`.
        backend: "torch", or "onnx" for onnxruntime on the CPU, which gives the vectors of float32.
        revision: commit, tag or branch on the hub.
        long_text: "cut" a text to the model's window, or take the "mean" over windows of it.

    Raises:
        InputError: a setting that does not exist, or settings that do not go together.
    """

    def __init__(
        self,
        source: str,
        *,
        device: str | None = None,
        precision: str | None = None,
        backend: str | None = None,
        revision: str | None = None,
        long_text: str = "cut",
    ) -> None:
        backend = "torch" if backend is None else backend
        if backend not in BACKENDS:
            raise InputError(f"backend must be one of {BACKENDS}, but got {shown(backend)}.")
        if long_text not in LONG_TEXTS:
            raise InputError(f"long_text must be one of {LONG_TEXTS}, but got {shown(long_text)}.")
        if device is not None and not (isinstance(device, str) and re.fullmatch(r"[a-z]+(:\d+)?", device)):
            raise InputError(f"device must be a name as torch has it, for instance 'cuda:0', but got {shown(device)}.")
        if backend == "onnx" and device not in (None, "cpu"):
            raise InputError(f"backend='onnx' runs on the CPU, but device={device!r} was given; leave one of them out.")
        if revision is not None and Path(source).is_dir():
            raise InputError(f"revision={revision!r} names a version on the hub, but {source!r} is a folder.")
        self.source = source
        self.device = device
        self.precision = chosen_precision(precision, device, backend)
        self.backend = backend
        self.revision = revision
        self.long_text = long_text

    @property
    def identity(self) -> dict[str, str]:
        """What of the settings changes vectors; the backend does not."""
        changes = {"long_text": self.long_text if self.long_text != "cut" else None, "revision": self.revision}
        changes["precision"] = self.precision if self.precision != "float32" else None
        return {name: value for name, value in changes.items() if value is not None}

    @property
    def window(self) -> int | None:
        """Tokens the model sees of a text, or None for a model without a limit; loads the model."""
        return self._load().window

    @property
    def tokens_a_batch(self) -> int:
        """Padded tokens worth handing over in one call; loads the model."""
        return self._load().tokens_a_batch

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Vectors of texts, (n, d), as the model gives them: one forward pass, but for texts taken as a mean.

        Raises:
            EmbeddingError: one text alone does not fit into the device's memory.
            InputError: the mean is wanted, and the instruction leaves no room for the text.
            ModelUnavailableError: the model cannot be loaded here.
        """
        loaded = self._load()
        rows = list(texts)
        if self.long_text == "mean" and rows:
            over = self.measure(rows).over
            if over:
                return _means(loaded, rows, over)
        return loaded.embed(rows)

    def measure(self, texts: Sequence[str]) -> Lengths:
        """How long texts are for the model, and which are longer than its window.

        The length of a single text that is clearly short enough is guessed: to count its tokens takes as long as a
        thirtieth of its forward pass.

        Raises:
            ModelUnavailableError: the model cannot be loaded here.
        """
        loaded = self._load()
        window = loaded.window
        if len(texts) == 1:
            n_bytes = len(texts[0].encode())
            if window is None or SURE_TOKENS_A_BYTE * n_bytes + SPECIAL_TOKENS <= window:
                return Lengths([n_bytes // BYTES_A_TOKEN + 2], {}, window)
        full = loaded.count(texts)
        over = {} if window is None else {row: n for row, n in enumerate(full) if n > window}
        seen = full if window is None or self.long_text == "mean" else [min(n, window) for n in full]
        return Lengths(seen, over, window)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens each text costs, special tokens included."""
        return self.measure(texts).tokens

    def warning_for(self, lengths: Lengths) -> str | None:
        """What to say of the texts that were cut, in one line; None if nothing was lost."""
        if not lengths.over or lengths.window is None or self.long_text == "mean":
            return None
        n_over, n_tokens = len(lengths.over), sum(lengths.over.values())
        lost = 1 - n_over * lengths.window / n_tokens
        are, were, their = ("is", "was", "its") if n_over == 1 else ("are", "were", "their")
        return (
            f"{n_over:,} of {len(lengths.tokens):,} texts {are} longer than the model's window of "
            f"{lengths.window:,} tokens (the longest has {max(lengths.over.values()):,}) and {were} cut, losing "
            f"{100 * lost:.0f} % of {their} tokens; long_text='mean' averages over windows."
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "LocalModel":
        return self

    def _load(self) -> "Loaded":
        """The model, from this process's store of them.

        Raises:
            ModelUnavailableError: it cannot be loaded here; the next call tries again.
        """
        key = (self.source, self.device, self.precision, self.backend, self.revision)
        loaded = _PROCESS.models.get(key)
        if loaded is None:
            with _PROCESS.loading:  # one at a time: transformers sets torch's defaults while it builds a model
                loaded = _PROCESS.models.get(key)
                if loaded is None:
                    loaded = _PROCESS.models[key] = _loaded(self)
        _PROCESS.settle_threads()
        return loaded


def packed(tokens: Sequence[int], budget: int) -> list[list[int]]:
    """Positions of texts in batches of like length: the longest times the number of texts is at most `budget`.

    A text longer than the budget is a batch of its own. Shortest first, in an order that only lengths decide.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(tokens)), key=tokens.__getitem__):
        if batches and tokens[row] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


# This process


class _Process:
    """The models of this process and the locks around them.

    Rust tokenizers keep padding and truncation as a state: two callers at once raise "Already borrowed", see
    test_many_threads_embed_at_once. After a fork only the forking thread is left. OpenMP would wait for ever for
    the others, so torch runs on one thread in a child that inherits it (a setting of each thread that calls it);
    locks held by others are made anew; and the tokenizer is never in anyone's hands while a fork happens. See
    test_a_worker_embeds_what_its_parent_would.
    """

    def __init__(self) -> None:
        self.models: dict[tuple[str | None, ...], Loaded] = {}
        self.abandoned: list[Loaded] = []
        self.loading = threading.Lock()
        self.tokenizing = threading.RLock()
        self._lost_threads = False
        self._settled = threading.local()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self.tokenizing_acquire, after_in_parent=self.tokenizing_release, after_in_child=self.forked
            )

    def tokenizing_acquire(self) -> None:
        self.tokenizing.acquire()

    def tokenizing_release(self) -> None:
        self.tokenizing.release()

    def forked(self) -> None:
        self.loading = threading.Lock()
        self.tokenizing = threading.RLock()
        self._settled = threading.local()
        self._lost_threads = "torch" in sys.modules
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        for key in [key for key, loaded in self.models.items() if loaded.backend == "onnx"]:
            self.abandoned.append(self.models.pop(key))  # its threads are gone too; freeing it would wait for them

    def settle_threads(self) -> None:
        """Keep torch, in the thread that calls, from waiting for threads that a fork left behind."""
        if self._lost_threads and not hasattr(self._settled, "done"):
            import torch

            torch.set_num_threads(1)
            self._settled.done = True


_PROCESS = _Process()


# A loaded model


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in memory.

    Attributes:
        model: the SentenceTransformer.
        backend: "torch" or "onnx".
        window: tokens the model sees of a text, or None.
    """

    model: Any
    backend: str
    window: int | None

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers, or None for a model that has another kind or none."""
        tokenizer = getattr(self.model, "tokenizer", None)
        return tokenizer if hasattr(tokenizer, "model_max_length") else None

    @functools.cached_property
    def device(self) -> Any:
        """Where it runs, as torch has it."""
        return self.model.device

    @functools.cached_property
    def tokens_a_batch(self) -> int:
        """Padded tokens worth handing over in one call."""
        return TOKENS_A_BATCH_CPU if self.device.type == "cpu" else TOKENS_A_BATCH_GPU

    def embed(self, texts: list[str]) -> Vectors:
        """Vectors of texts, (n, d), in one forward pass, or in halves where the memory is too small.

        Raises:
            EmbeddingError: one text alone does not fit.
        """
        if not texts:
            return np.zeros((0, self.model.encode([""]).shape[1]), dtype=np.float32)
        try:
            return self._forward(texts)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            if len(texts) == 1:
                raise EmbeddingError(
                    f"one text of {self.count(texts)[0]:,} tokens does not fit into the memory of {self.device}; give "
                    "precision='bfloat16', another device or shorter texts."
                ) from error
        # Outside the except block, whose traceback would keep the failed pass in memory.
        self._free()
        half = len(texts) // 2
        return np.concatenate([self.embed(texts[:half]), self.embed(texts[half:])])

    def _forward(self, texts: list[str]) -> Vectors:
        import torch

        tokenize = getattr(self.model, "preprocess", None) or self.model.tokenize  # the name before 5.4
        with _PROCESS.tokenizing:
            features = tokenize(texts)
        device = self.device
        with torch.inference_mode():
            there = {name: one.to(device) if torch.is_tensor(one) else one for name, one in features.items()}
            vectors: Vectors = self.model(there)["sentence_embedding"].to(torch.float32).cpu().numpy()
        return vectors

    def _free(self) -> None:
        import torch

        pool: Any = getattr(torch, self.device.type, None)
        if hasattr(pool, "empty_cache"):
            pool.empty_cache()

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before any cut, special tokens included; characters / 4 without a tokenizer."""
        if self.tokenizer is None:
            return [len(text) // 4 + 1 for text in texts]
        counts: list[int] = []
        for start in range(0, len(texts), COUNT_AT_ONCE):
            counts.extend(len(ids) for ids in self.tokens(texts[start : start + COUNT_AT_ONCE])["input_ids"])
        return counts

    def tokens(self, texts: Sequence[str], **options: Any) -> Any:
        """What the tokenizer makes of whole texts."""
        with _PROCESS.tokenizing:
            return self.tokenizer(
                list(texts), padding=False, truncation=False, return_attention_mask=False, verbose=False, **options
            )


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory: its own error on CUDA, a message elsewhere."""
    return type(error).__name__ == "OutOfMemoryError" or bool(
        re.search(r"out of memory|can't allocate memory", str(error))
    )


# Long texts


def _means(loaded: Loaded, texts: list[str], over: dict[int, int]) -> Vectors:
    """Vectors of texts, the long ones as the mean over their windows.

    v = sum_w n_w v_w / |sum_w n_w v_w|,  n_w the tokens of window w, v_w its unit vector

    Args:
        loaded: the model.
        texts: all texts, n.
        over: the positions of the long ones.

    Returns:
        (n, d); the rows of long texts have unit length, the others are as the model gives them.
    """
    pieces: list[str] = []
    weights: list[int] = []
    spans: list[slice] = []
    for row, text in enumerate(texts):
        windows = _windows(loaded, text) if row in over else [(text, 1)]
        spans.append(slice(len(pieces), len(pieces) + len(windows)))
        pieces.extend(piece for piece, _ in windows)
        weights.extend(weight for _, weight in windows)
    parts: list[Vectors] = []
    batches = packed(loaded.count(pieces), loaded.tokens_a_batch)
    for batch in batches:
        parts.append(loaded.embed([pieces[row] for row in batch]))
    vectors = np.empty((len(pieces), parts[0].shape[1]), dtype=np.float32)
    for batch, part in zip(batches, parts, strict=True):
        vectors[batch] = part
    return np.stack(
        [
            _weighted_mean(vectors[span], weights[span]) if row in over else vectors[span][0]
            for row, span in enumerate(spans)
        ]
    )


def _weighted_mean(vectors: Vectors, weights: list[int]) -> Vectors:
    """The direction of the weighted mean of the directions of vectors, (w, d) -> (d,)."""
    rows = vectors.astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    mean = np.asarray(weights, dtype=np.float64) @ rows
    direction: Vectors = (mean / max(float(np.linalg.norm(mean)), np.finfo(np.float64).tiny)).astype(np.float32)
    return direction


def _windows(loaded: Loaded, text: str) -> list[tuple[str, int]]:
    """A long text in windows of about equal length, each with its instruction, and the tokens each holds of it.

    Raises:
        InputError: the instruction leaves no room, or the tokenizer cannot say where a token lies.
    """
    match = INSTRUCTION.match(text)
    prefix = "" if match is None else match[0]
    beside = loaded.count([prefix])[0]
    room = (loaded.window or NO_WINDOW) - beside - ROOM_TO_SPARE
    if room < SMALLEST_ROOM:
        raise InputError(
            f"the instruction takes {beside} tokens of the model's window of {loaded.window}; shorten it, "
            "or use a model with a longer window."
        )
    if not loaded.tokenizer.is_fast:
        raise InputError("long_text='mean' needs a fast tokenizer, which this model has not; use long_text='cut'.")
    windows: list[tuple[str, int]] = []
    waiting = [text[len(prefix) :]]
    while waiting:
        piece = waiting.pop()
        offsets = loaded.tokens([piece], add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"][0]
        cuts = _cuts(offsets, room)
        if cuts:
            edges = [0, *cuts, len(piece)]
            waiting.extend(piece[start:end] for start, end in reversed(list(itertools.pairwise(edges))))
        elif offsets:  # a piece without tokens, for instance of blanks, says nothing
            windows.append((prefix + piece, len(offsets)))
    return windows or [(text, 1)]


def _cuts(offsets: Sequence[tuple[int, int]], room: int) -> list[int]:
    """Characters at which a text is cut so that no part has more than about `room` tokens; none if it fits."""
    if len(offsets) <= room:
        return []
    n_parts = -(-len(offsets) // (room - ROOM_TO_SPARE))  # a character of several tokens moves as a whole
    at = {offsets[part * len(offsets) // n_parts][0] for part in range(1, n_parts)}
    # Never before the first character: a part must be shorter than the whole, or cutting would not end.
    return sorted(at - {0})


# Loading


def _loaded(wanted: LocalModel) -> Loaded:
    """Load a model.

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
    _PROCESS.settle_threads()
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
                f"device={wanted.device!r} is not there ({str(error).splitlines()[0]}); "
                f"here is {', '.join(_devices())}; leave device out to take the best."
            ) from error
    try:
        model = _from_anywhere(wanted)
    except ModelUnavailableError:
        raise
    except Exception as error:
        raise unavailable(f"{wanted.source!r} could not be loaded ({type(error).__name__}: {error}).") from error
    model.eval()
    window = getattr(model, "max_seq_length", None)
    if window is None or window >= NO_WINDOW or not hasattr(model.tokenizer, "model_max_length"):
        return Loaded(model, wanted.backend, None)
    return Loaded(model, wanted.backend, int(window))


def _has_onnx() -> bool:
    try:
        return all(importlib.util.find_spec(name) is not None for name in ("onnxruntime", "optimum.onnxruntime"))
    except ModuleNotFoundError:
        return False


def _devices() -> list[str]:
    import torch

    cards = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return ["cpu", *cards, *(["mps"] if torch.backends.mps.is_available() else [])]


def _from_anywhere(wanted: LocalModel) -> Any:
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
        except Exception:  # not all of it is there: an interrupted download
            _ask_hub(wanted)
    else:
        _ask_hub(wanted)
    return _sentence_transformer(wanted, local_only=False)


def _repository(wanted: LocalModel) -> str:
    """The name of the model on the hub; sentence-transformers' own models go without an owner."""
    return wanted.source if "/" in wanted.source else f"sentence-transformers/{wanted.source}"


def _is_cached(wanted: LocalModel) -> bool:
    """Whether the hub's cache holds a model with its modules, or one that is known to have none.

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


def _ask_hub(wanted: LocalModel) -> None:
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


def _sentence_transformer(wanted: LocalModel, local_only: bool) -> Any:
    """The model as sentence-transformers makes it, with what Qwen3 needs and it does not see to."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        wanted.source,
        device="cpu" if wanted.backend == "onnx" else wanted.device,
        revision=wanted.revision,
        local_files_only=local_only,
        backend=wanted.backend,
        model_kwargs=_model_kwargs(wanted),
    )
    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    if getattr(config, "model_type", None) != QWEN3:
        return model
    if not _has_modules(wanted, local_only):
        model = _bare_qwen3(model)
    model.tokenizer.padding_side = "left"
    return model


def _model_kwargs(wanted: LocalModel) -> dict[str, Any]:
    import torch
    import transformers

    if wanted.backend == "onnx":
        return {"provider": "CPUExecutionProvider"}
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    return {"dtype" if version >= (4, 56) else "torch_dtype": getattr(torch, wanted.precision)}


def _has_modules(wanted: LocalModel, local_only: bool) -> bool:
    """Whether the model says itself how its tokens become a vector."""
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
