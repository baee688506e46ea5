"""Baselines that a value function must beat, in one table; a new one is one entry of `BASELINES`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dspy_qvl import ridge
from dspy_qvl.vectors import Array, MixedRows

WORD_ALPHAS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # rows of TF-IDF have unit length


def mean_baseline(lengths: Array, y: Array, new_lengths: Array) -> Array:
    """The mean score for every text, (m,) in the units of y."""
    return np.full(len(new_lengths), y.mean())


def length_baseline(lengths: Array, y: Array, new_lengths: Array) -> Array:
    """Longer is better, or worse: a straight line through the lengths, (m,) in the units of y.

    Args:
        lengths: log(1 + characters) of the rated texts, (n,).
        y: their scores, (n,).
        new_lengths: log(1 + characters) of the texts to value, (m,).
    """
    centred = lengths - lengths.mean()
    spread = centred @ centred
    slope = centred @ (y - y.mean()) / spread if spread > 0 else 0.0
    values: Array = y.mean() + slope * (new_lengths - lengths.mean())
    return values


def nearest_baseline(vectors: Any, y: Array, new_vectors: Any, n_neighbors: int = 5) -> Array:
    """The mean score of the rated texts with the highest cosine, (m,) in the units of y.

    Args:
        vectors: features of the rated texts, (n, d), dense or sparse.
        y: their scores, (n,).
        new_vectors: features of the texts to value, (m, d).
        n_neighbors: the number of neighbours; all texts if fewer were rated.
    """
    if new_vectors.shape[0] == 0:
        return np.empty(0)
    from sklearn.neighbors import KNeighborsRegressor

    neighbors = KNeighborsRegressor(min(n_neighbors, len(y)), metric="cosine", algorithm="brute").fit(vectors, y)
    values: Array = neighbors.predict(new_vectors)
    return values


def words_baseline(rated: tuple[Sequence[str], ridge.Folds], y: Array, new_texts: Sequence[str]) -> Array:
    """TF-IDF of words and pairs of words with ridge regression, as it is set up by hand, (m,) in the units of y.

    Args:
        rated: the rated texts, n, and the rows of each fold that the penalty is chosen on.
        y: their scores, (n,).
        new_texts: the texts to value, m.
    """
    if len(new_texts) == 0:
        return np.empty(0)
    from scipy.sparse import csr_array
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts, folds = rated
    tfidf = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32)

    def rows(matrix: object) -> MixedRows:
        sparse = csr_array(matrix)
        return MixedRows(np.empty((sparse.shape[0], 0), dtype=np.float32), sparse)

    try:
        X = rows(tfidf.fit_transform(texts))
    except ValueError:  # no text has a word of two letters
        return np.full(len(new_texts), y.mean())
    return ridge.predict(rows(tfidf.transform(new_texts)), ridge.search(X, y, WORD_ALPHAS, folds).line)


# By name: what a rule sees of each text, "length" (log(1 + characters), (n,)), "embedding" ((n, d)) or "text" (of the
# rated ones with the folds), and the rule: that of the rated texts, their scores, and that of m new texts -> their
# values, (m,).
BASELINES: Mapping[str, tuple[str, Callable[..., Array]]] = {
    "mean": ("length", mean_baseline),
    "length": ("length", length_baseline),
    "nearest": ("embedding", nearest_baseline),
    "words": ("text", words_baseline),
}
