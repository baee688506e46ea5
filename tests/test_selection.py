"""What picking by value is worth: against every choice of n, and against raters whose noise is known."""

import itertools

import numpy as np
import pytest

from dspy_qvl.certainty import gain_of_best, noise_of_copies, selection, selection_within
from dspy_qvl.certainty.picking.report import enough
from dspy_qvl.errors import InputError


def rated(n, seed=0, skill=0.7, noise=0.0):
    """True worths, their ratings, and values."""
    rng = np.random.default_rng(seed)
    true = rng.normal(size=n)
    return true, true + noise * rng.normal(size=n), skill * true + np.sqrt(1 - skill**2) * rng.normal(size=n)


def by_enumeration(key, y, n):
    """The mean over every choice of n rows of the mean rating of those with the highest key."""
    found = []
    for rows in map(list, itertools.combinations(range(len(y)), n)):
        found.append(y[rows][key[rows] == key[rows].max()].mean())
    return np.mean(found) - y.mean()


@pytest.mark.parametrize("n", [1, 2, 3, 7, 9])
def test_the_gain_is_that_of_every_choice_of_n(n):
    _, y, values = rated(9)
    assert gain_of_best(values, y, [n])[0] == pytest.approx(by_enumeration(values, y, n), abs=1e-12)
    assert gain_of_best(y, y, [n])[0] == pytest.approx(by_enumeration(y, y, n), abs=1e-12)


@pytest.mark.parametrize("n", [2, 4])
def test_rows_of_one_value_share_their_probability(n):
    y, values = np.array([3.0, 1.0, 4.0, 1.0, 5.0, 9.0]), np.array([0.0, 1.0, 1.0, 2.0, 2.0, 2.0])
    # One of the tied rows is taken, each alike: the mean over every way to break the ties.
    broken = [by_enumeration(values + 1e-6 * np.array(order), y, n) for order in itertools.permutations(range(6))]
    assert gain_of_best(values, y, [n])[0] == pytest.approx(np.mean(broken), abs=1e-12)


def test_thousands_of_rows_are_as_exact_as_few():
    y = np.arange(20000.0)
    # The expected highest of n of 0 .. N - 1 is n (N + 1) / (n + 1) - 1.
    exact = [n * 20001 / (n + 1) - 1 - y.mean() for n in (2, 64, 6000)]
    np.testing.assert_allclose(gain_of_best(y, y, [2, 64, 6000]), exact, rtol=1e-9)


def test_draws_are_figures_of_resampled_groups():
    _, y, values = rated(24)
    groups = np.repeat(np.arange(8), 3)
    found = selection(y, values, groups=groups, n=(4,), n_draws=20, random_state=5).best_of[0]
    drawn = np.random.default_rng(5).multinomial(8, np.full(8, 1 / 8), size=20)
    for times, gain, share in zip(drawn, found.gain.draws, found.share.draws, strict=True):
        rows = np.repeat(np.arange(24), times[groups])
        by_value, by_rating = (gain_of_best(key[rows], y[rows], [4])[0] for key in (values, y))
        assert (gain, share) == pytest.approx((by_value, by_value / by_rating), abs=1e-12)


def test_the_interval_holds_the_share_of_the_population():
    _, y, values = rated(200_000)
    whole = gain_of_best(values, y, [16])[0] / gain_of_best(y, y, [16])[0]
    inside = 0
    for seed in range(1, 41):
        _, y, values = rated(200, seed)
        share = selection(y, values, n=(16,), n_draws=200).best_of[0].share
        inside += share.lower <= whole <= share.upper
    assert inside >= 34


def test_values_that_know_nothing_gain_nothing_and_ratings_all():
    _, y, _ = rated(600)
    noise = np.random.default_rng(9).normal(size=600)
    nothing, all_of_it = selection(y, noise), selection(y, y)
    assert all(one.share.lower < 0 < one.share.upper for one in nothing.best_of)
    assert all(one.share.value == 1 and one.share.lower == 1 for one in all_of_it.best_of)


@pytest.mark.parametrize("shape", ["normal", "bounded"])
def test_the_ceiling_is_the_gain_of_one_who_knows_what_raters_agree_on(shape):
    rng = np.random.default_rng(1)
    true = rng.normal(size=3000) if shape == "normal" else rng.uniform(-1.7, 1.7, size=3000)
    y = true + 0.7 * rng.normal(size=3000)
    found = selection(y, true + rng.normal(size=3000), noise=0.49, n=(4, 64), n_draws=10)
    for one in found.best_of:
        knows = gain_of_best(true, true, [one.n])[0] / one.judge.value
        assert one.ceiling == pytest.approx(knows, abs=0.06)
        assert one.ceiling < 0.9
        assert one.out_of_reach == pytest.approx((1 - one.ceiling) / (1 - one.share.value))
    assert "raters' own noise" in found.sentence


def test_ratings_without_noise_leave_nothing_out_of_reach():
    _, y, values = rated(600)
    found = selection(y, values, noise=np.zeros(600), n=(16,)).best_of[0]
    assert found.ceiling > 0.97
    assert found.out_of_reach < 0.1
    assert selection(y, values, n=(16,)).best_of[0].out_of_reach is None


def test_the_noise_of_one_rating_is_known_by_texts_rated_twice():
    rng = np.random.default_rng(0)
    texts = rng.permutation(np.repeat(np.arange(2000), 2))
    true = rng.uniform(-1, 1, size=2000)[texts]
    y = true + np.where(true < 0, 0.5, 0.1) * rng.normal(size=4000)
    noise = noise_of_copies(y, texts)
    assert noise[true < -0.5].mean() == pytest.approx(0.25, rel=0.15)
    assert noise[true > 0.5].mean() == pytest.approx(0.01, rel=0.5)
    same = noise_of_copies(np.tile([0.0, 1.0], 40), np.repeat(np.arange(40), 2))
    np.testing.assert_allclose(same, 0.5)
    assert noise_of_copies(y[:18], np.repeat(np.arange(9), 2)) is None  # nine repeats


def test_raters_who_agree_at_the_top_leave_more_to_gain():
    rng = np.random.default_rng(1)
    true = np.clip(rng.normal(0.5, 0.8, size=2000), -1.5, 1.5)
    texts = np.repeat(np.arange(2000), 2)
    y = (true + (0.1 + 0.6 * (1.5 - true) / 3) * rng.normal(size=(2, 2000))).T.ravel()
    knows = gain_of_best(true, true, [64])[0] / gain_of_best(y, y, [64])[0]
    noise = noise_of_copies(y, texts)
    by_level, by_mean = (
        selection(y, y, groups=texts, noise=found, n=(64,), n_draws=5).best_of[0].ceiling
        for found in (noise, noise.mean())
    )
    assert by_level == pytest.approx(knows, abs=0.04)
    assert by_mean < knows - 0.1  # one variance for all takes too much for luck


def test_enough_drafts_are_those_from_which_on_no_doubling_gains_more_than_a_twentieth():
    sizes = [2, 4, 8, 16]
    assert enough(sizes, np.array([1.0, 1.5, 1.57, 1.6])) == 4
    assert enough(sizes, np.array([1.0, 1.01, 1.5, 1.5])) == 8  # a later doubling that pays counts
    assert enough(sizes, np.array([1.0, 1.5, 2.0, 2.5])) is None
    assert enough(sizes, np.array([1.0, 1.0, 0.9, 0.8])) == 2
    assert enough([2], np.array([1.0])) is None


def test_the_sentence_says_every_share_and_where_more_drafts_stop_to_pay():
    rng = np.random.default_rng(0)
    y = np.clip(rng.normal(size=900), -1, 1)  # a scale that many texts reach the top of
    found = selection(y, y + 0.2 * rng.normal(size=900))
    assert [one.n for one in found.best_of] == [4, 16, 64, 256]
    assert found.enough in (4, 8, 16)
    assert f"From {found.enough} drafts on, twice as many gain at most 5 % more." in found.sentence
    for one in found.best_of:
        assert f"{one.share.value:.2f} ({one.share.lower:.2f} to {one.share.upper:.2f}) with {one.n}" in found.sentence
    _, y, values = rated(60)
    assert "Up to 20, the most that 60 ratings can tell of, more drafts pay." in selection(y, values).sentence


def test_drafts_of_one_question_are_chosen_among_themselves():
    rng = np.random.default_rng(0)
    questions = rng.permutation(np.repeat(np.arange(12), 6))
    easy = 10 * rng.normal(size=12)[questions]  # what a value function of questions alone would see
    own = rng.normal(size=72)
    y = easy + own
    assert selection(y, easy, groups=questions, n=(4,)).best_of[0].share.value > 0.8
    assert selection_within(y, easy, questions, n=(4,)).best_of[0].share.value == pytest.approx(0, abs=1e-9)
    values = own + rng.normal(size=72)
    found = selection_within(y, values, questions, n=(2, 4, 16), n_draws=30, random_state=3)
    assert [one.n for one in found.best_of] == [2, 4]
    for one in found.best_of:
        rows = [questions == question for question in dict.fromkeys(questions)]
        by_value = np.array([by_enumeration(values[some], y[some], one.n) for some in rows])
        by_rating = np.array([by_enumeration(y[some], y[some], one.n) for some in rows])
        assert one.share.value == pytest.approx(by_value.mean() / by_rating.mean(), abs=1e-9)
        for times, share in zip(
            np.random.default_rng(3).multinomial(12, [1 / 12] * 12, 30), one.share.draws, strict=True
        ):
            assert share == pytest.approx((times @ by_value) / (times @ by_rating), abs=1e-9)


def test_questions_with_too_few_drafts_are_left_out():
    _, y, values = rated(23)
    questions = np.array([0] * 10 + [1] * 10 + [2] * 3)
    found = selection_within(y, values, questions, n=(4,)).best_of[0]
    first, second = (gain_of_best(values[rows], y[rows], [4])[0] for rows in (slice(10), slice(10, 20)))
    assert found.gain.value == pytest.approx((first + second) / 2)
    with pytest.raises(InputError, match="fewer than half of the 4 questions have 8 rated drafts"):
        selection_within(y, values, [0] * 10 + [1] * 3 + [2] * 3 + [3] * 7, n=(8,))
    with pytest.raises(InputError, match="none is better than another"):
        selection_within(questions.astype(float), values, questions, n=(2,))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"values": np.zeros(29)}, "29 values for 30 ratings"),
        ({"groups": [1, 2]}, "2 groups for 30 ratings"),
        ({"noise": [0.1]}, "1 noise for 30 ratings"),
        ({"noise": -1.0}, "at least 0, but got -1"),
        ({"y": np.ones(30)}, "all 30 ratings are 1"),
        ({"y": np.full(30, np.nan)}, "y must be finite"),
        ({"values": ["a"] * 30}, "values must be numbers"),
        ({"n": 4}, "n must be a list"),
        ({"n": (1,)}, "at least 2"),
        ({"n": (16,)}, "48 for the best of 16, but there are 30"),
        ({"n": ()}, "n is empty"),
    ],
)
def test_input_that_says_nothing_is_refused(changed, message):
    _, y, values = rated(30)
    given = {"y": y, "values": values} | changed
    with pytest.raises(InputError, match=message):
        selection(given.pop("y"), given.pop("values"), **given)
