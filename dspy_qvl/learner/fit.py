"""One finished fit of rated texts: coefficients, what they were learned from, and with which embedding model."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl import ridge
from dspy_qvl.embedding import Probe
from dspy_qvl.features import BUILT_IN, EMBEDDING, Table, packed
from dspy_qvl.fitting import LEVEL, Fitted
from dspy_qvl.learner.groups import Groups, rated_members
from dspy_qvl.learner.memo import Memo
from dspy_qvl.learner.vectorizer import Vectorizer
from dspy_qvl.measures import numbered
from dspy_qvl.text import Item, RankingExample
from dspy_qvl.vectors import Array, Matrix, Vectors

TWENTIETHS = np.linspace(0.0, 1.0, 21)


@dataclass(frozen=True, eq=False)
class Fit:
    """One finished fit; immutable, and shared by copies of a program.

    Attributes:
        fitted: coefficients (n_features,) and intercept, in the units of the scores, and the blocks they are of.
        identity: the settings that make the embedding model's vectors comparable; None for an anonymous callable.
        probe: the vectors of that model for the probe texts.
        alpha: its penalty.
        rated: the rated texts it was learned from, the first ones of the head's; none if they were not kept.
        quantiles: of their scores, ascending, (21,): the lowest, each twentieth, the highest.
        vectors: their unit vectors, (dim,) each, or None if they are not kept.
        own: their rows of each block that is the caller's own: (k,) each, or `packed` ones of a sparse block.
        queried: unit vectors of their queries, (dim,) each, by query; None if texts were rated by themselves.
        paired: whether a text is valued for a query.
        permutation_p: p-value of the permutation test when it was last trained; None without a test.
        groups: those that training was given; None where every text is one of its own.
        memo: results computed from the fit; not saved.
        vectorizer: makes the columns of texts, once it is known that the fit belongs to it; not saved.
    """

    fitted: Fitted
    identity: Mapping[str, str] | None
    probe: Probe
    alpha: float
    rated: tuple[RankingExample, ...]
    quantiles: Array
    vectors: tuple[Vectors, ...] | None
    own: Mapping[str, tuple[Vectors, ...]] = field(default_factory=dict)
    queried: Mapping[str, Vectors] | None = None
    paired: bool = False
    permutation_p: float | None = None
    groups: Groups | None = None
    memo: Memo = field(default_factory=Memo)
    vectorizer: Vectorizer | None = None

    @property
    def n_texts(self) -> int:
        """Number of rated texts it was learned from, or 0 if they were not kept."""
        return len(self.rated)

    @property
    def texts(self) -> list[str]:
        """The texts of `rated`."""
        return [example.text for example in self.rated]

    @property
    def items(self) -> list[Item]:
        """The rated texts, each with its query if it has one."""
        return [example.item for example in self.rated]

    @property
    def scores(self) -> Array:
        """The scores of `rated`, (n_texts,)."""
        return np.array([example.score for example in self.rated], dtype=np.float64)

    @property
    def members(self) -> NDArray[np.intp]:
        """The number of each rated text's group, (n_texts,), from 0: those of one are left out together."""

        def make() -> NDArray[np.intp]:
            numbers = numbered(rated_members(self.rated, self.vectors, self.groups))
            numbers.setflags(write=False)
            return numbers

        return self.memo.once("members", make)

    @property
    def digest(self) -> str:
        """Hash of the coefficients."""
        return self.memo.once("digest", lambda: hashlib.blake2b(self.line.coef.tobytes(), digest_size=16).hexdigest())

    @property
    def line(self) -> ridge.Linear:
        """Coefficients and intercept."""
        return self.fitted.line

    @property
    def is_noise(self) -> bool:
        """True if the permutation test could not tell it from a fit to shuffled ratings."""
        return self.permutation_p is not None and self.permutation_p > LEVEL

    @property
    def blocks(self) -> tuple[str, ...]:
        """The names of the blocks, the first of them the embedding or what stands in its place."""
        return self.fitted.blocks.names

    def remember(self, rows: Iterable[int] | None = None) -> None:
        """Keep the saved columns of its texts, or of some rows, in memory, so that they are not computed again."""
        if self.vectorizer is None:
            return
        blocks, chosen = self.fitted.blocks, list(range(self.n_texts) if rows is None else rows)
        texts = [self.rated[row].text for row in chosen]
        embedding = self.vectorizer.embedding
        if self.vectors is not None:
            encoder = embedding.encoder(instruct=not self.paired)
            encoder.remember(texts, [self.vectors[row] for row in chosen])
        if self.queried is not None:
            asked = dict.fromkeys(self.rated[row].query for row in chosen)
            known = {query: vector for query, vector in self.queried.items() if query in asked}
            embedding.encoder().remember(list(known), list(known.values()))
        own = {name: [kept[row] for row in chosen] for name, kept in self.own.items()}
        self.vectorizer.blocks.remember(texts, own, blocks)

    def predict(self, X: Matrix) -> Array:
        """Values of features, (n, n_features) -> (n,), on the scale of the scores; `Columns` sees that they are its."""
        return ridge.predict(self.fitted.within(X), self.line)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Fit":
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "vectorizer": None}  # in another process its vectors are not in memory yet


def own_rows(table: Table) -> dict[str, tuple[Vectors, ...]]:
    """The rows of the caller's own blocks by name, (k,) each, or `packed` ones of a sparse block; read-only."""
    own = {}
    for name, columns in table.columns.items():
        if name not in (EMBEDDING, *BUILT_IN):
            rows = packed(columns) if name in table.blocks.sparse else columns.copy()
            own[name] = tuple(rows)
            for row in own[name]:
                row.setflags(write=False)
    return own


def quantiles(scores: Sequence[float] | Array) -> Array:
    """The lowest score, each twentieth of them, the highest, (21,)."""
    twentieths: Array = np.quantile(np.asarray(scores, dtype=np.float64), TWENTIETHS)
    return twentieths
