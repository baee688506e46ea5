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
    groups                    intervals, support, the verdict   a whole number from 0 for each of n_texts

Values then are finite, and so are their scores and what is learned on from them: test_forged_states.py.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl import state
from dspy_qvl.embedding import IDENTITY, PROBE, dumped_probe
from dspy_qvl.errors import LARGEST_SCORE, StateError
from dspy_qvl.features import EMBEDDING, LEXICAL, LEXICAL_8192, PAIRED, PRODUCT
from dspy_qvl.fitting import Weights, check_alpha, check_scores_differ
from dspy_qvl.learner.columns_state import (
    ABOVE_ZERO,
    COLUMNS,
    FIRST,
    OLDER_COLUMNS,
    POWER,
    ascending,
    dumped_columns,
    read_columns,
    stacked,
)
from dspy_qvl.learner.fit import TWENTIETHS, Fit
from dspy_qvl.learner.groups import Groups
from dspy_qvl.learner.learned import Examples, Learned
from dspy_qvl.state import encode_array
from dspy_qvl.text import RankingExample, Rendering, check_metadata
from dspy_qvl.vectors import Vectors, is_unit

WHAT = "the saved value function"
WEIGHT = (1e-6, 1e6)  # of a block; cross-validation tries .1 to 2.5


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
    vectors, own, queried = (fit.vectors, fit.own, fit.queried) if keep_examples else (None, {}, None)
    return {
        **dumped_columns(fit.fitted, own),
        "alpha": fit.alpha,
        "n_texts": fit.n_texts if keep_examples else 0,
        "identity": None if fit.identity is None else dict(fit.identity),
        "probe": dumped_probe(fit.probe),
        "quantiles": encode_array(fit.quantiles),
        "vectors": None if vectors is None else stacked(vectors),
        "paired": fit.paired,
        "permutation_p": fit.permutation_p,
        "queried": {"texts": list(queried), "vectors": stacked(queried.values())} if queried else None,
        "groups": _dumped_groups(fit.groups) if keep_examples else None,
    }


def _dumped_groups(groups: Groups | None) -> dict[str, Any] | None:
    return None if groups is None else {"by": groups.by, "numbers": encode_array(groups.numbers)}


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


def _group_numbers(numbers: NDArray[np.int32], name: str) -> NDArray[np.int32]:
    if numbers.min(initial=0) < 0 or numbers.max(initial=0) > len(numbers):
        raise StateError(f"{name} holds a number below 0, or above the number of texts.")
    return numbers


def _unit_rows(vectors: Vectors, name: str) -> tuple[Vectors, ...]:
    """The rows of (n, d), each of unit length, or zero for a blank text."""
    if not (is_unit(vectors) | ~vectors.any(axis=1)).all():
        raise StateError(f"{name} must have unit length.")
    return tuple(vectors)


def _examples(**columns: list[Any]) -> list[RankingExample]:
    if len({len(column) for column in columns.values()}) > 1:
        lengths = ", ".join(f"{len(column)} {name}" for name, column in columns.items())
        raise StateError(f"the saved examples have {lengths}.")
    return [RankingExample(*row) for row in zip(*columns.values(), strict=True)]


def _weights(entry: Any, name: str, sizes: state.Sizes) -> Weights:
    """The weights of blocks by name; up to schema 4 without a power, and of the dense block of hashed words."""
    if isinstance(entry, Mapping) and isinstance(entry.get("blocks"), Mapping):
        weights: Weights = WEIGHTS(entry, name, sizes)
    else:
        weights = Weights({LEXICAL_8192 if key == LEXICAL else key: w for key, w in NAMED(entry, name, sizes).items()})
    if not set(FIRST) & set(weights.blocks):
        raise StateError(f"the weights in {WHAT} lack that of the embedding.")
    return weights


def _learned(examples: list[RankingExample] | None, fit: dict[str, Any] | None, **parts: Any) -> Learned:
    rated = Examples(examples or ())
    return Learned(rated, fitted=None if fit is None else _fit(fit, rated), **parts)


ALPHA = state.of(int, float, check=check_alpha)
NAMED = state.named(state.number(*WEIGHT))
WEIGHTS = state.Record("the saved weights", {"blocks": NAMED, "power": POWER}, Weights)
QUERIED = {"texts": state.listed(state.STRING), "vectors": state.array("float32", "texts", "d", check=_unit_rows)}
GROUPS = {
    "by": state.optional(state.STRING),
    "numbers": state.array("int32", "n_texts", check=_group_numbers),
}
FIT: Mapping[str, Any] = {
    **COLUMNS,
    "alpha": ALPHA,
    "n_texts": state.count(0),
    "identity": IDENTITY,
    "probe": PROBE,
    "quantiles": state.array("float64", len(TWENTIETHS), largest=LARGEST_SCORE, check=ascending),
    "vectors": state.optional(state.array("float32", "n_texts", "d", check=_unit_rows)),
    "paired": state.of(bool),
    "permutation_p": state.optional(state.number(ABOVE_ZERO, 1.0)),  # since schema 4
    "queried": state.optional(
        state.Record("the saved queries", QUERIED, lambda texts, vectors: dict(zip(texts, vectors, strict=True)))
    ),
    "groups": state.optional(state.Record("the saved groups", GROUPS, Groups)),  # since schema 6
}
OLDER = {"permutation_p": None, "groups": None, **OLDER_COLUMNS}
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
    vectors, queried, paired, n_texts = (saved[name] for name in ("vectors", "queried", "paired", "n_texts"))
    d = saved["probe"].vectors.shape[1]
    fitted, own = read_columns(saved, n_texts, {PRODUCT: d} if vectors is None else {PRODUCT: d, EMBEDDING: d})
    names = fitted.blocks.names
    rated = tuple(examples[:n_texts])
    for is_wrong, why in (
        (n_texts > len(rated), f"was learned from {n_texts} texts, but only {len(rated)} were saved with it"),
        (not rated and (vectors is not None or own or queried is not None), "has columns of texts without the texts"),
        (vectors is not None and EMBEDDING not in names, "has vectors of texts, but was not learned from them"),
        (
            any((example.query is None) == paired for example in rated),
            f"{'needs' if paired else 'has no use for'} queries",
        ),
        (not paired and set(names) & set(PAIRED), "has blocks of a query and a text, but no queries"),
        (not rated and saved["groups"] is not None, "has groups of texts without the texts"),
        (not paired and queried is not None, "has vectors of queries, but values texts by themselves"),
        (np.ptp(saved["quantiles"]) < 1 / LARGEST_SCORE, "has quantiles of scores that are all the same"),
    ):
        if is_wrong:
            raise StateError(f"the saved fit {why}.")
    if rated:
        check_scores_differ([example.score for example in rated])
    alike = ("identity", "probe", "alpha", "quantiles", "vectors", "queried", "paired", "permutation_p", "groups")
    return Fit(
        fitted,
        rated=rated,
        own=own,
        **{name: saved[name] for name in alike},
    )
