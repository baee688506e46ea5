"""Texts -> unit vectors: the one door to `dspy.Embedder`.

    texts ─► as sent ─► memory ─► disk ─► model, by length in batches ─► checked ─► stored ─► cut, unit length

Every distinct text is embedded once. A batch is on disk before the next one is asked for. What is stored is the
model's full vector; it is cut to `embedding_dim` and scaled to unit length when it is read.

An empty or blank text is valued, not refused: saying nothing is something an LLM does and people rate. No model
is asked for it (most refuse it); its vector is zero, so its value is what the other texts leave for a text
without any feature, and rating one teaches what nothing is worth.
"""

import hashlib
import json
import logging
import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dspy_qvl.backends import LEXICAL, ModelSpec
from dspy_qvl.cache import EmbeddingCache
from dspy_qvl.errors import (
    EmbeddingError,
    InputError,
    ModelUnavailableError,
    QVLWarning,
    check_count,
    check_text,
    check_vectors,
    other_model,
)
from dspy_qvl.linear import dot_rows
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

    Raises:
        InputError: a model that cannot be used, more columns than it has, or a cache_dir that is a file.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        cache_dir: str | Path | None,
        instruction: str | None = None,
        batch_size: int | None = None,
    ) -> None:
        if spec.embedding_dim is not None:
            check_count(spec.embedding_dim, "embedding_dim", 1)
        if instruction is not None:
            instruction = check_text(instruction, "instruction").strip() or None
        if cache_dir is not None and Path(cache_dir).exists() and not Path(cache_dir).is_dir():
            raise InputError(f"cache_dir must be a folder, but {cache_dir} is a file; give another cache_dir.")
        backend = spec.backend()
        self.spec = spec
        self.cache_dir = cache_dir
        self.instruction = instruction
        self.batch_size = backend.batch_size if batch_size is None else check_count(batch_size, "batch_size", 1)
        self._size: int | None = None  # of a full vector, once one was seen
        self.dim = spec.embedding_dim if spec.embedding_dim is not None else backend.default_dim
        self._backend = backend
        self._embedder = backend.embed if isinstance(backend.embed, dspy.Embedder) else _embedder(backend.embed)
        if backend.size is not None:
            self._settle_dim(backend.size)
        self._trusted: set[bytes] = set()  # probes this model has given, or was seen to give
        self.accepted: weakref.WeakSet[Any] = weakref.WeakSet()  # fits known to belong to this model
        in_files = backend.keep_on_disk and cache_dir is not None
        self.cache = EmbeddingCache(
            json.dumps({**(backend.identity or {}), "endpoint": backend.endpoint}, sort_keys=True),
            Path(cache_dir) / CACHE_FILE if in_files and cache_dir is not None else None,
        )
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
            EmbeddingError: the model failed or answered wrongly; batches before that one are stored.
            StateError: the model is not the one that `expect` came from.
        """
        sent = [self._sent(text, instruct) for text in texts]
        keys = [self.cache.key(text) for text in sent]
        found = {key: self.cache.memory.get(key) for key in keys}
        missing = {key: text for key, text in zip(keys, sent, strict=True) if found[key] is None and text}
        if missing:
            found.update(self._fetch(missing, expect))
        if self.dim is None:  # only blank texts so far: any other text tells how long a vector is
            self._fetch({self.cache.key(PROBE_TEXTS[0]): PROBE_TEXTS[0]}, None)
        vectors = np.zeros((len(keys), self.dim or 0), dtype=np.float32)
        for row, key in enumerate(keys):
            vector = found[key]
            if vector is not None:
                vectors[row] = vector
        return vectors

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

    def _sent(self, text: str, instruct: bool) -> str:
        """What the model is sent for a text."""
        if not text.strip():
            return ""
        return instructed(text, self.instruction) if instruct else text

    def _fetch(self, missing: Mapping[bytes, str], expect: Probe | None) -> dict[bytes, Vectors]:
        """Unit vectors from disk, and of the rest from the model; all of them are in memory afterwards."""
        fetched: dict[bytes, Vectors] = {}
        if self.cache.store is not None:
            keys = list(missing)
            for start in range(0, len(keys), READ_AT_ONCE):
                self._keep(self.cache.store.read(keys[start : start + READ_AT_ONCE]), fetched)
            logger.debug("read %d of %d vectors from %s", len(fetched), len(missing), self.cache.store.path)
        unpaid = sorted(((text, key) for key, text in missing.items() if key not in fetched), key=lambda p: len(p[0]))
        if not unpaid:
            return fetched
        if expect is not None and expect.digest not in self._trusted:
            self._check_model(expect)
        batches = [unpaid[start : start + self.batch_size] for start in range(0, len(unpaid), self.batch_size)]
        quiet = len(batches) == 1 or not logger.isEnabledFor(logging.WARNING)
        n_done = 0
        with tqdm(total=len(unpaid), desc="embedding", unit="text", delay=BAR_AFTER_SECONDS, disable=quiet) as bar:
            for number, batch in enumerate(batches, start=1):
                texts, keys = [text for text, _ in batch], [key for _, key in batch]
                try:
                    vectors = self._ask(texts)
                except EmbeddingError as error:
                    kept = "" if self.cache.store is None else f" and stored in {self.cache.store.path}"
                    raise type(error)(
                        f"{error} (batch {number} of {len(batches)}; the {n_done} texts before it are embedded{kept}, "
                        "so trying again asks only for the rest.)"
                    ) from error.__cause__
                fresh = dict(zip(keys, vectors, strict=True))
                if self.cache.store is not None:
                    fresh.update(self.cache.store.write(keys, vectors))
                self._keep(fresh, fetched)
                n_done += len(batch)
                bar.update(len(batch))
        logger.debug("embedded %d texts with %s in %d batches", n_done, self.name, len(batches))
        return fetched

    def _ask(self, texts: list[str]) -> Vectors:
        """Full-size vectors of texts from the model itself, checked."""
        try:
            answer = self._embedder(texts, batch_size=len(texts), caching=False)
        except ModelUnavailableError:
            raise
        except EmbeddingError as error:
            raise EmbeddingError(f"{self.name} failed: {error}") from error.__cause__
        except Exception as error:
            if "inhomogeneous" in str(error):  # numpy's word for it, raised inside dspy.Embedder
                raise EmbeddingError(f"{self.name} gave vectors of different lengths for one batch.") from error
            raise EmbeddingError(f"{self.name} failed: {type(error).__name__}: {error}") from error
        vectors = check_vectors(answer, len(texts), self.name)
        self._check_size(vectors.shape[1])
        return vectors

    def _keep(self, vectors: Mapping[bytes, Vectors], fetched: dict[bytes, Vectors]) -> None:
        """Cut to `dim`, scale to unit length, and keep in memory; the first vector of a text stays."""
        if not vectors:
            return
        for size in {len(vector) for vector in vectors.values()}:
            self._check_size(size)
            self._settle_dim(size)
        rows = unit(np.stack([vector[: self.dim] for vector in vectors.values()]))
        for key, row in zip(vectors, rows, strict=True):
            fetched[key] = self.cache.memory.put(key, row)

    def _check_size(self, size: int) -> None:
        """Refuse vectors of another length than the first ones had.

        Raises:
            EmbeddingError: the length changed.
        """
        self._size = self._size or size
        if size != self._size:
            raise EmbeddingError(
                f"{self.name} gave vectors of {self._size} columns before and of {size} now; "
                "one model must give one length, so give another model another name."
            )

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
        vectors = unit(self._ask(list(expect.texts))[:, : expect.vectors.shape[1]])
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
        return _remake, (self.spec, self.cache_dir, self.instruction, self.batch_size)


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


def _embedder(embed: Any) -> dspy.Embedder:
    # DSPy's own cache is keyed by batch and by a callable's source: two models would share vectors,
    # see test_two_models_never_share_a_vector.
    return dspy.Embedder(embed, caching=False)


def _remake(spec: ModelSpec, cache_dir: str | Path | None, instruction: str | None, batch_size: int) -> Embedding:
    return Embedding(spec, cache_dir=cache_dir, instruction=instruction, batch_size=batch_size)
