"""Document frequencies of hashed words: a word that stands in every text says less than one that is rare.

    idf_j = log((1 + n) / (1 + df_j)) + 1,      n rated texts, of which df_j have anything in column j

Finite for columns that no rated text has. A column is multiplied with idf^power after the row got its unit length, so
it is a factor like the weight of a block: the fit over plain columns has it in its coefficients. Frequencies come from
the rows that are learned from and stand still in folds and updates.

Source: Manning, Raghavan & Schütze (2008), Introduction to Information Retrieval, 6.2; smoothed as in scikit-learn.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.vectors import Array


@dataclass(frozen=True, eq=False)
class Frequencies:
    """Document frequencies of the columns of the block "lexical", and the power that their inverses are raised to.

    Attributes:
        n_texts: the number of texts that were counted.
        counts: how many of them have anything in each column, (width,) int32.
        power: 0 for no inverse document frequencies, 1 for the usual ones.
    """

    n_texts: int
    counts: NDArray[np.int32]
    power: float = 1.0

    @classmethod
    def of(cls, rows: Any) -> "Frequencies":
        """The frequencies in a scipy CSR matrix, (n, width)."""
        counts = np.bincount(rows.indices, minlength=rows.shape[1]).astype(np.int32)
        counts.setflags(write=False)
        return cls(rows.shape[0], counts)

    def __getstate__(self) -> dict[str, Any]:
        return {name: part for name, part in self.__dict__.items() if name != "factors"}

    @cached_property
    def factors(self) -> Array:
        """idf^power of each column, (width,)."""
        factors: Array = (np.log((1 + self.n_texts) / (1.0 + self.counts)) + 1) ** self.power
        return factors
