"""`Qwen3EmbeddingValueLearner`: rated texts in, a value function out; a DSPy module."""

import contextlib
import copy
import logging
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dspy_qvl.embedding import Embedding, Usage
from dspy_qvl.errors import (
    InputError,
    QVLWarning,
    StateError,
    check_count,
    check_flag,
    check_flat,
    check_fraction,
    check_text,
    shown,
)
from dspy_qvl.features import AUTO, BUILT_IN, EMBEDDING, PAIRED, Features, Table
from dspy_qvl.fitting import (
    LEVEL,
    Fitted,
    check_alpha,
    check_alphas,
    check_groups,
    check_scores_differ,
    choose_alpha,
    copies,
    members_of,
    noise_warning,
    refit,
    validate,
)
from dspy_qvl.learner.fit import Fit
from dspy_qvl.learner.fit_state import dumped
from dspy_qvl.learner.head import RidgeHead
from dspy_qvl.learner.learned import Learned
from dspy_qvl.learner.migration import Migration, check_texts_kept, compared, saved_values
from dspy_qvl.learner.value_function import ValueFunction, check_blocks, check_identity, missing_features
from dspy_qvl.learner.vectorizer import Vectorizer
from dspy_qvl.state import read_file, take, write_file
from dspy_qvl.text import RankingExample, rated_text
from dspy_qvl.vectors import Array, Vectors

logger = logging.getLogger("dspy_qvl")

ALPHA_RANGE = (0.01, 0.1, 1.0, 10.0, 100.0)
DEFAULTS = {"model_name": None, "embedding_dim": None, "instruction": None, "ridge_alpha": 1.0, "features": AUTO}


class Qwen3EmbeddingValueLearner(ValueFunction):
    """A value function learned from rated texts: text -> embedding -> ridge -> value.

        learner = Qwen3EmbeddingValueLearner("lexical")
        learner.add_training_examples([("Works like a charm", 9.0), ("Broke in a week", 1.5), …])
        learner.train()
        learner.predict("Still going strong")        # a float, on the raters' own scale
        learner(text="Still going strong").score     # the same, as a DSPy module

    Any number of threads may use one. Calls that change it (learning, loading, DSPy's `load`) wait for each other and
    are whole: one that fails or is interrupted has changed nothing. Values, copies and files do not wait; each is of
    one moment, before such a call or after it.

    Args:
        model_name: an embedding model: a name on the Hugging Face hub or a folder (in process, extra `local`),
            a litellm route such as "openrouter/qwen/qwen3-embedding-8b" (hosted), or "lexical" (built in).
            Left out: Qwen/Qwen3-Embedding-0.6B.
        embedding_dim: columns of the vectors to keep. Left out: 768 for Qwen3 models, 4,096 for the lexical
            model (its number of hashed features), the model's own size elsewhere.
        ridge_alpha: penalty, > 0; larger for noisier ratings. `optimize_hyperparameters` chooses it.
        cache_dir: folder where vectors are kept between runs; None for memory only. A relative one is meant from where
            the process is now.
        api_key: key of a hosted model; left out, the provider's environment variable. Never saved or logged.
        embedder: a `dspy.Embedder`, or a callable (plain or async) from a list of texts to vectors, in place of a model
            name. Its attribute `name` says when two vectors are comparable; without one nothing is stored on disk.
            The default arguments of a `dspy.Embedder` count as well, but for secrets and limits such as `timeout`.
            For vectors that exist already: `Precomputed(texts, vectors)`.
        instruction: Qwen's task instruction, in English, put before every text.
        api_base: address of a hosted model, where it is not the provider's own. Left out, the provider's environment
            variable counts, as it is when the model is asked. Servers at different addresses never share vectors.
        provider_options: arguments of a hosted provider's own, sent with each request, for instance
            {"input_type": "passage", "extra_body": {…}, "extra_headers": {…}}, as the route of litellm takes them.
            They belong to the model: with others, a saved value function is refused. All but what looks like a secret
            (a key, a token, the headers of a login), which is never saved, logged or pickled.
        batch_size: texts a call of the model; left out, what suits the model.
        random_state: seed of every split and shuffle.
        keep_examples: whether saved files hold the rated texts, their scores, metadata and vectors.
        features: columns beside the embedding (see `features.py`). "auto": hashed words and the length of a text,
            each where cross-validation finds it worth having. None for none. "lexical", "length", a callable from a
            list of texts to (n, k), or a list of these: blocks that are always used, only weighed.

    Raises:
        InputError: a setting that cannot be used, a chat model, or more columns than the model has.
    """

    # Rated texts

    @property
    def training_texts(self) -> list[str]:
        """The rated texts, in the order they were added."""
        return [example.text for example in self.ridge.now.examples]

    @property
    def training_scores(self) -> list[float]:
        """Their scores."""
        return [example.score for example in self.ridge.now.examples]

    @property
    def training_metadata(self) -> list[dict[str, Any] | None]:
        """What was kept with each; a copy."""
        return [copy.deepcopy(example.metadata) for example in self.ridge.now.examples]

    def add_training_example(
        self, text: str, score: float, metadata: Mapping[str, Any] | None = None, query: str | None = None
    ) -> None:
        """Add one rated text; it counts from the next `train()` on.

        Args:
            text: the text; it may be empty (see `embedding.py`).
            score: its rating, a finite number on any scale.
            metadata: anything JSON can hold.
            query: what the text was rated for, where its worth depends on another text (an answer's question, a
                summary's article). Either all rated texts have one, or none.

        Raises:
            InputError: a text, score, metadata or query that cannot be used; nothing is added.
        """
        example = rated_text(RankingExample(text, score, metadata, query))  # type: ignore[arg-type]
        n_texts = self.ridge.extend([example])
        logger.debug("added rated text %d, score %s", n_texts, score)

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

    # Learning

    def train(
        self, validation_split: float = 0.2, cv_folds: int = 5, groups: Sequence[Any] | str | None = None
    ) -> dict[str, Any]:
        """Learn from all rated texts, and say how well that works on texts not learned from.

        A part is held out; the metrics come from a model that never saw it, cross-validation runs on the rest.
        The model that is kept is then fitted on everything. No text stands on both sides, nor does a copy of it.

        The same texts in the same order give the same bits on one machine. With another number of BLAS threads, or on
        another processor, coefficients differ by rounding (`ridge.py`); a saved value function is the same everywhere.

        Args:
            validation_split: fraction of the texts to hold out, in [0, 1).
            cv_folds: folds of the cross-validation, at least 2.
            groups: one entry a text (a document, a prompt, a user), or the name of a metadata entry; what is in
                one group is never split. Nor are copies of a text (equal but for letter case, white space and Unicode
                form, or with equal vectors): those that stand in several groups are a group of their own.

        Returns:
            train_mse, train_r2: on the rows the validated model learned from.
            val_mse, val_r2, val_pearson, val_spearman: on the rows held out; NaN for fewer than 2.
            val_mse_se, …: the standard error of each, over bootstrap draws of whole groups.
            oof_mse, …, oof_mse_se, …: the same of all rows, each valued by the fold models that did not see it; of at
                most 1,000 rated texts, where a fifth of them says little.
            permutation_p: how often the ratings, shuffled at random, are learned as well (`permutation.py`). Above .05
                the value function cannot be told from noise, and a warning says so.
            cv_mse_mean, cv_mse_std: over the folds.
            n_train, n_val, cv_folds, alpha: what was used.
            alpha_saw_validation: True if cross-validation over all rows chose alpha (and the weights of blocks), which
                makes the validation figures a little too good.
            blocks: for the embedding and each block of features its weight and, where cross-validation measured it,
                what it adds: the share of the cross-validated error that it takes away.
            baselines: the same val_ figures of "mean", "length" and "nearest" (5 nearest neighbours).
            usage: of a hosted model only: requests, texts, tokens and cost (US dollars, or None where litellm does not
                know the price) of this call; `embedder.usage` has the sum.

        Raises:
            InputError: fewer than 2 texts, equal scores, or arguments out of range; an earlier fit stays.
            EmbeddingError: the model failed; an earlier fit stays, and what was embedded is not asked for again.
        """
        fraction, n_folds = check_fraction(validation_split, "validation_split"), check_count(cv_folds, "cv_folds", 2)
        with self.ridge.changing.held:
            before, embedding = self.ridge.now, self._embedding
            usage = embedding.usage
            metrics = self._train(before, fraction, n_folds, groups)
        if metrics["permutation_p"] > LEVEL:
            warnings.warn(noise_warning(metrics["permutation_p"]), QVLWarning, stacklevel=2)
        return _with_usage(metrics, embedding, usage)

    def _train(
        self, before: Learned, fraction: float, n_folds: int, groups: Sequence[Any] | str | None
    ) -> dict[str, Any]:
        table, y, members, vectorizer = self._training_table(before, groups)
        alpha, weights = before.alpha, before.weights
        metrics, tuned = validate(
            table,
            y,
            [example.text for example in before.examples],
            alpha,
            members=members,
            validation_split=fraction,
            cv_folds=n_folds,
            random_state=self.random_state,
            weights=weights if weights is not None and set(weights) <= set(table.blocks.names) else None,
            optional=vectorizer.blocks.auto,
        )
        metrics["alpha_saw_validation"] = before.alpha_tuned
        self._adopt(before, vectorizer, refit(table, y, alpha, tuned.weights), alpha, table, metrics)
        logger.info(
            "trained on %d texts with alpha %g: cross-validated MSE %.4g, validation R² %.3f",
            len(y),
            alpha,
            metrics["cv_mse_mean"],
            metrics["val_r2"],
        )
        return metrics

    def optimize_hyperparameters(
        self,
        alpha_range: Sequence[float] = ALPHA_RANGE,
        cv_folds: int = 5,
        groups: Sequence[Any] | str | None = None,
    ) -> dict[str, Any]:
        """Choose `ridge_alpha`, and how much each block of features counts, by cross-validation; train with them.

        Args:
            alpha_range: penalties to choose from, each > 0.
            cv_folds: folds, at least 2.
            groups: as in `train`.

        Returns:
            best_alpha, best_mse: the penalty with the lowest mean error over the folds, and that error.
            results: for each alpha, mse_mean and mse_std over the folds.
            cv_folds: the folds used.
            better_alpha: a penalty beyond the range, only where it takes away a hundredth of the error or more.
            permutation_p, oof_mse, …: as `train`; the penalty was chosen on the same rows.
            blocks: as `train`; the weights are chosen together with alpha.
            usage: as `train`.

        Raises:
            InputError: as `train`, or an empty or unusable range; an earlier fit stays.
        """
        alphas, n_folds = check_alphas(alpha_range), check_count(cv_folds, "cv_folds", 2)
        with self.ridge.changing.held:
            before, embedding = self.ridge.now, self._embedding
            usage = embedding.usage
            table, y, members, vectorizer = self._training_table(before, groups)
            chosen, tuned = choose_alpha(
                table,
                y,
                alphas,
                members=members,
                cv_folds=n_folds,
                random_state=self.random_state,
                optional=vectorizer.blocks.auto,
            )
            parts = {"alpha_tuned": True, "weights": tuned.weights}
            self._adopt(before, vectorizer, tuned.fitted, tuned.alpha, table, chosen, **parts)
        logger.info("chose alpha %g of %s over %d texts", chosen["best_alpha"], alphas, len(y))
        if chosen["permutation_p"] > LEVEL:
            warnings.warn(noise_warning(chosen["permutation_p"]), QVLWarning, stacklevel=2)
        elif "better_alpha" in chosen:
            best, better = chosen["best_alpha"], chosen["better_alpha"]
            end = "lower" if better < best else "upper"
            warnings.warn(
                f"the best alpha, {best:g}, lies at the {end} end of alpha_range, and {better:g} beyond it is better: "
                "widen the range.",
                QVLWarning,
                stacklevel=2,
            )
        return _with_usage(chosen, embedding, usage)

    def update(
        self, text: str, score: float, metadata: Mapping[str, Any] | None = None, query: str | None = None
    ) -> None:
        """Learn one more rated text at once: the fit that training on all of them would give, without training.

        Rated texts that were added since the last fit are learned with it. The penalty, and what the columns of a
        block are multiplied with, stay until the next `train()` or `optimize_hyperparameters()`. A copy made
        before is not touched.

        Args:
            text: the text.
            score: its rating.
            metadata: anything JSON can hold.
            query: what it was rated for, where the others were rated for queries.

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
            vectorizer = self._vectorizer_of(fit)
            vectors = None if fit.vectors is None else self._vectors([item.text for item in arriving], fit)
            queried = _queried(arriving, vectorizer)
            parts = {"vectorizer": self._unless_made_with(vectorizer)}
            self.ridge.update(before, fit, arriving, vectors, self._features_of(fit), queried, **parts)
        logger.debug("learned rated text %d, score %s", fit.n_texts + len(arriving), score)

    def forget(self, text: str, query: str | None = None) -> None:
        """Take back every rating of a text (for one query), and what it taught: the fit the others alone would give.

        As in `update`, the penalty and what the columns of a block are multiplied with stay, and so do the bounds of a
        narrow block: those of the texts of the last training, this one among them where it was trained on.

        Vectors of the text stay in the cache: they hold no rating. Where fewer than two different scores are left
        there is nothing to learn from: the value function is unfitted, and a warning says so.

        Raises:
            NotFittedError: nothing was learned yet.
            InputError: no such text was rated, or a value function saved without its texts. Nothing has changed.
        """
        text = check_text(text)
        with self.ridge.changing.held:
            before = self.ridge.now
            rows = {
                row
                for row, example in enumerate(before.examples)
                if example.text == text and query in (None, example.query)
            }
            if not rows:
                if before.fitted is not None:
                    self._with_examples()
                asked = "" if query is None else f" for {shown(query)}"
                raise InputError(
                    f"{shown(text)} was never rated{asked}; training_texts lists the {len(before.examples)} that were."
                )
            n_learned = 0 if before.fitted is None else before.fitted.n_texts
            if min(rows) >= n_learned:  # never learned: nothing to take back
                self.ridge.put(examples=before.examples.without(rows))
                return
            fit = self._with_examples()
            fit.remember(row for row in rows if row < n_learned)  # a row goes as it came, to the last bit
            parts = {"vectorizer": self._unless_made_with(self._vectorizer_of(fit))}
            self.ridge.forget(before, fit, rows, self._features_of(fit), **parts)
            left = self.ridge.now
        logger.debug("forgot %d ratings of a text; %d are left", len(rows), len(left.examples))
        if left.fitted is None:
            warnings.warn(
                "fewer than two different scores are left, so there is nothing to value texts by; rate more and train.",
                QVLWarning,
                stacklevel=2,
            )

    def unfit(self) -> None:
        """Forget what was learned, not the rated texts."""
        self.ridge.unfit()

    def _training_table(
        self, before: Learned, groups: Sequence[Any] | str | None
    ) -> tuple[Table, Array, Sequence[Any], Vectorizer]:
        """Columns, scores and groups of the rated texts, and what makes the columns."""
        examples = before.examples[:]
        texts, y = [example.text for example in examples], [example.score for example in examples]
        check_scores_differ(y)
        paired = examples[0].query is not None
        _check_queries(examples, paired=paired)
        if isinstance(groups, str):
            named = [(example.metadata or {}).get(groups) for example in examples]
            if None in named:
                raise InputError(
                    f"groups={shown(groups)} names a metadata entry that text {named.index(None)} does not have; "
                    "give every rated text that entry, or pass a list."
                )
            groups = named
        if groups is not None:
            groups = check_groups(groups, len(texts))
        fit: Fit | None = None
        if before.fitted is not None:
            with contextlib.suppress(StateError):  # a fit of another model brings nothing, and will be replaced
                fit = self._ready()  # a loaded fit brings the vectors of its texts
        vectorizer = self._vectorizer_at(before) if fit is None else self._vectorizer_of(fit)
        expect = None if fit is None else fit.probe
        names = vectorizer.blocks.candidates(paired=paired)
        table = self._table([example.item for example in examples], names, vectorizer, expect, paired=paired)
        queries = [example.query or "" for example in examples]
        # Of texts for queries it is a query that never stands on two sides: an answer may be given to many of them.
        by_query = len(set(queries)) > 1
        copied = copies(queries) if by_query else copies(texts, table.columns[EMBEDDING])
        return table, np.array(y), copied if groups is None else members_of(groups, copied), vectorizer

    def _adopt(
        self,
        before: Learned,
        vectorizer: Vectorizer,
        fitted: Fitted,
        alpha: float,
        table: Table,
        report: Mapping[str, Any],
        **parts: Any,
    ) -> None:
        """Keep the fit of rated texts with these columns, and what a saved state needs."""
        columns: dict[str, Any] = table.columns
        embedding = vectorizer.embedding
        keeps = embedding.keeps_vectors and not self._overridden()
        self.ridge.adopt(
            before,
            fitted,
            alpha,
            identity=embedding.identity,
            probe=embedding.probe(),
            vectors=columns[EMBEDDING].copy() if keeps else None,
            own={
                name: columns[name].copy()
                for name in fitted.blocks.names
                if name not in (EMBEDDING, *BUILT_IN, *PAIRED)
            },
            queried=_queried(before.examples, vectorizer),
            permutation_p=report["permutation_p"],
            made_by=vectorizer,
            vectorizer=self._unless_made_with(vectorizer),
            **parts,
        )

    def _unless_made_with(self, vectorizer: Vectorizer) -> Vectorizer | None:
        """What `Learned` has to hold of what makes the columns."""
        return None if vectorizer is self._made_with else vectorizer

    # Persistence

    def save_model(self, path: str | os.PathLike[str]) -> None:
        """Write the value function to one file, atomically, without pickle; any suffix.

        The file holds settings, coefficients and, unless `keep_examples=False`, the rated texts, their scores,
        metadata and vectors. It never holds a key or an address.

        Raises:
            NotFittedError: nothing was learned.
            InputError: the path cannot be written.
        """
        now = self.ridge.now
        now.fit_or_refuse()
        vectorizer = self._vectorizer_at(now)
        embedding = vectorizer.embedding
        settings = {
            **vectorizer.settings,
            "model_name": None if embedding.spec.embedder is not None else embedding.spec.model_name,
            "embedding_dim": embedding.dim,
            "instruction": embedding.instruction,
        }
        write_file(path, {"settings": settings, "head": dumped(now, keep_examples=self.ridge.keep_examples)})
        logger.debug("saved to %s", path)

    def load_model(self, path: str | os.PathLike[str], *, trust_model: bool = False) -> None:
        """Take over a file of `save_model`: settings left at their defaults, the fit, and the rated texts.

        A file names its embedding model, and a learner made without one takes it over. One in process is as good as
        another: texts stay here. A hosted one is sent every text that is valued, with the key of the environment, so
        whoever writes the file would decide where they go: name it to the constructor, or trust the file.

        Args:
            path: the file.
            trust_model: whether a hosted model may be taken over that this learner was not made with.

        Raises:
            InputError: there is no such file.
            StateError: a pickle, a damaged file, another schema, another embedding model (see `migrate`), a hosted
                one that nobody named here, or a setting given to the constructor that the file contradicts. The
                learner stays as it was.
        """
        trust_model = check_flag(trust_model, "trust_model")
        content = read_file(path)
        learned = self._saved(path, content)
        fit = learned.fit_or_refuse()
        with self.ridge.changing.held:
            try:
                saved = take(content, "settings", Mapping, str(path))
                self._check_named(saved, trust_model)
                vectorizer = self._adopted(saved, fit.identity)
                check_blocks(vectorizer.blocks, fit)
            except (StateError, InputError) as error:
                raise StateError(f"{path} does not fit this learner: {error}") from error
            check_identity(vectorizer.embedding, fit)
            self.ridge.take_over(replace(learned, vectorizer=self._unless_made_with(vectorizer)))
        logger.debug("loaded %r from %s", self, path)

    def migrate(
        self,
        path: str | os.PathLike[str] | None = None,
        alpha_range: Sequence[float] = ALPHA_RANGE,
        cv_folds: int = 5,
        groups: Sequence[Any] | str | None = None,
    ) -> Migration:
        """Learn the rated texts of a value function of another embedding model anew, with this learner's model.

        Texts, scores, metadata, queries and how they were rendered are taken over, in the place of those that are
        here; the penalty, and the weights of blocks, are chosen as `optimize_hyperparameters` does. Features and
        other settings are this learner's. A value function of the same model is learned anew as well.

        Args:
            path: a file of `save_model`; left out, what was loaded here, for instance with a program by DSPy.
            alpha_range: as in `optimize_hyperparameters`.
            cv_folds: as there.
            groups: as there.

        Returns:
            How values moved (`migration.py`): correlation of old and new values, how either agree with the ratings,
            the largest moves; printed, it is a short report.

        Raises:
            InputError: no such file, a value function saved without its texts, or an argument that cannot be used.
            StateError: a pickle, a damaged file or another schema.
            NotFittedError: no path, and nothing was learned.
            EmbeddingError, FeatureError: the model or a block failed. Whatever is raised, the learner stays as it was.
        """
        with self.ridge.changing.held:
            before, vectorizer = self.ridge.now, self._vectorizer
            old = before if path is None else self._saved(path, read_file(path))
            fit = old.fit_or_refuse()
            check_texts_kept(fit, "this value function" if path is None else str(path))
            twin = self.deepcopy()
            twin.ridge.now = replace(old, fitted=None, vectorizer=self._unless_made_with(vectorizer))
            if path is None:
                vectorizer.embedding.cache.clear()  # a loaded fit may have brought vectors of its model
            blocks = vectorizer.blocks
            blocks.remember(fit.texts, {name: own for name, own in fit.own.items() if name in blocks.names})
            chosen = twin.optimize_hyperparameters(alpha_range, cv_folds, groups)
            values = twin.leave_one_out().values[: fit.n_texts]
            migration = compared(fit.rated, saved_values(fit), values, chosen)
            self.ridge.swap(before, twin.ridge.now)
        logger.info("learned %d rated texts anew with %s", fit.n_texts, vectorizer.embedding.name)
        return migration

    def _saved(self, path: str | os.PathLike[str], content: Mapping[str, Any]) -> Learned:
        """What the content of a file has learned.

        Raises:
            StateError: nothing, or something that cannot be used.
        """
        head = RidgeHead()
        head.load_state(take(content, "head", Mapping, str(path)))
        if head.fitted is None:
            raise StateError(f"{path} holds no fitted value function.")
        return head.now

    def _check_named(self, saved: Mapping[str, Any], trust_model: bool) -> None:
        """Refuse a hosted model that only a file names.

        Raises:
            StateError: with its name, and how to name it.
        """
        now, name = self._vectorizer, take(saved, "model_name", (str, type(None)), "the saved settings")
        spec = now.embedding.spec
        is_mine = spec.embedder is not None or now.settings["model_name"] is not None or name == spec.model_name
        if name is not None and not is_mine and not trust_model and replace(spec, model_name=name).is_routed:
            raise StateError(
                f"it was saved with the hosted model {shown(name, 200)}, which would be sent every text that is valued "
                f"here, with the key of the environment. If that is meant, make this learner with model_name="
                f"{shown(name, 200)}, or load the file with trust_model=True."
            )

    def _adopted(self, saved: Mapping[str, Any], identity: Mapping[str, str] | None) -> Vectorizer:
        """What makes the columns of texts as a file has it, where the caller said nothing else."""
        now = self._vectorizer
        what = "the saved settings"
        settings = {
            "model_name": take(saved, "model_name", (str, type(None)), what),
            "embedding_dim": take(saved, "embedding_dim", int, what),
            "instruction": take(saved, "instruction", (str, type(None)), what),
            "ridge_alpha": check_alpha(take(saved, "ridge_alpha", (int, float), what)),
            "features": take(saved, "features", (str, list), what),
        }
        if settings["features"] != AUTO:
            own = now.blocks.missing([str(name) for name in settings["features"]])
            if own:
                raise missing_features(own)
            if sorted(settings["features"]) == sorted(now.blocks.names) and not now.blocks.auto:
                settings["features"] = now.settings["features"]  # in whatever order
        for name, value in settings.items():
            mine = now.settings[name]
            # A model is compared by what it is, not by its name: see check_identity.
            if name != "model_name" and mine not in (DEFAULTS[name], value):
                raise StateError(
                    f"it was saved with {name}={shown(value)}, but this learner was made with {shown(mine)}; leave "
                    f"{name} out, or let this learner learn its rated texts anew: migrate(path)."
                )
        embedding, spec = now.embedding, now.embedding.spec
        if settings["model_name"] is None and spec.embedder is None:
            raise StateError(
                "it was saved with an embedder of its own; give that embedder to this learner, or let this one learn "
                "its rated texts anew: migrate(path)."
            )
        chosen = spec.embedder is not None or now.settings["model_name"] is not None
        name = spec.model_name if chosen else settings["model_name"]
        wanted = (name, settings["embedding_dim"], settings["instruction"])
        if wanted != (spec.model_name, embedding.dim, embedding.instruction):
            embedding = Embedding(
                replace(spec, model_name=name, embedding_dim=settings["embedding_dim"]),
                cache_dir=embedding.given_dir,
                instruction=settings["instruction"],
                batch_size=self._batch_size,
                storage=embedding.storage,
            )
        embedding = embedding.like(identity)
        blocks = now.blocks
        mine = settings["features"] == now.settings["features"]  # then with the callables themselves
        if not mine or embedding.is_lexical != blocks.beside_lexical:
            blocks = Features(blocks.wanted if mine else settings["features"], beside_lexical=embedding.is_lexical)
        told = {**settings, "model_name": now.settings["model_name"]}
        same = told == now.settings and embedding is now.embedding and blocks is now.blocks
        return now if same else Vectorizer(told, embedding, blocks)


def _queried(examples: Iterable[RankingExample], vectorizer: Vectorizer) -> dict[str, Vectors] | None:
    """The vectors of the queries of rated texts; None where they have none."""
    queries = list(dict.fromkeys(example.query for example in examples if example.query is not None))
    return dict(zip(queries, vectorizer.embedding(queries), strict=True)) if queries else None


def _with_usage(report: dict[str, Any], embedding: Embedding, before: Usage | None) -> dict[str, Any]:
    """A report with what a hosted model was asked since `before`."""
    now = embedding.usage
    if now is None or before is None:
        return report
    spent = now - before
    logger.info("asked %s: %s", embedding.spec.model_name, spent)
    cost = None if spent.unpriced and not spent.cost else spent.cost
    usage = {"requests": spent.requests, "texts": spent.texts, "tokens": spent.tokens, "cost": cost}
    return {**report, "usage": usage}


def _check_queries(examples: Sequence[RankingExample], *, paired: bool, first: int = 0) -> None:
    """Refuse rated texts of which some have a query and some have not.

    Raises:
        InputError: with the position of the first that differs.
    """
    for row, example in enumerate(examples, start=first):
        if (example.query is not None) != paired:
            has, others = ("no", "have one") if paired else ("a", "have none")
            raise InputError(
                f"rated text {row} has {has} query, but the others {others}; either all texts are rated for a query, "
                "or none."
            )
