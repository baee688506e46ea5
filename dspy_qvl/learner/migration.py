"""Old and new values side by side, where rated texts are learned anew with another embedding model.

    saved fit ─► values of left-out texts, old ─┐
                                                ├─► Migration: correlations, figures, largest moves
    new fit ─► values of left-out texts, new ───┘

Each rated text is valued by the fit of all the others: a fitted value holds the text's own rating, which would make any
two models agree. The old values follow from what was saved, without asking the old model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dspy_qvl import measures
from dspy_qvl.embedding import LEXICAL, Embedding, ModelSpec
from dspy_qvl.errors import shown
from dspy_qvl.features import EMBEDDING, OF_VECTORS, Features, Queries, Table, unpacked
from dspy_qvl.fitting import left_out
from dspy_qvl.learner.fit import Fit
from dspy_qvl.text import RankingExample
from dspy_qvl.vectors import Array, Vectors

N_MOVES = 10


@dataclass(frozen=True)
class Move:
    """A rated text with its old and its new value, both from the other rated texts.

    Attributes:
        text: the text.
        query: the query it was rated for, or None.
        score: its rating.
        old: its value before.
        new: its value now.
    """

    text: str
    query: str | None
    score: float
    old: float
    new: float


@dataclass(frozen=True, eq=False)
class Migration:
    """Old values against new ones, each text valued by the fit of all other rated texts.

    Attributes:
        n_texts: rated texts that both models learned from.
        pearson: correlation of old and new values, in [-1, 1].
        spearman: their rank correlation.
        old: "mse", "r2", "pearson" and "spearman" of the old values with the ratings; no correlation, NaN, where they
            are no better than the mean.
        new: the same of the new values. The penalty was chosen on the same ratings.
        moves: the texts whose value moved most, at most 10, the largest move first.
        old_values: (n_texts,), in the order of the texts; NaN, as are the figures, where they are unknown.
        new_values: (n_texts,).
        chosen: the penalty, the weights of blocks and so on, as `optimize_hyperparameters` gives them.
    """

    n_texts: int
    pearson: float
    spearman: float
    old: dict[str, float]
    new: dict[str, float]
    moves: tuple[Move, ...]
    old_values: Array
    new_values: Array
    chosen: dict[str, Any]

    def __str__(self) -> str:
        learned = f"learned {self.n_texts} rated texts anew; values below are of texts left out"
        after = f"with the ratings, new values: {_told(self.new)}"
        if not np.isfinite(self.old_values).any():
            return f"{learned}\n{after}\nwhat was saved does not tell the old values"
        lines = [
            learned,
            f"old with new values: Spearman {self.spearman:.2f}, Pearson {self.pearson:.2f}",
            f"with the ratings, old values: {_told(self.old)}",
            after,
            "moved most:",
        ]
        lines += [
            f"  {move.old:.3g} -> {move.new:.3g}, rated {move.score:.3g}: {shown(move.text)}" for move in self.moves
        ]
        return "\n".join(lines)


def _told(figures: dict[str, float]) -> str:
    if math.isnan(figures["spearman"]):
        return f"R² {figures['r2']:.2f}, no better than their mean"
    return f"Spearman {figures['spearman']:.2f}, R² {figures['r2']:.2f}"


def compared(rated: Sequence[RankingExample], old: Array, new: Array, chosen: dict[str, Any]) -> Migration:
    """The report on old and new values of rated texts, (n_texts,) each."""
    ratings = np.array([example.score for example in rated])
    both, of_new = np.flatnonzero(np.isfinite(old) & np.isfinite(new)), np.isfinite(new)
    largest = both[np.argsort(-np.abs(new - old)[both], kind="stable")][:N_MOVES].tolist()
    return Migration(
        len(rated),
        measures.pearson(old[both], new[both]),
        measures.spearman(old[both], new[both]),
        _figures(ratings[both], old[both]),
        _figures(ratings[of_new], new[of_new]),
        tuple(
            Move(rated[row].text, rated[row].query, rated[row].score, float(old[row]), float(new[row]))
            for row in largest
        ),
        old,
        new,
        chosen,
    )


def _figures(ratings: Array, values: Array) -> dict[str, float]:
    """Figures of values of left-out texts; no correlation where they are no better than the mean of the others.

    That mean is lower where the text left out was rated higher, so a fit that learned nothing would correlate at -1.
    """
    figures = measures.figures(ratings, values)
    return figures if figures["r2"] > 0 else {**figures, "pearson": math.nan, "spearman": math.nan}


def saved_values(fit: Fit) -> Array:
    """The value of each rated text of a fit by the fit of all others, (n_texts,), from what was saved with it.

    NaN where no vectors were kept (a subclass makes its own) and the model is not built in.
    """
    blocks, made_here = fit.fitted.blocks, [name for name in fit.blocks if name not in fit.own]
    features = Features(None, beside_lexical=True)
    needs_model = fit.paired or bool(set(made_here) & set(OF_VECTORS))
    vectors, queries = _saved_vectors(fit) if needs_model else (None, None)
    width = dict(zip(blocks.names, blocks.widths, strict=True))
    lacks_vectors = needs_model and (vectors is None or vectors.shape[1] != width.get(EMBEDDING, vectors.shape[1]))
    if lacks_vectors or features.missing(made_here):
        return np.full(fit.n_texts, np.nan)
    columns = features(fit.texts, vectors, made_here, queries).columns
    for name, rows in fit.own.items():
        columns[name] = unpacked(rows, width[name]) if name in blocks.sparse else np.stack(rows)
    X = fit.fitted.weighed(Table.of({name: columns[name] for name in blocks.names}).X)
    return fit.scores - left_out(X, fit.scores, fit.alpha, fit.texts)


def _saved_vectors(fit: Fit) -> tuple[Vectors | None, Queries | None]:
    """The vectors of a fit's rated texts and of their queries: those that were kept, or the built-in model's."""
    asked = [example.query or "" for example in fit.rated]
    if fit.vectors is not None:
        known = fit.queried or {}
        if not fit.paired:
            return np.stack(fit.vectors), None
        if not known.keys() >= set(asked):
            return None, None
        return np.stack(fit.vectors), Queries(asked, np.stack([known[query] for query in asked]))
    identity = fit.identity or {}
    if identity.get("model") != LEXICAL:
        return None, None
    model = Embedding(
        ModelSpec(LEXICAL, fit.probe.vectors.shape[1]), cache_dir=None, instruction=identity.get("instruction") or None
    )
    if model.identity != identity:  # of another version
        return None, None
    vectors = model.encoder(instruct=not fit.paired)(fit.texts)
    return vectors, Queries(asked, model(asked)) if fit.paired else None
