"""The state of a value function: how what it has learned is written down, and read again.

    Learned ─► dumped ─► dict of JSON ─► read ─► Learned

A state may come from anyone, so what is read is checked for what it will be used for:

    alpha                     the next fit, updates             1e-12 to 1e100 (`check_alpha`)
    weights                   the next fit                      1e-6 to 1e6, that of a first block among them
    template, query_template  texts of predictions              a field or a format string (`Rendering`)
    examples                  updates, training, feedback       texts that are UTF-8, scores within 1e75, JSON
    coef, intercept           values                            within 1e140, one for each dense column
    columns, sparse_coef      values                            the sparse columns that count, ascending
    blocks: name, width       columns of a text                 each name once, with the width of our own blocks
            factor, bounds    updates, how sure a value is      columns times factors within 1e15, apart within 1e8
    frequencies               updates, how sure a value is      no column in more texts than there were
    n_texts                   updates, how sure a value is      none, or examples of different scores
    identity, probe           which model it belongs to         strings; at least one unit vector
    quantiles                 the scale of scores               ascending, within 1e75, not all the same
    vectors, own, queried     columns of rated texts            of n_texts; unit vectors, or zero for a blank text
    permutation_p             a warning                         above 0, at most 1

Values then are finite, and so are their scores and what is learned on from them: test_forged_states.py.
"""

import copy
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl import ridge, state
from dspy_qvl.embedding import IDENTITY, PROBE, dumped_probe
from dspy_qvl.errors import LARGEST_SCORE, StateError, shown
from dspy_qvl.features import (
    EMBEDDING,
    LEXICAL,
    LEXICAL_8192,
    PAIRED,
    PRODUCT,
    SPARSE,
    WIDEST,
    WIDTHS,
    Blocks,
    unpacked,
)
from dspy_qvl.fitting import Fitted, Frequencies, Weights, check_alpha, check_scores_differ
from dspy_qvl.learner.fit import TWENTIETHS, Fit
from dspy_qvl.learner.learned import Examples, Learned
from dspy_qvl.state import encode_array
from dspy_qvl.text import RankingExample, Rendering, check_metadata
from dspy_qvl.vectors import Array, Rows, Vectors, is_unit

WHAT = "the saved value function"
# Times a million columns of float32 it is 1e184, and on the narrowest scale of scores 1e260: within float64.
LARGEST_COEF = 1e140
WEIGHT = (1e-6, 1e6)  # of a block; cross-validation tries .1 to 2.5
ABOVE_ZERO = float(np.finfo(np.float64).smallest_subnormal)
LARGEST_FACTOR = 1e37  # float32 must hold it
LARGEST_COLUMN = 1e15  # times its factor: float32 must hold the square
# Fits give blocks the variance of the embedding, which is below 1: more, and a penalty is lost beside their squares.
LARGEST_SPAN = 1e8
FIRST = (EMBEDDING, LEXICAL)  # blocks that others are weighed against


def dumped(learned: Learned, *, keep_examples: bool) -> dict[str, Any]:
    """The state of a value function, as JSON; arrays as base64.

    Args:
        learned: what it has learned.
        keep_examples: whether the state holds the rated texts, their scores, metadata and vectors.
    """
    rated = learned.examples[:]
    examples = {
        "texts": [example.text for example in rated],
        "scores": [example.score for example in rated],
        "metadata": [copy.deepcopy(example.metadata) for example in rated],
        "queries": [example.query for example in rated],
    }
    return {
        "schema": state.SCHEMA,
        "alpha": learned.alpha,
        "alpha_tuned": learned.alpha_tuned,
        "weights": None if learned.weights is None else asdict(learned.weights),
        "template": learned.template,
        "query_template": learned.query_template,
        "examples": examples if keep_examples else None,
        "fit": None if learned.fitted is None else _dumped_fit(learned.fitted, keep_examples),
    }


def _dumped_fit(fit: Fit, keep_examples: bool) -> dict[str, Any]:
    fitted, blocks = fit.fitted, fit.fitted.blocks
    vectors, own, queried = (fit.vectors, fit.own, fit.queried) if keep_examples else (None, {}, None)
    dense, sparse = np.split(fit.line.coef, [blocks.n_dense])
    return {
        "coef": encode_array(dense),
        **_dumped_sparse(sparse, "sparse_coef", "float64"),
        "intercept": fit.line.intercept,
        "alpha": fit.alpha,
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
        "frequencies": None if fitted.frequencies is None else _dumped_frequencies(fitted.frequencies),
        "n_texts": fit.n_texts if keep_examples else 0,
        "identity": None if fit.identity is None else dict(fit.identity),
        "probe": dumped_probe(fit.probe),
        "quantiles": encode_array(fit.quantiles),
        "vectors": None if vectors is None else _stacked(vectors),
        "own": {name: _stacked_sparse(rows) if name in blocks.sparse else _stacked(rows) for name, rows in own.items()},
        "paired": fit.paired,
        "permutation_p": fit.permutation_p,
        "queried": {"texts": list(queried), "vectors": _stacked(queried.values())} if queried else None,
    }


def _stacked(rows: Iterable[Vectors]) -> dict[str, Any]:
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


def read(saved: object) -> Learned:
    """The content of a dumped state, without a vectorizer.

    Raises:
        StateError: another schema, or anything in it that cannot be used.
    """
    learned: Learned = state.load(saved, state.Record(WHAT, STATE, _learned))
    return learned


def _template(side: str) -> Any:
    """Reader of how texts, or their queries, were rendered."""
    return state.optional(state.of(str, check=lambda template, _: Rendering(template, what=side).text))


def _unit_rows(vectors: Vectors, name: str) -> tuple[Vectors, ...]:
    """The rows of (n, d), each of unit length, or zero for a blank text."""
    if not (is_unit(vectors) | ~vectors.any(axis=1)).all():
        raise StateError(f"{name} must have unit length.")
    return tuple(vectors)


def _ascending(values: Rows, name: str) -> Rows:
    if (values[1:] < values[:-1]).any():
        raise StateError(f"{name} must ascend.")
    return values


def _examples(**columns: list[Any]) -> list[RankingExample]:
    if len({len(column) for column in columns.values()}) > 1:
        lengths = ", ".join(f"{len(column)} {name}" for name, column in columns.items())
        raise StateError(f"the saved examples have {lengths}.")
    return [RankingExample(*row) for row in zip(*columns.values(), strict=True)]


def _columns(columns: Rows, name: str) -> Rows:
    if len(columns) and (columns[0] < 0 or (columns[1:] <= columns[:-1]).any()):
        raise StateError(f"{name} must ascend from 0 or more.")
    return columns


def _weights(entry: Any, name: str, sizes: state.Sizes) -> Weights:
    """The weights of blocks by name; up to schema 4 without a power, and of the dense block of hashed words."""
    if isinstance(entry, Mapping) and isinstance(entry.get("blocks"), Mapping):
        weights: Weights = WEIGHTS(entry, name, sizes)
    else:
        weights = Weights({LEXICAL_8192 if key == LEXICAL else key: w for key, w in NAMED(entry, name, sizes).items()})
    if not set(FIRST) & set(weights.blocks):
        raise StateError(f"the weights in {WHAT} lack that of the embedding.")
    return weights


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


def _learned(examples: list[RankingExample] | None, fit: dict[str, Any] | None, **parts: Any) -> Learned:
    rated = Examples(examples or ())
    return Learned(rated, fitted=None if fit is None else _fit(fit, rated), **parts)


ALPHA = state.of(int, float, check=check_alpha)
NAMED = state.named(state.number(*WEIGHT))
POWER = state.number(0.0, 1.0)
WEIGHTS = state.Record("the saved weights", {"blocks": NAMED, "power": POWER}, Weights)
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
    "bounds": state.optional(state.array("float32", 2, "width", check=_ascending)),
}
QUERIED = {"texts": state.listed(state.STRING), "vectors": state.array("float32", "texts", "d", check=_unit_rows)}
FIT: Mapping[str, Any] = {
    "coef": state.array("float64", None, largest=LARGEST_COEF),
    "intercept": state.number(-LARGEST_COEF, LARGEST_COEF),
    "alpha": ALPHA,
    "columns": state.optional(state.array("int32", "columns", check=_columns)),
    "sparse_coef": state.optional(state.array("float64", "columns", largest=LARGEST_COEF)),
    "blocks": state.listed(state.Record("a saved block", BLOCK, older={"sparse": False})),
    "frequencies": state.optional(state.Record("the saved frequencies", FREQUENCIES, _frequencies)),
    "n_texts": state.count(0),
    "identity": IDENTITY,
    "probe": PROBE,
    "quantiles": state.array("float64", len(TWENTIETHS), largest=LARGEST_SCORE, check=_ascending),
    "vectors": state.optional(state.array("float32", "n_texts", "d", check=_unit_rows)),
    "own": state.of(Mapping),  # as wide as the block of each name: see `_fit`
    "paired": state.of(bool),
    "permutation_p": state.optional(state.number(ABOVE_ZERO, 1.0)),  # since schema 4
    "queried": state.optional(
        state.Record("the saved queries", QUERIED, lambda texts, vectors: dict(zip(texts, vectors, strict=True)))
    ),
}
OLDER = {"permutation_p": None, "columns": None, "sparse_coef": None, "frequencies": None}
SPARSE_ROWS = {
    "ends": state.array("int64", None, check=_ascending),
    "columns": state.array("int32", "m"),
    "values": state.array("float32", "m"),
}
EXAMPLES = {
    "texts": state.listed(state.STRING),
    "scores": state.listed(state.number(-LARGEST_SCORE, LARGEST_SCORE)),
    "metadata": state.listed(lambda entry, name, _: check_metadata(entry, name, saved=True)),
    "queries": state.listed(state.optional(state.STRING)),
}
STATE: Mapping[str, Any] = {
    "alpha": ALPHA,
    "alpha_tuned": state.of(bool),
    "weights": state.optional(_weights),
    "template": _template("text"),
    "query_template": _template("query"),
    "examples": state.optional(state.opened(state.Record("the saved examples", EXAMPLES, _examples))),
    "fit": state.optional(state.opened(state.Record("the saved fit", FIT, older=OLDER))),
}


def _fit(saved: Mapping[str, Any], examples: Sequence[RankingExample]) -> Fit:
    """The fit that a state holds, if its parts agree with each other and with the rated texts.

    Raises:
        StateError: they do not.
        InputError: the rated texts have equal scores.
    """
    blocks, factors, bounds = _blocks(saved["blocks"])
    coef = _coef(saved, blocks)
    vectors, own, queried, paired = (saved[name] for name in ("vectors", "own", "queried", "paired"))
    frequencies, names = saved["frequencies"], blocks.names
    d, n_texts = saved["probe"].vectors.shape[1], saved["n_texts"]
    rated = tuple(examples[:n_texts])
    usual = {**WIDTHS, PRODUCT: d} if vectors is None else {**WIDTHS, PRODUCT: d, EMBEDDING: d}
    widths = dict(zip(names, blocks.widths, strict=True))
    callers = {name: width for name, width in widths.items() if name not in (EMBEDDING, *usual)}
    for is_wrong, why in (
        (names[0] not in FIRST, f"has the blocks {shown(names)}; the embedding, or 'lexical', must be the first"),
        (n_texts > len(rated), f"was learned from {n_texts} texts, but only {len(rated)} were saved with it"),
        (not rated and (vectors is not None or own or queried is not None), "has columns of texts without the texts"),
        (vectors is not None and EMBEDDING not in names, "has vectors of texts, but was not learned from them"),
        (
            any((example.query is None) == paired for example in rated),
            f"{'needs' if paired else 'has no use for'} queries",
        ),
        (not paired and set(names) & set(PAIRED), "has blocks of a query and a text, but no queries"),
        (not paired and queried is not None, "has vectors of queries, but values texts by themselves"),
        (frequencies is not None and LEXICAL not in names, "has frequencies of words, but no words"),
        (blocks.sparse - set(callers) != SPARSE & set(names), "has a built-in block as sparse that is not, or is"),
        (np.ptp(saved["quantiles"]) < 1 / LARGEST_SCORE, "has quantiles of scores that are all the same"),
    ):
        if is_wrong:
            raise StateError(f"the saved fit {why}.")
    for name, width in widths.items():
        if width != usual.get(name, width):
            raise StateError(f"the saved block {name!r} has {width} columns, but what is called so has {usual[name]}.")
    if set(own) - set(callers):
        raise StateError(f"the saved fit has columns of blocks that it was not fitted with: {shown(list(own))}.")
    if rated:
        check_scores_differ([example.score for example in rated])
    rows = {name: _own_rows(kept, name, n_texts, callers[name], name in blocks.sparse) for name, kept in own.items()}
    for name, factor, bound in zip(names, factors, bounds, strict=True):
        known = [] if bound is None else [bound]
        if name in blocks.sparse and name in rows:
            known.append(np.concatenate([np.zeros(1, np.float32), *(row[1] for row in rows[name])])[:, None])
        elif name in rows:
            known.append(np.stack(rows[name]))
        if known or name not in callers:  # else the texts were not kept, so nothing will be learned on from them
            _check_factor(name, factor, known)
    alike = ("identity", "probe", "alpha", "quantiles", "vectors", "queried", "paired", "permutation_p")
    return Fit(
        Fitted(ridge.Linear(coef, saved["intercept"]), blocks, factors, bounds, frequencies),
        rated=rated,
        own=rows,
        **{name: saved[name] for name in alike},
    )


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


def _check_factor(name: str, factor: float, known: Sequence[Vectors]) -> None:
    """Refuse a factor that scales the columns of a block beyond what a fit can be updated with.

    Args:
        name: of the block.
        factor: of its columns.
        known: columns of it, (m, k) each; without any, the columns are taken to be of unit length.
    """
    largest = max((float(np.abs(columns).max()) for columns in known), default=1.0)
    span = max((float(np.ptp(columns.astype(np.float64), axis=0).max()) for columns in known), default=1.0)
    if factor * largest > LARGEST_COLUMN or factor * span > LARGEST_SPAN:
        raise StateError(
            f"the saved fit multiplies the columns of {shown(name)} with {factor:g}, which makes them up to "
            f"{factor * largest:g}, and {factor * span:g} apart; they must stay within {LARGEST_COLUMN:g} and "
            f"{LARGEST_SPAN:g}."
        )
