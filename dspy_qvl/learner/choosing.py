"""The choices that a value function is for: the best of several texts, and the texts to rate next.

rated texts ─► values out of fold ─► `certainty.selection`: the worth of taking the text of the highest value
candidates  ─► their columns ─► `certainty.suggest`: those whose ratings would tell most, and a random share
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dspy_qvl.certainty import (
    SIZES,
    Comparison,
    RatedRows,
    Selection,
    noise_of_copies,
    selection,
    selection_within,
    suggest,
)
from dspy_qvl.errors import InputError
from dspy_qvl.fitting import copies, folded, prior_weights, weighed
from dspy_qvl.learner.columns import Columns
from dspy_qvl.learner.inspection import Inspection
from dspy_qvl.text import Item, query_of, text_of

DRAFTS = (2, 4, 8, 16)  # of one query: few have many rated answers


@dataclass(frozen=True)
class SuggestedText:
    """A text that is worth rating next.

    Attributes:
        text: the text.
        query: the query to rate it for, or None.
        inclusion: the probability that it was suggested, in (0, 1], for `certainty.mean_value`.
        audit: True if it was drawn at random, False if it tells most.
        gain: the share of the variance of the candidates' values that its rating takes away after those before it; None
            if it was drawn at random.
    """

    text: str
    query: str | None
    inclusion: float
    audit: bool
    gain: float | None


def rated_rows(inspection: Inspection, fitted: Columns, candidates: Columns, random_state: int) -> RatedRows:
    """The rated texts of a fit as arrays.

    Args:
        inspection: of the fit.
        fitted: items -> the columns that the fit values them by.
        candidates: items -> all columns that it might have learned from: which of them it did may have been chosen by
            the ratings, so tests use all.
        random_state: seed of samples, folds, shuffles and draws.
    """
    fit = inspection.fit
    table = candidates(fit.items)
    known = table.only(fit.blocks) if set(fit.blocks) <= set(table.blocks.names) else fitted(fit.items)
    X, untuned = fit.fitted.weighed(known.X), weighed(table, prior_weights(table))
    return RatedRows(X, untuned, fit.scores, fit.alpha, fit.members, fit.texts, known.first, random_state)


def worth_of_picking(
    rows: RatedRows, compared: Comparison, n: Sequence[int] | None = None, *, paired: bool
) -> Selection:
    """The worth of taking the text of the highest value of n, among all rated texts or those of one query.

    Args:
        rows: rated texts.
        compared: their values out of fold.
        n: the numbers of texts to choose from. Default: 4, 16, 64, 256; of one query 2, 4, 8, 16.
        paired: True to choose among the texts of one query (or group).

    Raises:
        InputError: numbers that are none, or too few rated texts for any.
    """
    values = compared.values - rows.learned_means
    if paired:
        return selection_within(rows.y, values, rows.groups, n=n or DRAFTS, random_state=rows.random_state)
    noise = noise_of_copies(rows.y, copies(rows.texts))
    return selection(rows.y, values, groups=rows.groups, n=n or SIZES, noise=noise, random_state=rows.random_state)


def suggested(
    inspection: Inspection, columns: Columns, items: Sequence[Item], k: int, audit: float, random_state: int
) -> tuple[SuggestedText, ...]:
    """The texts to rate next, those that tell most first.

    Args:
        inspection: of the fit.
        columns: items -> the columns that the fit values them by.
        items: candidates; copies of each other and of rated texts are left out.
        k: how many to choose.
        audit: the share of k that is drawn at random, in [0, 1].
        random_state: seed of the draws.

    Raises:
        InputError: an argument that cannot be used, or no candidate that was not rated.
    """
    fit = inspection.fit
    known = {(query_of(item), folded(text_of(item))) for item in fit.items}
    new: dict[tuple[str | None, str], Item] = {}
    for item in items:
        key = query_of(item), folded(text_of(item))
        if key not in known:
            new.setdefault(key, item)
    if not new:
        raise InputError(
            f"all {len(items)} candidates were rated already, or there are none; give texts without ratings."
        )
    candidates = list(new.values())
    table, rated = columns(candidates), columns(fit.items)
    posterior, X = inspection.posterior, fit.fitted.weighed(table.X)
    found = suggest(posterior, X, table.first, rated.first, k=k, audit=audit, random_state=random_state)
    chosen = [(candidates[one.row], one) for one in found]
    return tuple(SuggestedText(text_of(it), query_of(it), one.inclusion, one.audit, one.gain) for it, one in chosen)
