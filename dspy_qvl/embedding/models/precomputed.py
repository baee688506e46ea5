"""A table of vectors that exist already, in the place of a model."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.embedding.tables import CHECK_AT_ONCE, checked_vectors, first_of_each
from dspy_qvl.errors import InputError, TextsRefusedError, check_texts, shown
from dspy_qvl.vectors import Vectors, as_float32, slices

# A table has no vectors for the probe texts of other models; for these it gives vectors made from its digest, so that
# another table is another model. No rated text is like them.
TABLE_PROBE_TEXTS = tuple(f"\0dspy_qvl: a precomputed table is known by this, {number}" for number in range(3))


class Precomputed:
    """An embedder that looks vectors up: no text is sent anywhere, and none is paid for again.

        table = Precomputed(texts, np.load("vectors.npy", mmap_mode="r"), name="reviews, text-embedding-3-large")
        learner = Qwen3EmbeddingValueLearner(embedder=table)

    The vectors are not copied, those of a memory-mapped file neither. The texts are not kept, only 16 bytes of each. A
    text that is not in the table is refused; blank ones never need to be.
    A value function that was fitted on a table belongs to it: with another one it is refused.

    Never changed after it was made, so it is shared by copies of a program.

    Args:
        texts: each once, or with the same vector; the first one counts.
        vectors: a row each, (n_texts, d), real numbers; they need not have unit length.
        name: how messages call it. Tables of other content differ anyway.

    Attributes:
        size: columns of a vector.
        digest: of texts and vectors, in whatever order they came.

    Raises:
        InputError: texts or vectors that cannot be used, one text with two vectors, or a blank name.
    """

    def __init__(self, texts: Sequence[str], vectors: Any, *, name: str = "precomputed") -> None:
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"name must be a string that is not blank, but got {shown(name)}.")
        texts = check_texts(texts)
        table = checked_vectors(vectors, texts)
        places = first_of_each(texts, table)
        if not places:
            raise InputError("texts holds no text but blank ones, which have no vector; give at least one other.")
        keys = [_key(texts[place]) for place in places]
        order = np.argsort(np.array(keys, dtype="S16"))
        self.name = name
        self.size = int(table.shape[1])
        self._vectors: NDArray[Any] = table
        self._keys = np.array(keys, dtype="S16")[order]
        self._places = np.array(places, dtype=np.int64)[order]
        self.digest = _digest(keys, places, table)

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """The vectors of texts, (n_texts, d) float32.

        Raises:
            TextsRefusedError: some are not in the table; it carries the vectors of the others.
        """
        places = self._find(texts)
        known = np.flatnonzero(places >= 0)
        rows = np.empty((len(texts), self.size), dtype=np.float32)
        rows[known] = as_float32(self._vectors[places[known]])
        missing: dict[int, str] = {}
        for row in np.flatnonzero(places < 0).tolist():
            if texts[row] in TABLE_PROBE_TEXTS:
                rows[row] = self._known_by(texts[row])
            else:
                missing[row] = "the table has no vector for it (one can be added: learner.embedding_cache.put)"
        if missing:
            error = TextsRefusedError(f"the table {self.name!r} lacks {len(missing)} texts.", refused=missing)
            error.vectors = {row: rows[row] for row in range(len(texts)) if row not in missing}
            raise error
        return rows

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and bool(self._find([text])[0] >= 0)

    def __repr__(self) -> str:
        return f"Precomputed({len(self)} texts, {self.size} columns, name={self.name!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "Precomputed":
        return self

    def _find(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """The row of each text in the vectors, or -1."""
        keys = np.array([_key(text) for text in texts], dtype="S16")
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        found: NDArray[np.int64] = np.where(self._keys[at] == keys, self._places[at], -1)
        return found

    def _known_by(self, text: str) -> Vectors:
        """A probe vector that only a table of this content gives, (d,)."""
        n_blocks = -(-self.size // 64)
        seeds = (f"{self.digest} {text} {block}".encode() for block in range(n_blocks))
        raw = b"".join(hashlib.blake2b(seed).digest() for seed in seeds)
        return np.frombuffer(raw, dtype=np.uint8)[: self.size].astype(np.float32) - 127.5


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _digest(keys: Sequence[bytes], places: Sequence[int], table: NDArray[Any]) -> str:
    """The sum of the digests of all rows, each of a text's key and its vector: their order does not matter.

    The vectors are read once, from the first to the last, as a file on disk likes it.
    """
    total = 0
    for some in slices(len(places), CHECK_AT_ONCE):
        rows = as_float32(table[places[some]]).astype("<f4", copy=False)
        for key, row in zip(keys[some], rows, strict=True):
            total += int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=16, key=key).digest(), "big")
    return f"{total % 2**128:032x}"
