"""The vectors of one model at one address: from memory, from disk, or from the model itself.

    key, text ─► memory ─► disk ─► model, by length in batches ─► checked ─► stored ─► cut, unit length

Every distinct text is embedded once. A batch is on disk before the next one is asked for. What is stored is the
model's full vector; it is cut to `embedding_dim` and scaled to unit length when it is read.
"""

import asyncio
import contextlib
import json
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dspy_qvl.embedding.batching import Coalescer
from dspy_qvl.embedding.cache import EmbeddingCache
from dspy_qvl.embedding.callers import Key, Run, Wanted, by_caller
from dspy_qvl.embedding.embedder import NO_VECTOR, Model, Row
from dspy_qvl.embedding.models import EmbeddingModel, Refused
from dspy_qvl.embedding.probe import PROBE_TEXTS, Probe, other_model
from dspy_qvl.errors import EmbeddingError, QVLWarning, StateError
from dspy_qvl.vectors import SAME_COSINE, Truncation, Vectors, dot_rows, unit

logger = logging.getLogger("dspy_qvl")

BAR_AFTER_SECONDS = 2.0
READ_AT_ONCE = 256  # few enough that vectors stay in the processor's cache until they are scaled


class Source:
    """One model at one address, with what is known of its vectors.

    Args:
        model: the model.
        truncation: what its vectors are cut to; shared by all addresses of the model.
        path: the file of vectors, or None for memory only.
        storage: how new vectors are stored.
        batch_size: texts a call of the model.
        sent: see `EmbeddingCache`.
        whose: what tells callers apart that must not ask for each other's texts (their keys, their embedders).

    Attributes:
        cache: its vectors in memory and on disk.
        trusted: digests of the probes that the model has given, or was seen to give.
    """

    def __init__(
        self,
        model: EmbeddingModel,
        truncation: Truncation,
        *,
        path: Path | None,
        storage: str,
        batch_size: int,
        sent: Callable[[str, bool], str],
        whose: tuple[Any, ...],
    ) -> None:
        self.model = model
        self.batch_size = batch_size
        self._truncation = truncation
        self._checked = Model(model, truncation)
        self._is_the_same = False  # whether a server was seen to give what is stored under its name
        self._warned_of_length = False
        self._meeting = threading.RLock()
        self.trusted: set[bytes] = set()
        identity = json.dumps({**(model.identity or {}), "endpoint": model.endpoint}, sort_keys=True)
        self.cache = EmbeddingCache(identity, path, storage=storage, truncation=truncation, sent=sent)
        # Learners of one model ask for their texts together; but not with each other's key, and not through an
        # embedder that only has the same name.
        same = (identity, path, truncation.dim, batch_size, model.slots, model.prefix, *whose)
        self._coalescer = Coalescer.shared(same, model.slots, batch_size)

    # Disk, then model

    def read(self, missing: Mapping[Key, str]) -> tuple[dict[Key, Any], dict[Key, str]]:
        """Unit vectors that are on disk, and the texts that are not."""
        fetched: dict[Key, Any] = {}
        if self.cache.store is not None:
            keys = list(missing)
            for start in range(0, len(keys), READ_AT_ONCE):
                fetched.update(self.cache.keep(self.cache.store.read(keys[start : start + READ_AT_ONCE])))
            logger.debug("read %d of %d vectors from %s", len(fetched), len(missing), self.cache.store.path)
        return fetched, {key: text for key, text in missing.items() if key not in fetched}

    def ask(self, unpaid: Mapping[Key, str], expect: Probe | None) -> dict[Key, Any]:
        """Unit vectors from the model, in memory and on disk afterwards; or what became of a text instead.

        Raises:
            EmbeddingError: the model failed or answered wrongly; what it gave before is stored.
            StateError: the model is not the one that `expect` came from.
        """
        wanted = self._prepare(unpaid, expect)
        with self._progress(unpaid) as run:
            outcome = self._coalescer(wanted, self.cache.memory.get, run, width=self.model.width)
        return self._taken_over(outcome)

    async def aask(self, unpaid: Mapping[Key, str], expect: Probe | None) -> dict[Key, Any]:
        """As `ask`, without blocking the event loop."""
        wanted = await asyncio.to_thread(self._prepare, unpaid, expect)
        with self._progress(unpaid) as run:
            outcome = await self._coalescer.acall(wanted, self.cache.memory.get, run, width=self.model.width)
        return self._taken_over(outcome)

    def _taken_over(self, outcome: Mapping[Key, Any]) -> dict[Key, Any]:
        """What became of texts; vectors that another learner of the same model asked for are kept here too."""
        vectors = {key: vector for key, vector in outcome.items() if not isinstance(vector, Refused)}
        if self._truncation.dim is None and vectors:
            self._truncation.keep(len(next(iter(vectors.values()))))
        return {**outcome, **{key: self.cache.memory.put(key, vector) for key, vector in vectors.items()}}

    def _prepare(self, unpaid: Mapping[Key, str], expect: Probe | None) -> list[tuple[Key, str, int]]:
        """Texts with what each costs the model, which is the one that is expected."""
        if expect is not None and expect.digest not in self.trusted:
            with self._meeting:
                if expect.digest not in self.trusted:
                    self._check_model(expect)
        if self.model.measure is None:
            return [(key, text, len(text)) for key, text in unpaid.items()]
        measured = self.model.measure(list(unpaid.values()))
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
                f"{error} ({n_done} of {len(unpaid)} new texts are embedded{self.where()}; trying again asks only for "
                "the rest.)"
            ) from error.__cause__
        finally:
            if bar is not None:
                bar.close()
        logger.debug("embedded %d texts with %s", len(unpaid), self.model.name)

    def where(self) -> str:
        """Where vectors are stored, as the end of a sentence."""
        return "" if self.cache.store is None else f" and stored in {self.cache.store.path}"

    # One batch

    def _answer(self, batch: Sequence[Wanted]) -> dict[Key, Any]:
        """What becomes of each text of a batch: its unit vector, stored; why it was refused; or what went wrong."""
        try:
            texts, keys = self._with_probe(batch)
            return self._accept(keys, self._checked(texts))
        except EmbeddingError:
            parts = by_caller(batch)
            if self.model.is_served or len(parts) == 1:
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
            outcome.update(self.cache.add(given))
        return outcome

    # Is it the model that it says?

    def _with_probe(self, batch: Sequence[Wanted]) -> tuple[list[str], list[Key]]:
        """What a batch asks for: until a server has answered once, with a probe text along."""
        texts, keys = [wanted.text for wanted in batch], [wanted.key for wanted in batch]
        if self.model.is_served and self.cache.store is not None and not self._is_the_same:
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
        if self._is_the_same or self.cache.store is None or not self.model.is_served or key not in given:
            return
        for stored in self.cache.store.read([key]).values():
            cosine = 0.0
            if len(stored) == len(given[key]):
                cosine = float(dot_rows(unit(stored[None]), unit(given[key][None]))[0])
            if not cosine >= SAME_COSINE:
                raise EmbeddingError(
                    f"{self.model.name} gives other vectors than those stored under its name in "
                    f"{self.cache.store.path} (cosine {cosine:.3f} for a probe text, needed {SAME_COSINE}): the "
                    "server's model was changed. Give this learner another cache_dir, or drop the old vectors with "
                    "embedding_cache.prune(model=…)."
                )
        self._is_the_same = True

    def meets(self, expect: Probe) -> bool:
        """Tell whether the model gives what it must for the probe texts; it is asked for them."""
        with self._meeting, contextlib.suppress(StateError):
            if expect.digest not in self.trusted:
                self._check_model(expect)
        return expect.digest in self.trusted

    def _check_model(self, expect: Probe) -> None:
        """Refuse to value texts with a model whose vectors are not those the value function was fitted on."""
        rows = [row for row in self._checked(list(expect.texts)) if not isinstance(row, NO_VECTOR)]
        if len(rows) < len(expect.texts):
            raise EmbeddingError(f"{self.model.name} refuses the probe texts, so it cannot be told from another model.")
        vectors = unit(np.stack(rows)[:, : expect.vectors.shape[1]])
        if vectors.shape != expect.vectors.shape:
            raise other_model(f"it has {expect.vectors.shape[1]} columns, {self.model.name} gives {vectors.shape[1]}")
        cosine = float(dot_rows(vectors, expect.vectors).min())
        if not cosine >= SAME_COSINE:
            self.cache.clear()  # vectors that came with the value function are of the other model
            raise other_model(
                f"{self.model.name} gives other vectors for a probe text (cosine {cosine:.3f}, needed {SAME_COSINE})"
            )
        self.trusted.add(expect.digest)
