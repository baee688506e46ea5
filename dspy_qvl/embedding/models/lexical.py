"""The lexical model: hashed words and character n-grams, built in, nothing to download.

It knows spelling, not meaning. The same text gives the same vector anywhere and in any version; so its list of function
words stands here, and is not taken from a library that may change it.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.errors import check_count

# English words that say little by themselves; "no", "not", "never" and the like say much, and are not among them.
# The single letters remain of contractions.
FUNCTION_WORDS = frozenset(
    """
    a about above across after afterwards again against all almost alone along already also although always am among
    amongst an and another any anyhow anyone anything anyway anywhere are around as at back be became because become
    becomes becoming been before beforehand behind being below beside besides between beyond both but by can could d
    did do does doing done down due during each eight either eleven else elsewhere enough even ever every everyone
    everything everywhere except few fifteen fifty first five for former formerly forty found four from full further
    get give go had has have having he he's hence her here hereafter hereby herein hereupon hers herself him himself
    his how however i i'd i'll i'm i've if in indeed into is it it's its itself keep last latter latterly least less
    ll m made many may me meanwhile might mine more moreover most mostly much must my myself name namely
    nevertheless next nine noone now of off often on once one only onto or other others otherwise our ours ourselves
    out over own part per perhaps please put rather re s same see seem seemed seeming seems several shall she she's
    should since six sixty so some somehow someone something sometime sometimes somewhere still such t take ten than
    that that's the their theirs them themselves then thence there there's thereafter thereby therefore therein
    thereupon these they they're they've third this those though three through throughout thru thus to together too
    toward towards twelve twenty two un under until up upon us ve very via was we we're we've well were what
    whatever when whence whenever where whereafter whereas whereby wherein whereupon wherever whether which while
    whither who whoever whole whom whose why will with within would yet you you'll you're you've your yours yourself
    yourselves
    """.split()
)
PUNCTUATION = '.,!?;:()"'
NEGATIONS = frozenset("not no never nothing neither nor without hardly barely cannot".split())
APOSTROPHES = "'’"


class LexicalModel:
    """Hashed words and character n-grams, unit length: a bag of spelling, not of meaning.

    One column counts every word, punctuation mark (they carry emoticons and tone) and character n-gram that is
    hashed to it. Counts are square-rooted; words and n-grams are scaled to unit length, weighted, and added.

    A function word counts for a quarter, which stands in for the document frequencies a stateless model cannot
    have. The three words after an English negation, up to the next punctuation mark, count for half themselves and
    once together with "not". Never truncates.

    The tokens, n-grams and weights were chosen on training folds of four human-rated sets: see
    tests/benchmarks/lexical.py.

    Args:
        n_features: number of columns, at least 2.
        word_weight: share of words in the vector's length; n-grams have the rest, sqrt(1 - word_weight^2).

    Source: Weinberger et al. (2009), Feature Hashing; Das & Chen (2001), Yahoo! for Amazon, for the negations.
    """

    WORD = re.compile(r"\w+|[^\w\s]")
    NGRAMS = (3, 5)
    FUNCTION_WORD_COUNT = 0.25
    NEGATION_SPAN = 3

    def __init__(self, n_features: int, word_weight: float = 0.6) -> None:
        self.n_features = check_count(n_features, "embedding_dim", 2)
        self.word_weight = word_weight

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of texts, (n, n_features)."""
        vectors: NDArray[np.float32] = self.sparse(texts).toarray()
        return vectors

    def sparse(self, texts: Sequence[str]) -> Any:
        """The same as a scipy CSR matrix."""
        hasher, ngrams_of = _hashing(self.n_features, self.NGRAMS)
        lowered = [text.lower() for text in texts]
        by_word, by_ngram = (
            _unit_rows(hasher.transform(counts).sqrt())
            for counts in (map(self._words, lowered), (self._ngrams(text, ngrams_of) for text in lowered))
        )
        return _unit_rows(by_word * self.word_weight + by_ngram * (1 - self.word_weight**2) ** 0.5)

    def _words(self, text: str) -> dict[str, float]:
        """Each word, punctuation mark and negated word -> its count."""
        counts: defaultdict[str, float] = defaultdict(float)
        words = self.WORD.findall(text)
        n_negated = 0
        for position, word in enumerate(words):
            counts[word] += self._count(word)
            if n_negated and word.isalpha() and word not in FUNCTION_WORDS:
                counts[word] -= 0.5
                counts[f"not {word}"] += 1
            if word in NEGATIONS or (word == "t" and position > 1 and words[position - 1] in APOSTROPHES):
                n_negated = self.NEGATION_SPAN
            elif word.isalnum():
                n_negated = max(n_negated - 1, 0)
            elif word not in APOSTROPHES:
                n_negated = 0
        return counts

    def _ngrams(self, text: str, ngrams_of: Callable[[str], list[str]]) -> dict[str, float]:
        """Each character n-gram -> its count."""
        counts: defaultdict[str, float] = defaultdict(float)
        for word in text.split():
            count = self._count(word.strip(PUNCTUATION))
            for ngram in ngrams_of(word):
                counts[ngram] += count
        return counts

    def _count(self, word: str) -> float:
        return self.FUNCTION_WORD_COUNT if word in FUNCTION_WORDS else 1.0


@lru_cache
def _hashing(n_features: int, ngram_range: tuple[int, int]) -> tuple[Any, Callable[[str], list[str]]]:
    """The hasher of counts, and the function word -> n-grams; cached since making them takes longer than a text."""
    from sklearn.feature_extraction import FeatureHasher
    from sklearn.feature_extraction.text import CountVectorizer

    # Without alternating signs two n-grams in one column never cancel: no text becomes a zero vector.
    hasher = FeatureHasher(n_features, alternate_sign=False, dtype=np.float32)
    return hasher, CountVectorizer(analyzer="char_wb", ngram_range=ngram_range).build_analyzer()


def _unit_rows(matrix: Any) -> Any:
    """The rows of a CSR matrix scaled to length 1 in place: sklearn's `normalize` without its checks."""
    from sklearn.utils.sparsefuncs_fast import inplace_csr_row_normalize_l2

    inplace_csr_row_normalize_l2(matrix)
    return matrix
