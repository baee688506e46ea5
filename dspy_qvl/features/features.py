"""The blocks beside the embedding of one learner, made once for each text."""

import functools
import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dspy_qvl.embedding import Embedding, MemoryCache, result_of
from dspy_qvl.errors import FeatureError, InputError, check_text, is_list, shown
from dspy_qvl.features.built_in import BUILT_IN, COSINE, LENGTH, LEXICAL, OVERLAP, PAIRED, PRODUCT, RETIRED, Make
from dspy_qvl.features.packing import NARROW, as_csr, packed, unpacked
from dspy_qvl.features.table import AUTO, EMBEDDING, Blocks, Queries, Table
from dspy_qvl.vectors import Vectors, as_float32

MEMORY_BYTES = 256 * 2**20
OF_VECTORS = (EMBEDDING, COSINE, PRODUCT)  # blocks that are made from the vectors of texts


class Features:
    """The blocks beside the embedding of one learner; each text's columns are made once and kept in memory.

    A shared resource, as the embedding is: copies of a program share it.

    Args:
        wanted: "auto" for "lexical" and "length" where cross-validation finds them worth having; None for none;
            a name, a callable, or a list of them for blocks that are always used.
        beside_lexical: True if the embedding is the lexical model, beside which "auto" needs no second one.
        in_place: True if "lexical" is learned from in place of that model's vectors.

    Raises:
        InputError: an unknown name, a callable without one, or two blocks of one name.
    """

    def __init__(self, wanted: Any, *, beside_lexical: bool, in_place: bool = False) -> None:
        self.beside_lexical, self.in_place = beside_lexical, in_place
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
        self._sparse: dict[str, bool] = {}

    @classmethod
    def beside(cls, embedding: Embedding, wanted: Any) -> "Features":
        """The blocks beside an embedding."""
        return cls(wanted, beside_lexical=embedding.is_lexical, in_place=embedding.is_sparse_lexical)

    def suits(self, embedding: Embedding) -> bool:
        """True if `beside` would make the same blocks for this embedding."""
        return (self.beside_lexical, self.in_place) == (embedding.is_lexical, embedding.is_sparse_lexical)

    def candidates(self, *, paired: bool, owned: bool = False) -> tuple[str, ...]:
        """The blocks to learn from, the first of them the embedding or what stands in its place.

        Args:
            paired: True for texts that were rated for queries; "auto" then tries blocks of a query and a text too.
            owned: True if a subclass makes the vectors of texts: then they are learned from.

        Raises:
            InputError: a block of a query and a text, and there are no queries.
        """
        return tuple(dict.fromkeys([LEXICAL if self.in_place and not owned else EMBEDDING, *self._asked(paired)]))

    def _asked(self, paired: bool) -> Sequence[str]:
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
        return [name for name in names if name not in (EMBEDDING, *self.names, *BUILT_IN)]

    def __call__(
        self, texts: Sequence[str], embedded: Vectors | None, names: Sequence[str], queries: Queries | None = None
    ) -> Table:
        """The named blocks of columns of texts.

        Args:
            texts: checked texts; a blank one is taken for an empty one.
            embedded: their vectors, (n, d), for the blocks in `OF_VECTORS`; else None.
            names: blocks that are not missing here.
            queries: the query of each text, for blocks of both.

        Raises:
            FeatureError: a block failed, or gave other than one finite row a text.
        """
        sent = [text if text.strip() else "" for text in texts]
        return Table.of({name: self._columns(name, sent, embedded, queries) for name in names})

    def _columns(self, name: str, texts: Sequence[str], embedded: Vectors | None, queries: Queries | None) -> Any:
        """The columns of one block, (n, k)."""
        if name == EMBEDDING:
            return embedded
        block = BUILT_IN.get(name)
        if block and block.make and not block.kept:
            return block.make(texts)
        if block is None or block.join is None:
            rows = self._rows(name, texts, lambda new: self._checked(name, new))
            return unpacked(rows, self._widths[name]) if rows[0].ndim == 2 else np.stack(rows)
        if queries is None:
            raise FeatureError(f"the feature block {name!r} is of a query and a text, but there is no query.")
        if block.make:
            asked = [query if query.strip() else "" for query in queries.texts]
            return block.join(*(self._rows(name, side, block.make) for side in (asked, texts)))
        assert embedded is not None
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

    def remember(self, texts: Sequence[str], columns: Mapping[str, Sequence[Vectors]], blocks: Blocks) -> None:
        """Keep rows of texts that were saved with a value function: the callable is not asked for them again.

        Args:
            texts: the texts.
            columns: the rows of the caller's own blocks, by name.
            blocks: those of the value function: the caller's own must be as wide, and sparse or not.
        """
        for name, width in zip(blocks.names, blocks.widths, strict=True):
            if name not in (EMBEDDING, *BUILT_IN):
                self._widths.setdefault(name, width)
                self._sparse.setdefault(name, name in blocks.sparse)
        for name, rows in columns.items():
            for text, row in zip(texts, rows, strict=True):
                self._memory[name].put(_key(text if text.strip() else ""), row)

    def _checked(self, name: str, texts: Sequence[str]) -> Any:
        """The rows of a block of texts, n of (k,), or n `packed` ones; its own answer (n,) is one column.

        Raises:
            FeatureError: the block failed, gave no table of numbers, the wrong count, no columns, NaN or infinity,
                another width than before, or sparse rows and dense ones.
        """
        what, make = f"the feature block {name!r}", self._own.get(name) or BUILT_IN[name].make
        assert make is not None
        try:
            made = result_of(make, list(texts))
        except Exception as error:
            raise FeatureError(f"{what} failed: {type(error).__name__}: {error}") from error
        is_sparse = "scipy.sparse" in sys.modules and sys.modules["scipy.sparse"].issparse(made)
        try:
            if is_sparse and made.ndim == 2 and made.shape[1] < NARROW:
                made, is_sparse = as_csr(made).toarray(), False
            array: Any = as_csr(made) if is_sparse else as_float32(made)
        except (TypeError, ValueError) as error:
            raise FeatureError(f"{what} gave something that is not a table of numbers ({error}).") from None
        table = array[:, None] if array.ndim == 1 and not is_sparse else array
        if table.ndim != 2 or table.shape[0] != len(texts) or table.shape[1] == 0:
            raise FeatureError(f"{what} gave an array of shape {array.shape}; it must be ({len(texts)}, k) with k > 0.")
        finite = np.isfinite(table.data) if is_sparse else np.isfinite(table).all(axis=1)
        if not finite.all():
            first = int(np.argmin(finite))
            number = int(np.searchsorted(table.indptr, first, side="right")) - 1 if is_sparse else first
            raise FeatureError(f"{what} gave NaN or infinity for text {number} of {len(texts)}.")
        width = self._widths.setdefault(name, table.shape[1])
        if table.shape[1] != width:
            raise FeatureError(
                f"{what} gave {width} columns before and {table.shape[1]} now; it must always give as many."
            )
        if self._sparse.setdefault(name, is_sparse) != is_sparse:
            raise FeatureError(
                f"{what} gave a {'dense' if is_sparse else 'sparse'} table before and a "
                f"{'sparse' if is_sparse else 'dense'} one now; it must always give the same kind."
            )
        return packed(table) if is_sparse else table

    def __deepcopy__(self, memo: dict[int, Any]) -> "Features":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        settings = {"beside_lexical": self.beside_lexical, "in_place": self.in_place}
        return functools.partial(Features, **settings), (self.wanted,)


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _name_of(entry: object) -> str:
    """The name of a block that was asked for.

    Raises:
        InputError: an unknown name, or a callable without a name that a saved value function could ask for it by.
    """
    if isinstance(entry, str):
        if entry not in BUILT_IN or entry in RETIRED:
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
