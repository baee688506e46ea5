"""Rated texts that come or go without training: the fit that those which are there now would give.

    rows that come or go ─► the solver of the last update (`ridge.updates`), or a new one ─► line ─► Fit

The penalty, the factors of blocks, the bounds of narrow ones and document frequencies stay those of the last training.
A solver changes in place, so it belongs to one head, and to no fit while rows go in.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from dspy_qvl import ridge
from dspy_qvl.errors import InputError, StateError
from dspy_qvl.fitting import Fitted
from dspy_qvl.learner.columns import Columns
from dspy_qvl.learner.columns_state import check_factors
from dspy_qvl.learner.fit import Fit, own_rows, quantiles
from dspy_qvl.learner.head import RidgeHead, Solver
from dspy_qvl.learner.memo import Memo
from dspy_qvl.text import RankingExample
from dspy_qvl.vectors import Matrix, Vectors

T = TypeVar("T")


def changed(
    head: RidgeHead, fit: Fit, columns: Columns, *, coming: Sequence[RankingExample] = (), leaving: Collection[int] = ()
) -> tuple[Fit | None, Solver | None]:
    """A fit after some examples came or went, with the same penalty, and its solver.

    Args:
        head: its solver is used up if it suits; the lock `changing` is held.
        fit: the current fit, its rated texts kept.
        columns: items -> the columns the fit values them by.
        coming: examples to learn.
        leaving: positions of examples of the fit that go.

    Returns:
        The fit, or None where fewer than two different scores are left; and its solver for `RidgeHead.swap`, or None
        where the next change is better fitted from scratch.
    """
    rated = (*_without(fit.rated, leaving), *coming)
    scores = np.array([example.score for example in rated], dtype=np.float64)
    if leaving and len(set(scores.tolist())) < 2:
        return None, None
    vectors, queried = fit.vectors, fit.queried
    if vectors is not None:
        new = columns.vectors([example.text for example in coming]) if coming else ()
        vectors = (*_without(vectors, leaving), *new)
    if queried is not None:
        asked = {example.query for example in rated}
        queried = {**queried, **(queried_vectors(coming, columns) or {})}
        queried = {query: vector for query, vector in queried.items() if query in asked}
    solver = _moved(head, fit, columns, coming, [fit.rated[row] for row in sorted(leaving)])
    if solver is None:
        X = fit.fitted.weighed(_rows(columns, rated))
        coef, intercept = fit.fitted.weighed_line()
        solver = ridge.begin(X, scores[:, None], fit.alpha, start=ridge.Linear(coef[:, None], np.array([intercept])))
    if solver is None:
        line = ridge.fit(X, scores, fit.alpha)
    else:
        coef, intercept = solver.line
        line = ridge.Linear(coef[:, 0], intercept[0])
    line = fit.fitted.plain(line)
    line.coef.setflags(write=False)
    arrived = own_rows(columns([example.item for example in coming])) if fit.own and coming else {}
    own = {name: (*_without(rows, leaving), *arrived.get(name, ())) for name, rows in fit.own.items()}
    fitted = fit.fitted.with_line(line)
    if coming:  # what goes takes no column further apart
        refuse_far_columns(fitted, own)
    groups = None if fit.groups is None else fit.groups.after(fit.rated, coming, leaving)
    after = replace(fit, fitted=fitted, rated=rated, vectors=vectors, own=own, queried=queried, groups=groups)
    return replace(after, quantiles=quantiles(scores), memo=Memo()), solver


def _moved(
    head: RidgeHead, fit: Fit, columns: Columns, coming: Sequence[RankingExample], leaving: Sequence[RankingExample]
) -> Solver | None:
    """The solver of the last update with this change, or None where it is better to begin anew."""
    n_texts = fit.n_texts + len(coming) - len(leaving)
    if head.running is None or head.running[0] is not fit or not head.running[1].suits(n_texts):
        return None
    moving = fit.fitted.weighed(_rows(columns, [*coming, *leaving]))
    (_, solver), head.running = head.running, None
    for row, example in enumerate([*coming, *leaving]):
        change = solver.add if row < len(coming) else solver.remove
        change(moving[row : row + 1], np.array([example.score]))
    return None if solver.worn else solver


def refuse_far_columns(fitted: Fitted, own: Mapping[str, tuple[Vectors, ...]]) -> None:
    """Refuse columns of the caller's own that are so large that a saved fit on them could not be read.

    Raises:
        InputError: names the block.
    """
    try:
        check_factors(fitted, own)
    except StateError as error:
        raise InputError(f"a column of a block of features is too far from the others: {error}") from None


def queried_vectors(examples: Iterable[RankingExample], columns: Columns) -> dict[str, Vectors] | None:
    """The unit vectors of the queries of rated texts, (dim,) each, by query; None where they have none."""
    queries = list(dict.fromkeys(example.query for example in examples if example.query is not None))
    return dict(zip(queries, columns.queries(queries), strict=True)) if queries else None


def _rows(columns: Columns, examples: Sequence[RankingExample]) -> Matrix:
    """The rows of X of examples, (n, d)."""
    return columns([example.item for example in examples]).X


def _without(entries: Sequence[T], leaving: Collection[int]) -> Sequence[T]:
    """All entries but those at some positions."""
    return entries if not leaving else [entry for row, entry in enumerate(entries) if row not in leaving]
