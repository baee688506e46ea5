"""Does the test for drift alarm where texts are of another kind, and only there? By the rated texts' words alone.

    python tests/benchmarks/drift.py [--runs 100]

In each run the reviews of vader_amazon are split at random: sentences of some are rated, 2,000 sentences of the others
come as new texts in random order, then abstracts of scifact. Printed: how many of the runs alarm at a sentence; after
how many abstracts those alarm that begin with them, or that had 2,000 sentences before; the report of one run. Bounds:
at most 3 of 100 runs alarm at a sentence, and abstracts that come first alarm within 50. The same with sentences split
one by one, where they are exchangeable: reviews are groups of about 12 sentences, so sentences of new reviews are not
quite. Last, one run through a value function and `metric.drift()`.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dspy_qvl.certainty import WEALTH, Drift, DriftTest
from dspy_qvl.fitting import folded
from tests.benchmarks.human_ratings import load, rows_of

N_HONEST, N_OTHERS, WITHIN, MOST = 2000, 100, 50, 3
CHECKED_RUNS = 100


def split(texts: list[str], groups: NDArray[np.intp], rng: np.random.Generator) -> tuple[NDArray[np.intp], list[str]]:
    """The rows that are rated, and 2,000 other texts of other groups, in random order; no copies among these."""
    place = rng.permutation(groups.max() + 1)[groups]  # of each row's group in a random order
    for n_groups in range(1, int(place.max()) + 1):
        if (place < n_groups).sum() < N_HONEST:
            continue
        rated = np.flatnonzero(place >= n_groups)
        known = {folded(texts[row]) for row in rated}
        new = {folded(texts[row]): texts[row] for row in rng.permutation(np.flatnonzero(place < n_groups))}
        honest = [text for key, text in new.items() if key not in known]
        if len(honest) >= N_HONEST:
            return rated, honest[:N_HONEST]
    raise SystemExit(f"there are fewer than {N_HONEST} texts that are not rated")


def measure(name: str, texts: list[str], groups: NDArray[np.intp], others: list[str], n_runs: int) -> bool:
    """Print the figures of many runs; True if they keep the bounds."""
    n_alarms, highest, first, later, shown = 0, [], [], [], ""
    for seed in range(n_runs):
        rng = np.random.default_rng(seed)
        rated, honest = split(texts, groups, rng)
        some = [others[row] for row in rng.permutation(len(others))[:N_OTHERS]]
        test = DriftTest.of([texts[row] for row in rated], groups[rated], seed)
        run, alone = test([*honest, *some]), test(some)
        highest.append(run.wealth[:N_HONEST].max())
        n_alarms += highest[-1] >= WEALTH
        first.append(after(alone, 0))
        if highest[-1] < WEALTH:
            later.append(after(run, N_HONEST))
        shown = shown or str(run)
    quantiles = np.quantile(highest, [0.5, 0.95, 1]).tolist()
    print(f"{name}: {len(rated):,} rated texts, about half of them fit the surprise")
    print(f"  {n_alarms} of {n_runs} runs of {N_HONEST:,} sentences alarm")
    print("  highest wealth of a run: median {:.2g}, 95 % {:.2g}, most {:.3g}".format(*quantiles))
    print(f"  abstracts alarm after {np.median(first):g}, at most {max(first):g}")
    print(f"  behind {N_HONEST:,} sentences after {np.median(later):g}, at most {max(later):g}\n{shown}\n")
    return n_alarms * CHECKED_RUNS <= MOST * max(n_runs, CHECKED_RUNS) and max(first) <= WITHIN


def after(drift: Drift, begun: int) -> float:
    """The number of texts, from one position on, up to the alarm."""
    return float("inf") if drift.alarm is None else drift.alarm + 1 - begun


def by_metric(others: list[str]) -> bool:
    """Print the drift of abstracts by a value function of all rated reviews; True if it alarms within 50."""
    import dspy

    from dspy_qvl import Qwen3EmbeddingValueLearner, ValueMetric

    rated = load("vader_amazon", "train")
    learner = Qwen3EmbeddingValueLearner("lexical", cache_dir=None)
    for text, score, group in zip(rated.texts, rated.scores, rated.groups or (), strict=True):
        learner.add_training_example(text, score, {"review": group})
    learner.optimize_hyperparameters([1.0], groups=rated.groups)
    metric = ValueMetric(learner, text="answer")
    for text in others[:N_OTHERS]:
        metric(None, dspy.Prediction(answer=text))
    print(f"metric.drift() over {N_OTHERS} abstracts, {len(rated.texts):,} rated sentences\n{metric.drift()}")
    return after(metric.drift(), 0) <= WITHIN


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=100)
    n_runs = parser.parse_args().runs
    rows = [row for part in ("train", "test") for row in rows_of("vader_amazon", part)]
    texts = [row["text"] for row in rows]
    reviews = np.unique([str(row["group"]) for row in rows], return_inverse=True)[1]
    abstracts = [row["passage"] for row in rows_of("scifact.corpus")]
    kept = [
        measure("split by review", texts, reviews, abstracts, n_runs),
        measure("split by sentence", texts, np.arange(len(texts)), abstracts, n_runs),
        by_metric(abstracts),
    ]
    if not all(kept):
        raise SystemExit("a bound does not hold")
