"""Measures the cost of the standard deviations of 1,000 texts beside that of their values.

    python tests/benchmarks/certainty.py

Product-review sentences (vader_amazon, see human_ratings.py), all of them at once and one by one; CPU time, medians of
alternating rounds; texts whose vectors are known, and texts never seen. Bound, with up to 500 rated texts: standard
deviations of texts never seen cost at most 3 times what their values cost.
"""

import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dspy_qvl import Qwen3EmbeddingValueLearner
from tests.benchmarks.human_ratings import load

ROUNDS, N_NEW = 7, 1000


def dense(texts: list[str]) -> Any:
    """Stands for an embedding model: 384 columns about a common mean."""
    return [np.random.default_rng(zlib.crc32(text.encode())).normal(size=384) + 0.7 for text in texts]


dense.name = "dense"  # type: ignore[attr-defined]
MODELS: dict[str, Callable[[], Qwen3EmbeddingValueLearner]] = {
    "lexical": lambda: Qwen3EmbeddingValueLearner("lexical", cache_dir=None),
    "384 columns": lambda: Qwen3EmbeddingValueLearner(embedder=dense, cache_dir=None, features=None),
    "384 columns and features": lambda: Qwen3EmbeddingValueLearner(embedder=dense, cache_dir=None),
}


def cost(call: Callable[[], Any]) -> float:
    """Milliseconds of CPU."""
    start = time.process_time()
    call()
    return (time.process_time() - start) * 1e3


def measure(make: Callable[[], Qwen3EmbeddingValueLearner], saved: Path, new: list[str]) -> dict[str, float]:
    """Milliseconds that 1,000 texts cost a learner that was just loaded, by what is asked of it."""

    def loaded() -> Qwen3EmbeddingValueLearner:
        learner = make()
        learner.load_model(saved)
        learner.predict_std_many(learner.training_texts[:2])
        return learner

    calls: dict[str, Callable[[Qwen3EmbeddingValueLearner], Any]] = {
        "values": lambda learner: learner.predict_many(new),
        "std": lambda learner: learner.predict_std_many(new),
    }
    costs: dict[str, list[float]] = {f"{name}, {kind}": [] for kind in ("seen", "new") for name in calls}
    for number in range(ROUNDS):
        for name, call in calls.items():
            learner = loaded()
            costs[f"{name}, new"].append(cost(lambda call=call, learner=learner: call(learner)))
            costs[f"{name}, seen"].append(cost(lambda call=call, learner=learner: call(learner)))
        if number < 2:
            learner = loaded()
            learner.predict_many(new)
            one_by_one = cost(lambda learner=learner: [learner.predict_std(text) for text in new])
            costs.setdefault("std one by one, seen", []).append(one_by_one)
    return {name: statistics.median(column) for name, column in costs.items()}


def main() -> None:
    """Measure and print."""
    rated, new = load("vader_amazon", "train"), load("vader_amazon", "test")
    examples, texts = list(zip(rated.texts, rated.scores, strict=True)), (new.texts + rated.texts[::-1])[:N_NEW]
    for name, make in MODELS.items():
        for n_rated in (240, 500, 2000):
            learner = make()
            learner.add_training_examples(examples[:n_rated])
            learner.train()
            with tempfile.TemporaryDirectory() as folder:
                learner.save_model(Path(folder) / "saved.qvl")
                found = measure(make, Path(folder) / "saved.qvl", texts)
            ratios = [found[f"std, {kind}"] / found[f"values, {kind}"] for kind in ("new", "seen")]
            print(f"{name}, {n_rated} rated: " + ", ".join(f"{what} {ms:.0f} ms" for what, ms in found.items()))
            print(f"    std / values: {ratios[0]:.1f} for texts never seen, {ratios[1]:.1f} for texts seen")


if __name__ == "__main__":
    main()
