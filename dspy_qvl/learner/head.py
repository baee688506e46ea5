"""The learned part of a value function: a DSPy Parameter, so that DSPy saves, loads and copies it.

It is a Parameter and not a Module (`Module.get_lm` asks every Module parameter for its language model), and
`reset()` keeps the fit: most optimizers begin with `reset_copy()`, which would wipe it.

    now ─► what is learned at this moment (`learned.py`), read by anybody at any time
    changing ─► held by whoever makes the next one; then `now` is that, in one step

So a program is saved, copied and valued from one moment, whatever other threads teach it, and a change that is
interrupted has happened or has not.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import numpy as np
from dspy.predict.parameter import Parameter

from dspy_qvl import ridge
from dspy_qvl.embedding import Probe
from dspy_qvl.errors import InputError
from dspy_qvl.fitting import Fitted
from dspy_qvl.learner.fit import Fit, quantiles
from dspy_qvl.learner.fit_state import dumped, read
from dspy_qvl.learner.learned import Examples, Learned
from dspy_qvl.learner.memo import Lock, Memo
from dspy_qvl.learner.vectorizer import Vectorizer
from dspy_qvl.ridge import RecursiveKernelRidge, RecursiveRidge, begin
from dspy_qvl.state import sealed
from dspy_qvl.text import RankingExample
from dspy_qvl.vectors import Array, Rows, Vectors

FeaturesOf = Callable[[Sequence[RankingExample]], Rows]
Running = RecursiveRidge | RecursiveKernelRidge
T = TypeVar("T")


class Part(Generic[T]):
    """An attribute that is a part of what is learned: to set it changes that part alone."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, head: "RidgeHead", owner: type | None = None) -> T:
        part: T = getattr(head.now, self.name)
        return part

    def __set__(self, head: "RidgeHead", part: T) -> None:
        head.put(**{self.name: part})


class RidgeHead(Parameter):  # type: ignore[misc]  # dspy ships no types
    """Rated texts, and the ridge fit that came of them.

    Args:
        alpha: penalty of the next fit, > 0, in units of unit vectors squared.
        keep_examples: whether a saved state holds the rated texts.

    Attributes:
        now: what is learned at this moment; the attributes below are parts of it.
        changing: held by who changes it, from reading `now` to `swap`.
    """

    alpha = Part[float]()
    alpha_tuned = Part[bool]()
    weights = Part[Mapping[str, float] | None]()
    template = Part[str | None]()
    query_template = Part[str | None]()

    def __init__(self, alpha: float = 1.0, *, keep_examples: bool = True) -> None:
        self.keep_examples = keep_examples
        self.now = Learned(alpha=alpha)
        self.changing = Lock()
        self._running: tuple[Fit, Running] | None = None  # of the current fit, once it was updated

    @property
    def examples(self) -> tuple[RankingExample, ...]:
        """The rated texts, in the order they were added; where others take the place of the fit's, it is forgotten."""
        return tuple(self.now.examples)

    @examples.setter
    def examples(self, examples: Iterable[RankingExample]) -> None:
        others = Examples(examples)
        with self.changing.held:
            fit = self.now.fitted
            self.put(examples=others, fitted=fit if fit is None or _begin_with(others, fit.rated) else None)

    @property
    def fitted(self) -> Fit | None:
        """The current fit, or None; one that is put here brings the texts it was learned from."""
        return self.now.fitted

    @fitted.setter
    def fitted(self, fit: Fit | None) -> None:
        with self.changing.held:
            if fit is None or _begin_with(self.now.examples, fit.rated):
                self.put(fitted=fit)
            else:
                self.put(examples=Examples(fit.rated), fitted=fit)

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
        return self.now.fit_or_refuse()

    # Changes

    def put(self, **parts: Any) -> None:
        """Change some parts of what is learned, together."""
        with self.changing.held:
            self.now = replace(self.now, **parts)

    def swap(self, before: Learned, after: Learned) -> None:
        """Put what was made of `before` in its place; `changing` is held since that was read.

        Raises:
            InputError: the call that made it changed the value function from within.
        """
        if self.now is not before:
            raise InputError(
                "the value function was changed by the embedding model or a feature that it asked while it learned; "
                "that change stands, but what was being learned is dropped. Let neither change the learner."
            )
        self.now = after

    def take_over(self, learned: Learned) -> None:
        """Forget what was learned here for something else."""
        with self.changing.held:
            self.now, self._running = learned, None

    def extend(self, added: Sequence[RankingExample]) -> int:
        """Add rated texts, for the next fit; returns how many there are now."""
        with self.changing.held:
            examples = self.now.examples.plus(added)
            self.put(examples=examples)
        return len(examples)

    def adopt(
        self,
        before: Learned,
        fitted: Fitted,
        alpha: float,
        *,
        identity: Mapping[str, str] | None,
        probe: Probe,
        vectors: Vectors | None = None,
        own: Mapping[str, Vectors] | None = None,
        queried: Mapping[str, Vectors] | None = None,
        permutation_p: float | None = None,
        made_by: Vectorizer | None = None,
        **parts: Any,
    ) -> None:
        """Keep a fit of all rated texts, and its penalty.

        Args:
            before: what was learned from.
            fitted: the fit.
            alpha: its penalty, > 0.
            identity: see `Fit`.
            probe: see `Fit`.
            vectors: unit vectors of the rated texts, (n_texts, dim), to be kept with the fit.
            own: see `Fit`.
            queried: see `Fit`; None where texts were rated without a query.
            permutation_p: see `Fit`.
            made_by: what made its columns, `Fit.vectorizer`.
            parts: what else changes.
        """
        for array in (fitted.line.coef, vectors, *(own or {}).values()):
            if array is not None:
                array.setflags(write=False)
        rated = tuple(before.examples)
        fit = Fit(
            fitted,
            None if identity is None else dict(identity),
            probe,
            alpha,
            rated,
            quantiles(_scores(rated)),
            None if vectors is None else tuple(vectors),
            {name: tuple(rows) for name, rows in (own or {}).items()},
            queried,
            queried is not None,
            permutation_p,
            vectorizer=made_by,
        )
        self.swap(before, replace(before, alpha=alpha, fitted=fit, **parts))

    def update(
        self,
        before: Learned,
        fit: Fit,
        arriving: Sequence[RankingExample],
        vectors: Vectors | None,
        features: FeaturesOf,
        queried: Mapping[str, Vectors] | None = None,
        **parts: Any,
    ) -> None:
        """Learn from further examples: the fit that all of them from scratch would give, with the same penalty.

        Args:
            before: what was learned so far.
            fit: its fit.
            arriving: the examples; they take the place of those that wait for the next fit.
            vectors: their unit vectors, (m, dim), if the fit keeps vectors.
            features: gives the features of examples, (n, n_features).
            queried: vectors of their queries.
            parts: what else changes.
        """
        rated = (*fit.rated, *arriving)
        fitted, running = self._changed(fit, rated, arriving, (), features)
        columns = fit.own_columns(features(arriving)) if fit.own else {}
        after = _learned_from(
            fit,
            rated,
            fitted=fitted,
            vectors=None if fit.vectors is None or vectors is None else (*fit.vectors, *vectors),
            own={name: (*rows, *columns[name]) for name, rows in fit.own.items()},
            queried=None if fit.queried is None else {**fit.queried, **(queried or {})},
        )
        self.swap(before, replace(before, examples=Examples(rated), fitted=after, **parts))
        self._running = None if running is None else (after, running)

    def forget(self, before: Learned, fit: Fit, rows: Collection[int], features: FeaturesOf, **parts: Any) -> None:
        """Take back what some examples taught: the fit that the others from scratch would give, same penalty.

        Where fewer than two different scores are left there is nothing to fit, and the fit is forgotten as well.

        Args:
            before: what was learned so far.
            fit: its fit.
            rows: their positions among the examples; the fit has learned some of them.
            features: gives the features of examples, (n, n_features).
            parts: what else changes.
        """
        left = [row for row in range(fit.n_texts) if row not in rows]
        leaving = [fit.rated[row] for row in range(fit.n_texts) if row in rows]
        staying = tuple(fit.rated[row] for row in left)
        others = before.examples.without(rows)
        if len({example.score for example in staying}) < 2:
            self.swap(before, replace(before, examples=others, fitted=None, **parts))
            self._running = None
            return
        fitted, running = self._changed(fit, staying, (), leaving, features)
        after = _learned_from(
            fit,
            staying,
            fitted=fitted,
            vectors=None if fit.vectors is None else tuple(fit.vectors[row] for row in left),
            own={name: tuple(kept[row] for row in left) for name, kept in fit.own.items()},
            queried=_still_asked(fit.queried, staying),
        )
        self.swap(before, replace(before, examples=others, fitted=after, **parts))
        self._running = None if running is None else (after, running)

    def _changed(
        self,
        fit: Fit,
        rated: Sequence[RankingExample],
        coming: Sequence[RankingExample],
        leaving: Sequence[RankingExample],
        features: FeaturesOf,
    ) -> tuple[Fitted, Running | None]:
        """The fit of `rated`, and what will take in the next changes as fast.

        Args:
            fit: the current fit.
            rated: all its examples but for those that leave, and with those that come.
            coming: the last of them.
            leaving: others that the fit has.
            features: gives the features of examples, (n, n_features).
        """
        running = self._run(fit, rated, coming, leaving, features)
        if running is None:
            X, y = fit.fitted.weighed(features(rated)), _scores(rated)
            running = begin(X, y[:, None], fit.alpha)
        if running is None:
            line = ridge.fit(X, y, fit.alpha)
        else:
            coef, intercept = running.line
            line = ridge.Linear(coef[:, 0], intercept[0])
        plain = fit.fitted.plain(line)
        plain.coef.setflags(write=False)
        return replace(fit.fitted, line=plain), running

    def _run(
        self,
        fit: Fit,
        rated: Sequence[RankingExample],
        coming: Sequence[RankingExample],
        leaving: Sequence[RankingExample],
        features: FeaturesOf,
    ) -> Running | None:
        """What the last update left behind, with this change; None where it is better to begin anew."""
        if self._running is None or self._running[0] is not fit or not self._running[1].suits(len(rated)):
            return None
        moving = fit.fitted.weighed(features([*coming, *leaving]))
        running, self._running = self._running[1], None  # until all rows are in, it belongs to no fit
        for x, example in zip(moving, coming, strict=False):
            running.add(x, np.array([example.score]))
        for x, example in zip(moving[len(coming) :], leaving, strict=True):
            running.remove(x, np.array([example.score]))
        return None if running.worn else running

    def predict(self, X: Rows) -> Array:
        """Values of features, (n, n_features) -> (n,), on the scale of the scores.

        Raises:
            NotFittedError: nothing was fitted.
            InputError: another number of features than the fit has.
        """
        return self.fit_or_refuse().predict(X)

    def unfit(self) -> None:
        """Forget the fit, not the rated texts."""
        self.put(fitted=None)

    def reset(self) -> None:
        """Keep the fit: DSPy resets parameters to start an optimization, and this one is no prompt."""

    # Copies

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """Everything that is saved, as DSPy saves it: the rated texts and the fit are one entry each (`Sealed`)."""
        now = self.now
        state, fit = dumped(now, keep_examples=self.keep_examples), now.fitted
        state["examples"] = sealed(state["examples"], f"{len(now.examples)} rated texts")
        state["fit"] = sealed(
            state["fit"], "" if fit is None else f"{len(fit.line.coef)} coefficients, alpha {fit.alpha:g}"
        )
        return state

    def content(self) -> dict[str, Any]:
        """Everything that is saved, as JSON; arrays as base64."""
        return dumped(self.now, keep_examples=self.keep_examples)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over a dumped state; a state that cannot be used changes nothing.

        Raises:
            StateError: another schema, or anything in it that cannot be used.
        """
        learned = read(state)
        with self.changing.held:
            self.take_over(replace(learned, vectorizer=self.now.vectorizer))

    def __deepcopy__(self, memo: dict[int, Any]) -> "RidgeHead":
        """A copy that goes its own way; what is learned now is shared, since it never changes."""
        twin = type(self).__new__(type(self))  # not copy.copy, which leaves out what a pickle does
        # What is running changes in place.
        twin.__dict__.update(self.__dict__, changing=Lock(), _running=None)
        memo[id(self)] = twin
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled (`save_program=True`, workers): as in a saved file, the rated texts only if they are kept."""
        now = self.now
        if not self.keep_examples:
            fit = now.fitted
            bare = None if fit is None else replace(fit, rated=(), vectors=None, own={}, queried=None)
            now = replace(now, examples=Examples(), fitted=bare)
        return {**self.__dict__, "now": now, "_running": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what was pickled, by version 0.1.0 too, which had the parts one by one."""
        self.__init__(keep_examples=state["keep_examples"])  # type: ignore[misc]
        if "now" not in state:
            old = {name: part for name, part in state.items() if name in Learned.__dataclass_fields__}
            state = {"now": Learned(**{**old, "examples": Examples(old["examples"])})}
        self.__dict__.update(state)

    def __repr__(self) -> str:
        now = self.now
        fitted = "not fitted" if now.fitted is None else f"{len(now.fitted.line.coef)} coefficients"
        return f"RidgeHead({len(now.examples)} rated texts, alpha={now.alpha:g}, {fitted})"


def _begin_with(examples: Examples, rated: Sequence[RankingExample]) -> bool:
    return tuple(examples[: len(rated)]) == tuple(rated)


def _learned_from(fit: Fit, rated: tuple[RankingExample, ...], **parts: Any) -> Fit:
    """The fit of other rated texts that follows another, with what else is new of it."""
    return replace(fit, rated=rated, quantiles=quantiles(_scores(rated)), memo=Memo(), **parts)


def _still_asked(
    queried: Mapping[str, Vectors] | None, staying: Sequence[RankingExample]
) -> Mapping[str, Vectors] | None:
    """The vectors of queries that some example still has."""
    asked = {example.query for example in staying}
    return None if queried is None else {query: vector for query, vector in queried.items() if query in asked}


def _scores(examples: Sequence[RankingExample]) -> Array:
    return np.array([example.score for example in examples], dtype=np.float64)
