"""Texts -> unit vectors: memory, disk, model, in this order.

An empty or blank text is valued, not refused: saying nothing is something an LLM does and people rate. No model
is asked for it (most refuse it); its vector is zero, so its value is what the other texts leave for a text
without any feature, and rating one teaches what nothing is worth. A text of which a static model knows no token is
valued like it.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dspy_qvl.embedding.callers import Key
from dspy_qvl.embedding.models import Refused
from dspy_qvl.embedding.probe import PROBE_TEXTS, Probe
from dspy_qvl.embedding.source import Source, Sources
from dspy_qvl.errors import TextsRefusedError, shown
from dspy_qvl.vectors import Vectors


@dataclass(eq=False, slots=True)
class _Search:
    """Texts that are looked for.

    Attributes:
        source: where they are looked for.
        keys: the key of every text.
        found: key -> its unit vector, or a `Refused`; None for a blank text.
        missing: key -> the string to send, of the texts that were not found.
    """

    source: Source
    keys: list[Key]
    found: dict[Key, Any]
    missing: dict[Key, str]

    def add(self, found: dict[Key, Any]) -> None:
        """Take over what was found of the missing texts."""
        self.found.update(found)
        self.missing = {key: text for key, text in self.missing.items() if key not in found}


@dataclass(eq=False, slots=True)  # not frozen, which would take longer to make than to look up a vector
class Encoder:
    """Texts -> unit vectors of one model; made anew for each call, so nothing is kept in it.

    Attributes:
        sources: the vectors of the model, at each of its addresses.
        sent: text, and whether the instruction is put before it -> the string that the model is sent.
        expect: the probe that the model must give, checked the first time it is really asked; None for any.
        instruct: True if the instruction is put before the texts; of a query and its passage it is the query's.
    """

    sources: Sources
    sent: Callable[[str, bool], str]
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
        search = self._in_memory(texts)
        if search.missing:
            search = self._on_disk(search, texts)
        if search.missing:
            search.add(search.source.ask(search.missing, self.expect))
        if search.source.truncation.dim is None:  # only blank texts so far: any other text tells how long a vector is
            Encoder(self.sources, self.sent, instruct=False)(PROBE_TEXTS[:1])
        return _rows(search, texts)

    async def acall(self, texts: Sequence[str]) -> Vectors:
        """As `__call__`, without blocking the event loop: disk and model are asked in threads."""
        search = self._in_memory(texts)
        if search.missing:
            search = await asyncio.to_thread(self._on_disk, search, texts)
        if search.missing:
            search.add(await search.source.aask(search.missing, self.expect))
        if search.source.truncation.dim is None:
            await Encoder(self.sources, self.sent, instruct=False).acall(PROBE_TEXTS[:1])
        return _rows(search, texts)

    def vector(self, text: str) -> Vectors:
        """The unit vector of one checked text, (dim,), read-only."""
        sent = self.sent(text, self.instruct)
        if sent:
            cache = self.sources.current().cache  # single values pass here
            vector = cache.memory.get(cache.key(sent))
            if vector is not None:
                return vector
        row: Vectors = self([text])[0]
        row.setflags(write=False)
        return row

    def remember(self, texts: Sequence[str], vectors: Sequence[Vectors]) -> None:
        """Keep unit vectors that were saved with a value function, in memory only: a file is not trusted further."""
        cache = self.sources.current().cache
        for text, vector in zip(texts, vectors, strict=True):
            if text.strip():
                cache.memory.put(cache.key(self.sent(text, self.instruct)), vector)

    def _in_memory(self, texts: Sequence[str]) -> _Search:
        search = _Search(self.sources.current(), [], {}, {})
        cache, memory = search.source.cache, search.source.cache.memory
        for text in texts:
            sent = self.sent(text, self.instruct)
            key = cache.key(sent)
            search.keys.append(key)
            vector = search.found[key] = memory.get(key)
            if vector is None and sent:
                search.missing[key] = sent
        return search

    def _on_disk(self, search: _Search, texts: Sequence[str]) -> _Search:
        """Look for the missing texts on disk; for all of them anew where another address would be asked by now."""
        search.add(search.source.read(search.missing))
        if search.missing and self.sources.has_moved(search.source):
            return self._on_disk(self._in_memory(texts), texts)
        return search


def _rows(search: _Search, texts: Sequence[str]) -> Vectors:
    """The vectors of texts, (n_texts, dim).

    Raises:
        TextsRefusedError: the model refused some.
    """
    found, refused = search.found, {}
    vectors = np.zeros((len(texts), search.source.truncation.dim or 0), dtype=np.float32)
    for row, key in enumerate(search.keys):
        outcome = found[key]
        if isinstance(outcome, Refused):
            refused[row] = outcome.reason
        elif outcome is not None:
            vectors[row] = outcome
    if refused:
        row, reason = next(iter(refused.items()))
        more = "" if len(refused) == 1 else f" and {len(refused) - 1} more ({', '.join(map(str, refused))})"
        others = len(texts) - len(refused)
        rest = f"; the {others} others are embedded{search.source.where()}." if others else "."
        raise TextsRefusedError(
            f"{search.source.model.name} refused text {row}{more} of {len(texts)} ({shown(texts[row])}): {reason}. "
            f"Leave it out or change it{rest}",
            refused=refused,
        )
    return vectors
