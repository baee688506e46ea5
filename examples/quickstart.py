"""From ratings to a saved value function, in under a minute, with no key and nothing to download.

python examples/quickstart.py
python examples/quickstart.py --data my_ratings.csv --text-column "Review Text" --score-column Stars --save mine.qvl
python examples/quickstart.py --data my_ratings.jsonl.gz --model Qwen/Qwen3-Embedding-0.6B
"""

import argparse
import csv
import gzip
import json
import math
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dspy

from dspy_qvl import InputError, QVLError, QVLWarning, Qwen3EmbeddingValueLearner

REVIEWS = Path(__file__).parent / "reviews.csv"
ALPHAS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
NEW_TEXTS = [
    "Excellent quality, quiet and easy to clean.",
    "Decent for the price, nothing special.",
    "It broke after a week and the refund never came.",
    "Not bad at all, I would buy it again.",
]
N_SHOWN = 3  # of the user's own texts, at either end of the ranking
WIDTH = 72  # characters of a text that are shown
NOISE = 0.05  # permutation_p above which a value function cannot be told from noise


def read_ratings(path: Path, text_column: str, score_column: str) -> list[tuple[str, float]]:
    """(text, score) of every row of a CSV or JSON-lines file, plain or .gz."""
    kind = path.suffixes[-2] if path.suffix == ".gz" and len(path.suffixes) > 1 else path.suffix
    open_file = gzip.open if path.suffix == ".gz" else open
    with open_file(path, "rt", encoding="utf-8-sig", newline="") as file:
        if kind in (".jsonl", ".ndjson", ".json"):
            rows = [json.loads(line) for line in file if line.strip()]
        else:
            rows = list(csv.DictReader(file))
    ratings = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or text_column not in row or score_column not in row:
            columns = ", ".join(map(str, row)) if isinstance(row, dict) else "none"
            raise InputError(
                f"row {number} of {path.name} has the columns: {columns}; "
                f"name yours with --text-column and --score-column (now {text_column!r} and {score_column!r})."
            )
        try:
            ratings.append((row[text_column], float(row[score_column])))
        except (TypeError, ValueError):
            raise InputError(
                f"row {number} of {path.name} has the score {row[score_column]!r}, which is no number."
            ) from None
    return ratings


class Recommend(dspy.Module):
    """A DSPy program that keeps the better of two drafts; the value function is one of its parts."""

    def __init__(self, value: Qwen3EmbeddingValueLearner) -> None:
        super().__init__()
        self.value = value

    def forward(self, drafts: list[str]) -> dspy.Prediction:
        """The draft with the highest value."""
        return dspy.Prediction(draft=max(drafts, key=lambda draft: self.value(text=draft).score))


def main() -> None:
    """Train, judge, rank, save, reload, and use inside DSPy."""
    parser = argparse.ArgumentParser(description="From ratings to a saved value function.")
    parser.add_argument("--data", type=Path, help="your ratings: CSV or JSON lines, plain or .gz")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--score-column", default="score")
    parser.add_argument("--model", default="lexical", help="an embedding model (default: lexical, built in)")
    parser.add_argument("--save", type=Path, metavar="PATH", help="keep the learned value function in this file")
    options = parser.parse_args()
    data, save = options.data or REVIEWS, options.save
    try:
        if save is not None and (save.is_dir() or save.resolve() == data.resolve()):
            raise InputError(
                f"--save {save} is {'a folder' if save.is_dir() else 'your data'}; name a file of its own."
            )
        ratings = read_ratings(data, options.text_column, options.score_column)
        with tempfile.TemporaryDirectory() as folder:
            run(ratings, options.model, Path(folder), new_texts=[] if options.data else NEW_TEXTS, save=save)
    except (QVLError, ValueError, OSError, EOFError, csv.Error) as error:
        parser.error(str(error))


def run(ratings: list[tuple[str, float]], model: str, folder: Path, *, new_texts: list[str], save: Path | None) -> None:
    """Train on one set of ratings, rank, save, load again, and value inside a DSPy program.

    Args:
        ratings: (text, score) pairs.
        model: an embedding model.
        folder: for the vectors, and for the value function where it is not saved.
        new_texts: the texts to rank; none for the rated ones themselves.
        save: the file to keep the value function in, or None.
    """
    learner = Qwen3EmbeddingValueLearner(model, cache_dir=folder / "cache")
    learner.add_training_examples(ratings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", QVLWarning)
        warnings.filterwarnings("ignore", "the value function cannot|nothing is held out|cv_folds=")  # said below
        chosen = learner.optimize_hyperparameters(ALPHAS)
        metrics = learner.train()
    print(f"{len(ratings)} rated texts, model {model}, alpha {chosen['best_alpha']:g} by cross-validation")
    if learner.embedder.usage is not None:
        print(f"asked of the provider: {learner.embedder.usage}")
    for note in dict.fromkeys(str(warning.message) for warning in caught):
        print(f"note: {note}")
    print_figures(metrics, chosen["permutation_p"])

    low, high = min(learner.training_scores), max(learner.training_scores)
    ranked: list[tuple[str, float, float | None]]  # text, value, rating
    if new_texts:
        print(f"\nnew texts, best first (the ratings go from {low:g} to {high:g}):\n   value")
        ranked = [(text, value, None) for text, value in learner.rank_texts(new_texts)]
    else:
        is_noise = chosen["permutation_p"] > NOISE  # the mean of the others is the lower the higher the text is rated
        how = "by a fit to all, which means nothing as yet" if is_noise else "each valued by a fit that never saw it"
        print(f"\nyour texts, best first, {how}:\n   value   rated")
        texts = [text for text, _ in ratings]
        values = (learner.predict_many(texts) if is_noise else learner.leave_one_out().values).tolist()
        by_text = {text: (text, value, score) for (text, score), value in zip(ratings, values, strict=True)}
        ranked = sorted(by_text.values(), key=lambda row: -row[1])
    print_ranking(ranked, low, high)

    path = folder / "value.qvl" if save is None else save
    learner.save_model(path)
    fresh = Qwen3EmbeddingValueLearner(model, cache_dir=folder / "cache")
    fresh.load_model(path)
    texts = [text for text, _, _ in ranked]
    same = fresh.rank_texts(texts) == learner.rank_texts(texts)
    if save is None:
        print("\nsaved to a temporary file, which is thrown away now (--save PATH keeps it)")
    else:
        name = Qwen3EmbeddingValueLearner.__name__
        print(f"\nsaved to {save}; in Python:")
        print(f"  from dspy_qvl import {name}; value = {name}({model!r}); value.load_model({str(save)!r})")
    print(f"loaded into a fresh learner: scores equal to the last bit: {same}")
    better = Recommend(fresh)(drafts=[texts[-1], texts[0]])
    print(f"inside a DSPy program, the better of the first and the last of them: {one_line(better.draft)!r}")


def print_figures(metrics: Mapping[str, Any], p: float) -> None:
    """Print the figures of the value function, those of the baselines, and the verdict of the permutation test."""
    print(f"\n{'':25}      R²         Spearman    (± standard error)")
    if metrics["n_val"] < 2:
        print("too few texts to hold some out")
    else:
        print(f"on {metrics['n_val']} texts held out")
        print_row("value function", metrics, "val")
        rows = [("words", "TF-IDF"), ("nearest", "5 nearest texts"), ("length", "length"), ("mean", "mean")]
        for name, label in rows:
            print_row(label, metrics["baselines"][name], "val")
    if "oof_r2" in metrics:  # few texts, of which a fifth says little
        print("on all texts, each held out once")
        print_row("value function", metrics, "oof")
    print("(alpha was chosen with these texts in view, which flatters the value function a little)")
    if metrics["cv_folds"] < 5:
        print("So few different texts were rated that these figures say little.")
    if p > NOISE:
        print(f"Cannot be told from noise: {100 * p:.3g} % of shuffles of the ratings are learned as well.")
        print("Its values mean nothing as yet: rate more texts, and see whether two people would agree on them.")
    else:
        print(f"More than noise: at most {100 * p:.3g} % of shuffles of the ratings are learned as well.")


def print_row(label: str, figures: Mapping[str, float], prefix: str) -> None:
    """Print one row of the table; a dash stands for a figure that is not defined."""
    cells = [f"  {label:<18}"]
    for name in (f"{prefix}_r2", f"{prefix}_spearman"):
        value, error = round(figures[name], 2) + 0.0, figures[f"{name}_se"]  # + 0.0: no -0.00
        doubt = f" ± {error:.2f}" if math.isfinite(error) else ""
        cells.append(f"{value:8.2f}{doubt:<9}" if math.isfinite(value) else f"{'–':>8}{'':9}")
    print("".join(cells).rstrip())


def print_ranking(ranked: list[tuple[str, float, float | None]], low: float, high: float) -> None:
    """Print values, ratings and texts, best first; of many texts only the two ends. Mark values beyond all ratings."""
    digits = max(0, 2 - math.floor(math.log10(high - low)))
    lines, beyond = [], False
    for text, value, rating in ranked:
        mark = ""
        if round(value, digits) > high:
            mark = f"  [above the highest rating, {high:g}]"
        elif round(value, digits) < low:
            mark = f"  [below the lowest rating, {low:g}]"
        beyond = beyond or bool(mark)
        rated = "" if rating is None else f"{rating:8.{digits}f}"
        lines.append(f"{value:8.{digits}f}{rated}  {one_line(text)}{mark}")
    if len(lines) > 2 * N_SHOWN:
        lines[N_SHOWN:-N_SHOWN] = ["       …"]
    print(*lines, sep="\n")
    if beyond:  # then at an end, which is shown
        print("(values lie on a straight line, which does not end where the ratings do)")


def one_line(text: str) -> str:
    """The text in one line, cut to `WIDTH` characters."""
    words = " ".join(text.split())
    return f"{words[: WIDTH - 1]}…" if len(words) > WIDTH else words or "(an empty text)"


if __name__ == "__main__":
    main()
