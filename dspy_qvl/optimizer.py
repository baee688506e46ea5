"""`FitValue`: the DSPy optimizer that fits the value functions inside a program."""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dspy
from dspy.teleprompt.teleprompt import Teleprompter

from dspy_qvl import scores
from dspy_qvl.errors import (
    InputError,
    MissingTextError,
    QVLWarning,
    check_alphas,
    check_count,
    check_flat,
    check_metadata,
    check_score,
    check_scores_differ,
    check_text,
    shown,
)
from dspy_qvl.feedback import REASON
from dspy_qvl.learner import Qwen3EmbeddingValueLearner
from dspy_qvl.text import AsText, RankingExample, Rendering

logger = logging.getLogger("dspy_qvl")

ALPHAS = tuple(float(f"{10 ** (step / 2):.3g}") for step in range(-4, 7))  # .01 to 1,000, two a decade
FromExample = str | Callable[[Any], Any]


class FitValue(Teleprompter):  # type: ignore[misc]  # dspy ships no types
    """Fits every value function inside a program from rated examples.

        program = FitValue(text="reply", score="rating", group="ticket").compile(program, trainset=rated)

    Args:
        text: the text of an example: the name of a field, a format string over its fields, or a callable
            (example, example) -> text; what `ValueMetric` takes, so that learning and scoring see the same.
        score: its rating: the name of a field, or a callable example -> number.
        group: what belongs together (a document, a prompt, a user), and is never split by cross-validation: the name
            of a field, or a callable. A text rated twice never is.
        alphas: penalties to choose from, each > 0.
        cv: folds, at least 2.

    An example's `metadata`, or its `reason`, is kept with the text; feedback quotes a reason.

    Attributes:
        report: of the last `compile`, for each value function by its name in the program: `n_texts`, `alpha`, `cv_mse`,
            `cv_r2` (1 - cv_mse over the variance of the scores), `alphas` (the mean error of each), `blocks`, and,
            with a valset, `val`: `n_texts`, `mse`, `r2`, `pearson` and `spearman` on it.

    Raises:
        InputError: an argument that cannot be used.
    """

    def __init__(
        self,
        text: AsText = "text",
        score: FromExample = "score",
        group: FromExample | None = None,
        alphas: Sequence[float] = ALPHAS,
        cv: int = 5,
    ) -> None:
        super().__init__()
        self.rendering = Rendering(text)
        if text is None:
            raise InputError("text must say which text of an example was rated: a field, a format string, a callable.")
        for name, given in (("score", score), ("group", group)):
            if not (isinstance(given, str) or callable(given) or (name == "group" and given is None)):
                raise InputError(f"{name} must be the name of a field or a callable, but got {shown(given)}.")
        self.score = score
        self.group = group
        self.alphas = check_alphas(alphas, "alphas")
        self.cv = check_count(cv, "cv", 2)
        self.report: dict[str, dict[str, Any]] = {}

    def compile(
        self,
        student: dspy.Module,
        *,
        trainset: list[Any],
        teacher: dspy.Module | None = None,
        valset: list[Any] | None = None,
    ) -> dspy.Module:
        """A copy of the program whose value functions are fitted on the rated examples; the student stays as it is.

        What a value function of the student had been taught before does not count any more in the copy.

        Args:
            student: a learner, or a program with learners in it.
            trainset: rated examples; everything is learned and chosen on them.
            teacher: not used.
            valset: rated examples that are only reported on.

        Raises:
            InputError: a program with nothing to fit, or an example without a text or a score.
            EmbeddingError: the embedding model failed; what was embedded is not asked for again.
        """
        if not isinstance(student, dspy.Module):
            raise InputError(f"student must be a dspy.Module, but got {type(student).__name__}.")
        program = student.deepcopy()
        learners = dict(program.named_sub_modules(Qwen3EmbeddingValueLearner))
        if not learners:
            raise InputError(
                f"{type(student).__name__} has no Qwen3EmbeddingValueLearner in it, so there is nothing to fit; make "
                "one an attribute of the program."
            )
        rated, members = self._rated(trainset, "trainset")
        check_scores_differ([example.score for example in rated])
        unseen = self._unseen(valset)
        report = {}
        for name, learner in learners.items():
            learner.ridge.examples = list(rated)
            chosen = learner.optimize_hyperparameters(self.alphas, self.cv, groups=members)
            learner.ridge.template = self.rendering.text if isinstance(self.rendering.text, str) else None
            report[name] = _report(learner, rated, chosen, unseen)
            logger.info("fitted %s on %d texts: alpha %g", name, len(rated), chosen["best_alpha"])
        self.report = report
        return program

    def _unseen(self, valset: Any) -> list[RankingExample]:
        """Rated examples to report on; none where nothing of the valset is rated, as in a step of `BetterTogether`."""
        if valset is None or (isinstance(valset, Sequence) and not len(valset)):
            return []
        if (
            isinstance(valset, Sequence)
            and isinstance(self.score, str)
            and all(isinstance(row, dspy.Example | Mapping) and self.score not in row for row in valset)
        ):
            warnings.warn(
                f"no example of the valset has a {self.score!r}, so nothing is reported on it.",
                QVLWarning,
                stacklevel=4,
            )
            return []
        return self._rated(valset, "valset")[0]

    def _rated(self, examples: Any, what: str) -> tuple[list[RankingExample], list[Any] | None]:
        """Rated texts, and the group of each, from examples."""
        check_flat(examples, what, "its rows, for instance data_frame.to_dict('records')")
        if isinstance(examples, str | bytes) or not isinstance(examples, Sequence) or not examples:
            raise InputError(
                f"{what} must be a list of rated examples, but got "
                f"{'an empty one' if isinstance(examples, Sequence) and not examples else type(examples).__name__}."
            )
        rated, members = [], []
        for row, example in enumerate(examples):
            at = f"{what}[{row}]"
            if not isinstance(example, dspy.Example | Mapping):
                raise InputError(f"{at} must be a dspy.Example or a dict, but got {type(example).__name__}.")
            try:
                text = self.rendering.rated(example)
            except MissingTextError as error:
                raise InputError(f"{at} has no text to learn from: {error}") from None
            score = check_score(_taken(self.score, example, "score", at), f"the score of {at}")
            metadata = check_metadata(_metadata(example), f"the metadata of {at}")
            rated.append(RankingExample(check_text(text, f"the text of {at}"), score, metadata))
            members.append(None if self.group is None else _taken(self.group, example, "group", at))
        return rated, members if self.group is not None else None


def _taken(given: FromExample, example: Any, name: str, at: str) -> Any:
    """A field of an example, or what a callable makes of it."""
    if not isinstance(given, str):
        return given(example)
    value = example.get(given)
    if value is None:
        raise InputError(f"{at} has no field {given!r} for its {name}; it has {shown(sorted(example.keys()))}.")
    return value


def _metadata(example: Any) -> dict[str, Any] | None:
    """What is kept with a rated text: its metadata, and the rater's reason."""
    kept = example.get("metadata")
    metadata = dict(kept) if isinstance(kept, Mapping) else {}
    if isinstance(example.get(REASON), str):
        metadata.setdefault(REASON, example[REASON])
    return metadata or None


def _report(
    learner: Qwen3EmbeddingValueLearner,
    rated: Sequence[RankingExample],
    chosen: dict[str, Any],
    unseen: Sequence[RankingExample],
) -> dict[str, Any]:
    """What `FitValue.report` says of one value function."""
    y = [example.score for example in rated]
    report = {
        "n_texts": len(rated),
        "alpha": chosen["best_alpha"],
        "cv_mse": chosen["best_mse"],
        "cv_r2": 1 - chosen["best_mse"] / scores.mse(y, [sum(y) / len(y)] * len(y)),
        "alphas": {alpha: row["mse_mean"] for alpha, row in chosen["results"].items()},
        "blocks": chosen["blocks"],
    }
    if unseen:
        truth = [example.score for example in unseen]
        values = learner.predict_many([example.text for example in unseen])
        measures = {name: getattr(scores, name)(truth, values) for name in ("mse", "r2", "pearson", "spearman")}
        report["val"] = {"n_texts": len(unseen), **measures}
    return report
