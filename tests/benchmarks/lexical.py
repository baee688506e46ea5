"""Compares tokens and n-grams for the lexical model to count, on folds of the training data.

    python tests/benchmarks/lexical.py [--embedding-dim 4096 16384]

Cross-validated Spearman on the train split of four human-rated sets (at most 2,500 rows of each, whole groups to
one of three folds, the best of seven penalties); the test split is not looked at.

Counting English function words for a quarter is worth about .01 on short opinions (a stateless model cannot know
document frequencies), marking negated words .007 on the reviews. The rest lies on a plateau, where what one set gains
another loses: n-grams of four alone help news and reviews and cost arguments .02; pairs of characters pay only where
length does, which a length feature tells better. Dropped punctuation costs something everywhere, and so did pairs of
words in so few columns; among the 2^18 of the block "lexical" they gain .01 on reviews and news.
"""

import argparse
import re

import numpy as np

from dspy_qvl import measures, ridge
from dspy_qvl.embedding import LexicalModel
from dspy_qvl.fitting import make_folds
from tests.benchmarks.human_ratings import POINTWISE, load

ALPHAS = np.logspace(-1.5, 1.5, 7).tolist()
MAX_ROWS = 2500
# What of `LexicalModel` is set otherwise.
CANDIDATES = {
    "unchanged": {},
    "function words in full": {"FUNCTION_WORD_COUNT": 1.0},
    "function words for a tenth": {"FUNCTION_WORD_COUNT": 0.1},
    "no negation": {"NEGATION_SPAN": 0},
    "words weigh .75": {"word_weight": 0.75},
    "word 2-grams too": {"bigram_weight": 0.4},
    "2-5-grams": {"NGRAMS": (2, 5)},
    "4-5-grams": {"NGRAMS": (4, 5)},
    "4-grams": {"NGRAMS": (4, 4)},
    "no punctuation": {"WORD": re.compile(r"\b\w\w+\b")},
    "contractions in one piece": {"WORD": re.compile(r"\w+(?:'\w+)?|[^\w\s]")},
}


def candidate(settings: dict, n_features: int) -> LexicalModel:
    model = LexicalModel(n_features)
    vars(model).update(settings)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--embedding-dim", type=int, nargs="+", default=[4096, 16384])
    options = parser.parse_args()
    sets = {}
    for name in POINTWISE:
        train = load(name, "train")
        rows = np.random.default_rng(0).permutation(len(train.texts))[:MAX_ROWS]
        groups = train.groups if train.groups and len(set(train.groups)) > 10 else range(len(train.texts))
        folds = make_folds([groups[row] for row in rows], 3, np.random.default_rng(0))
        sets[name] = ([train.texts[row] for row in rows], np.array(train.scores)[rows], folds)
    print(f"{'columns':>7}  {'counted':<32}" + "".join(f"{name:>18}" for name in sets) + f"{'mean':>8}")
    for n_features in options.embedding_dim:
        for label, settings in CANDIDATES.items():
            reached = []
            for texts, y, folds in sets.values():
                values = ridge.out_of_fold(candidate(settings, n_features)(texts), y, ALPHAS, folds)
                reached.append(max(measures.spearman(y, row) for row in values))
            figures = "".join(f"{figure:>18.3f}" for figure in reached)
            print(f"{n_features:>7}  {label:<32}{figures}{np.mean(reached):>8.4f}", flush=True)


if __name__ == "__main__":
    main()
