"""Each verdict is reached by ratings that deserve it."""

import math

import numpy as np
import pytest

from dspy_qvl.certainty import VERDICTS, RatedRows, beside_baselines, beyond_length, verdict_on
from dspy_qvl.certainty.verdict.examination import against_noise
from dspy_qvl.certainty.verdict.verdict import NEEDED, design_effect, intraclass, two_digits, verdict_of
from tests.test_examination import rated

CASES = {
    "useful": {"n": 250},
    "weak": {"n": 400, "signal": 0.12},
    "no better than length": {"n": 250, "signal": 0.0, "of_length": 2.0},
    "no better than noise": {"n": 400, "signal": 0.0},
    "too few to tell": {"n": 40, "signal": 0.0},
}


def judged(one, p=None):
    compared = beside_baselines(one, ["length", "nearest"])
    return verdict_on(one, against_noise(one) if p is None else p, compared, beyond_length(one, compared.values))


@pytest.mark.parametrize("name", VERDICTS)
def test_each_verdict_is_reached(name):
    found = judged(rated(**CASES[name]))
    assert found.name == name
    assert found.sentence.startswith(name.capitalize() + ":")
    assert found.name == verdict_of(found.numbers)
    assert (found.numbers["more"] > 0) == (name == "too few to tell")
    if name == "too few to tell":
        assert found.numbers["more"] == 160  # 200 less the 40 there are
        assert found.sentence.endswith("rate about 160 more.")


def test_the_rule_at_its_limits():
    base = {
        "n": 300,
        "n_groups": 5,
        "needed": 200,
        "p": 0.05,
        "p_length": 0.05,
        "spearman": 0.3,
        "spearman_lower": 0.01,
        "spearman_upper": 0.5,
    }
    base |= {"length_spearman_lower": 0.1}
    for changed, name in [
        ({}, "useful"),
        ({"spearman": 0.29}, "weak"),
        ({"p_length": 0.055}, "no better than length"),
        ({"p_length": 0.055, "length_spearman_lower": -0.01}, "useful"),
        ({"p_length": 0.055, "length_spearman_lower": math.nan}, "useful"),
        ({"p": 0.055}, "too few to tell"),
        ({"n_groups": 4}, "too few to tell"),
        ({"n_groups": 4, "p": 0.5, "spearman_upper": 0.1}, "too few to tell"),
        ({"spearman_lower": 0.0}, "too few to tell"),
        ({"p": 0.055, "spearman_upper": 0.19}, "no better than noise"),
        ({"p": 0.055, "spearman_upper": 0.19, "n": 199}, "too few to tell"),
        (
            {"p": 1.0, "spearman": math.nan, "spearman_lower": math.nan, "spearman_upper": math.nan},
            "no better than noise",
        ),
    ]:
        assert verdict_of(base | changed) == name, changed


def test_ratings_that_were_enough_are_doubled_where_they_still_do_not_tell():
    found = judged(rated(220, signal=0.1, seed=1), p=0.06)
    assert found.name == "too few to tell"
    assert found.numbers["needed"] == 200
    assert found.numbers["more"] == 220


def test_a_better_baseline_is_part_of_the_sentence():
    one = rated(200)
    line = one.X[:, 1:4].sum(axis=1, keepdims=True)
    told = RatedRows(one.X[:, :2], one.X[:, :2], one.y, 3.0, one.members, one.texts, np.hstack([line, 1 + 0 * line]))
    found = judged(told)
    assert found.better == ("nearest",)
    assert found.sentence.endswith("The baseline 'nearest' orders the texts clearly better.")


# Ratings that are enough


def test_so_many_ratings_tell_a_correlation_of_one_fifth_from_none():
    assert math.ceil(NEEDED) == 194
    rng = np.random.default_rng(0)
    excluded = {0.0: 0, 0.2: 0}
    for true in excluded:
        for _ in range(2000):
            x, noise = rng.normal(size=(2, 194))
            half = 1.959964 / math.sqrt(194 - 3)
            at = math.atanh(np.corrcoef(x, true * x + math.sqrt(1 - true**2) * noise)[0, 1])
            excluded[true] += at + half < math.atanh(0.2) if true == 0 else at - half > 0
    assert excluded[0.0] / 2000 == pytest.approx(0.8, abs=0.03)
    assert excluded[0.2] / 2000 == pytest.approx(0.8, abs=0.03)


def test_the_design_effect_is_that_by_which_groups_widen_the_correlation():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 8)
    found, designs = [], []
    for _ in range(1500):
        x, y = (rng.normal(size=60)[groups] + rng.normal(size=480) for _ in range(2))
        found.append(np.corrcoef(x, y)[0, 1])
        designs.append(design_effect(y, x, groups))
    assert np.mean(designs) == pytest.approx(1 + 7 * 0.25, rel=0.05)
    assert np.var(found) * 480 == pytest.approx(np.mean(designs), rel=0.1)
    assert design_effect(rng.normal(size=50), rng.normal(size=50), np.arange(50)) == 1.0
    assert intraclass(np.repeat(rng.normal(size=9), 3), np.repeat(np.arange(9), 3)) == pytest.approx(1.0)


def test_where_ratings_of_a_group_are_alike_other_groups_are_advised():
    groups = np.repeat(np.arange(10), 12)
    one = rated(120, signal=0.0, per_group=12)
    rng = np.random.default_rng(1)
    X = one.X + 2 * rng.normal(size=(10, 6))[groups].astype(np.float32)
    y = 2 * rng.normal(size=10)[groups] + rng.normal(size=120)
    found = judged(RatedRows(X, X, y, 3.0, one.members, one.texts, X), p=0.5)
    assert found.name == "too few to tell"
    assert found.numbers["needed"] > 400
    assert found.sentence.endswith("rate texts of other groups.")


@pytest.mark.parametrize(
    ("number", "rounded"), [(3, 3), (12, 12), (120, 120), (193.2, 200), (1201, 1300), (9990, 10**4)]
)
def test_advice_is_rounded_up_to_two_digits(number, rounded):
    assert two_digits(number) == rounded
