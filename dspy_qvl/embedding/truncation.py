"""Full vectors of a model cut to the columns that are kept."""

from collections.abc import Sequence

import numpy as np

from dspy_qvl.errors import EmbeddingError, InputError
from dspy_qvl.vectors import Vectors, unit


class Truncation:
    """A model's full vectors cut to their first columns and scaled to unit length (Matryoshka truncation).

    Args:
        model: how messages call the model.
        wanted: columns that the caller wants, or None.
        default: columns where the caller wants none, or None for all.
        size: length of a full vector, or None if only the first vector tells.

    Attributes:
        dim: columns that are kept; None until the first vector tells.
        size: length of a full vector; None until the first vector tells.

    Raises:
        InputError: the caller wants more columns than the model has.
    """

    def __init__(self, model: str, wanted: int | None, default: int | None, size: int | None) -> None:
        self.dim = default if wanted is None else wanted
        self.size = size
        self._model, self._wanted = model, wanted
        self._seen = False  # True once a full vector was kept
        if size is not None:
            self._settle(size)

    def check(self, size: int) -> None:
        """Refuse vectors of another length than the first ones had that were kept.

        Raises:
            EmbeddingError: the length changed.
        """
        if self._seen and size != self.size:
            raise EmbeddingError(
                f"{self._model} gave vectors of {self.size} columns before and of {size} now; "
                "one model must give one length, so give another model another name."
            )

    def keep(self, size: int) -> None:
        """Keep vectors of this length, and refuse others from now on.

        Raises:
            EmbeddingError: as `check`.
            InputError: the caller wants more columns.
        """
        self.check(size)
        self.size, self._seen = size, True
        self._settle(size)

    def __call__(self, vectors: Sequence[Vectors]) -> Vectors:
        """Unit vectors of full ones, n of (size,) -> (n, dim).

        Raises:
            EmbeddingError, InputError: as `keep`.
        """
        for size in {len(vector) for vector in vectors}:
            self.keep(size)
        return unit(np.stack([vector[: self.dim] for vector in vectors]))

    def _settle(self, size: int) -> None:
        if self._wanted is not None and self._wanted > size:
            raise InputError(
                f"embedding_dim={self._wanted} is more than {self._model} has ({size}); "
                f"give embedding_dim={size} or less."
            )
        self.dim = min(size, self.dim or size)
