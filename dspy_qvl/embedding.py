"""Texts -> unit vectors: the one door to `dspy.Embedder`.

    texts ─► as sent ─► memory ─► disk ─► model, by length in batches ─► checked ─► stored ─► cut, unit length

Every distinct text is embedded once. A batch is on disk before the next one is asked for. What is stored is the
model's full vector; it is cut to `embedding_dim` and scaled to unit length when it is read.

An empty or blank text is valued, not refused: saying nothing is something an LLM does and people rate. No model
is asked for it (most refuse it); its vector is zero, so its value is what the other texts leave for a text
without any feature, and rating one teaches what nothing is worth.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import threading
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dspy_qvl.backends import LEXICAL, ModelSpec
from dspy_qvl.cache import EmbeddingCache
from dspy_qvl.coalescing import Coalescer, Key, Run, Wanted, by_caller
from dspy_qvl.errors import (
    EmbeddingError,
    InputError,
    QVLWarning,
    TextsRefusedError,
    check_count,
    check_text,
    other_model,
    shown,
)
from dspy_qvl.hosted import Usage
from dspy_qvl.linear import dot_rows
from dspy_qvl.model import NO_VECTOR, Model, Row
from dspy_qvl.provider import Refused
from dspy_qvl.state import checked_path
from dspy_qvl.text import instructed

Vectors = NDArray[np.float32]

logger = logging.getLogger("dspy_qvl")

CACHE_FILE = "vectors-1.sqlite"  # the number is the schema's
BAR_AFTER_SECONDS = 2.0
READ_AT_ONCE = 256  # few enough that vectors stay in the processor's cache until they are scaled
SAME_MODEL_COSINE = 0.999

# Embedded with every fit and saved with it, so that another model is noticed whatever it calls itself.
PROBE_TEXTS = (
    "The answer is correct, complete and easy to follow.",
    "it never worked, support was rude and i want my money back!!",
    "Die Katze schläft auf dem warmen Fensterbrett.",
)


@dataclass(frozen=True)
class Probe:
    """What a model gave for `PROBE_TEXTS` when a value function was fitted.

    Attributes:
        texts: the texts, as sent.
        vectors: their unit vectors, (n_texts, d).
    """

    texts: tuple[str, ...]
    vectors: Vectors

    @property
    def digest(self) -> bytes:
        """A short stand-in for the whole."""
        return hashlib.blake2b("\0".join(self.texts).encode() + self.vectors.tobytes(), digest_size=16).digest()


class Embedding:
    """Texts -> unit vectors of one model, each text paid for once.

    A shared resource: copies of a program share it (deepcopy gives itself back), and pickling keeps only what is
    needed to make it again, never the key, the loaded model or an open file.

    Args:
        spec: the model.
        cache_dir: folder of the file of vectors, or None for memory only.
        instruction: Qwen's task instruction, put before every text; None for none.
        batch_size: texts a call of the model, or None for what suits the model.
        storage: "float32", or "float16" for a file of half the size.

    Raises:
        InputError: a model that cannot be used, more columns than it has, or a cache_dir that is a file.
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
        if cache_dir is not None:
            cache_dir = _folder(cache_dir)
        backend = spec.backend()
        for part in (backend.identity or {}).values():  # it is saved with every fit
            check_text(part, "the name of the embedding model")
        self.spec = spec
        self.cache_dir = cache_dir
        self.instruction = instruction
        self.storage = storage
        self.batch_size = backend.batch_size if batch_size is None else check_count(batch_size, "batch_size", 1)
        self.dim = spec.embedding_dim if spec.embedding_dim is not None else backend.default_dim
        self._backend = backend
        self._model = Model(backend)
        if backend.size is not None:
            self._settle_dim(backend.size)
        self._is_the_same = False  # whether a server was seen to give what is stored under its name
        self._warned_of_length = False
        self._meeting = threading.RLock()
        self._trusted: set[bytes] = set()  # probes this model has given, or was seen to give
        self.accepted: weakref.WeakSet[Any] = weakref.WeakSet()  # fits known to belong to this model
        in_files = backend.keep_on_disk and cache_dir is not None
        identity = json.dumps({**(backend.identity or {}), "endpoint": backend.endpoint}, sort_keys=True)
        self.cache = EmbeddingCache(
            identity,
            Path(cache_dir) / CACHE_FILE if in_files and cache_dir is not None else None,
            storage=storage,
        )
        # Learners of one model ask for their texts together; but not with each other's key, and not through an
        # embedder that only has the same name.
        path = None if self.cache.store is None else self.cache.store.path.absolute()
        same = (identity, path, self.dim, self.batch_size, backend.slots, spec.api_key, id(spec.embedder))
        self._coalescer = Coalescer.shared(same, backend.slots, self.batch_size)
        if backend.identity is None and cache_dir is not None:
            warnings.warn(
                "embedder has no name, so its vectors are not stored on disk: give it an attribute `name` that "
                "changes whenever its vectors do.",
                QVLWarning,
                stacklevel=4,
            )

    @property
    def name(self) -> str:
        """How messages call the model."""
        return self._backend.name

    @property
    def is_lexical(self) -> bool:
        """Whether the model is the built-in one."""
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
            cache_dir=self.cache_dir,
            instruction=self.instruction,
            batch_size=self.batch_size,
            storage=self.storage,
        )
        return self if other.identity == self.identity else other

    @property
    def usage(self) -> Usage | None:
        """What a hosted model was asked by this process so far: requests, texts, tokens, cost. None for the others."""
        return None if self._backend.usage is None else self._backend.usage()

    @property
    def keeps_vectors(self) -> bool:
        """Whether a vector is worth storing."""
        return self._backend.keep_on_disk or self._backend.identity is None

    @property
    def identity(self) -> dict[str, str] | None:
        """What makes its vectors comparable with saved ones; None for an anonymous callable."""
        if self._backend.identity is None:
            return None
        return {**self._backend.identity, "instruction": self.instruction or ""}

    def __call__(self, texts: Sequence[str], *, expect: Probe | None = None, instruct: bool = True) -> Vectors:
        """Unit vectors of texts.

        Args:
            texts: checked texts; duplicates are embedded once, blank ones are zero.
            expect: what the model must give for the probe texts, checked the first time it is really asked.
            instruct: whether the instruction is put before them; of a query and its passage it is the query's.

        Returns:
            (n_texts, dim) float32.

        Raises:
            EmbeddingError: the model failed or answered wrongly; what it gave before is stored.
            TextsRefusedError: it refused some of the texts, named by position; the others are stored.
            StateError: the model is not the one that `expect` came from.
        """
        keys, found, missing = self._look(texts, instruct)
        if missing:
            found.update(self._fetch(missing, expect))
        if self.dim is None:  # only blank texts so far: any other text tells how long a vector is
            self._fetch(self._any_text(), None)
        return self._rows(texts, keys, found)

    async def acall(self, texts: Sequence[str], *, expect: Probe | None = None, instruct: bool = True) -> Vectors:
        """As `__call__`, without blocking the event loop: disk and model are asked in threads."""
        keys, found, missing = self._look(texts, instruct)
        if missing:
            found.update(await self._afetch(missing, expect))
        if self.dim is None:
            await self._afetch(self._any_text(), None)
        return self._rows(texts, keys, found)

    def vector(self, text: str, *, expect: Probe | None = None, instruct: bool = True) -> Vectors:
        """The unit vector of one checked text, (dim,), read-only."""
        if text.strip():
            vector = self.cache.memory.get(self.cache.key(self._sent(text, instruct)))
            if vector is not None:
                return vector
        row: Vectors = self([text], expect=expect, instruct=instruct)[0]
        row.setflags(write=False)
        return row

    def probe(self) -> Probe:
        """What this model gives for the probe texts."""
        texts = tuple(instructed(text, self.instruction) for text in PROBE_TEXTS)
        probe = Probe(texts, self(PROBE_TEXTS))
        self._trusted.add(probe.digest)
        return probe

    def remember(self, texts: Sequence[str], vectors: Sequence[Vectors], *, instruct: bool = True) -> None:
        """Keep unit vectors that were saved with a value function, in memory only: a file is not trusted further."""
        for text, vector in zip(texts, vectors, strict=True):
            if text.strip():
                self.cache.memory.put(self.cache.key(self._sent(text, instruct)), vector)

    # What is known, what is missing

    def _sent(self, text: str, instruct: bool) -> str:
        """What the model is sent for a text."""
        if not text.strip():
            return ""
        return instructed(text, self.instruction) if instruct else text

    def _look(self, texts: Sequence[str], instruct: bool) -> tuple[list[Key], dict[Key, Any], dict[Key, str]]:
        """The key of every text, what memory has of them, and what is sent for those it has not."""
        sent = [self._sent(text, instruct) for text in texts]
        keys = [self.cache.key(text) for text in sent]
        found: dict[Key, Any] = {key: self.cache.memory.get(key) for key in keys}
        missing = {key: text for key, text in zip(keys, sent, strict=True) if found[key] is None and text}
        return keys, found, missing

    def _any_text(self) -> dict[Key, str]:
        return {self.cache.key(PROBE_TEXTS[0]): PROBE_TEXTS[0]}

    def _rows(self, texts: Sequence[str], keys: Sequence[Key], found: Mapping[Key, Any]) -> Vectors:
        """The vectors of texts, a row each.

        Raises:
            TextsRefusedError: the model refused some.
        """
        refused = {row: found[key].reason for row, key in enumerate(keys) if isinstance(found[key], Refused)}
        if refused:
            row, reason = next(iter(refused.items()))
            more = "" if len(refused) == 1 else f" and {len(refused) - 1} more ({', '.join(map(str, refused))})"
            raise TextsRefusedError(
                f"{self.name} refused text {row}{more} of {len(texts)} ({shown(texts[row])}): {reason}. Leave it out "
                f"or change it; the {len(texts) - len(refused)} others are embedded{self._where()}.",
                refused=refused,
            )
        vectors = np.zeros((len(keys), self.dim or 0), dtype=np.float32)
        for row, key in enumerate(keys):
            vector = found[key]
            if vector is not None:
                vectors[row] = vector
        return vectors

    # Disk, then model

    def _fetch(self, missing: Mapping[Key, str], expect: Probe | None) -> dict[Key, Any]:
        """Unit vectors from disk, and of the rest from the model; all of them are in memory afterwards."""
        fetched, unpaid = self._read(missing)
        if unpaid:
            wanted = self._prepare(unpaid, expect)
            with self._progress(unpaid) as run:
                outcome = self._coalescer(wanted, self.cache.memory.get, run, width=self._backend.width)
            fetched.update(self._taken_over(outcome))
        return fetched

    async def _afetch(self, missing: Mapping[Key, str], expect: Probe | None) -> dict[Key, Any]:
        fetched, unpaid = await asyncio.to_thread(self._read, missing)
        if unpaid:
            wanted = await asyncio.to_thread(self._prepare, unpaid, expect)
            with self._progress(unpaid) as run:
                outcome = await self._coalescer.acall(wanted, self.cache.memory.get, run, width=self._backend.width)
            fetched.update(self._taken_over(outcome))
        return fetched

    def _taken_over(self, outcome: Mapping[Key, Any]) -> dict[Key, Any]:
        """What became of texts; vectors that another learner of the same model asked for are kept here too."""
        vectors = {key: vector for key, vector in outcome.items() if not isinstance(vector, Refused)}
        if self.dim is None and vectors:
            self.dim = len(next(iter(vectors.values())))
        return {**outcome, **{key: self.cache.memory.put(key, vector) for key, vector in vectors.items()}}

    def _read(self, missing: Mapping[Key, str]) -> tuple[dict[Key, Any], dict[Key, str]]:
        """What is on disk, and what is not."""
        fetched: dict[Key, Any] = {}
        if self.cache.store is not None:
            keys = list(missing)
            for start in range(0, len(keys), READ_AT_ONCE):
                self._keep(self.cache.store.read(keys[start : start + READ_AT_ONCE]), fetched)
            logger.debug("read %d of %d vectors from %s", len(fetched), len(missing), self.cache.store.path)
        return fetched, {key: text for key, text in missing.items() if key not in fetched}

    def _prepare(self, unpaid: Mapping[Key, str], expect: Probe | None) -> list[tuple[Key, str, int]]:
        """Texts with what each costs the model, which is the one that is expected."""
        if expect is not None and expect.digest not in self._trusted:
            with self._meeting:
                if expect.digest not in self._trusted:
                    self._check_model(expect)
        if self._backend.measure is None:
            return [(key, text, len(text)) for key, text in unpaid.items()]
        measured = self._backend.measure(list(unpaid.values()))
        self._coalescer.budget = measured.budget
        if measured.warning is not None and (len(unpaid) > 1 or not self._warned_of_length):
            self._warned_of_length = True
            warnings.warn(measured.warning, QVLWarning, stacklevel=2)
        return [(key, text, cost) for (key, text), cost in zip(unpaid.items(), measured.tokens, strict=True)]

    @contextlib.contextmanager
    def _progress(self, unpaid: Mapping[Key, str]) -> Iterator[Run]:
        """What answers the batches of a call, with a bar over its texts, and of a failure how far the call came."""
        quiet = len(unpaid) <= self.batch_size or not logger.isEnabledFor(logging.WARNING)
        quiet = quiet or threading.current_thread() is not threading.main_thread()  # bars of many threads are noise
        bar = None if quiet else tqdm(total=len(unpaid), desc="embedding", unit="text", delay=BAR_AFTER_SECONDS)

        def run(batch: Sequence[Wanted]) -> dict[Key, Any]:
            outcome = self._answer(batch)
            if bar is not None:
                bar.update(sum(wanted.key in unpaid for wanted in batch))
            return outcome

        try:
            yield run
        except EmbeddingError as error:
            n_done = sum(self.cache.memory.get(key) is not None for key in unpaid)
            raise type(error)(
                f"{error} ({n_done} of {len(unpaid)} new texts are embedded{self._where()}; trying again asks only for "
                "the rest.)"
            ) from error.__cause__
        finally:
            if bar is not None:
                bar.close()
        logger.debug("embedded %d texts with %s", len(unpaid), self.name)

    def _where(self) -> str:
        return "" if self.cache.store is None else f" and stored in {self.cache.store.path}"

    # One batch

    def _answer(self, batch: Sequence[Wanted]) -> dict[Key, Any]:
        """What becomes of each text of a batch: its unit vector, stored; why it was refused; or what went wrong."""
        try:
            texts, keys = self._with_probe(batch)
            return self._accept(keys, self._model(texts))
        except EmbeddingError:
            parts = by_caller(batch)
            if self._backend.is_served or len(parts) == 1:
                raise
        outcome: dict[Key, Any] = {}
        for part in parts:  # the text of one caller may be at fault: the others must not hear of it
            try:
                outcome.update(self._answer(part))
            except EmbeddingError as error:
                outcome.update({wanted.key: error for wanted in part})
        return outcome

    def _accept(self, keys: Sequence[Key], rows: Sequence[Row]) -> dict[Key, Any]:
        """Store what the model gave; the vector of a text is the first that was stored."""
        outcome: dict[Key, Any] = dict(zip(keys, rows, strict=True))
        given = {key: row for key, row in outcome.items() if not isinstance(row, NO_VECTOR)}
        if given:
            self._check_still_the_same(given)
            if self.cache.store is not None:
                given.update(self.cache.store.write(list(given), np.stack(list(given.values()))))
            self._keep(given, outcome)
        return outcome

    # Is it the model that it says?

    def _with_probe(self, batch: Sequence[Wanted]) -> tuple[list[str], list[Key]]:
        """What a batch asks for: until a server has answered once, with a probe text along."""
        texts, keys = [wanted.text for wanted in batch], [wanted.key for wanted in batch]
        if self._backend.is_served and self.cache.store is not None and not self._is_the_same:
            key = self.cache.key(PROBE_TEXTS[0])
            if key not in keys:
                return [*texts, PROBE_TEXTS[0]], [*keys, key]
        return texts, keys

    def _check_still_the_same(self, given: Mapping[Key, Vectors]) -> None:
        """Refuse the vectors of a server that runs another model than when those on disk were stored.

        Raises:
            EmbeddingError: the vector of the probe text is another; nothing of the batch is stored.
        """
        key = self.cache.key(PROBE_TEXTS[0])
        if self._is_the_same or self.cache.store is None or not self._backend.is_served or key not in given:
            return
        for stored in self.cache.store.read([key]).values():
            cosine = 0.0
            if len(stored) == len(given[key]):
                cosine = float(dot_rows(unit(stored[None]), unit(given[key][None]))[0])
            if not cosine >= SAME_MODEL_COSINE:
                raise EmbeddingError(
                    f"{self.name} gives other vectors than those stored under its name in {self.cache.store.path} "
                    f"(cosine {cosine:.3f} for a probe text, needed {SAME_MODEL_COSINE}): the server's model was "
                    "changed. Give this learner another cache_dir, or drop the old vectors with "
                    "embedding_cache.prune(model=…)."
                )
        self._is_the_same = True

    # Vectors as they are used

    def _keep(self, vectors: Mapping[Key, Vectors], fetched: dict[Key, Any]) -> None:
        """Cut to `dim`, scale to unit length, and keep in memory; the first vector of a text stays."""
        if not vectors:
            return
        for size in {len(vector) for vector in vectors.values()}:
            self._model.keep_size(size)
            self._settle_dim(size)
        rows = unit(np.stack([vector[: self.dim] for vector in vectors.values()]))
        for key, row in zip(vectors, rows, strict=True):
            fetched[key] = self.cache.memory.put(key, row)

    def _settle_dim(self, size: int) -> None:
        """Settle `dim` now that the model's own size is known.

        Raises:
            InputError: the caller wants more columns than the model has.
        """
        wanted = self.spec.embedding_dim
        if wanted is not None and wanted > size:
            raise InputError(
                f"embedding_dim={wanted} is more than {self.name} has ({size}); give embedding_dim={size} or less."
            )
        self.dim = min(size, self.dim or size)

    def _check_model(self, expect: Probe) -> None:
        """Refuse to value texts with a model whose vectors are not those the value function was fitted on."""
        rows = [row for row in self._model(list(expect.texts)) if not isinstance(row, NO_VECTOR)]
        if len(rows) < len(expect.texts):
            raise EmbeddingError(f"{self.name} refuses the probe texts, so it cannot be told from another model.")
        vectors = unit(np.stack(rows)[:, : expect.vectors.shape[1]])
        if vectors.shape != expect.vectors.shape:
            raise other_model(f"it has {expect.vectors.shape[1]} columns, {self.name} gives {vectors.shape[1]}")
        cosine = float(dot_rows(vectors, expect.vectors).min())
        if not cosine >= SAME_MODEL_COSINE:
            self.cache.clear()  # vectors that came with the value function are of the other model
            raise other_model(
                f"{self.name} gives other vectors for a probe text (cosine {cosine:.3f}, needed {SAME_MODEL_COSINE})"
            )
        self._trusted.add(expect.digest)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Embedding":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _remake, (self.spec, self.cache_dir, self.instruction, self.batch_size, self.storage)


def unit(vectors: Vectors) -> Vectors:
    """Rows scaled to length 1, (n, d) -> (n, d) float32; the same bits for a row in any batch."""
    rows = vectors.astype(np.float64)
    lengths = np.sqrt(dot_rows(rows, rows))
    lengths[lengths == 0] = 1.0
    rows /= lengths[:, None]
    return rows.astype(np.float32)


def is_unit(vectors: Vectors) -> NDArray[np.bool_]:
    """Which rows have length 1, to float32's rounding, (n, d) -> (n,)."""
    with np.errstate(over="ignore"):
        close: NDArray[np.bool_] = np.abs(dot_rows(vectors, vectors) - 1) < 1e-3
    return close


def _folder(cache_dir: str | os.PathLike[str]) -> Path:
    """The folder that is meant, which need not be there.

    Raises:
        InputError: a file, or no name of a folder.
    """
    if not str(cache_dir).strip():
        raise InputError("cache_dir must not be blank; give a folder, or None for memory only.")
    try:
        folder = checked_path(cache_dir).expanduser()
    except RuntimeError as error:  # no such user
        raise InputError(f"cache_dir={str(cache_dir)!r} names no folder ({error}).") from None
    if folder.exists() and not folder.is_dir():
        raise InputError(f"cache_dir must be a folder, but {folder} is a file; give another cache_dir.")
    return folder


def _remake(
    spec: ModelSpec, cache_dir: str | os.PathLike[str] | None, instruction: str | None, batch_size: int, storage: str
) -> Embedding:
    return Embedding(spec, cache_dir=cache_dir, instruction=instruction, batch_size=batch_size, storage=storage)
