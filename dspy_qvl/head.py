"""The fitted part of a value function: a DSPy Parameter, so that DSPy saves, loads and copies it.

It is a Parameter and not a Module (`Module.get_lm` asks every Module parameter for its language model), and
`reset()` keeps the fit: most optimizers begin with `reset_copy()`, which would wipe it.
"""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from dspy.predict.parameter import Parameter
from numpy.typing import NDArray

from dspy_qvl import ridge
from dspy_qvl.embedding import Probe
from dspy_qvl.errors import NotFittedError, QVLError, StateError
from dspy_qvl.fit import Fit, checked, dumped, quantiles
from dspy_qvl.moments import Rows, gather, rough_mean
from dspy_qvl.recursive import RecursiveKernelRidge, RecursiveRidge
from dspy_qvl.sharing import Memo
from dspy_qvl.state import SCHEMA, sealed
from dspy_qvl.text import RankingExample
from dspy_qvl.tuning import Fitted

Array = NDArray[np.float64]
Vectors = NDArray[np.float32]
FeaturesOf = Callable[[Sequence[RankingExample]], Rows]
Running = RecursiveRidge | RecursiveKernelRidge

FAR_OUT = 100.0  # times the spread of the other scores: a slip of the pen, to be forgotten without a trace
KERNEL_AT_MOST = 4000  # examples whose kernel and its inverse, n^2 float64 each, are kept for updates


class RidgeHead(Parameter):  # type: ignore[misc]  # dspy ships no types
    """Rated texts, and the ridge fit that came of them.

    Args:
        alpha: penalty of the next fit, > 0, in units of unit vectors squared.
        keep_examples: whether a saved state holds the rated texts.

    Attributes:
        examples: the rated texts, in the order they were added; only ever appended to.
        alpha: penalty of the next fit.
        alpha_tuned: whether cross-validation chose it.
        template: how the rated texts were rendered from examples, if a field or a format string says so (`FitValue`).
        query_template: the same of their queries.
        weights: of the blocks of the next fit, by name, if cross-validation chose them with alpha; else None.
        fitted: the current fit, or None.
    """

    def __init__(self, alpha: float = 1.0, *, keep_examples: bool = True) -> None:
        self.examples: list[RankingExample] = []
        self.alpha = alpha
        self.alpha_tuned = False
        self.weights: dict[str, float] | None = None
        self.template: str | None = None
        self.query_template: str | None = None
        self.keep_examples = keep_examples
        self.fitted: Fit | None = None
        self._running: tuple[Fit, Running] | None = None  # of the current fit, once it was updated

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
        return float(self.fit_or_refuse().line.intercept)

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

    def adopt(
        self,
        fitted: Fitted,
        alpha: float,
        *,
        n_texts: int,
        identity: Mapping[str, str] | None,
        probe: Probe,
        vectors: Vectors | None = None,
        own: Mapping[str, Vectors] | None = None,
        queried: Mapping[str, Vectors] | None = None,
        permutation_p: float | None = None,
    ) -> Fit:
        """Keep a fit, and its penalty.

        Args:
            fitted: the fit.
            alpha: its penalty, > 0.
            n_texts: how many of the first examples it was learned from.
            identity: see `Fit`.
            probe: see `Fit`.
            vectors: unit vectors of the same examples, (n_texts, dim), to be kept with the fit.
            own: see `Fit`.
            queried: see `Fit`; None where texts were rated without a query.
            permutation_p: see `Fit`.
        """
        for array in (fitted.line.coef, vectors, *(own or {}).values()):
            if array is not None:
                array.setflags(write=False)
        fit = Fit(
            fitted,
            None if identity is None else dict(identity),
            probe,
            alpha,
            tuple(self.examples[:n_texts]),
            quantiles(_scores(self.examples[:n_texts])),
            None if vectors is None else tuple(vectors),
            {name: tuple(rows) for name, rows in (own or {}).items()},
            queried,
            queried is not None,
            permutation_p,
        )
        self.alpha, self.fitted = alpha, fit
        return fit

    def update(
        self,
        arriving: Sequence[RankingExample],
        vectors: Vectors | None,
        features: FeaturesOf,
        queried: Mapping[str, Vectors] | None = None,
    ) -> None:
        """Learn from further examples: the fit that all of them from scratch would give, with the same penalty.

        Args:
            arriving: the examples; they take the place of those that wait for the next fit.
            vectors: their unit vectors, (m, dim), if the fit keeps vectors.
            features: gives the features of examples, (n, n_features).
            queried: vectors of their queries.
        """
        fit = self.fit_or_refuse()
        learned = fit.rated
        fitted, running = self._changed(fit, learned, arriving, (), features)
        kept = None if fit.vectors is None or vectors is None else (*fit.vectors, *vectors)
        columns = fit.own_columns(features(arriving)) if fit.own else {}
        self.examples = [*learned, *arriving]
        self.fitted = replace(
            fit,
            fitted=fitted,
            rated=tuple(self.examples),
            quantiles=quantiles(_scores(self.examples)),
            vectors=kept,
            own={name: (*rows, *columns[name]) for name, rows in fit.own.items()},
            queried=None if fit.queried is None else {**fit.queried, **(queried or {})},
            memo=Memo(),
        )
        self._running = None if running is None else (self.fitted, running)

    def forget(self, rows: Collection[int], features: FeaturesOf) -> None:
        """Take back what some examples taught: the fit that the others from scratch would give, same penalty.

        Where fewer than two different scores are left there is nothing to fit, and the fit is forgotten as well.

        Args:
            rows: their positions among the examples.
            features: gives the features of examples, (n, n_features).
        """
        fit = self.fit_or_refuse()
        left = [row for row in range(fit.n_texts) if row not in rows]
        leaving = [self.examples[row] for row in range(fit.n_texts) if row in rows]
        staying = [self.examples[row] for row in left]
        others = [example for row, example in enumerate(self.examples) if row not in rows]
        if len({example.score for example in staying}) < 2:
            self.examples, self.fitted, self._running = others, None, None
            return
        if leaving:
            fitted, running = self._changed(fit, staying, (), leaving, features)
            kept = None if fit.vectors is None else tuple(fit.vectors[row] for row in left)
            fit = replace(
                fit,
                fitted=fitted,
                rated=tuple(staying),
                quantiles=quantiles(_scores(staying)),
                vectors=kept,
                own={name: tuple(rows[row] for row in left) for name, rows in fit.own.items()},
                queried=_still_asked(fit.queried, staying),
                memo=Memo(),
            )
            self._running = None if running is None else (fit, running)
        self.examples, self.fitted = others, fit

    def _changed(
        self,
        fit: Fit,
        staying: Sequence[RankingExample],
        coming: Sequence[RankingExample],
        leaving: Sequence[RankingExample],
        features: FeaturesOf,
    ) -> tuple[Fitted, Running | None]:
        """The fit with some examples more or fewer, and what will take in the next ones as fast.

        Where both examples and features are many, a fit from scratch is the better way, and there is no such thing.
        """
        weighed = fit.fitted.weighed
        n, d = len(staying) + len(leaving), len(fit.line.coef)
        if KERNEL_AT_MOST < n <= d:
            everything = [*staying, *coming]
            plain = fit.fitted.plain(ridge.fit(weighed(features(everything)), _scores(everything), fit.alpha))
            plain.coef.setflags(write=False)
            return replace(fit.fitted, line=plain), None
        if _drowned(staying, leaving):
            self._running, leaving = None, ()
        moving = weighed(features([*coming, *leaving]))
        running = self._running[1] if self._running is not None and self._running[0] is fit else None
        if running is None or (n > d and isinstance(running, RecursiveKernelRidge)):
            X, y = weighed(features([*staying, *leaving])), _scores([*staying, *leaving])[:, None]
            if len(X) > d:
                (moments,) = gather(X, y, rough_mean(X, y))
                running = RecursiveRidge(moments, fit.alpha)
            else:
                running = RecursiveKernelRidge(X, y, fit.alpha)
        self._running = None  # until all rows are in, it belongs to no fit
        for x, example in zip(moving, coming, strict=False):
            running.add(x, np.array([example.score]))
        for x, example in zip(moving[len(coming) :], leaving, strict=True):
            running.remove(x, np.array([example.score]))
        line = running.line
        plain = fit.fitted.plain(ridge.Linear(line.coef[:, 0], line.intercept[0]))
        plain.coef.setflags(write=False)
        return replace(fit.fitted, line=plain), running

    def predict(self, X: Rows) -> Array:
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
        """Everything that is saved, as DSPy saves it: the rated texts and the fit are one entry each (`Sealed`)."""
        state, fit = self.content(), self.fitted
        state["examples"] = sealed(state["examples"], f"{len(self.examples)} rated texts")
        state["fit"] = sealed(
            state["fit"], "" if fit is None else f"{len(fit.line.coef)} coefficients, alpha {fit.alpha:g}"
        )
        return state

    def content(self) -> dict[str, Any]:
        """Everything that is saved, as JSON; arrays as base64."""
        examples = {
            "texts": [example.text for example in self.examples],
            "scores": [example.score for example in self.examples],
            "metadata": [copy.deepcopy(example.metadata) for example in self.examples],
            "queries": [example.query for example in self.examples],
        }
        return {
            "schema": SCHEMA,
            "alpha": self.alpha,
            "alpha_tuned": self.alpha_tuned,
            "weights": self.weights,
            "template": self.template,
            "query_template": self.query_template,
            "examples": examples if self.keep_examples else None,
            "fit": None if self.fitted is None else dumped(self.fitted, keep_examples=self.keep_examples),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over a dumped state; a state that cannot be used changes nothing.

        Raises:
            StateError: another schema, or anything in it that cannot be used.
        """
        try:
            alpha, tuned, weights, templates, examples, fit = checked(state)
        except StateError:
            raise
        except QVLError as error:
            raise StateError(f"the saved value function cannot be used: {error}") from error
        self.examples, self.alpha, self.alpha_tuned, self.weights = examples, alpha, tuned, weights
        self.template, self.query_template = templates
        self.fitted, self._running = fit, None

    def __deepcopy__(self, memo: dict[int, Any]) -> "RidgeHead":
        """A copy with its own list of examples; what the list holds, and the fit, are shared: neither changes."""
        twin = type(self).__new__(type(self))  # not copy.copy, which leaves out what a pickle does
        twin.__dict__.update(self.__dict__)
        twin.examples = list(self.examples)
        twin._running = None  # it changes in place
        memo[id(self)] = twin
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled (`save_program=True`, workers): as in a saved file, the rated texts only if they are kept."""
        state = {**self.__dict__, "_running": None}
        if self.keep_examples:
            return state
        fitted = None if self.fitted is None else replace(self.fitted, rated=(), vectors=None, own={}, queried=None)
        return {**state, "examples": [], "fitted": fitted}

    def __repr__(self) -> str:
        fitted = "not fitted" if self.fitted is None else f"{len(self.coef_)} coefficients"
        return f"RidgeHead({len(self.examples)} rated texts, alpha={self.alpha:g}, {fitted})"


def _still_asked(
    queried: Mapping[str, Vectors] | None, staying: Sequence[RankingExample]
) -> Mapping[str, Vectors] | None:
    """The vectors of queries that some example still has."""
    asked = {example.query for example in staying}
    return None if queried is None else {query: vector for query, vector in queried.items() if query in asked}


def _drowned(staying: Sequence[RankingExample], leaving: Sequence[RankingExample]) -> bool:
    """Whether a leaving score is so far out that sums have lost digits of the others."""
    y = _scores(staying)
    spread = np.abs(y - y.mean()).max()
    return bool((np.abs(_scores(leaving) - y.mean()) > FAR_OUT * spread).any())


def _scores(examples: Sequence[RankingExample]) -> Array:
    return np.array([example.score for example in examples], dtype=np.float64)
