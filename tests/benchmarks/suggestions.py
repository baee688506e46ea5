"""Do suggested texts teach more than texts drawn at random? By the number of ratings, on texts that people rated.

    python tests/benchmarks/suggestions.py                                    the lexical model
    HF_HUB_OFFLINE=1 python tests/benchmarks/suggestions.py --model FOLDER    a sentence-transformers model
    python tests/benchmarks/suggestions.py --vectors FOLDER                   vectors of the texts, NAME.SPLIT.npy

Value functions start from 20 train texts drawn at random, penalty and weights of blocks chosen on them, and get ten
more at a time: drawn at random, or by `certainty.suggest` with a fifth of them as the audit, or with none. Printed for
each: Spearman correlation with the ratings of the test texts, mean over seeds, by the number of ratings; and how many
ratings each needs for what random choice has, as a share of its number. Bound: with the audit at most .8 between 40 and
120 ratings, vader_amazon, MiniLM, 20 seeds.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dspy_qvl.certainty import suggest
from dspy_qvl.features import Table
from dspy_qvl.fitting import ALPHA_RANGE, copies, make_folds, members_of
from dspy_qvl.fitting.tuning import tune
from dspy_qvl.measures import spearman
from dspy_qvl.ridge import posterior_of
from tests.benchmarks.human_ratings import ABSENT, Rated, data_folder, load
from tests.benchmarks.selection import columns

START, STEP, MOST, CHECKED = 20, 10, 280, (40, 120)


def curve(
    tables: dict[str, Table], splits: dict[str, Rated], optional: bool, audit: float | None, seed: int, most: int
) -> list[float]:
    """Spearman on the test texts at 20, 30, ... ratings; audit None for texts drawn at random."""
    train, y, tested = splits["train"], np.array(splits["train"].scores), splits["test"].scores
    copied = copies(train.texts)
    members = copied if train.groups is None else members_of(train.groups, copied)
    unique = np.unique(copied)
    order = np.random.default_rng(seed).permutation(unique)
    rows, found = order[:START], []
    while True:
        table = tables["train"].rows(rows)
        folds = make_folds([members[row] for row in rows], 5, np.random.default_rng(seed))
        tuned = tune(table, y[rows], ALPHA_RANGE, folds, optional=optional)
        found.append(spearman(tested, tuned.fitted.predict(tables["test"])))
        if len(rows) >= most:
            return found
        if audit is None:
            rows = order[: len(rows) + STEP]
            continue
        left = np.setdiff1d(unique, rows)
        names = tuned.fitted.blocks.names
        known, candidates = (tuned.fitted.weighed(tables["train"].rows(some).only(names).X) for some in (rows, left))
        chosen = suggest(
            posterior_of(known, y[rows], tuned.alpha),
            candidates,
            tables["train"].rows(left).first,
            table.first,
            k=STEP,
            audit=audit,
            random_state=seed,
        )
        rows = np.concatenate([rows, left[[one.row for one in chosen]]])


def needed(random: Sequence[float], other: Sequence[float]) -> list[float]:
    """The ratings that another way needs for what random choice has at each number of ratings; NaN if it never has."""
    sizes = START + STEP * np.arange(len(random))
    best = np.maximum.accumulate(other)
    out = []
    for goal in random:
        at = int(np.searchsorted(best, goal))
        if at == len(best):
            out.append(np.nan)
        elif at == 0 or best[at] == best[at - 1]:
            out.append(sizes[at])
        else:
            out.append(sizes[at - 1] + STEP * (goal - best[at - 1]) / (best[at] - best[at - 1]))
    return out


def main() -> None:
    """Print the curves and the shares."""
    parser = argparse.ArgumentParser(description="Suggested texts against texts drawn at random.")
    parser.add_argument("--model", default="lexical")
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--sets", nargs="+", default=["vader_amazon"])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--most", type=int, default=MOST)
    options = parser.parse_args()
    if data_folder() is None:
        raise SystemExit(ABSENT)
    warnings.simplefilter("ignore")
    for name in options.sets:
        splits = {split: load(name, split) for split in ("train", "test")}
        tables, optional = columns(name, splits, options)
        means = {}
        sizes = list(range(START, options.most + 1, STEP))
        print(f"{name:24} " + " ".join(f"{size:4}" for size in sizes))
        for what, audit in {"random": None, "suggested, audit .2": 0.2, "suggested, no audit": 0.0}.items():
            curves = [curve(tables, splits, optional, audit, seed, options.most) for seed in range(options.seeds)]
            means[what] = np.mean(curves, axis=0)
            error = np.std(curves, axis=0, ddof=1) / np.sqrt(options.seeds)
            print(f"{what:24} " + " ".join(f"{one:.3f}"[1:] for one in means[what]) + f"  (± {error.max():.3f})")
            shares = np.array(needed(means["random"], means[what])) / sizes
            print(f"{'    share of ratings':24} " + " ".join(f"{one:4.2f}" for one in shares), flush=True)
            checked = [one for size, one in zip(sizes, shares, strict=True) if CHECKED[0] <= size <= CHECKED[1]]
            print(f"{'':24} between 40 and 120 ratings: {np.mean(checked):.2f} on average, {max(checked):.2f} at most")


if __name__ == "__main__":
    main()
