"""The state of a value function: how what it has learned is written down, and read again.

    Learned ─► dumped ─► dict of JSON ─► read ─► Learned

A state may come from anyone, so what is read is checked for what it will be used for:

    alpha                     the next fit, updates             1e-12 to 1e100 (`check_alpha`)
    weights                   the next fit                      1e-6 to 1e6, the embedding's among them
    template, query_template  texts of predictions              a field or a format string (`Rendering`)
    examples                  updates, training, feedback       texts that are UTF-8, scores within 1e75, JSON
    coef, intercept           values                            within 1e140, one for each column
    blocks: name, width       columns of a text                 each name once, with the width of our own blocks
            factor, bounds    updates, how sure a value is      columns times factors within 1e15, apart within 1e8
    n_texts                   updates, how sure a value is      none, or examples of different scores
    identity, probe           which model it belongs to         strings; at least one unit vector
    quantiles                 the scale of scores               ascending, within 1e75, not all the same
    vectors, own, queried     columns of rated texts            of n_texts; unit vectors, or zero for a blank text
    permutation_p             a warning                         above 0, at most 1

Values then are finite, and so are their scores and what is learned on from them: test_forged_states.py.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dspy_qvl import ridge, state
from dspy_qvl.embedding import IDENTITY, PROBE, dumped_probe
from dspy_qvl.errors import LARGEST_SCORE, StateError, shown
from dspy_qvl.features import EMBEDDING, PAIRED, PRODUCT, WIDTHS, Blocks
from dspy_qvl.fitting import Fitted, check_alpha, check_scores_differ
from dspy_qvl.learner.fit import TWENTIETHS, Fit
from dspy_qvl.learner.learned import Examples, Learned
from dspy_qvl.state import encode_array
from dspy_qvl.text import RankingExample, Rendering, check_metadata
from dspy_qvl.vectors import Rows, Vectors, is_unit

WHAT = "the saved value function"
# Times a million columns of float32 it is 1e184, and on the narrowest scale of scores 1e260: within float64.
LARGEST_COEF = 1e140
WEIGHTS = (1e-6, 1e6)  # of a block; cross-validation tries .1 to 2.5
ABOVE_ZERO = float(np.finfo(np.float64).smallest_subnormal)
LARGEST_FACTOR = 1e37  # float32 must hold it
LARGEST_COLUMN = 1e15  # times its factor: float32 must hold the square
# Fits give blocks the variance of the embedding, which is below 1: more, and a penalty is lost beside their squares.
LARGEST_SPAN = 1e8


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
        "weights": learned.weights,
        "template": learned.template,
        "query_template": learned.query_template,
        "examples": examples if keep_examples else None,
        "fit": None if learned.fitted is None else _dumped_fit(learned.fitted, keep_examples),
    }


def _dumped_fit(fit: Fit, keep_examples: bool) -> dict[str, Any]:
    fitted, blocks = fit.fitted, fit.fitted.blocks
    vectors, own, queried = (fit.vectors, fit.own, fit.queried) if keep_examples else (None, {}, None)
    return {
        "coef": encode_array(fit.line.coef),
        "intercept": fit.line.intercept,
        "alpha": fit.alpha,
        "blocks": [
            {"name": name, "width": width, "factor": factor, "bounds": None if bound is None else encode_array(bound)}
            for name, width, factor, bound in zip(
                blocks.names, blocks.widths, fitted.factors, fitted.bounds, strict=True
            )
        ],
        "n_texts": fit.n_texts if keep_examples else 0,
        "identity": None if fit.identity is None else dict(fit.identity),
        "probe": dumped_probe(fit.probe),
        "quantiles": encode_array(fit.quantiles),
        "vectors": None if vectors is None else _stacked(vectors),
        "own": {name: _stacked(rows) for name, rows in own.items()},
        "paired": fit.paired,
        "permutation_p": fit.permutation_p,
        "queried": {"texts": list(queried), "vectors": _stacked(queried.values())} if queried else None,
    }


def _stacked(rows: Iterable[Vectors]) -> dict[str, Any]:
    return encode_array(np.stack(list(rows)))


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


def _learned(examples: list[RankingExample] | None, fit: dict[str, Any] | None, **parts: Any) -> Learned:
    if parts["weights"] is not None and EMBEDDING not in parts["weights"]:
        raise StateError(f"the weights in {WHAT} lack that of the embedding.")
    rated = Examples(examples or ())
    return Learned(rated, fitted=None if fit is None else _fit(fit, rated), **parts)


ALPHA = state.of(int, float, check=check_alpha)
BLOCK = {
    "name": state.STRING,
    "width": state.count(1),
    "factor": state.number(ABOVE_ZERO, LARGEST_FACTOR),
    "bounds": state.optional(state.array("float32", 2, "width", check=_ascending)),
}
QUERIED = {"texts": state.listed(state.STRING), "vectors": state.array("float32", "texts", "d", check=_unit_rows)}
FIT: Mapping[str, Any] = {
    "coef": state.array("float64", None, largest=LARGEST_COEF),
    "intercept": state.number(-LARGEST_COEF, LARGEST_COEF),
    "alpha": ALPHA,
    "blocks": state.listed(state.Record("a saved block", BLOCK)),
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
EXAMPLES = {
    "texts": state.listed(state.STRING),
    "scores": state.listed(state.number(-LARGEST_SCORE, LARGEST_SCORE)),
    "metadata": state.listed(lambda entry, name, _: check_metadata(entry, name, saved=True)),
    "queries": state.listed(state.optional(state.STRING)),
}
STATE: Mapping[str, Any] = {
    "alpha": ALPHA,
    "alpha_tuned": state.of(bool),
    "weights": state.optional(state.named(state.number(*WEIGHTS))),
    "template": _template("text"),
    "query_template": _template("query"),
    "examples": state.optional(state.opened(state.Record("the saved examples", EXAMPLES, _examples))),
    "fit": state.optional(state.opened(state.Record("the saved fit", FIT, older={"permutation_p": None}))),
}


def _fit(saved: Mapping[str, Any], examples: Sequence[RankingExample]) -> Fit:
    """The fit that a state holds, if its parts agree with each other and with the rated texts.

    Raises:
        StateError: they do not.
        InputError: the rated texts have equal scores.
    """
    coef, vectors, own, queried, paired = (saved[name] for name in ("coef", "vectors", "own", "queried", "paired"))
    names, widths, factors, bounds = (tuple(block[part] for block in saved["blocks"]) for part in BLOCK)
    d, n_texts = saved["probe"].vectors.shape[1], saved["n_texts"]
    rated = tuple(examples[:n_texts])
    usual = {**WIDTHS, PRODUCT: d} if vectors is None else {**WIDTHS, PRODUCT: d, EMBEDDING: d}
    callers = {name: width for name, width in zip(names, widths, strict=True) if name not in (EMBEDDING, *usual)}
    for is_wrong, why in (
        (names[:1] != (EMBEDDING,), f"has the blocks {shown(names)}; the embedding must be the first"),
        (len(set(names)) != len(names), f"has the blocks {shown(names)}; each must be there once"),
        (sum(widths) != len(coef), f"has {sum(widths)} columns of blocks, but {len(coef)} coefficients"),
        (n_texts > len(rated), f"was learned from {n_texts} texts, but only {len(rated)} were saved with it"),
        (not rated and (vectors is not None or own or queried is not None), "has columns of texts without the texts"),
        (
            any((example.query is None) == paired for example in rated),
            f"{'needs' if paired else 'has no use for'} queries",
        ),
        (not paired and set(names) & set(PAIRED), "has blocks of a query and a text, but no queries"),
        (not paired and queried is not None, "has vectors of queries, but values texts by themselves"),
        (np.ptp(saved["quantiles"]) < 1 / LARGEST_SCORE, "has quantiles of scores that are all the same"),
    ):
        if is_wrong:
            raise StateError(f"the saved fit {why}.")
    for name, width in zip(names, widths, strict=True):
        if width != usual.get(name, width):
            raise StateError(f"the saved block {name!r} has {width} columns, but what is called so has {usual[name]}.")
    if set(own) - set(callers):
        raise StateError(f"the saved fit has columns of blocks that it was not fitted with: {shown(list(own))}.")
    if rated:
        check_scores_differ([example.score for example in rated])
    columns = {
        name: state.decode_array(rows, f"the columns of {shown(name)}", "float32", (n_texts, callers[name]))
        for name, rows in own.items()
    }
    for name, factor, bound in zip(names, factors, bounds, strict=True):
        known = [rows for rows in (bound, columns.get(name)) if rows is not None]
        if known or name not in callers:  # else the texts were not kept, so nothing will be learned on from them
            _check_factor(name, factor, known)
    alike = ("identity", "probe", "alpha", "quantiles", "vectors", "queried", "paired", "permutation_p")
    return Fit(
        Fitted(ridge.Linear(coef, saved["intercept"]), Blocks(names, widths), factors, bounds),
        rated=rated,
        own={name: tuple(rows) for name, rows in columns.items()},
        **{name: saved[name] for name in alike},
    )


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
