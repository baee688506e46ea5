"""Texts -> unit vectors: the one door to `dspy.Embedder`.

    texts ─► as sent ─► the model at its address (`source.py`): memory, disk, or the model itself ─► a row a text

The address of a hosted model is looked up whenever texts are embedded, so that vectors are always those of the server
that would be asked. Each address has its own source of vectors.

An empty or blank text is valued, not refused: saying nothing is something an LLM does and people rate. No model
is asked for it (most refuse it); its vector is zero, so its value is what the other texts leave for a text
without any feature, and rating one teaches what nothing is worth.
"""

import asyncio
import json
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dspy_qvl.embedding.cache import EmbeddingCache
from dspy_qvl.embedding.callers import Key
from dspy_qvl.embedding.instruction import instructed
from dspy_qvl.embedding.models import LEXICAL, EmbeddingModel, ModelSpec, Refused, Usage
from dspy_qvl.embedding.probe import PROBE_TEXTS, Probe
from dspy_qvl.embedding.source import Source
from dspy_qvl.errors import InputError, QVLWarning, TextsRefusedError, check_count, check_text, shown
from dspy_qvl.state import checked_path
from dspy_qvl.vectors import Truncation, Vectors, is_unit, unit

__all__ = ["CACHE_FILE", "PROBE_TEXTS", "Embedding", "Probe", "is_unit", "unit"]


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
        self._model = model  # what is the same at every address
        self._truncation = Truncation(model.name, spec.embedding_dim, model.default_dim, model.size)
        self._is_routed = spec.is_routed
        self._first = self._source_of(model, address)
        self._sources = {address: self._first}
        self._making = threading.Lock()
        self.accepted: weakref.WeakSet[Any] = weakref.WeakSet()  # fits known to belong to this model
        if model.identity is None and cache_dir is not None:
            warnings.warn(
                "embedder has no name, so its vectors are not stored on disk: give it an attribute `name` that "
                "changes whenever its vectors do.",
                QVLWarning,
                stacklevel=4,
            )

    def _source(self) -> Source:
        """The vectors of the model at the address that would be asked now."""
        if not self._is_routed:
            return self._first
        address = self.spec.address()
        source = self._sources.get(address)
        if source is None:
            with self._making:
                source = self._sources.get(address)
                if source is None:
                    source = self._sources[address] = self._source_of(self.spec.model_at(address), address)
        return source

    def _source_of(self, model: EmbeddingModel, address: str | None) -> Source:
        spec = self.spec
        in_files = model.keep_on_disk and self.cache_dir is not None
        return Source(
            model,
            self._truncation,
            path=self.cache_dir / CACHE_FILE if in_files and self.cache_dir is not None else None,
            storage=self.storage,
            batch_size=self.batch_size,
            sent=partial(_sent, self.instruction),
            whose=(spec.api_key, address, json.dumps(spec.options, sort_keys=True), id(spec.embedder)),
        )

    def _has_moved(self, source: Source) -> bool:
        """Whether another address would be asked, now that something must be: loading litellm reads a .env file."""
        if not self._is_routed:
            return False
        if "litellm" not in sys.modules:
            import litellm  # noqa: F401
        return self._source() is not source

    @property
    def name(self) -> str:
        """How messages call the model."""
        return self._model.name

    @property
    def is_lexical(self) -> bool:
        """Tell whether the model is the built-in one."""
        return self.spec.embedder is None and self.spec.model_name.strip().lower() == LEXICAL

    def like(self, identity: Mapping[str, str] | None) -> "Embedding":
        """This, or the same model in process with the precision and so on of an identity, where that was left open."""
        if identity is None or self.identity is None or self.identity == dict(identity):
            return self
        spec = self.spec.like(identity)
        if spec is self.spec:
            return self
        other = Embedding(
            spec,
            cache_dir=self.given_dir,
            instruction=self.instruction,
            batch_size=self.batch_size,
            storage=self.storage,
        )
        return self if other.identity == self.identity else other

    @property
    def usage(self) -> Usage | None:
        """What a hosted model was asked by this process so far: requests, texts, tokens, cost. None for the others."""
        told = [source.model.usage() for source in list(self._sources.values()) if source.model.usage is not None]
        return sum(told, Usage()) if told else None

    @property
    def cache(self) -> EmbeddingCache:
        """The vectors in memory and on disk, of the address that would be asked now."""
        return (self._source() if self._is_routed else self._first).cache

    @property
    def dim(self) -> int | None:
        """Columns of a vector; None until the first vector tells."""
        return self._truncation.dim

    @property
    def keeps_vectors(self) -> bool:
        """Tell whether the vectors of rated texts are worth saving with what was learned from them."""
        return self._model.keep_with_fit

    @property
    def identity(self) -> dict[str, str] | None:
        """What makes its vectors comparable with saved ones; None for an anonymous callable."""
        if self._model.identity is None:
            return None
        return {**self._model.identity, "instruction": self.instruction or ""}

    @property
    def former_identity(self) -> dict[str, str] | None:
        """What version 0.1.0 called its identity, where that was another."""
        return None if self._model.former is None else {**self._model.former, "instruction": self.instruction or ""}

    def encoder(self, expect: Probe | None = None, *, instruct: bool = True) -> "Encoder":
        """Texts -> unit vectors, with what holds for all of them said once; see `Encoder`."""
        return Encoder(self, expect, instruct)

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors of texts, the instruction before each, (n_texts, dim); as `Encoder`."""
        return self.encoder()(texts)

    async def acall(self, texts: Sequence[str]) -> Vectors:
        """As `__call__`, without blocking the event loop."""
        return await self.encoder().acall(texts)

    def probe(self) -> Probe:
        """What this model gives for the probe texts."""
        texts = self._model.probe_texts or PROBE_TEXTS
        probe = Probe(tuple(_sent(self.instruction, text, True) for text in texts), self(texts))
        self._source().trusted.add(probe.digest)
        return probe

    def meets(self, expect: Probe) -> bool:
        """Tell whether the model gives what it must for the probe texts; it is asked for them."""
        return self._source().meets(expect)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Embedding":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _remake, (self.spec, self.given_dir, self.instruction, self.batch_size, self.storage)


@dataclass(frozen=True, eq=False)
class Encoder:
    """Texts -> unit vectors of one embedding model; made anew for a call, nothing is kept in it.

    Attributes:
        embedding: the model, and its vectors in memory and on disk.
        expect: the probe that the model must give, checked the first time it is really asked; None for any.
        instruct: whether the instruction is put before the texts; of a query and its passage it is the query's.
    """

    embedding: Embedding
    expect: Probe | None = None
    instruct: bool = True

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors of checked texts; duplicates are embedded once, blank ones are zero.

        Returns:
            (n_texts, dim) float32.

        Raises:
            EmbeddingError: the model failed or answered wrongly; what it gave before is stored.
            TextsRefusedError: it refused some of the texts, named by position; the others are stored.
            StateError: the model is not the one that `expect` came from.
        """
        source = self.embedding._source()
        keys, found, missing = self._look(source, texts)
        if missing:
            fetched, unpaid = source.read(missing)
            if unpaid and self.embedding._has_moved(source):
                return self(texts)
            found.update(fetched)
            if unpaid:
                found.update(source.ask(unpaid, self.expect))
        if self.embedding.dim is None:  # only blank texts so far: any other text tells how long a vector is
            self.embedding.encoder(instruct=False)(PROBE_TEXTS[:1])
        return self._rows(source, texts, keys, found)

    async def acall(self, texts: Sequence[str]) -> Vectors:
        """As `__call__`, without blocking the event loop: disk and model are asked in threads."""
        source = self.embedding._source()
        keys, found, missing = self._look(source, texts)
        if missing:
            fetched, unpaid = await asyncio.to_thread(source.read, missing)
            has_moved: bool = bool(unpaid) and await asyncio.to_thread(self.embedding._has_moved, source)
            if has_moved:
                return await self.acall(texts)
            found.update(fetched)
            if unpaid:
                found.update(await source.aask(unpaid, self.expect))
        if self.embedding.dim is None:
            await self.embedding.encoder(instruct=False).acall(PROBE_TEXTS[:1])
        return self._rows(source, texts, keys, found)

    def vector(self, text: str) -> Vectors:
        """The unit vector of one checked text, (dim,), read-only."""
        if text.strip():
            cache = self.embedding.cache  # single values pass here
            vector = cache.memory.get(cache.key(self._sent(text)))
            if vector is not None:
                return vector
        row: Vectors = self([text])[0]
        row.setflags(write=False)
        return row

    def remember(self, texts: Sequence[str], vectors: Sequence[Vectors]) -> None:
        """Keep unit vectors that were saved with a value function, in memory only: a file is not trusted further."""
        cache = self.embedding.cache
        for text, vector in zip(texts, vectors, strict=True):
            if text.strip():
                cache.memory.put(cache.key(self._sent(text)), vector)

    def _sent(self, text: str) -> str:
        return _sent(self.embedding.instruction, text, self.instruct)

    def _look(self, source: Source, texts: Sequence[str]) -> tuple[list[Key], dict[Key, Any], dict[Key, str]]:
        """The key of every text, the vectors that memory has, and what is sent for the texts that it has not."""
        sent = [self._sent(text) for text in texts]
        keys = [source.cache.key(text) for text in sent]
        found: dict[Key, Any] = {key: source.cache.memory.get(key) for key in keys}
        missing = {key: text for key, text in zip(keys, sent, strict=True) if found[key] is None and text}
        return keys, found, missing

    def _rows(self, source: Source, texts: Sequence[str], keys: Sequence[Key], found: Mapping[Key, Any]) -> Vectors:
        """The vectors of texts, a row each.

        Raises:
            TextsRefusedError: the model refused some.
        """
        refused = {row: found[key].reason for row, key in enumerate(keys) if isinstance(found[key], Refused)}
        if refused:
            row, reason = next(iter(refused.items()))
            more = "" if len(refused) == 1 else f" and {len(refused) - 1} more ({', '.join(map(str, refused))})"
            raise TextsRefusedError(
                f"{self.embedding.name} refused text {row}{more} of {len(texts)} ({shown(texts[row])}): {reason}. "
                f"Leave it out or change it; the {len(texts) - len(refused)} others are embedded{source.where()}.",
                refused=refused,
            )
        vectors = np.zeros((len(keys), self.embedding.dim or 0), dtype=np.float32)
        for row, key in enumerate(keys):
            vector = found[key]
            if vector is not None:
                vectors[row] = vector
        return vectors


def _sent(instruction: str | None, text: str, instruct: bool) -> str:
    """What the model is sent for a text."""
    if not text.strip():
        return ""
    return instructed(text, instruction) if instruct else text


def _folder(cache_dir: str | os.PathLike[str], home: str) -> Path:
    """The folder that is meant, which need not be there; a relative one lies below `home`.

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


def _remake(
    spec: ModelSpec, cache_dir: str | os.PathLike[str] | None, instruction: str | None, batch_size: int, storage: str
) -> Embedding:
    return Embedding(spec, cache_dir=cache_dir, instruction=instruction, batch_size=batch_size, storage=storage)
