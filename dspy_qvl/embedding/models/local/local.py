"""An embedding model in this process: sentence-transformers, loaded at first use and once per process.

    settings ─► loading.py ─► passes.py: texts -> (n, d) float32
    long text ─► "cut" to the model's window, or the "mean" over windows of it (windows.py)

torch is imported when the first text is embedded: what a model is called, its precision included, costs nothing.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspy_qvl.embedding.models.local.forward import PROCESS, Loaded
from dspy_qvl.embedding.models.local.loading import Wanted
from dspy_qvl.embedding.models.local.long_text import check_room, means
from dspy_qvl.embedding.models.local.precision import chosen_precision
from dspy_qvl.errors import InputError, shown
from dspy_qvl.vectors import Vectors

BACKENDS = ("torch", "onnx")
LONG_TEXTS = ("cut", "mean")

BYTES_A_TOKEN = 4  # of English prose
SURE_TOKENS_A_BYTE = 2  # no tokenizer makes more of a text, however it normalises it
SPECIAL_TOKENS = 8


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
        if revision is not None and not revision.strip():
            raise InputError("revision must not be blank; leave it out for the newest.")
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
                return means(loaded, rows, over)
        return loaded.embed(rows)

    def measure(self, texts: Sequence[str]) -> Lengths:
        """How long texts are for the model, and which are longer than its window.

        The length of a single text that is clearly short enough is guessed: to count its tokens takes as long as a
        thirtieth of its forward pass.

        Raises:
            InputError: an instruction leaves no room for its text.
            ModelUnavailableError: the model cannot be loaded here.
        """
        loaded = self._load()
        window = loaded.window
        if len(texts) == 1:
            n_bytes = len(texts[0].encode())
            if window is None or SURE_TOKENS_A_BYTE * n_bytes + SPECIAL_TOKENS <= window:
                return Lengths([n_bytes // BYTES_A_TOKEN + 2], {}, window)
        full = loaded.count(texts)
        if window is not None:
            check_room(loaded, [text for text, n in zip(texts, full, strict=True) if n > window])
        over = {} if window is None else {row: n for row, n in enumerate(full) if n > window}
        seen = full if window is None or self.long_text == "mean" else [min(n, window) for n in full]
        return Lengths(seen, over, window)

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

    def _load(self) -> Loaded:
        """The model, from this process's store of them.

        Raises:
            ModelUnavailableError: it cannot be loaded here; the next call tries again.
        """
        return PROCESS.model(Wanted(self.source, self.device, self.precision, self.backend, self.revision))
