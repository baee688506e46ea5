"""Means and differences from ratings of some rows and values of all."""

import math

import numpy as np
import pytest
from scipy import stats

from dspy_qvl import InputError
from dspy_qvl.certainty import difference, honest_values, mean_value
from dspy_qvl.ridge import fit, predict

N, RATED = 300, 40


def rows(seed=0, n=N, rated=RATED, slope=0.8, noise=1.0, groups=None):
    """Ratings, values and the same ratings with NaN where nobody rated; rows of a group are alike."""
    rng = np.random.default_rng(seed)
    skill = rng.normal(size=n)
    shared = 0 if groups is None else rng.normal(size=max(groups) + 1)[groups]
    y, v = 5 + skill + shared + noise * rng.normal(size=n) / 2, slope * skill + shared / 2
    given = np.full(n, np.nan)
    given[rng.permutation(n)[:rated]] = 1
    return y, v, given * y


def ratings_interval(y, confidence=0.95):
    half = stats.t.ppf((1 + confidence) / 2, len(y) - 1) * y.std(ddof=1) / math.sqrt(len(y))
    return y.mean() - half, y.mean() + half


def ends(interval):
    return interval.lower, interval.upper


def test_the_mean_is_that_of_ratings_moved_by_the_power_times_the_imbalance_of_values():
    _, v, given = rows()
    rated = np.isfinite(given)
    told = mean_value(v, given)
    assert told.power > 0
    assert told.value == pytest.approx(given[rated].mean() - told.power * (v[rated].mean() - v.mean()), rel=1e-12)


def test_the_power_is_the_slope_of_ratings_on_values_shrunken_by_its_noise():
    _, v, given = rows(n=30_000, rated=60)  # so many rows that their own mean is known
    rated = np.isfinite(given)
    found = stats.linregress(v[rated], given[rated])
    F = (found.slope / found.stderr) ** 2
    assert mean_value(v, given).power == pytest.approx(found.slope * (1 - 1 / F), rel=0.01)


def test_point_and_standard_error_agree_with_ppi_python():
    ppi = pytest.importorskip("ppi_py")
    _, v, given = rows(n=20_000, rated=2_000)
    rated = np.isfinite(given)
    told = mean_value(v, given)
    y, seen, unseen = given[rated], v[rated], v[~rated]
    lam = told.power * len(unseen) / len(v)  # of rated rows beside others, and not of rated rows within all
    assert ppi.ppi_mean_pointestimate(y, seen, unseen, lam=lam)[0] == pytest.approx(told.value, rel=1e-12)
    lower, upper = (end[0] for end in ppi.ppi_mean_ci(y, seen, unseen, alpha=0.05, lam=lam))
    assert ends(told) == pytest.approx((lower, upper), abs=0.01 * (upper - lower))
    tuned = ppi.ppi_mean_pointestimate(y, seen, unseen)[0]
    assert told.value == pytest.approx(tuned, abs=0.02 * (upper - lower))


def test_ratings_alone_are_the_classical_interval():
    _, v, given = rows()
    told = mean_value(v, given, confidence=0.9)
    assert ends(told.ratings_alone) == pytest.approx(ratings_interval(given[np.isfinite(given)], 0.9), rel=1e-12)
    assert (told.n_rated, told.n_rows, told.n_groups) == (RATED, N, RATED)


def test_values_alone_are_the_mean_of_all_values_with_its_interval():
    _, v, given = rows()
    assert ends(mean_value(v, given).values_alone) == pytest.approx(ratings_interval(v), rel=1e-10)


def test_ratings_of_groups_have_the_standard_error_of_their_groups():
    groups = np.arange(N) % 12
    _, v, given = rows(groups=groups)
    rated = np.isfinite(given)
    off = given[rated] - given[rated].mean()
    sums = [off[groups[rated] == group].sum() for group in set(groups[rated].tolist())]
    k = len(sums)
    told = mean_value(v, given, groups=groups)
    alone = told.ratings_alone
    assert alone.se == pytest.approx(math.sqrt(k / (k - 1) * np.square(sums).sum()) / RATED, rel=1e-12)
    assert alone.half_width == pytest.approx(stats.t.ppf(0.975, k - 1) * alone.se, rel=1e-12)
    assert told.n_groups == k


def test_where_all_are_rated_or_values_do_not_differ_the_interval_is_that_of_ratings():
    y, v, given = rows()
    for values, ratings in ((v, y), (np.full(N, 0.1), given)):
        told = mean_value(values, ratings)
        assert told.power == 0
        assert ends(told) == ends(told.ratings_alone)


def test_values_of_another_scale_and_origin_tell_the_same():
    _, v, given = rows()
    one, other = mean_value(v, given), mean_value(1e3 * v + 1e6, given)
    assert ends(other) == pytest.approx(ends(one), rel=1e-7)


def test_values_that_run_against_the_ratings_are_not_used():
    _, v, given = rows()
    assert mean_value(-v, given).power == 0


def test_groups_that_are_single_rows_change_nothing():
    _, v, given = rows()
    assert mean_value(v, given, groups=[f"text {row}" for row in range(N)]) == mean_value(v, given)


def coverage(draw, n_draws=300):
    """The share of intervals that hold the truth, of ours and of ratings alone, and the ratio of their mean widths."""
    inside, alone, widths = 0, 0, np.zeros(2)
    for seed in range(n_draws):
        told, truth = draw(seed)
        inside += told.lower <= truth <= told.upper
        alone += told.ratings_alone.lower <= truth <= told.ratings_alone.upper
        widths += told.half_width, told.ratings_alone.half_width
    return inside / n_draws, alone / n_draws, widths[0] / widths[1]


def test_twenty_ratings_cover_as_often_as_the_classical_interval_and_are_narrower():
    def draw(seed):
        _, v, given = rows(seed, n=200, rated=20)
        return mean_value(v, given), 5

    ours, alone, width = coverage(draw)
    assert ours > alone - 0.02
    assert width < 0.75


def test_values_that_know_nothing_cost_next_to_nothing():
    def draw(seed):
        _, _, given = rows(seed, n=200, rated=20)
        return mean_value(np.random.default_rng(seed + 10**6).normal(size=200), given), 5

    ours, alone, width = coverage(draw)
    assert ours > alone - 0.02
    assert width < 1.02


def test_ten_groups_cover_as_often_as_the_classical_interval():
    groups = np.repeat(np.arange(10), 20)

    def draw(seed):
        _, v, given = rows(seed, n=200, rated=60, groups=groups)
        return mean_value(v, given, groups=groups), 5

    ours, alone, width = coverage(draw)
    assert ours > max(alone - 0.02, 0.9)
    assert width < 1
    assert (
        coverage(lambda seed: (mean_value(*rows(seed, 200, 60, groups=groups)[1:]), 5), 100)[0] < 0.75
    )  # groups untold


def test_values_that_run_against_the_ratings_between_groups_have_less_power():
    rng = np.random.default_rng(0)
    groups = np.arange(N) % 20
    shared, skill = rng.normal(size=20)[groups], rng.normal(size=N)
    given = np.where((groups < 10) & (rng.random(N) < 0.5), shared + 2 * skill, np.nan)  # ten groups are not rated
    told = mean_value(2 * skill - shared, given, groups=groups)
    assert told.power < 0.6 * mean_value(2 * skill - shared, given).power
    assert told.half_width < 1.03 * told.ratings_alone.half_width


def test_rows_rated_by_their_values_need_their_inclusion():
    def sampled(seed):
        y, v, _ = rows(seed, n=400)
        chance = 0.02 + 0.4 / (1 + np.exp(-2 * v))
        return v, np.where(np.random.default_rng(seed + 10**6).random(400) < chance, y, np.nan), chance

    def draw(seed):
        v, given, chance = sampled(seed)
        return mean_value(v, given, inclusion=chance), 5

    def untold(seed):
        _, given, _ = sampled(seed)
        return mean_value(np.zeros(400), given), 5

    assert coverage(draw, 200)[0] > 0.9
    assert coverage(untold, 200)[0] < 0.2


def test_inclusion_weighs_ratings_by_one_over_it():
    _, v, given = rows()
    chance = np.random.default_rng(1).uniform(0.1, 1, N)
    rated = np.isfinite(given)
    told = mean_value(v, given, inclusion=chance)
    assert told.ratings_alone.value == pytest.approx(np.average(given[rated], weights=1 / chance[rated]), rel=1e-12)
    assert mean_value(v, given, inclusion=np.full(N, 0.3)).value == pytest.approx(mean_value(v, given).value, rel=1e-12)


# Differences


def test_a_difference_of_pairs_is_the_mean_of_differences():
    (ya, va, _), (yb, vb, given) = rows(1), rows(2)
    yb, vb = yb + ya, vb + va
    rated = np.isfinite(given)
    told = difference(va, vb, np.where(rated, ya, np.nan), np.where(rated, yb, np.nan))
    one = mean_value(va - vb, np.where(rated, ya - yb, np.nan))
    assert ends(told) == pytest.approx(ends(one), rel=1e-9)
    assert (told.power, told.n_rated, told.n_rows) == (pytest.approx(one.power), RATED, N)


def test_a_difference_of_other_questions_is_welchs():
    (_, va, a), (_, vb, b) = rows(1, n=200, rated=30), rows(2, n=100, rated=12, noise=3)
    told = difference(va, vb, a, b, paired=False)
    welch = stats.ttest_ind(a[np.isfinite(a)], b[np.isfinite(b)], equal_var=False).confidence_interval(0.95)
    assert ends(told.ratings_alone) == pytest.approx((welch.low, welch.high), rel=1e-9)
    assert told.n_rows == 300


def test_programs_that_swap_places_swap_ends():
    (_, va, a), (_, vb, b) = rows(1), rows(2)
    one, other = difference(va, vb, a, b), difference(vb, va, b, a)
    assert ends(one) == pytest.approx([-end for end in ends(other)[::-1]], rel=1e-12)


def test_ratings_of_one_program_more_count():
    (ya, va, _), (_, vb, b) = rows(1), rows(2)
    some = difference(va, vb, np.where(np.isfinite(b), ya, np.nan), b)
    assert difference(va, vb, ya, b).half_width < some.half_width


def test_the_better_program_is_named_where_the_interval_lies_beside_0():
    (_, va, a), (_, vb, b) = rows(1), rows(2)
    assert difference(va, vb, a + 3, b).better == "A"
    assert "B is better" in str(difference(va, vb, a, b + 3))
    close = difference(va, vb, a, b)
    assert close.better is None
    assert "cannot be told yet" in str(close)


def test_groups_of_two_programs_may_be_shared():
    (_, va, a), (_, vb, b) = rows(1, n=100), rows(2, n=100)
    shared, apart = np.arange(100) % 10, np.arange(100)
    one = difference(va, vb, a, b, paired=False, groups=(shared, shared))
    assert one.n_groups == 10
    two = difference(va, vb, a, b, paired=False, groups=(apart, [f"b{row}" for row in apart]))
    assert ends(two) == pytest.approx(ends(difference(va, vb, a, b, paired=False)), rel=1e-12)


# Plans


def test_so_many_ratings_more_do_halve_the_interval():
    y, v, _ = rows(5, n=4_000)
    order = np.random.default_rng(0).permutation(4_000)

    def with_ratings(n):
        given = np.full(4_000, np.nan)
        given[order[:n]] = y[order[:n]]
        return mean_value(v, given)

    now = with_ratings(60)
    more = now.plan_ratings(now.half_width / 2)
    assert with_ratings(60 + more).half_width == pytest.approx(now.half_width / 2, rel=0.15)
    assert f"rate {more} more to halve it" in str(now)
    assert now.plan_ratings(now.half_width) == 0


def test_where_groups_decide_more_ratings_of_the_same_ones_do_not_help():
    groups = np.arange(N) % 10
    _, v, given = rows(groups=groups, noise=0.1)
    told = mean_value(v, given, groups=groups)
    assert told.plan_ratings(told.half_width / 2) is None
    assert "takes more rows" in str(told)


def test_without_values_a_plan_is_the_classical_one():
    _, _, given = rows(n=10_000, rated=50)
    told = mean_value(np.zeros(10_000), given)
    sd = given[np.isfinite(given)].std(ddof=1)
    n = 50 + told.plan_ratings(0.1)
    assert stats.t.ppf(0.975, n - 1) * sd / math.sqrt(n) <= 0.1 < stats.t.ppf(0.975, n - 2) * sd / math.sqrt(n - 1)


# Too little


def test_one_rating_or_one_group_has_no_interval():
    _, v, given = rows(rated=1)
    one = mean_value(v, given)
    assert (one.lower, one.upper, one.power) == (-math.inf, math.inf, 0)
    assert one.plan_ratings(0.1) is None
    assert "1 row rated" in str(one)
    together = mean_value(v, rows()[2], groups=["the same"] * N)
    assert math.isinf(together.half_width)
    assert "needs ratings of at least two rows, and of two groups" in str(together)


def test_equal_ratings_say_that_they_tell_nothing():
    told = mean_value(np.arange(10), [3, 3, *[math.nan] * 8])
    assert told.half_width == 0
    assert "nothing tells how far others may be" in str(told)


def test_few_ratings_do_not_choose_a_power():
    _, v, given = rows(rated=4)
    told = mean_value(v, given)
    assert ends(told) == ends(told.ratings_alone)
    assert mean_value(v, rows(rated=5)[2]).half_width > 0


def test_the_text_says_what_either_alone_would_have_said():
    _, v, given = rows()
    told = mean_value(v, given)
    lines = str(told).splitlines()
    assert lines[0].startswith(f"mean {told.value:.2f} ± {told.half_width:.2f} (95 %: {told.lower:.2f} to ")
    assert lines[1].split()[:5] == ["ratings", "alone", *str(told.ratings_alone).split()]
    assert lines[2].split()[:5] == ["values", "alone", *str(told.values_alone).split()]
    assert str(told.ratings_alone) != str(told.values_alone)


def test_the_same_rows_give_the_same_bits():
    _, v, given = rows()
    groups = np.arange(N) % 20
    assert mean_value(v, given, groups=groups) == mean_value(v.tolist(), given.tolist(), groups=groups.tolist())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": [1.0]}, "values has 1 entries but ratings has 300"),
        ({"values": "high"}, "values must be a list of numbers"),
        ({"values": np.full(N, np.nan)}, r"values\[0\] is nan"),
        ({"values": ["high"] * N}, "values must hold numbers"),
        ({"ratings": np.full(N, np.nan)}, "ratings holds no rating"),
        ({"ratings": np.full(N, np.inf)}, r"ratings\[0\] is inf"),
        ({"values": [], "ratings": []}, "values is empty"),
        ({"groups": [1]}, "groups has 1 entries but there are 300 rows"),
        ({"groups": [None] * N}, r"groups\[0\] is None"),
        ({"inclusion": np.zeros(N)}, r"inclusion\[0\] is 0, of a row that was"),
        ({"inclusion": np.full(N, np.nan)}, r"inclusion\[0\] is nan"),
        ({"inclusion": np.full(N, 1.5)}, r"inclusion\[0\] is 1.5"),
        ({"inclusion": [0.5]}, "inclusion has 1 entries"),
        ({"confidence": 95}, "confidence must lie between 0 and 1"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(change, message):
    _, v, given = rows()
    given = {"values": v, "ratings": given} | change
    with pytest.raises(InputError, match=message):
        mean_value(given.pop("values"), given.pop("ratings"), **given)


def test_differences_that_cannot_be_taken_are_refused():
    _, v, given = rows()
    with pytest.raises(InputError, match="say paired=False"):
        difference(v, v[:10], given, given[:10])
    with pytest.raises(InputError, match="groups must be a tuple of two lists"):
        difference(v, v, given, given, paired=False, groups=np.arange(N))
    with pytest.raises(InputError, match="None for the other"):
        difference(v, v, given, given, paired=False, groups=(np.arange(N), None))
    with pytest.raises(InputError, match="ratings_b holds no rating"):
        difference(v, v, given, np.full(N, np.nan))
    with pytest.raises(InputError, match="half_width must be above 0"):
        mean_value(v, given).plan_ratings(0)


# Values of rows that were learned from


def columns(seed, n=200, rated=40, d=60):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)).astype(np.float32)
    y = 5 + X[:, :8].sum(axis=1) / 2 + rng.normal(size=n)
    return X, np.where(np.arange(n) < rated, y, np.nan)


def test_honest_values_are_those_of_fits_without_the_group_shifted_to_one_mean():
    X, given = columns(0)
    groups = np.arange(200) % 25  # five folds would split none of them; rows 40 and on belong to the same groups
    groups[150:] = 25  # and these to a group that nobody rated
    values = honest_values(X, given, 3.0, groups=groups)
    rated = np.isfinite(given)
    expected = {}
    for group in range(25):
        seen_of = [
            frozenset(np.flatnonzero(rated & ~np.isin(groups, list(fold))))
            for fold in folds_of(groups, rated)
            if group in fold
        ]
        seen = sorted(seen_of[0])
        line = fit(X[seen], given[seen], 3.0)
        expected[group] = predict(X, line) - given[seen].mean() + given[rated].mean()
    for row in range(150):
        assert values[row] == pytest.approx(expected[groups[row]][row], abs=1e-8)
    counts = np.bincount(groups[rated], minlength=25)
    mean = sum(counts[group] * expected[group] for group in range(25)) / counts.sum()
    np.testing.assert_allclose(values[150:], mean[150:], atol=1e-8)


def folds_of(groups, rated):
    from dspy_qvl.fitting import make_folds

    members = groups[rated]
    return [set(members[fold]) for fold in make_folds(members.tolist(), 10, np.random.default_rng(0))]


def test_values_of_the_full_fit_make_the_interval_too_narrow_and_honest_ones_do_not():
    def honest(seed):
        X, given = columns(seed)
        return mean_value(honest_values(X, given, 1.0), given), 5

    def full(seed):
        X, given = columns(seed)
        rated = np.isfinite(given)
        return mean_value(predict(X, fit(X[rated], given[rated], 1.0)), given), 5

    ours, alone, width = coverage(honest, 100)
    assert ours > alone - 0.03
    assert width < 0.97
    assert coverage(full, 100)[0] < min(ours, 0.8)


def test_values_that_learned_nothing_do_not_follow_the_means_of_folds():
    X, given = columns(0)
    given[:40] = np.random.default_rng(0).normal(size=40)
    told = mean_value(honest_values(X, given, 1e6), given)
    assert told.half_width == pytest.approx(told.ratings_alone.half_width, rel=0.02)


def test_honest_values_need_ratings_of_two_groups():
    X, given = columns(0)
    with pytest.raises(InputError, match="at least two groups, but there are 1"):
        honest_values(X, given, 1.0, groups=[0] * 40 + [1] * 160)
    with pytest.raises(InputError, match="200 rows, 199 ratings and 199 groups"):
        honest_values(X, given[1:], 1.0)
