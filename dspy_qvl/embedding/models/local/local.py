"""An embedding model in this process: sentence-transformers, loaded at first use and once per process.

    settings ─► loading.py ─► forward.py: texts -> (n, d) float32
    long text ─► "cut" to the model's window, or the "mean" over windows of it (long_text.py)

torch is imported when the first text is embedded: the identity of a model, its precision included, is known without.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dspy_qvl.embedding.instruction import instructed
from dspy_qvl.embedding.models.local.forward import PROCESS, Loaded
from dspy_qvl.embedding.models.local.loading import ModelRequest
from dspy_qvl.embedding.models.local.long_text import means, tokens_left
from dspy_qvl.embedding.models.local.precision import chosen_precision
from dspy_qvl.embedding.models.model import Measured
from dspy_qvl.errors import InputError, shown
from dspy_qvl.vectors import Vectors

BACKENDS = ("torch", "onnx")
LONG_TEXTS = ("cut", "mean")

BYTES_A_TOKEN = 4  # of English prose
SURE_TOKENS_A_BYTE = 2  # no tokenizer makes more of a text, however it normalises it
SPECIAL_TOKENS = 8


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
        instruction: the caller puts it before texts; each window of a long text begins with it again.
        content: digest of a folder's files, so that other files at the same place are another model.

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
        instruction: str | None = None,
        content: str = "",
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
        if revision is not None and not revision.strip():
            raise InputError("revision must not be blank; leave it out for the newest.")
        if revision is not None and Path(source).is_dir():
            raise InputError(f"revision={revision!r} names a version on the hub, but {source!r} is a folder.")
        precision = chosen_precision(precision, device, backend)
        self.request = ModelRequest(source, device, precision, backend, revision, content)
        self.long_text = long_text
        self.prefix = instructed("", instruction)

    @property
    def identity(self) -> dict[str, str]:
        """The settings that change vectors; the backend changes none."""
        plain = {"precision": "float32", "revision": None, "long_text": "cut"}
        own = {**vars(self.request), "long_text": self.long_text}
        return {name: own[name] for name in plain if own[name] != plain[name]}

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Vectors of texts, (n, d), as the model gives them: one forward pass, unless windows are needed.

        Raises:
            EmbeddingError: one text alone does not fit into the device's memory.
            InputError: the mean is wanted, and the instruction leaves too little of the window for the text.
            ModelUnavailableError: the model cannot be loaded here.
        """
        loaded, rows = self._load(), list(texts)
        return means(loaded, rows, self.prefix) if self.long_text == "mean" and rows else loaded.embed(rows)

    def measure(self, texts: Sequence[str]) -> Measured:
        """Lengths of texts in tokens as the model sees them, with a warning where texts are cut.

        The length of a single text that is clearly short enough is guessed: to count its tokens takes as long as a
        thirtieth of its forward pass.

        Raises:
            InputError: the instruction leaves too little of the window for its text.
            ModelUnavailableError: the model cannot be loaded here.
        """
        loaded = self._load()
        window, budget = loaded.window, loaded.tokens_a_batch
        if len(texts) == 1:
            n_bytes = len(texts[0].encode())
            if SURE_TOKENS_A_BYTE * n_bytes + SPECIAL_TOKENS <= window:
                return Measured([n_bytes // BYTES_A_TOKEN + 2], budget, None)
        full = loaded.count(texts)
        over = {row: n for row, n in enumerate(full) if n > window}
        if self.prefix and any(texts[row].startswith(self.prefix) for row in over):
            tokens_left(loaded, self.prefix, *loaded.count([self.prefix]))
        if self.long_text == "mean" or not over:
            return Measured(full, budget, None)
        return Measured([min(n, window) for n in full], budget, cut_warning(len(texts), list(over.values()), window))

    def __deepcopy__(self, memo: dict[int, Any]) -> "LocalModel":
        return self

    def _load(self) -> Loaded:
        """The loaded model, shared by this process.

        Raises:
            ModelUnavailableError: it cannot be loaded here; the next call tries again.
        """
        return PROCESS.model(self.request)


def cut_warning(n_texts: int, over: Sequence[int], window: int) -> str:
    """The warning of a call some of whose texts are cut, in one line.

    Args:
        n_texts: texts of the call.
        over: tokens of each text that is cut, all of them.
        window: tokens that the model sees of a text.
    """
    n_over, n_tokens = len(over), sum(over)
    lost = 1 - n_over * window / n_tokens
    are, were, their = ("is", "was", "its") if n_over == 1 else ("are", "were", "their")
    return (
        f"{n_over:,} of {n_texts:,} texts {are} longer than the model's window of "
        f"{window:,} tokens (the longest has {max(over):,}) and {were} cut, losing "
        f"{100 * lost:.0f} % of {their} tokens; long_text='mean' averages over windows."
    )
