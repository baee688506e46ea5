"""From the raters' scale to (0, 1)."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_qvl import InputError
from dspy_qvl.metric.scale import Scale, check_scale, scale_of

VALUES = st.floats(-1e75, 1e75)


def test_the_ends_are_a_twentieth_from_the_ends():
    scale = Scale(1.0, 10.0)
    assert scale(1.0) == pytest.approx(0.05)
    assert scale(10.0) == pytest.approx(0.95)
    assert scale(5.5) == pytest.approx(0.5)


@settings(max_examples=500, deadline=None)
@given(st.lists(VALUES, min_size=2, max_size=20), st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_a_higher_value_has_a_higher_score_and_none_reaches_an_end(values, low, width):
    scale = Scale(low, low + width)
    ordered = sorted(values)
    scores = [scale(value) for value in ordered]
    assert all(0 < score < 1 for score in scores)
    for (a, b), (x, y) in zip(itertools.pairwise(ordered), itertools.pairwise(scores), strict=True):
        assert x <= y
        if b - a > 1e-9 * max(width, abs(a), abs(b), abs(low)):
            assert x < y


def test_tails_join_without_a_step_in_value_or_slope():
    scale, step = Scale(2.0, 8.0), 1e-6
    for end in (2.0, 8.0):
        left, right = scale(end) - scale(end - step), scale(end + step) - scale(end)
        assert left == pytest.approx(right, rel=1e-4)


@given(st.floats(-50, 60))
def test_a_score_has_its_value_back(value):
    scale = Scale(1.0, 10.0)
    assert scale.value(scale(value)) == pytest.approx(value, rel=1e-6, abs=1e-9)
    assert (scale.value(0.0), scale.value(1.0)) == (-math.inf, math.inf)
    assert scale.value(1e-300) == -math.inf


def test_the_scale_of_ratings_is_where_nine_tenths_of_them_lie():
    scores = np.arange(101.0)
    assert scale_of(np.quantile(scores, np.linspace(0, 1, 21)).tolist()) == Scale(5.0, 95.0)
    rare = np.append(np.zeros(99), 1.0)
    assert scale_of(np.quantile(rare, np.linspace(0, 1, 21)).tolist()) == Scale(0.0, 1.0)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (5, r"scale must be \(low, high\)"),
        ((1, 2, 3), r"scale must be \(low, high\)"),
        ((3, 3), "low below high, but got"),
        ((9, 1), "low below high"),
        ((0, math.nan), "must be finite"),
        ((0, "ten"), "must be a number"),
        ((0, 1e80), "within ±1e\\+75"),
    ],
)
def test_what_is_no_scale_is_refused(scale, message):
    with pytest.raises(InputError, match=message):
        check_scale(scale)
