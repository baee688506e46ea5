"""The vectors of one model: from disk, or from the model itself, at the address where it would be asked now.

    key, text ─► disk ─► batches, by length ─► the model ─► stored on disk ─► cut, unit length, kept in memory

Every distinct text is embedded once. A batch is on disk before the next one is asked for. The file holds the model's
full vectors; they are cut to `embedding_dim` and scaled to unit length when they are read.
"""

import asyncio
import contextlib
import json
import logging
import math
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dspy_qvl.embedding.batching import Coalescer
from dspy_qvl.embedding.cache import EmbeddingCache
from dspy_qvl.embedding.callers import Batch, Caller, Key, by_caller
from dspy_qvl.embedding.embedder import NO_VECTOR, CheckedModel
from dspy_qvl.embedding.models import EmbeddingModel, ModelSpec, Refused
from dspy_qvl.embedding.probe import PROBE_TEXTS, Probe, other_model, unlike
from dspy_qvl.embedding.truncation import Truncation
from dspy_qvl.errors import EmbeddingError, StateError, warn
from dspy_qvl.vectors import Vectors, unit

logger = logging.getLogger("dspy_qvl")

BAR_AFTER_SECONDS = 2.0
READ_AT_ONCE = 256  # few enough that vectors stay in the processor's cache until they are scaled


class Source:
    """The vectors of one model at one address.

    Args:
        model: the model.
        address: where it is asked, or None for the provider's own address.
        spec: the caller's description of the model.
        truncation: the columns that are kept of its vectors; shared by all addresses of the model.
        path: the file of vectors, or None for memory only.
        storage: how new vectors are stored.
        batch_size: texts a call of the model.
        sent: text, and whether the instruction is put before it -> the string that the model is sent.

    Attributes:
        model, truncation, batch_size: as given.
        cache: its vectors in memory and on disk.
        trusted: digests of the probes that the model has given, or was seen to give.
    """

    def __init__(
        self,
        model: EmbeddingModel,
        address: str | None,
        *,
        spec: ModelSpec,
        truncation: Truncation,
        path: Path | None,
        storage: str,
        batch_size: int,
        sent: Callable[[str, bool], str],
    ) -> None:
        self.model = model
        self.batch_size = batch_size
        self.truncation = truncation
        self._checked = CheckedModel(model, truncation)
        self._warned_of_length = False
        self._meeting = threading.RLock()
        self.trusted: set[bytes] = set()
        identity = json.dumps({**(model.identity or {}), "endpoint": model.endpoint}, sort_keys=True)
        self.cache = EmbeddingCache(identity, path, storage=storage, truncation=truncation, sent=sent)
        # A server's model may have changed: until it has given the stored vector of this text, it is asked for it.
        is_stored = model.is_served and self.cache.store is not None
        self._probe_key = self.cache.key(PROBE_TEXTS[0]) if is_stored else None
        # Learners of one model ask for their texts together; but not with each other's key, and not through an
        # embedder that only has the same name.
        same = (identity, path, truncation.dim, batch_size, model.slots, model.prefix)
        whose = (spec.api_key, address, json.dumps(spec.options, sort_keys=True), id(spec.embedder))
        self._coalescer = Coalescer.shared((*same, *whose), model.slots, batch_size)

    # Disk, then model

    def read(self, missing: Mapping[Key, str]) -> dict[Key, Any]:
        """The unit vectors, (dim,), of those texts that are on disk."""
        found: dict[Key, Any] = {}
        if self.cache.store is not None:
            keys = list(missing)
            for start in range(0, len(keys), READ_AT_ONCE):
                found.update(self.cache.keep(self.cache.store.read(keys[start : start + READ_AT_ONCE])))
            logger.debug("read %d of %d vectors from %s", len(found), len(missing), self.cache.store.path)
        return found

    def ask(self, missing: Mapping[Key, str], expect: Probe | None) -> dict[Key, Any]:
        """Ask the model for texts: key -> the unit vector, (dim,), in memory and on disk by now, or a `Refused`.

        Raises:
            EmbeddingError: the model failed or answered wrongly; vectors that it gave before are stored.
            StateError: the model is not the one that `expect` came from.
        """
        with self._calling(missing, *self._prepare(missing, expect)) as caller:
            outcome = self._coalescer(caller)
        return self._kept(outcome)

    async def aask(self, missing: Mapping[Key, str], expect: Probe | None) -> dict[Key, Any]:
        """As `ask`, without blocking the event loop."""
        prepared = await asyncio.to_thread(self._prepare, missing, expect)
        with self._calling(missing, *prepared) as caller:
            outcome = await self._coalescer.acall(caller)
        return self._kept(outcome)

    def _prepare(self, missing: Mapping[Key, str], expect: Probe | None) -> tuple[Sequence[int], float]:
        """Check the model; returns the cost of each text, and the budget of a batch (see `Caller`)."""
        if expect is not None and expect.digest not in self.trusted:
            with self._meeting:
                if expect.digest not in self.trusted:
                    self._check_model(expect)
        if self.model.measure is None:
            return [len(text) for text in missing.values()], math.inf
        measured = self.model.measure(list(missing.values()))
        if measured.warning is not None and (len(missing) > 1 or not self._warned_of_length):
            self._warned_of_length = True
            warn(measured.warning)
        return measured.tokens, measured.budget

    @contextlib.contextmanager
    def _calling(self, missing: Mapping[Key, str], costs: Sequence[int], budget: float) -> Iterator[Caller]:
        """A caller that waits for texts, with a bar over them; an error says how many of them are embedded."""
        quiet = len(missing) <= self.batch_size or not logger.isEnabledFor(logging.WARNING)
        quiet = quiet or threading.current_thread() is not threading.main_thread()  # bars of many threads are noise
        bar = None if quiet else tqdm(total=len(missing), desc="embedding", unit="text", delay=BAR_AFTER_SECONDS)

        def run(batch: Batch) -> dict[Key, Any]:
            outcome = self._answer(batch)
            if bar is not None:
                bar.update(sum(text.key in missing for text in batch))
            return outcome

        texts = [(key, text, cost) for (key, text), cost in zip(missing.items(), costs, strict=True)]
        try:
            yield Caller(texts, self.cache.memory.get, run, self.model.width, budget)
        except EmbeddingError as error:
            n_done = sum(self.cache.memory.get(key) is not None for key in missing)
            raise type(error)(
                f"{error} ({n_done} of {len(missing)} new texts are embedded{self.where()}; trying again asks only for "
                "the rest.)"
            ) from error.__cause__
        finally:
            if bar is not None:
                bar.close()
        logger.debug("embedded %d texts with %s", len(missing), self.model.name)

    def _kept(self, outcome: Mapping[Key, Any]) -> dict[Key, Any]:
        """The outcome of texts, with vectors that another learner of the same model asked for kept here too."""
        vectors = {key: vector for key, vector in outcome.items() if not isinstance(vector, Refused)}
        if self.truncation.dim is None and vectors:
            self.truncation.keep(len(next(iter(vectors.values()))))
        return {**outcome, **{key: self.cache.memory.put(key, vector) for key, vector in vectors.items()}}

    def where(self) -> str:
        """The place where vectors are stored, as the end of a sentence."""
        return "" if self.cache.store is None else f" and stored in {self.cache.store.path}"

    # One batch

    def _answer(self, batch: Batch) -> dict[Key, Any]:
        """The outcome of each text of a batch: its unit vector, stored by now, a `Refused`, or an error."""
        texts = {text.key: text.text for text in batch}
        if (probe_key := self._probe_key) is not None:  # another batch may set it to None
            texts.setdefault(probe_key, PROBE_TEXTS[0])
        try:
            outcome: dict[Key, Any] = dict(zip(texts, self._checked(list(texts.values())), strict=True))
            vectors = {key: row for key, row in outcome.items() if not isinstance(row, NO_VECTOR)}
            self._check_as_stored(vectors)
            return outcome | self.cache.add(vectors)  # the vector of a text is the first that was stored
        except EmbeddingError:
            parts = by_caller(batch)
            if self.model.is_served or len(parts) == 1:
                raise
        outcome = {}
        for part in parts:  # the text of one caller may be at fault: the others must not hear of it
            try:
                outcome.update(self._answer(part))
            except EmbeddingError as error:
                outcome.update({text.key: error for text in part})
        return outcome

    # Is it still the same model?

    def _check_as_stored(self, vectors: Mapping[Key, Vectors]) -> None:
        """Compare a server's full vector of the probe text, if it is among these, with the stored one.

        Raises:
            EmbeddingError: they differ; nothing of the batch is stored.
        """
        key = self._probe_key
        if key is None or key not in vectors or self.cache.store is None:
            return
        for stored in self.cache.store.read([key]).values():
            if difference := unlike(unit(vectors[key][None]), unit(stored[None])):
                raise EmbeddingError(
                    f"{self.model.name} gives other vectors than those stored under its name in "
                    f"{self.cache.store.path} (for a probe text: {difference}): the server's model was changed. Give "
                    "this learner another cache_dir, or drop the old vectors with embedding_cache.prune(model=…)."
                )
        self._probe_key = None

    def meets(self, expect: Probe) -> bool:
        """True if the model gives the expected vectors for the probe texts; it is asked for them."""
        with self._meeting, contextlib.suppress(StateError):
            if expect.digest not in self.trusted:
                self._check_model(expect)
        return expect.digest in self.trusted

    def _check_model(self, expect: Probe) -> None:
        """Ask the model for the probe texts, and compare its vectors with those a value function was fitted with.

        Raises:
            StateError: they differ.
            EmbeddingError: the model failed, or has none for these texts.
        """
        rows = [row for row in self._checked(list(expect.texts)) if not isinstance(row, NO_VECTOR)]
        if len(rows) < len(expect.texts):
            raise EmbeddingError(f"{self.model.name} refuses the probe texts, so it cannot be told from another model.")
        if difference := unlike(unit(np.stack(rows)[:, : expect.vectors.shape[1]]), expect.vectors):
            self.cache.clear()  # vectors that came with the value function are of the other model
            raise other_model(f"{self.model.name} gives other vectors for a probe text ({difference})")
        self.trusted.add(expect.digest)


class Sources:
    """The sources of one model, one for each address that it was asked at.

    The address of a hosted model is looked up whenever texts are embedded, so that vectors are always those of the
    server that would be asked.

    Args:
        spec: the caller's description of the model.
        model, address: the model at the address of this moment.
        make: model, address -> the source there.
    """

    def __init__(
        self,
        spec: ModelSpec,
        model: EmbeddingModel,
        address: str | None,
        make: Callable[[EmbeddingModel, str | None], Source],
    ) -> None:
        self._spec = spec
        self._is_routed = spec.is_routed
        self._make = make
        self._making = threading.Lock()
        self._first = make(model, address)
        self._by_address = {address: self._first}

    def __iter__(self) -> Iterator[Source]:
        return iter(list(self._by_address.values()))

    def current(self) -> Source:
        """The source at the address that would be asked now."""
        if not self._is_routed:
            return self._first
        address = self._spec.address()
        if address not in self._by_address:
            with self._making:
                if address not in self._by_address:
                    self._by_address[address] = self._make(self._spec.model_at(address), address)
        return self._by_address[address]

    def has_moved(self, source: Source) -> bool:
        """True if another address would be asked, now that something must be: loading litellm reads a .env file."""
        if self._is_routed and "litellm" not in sys.modules:
            import litellm  # noqa: F401
        return self.current() is not source
