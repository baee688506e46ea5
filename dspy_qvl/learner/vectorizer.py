"""The embedding model and the blocks of features that a learner makes its columns with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dspy_qvl.embedding import Embedding, other_model
from dspy_qvl.errors import StateError, shown
from dspy_qvl.features import Features

LEFT_OUT = {"precision": "float32", "long_text": "cut"}  # the values of an identity that does not name them


@dataclass(frozen=True, eq=False)
class Vectorizer:
    """An embedding model and blocks of features; shared by copies, replaced as a whole, never changed.

    Attributes:
        settings: the caller's settings of both; where one is the default, a loaded file may set it.
        embedding: texts -> unit vectors.
        blocks: texts -> the columns beside them.
        batch_size: texts a call of the model, as the caller said, or None for what suits a model.
    """

    settings: Mapping[str, Any]
    embedding: Embedding
    blocks: Features
    batch_size: int | None = None

    def like(self, identity: Mapping[str, str] | None) -> "Vectorizer":
        """This, or the same with the model of an identity, as far as the caller left that open (`Embedding.like`)."""
        embedding = self.embedding.like(identity)
        return self if embedding is self.embedding else replace(self, embedding=embedding)

    def check_model(self, fit: Any) -> None:
        """Refuse a fit of another embedding model; an anonymous model is recognised by its probe vectors alone.

        Args:
            fit: anything with the `identity` and `probe` of its model: a `Fit`, or a reranker's order.

        Raises:
            StateError: the identities differ, or the number of columns.
        """
        embedding, saved = self.embedding, fit.identity
        mine = embedding.identity
        if mine is not None and saved is not None and mine != dict(saved) and not self._is_former(fit):
            differences = ", ".join(
                f"{key}: {shown(saved.get(key, LEFT_OUT.get(key, '')))} saved, "
                f"{shown(mine.get(key, LEFT_OUT.get(key, '')))} here"
                for key in sorted({*mine, *saved})
                if mine.get(key) != saved.get(key)
            )
            raise other_model(differences)
        n_columns = fit.probe.vectors.shape[1]
        if embedding.dim not in (None, n_columns):
            raise other_model(f"embedding_dim {n_columns} saved, {embedding.dim} here")

    def _is_former(self, fit: Any) -> bool:
        """True if version 0.1.0, which wrote less into an identity, fitted with this model: its vectors tell."""
        return self.embedding.former_identity == dict(fit.identity) and self.embedding.meets(fit.probe)

    def check_blocks(self, names: Sequence[str]) -> None:
        """Refuse blocks of features that cannot be made here.

        Raises:
            StateError: a callable of the caller's own is missing.
        """
        missing = self.blocks.missing(names)
        if missing:
            raise StateError(
                f"the value function was fitted with the caller's own features {', '.join(map(repr, missing))}; "
                "give this learner features=[…] with callables of these names."
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> "Vectorizer":
        return self
