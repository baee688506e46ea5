"""Every optimizer of DSPy with a value as its metric, end to end.

The language model is scripted (`examples/scripted_lm.py`): what it answers depends on instructions, demos and
temperature, so a better prompt earns a better value. Ratings and optimizers see one half of the questions, the values
compared are those of the other half.
"""

import csv
import sys
from pathlib import Path

import dspy
import numpy as np
import pytest

from dspy_qvl import FitValue, QVLWarning, Qwen3EmbeddingValueLearner, ValueMetric
from dspy_qvl.embedding.models.lexical import LexicalModel

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
sys.path.append(str(EXAMPLES))
from scripted_lm import ScriptedLM  # noqa: E402 - an example, not a package

with (EXAMPLES / "replies.csv").open(encoding="utf-8", newline="") as file:
    RATED = [
        dspy.Example(**{**row, "score": float(row["score"])}).with_inputs("question") for row in csv.DictReader(file)
    ]
QUESTIONS = list(dict.fromkeys(row.question for row in RATED))
SEEN, UNSEEN = QUESTIONS[::2], QUESTIONS[1::2]
TRAINSET, HELD_OUT = ([dspy.Example(question=q).with_inputs("question") for q in half] for half in (SEEN, UNSEEN))
# The best rated reply to each question, for optimizers that want labelled examples.
LABELLED = [max((row for row in RATED if row.question == q), key=lambda row: row.score) for q in SEEN]


class Desk(dspy.Module):
    def __init__(self, value):
        super().__init__()
        self.answer = dspy.Predict("question -> reply")
        self.value = value

    def forward(self, question):
        reply = self.answer(question=question).reply
        return dspy.Prediction(reply=reply, worth=self.value(text=reply).score)


@pytest.fixture(scope="module")
def value():
    learner = Qwen3EmbeddingValueLearner("lexical", cache_dir=None)
    return FitValue(text="reply", group="question").compile(
        learner, trainset=[row for row in RATED if row.question in SEEN]
    )


@pytest.fixture(autouse=True)
def lm(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with dspy.context(lm=ScriptedLM()):
        yield dspy.settings.lm


@pytest.fixture
def desk(value):
    return Desk(value.deepcopy())


@pytest.fixture
def metric(value):
    return ValueMetric(value, text="reply")


def mean_value(program, metric):
    """The mean value of answers to the questions held out, on the raters' own scale."""
    return float(np.mean([metric.value(None, program(question=example.question)) for example in HELD_OUT]))


def still_valuing(program, value):
    """Whether the value function came through the optimization as it went in."""
    return program.value.predict_many(SEEN).tobytes() == value.predict_many(SEEN).tobytes()


def test_evaluate(desk, metric):
    result = dspy.Evaluate(devset=HELD_OUT, metric=metric, num_threads=4, display_progress=False)(desk)
    by_hand = [metric(example, desk(question=example.question)) for example in HELD_OUT]
    assert [score for _, _, score in result.results] == by_hand
    assert result.score == pytest.approx(100 * np.mean(by_hand), abs=0.01)


def test_bootstrap_few_shot_takes_only_what_passes(desk, metric, value):
    optimizer = dspy.BootstrapFewShot(metric=metric, max_bootstrapped_demos=4, max_labeled_demos=0, max_rounds=3)
    better = optimizer.compile(desk, trainset=TRAINSET)
    assert len(better.answer.demos) == 4
    assert all(metric.as_filter()(None, demo) for demo in better.answer.demos)
    assert mean_value(better, metric) > mean_value(desk, metric) + 0.5
    assert still_valuing(better, value)


def test_bootstrap_few_shot_with_random_search(desk, metric, value):
    optimizer = dspy.BootstrapFewShotWithRandomSearch(
        metric=metric,
        max_bootstrapped_demos=3,
        max_labeled_demos=0,
        max_rounds=3,
        num_candidate_programs=4,
        num_threads=4,
    )
    better = optimizer.compile(desk, trainset=TRAINSET, valset=TRAINSET)
    assert mean_value(better, metric) > mean_value(desk, metric) + 0.5
    assert still_valuing(better, value)


def test_miprov2(desk, metric, value):
    optimizer = dspy.MIPROv2(metric=metric, auto="light", num_threads=4)
    better = optimizer.compile(desk, trainset=TRAINSET, valset=TRAINSET)
    assert mean_value(better, metric) > mean_value(desk, metric) + 1.0
    assert still_valuing(better, value)


def test_copro(desk, metric, value):
    optimizer = dspy.COPRO(metric=metric, breadth=4, depth=2, init_temperature=1.0)
    better = optimizer.compile(desk, trainset=TRAINSET, eval_kwargs={"num_threads": 4, "display_progress": False})
    assert mean_value(better, metric) > mean_value(desk, metric) + 0.5
    assert still_valuing(better, value)


def test_simba(desk, metric, value):
    optimizer = dspy.SIMBA(metric=metric, bsize=10, max_steps=4, num_candidates=4, num_threads=4)
    better = optimizer.compile(desk, trainset=TRAINSET)
    assert mean_value(better, metric) > mean_value(desk, metric) + 1.0
    assert still_valuing(better, value)


def test_gepa_reads_our_feedback(desk, metric, value):
    reflection_lm = ScriptedLM(temperature=1.0)
    optimizer = dspy.GEPA(metric=metric, max_metric_calls=200, reflection_lm=reflection_lm, num_threads=4)
    better = optimizer.compile(desk, trainset=TRAINSET, valset=TRAINSET)
    assert mean_value(better, metric) > mean_value(desk, metric) + 1.0
    assert still_valuing(better, value)
    prompts = "\n".join(str(call["messages"]) for call in reflection_lm.history)
    assert "of those the most like it" in prompts
    assert "The rater" in prompts
    assert any(row.reason in prompts for row in RATED)
    assert not any(row.reply in prompts for row in RATED if row.question in UNSEEN and len(row.reply) > 20)


def test_gepa_over_two_objectives(desk, value):
    metric = ValueMetric(value, text="reply", objectives={"brief": lambda gold, pred: 1 / (1 + len(pred.reply) / 100)})
    optimizer = dspy.GEPA(
        metric=metric,
        max_metric_calls=120,
        reflection_lm=ScriptedLM(temperature=1.0),
        gepa_kwargs={"frontier_type": "objective"},
        track_stats=True,
    )
    better = optimizer.compile(desk, trainset=TRAINSET, valset=TRAINSET)
    assert set(better.detailed_results.objective_pareto_front or {}) == {"value", "brief"}


def test_better_together_with_fit_value_as_a_step(metric):
    student = Desk(Qwen3EmbeddingValueLearner("lexical", cache_dir=None))
    student.value.add_training_examples([("good", 9.0), ("bad", 1.0)])
    student.value.train(validation_split=0, cv_folds=2)
    student.set_lm(dspy.settings.lm)
    before = mean_value(student, metric)
    rated = [row for row in RATED if row.question in SEEN]
    optimizer = dspy.BetterTogether(
        metric=metric,
        fit=FitValue(text="reply", group="question"),
        prompt=dspy.COPRO(metric=metric, breadth=4, depth=2),
    )
    with pytest.warns(QVLWarning, match="no example of the valset has a 'score'"):
        better = optimizer.compile(
            student,
            trainset=TRAINSET,
            valset=TRAINSET,
            strategy="fit -> prompt",
            optimizer_compile_args={
                "fit": {"trainset": rated},
                "prompt": {"eval_kwargs": {"num_threads": 4, "display_progress": False}},
            },
            seed=0,
        )
    assert not better.flag_compilation_error_occurred
    assert len(better.value.training_texts) == len(rated)
    assert mean_value(better, metric) > before


def test_knn_few_shot(desk, metric, value):
    optimizer = dspy.KNNFewShot(
        k=3,
        trainset=LABELLED,
        vectorizer=dspy.Embedder(LexicalModel(256), caching=False),
        metric=metric,
        max_bootstrapped_demos=1,
        max_labeled_demos=3,
    )
    better = optimizer.compile(desk)
    assert mean_value(better, metric) > mean_value(desk, metric) + 0.5
    assert still_valuing(better, value)


def test_infer_rules(desk, metric, value):
    before = mean_value(desk, metric)
    optimizer = dspy.InferRules(metric=metric, num_candidates=4, num_rules=4, num_threads=4, max_bootstrapped_demos=2)
    better = optimizer.compile(desk, trainset=LABELLED, valset=LABELLED)
    assert mean_value(better, metric) > before + 0.5
    assert still_valuing(better, value)


def test_reanchor_calibrates_a_decision_by_the_value_of_what_it_lets_through(metric):
    from dspy.experimental import Noul, ReAnchor

    class Judge(dspy.Signature):
        """Is the reply good enough to be sent?"""

        reply: str = dspy.InputField()
        send: Noul = dspy.OutputField(desc="Whether a customer would be content.")

    def worth(example, pred, trace=None):
        """The score of what is sent; what is held back counts as a middling one."""
        return metric(example, example) if pred.send else 0.5

    trainset = [dspy.Example(reply=row.reply).with_inputs("reply") for row in RATED[:20]]
    optimizer = ReAnchor(metric=worth, num_threads=4, require_cache=False)
    optimizer.compile(dspy.Predict(Judge), trainset=trainset)
    assert optimizer.report["train_score"] >= optimizer.report["train_score_before"]


def test_reanchor_takes_the_metric_itself(metric):
    from dspy.experimental import Noul, ReAnchor

    class Sender(dspy.Module):
        def __init__(self):
            super().__init__()
            self.judge = dspy.Predict(
                dspy.Signature(
                    {"reply": dspy.InputField(), "send": (Noul, dspy.OutputField(desc="Good enough?"))}, "Send?"
                )
            )

        def forward(self, reply):
            return dspy.Prediction(reply=reply if self.judge(reply=reply).send else "We will write back tomorrow.")

    trainset = [dspy.Example(reply=row.reply).with_inputs("reply") for row in RATED[:20]]
    optimizer = ReAnchor(metric=metric, num_threads=4, require_cache=False)
    optimizer.compile(Sender(), trainset=trainset)
    assert 0 < optimizer.report["train_score_before"] <= optimizer.report["train_score"]


@pytest.mark.parametrize("explained", [False, True])
@pytest.mark.parametrize("wrapper", [dspy.BestOfN, dspy.Refine])
def test_the_best_of_several_drafts(desk, metric, wrapper, explained):
    best = wrapper(module=desk, N=5, reward_fn=metric.reward if explained else metric, threshold=0.95)
    assert mean_value(best, metric) > mean_value(desk, metric) + 1.0


def test_the_two_steps_of_a_program_chained(metric):
    """FitValue, then an optimizer of prompts by the value that was fitted."""
    fitted = FitValue(text="reply", group="question").compile(
        Desk(Qwen3EmbeddingValueLearner("lexical", cache_dir=None)),
        trainset=[row for row in RATED if row.question in SEEN],
    )
    better = dspy.GEPA(
        metric=ValueMetric(fitted.value, text="reply"), max_metric_calls=150, reflection_lm=ScriptedLM(temperature=1.0)
    ).compile(fitted, trainset=TRAINSET, valset=TRAINSET)
    assert mean_value(better, metric) > mean_value(fitted, metric) + 1.0
    better.save("desk.json")
    again = Desk(Qwen3EmbeddingValueLearner("lexical", cache_dir=None))
    again.load("desk.json")
    for example in HELD_OUT[:5]:
        assert again(question=example.question).toDict() == better(question=example.question).toDict()
