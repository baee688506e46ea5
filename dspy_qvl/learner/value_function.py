"""The reading half of the learner: values of texts, and the embedding model.

    text ─► item ─► kept value, or: Columns ─► row of X ─► Fit.predict ─► value

Nothing here changes what is learned, so no call takes a lock: each reads `RidgeHead.now` once and answers by that fit.
"""

import contextlib
import copy
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import dspy
import numpy as np

from dspy_qvl.embedding import Embedding, EmbeddingCache, Probe
from dspy_qvl.errors import (
    NotFittedError,
    StateError,
    check_flag,
    check_text,
    check_texts,
)
from dspy_qvl.fitting import check_alpha
from dspy_qvl.learner.columns import Columns, item_of, items_of, vector_of
from dspy_qvl.learner.fit import Fit
from dspy_qvl.learner.head import RidgeHead
from dspy_qvl.learner.learned import Learned
from dspy_qvl.learner.vectorizer import Vectorizer
from dspy_qvl.text import Item, text_of
from dspy_qvl.vectors import Array, Vectors

logger = logging.getLogger("dspy_qvl")


class ValueFunction(dspy.Module):  # type: ignore[misc]  # dspy ships no types
    """A fit that values texts; base class of `ExaminedValueFunction`, which says how sure it is of them.

    Attributes:
        ridge: the rated texts and the fit, a DSPy Parameter.
    """

    ridge: RidgeHead
    _made_with: Vectorizer  # of the constructor; `Learned.vectorizer` takes its place where a file was loaded

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
        text, fit = check_text(text), self.current_fit()
        return self._predict(item_of(text, query, paired=fit.paired), fit)

    def _predict(self, item: Item, fit: Fit) -> float:
        kept = fit.memo.values.get(item) if self._owner is None else None
        if kept is not None:
            return kept
        columns = self._columns(fit)
        value = float(fit.predict(columns([item]).X)[0])
        logger.debug("valued a text of %d characters at %g", len(text_of(item)), value)
        return fit.memo.values.keep(item, value) if columns.owner is None else value

    def predict_many(self, texts: Sequence[str], queries: Sequence[str] | str | None = None) -> Array:
        """The values of texts, (n_texts,), each what `predict` gives; `queries` one for each, or one for all."""
        return self._values(check_texts(texts), queries)

    def _values(self, texts: list[str], queries: Sequence[str] | str | None) -> Array:
        fit = self.current_fit()
        items = items_of(texts, queries, paired=fit.paired)
        return fit.predict(self._columns(fit)(items).X) if texts else np.empty(0)

    def rank_texts(self, texts: Sequence[str], query: str | None = None) -> list[tuple[str, float]]:
        """(text, value) of every text, highest first; ties in the order given, duplicates kept."""
        checked = check_texts(sorted(texts, key=repr) if isinstance(texts, set | frozenset) else texts)
        values = self._values(checked, query).tolist()
        return sorted(zip(checked, values, strict=True), key=lambda pair: -pair[1])

    # The current fit

    def current_fit(self) -> Fit:
        """The fit that texts are valued by, known to belong to this embedding model.

        Raises:
            NotFittedError, StateError: as `predict`.
        """
        now = self.ridge.now
        known = self._known(now)
        if known is None:
            fit, mine = now.fit_or_refuse(), now.vectorizer or self._made_with
            vectorizer = mine.like(fit.identity)
            vectorizer.check_model(fit)
            vectorizer.check_blocks(fit.blocks)
            accepted = replace(fit, vectorizer=vectorizer)
            accepted.remember()
            known = fit.memo.accepted.setdefault(mine, accepted)
        return known

    def _known(self, now: Learned) -> Fit | None:
        """The fit of a moment if it is known already that it belongs to this embedding model, else None."""
        fit, mine = now.fitted, now.vectorizer or self._made_with
        return fit if fit is None or fit.vectorizer is mine else fit.memo.accepted.get(mine)

    def snapshot(self) -> "ValueFunction":
        """A copy of this moment, which later learning and loading do not reach; the rest is shared."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__, ridge=copy.deepcopy(self.ridge))
        return twin

    # Columns

    def _get_embedding_vector(self, text: str) -> Vectors:
        """The features of one text, (n_features,), which a subclass may change or extend.

        While many texts are valued, the first call embeds all of them in one batch.
        """
        return vector_of(text, self._embedding)

    @property
    def _owner(self) -> "ValueFunction | None":
        """This, if a subclass or an attribute of the object replaces `_get_embedding_vector`; else None."""
        method: Any = self._get_embedding_vector
        return None if getattr(method, "__func__", None) is ValueFunction._get_embedding_vector else self

    def _columns(self, fit: Fit) -> Columns:
        """Items -> the columns that a fit values them by, also after another one was loaded."""
        blocks = fit.fitted.blocks
        return Columns(fit.vectorizer or self._vectorizer, fit.blocks, fit.paired, fit.probe, self._owner, blocks)

    def _training_columns(self, before: Learned) -> Columns:
        """Items -> all columns that may be learned from, of a fit's own model while there is one."""
        expect = None
        with contextlib.suppress(NotFittedError, StateError):  # a fit of another model will be replaced
            expect = self.current_fit().probe  # a loaded fit brings the vectors of its texts
        vectorizer, paired = self._vectorizer_at(before), before.examples[0].query is not None
        names = vectorizer.blocks.candidates(paired=paired, owned=self._owner is not None)
        return Columns(vectorizer, names, paired, expect, self._owner)

    @property
    def _vectorizer(self) -> Vectorizer:
        """The embedding model and features of this moment."""
        return self._vectorizer_at(self.ridge.now)

    def _vectorizer_at(self, now: Learned) -> Vectorizer:
        known = self._known(now)
        return (known and known.vectorizer) or now.vectorizer or self._made_with

    def _with(self, vectorizer: Vectorizer, learned: Learned) -> Learned:
        """The same, learned with a vectorizer; it is stored only where it is not the constructor's."""
        return replace(learned, vectorizer=None if vectorizer is self._made_with else vectorizer)

    @property
    def _embedding(self) -> Embedding:
        return self._vectorizer.embedding

    # The embedding model

    def embed(self, texts: Sequence[str], *, instruct: bool = True, expect: Probe | None = None) -> Vectors:
        """Unit vectors of texts, (n_texts, embedding_dim) float32; each text is embedded once and kept.

        Args:
            texts: the texts.
            instruct: True to put the instruction before each.
            expect: the probe that the model must give, or None.

        Raises:
            InputError: not texts.
            EmbeddingError: the model failed or answered wrongly.
            StateError: the model is not the one that `expect` came from.
        """
        return self._embedding.encoder(expect, instruct=check_flag(instruct, "instruct"))(check_texts(texts))

    async def aembed(self, texts: Sequence[str], *, instruct: bool = True, expect: Probe | None = None) -> Vectors:
        """As `embed`, off the event loop."""
        encoder = self._embedding.encoder(expect, instruct=check_flag(instruct, "instruct"))
        return await encoder.acall(check_texts(texts))

    @property
    def identity(self) -> dict[str, str] | None:
        """The model and the settings that change its vectors, as saved with a fit; None for an anonymous callable."""
        return self._embedding.identity

    def probe(self) -> Probe:
        """The embedding model's vectors of the probe texts."""
        return self._embedding.probe()

    def check_model(self, fit: Any) -> None:
        """Refuse a fit of another embedding model; anything with `identity` and `probe`, for instance an `Order`.

        Raises:
            StateError: the names differ, or the number of columns.
        """
        vectorizer = self._vectorizer
        if fit in vectorizer.embedding.accepted:
            return
        alike = vectorizer.like(fit.identity)
        alike.check_model(fit)
        alike.embedding.accepted.add(fit)
        if alike is not vectorizer:
            with self.ridge.changing.held:
                if self._vectorizer is vectorizer:  # no other was loaded meanwhile
                    self.ridge.put(vectorizer=alike)

    # Settings

    @property
    def model_name(self) -> str:
        """The embedding model; for `embedder=` its name, or "" without one."""
        embedding = self._embedding
        return embedding.spec.model_name if embedding.spec.embedder is None else (self.identity or {}).get("model", "")

    @property
    def embedding_dim(self) -> int | None:
        """Columns of a vector; None until the first vector is known."""
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
        """Penalty of the next fit; setting it drops the weights of blocks, which were chosen with another one."""
        return self.ridge.now.alpha

    @ridge_alpha.setter
    def ridge_alpha(self, alpha: float) -> None:
        self.ridge.put(alpha=check_alpha(alpha), alpha_tuned=False, weights=None)

    @property
    def embedder(self) -> Embedding:
        """Texts -> vectors; `usage` counts the requests, texts, tokens and cost of a hosted model."""
        return self._embedding

    @property
    def embedding_cache(self) -> EmbeddingCache:
        """The vectors in memory (`len`, `in`, `clear()`) and on disk (`info`, `prune`, `export`, `import_`).

        `put(texts, vectors)` keeps vectors that exist already, so that the model is never asked for them. Of a hosted
        model these are the vectors of the server that would be asked now.
        """
        return self._embedding.cache
