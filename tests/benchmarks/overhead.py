"""Measures the cost of a value whose text is cached, beside the cost of DSPy itself.

    python tests/benchmarks/overhead.py

Rows: warm `predict` of one cached text against `dspy.Module.__call__` returning a Prediction; `import dspy_qvl`
against `import dspy` (CPU time of whole processes, in turn); a fresh process ranking 10,000 texts whose
1,024 float32 vectors are on disk, timed after imports, against a keyed sqlite3 loop over the same rows plus one
matrix-vector product. The last is of the embedding alone (features=None), as the loop is; a second row has the
columns that "auto" adds, which are made anew in a fresh process. Medians of several runs, in turn, in one run of this
file.
"""

import argparse
import hashlib
import os
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import dspy
import numpy as np

from dspy_qvl import Qwen3EmbeddingValueLearner

N_TEXTS, SIZE = 10_000, 1024
TEXTS = [f"text {number} of the ranking benchmark, {'long ' * (number % 40)}" for number in range(N_TEXTS)]


class Synthetic:
    """A named embedder of 1,024 columns: random, but the same for the same text."""

    name = "synthetic-1024"

    def __call__(self, texts: list[str]) -> np.ndarray:
        seeds = [int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) for text in texts]
        return np.stack([np.random.default_rng(seed).normal(size=SIZE) + 0.5 for seed in seeds]).astype(np.float32)


class Constant(dspy.Module):
    def forward(self, text: str) -> dspy.Prediction:
        return dspy.Prediction(score=1.0)


def microseconds(call: Callable[[], object], repeats: int = 20_000) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats * 1e6


def warm_predict(folder: Path) -> tuple[float, float]:
    make(folder, None)
    learner = make(folder, "auto")
    constant, text = Constant(), TEXTS[5]
    learner.predict(text)
    pairs = [(microseconds(lambda: learner.predict(text)), microseconds(lambda: constant(text=text))) for _ in range(7)]
    return tuple(map(statistics.median, zip(*pairs, strict=True)))


def import_cost() -> tuple[float, float]:
    # As installed, with compiled bytecode beside the sources.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def cpu(module: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    cpu("dspy_qvl")
    pairs = [(cpu("dspy_qvl"), cpu("dspy")) for _ in range(7)]
    return tuple(map(statistics.median, zip(*pairs, strict=True)))


def make(folder: Path, features: str | None) -> Qwen3EmbeddingValueLearner:
    """A learner trained on the first 200 texts, with all of them in the cache on disk."""
    learner = Qwen3EmbeddingValueLearner(
        embedder=Synthetic(), embedding_dim=768, cache_dir=folder / "cache", features=features
    )
    learner.add_training_examples([(text, float(len(text))) for text in TEXTS[:200]])
    learner.train()
    learner.save_model(folder / f"{features}.qvl")
    learner.predict_many(TEXTS)
    return learner


def rank_once(folder: Path, features: str | None) -> float:
    learner = Qwen3EmbeddingValueLearner(embedder=Synthetic(), cache_dir=folder / "cache", features=features)
    learner.load_model(folder / f"{features}.qvl")
    start = time.perf_counter()
    learner.rank_texts(TEXTS)
    return time.perf_counter() - start


def plain_once(folder: Path) -> float:
    """The same by hand: a keyed loop over the same rows, one matrix-vector product, a sort; seconds."""
    learner = Qwen3EmbeddingValueLearner(embedder=Synthetic(), cache_dir=folder / "cache")
    keys = [learner.embedding_cache.key(text) for text in TEXTS]
    coef = np.random.default_rng(0).normal(size=SIZE).astype(np.float32)
    start = time.perf_counter()
    connection = sqlite3.connect(next((folder / "cache").glob("*.sqlite")))
    rows = np.empty((N_TEXTS, SIZE), dtype=np.float32)
    for row, key in enumerate(keys):
        (blob,) = connection.execute("SELECT vector FROM vectors WHERE key = ?", (key,)).fetchone()
        rows[row] = np.frombuffer(blob, dtype=np.float32)
    sorted(zip(TEXTS, (rows @ coef).tolist(), strict=True), key=lambda pair: -pair[1])
    return time.perf_counter() - start


def rank_from_disk(folder: Path, which: str) -> tuple[float, float]:
    def fresh(what: str) -> float:
        command = [sys.executable, __file__, "--one", what, str(folder)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    pairs = [(fresh(which), fresh("plain")) for _ in range(7)]
    return tuple(map(statistics.median, zip(*pairs, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=2, metavar=("rank|auto|plain", "folder"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        which, folder = options.one
        calls = {"rank": lambda at: rank_once(at, None), "auto": lambda at: rank_once(at, "auto"), "plain": plain_once}
        print(calls[which](Path(folder)))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            ("warm predict / dspy.Module call, µs", *warm_predict(Path(folder)), 3.0),
            ("10,000 texts from disk / sqlite3 loop, s", *rank_from_disk(Path(folder), "rank"), 2.0),
            ("    with hashed words and length", *rank_from_disk(Path(folder), "auto"), None),
            ("import dspy_qvl / import dspy, CPU s", *import_cost(), 1.3),
        ]
    for name, mine, theirs, limit in rows:
        bound = "" if limit is None else f" (at most {limit})"
        print(f"{name:<44}{mine:>8.3f}{theirs:>8.3f}   ratio {mine / theirs:.2f}{bound}")


if __name__ == "__main__":
    main()
