"""What makes of texts the columns that a fit sees."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dspy_qvl.embedding import Embedding
from dspy_qvl.features import Features


@dataclass(frozen=True, eq=False)
class Vectorizer:
    """What makes of texts the columns that a fit sees; shared by copies, replaced as a whole, never changed.

    Attributes:
        settings: what the caller said of it; where that is the default, a loaded file may say otherwise.
        embedding: texts -> unit vectors.
        blocks: texts -> the columns beside them.
    """

    settings: Mapping[str, Any]
    embedding: Embedding
    blocks: Features

    def like(self, identity: Mapping[str, str] | None) -> "Vectorizer":
        """This, or the same with the model of an identity, as far as that was left open (`Embedding.like`)."""
        embedding = self.embedding.like(identity)
        return self if embedding is self.embedding else replace(self, embedding=embedding)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Vectorizer":
        return self
