"""Do intervals for means hold what they say, and are they narrower than those of ratings alone?

    python tests/benchmarks/means.py [data sets] [--vectors FOLDER] [--draws 1000] [--split test]

Rows are drawn with replacement from one split of vader_amazon, saf and simpeval, whose mean is the truth: 400 rows, 20,
50 or 200 of them rated; or 10 groups with 20, 50 or 200 ratings, at most three in five rows; or 40 groups, 10 of them
with 50 ratings ("10 of 40"). Each draw gives the interval of `mean_value` and the classical one of its ratings: t, of
groups with the standard error CR1 and k - 1 degrees of freedom.

Values are of a learner of 300 other rated texts ("elsewhere"), or of the very ratings ("own", `honest_values`, whose
draws are a fifth as many), or of the former in another order ("shuffled").

Bounds, at 95 %: coverage at most .02 below that of the classical interval in the same draws, mean width at most 3 %
above, and below wherever the values have a Spearman of .4 or more. A "!" marks what misses one by more than two
standard errors, a "?" what misses it by less.

The lexical model; all-MiniLM-L6-v2 where its package is installed (features.py), or from FOLDER: SET.SPLIT.npy and
SET.SPLIT.query.npy, unit vectors in the order of the data set.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dspy_qvl import Precomputed, Qwen3EmbeddingValueLearner, RankingExample
from dspy_qvl.certainty import honest_values, mean_value
from dspy_qvl.fitting import copies, prior_weights, weighed
from dspy_qvl.learner.columns import Columns, items_of
from dspy_qvl.measures import numbered
from dspy_qvl.vectors import Array
from tests.benchmarks.coverage import ALPHAS, Ratings, ratings
from tests.benchmarks.features import models

SETS = {"vader_amazon": "test", "saf": "test_answers", "simpeval": "test"}
N_ROWS, N_LEARNED, N_GROUPS, SIZES, CONFIDENCE = 400, 300, 10, (20, 50, 200), 0.95
MAX_SHARE = 0.6  # of the rows of groups, that are rated
SHORT, WIDE, LIKE = 0.02, 1.03, 0.4  # the bounds


@dataclass(frozen=True)
class Population:
    """Rated texts with their values and columns.

    Attributes:
        scores, values: (n,).
        groups: numbered, (n,).
        texts: numbered, copies alike, (n,).
        X: columns under weights that no rating chose.
    """

    scores: Array
    values: Array
    groups: NDArray[np.intp]
    texts: NDArray[np.intp]
    X: Any


def population(name: str, model: str, vectors: Path | None) -> Population:
    """The test rows of a data set, valued by a learner of 300 train rows."""
    known, new = ratings(name, "train"), ratings(name, SETS[name])
    if model == "lexical" or vectors is None:
        learner = Qwen3EmbeddingValueLearner(models()[model], cache_dir=None)
    else:
        stored = {}
        for split, rated in (("train", known), (SETS[name], new)):
            for texts, end in ((rated.texts, ""), (rated.queries, ".query")):
                if texts is not None:
                    stored |= dict(zip(texts, np.load(vectors / f"{name}.{split}{end}.npy"), strict=True))
        learner = Qwen3EmbeddingValueLearner(embedder=Precomputed.from_vectors(stored), cache_dir=None)
    some = np.random.default_rng(0).choice(len(known.texts), N_LEARNED, replace=False)
    asked: Any = known.queries or [None] * len(known.texts)
    learner.add_training_examples(RankingExample(known.texts[i], known.scores[i], query=asked[i]) for i in some)
    learner.optimize_hyperparameters(ALPHAS, groups=[known.groups[i] for i in some])
    values = learner.predict_many(new.texts, new.queries)
    return Population(new.scores, values, numbered(new.groups), numbered(copies(new.texts)), columns(learner, new))


def columns(learner: Qwen3EmbeddingValueLearner, rated: Ratings) -> Any:
    paired = rated.queries is not None
    vectorizer = learner._vectorizer
    table = Columns(vectorizer, vectorizer.blocks.candidates(paired=paired), paired=paired)(
        items_of(rated.texts, rated.queries, paired=paired)
    )
    return weighed(table, prior_weights(table))


def draws(
    of: Population, design: str, n: int, n_draws: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.bool_], NDArray[np.intp] | None]]:
    """Rows of the population, which of them are rated, and their groups if they were drawn by groups."""
    by_group = [np.flatnonzero(of.groups == group) for group in range(of.groups.max() + 1)]
    for draw in range(n_draws):
        rng = np.random.default_rng([draw, n])
        if design == "rows":
            yield rng.integers(len(of.scores), size=N_ROWS), np.arange(N_ROWS) < n, None
            continue
        drawn = [by_group[group] for group in rng.integers(len(by_group), size=N_GROUPS * (4 if "of" in design else 1))]
        groups = np.repeat(np.arange(len(drawn)), [len(rows) for rows in drawn])
        within = np.flatnonzero(groups < N_GROUPS)
        rated = np.zeros(len(groups), dtype=bool)
        rated[rng.choice(within, min(n, int(MAX_SHARE * len(within))), replace=False)] = True
        yield np.concatenate(drawn), rated, groups


def classical(scores: Array, groups: NDArray[np.intp] | None) -> tuple[float, float]:
    """The t interval of ratings: that of a mean, or with the standard error CR1 of groups."""
    _, of = np.unique(np.arange(len(scores)) if groups is None else groups, return_inverse=True)
    k, mean = int(of.max()) + 1, scores.mean()
    if k < 2:
        return -np.inf, np.inf
    se = np.sqrt(k / (k - 1) * np.sum(np.bincount(of, scores - mean) ** 2)) / len(scores)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, k - 1) * se
    return mean - half, mean + half


def simulate(of: Population, source: str, design: str, n: int, n_draws: int) -> str:
    """One line of the table."""
    truth, found = of.scores.mean(), []
    spearman = stats.spearmanr(of.values, of.scores).statistic if source == "elsewhere" else 0.0
    for number, (rows, rated, groups) in enumerate(draws(of, design, n, n_draws)):
        given = np.where(rated, of.scores[rows], np.nan)
        if source == "own":
            folded = of.texts[rows] if groups is None else groups  # a text drawn twice is in one fold
            values = honest_values(of.X[rows], given, 1.0, groups=folded, random_state=number)
            spearman += stats.spearmanr(values, of.scores[rows]).statistic / n_draws
        elif source == "shuffled":
            values = np.random.default_rng(number).permutation(of.values[rows])
        else:
            values = of.values[rows]
        told = mean_value(values, given, groups=groups, confidence=CONFIDENCE)
        lower, upper = classical(given[rated], groups if groups is None else groups[rated])
        alone = told.ratings_alone
        found.append(
            [
                told.lower <= truth <= told.upper,
                lower <= truth <= upper,
                alone.lower <= truth <= alone.upper,
                told.upper - told.lower,
                upper - lower,
                (told.value - truth) ** 2,
                (alone.value - truth) ** 2,
            ]
        )
    table = np.array(found, dtype=np.float64)
    table = table[np.isfinite(table).all(axis=1)]
    inside, width = table.mean(axis=0), table[:, 3].mean() / table[:, 4].mean()
    short, se = inside[1] - inside[0], (table[:, 1] - table[:, 0]).std() / np.sqrt(len(table))
    se_width = (table[:, 3] - width * table[:, 4]).std() / np.sqrt(len(table)) / table[:, 4].mean()
    most = 1.0 if spearman >= LIKE else WIDE
    missed = "!" if short - SHORT > 2 * se or width - most > 2 * se_width else ""
    missed = missed or ("?" if short > SHORT or width > most else "")
    errors = np.sqrt(inside[5] / inside[6])
    return (
        f"{design:12}{n:5}{source:>11}{spearman:10.2f}{inside[0]:10.3f}{inside[1]:11.3f}{inside[2]:9.3f}"
        f"{width:9.3f}{errors:9.3f} {missed}"
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Intervals for means.")
    parser.add_argument("sets", nargs="*", default=list(SETS))
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--sources", nargs="+", default=["elsewhere", "own", "shuffled"])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    minilm = ["MiniLM"] if options.vectors is not None or "MiniLM" in models() else []
    cells = [("rows", n) for n in SIZES] + [("10 groups", n) for n in SIZES] + [("10 of 40", 50)]
    for name in options.sets:
        for model in ["lexical", *minilm]:
            start, of = time.process_time(), population(name, model, options.vectors)
            print(f"\n{name}, {model}: {len(of.scores)} rows in {of.groups.max() + 1} groups, {options.draws} draws")
            print("design      rated     values  Spearman  coverage  classical  (alone)    width    error")
            for source in options.sources:
                for design, n in cells if source != "own" else cells[:4]:
                    n_draws = options.draws // (5 if source == "own" else 1)
                    print(simulate(of, source, design, n, n_draws), flush=True)
            print(f"    {time.process_time() - start:.0f} s")


if __name__ == "__main__":
    main()
