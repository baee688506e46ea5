"""Vectors as rows of the file: float32 or float16, each with a checksum."""

from zlib import crc32

import numpy as np

from dspy_qvl.vectors import Vector

Row = tuple[bytes, int, int, bytes]  # key, seconds since 1970 when it was stored, checksum, encoded vector

FLOAT32 = np.dtype("<f4")
HALF = b"h"  # begins a float16 row, whose length is odd by it; a float32 row is 4 bytes a column and nothing else
HALF_ERROR = 2.0**-10  # of the largest entry; twice what rounding to float16 costs where float16 has all its digits


def encode(vectors: Vector, *, half: bool) -> list[bytes]:
    """Encode vectors, (n, d), one `bytes` each.

    With `half` as float16, except for rows that float16 cannot hold: an entry is too large, or all of them are so
    small that float16 has lost their digits.
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
    """CRC32 of a key and its encoded vector; where it does not match, a read is a cache miss."""
    return crc32(blob, crc32(key))


def decode(key: bytes, told: int, blob: object) -> Vector | None:
    """The vector of a row, (d,) float32 and read-only, or None if the row is damaged.

    Args:
        key: of the row.
        told: its stored checksum.
        blob: its encoded vector.
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
