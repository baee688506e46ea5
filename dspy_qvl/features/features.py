"""Columns beside the embedding: what an embedding forgets, told in blocks.

    "lexical"        hashed words and character n-grams (`lexical.py`): which words, where an embedding says what about
    "length"         log(1 + characters): longer is better, or worse
    a callable       your own, plain or async: a list of texts -> (n, k), a judge's score for instance

What a text is worth to a query is not in the text alone. Beside a pair's text, whose vector is the embedding, stand

    "cosine"         of the query's vector and the text's
    "overlap"        of their words and n-grams: lexical cosine, and what share of either is found in the other
    "product"        of the two vectors, column by column

A value function sees the embedding and the blocks side by side. A block counts by the weight that cross-validation
gives it (`weighting.py`); its columns share that weight, so columns on very different scales belong in blocks of
their own.

    texts ─► blocks ─► checked ─► kept in memory ─► Table: all columns of all texts, block after block
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.embedding import LexicalModel, MemoryCache, result_of
from dspy_qvl.errors import FeatureError, InputError, check_text, is_list, shown
from dspy_qvl.features.overlap import OVERLAP_MODEL, overlaps
from dspy_qvl.features.table import (
    AUTO,
    COSINE,
    EMBEDDING,
    LENGTH,
    LEXICAL,
    OVERLAP,
    PAIRED,
    PRODUCT,
    Blocks,
    Queries,
    Table,
)
from dspy_qvl.vectors import Vectors, dot_rows

Make = Callable[[Sequence[str]], Any]

# Chosen on training folds: 2,048 columns lose 2 % of the explained variance on tweets, 16,384 gain less and cost more
# memory than they are worth; beside an embedding whole words tell more than pieces of them.
LEXICAL_COLUMNS, LEXICAL_WORD_WEIGHT = 8192, 0.8
MEMORY_BYTES = 256 * 2**20


def log_lengths(texts: Sequence[str]) -> Vectors:
    """log(1 + characters), (n, 1)."""
    return np.log1p(np.array([[len(text)] for text in texts], dtype=np.float32))


BUILT_IN: Mapping[str, Make] = {LEXICAL: LexicalModel(LEXICAL_COLUMNS, LEXICAL_WORD_WEIGHT), LENGTH: log_lengths}
WIDTHS = {LEXICAL: LEXICAL_COLUMNS, LENGTH: 1, COSINE: 1, OVERLAP: 3}  # columns; "product" has the embedding's


class Features:
    """The blocks beside the embedding of one learner; each text's columns are made once and kept in memory.

    A shared resource, as the embedding is: copies of a program share it.

    Args:
        wanted: "auto" for "lexical" and "length" where cross-validation finds them worth having; None for none;
            a name, a callable, or a list of them for blocks that are always used.
        beside_lexical: whether the embedding is the lexical model, beside which "auto" needs no second one.

    Raises:
        InputError: an unknown name, a callable without one, or two blocks of one name.
    """

    def __init__(self, wanted: Any, *, beside_lexical: bool) -> None:
        self.wanted = wanted
        self.beside_lexical = beside_lexical
        self.auto = isinstance(wanted, str) and wanted == AUTO
        if self.auto:
            wanted = [LENGTH] if beside_lexical else [LEXICAL, LENGTH]
        elif wanted is None:
            wanted = []
        elif isinstance(wanted, str) or callable(wanted):
            wanted = [wanted]
        elif isinstance(wanted, set | frozenset | Mapping) or not is_list(wanted):
            raise InputError(
                f"features must be 'auto', None, or a list of 'lexical', 'length' and callables, "
                f"but got {type(wanted).__name__}: {shown(wanted)}."
            )
        wanted = list(wanted)
        self.wanted = AUTO if self.auto else wanted  # an iterator would be spent
        self._makes: dict[str, Make] = {}
        for entry in wanted:
            name, make = _named(entry)
            if name in self._makes:
                raise InputError(f"features has two blocks named {shown(name)}; give each a name of its own.")
            self._makes[name] = make
        self._memory = {name: MemoryCache(MEMORY_BYTES) for name in {*self._makes, *BUILT_IN, OVERLAP}}
        self._widths: dict[str, int] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The blocks that were asked for."""
        return tuple(self._makes)

    def candidates(self, *, paired: bool) -> tuple[str, ...]:
        """The blocks to learn from: of pairs, "auto" tries those of both sides too.

        Raises:
            InputError: a block of a query and a text, and there are no queries.
        """
        if self.auto and paired:
            return (COSINE, OVERLAP, *self._makes)
        asked = [name for name in self._makes if name in PAIRED]
        if asked and not paired:
            raise InputError(
                f"features has {', '.join(map(repr, asked))}, of a query and a text, but the texts were rated without "
                "a query; rate them with query=, or leave these features out."
            )
        return self.names

    def missing(self, names: Iterable[str]) -> list[str]:
        """Which of some blocks cannot be made here: neither built in nor given."""
        return [name for name in names if name not in (*self._makes, *BUILT_IN, *PAIRED)]

    def __call__(
        self, texts: Sequence[str], embedded: Vectors, names: Sequence[str], queries: Queries | None = None
    ) -> Table:
        """The columns of texts: their embedding, and the named blocks.

        Args:
            texts: checked texts; a blank one is taken for an empty one.
            embedded: their vectors, (n, d).
            names: blocks that are not missing here.
            queries: the query of each text, for blocks of both.

        Raises:
            FeatureError: a block failed, or gave other than one finite row a text.
        """
        if not names:
            return Table(embedded, Blocks((EMBEDDING,), (embedded.shape[1],)))
        sent = [text if text.strip() else "" for text in texts]
        columns = [
            self._of_pairs(name, sent, embedded, queries)
            if name in PAIRED and queries is not None
            else self._of_texts(name, sent)
            for name in names
        ]
        widths = (embedded.shape[1], *(block.shape[1] for block in columns))
        return Table(np.concatenate([embedded, *columns], axis=1), Blocks((EMBEDDING, *names), widths))

    def _of_texts(self, name: str, texts: Sequence[str]) -> Vectors:
        """The columns of a block, (n, k); each text's are made once."""
        if name == LENGTH:
            return log_lengths(texts)
        memory = self._memory[name]
        rows = {text: memory.get(_key(text)) for text in texts}
        new = [text for text, row in rows.items() if row is None]
        if new:
            for text, row in zip(new, self._made(name, new), strict=True):
                rows[text] = memory.put(_key(text), row)
        return np.stack([row for text in texts if (row := rows[text]) is not None])

    def _of_pairs(self, name: str, texts: Sequence[str], embedded: Vectors, queries: Queries) -> Vectors:
        """The columns of a block of queries and texts, (n, k)."""
        d, d_asked = embedded.shape[1], queries.vectors.shape[1]
        if name == COSINE and d > d_asked:  # a subclass put columns behind the text's vector
            embedded, d = embedded[:, :d_asked], d_asked
        if name in (PRODUCT, COSINE) and d != d_asked:
            raise FeatureError(
                f"the feature block {name!r} needs vectors of one length, but a query has {d_asked} columns and a text "
                f"{d}; leave it out where _get_embedding_vector changes them."
            )
        if name == PRODUCT:
            return queries.vectors * embedded
        if name == COSINE:
            return dot_rows(queries.vectors, embedded).astype(np.float32)[:, None]
        asked = [query if query.strip() else "" for query in queries.texts]
        return overlaps(self._spelled(asked), self._spelled(texts))

    def _spelled(self, texts: Sequence[str]) -> list[Vectors]:
        """Which words and n-grams are in each text, and how much each counts, (2, n_words) each."""
        memory = self._memory[OVERLAP]
        rows = {text: memory.get(_key(text)) for text in texts}
        new = [text for text, row in rows.items() if row is None]
        if new:
            made = OVERLAP_MODEL.sparse(new)
            made.sort_indices()
            for number, text in enumerate(new):
                own = slice(made.indptr[number], made.indptr[number + 1])
                rows[text] = memory.put(
                    _key(text), np.stack([made.indices[own].astype(np.int32).view(np.float32), made.data[own]])
                )
        return [row for text in texts if (row := rows[text]) is not None]

    def remember(self, texts: Sequence[str], columns: Mapping[str, Sequence[Vectors]]) -> None:
        """Keep columns of texts that were saved with a value function: what made them is not asked again."""
        for name, rows in columns.items():
            for text, row in zip(texts, rows, strict=True):
                self._memory[name].put(_key(text if text.strip() else ""), row)

    def _made(self, name: str, texts: list[str]) -> Vectors:
        make = self._makes.get(name) or BUILT_IN[name]
        try:
            made = result_of(make, list(texts))
        except Exception as error:
            raise FeatureError(f"the feature block {name!r} failed: {type(error).__name__}: {error}") from error
        table = check_table(made, len(texts), f"the feature block {name!r}")
        width = self._widths.setdefault(name, table.shape[1])
        if table.shape[1] != width:
            raise FeatureError(
                f"the feature block {name!r} gave {width} columns before and {table.shape[1]} now; it must always give "
                "as many."
            )
        return table

    def __deepcopy__(self, memo: dict[int, Any]) -> "Features":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _remake, (self.wanted, self.beside_lexical)


def _remake(wanted: Any, beside_lexical: bool) -> Features:
    return Features(wanted, beside_lexical=beside_lexical)


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _of_both_sides(texts: Sequence[str]) -> Any:
    """Stands where a block of one text has what makes it."""
    raise InputError("this block is of a query and a text, but there is no query.")


def _named(entry: object) -> tuple[str, Make]:
    """The name of a block, and what makes it."""
    if isinstance(entry, str):
        if entry not in BUILT_IN and entry not in PAIRED:
            raise InputError(
                f"features knows no block {shown(entry)}; there are 'lexical' and 'length', for pairs 'cosine', "
                "'overlap' and 'product', 'auto' alone, and callables."
            )
        return entry, BUILT_IN.get(entry, _of_both_sides)
    if not callable(entry):
        raise InputError(
            f"a block of features must be a name or a callable, but got {type(entry).__name__}: {shown(entry)}."
        )
    name = getattr(entry, "name", None) or getattr(entry, "__name__", None)
    if not isinstance(name, str) or name in (EMBEDDING, AUTO, *BUILT_IN, *PAIRED, "<lambda>"):
        raise InputError(
            f"the callable {shown(entry)} needs a name by which a saved value function can ask for it: define it with "
            f"def, or give it an attribute `name`, other than those of the built-in blocks."
        )
    return check_text(name, "the name of a block of features"), entry


def check_table(columns: object, n_texts: int, what: str) -> NDArray[np.float32]:
    """What a block of features gave for `n_texts` texts, as (n_texts, k) float32; (n_texts,) is one column.

    Raises:
        FeatureError: no table of numbers, the wrong count, no columns, NaN or infinity.
    """
    try:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
            array = np.asarray(columns, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise FeatureError(f"{what} gave something that is not a table of numbers ({error}).") from None
    shape = array.shape
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or len(array) != n_texts or array.shape[1] == 0:
        raise FeatureError(f"{what} gave an array of shape {shape}; it must be ({n_texts}, k) with k > 0.")
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise FeatureError(f"{what} gave NaN or infinity for text {int(np.argmin(finite))} of {n_texts}.")
    return array
