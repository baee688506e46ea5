"""From rated texts to a fit, and how good it is on texts that it has not seen.

rated texts ─► Columns ─► TrainingSet ─┬─► validated: the penalty stays    ─┐
                                       └─► tuned: cross-validation chooses ─┴─► a report, and what is learned
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dspy_qvl.embedding import Embedding, Usage
from dspy_qvl.features import EMBEDDING, Table
from dspy_qvl.fitting import Fitted, choose_alpha, refit, validate
from dspy_qvl.learner.columns import Columns
from dspy_qvl.learner.fit import Fit, own_rows, quantiles
from dspy_qvl.learner.groups import Groups, Members, rated_members
from dspy_qvl.learner.learned import Learned
from dspy_qvl.learner.updating import queried_vectors, refuse_far_columns
from dspy_qvl.vectors import Array

logger = logging.getLogger("dspy_qvl")


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Rated texts, with all columns that may be learned from.

    Attributes:
        before: all that was learned so far, the rated texts among it.
        columns: items -> columns.
        table: the columns of the rated texts, (n_texts, d).
        y: their scores, (n_texts,).
        groups: those that the caller gave, or None.
        members: the group of each; what is in one group is never split between training and validation.
        random_state: seed of every split and shuffle.
    """

    before: Learned
    columns: Columns
    table: Table
    y: Array
    groups: Groups | None
    members: Members
    random_state: int

    def validated(self, validation_split: float, cv_folds: int) -> tuple[dict[str, Any], Learned]:
        """The report of `train` on held-out rows, and what is learned from all rows with the same penalty."""
        before, weights = self.before, self.before.weights
        if weights is not None and not set(self.table.blocks.names[:1]) <= set(weights.blocks) <= set(
            self.table.blocks.names
        ):
            weights = None
        texts, folds = [example.text for example in before.examples], self._split(cv_folds)
        metrics, tuned = validate(
            self.table, self.y, texts, before.alpha, validation_split=validation_split, weights=weights, **folds
        )
        metrics["alpha_saw_validation"] = before.alpha_tuned
        told = "trained on %d texts with alpha %g: cross-validated MSE %.4g, validation R² %.3f"
        logger.info(told, len(self.y), before.alpha, metrics["cv_mse_mean"], metrics["val_r2"])
        fitted = refit(self.table, self.y, before.alpha, tuned.weights)
        return metrics, replace(before, fitted=self._fit(fitted, before.alpha, metrics["permutation_p"]))

    def tuned(self, alphas: Sequence[float], cv_folds: int) -> tuple[dict[str, Any], Learned]:
        """The report of `optimize_hyperparameters`, and what is learned with the penalty and weights it chose."""
        chosen, tuned = choose_alpha(self.table, self.y, alphas, **self._split(cv_folds))
        logger.info("chose alpha %g of %s over %d texts", tuned.alpha, alphas, len(self.y))
        fit = self._fit(tuned.fitted, tuned.alpha, chosen["permutation_p"])
        return chosen, replace(self.before, alpha=tuned.alpha, alpha_tuned=True, weights=tuned.weights, fitted=fit)

    def _split(self, cv_folds: int) -> dict[str, Any]:
        """The arguments of `validate` and `choose_alpha` that say how rows are split, and if blocks may be left out."""
        optional = self.columns.vectorizer.blocks.auto
        return {"members": self.members, "cv_folds": cv_folds, "random_state": self.random_state, "optional": optional}

    def _fit(self, fitted: Fitted, alpha: float, permutation_p: float) -> Fit:
        """A fit of all rated texts, with what a saved state needs beside its line."""
        vectorizer, rated = self.columns.vectorizer, tuple(self.before.examples)
        embedding = vectorizer.embedding
        identity, probe = embedding.identity, embedding.probe()
        fitted.line.coef.setflags(write=False)
        vectors = None
        if embedding.keeps_vectors and self.columns.owner is None:
            vectors = self.table.columns[EMBEDDING].copy()
            vectors.setflags(write=False)
        queried = queried_vectors(rated, self.columns)
        own = own_rows(self.table.only(fitted.blocks.names))
        refuse_far_columns(fitted, own)
        return Fit(
            fitted,
            identity,
            probe,
            alpha,
            rated,
            quantiles(self.y),
            None if vectors is None else tuple(vectors),
            own,
            queried,
            queried is not None,
            permutation_p,
            self.groups,
            vectorizer=vectorizer,
        )


def training_set(before: Learned, columns: Columns, groups: Groups | None, random_state: int) -> TrainingSet:
    """The columns, scores and groups of checked rated texts."""
    examples = before.examples[:]
    table = columns([example.item for example in examples])
    y = np.array([example.score for example in examples])
    grouped = rated_members(examples, table.columns.get(EMBEDDING), groups)
    return TrainingSet(before, columns, table, y, groups, grouped, random_state)


def with_usage(report: Mapping[str, Any], embedding: Embedding, before: Usage | None) -> dict[str, Any]:
    """A report, and for a hosted model the requests, texts, tokens and cost since `before`."""
    now = embedding.usage
    if now is None or before is None:
        return dict(report)
    spent = now - before
    logger.info("asked %s: %s", embedding.spec.model_name, spent)
    cost = None if spent.unpriced and not spent.cost else spent.cost
    return {**report, "usage": {"requests": spent.requests, "texts": spent.texts, "tokens": spent.tokens, "cost": cost}}
