"""One finished fit, and how it is written down and read again.

What is read is checked as if a stranger had written it, for what it will be used for:

    alpha                     the next fit, updates             at least 1e-12 (`check_alpha`)
    weights                   the next fit                      1e-6 to 1e6, the embedding's among them
    template, query_template  texts of predictions              a field or a format string (`Rendering`)
    examples                  updates, training, feedback       texts that are UTF-8, scores within 1e75, JSON
    coef, intercept           values                            within 1e140, one for each column
    blocks: name, width       columns of a text                 each name once and as wide as it is anywhere
            factor, bounds    updates, how sure a value is      columns times factors within 1e15, apart within 1e8
    n_texts                   updates, how sure a value is      none, or examples of different scores
    identity, probe           which model it belongs to         strings; at least one unit vector
    quantiles                 the scale of scores               ascending, within 1e75, not all the same
    vectors, own, queried     what was rated, not asked again   of n_texts; unit vectors, or zero for a blank text
    permutation_p             a warning                         above 0, at most 1

Values then are finite, and so are their scores and what is learned on from them: test_forged_states.py.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dspy_qvl import ridge
from dspy_qvl.embedding import Probe, checked_identity, checked_probe, dumped_probe
from dspy_qvl.errors import (
    LARGEST_SCORE,
    InputError,
    StateError,
    check_count,
    check_number,
    check_score,
    check_text,
    shown,
)
from dspy_qvl.features import BUILT_IN, EMBEDDING, PAIRED, PRODUCT, WIDTHS, Blocks
from dspy_qvl.fitting import LEVEL, Fitted, check_alpha, check_scores_differ
from dspy_qvl.learner.memo import Memo
from dspy_qvl.learner.vectorizer import Vectorizer
from dspy_qvl.state import check_schema, decode_array, encode_array, opened, take
from dspy_qvl.text import Item, RankingExample, Rendering, check_metadata
from dspy_qvl.vectors import Array, Rows, Vectors, is_unit

TWENTIETHS = np.linspace(0.0, 1.0, 21)

# Times a million columns of float32 it is 1e184, and on the narrowest scale of scores 1e260: within float64.
LARGEST_COEF = 1e140
WEIGHTS = (1e-6, 1e6)  # of a block; cross-validation tries .1 to 2.5
LARGEST_FACTOR = 1e37  # float32 must hold it
LARGEST_COLUMN = 1e15  # times its factor: float32 must hold the square
# Fits give blocks the variance of the embedding, which is below 1: more, and a penalty is lost beside their squares.
LARGEST_SPAN = 1e8


@dataclass(frozen=True, eq=False)
class Fit:
    """One finished fit; replaced as a whole, shared by copies, never changed.

    Attributes:
        fitted: coefficients (n_features,) and intercept, in the units of the scores, and the blocks they are of.
        identity: what makes the embedding model's vectors its own, or None for an anonymous callable.
        probe: what that model gave for the probe texts.
        alpha: its penalty.
        rated: the rated texts it was learned from, the first ones of the head's; none where they were not kept.
        quantiles: of their scores, ascending, (21,): the lowest, each twentieth, the highest.
        vectors: their unit vectors, (dim,) each, or None if they are not kept.
        own: their columns of each block that is the caller's own, (k,) each.
        queried: unit vectors of their queries, (dim,) each, where texts were rated for queries; else None.
        paired: whether a text is valued for a query.
        permutation_p: of the permutation test (`permutation.py`) when it was last trained; None where there was none.
        memo: what follows from the fit; not saved.
        vectorizer: what makes the columns of texts, once it is known that the fit belongs to it; not saved.
    """

    fitted: Fitted
    identity: Mapping[str, str] | None
    probe: Probe
    alpha: float
    rated: tuple[RankingExample, ...]
    quantiles: Array
    vectors: tuple[Vectors, ...] | None
    own: Mapping[str, tuple[Vectors, ...]] = field(default_factory=dict)
    queried: Mapping[str, Vectors] | None = None
    paired: bool = False
    permutation_p: float | None = None
    memo: Memo = field(default_factory=Memo)
    vectorizer: Vectorizer | None = None

    @property
    def n_texts(self) -> int:
        """How many rated texts it was learned from, as far as they were kept."""
        return len(self.rated)

    @property
    def texts(self) -> list[str]:
        """The texts of `rated`."""
        return [example.text for example in self.rated]

    @property
    def items(self) -> list[Item]:
        """What was rated: texts, or texts for their queries."""
        return [example.item for example in self.rated]

    @property
    def scores(self) -> Array:
        """The scores of `rated`, (n_texts,)."""
        return np.array([example.score for example in self.rated], dtype=np.float64)

    @property
    def digest(self) -> str:
        """A short stand-in for the coefficients."""
        return self.memo.once("digest", lambda: hashlib.blake2b(self.line.coef.tobytes(), digest_size=16).hexdigest())

    @property
    def line(self) -> ridge.Linear:
        """Coefficients and intercept."""
        return self.fitted.line

    @property
    def is_noise(self) -> bool:
        """The permutation test could not tell it from a fit to shuffled ratings."""
        return self.permutation_p is not None and self.permutation_p > LEVEL

    @property
    def blocks(self) -> tuple[str, ...]:
        """The blocks beside the embedding."""
        return self.fitted.blocks.names[1:]

    def own_columns(self, X: Any) -> dict[str, Vectors]:
        """Of features, (n, n_features), those of each block that is the caller's own, (n, k)."""
        columns: dict[str, Any] = self.fitted.blocks.of(X)
        return {name: columns[name] for name in columns if name not in (EMBEDDING, *BUILT_IN, *PAIRED)}

    def remember(self, rows: Iterable[int] | None = None) -> None:
        """Keep in memory the columns it learned its texts by, or some rows: what makes them is not asked again."""
        if self.vectorizer is None:
            return
        chosen = list(range(self.n_texts) if rows is None else rows)
        texts = [self.rated[row].text for row in chosen]
        embedding = self.vectorizer.embedding
        if self.vectors is not None:
            encoder = embedding.encoder(instruct=not self.paired)
            encoder.remember(texts, [self.vectors[row] for row in chosen])
        if self.queried is not None:
            asked = dict.fromkeys(self.rated[row].query for row in chosen)
            known = {query: vector for query, vector in self.queried.items() if query in asked}
            embedding.encoder().remember(list(known), list(known.values()))
        self.vectorizer.blocks.remember(texts, {name: [kept[row] for row in chosen] for name, kept in self.own.items()})

    def predict(self, X: Rows) -> Array:
        """Values of features, (n, n_features) -> (n,), on the scale of the scores.

        Raises:
            InputError: another number of features than the fit has.
        """
        if X.shape[1] != len(self.line.coef):
            raise InputError(
                f"the text has {X.shape[1]} features, but the value function was fitted on {len(self.line.coef)}; "
                "use the embedding model and features it was fitted with, or train again."
            )
        return ridge.predict(self.fitted.within(X), self.line)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Fit":
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "vectorizer": None}  # in another process its vectors are not in memory yet


def quantiles(scores: Sequence[float] | Array) -> Array:
    """The lowest score, each twentieth of them, the highest, (21,)."""
    twentieths: Array = np.quantile(np.asarray(scores, dtype=np.float64), TWENTIETHS)
    return twentieths


def dumped(fit: Fit, *, keep_examples: bool) -> dict[str, Any]:
    """A fit as JSON; of the rated texts' vectors only what may be kept."""
    vectors, own, queried = (fit.vectors, fit.own, fit.queried) if keep_examples else (None, {}, None)
    return {
        "coef": encode_array(fit.line.coef),
        "intercept": fit.line.intercept,
        "alpha": fit.alpha,
        "blocks": [
            {
                "name": name,
                "width": width,
                "factor": factor,
                "bounds": None if bound is None else encode_array(bound),
            }
            for name, width, factor, bound in zip(
                fit.fitted.blocks.names, fit.fitted.blocks.widths, fit.fitted.factors, fit.fitted.bounds, strict=True
            )
        ],
        "n_texts": fit.n_texts if keep_examples else 0,
        "identity": None if fit.identity is None else dict(fit.identity),
        "probe": dumped_probe(fit.probe),
        "quantiles": encode_array(fit.quantiles),
        "vectors": None if vectors is None else encode_array(np.stack(vectors)),
        "own": {name: encode_array(np.stack(rows)) for name, rows in own.items()},
        "paired": fit.paired,
        "permutation_p": fit.permutation_p,
        "queried": None
        if not queried
        else {"texts": list(queried), "vectors": encode_array(np.stack(list(queried.values())))},
    }


def checked(
    state: object,
) -> tuple[float, bool, dict[str, float] | None, tuple[str | None, str | None], list[RankingExample], Fit | None]:
    """The parts of a dumped state, each checked as if a stranger had written it."""
    what = "the saved value function"
    check_schema(take(state, "schema", int, what), what)
    alpha = check_alpha(take(state, "alpha", (int, float), what), f"alpha in {what}")
    tuned = take(state, "alpha_tuned", bool, what)
    weights = take(state, "weights", (Mapping, type(None)), what)
    if weights is not None:
        weights = {
            check_text(name, "a block"): _within(weight, WEIGHTS, "a weight") for name, weight in weights.items()
        }
        if EMBEDDING not in weights:
            raise StateError(f"the weights in {what} lack that of the embedding.")
    templates = (
        take(state, "template", (str, type(None)), what),
        take(state, "query_template", (str, type(None)), what),
    )
    for template, side in zip(templates, ("text", "query"), strict=True):
        if template is not None:
            Rendering(template, what=side)
    examples = _checked_examples(opened(state, "examples", what))
    fit = opened(state, "fit", what)
    return alpha, tuned, weights, templates, examples, None if fit is None else _checked_fit(fit, examples)


def _within(value: object, bounds: tuple[float, float], what: str) -> float:
    number = check_number(value, what)
    if not bounds[0] <= number <= bounds[1]:
        raise StateError(
            f"{what} in the saved value function must lie between {bounds[0]:g} and {bounds[1]:g}, but is {number:g}."
        )
    return number


def _checked_examples(entry: Mapping[str, Any] | None) -> list[RankingExample]:
    if entry is None:
        return []
    what = "the saved examples"
    texts, scores, metadata, queries = (
        take(entry, name, list, what) for name in ("texts", "scores", "metadata", "queries")
    )
    if not len(texts) == len(scores) == len(metadata) == len(queries):
        raise StateError(
            f"{what} have {len(texts)} texts, {len(scores)} scores, {len(metadata)} metadata, {len(queries)} queries."
        )
    return [
        RankingExample(
            check_text(text),
            check_score(score, "score"),
            check_metadata(kept, saved=True),
            None if query is None else check_text(query, "a query"),
        )
        for text, score, kept, query in zip(texts, scores, metadata, queries, strict=True)
    ]


def _checked_fit(entry: Mapping[str, Any], examples: Sequence[RankingExample]) -> Fit:
    what = "the saved fit"
    coef = decode_array(take(entry, "coef", Mapping, what), "coef", "float64", (None,))
    limits = (-LARGEST_COEF, LARGEST_COEF)
    intercept = _within(take(entry, "intercept", (int, float), what), limits, "the intercept")
    if len(coef) == 0:
        raise StateError(f"{what} has no coefficients.")
    if np.abs(coef).max() > LARGEST_COEF:
        raise StateError(f"{what} has a coefficient beyond ±{LARGEST_COEF:g}.")
    identity, probe = checked_identity(entry, what), checked_probe(entry, what)
    d = probe.vectors.shape[1]
    n_fitted = check_count(take(entry, "n_texts", int, what), "n_texts", 0)
    if n_fitted > len(examples):
        raise StateError(f"{what} was learned from {n_fitted} texts, but only {len(examples)} were saved with it.")
    rated = tuple(examples[:n_fitted])
    if rated:
        check_scores_differ([example.score for example in rated])
    names, widths, factors, bounds = _checked_blocks(take(entry, "blocks", list, what), d)
    if sum(widths) != len(coef):
        raise StateError(f"{what} has {sum(widths)} columns of blocks, but {len(coef)} coefficients.")
    paired = take(entry, "paired", bool, what)
    if any((example.query is not None) != paired for example in rated):
        raise StateError(f"{what} {'needs' if paired else 'has no use for'} a query for each of its texts.")
    if not paired and set(names) & set(PAIRED):
        raise StateError(f"{what} has blocks of a query and a text, but no queries.")
    vectors = take(entry, "vectors", (Mapping, type(None)), what)
    if vectors is not None and widths[0] != d:
        raise StateError(f"{what} has {widths[0]} columns of an embedding of {d}.")
    own = _checked_own(take(entry, "own", Mapping, what), n_fitted, dict(zip(names, widths, strict=True)))
    for name, factor, bound in zip(names, factors, bounds, strict=True):
        _check_factor(name, factor, [array for array in (bound, own.get(name)) if array is not None])
    queried = take(entry, "queried", (Mapping, type(None)), what)
    if not rated and (vectors is not None or own or queried is not None):
        raise StateError(f"{what} has vectors or columns of rated texts, but no rated texts.")
    p = entry.get("permutation_p")  # since schema 4
    if p is not None and not 0 < check_number(p, "permutation_p") <= 1:
        raise StateError(f"permutation_p in {what} must lie between 0 and 1, but is {shown(p)}.")
    return Fit(
        Fitted(ridge.Linear(coef, intercept), Blocks(names, widths), factors, bounds),
        identity,
        probe,
        check_alpha(take(entry, "alpha", (int, float), what), f"alpha in {what}"),
        rated,
        _checked_quantiles(take(entry, "quantiles", Mapping, what)),
        None if vectors is None else tuple(_unit_rows(vectors, "the saved vectors", (n_fitted, d))),
        {name: tuple(rows) for name, rows in own.items()},
        _checked_queried(queried, d, paired=paired),
        paired,
        p,
    )


def _checked_own(entries: Mapping[Any, Any], n_texts: int, widths: Mapping[str, int]) -> dict[str, Vectors]:
    """The columns of rated texts of blocks that are the caller's own, (n_texts, k) each."""
    own = {}
    for name, rows in entries.items():
        name = check_text(name, "a block")
        if name in (EMBEDDING, *BUILT_IN, *PAIRED) or name not in widths:
            raise StateError(f"the saved fit has columns of a block it was not fitted with: {shown(name)}.")
        own[name] = decode_array(rows, f"the columns of {shown(name)}", "float32", (n_texts, widths[name]))
    return own


def _check_factor(name: str, factor: float, known: Sequence[Vectors]) -> None:
    """Refuse a factor that makes of a block's columns what no fit could be updated with.

    Args:
        name: of the block.
        factor: what its columns are multiplied with.
        known: columns of it, (m, k) each; without any, those of our own blocks are taken to be of unit length.
    """
    if not known and name not in (EMBEDDING, *BUILT_IN, *PAIRED):
        return  # the rated texts were not kept, so nothing will be learned on from them
    largest = max((float(np.abs(columns).max()) for columns in known), default=1.0)
    span = max((float(np.ptp(columns.astype(np.float64), axis=0).max()) for columns in known), default=1.0)
    if factor * largest > LARGEST_COLUMN or factor * span > LARGEST_SPAN:
        raise StateError(
            f"the saved fit multiplies the columns of {shown(name)} with {factor:g}, which makes them up to "
            f"{factor * largest:g}, and {factor * span:g} apart; they must stay within {LARGEST_COLUMN:g} and "
            f"{LARGEST_SPAN:g}."
        )


def _checked_quantiles(entry: object) -> Array:
    """The quantiles of scores, (21,), of which at least two differ."""
    quantiles = decode_array(entry, "quantiles", "float64", (len(TWENTIETHS),))
    apart = quantiles[-1] - quantiles[0] >= 1 / LARGEST_SCORE
    if not apart or (np.diff(quantiles) < 0).any() or np.abs(quantiles).max() > LARGEST_SCORE:
        raise StateError(f"the saved quantiles of scores do not ascend, or lie beyond ±{LARGEST_SCORE:g}.")
    return quantiles


def _checked_queried(entry: Mapping[str, Any] | None, d: int, *, paired: bool) -> dict[str, Vectors] | None:
    """Vectors of queries, by query."""
    if entry is None:
        return None
    if not paired:
        raise StateError("the saved fit has vectors of queries, but values texts by themselves.")
    texts = [check_text(text, "a query") for text in take(entry, "texts", list, "the saved fit")]
    rows = _unit_rows(entry.get("vectors"), "the vectors of queries", (len(texts), d))
    return dict(zip(texts, rows, strict=True))


def _unit_rows(entry: object, what: str, shape: tuple[int, int]) -> Vectors:
    """Vectors of unit length, or zero for a blank text."""
    rows = decode_array(entry, what, "float32", shape)
    if not (is_unit(rows) | ~rows.any(axis=1)).all():
        raise StateError(f"{what} are not of unit length.")
    return rows


def _checked_blocks(
    entries: list[Any], d: int
) -> tuple[tuple[str, ...], tuple[int, ...], tuple[float, ...], tuple[Vectors | None, ...]]:
    """Names, widths, factors and bounds of the saved blocks, the embedding, of vectors of d columns, first."""
    what = "a saved block"
    names = tuple(check_text(take(entry, "name", str, what)) for entry in entries)
    if not names or names[0] != EMBEDDING or len(set(names)) != len(names):
        raise StateError(
            f"the saved fit has the blocks {shown(names)}; the embedding must be the first, and each once."
        )
    widths = tuple(check_count(take(entry, "width", int, what), "width", 1) for entry in entries)
    for name, width in zip(names, widths, strict=True):
        usual = {**WIDTHS, PRODUCT: d}.get(name, width)
        if width != usual:
            raise StateError(f"the saved block {name!r} has {width} columns, but what is called so has {usual}.")
    smallest = np.finfo(np.float64).smallest_subnormal
    factors = tuple(
        _within(take(entry, "factor", (int, float), what), (smallest, LARGEST_FACTOR), "a factor") for entry in entries
    )
    bounds = tuple(
        None
        if take(entry, "bounds", (Mapping, type(None)), what) is None
        else decode_array(entry["bounds"], "the bounds of a block", "float32", (2, width))
        for entry, width in zip(entries, widths, strict=True)
    )
    if any(bound is not None and (bound[0] > bound[1]).any() for bound in bounds):
        raise StateError("the saved bounds of a block are not a lowest and a highest value.")
    return names, widths, factors, bounds
