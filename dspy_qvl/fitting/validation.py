"""Figures of a value function on texts it did not learn from, and the penalty that makes them best.

`tuning.py` fits, `measures.py` measures, and here rows are held out so that the fit is measured honestly. Every figure
comes with its doubt: of rows that are held out with a standard error, and a permutation test tells if there is anything
to measure. A value function must beat the baselines to be worth having.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from dspy_qvl import measures, ridge
from dspy_qvl.features import Table
from dspy_qvl.fitting.baselines import BASELINES
from dspy_qvl.fitting.folds import Members, copies, hold_out, make_folds, sample
from dspy_qvl.fitting.permutation import LEVEL, permutation_test
from dspy_qvl.fitting.tuning import SMALLEST_ALPHA, Tuned, Weights, block_report, prior_weights, tune, weighed
from dspy_qvl.ridge import Folds
from dspy_qvl.vectors import Array, Matrix

ENOUGH = 1000  # rows: a value function that cannot be told from noise by so many is of no use
BEYOND = (10.0, 100.0)  # times the end of a range of penalties: where a better one is looked for
LEFT_OUT_FOLDS = 5
WORTH_SAYING = 0.01  # share of the error that a penalty beyond the range must take away
WORTH_SEEING = 0.002  # and share of the variance of the scores


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
    weights: Weights | None = None,
    optional: bool = False,
) -> tuple[dict[str, Any], Tuned]:
    """Figures of a ridge fit on a part of the rows, over the rest.

    Args:
        table: the columns of the rated texts.
        y: scores, (n,).
        texts: the texts themselves, for the baselines.
        alpha: penalty.
        members: the group of each row.
        validation_split: fraction of the rows to hold out.
        cv_folds: folds of the cross-validation over the other rows.
        random_state: seed of the split and the folds.
        weights: those of the blocks; None to choose them on the rows that are not held out.
        optional: True if a block may be left out.

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
    views = {
        "length": (lengths[seen], lengths[held]),
        "embedding": (known.first, new.first),
        "text": (([texts[row] for row in seen], folds), [texts[row] for row in held]),
    }
    guesses = {name: rule(views[view][0], y[seen], views[view][1]) for name, (view, rule) in BASELINES.items()}
    groups = [members[row] for row in held]
    metrics = {
        "train_mse": measures.mse(y[seen], fitted),
        "train_r2": measures.r2(y[seen], fitted),
        **_figures("val", y[held], tuned.fitted.predict(new), groups),
        "cv_mse_mean": float(fold_mse.mean()),
        "cv_mse_std": float(fold_mse.std()),
        "n_train": len(seen),
        "n_val": len(held),
        "cv_folds": len(folds),
        "alpha": alpha,
        "blocks": block_report(tuned),
        "baselines": {name: _figures("val", y[held], guess, groups) for name, guess in guesses.items()},
        **_of_all_rows(table, y, [alpha], tuned, members, cv_folds, random_state),
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
    results: dict[str, Any] = {
        "best_alpha": tuned.alpha,
        "best_mse": float(tuned.errors[tuned.alpha].mean()),
        "results": {
            alpha: {"mse_mean": float(row.mean()), "mse_std": float(row.std())} for alpha, row in tuned.errors.items()
        },
        "cv_folds": len(folds),
        "blocks": block_report(tuned),
        **_of_all_rows(table, y, alphas, tuned, members, cv_folds, random_state),
    }
    better = None if results["permutation_p"] > LEVEL else _better_beyond(table, y, alphas, folds, tuned)
    return results | ({} if better is None else {"better_alpha": better}), tuned


def _of_all_rows(
    table: Table, y: Array, alphas: Sequence[float], tuned: Tuned, members: Members, cv_folds: int, random_state: int
) -> dict[str, float]:
    """The permutation test, and for few rows the out-of-fold figures of all of them."""
    rows = sample(members, ENOUGH, np.random.default_rng(random_state))
    some = table.rows(rows)
    test = permutation_test(
        weighed(some, prior_weights(some)),  # weights that these scores chose would find something in noise too
        y[rows],
        alphas,
        members=[members[row] for row in rows],
        n_folds=cv_folds,
        random_state=random_state,
    )
    report = {"permutation_p": test.p}
    if len(y) <= ENOUGH:
        n_folds = min(cv_folds, len(set(members)))
        folds = make_folds(members, n_folds, np.random.default_rng(random_state))
        values = ridge.out_of_fold(weighed(table, tuned.weights), y, [tuned.alpha], folds)[0]
        report |= _figures("oof", y, values, members)
    return report


def _better_beyond(table: Table, y: Array, alphas: Sequence[float], folds: Folds, tuned: Tuned) -> float | None:
    """A penalty beyond the range that takes away enough of the error, if the best one ends the range.

    That is a hundredth of it, and what can be seen: two thousandths of the variance of the scores.
    """
    if len(alphas) < 2 or tuned.alpha not in (alphas[0], alphas[-1]):
        return None
    further = [tuned.alpha * factor if tuned.alpha == alphas[-1] else tuned.alpha / factor for factor in BEYOND]
    further = [alpha for alpha in further if alpha >= SMALLEST_ALPHA]
    if not further:
        return None
    beyond = tune(table, y, further, folds, weights=tuned.weights)
    errors = {alpha: float(row.mean()) for alpha, row in beyond.errors.items()}
    best = min(errors, key=errors.__getitem__)
    error = float(tuned.errors[tuned.alpha].mean())
    return best if error - errors[best] > max(WORTH_SAYING * error, WORTH_SEEING * float(y.var())) else None


def _figures(prefix: str, y: Array, guessed: Array, groups: Sequence[Hashable]) -> dict[str, float]:
    """Figures of values that were not learned from these scores, each with its standard error; NaN for fewer than 2."""
    if len(y) < 2:
        return {f"{prefix}_{name}{end}": math.nan for name in measures.FIGURES for end in ("", "_se")}
    drawn = measures.bootstrap(y, guessed, groups)
    report = {}
    for name, figure in measures.figures(y, guessed).items():
        report[f"{prefix}_{name}"] = figure
        report[f"{prefix}_{name}_se"] = math.nan if math.isnan(figure) else measures.standard_error(drawn[name])
    return report


def left_out(X: Matrix, y: Array, alpha: float, texts: Sequence[str]) -> Array:
    """The residual of each row under a fit that never saw it, (n,), in the units of y.

    Of dense rows, and of few, that is the fit of all other rows; of many rows with sparse columns the fit of the four
    fifths without it and without the copies of its text.

    Args:
        X: columns as the fit sees them, (n, d).
        y: scores, (n,).
        alpha: penalty.
        texts: the text of each row.
    """
    if ridge.has_leave_one_out(X):
        return ridge.leave_one_out(X, y, alpha).residuals
    copied = copies(texts)
    if len(set(copied)) < 2:  # one text, rated for many queries
        copied = list(range(len(texts)))
    folds = make_folds(copied, min(LEFT_OUT_FOLDS, len(set(copied))), np.random.default_rng(0))
    residuals: Array = y - ridge.out_of_fold(X, y, [alpha], folds)[0]
    return residuals
