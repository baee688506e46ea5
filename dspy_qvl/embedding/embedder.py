"""A model behind `dspy.Embedder`: a batch of texts -> a row each, checked, or why there is none.

    texts ─► dspy.Embedder ─► the callable ─► vectors, checked ──────┬─► rows
                                   └─► a failure, in our own words ──┘

What a model gave before it failed is kept: it was paid for. A caller's own model may be asynchronous: it is awaited, on
a loop of its own (`loops.py`).
"""

import contextlib
import copy
import functools
import inspect
from typing import Any

import dspy
import numpy as np
from numpy.typing import NDArray

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
from dspy_qvl.errors import EmbeddingError, ModelUnavailableError, TextsRefusedError, shown
from dspy_qvl.vectors import Truncation, Vectors

NO_VECTOR = (Refused, EmbeddingError)
Row = Vectors | Refused | EmbeddingError


class Model:
    """What is asked of a model, and what its answers are worth.

    Args:
        model: the model.
        truncation: what its vectors are cut to; it knows how long they were so far.
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
        """The full-size vector of each text from the model itself, checked, or why it was refused.

        Raises:
            EmbeddingError: the model failed, or answered wrongly.
        """
        failure: EmbeddingError | None = None
        cause: BaseException | None = None
        try:
            with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
                answer = result_of(self._embedder, texts, batch_size=len(texts), caching=False, **self._model.sent)
        except Exception as error:
            failure, cause = self._failure(error, texts)
            answer = self._left(error, failure, len(texts))
        if answer is None and failure is not None:
            raise failure from cause  # out here, where it has no context: that would hold the frames of a client
        return self._checked(answer, len(texts))

    def _failure(self, error: Exception, texts: list[str]) -> tuple[EmbeddingError, BaseException | None]:
        """What went wrong, in this package's words, and its cause where that holds no secret.

        The frames of a client of litellm hold the key, and those of a model the secrets it was given.
        """
        if isinstance(error, ModelUnavailableError):
            return error, error.__cause__
        holds_secrets = self._model.is_routed or bool(self._model.secrets)
        if isinstance(error, EmbeddingError):
            said = str(error) if self._model.is_served else f"{self.name} failed: {error}"
            told = without_secrets(said, self._model.secrets)
            return EmbeddingError(told), None if holds_secrets or told != said else error.__cause__
        if "inhomogeneous" in str(error)[:1000]:  # numpy's word for it, raised inside dspy.Embedder
            failure = EmbeddingError(f"{self.name} gave vectors of different lengths for one batch.")
            return failure, None if holds_secrets else error
        missing = error.args[0] if isinstance(error, KeyError) and error.args else None
        if isinstance(missing, str) and missing in texts:
            failure = EmbeddingError(
                f"{self.name} has no vector for {shown(missing)}: embedder= must embed any text. For vectors "
                "that exist already, give embedder=Precomputed(texts, vectors)."
            )
            return failure, None if holds_secrets else error
        said = f"{type(error).__name__}: {error}"
        if self._model.is_routed and not (known := failure_of(error, self._model.secrets)).was_refused:
            said = f"{known.what}: {known.reason}"
        told = without_secrets(said, self._model.secrets)
        return EmbeddingError(f"{self.name} failed: {told}"), None if holds_secrets or told != said else error

    def _left(self, error: Exception, failure: EmbeddingError, n_texts: int) -> list[Any] | None:
        """What a failure leaves of a batch: vectors that came before it, and what became of each other text, if any."""
        refused = error.refused if isinstance(error, TextsRefusedError) else {}
        if not isinstance(error, EmbeddingError) or not (error.vectors or refused):
            return None
        told = {row: without_secrets(why, self._model.secrets) for row, why in refused.items()}
        kept: dict[int, Any] = {**dict.fromkeys(range(n_texts), failure), **error.vectors}
        return [Refused(told[row]) if row in told else kept[row] for row in range(n_texts)]

    def _checked(self, answer: Any, n_texts: int) -> list[Row]:
        """The rows of an answer, each a vector of the model's own length or what became of it instead.

        Raises:
            EmbeddingError: the model answered wrongly.
        """
        without: dict[int, Row] = {}
        if isinstance(answer, list):
            without = {row: given for row, given in enumerate(answer) if isinstance(given, NO_VECTOR)}
            answer = [given for given in answer if not isinstance(given, NO_VECTOR)]
        if len(without) == n_texts:
            return list(without.values())
        rows = iter(self._usable(answer, n_texts - len(without)))
        return [without[row] if row in without else next(rows) for row in range(n_texts)]

    def _usable(self, answer: Any, n_texts: int) -> list[Row]:
        """Vectors, and refusals of those without a direction; an answer of nothing else is the model's fault."""
        try:
            vectors = check_vectors(answer, n_texts, self.name)
        except EmbeddingError:
            with np.errstate(over="ignore"), contextlib.suppress(TypeError, ValueError):
                vectors = np.asarray(answer, dtype=np.float32)
                usable = np.asarray(np.isfinite(vectors).all(axis=-1) & vectors.any(axis=-1))
                if vectors.ndim == 2 and len(vectors) == n_texts and usable.any():
                    self._truncation.check(vectors.shape[1])
                    why = Unusable("its vector has NaN or infinity, or is all zeros")
                    return [row if good else why for row, good in zip(vectors, usable, strict=True)]
            raise
        self._truncation.check(vectors.shape[1])
        return list(vectors)


def _is_async(model: Any) -> bool:
    return inspect.iscoroutinefunction(model) or inspect.iscoroutinefunction(type(model).__call__)


def check_vectors(vectors: object, n_texts: int, model: str) -> NDArray[np.float32]:
    """What an embedding model gave for `n_texts` texts, as (n_texts, d) float32.

    Raises:
        EmbeddingError: ragged rows, the wrong count or shape, no columns, NaN or infinity, a zero vector.
    """
    try:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
            array = np.asarray(vectors, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise EmbeddingError(
            f"{model} gave something that is not a table of numbers ({error}); "
            "it must give one vector a text, all of one length."
        ) from None
    if array.ndim != 2 or array.shape[1] == 0:
        raise EmbeddingError(f"{model} gave an array of shape {array.shape}; it must be ({n_texts}, d) with d > 0.")
    if len(array) != n_texts:
        raise EmbeddingError(f"{model} gave {len(array)} vectors for {n_texts} texts; it must give one a text.")
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise EmbeddingError(f"{model} gave NaN or infinity for text {int(np.argmin(finite))} of a batch of {n_texts}.")
    nonzero = array.any(axis=1)
    if not nonzero.all():
        raise EmbeddingError(
            f"{model} gave a vector of zeros for text {int(np.argmin(nonzero))} of a batch of {n_texts}; "
            "a zero vector has no direction to value."
        )
    return array
