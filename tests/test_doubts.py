"""Intervals, support and the report: the same figures however a value function is asked, copied, saved or loaded."""

import asyncio
import copy
import json
import math
import pickle
import random

import dspy
import numpy as np
import pytest

from dspy_qvl import InputError, NotFittedError, QVLWarning, Qwen3EmbeddingValueLearner, ValueMetric
from dspy_qvl.certainty import VERDICTS
from tests.conftest import CountingModel, rated

TEXTS = [*(text for text, _ in rated(20, seed=8)), "", "今日は天気がいいですね", "quick " * 30]


def make(kind: str, n: int = 60, **settings) -> Qwen3EmbeddingValueLearner:
    model = {"embedder": CountingModel()} if kind != "lexical" else {"model_name": "lexical"}
    learner = Qwen3EmbeddingValueLearner(**model, cache_dir=None, **settings)
    for number, (text, score) in enumerate(rated(n)):
        query = f"which {text.split()[number % 5]}?" if kind == "pairs" else None
        learner.add_training_example(text, score, {"group": number // 2}, query)
    learner.train(cv_folds=5 if n >= 40 else 2, groups=None if kind == "pairs" else "group")
    return learner


@pytest.fixture(scope="module", params=["lexical", "model", "pairs"])
def taught(request):
    return make(request.param), "which lamp?" if request.param == "pairs" else None


def test_a_prediction_has_an_interval_only_where_it_is_asked_for(taught):
    learner, query = taught
    plain, sure = learner(text=TEXTS[0], query=query), learner(text=TEXTS[0], query=query, confidence=0.8)
    assert plain.keys() == ["score", "std", "support"]
    assert sure.keys() == ["score", "std", "support", "lower", "upper"]
    assert (plain.score, plain.std, plain.support) == (sure.score, sure.std, sure.support)
    assert sure.lower < sure.score < sure.upper
    assert (sure.lower, sure.upper) == learner.predict_interval(TEXTS[0], query, 0.8)
    assert sure.support == learner.support(TEXTS[0], query)
    assert all(type(sure[name]) is float for name in sure.keys())  # noqa: SIM118 - a Prediction is no dict


def test_a_text_has_the_same_interval_and_support_in_any_company(taught):
    learner, query = taught
    fresh = pickle.loads(pickle.dumps(learner))
    alone = [fresh.predict_interval(text, query, 0.9) for text in TEXTS]
    supports = [fresh.support(text, query) for text in TEXTS]
    for one in (learner, copy.deepcopy(learner), pickle.loads(pickle.dumps(learner))):
        assert one.predict_interval_many(TEXTS[::-1], query, 0.9)[::-1].tolist() == [list(ends) for ends in alone]
        assert one.support_many(TEXTS[::-1], query)[::-1].tolist() == supports
    examples = [
        dspy.Example(text=text, query=query, confidence=0.9).with_inputs("text", "query", "confidence")
        for text in TEXTS
    ]
    together = pickle.loads(pickle.dumps(learner)).batch(examples)
    assert [(one.lower, one.upper) for one in together] == alone
    assert [one.support for one in together] == supports
    one = asyncio.run(pickle.loads(pickle.dumps(learner)).acall(text=TEXTS[3], query=query, confidence=0.9))
    assert (one.lower, one.upper, one.support) == (*alone[3], supports[3])
    assert learner.predict_interval_many([]).shape == (0, 2)
    assert learner.support_many([]).shape == (0,)


def test_every_figure_is_saved_and_loaded(taught, tmp_path):
    learner, query = taught
    kind = {} if learner._embedding.spec.embedder is None else {"embedder": CountingModel()}
    learner.save_model(tmp_path / "saved.qvl")
    learner.save(tmp_path / "saved.json")
    loaded = [Qwen3EmbeddingValueLearner(cache_dir=None, **(kind or {"model_name": "lexical"})) for _ in range(2)]
    loaded[0].load_model(tmp_path / "saved.qvl")
    loaded[1].load(tmp_path / "saved.json")
    report = learner.diagnose().to_dict()
    for one in loaded:
        assert one.predict_interval_many(TEXTS, query).tolist() == learner.predict_interval_many(TEXTS, query).tolist()
        assert one.support_many(TEXTS, query).tolist() == learner.support_many(TEXTS, query).tolist()
        assert one.diagnose().to_dict() == report


def test_intervals_leave_out_whole_groups():
    scores = rated(40)
    learners = []
    for groups in ([number // 8 for number in range(40)], None):
        learner = Qwen3EmbeddingValueLearner(embedder=CountingModel(), cache_dir=None)
        learner.add_training_examples([(text, score + 3 * (row // 8)) for row, (text, score) in enumerate(scores)])
        learner.train(validation_split=0.0, groups=groups)
        learners.append(learner)
    # Scores of one group are alike, so that those of another one are further off than those of another text.
    wide, narrow = (np.diff(learner.predict_interval_many(TEXTS[:20]), axis=1).mean() for learner in learners)
    assert wide > 1.1 * narrow


def test_intervals_of_texts_like_the_rated_ones_hold_about_as_many_as_they_say():
    learner = make("model", 200)
    ends = learner.predict_interval_many([text for text, _ in rated(400, seed=5)])
    scores = np.array([score for _, score in rated(400, seed=5)])
    assert 0.85 < np.mean((ends[:, 0] <= scores) & (scores <= ends[:, 1])) < 0.96


def test_what_was_learned_at_once_counts():
    learner = make("lexical")
    before = learner.support(TEXTS[21]), learner.predict_interval(TEXTS[0])
    assert before[0] < 0.05
    for number in range(6):
        learner.update(TEXTS[21] + "天気" * number, 3.0)
    assert learner.support(TEXTS[21]) > 0.05
    assert learner.predict_interval(TEXTS[0]) != before[1]


@pytest.mark.parametrize("confidence", [0, 1, -0.5, 90, math.nan, "0.9", True])
def test_a_confidence_that_is_none_is_refused(taught, confidence):
    learner, query = taught
    for call in (
        lambda: learner(text="x", query=query, confidence=confidence),
        lambda: learner.predict_interval("x", query, confidence),
        lambda: learner.predict_interval_many(["x"], query, confidence),
        lambda: asyncio.run(learner.acall(text="x", query=query, confidence=confidence)),
    ):
        with pytest.raises(InputError, match="confidence must"):
            call()


def test_too_few_ratings_give_no_ends():
    learner = make("lexical", 8)
    assert learner.predict_interval("lamp") == (-math.inf, math.inf)
    assert all(map(math.isfinite, learner.predict_interval("lamp", confidence=0.5)))
    assert learner.support("zxq wvut") > 0.05  # by so few nothing is unusual


def test_without_the_rated_texts_there_is_no_doubt_to_tell(tmp_path):
    learner = make("lexical", keep_examples=False)
    learner.save_model(tmp_path / "m")
    loaded = Qwen3EmbeddingValueLearner("lexical", cache_dir=None)
    loaded.load_model(tmp_path / "m")
    assert loaded(text="lamp").support is None
    for call in (
        lambda: loaded(text="lamp", confidence=0.9),
        lambda: loaded.predict_interval("lamp"),
        lambda: loaded.support("lamp"),
        loaded.diagnose,
    ):
        with pytest.raises(InputError, match=r"were not saved with it \(keep_examples=False\)"):
            call()
    with pytest.raises(InputError, match="confidence needs the texts the value function was learned from"):
        ValueMetric(loaded, confidence=0.9)


def test_nothing_is_told_before_anything_was_learned(learner):
    for call in (lambda: learner.predict_interval("x"), lambda: learner.support("x"), learner.diagnose):
        with pytest.raises(NotFittedError, match="nothing was learned yet"):
            call()


# The metric


def test_a_careful_metric_values_by_the_lower_end():
    learner = make("model")
    metric = ValueMetric(learner, confidence=0.8)
    said = [dspy.Prediction(text=text) for text in TEXTS[:5]]
    lower = learner.predict_interval_many(TEXTS[:5], confidence=0.8)[:, 0]
    assert [metric.value(None, one) for one in said] == lower.tolist()
    assert [metric(None, one) for one in said] == [metric._scorer.scale(end) for end in lower]
    feedback = metric(None, said[0], None, "predictor").feedback
    assert "the lower end of the 80 % interval taken for the value" in feedback
    devset = [dspy.Example(text=text, score=score) for text, score in rated(20, seed=8)]
    assert math.isfinite(metric.agreement(devset).spearman)


def test_a_metric_is_careful_in_one_way():
    learner = make("lexical", 12)
    with pytest.raises(InputError, match=r"give pessimism, .* or confidence, .* not both"):
        ValueMetric(learner, pessimism=1.0, confidence=0.9)
    with pytest.raises(InputError, match="confidence must lie between 0 and 1"):
        ValueMetric(learner, confidence=1.5)
    with pytest.raises(InputError, match=r"confidence=0\.99 needs at least 99 rated texts, but there are 12"):
        ValueMetric(learner, confidence=0.99)


def test_a_careful_metric_needs_a_second_group():
    learner = Qwen3EmbeddingValueLearner("lexical", cache_dir=None)
    learner.add_training_examples(
        [(text, score, {"group": number == 0}) for number, (text, score) in enumerate(rated(30))]
    )
    learner.train(validation_split=0.0, cv_folds=2, groups="group")
    learner.forget(rated(30)[0][0])
    assert learner.predict_interval("lamp", confidence=0.5) == (-math.inf, math.inf)
    with pytest.raises(InputError, match="rated texts of at least two groups"):
        ValueMetric(learner, confidence=0.5)


# The report


def shuffled(n: int = 240) -> Qwen3EmbeddingValueLearner:
    learner = Qwen3EmbeddingValueLearner(embedder=CountingModel(), cache_dir=None, features=None)
    scores = [score for _, score in rated(n)]
    random.Random(1).shuffle(scores)
    learner.add_training_examples([(text, score) for (text, _), score in zip(rated(n), scores, strict=True)])
    with pytest.warns(QVLWarning, match="cannot be told from noise"):
        learner.train()
    return learner


def test_a_report_tells_a_value_function_from_noise():
    useful, noise = make("model", 240).diagnose(), shuffled().diagnose()
    assert useful.verdict.name == "useful"
    assert noise.verdict.name == "no better than noise"
    assert {useful.verdict.name, noise.verdict.name} < set(VERDICTS)
    assert str(useful).startswith(useful.verdict.sentence)
    assert "value function" in str(useful)
    assert "<table>" in useful._repr_html_()


def test_a_report_names_the_ratings_at_odds_and_is_plain():
    learner = make("model", 100)
    text, score = rated(100)[7]
    learner.forget(text)
    learner.update(text, 12.0 - score)  # the scale the wrong way round
    report = learner.diagnose(3)
    assert report.at_odds[0].text == text
    assert report.at_odds[0].score == 12.0 - score
    assert abs(report.at_odds[0].value - score) < abs(report.at_odds[0].value - (12.0 - score))
    assert len(report.at_odds) == len(report.influential) == 3
    plain = report.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["verdict"]["name"] == report.verdict.name
    with pytest.raises(AttributeError):
        report.tuned = True


def test_a_report_shows_texts_as_texts():
    learner = Qwen3EmbeddingValueLearner("lexical", cache_dir=None)
    learner.add_training_examples([(f"<b>{text}</b>\x1b[31m", score) for text, score in rated(30)])
    learner.train()
    report = learner.diagnose()
    assert "<b>" not in report._repr_html_().replace(f"<p><b>{report.verdict.sentence}</b></p>", "")
    assert "\x1b" not in str(report) + report._repr_html_()


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_report_of_few_ratings_says_so(n):
    learner = Qwen3EmbeddingValueLearner("lexical", cache_dir=None)
    learner.add_training_examples([(text, score + number) for number, (text, score) in enumerate(rated(n))])
    learner.train(validation_split=0.0, cv_folds=2)
    report = learner.diagnose()
    assert report.verdict.name == "too few to tell"
    assert report.verdict.numbers["more"] > 0
    assert "more" in str(report)
    json.dumps(report.to_dict(), allow_nan=False)


def test_of_many_rated_texts_some_are_compared(monkeypatch):
    monkeypatch.setattr("dspy_qvl.learner.supporting.COMPARED", 30)
    learner = make("model", 100)
    fresh = pickle.loads(pickle.dumps(learner))
    supports = learner.support_many(TEXTS)
    assert supports.tolist() == [fresh.support(text) for text in TEXTS]
    assert ValueMetric(pickle.loads(pickle.dumps(learner))).judge(TEXTS[3]).support == supports[3]
    assert supports[21] < 0.05 < np.median(supports[:20])


def test_a_report_of_few_groups_does_not_pretend_to_tell():
    learner = Qwen3EmbeddingValueLearner("lexical", cache_dir=None)
    learner.add_training_examples(rated(90))
    learner.train(validation_split=0.0, cv_folds=3, groups=[number % 3 for number in range(90)])
    report = learner.diagnose(0)
    assert report.verdict.name == "too few to tell"
    assert report.verdict.sentence.startswith("Too few to tell: 90 ratings in 3 groups")
    assert report.verdict.sentence.endswith("rate texts of other groups.")
    assert repr(report) == "Diagnosis('too few to tell', 90 ratings)"


def test_a_report_without_a_figure_has_no_nan_in_its_sentence():
    learner = Qwen3EmbeddingValueLearner("lexical", cache_dir=None)
    learner.add_training_examples(rated(2))
    learner.train(validation_split=0.0, cv_folds=2)
    assert "nan" not in str(learner.diagnose())


@pytest.mark.parametrize("by", ["group", "list"])
def test_a_migration_keeps_the_groups(by, tmp_path):
    learner = make("lexical")
    if by == "list":
        learner.train(groups=[number // 2 for number in range(60)])
    learner.add_training_example("one more lamp", 3.0, {"group": 7})
    learner.save_model(tmp_path / "m")
    other = Qwen3EmbeddingValueLearner(embedder=CountingModel(), cache_dir=None)
    other.migrate(tmp_path / "m", [1.0])
    groups = other.ridge.fitted.groups
    assert groups.numbers.tolist() == [*(number // 2 for number in range(60)), 7 if by == "group" else 30]
    assert groups.by == ("group" if by == "group" else None)


# Choices


@pytest.mark.parametrize("kind", ["model", "pairs"])
def test_a_report_tells_the_worth_of_picking_by_value(kind):
    learner = make(kind, 120)
    found = learner.selection((2, 4, 16))
    assert [one.n for one in found.best_of] == ([2, 4, 16] if kind == "model" else [2, 4, 16][: len(found.best_of)])
    assert all(0.3 < one.share.value <= 1 for one in found.best_of)
    report = learner.diagnose(0)
    assert report.picking.sentence in str(report)
    assert report.to_dict()["picking"]["best_of"][0]["share"]["value"] == report.picking.best_of[0].share.value
    with pytest.raises(InputError, match="n"):
        learner.selection([1])


def test_too_few_ratings_tell_nothing_of_picking():
    learner = make("lexical", 8)
    assert learner.diagnose(0).picking is None
    with pytest.raises(InputError):
        learner.selection()


@pytest.mark.parametrize("kind", ["lexical", "model", "pairs"])
def test_texts_to_rate_next_are_unrated_and_each_once(kind):
    learner, query = make(kind), "which lamp?" if kind == "pairs" else None
    new = [text for text, _ in rated(30, seed=4)]
    candidates = [*new, new[0].upper(), *([] if query else learner.training_texts[:5])]
    found = learner.suggest(candidates, k=10, audit=0.3, queries=query)
    assert len({one.text for one in found}) == len(found) == 10
    assert {one.text for one in found} <= set(new)
    assert [one.audit for one in found] == [False] * 7 + [True] * 3
    assert all(one.inclusion == 1 for one in found[:7])
    assert all(one.inclusion == pytest.approx(3 / 23) for one in found[7:])
    assert all(one.gain > 0 for one in found[:7])
    assert all(one.query == query for one in found)
    assert found == learner.suggest(candidates, k=10, audit=0.3, queries=query)
    for one in found:
        learner.update(one.text, 5.0, query=query)
    assert not {one.text for one in found} & {one.text for one in learner.suggest(candidates, k=10, queries=query)}


def test_candidates_that_cannot_be_rated_are_refused():
    learner = make("lexical", 20)
    for candidates in (learner.training_texts, []):
        with pytest.raises(InputError, match="candidates were rated already, or there are none"):
            learner.suggest(candidates)
    with pytest.raises(InputError, match=r"candidates\[0\] must be a string"):
        learner.suggest([3])
    with pytest.raises(InputError, match="audit must be a share"):
        learner.suggest(["lamp"], audit=2)
