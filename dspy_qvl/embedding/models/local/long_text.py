"""Texts longer than a model's window: the mean over windows of them.

    long text ─► windows of like length, each with the instruction ─► their vectors ─► weighted mean, unit length

A text is cut between tokens, and its windows count by how many tokens they hold.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from dspy_qvl.embedding.instruction import _prefix
from dspy_qvl.embedding.models.local.forward import NO_WINDOW, Loaded
from dspy_qvl.errors import InputError
from dspy_qvl.vectors import Vectors

ROOM_TO_SPARE = 3  # tokens a window may gain because it is cut where no word ends
SMALLEST_ROOM = 8  # tokens a window must have left beside the instruction


def means(loaded: Loaded, texts: list[str], over: dict[int, int]) -> Vectors:
    """Vectors of texts, the long ones as the mean over their windows.

    v = sum_w n_w v_w / |sum_w n_w v_w|,  n_w the tokens of window w, v_w its unit vector

    Args:
        loaded: the model.
        texts: all texts, n.
        over: the positions of the long ones.

    Returns:
        (n, d); the rows of long texts have unit length, the others are as the model gives them.
    """
    pieces: list[str] = []
    weights: list[int] = []
    spans: list[slice] = []
    for row, text in enumerate(texts):
        windows = windows_of(loaded, text) if row in over else [(text, 1)]
        spans.append(slice(len(pieces), len(pieces) + len(windows)))
        pieces.extend(piece for piece, _ in windows)
        weights.extend(weight for _, weight in windows)
    parts: list[Vectors] = []
    batches = packed(loaded.count(pieces), loaded.tokens_a_batch)
    for batch in batches:
        parts.append(loaded.embed([pieces[row] for row in batch]))
    vectors = np.empty((len(pieces), parts[0].shape[1]), dtype=np.float32)
    for batch, part in zip(batches, parts, strict=True):
        vectors[batch] = part
    return np.stack(
        [
            _weighted_mean(vectors[span], weights[span]) if row in over else vectors[span][0]
            for row, span in enumerate(spans)
        ]
    )


def _weighted_mean(vectors: Vectors, weights: list[int]) -> Vectors:
    """The direction of the weighted mean of the directions of vectors, (w, d) -> (d,)."""
    rows = vectors.astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    mean = np.asarray(weights, dtype=np.float64) @ rows
    direction: Vectors = (mean / max(float(np.linalg.norm(mean)), np.finfo(np.float64).tiny)).astype(np.float32)
    return direction


def windows_of(loaded: Loaded, text: str) -> list[tuple[str, int]]:
    """A long text in windows of about equal length, each with its instruction, and the tokens each holds of it.

    Raises:
        InputError: the instruction leaves no room, or the tokenizer cannot say where a token lies.
    """
    prefix, room = _beside(loaded, text)
    if not loaded.tokenizer.is_fast:
        raise InputError("long_text='mean' needs a fast tokenizer, which this model has not; use long_text='cut'.")
    windows: list[tuple[str, int]] = []
    waiting = [text[len(prefix) :]]
    while waiting:
        piece = waiting.pop()
        offsets = loaded.tokens([piece], add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"][0]
        cuts = _cuts(offsets, room)
        if cuts:
            edges = [0, *cuts, len(piece)]
            waiting.extend(piece[start:end] for start, end in reversed(list(itertools.pairwise(edges))))
        elif offsets:  # a piece without tokens, for instance of blanks, says nothing
            windows.append((prefix + piece, len(offsets)))
    return windows or [(text, 1)]


def check_room(loaded: Loaded, texts: Sequence[str]) -> None:
    """Refuse an instruction that leaves no room in the model's window for the texts behind it.

    Raises:
        InputError: says how many tokens it takes.
    """
    for prefix in {_prefix(text) for text in texts}:
        _beside(loaded, prefix)


def _beside(loaded: Loaded, text: str) -> tuple[str, int]:
    """A text's instruction, and how many tokens of the window are left beside it."""
    prefix = _prefix(text)
    beside = loaded.count([prefix])[0]
    room = (loaded.window or NO_WINDOW) - beside - ROOM_TO_SPARE
    if prefix and room < SMALLEST_ROOM:
        raise InputError(
            f"the instruction takes {beside} tokens of the model's window of {loaded.window}; shorten it, "
            "or use a model with a longer window."
        )
    return prefix, max(room, 1)


def _cuts(offsets: Sequence[tuple[int, int]], room: int) -> list[int]:
    """Characters at which a text is cut so that no part has more than about `room` tokens; none if it fits."""
    if len(offsets) <= room:
        return []
    n_parts = -(-len(offsets) // (room - ROOM_TO_SPARE))  # a character of several tokens moves as a whole
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
