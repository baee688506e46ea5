"""Which tokens and n-grams the lexical model counts, chosen on training folds.

    python tests/benchmarks/lexical.py [--embedding-dim 4096 16384]

Cross-validated Spearman on the train split of four human-rated sets (at most 2,500 rows of each, whole groups to
one of three folds, the best of seven penalties); the test split is not looked at.

The candidates lie on a plateau: their means differ by less than the noise of one set (about .01). Word pairs and
dropped punctuation cost something everywhere. Pairs of characters pay only where length does (arguments), which a
length feature tells better; single words, punctuation and 3-5-grams are best or nearly so on the two sets of short
opinions, and are what the model counts.
"""

import argparse

import numpy as np
from human_ratings import POINTWISE, load

from dspy_qvl import ridge, scores
from dspy_qvl.backends import LexicalModel
from dspy_qvl.validation import make_folds

ALPHAS = np.logspace(-1.5, 1.5, 7).tolist()
MAX_ROWS = 2500
WORDS_AND_PUNCTUATION, WORDS, CONTRACTIONS = r"(?u)\w+|[^\w\s]", r"(?u)\b\w\w+\b", r"(?u)\w+(?:'\w+)?|[^\w\s]"

CANDIDATES = {
    "words, chars 3-5, .6": (WORDS_AND_PUNCTUATION, (1, 1), (3, 5), 0.6),
    "words, chars 3-5, .75": (WORDS_AND_PUNCTUATION, (1, 1), (3, 5), 0.75),
    "words, chars 2-5, .6": (WORDS_AND_PUNCTUATION, (1, 1), (2, 5), 0.6),
    "words, chars 4-5, .6": (WORDS_AND_PUNCTUATION, (1, 1), (4, 5), 0.6),
    "words 1-2, chars 3-5, .6": (WORDS_AND_PUNCTUATION, (1, 2), (3, 5), 0.6),
    "no punctuation, chars 3-5, .6": (WORDS, (1, 1), (3, 5), 0.6),
    "contractions, chars 3-5, .6": (CONTRACTIONS, (1, 1), (3, 5), 0.6),
}


def candidate(settings: tuple, n_features: int) -> LexicalModel:
    model = LexicalModel(n_features)
    model.WORD, model.WORD_NGRAMS, model.CHARACTER_NGRAMS, model.WORD_WEIGHT = settings
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
                values = ridge.cross_validate(candidate(settings, n_features)(texts), y, ALPHAS, folds)
                reached.append(max(scores.spearman(y, row) for row in values))
            figures = "".join(f"{figure:>18.3f}" for figure in reached)
            print(f"{n_features:>7}  {label:<32}{figures}{np.mean(reached):>8.4f}", flush=True)


if __name__ == "__main__":
    main()
