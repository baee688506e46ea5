"""Learning an order from judged queries, and reporting how good an order is.

    judged queries ─► informative ones ─► blocks to learn from ─► columns ─► fit_ranking ─► Order, report

A report gives mean nDCG and mean reciprocal rank of the order, of cosine, and of the first stage where one is known.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dspy_qvl.errors import InputError, warn
from dspy_qvl.features import COSINE, Blocks
from dspy_qvl.fitting import copies, make_folds
from dspy_qvl.reranker.columns import PassageColumns
from dspy_qvl.reranker.head import BLOCKS, VALUE, Order, width_of
from dspy_qvl.reranker.judged import FIRST_STAGE, JudgedQuery, first_stage_values, informative, known_of_first_stage
from dspy_qvl.reranker.ranking import Quality, best_first, fit_ranking, quality_of

ALIKE = 0.9  # share of the queries


def learn_order(
    columns: PassageColumns, judged: Sequence[JudgedQuery], *, cv: int, random_state: int, k: int | None
) -> tuple[Order, dict[str, Any]]:
    """Learn an order; see `Reranker.learn` for the report and the errors.

    Args:
        columns: makes the columns of passages.
        judged: queries with passages of different relevance.
        cv: folds, at least 2.
        random_state: seed of the folds.
        k: passages from the top that figures look at; None for all.
    """
    useful = informative(judged)
    queries, texts = [one.query for one in useful], [text for one in useful for text in one.passages]
    if len(set(queries)) < 2:
        raise InputError(
            f"{len(useful)} of {len(judged)} queries have passages of different relevance; an order is learned "
            "from at least 2 different ones."
        )
    columns.embed(texts)  # all in one batch
    d = columns.learner.embed(queries).shape[1]
    known = _known_of_first_stage(useful, columns.features, quiet=not columns.auto)
    new = [name for name in known if columns.auto and not _ranks_by_cosine(columns, useful, name)]
    names = [name for name in BLOCKS if name in (*columns.features, *new)]
    if VALUE in names and not _may_use_value(columns, texts):
        names.remove(VALUE)
    blocks = Blocks(tuple(names), tuple(width_of(name, d) for name in names))
    priors = [number for number, name in enumerate(names) if name in (COSINE, *FIRST_STAGE)]
    fitted = fit_ranking(
        lambda number: columns(useful[number].query, useful[number].passages, names, useful[number].scores),
        [one.relevance for one in useful],
        blocks,
        make_folds(copies(queries), cv, np.random.default_rng(random_state)),
        priors=priors,
        optional=priors[1:] if columns.auto else (),
        k=k,
    )
    used = [name for name, factor in zip(names, fitted.factors, strict=True) if factor > 0]
    report = {
        "n_queries": len(useful),
        "n_passages": len(texts),
        **_figures(fitted.quality, "cv_"),
        **_figures(fitted.prior_qualities[0], "cosine_"),
        **_figures(_first_stage_quality(useful, known, k), "first_stage_"),
        "k": k,
        "alpha": fitted.alpha,
        "prior": names[fitted.prior],
        "features": used,
    }
    # A first stage that is not used is left out: callers need not give it.
    kept = blocks.only([name for name in names if name in used or name not in FIRST_STAGE])
    coef = np.concatenate([fitted.coef[blocks.slices[name]] for name in kept.names])
    coef.setflags(write=False)
    learner = columns.learner
    value_of = learner.current_fit().digest if VALUE in names else None
    return Order(coef, kept, learner.identity, learner.probe(), len(useful), value_of), report


def figures_of(columns: PassageColumns, judged: Sequence[JudgedQuery], k: int | None) -> dict[str, Any]:
    """The figures of an order on judged queries; see `Reranker.judge`."""
    useful = informative(judged)
    known = _known_of_first_stage(useful, columns.names, quiet=True)
    relevances = [one.relevance for one in useful]
    learned = [columns.scores(one.query, one.passages, one.scores) for one in useful]
    cosines = [columns.cosines(one.query, one.passages) for one in useful]
    return {
        "n_queries": len(useful),
        **_figures(quality_of(relevances, learned, k), ""),
        **_figures(quality_of(relevances, cosines, k), "cosine_"),
        **_figures(_first_stage_quality(useful, known, k), "first_stage_"),
        "k": k,
    }


def _known_of_first_stage(judged: list[JudgedQuery], features: Sequence[str], *, quiet: bool) -> tuple[str, ...]:
    """Those of "rank" and "score" that the caller asked for, else those that the queries show."""
    return tuple(name for name in FIRST_STAGE if name in features) or known_of_first_stage(judged, quiet=quiet)


def _ranks_by_cosine(columns: PassageColumns, judged: list[JudgedQuery], name: str) -> bool:
    """True if a first stage ranks nearly every query's passages as cosine does, and so teaches nothing new."""
    same = [
        best_first(first_stage_values(one, name)) == best_first(columns.cosines(one.query, one.passages))
        for one in judged
    ]
    return bool(np.mean(same) >= ALIKE)


def _may_use_value(columns: PassageColumns, texts: Sequence[str]) -> bool:
    """True if the learner's values can be learned from: it is fitted, and was not rated on these passages."""
    if columns.learner.ridge.fitted is None:
        return False
    rated = set(columns.learner.current_fit().texts)
    n_known = sum(text in rated for text in texts)
    if n_known:
        warn(
            f"{n_known} of {len(texts)} judged passages are texts the learner was rated on, so its values know "
            "more of them than of new ones; 'value' is left out. Rate other texts to have it.",
        )
    return not n_known


def _first_stage_quality(judged: list[JudgedQuery], known: Sequence[str], k: int | None) -> Quality:
    """The quality of the first stage's scores, or of its order; NaN where neither is known."""
    ranked = judged if known else []
    return quality_of([one.relevance for one in ranked], [first_stage_values(one, known[-1]) for one in ranked], k)


def _figures(quality: Quality, whose: str) -> dict[str, float]:
    """A quality as entries of a report."""
    return {f"{whose}ndcg": quality.ndcg, f"{whose}mrr": quality.mrr}
