"""Measures how sure a value function is: what intervals hold, what support catches, what a doubt costs.

    python tests/benchmarks/certainty.py [part] …       all parts, or some of them

    coverage   new scores inside intervals, on six data sets                      coverage.py
    mapie      jackknife+ beside MAPIE                                            coverage.py
    attacks    texts that are marked as unlike, and whether they pay              attacks.py
    suspects   mislabelled ratings among the most suspect, beside cleanlab        suspects.py
    verdicts   how often each verdict is given, and to noise                      verdicts.py
    costs      the cost of doubts beside that of values
    bounds     upper bounds on variances, beside exact ones

The files take further options by themselves.

`costs`: standard deviations, intervals and supports of 1,000 texts beside their values (vader_amazon, see
human_ratings.py), all of them at once and one by one; CPU time, medians of alternating rounds; texts whose vectors are
known, and texts never seen. Bounds, of texts never seen: intervals and standard deviations cost at most 3 times what
their values cost with up to 500 rated texts, intervals at most 1 ms with 2,000.

`bounds`: beyond 4,000 rated texts with hashed words variances are upper bounds. They are made from 3,000 (emobank, the
columns of the lexical model with idf power 0 and 1), where there are exact ones too; printed is how far above those of
1,000 other texts they lie, and the noise above its exact estimate. Bound of the variances: nowhere below, 1.2 times in
the median and 2 times at the 95th percentile. The noise is near with penalties that cross-validation chooses (.3 with
power 0, 10 with power 1), and far too high with much smaller ones.
"""

import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dspy_qvl import Qwen3EmbeddingValueLearner
from dspy_qvl.features import LEXICAL
from dspy_qvl.fitting.tuning import Weights, weighed
from dspy_qvl.learner.columns import Columns
from dspy_qvl.ridge import posterior_of, regression
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
        learner.predict_interval_many(learner.training_texts[:2])
        learner.support(learner.training_texts[0])
        return learner

    calls: dict[str, Callable[[Qwen3EmbeddingValueLearner], Any]] = {
        "values": lambda learner: learner.predict_many(new),
        "std": lambda learner: learner.predict_std_many(new),
        "interval": lambda learner: learner.predict_interval_many(new),
        "support": lambda learner: learner.support_many(new),
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


def bounds() -> None:
    """Print upper bounds on variances over the exact ones."""
    rated = load("emobank", "train")
    texts, scores = rated.texts[:4000], rated.scores[:4000]
    learner = Qwen3EmbeddingValueLearner("lexical", cache_dir=None)
    columns = Columns(learner._vectorizer, (LEXICAL, "length"), paired=False)
    table, y = columns(texts), np.array(scores[:3000])
    for power in (0.0, 1.0):
        X = weighed(table, Weights({LEXICAL: 1.0, "length": 0.1}, power))
        known, new = X[:3000], X[3000:]
        for alpha in (0.3, 1.0, 3.0, 10.0):
            exact = posterior_of(known, y, alpha)
            regression.EXACT, limit = 0, regression.EXACT
            bound = posterior_of(known, y, alpha)
            regression.EXACT = limit
            of_new = [[known.fit_variance(new[row : row + 1]) for row in range(1000)] for known in (bound, exact)]
            ratio = np.divide(*map(np.array, of_new))
            low, middle, high = np.quantile(ratio, [0.0, 0.5, 0.95])
            told = f"variances {low:.4f} at least, {middle:.3f} in the median, {high:.3f} at the 95th percentile"
            print(f"power {power:g}, alpha {alpha:g}: {told}; noise {bound.noise / exact.noise:.3f}")


def costs() -> None:
    """Print what standard deviations cost beside values."""
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
            print(f"{name}, {n_rated} rated: " + ", ".join(f"{what} {ms:.0f} ms" for what, ms in found.items()))
            for what in ("std", "interval", "support"):
                ratios = [found[f"{what}, {kind}"] / found[f"values, {kind}"] for kind in ("new", "seen")]
                print(f"    {what} / values: {ratios[0]:.1f} for texts never seen, {ratios[1]:.1f} for texts seen")


FILES = {"coverage": ["coverage.py", "coverage"], "mapie": ["coverage.py", "mapie"]}
FILES |= {name: [f"{name}.py"] for name in ("attacks", "suspects", "verdicts")}

if __name__ == "__main__":
    for part in sys.argv[1:] or [*FILES, "costs", "bounds"]:
        if part in FILES:
            file, *arguments = FILES[part]
            subprocess.run([sys.executable, str(Path(__file__).with_name(file)), *arguments], check=True)
        else:
            {"costs": costs, "bounds": bounds}[part]()
