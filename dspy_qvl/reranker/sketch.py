"""Sketches of wide vectors: a reranker learns at most 1,024 coefficients of a vector, however wide the model's are.

Source: Charikar, Chen & Farach-Colton (2002), Finding frequent items in data streams (the count sketch).
"""

import numpy as np

from dspy_qvl.vectors import Array, Vectors

FOLDED = 1024  # columns at most


def folded(vectors: Vectors) -> Vectors:
    """Vectors of more than 1,024 columns as sketches of 1,024 that keep inner products on average, (n, 1024).

    Column j goes to column j mod 1,024, some with their sign changed.
    """
    n, d = vectors.shape
    if d <= FOLDED:
        return vectors
    sheets = np.zeros((n, -(-d // FOLDED) * FOLDED), dtype=np.float32)
    sheets[:, :d] = vectors * _signs(d)
    sketch: Vectors = sheets.reshape(n, -1, FOLDED).sum(axis=1)
    return sketch


def unfolded(coef: Array, d: int) -> Array:
    """Coefficients of `folded` vectors as coefficients of the vectors themselves, (d,)."""
    return coef if d <= FOLDED else np.asarray(coef[np.arange(d) % FOLDED] * _signs(d))


def _signs(d: int) -> Vectors:
    """1 or -1 for each column, (d,): pseudo-random, and the same for every vector."""
    mixed = (np.arange(d, dtype=np.uint64) * np.uint64(2654435761)) >> np.uint64(13)
    return (1 - 2 * (mixed & np.uint64(1)).astype(np.float32)).astype(np.float32)
