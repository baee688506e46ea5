"""How unlike the rated texts the wording of a text is, from the texts alone.

    phrases     rarity of its words among those of the rated texts, and of their order
    order       rarity of each word after the one before it (`pairs.py`): high where words that people use stand in an
                order that they do not use
    build       the same of the 64 most common words alone, which are mostly function words and marks
    repetition  share of its pieces of 10 characters that it has said before
    characters  share of its characters that no rated text has, as those of another script
    length      log of its number of characters

The rarity of words is the mean of -log p(word), p(word) = (count + 1/2) / (number of words + (distinct words + 1) / 2).
The mean over few words strays more than that over many; so means become z-scores, of variance c + d / n for n words,
c and d estimated from the rated texts.

In "order" each word that 5 groups of rated texts have stands for itself, in "build" only the 64 most common; all others
are one word. So "great perfect love" is three words of one kind in a row, as no sentence is built. "phrases" is the sum
of the z-scores of words and of "order".

A rated text is compared with the texts of other groups: the counts of its own group are subtracted. So it gets the
numbers that a model of the other groups gives, with the same c and d and the same lists of words.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.certainty.support.nearest import apart
from dspy_qvl.certainty.support.pairs import PairCounts, PairRarities
from dspy_qvl.vectors import Array

SIGNALS = ("phrases", "order", "build", "repetition", "characters", "length")
SAMPLE, LEAST_SAMPLE = 1000, 100  # rated texts that are compared with the others; the least, however long they are
CHARACTERS = 2_000_000  # of the rated texts that are counted: about a second's work
LEAST, COMMONEST = 5, 64  # groups that have a word that stands for itself; words of the short list
PIECE = 10  # characters
TINY = 1e-12

# Scripts without blanks between words: each character is a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_LETTERS = rf"[^\W_{_UNSPACED}]+"
_WORD = re.compile(rf"{_LETTERS}(?:['’]{_LETTERS})*|[{_UNSPACED}]|[^\w\s]|_")
_BLANKS = frozenset(" \n\r\t")

Lists = tuple[frozenset[str], frozenset[str]]  # the words that stand for themselves: all of enough groups, and few


def words_of(text: str) -> list[str]:
    """The words and punctuation marks of a text, in lower case."""
    return _WORD.findall(text.lower())


def repeated_share(text: str) -> float:
    """Share of a text's pieces of 10 characters that it has said before, in [0, 1)."""
    n_pieces = len(text) - PIECE + 1
    if n_pieces <= 0:
        return 0.0
    return 1 - len({text[start : start + PIECE] for start in range(n_pieces)}) / n_pieces


class _Counts:
    """How often the words, pairs of neighbours and characters of some texts occur."""

    def __init__(self, texts: Sequence[str], lists: Lists) -> None:
        self.lists = lists
        words = [words_of(text) for text in texts]
        self.words = Counter(chain.from_iterable(words))
        self.characters = Counter(chain.from_iterable(text.lower() for text in texts))
        self.pairs = [PairCounts(words, listed) for listed in lists]
        self.total = self.words.total()


@dataclass(frozen=True)
class _Rarities:
    """The rarity of words and of their order, and the characters that are known.

    Attributes:
        words: rarity of each known word.
        new_word: of one that is not known.
        pairs: the rarities of pairs, by the long and the short list.
        characters: those that are known.
    """

    words: dict[str, float]
    new_word: float
    pairs: tuple[PairRarities, ...]
    characters: frozenset[str]

    @classmethod
    def of(cls, counts: _Counts, own: _Counts, wanted: _Counts) -> "_Rarities":
        """The rarities of the words and pairs of `wanted`, by counts less one's own."""
        distinct = len(counts.words) - sum([counts.words[word] == count for word, count in own.words.items()])
        total = math.log(counts.total - own.total + (distinct + 1) / 2)
        words = {word: total - math.log(counts.words[word] - own.words[word] + 0.5) for word in wanted.words}
        pairs = tuple(PairRarities.of(*three) for three in zip(counts.pairs, own.pairs, wanted.pairs, strict=True))
        known = {one for one in wanted.characters if counts.characters[one] > own.characters[one]}
        return cls(words, total - math.log(0.5), pairs, _BLANKS | known)

    def __call__(self, text: str) -> "_Found":
        """A text, measured by them."""
        words, lowered = words_of(text), text.lower()
        of_words = sum([self.words.get(word, self.new_word) for word in words]) / max(len(words), 1)
        strange = set(lowered) - self.characters
        share = sum([one in strange for one in lowered]) / len(lowered) if strange else 0.0
        means = (of_words, *[pairs.mean(words) for pairs in self.pairs])
        return _Found(len(words), means, (repeated_share(text), share, math.log(1 + len(text))))


@dataclass(frozen=True)
class _Found:
    """A text, measured: its number of words, means over words, and the signals that are no such means."""

    n_words: int
    means: tuple[float, ...]  # of words, of pairs by the long and by the short list
    others: tuple[float, ...]  # repetition, characters, length

    def signals(self, scales: "Sequence[_Scale]") -> tuple[float, ...]:
        """The `SIGNALS` of the text."""
        words, order, build = [scale(mean, self.n_words) for scale, mean in zip(scales, self.means, strict=True)]
        return words + order, order, build, *self.others


@dataclass(frozen=True)
class _Scale:
    """The z-score of a mean over n words, whose variance is `between + within / n`."""

    mean: float
    between: float
    within: float

    def __call__(self, mean: float, n: int) -> float:
        return (mean - self.mean) / math.sqrt(self.between + self.within / n) if n else 0.0

    @classmethod
    def of(cls, found: Sequence[tuple[float, int]]) -> "_Scale":
        """The scale of means over n words each; texts without words do not count.

        The variance is fitted to the squares of mean - centre by least squares, each weighed by its n.
        """
        found = [(mean, n) for mean, n in found if n]
        if not found:
            return cls(0.0, 1.0, 0.0)
        m, total, inverses = len(found), math.fsum(n for _, n in found), math.fsum(1 / n for _, n in found)
        centre = math.fsum(mean * n for mean, n in found) / total
        squares = math.fsum((mean - centre) ** 2 for mean, _ in found)
        weighed = math.fsum(n * (mean - centre) ** 2 for mean, n in found)
        determinant = total * inverses - m**2  # 0 where all have one length
        between, within = 0.0, squares / inverses
        if determinant > TINY * m**2 and inverses * weighed > m * squares:
            between = (inverses * weighed - m * squares) / determinant
            within = (total * squares - m * weighed) / determinant
            if within < 0:
                between, within = weighed / total, 0.0
        return cls(centre, between, within) if between + within > TINY else cls(centre, 1.0, 0.0)


@dataclass(frozen=True, eq=False)
class Wording:
    """The wording of the rated texts, to compare that of other texts with; the same bits in any batch.

    Attributes:
        rows: the rated texts that were compared with the others, (m,), at most 1,000, evenly spaced.
        left_out: the `signals` of those, by the texts of the other groups, (m, 6).
    """

    rows: NDArray[np.intp]
    left_out: Array
    _rarities: _Rarities
    _scales: tuple[_Scale, ...]

    @classmethod
    def of(cls, texts: Sequence[str], groups: Sequence[int] | NDArray[np.intp]) -> "Wording":
        """The wording of rated texts; of very many or long ones, that of evenly spaced ones.

        Args:
            texts: the rated texts, (n,), at least one.
            groups: the number of the group of each, (n,): the texts of a group are not compared with each other. If
                all are of one group, each text is a group of its own.
        """
        n, members, parts = len(texts), apart(groups).tolist(), sum(map(len, texts)) // CHARACTERS + 1
        counted: dict[int, list[str]] = {group: [] for group in members}
        for row in range(0, n, parts):
            counted[members[row]].append(texts[row])
        counts = _Counts(list(chain.from_iterable(counted.values())), _lists(counted.values()))
        rows = np.arange(0, n, max(-(-n // SAMPLE), min(parts, n // LEAST_SAMPLE)))
        by_group: dict[int, list[int]] = {}
        for row in rows.tolist():
            by_group.setdefault(members[row], []).append(row)
        measured: dict[int, _Found] = {}
        for group, some in by_group.items():
            measured.update(zip(some, _left_out([texts[row] for row in some], counts, counted[group]), strict=True))
        found = [measured[row] for row in rows.tolist()]
        scales = tuple(_Scale.of([(one.means[mean], one.n_words) for one in found]) for mean in range(3))
        left_out = np.array([one.signals(scales) for one in found])
        return cls(rows, left_out, _Rarities.of(counts, _Counts([], counts.lists), counts), scales)

    def signals(self, text: str) -> tuple[float, ...]:
        """How unlike the rated texts the wording of a text is: a number for each of `SIGNALS`, high if unlike."""
        return self._rarities(text).signals(self._scales)


def _left_out(texts: list[str], counts: _Counts, counted: list[str]) -> Iterable[_Found]:
    """Some texts of a group, each measured by counts less those of its group, whose texts `counted` are among them."""
    own = _Counts(counted, counts.lists)
    return map(_Rarities.of(counts, own, own if texts == counted else _Counts(texts, counts.lists)), texts)


def _lists(groups: Iterable[Sequence[str]]) -> Lists:
    """The words that enough groups have, or all of few groups, and the most common of them."""
    has = [{word for text in texts for word in words_of(text)} for texts in groups]
    spread = Counter(chain.from_iterable(has))
    ranked = sorted((-n, word) for word, n in spread.items() if n >= min(LEAST, len(has)))
    return frozenset(word for _, word in ranked), frozenset(word for _, word in ranked[:COMMONEST])
