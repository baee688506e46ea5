"""One finished fit, and how it is written down and read again.

What is read is checked as if a stranger had written it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl import ridge
from dspy_qvl.embedding import Probe, is_unit
from dspy_qvl.errors import (
    LARGEST_SCORE,
    InputError,
    StateError,
    check_alpha,
    check_count,
    check_number,
    check_score,
    check_text,
    shown,
)
from dspy_qvl.features import BUILT_IN, EMBEDDING, PAIRED, Table
from dspy_qvl.metadata import check_metadata
from dspy_qvl.moments import Array, Rows
from dspy_qvl.permutation import LEVEL
from dspy_qvl.sharing import Memo
from dspy_qvl.state import check_schema, decode_array, encode_array, opened, take
from dspy_qvl.text import Item, RankingExample, Rendering
from dspy_qvl.tuning import Fitted

Vectors = NDArray[np.float32]

TWENTIETHS = np.linspace(0.0, 1.0, 21)


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
        return hashlib.blake2b(self.line.coef.tobytes(), digest_size=16).hexdigest()

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
        return self.fitted.names[1:]

    def own_columns(self, X: Any) -> dict[str, Vectors]:
        """Of features, (n, n_features), those of each block that is the caller's own, (n, k)."""
        blocks = zip(self.fitted.names, Table(X, self.fitted.names, self.fitted.widths).blocks, strict=True)
        return {name: X[:, block] for name, block in blocks if name not in (EMBEDDING, *BUILT_IN, *PAIRED)}

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
                fit.fitted.names, fit.fitted.widths, fit.fitted.factors, fit.fitted.bounds, strict=True
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


def dumped_probe(probe: Probe) -> dict[str, Any]:
    """Probe texts and their vectors as JSON."""
    return {"texts": list(probe.texts), "vectors": encode_array(probe.vectors)}


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
        weights = {check_text(name, "a block"): _positive(weight, "a weight") for name, weight in weights.items()}
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


def _positive(value: object, what: str) -> float:
    number = check_number(value, what)
    if number <= 0:
        raise StateError(f"{what} in the saved value function must be above 0, but is {number:g}.")
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
            check_metadata(kept),
            None if query is None else check_text(query, "a query"),
        )
        for text, score, kept, query in zip(texts, scores, metadata, queries, strict=True)
    ]


def _checked_fit(entry: Mapping[str, Any], examples: Sequence[RankingExample]) -> Fit:
    what = "the saved fit"
    coef = decode_array(take(entry, "coef", Mapping, what), "coef", "float64", (None,))
    intercept = check_number(take(entry, "intercept", (int, float), what), "the saved intercept")
    if len(coef) == 0:
        raise StateError(f"{what} has no coefficients.")
    identity, probe = checked_identity(entry, what), checked_probe(entry, what)
    names, widths, factors, bounds = _checked_blocks(take(entry, "blocks", list, what))
    if sum(widths) != len(coef):
        raise StateError(f"{what} has {len(coef)} coefficients for {sum(widths)} columns.")
    n_fitted = check_count(take(entry, "n_texts", int, what), "n_texts", 0)
    if n_fitted > len(examples):
        raise StateError(f"{what} was learned from {n_fitted} texts, but only {len(examples)} were saved with it.")
    vectors = take(entry, "vectors", (Mapping, type(None)), what)
    kept: tuple[Vectors, ...] | None = None
    if vectors is not None:
        rows = decode_array(vectors, "the saved vectors", "float32", (n_fitted, probe.vectors.shape[1]))
        if not (is_unit(rows) | ~rows.any(axis=1)).all():
            raise StateError(f"{what} has vectors that are not of unit length.")
        kept = tuple(rows)
    quantiles = decode_array(take(entry, "quantiles", Mapping, what), "quantiles", "float64", (len(TWENTIETHS),))
    if (np.diff(quantiles) < 0).any() or np.abs(quantiles).max() > LARGEST_SCORE:
        raise StateError(f"the quantiles of scores in {what} do not ascend, or lie beyond ±{LARGEST_SCORE:g}.")
    own = {
        check_text(name, "a block"): decode_array(rows, f"the columns of {shown(name)}", "float32", (n_fitted, None))
        for name, rows in take(entry, "own", Mapping, what).items()
    }
    paired = take(entry, "paired", bool, what)
    if any((example.query is not None) != paired for example in examples[:n_fitted]):
        raise StateError(f"{what} {'needs' if paired else 'has no use for'} a query for each of its texts.")
    queried = take(entry, "queried", (Mapping, type(None)), what)
    asked: dict[str, Vectors] | None = None
    if queried is not None:
        texts = [check_text(text, "a query") for text in take(queried, "texts", list, what)]
        shape = (len(texts), probe.vectors.shape[1])
        rows = decode_array(queried.get("vectors"), "the vectors of queries", "float32", shape)
        if not (is_unit(rows) | ~rows.any(axis=1)).all():
            raise StateError(f"{what} has vectors of queries that are not of unit length.")
        asked = dict(zip(texts, rows, strict=True))
    p = entry.get("permutation_p")  # since schema 4
    if p is not None and not 0 < check_number(p, "permutation_p") <= 1:
        raise StateError(f"permutation_p in {what} must lie between 0 and 1, but is {shown(p)}.")
    if not paired and set(names) & set(PAIRED):
        raise StateError(f"{what} has blocks of a query and a text, but no queries.")
    blocks = dict(zip(names, widths, strict=True))
    if any(name in (EMBEDDING, *BUILT_IN, *PAIRED) or blocks.get(name) != rows.shape[1] for name, rows in own.items()):
        raise StateError(f"{what} has columns of blocks it was not fitted with: {shown(list(own))}.")
    return Fit(
        Fitted(ridge.Linear(coef, intercept), names, widths, factors, bounds),
        identity,
        probe,
        check_alpha(take(entry, "alpha", (int, float), what), f"alpha in {what}"),
        tuple(examples[:n_fitted]),
        quantiles,
        kept,
        {name: tuple(rows) for name, rows in own.items()},
        asked,
        paired,
        p,
    )


def checked_identity(entry: Mapping[str, Any], what: str) -> dict[str, str] | None:
    """What made the embedding model's vectors its own."""
    identity = take(entry, "identity", (Mapping, type(None)), what)
    if identity is not None and not all(type(k) is str and type(v) is str for k, v in identity.items()):
        raise StateError(f"identity in {what} must hold only strings.")
    return None if identity is None else dict(identity)


def checked_probe(entry: Mapping[str, Any], what: str) -> Probe:
    """What the embedding model gave for the probe texts."""
    probe = take(entry, "probe", Mapping, what)
    texts = take(probe, "texts", list, "the saved probe")
    vectors = decode_array(probe.get("vectors"), "the vectors of the probe", "float32", (len(texts), None))
    if not texts or not is_unit(vectors).all():
        raise StateError("the saved probe has no unit vectors; without them another model would go unnoticed.")
    return Probe(tuple(check_text(text, "a probe text") for text in texts), vectors)


def _checked_blocks(
    entries: list[Any],
) -> tuple[tuple[str, ...], tuple[int, ...], tuple[float, ...], tuple[Vectors | None, ...]]:
    """Names, widths, factors and bounds of the saved blocks, the embedding first."""
    what = "a saved block"
    names = tuple(check_text(take(entry, "name", str, what)) for entry in entries)
    widths = tuple(check_count(take(entry, "width", int, what), "width", 1) for entry in entries)
    factors = tuple(_positive(take(entry, "factor", (int, float), what), "a factor") for entry in entries)
    if not names or names[0] != EMBEDDING or len(set(names)) != len(names):
        raise StateError(
            f"the saved fit has the blocks {shown(names)}; the embedding must be the first, and each once."
        )
    bounds = tuple(
        None
        if take(entry, "bounds", (Mapping, type(None)), what) is None
        else decode_array(entry["bounds"], "the bounds of a block", "float32", (2, width))
        for entry, width in zip(entries, widths, strict=True)
    )
    return names, widths, factors, bounds
