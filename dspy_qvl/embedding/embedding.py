"""One embedding model as the learner sees it: its settings, its identity, its vectors so far."""

import os
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dspy_qvl.embedding.cache import EmbeddingCache
from dspy_qvl.embedding.encoder import Encoder
from dspy_qvl.embedding.instruction import sent
from dspy_qvl.embedding.models import LEXICAL, LEXICAL_DIM, ModelSpec, Usage
from dspy_qvl.embedding.probe import PROBE_TEXTS, Probe
from dspy_qvl.embedding.source import Source, Sources
from dspy_qvl.embedding.truncation import Truncation
from dspy_qvl.errors import EmbeddingError, InputError, check_count, check_text, warn
from dspy_qvl.state import checked_path
from dspy_qvl.vectors import Vectors

CACHE_FILE = "vectors-1.sqlite"  # the number is the schema's


class Embedding:
    """Texts -> unit vectors of one model, each text paid for once.

    A shared resource: copies of a program share it (deepcopy gives itself back), and pickling keeps only what is
    needed to make it again, never the key, the loaded model or an open file.

    Args:
        spec: the model.
        cache_dir: folder of the file of vectors, or None for memory only; a relative one is meant from here, wherever
            the process goes later.
        instruction: Qwen's task instruction, put before every text; None for none.
        batch_size: texts a call of the model, or None for what suits the model.
        storage: "float32", or "float16" for a file of half the size.

    Raises:
        InputError: a model that cannot be used, more columns than it has, an instruction that has no effect, or a
            cache_dir that is a file.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        cache_dir: str | os.PathLike[str] | None,
        instruction: str | None = None,
        batch_size: int | None = None,
        storage: str = "float32",
    ) -> None:
        if spec.embedding_dim is not None:
            check_count(spec.embedding_dim, "embedding_dim", 1)
        if instruction is not None:
            instruction = check_text(instruction, "instruction").strip() or None
        folder = None if cache_dir is None else _folder(cache_dir, spec.home)
        address = spec.address()
        model = spec.model_at(address, instruction)
        for part in (model.identity or {}).values():  # it is saved with every fit
            check_text(part, "the name of the embedding model")
        if instruction is not None and not model.takes_instruction:
            raise InputError(
                f"an instruction has no effect on {model.name}: its vectors are what they are. Leave instruction "
                "out, and make the table of vectors that were embedded with it."
            )
        self.spec = spec
        self.cache_dir = folder
        self.given_dir = cache_dir
        self.instruction = instruction
        self.storage = storage
        self.batch_size = model.batch_size if batch_size is None else check_count(batch_size, "batch_size", 1)
        self.accepted: weakref.WeakSet[Any] = weakref.WeakSet()  # fits known to belong to this model
        self._model = model  # what is the same at every address
        self._truncation = Truncation(model.name, spec.embedding_dim, model.default_dim, model.size)
        self._sent = partial(sent, instruction)
        source_at = partial(
            Source,
            spec=spec,
            truncation=self._truncation,
            path=folder / CACHE_FILE if folder is not None and model.keep_on_disk else None,
            storage=storage,
            batch_size=self.batch_size,
            sent=self._sent,
        )
        self._sources = Sources(spec, model, address, source_at)
        if model.identity is None and cache_dir is not None:
            warn(
                "embedder has no name, so its vectors are not stored on disk: give it an attribute `name` that "
                "changes whenever its vectors do.",
            )

    @property
    def name(self) -> str:
        """The model's name in messages."""
        return self._model.name

    @property
    def is_lexical(self) -> bool:
        """True if the model is the built-in one."""
        return self.spec.embedder is None and self.spec.model_name.strip().lower() == LEXICAL

    @property
    def is_sparse_lexical(self) -> bool:
        """True for the built-in model in its own size: values are learned from sparse words in place of its vectors."""
        return self.is_lexical and self.dim == LEXICAL_DIM

    def like(self, identity: Mapping[str, str] | None) -> "Embedding":
        """This, or the same model in process with the precision and so on of an identity, where that was left open."""
        if identity is None or self.identity is None or self.identity == dict(identity):
            return self
        spec = self.spec.like(identity)
        if spec is self.spec:
            return self
        other = self._remake(spec)
        return self if other.identity == self.identity else other

    @property
    def usage(self) -> Usage | None:
        """Requests, texts, tokens and cost of a hosted model in this process so far; None for the others."""
        told = [source.model.usage() for source in self._sources if source.model.usage is not None]
        return sum(told, Usage()) if told else None

    @property
    def cache(self) -> EmbeddingCache:
        """The vectors in memory and on disk, of the address that would be asked now."""
        return self._sources.current().cache

    @property
    def dim(self) -> int | None:
        """Columns of a vector; None until the first vector tells."""
        return self._truncation.dim

    @property
    def keeps_vectors(self) -> bool:
        """True if the vectors of rated texts are worth saving with what was learned from them."""
        return self._model.keep_with_fit

    @property
    def identity(self) -> dict[str, str] | None:
        """The settings that make vectors comparable with saved ones; None for an anonymous callable."""
        return self._with_instruction(self._model.identity)

    @property
    def former_identity(self) -> dict[str, str] | None:
        """The identity in version 0.1.0, where that was another."""
        return self._with_instruction(self._model.former)

    def encoder(self, expect: Probe | None = None, *, instruct: bool = True) -> Encoder:
        """Texts -> unit vectors of this model, with `expect` and `instruct` said once for all texts; see `Encoder`."""
        return Encoder(self._sources, self._sent, expect, instruct)

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors of texts, the instruction before each, (n_texts, dim); as `Encoder`."""
        return self.encoder()(texts)

    async def acall(self, texts: Sequence[str]) -> Vectors:
        """As `__call__`, without blocking the event loop."""
        return await self.encoder().acall(texts)

    def probe(self) -> Probe:
        """The probe texts with this model's vectors of them.

        Raises:
            EmbeddingError: the model knows nothing of a probe text, so that it could not be told from another.
        """
        texts = self._model.probe_texts or PROBE_TEXTS
        probe = Probe(tuple(self._sent(text, True) for text in texts), self(texts))
        if not probe.vectors.any(axis=1).all():
            raise EmbeddingError(
                f"{self.name} knows no token of the texts in Latin letters by which a saved value function recognises "
                "its model; use another model, or give it as embedder= with a name."
            )
        self._sources.current().trusted.add(probe.digest)
        return probe

    def meets(self, expect: Probe) -> bool:
        """True if the model gives the expected vectors for the probe texts; it is asked for them."""
        return self._sources.current().meets(expect)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Embedding":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return self._remake, (self.spec,)

    @property
    def _remake(self) -> "partial[Embedding]":
        """Spec -> an embedding with these settings; it can be pickled."""
        settings = {name: getattr(self, name) for name in ("instruction", "batch_size", "storage")}
        return partial(Embedding, cache_dir=self.given_dir, **settings)

    def _with_instruction(self, identity: Mapping[str, str] | None) -> dict[str, str] | None:
        return None if identity is None else {**identity, "instruction": self.instruction or ""}


def _folder(cache_dir: str | os.PathLike[str], home: str) -> Path:
    """The folder of a cache_dir, which need not be there; a relative one lies below `home`.

    Raises:
        InputError: a file, or no name of a folder.
    """
    if not str(cache_dir).strip():
        raise InputError("cache_dir must not be blank; give a folder, or None for memory only.")
    try:
        folder = Path(home, checked_path(cache_dir).expanduser())
    except RuntimeError as error:  # no such user
        raise InputError(f"cache_dir={str(cache_dir)!r} names no folder ({error}).") from None
    if folder.exists() and not folder.is_dir():
        raise InputError(f"cache_dir must be a folder, but {folder} is a file; give another cache_dir.")
    return folder
