"""Is noise told from skill, and do groups that share texts stay apart? On ratings of people.

    python tests/benchmarks/noise.py                                       the lexical model
    HF_HUB_OFFLINE=1 python tests/benchmarks/noise.py --model FOLDER       a sentence-transformers model

vader_amazon: 50 draws of 240 ratings, as they are and shuffled, by the permutation test. saf: learned on the answers to
16 questions, reported on those to 4 new ones.
"""

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dspy_qvl import FitValue, Qwen3EmbeddingValueLearner
from dspy_qvl.fitting.permutation import LEVEL, permutation_test
from dspy_qvl.fitting.tuning import ALPHA_RANGE, prior_weights, weighed
from dspy_qvl.learner.columns import Columns
from tests.benchmarks.human_ratings import data_folder
from tests.human_data import ABSENT, rows_of


def flagged(model: str, cache: str | None, n_draws: int) -> tuple[int, int]:
    """How many draws of 240 ratings cannot be told from noise, and how many of the same ones shuffled."""
    rows = rows_of("vader_amazon", "train")
    learner = Qwen3EmbeddingValueLearner(model, cache_dir=cache)
    vectorizer, own, shuffled = learner._vectorizer, 0, 0
    columns = Columns(vectorizer, vectorizer.blocks.candidates(paired=False), paired=False)
    for draw in range(n_draws):
        rng = np.random.default_rng(1000 + draw)
        some = [rows[row] for row in rng.choice(len(rows), 240, replace=False)]
        table = columns([row["text"] for row in some])
        X, y = weighed(table, prior_weights(table)), np.array([row["score"] for row in some])
        own += permutation_test(X, y, ALPHA_RANGE, members=range(240)).p > LEVEL
        shuffled += permutation_test(X, rng.permutation(y), ALPHA_RANGE, members=range(240)).p > LEVEL
    return own, shuffled


def new_questions(model: str, cache: str | None) -> dict[str, float]:
    """Compare what cross-validation over questions predicts with the error on new questions."""
    fit = FitValue(group="group")
    learner = fit.compile(Qwen3EmbeddingValueLearner(model, cache_dir=cache), trainset=rows_of("saf", "train"))
    (report,) = fit.report.values()
    new = rows_of("saf", "test_questions")
    errors = learner.predict_many([row["text"] for row in new]) - [row["score"] for row in new]
    return {"alpha": report["alpha"], "cv_r2": report["cv_r2"], "rmse": float(np.sqrt(np.mean(errors**2)))}


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description="Noise and groups, on ratings of people.")
    parser.add_argument("--model", default="lexical")
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--cache", help="folder for vectors that outlives the run")
    options = parser.parse_args()
    if data_folder() is None:
        raise SystemExit(ABSENT)
    warnings.simplefilter("ignore")
    own, shuffled = flagged(options.model, options.cache, options.draws)
    print(f"vader_amazon, 240 ratings: {own} of {options.draws} flagged as they are, {shuffled} when shuffled")
    found = new_questions(options.model, options.cache)
    print(f"saf: alpha {found['alpha']:g}, cv_r2 {found['cv_r2']:.3f}, RMSE on new questions {found['rmse']:.3f}")


if __name__ == "__main__":
    main()
