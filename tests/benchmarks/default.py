"""The default features at any size: time, memory and agreement with people, beside an earlier commit and scikit-learn.

    python tests/benchmarks/default.py --vectors FOLDER --embed            once, needs the `local` extra and MiniLM
    python tests/benchmarks/default.py --vectors FOLDER --against CHECKOUT      all rows, some minutes
    python tests/benchmarks/default.py --vectors FOLDER tune std           some of them

Rows: tune (`optimize_hyperparameters` of 9,000 texts of emobank, 7 penalties from .01 to 10), peer (scikit-learn's
GridSearchCV on the same columns and folds), sizes (the same of 20,000 and more texts, each made of halves of two
sentences), values (of new texts), std (standard deviations of new texts), quality (test Spearman, fitted and chosen on
the train split), quickstart (`examples/quickstart.py`).

MiniLM's vectors and features="auto" but for the lexical row of quality. CPU time on one BLAS thread; every figure is
of a process of its own (`default_part.py`) that reads vectors from the learner's cache on disk, and no torch is loaded.
The earlier commit, where it is given, runs the same on its own cache.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[2]
PART = str(HERE / "tests/benchmarks/default_part.py")
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
SETS = ("vader_amazon", "vader_tweets", "emobank", "ukp_convarg_rank")
BEFORE = {"vader_amazon": 0.765, "vader_tweets": 0.870, "emobank": 0.627, "ukp_convarg_rank": 0.649}


@dataclass(frozen=True)
class Checkout:
    """A checkout of this repository.

    Attributes:
        path: its folder.
        work: a folder for its cache and its fit.
        vectors: the folder of the vectors.
    """

    path: Path
    work: Path
    vectors: Path

    def run(self, *command: str) -> str:
        """The last line that a Python script prints."""
        environment = os.environ | ONE_THREAD | {"PYTHONPATH": str(self.path)}
        printed = subprocess.check_output([sys.executable, *command], env=environment, text=True)
        return printed.splitlines()[-1]

    @cache  # noqa: B019  a handful of results, for the life of the program
    def part(self, name: str, *argument: str) -> dict[str, Any]:
        """The figures of one part, measured once."""
        figures: dict[str, Any] = json.loads(self.run(PART, name, str(self.work), str(self.vectors), *argument))
        return figures

    def tuned(self, what: str = "emobank") -> dict[str, Any]:
        """The figures of `optimize_hyperparameters`; the fit of emobank is kept for other parts."""
        self.part("fill", what)
        return self.part("tune", what)

    def quickstart(self) -> float:
        """CPU seconds of a whole process."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.run(str(self.path / "examples/quickstart.py"))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def say(what: str, figures: str, bound: str = "") -> None:
    print(f"{what:<52}{figures:<44}{bound and f'({bound})'}", flush=True)


def tune(new: Checkout, old: Checkout | None) -> None:
    def row(label: str, told: dict[str, Any]) -> None:
        say(
            label, f"{told['seconds']:.1f} s, {told['gb']:.2f} GB, test Spearman {told['spearman']:.4f}", "at most 1 GB"
        )

    row("tune: 9,000 texts, 7 penalties", told := new.tuned())
    if old:
        row("    before", before := old.tuned())
        say("    times faster", f"{before['seconds'] / told['seconds']:.1f}", "at least 10")
        say("    Spearman gained", f"{told['spearman'] - before['spearman']:.4f}", "at least -.002")


def peer(new: Checkout, old: Checkout | None) -> None:
    ours, theirs = new.tuned()["seconds"], new.part("peer")
    say("peer: GridSearchCV, sparse_cg, same columns and folds", f"{theirs['seconds']:.1f} s")
    say("    times the whole tuning", f"{theirs['seconds'] / ours:.1f}", "at least 8")
    say("    times the search on these columns alone", f"{theirs['seconds'] / theirs['search']:.1f}")
    say("    fold errors apart by", f"{theirs['apart']:.1e}", "at most 1e-3")


def sizes(new: Checkout, old: Checkout | None, counts: list[int]) -> None:
    told = {n: new.tuned(str(n)) for n in counts}
    for n, figures in told.items():
        each = f"{figures['seconds'] / n * 1e3:.2f} ms and {figures['gb'] / n * 1e6:.1f} kB a text"
        say(
            f"sizes: {n:,} texts",
            f"{figures['seconds']:.1f} s, {figures['gb']:.2f} GB; {each}",
            "100,000: at most 2 GB",
        )
    few, many = min(counts), max(counts)
    for name in ("seconds", "gb"):
        growth = told[many][name] / many / (told[few][name] / few)
        say(f"    {name} a text, {many:,} over {few:,}", f"{growth:.2f}", "at most 1.3")


def values(new: Checkout, old: Checkout | None) -> None:
    def row(label: str, checkout: Checkout) -> None:
        checkout.tuned()
        told = checkout.part("values")
        say(f"{label}10,000 new texts in one batch", f"{told['seconds']:.2f} s", "at most 1.2 s")
        over = told["ms"] - told["vector_ms"]
        say(f"{label}one new text", f"{told['ms']:.3f} ms, {over:.3f} over its vector", "at most .15 over")

    row("values: ", new)
    if old:
        row("    before: ", old)


def std(new: Checkout, old: Checkout | None) -> None:
    def row(label: str, checkout: Checkout) -> None:
        checkout.tuned()
        told = checkout.part("std")
        say(f"{label}the first after loading", f"{told['seconds']:.2f} s, {told['gb']:.2f} GB", "at most 2 s")
        say(f"{label}later, in batches of 100", f"{told['ms']:.3f} ms a text", "at most .3 ms")

    row("std: ", new)
    if old:
        row("    before: ", old)


def quality(new: Checkout, old: Checkout | None) -> None:
    say(
        "quality: test Spearman", "lexical  TF-IDF     MiniLM + auto", "lexical ahead of TF-IDF; at least before - .002"
    )
    for name in SETS:
        new.part("fill", name)
        told = new.part("quality", name)
        figures = f"{told['lexical']:>7.3f}{told['TF-IDF']:>8.3f}{told['MiniLM']:>18.3f}"
        say(f"    {name}", figures, f"before {BEFORE[name]:.3f}")


def quickstart(new: Checkout, old: Checkout | None) -> None:
    checkouts = [checkout for checkout in (new, old) if checkout]
    taken = [[checkout.quickstart() for checkout in checkouts] for _ in range(5)]
    medians = [statistics.median(times) for times in zip(*taken, strict=True)]
    say("quickstart: whole process", " and ".join(f"{seconds:.2f} s" for seconds in medians))
    if old:
        say("    over that before", f"{medians[0] / medians[1]:.2f}", "at most 1")


def embed(vectors: Path) -> None:
    """MiniLM's unit vectors of all texts, a file for each split that has none yet."""
    import numpy as np
    from sentence_transformers import SentenceTransformer

    from tests.benchmarks.features import models
    from tests.benchmarks.human_ratings import load

    model = SentenceTransformer(models()["MiniLM"], device="cpu")
    for name in SETS:
        for split in ("train", "test", *(["dev"] if name == "emobank" else [])):
            path = vectors / f"{name}.{split}.npy"
            if not path.exists():
                np.save(path, model.encode(load(name, split).texts, normalize_embeddings=True).astype(np.float32))


ROWS: dict[str, Callable[..., None]] = {
    row.__name__: row for row in (tune, peer, sizes, values, std, quality, quickstart)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="row", help=", ".join(ROWS))
    parser.add_argument("--vectors", type=Path, required=True, metavar="FOLDER", help="MiniLM's vectors, as .npy files")
    parser.add_argument("--embed", action="store_true", help="write the vectors that FOLDER lacks, and end")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="a checkout of an earlier commit")
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 50_000, 100_000])
    options = parser.parse_args()
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"no rows named {sorted(unknown)}; there are {', '.join(ROWS)}")
    if options.embed:
        embed(options.vectors)
        return
    with tempfile.TemporaryDirectory() as folder:
        paths = {"new": HERE, "old": options.against and options.against.resolve()}
        new, old = (
            path and Checkout(path, Path(folder) / name, options.vectors.resolve()) for name, path in paths.items()
        )
        for name in options.rows or ROWS:
            ROWS[name](new, old, *([options.sizes] if name == "sizes" else []))


if __name__ == "__main__":
    main()
