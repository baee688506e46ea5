"""What is picking by value worth? Of texts that people rated, the best of n by value beside the best by rating.

    python tests/benchmarks/selection.py                                    the lexical model
    HF_HUB_OFFLINE=1 python tests/benchmarks/selection.py --model FOLDER    a sentence-transformers model
    python tests/benchmarks/selection.py --vectors FOLDER                   vectors of the texts, NAME.SPLIT.npy

Value functions learn from 300 train texts of a set, penalty and weights of blocks chosen on them (means of 3 draws), or
from 2,000 where there are as many. Printed for n = 4 / 16 / 64 / 256: the share of what a judge who knows the ratings
gains over the mean that taking the highest value gains, on the test texts; beside it that of the mean of the 5 nearest
rated texts; and the share out of fold, as a user sees it, who has no other ratings.
"""

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dspy_qvl import Precomputed, Qwen3EmbeddingValueLearner
from dspy_qvl.certainty import RatedRows, beside_baselines, gain_of_best, selection
from dspy_qvl.features import Table
from dspy_qvl.fitting import ALPHA_RANGE, BASELINES, copies, make_folds, members_of, prior_weights, weighed
from dspy_qvl.fitting.tuning import tune
from dspy_qvl.learner.columns import Columns
from dspy_qvl.vectors import Array
from tests.benchmarks.human_ratings import ABSENT, Rated, data_folder, load

SETS, SIZES, DRAWS = ("vader_amazon", "vader_tweets", "ukp_convarg_rank"), (4, 16, 64, 256), 3


def columns(name: str, splits: dict[str, Rated], options: argparse.Namespace) -> tuple[dict[str, Table], bool]:
    """All columns of the texts of each split, and whether blocks may be left out."""
    if options.vectors is None:
        learner = Qwen3EmbeddingValueLearner(options.model, cache_dir=None)
    else:
        vectors = np.concatenate([np.load(options.vectors / f"{name}.{split}.npy") for split in splits])
        texts = [text for rated in splits.values() for text in rated.texts]
        learner = Qwen3EmbeddingValueLearner(embedder=Precomputed(texts, vectors), cache_dir=None)
    blocks = learner._vectorizer.blocks
    make = Columns(learner._vectorizer, blocks.candidates(paired=False), paired=False)
    return {split: make(rated.texts) for split, rated in splits.items()}, blocks.auto


def share(values: Array, y: Array) -> Array:
    """The share of the judge's gain at each of SIZES, (n_sizes,)."""
    return gain_of_best(values, y, SIZES) / gain_of_best(y, y, SIZES)


def of_one_draw(tables: dict[str, Table], splits: dict[str, Rated], n: int, seed: int, optional: bool) -> Any:
    """Shares of the value function and of the nearest texts on the test texts, and out of fold with its interval."""
    train, y, tested = splits["train"], np.array(splits["train"].scores), np.array(splits["test"].scores)
    rows = np.sort(np.random.default_rng([n, seed]).choice(len(y), n, replace=False))
    texts, table, y = [train.texts[row] for row in rows], tables["train"].rows(rows), y[rows]
    copied = copies(texts)
    members = copied if train.groups is None else members_of([train.groups[row] for row in rows], copied)
    tuned = tune(table, y, ALPHA_RANGE, make_folds(members, 5, np.random.default_rng(seed)), optional=optional)
    X, untuned = weighed(table, tuned.weights), weighed(table, prior_weights(table))
    rated = RatedRows(X, untuned, y, tuned.alpha, members, texts, table.first, seed)
    out_of_fold = selection(
        y, beside_baselines(rated, []).values - rated.learned_means, groups=rated.members, n=SIZES, random_state=seed
    )
    nearest = BASELINES["nearest"][1](table.first, y, tables["test"].first)
    return share(tuned.fitted.predict(tables["test"]), tested), share(nearest, tested), out_of_fold


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="What picking by value is worth.")
    parser.add_argument("--model", default="lexical")
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--sets", nargs="+", default=SETS)
    options = parser.parse_args()
    if data_folder() is None:
        raise SystemExit(ABSENT)
    warnings.simplefilter("ignore")
    for name in options.sets:
        splits = {split: load(name, split) for split in ("train", "test")}
        tables, optional = columns(name, splits, options)
        for n in (size for size in (300, 2000) if size <= len(splits["train"].texts)):
            by_value, by_nearest, seen = zip(
                *(of_one_draw(tables, splits, n, seed, optional) for seed in range(DRAWS)), strict=True
            )
            for what, shares in (("value", by_value), ("5 nearest", by_nearest)):
                told = " / ".join(f"{one:.2f}" for one in np.mean(shares, axis=0))
                print(f"{name:17} {n:5} {what:10} test {told}", flush=True)
            for one in seen[0].best_of:
                spread = np.std([[drawn.share.value for drawn in found.best_of] for found in seen], axis=0)
                told = f"{one.share.value:.2f} ({one.share.lower:.2f} to {one.share.upper:.2f})"
                print(f"{'':23} out of fold, best of {one.n}: {told}, spread over draws {spread.max():.2f}")
            print(f"{'':23} {seen[0].sentence}")


if __name__ == "__main__":
    main()
