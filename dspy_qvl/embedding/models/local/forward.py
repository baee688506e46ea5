"""Forward passes of a loaded model, from any number of threads: texts -> tokens -> (n, d) float32.

    texts ─► tokens, one caller at a time ─► forward pass, any number at once ─► vectors

Threads share one model, although its tokenizer serves only one caller at a time. A forked worker does not wait for the
threads that stayed in its parent.
"""

import contextlib
import functools
import os
import re
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dspy_qvl.embedding.models.local.folder import is_static
from dspy_qvl.embedding.models.local.loading import ModelRequest, load, taken_for_another
from dspy_qvl.errors import EmbeddingError
from dspy_qvl.vectors import Vectors

TOKENS_A_BATCH_CPU = 2048  # padded; more only adds padding and memory on a CPU
TOKENS_A_BATCH_GPU = 16_384
COUNT_AT_ONCE = 256  # texts a call of the tokenizer
NO_WINDOW = 10**9  # tokenizers without a limit state an absurd one
FORK_SECONDS = 60.0  # a fork waits no longer for a model that another thread is loading


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in memory.

    Attributes:
        model: the SentenceTransformer.
        backend: "torch" or "onnx".
        window: tokens the model sees of a text, or `NO_WINDOW`.
    """

    model: Any
    backend: str
    window: int

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers, or None for a model that has another kind or none."""
        tokenizer = getattr(self.model, "tokenizer", None)
        return tokenizer if hasattr(tokenizer, "model_max_length") else None

    @functools.cached_property
    def device(self) -> Any:
        """The torch device that it runs on."""
        return self.model.device

    @functools.cached_property
    def tokens_a_batch(self) -> int:
        """Padded tokens of one forward pass that make good use of the device."""
        return TOKENS_A_BATCH_CPU if self.device.type == "cpu" else TOKENS_A_BATCH_GPU

    def features(self, texts: Sequence[str]) -> dict[str, Any]:
        """The input of a forward pass, cut to the window and padded, by sentence-transformers' own tokenization."""
        tokenize = getattr(self.model, "preprocess", None) or self.model.tokenize  # the name before 5.4
        with PROCESS.tokenizing:
            features: dict[str, Any] = tokenize(texts)
        return features

    def embed(self, texts: list[str], features: dict[str, Any] | None = None) -> Vectors:
        """Vectors of texts, (n, d), in one forward pass, or in halves where the memory is too small.

        Args:
            texts: n of them.
            features: of these texts, where they are known; else they are tokenized here.

        Raises:
            EmbeddingError: one text alone does not fit.
        """
        if not texts:
            return np.zeros((0, self.model.encode([""]).shape[1]), dtype=np.float32)
        try:
            return self._forward(self.features(texts) if features is None else features)
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

    def _forward(self, features: dict[str, Any]) -> Vectors:
        import torch

        with torch.inference_mode():
            there = {name: one.to(self.device) if torch.is_tensor(one) else one for name, one in features.items()}
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
        """The tokenizer's encoding of whole texts, neither cut nor padded."""
        with PROCESS.tokenizing:
            return self.tokenizer(
                list(texts), padding=False, truncation=False, return_attention_mask=False, verbose=False, **options
            )


def _is_out_of_memory(error: RuntimeError) -> bool:
    """True if torch ran out of memory: its own error on CUDA, a message elsewhere."""
    message = re.search(r"out of memory|can't allocate memory", str(error))
    return message is not None or type(error).__name__ == "OutOfMemoryError"


def _loaded(request: ModelRequest) -> Loaded:
    PROCESS.settle_threads()
    model = load(request)
    modules = model if hasattr(model, "__iter__") else ()
    if is_static([f"{type(module).__module__}.{type(module).__qualname__}" for module in modules]):
        raise taken_for_another(request.source)
    window = getattr(model, "max_seq_length", None)
    if window is None or not hasattr(model.tokenizer, "model_max_length"):
        window = NO_WINDOW
    return Loaded(model, request.backend, min(int(window), NO_WINDOW))


# The process


class Process:
    """The models of this process and the locks around them.

    Rust tokenizers keep padding and truncation as a state: two callers at once raise "Already borrowed", see
    test_many_threads_embed_at_once. After a fork only the forking thread is left. OpenMP would wait for ever for
    the others, so torch runs on one thread in a child that inherits it (a setting of each thread that calls it);
    locks held by others are made anew; and no thread is inside the tokenizer, or loads a model, while a fork happens:
    a lock of Python's imports, or of a package, would stay held in the child for ever. See
    test_a_worker_embeds_what_its_parent_would.
    """

    def __init__(self) -> None:
        self.models: dict[ModelRequest, Loaded] = {}
        self.abandoned: list[Loaded] = []
        self.loading = threading.RLock()
        self.tokenizing = threading.RLock()
        self._is_loading_held = False  # by a thread that forks
        self._lost_threads = False
        self._settled = threading.local()
        if hasattr(os, "register_at_fork"):
            # The hub's file locks have hooks of their own, which stop other threads; hooks run the last one first, and
            # a thread that loads a model must be waited for before it is stopped.
            with contextlib.suppress(ImportError):
                import filelock  # noqa: F401
            os.register_at_fork(before=self._fork, after_in_parent=self._has_forked, after_in_child=self._forked)

    def _fork(self) -> None:
        is_held = self.loading.acquire(timeout=FORK_SECONDS)
        self.tokenizing.acquire()
        self._is_loading_held = is_held

    def _has_forked(self) -> None:
        is_held = self._is_loading_held
        self.tokenizing.release()
        if is_held:
            self.loading.release()

    def _forked(self) -> None:
        self.loading = threading.RLock()
        self.tokenizing = threading.RLock()
        self._settled = threading.local()
        self._lost_threads = "torch" in sys.modules
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        for key in [key for key, loaded in self.models.items() if loaded.backend == "onnx"]:
            self.abandoned.append(self.models.pop(key))  # its threads are gone too; freeing it would wait for them

    def model(self, request: ModelRequest) -> Loaded:
        """The requested model, loaded once.

        Raises:
            ModelUnavailableError: it cannot be loaded here; the next call tries again.
        """
        if request not in self.models:
            with self.loading:  # one at a time: transformers sets torch's defaults while it builds a model
                if request not in self.models:
                    self.models[request] = _loaded(request)
        self.settle_threads()
        return self.models[request]

    def settle_threads(self) -> None:
        """Keep torch, in the calling thread, from waiting for threads that a fork left behind."""
        if self._lost_threads and not hasattr(self._settled, "done"):
            import torch

            torch.set_num_threads(1)
            self._settled.done = True


PROCESS = Process()
