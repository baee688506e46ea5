"""One measurement of `default.py`, in a process of its own: prints a line of JSON.

    PYTHONPATH=CHECKOUT python tests/benchmarks/default_part.py PART WORK VECTORS [ARGUMENT]

WORK is a folder for the cache and the fit that parts leave to each other, VECTORS the folder of MiniLM's vectors. The
learner reads vectors from its cache on disk, which `fill` has filled; its model refuses to be asked. Only what every
checkout has is imported from it, so that a part can run on an earlier one.
"""

import json
import resource
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dspy_qvl import Qwen3EmbeddingValueLearner, measures, ridge
from dspy_qvl.fitting import copies, make_folds, members_of
from tests.benchmarks.human_ratings import Rated, load

ALPHAS = np.geomspace(0.01, 10, 7).tolist()
N_RATED, N_NEW, N_SINGLE, BATCH = 9000, 10_000, 1000, 100


class Model:
    """The vectors of texts that are known, and one for the texts that the learner tells models apart by."""

    name = "all-MiniLM-L6-v2, its vectors on disk"

    def __init__(self, known: Mapping[str, np.ndarray]) -> None:
        self.known = known

    def __call__(self, texts: list[str]) -> np.ndarray:
        assert self.known, f"{texts[0]!r} has no vector on disk"
        probe = np.ones(384, dtype=np.float32)
        return np.stack([self.known.get(text, probe) for text in texts])


def learner_in(work: Path, known: Mapping[str, np.ndarray] | None = None) -> Qwen3EmbeddingValueLearner:
    return Qwen3EmbeddingValueLearner(embedder=Model(known or {}), cache_dir=work / "cache")


def cpu(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def peak_gb() -> float:
    """Peak memory of this process; its parent is small, so that what Linux counts of it does not matter."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


# Texts


def rated() -> Rated:
    """9,000 rated texts of emobank: the train split, and of the dev split as many as are wanted."""
    train, dev = load("emobank", "train"), load("emobank", "dev")
    both = (first + second for first, second in zip(vars(train).values(), vars(dev).values(), strict=True))
    return Rated(*(part[:N_RATED] for part in both))


def pairs(n: int, seed: int) -> np.ndarray:
    """The numbers of two rated texts for each of n texts that are made of them, (n, 2)."""
    return np.random.default_rng(seed).integers(0, N_RATED, size=(n, 2))


NEW = pairs(N_NEW + 2 * N_SINGLE, seed=1)


def joined(of: np.ndarray) -> Rated:
    """Texts as long as the rated ones, half of one, then half of another, and the mean of their scores."""
    words, scores = [text.split() for text in rated().texts], rated().scores
    texts = [" ".join(words[a][: len(words[a]) // 2] + words[b][len(words[b]) // 2 :]) for a, b in of]
    return Rated(texts, [(scores[a] + scores[b]) / 2 for a, b in of], None)


def new_texts() -> list[str]:
    """Texts that no rated one is equal to."""
    return joined(NEW).texts


def on_disk(vectors: Path, name: str) -> dict[str, np.ndarray]:
    """The vector of each text of a data set, of all splits that there are files of."""
    known: dict[str, np.ndarray] = {}
    for path in vectors.glob(f"{name}.*.npy"):
        known |= zip(load(name, path.suffixes[0][1:]).texts, np.load(path), strict=True)
    return known


def sums(vectors: Path, of: np.ndarray) -> np.ndarray:
    """The sum of the vectors of two rated texts, of length 1, (n, d)."""
    known = on_disk(vectors, "emobank")
    single = np.stack([known[text] for text in rated().texts])
    both = single[of[:, 0]] + single[of[:, 1]]
    return both / np.linalg.norm(both, axis=1, keepdims=True)


# Parts


def fill(work: Path, vectors: Path, what: str) -> dict[str, Any]:
    """Vectors into the cache: of a data set, for emobank with those of the new texts, or of n joined texts."""
    if what.isdigit():
        known = dict(zip(joined(pairs(int(what), 0)).texts, sums(vectors, pairs(int(what), 0)), strict=True))
    else:
        known = on_disk(vectors, what)
    if what == "emobank":
        known |= zip(new_texts(), sums(vectors, NEW), strict=True)
    learner = learner_in(work, known)
    learner.embed(list(known))
    learner.probe()  # saved with every fit
    return {}


def tune(work: Path, vectors: Path, what: str) -> dict[str, Any]:
    """`optimize_hyperparameters` with "auto" on emobank, of which the fit is kept, or on n joined texts."""
    known = joined(pairs(int(what), 0)) if what.isdigit() else rated()
    learner = learner_in(work)
    learner.add_training_examples(zip(known.texts, known.scores, strict=True))
    seconds, chosen = cpu(lambda: learner.optimize_hyperparameters(ALPHAS, groups=known.groups))
    told = {"seconds": seconds, "gb": peak_gb(), "alpha": chosen["best_alpha"]}
    if what.isdigit():
        return told
    learner.save_model(work / "emobank.qvl")
    test = load("emobank", "test")
    return told | {"spearman": measures.spearman(test.scores, learner.predict_many(test.texts))}


def peer(work: Path, vectors: Path) -> dict[str, Any]:
    """The same by scikit-learn, on the columns as the fit weighs them and the folds that it was chosen on."""
    from scipy.sparse import csr_array, hstack
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV

    known, learner = rated(), learner_in(work)
    learner.load_model(work / "emobank.qvl")
    fit, y = learner.ridge.fitted, np.array(known.scores)
    X = fit.fitted.weighed(learner._columns(fit)(known.texts).X)
    members = members_of(known.groups, copies(known.texts, learner.embed(known.texts)))
    folds = make_folds(members, 5, np.random.default_rng(learner.random_state))
    search, found = cpu(lambda: ridge.search(X, y, ALPHAS, folds))
    plain = X if isinstance(X, np.ndarray) else hstack([csr_array(X.dense), X.sparse], format="csr")
    splits = [(np.setdiff1d(np.arange(len(y)), fold), fold) for fold in folds]
    grid = GridSearchCV(Ridge(solver="sparse_cg"), {"alpha": ALPHAS}, scoring="neg_mean_squared_error", cv=splits)
    theirs, _ = cpu(lambda: grid.fit(plain, y))
    errors = np.stack([-grid.cv_results_[f"split{number}_test_score"] for number in range(len(folds))], axis=1)
    return {"search": search, "seconds": theirs, "apart": float(np.abs(errors / found.errors - 1).max())}


def values(work: Path, vectors: Path) -> dict[str, Any]:
    """New texts in one batch, then others one by one, and the vectors of yet others one by one."""
    texts, learner = new_texts(), learner_in(work)
    learner.load_model(work / "emobank.qvl")
    batch, _ = cpu(lambda: learner.predict_many(texts[:N_NEW]))
    single, _ = cpu(lambda: [learner.predict(text) for text in texts[N_NEW : N_NEW + N_SINGLE]])
    vector, _ = cpu(lambda: [learner.embed([text]) for text in texts[N_NEW + N_SINGLE :]])
    return {"seconds": batch, "ms": single / N_SINGLE * 1e3, "vector_ms": vector / N_SINGLE * 1e3}


def std(work: Path, vectors: Path) -> dict[str, Any]:
    """The first standard deviation after loading, then those of new texts in batches."""
    texts, learner = new_texts(), learner_in(work)
    learner.load_model(work / "emobank.qvl")
    first, _ = cpu(lambda: learner.predict_std(texts[-1]))
    batches = [texts[start : start + BATCH] for start in range(0, N_SINGLE, BATCH)]
    later, _ = cpu(lambda: [learner.predict_std_many(batch) for batch in batches])
    return {"seconds": first, "ms": later / N_SINGLE * 1e3, "gb": peak_gb()}


def quality(work: Path, vectors: Path, name: str) -> dict[str, Any]:
    """Test Spearman of the lexical default, of MiniLM with "auto", and of TF-IDF by hand."""
    from tests.benchmarks.quality import by_hand, learner_values

    train, test = load(name, "train"), load(name, "test")
    learner = learner_in(work)
    learner.add_training_examples(zip(train.texts, train.scores, strict=True))
    learner.optimize_hyperparameters(ALPHAS, groups=train.groups)
    found = {
        "MiniLM": learner.predict_many(test.texts),
        "lexical": learner_values(train, test, "lexical", None),
        "TF-IDF": by_hand(train, test),
    }
    return {method: measures.spearman(test.scores, values) for method, values in found.items()}


PARTS = {part.__name__: part for part in (fill, tune, peer, values, std, quality)}


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="the best alpha|the value function cannot be told from noise")
    name, work, vectors, *argument = sys.argv[1:]
    told = PARTS[name](Path(work), Path(vectors), *argument)
    assert "torch" not in sys.modules
    print(json.dumps(told))
