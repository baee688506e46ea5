"""From rated replies to an optimized DSPy program, offline by default.

python examples/optimize_with_value.py
python examples/optimize_with_value.py --optimizer simba
python examples/optimize_with_value.py --lm openai/gpt-4o-mini      # a real language model, and Qwen3 for the value

People rated replies of a web shop's support desk (`replies.csv`). A value function learns from them, becomes the
metric of an optimizer, stays in the program to pick the best of several drafts, and is saved with it. Questions are
split: ratings and optimizer see the one half, the figures are of the other.
"""

import argparse
import contextlib
import csv
import io
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import dspy
from scripted_lm import ScriptedLM

from dspy_qvl import FitValue, InputError, QVLError, Qwen3EmbeddingValueLearner, ValueMetric

REPLIES = Path(__file__).parent / "replies.csv"
QWEN3 = "Qwen/Qwen3-Embedding-0.6B"


class SupportDesk(dspy.Module):
    """A program that answers a question and values its answer."""

    def __init__(self, value: Qwen3EmbeddingValueLearner) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> reply")
        self.value = value

    def forward(self, question: str) -> dspy.Prediction:
        """The reply, its value on the raters' scale, and the standard deviation of that."""
        reply = self.answer(question=question).reply
        worth = self.value(text=reply)
        return dspy.Prediction(reply=reply, worth=worth.score, std=worth.std)


def read_replies(path: Path) -> list[dspy.Example]:
    """The rated replies."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    missing = {"question", "reply", "score"} - set(rows[0] if rows else ())
    if missing:
        raise InputError(f"{path.name} has no column {', '.join(sorted(missing))}; it needs question, reply and score.")
    if len({row["question"] for row in rows}) < 4:
        raise InputError(f"{path.name} has fewer than 4 questions; half of them are needed to judge by.")
    return [dspy.Example(**{**row, "score": float(row["score"])}).with_inputs("question") for row in rows]


def make_optimizer(name: str, metric: ValueMetric, lm: dspy.LM) -> Any:
    """One of DSPy's optimizers, with the value as its metric."""
    if name == "gepa":
        reflection_lm = lm.copy(temperature=1.0)
        return dspy.GEPA(metric=metric, max_metric_calls=250, reflection_lm=reflection_lm, num_threads=4)
    if name == "mipro":
        return dspy.MIPROv2(metric=metric, auto="light", num_threads=4)
    if name == "simba":
        return dspy.SIMBA(metric=metric, bsize=10, max_steps=4, num_candidates=4, num_threads=4)
    return dspy.BootstrapFewShot(metric=metric, max_bootstrapped_demos=4, max_labeled_demos=0, max_rounds=3)


def main() -> None:
    """Fit, optimize, judge on other questions, save, load."""
    parser = argparse.ArgumentParser(description="From rated replies to an optimized program.")
    parser.add_argument("--lm", help="a language model of litellm's names (default: a scripted stand-in, offline)")
    parser.add_argument("--embedding-model", help=f"(default: lexical, and with --lm {QWEN3})")
    parser.add_argument("--optimizer", choices=["gepa", "mipro", "simba", "bootstrap"], default="gepa")
    parser.add_argument("--data", type=Path, default=REPLIES, help="CSV with question, reply, score and reason")
    options = parser.parse_args()
    for name in ("dspy", "gepa"):
        logging.getLogger(name).setLevel(logging.ERROR)
    lm = ScriptedLM() if options.lm is None else dspy.LM(options.lm)
    model = options.embedding_model or ("lexical" if options.lm is None else QWEN3)
    try:
        with tempfile.TemporaryDirectory() as folder:
            run(read_replies(options.data), lm, model, options.optimizer, Path(folder))
    except (QVLError, OSError, KeyError, ValueError) as error:
        parser.error(f"{type(error).__name__}: {error}")


def run(rated: list[dspy.Example], lm: dspy.LM, model: str, optimizer: str, folder: Path) -> None:
    """Fit on one set of ratings, optimize, judge on other questions, save and load."""
    dspy.configure(lm=lm)
    questions = list(dict.fromkeys(row.question for row in rated))
    seen, unseen = questions[::2], questions[1::2]
    trainset, devset = ([dspy.Example(question=q).with_inputs("question") for q in half] for half in (seen, unseen))

    # 1 Ratings -> value. Replies to the other half of the questions are only reported on.
    fit = FitValue(text="reply", group="question")
    program = fit.compile(
        SupportDesk(Qwen3EmbeddingValueLearner(model)),
        trainset=[row for row in rated if row.question in seen],
        valset=[row for row in rated if row.question in unseen],
    )
    report = fit.report["self.value"]
    print(f"{report['n_texts']} rated replies, model {model}, alpha {report['alpha']:g}")
    print(f"agreement with the raters of {report['val']['n_texts']} others: Spearman {report['val']['spearman']:.2f}")

    # 2 Value -> metric.
    metric = ValueMetric(program.value, text="reply")
    evaluate = dspy.Evaluate(devset=devset, metric=metric, num_threads=4)
    first = unseen[0]
    before = program(question=first)
    score_before = quietly(evaluate, program).score
    print(f"\n{len(devset)} questions held out, before: {score_before:.1f}\n  {first}\n  {before.reply}")
    explained = metric(devset[0], before, None, "answer", None)
    print("\nwhat an optimizer is told of it:", *explained.feedback.splitlines(), sep="\n  ")

    # 3 Metric -> optimizer.
    tuner = make_optimizer(optimizer, metric, lm)
    # Left to itself MIPROv2 bootstraps from a fifth of the questions, and GEPA judges on all of them.
    settings: dict[str, Any] = {"valset": trainset} if optimizer in ("gepa", "mipro") else {}
    if optimizer == "mipro":
        settings["program_aware_proposer"] = False  # else it reads the source of the value function to the model
    better = quietly(tuner.compile, program, trainset=trainset, **settings)
    after = better(question=first)
    print(f"\nafter {type(tuner).__name__}: {quietly(evaluate, better).score:.1f}")
    print(f"  {after.reply}\n  worth {after.worth:.1f}, give or take {after.std:.1f}")
    print(f"the instruction it found:\n  {better.answer.signature.instructions}")

    # 4 Value at serving: the best of five drafts.
    best = dspy.BestOfN(module=better, N=5, reward_fn=metric, threshold=0.95)
    print(f"\nand the best of 5 drafts: {quietly(evaluate, best).score:.1f}")

    # 5 Saved as one file, prompts and value function.
    better.save(folder / "desk.json")
    fresh = SupportDesk(Qwen3EmbeddingValueLearner(model))
    fresh.load(folder / "desk.json")
    same = fresh(question=first).toDict() == after.toDict()
    print(f"saved, loaded into a fresh program: the same answer to the last bit: {same}")

    gamed = [judged for judged in metric.log if judged.marks]
    print(f"\nof {len(metric.log)} replies that were scored, {len(gamed)} are marked as not to be trusted")


def quietly(call: Any, *args: Any, **kwargs: Any) -> Any:
    """Call without showing progress bars."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return call(*args, **kwargs)


if __name__ == "__main__":
    sys.exit(main())
