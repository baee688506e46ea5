"""The texts that are worth rating next, and a random share of the others.

Rating row a of m candidates changes the covariances C of their values, in units of the noise's variance, to

    C - C_:a C_a: / (1 + C_aa)

whatever the rating is, so their mean variance falls by  sum_j C_ja^2 / (m (1 + C_aa)). Rows are taken one after
another, each the one that lowers it most once those before it are rated: exact for one penalty and weights of blocks.
Near copies of rated texts, or of those taken, are passed over, since a second rating of one text tells less than the
model takes it to. More than 4,000 candidates are looked at by a random sample of them.

With the columns, weights and penalty of the fit this does better than with the embedding alone, with prior weights,
weighed by how many candidates are near, or than the middles of k-means clusters; to take the most uncertain text, or
the one farthest from those rated, is worse than chance: such texts are odd (train texts of vader_amazon, MiniLM).

Rows so taken are unlike the others, and their mean rating says nothing of all candidates. Therefore a share of the
suggestions, the audit, is drawn at random from the candidates that were not taken. The probability of a row to be
suggested, its inclusion, is

    1                           if it was taken: given the fit it is in every draw, and it stands for itself alone
    n_audit / (m - n_taken)     if it was drawn: it stands for so many others

so the sum of rating / inclusion over all suggested rows, over m, is an unbiased mean of the candidates: rows taken with
certainty are a stratum of their own. It is the mean of these candidates, not of their source. In a second round the
candidates are others: rows rated before count with inclusion 1, and only the audit of the last round is weighed; the
probabilities of the first round do not hold for both. Without an audit there is no unbiased mean, and an audit of a few
rows gives one with a large error.

Source: Cohn, Ghahramani & Jordan (1996), Active learning with statistical models, for the mean variance; Horvitz &
Thompson (1952) for the mean of candidates.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.errors import InputError, check_count, check_number
from dspy_qvl.ridge import Posterior
from dspy_qvl.vectors import Array, Matrix, unit

MOST = 4000  # candidates that are looked at; of more a random sample
ALIKE = 0.95  # cosine from which on a text counts as a near copy
TIED = 1e-9  # gains that differ by less, relative to the highest, are equal


@dataclass(frozen=True)
class Suggestion:
    """A candidate that is worth rating.

    Attributes:
        row: its row among the candidates.
        inclusion: the probability that it was suggested, in (0, 1].
        audit: True if it was drawn at random.
        gain: the share of the mean variance of the candidates' values that its rating takes away after those before
            it; None if it was drawn at random.
    """

    row: int
    inclusion: float
    audit: bool
    gain: float | None


def suggest(
    posterior: Posterior,
    candidates: Matrix,
    vectors: Any,
    rated_vectors: Any,
    *,
    k: int = 10,
    audit: float = 0.2,
    random_state: int = 0,
) -> tuple[Suggestion, ...]:
    """Choose candidates to rate next: first those that tell most, the best first, then the audit by row.

    Args:
        posterior: that of the fit.
        candidates: texts that were not rated, each once, as the fit sees them, (m, d).
        vectors: their vectors, by whose cosines near copies are told, dense or sparse, (m, dim).
        rated_vectors: those of the rated texts, (n, dim).
        k: how many to choose; all of fewer candidates.
        audit: the share of k that is drawn at random, in [0, 1]: rounded, and at least one row if above 0. Where too
            few of the candidates are no near copies, more of k is drawn at random.
        random_state: seed of the draws.

    Raises:
        InputError: k below 1, an audit that is no share, no candidates, or vectors of another number.
    """
    k, n_candidates, share = check_count(k, "k", 1), len(candidates), check_number(audit, "audit")
    if not 0 <= share <= 1:
        raise InputError(f"audit must be a share between 0 and 1, for instance .2, but got {share:g}.")
    if n_candidates == 0:
        raise InputError("there are no candidates to choose from; give texts that were not rated yet.")
    if vectors.shape[0] != n_candidates:
        raise InputError(f"there are {vectors.shape[0]} vectors for {n_candidates} candidates; give one each.")
    k = min(k, n_candidates)
    n_audit = min(k, max(1, round(share * k))) if share > 0 else 0
    rng = np.random.default_rng(random_state)
    some = np.arange(n_candidates)
    if n_candidates > MOST:
        some = np.sort(rng.choice(n_candidates, MOST, replace=False))
    rows, gains = _most_telling(posterior, candidates[some], _unit(vectors[some]), _unit(rated_vectors), k - n_audit)
    taken = some[rows]
    others = np.setdiff1d(np.arange(n_candidates), taken)
    n_drawn = k - len(taken)
    drawn = np.sort(rng.choice(others, n_drawn, replace=False)).tolist() if n_drawn else []
    return (
        *(Suggestion(row, 1.0, False, gain) for row, gain in zip(taken.tolist(), gains, strict=True)),
        *(Suggestion(row, n_drawn / len(others), True, None) for row in drawn),
    )


def _most_telling(
    posterior: Posterior, X: Matrix, vectors: Any, rated_vectors: Any, n: int
) -> tuple[NDArray[np.intp], list[float]]:
    """At most n rows, each the one that lowers the mean variance most once those before it are rated, and their gains.

    Args:
        posterior: that of the fit.
        X: the candidates, (m, d).
        vectors: their unit vectors, (m, dim).
        rated_vectors: those of the rated texts, (n_rated, dim).
        n: how many.
    """
    rows: list[int] = []
    gains: list[float] = []
    if n == 0:
        return np.array(rows, dtype=np.intp), gains
    C = posterior.covariances(X)
    squares, variances = np.einsum("ij,ij->i", C, C), C.diagonal().copy()
    moves, total = np.empty((n, len(C))), variances.sum()
    usable = np.ones(len(C), dtype=bool)
    while len(rows) < n and usable.any():
        lowered = np.where(usable, squares / (1 + variances), -np.inf)
        row = int(np.argmax(lowered >= lowered.max() * (1 - TIED)))
        usable[row] = False
        if _cosines(rated_vectors, vectors[[row]]).max(initial=-1.0) >= ALIKE:
            continue
        before = moves[: len(rows)]
        move = (C[row] - before[:, row] @ before) / np.sqrt(1 + variances[row])
        squares -= 2 * move * (C @ move - (before @ move) @ before) - move**2 * (move @ move)
        variances -= move**2
        usable &= _cosines(vectors, vectors[[row]]) < ALIKE
        moves[len(rows)] = move
        rows.append(row)
        gains.append(float(move @ move / total))
    return np.array(rows, dtype=np.intp), gains


def _unit(vectors: Any) -> Any:
    """Rows scaled to length 1, dense or sparse, (n, dim)."""
    if isinstance(vectors, np.ndarray):
        return unit(vectors)
    lengths = np.sqrt(np.asarray(vectors.power(2).sum(axis=1)))
    return vectors.multiply(1 / np.where(lengths > 0, lengths, 1.0)[:, None]).tocsr()


def _cosines(vectors: Any, one: Any) -> Array:
    """The cosines of unit vectors with one, dense or sparse, (n, dim) and (1, dim) -> (n,)."""
    products = vectors @ one.T
    return np.asarray(products.toarray() if hasattr(products, "toarray") else products, dtype=np.float64)[:, 0]
