"""One metric for everything in DSPy that asks for one."""

import copy
import inspect
import json
import math
import pickle
import random
import re
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dspy
import numpy as np
import pytest
from dspy.utils.dummies import DummyLM
from scipy.stats import pearsonr, rankdata, spearmanr

from dspy_qvl import (
    EmbeddingError,
    FitValue,
    InputError,
    MissingTextError,
    NotFittedError,
    QVLWarning,
    Qwen3EmbeddingValueLearner,
    TextsRefusedError,
    ValueMetric,
)
from dspy_qvl.learner.memo import KEPT_BYTES, KEPT_TEXTS, KeptTexts
from dspy_qvl.measures import bootstrap
from dspy_qvl.metric.feedback import in_words
from dspy_qvl.metric.judgement import repeated_share
from dspy_qvl.text.ratings import Pair
from tests.conftest import CountingModel, rated

TEXTS = [text for text, _ in rated(30, seed=8)]
GOOD, BAD = "love perfect excellent sturdy happy bright", "broke refund useless flimsy noisy awful"


def said(text):
    return dspy.Prediction(answer=text)


@pytest.fixture
def metric(trained):
    return ValueMetric(trained)


# What each caller gets


def test_without_a_trace_it_is_a_float_and_with_one_a_bool(metric):
    score = metric({"question": "?"}, said(GOOD))
    assert type(score) is float
    assert 0.5 < score < 1
    assert metric(None, said(GOOD), []) is True
    assert metric(None, said(BAD), []) is False
    assert metric(None, said(BAD), None) == metric(None, said(BAD)) < 0.5


def test_with_the_name_of_a_predictor_it_is_a_fresh_prediction_with_feedback(metric):
    first, second = (metric(None, said(GOOD), [], "reply", []) for _ in range(2))
    assert first is not second
    assert first.score == metric(None, said(GOOD))
    assert first.feedback == second.feedback
    first["score"] = 0.0  # GEPA does
    assert metric(None, said(GOOD), [], "reply", []).score == metric(None, said(GOOD))


def test_a_higher_value_is_a_higher_score(metric, trained):
    values = np.argsort([trained.predict(text) for text in TEXTS])
    assert values.tolist() == np.argsort([metric(None, said(text)) for text in TEXTS]).tolist()
    for text in TEXTS:
        assert metric.value(None, said(text)) == trained.predict(text)


def test_the_users_scale_sets_the_ends(trained):
    wide, narrow = ValueMetric(trained, scale=(-100, 100)), ValueMetric(trained, scale=(5.9, 6.1))
    assert abs(wide(None, said(GOOD)) - 0.5) < 0.1
    assert narrow(None, said(GOOD)) > 0.95 > 0.05 > narrow(None, said(BAD))


def test_pessimism_takes_standard_deviations_off(trained):
    careful = ValueMetric(trained, pessimism=2.0)
    for text in TEXTS[:5]:
        assert careful.value(None, said(text)) == trained.predict(text) - 2.0 * trained.predict_std(text)
        assert careful(None, said(text)) < ValueMetric(trained)(None, said(text))
        assert careful.judge(text).value == trained.predict(text)


def test_objectives_come_back_beside_the_score(trained):
    metric = ValueMetric(trained, objectives={"brief": lambda example, pred: 1 / (1 + len(pred.answer))})
    plain = metric(None, said(GOOD))
    assert plain.score == ValueMetric(trained)(None, said(GOOD))
    assert plain.objective_scores == {"value": plain.score, "brief": 1 / (1 + len(GOOD))}
    assert metric(None, said(GOOD), None, "reply").objective_scores == plain.objective_scores
    assert metric(None, said(GOOD), []) is True
    with pytest.warns(QVLWarning, match="no prediction"):
        assert metric(None, None).objective_scores == {"value": 0.0, "brief": 0.0}
    nested = ValueMetric(trained, objectives={"other": ValueMetric(trained, objectives={})})
    assert nested(None, said(GOOD)).objective_scores["other"] == plain.score
    for wrong in (math.nan, "good", None):
        with pytest.raises(InputError, match="what the objective 'brief' gave must be"):
            ValueMetric(trained, objectives={"brief": lambda example, pred, wrong=wrong: wrong})(None, said(GOOD))
    with pytest.raises(InputError, match="which is what the learned value is called"):
        ValueMetric(trained, objectives={"value": lambda example, pred: 1.0})


def test_a_filter_says_yes_or_no_whatever_it_is_called_with(metric):
    passes = metric.as_filter(0.9)
    for call in ((None, said(GOOD)), (None, said(GOOD), []), (None, said(GOOD), None, "reply", None)):
        assert type(passes(*call)) is bool
    assert passes(None, said(BAD)) is False
    assert metric.as_filter()(None, said(GOOD)) is True
    assert passes.__name__ == "value_filter"
    assert pickle.loads(pickle.dumps(passes))(None, said(BAD)) is False


# What it is


def test_it_is_a_plain_callable_that_gepa_can_bind(metric):
    assert not isinstance(metric, dspy.Module)
    assert metric.__name__ == "value"
    inspect.signature(metric).bind(None, None, None, None, None)
    assert dspy.Evaluate(devset=[], metric=metric).metric is metric


def test_refine_is_shown_a_short_class_in_plain_words():
    source = inspect.getsource(ValueMetric)
    assert len(source.splitlines()) < 25
    assert not {"sklearn", "ridge", "embedding", "alpha"} & set(source.lower().split())


def test_what_the_learner_learns_later_does_not_move_it(trained):
    metric = ValueMetric(trained)
    before = [metric(None, said(text), None, "x").toDict() for text in TEXTS]
    trained.update(TEXTS[0], 500.0)
    trained.train(0.3)
    trained.unfit()
    fresh = ValueMetric(learned := metric._scorer.learner)
    assert [metric(None, said(text), None, "x").toDict() for text in TEXTS] == before
    assert [fresh(None, said(text), None, "x").toDict() for text in TEXTS] == before
    assert learned is not trained


def test_copies_and_pickles_score_the_same(metric):
    before = [metric(None, said(text), None, "x").toDict() for text in TEXTS]
    for other in (copy.copy(metric), copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        assert [other(None, said(text), None, "x").toDict() for text in TEXTS] == before
        assert other.__name__ == "value"


def test_a_copy_costs_nothing(metric):
    assert copy.deepcopy({"metric": metric})["metric"] is metric


# Of a whole devset


def devset_of(n, seed=31, noise=3.0):
    rng = np.random.default_rng(seed)
    return [
        dspy.Example(question=f"q{row % 20}", answer=text, stars=score + rng.normal() * noise).with_inputs("question")
        for row, (text, score) in enumerate(rated(n, seed=seed))
    ]


def test_agreement_is_the_rank_correlation_of_values_and_ratings(trained):
    metric, devset = ValueMetric(trained, text="answer"), devset_of(80)
    found = metric.agreement(devset, score="stars", group="question")
    values = trained.predict_many([row.answer for row in devset])
    ratings = [row.stars for row in devset]
    assert float(found) == found.spearman == pytest.approx(spearmanr(values, ratings).statistic)
    assert found.pearson == pytest.approx(pearsonr(values, ratings).statistic)
    draws = bootstrap(ratings, values, [row.question for row in devset], n_draws=1000)["spearman"]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))
    assert found.low < found.spearman < found.high
    assert (found.n_rows, found.n_groups, found.n_failed, found.n_learned) == (80, 20, 0, 0)
    assert metric.agreement(devset, score=lambda row: 7 - row.stars).spearman == pytest.approx(-found.spearman)
    by_dict = metric.agreement([row.toDict() for row in devset], score="stars", group=lambda row: row["question"])
    assert by_dict.spearman == found.spearman
    assert metric.agreement(devset, score="stars").n_groups == 80
    assert metric.log == []


def test_the_rows_most_at_odds_are_those_that_are_ranked_most_differently(trained):
    metric, devset = ValueMetric(trained, text="answer"), devset_of(60)
    devset[17] = devset[17].copy(answer=GOOD, stars=-20.0)
    devset[5] = devset[5].copy(answer=BAD, stars=40.0)
    found = metric.agreement(devset, score="stars")
    apart = np.abs(rankdata([metric.value(row, row) for row in devset]) - rankdata([row.stars for row in devset]))
    assert [row.example for row in found.at_odds] == [devset[row] for row in np.argsort(-apart, kind="stable")[:10]]
    first, second = found.at_odds[:2]
    assert {first.text, second.text} == {GOOD, BAD}
    good = first if first.text == GOOD else second
    assert (good.rating, good.rating_above) == (-20.0, 0.0)
    assert good.value == trained.predict(GOOD)
    assert good.value_above > 0.9
    assert f"rated -20, above 0 % of the others; valued {good.value:.3g}, above" in str(found)
    assert str(found).startswith(f"Spearman {found.spearman:.2f} (95 % interval {found.low:.2f} to {found.high:.2f})")


def test_the_texts_may_be_what_a_program_answers(trained):
    class Desk(dspy.Module):
        def forward(self, question):
            if question == "q3":
                raise RuntimeError("no answer")
            return dspy.Prediction(answer=answers[question])

    questions = [f"q{row}" for row in range(20)]
    answers = dict(zip(questions, TEXTS, strict=False))
    devset = [dspy.Example(question=q, stars=float(row % 7)).with_inputs("question") for row, q in enumerate(questions)]
    metric = ValueMetric(trained, text="answer")
    found = metric.agreement(devset, Desk(), score="stars")
    given = [None if q == "q3" else dspy.Prediction(answer=answers[q]) for q in questions]
    assert found.spearman == pytest.approx(
        spearmanr([row.stars for row in devset], [metric.value(None, pred) for pred in given]).statistic
    )
    assert found.n_failed == 1
    assert "1 rows have no text, and the lowest value" in str(found)
    assert vars(metric.agreement(devset, given, score="stars")) == vars(found)
    with pytest.raises(InputError, match="there are 2 predictions for 20 examples"):
        metric.agreement(devset, given[:2], score="stars")
    with pytest.raises(InputError, match=r"program must be a program, or its predictions for the devset, but got int"):
        metric.agreement(devset, 3, score="stars")
    with pytest.raises(
        InputError, match=r"devset\[0\] does not say what the program is given; use example.with_inputs"
    ):
        metric.agreement([{"question": "q0", "stars": 1.0}, {"question": "q1", "stars": 2.0}], Desk(), score="stars")


def test_texts_are_read_as_they_were_learned_and_those_learned_from_are_told(tmp_path):
    rows = [dspy.Example(ask=f"Which {n}?", say=text, stars=score) for n, (text, score) in enumerate(rated(60))]
    fit = FitValue(text="{say}!", query="ask", score="stars", alphas=[0.001, 0.01, 0.1])
    value = fit.compile(Qwen3EmbeddingValueLearner("lexical", 256, cache_dir=tmp_path), trainset=rows[:40])
    metric = ValueMetric(value, pessimism=0.5)
    found = metric.agreement(rows[40:], score="stars")
    values = [
        value.predict(f"{row.say}!", row.ask) - 0.5 * value.predict_std(f"{row.say}!", row.ask) for row in rows[40:]
    ]
    assert found.spearman == pytest.approx(spearmanr(values, [row.stars for row in rows[40:]]).statistic)
    assert found.at_odds[0].query in [row.ask for row in rows[40:]]
    copies = [row.copy(say=row.say.upper()) for row in rows[38:40]]
    with pytest.warns(QVLWarning, match="2 of 22 texts of the devset were learned from"):
        assert metric.agreement([*rows[40:], *copies], score="stars").n_learned == 2


def test_an_empty_answer_that_was_rated_has_the_lowest_value_as_the_metric_has_it(trained):
    trained.ridge.template = "answer"
    metric, devset = ValueMetric(trained), [row.copy(why="so") for row in devset_of(20)]
    devset[4] = devset[4].copy(answer=" ")
    found = metric.agreement(devset, score="stars")
    assert found.n_failed == 1
    values = [min(trained.training_scores) if row.answer == " " else trained.predict(row.answer) for row in devset]
    assert found.spearman == pytest.approx(spearmanr(values, [row.stars for row in devset]).statistic)


def test_an_interval_needs_two_groups_and_agreement_two_ratings(trained):
    metric, devset = ValueMetric(trained, text="answer"), devset_of(12)
    alone = metric.agreement(devset, score="stars", group=lambda row: 1)
    assert alone.spearman > 0
    assert math.isnan(alone.low)
    assert math.isnan(alone.high)
    equal = [row.copy(stars=3.0) for row in devset]
    for rows, settings, message in [
        ([], {}, "devset must be a list of examples, but got an empty one"),
        ("text", {}, "devset must be a list of examples, but got str"),
        (["text"], {}, r"devset\[0\] must be a dspy.Example or a dict, but got str"),
        (devset, {"score": "rating"}, r"devset\[0\] has no field 'rating' for its score"),
        ([devset[0], devset[1].copy(stars="good")], {}, r"the score of devset\[1\] must be a number"),
        ([devset[0], devset[1].without("answer")], {}, r"devset\[1\] has no text to value: there is no field 'answer'"),
        (equal, {}, "the ratings of the devset's 12 examples are all 3; there is nothing to agree with"),
        (devset, {"group": lambda row: [1]}, "the groups of the devset must be strings or numbers: unhashable"),
        (devset, {"group": "by"}, r"devset\[0\] has no field 'by' for its group"),
    ]:
        with pytest.raises(InputError, match=message):
            metric.agreement(rows, **{"score": "stars", **settings})


# With its reason, for Refine


def test_refine_tells_the_language_model_why(trained):
    metric = ValueMetric(trained, threshold=0.9)
    desk = dspy.Predict("question -> answer")
    told = {}
    for name, reward in (
        ("reward", metric.reward),
        ("metric", metric),
        ("prediction", lambda inputs, pred: metric.explained(inputs, pred)),
    ):
        answers = [{"answer": BAD}, {"discussion": "so", "advice": '{"self": "be kind"}'}, {"answer": GOOD}]
        lm = DummyLM(answers)
        with dspy.context(lm=lm):
            best = dspy.Refine(module=desk, N=2, reward_fn=reward, threshold=metric.threshold)(question="How?")
        assert best.answer == GOOD
        (prompt,) = [call["messages"][-1]["content"] for call in lm.history if "reward_value" in str(call["messages"])]
        told[name] = prompt.split("[[ ## reward_value ## ]]")[1].split("[[ ##")[0]
    explained = metric.explained(None, said(BAD))
    assert json.loads(told["reward"]) == {"score": explained.score, "feedback": explained.feedback}
    assert float(told["metric"]) == explained.score
    assert "non-serializable" in told["prediction"]  # what a reward without a form of its own comes to


def test_a_reward_is_a_prediction_that_compares_by_its_score(trained):
    metric = ValueMetric(trained, objectives={"brief": lambda example, pred: 1 / (1 + len(pred.answer))})
    good, bad = metric.reward({"question": "?"}, said(GOOD)), metric.reward({"question": "?"}, said(BAD))
    assert isinstance(good, dspy.Prediction)
    assert good > bad
    assert -math.inf < bad < metric.threshold <= good
    assert float(good) == good.score == ValueMetric(trained)(None, said(GOOD))
    assert good.feedback == metric.explained(None, said(GOOD)).feedback
    assert good.objective_scores == {"value": good.score, "brief": 1 / (1 + len(GOOD))}
    for other in (copy.copy(good), copy.deepcopy(good), pickle.loads(pickle.dumps(good))):
        assert other == good
        assert json.loads(json.dumps(other)) == good.toDict()
    with pytest.warns(QVLWarning, match="no prediction"):
        assert metric.reward({}, None).score == 0.0


def test_refine_is_shown_the_reward_as_one_short_method_in_plain_words(trained):
    source = dspy.Refine(
        module=dspy.Predict("question -> answer"), N=2, reward_fn=ValueMetric(trained).reward, threshold=0.5
    ).reward_fn_code
    assert "How people who rated texts like the answer would rate it" in source
    assert len(source.splitlines()) < 5


# What cannot be valued


@pytest.mark.parametrize(
    ("pred", "why"),
    [
        (None, "the program gave no prediction"),
        (dspy.Prediction(), "the program gave no prediction"),
        (dspy.Prediction(other="x"), "has no field 'answer'; it has 'other'"),
        (dspy.Prediction(answer=None), "the field 'answer' is None"),
        (said(" \n\t"), "the answer is empty"),
    ],
)
def test_a_failure_is_the_lowest_value_says_so_is_counted_and_warned_of_once(trained, pred, why):
    metric = ValueMetric(trained, text="answer")
    with pytest.warns(QVLWarning, match=f"{why}.*lowest score, 0"):
        assert metric(dspy.Example(answer="gold"), pred) == 0.0
    assert metric(None, pred, []) is False
    explained = metric(None, pred, None, "reply", None)
    assert explained.score == 0.0
    assert why in explained.feedback
    assert metric.value(None, pred) == min(trained.training_scores)
    assert sum(metric.failures.values()) == 3
    assert why in next(iter(metric.failures))


def test_every_text_is_worth_more_than_a_failure(trained):
    metric = ValueMetric(trained, scale=(1e6, 1e7), pessimism=5.0)
    assert min(metric(None, said(text)) for text in TEXTS) > 0.0


def test_a_broken_connection_does_not_pass_for_a_bad_answer(tmp_path):
    class Dying(CountingModel):
        dead = False

        def __call__(self, texts):
            if self.dead:
                raise ConnectionError("connection reset")
            return super().__call__(texts)

    model = Dying()
    learner = Qwen3EmbeddingValueLearner(embedder=model, cache_dir=tmp_path)
    learner.add_training_examples(rated(30))
    learner.train()
    metric = ValueMetric(learner)
    model.dead = True
    with pytest.raises(EmbeddingError, match="connection reset"):
        metric(None, said("a new text"))
    model.dead = False
    assert metric(None, said("a new text")) > 0
    assert not metric.failures


def test_half_an_emoji_in_an_answer_is_no_reason_to_stop(metric):
    assert 0 < metric(None, said("love \ud83d it")) < 1


def test_several_texts_and_none_named_is_a_mistake_of_the_caller(metric):
    with pytest.raises(InputError, match="has 2 texts, among the fields 'reasoning', 'answer'; say which"):
        metric(None, dspy.Prediction(reasoning="so", answer="yes"))


# Feedback


def explained(trained, text, **settings):
    return ValueMetric(trained, **settings)(None, said(text), None, "reply", None).feedback


def reasoned(tmp_path):
    learner = Qwen3EmbeddingValueLearner("lexical", 512, cache_dir=tmp_path / "cache")
    for number, (text, score) in enumerate(rated(60)):
        learner.add_training_example(text, score, {"reason": f"reason {number}"})
    learner.train()
    return learner


def test_feedback_says_where_the_value_lies_and_names_neighbours_with_reasons(tmp_path):
    learner = reasoned(tmp_path)
    text = TEXTS[3]
    judged = ValueMetric(learner).judge(text)
    feedback = explained(learner, text)
    below = np.mean([score < judged.value for score in learner.training_scores])
    assert f"Value {judged.value:.1f}, give or take {judged.std:.2g}: higher than {100 * below:.0f} %" in feedback
    assert f"Score {judged.score:.2f}" in feedback
    for side, example in (("higher", judged.above[0]), ("lower", judged.below[0])):
        assert f'Rated {side}, at {example.score:.1f}, and of those the most like it: "{example.text}"' in feedback
        assert f'"{example.metadata["reason"]}"' in feedback
    assert judged.above[0].score > judged.value + judged.std
    cosines = {example.text: cosine for example, cosine in learner.nearest(text, 60)}
    nearer = [e.score for e, c in learner.nearest(text, 60) if c > cosines[judged.above[0].text]]
    assert all(score <= judged.value + judged.std for score in nearer)


def test_nothing_of_a_rated_text_is_quoted_beyond_the_limit(tmp_path):
    learner = reasoned(tmp_path)
    short = explained(learner, TEXTS[3], quote=10)
    none = explained(learner, TEXTS[3], quote=0)
    judged = ValueMetric(learner).judge(TEXTS[3])
    for example in (*judged.above, *judged.below):
        assert f'"{example.text[:10].rstrip()}…"' in short
        assert example.text[:12] not in short
        assert not any(word in none.split() for word in example.text.split() if len(word) > 4)
        assert f"{example.score:.1f}" in none
        assert example.metadata["reason"] in none


def test_more_neighbours_are_named_on_request(tmp_path):
    feedback = explained(reasoned(tmp_path), TEXTS[3], n_neighbors=3)
    assert feedback.count("Rated higher") == feedback.count("Rated lower") == 3


def test_feedback_may_be_left_out(trained):
    assert "feedback" not in ValueMetric(trained, feedback=False)(None, said(GOOD), None, "x", None)


def test_pessimism_is_told(trained):
    feedback = explained(trained, GOOD, pessimism=1.0)
    assert "1 times the uncertainty taken off" in feedback
    assert "after that)" in feedback


@pytest.mark.parametrize(
    ("factor", "offset", "digits"),
    [
        (1.0, 0.0, r"\d+\.\d"),
        (3.0, 1400.0, r"14\d\d\.\d"),
        (100.0, 0.0, r"\d+"),
        (0.1, 0.0, r"\d\.\d\d"),
        (1.0, 1e9, r"10{7,}\d*"),
        (1e50, 0.0, r"\d\.\d+e\+5\d"),
    ],
)
def test_values_are_told_with_as_many_digits_as_the_scale_needs(tmp_path, factor, offset, digits):
    learner = Qwen3EmbeddingValueLearner("lexical", 256, cache_dir=None)
    learner.add_training_examples([(text, score * factor + offset) for text, score in rated(40)])
    learner.train()
    feedback = explained(learner, TEXTS[0])
    assert re.match(rf"Value {digits}, give or take", feedback), feedback
    above, below = (feedback.split(f"Rated {side}, at ")[1].split(",")[0] for side in ("higher", "lower"))
    assert float(above) > float(below)


def test_certainty_has_any_scale():
    stds = []
    for factor in (1e-50, 1.0, 1e50):
        learner = Qwen3EmbeddingValueLearner("lexical", 256, cache_dir=None)
        learner.add_training_examples([(text, score * factor) for text, score in rated(40)])
        learner.train()
        stds.append(learner.predict_std(TEXTS[0]) / factor)
        metric = ValueMetric(learner, pessimism=1.0)
        assert len({metric(None, said(text)) for text in TEXTS}) == len(TEXTS)
    assert stds == pytest.approx([stds[1]] * 3, rel=1e-6)


def test_scores_that_look_the_same_are_told_apart(trained):
    score = ValueMetric(trained)(None, said(GOOD))
    words = ValueMetric(trained, threshold=score + 1e-5)(None, said(GOOD), None, "x").feedback
    told = re.search(r"Score (\S+); falls short of the (\S+) that", words)
    assert float(told[1]) < float(told[2])


def test_the_threshold_is_named_in_the_raters_units(trained):
    metric = ValueMetric(trained, threshold=0.7)
    words = metric(None, said(BAD), None, "x", None).feedback
    asked = float(words.split("(a value of ")[1].split(")")[0])
    assert metric._scorer.scale(asked) == pytest.approx(0.7, abs=0.02)
    assert "falls short of the 0.70" in words
    assert "passes the 0.70" in metric(None, said(GOOD), None, "x", None).feedback


# Being gamed


def test_what_says_the_same_again_and_again_is_marked(metric):
    loop = "love it, perfect, excellent. " * 8
    assert "repeated" in metric.judge(loop).marks
    assert "says the same again and again" in metric(None, said(loop), None, "x", None).feedback
    assert all("repeated" not in metric.judge(text).marks for text in TEXTS)
    assert repeated_share("") == repeated_share("short") == 0.0
    assert repeated_share("abcdefghij" * 10) > 0.85


def test_what_is_unlike_anything_rated_is_marked(metric, trained):
    for text in ("zxq wvut kjhg qqqq", "今日は天気がいいですね", "1 + 1 = 2; 2 + 2 = 4"):
        assert "unlike" in metric.judge(text).marks
        assert "it is unlike the rated texts (it" in metric(None, said(text), None, "x", None).feedback
    marked = ["unlike" in metric.judge(text).marks for text, _ in rated(200, seed=11)]
    assert np.mean(marked) < 0.1


def test_what_is_worth_more_than_any_rated_text_is_marked(metric, trained):
    words = sorted({word for text in trained.training_texts for word in text.split()})
    reply = ""
    for _ in range(15):  # what an optimizer does that is let loose
        reply = max((f"{reply} {word}" for word in words), key=trained.predict)
    assert "beyond" in metric.judge(reply).marks
    assert "above every rating" in metric(None, said(reply), None, "x", None).feedback
    marked = ["beyond" in metric.judge(text).marks for text, _ in rated(200, seed=11)]
    assert np.mean(marked) < 0.03


def test_an_empty_text_is_marked(metric):
    assert metric.judge("").marks == ("empty",)


@pytest.mark.parametrize("blank", ["", " \n", "\u200b\ufeff"])
def test_an_empty_text_has_the_score_of_an_empty_answer_and_its_value_is_the_fits(trained, blank):
    metric = ValueMetric(trained, pessimism=0.5)
    judged = metric.judge(blank)
    with pytest.warns(QVLWarning, match="empty"):
        assert judged.score == metric(None, said(blank)) == 0.0
    assert judged.value == trained.predict(blank) == trained(blank).score
    assert min(trained.training_scores) < judged.value < max(trained.training_scores)
    assert all(metric.judge(text).score > 0 for text in (*TEXTS, "."))
    told = in_words(judged, metric._scorer, threshold=0.5, quote=0)
    assert "Score 0.00" in told
    assert "it says nothing, so its score is the lowest there is, whatever its value." in told


def test_a_copy_of_a_rated_text_is_marked(metric, trained):
    text = trained.training_texts[7]
    assert "copied" in metric.judge(f"  {text.upper()} ").marks
    assert "it is one of the rated texts" in metric(None, said(text), None, "x", None).feedback
    assert all("copied" not in metric.judge(text).marks for text in TEXTS)


def test_what_is_kept_with_a_text_cannot_be_changed_from_outside(tmp_path):
    learner = reasoned(tmp_path)
    metric = ValueMetric(learner)
    before = metric(None, said(TEXTS[3]), None, "x").feedback
    for metadata in learner.training_metadata:
        metadata["reason"] = "something else"
    assert ValueMetric(learner)(None, said(TEXTS[3]), None, "x").feedback == before


def test_the_log_remembers_what_was_scored_in_order(metric):
    for text in (GOOD, BAD, GOOD):
        metric(None, said(text))
    assert [judged.text for judged in metric.log] == [GOOD, BAD]
    assert metric.log[0] == metric.judge(GOOD)
    assert metric.log[0].score == metric(None, said(GOOD))


def test_what_is_remembered_of_texts_is_bounded_in_bytes_and_the_first_leave_first(trained, monkeypatch):
    monkeypatch.setattr("dspy_qvl.learner.memo.KEPT_BYTES", 40_000)
    metric = ValueMetric(trained)
    texts = [f"{'lovely ' * 200}{number}" for number in range(60)]
    scores = [metric(None, said(text)) for text in texts]
    log = metric.log
    assert [judged.text for judged in log] == texts[-len(log) :]
    assert [judged.score for judged in log] == scores[-len(log) :]
    memo = metric._scorer.fit.memo
    for kept in (metric._calls.scores, metric._calls.judgements, memo.values):
        assert 20_000 < sum(map(len, kept)) <= 40_000
        assert list(kept) == texts[-len(kept) :]
    list(metric._scorer.judgements(texts))
    assert 20_000 < sum(map(len, memo.bounds)) <= 40_000
    assert metric(None, said(texts[0])) == scores[0]


def test_what_is_kept_of_texts_counts_them_and_their_bytes():
    kept = KeptTexts()
    for number in range(KEPT_TEXTS + 10):
        kept.keep(str(number), number)
    assert list(kept.values()) == list(range(10, KEPT_TEXTS + 10))
    for number in range(140):
        kept.keep(Pair("é" * 2**17, f"{number:0{2**19}}"), number)
    assert list(kept.values()) == list(range(13, 140))
    assert kept.keep(huge := "x" * (KEPT_BYTES + 1), 1) == kept[huge]
    assert len(kept) == 1


def test_what_is_kept_is_let_go_as_quickly_as_it_came():
    kept, spent = KeptTexts(), []
    for start in (0, KEPT_TEXTS, 2 * KEPT_TEXTS):
        began = time.process_time()
        for number in range(start, start + KEPT_TEXTS):
            kept.keep(str(number), number)
        spent.append(time.process_time() - began)
    assert list(kept.values()) == list(range(2 * KEPT_TEXTS, 3 * KEPT_TEXTS))
    assert sum(spent[1:]) < 10 * spent[0]


def test_reasons_are_bounded_too(trained):
    def text(example, pred):
        raise MissingTextError(f"{pred.answer} " * 1000)

    metric = ValueMetric(trained, text=text)
    with pytest.warns(QVLWarning, match="It gets the lowest score"):
        scores = [metric(None, said(str(number))) for number in range(1100)]
    assert set(scores) == {0.0}
    assert sum(metric.failures.values()) == 1100
    assert metric.failures["other reasons"] == 100
    assert max(map(len, metric.failures)) <= 1001


def test_many_texts_are_judged_as_each_of_them_alone(tmp_path):
    learners = [reasoned(tmp_path) for _ in range(2)]
    learners[0].update("", 3.0)
    learners[1].update("", 3.0)
    metric, alone = (ValueMetric(learner, pessimism=0.5, n_neighbors=3) for learner in learners)
    texts = [*TEXTS, "zxq wvut kjhg qqqq", learners[0].training_texts[7], "love it, perfect, excellent. " * 8]
    for text in texts:
        metric(None, said(text))
    assert metric.log == [alone.judge(text) for text in texts]
    assert {"unlike", "copied", "repeated"} <= {mark for judged in metric.log for mark in judged.marks}
    for judged in metric.log:
        cosines = learners[0].inspection().neighbors.cosines(judged.text)
        assert judged.likeness == cosines.max()
        clear = [
            row
            for row in np.argsort(-cosines, kind="stable")
            if alone._scorer.fit.scores[row] > judged.value + judged.std
        ]
        if clear:
            assert [example.text for example in judged.above] == [learners[0].training_texts[row] for row in clear[:3]]


# The same text, the same answer


def test_threads_order_and_processes_that_share_a_cache_make_no_difference(tmp_path):
    trained = Qwen3EmbeddingValueLearner(embedder=CountingModel(), cache_dir=tmp_path / "cache")
    trained.add_training_examples(rated(60))
    trained.train()
    trained.save_model(tmp_path / "m")
    texts = [text for text, _ in rated(200, seed=21)]
    code = (
        "import sys, json, random, dspy, dspy_qvl\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from tests.conftest import CountingModel\n"
        "learner = dspy_qvl.Qwen3EmbeddingValueLearner(embedder=CountingModel(), cache_dir=sys.argv[3])\n"
        "learner.load_model(sys.argv[1])\n"
        "metric = dspy_qvl.ValueMetric(learner, pessimism=0.5)\n"
        "texts = json.loads(sys.argv[2])\n"
        "order = random.Random(5).sample(texts, len(texts))\n"
        "ask = lambda text: metric(None, dspy.Prediction(answer=text), None, 'x', None).toDict()\n"
        "with ThreadPoolExecutor(8) as pool:\n"
        "    found = dict(zip(order, pool.map(ask, order)))\n"
        "print(json.dumps([found[text] for text in texts]))"
    )
    command = [sys.executable, "-c", code, tmp_path / "m", json.dumps(texts), tmp_path / "cache"]
    root = Path(__file__).resolve().parent.parent
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(2)]
    answers = [json.loads(process.communicate(timeout=300)[0]) for process in processes]
    assert trained.embedding_cache.info().rows >= len(texts)
    for n_threads in (1, 8, 16):
        metric = ValueMetric(trained, pessimism=0.5)
        order = random.Random(n_threads).sample(texts, len(texts))
        with ThreadPoolExecutor(n_threads) as pool:
            found = dict(
                zip(
                    order,
                    pool.map(lambda text, m=metric: m(None, said(text), None, "x", None).toDict(), order),
                    strict=True,
                )
            )
        answers.append([found[text] for text in texts])
    assert all(answer == answers[0] for answer in answers)


# Rendering


def test_texts_are_rendered_as_they_were_learned(trained):
    trained.ridge.template = "Question: {question}\nAnswer: {answer}"
    metric = ValueMetric(trained)
    example = dspy.Example(question="Which?").with_inputs("question")
    assert metric.value(example, said("This.")) == trained.predict("Question: Which?\nAnswer: This.")
    with pytest.warns(QVLWarning, match="learned from texts rendered as .* but predictions are rendered as 'answer'"):
        ValueMetric(trained, text="answer")
    trained.ridge.template = "text"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ValueMetric(trained, text="answer")  # one field as another drifts nowhere
        ValueMetric(trained, text="{answer}")
    reasoned = dspy.Prediction(reasoning="so", text=GOOD)
    assert ValueMetric(trained)(None, reasoned) == ValueMetric(trained)(None, said(GOOD))
    with pytest.warns(QVLWarning, match="rendered as 'text'"):
        ValueMetric(trained, text="{answer}!")


# Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0.0}, "threshold must lie between 0 and 1"),
        ({"threshold": 1}, "threshold must lie between 0 and 1"),
        ({"threshold": True}, "threshold must be a number"),
        ({"pessimism": -1}, "pessimism must be at least 0"),
        ({"pessimism": math.nan}, "pessimism must be finite"),
        ({"scale": (3, 1)}, "low below high"),
        ({"quote": -1}, "quote must be a whole number"),
        ({"n_neighbors": 0}, "n_neighbors must be a whole number"),
        ({"feedback": "yes"}, "feedback must be True or False"),
        ({"objectives": ["brief"]}, "objectives must be a dict of metrics by name"),
        ({"objectives": {"brief": 3}}, "objectives must be a dict of metrics by name"),
        ({"text": 3}, "text must be a field name"),
        ({"text": " "}, "neither the name of a field nor a format string"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused(trained, settings, message):
    with pytest.raises(InputError, match=message):
        ValueMetric(trained, **settings)


def test_there_is_no_metric_before_anything_was_learned(learner):
    with pytest.raises(NotFittedError, match="nothing was learned yet"):
        ValueMetric(learner)
    with pytest.raises(InputError, match="learner must be a Qwen3EmbeddingValueLearner, but got str"):
        ValueMetric("learner")


def test_a_value_function_without_its_texts_scores_and_is_not_pessimistic(tmp_path):
    learner = Qwen3EmbeddingValueLearner("lexical", 256, cache_dir=tmp_path, keep_examples=False)
    learner.add_training_examples(rated(40))
    learner.train()
    learner.save_model(tmp_path / "m")
    loaded = Qwen3EmbeddingValueLearner(cache_dir=tmp_path)
    loaded.load_model(tmp_path / "m")
    metric = ValueMetric(loaded)
    assert metric(None, said(GOOD)) == ValueMetric(learner)(None, said(GOOD))
    assert "higher than" in metric(None, said(GOOD), None, "x", None).feedback
    with pytest.raises(InputError, match=r"saved without them \(keep_examples=False\)"):
        ValueMetric(loaded, pessimism=1.0)


class Choosy(CountingModel):
    """A model that refuses texts that speak of dragons."""

    def __call__(self, texts):
        refused = {row: "it speaks of dragons" for row, text in enumerate(texts) if "dragon" in text}
        vectors = super().__call__(texts)
        if refused:
            error = TextsRefusedError("refused", refused=refused)
            error.vectors = {row: vectors[row] for row in range(len(texts)) if row not in refused}
            raise error
        return vectors


def test_a_text_that_the_model_refuses_is_a_failure_and_ends_nothing():
    learner = Qwen3EmbeddingValueLearner(embedder=Choosy(), cache_dir=None, features=None)
    learner.add_training_examples(rated(60))
    learner.train()
    metric = ValueMetric(learner)
    with pytest.warns(QVLWarning, match="the embedding model refuses the text: it speaks of dragons"):
        assert metric(None, {"answer": "a dragon"}) == 0
    assert metric.value(None, {"answer": "a dragon"}) == min(learner.training_scores)
    assert "refuses the text" in metric(None, {"answer": "a dragon"}, None, "predictor").feedback
    assert sum(metric.failures.values()) == 2
    devset = [
        {"text": f"{text} dragon" if row % 9 == 0 else f"{text}!", "score": y}
        for row, (text, y) in enumerate(rated(40))
    ]
    assert metric.agreement(devset).n_failed == 5


def test_an_interval_needs_groups_and_says_so(trained):
    metric = ValueMetric(trained)
    few = metric.agreement([{"text": "perfect lamp", "score": 9.0}, {"text": "useless lamp", "score": 1.0}])
    assert math.isnan(few.low)
    assert "too few groups, or too alike, for an interval" in str(few)


def test_a_program_that_always_crashes_has_an_agreement_too(trained):
    class Crash(dspy.Module):
        def forward(self, question):
            raise RuntimeError("no")

    devset = [dspy.Example(question=f"q{row}", score=float(row)).with_inputs("question") for row in range(15)]
    assert ValueMetric(trained).agreement(devset, Crash()).n_failed == 15


def test_half_a_letter_is_an_answer_and_a_failing_objective_is_named(trained):
    metric = ValueMetric(trained, objectives={"b": lambda *_: 1 / 0})
    with pytest.raises(InputError, match="the objective 'b' failed: ZeroDivisionError"):
        metric(None, {"text": "lamp"})
    assert ValueMetric(trained)(None, {"text": "\ud800"}) == ValueMetric(trained)(None, {"text": "?"}) > 0
