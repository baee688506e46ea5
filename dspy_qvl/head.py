"""The fitted part of a value function: a DSPy Parameter, so that DSPy saves, loads and copies it.

It is a Parameter and not a Module (`Module.get_lm` asks every Module parameter for its language model), and
`reset()` keeps the fit: most optimizers begin with `reset_copy()`, which would wipe it.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from dspy.predict.parameter import Parameter
from numpy.typing import NDArray

from dspy_qvl import ridge
from dspy_qvl.embedding import Probe, is_unit
from dspy_qvl.errors import (
    InputError,
    NotFittedError,
    QVLError,
    StateError,
    check_alpha,
    check_metadata,
    check_number,
    check_score,
    check_text,
)
from dspy_qvl.state import SCHEMA, decode_array, encode_array, take
from dspy_qvl.text import RankingExample

Array = NDArray[np.float64]
Vectors = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Fit:
    """One finished fit; replaced as a whole, shared by copies, never changed.

    Attributes:
        line: coefficients (n_features,) and intercept, in the units of the scores.
        identity: what makes the embedding model's vectors its own, or None for an anonymous callable.
        probe: what that model gave for the probe texts.
        vectors: unit vectors of the head's first examples, (n_fitted, dim), or None if they are not kept.
    """

    line: ridge.Linear
    identity: Mapping[str, str] | None
    probe: Probe
    vectors: Vectors | None

    def predict(self, X: ridge.Rows) -> Array:
        """Values of features, (n, n_features) -> (n,), on the scale of the scores.

        Raises:
            InputError: another number of features than the fit has.
        """
        if X.shape[1] != len(self.line.coef):
            raise InputError(
                f"the text has {X.shape[1]} features, but the value function was fitted on {len(self.line.coef)}; "
                "use the embedding model and features it was fitted with, or train again."
            )
        return ridge.predict(X, self.line)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Fit":
        return self


class RidgeHead(Parameter):  # type: ignore[misc]  # dspy ships no types
    """Rated texts, and the ridge fit that came of them.

    Args:
        alpha: penalty of the next fit, > 0, in units of unit vectors squared.
        keep_examples: whether a saved state holds the rated texts.

    Attributes:
        examples: the rated texts, in the order they were added; only ever appended to.
        alpha: penalty of the next fit.
        alpha_tuned: whether cross-validation chose it.
        fitted: the current fit, or None.
    """

    def __init__(self, alpha: float = 1.0, *, keep_examples: bool = True) -> None:
        self.examples: list[RankingExample] = []
        self.alpha = alpha
        self.alpha_tuned = False
        self.keep_examples = keep_examples
        self.fitted: Fit | None = None

    @property
    def coef_(self) -> Array:
        """Coefficients, (n_features,), read-only.

        Raises:
            NotFittedError: nothing was fitted.
        """
        return self.fit_or_refuse().line.coef

    @property
    def intercept_(self) -> float:
        """The value of a zero vector.

        Raises:
            NotFittedError: nothing was fitted.
        """
        return self.fit_or_refuse().line.intercept

    def fit_or_refuse(self) -> Fit:
        """The current fit.

        Raises:
            NotFittedError: nothing was fitted.
        """
        if self.fitted is None:
            raise NotFittedError(
                "nothing was learned yet; add rated texts and call train(), or load a saved value function."
            )
        return self.fitted

    def fit(
        self,
        X: ridge.Rows,
        y: Array,
        alpha: float,
        *,
        identity: Mapping[str, str] | None,
        probe: Probe,
        vectors: Vectors | None = None,
    ) -> Fit:
        """Fit scores on features, and keep the fit and its penalty.

        Args:
            X: features of the first n examples, (n, n_features).
            y: their scores, (n,).
            alpha: penalty, > 0.
            identity: see `Fit`.
            probe: see `Fit`.
            vectors: unit vectors of the same examples, (n, dim), to be kept with the fit.
        """
        line = ridge.fit(X, y, alpha)
        for array in (line.coef, vectors):
            if array is not None:
                array.setflags(write=False)
        fitted = Fit(line, None if identity is None else dict(identity), probe, vectors)
        self.alpha, self.fitted = alpha, fitted
        return fitted

    def predict(self, X: ridge.Rows) -> Array:
        """Values of features, (n, n_features) -> (n,), on the scale of the scores.

        Raises:
            NotFittedError: nothing was fitted.
            InputError: another number of features than the fit has.
        """
        return self.fit_or_refuse().predict(X)

    def unfit(self) -> None:
        """Forget the fit, not the rated texts."""
        self.fitted = None

    def reset(self) -> None:
        """Keep the fit: DSPy resets parameters to start an optimization, and this one is no prompt."""

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """Everything that is saved, as JSON; arrays as base64."""
        examples = {
            "texts": [example.text for example in self.examples],
            "scores": [example.score for example in self.examples],
            "metadata": [copy.deepcopy(example.metadata) for example in self.examples],
        }
        return {
            "schema": SCHEMA,
            "alpha": self.alpha,
            "alpha_tuned": self.alpha_tuned,
            "examples": examples if self.keep_examples else None,
            "fit": None if self.fitted is None else self._dump_fit(self.fitted),
        }

    def _dump_fit(self, fit: Fit) -> dict[str, Any]:
        vectors = fit.vectors if self.keep_examples else None
        return {
            "coef": encode_array(fit.line.coef),
            "intercept": fit.line.intercept,
            "identity": None if fit.identity is None else dict(fit.identity),
            "probe": {"texts": list(fit.probe.texts), "vectors": encode_array(fit.probe.vectors)},
            "vectors": None if vectors is None else encode_array(vectors),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over a dumped state; a state that cannot be used changes nothing.

        Raises:
            StateError: another schema, or anything in it that cannot be used.
        """
        try:
            alpha, tuned, examples, fit = _checked(state)
        except StateError:
            raise
        except QVLError as error:
            raise StateError(f"the saved value function cannot be used: {error}") from error
        self.examples, self.alpha, self.alpha_tuned, self.fitted = examples, alpha, tuned, fit

    def __deepcopy__(self, memo: dict[int, Any]) -> "RidgeHead":
        """A copy with its own list of examples; what the list holds, and the fit, are shared: neither changes."""
        twin = copy.copy(self)
        twin.examples = list(self.examples)
        memo[id(self)] = twin
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled (`save_program=True`, workers): as in a saved file, the rated texts only if they are kept."""
        if self.keep_examples:
            return self.__dict__
        fitted = None if self.fitted is None else replace(self.fitted, vectors=None)
        return {**self.__dict__, "examples": [], "fitted": fitted}

    def __repr__(self) -> str:
        fitted = "not fitted" if self.fitted is None else f"{len(self.coef_)} coefficients"
        return f"RidgeHead({len(self.examples)} rated texts, alpha={self.alpha:g}, {fitted})"


def _checked(state: object) -> tuple[float, bool, list[RankingExample], Fit | None]:
    """The parts of a dumped state, each checked as if a stranger had written it."""
    what = "the saved value function"
    schema = take(state, "schema", int, what)
    if schema != SCHEMA:
        raise StateError(
            f"{what} has schema {schema}, this version of dspy_qvl reads schema {SCHEMA}; "
            "read it with the version that wrote it, or train again."
        )
    alpha = check_alpha(take(state, "alpha", (int, float), what), f"alpha in {what}")
    tuned = take(state, "alpha_tuned", bool, what)
    examples = _checked_examples(take(state, "examples", (Mapping, type(None)), what))
    fit = take(state, "fit", (Mapping, type(None)), what)
    return alpha, tuned, examples, None if fit is None else _checked_fit(fit, len(examples))


def _checked_examples(entry: Mapping[str, Any] | None) -> list[RankingExample]:
    if entry is None:
        return []
    what = "the saved examples"
    texts, scores, metadata = (take(entry, name, list, what) for name in ("texts", "scores", "metadata"))
    if not len(texts) == len(scores) == len(metadata):
        raise StateError(f"{what} have {len(texts)} texts, {len(scores)} scores and {len(metadata)} metadata.")
    return [
        RankingExample(check_text(text), check_score(score, "score"), check_metadata(kept))
        for text, score, kept in zip(texts, scores, metadata, strict=True)
    ]


def _checked_fit(entry: Mapping[str, Any], n_texts: int) -> Fit:
    what = "the saved fit"
    coef = decode_array(take(entry, "coef", Mapping, what), "coef", "float64", (None,))
    intercept = check_number(take(entry, "intercept", (int, float), what), "the saved intercept")
    if len(coef) == 0:
        raise StateError(f"{what} has no coefficients.")
    identity = take(entry, "identity", (Mapping, type(None)), what)
    if identity is not None and not all(type(k) is str and type(v) is str for k, v in identity.items()):
        raise StateError(f"identity in {what} must hold only strings.")
    probe = take(entry, "probe", Mapping, what)
    texts = take(probe, "texts", list, "the saved probe")
    probe_vectors = decode_array(probe.get("vectors"), "the vectors of the probe", "float32", (len(texts), None))
    if not texts or not is_unit(probe_vectors).all():
        raise StateError("the saved probe has no unit vectors; without them another model would go unnoticed.")
    vectors = take(entry, "vectors", (Mapping, type(None)), what)
    kept: Vectors | None = None
    if vectors is not None:
        kept = decode_array(vectors, "the saved vectors", "float32", (None, probe_vectors.shape[1]))
        if len(kept) > n_texts:
            raise StateError(f"{what} has {len(kept)} vectors for {n_texts} texts.")
        if not (is_unit(kept) | ~kept.any(axis=1)).all():
            raise StateError(f"{what} has vectors that are not of unit length.")
    return Fit(
        ridge.Linear(coef, intercept),
        None if identity is None else dict(identity),
        Probe(tuple(check_text(text, "a probe text") for text in texts), probe_vectors),
        kept,
    )
