"""The ridge engine beside the arithmetic it cannot avoid, and beside its peers, in one run.

    OPENBLAS_NUM_THREADS=1 python tests/benchmarks/engine.py            all rows, some minutes
    OPENBLAS_NUM_THREADS=1 python tests/benchmarks/engine.py updates    some of them

CPU time on one BLAS thread, medians of several runs taken in turn. The unit "products" is one float32 `X.T @ X` of
the same input. Rows are unit vectors with a mean of norm .9 and a full-rank spectrum, as real Qwen3 vectors have; 25
penalties from 1e-3 to 1e3, 5 folds, a refit with the best. Peers (extra `bench`): scikit-learn RidgeCV (leave-one-
out, 25 penalties), GridSearchCV over Ridge, himalaya RidgeCV(cv=5), river BayesianLinearRegression.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import importlib.util
import multiprocessing
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dspy_qvl import ridge
from dspy_qvl.ridge import RecursiveRidge
from dspy_qvl.ridge.moments import gather, rough_mean

ALPHAS = np.geomspace(1e-3, 1e3, 25)


def rows(n: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal(size=(n, d), dtype=np.float32)
    X /= np.float32(np.sqrt(d))
    X[:, 0] += 2.0
    X /= np.sqrt(np.einsum("ij,ij->i", X, X))[:, None]
    y = (X @ rng.standard_normal(size=d, dtype=np.float32)).astype(np.float64) + rng.normal(size=n)
    return X, y, [np.sort(fold) for fold in np.array_split(rng.permutation(n), 5)]


def cpu(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def medians(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            taken[name].append(cpu(call))
    return {name: statistics.median(times) for name, times in taken.items()}


def say(what: str, ratio: float, bound: str) -> None:
    print(f"{what:<74}{ratio:>9.2f}   ({bound})", flush=True)


def search(X: np.ndarray, y: np.ndarray, folds: list[np.ndarray], loo: bool) -> ridge.Search:
    return ridge.search(X, y, ALPHAS.tolist(), folds, leave_one_out=loo)


def accuracy(X: np.ndarray, y: np.ndarray, alpha: float) -> float:
    """Relative distance of the coefficients from a float64 solve of the same system, itself refined."""
    exact = X.astype(np.float64) - X.mean(axis=0, dtype=np.float64)
    system, right = exact.T @ exact + alpha * np.eye(X.shape[1]), exact.T @ (y - y.mean())
    want = np.linalg.solve(system, right)
    want += np.linalg.solve(system, right - system @ want)
    return float(np.linalg.norm(ridge.fit(X, y, alpha).coef - want) / np.linalg.norm(want))


def products(n: int, d: int, repeats: int, bounds: tuple[str, str]) -> None:
    X, y, folds = rows(n, d)
    taken = medians(
        {
            "product": lambda: X.T @ X,
            "search": lambda: search(X, y, folds, False),
            "with loo": lambda: search(X, y, folds, True),
        },
        repeats,
    )
    print(f"one product of {n:,} x {d:,}: {taken['product']:.3f} s")
    say(f"25 alphas x 5 folds + refit, {n:,} x {d:,}, in products", taken["search"] / taken["product"], bounds[0])
    say("    with exact leave-one-out", taken["with loo"] / taken["product"], bounds[1])
    if n <= 10_000:
        worst = max(accuracy(X, y, alpha) for alpha in (1e-3, 1e-1, 1.0, 1e2))
        print(f"    relative error of the coefficients, alpha 1e-3 to 1e2: {worst:.1e} (at most 1e-9)")


def peers(n: int, d: int, repeats: int) -> None:
    from sklearn.linear_model import Ridge, RidgeCV
    from sklearn.model_selection import GridSearchCV, PredefinedSplit

    X, y, folds = rows(n, d)
    fold_of = np.empty(n, dtype=int)
    for number, fold in enumerate(folds):
        fold_of[fold] = number
    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: search(X, y, folds, True),
        "scikit-learn RidgeCV": lambda: RidgeCV(ALPHAS).fit(X, y),
    }
    bounds = {"scikit-learn RidgeCV": "at least 1", "GridSearchCV": "at least 20", "himalaya": "at least 80"}
    if n > d:
        bounds["scikit-learn RidgeCV"] = "at least 15"
        calls["GridSearchCV"] = lambda: GridSearchCV(Ridge(), {"alpha": ALPHAS}, cv=PredefinedSplit(fold_of)).fit(X, y)
        if importlib.util.find_spec("himalaya"):
            from himalaya.ridge import RidgeCV as HimalayaRidgeCV

            exact = X.astype(np.float64)
            calls["himalaya"] = lambda: HimalayaRidgeCV(alphas=ALPHAS, cv=5, fit_intercept=True).fit(exact, y)
    taken = medians(calls, repeats)
    for name in list(calls)[1:]:
        say(
            f"search with leave-one-out, {n:,} x {d:,}: times faster than {name}",
            taken[name] / taken["ours"],
            bounds[name],
        )


def _peak(n: int, d: int, fit: bool, answer: "multiprocessing.Queue[int]") -> None:
    X, y, folds = rows(n, d)
    if fit:
        search(X, y, folds, True)
    answer.put(_peak_bytes())


def _peak_bytes() -> int:
    """Peak memory of this process; Linux lets getrusage inherit the parent's, so its own status is asked first."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory(n: int, d: int) -> None:
    """Peak of a process that makes the input and fits it, less that of one that makes it only."""
    context = multiprocessing.get_context("spawn")
    peaks = []
    for fit in (False, True):
        answer = context.Queue()
        process = context.Process(target=_peak, args=(n, d, fit, answer))
        process.start()
        peaks.append(answer.get())
        process.join()
    say(
        f"peak memory on top of the input, {n:,} x {d:,}, in inputs", (peaks[1] - peaks[0]) / (n * d * 4), "at most 0.5"
    )


def updates(d: int = 1024, n: int = 2000, n_updates: int = 1000) -> None:
    from scipy.linalg import cho_factor, cho_solve

    X, y, _ = rows(n + n_updates, d)
    (moments,) = gather(X[:n], y[:n, None], rough_mean(X[:n], y[:n, None]))
    running = RecursiveRidge(moments, 1.0)
    gram, xy = moments.centred()
    system = gram + np.eye(d)

    def each() -> None:
        for row in range(n, n + n_updates):
            running.add(X[row], y[row : row + 1])
            running.line  # noqa: B018  the new coefficients

    per_update = cpu(each) / n_updates
    resolve = statistics.median(cpu(lambda: cho_solve(cho_factor(system), xy)) for _ in range(15))
    say(
        f"one update and its coefficients ({per_update * 1e6:.0f} µs), d = {d:,}: times faster than a re-solve",
        resolve / per_update,
        "at least 30",
    )
    if importlib.util.find_spec("river"):
        from river.linear_model import BayesianLinearRegression

        peer, few = BayesianLinearRegression(), 20
        dicts = [dict(enumerate(map(float, X[row]))) for row in range(few)]

        def learn_and_predict() -> None:
            for row in range(few):
                peer.learn_one(dicts[row], float(y[row]))
                peer.predict_one(dicts[row])

        theirs = cpu(learn_and_predict) / few

        def ours() -> None:
            for row in range(n_updates):
                running.add(X[row], y[row : row + 1])
                line = running.line
                float(X[row] @ line.coef[:, 0] + line.intercept[0])

        say(
            "    update and predict: times faster than river BayesianLinearRegression",
            theirs / (cpu(ours) / n_updates),
            "at least 100",
        )


ROWS: dict[str, Callable[[], None]] = {
    "products": lambda: products(10_000, 1024, 7, ("at most 5", "at most 9, prize 7")),
    "large": lambda: products(100_000, 1024, 3, ("at most 1.9", "at most 3")),
    "dual": lambda: peers(1000, 4096, 5),
    "memory": lambda: memory(100_000, 1024),
    "updates": updates,
    "peers": lambda: peers(10_000, 1024, 3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="row", help=", ".join(ROWS))
    chosen = parser.parse_args().rows or list(ROWS)
    unknown = set(chosen) - set(ROWS)
    if unknown:
        parser.error(f"no rows named {sorted(unknown)}; there are {', '.join(ROWS)}")
    warnings.simplefilter("ignore")
    for name in chosen:
        ROWS[name]()


if __name__ == "__main__":
    main()
