"""Measures how well support tells honest texts from attacks, and whether attacks pay.

    python tests/benchmarks/attacks.py [attacks] [honest] [replies]                the lexical model
    HF_HUB_OFFLINE=1 python tests/benchmarks/attacks.py [--cache FOLDER] [parts]   all-MiniLM-L6-v2 too

`attacks`: a value function of 2,000 ratings of product-review sentences (vader_amazon) gets honest sentences of other
reviews and every kind of attack of attack_texts.py. A text is marked if its support is below .05; aim: 95 % of every
kind of attack, 5 % of honest texts. Mean score, in (0, 1), beside it: an attack pays if it is above that of honest
texts. `honest`: the share of honest texts that are marked, on the test splits of four data sets, and on one of them by
10 draws of few ratings. `replies`: a value function of the 240 support replies of examples/replies.csv, by halves of
whole questions, and by some and all of them given sentences about something else.
"""

import argparse
import csv
import sys
import tempfile
import warnings
from itertools import product
from pathlib import Path

import dspy
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dspy_qvl import Qwen3EmbeddingValueLearner, ValueMetric
from dspy_qvl.certainty import SUPPORTED
from tests.benchmarks.attack_texts import OFF_TOPIC, attacks
from tests.benchmarks.features import models, some
from tests.benchmarks.human_ratings import POINTWISE, Rated, load, rows_of

N_TRAIN, N_DRAWS, FEW = 2000, 10, (30, 120, 240)
REPLIES = Path(__file__).resolve().parents[2] / "examples" / "replies.csv"


class Judge:
    """A value function of rated texts, which gives texts their support and their score."""

    def __init__(self, model: str, cache: str, rated: Rated) -> None:
        self.learner = Qwen3EmbeddingValueLearner(model, cache_dir=cache)
        self.learner.add_training_examples(zip(rated.texts, rated.scores, strict=True))
        self.learner.train(groups=rated.groups)
        self.metric = ValueMetric(self.learner)

    def supports(self, texts: list[str]) -> np.ndarray:
        """The support of each text, (n,)."""
        return self.learner.support_many(texts)

    def marked(self, texts: list[str]) -> float:
        """The share of texts that are marked."""
        return float(np.mean(self.supports(texts) < SUPPORTED))

    def score(self, texts: list[str]) -> float:
        """The mean score of texts."""
        return float(np.mean([self.metric({}, dspy.Prediction(text=text)) for text in texts]))


def shown(shares: list[float]) -> str:
    """The mean of shares, and its standard error."""
    return f"{np.mean(shares):.1%} +- {np.std(shares) / len(shares) ** 0.5:.1%}"


def on_attacks(cache: str) -> None:
    """Print the share marked and the mean score of each kind of attack, for each model."""
    train, test = load("vader_amazon", "train"), load("vader_amazon", "test")
    judges = [Judge(model, cache, some(train, np.arange(N_TRAIN))) for model in models().values()]
    print(f"{'':<32}{'texts':>6}" + "".join(f"{label:>10}{'score':>8}" for label in models()))
    for attack in attacks(train, test):
        found = "".join(f"{judge.marked(attack.texts):>10.1%}{judge.score(attack.texts):>8.2f}" for judge in judges)
        print(f"{attack.kind:<32}{len(attack.texts):>6}{found}", flush=True)


def on_honest(cache: str) -> None:
    """Print the share of honest texts that are marked, for each data set and model, and by few rated texts."""
    for name in POINTWISE:
        train, test = load(name, "train"), load(name, "test")
        groups = train.groups
        if name == "ukp_convarg_rank":  # its groups are the sides of a debate, and the test split is of other debates
            groups = [row["debate"] for row in rows_of(name, "train")]
        if set(groups or ()) & set(test.groups or ()):  # new texts are of known groups
            groups = None
        for label, model in models().items():
            share = Judge(model, cache, Rated(train.texts, train.scores, groups)).marked(test.texts)
            print(f"{name:<18}{label:<9}{len(test.texts):>6} honest texts, marked {share:.1%}", flush=True)
    train, test = load("vader_amazon", "train"), load("vader_amazon", "test")
    for n, (label, model) in product(FEW, models().items()):
        chosen = [np.random.default_rng(seed).permutation(len(train.texts))[:n] for seed in range(N_DRAWS)]
        shares = [Judge(model, cache, some(train, rows)).marked(test.texts) for rows in chosen]
        print(f"vader_amazon, {n} ratings, {label}: marked {shown(shares)}", flush=True)


def on_replies(cache: str) -> None:
    """Print the share of replies that are marked by the other half, and of sentences about something else."""
    with REPLIES.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    replies = Rated([r["reply"] for r in rows], [float(r["score"]) for r in rows], [r["question"] for r in rows])
    questions = np.unique(replies.groups or [], return_inverse=True)[1]
    for label, model in models().items():
        alarms = []
        for seed in range(N_DRAWS):
            order = np.random.default_rng(seed).permutation(questions.max() + 1)
            left = np.isin(questions, order[::2])
            judge = Judge(model, cache, some(replies, np.flatnonzero(left)))
            alarms.append(judge.marked(some(replies, np.flatnonzero(~left)).texts))
        print(f"replies, {label}: {shown(alarms)} of one half marked by the other", flush=True)
        for n in FEW:
            judge = Judge(model, cache, some(replies, np.random.default_rng(0).permutation(len(rows))[:n]))
            first = judge.supports(OFF_TOPIC)[0]
            share = judge.marked(OFF_TOPIC)
            print(f"  {n} replies mark {share:.1%} of sentences about something else; {first:.3f} the first")


PARTS = {"attacks": on_attacks, "honest": on_honest, "replies": on_replies}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="part")
    parser.add_argument("--cache", help="folder for vectors that outlives the run")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        for part in options.parts or PARTS:
            PARTS[part](options.cache or folder)


if __name__ == "__main__":
    main()
