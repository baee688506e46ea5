"""The blocks beside the embedding of one learner, made once for each text."""

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dspy_qvl.embedding import MemoryCache, result_of
from dspy_qvl.errors import FeatureError, InputError, check_text, is_list, shown
from dspy_qvl.features.built_in import BUILT_IN, COSINE, LENGTH, LEXICAL, OVERLAP, PAIRED, Make
from dspy_qvl.features.table import AUTO, EMBEDDING, Blocks, Queries, Table
from dspy_qvl.vectors import Vectors, as_float32

MEMORY_BYTES = 256 * 2**20


class Features:
    """The blocks beside the embedding of one learner; each text's columns are made once and kept in memory.

    A shared resource, as the embedding is: copies of a program share it.

    Args:
        wanted: "auto" for "lexical" and "length" where cross-validation finds them worth having; None for none;
            a name, a callable, or a list of them for blocks that are always used.
        beside_lexical: True if the embedding is the lexical model, beside which "auto" needs no second one.

    Raises:
        InputError: an unknown name, a callable without one, or two blocks of one name.
    """

    def __init__(self, wanted: Any, *, beside_lexical: bool) -> None:
        self.beside_lexical = beside_lexical
        self.auto = isinstance(wanted, str) and wanted == AUTO
        if self.auto:
            entries = [LENGTH] if beside_lexical else [LEXICAL, LENGTH]
        elif wanted is None:
            entries = []
        elif isinstance(wanted, str) or callable(wanted):
            entries = [wanted]
        elif isinstance(wanted, set | frozenset | Mapping) or not is_list(wanted):
            raise InputError(
                f"features must be 'auto', None, or a list of 'lexical', 'length' and callables, "
                f"but got {type(wanted).__name__}: {shown(wanted)}."
            )
        else:
            entries = list(wanted)
        self.wanted = AUTO if self.auto else entries  # an iterator would be spent
        own: dict[str, Make | None] = {}
        for entry in entries:
            name = _name_of(entry)
            if name in own:
                raise InputError(f"features has two blocks named {shown(name)}; give each a name of its own.")
            own[name] = entry if callable(entry) else None
        self.names = tuple(own)
        self._own = own
        self._memory = {name: MemoryCache(MEMORY_BYTES) for name in {*own, *BUILT_IN}}
        self._widths: dict[str, int] = {}

    def candidates(self, *, paired: bool) -> tuple[str, ...]:
        """The blocks to learn from; for pairs, "auto" tries those of a query and a text too.

        Raises:
            InputError: a block of a query and a text, and there are no queries.
        """
        if self.auto and paired:
            return (COSINE, OVERLAP, *self.names)
        asked = [name for name in self.names if name in PAIRED]
        if asked and not paired:
            raise InputError(
                f"features has {', '.join(map(repr, asked))}, of a query and a text, but the texts were rated without "
                "a query; rate them with query=, or leave these features out."
            )
        return self.names

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of some blocks that cannot be made here: neither built in nor given."""
        return [name for name in names if name not in (*self.names, *BUILT_IN)]

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
        columns = [self._columns(name, sent, embedded, queries) for name in names]
        widths = (embedded.shape[1], *(block.shape[1] for block in columns))
        return Table(np.concatenate([embedded, *columns], axis=1), Blocks((EMBEDDING, *names), widths))

    def _columns(self, name: str, texts: Sequence[str], embedded: Vectors, queries: Queries | None) -> Vectors:
        """The columns of one block, (n, k)."""
        block = BUILT_IN.get(name)
        if block and block.make and not block.kept:
            made: Vectors = block.make(texts)
            return made
        if block is None or block.join is None:
            return np.stack(self._rows(name, texts, lambda new: self._checked(name, new)))
        if queries is None:
            raise FeatureError(f"the feature block {name!r} is of a query and a text, but there is no query.")
        if block.make:
            asked = [query if query.strip() else "" for query in queries.texts]
            return block.join(*(self._rows(name, side, block.make) for side in (asked, texts)))
        d = queries.vectors.shape[1]
        if name == COSINE:
            embedded = embedded[:, :d]  # a subclass may have put columns behind the text's vector
        if embedded.shape[1] != d:
            raise FeatureError(
                f"the feature block {name!r} needs vectors of one length, but a query has {d} columns and a text "
                f"{embedded.shape[1]}; leave it out where _get_embedding_vector changes them."
            )
        return block.join(queries.vectors, embedded)

    def _rows(self, name: str, texts: Sequence[str], make: Callable[[list[str]], Iterable[Vectors]]) -> list[Vectors]:
        """The row of each text in a block, n of them; each text's is made once."""
        memory = self._memory[name]
        rows: dict[str, Any] = {text: memory.get(_key(text)) for text in texts}
        new = [text for text, row in rows.items() if row is None]
        if new:
            for text, row in zip(new, make(new), strict=True):
                rows[text] = memory.put(_key(text), row)
        return [rows[text] for text in texts]

    def remember(self, texts: Sequence[str], columns: Mapping[str, Sequence[Vectors]]) -> None:
        """Keep columns of texts that were saved with a value function: what made them is not asked again."""
        for name, rows in columns.items():
            for text, row in zip(texts, rows, strict=True):
                self._memory[name].put(_key(text if text.strip() else ""), row)

    def _checked(self, name: str, texts: Sequence[str]) -> Vectors:
        """The columns of a block of texts, (n, k); its own answer (n,) is one column.

        Raises:
            FeatureError: the block failed, gave no table of numbers, the wrong count, no columns, NaN or infinity, or
                another width than before.
        """
        what, make = f"the feature block {name!r}", self._own.get(name) or BUILT_IN[name].make
        assert make is not None
        try:
            made = result_of(make, list(texts))
        except Exception as error:
            raise FeatureError(f"{what} failed: {type(error).__name__}: {error}") from error
        try:
            array = as_float32(made)
        except (TypeError, ValueError) as error:
            raise FeatureError(f"{what} gave something that is not a table of numbers ({error}).") from None
        table = array[:, None] if array.ndim == 1 else array
        if table.ndim != 2 or len(table) != len(texts) or table.shape[1] == 0:
            raise FeatureError(f"{what} gave an array of shape {array.shape}; it must be ({len(texts)}, k) with k > 0.")
        finite = np.isfinite(table).all(axis=1)
        if not finite.all():
            raise FeatureError(f"{what} gave NaN or infinity for text {int(np.argmin(finite))} of {len(texts)}.")
        width = self._widths.setdefault(name, table.shape[1])
        if table.shape[1] != width:
            raise FeatureError(
                f"{what} gave {width} columns before and {table.shape[1]} now; it must always give as many."
            )
        return table

    def __deepcopy__(self, memo: dict[int, Any]) -> "Features":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(Features, beside_lexical=self.beside_lexical), (self.wanted,)


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _name_of(entry: object) -> str:
    """The name of a block that was asked for.

    Raises:
        InputError: an unknown name, or a callable without a name that a saved value function could ask for it by.
    """
    if isinstance(entry, str):
        if entry not in BUILT_IN:
            raise InputError(
                f"features knows no block {shown(entry)}; there are 'lexical' and 'length', for pairs 'cosine', "
                "'overlap' and 'product', 'auto' alone, and callables."
            )
        return entry
    if not callable(entry):
        raise InputError(
            f"a block of features must be a name or a callable, but got {type(entry).__name__}: {shown(entry)}."
        )
    name = getattr(entry, "name", None) or getattr(entry, "__name__", None)
    if not isinstance(name, str) or name in (EMBEDDING, AUTO, *BUILT_IN, "<lambda>"):
        raise InputError(
            f"the callable {shown(entry)} needs a name by which a saved value function can ask for it: define it with "
            f"def, or give it an attribute `name`, other than those of the built-in blocks."
        )
    return check_text(name, "the name of a block of features")
