"""How far a rated text is from the nearest rated text of another group."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.vectors import Array, Vectors, slices

AT_ONCE = 1024  # rated texts whose cosines are in memory


def apart(groups: Sequence[int] | NDArray[np.intp]) -> NDArray[np.intp]:
    """The group of each text, (n,); if all are of one group, each text is a group of its own."""
    members = np.asarray(groups, dtype=np.intp)
    return np.arange(len(members)) if (members == members[:1]).all() else members


def left_out_distances(
    vectors: Vectors, groups: Sequence[int] | NDArray[np.intp], rows: NDArray[np.intp], among: NDArray[np.intp]
) -> Array:
    """1 - cosine of some texts with the nearest text of another group, (m,), rounded to 5 digits.

    Args:
        vectors: unit vectors of the rated texts, (n, d).
        groups: the number of the group of each, (n,); if all are of one, each text is a group of its own.
        rows: the texts that are compared, (m,).
        among: the texts that the nearest one is looked for among, (k,).
    """
    members = apart(groups)
    chosen, nearest = vectors[rows].astype(np.float64), np.full(len(rows), -1.0)
    for part in slices(len(among), AT_ONCE):
        some = among[part]
        cosines = chosen @ vectors[some].T.astype(np.float64)  # float32 would round to other digits with other BLAS
        cosines[members[rows, None] == members[some]] = -1.0
        np.maximum(nearest, cosines.max(axis=1), out=nearest)
    return np.asarray(np.round(1 - nearest, 5))
