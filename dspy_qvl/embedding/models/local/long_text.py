"""Texts longer than a model's window: the mean over windows of them.

    long text ─► windows of like length, each with the instruction ─► their vectors ─► weighted mean, unit length

A text is cut between tokens, and its windows count by how many tokens they hold. Where no text fills the window, texts
are tokenized once: the forward pass takes the tokens that showed their lengths.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from dspy_qvl.embedding.models.local.forward import Loaded
from dspy_qvl.errors import InputError
from dspy_qvl.vectors import Vectors

SPARE_TOKENS = 3  # tokens a window may gain because it is cut where no word ends
FEWEST_TOKENS = 8  # of a text that a window must have left beside the instruction


class Piece(NamedTuple):
    """One string of a forward pass: a whole text, or a window of a long one.

    Attributes:
        text: as it is sent, instruction included.
        tokens: of that text, special tokens included.
        weight: tokens of the text itself in a window; 0 for a whole text, whose vector is taken as the model gives it.
    """

    text: str
    tokens: int
    weight: int = 0


def means(loaded: Loaded, texts: list[str], prefix: str) -> Vectors:
    """Vectors of texts, the long ones as the mean over their windows.

    v = sum_w n_w v_w / |sum_w n_w v_w|,  n_w the tokens of window w, v_w its unit vector

    Args:
        loaded: the model.
        texts: all texts, n > 0.
        prefix: the instruction that a text may begin with, as it is sent.

    Returns:
        (n, d); the rows of long texts have unit length, the others are as the model gives them.

    Raises:
        InputError: the instruction leaves too little of the window, or the tokenizer cannot say where a token lies.
    """
    features = loaded.features(texts)
    if loaded.tokenizer is None:  # a model of another kind sees the whole text
        return loaded.embed(texts, features)
    pieces: list[Piece] = []
    spans: list[slice] = []
    for text, n_seen in zip(texts, _tokens_seen(loaded, texts, features), strict=True):
        n_before = len(pieces)
        pieces += [Piece(text, n_seen)] if n_seen < loaded.window else windows_of(loaded, text, prefix)
        spans.append(slice(n_before, len(pieces)))
    if not any(piece.weight for piece in pieces):
        return loaded.embed(texts, features)
    batches = packed([piece.tokens for piece in pieces], loaded.tokens_a_batch)
    parts = [loaded.embed([pieces[place].text for place in batch]) for batch in batches]
    vectors = np.empty((len(pieces), parts[0].shape[1]), dtype=np.float32)
    for batch, part in zip(batches, parts, strict=True):
        vectors[batch] = part
    return np.stack([_weighted_mean(vectors[span], [piece.weight for piece in pieces[span]]) for span in spans])


def _tokens_seen(loaded: Loaded, texts: Sequence[str], features: dict[str, Any]) -> list[int]:
    """Tokens of each text that a forward pass sees; the whole window where that is not known.

    sentence-transformers 5.0 strips blanks before it tokenizes, and a model that pads nothing gives no mask.
    """
    mask = features.get("attention_mask")
    seen = [loaded.window] * len(texts) if mask is None else mask.sum(dim=1).tolist()
    return [n if text == text.strip() else loaded.window for text, n in zip(texts, seen, strict=True)]


def _weighted_mean(vectors: Vectors, weights: list[int]) -> Vectors:
    """The direction of the weighted mean of the directions of vectors, (w, d) -> (d,); a whole text's vector itself."""
    direction: Vectors = vectors[0]
    if weights != [0]:
        rows = vectors.astype(np.float64)
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
        mean = np.asarray(weights, dtype=np.float64) @ rows
        direction = (mean / max(float(np.linalg.norm(mean)), np.finfo(np.float64).tiny)).astype(np.float32)
    return direction


def windows_of(loaded: Loaded, text: str, prefix: str) -> list[Piece]:
    """A text that fills the model's window as windows of about equal length, each with the instruction.

    A text that fits after all is a single piece; so is one without tokens, for instance of blanks.

    Raises:
        InputError: the instruction leaves too little of the window, or the tokenizer cannot say where a token lies.
    """
    prefix = prefix if text.startswith(prefix) else ""
    body = text[len(prefix) :]
    offsets = _offsets(loaded, [body])[0] if loaded.tokenizer.is_fast else None
    n_beside = loaded.count([prefix])[0]
    n_tokens = loaded.count([text])[0] if prefix or offsets is None else n_beside + len(offsets)
    if n_tokens <= loaded.window:
        return [Piece(text, n_tokens)]
    if offsets is None:
        raise InputError("long_text='mean' needs a fast tokenizer, which this model has not; use long_text='cut'.")
    parts = list(_parts(loaded, body, offsets, tokens_left(loaded, prefix, n_beside)))
    texts, weights = [prefix + part for part, _ in parts], [n for _, n in parts]
    counts = loaded.count(texts) if prefix else [n_beside + n for n in weights]
    return list(map(Piece, texts, counts, weights)) or [Piece(text, n_tokens, 1)]


def tokens_left(loaded: Loaded, prefix: str, n_beside: int) -> int:
    """Tokens of a window that are left for a text, at least 1.

    Args:
        loaded: the model.
        prefix: the instruction before the text, or "".
        n_beside: tokens of the instruction, special tokens included.

    Raises:
        InputError: the instruction leaves too few of them; says how many tokens it takes.
    """
    n_left = loaded.window - n_beside - SPARE_TOKENS
    if prefix and n_left < FEWEST_TOKENS:
        raise InputError(
            f"the instruction takes {n_beside} tokens of the model's window of {loaded.window}; shorten it, "
            "or use a model with a longer window."
        )
    return max(n_left, 1)


def _offsets(loaded: Loaded, texts: list[str]) -> list[list[tuple[int, int]]]:
    """First and last character + 1 of each token of each text, special tokens left out."""
    encoded = loaded.tokens(texts, add_special_tokens=False, return_offsets_mapping=True)
    offsets: list[list[tuple[int, int]]] = encoded["offset_mapping"]
    return offsets


def _parts(loaded: Loaded, text: str, offsets: Sequence[tuple[int, int]], n_left: int) -> Iterator[tuple[str, int]]:
    """A text in parts of at most `n_left` tokens, each with their number; parts without tokens are left out.

    A part is tokenized by itself, and cut again where that makes too many tokens of it.
    """
    edges = [0, *_cuts(offsets, n_left), len(text)]
    parts = [text[start:end] for start, end in itertools.pairwise(edges)]
    if len(parts) > 1:
        for part, own in zip(parts, _offsets(loaded, parts), strict=True):
            yield from _parts(loaded, part, own, n_left)
    elif offsets:
        yield text, len(offsets)


def _cuts(offsets: Sequence[tuple[int, int]], n_left: int) -> list[int]:
    """Characters at which a text is cut so that no part has more than about `n_left` tokens; none if it fits."""
    if len(offsets) <= n_left:
        return []
    # A character of several tokens moves as a whole.
    n_parts = -(-len(offsets) // max(n_left - SPARE_TOKENS, 1))
    at = {offsets[part * len(offsets) // n_parts][0] for part in range(1, n_parts)}
    # Never before the first character: a part must be shorter than the whole, or cutting would not end.
    return sorted(at - {0})


def packed(tokens: Sequence[int], budget: int) -> list[list[int]]:
    """Positions of texts in batches of like length: the longest times the number of texts is at most `budget`.

    A text longer than the budget is a batch of its own. Shortest first, in an order that only lengths decide.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(tokens)), key=tokens.__getitem__):
        if batches and tokens[row] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
