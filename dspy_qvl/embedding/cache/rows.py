"""One vector as a row of the file."""

from zlib import crc32

import numpy as np

from dspy_qvl.vectors import Vector

FLOAT32 = np.dtype("<f4")
HALF = b"h"  # begins a float16 row, whose length is odd by it; a float32 row is 4 bytes a column and nothing else
HALF_ERROR = 2.0**-10  # of the largest entry; twice what rounding to float16 costs where float16 has all its digits


def encode(vectors: Vector, *, half: bool) -> list[bytes]:
    """The rows of (n, d) as they are stored.

    With `half` as float16, but for rows that float16 cannot hold: an entry is too large, or all of them are so
    small that it has lost its digits.
    """
    rows = np.ascontiguousarray(vectors, dtype="<f4")
    if not half:
        return [row.tobytes() for row in rows]
    with np.errstate(over="ignore"):
        rounded = rows.astype("<f2")
        error = np.abs(rounded - rows).max(axis=1, initial=0.0)
    held = error <= HALF_ERROR * np.abs(rows).max(axis=1, initial=0.0)
    return [
        HALF + short.tobytes() if fits else row.tobytes() for short, row, fits in zip(rounded, rows, held, strict=True)
    ]


def checksum(key: bytes, blob: bytes) -> int:
    """What a row says of itself, so that a damaged one is a miss and not a wrong vector."""
    return crc32(blob, crc32(key))


def decode(key: bytes, told: int, blob: object) -> Vector | None:
    """The vector of a row, (d,) float32 and read-only, or None where the row is damaged.

    Args:
        key: of the row.
        told: the row's checksum.
        blob: the row's vector as it is stored.
    """
    if not isinstance(blob, bytes) or crc32(blob, crc32(key)) != told or len(blob) < 2:
        return None
    if len(blob) % 4 == 0:
        return np.frombuffer(blob, FLOAT32)
    if len(blob) % 2 == 0 or blob[:1] != HALF:
        return None
    vector: Vector = np.frombuffer(blob[1:], dtype="<f2").astype(np.float32)
    vector.setflags(write=False)
    return vector
