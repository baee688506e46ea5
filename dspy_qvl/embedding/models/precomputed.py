"""A table of vectors that exist already, in the place of a model."""

import contextlib
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.embedding.models.stored_vectors import Ids, StoredVectors
from dspy_qvl.embedding.tables import CHECK_AT_ONCE, NO_DIRECTION, check_repeats, without_direction
from dspy_qvl.errors import EmbeddingError, InputError, TextsRefusedError, check_texts, is_list, shown
from dspy_qvl.vectors import Vectors, slices

# A table has no vectors for the probe texts of other models; for these it gives vectors made from its digest, so that
# another table is another model. No rated text is like them.
TABLE_PROBE_TEXTS = tuple(f"\0dspy_qvl: a precomputed table is known by this, {number}" for number in range(3))

SAMPLED = 256  # vectors that are read of a table with a version

Keys = NDArray[np.bytes_]  # (n,), 16 bytes each


class Precomputed:
    """An embedder that looks vectors up: no text is sent anywhere, and none is paid for again.

        table = Precomputed(texts, np.load("vectors.npy", mmap_mode="r"), name="reviews, text-embedding-3-large")
        table = Precomputed(texts, faiss_index, ids=ids, version="2024-06")
        table = Precomputed.from_vectors({"a text": vector, "another": another_vector})
        learner = Qwen3EmbeddingValueLearner(embedder=table)

    The vectors are not copied: they are read from the array, the memory-mapped file, the index or the store whenever
    they are looked up, from any thread. The texts are not kept, only 16 bytes of each, and 8 for its id (a string as
    an id stays a string). A text that is not in the table is refused; blank ones never need to be.
    A value function that was fitted on a table belongs to it: with another one it is refused.

    Never changed after it was made, so it is shared by copies of a program, and by forked processes.

    Identity: two tables are the same model if their names, texts and vectors (as float32) are equal, in any order and
    wherever the vectors lie. For that all vectors are read once, and checked. Where that takes too long, `version`
    stands for them: then 256 vectors are read, chosen by the texts, and two tables are the same if their names,
    versions, texts and these vectors are equal. Another vector that changed while the version did not is not noticed.
    Nor is, with or without a version, a vector that changes after the table was made.

    Pickles: one of a table, and of a learner with it, holds all vectors of an array, a mapping or a faiss index, those
    of a memory-mapped file too. It holds a callable only if the pickler takes it: pickle takes a function of a module,
    cloudpickle a lambda as well, neither an open connection; what they say then is raised unchanged. `save` and
    `save_model` write no table.

    Args:
        texts: each once, or with the same vector; the first one counts.
        vectors: real numbers, rows need not have unit length. An array (n_texts, d); or by id: an array (n, d) whose
            rows are the ids, a faiss index, a mapping from id to vector, or a callable from a list of ids to an array
            (n, d) in their order, which is given at most 4,096 at once.
        name: how messages call it; part of its identity.
        ids: of each text, whole numbers or strings; left out, texts have the ids 0, 1, 2, …
        version: names the content of the vectors, and must change whenever they do; left out, all are read.

    Attributes:
        name: the same.
        size: columns of a vector.
        digest: of texts and vectors, or of what stands for them.

    Raises:
        InputError: texts, ids or vectors that cannot be used, one text with two vectors, an id without a vector, a
            source that failed, or a blank name or version.
    """

    def __init__(
        self,
        texts: Sequence[str],
        vectors: Any,
        *,
        name: str = "precomputed",
        ids: Sequence[int] | Sequence[str] | NDArray[Any] | None = None,
        version: str | None = None,
    ) -> None:
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"name must be a string that is not blank, but got {shown(name)}.")
        if version is not None and (not isinstance(version, str) or not version.strip()):
            raise InputError(f"version must be a string that is not blank, or None, but got {shown(version)}.")
        texts = check_texts(texts)
        stored = StoredVectors(vectors)
        try:
            all_ids = stored.ids_of(texts, ids)
            keys, places = _first_places(texts, all_ids, stored)

            def name_of(place: int) -> str:
                row = places[place]
                return f"vectors[{all_ids[row]}]" if stored.is_array else f"the vector of {shown(texts[row])}"

            n_read = len(keys) if version is None else SAMPLED
            digest = _sum_of_digests(keys[:n_read], all_ids[places[:n_read]], stored, name_of)
        except EmbeddingError as error:  # the source is the caller's input, and nothing was asked for yet
            raise InputError(str(error)) from error.__cause__
        if version is not None:
            whole = hashlib.blake2b(f"{version}\0{digest}".encode() + keys.tobytes(), digest_size=16)
            digest = whole.hexdigest()
        self.name = name
        self.size = int(stored.size or 0)
        self.digest = digest
        self._stored = stored
        self._keys = keys
        self._ids = all_ids[places]

    @classmethod
    def from_vectors(
        cls, source: Any, vectors: Any = None, *, name: str = "precomputed", version: str | None = None
    ) -> "Precomputed":
        """A table from a mapping, or from pairs of a text and an id.

            Precomputed.from_vectors({"a text": [.1, .2], "another": [.3, .4]})
            Precomputed.from_vectors({"a text": 17, "another": 4}, faiss_index)
            Precomputed.from_vectors(cursor.execute("SELECT text, id FROM texts"), vectors_of_ids)

        Args:
            source: a mapping from text to vector; or, with `vectors`, from text to id, or pairs (text, id).
            vectors: by id, as for `Precomputed`.
            name: as for `Precomputed`.
            version: as for `Precomputed`.

        Raises:
            InputError: as `Precomputed`, or a source that is neither.
        """
        if isinstance(source, Mapping):
            texts, values = list(source), list(source.values())
        else:
            texts, values = _unzipped(source)
        if vectors is None:
            _check_lengths(texts, values)
            return cls(texts, functools.partial(_rows_of, values), name=name, version=version)
        return cls(texts, vectors, ids=values, name=name, version=version)

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """The vectors of texts, (n_texts, d) float32.

        Raises:
            TextsRefusedError: some are not in the table; it carries the vectors of the others.
            EmbeddingError: the index, the mapping or the callable failed, or gave vectors of another length.
        """
        places, is_known = self._find(texts)
        known = np.flatnonzero(is_known)
        rows = np.empty((len(texts), self.size), dtype=np.float32)
        for some in slices(len(known), CHECK_AT_ONCE):
            rows[known[some]] = self._stored(self._ids[places[known[some]]])
        missing: dict[int, str] = {}
        for row in np.flatnonzero(~is_known).tolist():
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
        if not isinstance(text, str):
            return False
        with contextlib.suppress(UnicodeEncodeError):  # half a character: no table holds it
            return bool(self._find([text])[1][0])
        return False

    def __repr__(self) -> str:
        return f"Precomputed({len(self)} texts, {self.size} columns, name={self.name!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "Precomputed":
        return self

    def _find(self, texts: Sequence[str]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """The place of each text among the keys, and True where it is there."""
        keys = _keys(texts)
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return places, self._keys[places] == keys

    def _known_by(self, text: str) -> Vectors:
        """A probe vector that only a table of this content gives, (d,)."""
        n_blocks = -(-self.size // 64)
        seeds = (f"{self.digest} {text} {block}".encode() for block in range(n_blocks))
        raw = b"".join(hashlib.blake2b(seed).digest() for seed in seeds)
        return np.frombuffer(raw, dtype=np.uint8)[: self.size].astype(np.float32) - 127.5


def _first_places(texts: Sequence[str], ids: Ids, stored: StoredVectors) -> tuple[Keys, NDArray[np.intp]]:
    """The keys of texts in order, each once, and the first place of each; blank texts are left out.

    Raises:
        InputError: nothing but blank texts, or one text with two vectors.
        EmbeddingError: as `StoredVectors`.
    """
    filled = np.flatnonzero(np.fromiter((bool(text.strip()) for text in texts), dtype=bool, count=len(texts)))
    if not len(filled):
        raise InputError("texts holds no text but blank ones, which have no vector; give at least one other.")
    keys = _keys(texts)[filled]
    order = np.argsort(keys, kind="stable")
    keys, places = keys[order], filled[order]
    is_first = np.append(True, keys[1:] != keys[:-1])
    if not is_first.all():
        earlier = places[is_first][np.cumsum(is_first) - 1]
        pairs = np.stack([earlier, places], axis=1)[ids[places] != ids[earlier]]
        check_repeats(pairs[np.argsort(pairs[:, 1])], lambda some: stored(ids[some]))
    return keys[is_first], places[is_first]


def _sum_of_digests(keys: Keys, ids: Ids, stored: StoredVectors, name_of: Callable[[int], str]) -> str:
    """The sum of the digests of all rows, each of a text's key and its vector: their order does not matter.

    Args:
        keys: of the texts, (n,).
        ids: of the same, (n,).
        stored: their vectors, which are read once; rows of an array from the first to the last, as a file likes it.
        name_of: a place among the keys -> how an error names its vector.

    Raises:
        InputError: a vector without a direction.
        EmbeddingError: as `StoredVectors`.
    """
    places = np.argsort(ids, kind="stable") if ids.dtype == np.int64 else np.arange(len(ids))
    total = 0
    for some in slices(len(places), CHECK_AT_ONCE):
        rows = stored(ids[places[some]])
        for row in without_direction(rows)[:1]:
            raise InputError(f"{name_of(int(places[some][row]))} {NO_DIRECTION}")
        raw = keys[places[some]].tobytes()
        for at, row in enumerate(rows.astype("<f4", copy=False)):
            seen = hashlib.blake2b(row, digest_size=16, key=raw[16 * at : 16 * at + 16])
            total += int.from_bytes(seen.digest(), "big")
    return f"{total % 2**128:032x}"


def _keys(texts: Sequence[str]) -> Keys:
    """16 bytes of each text, (n_texts,)."""
    keys = (hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts)
    return np.fromiter(keys, dtype="S16", count=len(texts))


def _unzipped(pairs: Any) -> tuple[list[str], list[Any]]:
    """The texts and the ids of pairs.

    Raises:
        InputError: no mapping and no list of pairs, with the first entry that is none.
    """
    entries = list(pairs) if is_list(pairs) else None
    if entries is None or getattr(pairs, "ndim", 1) != 1:
        raise InputError(
            f"source must be a mapping from text to vector or id, or pairs (text, id), but got {type(pairs).__name__}."
        )
    for place, entry in enumerate(entries):
        if isinstance(entry, str) or not isinstance(entry, Sequence) or len(entry) != 2:
            raise InputError(
                f"source[{place}] must be a pair (text, id), but got {shown(entry)}; for texts with vectors beside "
                "them, use Precomputed(texts, vectors)."
            )
    return [text for text, _ in entries], [value for _, value in entries]


def _check_lengths(texts: Sequence[str], vectors: Sequence[Any]) -> None:
    """Refuse vectors of different lengths, and what has no length.

    Raises:
        InputError: one of them, with its text.
    """
    for text, vector in zip(texts, vectors, strict=True):
        if isinstance(vector, str) or not hasattr(vector, "__len__") or getattr(vector, "ndim", 1) != 1:
            raise InputError(
                f"the vector of {shown(text)} must be a list of numbers, but got {shown(vector)}; where source gives "
                "ids, give vectors as well."
            )
        if len(vector) != len(vectors[0]):
            raise InputError(
                f"the vector of {shown(text)} has {len(vector)} columns, but that of {shown(texts[0])} has "
                f"{len(vectors[0])}; vectors of one table are of one length."
            )


def _rows_of(rows: Sequence[Any], places: list[int]) -> list[Any]:
    return [rows[place] for place in places]
