"""The rows of X: a text, or a text for a query, becomes the columns that a fit values it by.

    text ─► Encoder ─► its vector ─────────────┐
                                               ├─► Features ─► Table: block after block; a row an item
    text, query ─► Encoder ─► the query's ─────┘

An item is a text, or a `Pair` of a query and a text where texts were rated for queries.
"""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np

from dspy_qvl.embedding import Embedding, Encoder, Probe
from dspy_qvl.errors import EmbeddingError, InputError, QVLError, check_text, check_texts
from dspy_qvl.features import OF_VECTORS, Blocks, Queries, Table
from dspy_qvl.learner.vectorizer import Vectorizer
from dspy_qvl.text import Item, Pair, text_of
from dspy_qvl.vectors import Vectors

# The texts whose vectors a subclass is making, and their encoder: its first call embeds all of them in one batch.
_batch: ContextVar[tuple[tuple[str, ...], Encoder | None]] = ContextVar("_batch", default=((), None))


@dataclass(eq=False)
class Columns:
    """Items -> rows of X; made for one call and never changed (not frozen, which would double the cost of making it).

    Attributes:
        vectorizer: the embedding model and the features.
        names: the blocks of X.
        paired: True if the items are pairs; the instruction then stands before the query, else before the text.
        expect: the probe that the model must give, checked the first time it is really asked; None for any model.
        blocks: those that a fit has, which the columns must have too; None for any.
        owner: the learner, if it has a `_get_embedding_vector` of its own; else None.
    """

    vectorizer: Vectorizer
    names: tuple[str, ...]
    paired: bool
    expect: Probe | None = None
    owner: Any = None
    blocks: Blocks | None = None

    def __call__(self, items: Sequence[Item]) -> Table:
        """All columns of items, (n, d).

        Raises:
            EmbeddingError, FeatureError: the model, a subclass or a block failed or answered wrongly.
            StateError: the model is not the one that `expect` came from.
        """
        texts, queries = [text_of(item) for item in items], None
        if self.paired:
            asked = [item.query for item in items if isinstance(item, Pair)]
            queries = Queries(asked, self.queries(asked))
        vectors = self.vectors(texts) if self.asks_model else None
        table = self.vectorizer.blocks(texts, vectors, self.names, queries)
        if self.blocks is not None and table.blocks != self.blocks:
            raise _other_blocks(table.blocks, self.blocks)
        return table

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """The columns of the embedding, (n, dim) float32: unit vectors, or what the owner makes of texts."""
        encoder = self._encoder(instruct=not self.paired)
        return encoder(texts) if self.owner is None else _owned(self.owner, texts, encoder)

    def queries(self, queries: Sequence[str]) -> Vectors:
        """The unit vectors of queries, (n, dim) float32."""
        return self._encoder(instruct=True)(queries)

    async def prepare(self, item: Item) -> None:
        """Embed an item without blocking the event loop, so that its columns cost little afterwards."""
        if self.owner is None and self.asks_model:
            await self._encoder(instruct=not self.paired).acall([text_of(item)])
            if isinstance(item, Pair):
                await self._encoder(instruct=True).acall([item.query])

    @property
    def asks_model(self) -> bool:
        """True if a block is made of vectors; the lexical model's value function has none."""
        return any(name in OF_VECTORS for name in self.names)

    def _encoder(self, *, instruct: bool) -> Encoder:
        return self.vectorizer.embedding.encoder(self.expect, instruct=instruct)


def _other_blocks(here: Blocks, fitted: Blocks) -> InputError:
    """The error that says that a text has other columns here than a fit was made of."""
    n_here, n_fitted = sum(here.widths), sum(fitted.widths)
    what = f"the text has {n_here} features, but the value function was fitted on {n_fitted}"
    if n_here == n_fitted:
        told = [
            ", ".join(
                f"{name!r} {width}{' sparse' if name in blocks.sparse else ''}"
                for name, width in zip(blocks.names, blocks.widths, strict=True)
            )
            for blocks in (here, fitted)
        ]
        what = f"the blocks have other columns here ({told[0]}) than the value function was fitted on ({told[1]})"
    return InputError(f"{what}; use the embedding model and features it was fitted with, or train again.")


def _owned(owner: Any, texts: Sequence[str], encoder: Encoder) -> Vectors:
    """The vectors that a learner's own `_get_embedding_vector` makes of texts, (n, dim) float32.

    Raises:
        EmbeddingError: it failed, or gave other than one flat vector of finite numbers, of one length for all texts.
    """
    name = f"{type(owner).__name__}._get_embedding_vector"
    token = _batch.set((tuple(texts), encoder))
    try:
        rows = [np.asarray(owner._get_embedding_vector(text), dtype=np.float32) for text in texts]
    except QVLError:
        raise
    except Exception as error:
        raise EmbeddingError(f"{name} failed or gave no vector of numbers: {error}") from error
    finally:
        _batch.reset(token)
    shapes = {row.shape for row in rows}
    if len(shapes) > 1 or any(len(shape) != 1 or shape == (0,) for shape in shapes):
        raise EmbeddingError(
            f"{name} gave shapes {sorted(shapes)}; it must give one flat vector of one length for every text."
        )
    vectors = np.stack(rows)
    if not np.isfinite(vectors).all():
        raise EmbeddingError(f"{name} gave NaN or infinity.")
    return vectors


def vector_of(text: str, embedding: Embedding) -> Vectors:
    """The unit vector of a text, (dim,), read-only; with it those of the texts that a subclass is asked for now."""
    texts, encoder = _batch.get()
    if encoder is None:
        encoder = embedding.encoder()
    if text in texts:
        encoder(texts)
        _batch.set(((), encoder))
    return encoder.vector(text)


def item_of(text: str, query: str | None, *, paired: bool) -> Item:
    """A checked text, or the pair of it and a query.

    Raises:
        InputError: a query too many or too few, or one that is no text.
    """
    if query is None:
        if paired:
            raise InputError(
                "this value function values a text for a query, as its texts were rated; say which with query=."
            )
        return text
    if not paired:
        raise InputError(
            "this value function values texts by themselves, as they were rated; leave out query=, or rate texts for "
            "queries."
        )
    return Pair(check_text(query, "query"), text)


def items_of(texts: Sequence[str], queries: Sequence[str] | str | None, *, paired: bool) -> list[Item]:
    """Checked texts as items; `queries` one for each, or one for all.

    Raises:
        InputError: as `item_of`, or another number of queries than of texts.
    """
    asked: Sequence[str | None]
    asked = [queries] * len(texts) if isinstance(queries, str | None) else check_texts(queries, "queries")
    if len(asked) != len(texts):
        raise InputError(f"there are {len(asked)} queries for {len(texts)} texts; give one a text, or one for all.")
    return [item_of(text, query, paired=paired) for text, query in zip(texts, asked, strict=True)]
