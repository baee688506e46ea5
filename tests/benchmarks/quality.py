"""Measures how well values agree with human ratings, beside TF-IDF with ridge regression and beside length.

    python tests/benchmarks/quality.py [--model lexical] [--embedding-dim 4096 16384] [data sets]

Everything is fitted and chosen on the train split; the figures are over the test split, once. The first method is
the learner as it comes; --embedding-dim adds embeddings of so many columns. Its penalty is chosen by 5-fold
cross-validation, whole groups (a review, a topic) to one fold; that of the hand-made pipeline by RidgeCV's
leave-one-out over the same penalties, which decomposes a matrix of texts by texts: minutes for the 8,062 of emobank.
"length" is log(1 + characters).
"""

import argparse
import tempfile
import time
import warnings

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline

from dspy_qvl import Qwen3EmbeddingValueLearner, measures
from tests.benchmarks.human_ratings import POINTWISE, Rated, load

ALPHAS = np.geomspace(0.01, 100, 25).tolist()


def learner_values(train: Rated, test: Rated, model: str, embedding_dim: int | None) -> np.ndarray:
    with tempfile.TemporaryDirectory() as cache:
        learner = Qwen3EmbeddingValueLearner(model, embedding_dim, cache_dir=cache)
        learner.add_training_examples(zip(train.texts, train.scores, strict=True))
        learner.optimize_hyperparameters(ALPHAS, groups=train.groups)
        return learner.predict_many(test.texts)


def by_hand(train: Rated, test: Rated) -> np.ndarray:
    pipeline = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), RidgeCV(ALPHAS))
    return pipeline.fit(train.texts, train.scores).predict(test.texts)


def lengths(test: Rated) -> np.ndarray:
    return np.log1p([len(text) for text in test.texts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(POINTWISE), metavar="data set")
    parser.add_argument("--embedding-dim", type=int, nargs="+", default=[])
    parser.add_argument("--model", default="lexical")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="the best alpha")
    models = {options.model: None} | {f"{options.model}, {dim} columns": dim for dim in options.embedding_dim}
    print(f"{'data set':<18}{'method':<28}{'Pearson':>8}{'Spearman':>9}{'CPU s':>9}")
    for name in options.names:
        train, test = load(name, "train"), load(name, "test")
        methods = {
            model: lambda train=train, test=test, dim=dim: learner_values(train, test, options.model, dim)
            for model, dim in models.items()
        }
        methods["TF-IDF(1-2) + RidgeCV"] = lambda train=train, test=test: by_hand(train, test)
        methods["length alone"] = lambda test=test: lengths(test)
        for method, values_of in methods.items():
            start = time.process_time()
            values = values_of()
            seconds = time.process_time() - start
            pearson, spearman = measures.pearson(test.scores, values), measures.spearman(test.scores, values)
            print(f"{name:<18}{method:<28}{pearson:>8.3f}{spearman:>9.3f}{seconds:>9.1f}", flush=True)


if __name__ == "__main__":
    main()
