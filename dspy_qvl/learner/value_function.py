"""What a fitted value function says of texts: their values, how sure it is, and whether it belongs to this model.

The half of the learner that reads a fit; `learner.py` is the half that makes one.
"""

import asyncio
import contextlib
import contextvars
import copy
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import dspy
import numpy as np

from dspy_qvl.embedding import (
    DEFAULT_MODEL,
    Embedding,
    EmbeddingCache,
    Encoder,
    ModelSpec,
    Probe,
    check_options,
    other_model,
)
from dspy_qvl.errors import (
    EmbeddingError,
    InputError,
    QVLError,
    StateError,
    characters,
    check_count,
    check_flag,
    check_optional_string,
    check_text,
    check_texts,
    shown,
)
from dspy_qvl.features import AUTO, Features, Queries, Table
from dspy_qvl.fitting import check_alpha
from dspy_qvl.learner.fit import Fit
from dspy_qvl.learner.head import RidgeHead
from dspy_qvl.learner.inspection import Inspection, LeftOut
from dspy_qvl.learner.learned import Learned
from dspy_qvl.learner.vectorizer import Vectorizer
from dspy_qvl.text import Item, Pair, RankingExample, text_of
from dspy_qvl.vectors import Array, Rows, Vectors

logger = logging.getLogger("dspy_qvl")

CACHE_DIR = ".qwen3_embeddings"
LEFT_OUT = {"precision": "float32", "long_text": "cut"}  # what an identity means that does not name them


# The texts of the call in progress, and what embeds them: a subclass that asks for vectors one by one finds all of them
# embedded in one batch.
_Batch = tuple[tuple[str, ...], Encoder | None]
_batch: contextvars.ContextVar[_Batch] = contextvars.ContextVar("_batch", default=((), None))


class ValueFunction(dspy.Module):  # type: ignore[misc]  # dspy ships no types
    """A fit, and what is needed to value texts by it; see `Qwen3EmbeddingValueLearner` for the arguments."""

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
        if isinstance(model_name, str):
            model_name = characters(model_name)
        self.random_state = check_count(random_state, "random_state", 0)
        alpha = check_alpha(ridge_alpha)
        self._batch_size = batch_size
        settings = {
            "device": device,
            "precision": precision,
            "backend": backend,
            "revision": revision,
            "long_text": long_text,
            "requests_per_minute": requests_per_minute,
            "timeout": timeout,
            "max_concurrency": max_concurrency,
        }
        given = {name: value for name, value in settings.items() if value is not None}
        name = DEFAULT_MODEL if model_name is None else model_name
        embedding = Embedding(
            ModelSpec(name, embedding_dim, api_base, api_key, embedder, given, options=check_options(provider_options)),
            cache_dir=cache_dir,
            instruction=instruction,
            batch_size=batch_size,
            storage=storage,
        )
        blocks = Features(features, beside_lexical=embedding.is_lexical)
        told = {
            "model_name": model_name,
            "embedding_dim": embedding_dim,
            "instruction": embedding.instruction,
            "ridge_alpha": alpha,
            "features": AUTO if blocks.auto else list(blocks.names),
        }
        self._made_with = Vectorizer(told, embedding, blocks)
        self.ridge = RidgeHead(alpha, keep_examples=check_flag(keep_examples, "keep_examples"))

    # Settings

    @property
    def model_name(self) -> str:
        """The embedding model; for `embedder=` its name, or "" without one."""
        return _name_of(self._embedding)

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
        folder = self._embedding.cache_dir
        return None if folder is None else str(folder)

    @property
    def features(self) -> tuple[str, ...]:
        """The blocks of columns beside the embedding that the next fit may use."""
        return self._vectorizer.blocks.names

    @property
    def ridge_alpha(self) -> float:
        """Penalty of the next fit."""
        return self.ridge.alpha

    @ridge_alpha.setter
    def ridge_alpha(self, alpha: float) -> None:
        self.ridge.put(alpha=check_alpha(alpha), alpha_tuned=False, weights=None)

    @property
    def embedder(self) -> Embedding:
        """Texts -> vectors: `usage` says what a hosted model was asked and what it cost."""
        return self._embedding

    @property
    def embedding_cache(self) -> EmbeddingCache:
        """The vectors in memory (`len`, `in`, `clear()`) and on disk (`info`, `prune`, `export`, `import_`).

        `put(texts, vectors)` keeps vectors that exist already, so that the model is never asked for them. Of a hosted
        model these are the vectors of the server that would be asked now.
        """
        return self._embedding.cache

    # Values

    def predict(self, text: str, query: str | None = None) -> float:
        """The value of a text, on the scale of the scores; where texts were rated for queries, for a query.

        The same text gets the same bits in any batch, order, thread or process from one fit; for fits made anew see
        `train`.

        Raises:
            InputError: not a text, or a query too many or too few.
            NotFittedError: nothing was learned.
            StateError: the loaded value function belongs to another embedding model.
        """
        text, fit = check_text(text), self._ready()
        return self._predict(_item(text, query, fit), fit)

    def _predict(self, item: Item, fit: Fit) -> float:
        keep = not self._overridden()
        kept = fit.memo.values.get(item) if keep else None
        if kept is not None:
            return kept
        value = float(fit.predict(self._columns([item], fit).X)[0])
        logger.debug("valued a text of %d characters at %g", len(text_of(item)), value)
        return fit.memo.values.keep(item, value) if keep else value

    def predict_many(self, texts: Sequence[str], queries: Sequence[str] | str | None = None) -> Array:
        """The values of texts, (n_texts,), each what `predict` gives; `queries` one for each, or one for all."""
        return self._values(check_texts(texts), queries)

    def rank_texts(self, texts: Sequence[str], query: str | None = None) -> list[tuple[str, float]]:
        """(text, value) of every text, highest first; ties in the order given, duplicates kept."""
        checked = check_texts(texts)
        values = self._values(checked, query).tolist()
        return sorted(zip(checked, values, strict=True), key=lambda pair: -pair[1])

    def forward(self, text: str, query: str | None = None) -> dspy.Prediction:
        """The value of a text as `dspy.Prediction(score=…, std=…)`, both on the scale of the scores.

        An empty text is valued too, and may be worth as much as an average one (`embedding.py`); `ValueMetric` takes an
        empty answer for a failure.
        `std` is as `predict_std` gives it, or None where the rated texts were not kept.
        """
        text, fit = check_text(text), self._ready()
        return self._answer(_item(text, query, fit), fit)

    def _answer(self, item: Item, fit: Fit) -> dspy.Prediction:
        std = self._inspection(fit).std(item) if fit.n_texts else None
        return dspy.Prediction(score=self._predict(item, fit), std=std)

    async def aforward(self, text: str, query: str | None = None) -> dspy.Prediction:
        """As `forward`, off the event loop; a hosted model has as many requests at once as it may."""
        text = check_text(text)
        fit = self._known(self.ridge.now)
        if fit is None:
            fit = await asyncio.to_thread(self._ready)  # it may ask the model what it is
        item, embedding = _item(text, query, fit), self._vectorizer_of(fit).embedding
        if not self._overridden():
            await embedding.encoder(fit.probe, instruct=not fit.paired).acall([text])
            if query is not None:
                await embedding.encoder(fit.probe).acall([query])
        return await asyncio.to_thread(self._answer, item, fit)

    def batch(self, examples: Sequence[Any], *args: Any, **settings: Any) -> Any:
        """As `dspy.Module.batch`: the same predictions, worked out for all the texts together."""
        examples = list(examples)
        with contextlib.suppress(QVLError):  # whatever is wrong, the calls will say so
            fit, items = self._ready(), []
            for example in examples:
                with contextlib.suppress(QVLError, KeyError):
                    items.append(_item(check_text(example["text"]), example.get("query"), fit))
            self._inspection(fit).foresee(items)
        return super().batch(examples, *args, **settings)

    def _get_embedding_vector(self, text: str) -> Vectors:
        """Features of one text, (n_features,); override it to change or extend them.

        While many texts are valued, the first call embeds all of them in one batch.
        """
        texts, encoder = _batch.get()
        if encoder is None:
            encoder = self._embedding.encoder()
        if text in texts:
            encoder(texts)
            _batch.set(((), encoder))
        return encoder.vector(text)

    # How sure, and why

    def predict_std(self, text: str, query: str | None = None) -> float:
        """Standard deviation of what a rater would say of a text, on the scale of the scores.

        That of the posterior predictive of the ridge fit (`uncertainty.py`): the raters' own noise, and more where
        nothing like the text was rated. The first call after learning or loading works out the posterior.

        Raises:
            InputError: not a text, or a value function saved without its texts.
            NotFittedError, StateError: as `predict`.
        """
        text, inspection = check_text(text), self.inspection()
        return inspection.std(_item(text, query, inspection.fit))

    def predict_std_many(self, texts: Sequence[str], queries: Sequence[str] | str | None = None) -> Array:
        """The standard deviations of texts, (n_texts,), each what `predict_std` gives; `queries` as `predict_many`.

        Raises:
            InputError, NotFittedError, StateError: as `predict_std`.
        """
        checked, inspection = check_texts(texts), self.inspection()
        return inspection.stds(_items(checked, queries, inspection.fit))

    def leave_one_out(self) -> LeftOut:
        """Every rated text under the value function that all the others give: exact, without refitting.

        A text that was rated twice, or hardly differs from another, is then not really left out; and penalty and
        weights, where cross-validation chose them, were chosen with it.

        Raises:
            InputError: a value function saved without its texts.
            NotFittedError, StateError: as `predict`.
        """
        return self.inspection().leave_one_out()

    def nearest(self, text: str, n_neighbors: int = 5, query: str | None = None) -> list[tuple[RankingExample, float]]:
        """The rated texts whose embeddings are most like that of a text, and their cosine with it, nearest first.

        Where texts were rated for queries, the mean of the texts' cosine and the queries'.

        Raises:
            InputError, NotFittedError, StateError: as `predict_std`.
        """
        text, n_neighbors, inspection = check_text(text), check_count(n_neighbors, "n_neighbors", 1), self.inspection()
        return inspection.nearest(_item(text, query, inspection.fit), n_neighbors)

    def inspection(self) -> Inspection:
        """The current fit, looked at through the texts it was learned from.

        Raises:
            InputError, NotFittedError, StateError: as `predict_std`.
        """
        return self._inspection(self._with_examples())

    def _inspection(self, fit: Fit) -> Inspection:
        def asked(queries: Sequence[str], fit: Fit) -> Vectors:
            return self._vectorizer_of(fit).embedding.encoder(fit.probe)(queries)

        return Inspection(fit, self._vectors, self._columns, asked=asked, keep=not self._overridden())

    def current_fit(self) -> Fit:
        """The fit that texts are valued by, known to belong to this embedding model.

        Raises:
            NotFittedError, StateError: as `predict`.
        """
        return self._ready()

    def snapshot(self) -> "ValueFunction":
        """Itself as it is at this moment: what is learned or loaded later does not reach it; the rest is shared."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__, ridge=copy.deepcopy(self.ridge))
        return twin

    # The model that is lent

    def embed(self, texts: Sequence[str], *, instruct: bool = True, expect: Probe | None = None) -> Vectors:
        """Unit vectors of texts, (n_texts, embedding_dim) float32; each text is embedded once and kept.

        Args:
            texts: what to embed.
            instruct: whether the instruction is put before them.
            expect: what the model must give for the probe texts.
        """
        return self._embedding.encoder(expect, instruct=check_flag(instruct, "instruct"))(check_texts(texts))

    async def aembed(self, texts: Sequence[str], *, instruct: bool = True, expect: Probe | None = None) -> Vectors:
        """As `embed`, off the event loop."""
        encoder = self._embedding.encoder(expect, instruct=check_flag(instruct, "instruct"))
        return await encoder.acall(check_texts(texts))

    @property
    def identity(self) -> dict[str, str] | None:
        """What makes the embedding model's vectors comparable with saved ones; None for an anonymous callable."""
        return self._embedding.identity

    def probe(self) -> Probe:
        """What the embedding model gives for the probe texts."""
        return self._embedding.probe()

    def check_model(self, fit: Any) -> None:
        """Refuse what was fitted with another embedding model.

        Raises:
            StateError: the names differ, or the number of columns.
        """
        vectorizer = self._vectorizer
        if fit in vectorizer.embedding.accepted:
            return
        alike = vectorizer.like(fit.identity)
        check_identity(alike.embedding, fit)
        alike.embedding.accepted.add(fit)
        if alike is not vectorizer:
            with self.ridge.changing.held:
                if self._vectorizer is vectorizer:  # no other was loaded meanwhile
                    self.ridge.put(vectorizer=alike)

    # Inside

    @property
    def _vectorizer(self) -> Vectorizer:
        """What makes the columns of texts now."""
        return self._vectorizer_at(self.ridge.now)

    @property
    def _embedding(self) -> Embedding:
        return self._vectorizer.embedding

    def _vectorizer_at(self, now: Learned) -> Vectorizer:
        """What makes the columns of texts at a moment."""
        vectorizer = now.vectorizer or self._made_with
        accepted = None if now.fitted is None else now.fitted.memo.accepted.get(vectorizer)
        return vectorizer if accepted is None else self._vectorizer_of(accepted)

    def _vectorizer_of(self, fit: Fit) -> Vectorizer:
        """What makes the columns of the texts that a fit values, whatever was loaded since."""
        return fit.vectorizer or self._vectorizer

    def _ready(self) -> Fit:
        """The fit, known to belong to this embedding model.

        Raises:
            NotFittedError: nothing was learned.
            StateError: the fit belongs to another embedding model.
        """
        now = self.ridge.now
        known = self._known(now)
        if known is None:
            fit, vectorizer = now.fit_or_refuse(), now.vectorizer or self._made_with
            known = fit.memo.accepted.setdefault(vectorizer, _accepted(fit, vectorizer))
        return known

    def _known(self, now: Learned) -> Fit | None:
        """The fit of a moment, if it is known by now that it belongs to this embedding model.

        Raises:
            NotFittedError: nothing was learned.
        """
        fit, vectorizer = now.fit_or_refuse(), now.vectorizer or self._made_with
        known: Fit | None = fit if fit.vectorizer is vectorizer else fit.memo.accepted.get(vectorizer)
        return known

    def _values(self, texts: list[str], queries: Sequence[str] | str | None) -> Array:
        """The values of checked texts, (n_texts,)."""
        fit = self._ready()
        items = _items(texts, queries, fit)
        return fit.predict(self._columns(items, fit).X) if texts else np.empty(0)

    def _columns(self, items: Sequence[Item], fit: Fit) -> Table:
        """The columns of texts that a fit values them by."""
        return self._table(items, fit.blocks, self._vectorizer_of(fit), fit.probe, paired=fit.paired)

    def _table(
        self, items: Sequence[Item], names: Sequence[str], vectorizer: Vectorizer, expect: Probe | None, *, paired: bool
    ) -> Table:
        """The named columns of texts, or of texts for their queries."""
        texts = [text_of(item) for item in items]
        queries: Queries | None = None
        if paired:
            asked = [item.query for item in items if isinstance(item, Pair)]
            queries = Queries(asked, vectorizer.embedding.encoder(expect)(asked))
        embedded = self._embedded(texts, vectorizer.embedding.encoder(expect, instruct=not paired))
        return vectorizer.blocks(texts, embedded, names, queries)

    def _features_of(self, fit: Fit) -> Callable[[Sequence[RankingExample]], Rows]:
        """What gives the columns of examples that a fit values them by."""
        return lambda examples: self._columns([example.item for example in examples], fit).X

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
        """The embedding of texts, (n_texts, dim), by which they are valued.

        Of a query and a text it is the query that the instruction stands before.
        """
        if fit is None:
            return self._embedded(texts, self._embedding.encoder())
        return self._embedded(texts, self._vectorizer_of(fit).embedding.encoder(fit.probe, instruct=not fit.paired))

    def _embedded(self, texts: Sequence[str], encoder: Encoder) -> Vectors:
        """The embedding of texts, (n_texts, dim): their vectors, or what a subclass makes of them."""
        if not self._overridden():
            return encoder(texts)
        token = _batch.set((tuple(texts), encoder))
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
        """Tell whether a subclass, or an attribute of the object, replaces `_get_embedding_vector`."""
        method: Callable[..., Any] = self._get_embedding_vector
        return getattr(method, "__func__", None) is not ValueFunction._get_embedding_vector

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what was pickled, by version 0.1.0 too, which had the parts of the vectorizer one by one."""
        if "_made_with" not in state:
            state = dict(state)
            settings, embedding, blocks = (state.pop(f"_{name}") for name in ("settings", "embedding", "blocks"))
            state["_made_with"] = Vectorizer(settings, embedding, blocks)
        super().__setstate__(state)

    def __repr__(self) -> str:
        model = f"model_name={self.model_name!r}, embedding_dim={self.embedding_dim}"
        return f"{type(self).__name__}({model}, {self.ridge!r})"


def _item(text: str, query: str | None, fit: Fit) -> Item:
    """What is to be valued.

    Raises:
        InputError: a query too many or too few, or one that is no text.
    """
    if query is None:
        if fit.paired:
            raise InputError(
                "this value function values a text for a query, as its texts were rated; say which with query=."
            )
        return text
    if not fit.paired:
        raise InputError(
            "this value function values texts by themselves, as they were rated; leave out query=, or rate texts for "
            "queries."
        )
    return Pair(check_text(query, "query"), text)


def _items(texts: Sequence[str], queries: Sequence[str] | str | None, fit: Fit) -> list[Item]:
    """What is to be valued of many checked texts.

    Raises:
        InputError: as `_item`, or another number of queries than of texts.
    """
    asked: Sequence[str | None] = [queries] * len(texts) if queries is None or isinstance(queries, str) else []
    if not asked and queries is not None:
        asked = check_texts(queries, "queries")
    if len(asked) != len(texts):
        raise InputError(f"there are {len(asked)} queries for {len(texts)} texts; give one a text, or one for all.")
    return [_item(text, query, fit) for text, query in zip(texts, asked, strict=True)]


def _name_of(embedding: Embedding) -> str:
    """The name of an embedding model; of a caller's own its name, or "" without one."""
    return embedding.spec.model_name if embedding.spec.embedder is None else (embedding.identity or {}).get("model", "")


def _accepted(fit: Fit, vectorizer: Vectorizer) -> Fit:
    """A fit, known to belong to what makes the columns of texts here.

    Raises:
        StateError: it belongs to another embedding model, or other features.
    """
    vectorizer = vectorizer.like(fit.identity)
    check_identity(vectorizer.embedding, fit)
    check_blocks(vectorizer.blocks, fit)
    accepted = replace(fit, vectorizer=vectorizer)
    accepted.remember()
    return accepted


def check_identity(embedding: Embedding, fit: Any) -> None:
    """Refuse a fit of another embedding model; an anonymous one is told by its probe vectors alone.

    Raises:
        StateError: the names differ, or the number of columns.
    """
    mine, saved = embedding.identity, fit.identity
    if mine is not None and saved is not None and mine != dict(saved) and not _is_former(embedding, fit):
        differences = ", ".join(
            f"{key}: {shown(saved.get(key, LEFT_OUT.get(key, '')))} saved, "
            f"{shown(mine.get(key, LEFT_OUT.get(key, '')))} here"
            for key in sorted({*mine, *saved})
            if mine.get(key) != saved.get(key)
        )
        raise other_model(differences)
    n_columns = fit.probe.vectors.shape[1]
    if embedding.dim is not None and embedding.dim != n_columns:
        raise other_model(f"embedding_dim {n_columns} saved, {embedding.dim} here")


def _is_former(embedding: Embedding, fit: Any) -> bool:
    """Tell whether a fit of version 0.1.0 belongs to this model, which said less of it then: its vectors tell."""
    return embedding.former_identity == dict(fit.identity) and embedding.meets(fit.probe)


def check_blocks(blocks: Features, fit: Fit) -> None:
    """Refuse a fit of blocks of features that cannot be made here.

    Raises:
        StateError: a callable of the caller's own is missing.
    """
    missing = blocks.missing(fit.blocks)
    if missing:
        raise missing_features(missing)


def missing_features(names: Sequence[str]) -> StateError:
    """The refusal to value texts without the caller's own features that a value function was fitted with."""
    return StateError(
        f"the value function was fitted with the caller's own features {', '.join(map(repr, names))}; "
        "give this learner features=[…] with callables of these names."
    )
