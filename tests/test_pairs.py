"""Values of texts for queries: an answer's for its question, a summary's for its article."""

import random

import dspy
import numpy as np
import pytest

from dspy_qvl import FitValue, InputError, Qwen3EmbeddingValueLearner, RankingExample, StateError, ValueMetric, measures
from dspy_qvl.features.features import Features
from dspy_qvl.features.table import Queries
from tests.conftest import CountingModel

THINGS = "lamp chair kettle phone blender bag cup shoe clock desk table plant".split()
COLOURS = "red blue green white black brown grey pink".split()


def rated(n=120, seed=0):
    """Answers that are good where they speak of what was asked: nothing in the answer alone tells."""
    rng = random.Random(seed)
    rows = []
    for number in range(n):
        thing, colour = rng.choice(THINGS), rng.choice(COLOURS)
        right = number % 2 == 0
        about = (thing, colour) if right else (rng.choice(THINGS), rng.choice(COLOURS))
        rows.append(
            RankingExample(
                f"We have sent the {about[1]} {about[0]} {rng.randint(10, 99)}",
                8.0 * right + rng.random(),
                None,
                f"Where is my {colour} {thing}, order {number // 4}?",
            )
        )
    return rows


ROWS, NEW = rated(), rated(40, seed=5)


def make(tmp_path=None, rows=ROWS, **settings):
    learner = Qwen3EmbeddingValueLearner("lexical", 512, cache_dir=None, **settings)
    learner.add_training_examples(rows)
    return learner


@pytest.fixture(scope="module")
def trained():
    learner = make()
    learner.optimize_hyperparameters([0.01, 0.1, 1.0, 10.0])
    return learner


def spearman(learner, rows=NEW):
    queries = [row.query for row in rows] if rows[0].query else None
    return measures.spearman([row.score for row in rows], learner.predict_many([row.text for row in rows], queries))


def test_a_text_is_valued_for_its_query_where_the_text_alone_says_nothing(trained):
    alone = make(rows=[RankingExample(row.text, row.score) for row in ROWS])
    alone.train()
    assert spearman(trained) > 0.6
    assert spearman(alone, [RankingExample(row.text, row.score) for row in NEW]) < 0.4
    assert {"cosine", "overlap"} <= set(trained.current_fit().fitted.blocks.names)


def test_one_text_has_another_value_for_another_query(trained):
    text = "We have sent the red lamp 20"
    assert (
        trained.predict(text, query="Where is my red lamp?")
        > trained.predict(text, query="Where is my blue clock?") + 1
    )
    ranked = trained.rank_texts(["We sent the red lamp", "We sent the blue clock"], query="Where is my red lamp?")
    assert ranked[0][0] == "We sent the red lamp"
    prediction = trained(text=text, query="Where is my red lamp?")
    assert prediction.score == trained.predict(text, query="Where is my red lamp?")
    assert prediction.std == trained.predict_std(text, query="Where is my red lamp?") > 0


def test_a_pair_has_the_same_bits_alone_and_in_a_batch(trained):
    together = trained.predict_many([row.text for row in NEW], [row.query for row in NEW])
    assert together.tolist() == [trained.predict(row.text, row.query) for row in NEW]
    fresh = make()
    fresh.ridge.load_state(trained.ridge.dump_state())
    assert fresh.predict_many([row.text for row in NEW], [row.query for row in NEW]).tolist() == together.tolist()
    one = trained.predict_many(["a", "b"], "a question")
    assert one.tolist() == [trained.predict("a", "a question"), trained.predict("b", "a question")]


def test_the_texts_of_one_query_are_never_split():
    noise = random.Random(3)
    rows = []
    for number in range(40):  # what a query is decides the score: with it split, cross-validation would look perfect
        score = noise.random()
        rows += [
            RankingExample(f"answer {noise.random()}", score, None, f"unique{number} words{number}") for _ in range(3)
        ]
    chosen = make(rows=rows, features=["cosine", "overlap"]).optimize_hyperparameters([10.0])
    assert chosen["best_mse"] > 0.8 * np.var([row.score for row in rows])


def test_updating_and_forgetting_pairs_is_learning_anew(trained):
    learner = trained.deepcopy()
    learner.update("We have sent the pink plant", 9.0, query="Where is my pink plant?")
    anew = make(rows=learner.ridge.examples)
    anew.ridge.alpha, anew.ridge.weights = learner.ridge.alpha, learner.ridge.weights
    assert learner.predict("x y", query="z") != trained.predict("x y", query="z")
    learner.forget("We have sent the pink plant", query="Where is my pink plant?")
    assert learner.predict("x y", query="z") == pytest.approx(trained.predict("x y", query="z"), rel=1e-9)
    with pytest.raises(InputError, match="was never rated for"):
        learner.forget(ROWS[0].text, query="another question")


def test_pairs_are_saved_and_loaded_without_embedding_again(tmp_path):
    learner = Qwen3EmbeddingValueLearner(embedder=CountingModel(), instruction="Judge", cache_dir=None)
    learner.add_training_examples(ROWS)
    learner.train()
    learner.save_model(tmp_path / "m")
    model = CountingModel()
    loaded = Qwen3EmbeddingValueLearner(embedder=model, cache_dir=None)
    loaded.load_model(tmp_path / "m")
    assert loaded(text="a", query="b").toDict() == learner(text="a", query="b").toDict()
    loaded.train()
    loaded.update("a new one", 3.0, query="new?")
    assert not {row.text for row in ROWS} & set(model.asked)
    assert not any(row.query in asked for row in ROWS for asked in model.asked)
    assert [example.query for example in loaded.ridge.examples[:3]] == [row.query for row in ROWS[:3]]


def test_the_instruction_stands_before_the_query_only():
    model = CountingModel()
    learner = Qwen3EmbeddingValueLearner(embedder=model, instruction="Judge", cache_dir=None)
    learner.add_training_examples(ROWS)
    learner.train()
    assert f"Instruct: Judge\nQuery:{ROWS[0].query}" in model.asked
    assert ROWS[0].text in model.asked
    assert f"Instruct: Judge\nQuery:{ROWS[0].text}" not in model.asked


def test_fit_value_and_the_metric_name_a_query_side_and_a_text_side(tmp_path):
    trainset = [dspy.Example(question=row.query, answer=row.text, score=row.score) for row in ROWS]
    optimizer = FitValue(query="question", text="answer", alphas=[0.01, 0.1, 1.0, 10.0])
    program = optimizer.compile(
        Qwen3EmbeddingValueLearner("lexical", 512, cache_dir=None), trainset=trainset, valset=trainset
    )
    assert optimizer.report["self"]["val"]["spearman"] > 0.5
    metric = ValueMetric(program)
    example = dspy.Example(question="Where is my red lamp?", answer="gold").with_inputs("question")
    good, bad = (
        dspy.Prediction(answer="We have sent the red lamp 20"),
        dspy.Prediction(answer="We have sent the blue cup 20"),
    )
    assert metric(example, good) > metric(example, bad)
    assert metric({"question": "Where is my red lamp?"}, good) == metric(example, good)
    assert metric.value(example, good) == program.predict(good.answer, query="Where is my red lamp?")
    assert "Rated" in metric(example, good, None, "x").feedback
    assert metric.log[0].query == "Where is my red lamp?"
    assert metric.judge(good.answer, query="Where is my red lamp?") == metric.log[0]
    program.save(tmp_path / "p.json")
    loaded = Qwen3EmbeddingValueLearner("lexical", 512, cache_dir=None)
    loaded.load(tmp_path / "p.json")
    assert ValueMetric(loaded)(example, good, None, "x").toDict() == metric(example, good, None, "x").toDict()
    with pytest.warns(Warning, match="there is no field 'question'"):
        assert metric(dspy.Example(other=1), good) == 0.0


def test_a_query_too_many_or_too_few_is_refused(trained):
    plain = make(rows=[RankingExample(row.text, row.score) for row in ROWS])
    plain.train()
    for call, message in [
        (lambda: trained.predict("x"), "values a text for a query, as its texts were rated; say which with query="),
        (lambda: trained(text="x"), "values a text for a query"),
        (lambda: trained.predict_many(["x"]), "values a text for a query"),
        (lambda: trained.predict_many(["x"], ["a", "b"]), "there are 2 queries for 1 texts"),
        (lambda: trained.predict("x", query=3), "query must be a string, but got int"),
        (lambda: trained.update("x", 1.0), "rated text 120 has no query, but the others have one"),
        (lambda: plain.predict("x", query="q"), "values texts by themselves, as they were rated; leave out query="),
        (lambda: plain.update("x", 1.0, query="q"), "rated text 120 has a query, but the others have none"),
        (lambda: ValueMetric(plain, query="question"), "values texts by themselves"),
        (lambda: ValueMetric(trained), "say which field holds it with query="),
        (
            lambda: make(rows=[*ROWS, RankingExample("x", 1.0)]).train(),
            "rated text 120 has no query, but the others have one",
        ),
        (
            lambda: make(features=["cosine"], rows=[RankingExample("x", 1.0), RankingExample("y", 2.0)]).train(),
            "features has 'cosine', of a query and a text",
        ),
        (lambda: FitValue(query=3), "query must be the name of a field or a format string"),
        (
            lambda: FitValue(query="q").compile(make(), trainset=[{"text": "x", "score": 1.0}] * 3),
            r"trainset\[0\] has no query",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            call()


def test_a_state_of_pairs_that_does_not_hang_together_is_refused(trained):
    state = trained.ridge.content()
    head = make().ridge
    for change, message in (
        ({"fit": {**state["fit"], "paired": False}}, "the saved fit has no use for"),
        (
            {"fit": {**state["fit"], "queried": {"texts": ["a"], "vectors": state["fit"]["coef"]}}},
            r"must be float32 of shape \(1, 512\)",
        ),
        ({"examples": {**state["examples"], "queries": [None] * len(ROWS)}}, "the saved fit needs"),
    ):
        with pytest.raises(StateError, match=message):
            head.load_state({**state, **change})


def test_overlap_tells_what_share_of_either_is_found_in_the_other():
    blocks = Features(["overlap"], beside_lexical=True)
    texts = ["red lamp", "the red lamp is broken beyond repair", "nothing of it", ""]
    vectors = np.zeros((4, 3), dtype=np.float32)
    X = blocks(texts, vectors, ("overlap",), Queries(["red lamp"] * 4, vectors)).X
    cosine, of_query, of_text = X.T
    assert cosine[0] == pytest.approx(1.0, abs=1e-5)
    assert of_query[:2] == pytest.approx([1.0, 1.0], abs=1e-5)
    assert of_text[0] == pytest.approx(1.0, abs=1e-5)
    assert 0.1 < of_text[1] < 0.6
    assert cosine[2] < 0.2
    assert X[3].tolist() == [0.0, 0.0, 0.0]
    assert not blocks(["x"], vectors[:1], ("overlap",), Queries([""], vectors[:1])).X[:, 3:].any()
