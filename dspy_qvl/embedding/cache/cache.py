"""`EmbeddingCache`: (model identity, text) -> vector, so that no text is embedded twice."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dspy_qvl.embedding.cache import exporting, pruning
from dspy_qvl.embedding.cache.memory import MemoryCache
from dspy_qvl.embedding.cache.pruning import CacheInfo
from dspy_qvl.embedding.cache.store import store_at
from dspy_qvl.embedding.tables import checked_vectors, first_of_each
from dspy_qvl.embedding.truncation import Truncation
from dspy_qvl.errors import InputError, check_text, check_texts, shown
from dspy_qvl.vectors import Vector, as_float32, slices

STORAGES = ("float32", "float16")
PUT_AT_ONCE = 1024  # vectors of a transaction


class EmbeddingCache:
    """The vectors of one embedding model, in a file that all models share.

    `len`, `in` and `clear()` concern this model's vectors in memory; `put()` this model's in memory and on disk;
    `info()`, `prune()`, `export()` and `import_()` the whole file.

    Args:
        identity: the settings that make the model's vectors comparable, as JSON; part of every key.
        path: the SQLite file, or None for memory only.
        truncation: cuts full vectors to the columns that are used; None to keep all.
        sent: (text, whether the instruction is put before it) -> the text that the model is sent.
        memory_bytes: how much memory vectors may take; beyond it the least recently used ones are dropped.
        storage: how new vectors are stored, "float32" or "float16" (half the bytes, three digits an entry); stored
            ones are read either way.

    Raises:
        InputError: another storage.
    """

    def __init__(
        self,
        identity: str,
        path: Path | None,
        *,
        truncation: Truncation | None = None,
        sent: Callable[[str, bool], str] = lambda text, instruct: text,
        memory_bytes: int = 256 * 2**20,
        storage: str = "float32",
    ) -> None:
        if not isinstance(storage, str) or storage not in STORAGES:
            raise InputError(f'storage must be "float32" or "float16", but got {shown(storage)}.')
        self._secret = hashlib.blake2b(identity.encode(), digest_size=32).digest()
        self._truncation = truncation or Truncation("the model", None, None, None)
        self._sent = sent
        self.memory = MemoryCache(memory_bytes)
        self.store = None if path is None else store_at(path, identity, half=storage == "float16")

    def key(self, text: str) -> bytes:
        """The key of a text under this model, 16 bytes."""
        return hashlib.blake2b(text.encode(), digest_size=16, key=self._secret).digest()

    def put(self, texts: Sequence[str], vectors: Any, *, instruct: bool = True) -> None:
        """Keep vectors that exist already, in memory and on disk, so that this model is never asked for these texts.

        They must be the model's own, uncut; this is not checked, so put only vectors that it would have given. The
        first vector of a text stays. Blank texts have none, and are left out.

        Args:
            texts: the texts, without the instruction.
            vectors: one row a text, (n_texts, d), before any cut to `embedding_dim`, not necessarily of unit length.
                They are read in pieces, so a memory-mapped file may be larger than the memory.
            instruct: whether the texts were embedded with the learner's instruction before them, as rated texts are.
                False for texts that are valued for a query, and for passages of a reranker: of a query and a text
                it is the query that the instruction stands before. Without an instruction it makes no difference.

        Raises:
            InputError: texts or vectors that cannot be used, one text with two vectors, or vectors of another length
                than the model's. Nothing is kept then.
        """
        texts = check_texts(texts)
        table = checked_vectors(vectors, texts)
        places = first_of_each(texts, table)
        size = self._truncation.size
        if size not in (None, table.shape[1]):
            raise InputError(
                f"vectors has {table.shape[1]} columns, but the model gives {size}; put its full vectors, uncut."
            )
        self._truncation.keep(table.shape[1])
        for some in slices(len(places), PUT_AT_ONCE):
            rows = as_float32(table[places[some]])
            keys = [self.key(self._sent(texts[place], instruct)) for place in places[some]]
            self.add(dict(zip(keys, rows, strict=True)))

    def add(self, vectors: Mapping[bytes, Vector]) -> dict[bytes, Vector]:
        """Store full vectors on disk, and `keep` them in memory; the first that was stored stays.

        Vectors of zeros (texts of which a static model knows nothing) stay in memory: in a file they count as damage.
        """
        stored = {} if self.store is None else {key: vector for key, vector in vectors.items() if vector.any()}
        if self.store is not None and stored:
            vectors = {**vectors, **self.store.write(list(stored), np.stack(list(stored.values())))}
        return self.keep(vectors)

    def keep(self, vectors: Mapping[bytes, Vector]) -> dict[bytes, Vector]:
        """Keep full vectors in memory, cut and scaled as they are used; the first of a text stays.

        Raises:
            EmbeddingError, InputError: as `Truncation`.
        """
        if not vectors:
            return {}
        rows = self._truncation(list(vectors.values()))
        return {key: self.memory.put(key, row) for key, row in zip(vectors, rows, strict=True)}

    def info(self) -> CacheInfo:
        """Count the vectors on disk, of every model; reads through the whole file."""
        return pruning.info(self.store)

    # Functions of the whole file; as methods, they get this cache as their first argument.
    prune = pruning.prune
    export = exporting.export
    import_ = exporting.import_

    def clear(self) -> None:
        """Drop the vectors in memory; those on disk stay."""
        self.memory.clear()

    def __len__(self) -> int:
        return len(self.memory)

    def __contains__(self, text: object) -> bool:
        text = check_text(text)
        return any(self.memory.get(self.key(self._sent(text, instruct))) is not None for instruct in (True, False))
