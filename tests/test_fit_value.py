"""The optimizer that fits the value functions inside a program."""

import dspy
import numpy as np
import pytest

from dspy_qvl import FitValue, InputError, QVLWarning, Qwen3EmbeddingValueLearner, ValueMetric
from tests.conftest import CountingModel, rated

ROWS = [
    dspy.Example(question=f"Question {n % 12}?", reply=text, rating=score + 3.0 * (n * 7 % 5 - 2), reason=f"reason {n}")
    for n, (text, score) in enumerate(rated(60))
]
ALPHAS = (0.001, 0.03, 1.0, 30.0, 1000.0)


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
        ([], "trainset must be a list of rated examples, but got an empty one"),
        ("rows", "trainset must be a list of rated examples, but got str"),
        (7, "trainset must be a list of rated examples, but got int"),
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
        ({"text": "two words"}, "neither the name of a field"),
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
