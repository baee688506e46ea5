"""Measures how many new scores lie inside the intervals that are to hold nine in ten.

    python tests/benchmarks/coverage.py coverage [data sets] [--vectors FOLDER]
    python tests/benchmarks/coverage.py mapie                  needs mapie

`coverage`: learned on the train split, penalty and weights by cross-validation, whole groups (a review, a genre, an
article, a question) left out; texts rated for queries are valued for them. Beside the intervals value +- 1.645 std. The
share of new scores inside, of all new texts and of the third with the widest intervals, with group-bootstrap standard
errors, and the mean width over the standard deviation of the scores. Bound, where new texts are of the kind of the
rated ones: 87 to 95 %, in the widest third too. The new questions of saf are of another kind.

The lexical model always; all-MiniLM-L6-v2 with features="auto" where its package is installed (see features.py), or
from FOLDER: SET.SPLIT.npy and SET.SPLIT.query.npy, unit vectors in the order of the data set.

`mapie`: 300 rows of 256 columns, 200 new ones. Bound: equal to 1e-8, and at least 100 times faster.
"""

import argparse
import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dspy_qvl import Precomputed, Qwen3EmbeddingValueLearner, RankingExample
from dspy_qvl.certainty import jackknife_plus
from dspy_qvl.measures import numbered
from tests.benchmarks.features import models
from tests.benchmarks.human_ratings import POINTWISE, rows_of

ALPHAS = np.geomspace(0.01, 100, 9).tolist()
SPLITS = dict.fromkeys((*POINTWISE, "summeval"), ("test",)) | {"saf": ("test_answers", "test_questions")}
CONFIDENCE, STDS = 0.9, 1.645


@dataclass(frozen=True)
class Ratings:
    """One split of a data set."""

    texts: list[str]
    queries: list[str] | None
    scores: np.ndarray
    groups: list[Any]


def ratings(name: str, split: str) -> Ratings:
    rows = rows_of(name, split)
    return Ratings(
        [row["text"] for row in rows],
        [row["query"] for row in rows] if "query" in rows[0] else None,
        np.array([float(row[POINTWISE.get(name, "score")]) for row in rows]),
        [row.get("group", number) for number, row in enumerate(rows)],
    )


def learner_of(model: str, name: str, vectors: Path | None) -> Qwen3EmbeddingValueLearner:
    if model == "lexical" or vectors is None:
        return Qwen3EmbeddingValueLearner(models()[model], cache_dir=None, features="auto")
    known: dict[str, np.ndarray] = {}
    for split in ("train", *SPLITS[name]):
        rated = ratings(name, split)
        for texts, end in ((rated.texts, ""), (rated.queries, ".query")):
            if texts is not None:
                known |= dict(zip(texts, np.load(vectors / f"{name}.{split}{end}.npy"), strict=True))
    return Qwen3EmbeddingValueLearner(embedder=Precomputed.from_vectors(known), cache_dir=None)


def share(inside: np.ndarray, groups: list[Any]) -> str:
    """The share of rows inside in percent, and its standard error over draws of whole groups."""
    members = numbered(groups)
    counts, hits = np.bincount(members), np.bincount(members, inside)
    n = len(counts)
    drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=1000)
    return f"{100 * inside.mean():5.1f} ± {100 * np.std(drawn @ hits / (drawn @ counts)):3.1f}"


def row(label: str, ends: np.ndarray, missed: np.ndarray, new: Ratings) -> None:
    """Print the coverage of intervals around values that miss the scores by so much."""
    inside, widths = (ends[:, 0] <= missed) & (missed <= ends[:, 1]), ends[:, 1] - ends[:, 0]
    widest = np.argsort(-widths, kind="stable")[: len(widths) // 3]
    low, middle, high = np.quantile(widths, [0.05, 0.5, 0.95]) / new.scores.std()
    shares = f"{share(inside, new.groups)}   {share(inside[widest], [new.groups[i] for i in widest])}"
    print(f"    {label:<10}{shares}   {middle:.2f} ({low:.2f} to {high:.2f})", flush=True)


def coverage(names: list[str], vectors: Path | None) -> None:
    """Print the coverage of each data set."""
    minilm = "MiniLM" if vectors is not None or "MiniLM" in models() else None
    print(
        "    in percent   all            widest third   width in standard deviations of the scores (90 % of the texts)"
    )
    for name in names:
        known, new = ratings(name, "train"), [ratings(name, split) for split in SPLITS[name]]
        asked = known.queries or [None] * len(known.texts)
        for model in ("lexical", *([minilm] if minilm else [])):
            learner = learner_of(model, name, vectors)
            rated = zip(known.texts, known.scores.tolist(), asked, strict=True)
            learner.add_training_examples(RankingExample(text, score, query=query) for text, score, query in rated)
            learner.optimize_hyperparameters(ALPHAS, groups=known.groups)
            for split, of in zip(SPLITS[name], new, strict=True):
                print(f"{name} {split}, {model}: {len(known.texts):,} rated, {len(of.texts):,} new")
                values = learner.predict_many(of.texts, of.queries)
                ends = learner.predict_interval_many(of.texts, of.queries, CONFIDENCE) - values[:, None]
                missed = of.scores - values
                std = STDS * learner.predict_std_many(of.texts, of.queries)
                row("intervals", ends, missed, of)
                row("std", np.stack([-std, std], axis=1), missed, of)


def mapie(rounds: int = 15) -> None:
    """Print how much faster the closed form is than refits, and how far apart they are."""
    if importlib.util.find_spec("mapie") is None:
        raise SystemExit("mapie is not installed")
    from mapie.regression import CrossConformalRegressor
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import LeaveOneOut

    rng = np.random.default_rng(0)
    X, new = rng.normal(size=(300, 256)), rng.normal(size=(200, 256))
    y = X @ rng.normal(size=256) / 16 + rng.normal(size=300)

    def theirs() -> Any:
        refits = CrossConformalRegressor(Ridge(10.0), confidence_level=CONFIDENCE, method="plus", cv=LeaveOneOut())
        return refits.fit_conformalize(X, y).predict_interval(new)[1][:, :, 0]

    def ours() -> Any:
        return np.stack(jackknife_plus(X, y, 10.0, new, CONFIDENCE), axis=1)

    def cost(call: Callable[[], Any]) -> float:
        start = time.process_time()
        call()
        return time.process_time() - start

    apart = float(np.abs(theirs() - ours()).max())
    slow, fast = statistics.median(cost(theirs) for _ in range(3)), statistics.median(cost(ours) for _ in range(rounds))
    print(f"jackknife+: {1e3 * fast:.1f} ms, MAPIE {slow:.2f} s: {slow / fast:.0f} times faster, apart by {apart:.0e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["coverage", "mapie"])
    parser.add_argument("names", nargs="*", metavar="data set", help=", ".join(SPLITS))
    parser.add_argument("--vectors", type=Path, metavar="FOLDER", help="MiniLM's vectors, as .npy files")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.part == "mapie":
        mapie()
    else:
        coverage(options.names or list(SPLITS), options.vectors)
