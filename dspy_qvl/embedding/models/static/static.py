"""A static embedding model in this process: loaded at first use, once per process."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dspy_qvl.embedding.models.model import Measured
from dspy_qvl.embedding.models.static.doors import StaticRequest, table_of
from dspy_qvl.errors import InputError, shown
from dspy_qvl.vectors import Vectors


class StaticEmbeddingModel:
    """A static embedding model in this process, loaded at first use, once per process and per setting.

    Copies are the model itself; pickling keeps the settings.

    Args:
        source: a folder, or a name on the Hugging Face hub.
        revision: commit, tag or branch on the hub.
        backend: "torch" to read it through sentence-transformers; None for model2vec, or for sentence-transformers
            where only that is installed. The vectors are the same.
        content: digest of a folder's files, so that other files at the same place are another model.

    Raises:
        InputError: a setting that does not exist, or a revision of a folder.
    """

    def __init__(
        self, source: str, *, revision: str | None = None, backend: str | None = None, content: str = ""
    ) -> None:
        if backend not in (None, "torch"):
            raise InputError(f"a static model has no backend but 'torch', and got {shown(backend)}; leave it out.")
        if revision is not None and not revision.strip():
            raise InputError("revision must not be blank; leave it out for the newest.")
        if revision is not None and Path(source).is_dir():
            raise InputError(f"revision={revision!r} names a version on the hub, but {source!r} is a folder.")
        self.request = StaticRequest(source, revision, backend, content)

    @property
    def identity(self) -> dict[str, str]:
        """The settings that change vectors."""
        return {} if self.request.revision is None else {"revision": self.request.revision}

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Vectors of texts, (n, d) float32; zeros for a text without a token that the model knows.

        Raises:
            ModelUnavailableError: the model cannot be loaded here.
        """
        return table_of(self.request)(texts)

    def measure(self, texts: Sequence[str]) -> Measured:
        """Lengths of texts in bytes, with a warning where some have more tokens than are read.

        Only texts with more bytes than that are tokenized for it.

        Raises:
            ModelUnavailableError: the model cannot be loaded here.
        """
        table = table_of(self.request)
        lengths = [len(text.encode()) for text in texts]
        most = table.max_tokens
        warning = None
        if most is not None and max(lengths, default=0) > most:
            long = [text for text, length in zip(texts, lengths, strict=True) if length > most]
            pairs = zip(table.tokens(long, cut=False), table.tokens(long), strict=True)
            cut = [(len(whole), len(read)) for whole, read in pairs if len(read) < len(whole)]
            if cut:
                warning = _cut_warning(len(texts), cut)
        return Measured(lengths, float("inf"), warning)

    def __deepcopy__(self, memo: dict[int, Any]) -> "StaticEmbeddingModel":
        return self


def _cut_warning(n_texts: int, cut: Sequence[tuple[int, int]]) -> str:
    """The warning of a call some of whose texts are cut, in one line.

    Args:
        n_texts: texts of the call.
        cut: tokens of each text that is cut: all, and those that are read.
    """
    n_all, n_read = map(sum, zip(*cut, strict=True))
    is_cut = "is" if len(cut) == 1 else "are"
    return (
        f"{len(cut):,} of {n_texts:,} texts {is_cut} longer than this static model was saved to read (the longest has "
        f"{max(n for n, _ in cut):,} tokens, of which {max(n for _, n in cut):,} are read), losing "
        f"{100 * (1 - n_read / n_all):.0f} % of the tokens; shorten the texts, or use a model with long_text='mean'."
    )
