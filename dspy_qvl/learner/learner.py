"""`Qwen3EmbeddingValueLearner`: rated texts in, a value function out; a DSPy module.

    model and features ─► Qwen3EmbeddingValueLearner ─► TrainableValueFunction ─► ExaminedValueFunction ─► ValueFunction
                          made, saved, loaded           learns                    says how sure it is      values texts

A single class would be 1,100 lines, so each concern is a class over the one to its right: what reads a fit takes no
lock, what changes it holds one, and here are the settings and the files that both depend on.
"""

import inspect
import logging
import os
import types
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dspy_qvl.embedding import DEFAULT_MODEL, Embedding, ModelSpec, check_options
from dspy_qvl.errors import InputError, characters, check_count, check_flag, check_optional_string
from dspy_qvl.features import AUTO, Features
from dspy_qvl.fitting import ALPHA_RANGE, check_alpha
from dspy_qvl.learner.head import RidgeHead
from dspy_qvl.learner.migration import Migration, compared, saved_values
from dspy_qvl.learner.saving import content_of, read, vectorizer_for
from dspy_qvl.learner.trainable import TrainableValueFunction
from dspy_qvl.learner.vectorizer import Vectorizer
from dspy_qvl.state import write_file

logger = logging.getLogger("dspy_qvl")

CACHE_DIR = ".qwen3_embeddings"


class _Signature:
    """The signature of a class's constructor, which DSPy's metaclass hides from `help` and `inspect.signature`."""

    def __get__(self, instance: object, owner: type) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("__signature__")  # a call of the module takes the arguments of `forward`
        return inspect.signature(types.MethodType(owner.__init__, owner))  # type: ignore[misc]


class Qwen3EmbeddingValueLearner(TrainableValueFunction):
    """A value function learned from rated texts: text -> embedding -> ridge -> value.

        learner = Qwen3EmbeddingValueLearner("lexical")
        learner.add_training_examples([("Works like a charm", 9.0), ("Broke in a week", 1.5), …])
        learner.train()                              # or optimize_hyperparameters(), which chooses the penalty too
        learner.predict("Still going strong")        # a float, on the raters' own scale
        learner(text="Still going strong").score     # the same, as a DSPy module
        learner.update("Lost a screw", 3.0)          # learned at once; forget(text) takes a rating back
        learner.save_model("reviews.qvl")            # load_model() reads it; DSPy's save and load do as well

    Any number of threads may use one learner. Calls that change it (learning, loading, DSPy's `load`) wait for each
    other and are whole: one that fails or is interrupted has changed nothing. Values, copies and files do not wait;
    each is of one moment, before such a call or after it.

    Args:
        model_name: the embedding model: a name on the Hugging Face hub or a folder (in process, extra `static` for a
            static model such as "minishlab/potion-base-8M", extra `local` for any other), a
            litellm route such as "openrouter/qwen/qwen3-embedding-8b" (hosted), or "lexical" (built in). Default:
            Qwen/Qwen3-Embedding-0.6B.
        embedding_dim: columns of the vectors to keep. Default: 768 for Qwen3 models, the model's own size elsewhere.
            The lexical model hashes words to so many columns, from which values are learned; with its own number,
            4,096, they are learned from 2^18 sparse columns in place of its vectors.
        ridge_alpha: penalty, > 0; larger for noisier ratings. `optimize_hyperparameters` chooses it.
        cache_dir: folder where vectors are kept between runs; None for memory only. A relative one is meant from the
            folder in which the process is when the learner is made.
        api_key: key of a hosted model. Default: the provider's environment variable. Never saved or logged.
        embedder: in place of a model name, a `dspy.Embedder`, or a callable (plain or async) from a list of texts to
            vectors. Its attribute `name` says when two vectors are comparable; without one nothing is stored on disk.
            The default arguments of a `dspy.Embedder` tell vectors apart too, except secrets and limits such as
            `timeout`. For vectors that exist already: `Precomputed(texts, vectors)`.
        instruction: Qwen's task instruction, in English, put before every text, or before the query where texts are
            rated for queries.
        api_base: address of a hosted model, where it is not the provider's own. Default: the provider's environment
            variable, read whenever the model is asked. Servers at different addresses never share vectors.
        batch_size: most texts in one call of the model. Default: what suits the model.
        random_state: seed of every split and shuffle.
        keep_examples: True if saved files and pickles hold the rated texts, their scores, metadata and vectors.
        features: columns beside the embedding (`dspy_qvl.features`). "auto": hashed words and the length of a text, and
            of texts for queries their cosine and overlap, each where cross-validation finds that it helps. None for
            none. "lexical", "length", for queries "cosine", "overlap", "product", a callable from a list of texts to
            (n, k), an array or a scipy sparse matrix, or a list of these: blocks that are always used; cross-validation
            chooses their weights.
        device: of a model in process: "cuda", "cuda:1", "mps" or "cpu". Default: the best that is there.
        precision: of a model in process: "bfloat16", "float16" or "float32". Default: that of a loaded value function,
            else "bfloat16" where the device is fast at it, else "float32". Vectors of two precisions are kept apart.
        backend: of a model in process: "torch" (the default), or "onnx" for onnxruntime on the CPU in float32.
        revision: of a model on the hub: a commit or tag. Vectors of two revisions are kept apart.
        long_text: of a model in process, for a text longer than its window: "cut" (the default) with a warning that
            says how much is lost, or "mean" of the vectors of its windows, each with the instruction.
        requests_per_minute: of a hosted model: requests are spaced to stay below this rate. Default: no limit.
        timeout: of a hosted model: seconds that one request may take. Default: 60.
        max_concurrency: calls of the model at the same time. Default: 8 requests to a hosted model, 2 batches in
            process, 1 of an embedder.
        storage: numbers in the file of vectors: "float32", or "float16" for half the size.
        provider_options: of a hosted model: arguments sent with each request, as litellm's route takes them, for
            instance {"input_type": "passage", "extra_body": {…}, "extra_headers": {…}}. They belong to the model: with
            other options, a saved value function is refused. Options that look like secrets (a key, a token, the
            headers of a login) do not count for that, and are never saved, logged or pickled.

    Raises:
        InputError: a setting that cannot be used, or that only another kind of model has, a chat model, or more
            columns than the model has.
    """

    __signature__ = _Signature()

    def __init__(
        self,
        model_name: str | os.PathLike[str] | None = None,
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
        device: str | None = None,
        precision: str | None = None,
        backend: str | None = None,
        revision: str | None = None,
        long_text: str | None = None,
        requests_per_minute: float | None = None,
        timeout: float | None = None,
        max_concurrency: int | None = None,
        storage: str = "float32",
        provider_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if embedder is not None and model_name is not None:
            raise InputError("give model_name or embedder, not both: either names the embedding model.")
        if cache_dir is not None and not isinstance(cache_dir, str | os.PathLike):
            raise InputError(f"cache_dir must be a path or None, but got {type(cache_dir).__name__}.")
        check_optional_string(api_key, "api_key")
        check_optional_string(api_base, "api_base")
        if isinstance(model_name, str | os.PathLike):
            model_name = characters(os.fspath(model_name))
        self.random_state = check_count(random_state, "random_state", 0)
        alpha = check_alpha(ridge_alpha)
        settings: dict[str, Any] = {"device": device, "precision": precision, "backend": backend, "revision": revision}
        settings |= {"long_text": long_text, "requests_per_minute": requests_per_minute}
        settings |= {"timeout": timeout, "max_concurrency": max_concurrency}
        given = {name: value for name, value in settings.items() if value is not None}
        name = DEFAULT_MODEL if model_name is None else model_name
        embedding = Embedding(
            ModelSpec(name, embedding_dim, api_base, api_key, embedder, given, options=check_options(provider_options)),
            cache_dir=cache_dir,
            instruction=instruction,
            batch_size=batch_size,
            storage=storage,
        )
        blocks = Features.beside(embedding, features)
        told = {
            "model_name": model_name,
            "embedding_dim": embedding_dim,
            "instruction": embedding.instruction,
            "ridge_alpha": alpha,
            "features": AUTO if blocks.auto else list(blocks.names),
        }
        self._made_with = Vectorizer(told, embedding, blocks, batch_size)
        self.ridge = RidgeHead(alpha, keep_examples=check_flag(keep_examples, "keep_examples"))

    # Files

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
        write_file(path, content_of(now, self._vectorizer_at(now), keep_examples=self.ridge.keep_examples))
        logger.debug("saved to %s", path)

    def load_model(self, path: str | os.PathLike[str], *, trust_model: bool = False) -> None:
        """Load a file of `save_model`: the fit, the rated texts, and the settings that were left at their defaults.

        A learner made without a model takes the one that the file names. A model in process keeps texts here. A hosted
        one is sent every text that is valued, with the key of the environment, so the author of the file would decide
        where they go: give its name to the constructor, or trust the file.

        Args:
            path: the file.
            trust_model: True to accept a hosted model that only the file names.

        Raises:
            InputError: there is no such file.
            StateError: a pickle, a damaged file, another schema, another embedding model (see `migrate`), a hosted
                one that only the file names, or a setting given to the constructor that the file contradicts. The
                learner is unchanged.
        """
        trust_model = check_flag(trust_model, "trust_model")
        content, learned = read(path)
        with self.ridge.changing.held:
            vectorizer = vectorizer_for(path, content, learned, self._vectorizer, trust_model=trust_model)
            self.ridge.swap(self.ridge.now, self._with(vectorizer, learned))
        logger.debug("loaded %r from %s", self, path)

    def migrate(
        self,
        path: str | os.PathLike[str] | None = None,
        alpha_range: Sequence[float] = ALPHA_RANGE,
        cv_folds: int = 5,
        groups: Sequence[Any] | str | None = None,
    ) -> Migration:
        """Learn the rated texts of a value function of another embedding model anew, with this learner's model.

        Its texts, scores, metadata, queries and templates replace those of this learner; the penalty, and the weights
        of blocks, are chosen as `optimize_hyperparameters` does. Features and other settings are this learner's. A
        value function of the same model is learned anew as well.

        Args:
            path: a file of `save_model`. Default: the value function loaded here, for instance with a DSPy program.
            alpha_range: as in `optimize_hyperparameters`.
            cv_folds: as there.
            groups: as there. Default: those that the value function was saved with.

        Returns:
            A report on how values moved (`migration.py`): the correlation of old and new values, how either agree with
            the ratings, the largest moves. Print it to read it.

        Raises:
            InputError: no such file, a value function saved without its texts, or an argument that cannot be used.
            StateError: a pickle, a damaged file or another schema.
            NotFittedError: no path, and nothing was learned.
            EmbeddingError, FeatureError: the model or a block failed. Whatever is raised, the learner is unchanged.
        """
        with self.ridge.changing.held:
            before, vectorizer = self.ridge.now, self._vectorizer
            old = before if path is None else read(path)[1]
            fit = old.fit_or_refuse()
            if fit.n_texts == 0:
                raise InputError(
                    f"{'this value function' if path is None else path} was saved without its rated texts "
                    "(keep_examples=False), so no other model can learn from them; use the model it was fitted with, "
                    "or rate texts anew and train."
                )
            twin = self.deepcopy()
            twin.ridge.now = self._with(vectorizer, replace(old, fitted=None))
            if path is None:
                vectorizer.embedding.cache.clear()  # a loaded fit may have brought vectors of its model
            blocks = vectorizer.blocks
            kept = {name: own for name, own in fit.own.items() if name in blocks.names}
            blocks.remember(fit.texts, kept, fit.fitted.blocks.only(list(kept)))
            if groups is None and fit.groups is not None:
                groups = fit.groups.after(fit.rated, old.examples[fit.n_texts :], ())  # type: ignore[assignment]
            chosen = twin.optimize_hyperparameters(alpha_range, cv_folds, groups)
            values = twin.leave_one_out().values[: fit.n_texts]
            migration = compared(fit.rated, saved_values(fit), values, chosen)
            self.ridge.swap(before, twin.ridge.now)
        logger.info("learned %d rated texts anew with %s", fit.n_texts, vectorizer.embedding.name)
        return migration

    def __repr__(self) -> str:
        model = f"model_name={self.model_name!r}, embedding_dim={self.embedding_dim}"
        return f"{type(self).__name__}({model}, {self.ridge!r})"
