"""The learning half of the learner: rated texts that are added, trained on, learned at once or forgotten.

    add_training_examples ─► train, optimize_hyperparameters ─► a fit of all rated texts, a report (`training_set.py`)
    update, forget ─► the same fit without training (`updating.py`)

Each call holds `RidgeHead.changing` from reading `now` until it replaces it in one step: what fails changes nothing.
"""

import copy
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dspy_qvl.errors import InputError, check_count, check_flat, check_fraction, check_text, shown, warn
from dspy_qvl.fitting import ALPHA_RANGE, LEVEL, check_alphas, check_groups, check_scores_differ, noise_warning
from dspy_qvl.learner.examined import ExaminedValueFunction
from dspy_qvl.learner.groups import Groups
from dspy_qvl.learner.learned import Examples, Learned
from dspy_qvl.learner.training_set import TrainingSet, training_set, with_usage
from dspy_qvl.learner.updating import changed
from dspy_qvl.text import RankingExample, rated_text

logger = logging.getLogger("dspy_qvl")


class TrainableValueFunction(ExaminedValueFunction):
    """A value function that learns from rated texts; base class of `Qwen3EmbeddingValueLearner`, which makes it."""

    # Rated texts

    def add_training_example(
        self, text: str, score: float, metadata: Mapping[str, Any] | None = None, query: str | None = None
    ) -> None:
        """Add one rated text; it counts from the next `train()` on.

        Args:
            text: the text; it may be empty (see `embedding/encoder.py`).
            score: its rating, a finite number on any scale.
            metadata: anything JSON can hold.
            query: the text that it was rated for, where its score depends on one (an answer's question, a summary's
                article). Either all rated texts have a query, or none.

        Raises:
            InputError: a text, score, metadata or query that cannot be used; nothing is added.
        """
        example = rated_text(RankingExample(text, score, metadata, query))  # type: ignore[arg-type]
        logger.debug("added rated text %d, score %s", self.ridge.extend([example]), score)

    def add_training_examples(self, examples: Iterable[Any]) -> None:
        """Add rated texts, all of them or, if one cannot be used, none.

        Args:
            examples: RankingExamples, (text, score) or (text, score, metadata) tuples, or dicts or
                dspy.Examples with text and score.

        Raises:
            InputError: an example that cannot be used, with its position.
        """
        if isinstance(examples, str | bytes | Mapping | RankingExample) or not isinstance(examples, Iterable):
            raise InputError(f"examples must be a list of rated texts, but got {type(examples).__name__}.")
        check_flat(examples, "examples", "its rows, for instance data_frame.to_dict('records')")
        added = [rated_text(item, f"examples[{row}]") for row, item in enumerate(examples)]
        logger.debug("%d rated texts now", self.ridge.extend(added))

    @property
    def training_texts(self) -> list[str]:
        """The rated texts, in the order they were added."""
        return [example.text for example in self.ridge.now.examples]

    @property
    def training_scores(self) -> list[float]:
        """The scores of the rated texts."""
        return [example.score for example in self.ridge.now.examples]

    @property
    def training_metadata(self) -> list[dict[str, Any] | None]:
        """The metadata of each rated text, or None; a copy."""
        return [copy.deepcopy(example.metadata) for example in self.ridge.now.examples]

    # Training

    def train(
        self, validation_split: float = 0.2, cv_folds: int = 5, groups: Sequence[Any] | str | None = None
    ) -> dict[str, Any]:
        """Fit all rated texts, and report how good such a fit is on texts that it has not seen.

        A part is held out; the metrics come from a fit that never saw it, cross-validation runs on the rest. The fit
        that is kept is then made of all rated texts. No text is on both sides, nor is a copy of it.

        The same texts in the same order give the same bits on one machine. With another number of BLAS threads, or on
        another processor, coefficients differ by rounding; a saved value function is the same everywhere.

        Args:
            validation_split: fraction of the texts to hold out, in [0, 1).
            cv_folds: folds of the cross-validation, at least 2.
            groups: one entry a text (a document, a prompt, a user), or the name of a metadata entry; a group is never
                split. Nor are copies of a text (equal but for letter case, white space and Unicode form, or with equal
                vectors): copies in several groups become a group of their own.

        Returns:
            train_mse, train_r2: on the rows the validated model learned from.
            val_mse, val_r2, val_pearson, val_spearman: on the rows held out; NaN for fewer than 2.
            val_mse_se, …: the standard error of each, over bootstrap draws of whole groups.
            oof_mse, …, oof_mse_se, …: the same over all rows, each valued by the fit of the folds without it; only for
                at most 1,000 rated texts, of which a held-out fifth says little.
            permutation_p: share of random shuffles of the ratings that are learned as well (`fitting/permutation.py`);
                above .05 the value function cannot be told from noise, and a warning says so.
            cv_mse_mean, cv_mse_std: over the folds.
            n_train, n_val, cv_folds, alpha: the rows of both sides, the folds and the penalty that were used.
            alpha_saw_validation: True if cross-validation over all rows chose alpha (and the weights of blocks), which
                makes the validation figures a little too good.
            blocks: of the embedding and each block of features its "weight" and, where cross-validation measured it,
                "adds": the share of the cross-validated error that it takes away; of hashed words "idf_power" too, the
                power of their inverse document frequencies.
            baselines: the same val_ figures of "mean", "length", "nearest" (5 nearest neighbours) and "words" (TF-IDF
                of words and pairs of words with ridge regression, its penalty chosen on the same folds).
            usage: of a hosted model only: requests, texts, tokens and cost (US dollars, or None where litellm does not
                know the price) of this call; `embedder.usage` has the sum.

        Raises:
            InputError: fewer than 2 texts, equal scores, or arguments out of range; an earlier fit stays.
            EmbeddingError: the model failed; an earlier fit stays, and what was embedded is not asked for again.
        """
        fraction, n_folds = check_fraction(validation_split, "validation_split"), check_count(cv_folds, "cv_folds", 2)
        return self._learn(groups, lambda rated: rated.validated(fraction, n_folds))

    def optimize_hyperparameters(
        self, alpha_range: Sequence[float] = ALPHA_RANGE, cv_folds: int = 5, groups: Sequence[Any] | str | None = None
    ) -> dict[str, Any]:
        """Choose `ridge_alpha` and the weights of blocks of features by cross-validation, and fit with them.

        Args:
            alpha_range: penalties to choose from, each > 0.
            cv_folds: folds, at least 2.
            groups: as in `train`.

        Returns:
            best_alpha, best_mse: the penalty with the lowest mean error over the folds, and that error.
            results: for each alpha, mse_mean and mse_std over the folds.
            cv_folds: the folds used.
            better_alpha: a penalty beyond the range, only where it takes away a hundredth of the error or more, and of
                the scores' variance two thousandths.
            permutation_p, oof_mse, …: as `train`; the penalty was chosen on the same rows.
            blocks: as `train`; the weights are chosen together with alpha.
            usage: as `train`.

        Raises:
            InputError: as `train`, or an empty or unusable range; an earlier fit stays.
        """
        alphas, n_folds = check_alphas(alpha_range), check_count(cv_folds, "cv_folds", 2)
        chosen = self._learn(groups, lambda rated: rated.tuned(alphas, n_folds))
        if "better_alpha" in chosen:
            best, better = chosen["best_alpha"], chosen["better_alpha"]
            warn(
                f"the best alpha, {best:g}, lies at the {'lower' if better < best else 'upper'} end of alpha_range, "
                f"and {better:g} beyond it is better: widen the range.",
            )
        return chosen

    def _learn(
        self, groups: Sequence[Any] | str | None, learn: Callable[[TrainingSet], tuple[dict[str, Any], Learned]]
    ) -> dict[str, Any]:
        """Learn from all rated texts by `learn`, and return its report; a warning names the caller's caller."""
        with self.ridge.changing.held:
            before, embedding = self.ridge.now, self._embedding
            usage = embedding.usage
            checked = _checked_groups(before.examples, groups)
            columns = self._training_columns(before)
            report, after = learn(training_set(before, columns, checked, self.random_state))
            self.ridge.swap(before, self._with(columns.vectorizer, after))
        if report["permutation_p"] > LEVEL:
            warn(noise_warning(report["permutation_p"]))
        return with_usage(report, embedding, usage)

    # Learning at once

    def update(
        self, text: str, score: float, metadata: Mapping[str, Any] | None = None, query: str | None = None
    ) -> None:
        """Learn one more rated text at once: the fit that training on all of them would give, without training.

        Rated texts that were added since the last fit are learned with it. The penalty, the factors of blocks and
        document frequencies stay until the next `train()` or `optimize_hyperparameters()`. Copies made before are not
        changed.

        Args:
            text: the text.
            score: its rating.
            metadata: anything JSON can hold.
            query: the query it was rated for, where the others were rated for queries.

        Raises:
            NotFittedError: nothing was learned yet.
            InputError: a text, score or metadata that cannot be used, or a value function saved without its texts.
            EmbeddingError, FeatureError: the model or a block failed. Whatever is raised, nothing has changed.
        """
        example = rated_text(RankingExample(text, score, metadata, query))  # type: ignore[arg-type]
        with self.ridge.changing.held:
            before, fit = self.ridge.now, self._with_examples()
            arriving = [*before.examples[fit.n_texts :], example]
            _check_queries(arriving, paired=fit.paired, first=fit.n_texts)
            columns = self._columns(fit)
            fitted, solver = changed(self.ridge, fit, columns, coming=arriving)
            after = replace(before, examples=Examples((*fit.rated, *arriving)), fitted=fitted)
            self.ridge.swap(before, self._with(columns.vectorizer, after), solver)
        logger.debug("learned rated text %d, score %s", fit.n_texts + len(arriving), score)

    def forget(self, text: str, query: str | None = None) -> None:
        """Remove every rating of a text (for one query) and its effect: the fit that the others alone would give.

        As in `update`, the penalty, the factors of blocks and document frequencies stay, and so do the bounds of narrow
        blocks: those of the texts of the last training, this one among them if it was trained on.

        Vectors of the text stay in the cache: they hold no rating. Where fewer than two different scores are left
        there is nothing to learn from: the value function is unfitted, and a warning says so.

        Raises:
            NotFittedError: nothing was learned yet.
            InputError: no such text was rated, or a value function saved without its texts. Nothing has changed.
        """
        text = check_text(text)
        with self.ridge.changing.held:
            before = self.ridge.now
            rows = {row for row, one in enumerate(before.examples) if one.text == text and query in (None, one.query)}
            others = before.examples.without(rows)
            if not rows:
                if before.fitted is not None:
                    self._with_examples()
                asked = "" if query is None else f" for {shown(query)}"
                raise InputError(
                    f"{shown(text)} was never rated{asked}; training_texts lists the {len(before.examples)} that were."
                )
            learned = {row for row in rows if before.fitted is not None and row < before.fitted.n_texts}
            if not learned:  # nothing to take back
                self.ridge.put(examples=others)
                return
            fit = self._with_examples()
            fit.remember(learned)  # a row goes as it came, to the last bit
            columns = self._columns(fit)
            fitted, solver = changed(self.ridge, fit, columns, leaving=learned)
            after = replace(before, examples=others, fitted=fitted)
            self.ridge.swap(before, self._with(columns.vectorizer, after), solver)
        logger.debug("forgot %d ratings of a text; %d are left", len(rows), len(others))
        if fitted is None:
            warn(
                "fewer than two different scores are left, so there is nothing to value texts by; rate more and train.",
            )

    def unfit(self) -> None:
        """Forget the fit, not the rated texts."""
        self.ridge.unfit()


def _checked_groups(examples: Sequence[RankingExample], groups: Sequence[Any] | str | None) -> Groups | None:
    """The groups of rated texts, or None; refuses rated texts that nothing can be learned from.

    Args:
        examples: the rated texts.
        groups: one entry a text, the name of a metadata entry, or None.

    Raises:
        InputError: fewer than 2 texts, equal scores, some with a query and some without, or unusable groups.
    """
    check_scores_differ([example.score for example in examples])
    _check_queries(examples, paired=examples[0].query is not None)
    if isinstance(groups, Groups):  # of a value function that is migrated
        return groups
    by = groups if isinstance(groups, str) else None
    if by is not None:
        named = [(example.metadata or {}).get(by) for example in examples]
        if None in named:
            raise InputError(
                f"groups={shown(by)} names a metadata entry that text {named.index(None)} does not have; "
                "give every rated text that entry, or pass a list."
            )
        groups = named
    if groups is None:
        return None
    return Groups.of(check_groups(groups, len(examples)), by)


def _check_queries(examples: Sequence[RankingExample], *, paired: bool, first: int = 0) -> None:
    """Refuse rated texts of which some have a query and some have not.

    Raises:
        InputError: with the position of the first that differs, counted from `first`.
    """
    for row, example in enumerate(examples, start=first):
        if (example.query is not None) != paired:
            has, others = ("no", "have one") if paired else ("a", "have none")
            raise InputError(
                f"rated text {row} has {has} query, but the others {others}; either all texts are rated for a query, "
                "or none."
            )
