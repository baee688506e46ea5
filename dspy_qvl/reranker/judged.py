"""Judged queries, and what they show of the first stage that found their passages.

A first stage (BM25, an index of vectors) gives passages in an order, perhaps with scores. Both are worth knowing, but
lists come in other orders too: in none, or sorted by their labels, which tells everything while there are labels and
nothing afterwards. So the order and the scores of passages are used where the caller says so, or where the data does:

    first_stage=True    they are a first stage's; the passages of a retriever's Prediction are
    first_stage=False   they are not
    first_stage=None    scores that came along (an example's `scores`, a Prediction's, the `score` of each passage) are
                        taken for a first stage's, and the order where it is far better than chance; but neither where
                        it ranks as well as one made from the labels

Source: Wald & Wolfowitz (1944), Statistical tests based on permutations of the observations.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dspy_qvl.errors import InputError, check_flag, warn
from dspy_qvl.measures import average_precision
from dspy_qvl.reranker.passages import SCORE, checked_scores
from dspy_qvl.vectors import Array

RANK = "rank"
FIRST_STAGE = (RANK, SCORE)
BEYOND_CHANCE = 3.0  # standard deviations: once in 740 shuffled data sets
WORTH_SAYING = 0.1  # share of the way from chance to the best order: with 10,000 queries any order is beyond chance
PERFECT = 0.9  # share of the queries


@dataclass(frozen=True)
class JudgedQuery:
    """A query, passages, and how relevant each is.

    Attributes:
        query: the query.
        passages: their texts.
        relevance: (n,), higher for better, in any units.
        scores: first-stage scores, (n,), higher for better, or None.
        first_stage: True if the passages come in the order of a first stage, best first; None to find out.
    """

    query: str
    passages: list[str]
    relevance: Array
    scores: Array | None = None
    first_stage: bool | None = None


def known_of_first_stage(judged: Sequence[JudgedQuery], *, quiet: bool = False) -> tuple[str, ...]:
    """Those of "rank" and "score" that are known of all these queries; see the module.

    Args:
        judged: checked queries with passages of different relevance.
        quiet: True to give no warning where one of them is left out.
    """
    said = {one.first_stage for one in judged}
    if False in said or not judged:
        return ()
    share, deviations = beyond_chance([one.relevance for one in judged])
    in_order = said == {True} or (share >= WORTH_SAYING and deviations >= BEYOND_CHANCE)
    n_scored = sum(one.scores is not None for one in judged)
    if 0 < n_scored < len(judged) and not quiet:
        warn(
            f"{n_scored} of {len(judged)} judged queries have first-stage scores, so scores are left out; give them "
            "for all.",
        )
    known = (*((RANK,) if in_order else ()), *((SCORE,) if n_scored == len(judged) else ()))
    if said == {True}:
        return known
    as_labels = {name: share for name in known if (share := _perfect(judged, name)) >= PERFECT}
    if as_labels and not quiet:
        warn(
            f"the {' and the '.join(as_labels)} of passages puts all relevant ones first in "
            f"{min(as_labels.values()):.0%} of the judged queries, as if made from the labels, and is left out; "
            "first_stage=True says that it is a first stage's, False that it is not.",
        )
    return tuple(name for name in known if name not in as_labels)


def first_stage_values(one: JudgedQuery, name: str) -> Array:
    """Values that rank passages as the first stage does, by its "rank" or its "score", (n,); higher is better."""
    if name == SCORE and one.scores is not None:
        return one.scores
    return -np.arange(len(one.passages), dtype=np.float64)


def beyond_chance(relevances: Sequence[Array]) -> tuple[float, float]:
    """How far the nDCG of passages as they came lies above that of shuffled ones.

    The nDCG of n passages with gains g, at places with discounts d, is g . d over a constant; shuffled, its mean is
    n mean(g) mean(d) and its variance n^2 var(g) var(d) / (n - 1) over the same.

    Returns:
        As a share of the way from there to the best order, and in standard deviations of the mean over queries.
    """
    above = possible = variance = 0.0
    for relevance in relevances:
        n, gains = len(relevance), (relevance - relevance.min()) / np.ptp(relevance)
        discounts = 1 / np.log2(np.arange(2, 2 + n))
        ideal, shuffled = np.sort(gains)[::-1] @ discounts, n * gains.mean() * discounts.mean()
        above += (gains @ discounts - shuffled) / ideal
        possible += 1 - shuffled / ideal
        variance += n**2 * gains.var() * discounts.var() / (n - 1) / ideal**2
    return float(above / possible), float(above / np.sqrt(variance))


def _perfect(judged: Sequence[JudgedQuery], name: str) -> float:
    """The share of queries whose relevant passages all come first."""
    precisions = [
        average_precision(one.relevance > one.relevance.min(), first_stage_values(one, name)) for one in judged
    ]
    return float(np.mean(np.array(precisions) == 1))


def informative(judged: Sequence[JudgedQuery]) -> list[JudgedQuery]:
    """The queries that teach something: those with passages of different relevance; all of them are checked.

    Raises:
        InputError: other things than JudgedQuery, or numbers that do not go with the passages.
    """
    checked = []
    for row, one in enumerate(judged):
        if not isinstance(one, JudgedQuery):
            raise InputError(f"judged[{row}] must be a JudgedQuery, but got {type(one).__name__}.")
        relevance = np.asarray(one.relevance, dtype=np.float64)
        if relevance.shape != (len(one.passages),) or not np.isfinite(relevance).all():
            raise InputError(f"judged[{row}] must have one finite relevance for each of {len(one.passages)} passages.")
        if one.first_stage is not None:
            check_flag(one.first_stage, f"first_stage of judged[{row}]")
        checked.append(replace(one, relevance=relevance, scores=checked_scores(one.scores, len(one.passages))))
    return [one for one in checked if len(one.relevance) and np.ptp(one.relevance) > 0]
