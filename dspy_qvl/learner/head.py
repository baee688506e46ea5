"""The learned part of a value function: a DSPy Parameter, so that DSPy saves, loads and copies it.

It is a Parameter and not a Module (`Module.get_lm` asks every Module parameter for its language model), and
`reset()` keeps the fit: most optimizers begin with `reset_copy()`, which would wipe it.

    now ─► all that is learned (`Learned`, immutable); any thread reads it at any time, without waiting
    changing ─► the lock a change holds from reading `now` until `swap` replaces it, in one step

So saves, copies and values are of one moment while other threads change the value function, and a change that is
interrupted has happened completely or not at all.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dspy.predict.parameter import Parameter

from dspy_qvl.errors import InputError
from dspy_qvl.learner.fit import Fit
from dspy_qvl.learner.fit_state import dumped, read
from dspy_qvl.learner.learned import Examples, Learned
from dspy_qvl.learner.memo import Lock
from dspy_qvl.ridge import RecursiveKernelRidge, RecursiveRidge, WarmStartedRidge
from dspy_qvl.state import sealed
from dspy_qvl.text import RankingExample
from dspy_qvl.vectors import Array

Solver = RecursiveRidge | RecursiveKernelRidge | WarmStartedRidge


def _part(name: str) -> property:
    """An attribute of `RidgeHead` that reads and replaces one part of `now`."""
    return property(lambda head: getattr(head.now, name), lambda head, part: head.put(**{name: part}))


class RidgeHead(Parameter):  # type: ignore[misc]  # dspy ships no types
    """Rated texts, and the ridge fit learned from them.

    Args:
        alpha: penalty of the next fit, > 0, in units of unit vectors squared.
        keep_examples: True if a saved state holds the rated texts.

    Attributes:
        now: all that is learned at this moment; the attributes below are parts of it.
        changing: the lock that a change holds from reading `now` until `swap`.
        running: an updated fit and its incremental solver (`updating.py`), or None; neither copied nor pickled.
    """

    alpha, alpha_tuned, weights = _part("alpha"), _part("alpha_tuned"), _part("weights")
    template, query_template = _part("template"), _part("query_template")

    def __init__(self, alpha: float = 1.0, *, keep_examples: bool = True) -> None:
        self.keep_examples = keep_examples
        self.now = Learned(alpha=alpha)
        self.changing = Lock()
        self.running: tuple[Fit, Solver] | None = None

    @property
    def examples(self) -> tuple[RankingExample, ...]:
        """The rated texts, in the order they were added; a fit whose texts are replaced is forgotten."""
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
            examples = self.now.examples
            if fit is not None and not _begin_with(examples, fit.rated):
                examples = Examples(fit.rated)
            self.put(examples=examples, fitted=fit)

    @property
    def coef_(self) -> Array:
        """Coefficients of the plain columns, those of dense blocks, then of sparse ones, (n_features,), read-only.

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

    def swap(self, before: Learned, after: Learned, solver: Solver | None = None) -> None:
        """Replace `before` by what was made of it, while `changing` is held since `before` was read.

        Args:
            before: `now`, as it was read.
            after: takes its place.
            solver: of the fit of `after`, if that was updated.

        Raises:
            InputError: the embedding model or a feature changed the value function meanwhile.
        """
        if self.now is not before:
            raise InputError(
                "the value function was changed by the embedding model or a feature that it asked while it learned; "
                "that change stands, but what was being learned is dropped. Let neither change the learner."
            )
        self.now = after
        self.running = None if solver is None or after.fitted is None else (after.fitted, solver)

    def extend(self, added: Sequence[RankingExample]) -> int:
        """Add rated texts for the next fit, and return how many there are now."""
        with self.changing.held:
            self.put(examples=self.now.examples.plus(added))
            return len(self.now.examples)

    def unfit(self) -> None:
        """Forget the fit, not the rated texts."""
        self.put(fitted=None)

    def reset(self) -> None:
        """Keep the fit: DSPy resets parameters to start an optimization, and this one is no prompt."""

    # Copies

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """The saved state as DSPy writes it: rated texts and fit are one entry each (`Sealed`)."""
        now = self.now
        state, fit = dumped(now, keep_examples=self.keep_examples), now.fitted
        state["examples"] = sealed(state["examples"], f"{len(now.examples)} rated texts")
        label = "" if fit is None else f"{len(fit.line.coef)} coefficients, alpha {fit.alpha:g}"
        state["fit"] = sealed(state["fit"], label)
        return state

    def content(self) -> dict[str, Any]:
        """The saved state as JSON; arrays as base64."""
        return dumped(self.now, keep_examples=self.keep_examples)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Replace all that is learned by a dumped state; one that cannot be used changes nothing.

        Raises:
            StateError: another schema, or anything in it that cannot be used.
        """
        learned = read(state)
        with self.changing.held:
            self.swap(self.now, replace(learned, vectorizer=self.now.vectorizer))

    def __deepcopy__(self, memo: dict[int, Any]) -> "RidgeHead":
        """A copy that changes independently; `now` is shared, since it is immutable, `running` is not."""
        twin = type(self).__new__(type(self))  # not copy.copy, which leaves out the texts that a pickle leaves out
        twin.__dict__.update(self.__dict__, changing=Lock(), running=None)
        memo[id(self)] = twin
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """The pickled state (`save_program=True`, workers): as in a file, the rated texts only if they are kept."""
        now = self.now
        if not self.keep_examples:
            fit = now.fitted
            bare = None if fit is None else replace(fit, rated=(), vectors=None, own={}, queried=None, groups=None)
            now = replace(now, examples=Examples(), fitted=bare)
        return {**self.__dict__, "now": now, "running": None}

    def __repr__(self) -> str:
        now = self.now
        fitted = "not fitted" if now.fitted is None else f"{len(now.fitted.line.coef)} coefficients"
        return f"RidgeHead({len(now.examples)} rated texts, alpha={now.alpha:g}, {fitted})"


def _begin_with(examples: Examples, rated: Sequence[RankingExample]) -> bool:
    return tuple(examples[: len(rated)]) == tuple(rated)
