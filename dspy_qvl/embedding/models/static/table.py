"""The arithmetic of a static model: tokens, cut and without unknown ones, and the mean of their vectors.

It is what model2vec's `encode` computes, in float32 whatever the table is saved in. model2vec itself changes its
tokenizer during a call, which other threads would meet, and averages in float16 where the table is float16.
"""

import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from dspy_qvl.embedding.models.local import PROCESS
from dspy_qvl.vectors import Vectors, unit

MAX_TOKENS = 512  # of a text, where the model says nothing


class StaticTable:
    """Vectors of tokens, and texts -> their mean; never changed after it was made, so threads share one.

        v(text) = sum_t w_t V[m(t)] / n,  over the n known tokens t of the text;  / |v| where the model normalizes

    Args:
        tokenizer: of the `tokenizers` package; its padding and truncation are turned off.
        vectors: V, (rows, d), in any precision.
        weights: w, a factor for each token, or None for 1.
        mapping: m, the row of each token, or None where that is the token's own number.
        max_tokens: tokens of a text that are read, unknown ones among them; None for all.
        normalize: True if vectors are scaled to length 1.

    Raises:
        ValueError: there is no vector for some token, or the table is none, or knows no token.
    """

    def __init__(
        self,
        tokenizer: Any,
        vectors: Any,
        *,
        weights: Any = None,
        mapping: Any = None,
        max_tokens: int | None = MAX_TOKENS,
        normalize: bool = False,
    ) -> None:
        # Imported while the model is loaded, which a fork waits for.
        from scipy.sparse import csr_matrix

        vocabulary = tokenizer.get_vocab()
        self._matrix = csr_matrix
        self._vectors: Vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        if self._vectors.ndim != 2:
            raise ValueError(f"its vectors, an array of shape {self._vectors.shape}, are no table")
        if not self._vectors.any():
            raise ValueError("its table holds only zeros, so that it knows no token")
        self._weights = None if weights is None else np.asarray(weights, dtype=np.float32)
        self._mapping = None if mapping is None else np.asarray(mapping, dtype=np.int32)
        n_rows, last = len(self._vectors), max(vocabulary.values(), default=-1)
        if last >= n_rows if self._mapping is None else last >= len(self._mapping) or self._mapping.max() >= n_rows:
            raise ValueError(f"its table has {n_rows:,} vectors, too few for its {len(vocabulary):,} tokens")
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self._unknown = _unknown_token(tokenizer)
        self._normalize = normalize
        self.max_tokens = max_tokens
        # model2vec reads no more characters than this, so that it need not tokenize what it would cut.
        median = int(np.median([len(token) for token in vocabulary]))
        self._max_characters = None if max_tokens is None else max_tokens * median

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Vectors of texts, (n, d) float32; zeros for a text without a known token."""
        known = [[token for token in tokens if token != self._unknown] for tokens in self.tokens(texts)]
        n_tokens = np.array([len(tokens) for tokens in known], dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum(n_tokens)])
        ids = np.fromiter(itertools.chain.from_iterable(known), dtype=np.int32, count=int(starts[-1]))
        factors = np.ones(len(ids), dtype=np.float32) if self._weights is None else self._weights[ids]
        rows = ids if self._mapping is None else self._mapping[ids]
        # scipy adds the vectors of a text one after the other: its sum does not depend on the texts beside it.
        counts = self._matrix((factors, rows, starts), shape=(len(known), len(self._vectors)))
        means: Vectors = counts @ self._vectors
        means /= np.maximum(n_tokens, 1).astype(np.float32)[:, None]
        return unit(means) if self._normalize else means

    def tokens(self, texts: Sequence[str], *, cut: bool = True) -> list[list[int]]:
        """The tokens of each text, unknown ones among them; with `cut` those that are read."""
        texts = [text[: self._max_characters] for text in texts] if cut else list(texts)
        with PROCESS.tokenizing:
            encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [one.ids[: self.max_tokens if cut else None] for one in encoded]


def _unknown_token(tokenizer: Any) -> int | None:
    """The number of the token that stands for what the tokenizer does not know, or None if it has none."""
    if hasattr(tokenizer.model, "unk_token"):
        token = tokenizer.model.unk_token
        number = None if token is None else tokenizer.token_to_id(token)
    else:  # a Unigram model
        number = json.loads(tokenizer.to_str())["model"].get("unk_id")
    return None if number is None else int(number)
