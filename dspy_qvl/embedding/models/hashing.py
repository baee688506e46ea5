"""Hashes of the words and character n-grams of tokens, each token hashed once a process.

A token is what stands between two blanks. `Vocabulary.look_up` gives each one a number; its words and n-grams are then
runs of two long arrays, which a batch of texts gathers without a loop over tokens.

Hashes are 32 bits of MurmurHash3 without their sign, so that one vocabulary serves tables of every width.
"""

import os
import re
import threading
from collections.abc import Sequence
from functools import cache
from itertools import chain, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.embedding.models.words import FUNCTION_WORDS, PUNCTUATION, kind_of

Numbers = NDArray[np.int64]
Hashes = NDArray[np.uint32]

LONG = 64  # bytes of a word above which it is hashed by itself: all together take as many steps as the longest
LIMIT = 2**21  # n-grams that a vocabulary keeps: about 90,000 tokens and 30 MB

# Held around a fork too: no vocabulary is half extended in the child, and no lock is held there for ever.
_EXTENDING = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_EXTENDING.acquire, after_in_parent=_EXTENDING.release, after_in_child=_EXTENDING.release
    )


class Column:
    """An array that grows at its end; numbers once written neither change nor move."""

    def __init__(self, dtype: Any) -> None:
        self.array: NDArray[Any] = np.zeros(1024, dtype)
        self.length = 0

    def extend(self, values: Sequence[int] | NDArray[Any]) -> None:
        """Append values; a reader keeps the array that it holds."""
        end = self.length + len(values)
        if end > len(self.array):
            grown = np.zeros(max(end, 2 * len(self.array)), self.array.dtype)
            grown[: self.length] = self.array[: self.length]
            self.array = grown
        self.array[self.length : end] = values
        self.length = end


class Table:
    """Tokens by number, with the hashes of their words and n-grams.

    Attributes:
        numbers: token -> number; a number in it has all its entries below.
        function: 1 for a token that is a function word once punctuation is stripped from its ends, by number.
        first_word, n_words: where the words of a token begin below, and how many it has, by number.
        first_ngram, n_ngrams: the same of its n-grams.
        kinds: `Kind` of each word.
        words, negated: hash of each word, and of "not" and the word.
        ngrams: hash of each n-gram.
    """

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.function = Column(np.uint8)
        self.first_word, self.n_words = Column(np.int64), Column(np.int64)
        self.first_ngram, self.n_ngrams = Column(np.int64), Column(np.int64)
        self.kinds = Column(np.uint8)
        self.words, self.negated, self.ngrams = Column(np.uint32), Column(np.uint32), Column(np.uint32)

    def add(self, tokens: Sequence[str], word: re.Pattern[str], ngram_range: tuple[int, int]) -> None:
        """Append tokens that it does not have.

        Raises:
            UnicodeEncodeError: a token with a lone surrogate. After this or any other error the table must not be
                added to again: its columns may differ in length.
        """
        words = [word.findall(token) for token in tokens]
        all_words = list(chain.from_iterable(words))
        ngrams, n_ngrams = ngram_hashes(tokens, *ngram_range)
        hashed = word_hashes([*all_words, *map("not ".__add__, all_words)])
        for first, length, kept, counts in (
            (self.first_word, self.n_words, self.words, np.array(list(map(len, words)))),
            (self.first_ngram, self.n_ngrams, self.ngrams, n_ngrams),
        ):
            first.extend(kept.length + counts.cumsum() - counts)
            length.extend(counts)
        self.words.extend(hashed[: len(all_words)])
        self.negated.extend(hashed[len(all_words) :])
        self.ngrams.extend(ngrams)
        self.kinds.extend(list(map(kind_of, all_words)))
        self.function.extend([token.strip(PUNCTUATION) in FUNCTION_WORDS for token in tokens])
        self.numbers.update(zip(tokens, range(len(self.numbers), len(self.numbers) + len(tokens)), strict=True))


class Vocabulary:
    """The tokens seen by this process, for one way to split and cut them. Threads share it.

    Args:
        word: pattern of the words of a token.
        ngram_range: shortest and longest n-gram, in characters.
        limit: number of n-grams from which it begins anew; hashes do not depend on it.
    """

    def __init__(self, word: re.Pattern[str], ngram_range: tuple[int, int], limit: int = LIMIT) -> None:
        self.word = word
        self.ngram_range = ngram_range
        self.limit = limit
        self._table = Table()

    def look_up(self, tokens: Sequence[str]) -> tuple[Table, Numbers]:
        """The table that has all of the tokens, and their numbers in it, (n_tokens,).

        Raises:
            UnicodeEncodeError: a token with a lone surrogate.
        """
        table = self._table
        numbers = _numbers(table, tokens)
        if len(numbers) and numbers.min() < 0:
            with _EXTENDING:
                if self._table.ngrams.length >= self.limit:
                    self._table = Table()
                table = self._table
                missing = dict.fromkeys(token for token in tokens if token not in table.numbers)
                try:
                    table.add(list(missing), self.word, self.ngram_range)
                except BaseException:
                    self._table = Table()
                    raise
            numbers = _numbers(table, tokens)
        return table, numbers


@cache
def vocabulary(word: re.Pattern[str], ngram_range: tuple[int, int]) -> Vocabulary:
    """The process's vocabulary for a way to split and cut tokens."""
    return Vocabulary(word, ngram_range)


def runs(starts: Numbers, lengths: Numbers) -> Numbers:
    """Positions of several runs of an array, one run after the other: start, start + 1, …, (sum of lengths,)."""
    positions: Numbers = (starts - lengths.cumsum() + lengths).repeat(lengths)
    positions += np.arange(len(positions))
    return positions


def pair_hashes(first: Hashes, second: Hashes) -> Hashes:
    """Hashes of word 2-grams from those of their words, (n,): of "b a" another than of "a b"."""
    return _avalanche(first * np.uint32(0x9E3779B1) + second)


def word_hashes(words: Sequence[str]) -> Hashes:
    """Hashes of whole words, (n,)."""
    parts = [word.encode() for word in words]
    lengths = np.fromiter(map(len, parts), np.int64, len(parts))
    short = np.minimum(lengths, LONG)
    data = np.frombuffer(b"".join(part[:LONG] for part in parts) + bytes(LONG + 8), dtype=np.uint8)
    hashes = _murmur_of_runs(data, short.cumsum() - short, short)
    for number in np.flatnonzero(lengths > LONG).tolist():
        hashes[number] = _murmur_of_one(parts[number])
    return hashes


def ngram_hashes(tokens: Sequence[str], shortest: int, longest: int) -> tuple[Hashes, Numbers]:
    """Hashes of the n-grams of tokens, one token after the other, and how many each has.

    A token is cut with a blank on both sides; of the sizes that are not below its length only the smallest counts,
    once. So does `CountVectorizer(analyzer="char_wb")` of scikit-learn.
    """
    text = f" {'  '.join(tokens)} ".encode()
    data = np.frombuffer(text + bytes(4 * longest + 4), dtype=np.uint8)  # beyond the longest n-gram from any start
    characters = np.append(np.flatnonzero(data[: len(text)] & 0xC0 != 0x80), len(text))  # where each begins
    lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))[:, None] + 2
    sizes = np.arange(shortest, longest + 1)
    # (n_tokens, n_sizes)
    counts = np.where(sizes < lengths, lengths - sizes + 1, sizes == np.maximum(lengths, shortest))
    firsts = np.broadcast_to(np.cumsum(lengths)[:, None] - lengths, counts.shape)
    begins = runs(firsts.ravel(), counts.ravel())
    ends = begins + np.repeat(np.minimum(sizes, lengths).ravel(), counts.ravel())
    starts = characters[begins]
    return _murmur_of_runs(data, starts, characters[ends] - starts), counts.sum(axis=1)


def _numbers(table: Table, tokens: Sequence[str]) -> Numbers:
    return np.fromiter(map(table.numbers.get, tokens, repeat(-1)), np.int64, len(tokens))


def _murmur_of_runs(data: NDArray[np.uint8], starts: Numbers, lengths: Numbers) -> Hashes:
    """Hashes of short runs of bytes, all at once: the absolute values of MurmurHash3 (x86, 32 bits, seed 0), signed.

    Args:
        data: bytes, after the begin of any run four more than the longest has.
        starts: where each run begins, (n,).
        lengths: how many bytes it has, (n,).
    """
    whole = data.astype(np.uint32)
    four = whole[:-3] | whole[1:-2] << 8 | whole[2:-1] << 16 | whole[3:] << 24  # the four bytes from each place on
    hashed: NDArray[Any] = np.zeros(len(starts), dtype=np.uint32)
    for end in range(4, int(lengths.max(initial=0)) + 1, 4):
        mixed = _rotate(hashed ^ _scramble(four[starts + (end - 4)]), 13) * np.uint32(5) + np.uint32(0xE6546B64)
        hashed = np.where(lengths >= end, mixed, hashed)
    rest = (lengths & 3).astype(np.uint32)
    hashed ^= _scramble(four[starts + (lengths & ~3)] & (np.uint32(1) << 8 * rest) - np.uint32(1))
    hashed ^= lengths.astype(np.uint32)
    return _absolute(_avalanche(hashed))


def _murmur_of_one(word: bytes) -> int:
    """The same of one run of any length."""
    mask, hashed, end = 2**32 - 1, 0, len(word) & ~3
    for start in range(0, len(word), 4):
        block = int.from_bytes(word[start : start + 4], "little") * 0xCC9E2D51 & mask
        hashed ^= (block << 15 | block >> 17) * 0x1B873593 & mask
        if start < end:
            hashed = ((hashed << 13 | hashed >> 19) & mask) * 5 + 0xE6546B64 & mask
    return int(_absolute(_avalanche(np.array([hashed ^ len(word)], dtype=np.uint32)))[0])


def _avalanche(hashed: NDArray[Any]) -> NDArray[Any]:
    """Let every bit depend on all others: the end of MurmurHash3."""
    hashed = (hashed ^ hashed >> 16) * np.uint32(0x85EBCA6B)
    hashed = (hashed ^ hashed >> 13) * np.uint32(0xC2B2AE35)
    hashed ^= hashed >> 16
    return hashed


def _scramble(block: NDArray[Any]) -> NDArray[Any]:
    return _rotate(block * np.uint32(0xCC9E2D51), 15) * np.uint32(0x1B873593)


def _rotate(bits: NDArray[Any], by: int) -> NDArray[Any]:
    return bits << by | bits >> (32 - by)


def _absolute(hashed: NDArray[Any]) -> Hashes:
    """Absolute values as signed numbers; -2^31, which has no positive counterpart, gives 2^31."""
    return np.abs(hashed.view(np.int32)).view(np.uint32)
