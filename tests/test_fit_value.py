"""The optimizer that fits the value functions inside a program."""

import enum
import json
import threading
from decimal import Decimal
from typing import Literal

import dspy
import numpy as np
import pandas as pd
import pydantic
import pytest

from dspy_qvl import FitValue, InputError, QVLWarning, Qwen3EmbeddingValueLearner, Reranker, ValueMetric
from dspy_qvl.embedding.models.lexical import LexicalModel
from tests.conftest import CountingModel, rated

ROWS = [
    dspy.Example(question=f"Question {n % 12}?", reply=text, rating=score + 3.0 * (n * 7 % 5 - 2), reason=f"reason {n}")
    for n, (text, score) in enumerate(rated(60))
]
ALPHAS = (0.001, 0.03, 1.0, 30.0, 1000.0)


class Hue(enum.Enum):
    RED = "red"


class Desk(dspy.Module):
    def __init__(self, value):
        super().__init__()
        self.answer = dspy.Predict("question -> reply")
        self.values = [value]

    def forward(self, question):
        return self.answer(question=question)


def lexical(tmp_path, **settings):
    return Qwen3EmbeddingValueLearner("lexical", 512, cache_dir=tmp_path / "cache", **settings)


def fit(**settings):
    return FitValue(**{"text": "reply", "score": "rating", "alphas": ALPHAS, **settings})


def test_a_program_is_fitted_in_a_copy_and_the_student_left_alone(tmp_path):
    student = Desk(lexical(tmp_path))
    optimizer = fit(group="question")
    program = optimizer.compile(student, trainset=ROWS)
    assert student.values[0].ridge.fitted is None
    assert student.values[0].training_texts == []
    assert program.values[0].training_texts == [row.reply for row in ROWS]
    assert program.values[0].training_metadata[3] == {"reason": "reason 3"}
    by_hand = lexical(tmp_path)
    by_hand.add_training_examples([(row.reply, row.rating) for row in ROWS])
    chosen = by_hand.optimize_hyperparameters(ALPHAS, 5, groups=[row.question for row in ROWS])
    assert program.values[0].predict("love it") == by_hand.predict("love it")
    report = optimizer.report["self.values[0]"]
    assert report["alpha"] == chosen["best_alpha"]
    assert report["cv_mse"] == chosen["best_mse"]
    assert report["cv_r2"] == pytest.approx(1 - chosen["best_mse"] / np.var([row.rating for row in ROWS]))
    assert set(report["alphas"]) == set(ALPHAS)
    assert report["n_texts"] == 60
    assert "val" not in report


def test_a_learner_by_itself_is_a_program(tmp_path):
    program = fit().compile(lexical(tmp_path), trainset=ROWS)
    assert isinstance(program, Qwen3EmbeddingValueLearner)
    assert program.ridge.alpha_tuned


def test_a_valset_is_only_reported_on(tmp_path):
    optimizer = fit()
    program = optimizer.compile(lexical(tmp_path), trainset=ROWS[:40], valset=ROWS[40:])
    alone = fit().compile(lexical(tmp_path), trainset=ROWS[:40])
    assert program.ridge.coef_.tobytes() == alone.ridge.coef_.tobytes()
    val = optimizer.report["self"]["val"]
    values = program.predict_many([row.reply for row in ROWS[40:]])
    truth = np.array([row.rating for row in ROWS[40:]])
    assert val["mse"] == pytest.approx(((values - truth) ** 2).mean())
    assert val["n_texts"] == 20
    assert val["spearman"] > 0.5


def test_compiling_twice_gives_the_same_bits_and_counts_nothing_twice(tmp_path):
    once = fit().compile(lexical(tmp_path), trainset=ROWS)
    twice = fit().compile(once, trainset=ROWS)
    assert twice.ridge.coef_.tobytes() == once.ridge.coef_.tobytes()
    assert len(twice.training_texts) == 60


def test_learning_and_scoring_render_a_text_alike(tmp_path):
    program = fit(text="Q: {question}\nA: {reply}").compile(Desk(lexical(tmp_path)), trainset=ROWS)
    learner = program.values[0]
    assert learner.training_texts[0] == f"Q: {ROWS[0].question}\nA: {ROWS[0].reply}"
    metric = ValueMetric(learner)
    pred = dspy.Prediction(reply=ROWS[0].reply, reasoning="because")
    assert metric.value(ROWS[0], pred) == learner.predict(learner.training_texts[0])
    program.save(tmp_path / "p.json")
    loaded = Desk(lexical(tmp_path))
    loaded.load(tmp_path / "p.json")
    assert ValueMetric(loaded.values[0]).value(ROWS[0], pred) == metric.value(ROWS[0], pred)


def test_text_score_and_group_may_be_callables(tmp_path):
    by_callables = FitValue(
        text=lambda example, pred: example.reply,
        score=lambda example: example.rating / 2,
        group=lambda example: example.question,
        alphas=ALPHAS,
    ).compile(lexical(tmp_path), trainset=ROWS)
    by_name = fit(group="question").compile(lexical(tmp_path), trainset=ROWS)
    assert by_callables.predict("love it") == pytest.approx(by_name.predict("love it") / 2)


def test_a_typed_output_is_worth_what_the_dict_it_was_rated_as_is(tmp_path):
    class Reply(pydantic.BaseModel):
        body: str
        stars: float
        tone: Literal["warm", "cold"]

    replies = [Reply(body=row.reply, stars=n % 5, tone=["warm", "cold"][n % 2]) for n, row in enumerate(ROWS)]
    dicts = [{"tone": one.tone, "stars": int(one.stars), "body": one.body} for one in replies]
    queries = [Hue.RED, "red"]
    rows = [{"reply": reply, "rating": row.rating, "hue": queries[0]} for reply, row in zip(dicts, ROWS, strict=True)]
    program = fit(query="hue", alphas=[1]).compile(lexical(tmp_path), trainset=rows)
    metric = ValueMetric(program)
    for reply, as_dict in zip(replies[:3], dicts, strict=False):
        values = {
            metric.value({"hue": query}, dspy.Prediction(reply=one)) for query in queries for one in (reply, as_dict)
        }
        assert values == {program.predict(program.training_texts[replies.index(reply)], "red")}
    assert {(type(one.query), one.query) for one in program.ridge.examples} == {(str, "red")}


def test_a_reason_is_kept_beside_metadata_and_what_is_no_metadata_left_alone(tmp_path):
    kinds = [None, {"id": 1}, "a field of the domain", {"reason": "already there"}]
    rows = [
        dspy.Example(text=row.reply, score=row.rating, metadata=kinds[n % 4], reason="why")
        for n, row in enumerate(ROWS)
    ]
    program = FitValue(alphas=ALPHAS).compile(lexical(tmp_path), trainset=rows)
    assert program.training_metadata[:4] == [
        {"reason": "why"},
        {"id": 1, "reason": "why"},
        {"reason": "why"},
        {"reason": "already there"},
    ]


def test_a_valset_without_ratings_is_not_reported_on(tmp_path):
    optimizer = fit()
    optimizer.compile(lexical(tmp_path), trainset=ROWS, valset=[])
    assert "val" not in optimizer.report["self"]
    with pytest.warns(QVLWarning, match="no example of the valset has a 'rating'"):
        optimizer.compile(lexical(tmp_path), trainset=ROWS, valset=[dspy.Example(question="?")])
    assert "val" not in optimizer.report["self"]


def test_dicts_and_metadata_are_taken_too(tmp_path):
    rows = [{"text": row.reply, "score": row.rating, "metadata": {"by": "me"}} for row in ROWS]
    program = FitValue(alphas=ALPHAS).compile(lexical(tmp_path), trainset=rows)
    assert program.training_metadata[0] == {"by": "me"}


def test_a_program_with_nothing_to_fit_is_refused():
    with pytest.raises(InputError, match="Predict has no Qwen3EmbeddingValueLearner in it"):
        fit().compile(dspy.Predict("question -> reply"), trainset=ROWS)
    with pytest.raises(InputError, match=r"student must be a dspy.Module, but got str"):
        fit().compile("student", trainset=ROWS)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (dspy.Example(rating=3.0), r"trainset\[60\] has no text to learn from: there is no field 'reply'"),
        (dspy.Example(reply="x"), r"trainset\[60\] has no field 'rating' for its score; it has \['reply'\]"),
        (dspy.Example(reply="x", rating="high"), r"the score of trainset\[60\] must be a number"),
        (dspy.Example(reply="x\ud83d", rating=1), r"the text of trainset\[60\] holds a lone surrogate"),
        (dspy.Example(reply="x", rating=1, metadata={"by": {1, 2}}), r"the metadata of trainset\[60\] must hold only"),
        (("x", 3.0), r"trainset\[60\] must be a dspy.Example or a dict, but got tuple"),
        (None, r"trainset\[60\] must be a dspy.Example or a dict, but got NoneType"),
    ],
)
def test_an_example_that_cannot_be_used_is_named_by_its_position(tmp_path, row, message):
    student = lexical(tmp_path)
    with pytest.raises(InputError, match=message):
        fit().compile(student, trainset=[*ROWS, row])
    with pytest.raises(InputError, match=message.replace("trainset", "valset").replace("60", "0")):
        fit().compile(student, trainset=ROWS, valset=[row, ROWS[0]])
    with pytest.raises(InputError, match="has no field 'ticket' for its group"):
        fit(group="ticket").compile(student, trainset=ROWS)


@pytest.mark.parametrize(
    ("trainset", "message"),
    [
        ([], "trainset must be a list of examples, but got an empty one"),
        ("rows", "trainset must be a list of examples, but got str"),
        (7, "trainset must be a list of examples, but got int"),
        (ROWS[:1], "needs at least 2 rated texts"),
    ],
)
def test_a_trainset_that_teaches_nothing_is_refused(tmp_path, trainset, message):
    with pytest.raises(InputError, match=message):
        fit().compile(lexical(tmp_path), trainset=trainset)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text": None}, "text must say which text"),
        ({"text": " "}, "neither the name of a field"),
        ({"score": " "}, "score must be the name of a field or a callable"),
        ({"group": ""}, "group must be the name of a field or a callable"),
        ({"query": "q", "passages": " "}, "passages must be the name of a field"),
        ({"query": "q", "passages": "p", "relevance": ""}, "relevance must be the name of a field"),
        ({"score": None}, "score must be the name of a field or a callable"),
        ({"group": 3}, "group must be the name of a field or a callable"),
        ({"alphas": []}, "alphas is empty"),
        ({"cv": 1}, "cv must be a whole number of at least 2"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        fit(**settings)


def test_a_failing_model_leaves_student_and_report_as_they_were(tmp_path):
    class Dead(CountingModel):
        def __call__(self, texts):
            raise ConnectionError("no route")

    optimizer = fit()
    optimizer.compile(lexical(tmp_path), trainset=ROWS)
    report = optimizer.report
    student = Qwen3EmbeddingValueLearner(embedder=Dead(), cache_dir=tmp_path)
    with pytest.raises(Exception, match="no route"):
        optimizer.compile(student, trainset=ROWS)
    assert optimizer.report is report
    assert student.ridge.fitted is None


def test_compile_fires_dspys_callbacks(tmp_path):
    from dspy.utils.callback import BaseCallback

    heard = []

    class Listener(BaseCallback):
        def on_compile_start(self, call_id, instance, inputs):
            heard.append(type(instance).__name__)

    with dspy.context(callbacks=[Listener()]):
        fit().compile(lexical(tmp_path), trainset=ROWS)
    assert heard == ["FitValue"]


# Rows as tables and databases give them


def test_columns_of_any_name_and_decimals_are_taken(tmp_path):
    rows = [
        {"Customer ID": row.question, "Review Text": row.reply, "Stars (1-5)": Decimal(str(row.rating))} for row in ROWS
    ]
    program = fit(text="Review Text", score="Stars (1-5)", group="Customer ID").compile(
        lexical(tmp_path), trainset=rows
    )
    by_attribute = fit(group="question").compile(lexical(tmp_path), trainset=ROWS)
    assert program.ridge.coef_.tobytes() == by_attribute.ridge.coef_.tobytes()
    paired = fit(text="{Review Text}", score="Stars (1-5)", query="Customer ID", alphas=[1])
    program = paired.compile(lexical(tmp_path), trainset=rows)
    program.save(tmp_path / "p.json")
    loaded = lexical(tmp_path)
    loaded.load(tmp_path / "p.json")
    value = program.predict(ROWS[0].reply, ROWS[0].question)
    assert ValueMetric(loaded).value(rows[0], {"Review Text": ROWS[0].reply}) == value
    assert ValueMetric(loaded, text="Review Text", query="Customer ID").value(rows[0], rows[0]) == value


def test_passages_in_columns_of_any_name_are_taken(tmp_path):
    rows = [
        {"Search Term": row.query, "Found Passages": row.passages, "How relevant?": [*map(Decimal, row.relevance)]}
        for row in judged()
    ]
    optimizer = FitValue(query="Search Term", passages="Found Passages", relevance="How relevant?")
    reranker = optimizer.compile(Reranker(lexical(tmp_path)), trainset=rows)
    plain = FitValue(query="query", passages="passages").compile(Reranker(lexical(tmp_path)), trainset=judged())
    assert reranker.ridge.dump_state() == plain.ridge.dump_state()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"rating": None},
            r"trainset\[60\]'s 'rating' is None; fill it in, or leave the example out",
        ),
        ({"rating": float("nan")}, r"trainset\[60\]'s 'rating' is nan; fill it in"),
        (
            {"rating": "4.5"},
            r"the score of trainset\[60\] must be a number, but got str: '4.5'; write float\('4.5'\), wh",
        ),
        ({"rating": True}, r"must be a number, but got bool: True; write float\(True\), which is 1"),
        ({"rating": "good"}, r"must be a number, but got str: 'good'\.$"),
        ({"reply": None}, r"trainset\[60\] has no text to learn from: the field 'reply' is None"),
        ({"reply": float("nan")}, r"trainset\[60\] has no text to learn from: the field 'reply' is nan"),
        ({"ticket": None}, r"trainset\[60\]'s 'ticket' is None; fill it in"),
        ({"ticket": pd.NA}, r"trainset\[60\]'s 'ticket' is <NA>; fill it in"),
        ({"question": None}, r"trainset\[60\] has no query: the field 'question' is None"),
    ],
)
def test_a_value_that_is_missing_or_no_number_is_named_with_what_to_do(tmp_path, row, message):
    rows = [dspy.Example(**one, ticket=n) for n, one in enumerate(ROWS)]
    rows.append(dspy.Example(**{**rows[0], **row}))
    with pytest.raises(InputError, match=message):
        fit(group="ticket", query="question").compile(lexical(tmp_path), trainset=rows)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"passages": None}, r"trainset\[6\]'s 'passages' is None; fill it in"),
        ({"relevance": None}, r"trainset\[6\]'s 'relevance' is None; fill it in"),
        ({"query": None}, r"trainset\[6\] has no query: the field 'query' is None"),
        ({"relevance": ["1", 2]}, r"the relevance of trainset\[6\] must be a number, but got str: '1'; write float"),
        ({"relevance": [None, 2]}, r"the relevance of trainset\[6\] must be a number, but got NoneType: None\.$"),
    ],
)
def test_a_judgement_that_is_missing_is_named_with_what_to_do(tmp_path, row, message):
    rows = [*judged(), dspy.Example(**{"query": "q", "passages": ["a", "b"], "relevance": [1, 2], **row})]
    with pytest.raises(InputError, match=message):
        FitValue(query="query", passages="passages").compile(Reranker(lexical(tmp_path)), trainset=rows)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"score": lambda row: row.stars},
            r"the callable that gives the score failed for trainset\[0\]: AttributeError",
        ),
        ({"score": lambda row: None}, r"the score of trainset\[0\] is None; fill it in"),
        ({"group": lambda row: None}, r"the group of trainset\[0\] is None; fill it in"),
    ],
)
def test_a_callable_that_fails_or_gives_nothing_is_named_with_the_row(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        fit(**settings).compile(lexical(tmp_path), trainset=ROWS)


# Which of several


class TwoValues(dspy.Module):
    def __init__(self, tmp_path):
        super().__init__()
        self.answer = dspy.Predict("question -> reply")
        self.help, self.tone = lexical(tmp_path), lexical(tmp_path)


def bits(learner):
    """Everything that was learned, to the last bit."""
    return json.dumps(learner.ridge.dump_state())


RATED_TWICE = [
    dspy.Example(question=row.question, reply=row.reply, helped=row.rating, warmth=len(row.reply) % 7) for row in ROWS
]


def test_a_learner_is_fitted_by_its_name_and_the_others_stay_to_the_last_bit(tmp_path):
    helped = fit(score="helped", learner="help").compile(TwoValues(tmp_path), trainset=RATED_TWICE)
    assert helped.tone.ridge.fitted is None
    optimizer = fit(score="warmth", text="{question} {reply}", learner="tone")
    both = optimizer.compile(helped, trainset=RATED_TWICE)
    assert list(optimizer.report) == ["self.tone"]
    assert bits(both.help) == bits(helped.help)
    alone = fit(score="warmth", text="{question} {reply}").compile(lexical(tmp_path), trainset=RATED_TWICE)
    assert bits(both.tone) == bits(alone)


def test_each_learner_has_its_own_ratings_in_one_compile_as_in_several(tmp_path):
    optimizer = fit(learner={"tone": {"score": "warmth", "text": "{question} {reply}"}, "help": {"score": "helped"}})
    at_once = optimizer.compile(TwoValues(tmp_path), trainset=RATED_TWICE, valset=RATED_TWICE[:9])
    program = fit(score="helped", learner="help").compile(TwoValues(tmp_path), trainset=RATED_TWICE)
    program = fit(score="warmth", text="{question} {reply}", learner="tone").compile(program, trainset=RATED_TWICE)
    assert [bits(one) for one in (at_once.help, at_once.tone)] == [bits(one) for one in (program.help, program.tone)]
    assert {name: report["val"]["n_texts"] for name, report in optimizer.report.items()} == {
        "self.tone": 9,
        "self.help": 9,
    }
    assert ValueMetric(at_once.tone).rendering.text == "{question} {reply}"


@pytest.mark.parametrize(
    ("learner", "meant"),
    [
        ("*", {"help", "tone"}),
        (["help", "self.tone"], {"help", "tone"}),
        ({"tone"}, {"tone"}),
        (lambda name, module: name == "self.help" and isinstance(module, Qwen3EmbeddingValueLearner), {"help"}),
    ],
)
def test_several_are_meant_by_a_list_a_star_or_a_callable(tmp_path, learner, meant):
    program = fit(score="helped", learner=learner).compile(TwoValues(tmp_path), trainset=RATED_TWICE)
    assert {name for name in ("help", "tone") if getattr(program, name).ridge.fitted is not None} == meant


@pytest.mark.parametrize(
    ("learner", "found"),
    [
        ("values[1]", "self.values[1]"),
        ("self.values[1]", "self.values[1]"),
        ("named['tone']", "self.named[tone]"),
        ("named[tone]", "self.named[tone]"),
        ("inner.tone", "self.inner.tone"),
        ("again", "self.inner.tone"),
        ("inner.also", "self.inner.tone"),
    ],
)
def test_a_learner_has_the_names_that_dspy_gives_it_and_counts_once(tmp_path, learner, found):
    class Inner(dspy.Module):
        def __init__(self):
            super().__init__()
            self.tone = self.also = lexical(tmp_path)

    class Outer(dspy.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()
            self.deeper = [dspy.Module()]
            self.deeper[0].again = self.inner.tone
            self.values = [lexical(tmp_path), lexical(tmp_path)]
            self.named = {"tone": lexical(tmp_path), 3: "no module"}

    learner = "deeper[0].again" if learner == "again" else learner
    optimizer = fit(score="helped", learner=[learner, found])
    program = optimizer.compile(Outer(), trainset=RATED_TWICE)
    assert list(optimizer.report) == [found]
    fitted = [name for name, one in program.named_sub_modules(Qwen3EmbeddingValueLearner) if one.ridge.fitted]
    assert fitted == [found]


def test_a_program_that_is_a_learner_is_called_self(tmp_path):
    by_name = fit(learner="self").compile(lexical(tmp_path), trainset=ROWS)
    assert bits(by_name) == bits(fit().compile(lexical(tmp_path), trainset=ROWS))


def judged():
    rows = rated(60, seed=5)
    return [
        dspy.Example(
            query=f"what is {word}", passages=[text for text, _ in rows[n::6]], relevance=[y for _, y in rows[n::6]]
        )
        for n, word in enumerate(["love", "broke", "cup", "lamp", "bag", "chair"])
    ]


class Rag(dspy.Module):
    """A retriever that cannot be copied, two rerankers, and a learner that a metric and one of them share."""

    def __init__(self, tmp_path):
        super().__init__()
        embedder = dspy.Embedder(LexicalModel(16), caching=False)
        self.search = dspy.retrievers.Embeddings(["a cup", "a lamp"], embedder, 1)
        self.rerank = Reranker(lexical(tmp_path))
        self.value = self.rerank.learner
        self.other = Reranker(lexical(tmp_path), features=("cosine", "overlap"))


def test_a_reranker_is_fitted_by_its_name_and_the_rest_of_the_program_stays(tmp_path):
    value = fit(learner="value").compile(Rag(tmp_path), trainset=ROWS[:30])
    optimizer = FitValue(query="query", passages="passages", learner="other")
    program = optimizer.compile(value, trainset=judged())
    assert list(optimizer.report) == ["self.other"]
    assert program.rerank.ridge.fitted is None
    assert program.other.ridge.fitted is not None
    assert bits(program.value) == bits(value.value)
    both = FitValue(query="query", passages="passages", learner=["rerank"]).compile(program, trainset=judged())
    assert both.other.ridge.dump_state() == program.other.ridge.dump_state()
    assert both.rerank.ridge.fitted is not None


def test_a_learner_that_is_only_lent_to_a_reranker_is_not_meant_where_there_is_another(tmp_path):
    optimizer = fit()
    program = optimizer.compile(Rag(tmp_path), trainset=ROWS)
    assert list(optimizer.report) == ["self.value"]
    assert program.other.learner.ridge.fitted is None
    optimizer.compile(Reranker(lexical(tmp_path)), trainset=ROWS)
    assert list(optimizer.report) == ["self.learner"]
    optimizer = fit(learner="other.learner")
    assert optimizer.compile(Rag(tmp_path), trainset=ROWS).other.learner.ridge.fitted is not None


def test_a_learner_that_metric_and_reranker_share_is_shared_in_the_copy_too(tmp_path, recwarn):
    student = Rag(tmp_path)
    program = fit(learner="rerank.learner").compile(student, trainset=ROWS)
    assert program.value is program.rerank.learner
    assert program.value.ridge.fitted is not None
    assert student.value.ridge.fitted is None
    assert program.search("a lamp").passages == ["a lamp"]
    assert not [warning for warning in recwarn if "stop_event" in str(warning.message)]


def test_what_cannot_be_copied_is_shared_with_the_copy_and_nothing_else_is(tmp_path):
    student = Rag(tmp_path)
    student.inner = dspy.Module()
    student.inner.value, student.inner.lock = student.value, threading.Lock()
    student.several = [student.value, threading.Lock()]
    student.named = {"value": student.value, "lock": student.inner.lock}
    program = fit().compile(student, trainset=ROWS)
    assert program.inner.lock is program.named["lock"] is student.inner.lock
    places = [program.value, program.rerank.learner, program.inner.value, program.several[0], program.named["value"]]
    assert {id(one) for one in places} == {id(program.value)} != {id(student.value)}
    assert student.value.ridge.fitted is None


def test_values_are_fitted_before_the_reranker_that_has_them_as_a_feature(tmp_path):
    optimizer = fit(
        learner={
            "rerank": {"query": "query", "passages": "passages"},
            "value": {"text": "query", "score": "n", "alphas": [1]},
        }
    )
    rows = [dspy.Example(**row, n=len(row.query) + n) for n, row in enumerate(judged())]
    program = optimizer.compile(Rag(tmp_path), trainset=rows)
    assert program.rerank.ridge.fitted.value_of == program.value.ridge.fitted.digest
    assert list(optimizer.report) == ["self.value", "self.rerank"]


def test_better_together_fits_two_values_in_two_steps(tmp_path):
    student = TwoValues(tmp_path)
    student.set_lm(dspy.LM("stand-in/never-asked"))
    optimizer = dspy.BetterTogether(
        metric=lambda example, pred, trace=None: 1.0,
        tone=fit(score="warmth", alphas=[1], learner="tone"),
        help=fit(score="helped", alphas=[1], learner="help"),
    )
    better = optimizer.compile(student, trainset=RATED_TWICE, strategy="tone -> help", valset_ratio=0.0, seed=0)
    assert not better.flag_compilation_error_occurred
    by_hand = fit(alphas=[1], learner={"tone": {"score": "warmth"}, "help": {"score": "helped"}})
    by_hand = by_hand.compile(TwoValues(tmp_path), trainset=RATED_TWICE)
    for name in ("help", "tone"):
        assert getattr(better, name).training_scores  # BetterTogether shuffles
        assert sorted(getattr(better, name).training_scores) == sorted(getattr(by_hand, name).training_scores)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {},
            r"TwoValues has several of Qwen3EmbeddingValueLearner: 'help', 'tone'. Say which is meant with learner='h",
        ),
        (
            {"learner": "ton"},
            r"learner='ton' names no module of TwoValues; of Qwen3EmbeddingValueLearner it has 'help', 't",
        ),
        ({"learner": ["tone", "answer"]}, "learner='answer' names a Predict of TwoValues; of Qwen3Emb"),
        ({"learner": "tone.ridge.fitted"}, "names no module of TwoValues"),
        ({"learner": lambda name, module: False}, "learner is a callable that chose none of 'help', 'tone'"),
        ({"learner": {"tone": {}, "self.tone": {}}}, "two names of learner= mean one and the same module, 'self.tone'"),
        (
            {"query": "question", "passages": "p"},
            "TwoValues has no Reranker in it, so there is nothing to fit with pass",
        ),
    ],
)
def test_a_program_of_several_is_refused_where_it_is_not_said_which(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        fit(**settings).compile(TwoValues(tmp_path), trainset=RATED_TWICE)


def test_rerankers_and_learners_are_not_taken_for_each_other(tmp_path):
    with pytest.raises(InputError, match="Rag has several of Reranker: 'rerank', 'other'"):
        FitValue(query="query", passages="passages").compile(Rag(tmp_path), trainset=judged())
    with pytest.raises(InputError, match=r"'value' names a Qwen3EmbeddingValueLearner of Rag; .* leave out passages="):
        FitValue(query="query", passages="passages", learner="value").compile(Rag(tmp_path), trainset=judged())
    with pytest.raises(InputError, match=r"'rerank' names a Reranker of Rag; .* say which field holds them with pass"):
        fit(learner="rerank").compile(Rag(tmp_path), trainset=ROWS)


@pytest.mark.parametrize(
    ("learner", "message"),
    [
        (3, r"learner must be the name of a module in the program, a list of names, '\*' for all, or a callable"),
        ([], "learner must be the name of a module"),
        ("", "learner must be the name of a module"),
        ({}, "learner must be the name of a module"),
        ([3], "learner must be the name of a module"),
        ({"tone": "warmth"}, r"learner\['tone'\] must be a dict of its own arguments, such as {'score': 'rating'}"),
        (
            {"tone": {"scores": "warmth"}},
            r"learner\['tone'\] has 'scores'; its arguments may be text, score, group, al",
        ),
        ({"tone": {"cv": 1}}, "cv must be a whole number of at least 2"),
        ({"tone": {"passages": "p"}}, "passages are ranked for a query; say which field it is with query="),
    ],
)
def test_a_learner_that_is_no_name_is_refused(learner, message):
    with pytest.raises(InputError, match=message):
        fit(learner=learner)
