"""Pictures of ratings and values show the numbers they were given."""

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
import pytest
from matplotlib import pyplot

from dspy_qvl import InputError, plots

Y = np.array([1.0, 4.0, 2.0, 9.0])
VALUES = np.array([2.0, 4.5, 2.5, 6.0])
LOWER, UPPER = VALUES - 1.5, VALUES + 1.5


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


def points(ax, number=0):
    return np.asarray(ax.collections[number].get_offsets())


def test_a_distribution_counts_every_score():
    ax = plots.score_distribution(Y, bins=4)
    assert sum(bar.get_height() for bar in ax.patches) == 4
    assert ax.get_title() == "4 ratings"
    assert "median 3" in ax.get_legend().get_texts()[0].get_text()


def test_values_stand_against_scores():
    ax = plots.predicted_against_actual(Y, VALUES)
    assert points(ax).tolist() == np.stack([Y, VALUES], axis=1).tolist()
    assert ax.lines[0].get_xdata().tolist() == [1.0, 9.0]
    assert len(plots.predicted_against_actual(Y, VALUES, [1.0] * 4).collections) == 2


def test_residuals_beyond_two_standard_deviations_are_marked():
    ax = plots.residuals(VALUES, Y - VALUES, [1.0] * 4)
    assert points(ax, 1).tolist() == [[6.0, 3.0]]
    assert "1 of 4" in ax.get_legend().get_texts()[0].get_text()


def test_intervals_that_do_not_hold_the_score_are_marked():
    ax = plots.intervals(Y, VALUES, LOWER, UPPER)
    (inside, held), (outside, missed) = (ax.collections[:2], ax.collections[2:])
    assert held.get_offsets().tolist() == [[1.0, 2.0], [4.0, 4.5], [2.0, 2.5]]
    assert missed.get_offsets().tolist() == [[9.0, 6.0]]
    assert [line.tolist() for line in outside.get_segments()] == [[[9.0, 4.5], [9.0, 7.5]]]
    assert len(inside.get_segments()) == 3
    assert ax.get_title() == "75% of the scores inside"


def test_a_learning_curve_has_a_tick_for_each_size():
    ax = plots.learning_curve([25, 50, 100, 200], VALUES, LOWER, UPPER, measure="R²")
    curve = next(line for line in ax.lines if line.get_label() == "R²")
    assert curve.get_ydata().tolist() == VALUES.tolist()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["25", "50", "100", "200"]
    band = ax.collections[0].get_paths()[0].get_extents()
    assert (band.ymin, band.ymax) == (LOWER.min(), UPPER.max())


def test_the_largest_gain_is_on_top():
    ax = plots.before_and_after(Y, Y + np.array([1.0, 3.0, -1.0, 0.0]), labels=list("abcd"))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["c", "d", "a", "b"]
    assert ax.get_title() == "2 of 4 answers gained"


def test_a_plot_goes_where_it_is_told():
    _, ax = pyplot.subplots()
    for draw in (
        lambda: plots.score_distribution(Y, ax=ax),
        lambda: plots.predicted_against_actual(Y, VALUES, ax=ax),
        lambda: plots.residuals(VALUES, Y, ax=ax),
        lambda: plots.intervals(Y, VALUES, LOWER, UPPER, ax=ax),
        lambda: plots.learning_curve(Y, VALUES, LOWER, UPPER, ax=ax),
        lambda: plots.before_and_after(Y, VALUES, ax=ax),
    ):
        assert draw() is ax


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.score_distribution([]), "scores must be a list of finite numbers, not empty"),
        (lambda: plots.score_distribution([1.0, np.nan]), "scores must be a list of finite numbers"),
        (lambda: plots.predicted_against_actual(Y, VALUES[:2]), "scores has 4 numbers and values 2"),
        (lambda: plots.residuals([[1.0]], [1.0]), "values must be a list of finite numbers"),
        (lambda: plots.intervals(Y, VALUES, LOWER, [np.inf] * 4), "upper must be a list of finite numbers"),
        (lambda: plots.learning_curve(Y, VALUES, LOWER[:3], UPPER), "sizes has 4 numbers and lower 3"),
        (lambda: plots.before_and_after(Y, VALUES, labels=["a"]), "labels has 1 entries for 4 examples"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
