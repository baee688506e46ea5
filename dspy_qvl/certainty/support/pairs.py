"""How unusual the order of words is: pairs of neighbours by counts of other texts.

    p(b) = (count of b + 1/2) / (number of pairs + kinds of words / 2)
    p(b | a) = (count of "a b" + 20 p(b)) / (count of "a" + 20)

The rarity of a pair is log p(b) - log p(b | a): negative where b often follows a, positive where both are common but b
does not follow a. Only listed words stand for themselves; all others are one word, and so are numbers and marks. The
begin and the end of a text count as words.

Source: MacKay & Peto (1995), A Hierarchical Dirichlet Language Model.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

PRIOR = 20.0  # words that p(b) is worth beside the counts after a word
EDGE, OTHER, NUMBER, MARK = "\n", "\ta", "\t0", "\t."  # no words of a text

Pair = tuple[str, str]


class PairCounts:
    """How often pairs of neighbours occur.

    Args:
        texts: the words of each text.
        listed: the words that stand for themselves.
    """

    def __init__(self, texts: Iterable[Sequence[str]], listed: frozenset[str]) -> None:
        self.listed = listed
        self.pairs: Counter[Pair] = Counter()
        for words in texts:
            self.pairs.update(pairs_of(words, listed))
        self.firsts: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        for (first, second), count in self.pairs.items():
            self.firsts[first] += count
            self.seconds[second] += count
        self.total = self.firsts.total()


@dataclass(frozen=True)
class PairRarities:
    """The rarity of pairs.

    Attributes:
        known: of pairs.
        new: of a word that was never seen after the first word of a pair, by that word.
        listed: the words that stand for themselves.
    """

    known: dict[Pair, float]
    new: dict[str, float]
    listed: frozenset[str]

    @classmethod
    def of(cls, counts: PairCounts, own: PairCounts, wanted: PairCounts) -> "PairRarities":
        """The rarities of the pairs of `wanted`, by counts less one's own."""
        total = counts.total - own.total + (len(counts.listed) + 4) / 2
        shares = {word: (counts.seconds[word] - own.seconds[word] + 0.5) / total for word in wanted.seconds}
        before = {word: counts.firsts[word] - own.firsts[word] + PRIOR for word in wanted.firsts}
        known = {}
        for pair in wanted.pairs:
            count = counts.pairs[pair] - own.pairs[pair]
            known[pair] = -math.log((count / shares[pair[1]] + PRIOR) / before[pair[0]])
        return cls(known, {word: -math.log(PRIOR / count) for word, count in before.items()}, counts.listed)

    def mean(self, words: Sequence[str]) -> float:
        """The mean rarity of the pairs of a text, by its words."""
        known, new = self.known.get, self.new.get
        rarities = [
            new(pair[0], 0.0) if (rarity := known(pair)) is None else rarity for pair in pairs_of(words, self.listed)
        ]
        return sum(rarities) / len(rarities)


def pairs_of(words: Sequence[str], listed: frozenset[str]) -> Iterable[Pair]:
    """The pairs of neighbours in a text, with its begin and its end."""
    return pairwise([EDGE, *[word if word in listed else _kind(word) for word in words], EDGE])


def _kind(word: str) -> str:
    """The word that an unlisted one counts as."""
    if word.isalpha():
        return OTHER
    return MARK if not word[0].isalnum() else NUMBER if any(map(str.isdigit, word)) else OTHER
