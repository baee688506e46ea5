"""How good a value function is on texts it did not learn from, and which penalty makes it best.

A room of its own: `tuning.py` fits, `scores.py` judges, and this is where rows are held out so that the one can
judge the other honestly. The baselines are what a value function must beat to be worth having.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl import scores
from dspy_qvl.features import Table
from dspy_qvl.folds import Members, hold_out, make_folds
from dspy_qvl.moments import Rows
from dspy_qvl.tuning import Tuned, block_report, tune

Array = NDArray[np.float64]


def validate(
    table: Table,
    y: Array,
    texts: Sequence[str],
    alpha: float,
    *,
    members: Members,
    validation_split: float,
    cv_folds: int,
    random_state: int,
    weights: Mapping[str, float] | None = None,
    optional: bool = False,
) -> tuple[dict[str, Any], Tuned]:
    """Figures of a ridge fit on a part of the rows, over the rest.

    Args:
        table: the columns of the rated texts.
        y: scores, (n,).
        texts: the texts themselves, for the length baseline.
        alpha: penalty.
        members: the group of each row.
        validation_split: fraction of the rows to hold out.
        cv_folds: folds of the cross-validation over the other rows.
        random_state: seed of the split and the folds.
        weights: of the blocks; None to choose them on the rows that are not held out.
        optional: whether a block may be left out.

    Returns:
        The figures `Qwen3EmbeddingValueLearner.train` documents, and the fit they are of.

    Raises:
        InputError: the rows to learn from are all one group.
    """
    rng = np.random.default_rng(random_state)
    seen, held = hold_out(len(y), validation_split, members, rng)
    folds = make_folds([members[row] for row in seen], cv_folds, rng)
    known, new = table.rows(seen), table.rows(held)
    tuned = tune(known, y[seen], [alpha], folds, weights=weights, optional=optional)
    fold_mse = tuned.errors[alpha]
    fitted = tuned.fitted.predict(known)
    lengths = np.log1p([len(text) for text in texts])
    embedding = table.blocks[0]
    guesses = {
        "mean": np.full(len(held), y[seen].mean()),
        "length": length_baseline(lengths[seen], y[seen], lengths[held]),
        "nearest": nearest_baseline(known.X[:, embedding], y[seen], new.X[:, embedding]),
    }
    metrics = {
        "train_mse": scores.mse(y[seen], fitted),
        "train_r2": scores.r2(y[seen], fitted),
        **_figures(y[held], tuned.fitted.predict(new)),
        "cv_mse_mean": float(fold_mse.mean()),
        "cv_mse_std": float(fold_mse.std()),
        "n_train": len(seen),
        "n_val": len(held),
        "cv_folds": len(folds),
        "alpha": alpha,
        "blocks": block_report(tuned),
        "baselines": {name: _figures(y[held], guess) for name, guess in guesses.items()},
    }
    return metrics, tuned


def choose_alpha(
    table: Table,
    y: Array,
    alphas: Sequence[float],
    *,
    members: Members,
    cv_folds: int,
    random_state: int,
    optional: bool = False,
) -> tuple[dict[str, Any], Tuned]:
    """The penalty with the lowest mean squared error, averaged over folds, and the weights of the blocks with it.

    Returns:
        The results `Qwen3EmbeddingValueLearner.optimize_hyperparameters` documents, and the fit of all rows.

    Raises:
        InputError: the rows are all one group.
    """
    folds = make_folds(members, cv_folds, np.random.default_rng(random_state))
    tuned = tune(table, y, alphas, folds, optional=optional)
    results = {
        "best_alpha": tuned.alpha,
        "best_mse": float(tuned.errors[tuned.alpha].mean()),
        "results": {
            alpha: {"mse_mean": float(row.mean()), "mse_std": float(row.std())} for alpha, row in tuned.errors.items()
        },
        "cv_folds": len(folds),
        "blocks": block_report(tuned),
    }
    return results, tuned


def _figures(y: Array, guessed: Array) -> dict[str, float]:
    """How good values of held-out texts are; NaN for fewer than 2."""
    measures = {
        "val_mse": scores.mse,
        "val_r2": scores.r2,
        "val_pearson": scores.pearson,
        "val_spearman": scores.spearman,
    }
    return {name: measure(y, guessed) if len(y) > 1 else math.nan for name, measure in measures.items()}


# Baselines


def length_baseline(lengths: Array, y: Array, new_lengths: Array) -> Array:
    """Longer is better, or worse: a straight line through the lengths, (m,) in the units of y.

    Args:
        lengths: log(1 + characters) of the rated texts, (n,).
        y: their scores, (n,).
        new_lengths: log(1 + characters) of the texts to value, (m,).
    """
    centred = lengths - lengths.mean()
    spread = centred @ centred
    slope = centred @ (y - y.mean()) / spread if spread > 0 else 0.0
    values: Array = y.mean() + slope * (new_lengths - lengths.mean())
    return values


def nearest_baseline(vectors: Rows, y: Array, new_vectors: Rows, n_neighbors: int = 5) -> Array:
    """The mean score of the rated texts with the highest cosine, (m,) in the units of y.

    Args:
        vectors: features of the rated texts, (n, d).
        y: their scores, (n,).
        new_vectors: features of the texts to value, (m, d).
        n_neighbors: how many; all of them if fewer were rated.
    """
    if len(new_vectors) == 0:
        return np.empty(0)
    from sklearn.neighbors import KNeighborsRegressor

    neighbors = KNeighborsRegressor(min(n_neighbors, len(y)), metric="cosine", algorithm="brute").fit(vectors, y)
    values: Array = neighbors.predict(new_vectors)
    return values
