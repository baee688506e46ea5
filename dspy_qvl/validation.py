"""How good a value function is on texts it did not learn from, and which penalty makes it best.

A room of its own: `ridge.py` fits, `scores.py` judges, and this is where rows are held out, so that the one can
judge the other honestly. The baselines are what a value function must beat to be worth having.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl import ridge, scores
from dspy_qvl.errors import InputError, QVLWarning

Array = NDArray[np.float64]
Members = Sequence[Any]  # the group of each row; rows of one group are never split


def validate(
    X: NDArray[np.float32],
    y: Array,
    texts: Sequence[str],
    alpha: float,
    *,
    members: Members,
    validation_split: float,
    cv_folds: int,
    random_state: int,
) -> dict[str, Any]:
    """Figures of a ridge fit on a part of the rows, over the rest.

    Args:
        X: features, (n, d).
        y: scores, (n,).
        texts: the texts themselves, for the length baseline.
        alpha: penalty.
        members: the group of each row.
        validation_split: fraction of the rows to hold out.
        cv_folds: folds of the cross-validation over the other rows.
        random_state: seed of the split and the folds.

    Returns:
        The figures `Qwen3EmbeddingValueLearner.train` documents.

    Raises:
        InputError: the rows to learn from are all one group.
    """
    rng = np.random.default_rng(random_state)
    seen, held = hold_out(len(y), validation_split, members, rng)
    folds = make_folds([members[row] for row in seen], cv_folds, rng)
    fold_mse = _fold_errors(X[seen], y[seen], [alpha], folds)[0]
    line = ridge.fit(X[seen], y[seen], alpha)
    fitted = ridge.predict(X[seen], line)
    lengths = np.log1p([len(text) for text in texts])
    guesses = {
        "mean": np.full(len(held), y[seen].mean()),
        "length": length_baseline(lengths[seen], y[seen], lengths[held]),
        "nearest": nearest_baseline(X[seen], y[seen], X[held]),
    }
    return {
        "train_mse": scores.mse(y[seen], fitted),
        "train_r2": scores.r2(y[seen], fitted),
        **_figures(y[held], ridge.predict(X[held], line)),
        "cv_mse_mean": float(fold_mse.mean()),
        "cv_mse_std": float(fold_mse.std()),
        "n_train": len(seen),
        "n_val": len(held),
        "cv_folds": len(folds),
        "alpha": alpha,
        "baselines": {name: _figures(y[held], guess) for name, guess in guesses.items()},
    }


def choose_alpha(
    X: NDArray[np.float32],
    y: Array,
    alphas: Sequence[float],
    *,
    members: Members,
    cv_folds: int,
    random_state: int,
) -> dict[str, Any]:
    """The penalty with the lowest mean squared error, averaged over folds.

    Returns:
        The results `Qwen3EmbeddingValueLearner.optimize_hyperparameters` documents.

    Raises:
        InputError: the rows are all one group.
    """
    folds = make_folds(members, cv_folds, np.random.default_rng(random_state))
    errors = _fold_errors(X, y, alphas, folds)
    best = int(np.argmin(errors.mean(axis=1)))
    return {
        "best_alpha": alphas[best],
        "best_mse": float(errors[best].mean()),
        "results": {
            alpha: {"mse_mean": float(row.mean()), "mse_std": float(row.std())}
            for alpha, row in zip(alphas, errors, strict=True)
        },
        "cv_folds": len(folds),
    }


def _fold_errors(X: NDArray[np.float32], y: Array, alphas: Sequence[float], folds: ridge.Folds) -> Array:
    """Mean squared error of every penalty on every fold, (n_alphas, n_folds)."""
    guesses = ridge.cross_validate(X, y, alphas, folds)
    return np.array([[scores.mse(y[fold], guess[fold]) for fold in folds] for guess in guesses])


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


def nearest_baseline(
    vectors: NDArray[np.float32], y: Array, new_vectors: NDArray[np.float32], n_neighbors: int = 5
) -> Array:
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


# Which rows go where


def make_folds(members: Members, n_folds: int, rng: np.random.Generator) -> list[NDArray[np.intp]]:
    """The rows of each fold, folds of nearly equal size.

    Groups are shuffled, then dealt from the largest to the smallest, each to the fold with the fewest rows.

    Args:
        members: the group of each row.
        n_folds: folds wanted, at least 2; with fewer groups there are fewer, and a warning says so.
        rng: where the shuffle comes from.

    Raises:
        InputError: all rows are one group.
    """
    groups = _group_rows(members)
    if len(groups) < 2:
        raise InputError(
            "the rated texts to cross-validate on are all one group, or one text rated again and again; "
            "rate at least two different ones."
        )
    if n_folds > len(groups):
        warnings.warn(
            f"cv_folds={n_folds} is more than there are texts to split ({len(groups)}); {len(groups)} are used.",
            QVLWarning,
            stacklevel=4,
        )
    shuffled = [groups[number] for number in rng.permutation(len(groups))]
    folds: list[list[int]] = [[] for _ in range(min(n_folds, len(groups)))]
    for rows in sorted(shuffled, key=len, reverse=True):  # stable: equal sizes stay shuffled
        min(folds, key=len).extend(rows)
    return [np.array(sorted(fold), dtype=np.intp) for fold in folds]


def hold_out(
    n: int, fraction: float, members: Members, rng: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows to learn from, and rows to hold out: about n * fraction, rounded up, in whole groups.

    At least two groups stay to learn from; if no group is small enough, the first that is drawn is held out.
    """
    groups = _group_rows(members)
    wanted = math.ceil(n * fraction - 1e-9)
    held: list[int] = []
    order = rng.permutation(len(groups))
    for number in order[: max(len(groups) - 2, 0)]:
        if len(held) + len(groups[number]) <= wanted:
            held.extend(groups[number])
    if wanted and not held:
        if len(groups) > 2:
            held = groups[order[0]]
        elif len(groups) == 2:
            warnings.warn(
                "nothing is held out, since there are only two texts or groups; the validation figures are NaN.",
                QVLWarning,
                stacklevel=4,
            )
    return np.setdiff1d(np.arange(n), held), np.array(sorted(held), dtype=np.intp)


def _group_rows(members: Members) -> list[list[int]]:
    """The rows of each group, groups in order of appearance."""
    rows: dict[Any, list[int]] = {}
    for row, group in enumerate(members):
        rows.setdefault(group, []).append(row)
    return list(rows.values())
