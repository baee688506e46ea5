"""Every Python block of the seed document, run as written.

Three things are changed, and `run` says how often: the package is called `dspy_qvl`, every learner is given the
lexical model, and what the document leaves to its reader (a database, an article, a search log) is handed in by name.
Where it says "more examples", a block is run in two parts and the examples are added between them. Blanks at the end
of empty lines are left out.
"""

import contextlib
import csv
import dataclasses
import inspect
import json
import logging
import math
import random
import re
import threading
import time
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

from dspy_qvl import InputError, NotFittedError, QVLWarning, Qwen3EmbeddingValueLearner, RankingExample
from tests.conftest import rated

SEED_PACKAGE = "qwen3_embedding_value_learner"
SEED_MODEL = 'model_name="qwen/qwen-2.5-72b-instruct"'
OUR_MODEL = 'model_name="lexical"'
CALL = "Qwen3EmbeddingValueLearner("

FIGURES = ["train_mse", "train_r2", "val_mse", "val_r2", "cv_mse_mean", "cv_mse_std"]

# The blocks, in the order of the document

QUICK_START = """\
from qwen3_embedding_value_learner import Qwen3EmbeddingValueLearner, RankingExample

# Initialize the learner
learner = Qwen3EmbeddingValueLearner(
    embedding_dim=768,
    ridge_alpha=1.0,
    api_key="your-api-key"  # Optional
)

# Add training examples
learner.add_training_example("This product is excellent!", 9.5)
learner.add_training_example("Poor quality, disappointed", 2.0)

# Or add multiple at once
examples = [
    RankingExample("Great value for money", 8.0),
    RankingExample("Average product", 5.0),
]
learner.add_training_examples(examples)

# Train the model
metrics = learner.train(validation_split=0.2)
print(f"Validation R²: {metrics['val_r2']:.3f}")

# Make predictions
score = learner.predict("Is this product worth buying?")
print(f"Predicted score: {score:.2f}")

# Rank multiple texts
texts = ["Amazing!", "Terrible!", "Not bad"]
rankings = learner.rank_texts(texts)
for text, score in rankings:
    print(f"{score:.2f}: {text}")
"""

CONSTRUCTOR = """\
Qwen3EmbeddingValueLearner(
    model_name: str = "qwen/qwen-2.5-72b-instruct",
    embedding_dim: int = 768,
    ridge_alpha: float = 1.0,
    cache_dir: str = ".qwen3_embeddings",
    api_key: Optional[str] = None,
)
"""

ADD_TRAINING_EXAMPLE = """\
add_training_example(text: str, score: float, metadata: Optional[Dict] = None)
"""

ADD_TRAINING_EXAMPLES = """\
add_training_examples(examples: List[RankingExample])
"""

TRAIN = """\
train(validation_split: float = 0.2, cv_folds: int = 5) -> Dict[str, float]
"""

PREDICT = """\
predict(text: str) -> float
"""

RANK_TEXTS = """\
rank_texts(texts: List[str]) -> List[Tuple[str, float]]
"""

OPTIMIZE_HYPERPARAMETERS = """\
optimize_hyperparameters(
    alpha_range: List[float] = [0.01, 0.1, 1.0, 10.0, 100.0],
    cv_folds: int = 5
) -> Dict[str, Union[float, Dict]]
"""

SAVE_AND_LOAD = """\
save_model(path: str)
load_model(path: str)
"""

RANKING_EXAMPLE = """\
@dataclass
class RankingExample:
    text: str
    score: float
    metadata: Optional[Dict] = None
"""

DATA_PREPARATION = """\
# Example: Product reviews with ratings
training_data = [
    ("This product exceeded all my expectations!", 9.5),
    ("Good quality, fair price", 7.0),
    ("Not worth the money", 3.0),
    # ... more examples
]

for text, score in training_data:
    learner.add_training_example(text, score)
"""

MODEL_TRAINING = """\
metrics = learner.train(
    validation_split=0.2,  # 80/20 train/validation split
    cv_folds=5            # 5-fold cross-validation
)
"""

EVALUATION = """\
print(f"Training R²: {metrics['train_r2']:.3f}")
print(f"Validation R²: {metrics['val_r2']:.3f}")
print(f"CV MSE: {metrics['cv_mse_mean']:.3f} ± {metrics['cv_mse_std']:.3f}")
"""

HYPERPARAMETER_TUNING = """\
# Define search range
alpha_range = [0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0]

# Run optimization
results = learner.optimize_hyperparameters(
    alpha_range=alpha_range,
    cv_folds=5
)

print(f"Best alpha: {results['best_alpha']}")
print(f"Best MSE: {results['best_mse']:.4f}")

# Model is automatically retrained with best alpha
"""

DEPLOYMENT = """\
# Train your model
learner = Qwen3EmbeddingValueLearner(embedding_dim=768)
# ... add training data and train ...

# Save the trained model
learner.save_model("models/ranking_model_v1.pkl")

# In production:
production_learner = Qwen3EmbeddingValueLearner(embedding_dim=768)
production_learner.load_model("models/ranking_model_v1.pkl")

# Use for predictions
score = production_learner.predict("New text to rank")
"""

BATCH_PROCESSING = """\
# Process many texts at once
texts_to_rank = load_texts_from_database()  # Your data source

# Rank all texts (uses caching and progress bar)
rankings = learner.rank_texts(texts_to_rank)

# Save results
with open("rankings.json", "w") as f:
    json.dump([{"text": t, "score": s} for t, s in rankings], f)
"""

FLASK_API = """\
from flask import Flask, request, jsonify

app = Flask(__name__)
learner = Qwen3EmbeddingValueLearner()
learner.load_model("model.pkl")

@app.route("/predict", methods=["POST"])
def predict():
    text = request.json["text"]
    score = learner.predict(text)
    return jsonify({"text": text, "score": score})

@app.route("/rank", methods=["POST"])
def rank():
    texts = request.json["texts"]
    rankings = learner.rank_texts(texts)
    return jsonify([{"text": t, "score": s} for t, s in rankings])
"""

REVIEW_RANKING = """\
# Initialize learner for review ranking
review_ranker = Qwen3EmbeddingValueLearner(
    embedding_dim=512,
    ridge_alpha=10.0  # Higher alpha for noisy review data
)

# Load training data from CSV
import pandas as pd
df = pd.read_csv("reviews.csv")

# Add training examples
for _, row in df.iterrows():
    review_ranker.add_training_example(
        text=row["review_text"],
        score=row["rating"],  # 1-5 stars
        metadata={"product_id": row["product_id"]}
    )

# Train and optimize
review_ranker.optimize_hyperparameters()
metrics = review_ranker.train()

# Rank new reviews
new_reviews = [
    "This product changed my life!",
    "Worst purchase ever made.",
    "It's okay, does what it says."
]

rankings = review_ranker.rank_texts(new_reviews)
"""

QUALITY_SCORING = """\
# Content quality scorer
content_scorer = Qwen3EmbeddingValueLearner(
    embedding_dim=768,
    model_name="qwen/qwen-2.5-72b-instruct"
)

# Training data: articles with quality scores
quality_examples = [
    RankingExample(
        text="Well-researched article with citations...",
        score=9.0,
        metadata={"type": "academic"}
    ),
    RankingExample(
        text="Clickbait title with no substance...",
        score=2.0,
        metadata={"type": "clickbait"}
    ),
    # ... more examples
]

content_scorer.add_training_examples(quality_examples)
content_scorer.train()

# Score new content
article = load_article("new_article.txt")
quality_score = content_scorer.predict(article)

if quality_score > 7.0:
    publish_article(article)
else:
    send_for_review(article)
"""

SEARCH_RANKING = """\
# Search result ranker
search_ranker = Qwen3EmbeddingValueLearner(embedding_dim=256)

# Train on click-through data
for query, results in search_log:
    for result in results:
        # Score based on user engagement
        if result["clicked"]:
            score = 5.0 + result["time_on_page"] / 60  # Bonus for engagement
        else:
            score = 1.0

        search_ranker.add_training_example(
            text=f"{query} | {result['title']} | {result['snippet']}",
            score=score
        )

search_ranker.train()

# Rank search results
def rank_search_results(query, results):
    texts = [f"{query} | {r['title']} | {r['snippet']}" for r in results]
    rankings = search_ranker.rank_texts(texts)

    # Reorder results by score
    ranked_results = []
    for text, score in rankings:
        # Extract original result
        idx = texts.index(text)
        ranked_results.append(results[idx])

    return ranked_results
"""

MEMORY_ISSUES = """\
# Process in smaller batches
def process_large_dataset(texts, batch_size=1000):
    all_rankings = []
    for i in range(0, len(texts), batch_size):
        batch = texts[i:i+batch_size]
        rankings = learner.rank_texts(batch)
        all_rankings.extend(rankings)
        # Clear cache periodically
        if i % 5000 == 0:
            learner.embedding_cache.clear()
    return all_rankings
"""

RATE_LIMITS = """\
import time

class RateLimitedLearner(Qwen3EmbeddingValueLearner):
    def _get_embedding_vector(self, text):
        time.sleep(0.1)  # Rate limit to 10 requests/second
        return super()._get_embedding_vector(text)
"""

DEBUG_MODE = """\
import logging

logging.basicConfig(level=logging.DEBUG)
logger = logging.getLogger("qwen3_embedding_value_learner")

# Now all operations will log detailed information
"""

SCORE_DISTRIBUTION = """\
import matplotlib.pyplot as plt

plt.hist(learner.training_scores, bins=20)
plt.xlabel("Score")
plt.ylabel("Count")
plt.title("Training Score Distribution")
plt.show()
"""

PREDICTION_PLOT = """\
# After training
predictions = [learner.predict(text) for text in validation_texts]
plt.scatter(validation_scores, predictions)
plt.xlabel("Actual Score")
plt.ylabel("Predicted Score")
plt.plot([0, 10], [0, 10], 'r--')  # Perfect prediction line
plt.show()
"""

FEATURE_IMPORTANCE = """\
# Check which embedding dimensions are most important
importance = abs(learner.ridge.coef_)
top_features = np.argsort(importance)[-10:]
print(f"Most important embedding dimensions: {top_features}")
"""

CUSTOM_EMBEDDING = """\
class CustomEmbeddingLearner(Qwen3EmbeddingValueLearner):
    def _get_embedding_vector(self, text):
        # Your custom embedding logic
        if self.use_custom_features:
            features = extract_custom_features(text)
            base_embedding = super()._get_embedding_vector(text)
            return np.concatenate([base_embedding, features])
        return super()._get_embedding_vector(text)
"""

ENSEMBLE = """\
class EnsembleLearner:
    def __init__(self, learners):
        self.learners = learners

    def predict(self, text):
        predictions = [l.predict(text) for l in self.learners]
        return np.mean(predictions)  # Or use weighted average
"""

ONLINE_LEARNING = """\
def update_model_online(learner, new_text, new_score):
    # Add new example
    learner.add_training_example(new_text, new_score)

    # Retrain periodically
    if len(learner.training_texts) % 100 == 0:
        learner.train()
        learner.save_model("model_latest.pkl")
"""


# How they are run


def run(block: str, *, packages: int = 0, models: int = 0, **names: Any) -> dict[str, Any]:
    """Run a block and return its names.

    Args:
        block: the code, as the document has it.
        packages: how often it names the package.
        models: how many learners it makes.
        names: what the document expects to be there already.
    """
    code = block.replace(SEED_PACKAGE, "dspy_qvl")
    code = code.replace(SEED_MODEL, OUR_MODEL) if SEED_MODEL in code else code.replace(CALL, f"{CALL}{OUR_MODEL}, ")
    assert block.count(SEED_PACKAGE) == packages
    assert block.count(CALL) == code.count(OUR_MODEL) == models
    assert (code == block) == (packages == models == 0)
    namespace = {"__name__": __name__, **names}
    exec(compile(code, "<seed>", "exec"), namespace)
    return namespace


def parts(block: str, at: str) -> tuple[str, str]:
    """A block cut in two before the one place where `at` stands."""
    assert block.count(at) == 1
    before, _, after = block.partition(at)
    return before, at + after


def declared(block: str) -> dict[str, inspect.Signature]:
    """The signatures of a reference block, each line read as the head of a function."""
    functions = re.sub(r"^(\w+\(.*?\)(?: -> [^\n]+)?)$", r"def \1: ...", block, flags=re.M | re.S)
    names: dict[str, Any] = {}
    exec(f"from __future__ import annotations\n{functions}", names)
    return {name: inspect.signature(value) for name, value in names.items() if inspect.isfunction(value)}


def check_signature(ours: inspect.Signature, seed: inspect.Signature, other: tuple[str, ...] = ()) -> None:
    """The document's parameters come first, with its defaults but for `other`; ours follow and may be left out."""
    mine = [parameter for parameter in ours.parameters.values() if parameter.name != "self"]
    n_shared = len(seed.parameters)
    for parameter, wanted in zip(mine[:n_shared], seed.parameters.values(), strict=True):
        assert parameter.name == wanted.name
        assert parameter.kind == wanted.kind
        if parameter.name not in other:
            default = list(parameter.default) if isinstance(wanted.default, list) else parameter.default
            assert default == wanted.default
    assert all(parameter.default is not inspect.Parameter.empty for parameter in mine[n_shared:])


def check_ranking(rankings: list[tuple[str, float]], texts: list[str]) -> None:
    """Every text with a finite float, highest first."""
    values = [value for _, value in rankings]
    assert sorted(text for text, _ in rankings) == sorted(texts)
    assert all(type(value) is float and math.isfinite(value) for value in values)
    assert values == sorted(values, reverse=True)


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text)]


def noisy(n: int) -> list[tuple[str, float]]:
    """Rated texts whose raters are not quite sure, so that the best penalty is no extreme one."""
    rng = random.Random(0)
    return [(text, score + rng.gauss(0, 2)) for text, score in rated(n)]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks write to the folder they run in."""
    monkeypatch.chdir(tmp_path)


# Quick start


def test_the_quick_start_trains_predicts_and_ranks(capsys):
    with pytest.warns(QVLWarning, match=r"cv_folds=5 is more than the 3 that can be held out"):
        names = run(QUICK_START, packages=1, models=1)
    learner, metrics, texts = names["learner"], names["metrics"], names["texts"]
    assert isinstance(learner, Qwen3EmbeddingValueLearner)
    assert names["RankingExample"] is RankingExample
    assert learner.training_texts == [
        "This product is excellent!",
        "Poor quality, disappointed",
        "Great value for money",
        "Average product",
    ]
    assert learner.training_scores == [9.5, 2.0, 8.0, 5.0]
    assert learner.embedding_dim == 768
    assert len(learner.ridge.coef_) == 768 + 1  # and one for the length of a text
    assert (metrics["n_train"], metrics["n_val"], metrics["cv_folds"]) == (3, 1, 3)
    assert math.isnan(metrics["val_r2"])  # of one text there is no R²
    check_ranking(names["rankings"], texts)
    assert names["rankings"] == sorted([(text, learner.predict(text)) for text in texts], key=lambda pair: -pair[1])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "Validation R²: nan"
    assert printed[1] == f"Predicted score: {learner.predict('Is this product worth buying?'):.2f}"
    assert printed[2:] == [f"{score:.2f}: {text}" for text, score in names["rankings"]]


# API reference

METHODS = {
    name: signature
    for block in (
        ADD_TRAINING_EXAMPLE,
        ADD_TRAINING_EXAMPLES,
        TRAIN,
        PREDICT,
        RANK_TEXTS,
        OPTIMIZE_HYPERPARAMETERS,
        SAVE_AND_LOAD,
    )
    for name, signature in declared(block).items()
}


def test_the_constructor_takes_what_the_reference_says():
    (seed,) = declared(CONSTRUCTOR).values()
    ours = inspect.signature(Qwen3EmbeddingValueLearner.__init__)  # of the class itself DSPy shows only *args
    assert len(seed.parameters) == 5
    check_signature(ours, seed, other=("model_name", "embedding_dim"))
    assert ours.parameters["model_name"].default is None
    assert ours.parameters["embedding_dim"].default is None  # the model's own choice, for Qwen3 that of the document
    assert Qwen3EmbeddingValueLearner().embedding_dim == seed.parameters["embedding_dim"].default


def test_the_constructor_refuses_the_chat_model_of_the_reference():
    (seed,) = declared(CONSTRUCTOR).values()
    with pytest.raises(InputError, match=r"is a chat model and gives no embeddings; use 'Qwen/Qwen3-Embedding-0\.6B'"):
        Qwen3EmbeddingValueLearner(model_name=seed.parameters["model_name"].default)


def test_the_reference_lists_eight_methods():
    assert list(METHODS) == [
        "add_training_example",
        "add_training_examples",
        "train",
        "predict",
        "rank_texts",
        "optimize_hyperparameters",
        "save_model",
        "load_model",
    ]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_what_the_reference_says(name):
    check_signature(inspect.signature(getattr(Qwen3EmbeddingValueLearner, name)), METHODS[name])


def test_a_ranking_example_is_the_dataclass_of_the_reference():
    names = run(RANKING_EXAMPLE, dataclass=dataclasses.dataclass, Optional=typing.Optional, Dict=dict)
    ours, seed = dataclasses.fields(RankingExample), dataclasses.fields(names["RankingExample"])
    assert [(field.name, field.default) for field in ours[:3]] == [(field.name, field.default) for field in seed]
    assert [(field.name, field.default) for field in ours[3:]] == [("query", None)]  # what a text was rated for
    for arguments in [("a", 1.0), ("a", 1.0, {"id": 3})]:
        assert vars(RankingExample(*arguments)) == vars(names["RankingExample"](*arguments)) | {"query": None}


# Training pipeline


def test_the_prepared_data_is_added_in_order():
    prepare, add = parts(DATA_PREPARATION, "for text, score in training_data:")
    names = run(prepare)
    names["training_data"] += rated(20)
    learner = Qwen3EmbeddingValueLearner("lexical")
    run(add, training_data=names["training_data"], learner=learner)
    assert list(zip(learner.training_texts, learner.training_scores, strict=True)) == names["training_data"]
    assert learner.training_texts[0] == "This product exceeded all my expectations!"
    assert learner.training_scores[:3] == [9.5, 7.0, 3.0]
    assert learner.train()["n_train"] == 18


def test_training_returns_the_figures_of_the_reference_and_the_evaluation_prints_them(learner, capsys):
    names = run(MODEL_TRAINING, learner=learner)
    metrics = names["metrics"]
    assert all(type(metrics[name]) is float and math.isfinite(metrics[name]) for name in FIGURES)
    assert metrics["train_mse"] >= 0
    assert metrics["cv_mse_std"] >= 0
    assert max(metrics["train_r2"], metrics["val_r2"]) <= 1
    assert (metrics["n_train"], metrics["n_val"], metrics["cv_folds"]) == (48, 12, 5)
    run(EVALUATION, metrics=metrics)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["Training R²", "Validation R²", "CV MSE"]
    wanted = [metrics[name] for name in ("train_r2", "val_r2", "cv_mse_mean", "cv_mse_std")]
    assert numbers(" ".join(lines)) == [round(figure, 3) for figure in wanted]


# Model optimization


def test_tuning_finds_the_best_alpha_and_trains_with_it(capsys):
    learner = Qwen3EmbeddingValueLearner("lexical", 512)
    learner.add_training_examples(noisy(60))
    names = run(HYPERPARAMETER_TUNING, learner=learner)
    results, alphas = names["results"], names["alpha_range"]
    assert list(results["results"]) == alphas
    errors = {alpha: figures["mse_mean"] for alpha, figures in results["results"].items()}
    assert results["best_alpha"] == min(errors, key=errors.get) == learner.ridge_alpha
    assert results["best_mse"] == min(errors.values())
    printed = capsys.readouterr().out
    assert printed == f"Best alpha: {results['best_alpha']}\nBest MSE: {results['best_mse']:.4f}\n"
    twin = Qwen3EmbeddingValueLearner("lexical", 512, ridge_alpha=results["best_alpha"])
    twin.add_training_examples(noisy(60))
    twin.train()
    assert learner.predict("a quick cup") == twin.predict("a quick cup")


# Production usage


def test_a_deployed_model_gives_the_same_values(tmp_path):
    train, deploy = parts(DEPLOYMENT, "# ... add training data and train ...")
    names = run(train, models=1, Qwen3EmbeddingValueLearner=Qwen3EmbeddingValueLearner)
    learner = names["learner"]
    learner.add_training_examples(rated(60))
    learner.train()
    names = run(deploy, models=1, Qwen3EmbeddingValueLearner=Qwen3EmbeddingValueLearner, learner=learner)
    production = names["production_learner"]
    assert (tmp_path / "models" / "ranking_model_v1.pkl").is_file()
    assert production is not learner
    assert type(names["score"]) is float
    assert math.isfinite(names["score"])
    texts = ["New text to rank", *learner.training_texts, "something else"]
    assert names["score"] == learner.predict("New text to rank")
    assert [production.predict(text) for text in texts] == [learner.predict(text) for text in texts]
    assert production.rank_texts(texts) == learner.rank_texts(texts)


def test_a_learner_without_rated_texts_has_nothing_to_deploy(tmp_path):
    with pytest.raises(NotFittedError, match="nothing was learned yet"):
        run(DEPLOYMENT, models=2, Qwen3EmbeddingValueLearner=Qwen3EmbeddingValueLearner)
    assert not (tmp_path / "models").exists()


def test_batch_processing_ranks_all_texts_into_valid_json(trained, tmp_path):
    texts = [text for text, _ in rated(300, seed=1)]
    names = run(BATCH_PROCESSING, learner=trained, json=json, load_texts_from_database=lambda: list(texts))
    written = json.loads((tmp_path / "rankings.json").read_text())
    assert all(list(row) == ["text", "score"] for row in written)
    assert [(row["text"], row["score"]) for row in written] == names["rankings"]
    check_ranking(names["rankings"], texts)
    assert all(score == trained.predict(text) for text, score in names["rankings"])


def test_the_flask_api_predicts_and_ranks(trained):
    trained.save_model("model.pkl")
    names = run(FLASK_API, models=1, Qwen3EmbeddingValueLearner=Qwen3EmbeddingValueLearner)
    client = names["app"].test_client()
    answer = client.post("/predict", json={"text": "a sturdy chair"})
    assert answer.status_code == 200
    assert answer.get_json() == {"text": "a sturdy chair", "score": trained.predict("a sturdy chair")}
    texts = ["leaking and useless", "love it, perfect", "the bag", "the bag"]
    answer = client.post("/rank", json={"texts": texts})
    assert answer.status_code == 200
    rankings = [(row["text"], row["score"]) for row in answer.get_json()]
    check_ranking(rankings, texts)
    assert rankings == trained.rank_texts(texts)
    assert client.get("/predict").status_code == 405
    assert names["learner"].embedding_dim == 512  # the file's, since the block names none


# Examples


def test_customer_reviews_are_ranked():
    rng = random.Random(0)
    with open("reviews.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["review_text", "rating", "product_id"])
        for number, (text, score) in enumerate(rated(80)):
            writer.writerow([text, 1 + round(score / 3), rng.choice([100, 200]) + number])
    names = run(REVIEW_RANKING, models=1, Qwen3EmbeddingValueLearner=Qwen3EmbeddingValueLearner)
    ranker, reviews = names["review_ranker"], names["df"]
    assert ranker.embedding_dim == 512
    assert ranker.training_texts == list(reviews["review_text"])
    assert ranker.training_scores == list(reviews["rating"])
    assert ranker.training_metadata == [{"product_id": number} for number in reviews["product_id"].tolist()]
    assert ranker.ridge_alpha == names["metrics"]["alpha"] < 10.0
    assert names["metrics"]["val_r2"] > 0.5
    check_ranking(names["rankings"], names["new_reviews"])
    ranker.save_model("reviews.model")  # what pandas gave can be saved
    twin = Qwen3EmbeddingValueLearner("lexical")
    twin.load_model("reviews.model")
    assert twin.rank_texts(names["new_reviews"]) == names["rankings"]
    assert twin.training_metadata == ranker.training_metadata


@pytest.mark.parametrize(
    ("article", "decision"),
    [
        ("Well-researched article with citations, figures and sources", "published"),
        ("Clickbait title with no substance, you will not believe it", "reviewed"),
    ],
)
def test_articles_are_published_or_sent_for_review_by_their_quality(tmp_path, article, decision):
    (tmp_path / "new_article.txt").write_text(article)
    seen: dict[str, list[str]] = {"published": [], "reviewed": []}
    examples, score = parts(QUALITY_SCORING, "content_scorer.add_training_examples(quality_examples)")
    names = run(
        examples,
        models=1,
        Qwen3EmbeddingValueLearner=Qwen3EmbeddingValueLearner,
        RankingExample=RankingExample,
    )
    for number in range(20):
        good = RankingExample(f"Well-researched article with citations and sources, no. {number}", 9.0)
        bad = RankingExample(f"Clickbait title with no substance, no. {number}", 2.0, {"type": "clickbait"})
        names["quality_examples"] += [good, bad]
    names = run(
        score,
        content_scorer=names["content_scorer"],
        quality_examples=names["quality_examples"],
        load_article=lambda path: Path(path).read_text(),
        publish_article=seen["published"].append,
        send_for_review=seen["reviewed"].append,
    )
    scorer = names["content_scorer"]
    assert scorer.embedding_dim == 768
    assert len(scorer.training_texts) == 42
    assert scorer.training_metadata[:2] == [{"type": "academic"}, {"type": "clickbait"}]
    assert names["quality_score"] == scorer.predict(article)
    assert (names["quality_score"] > 7.0) == (decision == "published")
    assert seen == {"published": [], "reviewed": [], decision: [article]}


def test_search_results_are_ranked_by_what_people_clicked():
    def result(kind: str, number: int, **seen: Any) -> dict[str, Any]:
        return {"title": f"{kind} page {number}", "snippet": f"all about it, the {kind} way", **seen}

    log = [
        (
            query,
            [
                result("thorough", number, clicked=True, time_on_page=60 + number),
                result("shallow", number, clicked=False, time_on_page=0),
            ],
        )
        for number, query in enumerate(["bread", "soup", "cake", "rice", "tea", "jam", "salt", "oil", "egg", "fig"])
    ]
    names = run(SEARCH_RANKING, models=1, Qwen3EmbeddingValueLearner=Qwen3EmbeddingValueLearner, search_log=log)
    ranker = names["search_ranker"]
    assert ranker.embedding_dim == 256
    assert ranker.training_texts[0] == "bread | thorough page 0 | all about it, the thorough way"
    assert ranker.training_scores[:4] == [6.0, 1.0, 5.0 + 61 / 60, 1.0]
    results = [result("shallow", 20), result("thorough", 21), result("shallow", 22), result("thorough", 23)]
    ranked = names["rank_search_results"]("pie", results)
    assert sorted(ranked, key=results.index) == results
    assert [page["title"].split()[0] for page in ranked] == ["thorough", "thorough", "shallow", "shallow"]
    values = [ranker.predict(f"pie | {page['title']} | {page['snippet']}") for page in ranked]
    assert values == sorted(values, reverse=True)


# Troubleshooting


def test_a_large_dataset_is_ranked_in_batches_and_the_cache_is_cleared(trained):
    process = run(MEMORY_ISSUES, learner=trained)["process_large_dataset"]
    texts = [text for text, _ in rated(23, seed=1)]
    rankings = process(texts, batch_size=5)
    batches = [texts[start : start + 5] for start in range(0, 23, 5)]
    assert rankings == [pair for batch in batches for pair in trained.rank_texts(batch)]
    trained.embedding_cache.clear()
    assert process(texts, batch_size=5) == rankings
    assert not any(text in trained.embedding_cache for text in texts[:5])  # cleared after the first batch
    assert all(text in trained.embedding_cache for text in texts[5:])


def test_a_large_dataset_gets_a_ranking_a_text_with_the_usual_batch_size(trained):
    texts = [text for text, _ in rated(1100, seed=1)]
    rankings = run(MEMORY_ISSUES, learner=trained)["process_large_dataset"](texts)
    check_ranking(rankings[:1000], texts[:1000])
    check_ranking(rankings[1000:], texts[1000:])


def test_a_rate_limited_learner_waits_before_every_embedding(monkeypatch, trained):
    naps: list[float] = []
    here = threading.current_thread()  # DSPy's retriever has a thread that sleeps too

    def nap(seconds: float) -> None:
        if threading.current_thread() is here:
            naps.append(seconds)

    monkeypatch.setattr(time, "sleep", nap)
    names = run(RATE_LIMITS, Qwen3EmbeddingValueLearner=Qwen3EmbeddingValueLearner)
    learner = names["RateLimitedLearner"]("lexical", 512)
    learner.add_training_examples(rated(60))
    learner.train()
    assert naps == [0.1] * 60
    naps.clear()
    assert learner.predict("a quick cup") == trained.predict("a quick cup")
    assert naps == [0.1]
    naps.clear()
    texts = ["a noisy lamp", "a bright lamp", "a lamp"]
    assert learner.rank_texts(texts) == trained.rank_texts(texts)
    assert naps == [0.1] * 3
    naps.clear()
    learner.optimize_hyperparameters([1.0])
    assert naps == [0.1] * 60


def test_a_rate_limited_learner_really_takes_its_time():
    names = run(RATE_LIMITS, Qwen3EmbeddingValueLearner=Qwen3EmbeddingValueLearner)
    learner = names["RateLimitedLearner"]("lexical")
    learner.add_training_examples(rated(7))
    start = time.perf_counter()
    learner.train(validation_split=0)
    assert time.perf_counter() - start >= 0.7


@contextlib.contextmanager
def bare_root_logger() -> Iterator[logging.Logger]:
    """The root logger as a script finds it, without pytest's handlers; afterwards as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    try:
        yield root
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def test_debug_mode_shows_what_is_done(learner, capsys):
    before = logging.getLogger().handlers[:], logging.getLogger().level
    with bare_root_logger():
        names = run(DEBUG_MODE, packages=1)
        learner.train()
        learner.predict("a text that was never seen")
        learner.save_model("debug.model")
        learner.load_model("debug.model")
        learner.optimize_hyperparameters([1.0])
    assert (logging.getLogger().handlers, logging.getLogger().level) == before
    assert names["logger"].name == "dspy_qvl"
    records = [line for line in capsys.readouterr().err.splitlines() if ":dspy_qvl:" in line]
    for start in [
        "DEBUG:dspy_qvl:embedded 60 texts with the lexical model (512 features)",
        "INFO:dspy_qvl:trained on 60 texts with alpha 1",
        "DEBUG:dspy_qvl:embedded 1 texts with the lexical model (512 features)",
        "DEBUG:dspy_qvl:saved to debug.model",
        "DEBUG:dspy_qvl:loaded ",
        "INFO:dspy_qvl:chose alpha 1 of [1.0] over 60 texts",
    ]:
        assert any(record.startswith(start) for record in records), start


def test_without_debug_mode_nothing_is_shown(learner, capsys):
    with bare_root_logger():
        learner.train()
        learner.predict("a text that was never seen")
    assert capsys.readouterr() == ("", "")


# Validation techniques


@pytest.fixture
def plots() -> Iterator[ModuleType]:
    """pyplot that draws into memory."""
    plt.switch_backend("Agg")
    yield plt
    plt.close("all")


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_the_histogram_counts_every_training_score(learner, plots):
    run(SCORE_DISTRIBUTION, learner=learner)
    axes = plots.gca()
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("Training Score Distribution", "Score", "Count")
    assert len(axes.patches) == 20
    assert sum(bar.get_height() for bar in axes.patches) == 60


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_the_scatter_plot_shows_predictions_over_ratings(trained, plots):
    texts, scores = map(list, zip(*rated(30, seed=1), strict=True))
    names = run(PREDICTION_PLOT, learner=trained, plt=plots, validation_texts=texts, validation_scores=scores)
    assert names["predictions"] == trained.predict_many(texts).tolist()
    axes = plots.gca()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Actual Score", "Predicted Score")
    np.testing.assert_array_equal(axes.collections[0].get_offsets(), np.column_stack([scores, names["predictions"]]))
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[0, 0], [10, 10]])
    assert np.corrcoef(scores, names["predictions"])[0, 1] > 0.8


def test_the_ten_most_important_dimensions_are_printed(trained, capsys):
    names = run(FEATURE_IMPORTANCE, learner=trained, np=np)
    label, _, printed = capsys.readouterr().out.partition(":")
    assert label == "Most important embedding dimensions"
    shown = [int(number) for number in numbers(printed)]
    assert len(shown) == len(set(shown)) == 10
    assert names["importance"].shape == (512 + 1,)  # the last one tells of the length of a text
    largest = sorted(range(512 + 1), key=lambda column: abs(trained.ridge.coef_[column]))[-10:]
    assert set(shown) == set(largest)


# Advanced topics


def custom_features(text: str) -> np.ndarray:
    return np.array([text.count("!"), len(text) / 100, text.isupper()], dtype=float)


def test_custom_features_are_learned_from():
    names = run(
        CUSTOM_EMBEDDING,
        Qwen3EmbeddingValueLearner=Qwen3EmbeddingValueLearner,
        extract_custom_features=custom_features,
        np=np,
    )
    learner = names["CustomEmbeddingLearner"]("lexical", 64)
    learner.use_custom_features = True
    learner.add_training_examples([(f"no. {number} came {'!' * (number % 4)}", number % 4) for number in range(40)])
    learner.train()
    assert len(learner.ridge.coef_) == 64 + 3 + 1  # the base embedding, the features, the length
    assert learner.ridge.coef_[64] > 0  # an exclamation mark is worth something
    loud, quiet = learner.predict("it went !!!"), learner.predict("it went")
    assert loud > quiet + 2
    assert learner.rank_texts(["it went", "it went !!!"]) == [("it went !!!", loud), ("it went", quiet)]
    learner.save_model("custom.model")
    twin = names["CustomEmbeddingLearner"]("lexical")
    twin.use_custom_features = True
    twin.load_model("custom.model")
    assert twin.predict("it went !!!") == loud
    learner.use_custom_features = False
    with pytest.raises(InputError, match="the text has 65 features, but the value function was fitted on 68"):
        learner.predict("it went !!!")
    learner.train()
    assert len(learner.ridge.coef_) == 64 + 1


def test_an_ensemble_gives_the_mean_of_its_learners():
    learners = []
    for size, alpha in [(128, 0.1), (256, 1.0), (512, 10.0)]:
        learner = Qwen3EmbeddingValueLearner("lexical", size, ridge_alpha=alpha)
        learner.add_training_examples(rated(60))
        learner.train()
        learners.append(learner)
    ensemble = run(ENSEMBLE, np=np)["EnsembleLearner"](learners)
    for text in ["love it", "useless", "the blue chair"]:
        values = [learner.predict(text) for learner in learners]
        assert len(set(values)) == 3
        assert ensemble.predict(text) == np.mean(values)


def test_online_learning_trains_and_saves_at_every_hundredth_text(tmp_path):
    update = run(ONLINE_LEARNING)["update_model_online"]
    learner = Qwen3EmbeddingValueLearner("lexical", 256)
    saved = tmp_path / "model_latest.pkl"
    trained_at: list[int] = []
    saved_at: list[int] = []
    values: list[float] = []
    content = b""
    for number, (text, score) in enumerate(rated(205), start=1):
        update(learner, text, score)
        assert len(learner.training_texts) == number
        if learner.ridge.fitted is not None and learner.predict("a perfect cup") not in values:
            trained_at.append(number)
            values.append(learner.predict("a perfect cup"))
        if saved.exists() and saved.read_bytes() != content:
            saved_at.append(number)
            content = saved.read_bytes()
    assert trained_at == saved_at == [100, 200]
    latest = Qwen3EmbeddingValueLearner("lexical")
    latest.load_model(saved)
    assert len(latest.training_texts) == 200
    assert latest.predict("a perfect cup") == learner.predict("a perfect cup") == values[-1]
