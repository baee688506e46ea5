"""Measures what is lost by cutting real Qwen3 vectors, on 900 template posts for, against and neutral to one thing.

    python tests/benchmarks/qwen3.py

The vectors are Qwen3-Embedding-0.6B's own, with its instruction before the texts ("instruct") or without ("vanilla").
The posts were written from templates, so the task is easy: this is about geometry, not about quality. Two of their six
groups (the side of the matter they speak of) are the test split; labels are drawn from the others, the penalty is
chosen on them by cross-validation. Medians of 20 draws of the labels. The folder `qwen3` lies among the data sets; it
cannot be made anew (see DATA.md).
"""

import gzip
import json
import statistics

import numpy as np

from dspy_qvl import Qwen3EmbeddingValueLearner
from dspy_qvl.measures import spearman
from tests.benchmarks.human_ratings import ABSENT, data_folder

DIMENSIONS = (1024, 768, 256, 64)
N_LABELS = (15, 30, 60, 120, 300)
N_DRAWS = 20
ALPHAS = [0.001, 0.01, 0.1, 1.0, 10.0]


class Stored:
    """An embedder that gives the stored vectors of known texts."""

    def __init__(self, name: str, texts: list[str], vectors: np.ndarray) -> None:
        self.name = f"stored {name}"
        self._rows = dict(zip(texts, vectors, strict=True))
        self._any = vectors[0]  # for the probe texts, which are not stored

    def __call__(self, texts: list[str]) -> np.ndarray:
        return np.stack([self._rows.get(text, self._any) for text in texts])


def geometry(name: str, vectors: np.ndarray, unit: dict[int, np.ndarray]) -> None:
    lengths = np.linalg.norm(vectors, axis=1)
    print(f"{name}: stored lengths {lengths.min():.4f} to {lengths.max():.4f}; as used, by columns")
    cosines = {d: (rows @ rows.T)[np.triu_indices(len(rows), 1)] for d, rows in unit.items()}
    nearest = {d: np.argsort(-(rows @ rows.T), axis=1)[:, 1:11] for d, rows in unit.items()}
    for d, rows in unit.items():
        off = np.abs(np.linalg.norm(rows.astype(np.float64), axis=1) - 1).max()
        centred = rows - rows.mean(axis=0)
        kept = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(nearest[d], nearest[1024], strict=True)])
        print(
            f"  {d:>5}: length 1 to {off:.0e}, length of the mean {np.linalg.norm(rows.mean(axis=0)):.2f} (centred "
            f"{np.linalg.norm(centred.mean(axis=0)):.0e}), correlation of cosines with 1024's "
            f"{np.corrcoef(cosines[d], cosines[1024])[0, 1]:.3f}, 10 nearest in common {kept:.0%}"
        )


def main() -> None:
    folder = data_folder()
    if folder is None or not (folder / "qwen3").is_dir():
        raise SystemExit(f"{ABSENT} (qwen3/polarity_posts is wanted)")
    with gzip.open(folder / "qwen3" / "polarity_posts.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    stored = np.load(folder / "qwen3" / "polarity_posts.npz", allow_pickle=False)
    texts, scores = [row["text"] for row in rows], np.array([row["score"] for row in rows])
    groups = np.array([row["group"] for row in rows])
    held_out = np.random.default_rng(0).permutation(sorted(set(groups)))[:2]
    is_test = np.isin(groups, held_out)
    test, train = np.flatnonzero(is_test), np.flatnonzero(~is_test)
    for name in ("vanilla", "instruct"):
        vectors = stored[name]
        learners = {
            d: Qwen3EmbeddingValueLearner(
                embedder=Stored(name, texts, vectors), embedding_dim=d, cache_dir=None, features=None
            )
            for d in DIMENSIONS
        }
        geometry(name, vectors, {d: learner.embed(texts) for d, learner in learners.items()})
        print(f"  test Spearman, {len(test)} posts of {' and '.join(held_out)}:")
        print(f"  {'':>13}" + "".join(f"{n:>8}" for n in N_LABELS) + "  labels")
        figures: dict[int, list[float]] = {d: [] for d in DIMENSIONS}
        for n in N_LABELS:
            draws = [np.random.default_rng([n, draw]).choice(train, n, replace=False) for draw in range(N_DRAWS)]
            for d, learner in learners.items():
                found = []
                for draw in draws:
                    learner.ridge.examples = []
                    learner.add_training_examples([(texts[row], scores[row]) for row in draw])
                    learner.optimize_hyperparameters(ALPHAS)
                    found.append(spearman(scores[test], learner.predict_many([texts[row] for row in test])))
                figures[d].append(statistics.median(found))
        for d in DIMENSIONS:
            print(f"  {d:>5} columns" + "".join(f"{figure:>8.3f}" for figure in figures[d]))


if __name__ == "__main__":
    main()
