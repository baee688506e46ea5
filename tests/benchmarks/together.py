"""One learner, sixteen threads, everything at once: what is written must load, and be the fit that it says it is.

    python -m tests.benchmarks.together 30

Threads train, update, forget, load, save, copy, pickle and value one learner for so many seconds. Then every file and
copy that came of it is compared with a ridge regression of scikit-learn's on the rated texts it holds.
"""

import copy
import json
import pickle
import random
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import Ridge

from dspy_qvl import NotFittedError, QVLError, QVLWarning, Qwen3EmbeddingValueLearner
from tests.conftest import CountingModel, rated

THREADS = 16
NEW = [text for text, _ in rated(20, seed=8)]
# What a call may say that came too early or too late: that nothing was learned, or too little, or a text was forgotten.
EXPECTED = (NotFittedError, "was never rated", "all scores are", "at least 2", "scores that differ")


def shouting(texts: list[str]) -> list[list[float]]:
    return [[float(len(text)), float(text.count("o"))] for text in texts]


def make() -> Qwen3EmbeddingValueLearner:
    learner = Qwen3EmbeddingValueLearner(embedder=CountingModel(size=16), cache_dir=None, features=shouting)
    learner.add_training_examples(rated(30))
    return learner


def is_the_fit_of_its_texts(learner: Qwen3EmbeddingValueLearner) -> bool:
    """True if coefficients and values follow from the rated texts by scikit-learn's ridge regression."""
    fit = learner.current_fit()
    examples = learner.ridge.examples[: fit.n_texts]
    assert list(fit.rated) == list(examples)
    X = learner._columns(fit)([example.item for example in examples]).X
    peer = Ridge(alpha=fit.alpha, solver="svd").fit(
        fit.fitted.weighed(X).astype(np.float64), [example.score for example in examples]
    )
    values = peer.predict(fit.fitted.weighed(learner._columns(fit)(NEW).X).astype(np.float64))
    return np.allclose(learner.predict_many(NEW), values, atol=1e-5)  # float32 columns


class Crowd:
    """Threads that all use one learner."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.learner = make()
        self.learner.train(cv_folds=2)
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.failed: list[str] = []
        self.copies: list[tuple[str, Any]] = []
        self._numbers = iter(range(10**9))

    def run(self, seconds: float) -> None:
        """Do everything at once for so long."""
        end = time.monotonic() + seconds
        threads = [threading.Thread(target=self._work, args=(number, end)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(seconds + 60)
            assert not thread.is_alive(), "a thread hangs"

    def _work(self, number: int, end: float) -> None:
        rng = random.Random(number)
        calls = self._calls()
        names = list(calls)
        while time.monotonic() < end:
            name = rng.choice(names)
            try:
                calls[name](rng)
                self.done[name] += 1
            except QVLError as error:
                if not isinstance(error, NotFittedError) and not any(
                    isinstance(reason, str) and reason in str(error) for reason in EXPECTED
                ):
                    self.failed.append(f"{name}: {error!r}")
                self.refused[name] += 1
            except Exception as error:
                self.failed.append(f"{name}: {error!r}")

    def _calls(self) -> dict[str, Callable[[random.Random], Any]]:
        learner = self.learner

        def number() -> int:
            return next(self._numbers)

        def forget(rng: random.Random) -> None:
            learner.forget(rng.choice(learner.training_texts or ["nothing"]))

        def save_model(rng: random.Random) -> None:
            path = self.folder / f"{number() if rng.random() < 0.5 else rng.randrange(4)}.qvl"
            learner.save_model(path)

        def load_model(rng: random.Random) -> None:
            files = sorted(self.folder.glob("*.qvl"))
            if files:
                learner.load_model(rng.choice(files))

        def dump_state(rng: random.Random) -> None:
            state = json.dumps(learner.ridge.dump_state())
            if rng.random() < 0.3:
                self.copies.append(("state", state))

        def load_state(rng: random.Random) -> None:
            states = [state for kind, state in self.copies if kind == "state"]
            if states:
                learner.ridge.load_state(json.loads(rng.choice(states)))

        def some_copy(kind: str, make: Callable[[], Any]) -> Callable[[random.Random], None]:
            def call(rng: random.Random) -> None:
                made = make()
                if rng.random() < 0.1:
                    self.copies.append((kind, made))

            return call

        def set_examples(rng: random.Random) -> None:
            learner.ridge.examples = [*learner.ridge.examples, *make().ridge.examples[:2]]

        return {
            "train": lambda rng: learner.train(cv_folds=2),
            "optimize": lambda rng: learner.optimize_hyperparameters([0.1, 1.0], cv_folds=2),
            "update": lambda rng: learner.update(f"{rng.choice(NEW)} {number()}", rng.randint(0, 8)),
            "forget": forget,
            "add": lambda rng: learner.add_training_example(f"{rng.choice(NEW)} {number()}", rng.randint(0, 8)),
            "add many": lambda rng: learner.add_training_examples(rated(3, seed=number())),
            "alpha": lambda rng: setattr(learner, "ridge_alpha", rng.choice([0.5, 1.0, 2.0])),
            "unfit": lambda rng: learner.unfit() if rng.random() < 0.1 else None,
            "examples": lambda rng: set_examples(rng) if rng.random() < 0.1 else None,
            "save_model": save_model,
            "load_model": load_model,
            "dump_state": dump_state,
            "load_state": load_state,
            "save": lambda rng: learner.save(str(self.folder / f"{rng.randrange(4)}-{number()}.json")),
            "pickle": some_copy("pickle", lambda: pickle.dumps(learner)),
            "deepcopy": some_copy("copy", lambda: copy.deepcopy(learner)),
            "predict": lambda rng: learner.predict(rng.choice(NEW)),
            "predict_many": lambda rng: learner.predict_many(NEW),
            "predict_std": lambda rng: learner.predict_std(rng.choice(NEW)),
            "call": lambda rng: learner(text=rng.choice(NEW)),
            "leave_one_out": lambda rng: learner.leave_one_out(),
            "nearest": lambda rng: learner.nearest(rng.choice(NEW)),
            "repr": lambda rng: repr(learner),
        }

    def wrong(self) -> list[str]:
        """Everything that was written or copied, and is not the fit that it says it is."""
        wrong = []
        for kind, made in [
            *self.copies,
            *(("file", path) for path in self.folder.glob("*.qvl")),
            *(("json", path) for path in self.folder.glob("*.json")),
        ]:
            try:
                learner = opened(kind, made)
                if learner.ridge.fitted is not None and not is_the_fit_of_its_texts(learner):
                    wrong.append(f"{kind} {made if isinstance(made, Path) else ''} is another fit")
            except Exception as error:
                wrong.append(f"{kind} {made if isinstance(made, Path) else ''}: {error!r}")
        return wrong


def opened(kind: str, made: Any) -> Qwen3EmbeddingValueLearner:
    """The learner in a file, a state, a pickle or a copy."""
    if kind == "copy":
        return made
    if kind == "pickle":
        return pickle.loads(made)
    learner = Qwen3EmbeddingValueLearner(embedder=CountingModel(size=16), cache_dir=None, features=shouting)
    if kind == "file":
        learner.load_model(made)
    elif kind == "json":
        learner.load(str(made))
    else:
        learner.ridge.load_state(json.loads(made))
    return learner


def main(seconds: float) -> None:
    warnings.simplefilter("ignore", QVLWarning)
    with tempfile.TemporaryDirectory() as folder:
        crowd = Crowd(Path(folder))
        crowd.run(seconds)
        print("calls:", dict(sorted(crowd.done.items())))
        print("refused:", dict(sorted(crowd.refused.items())))
        print("failed:", len(crowd.failed), Counter(line[:120] for line in crowd.failed).most_common(10))
        n_made = len(crowd.copies) + len(list(Path(folder).iterdir()))
        wrong = crowd.wrong()
        print(
            f"{len(wrong)} of {n_made} files and copies are wrong",
            Counter(line[-110:] for line in wrong).most_common(8),
        )


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 30.0)
