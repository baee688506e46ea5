"""Measures the cost of a `ValueMetric` call beside that of a plain function.

    python tests/benchmarks/metric.py

A metric call on a text valued before against a plain function of the same signature (bound: 25 us more), and
`dspy.Evaluate` with 8 threads against the same with a metric that returns a constant (bound: 2 times), texts valued
before and texts never seen; medians of alternating rounds.
"""

import csv
import statistics
import time
from pathlib import Path
from typing import Any

import dspy

from dspy_qvl import Qwen3EmbeddingValueLearner, ValueMetric

REVIEWS = Path(__file__).parents[2] / "examples" / "reviews.csv"
CALLS, ROUNDS, N_EXAMPLES = 20_000, 9, 1000


def constant(example: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> float:
    """A metric that looks at nothing."""
    return 0.5


class Say(dspy.Module):  # type: ignore[misc]
    """A program that answers with its question, at no cost."""

    def forward(self, question: str) -> dspy.Prediction:
        """The question."""
        return dspy.Prediction(answer=question)


def fitted() -> Qwen3EmbeddingValueLearner:
    """A value function of the example reviews."""
    learner = Qwen3EmbeddingValueLearner("lexical", cache_dir=None)
    with REVIEWS.open(encoding="utf-8") as file:
        learner.add_training_examples([(row["text"], float(row["score"])) for row in csv.DictReader(file)])
    learner.train()
    return learner


def a_call(metric: Any, pred: dspy.Prediction) -> float:
    """Microseconds a call."""
    start = time.perf_counter()
    for _ in range(CALLS):
        metric(None, pred)
    return (time.perf_counter() - start) / CALLS * 1e6


def an_evaluation(metric: Any, devset: list[dspy.Example]) -> float:
    """Seconds an evaluation with 8 threads."""
    evaluate = dspy.Evaluate(devset=devset, metric=metric, num_threads=8, display_progress=False)
    start = time.perf_counter()
    evaluate(Say())
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    learner = fitted()
    metric = ValueMetric(learner)
    pred = dspy.Prediction(answer="Excellent, I love it, though it came late.")
    calls = [(a_call(metric, pred), a_call(constant, pred)) for _ in range(ROUNDS)]
    ours, plain = (statistics.median(column) for column in zip(*calls, strict=True))
    print(f"a call on a text valued before: {ours:.2f} us, a plain function {plain:.2f} us: {ours - plain:.2f} us more")

    with REVIEWS.open(encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    devset = [
        dspy.Example(question=f"{texts[n % len(texts)]} No. {n}").with_inputs("question") for n in range(N_EXAMPLES)
    ]
    an_evaluation(constant, devset)
    rounds = []
    for _ in range(ROUNDS):
        fresh = ValueMetric(fitted())  # neither value nor vector of any text is known
        rounds.append(
            (an_evaluation(constant, devset), an_evaluation(fresh, devset), an_evaluation(fresh, devset)),
        )
    base = statistics.median(one for one, _, _ in rounds)
    print(
        f"Evaluate, {N_EXAMPLES} examples, 8 threads: {base:.3f} s with a constant; texts valued before "
        f"{statistics.median(r[2] / r[0] for r in rounds):.2f}x, texts never seen (hashed, valued) "
        f"{statistics.median(r[1] / r[0] for r in rounds):.2f}x"
    )
    start = time.perf_counter()
    metric.judge("A text that was never judged.")
    first = time.perf_counter() - start
    start = time.perf_counter()
    for number in range(200):
        metric.judge(f"{texts[number]} No. {number}")
    each = (time.perf_counter() - start) / 200
    print(f"feedback: {first * 1e3:.0f} ms the first time (the posterior), then {each * 1e3:.1f} ms a new text")


if __name__ == "__main__":
    main()
