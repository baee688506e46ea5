"""Writes what this version saves, so that every later version can be held to reading it with equal values.

    python -m tests.saved.write

Run it once, before the schema of the saved state is raised; what it wrote is committed and never written again. It
writes `schema_N.qvl` (`save_model`), `schema_N.json` (DSPy's `save` of a program with a value function of texts, one of
texts for queries, and a reranker), and `schema_N.values.json`, the values each must give; since schema 5 also
`schema_N_words.qvl` of a value function on sparse words, and its values.
"""

import json
import sys
import tempfile
from pathlib import Path

import dspy

from dspy_qvl import FitValue, Qwen3EmbeddingValueLearner, Reranker
from dspy_qvl.fitting import Weights
from dspy_qvl.state.entries import SCHEMA
from tests.conftest import rated

HERE = Path(__file__).parent
TEXTS = [text for text, _ in rated(12, seed=3)]
QUERY = "Which lamp is quick and quiet?"


class Program(dspy.Module):
    """A value function of texts, one of texts for queries, and a reranker."""

    def __init__(self, cache_dir: Path) -> None:
        super().__init__()
        self.value = Qwen3EmbeddingValueLearner("lexical", 64, cache_dir=cache_dir, features="length")
        self.paired = Qwen3EmbeddingValueLearner("lexical", 64, cache_dir=cache_dir, features=["cosine", "overlap"])
        self.reranker = Reranker(Qwen3EmbeddingValueLearner("lexical", 64, cache_dir=cache_dir))

    def forward(self) -> None:
        """Nothing: only what is saved counts."""


def values(program: Program) -> dict[str, list[str]]:
    """Every figure of a program that its state decides, as hexadecimal floats."""
    ranked = program.reranker.rank(QUERY, TEXTS)
    return {
        "value": [value.hex() for value in program.value.predict_many(TEXTS).tolist()],
        "std": [program.value.predict_std(text).hex() for text in TEXTS],
        "paired": [value.hex() for value in program.paired.predict_many(TEXTS, QUERY).tolist()],
        "reranker": [passage.score.hex() for passage in sorted(ranked, key=lambda passage: passage.doc_id)],
    }


def fitted(cache_dir: Path) -> Program:
    """The program, taught."""
    program = Program(cache_dir)
    rows = rated(40)
    for number, (text, score) in enumerate(rows):
        program.value.add_training_example(text, score, {"reason": f"because {number}"} if number % 3 else None)
        program.paired.add_training_example(text, score, query=f"Which thing is {text.split()[number % 6]}?")
    program.value.optimize_hyperparameters([0.03, 0.3, 3.0])
    program.value.update("quick bright lamp, a delightful thing", 11.0)
    program.paired.ridge_alpha = 0.3
    program.paired.train()
    judged = [
        {"query": f"{one[0].split()[0]} {one[0].split()[7]}", "passages": [t for t, _ in block], "relevance": scores}
        for one, block in ((rows[start], rows[start : start + 5]) for start in range(0, 40, 5))
        for scores in [[score for _, score in block]]
    ]
    fit = FitValue(query="query", passages="passages", relevance="relevance", cv=4)
    program.reranker = fit.compile(program.reranker, trainset=judged)
    return program


def on_words(cache_dir: Path) -> Qwen3EmbeddingValueLearner:
    """A value function of the lexical model, which learns from sparse words, and their document frequencies."""
    learner = Qwen3EmbeddingValueLearner("lexical", cache_dir=cache_dir)
    learner.add_training_examples(rated(40))
    learner.ridge.weights = Weights({"lexical": 1.0, "length": 0.1}, 0.5)
    learner.ridge_alpha = 0.3
    learner.train()
    return learner


def main() -> None:
    """Write the files of this version's schema, unless they are there."""
    target = HERE / f"schema_{SCHEMA}.values.json"
    if target.exists():
        sys.exit(f"{target.name} is there already; it stays as the version that first had this schema wrote it.")
    with tempfile.TemporaryDirectory() as folder:
        program = fitted(Path(folder))
        program.save(HERE / f"schema_{SCHEMA}.json")
        program.value.save_model(HERE / f"schema_{SCHEMA}.qvl")
        target.write_text(json.dumps(values(program), indent=1) + "\n", encoding="utf-8")
        words = on_words(Path(folder))
        words.save_model(HERE / f"schema_{SCHEMA}_words.qvl")
        values_of_words = {
            "value": [value.hex() for value in words.predict_many(TEXTS).tolist()],
            "std": [std.hex() for std in words.predict_std_many(TEXTS).tolist()],
        }
        path = HERE / f"schema_{SCHEMA}_words.values.json"
        path.write_text(json.dumps({"words": values_of_words}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
