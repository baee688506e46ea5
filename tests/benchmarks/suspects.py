"""Are mislabelled ratings among the most suspect? On ratings of people of which some are mirrored about their mean.

    python tests/benchmarks/suspects.py                                    the lexical model
    HF_HUB_OFFLINE=1 python tests/benchmarks/suspects.py --model FOLDER    a sentence-transformers model
    python tests/benchmarks/suspects.py --vectors FOLDER                   vectors of the texts, NAME.train.npy

5 % of the train ratings of each set are mirrored, the penalty and weights of blocks chosen on what results, and the
ratings ranked by how suspect they are. Printed: of those moved by more than 2 points (on a scale from -4 to 4), the
share among the 5 % most suspect, and the average precision, means over draws; and the lowest share of a draw. Beside
it, where cleanlab is installed, its regression scores of the values out of fold. Bound: 60 % on vader_amazon, MiniLM
with blocks.
"""

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dspy_qvl import ridge
from dspy_qvl.certainty.suspicion import second_look
from dspy_qvl.fitting import make_folds
from dspy_qvl.ridge import posterior_of
from dspy_qvl.vectors import Array
from tests.benchmarks.human_ratings import ABSENT, data_folder, load
from tests.benchmarks.verdicts import Texts

MIRRORED, FAR = 0.05, 2.0


def scores(texts: Texts, y: Array, seed: int) -> dict[str, Array]:
    """How suspect each rating is, by several measures, (n,) each, higher is more."""
    rated, _ = texts.rated(np.arange(len(y)), y, seed)
    known = posterior_of(rated.X, y, rated.alpha)
    assert known.loo is not None
    residuals, std = second_look(rated.X, y, rated.alpha, known.loo, known.noise)
    found = {
        "leave-one-out residual": np.abs(known.loo.residuals),
        "over its std": np.abs(known.loo.residuals) * np.sqrt(1 - known.loo.leverages),
        "second look": np.abs(residuals / std),
    }
    try:
        from cleanlab.regression.rank import get_label_quality_scores
    except ImportError:
        return found
    folds = make_folds(rated.groups.tolist(), 5, np.random.default_rng(seed))
    values = ridge.out_of_fold(rated.X, y, [rated.alpha], folds)[0]
    for method in ("outre", "residual"):
        found[f"cleanlab {method}"] = -get_label_quality_scores(y, values, method=method)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Mislabelled ratings among the most suspect.")
    parser.add_argument("--model", default="lexical")
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--sets", nargs="+", default=["vader_amazon", "vader_tweets"])
    options = parser.parse_args()
    if data_folder() is None:
        raise SystemExit(ABSENT)
    warnings.simplefilter("ignore")
    from sklearn.metrics import average_precision_score

    for name in options.sets:
        data = load(name, "train")
        texts, true = Texts(name, data.texts, data.groups, options), np.array(data.scores)
        n_top, table = round(MIRRORED * len(true)), {}
        for seed in range(options.draws):
            rows = np.random.default_rng(seed).choice(len(true), n_top, replace=False)
            y = true.copy()
            y[rows] = 2 * true.mean() - true[rows]
            moved = np.abs(y - true) > FAR
            for measure, score in scores(texts, y, seed).items():
                top = np.argsort(-score)[:n_top]
                found = moved[top].sum() / moved.sum(), average_precision_score(moved, score)
                table.setdefault(measure, []).append(found)
        for measure, pairs in table.items():
            share, precision = np.mean(pairs, axis=0)
            lowest = min(share for share, _ in pairs)
            print(f"{name:13} {measure:24} {share:.3f} found (lowest {lowest:.3f}), average precision {precision:.3f}")


if __name__ == "__main__":
    main()
