"""A model behind `dspy.Embedder`: a batch of texts -> a row for each, checked.

    texts ─► dspy.Embedder ─► the callable ─► vectors ────────────────────────────────┬─► checked ─► rows
                                   └─► an exception: vectors received, texts refused ─┘

A row is a vector, a `Refused` text with the reason, or the error that left the text without either. Vectors that a
model gave before it failed are kept: they were paid for. A caller's own model may be asynchronous: it is awaited, on a
loop of its own (`loops.py`).
"""

import copy
import functools
import inspect
from typing import Any

import dspy
import numpy as np

from dspy_qvl.embedding.loops import result_of
from dspy_qvl.embedding.models import (
    EmbeddingModel,
    Refused,
    Unusable,
    ask_for_embedder,
    failure_of,
    is_plain_route,
    without_secrets,
)
from dspy_qvl.embedding.truncation import Truncation
from dspy_qvl.errors import EmbeddingError, ModelUnavailableError, TextsRefusedError, shown
from dspy_qvl.vectors import Vectors

NO_VECTOR = (Refused, EmbeddingError)
Row = Vectors | Refused | EmbeddingError


class CheckedModel:
    """Asks one model for the vectors of a batch, and validates its answer.

    Args:
        model: the model.
        truncation: the columns that are kept of its vectors; it knows their full length so far.
    """

    def __init__(self, model: EmbeddingModel, truncation: Truncation) -> None:
        self.name = model.name
        self._model = model
        self._truncation = truncation
        # DSPy's own cache is keyed by batch and by a callable's source: two models would share vectors,
        # see test_two_models_never_share_a_vector.
        embed: Any = model.embed
        if not isinstance(embed, dspy.Embedder):
            embed = dspy.Embedder(functools.partial(result_of, embed), caching=False)
        elif is_plain_route(embed):
            embed = copy.copy(embed)
            embed.model = functools.partial(ask_for_embedder, embed.model)
        elif not isinstance(embed.model, str) and (type(embed) is dspy.Embedder or _is_async(embed.model)):
            embed = copy.copy(embed)  # DSPy calls a model and does not await it
            embed.model = functools.partial(result_of, embed.model)
        self._embedder = embed

    def __call__(self, texts: list[str]) -> list[Row]:
        """The row of each text; vectors are of full size, (d,).

        Raises:
            EmbeddingError: the model failed before it gave a vector or refused a text, or it answered wrongly.
        """
        failure: EmbeddingError | None = None
        cause: BaseException | None = None
        vectors: dict[int, Vectors] = {}
        refused: dict[int, Row] = {}
        try:
            with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
                answer = result_of(self._embedder, texts, batch_size=len(texts), caching=False, **self._model.sent)
        except Exception as error:
            failure, cause = self._failure(error, texts)
            if isinstance(error, EmbeddingError):
                vectors = error.vectors
            if isinstance(error, TextsRefusedError):
                told = {row: without_secrets(why, self._model.secrets) for row, why in error.refused.items()}
                refused = {row: Refused(why) for row, why in told.items()}
        if failure is None:
            return self._checked(answer, len(texts))
        if not (vectors or refused):
            raise failure from cause  # out here, where it has no context: that would hold the frames of a client
        received = [row for row in vectors if row not in refused]
        checked = self._checked([vectors[row] for row in received], len(received)) if received else []
        rows = dict(zip(received, checked, strict=True)) | refused
        return [rows.get(row, failure) for row in range(len(texts))]

    def _failure(self, error: Exception, texts: list[str]) -> tuple[EmbeddingError, BaseException | None]:
        """The failure in this package's words, and its cause where that holds no secret.

        The frames of a client of litellm hold the key, and those of a model the secrets it was given.
        """
        cause: BaseException | None = error
        if isinstance(error, ModelUnavailableError):
            return error, error.__cause__
        if isinstance(error, EmbeddingError):
            said, cause = str(error) if self._model.is_served else f"{self.name} failed: {error}", error.__cause__
        elif "inhomogeneous" in str(error)[:1000]:  # numpy's word for it, raised inside dspy.Embedder
            said = f"{self.name} gave vectors of different lengths for one batch."
        elif isinstance(error, KeyError) and isinstance(text := next(iter(error.args), None), str) and text in texts:
            said = (
                f"{self.name} has no vector for {shown(text)}: embedder= must embed any text. For vectors "
                "that exist already, give embedder=Precomputed(texts, vectors)."
            )
        elif self._model.is_routed and not (known := failure_of(error, self._model.secrets)).was_refused:
            said = f"{self.name} failed: {known.what}: {known.reason}"
        else:
            said = f"{self.name} failed: {type(error).__name__}: {error}"
        told = without_secrets(said, self._model.secrets)
        holds_secrets = self._model.is_routed or bool(self._model.secrets) or told != said
        return EmbeddingError(told), None if holds_secrets else cause

    def _checked(self, answer: Any, n_texts: int) -> list[Row]:
        """The vectors of an answer, each of the model's own length; one without a direction is refused, or blank.

        Raises:
            EmbeddingError: ragged rows, the wrong count or shape, no columns, no row with a direction, or another
                length than before.
        """
        try:
            with np.errstate(over="ignore"):  # as above
                table = np.asarray(answer, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise EmbeddingError(
                f"{self.name} gave something that is not a table of numbers ({error}); "
                "it must give one vector a text, all of one length."
            ) from None
        if table.ndim != 2 or table.shape[1] == 0:
            raise EmbeddingError(
                f"{self.name} gave an array of shape {table.shape}; it must be ({n_texts}, d) with d > 0."
            )
        if len(table) != n_texts:
            raise EmbeddingError(f"{self.name} gave {len(table)} vectors for {n_texts} texts; it must give one a text.")
        finite = np.isfinite(table).all(axis=1)
        nonzero = np.ones(len(table), dtype=np.bool_) if self._model.zero_is_blank else table.any(axis=1)
        usable = np.asarray(finite & nonzero)
        if not finite.all() and not usable.any():
            row = int(np.argmin(finite))
            raise EmbeddingError(f"{self.name} gave NaN or infinity for text {row} of a batch of {n_texts}.")
        if not usable.any():
            raise EmbeddingError(
                f"{self.name} gave a vector of zeros for text 0 of a batch of {n_texts}; "
                "a zero vector has no direction to value."
            )
        self._truncation.check(table.shape[1])
        why = Unusable("its vector has NaN or infinity, or is all zeros")
        return [vector if good else why for vector, good in zip(table, usable, strict=True)]


def _is_async(model: Any) -> bool:
    return inspect.iscoroutinefunction(model) or inspect.iscoroutinefunction(type(model).__call__)
