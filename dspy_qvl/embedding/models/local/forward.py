"""Forward passes of a loaded model, from any number of threads: texts -> tokens -> (n, d) float32.

    texts ─► tokens, one caller at a time ─► forward pass, any number at once ─► vectors

Threads share one model, although its tokenizer serves only one caller at a time. A forked worker does not hang on the
threads that stayed in its parent.
"""

import functools
import os
import re
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dspy_qvl.embedding.models.local.loading import Wanted, load
from dspy_qvl.errors import EmbeddingError
from dspy_qvl.vectors import Vectors

TOKENS_A_BATCH_CPU = 2048  # padded; more only adds padding and memory on a CPU
TOKENS_A_BATCH_GPU = 16_384
COUNT_AT_ONCE = 256  # texts a call of the tokenizer
NO_WINDOW = 10**9  # tokenizers without a limit state an absurd one


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
        with PROCESS.tokenizing:
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
        with PROCESS.tokenizing:
            return self.tokenizer(
                list(texts), padding=False, truncation=False, return_attention_mask=False, verbose=False, **options
            )


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether torch ran out of memory: its own error on CUDA, a message elsewhere."""
    return type(error).__name__ == "OutOfMemoryError" or bool(
        re.search(r"out of memory|can't allocate memory", str(error))
    )


def _loaded(wanted: Wanted) -> Loaded:
    PROCESS.settle_threads()
    model = load(wanted)
    window = getattr(model, "max_seq_length", None)
    if window is None or window >= NO_WINDOW or not hasattr(model.tokenizer, "model_max_length"):
        return Loaded(model, wanted.backend, None)
    return Loaded(model, wanted.backend, int(window))


# The process


class Process:
    """The models of this process and the locks around them.

    Rust tokenizers keep padding and truncation as a state: two callers at once raise "Already borrowed", see
    test_many_threads_embed_at_once. After a fork only the forking thread is left. OpenMP would wait for ever for
    the others, so torch runs on one thread in a child that inherits it (a setting of each thread that calls it);
    locks held by others are made anew; and the tokenizer is never in anyone's hands while a fork happens. See
    test_a_worker_embeds_what_its_parent_would.
    """

    def __init__(self) -> None:
        self.models: dict[Wanted, Loaded] = {}
        self.abandoned: list[Loaded] = []
        self.loading = threading.Lock()
        self.tokenizing = threading.RLock()
        self._lost_threads = False
        self._settled = threading.local()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._acquire, after_in_parent=self._release, after_in_child=self._forked)

    def _acquire(self) -> None:
        self.tokenizing.acquire()

    def _release(self) -> None:
        self.tokenizing.release()

    def _forked(self) -> None:
        self.loading = threading.Lock()
        self.tokenizing = threading.RLock()
        self._settled = threading.local()
        self._lost_threads = "torch" in sys.modules
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        for key in [key for key, loaded in self.models.items() if loaded.backend == "onnx"]:
            self.abandoned.append(self.models.pop(key))  # its threads are gone too; freeing it would wait for them

    def model(self, wanted: Wanted) -> Loaded:
        """The model that is wanted, loaded once.

        Raises:
            ModelUnavailableError: it cannot be loaded here; the next call tries again.
        """
        loaded = self.models.get(wanted)
        if loaded is None:
            with self.loading:  # one at a time: transformers sets torch's defaults while it builds a model
                loaded = self.models.get(wanted)
                if loaded is None:
                    loaded = self.models[wanted] = _loaded(wanted)
        self.settle_threads()
        return loaded

    def settle_threads(self) -> None:
        """Keep torch, in the thread that calls, from waiting for threads that a fork left behind."""
        if self._lost_threads and not hasattr(self._settled, "done"):
            import torch

            torch.set_num_threads(1)
            self._settled.done = True


PROCESS = Process()
