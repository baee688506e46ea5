"""The lexical model: hashed words and character n-grams, built in, nothing to download.

It knows spelling, not meaning. `hashing.py` gives the hashes, `words.py` the words that count differently.
"""

import re
from collections.abc import Iterator, Sequence
from copy import copy
from functools import cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.embedding.models.hashing import Column, Numbers, Table, pair_hashes, runs, vocabulary
from dspy_qvl.embedding.models.words import Kind
from dspy_qvl.errors import check_count

# Texts are hashed in slices, so that a batch needs little memory: the most characters and texts of a slice.
SLICE_CHARACTERS, SLICE_TEXTS = 2**17, 2**9

# Each word, 2-gram or n-gram of a text is one integer, ((row * n_features + column) * 4 + part) * 4 + count. Sorting
# these puts rows and columns in order, and side by side what is added up.
WORDS, BIGRAMS, NGRAMS = 0, 1, 2  # the parts of a vector
FULL, FUNCTION, NEGATED = 0, 1, 2  # how much one counts


class Sparse(NamedTuple):
    """Rows of a sparse matrix, as scipy's CSR format has them: columns ascending, each once."""

    data: NDArray[np.float32]
    indices: NDArray[np.int32]
    indptr: NDArray[np.int32]


class LexicalModel:
    """Hashed words and character n-grams, unit length: a bag of spelling, not of meaning.

    One column counts every word, punctuation mark (they carry emoticons and tone), word 2-gram and character n-gram
    that is hashed to it. Counts are square-rooted; words, 2-grams and n-grams are scaled to unit length, weighted, and
    added.

    A function word counts for a quarter, which stands in for the document frequencies a stateless model cannot
    have. The three words after an English negation, up to the next punctuation mark, count for half themselves and
    once together with "not". A word 2-gram is two words of at least two letters with none of them between. Never
    truncates.

    The tokens, n-grams and weights were chosen on training folds of four human-rated sets: see
    tests/benchmarks/lexical.py.

    Args:
        n_features: number of columns, at least 2.
        word_weight: share of words in the vector's length.
        bigram_weight: share of word 2-grams; with 0 there are none. Character n-grams have the rest,
            sqrt(1 - word_weight^2 - bigram_weight^2).

    Source: Weinberger et al. (2009), Feature Hashing; Das & Chen (2001), Yahoo! for Amazon, for the negations.
    """

    WORD = re.compile(r"\w+|[^\w\s]")
    NGRAMS = (3, 5)
    FUNCTION_WORD_COUNT = 0.25
    NEGATION_SPAN = 3
    BIGRAM_WORDS = Kind.LONG  # the kinds of words that are in 2-grams
    UNITS = (0, 1, 2)  # of words, 2-grams, n-grams: those of one number are scaled to unit length together

    def __init__(self, n_features: int, word_weight: float = 0.6, bigram_weight: float = 0.0) -> None:
        self.n_features = check_count(n_features, "embedding_dim", 2)
        self.word_weight = word_weight
        self.bigram_weight = bigram_weight

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of texts, (n, n_features)."""
        vectors = np.zeros((len(texts), self.n_features), dtype=np.float32)
        made = self.rows(texts)
        vectors[np.repeat(np.arange(len(texts)), np.diff(made.indptr)), made.indices] = made.data
        return vectors

    def sparse(self, texts: Sequence[str]) -> Any:
        """The same as a scipy `csr_array`."""
        from scipy.sparse import csr_array

        rows = self.rows(texts)
        if len(texts) != 1:
            return csr_array(tuple(rows), shape=(len(texts), self.n_features))
        made = copy(_empty_row(self.n_features))  # scipy's checks of one row take half as long as hashing it
        made.data, made.indices, made.indptr = rows
        return made

    def rows(self, texts: Sequence[str]) -> Sparse:
        """The same as the arrays of a sparse matrix."""
        parts = map(self._rows_of_slice, _slices(texts))
        if len(texts) == 1:
            return next(parts)
        data, indices, lengths = Column(np.float32), Column(np.int32), [np.zeros(1, dtype=np.int64)]
        for part in parts:
            data.extend(part.data)
            indices.extend(part.indices)
            lengths.append(np.diff(part.indptr))
        indptr = np.cumsum(np.concatenate(lengths), dtype=np.int32)
        return Sparse(data.array[: data.length], indices.array[: data.length], indptr)

    def _rows_of_slice(self, texts: Sequence[str]) -> Sparse:
        keys = self._keys(texts)
        keys.sort()
        counts, units, weights = _constants(self.FUNCTION_WORD_COUNT, self.UNITS, self.word_weight, self.bigram_weight)
        counts = counts[keys & 3]
        keys >>= 2
        firsts = _firsts(keys)
        keys, values = keys[firsts], np.sqrt(np.add.reduceat(counts, firsts))
        parts, cells = keys & 3, keys >> 2
        rows = (cells // self.n_features).astype(np.intp)
        values = _unit(values, 4 * rows + units[parts])
        values *= weights[parts]
        firsts = _firsts(cells)
        cells, rows, values = cells[firsts], rows[firsts], np.add.reduceat(values, firsts)
        indptr = np.zeros(len(texts) + 1, dtype=np.int32)
        np.bincount(rows, minlength=len(texts)).cumsum(out=indptr[1:])
        return Sparse(_unit(values, rows), (cells % self.n_features).astype(np.int32), indptr)

    def _keys(self, texts: Sequence[str]) -> NDArray[Any]:
        """Each counted word and n-gram as an integer, in any order."""
        split = [text.lower().split() for text in texts]
        table, numbers = vocabulary(self.WORD, self.NGRAMS).look_up(list(chain.from_iterable(split)))
        # Half as many bits sort in half the time.
        dtype = np.uint32 if len(texts) * self.n_features * 16 <= 2**32 else np.uint64
        origins = np.arange(len(texts), dtype=dtype) * self.n_features * 16
        origins = origins.repeat(list(map(len, split)))  # the key of row and column 0, for each token
        lengths = table.n_ngrams.array[numbers]
        ngrams = table.ngrams.array[runs(table.first_ngram.array[numbers], lengths)]
        of_ngrams = (origins + (table.function.array[numbers] + 4 * NGRAMS)).repeat(lengths)  # FUNCTION or FULL
        words = self._words(table, numbers, origins)
        keys: NDArray[Any] = np.concatenate([ngrams, *words[::2]]).astype(dtype, copy=False) % self.n_features
        keys *= 16
        keys += np.concatenate([of_ngrams, *words[1::2]])
        return keys

    def _words(self, table: Table, numbers: Numbers, origins: NDArray[Any]) -> list[NDArray[Any]]:
        """Hashes and the keys that column 0 would have, of words, of word 2-grams, and of words negated, in turn."""
        lengths = table.n_words.array[numbers]
        at = runs(table.first_word.array[numbers], lengths)
        kinds, words, origins = table.kinds.array[at], table.words.array[at], origins.repeat(lengths)
        found = [words, origins + (kinds & Kind.FUNCTION)]  # of part 0
        if self.bigram_weight:
            kept = (kinds & self.BIGRAM_WORDS).nonzero()[0]
            some, theirs = words[kept], origins[kept]
            hashes, theirs, before = pair_hashes(some[:-1], some[1:]), theirs[1:], theirs[:-1]
            if len(origins) and origins[-1] != origins[0]:  # the words of several texts
                of_one_text = theirs == before
                hashes, theirs = hashes[of_one_text], theirs[of_one_text]
            found += [hashes, theirs + 4 * BIGRAMS]
        negated = _negated(kinds, origins, self.NEGATION_SPAN)
        if len(negated):
            theirs = origins[negated]
            found += [words[negated], theirs + NEGATED, table.negated.array[at[negated]], theirs]
        return found


@cache
def _constants(
    function_word_count: float, units: tuple[int, ...], word_weight: float, bigram_weight: float
) -> tuple[NDArray[np.float32], Numbers, NDArray[np.float32]]:
    """The counts that FULL, FUNCTION and NEGATED stand for, and of each part of a vector its unit and its weight."""
    rest = (1 - word_weight**2 - bigram_weight**2) ** 0.5
    counts = np.array([1.0, function_word_count, -0.5, 0.0], dtype=np.float32)
    return counts, np.array(units), np.array([word_weight, bigram_weight, rest], dtype=np.float32)


@cache
def _empty_row(n_features: int) -> Any:
    from scipy.sparse import csr_array

    return csr_array((1, n_features), dtype=np.float32)


def _slices(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Runs of texts, each at least one."""
    start, characters = 0, 0
    for end, text in enumerate(texts):
        characters += len(text)
        if end > start and (characters > SLICE_CHARACTERS or end - start == SLICE_TEXTS):
            yield texts[start:end]
            start, characters = end, len(text)
    if len(texts) > start:
        yield texts[start:]


def _negated(kinds: NDArray[np.uint8], texts: NDArray[Any], span: int) -> Numbers:
    """Positions of words that a negation precedes, in its text, by at most `span` words and no punctuation mark.

    Args:
        kinds: `Kind` of each word, (n_words,).
        texts: a number for the text of each, ascending.
        span: words.
    """
    candidates = kinds & (Kind.NEGATION | Kind.T)
    if not candidates.any():  # mostly: a text alone is hashed faster without the rest
        return np.zeros(0, dtype=np.int64)
    position = np.arange(len(kinds))
    first = np.maximum.accumulate(np.where(np.diff(texts, prepend=texts[0]) > 0, position, 0))
    after_apostrophe = np.concatenate([[False], kinds[:-1] & Kind.APOSTROPHE > 0]) & (position - first > 1)
    negates = (kinds & Kind.NEGATION > 0) | (kinds & Kind.T > 0) & after_apostrophe
    counted = (kinds & Kind.COUNTED > 0) & ~negates
    ends = ~negates & ~counted & (kinds & Kind.APOSTROPHE == 0)
    # All of the words before each, (n_words - 1,): the first of a text has none.
    steps = np.cumsum(counted)[:-1]
    last = np.maximum.accumulate(np.where(negates, position, -1))[:-1]
    ended = np.maximum(np.maximum.accumulate(np.where(ends, position, -1))[:-1], first[1:] - 1)
    within = (last > ended) & (steps - np.concatenate([steps, [0]])[last] < span)
    found: Numbers = (within & (kinds[1:] & Kind.NEGATABLE > 0)).nonzero()[0] + 1
    return found


def _firsts(keys: NDArray[Any]) -> NDArray[np.intp]:
    """Position of the first of each run of equal numbers."""
    first = np.ones(len(keys), dtype=bool)
    np.not_equal(keys[1:], keys[:-1], out=first[1:])
    return first.nonzero()[0]


def _unit(values: NDArray[np.float32], rows: NDArray[np.intp]) -> NDArray[np.float32]:
    """Values scaled so that those of a row have length 1; squares are added one after the other, in any batch."""
    lengths = np.sqrt(np.bincount(rows, weights=values * values))
    return (values / lengths[rows]).astype(np.float32)
