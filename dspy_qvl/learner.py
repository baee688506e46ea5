"""`Qwen3EmbeddingValueLearner`: rated texts in, a value function out; a DSPy module."""

import asyncio
import contextlib
import contextvars
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import numpy as np
from numpy.typing import NDArray

from dspy_qvl.backends import DEFAULT_MODEL, ModelSpec
from dspy_qvl.cache import EmbeddingCache
from dspy_qvl.embedding import Embedding, Probe
from dspy_qvl.errors import (
    EmbeddingError,
    InputError,
    QVLError,
    QVLWarning,
    StateError,
    check_alpha,
    check_alphas,
    check_count,
    check_flag,
    check_flat,
    check_fraction,
    check_groups,
    check_optional_string,
    check_scores_differ,
    check_text,
    check_texts,
    other_model,
    shown,
)
from dspy_qvl.features import AUTO, BUILT_IN, EMBEDDING, Features, Table
from dspy_qvl.fit import Fit
from dspy_qvl.folds import joined
from dspy_qvl.head import RidgeHead
from dspy_qvl.inspection import Inspection, LeftOut
from dspy_qvl.moments import Rows
from dspy_qvl.sharing import Lock
from dspy_qvl.state import read_file, take, write_file
from dspy_qvl.text import RankingExample, rated_text
from dspy_qvl.tuning import Fitted, refit
from dspy_qvl.validation import choose_alpha, validate

Array = NDArray[np.float64]
Vectors = NDArray[np.float32]

logger = logging.getLogger("dspy_qvl")

ALPHA_RANGE = (0.01, 0.1, 1.0, 10.0, 100.0)
CACHE_DIR = ".qwen3_embeddings"
DEFAULTS = {"model_name": None, "embedding_dim": None, "instruction": None, "ridge_alpha": 1.0, "features": AUTO}

# The texts of the call in progress, and what their model must give for the probe texts: a subclass that asks for
# vectors one by one finds all of them embedded in one batch.
_Batch = tuple[tuple[str, ...], Probe | None]
_batch: contextvars.ContextVar[_Batch] = contextvars.ContextVar("_batch", default=((), None))


class Qwen3EmbeddingValueLearner(dspy.Module):  # type: ignore[misc]  # dspy ships no types
    """A value function learned from rated texts: text -> embedding -> ridge -> value.

        learner = Qwen3EmbeddingValueLearner("lexical")
        learner.add_training_examples([("Works like a charm", 9.0), ("Broke in a week", 1.5), …])
        learner.train()
        learner.predict("Still going strong")        # a float, on the raters' own scale
        learner(text="Still going strong").score     # the same, as a DSPy module

    Args:
        model_name: an embedding model: a name on the Hugging Face hub or a folder (in process, extra `local`),
            a litellm route such as "openrouter/qwen/qwen3-embedding-8b" (hosted), or "lexical" (built in).
            Left out: Qwen/Qwen3-Embedding-0.6B.
        embedding_dim: columns of the vectors to keep. Left out: 768 for Qwen3 models, 4,096 for the lexical
            model (its number of hashed features), the model's own size elsewhere.
        ridge_alpha: penalty, > 0; larger for noisier ratings. `optimize_hyperparameters` chooses it.
        cache_dir: folder where vectors are kept between runs; None for memory only.
        api_key: key of a hosted model; left out, the provider's environment variable. Never saved or logged.
        embedder: a `dspy.Embedder`, or a callable from a list of texts to vectors, in place of a model name.
            Its attribute `name` says when two vectors are comparable; without one nothing is stored on disk.
        instruction: Qwen's task instruction, in English, put before every text.
        api_base: address of a hosted model, where it is not the provider's own.
        batch_size: texts a call of the model; left out, what suits the model.
        random_state: seed of every split and shuffle.
        keep_examples: whether saved files hold the rated texts, their scores, metadata and vectors.
        features: columns beside the embedding (see `features.py`). "auto": hashed words and the length of a text,
            each where cross-validation finds it worth having. None for none. "lexical", "length", a callable from a
            list of texts to (n, k), or a list of these: blocks that are always used, only weighed.

    Raises:
        InputError: a setting that cannot be used, a chat model, or more columns than the model has.
    """

    def __init__(
        self,
        model_name: str | None = None,
        embedding_dim: int | None = None,
        ridge_alpha: float = 1.0,
        cache_dir: str | os.PathLike[str] | None = CACHE_DIR,
        api_key: str | None = None,
        *,
        embedder: Any = None,
        instruction: str | None = None,
        api_base: str | None = None,
        batch_size: int | None = None,
        random_state: int = 0,
        keep_examples: bool = True,
        features: Any = AUTO,
    ) -> None:
        super().__init__()
        self._changing = Lock()  # rated texts and fits change one call at a time; values need not wait
        if embedder is not None and model_name is not None:
            raise InputError("give model_name or embedder, not both: either names the embedding model.")
        if cache_dir is not None and not isinstance(cache_dir, str | os.PathLike):
            raise InputError(f"cache_dir must be a path or None, but got {type(cache_dir).__name__}.")
        check_optional_string(api_key, "api_key")
        check_optional_string(api_base, "api_base")
        self.random_state = check_count(random_state, "random_state", 0)
        # What the caller said: where that is the default, a loaded file may say otherwise.
        self._settings: dict[str, Any] = {
            "model_name": model_name,
            "embedding_dim": embedding_dim,
            "instruction": instruction,
            "ridge_alpha": check_alpha(ridge_alpha),
        }
        self._batch_size = batch_size
        spec = ModelSpec(
            DEFAULT_MODEL if model_name is None else model_name, embedding_dim, api_base, api_key, embedder
        )
        self._embedding = Embedding(
            spec,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            instruction=instruction,
            batch_size=batch_size,
        )
        self._blocks = Features(features, beside_lexical=self._embedding.is_lexical)
        self._settings["instruction"] = self._embedding.instruction
        self._settings["features"] = AUTO if self._blocks.auto else list(self._blocks.names)
        self.ridge = RidgeHead(self._settings["ridge_alpha"], keep_examples=check_flag(keep_examples, "keep_examples"))

    # Settings

    @property
    def model_name(self) -> str:
        """The embedding model; for `embedder=` its name, or "" without one."""
        spec = self._embedding.spec
        return spec.model_name if spec.embedder is None else (self._embedding.identity or {}).get("model", "")

    @property
    def embedding_dim(self) -> int | None:
        """Columns of a vector; None until the first vector tells."""
        return self._embedding.dim

    @property
    def instruction(self) -> str | None:
        """The instruction put before every text."""
        return self._embedding.instruction

    @property
    def cache_dir(self) -> str | None:
        """The folder where vectors are kept between runs."""
        return None if self._embedding.cache_dir is None else str(self._embedding.cache_dir)

    @property
    def features(self) -> tuple[str, ...]:
        """The blocks of columns beside the embedding that the next fit may use."""
        return self._blocks.names

    @property
    def ridge_alpha(self) -> float:
        """Penalty of the next fit."""
        return self.ridge.alpha

    @ridge_alpha.setter
    def ridge_alpha(self, alpha: float) -> None:
        self.ridge.alpha, self.ridge.alpha_tuned, self.ridge.weights = check_alpha(alpha), False, None

    @property
    def embedding_cache(self) -> EmbeddingCache:
        """The vectors in memory (`len`, `in`, `clear()`) and on disk (`info()`)."""
        return self._embedding.cache

    # Rated texts

    @property
    def training_texts(self) -> list[str]:
        """The rated texts, in the order they were added."""
        return [example.text for example in self.ridge.examples]

    @property
    def training_scores(self) -> list[float]:
        """Their scores."""
        return [example.score for example in self.ridge.examples]

    @property
    def training_metadata(self) -> list[dict[str, Any] | None]:
        """What was kept with each."""
        return [example.metadata for example in self.ridge.examples]

    def add_training_example(self, text: str, score: float, metadata: Mapping[str, Any] | None = None) -> None:
        """Add one rated text; it counts from the next `train()` on.

        Args:
            text: the text; it may be empty (see `embedding.py`).
            score: its rating, a finite number on any scale.
            metadata: anything JSON can hold.

        Raises:
            InputError: a text, score or metadata that cannot be used; nothing is added.
        """
        example = rated_text((text, score, metadata))
        with self._changing:
            self.ridge.examples.append(example)
        logger.debug("added rated text %d, score %s", len(self.ridge.examples), score)

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
        with self._changing:
            self.ridge.examples.extend(added)
        logger.debug("%d rated texts now", len(self.ridge.examples))

    # Learning

    def train(
        self, validation_split: float = 0.2, cv_folds: int = 5, groups: Sequence[Any] | str | None = None
    ) -> dict[str, Any]:
        """Learn from all rated texts, and say how well that works on texts not learned from.

        A part is held out; the metrics come from a model that never saw it, cross-validation runs on the rest.
        The model that is kept is then fitted on everything. The same text never stands on both sides.

        Args:
            validation_split: fraction of the texts to hold out, in [0, 1).
            cv_folds: folds of the cross-validation, at least 2.
            groups: one entry a text (a document, a prompt, a user), or the name of a metadata entry; what is in
                one group is never split.

        Returns:
            train_mse, train_r2: on the rows the validated model learned from.
            val_mse, val_r2, val_pearson, val_spearman: on the rows held out; NaN for fewer than 2.
            cv_mse_mean, cv_mse_std: over the folds.
            n_train, n_val, cv_folds, alpha: what was used.
            alpha_saw_validation: True if cross-validation over all rows chose alpha (and the weights of blocks), which
                makes the validation figures a little too good.
            blocks: for the embedding and each block of features its weight and, where cross-validation measured it,
                what it adds: the share of the cross-validated error that it takes away.
            baselines: the same val_ figures of "mean", "length" and "nearest" (5 nearest neighbours).

        Raises:
            InputError: fewer than 2 texts, equal scores, or arguments out of range; an earlier fit stays.
            EmbeddingError: the model failed; an earlier fit stays, and what was embedded is not asked for again.
        """
        fraction, n_folds = check_fraction(validation_split, "validation_split"), check_count(cv_folds, "cv_folds", 2)
        with self._changing:
            return self._train(fraction, n_folds, groups)

    def _train(self, fraction: float, n_folds: int, groups: Sequence[Any] | str | None) -> dict[str, Any]:
        examples = list(self.ridge.examples)
        table, y, members = self._training_table(examples, groups)
        alpha, weights = self.ridge.alpha, self.ridge.weights
        metrics, tuned = validate(
            table,
            y,
            [example.text for example in examples],
            alpha,
            members=members,
            validation_split=fraction,
            cv_folds=n_folds,
            random_state=self.random_state,
            weights=weights if weights is not None and set(weights) <= set(table.names) else None,
            optional=self._blocks.auto,
        )
        metrics["alpha_saw_validation"] = self.ridge.alpha_tuned
        self._adopt(refit(table, y, alpha, tuned.weights), alpha, table)
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
            blocks: as `train`; the weights are chosen together with alpha.

        Raises:
            InputError: as `train`, or an empty or unusable range; an earlier fit stays.
        """
        alphas, n_folds = check_alphas(alpha_range), check_count(cv_folds, "cv_folds", 2)
        with self._changing:
            table, y, members = self._training_table(list(self.ridge.examples), groups)
            chosen, tuned = choose_alpha(
                table,
                y,
                alphas,
                members=members,
                cv_folds=n_folds,
                random_state=self.random_state,
                optional=self._blocks.auto,
            )
            self._adopt(tuned.fitted, tuned.alpha, table)
            self.ridge.alpha_tuned, self.ridge.weights = True, tuned.weights
        logger.info("chose alpha %g of %s over %d texts", chosen["best_alpha"], alphas, len(y))
        if len(alphas) > 1 and chosen["best_alpha"] in (alphas[0], alphas[-1]):
            end = "lower" if chosen["best_alpha"] == alphas[0] else "upper"
            warnings.warn(
                f"the best alpha, {chosen['best_alpha']:g}, lies at the {end} end of alpha_range; "
                "widen the range to see whether a better one lies beyond.",
                QVLWarning,
                stacklevel=2,
            )
        return chosen

    def update(self, text: str, score: float, metadata: Mapping[str, Any] | None = None) -> None:
        """Learn one more rated text at once: the fit that training on all of them would give, without training.

        Rated texts that were added since the last fit are learned with it. The penalty, and what the columns of a
        block are multiplied with, stay until the next `train()` or `optimize_hyperparameters()`. A copy made
        before is not touched.

        Args:
            text: the text.
            score: its rating.
            metadata: anything JSON can hold.

        Raises:
            NotFittedError: nothing was learned yet.
            InputError: a text, score or metadata that cannot be used, or a value function saved without its texts.
            EmbeddingError, FeatureError: the model or a block failed. Whatever is raised, nothing has changed.
        """
        example = rated_text((text, score, metadata))
        with self._changing:
            fit = self._with_examples()
            arriving = [*self.ridge.examples[fit.n_texts :], example]
            vectors = (
                None if fit.vectors is None else self._embedding([item.text for item in arriving], expect=fit.probe)
            )
            self.ridge.update(arriving, vectors, self._features_of(fit))
            self._embedding.accepted.add(self.ridge.fit_or_refuse())
        logger.debug("learned rated text %d, score %s", len(self.ridge.examples), score)

    def forget(self, text: str) -> None:
        """Take back every rating of a text, and what it taught: the fit the others alone would give.

        Vectors of the text stay in the cache: they hold no rating. Where fewer than two different scores are left
        there is nothing to learn from: the value function is unfitted, and a warning says so.

        Raises:
            NotFittedError: nothing was learned yet.
            InputError: no such text was rated, or a value function saved without its texts. Nothing has changed.
        """
        text = check_text(text)
        with self._changing:
            rows = {row for row, example in enumerate(self.ridge.examples) if example.text == text}
            n_learned = 0 if self.ridge.fitted is None else self.ridge.fitted.n_texts
            if rows and min(rows) >= n_learned:  # never learned: nothing to take back
                self.ridge.examples = [item for row, item in enumerate(self.ridge.examples) if row not in rows]
                return
            if not rows and self.ridge.fitted is not None:
                self._with_examples()
            if not rows:
                raise InputError(
                    f"{shown(text)} was never rated; training_texts lists the {len(self.ridge.examples)} that were."
                )
            fit = self._with_examples()
            self.ridge.forget(rows, self._features_of(fit))
            if self.ridge.fitted is not None:
                self._embedding.accepted.add(self.ridge.fitted)
        logger.debug("forgot %d ratings of a text; %d are left", len(rows), len(self.ridge.examples))
        if self.ridge.fitted is None:
            warnings.warn(
                "fewer than two different scores are left, so there is nothing to value texts by; rate more and train.",
                QVLWarning,
                stacklevel=2,
            )

    def unfit(self) -> None:
        """Forget what was learned, not the rated texts."""
        self.ridge.unfit()

    # Values

    def predict(self, text: str) -> float:
        """The value of a text, on the scale of the scores.

        The same text gets the same bits in any batch, order, thread or process.

        Raises:
            InputError: not a text.
            NotFittedError: nothing was learned.
            StateError: the loaded value function belongs to another embedding model.
        """
        text = check_text(text)
        fit = self._ready()
        if self._overridden():
            return self._value(text, self._vectors([text], fit), fit)
        kept = fit.memo.values.get(text)
        if kept is not None:
            return kept
        value = self._value(text, self._embedding.vector(text, expect=fit.probe)[None, :], fit)
        return fit.memo.keep(fit.memo.values, text, value)

    def _value(self, text: str, vectors: Vectors, fit: Fit) -> float:
        value = float(fit.predict(self._blocks([text], vectors, fit.blocks).X)[0])
        logger.debug("valued a text of %d characters at %g", len(text), value)
        return value

    def predict_many(self, texts: Sequence[str]) -> Array:
        """The values of texts, (n_texts,), each what `predict` gives."""
        return self._values(check_texts(texts))

    def rank_texts(self, texts: Sequence[str]) -> list[tuple[str, float]]:
        """(text, value) of every text, highest first; ties in the order given, duplicates kept."""
        checked = check_texts(texts)
        values = self._values(checked).tolist()
        return sorted(zip(checked, values, strict=True), key=lambda pair: -pair[1])

    def forward(self, text: str) -> dspy.Prediction:
        """The value of a text as `dspy.Prediction(score=…, std=…)`, both on the scale of the scores.

        `std` is as `predict_std` gives it, or None where the rated texts were not kept.
        """
        score = self.predict(text)
        return dspy.Prediction(score=score, std=self.predict_std(text) if self._ready().n_texts else None)

    async def aforward(self, text: str) -> dspy.Prediction:
        """As `forward`, off the event loop."""
        return await asyncio.to_thread(self.forward, text)

    def _get_embedding_vector(self, text: str) -> Vectors:
        """Features of one text, (n_features,); override it to change or extend them.

        While many texts are valued, the first call embeds all of them in one batch.
        """
        texts, expect = _batch.get()
        if text in texts:
            self._embedding(texts, expect=expect)
            _batch.set(((), expect))
        return self._embedding.vector(text, expect=expect)

    # How sure, and why

    def predict_std(self, text: str) -> float:
        """Standard deviation of what a rater would say of a text, on the scale of the scores.

        That of the posterior predictive of the ridge fit (`uncertainty.py`): the raters' own noise, and more where
        nothing like the text was rated. The first call after learning or loading works out the posterior.

        Raises:
            InputError: not a text, or a value function saved without its texts.
            NotFittedError, StateError: as `predict`.
        """
        return self.inspection().std(check_text(text))

    def leave_one_out(self) -> LeftOut:
        """Every rated text under the value function that all the others give: exact, without refitting.

        A text that was rated twice, or hardly differs from another, is then not really left out; and penalty and
        weights, where cross-validation chose them, were chosen with it.

        Raises:
            InputError: a value function saved without its texts.
            NotFittedError, StateError: as `predict`.
        """
        return self.inspection().leave_one_out()

    def nearest(self, text: str, n_neighbors: int = 5) -> list[tuple[RankingExample, float]]:
        """The rated texts whose embeddings are most like that of a text, and their cosine with it, nearest first.

        Raises:
            InputError, NotFittedError, StateError: as `predict_std`.
        """
        return self.inspection().nearest(check_text(text), check_count(n_neighbors, "n_neighbors", 1))

    def inspection(self) -> Inspection:
        """The current fit, looked at through the texts it was learned from.

        Raises:
            InputError, NotFittedError, StateError: as `predict_std`.
        """
        return Inspection(self._with_examples(), self._vectors, self._columns, keep=not self._overridden())

    def current_fit(self) -> Fit:
        """The fit that texts are valued by, known to belong to this embedding model.

        Raises:
            NotFittedError, StateError: as `predict`.
        """
        return self._ready()

    # Persistence

    def save_model(self, path: str | os.PathLike[str]) -> None:
        """Write the value function to one file, atomically, without pickle; any suffix.

        The file holds settings, coefficients and, unless `keep_examples=False`, the rated texts, their scores,
        metadata and vectors. It never holds a key or an address.

        Raises:
            NotFittedError: nothing was learned.
            InputError: the path cannot be written.
        """
        self.ridge.fit_or_refuse()
        settings = {
            "model_name": None if self._embedding.spec.embedder is not None else self.model_name,
            "embedding_dim": self.embedding_dim,
            "instruction": self.instruction,
            "ridge_alpha": self._settings["ridge_alpha"],
            "features": self._settings["features"],
        }
        write_file(path, {"settings": settings, "head": self.ridge.dump_state()})
        logger.debug("saved to %s", path)

    def load_model(self, path: str | os.PathLike[str]) -> None:
        """Take over a file of `save_model`: settings left at their defaults, the fit, and the rated texts.

        Raises:
            InputError: there is no such file.
            StateError: a pickle, a damaged file, another schema, another embedding model, or a setting given to
                the constructor that the file contradicts. The learner stays as it was.
        """
        content = read_file(path)
        head = RidgeHead(keep_examples=self.ridge.keep_examples)
        head.load_state(take(content, "head", Mapping, str(path)))
        fit = head.fitted
        if fit is None:
            raise StateError(f"{path} holds no fitted value function.")
        try:
            settings, embedding, blocks = self._adopted(take(content, "settings", Mapping, str(path)))
            _check_blocks(blocks, fit)
        except (StateError, InputError) as error:
            raise StateError(f"{path} does not fit this learner: {error}") from error
        _check_identity(embedding, fit)
        self._settings, self._embedding, self._blocks, self.ridge = settings, embedding, blocks, head
        logger.debug("loaded %r from %s", self, path)

    def _adopted(self, saved: Mapping[str, Any]) -> tuple[dict[str, Any], Embedding, Features]:
        """Settings, embedding and features as a file has them, where the caller said nothing else."""
        what = "the saved settings"
        settings = {
            "model_name": take(saved, "model_name", (str, type(None)), what),
            "embedding_dim": take(saved, "embedding_dim", int, what),
            "instruction": take(saved, "instruction", (str, type(None)), what),
            "ridge_alpha": check_alpha(take(saved, "ridge_alpha", (int, float), what)),
            "features": take(saved, "features", (str, list), what),
        }
        if settings["features"] != AUTO:
            own = self._blocks.missing([str(name) for name in settings["features"]])
            if own:
                raise _missing_features(own)
            if sorted(settings["features"]) == sorted(self._blocks.names) and not self._blocks.auto:
                settings["features"] = self._settings["features"]  # in whatever order
        for name, value in settings.items():
            mine = self._settings[name]
            # A model is compared by what it is, not by its name: see _check_identity.
            if name != "model_name" and mine not in (DEFAULTS[name], value):
                raise StateError(f"it was saved with {name}={value!r}, but this learner was made with {mine!r}.")
        now, spec = self._embedding, self._embedding.spec
        if settings["model_name"] is None and spec.embedder is None:
            raise StateError("it was saved with an embedder of its own; give that embedder to this learner.")
        chosen = spec.embedder is not None or self._settings["model_name"] is not None
        name = spec.model_name if chosen else settings["model_name"]
        if (name, settings["embedding_dim"], settings["instruction"]) != (spec.model_name, now.dim, now.instruction):
            now = Embedding(
                replace(spec, model_name=name, embedding_dim=settings["embedding_dim"]),
                cache_dir=now.cache_dir,
                instruction=settings["instruction"],
                batch_size=self._batch_size,
            )
        blocks = self._blocks
        mine = settings["features"] == self._settings["features"]  # then with the callables themselves
        if not mine or now.is_lexical != blocks.beside_lexical:
            blocks = Features(blocks.wanted if mine else settings["features"], beside_lexical=now.is_lexical)
        return {**settings, "model_name": self._settings["model_name"]}, now, blocks

    # Inside

    def _ready(self) -> Fit:
        """The fit, known to belong to this embedding model.

        Raises:
            NotFittedError: nothing was learned.
            StateError: the fit belongs to another embedding model.
        """
        fit = self.ridge.fit_or_refuse()
        if fit not in self._embedding.accepted:
            _check_identity(self._embedding, fit)
            _check_blocks(self._blocks, fit)
            if fit.vectors is not None:
                self._embedding.remember(fit.texts, fit.vectors)
            self._blocks.remember(fit.texts, fit.own)
            self._embedding.accepted.add(fit)
        return fit

    def _values(self, texts: list[str]) -> Array:
        """The values of checked texts, (n_texts,)."""
        fit = self._ready()
        return fit.predict(self._columns(texts, fit).X) if texts else np.empty(0)

    def _columns(self, texts: Sequence[str], fit: Fit) -> Table:
        """The columns of texts that a fit values them by."""
        return self._blocks(texts, self._vectors(texts, fit), fit.blocks)

    def _features_of(self, fit: Fit) -> Callable[[Sequence[RankingExample]], Rows]:
        """What gives the columns of examples that a fit values them by."""
        return lambda examples: self._columns([example.text for example in examples], fit).X

    def _with_examples(self) -> Fit:
        """The fit, with the rated texts it was learned from.

        Raises:
            NotFittedError, StateError: as `_ready`.
            InputError: they were not kept.
        """
        fit = self._ready()
        if fit.n_texts == 0:
            raise InputError(
                "the texts this value function was learned from were not saved with it (keep_examples=False), so it "
                "cannot be changed, and cannot say how sure it is; rate texts anew and train."
            )
        return fit

    def _vectors(self, texts: Sequence[str], fit: Fit | None = None) -> Vectors:
        """The embedding of texts, (n_texts, dim): their vectors, or what a subclass makes of them."""
        if not self._overridden():
            return self._embedding(texts, expect=None if fit is None else fit.probe)
        token = _batch.set((tuple(texts), None if fit is None else fit.probe))
        try:
            rows = [np.asarray(self._get_embedding_vector(text), dtype=np.float32) for text in texts]
        except QVLError:
            raise
        except Exception as error:
            name = f"{type(self).__name__}._get_embedding_vector"
            raise EmbeddingError(f"{name} failed or gave no vector of numbers: {error}") from error
        finally:
            _batch.reset(token)
        shapes = {row.shape for row in rows}
        if len(shapes) > 1 or any(len(shape) != 1 or shape == (0,) for shape in shapes):
            raise EmbeddingError(
                f"{type(self).__name__}._get_embedding_vector gave shapes {sorted(shapes)}; "
                "it must give one flat vector of one length for every text."
            )
        features = np.stack(rows)
        if not np.isfinite(features).all():
            raise EmbeddingError(f"{type(self).__name__}._get_embedding_vector gave NaN or infinity.")
        return features

    def _overridden(self) -> bool:
        """Whether a subclass, or an attribute of the object, replaces `_get_embedding_vector`."""
        method: Callable[..., Any] = self._get_embedding_vector
        return getattr(method, "__func__", None) is not Qwen3EmbeddingValueLearner._get_embedding_vector

    def _training_table(
        self, examples: list[RankingExample], groups: Sequence[Any] | str | None
    ) -> tuple[Table, Array, Sequence[Any]]:
        """Columns, scores and groups of rated texts."""
        texts, y = [example.text for example in examples], [example.score for example in examples]
        check_scores_differ(y)
        members: Sequence[Any] = texts  # the same text never stands on two sides
        if isinstance(groups, str):
            members = [(example.metadata or {}).get(groups) for example in examples]
            if None in members:
                raise InputError(
                    f"groups={groups!r} names a metadata entry that text {members.index(None)} does not have; "
                    "give every rated text that entry, or pass a list."
                )
        if groups is not None:
            members = joined(check_groups(members if isinstance(groups, str) else groups, len(texts)), texts)
        fit: Fit | None = None
        if self.ridge.fitted is not None:
            with contextlib.suppress(StateError):  # a fit of another model brings nothing, and will be replaced
                fit = self._ready()  # a loaded fit brings the vectors of its texts
        return self._blocks(texts, self._vectors(texts, fit), self._blocks.names), np.array(y), members

    def _adopt(self, fitted: Fitted, alpha: float, table: Table) -> None:
        """Keep the fit of rated texts with these columns, and what a saved state needs."""
        columns: dict[str, Any] = dict(zip(table.names, (table.X[:, block] for block in table.blocks), strict=True))
        keeps = self._embedding.keeps_vectors and not self._overridden()
        fit = self.ridge.adopt(
            fitted,
            alpha,
            n_texts=len(table.X),
            identity=self._embedding.identity,
            probe=self._embedding.probe(),
            vectors=columns[EMBEDDING].copy() if keeps else None,
            own={name: columns[name].copy() for name in fitted.names if name not in (EMBEDDING, *BUILT_IN)},
        )
        self._embedding.accepted.add(fit)

    def __repr__(self) -> str:
        model = f"model_name={self.model_name!r}, embedding_dim={self.embedding_dim}"
        return f"{type(self).__name__}({model}, {self.ridge!r})"


def _check_identity(embedding: Embedding, fit: Fit) -> None:
    """Refuse a fit of another embedding model; an anonymous one is told by its probe vectors alone.

    Raises:
        StateError: the names differ, or the number of columns.
    """
    mine, saved = embedding.identity, fit.identity
    if mine is not None and saved is not None and mine != dict(saved):
        differences = ", ".join(
            f"{key}: {saved.get(key, '')!r} saved, {mine.get(key, '')!r} here"
            for key in sorted({*mine, *saved})
            if mine.get(key) != saved.get(key)
        )
        raise other_model(differences)
    n_columns = fit.probe.vectors.shape[1]
    if embedding.dim is not None and embedding.dim != n_columns:
        raise other_model(f"embedding_dim {n_columns} saved, {embedding.dim} here")


def _check_blocks(blocks: Features, fit: Fit) -> None:
    """Refuse a fit of blocks of features that cannot be made here.

    Raises:
        StateError: a callable of the caller's own is missing.
    """
    missing = blocks.missing(fit.blocks)
    if missing:
        raise _missing_features(missing)


def _missing_features(names: Sequence[str]) -> StateError:
    return StateError(
        f"the value function was fitted with the caller's own features {', '.join(map(repr, names))}; "
        "give this learner features=[…] with callables of these names."
    )
