"""The state of a fit's columns: blocks, coefficients, document frequencies, and the rows of the caller's own blocks.

    Fitted, own rows ─► dumped_columns ─► part of a saved fit ─► read_columns ─► Fitted, own rows

Of sparse columns only those with an entry are written: `columns` and their coefficients, `sparse_coef`, and likewise in
the frequencies and the rows.
"""

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl import ridge, state
from dspy_qvl.errors import StateError, shown
from dspy_qvl.features import EMBEDDING, LEXICAL, LEXICAL_8192, SPARSE, WIDEST, WIDTHS, Blocks, unpacked
from dspy_qvl.fitting import Fitted, Frequencies
from dspy_qvl.state import encode_array
from dspy_qvl.vectors import Array, Rows, Vectors

# Times a million columns of float32 it is 1e184, and on the narrowest scale of scores 1e260: within float64.
LARGEST_COEF = 1e140
ABOVE_ZERO = float(np.finfo(np.float64).smallest_subnormal)
LARGEST_FACTOR = 1e37  # float32 must hold it
LARGEST_COLUMN = 1e15  # times its factor: float32 must hold the square
# Fits give blocks the variance of the embedding, which is below 1: more, and a penalty is lost beside their squares.
LARGEST_SPAN = 1e8
FIRST = (EMBEDDING, LEXICAL)  # blocks that others are weighed against

OwnRows = Mapping[str, tuple[Vectors, ...]]


def dumped_columns(fitted: Fitted, own: OwnRows) -> dict[str, Any]:
    """The state of a line and its blocks, and of the rows of the caller's own blocks, as JSON; arrays as base64."""
    blocks, frequencies = fitted.blocks, fitted.frequencies
    dense, sparse = np.split(fitted.line.coef, [blocks.n_dense])
    return {
        "coef": encode_array(dense),
        **_dumped_sparse(sparse, "sparse_coef", "float64"),
        "intercept": fitted.line.intercept,
        "blocks": [
            {
                "name": name,
                "width": width,
                "sparse": name in blocks.sparse,
                "factor": factor,
                "bounds": None if bound is None else encode_array(bound),
            }
            for name, width, factor, bound in zip(
                blocks.names, blocks.widths, fitted.factors, fitted.bounds, strict=True
            )
        ],
        "frequencies": None if frequencies is None else _dumped_frequencies(frequencies),
        "own": {name: _stacked_sparse(rows) if name in blocks.sparse else stacked(rows) for name, rows in own.items()},
    }


def stacked(rows: Iterable[Vectors]) -> dict[str, Any]:
    """Rows, (k,) each, as one array of a state."""
    return encode_array(np.stack(list(rows)))


def _stacked_sparse(rows: Sequence[Vectors]) -> dict[str, Any]:
    matrix = unpacked(rows, WIDEST)
    return {
        "ends": encode_array(matrix.indptr.astype(np.int64)),
        "columns": encode_array(matrix.indices.astype(np.int32)),
        "values": encode_array(matrix.data),
    }


def _dumped_sparse(values: NDArray[Any], name: str, dtype: str) -> dict[str, Any]:
    """The entries of a long array that are not zero: their positions, "columns", and under a name their values."""
    columns = np.flatnonzero(values)
    return {"columns": encode_array(columns.astype(np.int32)), name: encode_array(values[columns].astype(dtype))}


def _dumped_frequencies(frequencies: Frequencies) -> dict[str, Any]:
    counts = _dumped_sparse(frequencies.counts, "counts", "int32")
    return {"n_texts": frequencies.n_texts, "power": frequencies.power, **counts}


def read_columns(saved: Mapping[str, Any], n_texts: int, known: Mapping[str, int]) -> tuple[Fitted, OwnRows]:
    """The line and blocks of a saved fit, and the rows of the caller's own blocks, if they agree with each other.

    Args:
        saved: the checked fields of `COLUMNS`.
        n_texts: the number of rated texts.
        known: the widths of blocks that depend on the embedding model, by name.

    Raises:
        StateError: they do not agree.
    """
    blocks, factors, bounds = _blocks(saved["blocks"])
    names, own, frequencies, usual = blocks.names, saved["own"], saved["frequencies"], {**WIDTHS, **known}
    widths = dict(zip(names, blocks.widths, strict=True))
    callers = {name: width for name, width in widths.items() if name not in (EMBEDDING, *usual)}
    coef = _coef(saved, blocks)
    for is_wrong, why in (
        (names[0] not in FIRST, f"has the blocks {shown(names)}; the embedding, or 'lexical', must be the first"),
        (frequencies is not None and LEXICAL not in names, "has frequencies of words, but no words"),
        (blocks.sparse - set(callers) != SPARSE & set(names), "has a built-in block as sparse that is not, or is"),
        (
            any(bound is not None for name, bound in zip(names, bounds, strict=True) if name in blocks.sparse),
            "has bounds of a sparse block",
        ),
        (set(own) - set(callers), f"has columns of blocks that it was not fitted with: {shown(list(own))}"),
    ):
        if is_wrong:
            raise StateError(f"the saved fit {why}.")
    for name, width in widths.items():
        if width != usual.get(name, width):
            raise StateError(f"the saved block {name!r} has {width} columns, but what is called so has {usual[name]}.")
    rows = {name: _own_rows(kept, name, n_texts, callers[name], name in blocks.sparse) for name, kept in own.items()}
    fitted = Fitted(ridge.Linear(coef, saved["intercept"]), blocks, factors, bounds, frequencies)
    check_factors(fitted, rows, set(names) - set(callers))
    return fitted, rows


def ascending(values: Rows, name: str) -> Rows:
    """The values, which must not descend.

    Raises:
        StateError: they do.
    """
    if (values[1:] < values[:-1]).any():
        raise StateError(f"{name} must ascend.")
    return values


def _columns(columns: Rows, name: str) -> Rows:
    if len(columns) and (columns[0] < 0 or (columns[1:] <= columns[:-1]).any()):
        raise StateError(f"{name} must ascend from 0 or more.")
    return columns


def _frequencies(n_texts: int, power: float, columns: Rows, counts: Rows) -> Frequencies:
    width = WIDTHS[LEXICAL]
    if (len(columns) and columns[-1] >= width) or counts.max(initial=0) > n_texts or counts.min(initial=0) < 0:
        raise StateError(f"the saved frequencies must count at most {n_texts} texts in each of {width} columns.")
    return Frequencies(n_texts, _spread(columns, counts, width), power)


def _spread(columns: Rows, values: Rows, width: int) -> Any:
    """An array that is zero but for some columns, (width,), read-only."""
    spread = np.zeros(width, dtype=values.dtype)
    spread[columns] = values
    spread.setflags(write=False)
    return spread


POWER = state.number(0.0, 1.0)
FREQUENCIES = {
    "n_texts": state.count(1),
    "power": POWER,
    "columns": state.array("int32", "counted", check=_columns),
    "counts": state.array("int32", "counted"),
}
BLOCK = {
    "name": state.STRING,
    "width": state.count(1),
    "sparse": state.of(bool),
    "factor": state.number(ABOVE_ZERO, LARGEST_FACTOR),
    "bounds": state.optional(state.array("float32", 2, "width", check=ascending)),
}
SPARSE_ROWS = {
    "ends": state.array("int64", None, check=ascending),
    "columns": state.array("int32", "m"),
    "values": state.array("float32", "m"),
}
COLUMNS: Mapping[str, Any] = {
    "coef": state.array("float64", None, largest=LARGEST_COEF),
    "intercept": state.number(-LARGEST_COEF, LARGEST_COEF),
    "columns": state.optional(state.array("int32", "columns", check=_columns)),
    "sparse_coef": state.optional(state.array("float64", "columns", largest=LARGEST_COEF)),
    "blocks": state.listed(state.Record("a saved block", BLOCK, older={"sparse": False})),
    "frequencies": state.optional(state.Record("the saved frequencies", FREQUENCIES, _frequencies)),
    "own": state.of(Mapping),  # as wide as the block of each name: see `read_columns`
}
OLDER_COLUMNS = {"columns": None, "sparse_coef": None, "frequencies": None}  # of schemas 3 and 4


def _blocks(saved: Sequence[Mapping[str, Any]]) -> tuple[Blocks, tuple[float, ...], tuple[Vectors | None, ...]]:
    """The blocks of a saved fit, their factors and bounds; the dense block of hashed words has a name of its own."""
    names, widths, sparse, factors, bounds = (tuple(block[part] for block in saved) for part in BLOCK)
    if not names or len(set(names)) != len(names):
        raise StateError(f"the saved fit has the blocks {shown(names)}; each must be there once.")
    old = WIDTHS[LEXICAL_8192]
    dense = (
        (name, is_sparse, width) == (LEXICAL, False, old)
        for name, is_sparse, width in zip(names, sparse, widths, strict=True)
    )
    if sum(width for width, is_sparse in zip(widths, sparse, strict=True) if is_sparse) > WIDEST:
        raise StateError(
            f"the saved fit has {shown(widths)} columns of blocks; sparse ones may have {WIDEST:,} at most."
        )
    names = tuple(LEXICAL_8192 if is_old else name for is_old, name in zip(dense, names, strict=True))
    return Blocks(names, widths, frozenset(np.array(names)[list(sparse)].tolist())), factors, bounds


def _coef(saved: Mapping[str, Any], blocks: Blocks) -> Array:
    """The coefficients of all columns, (d,): of dense blocks, and of the columns of sparse ones that count."""
    coef, columns, others = saved["coef"], saved["columns"], saved["sparse_coef"]
    if len(coef) != blocks.n_dense:
        raise StateError(f"the saved fit has {blocks.n_dense} columns of blocks, but {len(coef)} coefficients.")
    if not blocks.sparse:
        return np.asarray(coef)
    width = sum(blocks.widths) - blocks.n_dense
    if columns is None or others is None or (len(columns) and columns[-1] >= width):
        raise StateError(f"the saved fit must have coefficients of some of its {width} sparse columns.")
    whole = np.concatenate([coef, _spread(columns, others, width)])
    whole.setflags(write=False)
    return whole


def _own_rows(saved: Any, name: str, n: int, width: int, is_sparse: bool) -> tuple[Vectors, ...]:
    """The rows of a block of the caller's own, n of (width,), or `packed` ones of a sparse block."""
    what = f"the columns of {shown(name)}"
    if not is_sparse:
        return tuple(state.decode_array(saved, what, "float32", (n, width)))
    rows = state.Record(what, SPARSE_ROWS)(saved)
    ends, columns = rows["ends"], rows["columns"]
    if len(ends) != n + 1 or ends[0] != 0 or ends[-1] != len(columns):
        raise StateError(f"{what} must have one row for each of {n} texts.")
    starts = np.zeros(len(columns), dtype=np.bool_)
    starts[ends[:-1][ends[:-1] < len(columns)]] = True
    if len(columns) and (columns.min() < 0 or columns.max() >= width or (np.diff(columns)[~starts[1:]] <= 0).any()):
        raise StateError(f"{what} must lie within {width}, of each text ascending.")
    both = np.stack([columns.view(np.float32), rows["values"]])
    both.setflags(write=False)
    return tuple(both[:, start:end] for start, end in itertools.pairwise(ends.tolist()))


def check_factors(fitted: Fitted, own: OwnRows, unit: Collection[str] = ()) -> None:
    """Refuse factors that scale the columns of a block beyond what a fit can be updated with.

    Args:
        fitted: the blocks, their factors and bounds.
        own: rows of the caller's own blocks, by name. A block without any is not checked: nothing will be learned on.
        unit: names of other blocks; without bounds, their columns are taken to be of unit length.

    Raises:
        StateError: they do.
    """
    for name, factor, bound in zip(fitted.blocks.names, fitted.factors, fitted.bounds, strict=True):
        entries = [] if bound is None else [bound]
        if name in own and name in fitted.blocks.sparse:
            entries.append(np.concatenate([np.zeros(1, np.float32), *(row[1] for row in own[name])])[:, None])
        elif name in own:
            entries.append(np.stack(own[name]))
        if not entries and name not in unit:
            continue
        largest = max((float(np.abs(columns).max()) for columns in entries), default=1.0)
        span = max((float(np.ptp(columns.astype(np.float64), axis=0).max()) for columns in entries), default=1.0)
        if factor * largest > LARGEST_COLUMN or factor * span > LARGEST_SPAN:
            raise StateError(
                f"the saved fit multiplies the columns of {shown(name)} with {factor:g}, which makes them up to "
                f"{factor * largest:g}, and {factor * span:g} apart; they must stay within {LARGEST_COLUMN:g} and "
                f"{LARGEST_SPAN:g}."
            )
