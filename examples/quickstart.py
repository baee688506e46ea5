"""From ratings to a saved value function, in under a minute, with no key and nothing to download.

python examples/quickstart.py
python examples/quickstart.py --data my_ratings.csv --text-column review --score-column stars
python examples/quickstart.py --data my_ratings.jsonl.gz --model Qwen/Qwen3-Embedding-0.6B
"""

import argparse
import csv
import gzip
import json
import tempfile
from pathlib import Path

import dspy

from dspy_qvl import InputError, QVLError, Qwen3EmbeddingValueLearner

REVIEWS = Path(__file__).parent / "reviews.csv"
ALPHAS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
NEW_TEXTS = [
    "Excellent quality, quiet and easy to clean.",
    "Decent for the price, nothing special.",
    "It broke after a week and the refund never came.",
    "Not bad at all, I would buy it again.",
]


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
    parser.add_argument("--data", type=Path, default=REVIEWS, help="CSV or JSON lines, plain or .gz")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--score-column", default="score")
    parser.add_argument("--model", default="lexical", help="an embedding model (default: lexical, built in)")
    options = parser.parse_args()
    try:
        run(read_ratings(options.data, options.text_column, options.score_column), options.model)
    except (QVLError, ValueError, OSError, EOFError, csv.Error) as error:
        parser.error(str(error))


def run(ratings: list[tuple[str, float]], model: str) -> None:
    """The whole way with one set of ratings."""
    with tempfile.TemporaryDirectory() as folder:
        learner = Qwen3EmbeddingValueLearner(model, cache_dir=Path(folder) / "cache")
        learner.add_training_examples(ratings)

        chosen = learner.optimize_hyperparameters(ALPHAS)
        metrics = learner.train()
        print(f"{len(ratings)} rated texts, model {model}, alpha {chosen['best_alpha']:g} by cross-validation")
        if learner.embedder.usage is not None:
            print(f"asked of the provider: {learner.embedder.usage}")
        print(f"\non {metrics['n_val']} texts held out:     R²   Spearman")
        print(f"  value function      {metrics['val_r2']:6.3f}   {metrics['val_spearman']:6.3f}")
        for name, label in [("nearest", "5 nearest texts"), ("length", "length"), ("mean", "mean")]:
            figures = metrics["baselines"][name]
            print(f"  {label:<18}  {figures['val_r2']:6.3f}   {figures['val_spearman']:6.3f}")
        print("  (alpha was chosen with these texts in view, which flatters the first row a little)")

        print("\nnew texts, best first:")
        for text, score in learner.rank_texts(NEW_TEXTS):
            print(f"  {score:6.2f}  {text}")

        learner.save_model(Path(folder) / "value.qvl")
        fresh = Qwen3EmbeddingValueLearner(cache_dir=Path(folder) / "cache")
        fresh.load_model(Path(folder) / "value.qvl")
        same = fresh.rank_texts(NEW_TEXTS) == learner.rank_texts(NEW_TEXTS)
        print(f"\nsaved, loaded into a fresh learner: scores equal to the last bit: {same}")

        better = Recommend(fresh)(drafts=[NEW_TEXTS[2], NEW_TEXTS[0]])
        print(f"inside a DSPy program, the better of two drafts: {better.draft!r}")


if __name__ == "__main__":
    main()
