"""A RAG program whose passages come in the order that judged searches teach, offline by default.

python examples/rag_rerank.py
python examples/rag_rerank.py --lm openai/gpt-4o-mini                 # a real language model, and Qwen3 for the vectors

`passages.csv` are the help pages of a web shop that does not exist, `searches.csv` says of ten passages a search how
relevant each is (0, 1, 2); both were written for this project. A reranker learns from every other search, the figures
are of the rest; the passages are the same in both halves (notebooks/03_rerank_a_retriever.ipynb looks at new ones).
"""

import argparse
import csv
import json
import logging
import re
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import dspy
import numpy as np
from dspy.lm15 import Message, Request, Response, TextPart, Usage

from dspy_qvl import FitValue, InputError, QVLError, Qwen3EmbeddingValueLearner, Reranker
from dspy_qvl.measures import ndcg

QWEN3 = "Qwen/Qwen3-Embedding-0.6B"
INSTRUCTION = "Given a question to a web shop, retrieve the passages that answer it"  # for questions, not for passages


class Search(dspy.retrievers.Embeddings):
    """The first stage: 20 passages by cosine of the reranker's own vectors, so that no text is embedded twice."""

    def __init__(self, passages: list[str], learner: Qwen3EmbeddingValueLearner) -> None:
        super().__init__(passages, partial(learner.embed, instruct=False), 20, brute_force_threshold=len(passages) + 1)
        self.embedder = learner.embed  # from here on it is asked for questions, and those have the instruction

    def __deepcopy__(self, memo: dict[int, Any]) -> "Search":
        # Copies of a program share it: DSPy's retriever has a thread, and cannot be copied.
        return self


class Rag(dspy.Module):
    """Retrieves 20 passages, puts them in order, and answers from the first 5 of them."""

    def __init__(self, search: Search, learner: Qwen3EmbeddingValueLearner) -> None:
        super().__init__()
        self.search = search
        self.rerank = Reranker(learner, k=5)
        self.answer = dspy.Predict("context: list[str], question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        """The answer, and the passages it is made from."""
        found = self.rerank(query=question, passages=self.search(question))
        answered = self.answer(context=found.passages, question=question)
        return dspy.Prediction(answer=answered.answer, passages=found.passages, scores=found.scores)


class FirstSentence:
    """A stand-in for a language model: its answer is the first sentence of the first passage."""

    def complete(self, request: Request) -> Response:
        """Answer with the first sentence of the first passage; DSPy calls this."""
        context = re.search(r"## context ## \]\]\n(\[.*\])\n", request.messages[-1].text or "")
        passage = json.loads(context.group(1))[0] if context else ""
        sentence = re.split(r"(?<=[.!?])\s", passage)[0]
        message = Message.assistant([TextPart(f"[[ ## answer ## ]]\n{sentence}\n\n[[ ## completed ## ]]")])
        return Response(id=None, model=request.model, message=message, finish_reason="stop", usage=Usage())


def read_rows(path: Path, *columns: str) -> list[dict[str, str]]:
    """The rows of a CSV file that has these columns."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    missing = [column for column in columns if column not in (rows[0] if rows else ())]
    if missing:
        raise InputError(f"{path.name} has no column {', '.join(missing)}; it needs {', '.join(columns)}.")
    return rows


def read_searches(path: Path, passages: dict[str, str]) -> list[dspy.Example]:
    """One example a query, with its judged passages and how relevant each is."""
    judged: dict[str, dict[str, float]] = {}
    for row in read_rows(path, "query", "passage_id", "relevance"):
        if row["passage_id"] not in passages:
            raise InputError(f"{path.name} judges the passage {row['passage_id']!r}, which is not among the passages.")
        judged.setdefault(row["query"], {})[passages[row["passage_id"]]] = float(row["relevance"])
    return [dspy.Example(query=query, passages=[*of], relevance=[*of.values()]) for query, of in judged.items()]


def main() -> None:
    """Learn an order, judge it on other searches, answer with it, save, load, and take it to an index."""
    parser = argparse.ArgumentParser(description="A RAG program with a learned order of passages.")
    parser.add_argument("--lm", help="a language model of litellm's names (default: a stand-in, offline)")
    parser.add_argument("--embedding-model", help=f"(default: lexical, and with --lm {QWEN3})")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent, help="with passages.csv and searches.csv")
    options = parser.parse_args()
    logging.getLogger("dspy").setLevel(logging.ERROR)
    stand_in = {"model": "stand-in/first-sentence", "engine": FirstSentence(), "cache": False}
    dspy.configure(lm=dspy.LM(**(stand_in if options.lm is None else {"model": options.lm})))
    model = options.embedding_model or ("lexical" if options.lm is None else QWEN3)
    try:
        rows = read_rows(options.data / "passages.csv", "passage_id", "passage")
        passages = {row["passage_id"]: row["passage"] for row in rows}
        with tempfile.TemporaryDirectory() as folder:
            run(list(passages.values()), read_searches(options.data / "searches.csv", passages), model, Path(folder))
    except (QVLError, OSError, KeyError, ValueError) as error:
        parser.error(f"{type(error).__name__}: {error}")


def ndcg_at_5(order: list[str], judged: dspy.Example) -> float:
    """NDCG@5 of the judged passages of a search in the given order; passages missing from it come last."""
    return ndcg(judged.relevance, [-order.index(text) if text in order else -len(order) for text in judged.passages], 5)


def n_best(firsts: list[str], judged: list[dspy.Example]) -> int:
    """Count the searches whose first passage was judged best; a passage that was not judged counts as wrong."""
    best = [{one.passages[row] for row in np.flatnonzero(one.relevance == np.max(one.relevance))} for one in judged]
    return sum(first in texts for first, texts in zip(firsts, best, strict=True))


def run(passages: list[str], judged: list[dspy.Example], model: str, folder: Path) -> None:
    """Learn from one set of passages and searches, judge, answer, save, load, and rank an index."""
    seen, unseen = judged[::2], judged[1::2]
    queries = [one.query for one in unseen]
    make_learner = partial(Qwen3EmbeddingValueLearner, model, instruction=None if model == "lexical" else INSTRUCTION)
    learner = make_learner()
    search = Search(passages, learner)

    # 1 Judged searches -> order.
    before, fit = Rag(search, learner), FitValue(query="query", passages="passages", relevance="relevance")
    after = fit.compile(before, trainset=seen)
    print(f"learned from {len(seen)} searches, model {model}:", ", ".join(fit.report["self.rerank"]["features"]))

    # 2 On the other searches, over the passages that were judged.
    orders = {"retriever": [search(query).passages for query in queries]}
    for name, program in (("cosine", before), ("learned", after)):
        orders[name] = [program.rerank(query=one.query, passages=one.passages).passages for one in unseen]
    print(f"\n{len(unseen)} searches held out, nDCG@5 of their judged passages:")
    for name, order in orders.items():
        print(f"  {name:9}  {np.nanmean([*map(ndcg_at_5, order, unseen)]):.3f}")

    # 3 Over the 20 passages that were retrieved, judged or not; and the program's answer to one question.
    found = [texts[0] for texts in orders["retriever"]]
    firsts = [after.rerank(query=q, passages=p).passages[0] for q, p in zip(queries, orders["retriever"], strict=True)]
    print(f"the first passage was judged best: before in {n_best(found, unseen)}, after in {n_best(firsts, unseen)}")
    print(f"\n{queries[0]}")
    for name, program in (("before", before), ("after", after)):
        pred = program(question=queries[0])
        print(f"  {name}: {pred.answer}", *(f"{text[:100]}…" for text in pred.passages[:3]), sep="\n    ")

    # 4 Saved as one file, prompts and order.
    after.save(folder / "rag.json")
    fresh = Rag(search, make_learner())
    fresh.load(folder / "rag.json")
    same = all(fresh(question=query).toDict() == after(question=query).toDict() for query in queries[:5])
    print(f"\nsaved, loaded into a fresh program: the same passages to the last bit: {same}")

    # 5 An order that an index of inner products has without a second stage; it knows less: look whether it helps you.
    linear = fit.compile(Reranker(learner, features=("cosine", "text")), trainset=seen)
    index = linear.embed_passages(passages)
    firsts = [passages[int(np.argmax(index @ linear.query_vector(query)))] for query in queries]
    print(f"\nan index by query_vector alone: first judged best in {n_best(firsts, unseen)}; here\n  {firsts[0]}")


if __name__ == "__main__":
    main()
