"""Are verdicts deserved? How often each is given on ratings of people, on noise, and on ratings that are length.

    python tests/benchmarks/verdicts.py                                    the lexical model
    HF_HUB_OFFLINE=1 python tests/benchmarks/verdicts.py --model FOLDER    a sentence-transformers model
    python tests/benchmarks/verdicts.py --vectors FOLDER                   vectors of the texts, NAME.train.npy

Draws of n train texts of vader_amazon, vader_tweets, emobank and ukp_convarg_rank with

    true        their ratings
    shuffled    their ratings in another order
    length      standardised log length + standard normal noise
    noise       normal noise, that of a group and that of a text equally strong; of saf and summeval too

each learned as a learner does (penalty and weights of blocks chosen on these ratings) and judged. Bound: shuffled
ratings and noise are called useful or weak in about 5 % of draws at most.
"""

import argparse
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dspy_qvl import Precomputed, Qwen3EmbeddingValueLearner
from dspy_qvl.certainty import VERDICTS, RatedRows, beside_baselines, beyond_length, verdict_on
from dspy_qvl.fitting import ALPHA_RANGE, choose_alpha, copies, members_of, prior_weights, weighed
from dspy_qvl.learner.columns import Columns
from dspy_qvl.vectors import Array
from tests.benchmarks.human_ratings import ABSENT, data_folder, load, rows_of

POINTWISE, GROUPED = ("vader_amazon", "vader_tweets", "emobank", "ukp_convarg_rank"), ("saf", "summeval")
SIZES = (15, 30, 60, 120, 240, 500, 2000)
DRAWS = {"true": 10, "shuffled": 20, "length": 10, "noise": 10}


class Texts:
    """Texts with their columns, of which some are rated and learned from."""

    def __init__(
        self, name: str, texts: Sequence[str], groups: Sequence[Any] | None, options: argparse.Namespace
    ) -> None:
        if options.vectors is None:
            learner = Qwen3EmbeddingValueLearner(options.model, cache_dir=None)
        else:
            stored = Precomputed(texts, np.load(options.vectors / f"{name}.train.npy"))
            learner = Qwen3EmbeddingValueLearner(embedder=stored, cache_dir=None)
        blocks = learner._vectorizer.blocks
        self.texts, self.optional = texts, blocks.auto
        self.table = Columns(learner._vectorizer, blocks.candidates(paired=False), paired=False)(list(texts))
        copied = copies(texts)
        self.members = copied if groups is None else members_of(groups, copied)

    def rated(self, rows: NDArray[np.intp], y: Array, seed: int) -> tuple[RatedRows, float]:
        """Some of the texts with scores y, penalty and weights chosen, and the p of the permutation test."""
        table, members = self.table.rows(rows), [self.members[row] for row in rows]
        chosen, tuned = choose_alpha(
            table, y, ALPHA_RANGE, members=members, cv_folds=5, random_state=seed, optional=self.optional
        )
        X, untuned = weighed(table, tuned.weights), weighed(table, prior_weights(table))
        texts = [self.texts[row] for row in rows]
        return RatedRows(X, untuned, y, tuned.alpha, members, texts, table.first, seed), chosen["permutation_p"]


def verdict(texts: Texts, rows: NDArray[np.intp], y: Array, seed: int) -> str:
    """The name of the verdict on a value function of some texts with scores y."""
    rated, p = texts.rated(rows, y, seed)
    compared = beside_baselines(rated, ["length"])
    return verdict_on(rated, p, compared, beyond_length(rated, compared.values)).name


def ratings(kind: str, texts: Texts, rows: NDArray[np.intp], scores: Array | None, rng: np.random.Generator) -> Array:
    """The scores of some rows, as the module says, (n_rows,)."""
    if kind == "length":
        lengths = np.log1p([len(texts.texts[row]) for row in rows])
        return (lengths - lengths.mean()) / lengths.std() + rng.normal(size=len(rows))
    if kind == "noise":
        _, groups = np.unique([str(texts.members[row]) for row in rows], return_inverse=True)
        return rng.normal(size=len(rows))[groups] + rng.normal(size=len(rows))
    assert scores is not None
    return rng.permutation(scores[rows]) if kind == "shuffled" else scores[rows]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="How often each verdict is given.")
    parser.add_argument("--model", default="lexical")
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--sets", nargs="+", default=[*POINTWISE, *GROUPED])
    options = parser.parse_args()
    if data_folder() is None:
        raise SystemExit(ABSENT)
    warnings.simplefilter("ignore")
    counts: dict[tuple[str, int], Counter[str]] = defaultdict(Counter)
    for name in options.sets:
        start = time.process_time()
        if name in GROUPED:
            data = rows_of(name, "train")
            texts = Texts(name, [row["text"] for row in data], [row["group"] for row in data], options)
            scores, kinds = None, ["noise"]
        else:
            rated = load(name, "train")
            texts = Texts(name, rated.texts, rated.groups, options)
            scores, kinds = np.array(rated.scores), list(DRAWS)
        for n in (size for size in options.sizes if size <= len(texts.texts)):
            for kind in kinds:
                of_set: Counter[str] = Counter()
                for draw in range(DRAWS[kind] if n < 2000 else DRAWS[kind] // 2):
                    rng = np.random.default_rng([options.seed, n, draw])
                    rows = np.sort(rng.choice(len(texts.texts), n, replace=False))
                    y = ratings(kind, texts, rows, scores, rng)
                    if np.ptp(y) > 0:
                        of_set[verdict(texts, rows, y, draw)] += 1
                counts[kind, n] += of_set
                told = ", ".join(f"{verdict} {of_set[verdict]}" for verdict in VERDICTS if of_set[verdict])
                print(f"{name:17} {n:5} {kind:9} {told}", flush=True)
        print(f"    {time.process_time() - start:.0f} s")
    print(f"\n{'ratings':9} {'n':>5} " + " ".join(f"{name:>22}" for name in VERDICTS))
    for (kind, n), found in sorted(counts.items()):
        print(f"{kind:9} {n:5} " + " ".join(f"{found[name]:22}" for name in VERDICTS))
    for kind in DRAWS:
        total = sum((found for (one, _), found in counts.items() if one == kind), Counter())
        skilled = total["useful"] + total["weak"]
        print(f"{kind}: {skilled} of {total.total()} called useful or weak ({skilled / max(1, total.total()):.1%})")


if __name__ == "__main__":
    main()
