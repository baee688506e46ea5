"""`FitValue`: a DSPy optimizer that fits the value functions and the rerankers inside a program."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import dspy
from dspy.teleprompt.teleprompt import Teleprompter

from dspy_qvl.errors import InputError, shown
from dspy_qvl.optimizer.modules import check_which, copy_program, modules_to_fit
from dspy_qvl.optimizer.readers import JudgedPassageReader, RatedTextReader, Reader
from dspy_qvl.text import AsText, FromExample

logger = logging.getLogger("dspy_qvl")

ALPHAS = tuple(float(f"{10 ** (step / 2):.3g}") for step in range(-4, 7))  # .01 to 1,000, two a decade


class FitValue(Teleprompter):  # type: ignore[misc]  # dspy ships no types
    """Fits a value function inside a program from rated examples, or a reranker from judged queries.

        program = FitValue(text="reply", score="rating", group="ticket").compile(program, trainset=rated)
        program = FitValue(query="query", passages="passages", relevance="relevance").compile(program, trainset=judged)

    With several of them in the program, `learner` names the one that is meant:

        program = FitValue(text="reply", score="warmth", learner="tone").compile(program, trainset=rated)
        program = FitValue(text="reply", learner={"tone": {"score": "warmth"}, "help": {"score": "helped"}}).compile(…)

    Args:
        text: the text of an example: the name of a field, a format string over its fields, or a callable
            (example, example) -> text; what `ValueMetric` takes, so that learning and scoring see the same. A field may
            be called as a column of a table is: "Review Text", "{Review Text}".
        score: its rating: the name of a field, or a callable example -> number.
        group: the document, prompt or user that an example belongs to: the name of a field, or a callable. Neither a
            group nor a text that was rated twice is split by cross-validation.
        alphas: penalties to choose from, each > 0.
        cv: folds, at least 2.
        query: the field that holds the query, or a format string: of judged passages, or of texts whose worth depends
            on another text (an answer's on its question); then a text is valued for its query, and the texts of one
            query are never split by cross-validation.
        passages: the field that holds the passages of a query; then a reranker of the program is fitted, and its
            value functions are not.
        relevance: the field that holds how relevant each passage is: a list of numbers, higher for better.
        first_stage: True if the passages of an example come in the order of a first stage (a search), the best first;
            None to find out (`judged.py`). An example's `scores`, or those of its passages where they are a
            retriever's Prediction, are the first stage's, one a passage, higher for better.
        k: passages from the top that nDCG and reciprocal ranks look at when an order is chosen and reported on; None
            for all.
        learner: the value function, or with passages= the reranker, by its name in the program ("tone", "values[0]",
            "rerank.learner"; a program that is one itself is "self"); several by a list of names, all by "*", or by a
            callable (name, module) -> bool. A dict fits each with its own ratings in one `compile`: from names to
            those of the arguments above that differ from the ones given beside it. Left out, the only one there is; a
            learner that is only lent to a reranker counts where there is no other. No other module changes by a bit.

    An example's `metadata`, or its `reason`, is kept with the text; feedback quotes a reason.

    Attributes:
        report: of the last `compile`, for each value function by its name in the program: `n_texts`, `alpha`, `cv_mse`,
            `cv_r2` (1 - cv_mse over the variance of the scores), `alphas` (the mean error of each), `blocks`,
            `permutation_p` and `oof_…` as `optimize_hyperparameters` gives them, `warning` (a sentence, where the value
            function cannot be told from noise), and, with a valset, `val`: `n_texts`, `mse`, `r2`, `pearson` and
            `spearman` on it. For each reranker what `Reranker.learn` returns, and as `val` what `Reranker.judge` does:
            nDCG and mean reciprocal rank of the learned order, of cosine, and of the first stage.

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
        *,
        query: str | None = None,
        passages: str | None = None,
        relevance: str = "relevance",
        first_stage: bool | None = None,
        k: int | None = None,
        learner: str | Collection[str] | Callable[[str, Any], bool] | Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.text, self.score, self.group, self.alphas, self.cv = text, score, group, alphas, cv
        self.query, self.passages, self.relevance, self.first_stage, self.k = query, passages, relevance, first_stage, k
        arguments = dict(vars(self))
        self.learner = learner
        each: Any = learner.items() if isinstance(learner, Mapping) and learner else [(learner, {})]
        readers = [(check_which(which), _reader(which, own, arguments)) for which, own in each]
        # Values first: they may be a feature of a reranker.
        self._readers = sorted(readers, key=lambda pair: isinstance(pair[1], JudgedPassageReader))
        self.report: dict[str, dict[str, Any]] = {}

    def compile(
        self,
        student: dspy.Module,
        *,
        trainset: list[Any],
        teacher: dspy.Module | None = None,
        valset: list[Any] | None = None,
    ) -> dspy.Module:
        """Fit the modules that are meant in a copy of the program; the student is not changed.

        Whatever a value function had learned before is replaced in the copy.

        Args:
            student: a learner, or a program with learners in it.
            trainset: rated examples; everything is learned and chosen on them.
            teacher: not used.
            valset: rated examples that are only reported on.

        Raises:
            InputError: a program with nothing to fit, or with several learners of which none is named, or an example
                without a text or a score.
            EmbeddingError: the embedding model failed; what was embedded is not asked for again.
        """
        if not isinstance(student, dspy.Module):
            raise InputError(f"student must be a dspy.Module, but got {type(student).__name__}.")
        program = copy_program(student)
        plan = [(reader, modules_to_fit(program, reader.kind, which)) for which, reader in self._readers]
        names = [name for _, modules in plan for name in modules]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"two names of learner= mean one and the same module, {name!r}; name it once.")
        fits = [(reader.read(trainset, valset, modules.values()), modules) for reader, modules in plan]
        report = {}
        for fit, modules in fits:  # all examples are read by now: a bad one is refused before anything is fitted
            for name, module in modules.items():
                report[name] = fit(module)
                logger.info("fitted %s on %d examples: alpha %g", name, len(trainset), report[name]["alpha"])
        self.report = report
        return program


def _reader(name: object, own: object, arguments: Mapping[str, Any]) -> Reader:
    """The reader for one entry of `learner`: by the arguments of `FitValue`, its own ones in their place.

    Raises:
        InputError: its own are no dict of such arguments, or one of them cannot be used.
    """
    if not isinstance(own, Mapping):
        raise InputError(
            f"learner[{shown(name)}] must be a dict of its own arguments, such as {{'score': 'rating'}}, but got "
            f"{shown(own)}."
        )
    unknown = [argument for argument in own if argument not in arguments]
    if unknown:
        raise InputError(
            f"learner[{shown(name)}] has {shown(unknown[0])}; its arguments may be {', '.join(arguments)}."
        )
    arguments = {**arguments, **own}
    return RatedTextReader(arguments) if arguments["passages"] is None else JudgedPassageReader(arguments)
