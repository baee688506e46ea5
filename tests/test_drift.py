"""Drift: an alarm once texts are no longer of the kind that was rated; and the file of judgements."""

import json
from collections import Counter
from itertools import permutations

import dspy
import numpy as np
import pytest

from dspy_qvl import InputError, QVLWarning, Qwen3EmbeddingValueLearner, ValueMetric
from dspy_qvl.certainty import SIGNALS, WEALTH, DriftTest, betting, smoothed_ranks
from dspy_qvl.certainty.drift import ORDINARY, RESPECTS
from dspy_qvl.fitting import copies
from tests.test_support import RATED, sentences

HONEST = sentences(400, 1)
OTHERS = [
    f"expression of protein {number} in cells of mice depends on the receptor; patients were randomised."
    for number in range(60)
]


def made(seed: int) -> DriftTest:
    return DriftTest.of(RATED, range(len(RATED)), seed)


@pytest.fixture(scope="module")
def test() -> DriftTest:
    return made(0)


# p-values and wealth


def test_in_all_orders_of_the_scores_the_ranks_are_uniform_and_independent():
    found = Counter()
    for order in permutations([0.1, 0.2, 0.3, 0.4, 0.5]):
        p_values = smoothed_ranks(np.array(order[:2]), np.array(order[2:]), seed=0)
        found[tuple(np.ceil(p_values * [3, 4, 5]).astype(int).tolist())] += 1
    assert len(found) == 3 * 4 * 5
    assert set(found.values()) == {2}


def test_with_ties_the_p_values_are_uniform_and_independent():
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 3, (3000, 14)).astype(float)
    p = np.array([smoothed_ranks(row[:10], row[10:], seed) for seed, row in enumerate(drawn)])
    ranked = np.sort(p, axis=0)
    assert np.abs(ranked - np.linspace(0, 1, len(p))[:, None]).max() < 0.03  # Kolmogorov's 1 % bound: .0297
    assert np.abs(np.corrcoef(p.T) - np.eye(4)).max() < 0.06


def test_a_p_value_counts_what_is_higher_among_all_that_came_before():
    calibration, scores = np.array([1.0, 2.0, 2.0, 5.0]), np.array([2.0, 7.0, 6.0])
    p = smoothed_ranks(calibration, scores, seed=3)
    assert 1 / 5 < p[0] <= 4 / 5  # one higher, three equal
    assert 0 < p[1] <= 1 / 6
    assert 1 / 7 < p[2] <= 2 / 7
    assert np.isin(smoothed_ranks(calibration, scores, seed=4), p).sum() == 0


@pytest.mark.parametrize("before", [[], [0.01] * 5, [0.99, 0.5, 0.02]])
def test_whatever_came_before_a_uniform_p_value_leaves_the_expected_wealth_as_it_was(before):
    u = (np.arange(4000) + 0.5) / 4000
    now = betting(np.array(before))[-1] if before else 1.0
    after = np.array([betting(np.array([*before, p]))[-1] for p in u**2])
    assert np.mean(after * 2 * u) == pytest.approx(now, rel=1e-6)  # p = u^2, so that 1 / sqrt(p) is no pole


def test_the_wealth_of_very_unlikely_p_values_stays_finite():
    wealth = betting(np.full(3000, 1e-9))
    assert wealth[-1] == pytest.approx(1e300)
    assert (np.diff(wealth) >= 0).all()


# Texts


def test_of_forty_runs_of_the_rated_kind_one_alarms_at_most():
    drawn = [made(seed)(sentences(200, 100 + seed)) for seed in range(40)]
    assert sum(drift.alarm is not None for drift in drawn) <= 1
    assert all(len(drift.texts) > 150 for drift in drawn)
    assert max(drift.wealth.max() for drift in drawn) > 1.1  # it does bet


def test_other_texts_alarm_at_once_and_the_report_says_what_is_new(test):
    drift = test(OTHERS)
    assert drift.alarm is not None
    assert drift.alarm < 20
    assert drift.wealth[drift.alarm] >= WEALTH > drift.wealth[: drift.alarm].max()
    assert drift.since == 0
    assert drift.respect in RESPECTS.values()
    assert set(RESPECTS) == set(SIGNALS)
    assert ("protein", len(OTHERS)) in drift.new_words
    assert f"alarm at text {drift.alarm + 1} of {len(OTHERS)}" in str(drift)
    assert f"protein (in {len(OTHERS)})" in str(drift)


def test_it_says_since_when_the_texts_are_others(test):
    drift = test(HONEST[:200] + OTHERS)
    begun = len(drift.texts) - len(OTHERS)
    assert drift.alarm is not None
    assert drift.since is not None
    assert begun < drift.alarm < begun + 30
    assert abs(drift.since - begun) <= 3


def test_texts_that_are_too_ordinary_alarm_as_well(test):
    p_values = dict(zip((drift := test(HONEST)).texts, drift.p_values, strict=True))
    drift = test(sorted(p_values, key=p_values.__getitem__)[len(p_values) // 2 :])
    assert drift.alarm is not None
    assert drift.respect == ORDINARY


def test_without_an_alarm_nothing_is_called_new(test):
    drift = test(HONEST[:50])
    assert (drift.alarm, drift.since, drift.respect, drift.new_words) == (None, None, None, ())
    assert str(drift).startswith(f"no alarm in {len(drift.texts)} texts")
    assert len(test([]).wealth) == 0
    assert "no alarm in 0 texts" in str(test([]))
    assert test([""]).alarm is None


def test_the_order_and_the_seed_decide_and_later_texts_change_nothing_before_them(test):
    mixed = HONEST[:100] + OTHERS[:20]
    drift, longer, again = test(mixed), test(mixed + HONEST[100:200]), made(0)(mixed)
    n = len(drift.texts)
    assert drift.texts == longer.texts[:n] == again.texts
    assert drift.p_values.tolist() == longer.p_values[:n].tolist() == again.p_values.tolist()
    assert drift.alarm != test(mixed[::-1]).alarm
    assert made(1)(mixed).p_values.tolist() != drift.p_values.tolist()


def test_copies_and_rated_texts_are_not_tested(test):
    new = [text for text in dict.fromkeys(HONEST) if text not in RATED][:3]
    assert test([new[0], RATED[0], new[1], f"  {new[0].upper()}", new[2]]).texts == tuple(new)


def test_whole_groups_are_fitted_or_compared():
    distinct = list(dict.fromkeys(RATED))[:270]
    assert len(DriftTest.of(distinct, [row // 90 for row in range(270)]).calibration) == 180  # of three groups two
    assert len(DriftTest.of(distinct, [0] * 270).calibration) == 135  # no half without the one: each text by itself


def test_few_ratings_are_refused():
    with pytest.raises(InputError, match="at least 20 different rated texts, but there are 2; rate more"):
        DriftTest.of(["one text", "another"] * 20, range(40))
    with pytest.raises(InputError, match="in each of two halves without a group in common, but one has 2; rate"):
        DriftTest.of(RATED, [0, 0, *[1] * (len(RATED) - 2)])
    with pytest.raises(InputError, match="but one has 0"):  # all of the other half are copies
        DriftTest.of(RATED * 2, [0] * len(RATED) + [1] * len(RATED))


# Of a metric


@pytest.fixture(scope="module")
def learner() -> Qwen3EmbeddingValueLearner:
    learner = Qwen3EmbeddingValueLearner("lexical", cache_dir=None)
    for row, text in enumerate(RATED):
        learner.add_training_example(text, float(row % 7))
    learner.optimize_hyperparameters([1.0])
    return learner


def scored(learner: Qwen3EmbeddingValueLearner, texts: list[str]) -> ValueMetric:
    metric = ValueMetric(learner, text="answer")
    for text in texts:
        metric(None, dspy.Prediction(answer=text))
    return metric


def test_a_metric_tests_what_it_scored_in_the_order_of_the_first_calls(learner):
    mixed = HONEST[:30] + OTHERS[:20]
    found = scored(learner, [*mixed, *HONEST[:30]]).drift()
    by_hand = DriftTest.of(RATED, copies(RATED))(mixed)
    assert found.texts == by_hand.texts
    assert found.alarm == by_hand.alarm is not None
    assert found.p_values.tolist() == by_hand.p_values.tolist()
    with pytest.raises(InputError, match="seed must be a whole number"):
        scored(learner, []).drift(-1)


def test_a_metric_without_rated_texts_cannot_tell(learner, tmp_path):
    bare = Qwen3EmbeddingValueLearner("lexical", cache_dir=None, keep_examples=False)
    for text, score in zip(RATED[:30], range(30), strict=True):
        bare.add_training_example(text, float(score))
    bare.optimize_hyperparameters([1.0])
    bare.save(tmp_path / "value.json")
    loaded = Qwen3EmbeddingValueLearner("lexical", cache_dir=None)
    loaded.load(tmp_path / "value.json")
    metric = ValueMetric(loaded, text="answer")
    with pytest.raises(InputError, match="keep_examples=False"):
        metric.drift()


def test_the_log_is_written_as_it_goes(learner, tmp_path):
    metric, path = scored(learner, HONEST[:3]), tmp_path / "logs" / "scored.jsonl"
    assert metric.write_log(path) == 3
    metric(None, dspy.Prediction(answer="naïve\u2028line"))
    assert (metric.write_log(path), metric.write_log(path)) == (1, 0)
    assert metric.write_log(tmp_path / "other.jsonl") == 4
    lines = path.read_text().splitlines()
    assert lines == (tmp_path / "other.jsonl").read_text().splitlines()
    for line, judgement in zip(map(json.loads, lines), metric.log, strict=True):
        assert (line["text"], line["value"], line["support"]) == (judgement.text, judgement.value, judgement.support)
        assert line["marks"] == list(judgement.marks)
        assert not {"above", "below"} & set(line)


def test_another_metric_continues_a_file_and_ends_a_broken_line(learner, tmp_path):
    path = tmp_path / "scored.jsonl"
    path.write_text('{"text": "half a')
    scored(learner, HONEST[:2]).write_log(path)
    scored(learner, HONEST[2:3]).write_log(path)
    assert [json.loads(line)["text"] for line in path.read_text().splitlines()[1:]] == HONEST[:3]


def test_judgements_that_were_dropped_before_they_were_written_are_told(learner, tmp_path, monkeypatch):
    monkeypatch.setattr("dspy_qvl.learner.memo.KEPT_TEXTS", 5)
    texts = list(dict.fromkeys(HONEST))[:9]
    metric = scored(learner, texts[:2])
    assert metric.write_log(tmp_path / "log") == 2
    for text in texts[2:]:
        metric(None, dspy.Prediction(answer=text))
    with pytest.warns(QVLWarning, match="2 judgements are missing"):
        assert metric.write_log(tmp_path / "log") == 5
    written = [json.loads(line)["text"] for line in (tmp_path / "log").read_text().splitlines()]
    assert written == texts[:2] + texts[4:]


def test_a_log_that_cannot_be_written_is_not_counted_as_written(learner, tmp_path):
    metric = scored(learner, HONEST[:2])
    with pytest.raises(InputError, match="is a folder"):
        metric.write_log(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        metric.write_log(tmp_path / "file" / "log")
    (tmp_path / "file").unlink()
    assert metric.write_log(tmp_path / "file" / "log") == 2
