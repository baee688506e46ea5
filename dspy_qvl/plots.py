"""Pictures of ratings and values, for a notebook: each draws into one matplotlib axes and returns it.

matplotlib comes with the extra `plot`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dspy_qvl.errors import InputError

Axes = Any  # matplotlib ships types, but is loaded only here and only when used
BLUE, ORANGE, GREY = "#2a6f97", "#e07a1f", "#8d99ae"


def score_distribution(scores: ArrayLike, *, bins: int = 20, ax: Axes | None = None) -> Axes:
    """Histogram of scores, with their median.

    Args:
        scores: (n,), in the raters' units.
        bins: the number of bins.
        ax: where to draw; a new figure if left out.

    Raises:
        InputError: no scores, or numbers that are not finite.
    """
    y = _finite(scores, "scores")
    ax = _axes(ax)
    ax.hist(y, bins=bins, color=BLUE, edgecolor="white", linewidth=0.6)
    ax.axvline(float(np.median(y)), color=ORANGE, linewidth=1.5, label=f"median {np.median(y):.3g}")
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.set(xlabel="score", ylabel="texts", title=f"{len(y)} ratings")
    ax.legend(frameon=False)
    return ax


def predicted_against_actual(
    scores: ArrayLike, values: ArrayLike, std: ArrayLike | None = None, *, ax: Axes | None = None
) -> Axes:
    """Scatter plot of values against the scores people gave; on the line they agree.

    Args:
        scores: (n,), in the raters' units.
        values: (n,), of the same texts, from a fit that did not see them.
        std: (n,), standard deviations; where given, the band of twice their mean is shaded.
        ax: where to draw; a new figure if left out.

    Raises:
        InputError: arrays of different lengths, empty, or not finite.
    """
    y, guessed = _pair(scores, values, "scores", "values")
    ax = _axes(ax)
    ends = np.array([min(y.min(), guessed.min()), max(y.max(), guessed.max())])
    if std is not None:
        half = 2 * float(np.mean(_finite(std, "std")))
        ax.fill_between(ends, ends - half, ends + half, color=GREY, alpha=0.18, linewidth=0, label="± 2 std")
    ax.plot(ends, ends, color=ORANGE, linewidth=1.5, label="agreement")
    ax.scatter(y, guessed, s=16, color=BLUE, alpha=0.6, linewidths=0)
    ax.set(xlabel="score people gave", ylabel="value", title="values against scores")
    ax.legend(frameon=False, loc="upper left")
    return ax


def residuals(values: ArrayLike, missed: ArrayLike, std: ArrayLike | None = None, *, ax: Axes | None = None) -> Axes:
    """Scatter plot of residuals against values.

    A trend means that a line is not enough; far points may be slips of raters.

    Args:
        values: (n,), in the raters' units.
        missed: score - value, (n,).
        std: (n,), standard deviations; where given, residuals beyond twice theirs are marked.
        ax: where to draw; a new figure if left out.

    Raises:
        InputError: arrays of different lengths, empty, or not finite.
    """
    guessed, r = _pair(values, missed, "values", "residuals")
    far = np.zeros(len(r), dtype=bool) if std is None else np.abs(r) > 2 * _pair(std, r, "std", "residuals")[0]
    ax = _axes(ax)
    ax.axhline(0.0, color=ORANGE, linewidth=1.5)
    ax.scatter(guessed[~far], r[~far], s=16, color=BLUE, alpha=0.6, linewidths=0)
    if std is not None:
        ax.scatter(guessed[far], r[far], s=26, color=ORANGE, label=f"beyond 2 std: {far.sum()} of {len(r)}")
        ax.legend(frameon=False)
    ax.set(xlabel="value", ylabel="score - value", title="what values miss")
    return ax


def intervals(
    scores: ArrayLike, values: ArrayLike, lower: ArrayLike, upper: ArrayLike, *, ax: Axes | None = None
) -> Axes:
    """Values against the scores people gave, each with its interval; those that do not hold the score are marked.

    Args:
        scores: (n,), in the raters' units.
        values: (n,), of the same texts, from a fit that did not see them.
        lower: (n,), the lower ends of their intervals.
        upper: (n,), the upper ends.
        ax: where to draw; a new figure if left out.

    Raises:
        InputError: arrays of different lengths, empty, or not finite.
    """
    y, guessed = _pair(scores, values, "scores", "values")
    low, high = _pair(y, lower, "scores", "lower")[1], _pair(y, upper, "scores", "upper")[1]
    held = (low <= y) & (y <= high)
    ax = _axes(ax)
    ends = np.array([y.min(), y.max()])
    for rows, color, label in ((held, BLUE, "inside"), (~held, ORANGE, "outside")):
        ax.vlines(y[rows], low[rows], high[rows], color=color, linewidth=1.2, alpha=0.35, zorder=1)
        ax.scatter(y[rows], guessed[rows], s=14, color=color, linewidths=0, zorder=3, label=f"{label}: {rows.sum()}")
    ax.plot(ends, ends, color="black", linewidth=1, zorder=2, label="agreement")
    ax.set(xlabel="score people gave", ylabel="value and interval", title=f"{held.mean():.0%} of the scores inside")
    ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3)
    return ax


def learning_curve(
    sizes: ArrayLike,
    figures: ArrayLike,
    lower: ArrayLike,
    upper: ArrayLike,
    *,
    measure: str = "Spearman",
    ax: Axes | None = None,
) -> Axes:
    """A figure on held-out texts by the number of ratings learned from, on a logarithmic axis, with its interval.

    Args:
        sizes: (n,), ratings learned from, above 0.
        figures: (n,), the figure at each size.
        lower: (n,), the lower ends of their intervals.
        upper: (n,), the upper ends.
        measure: the name of the figure.
        ax: where to draw; a new figure if left out.

    Raises:
        InputError: arrays of different lengths, empty, or not finite.
    """
    n, figure = _pair(sizes, figures, "sizes", "figures")
    low, high = _pair(n, lower, "sizes", "lower")[1], _pair(n, upper, "sizes", "upper")[1]
    ax = _axes(ax)
    ax.axhline(0.0, color=GREY, linewidth=1)
    ax.fill_between(n, low, high, color=BLUE, alpha=0.18, linewidth=0, label="95 % interval")
    ax.plot(n, figure, color=BLUE, linewidth=1.5, marker="o", markersize=5, label=measure)
    ax.set_xscale("log", base=2)
    ax.set_xticks(n, [f"{size:.0f}" for size in n])
    ax.set(xlabel="ratings learned from", ylabel=measure, title="would more ratings help?")
    ax.legend(frameon=False)
    return ax


def before_and_after(
    before: ArrayLike, after: ArrayLike, labels: Sequence[str] | None = None, *, ax: Axes | None = None
) -> Axes:
    """The value of each answer before and after, a line from one to the other, the largest gain on top.

    Args:
        before: (n,), in the raters' units.
        after: (n,), of the same examples.
        labels: the name of each example, n of them; none are written if left out.
        ax: where to draw; a new figure if left out.

    Raises:
        InputError: arrays of different lengths, empty, or not finite.
    """
    first, then = _pair(before, after, "before", "after")
    if labels is not None and len(labels) != len(first):
        raise InputError(f"labels has {len(labels)} entries for {len(first)} examples; give one an example.")
    ax = _axes(ax)
    order = np.argsort(then - first, kind="stable")
    rows = np.arange(len(first))
    ax.hlines(rows, first[order], then[order], color=GREY, linewidth=1.2, zorder=1)
    ax.scatter(first[order], rows, s=22, color=GREY, label=f"before, mean {first.mean():.3g}", zorder=2)
    ax.scatter(then[order], rows, s=22, color=BLUE, label=f"after, mean {then.mean():.3g}", zorder=2)
    ax.set_yticks(rows if labels is not None else [])
    if labels is not None:
        ax.set_yticklabels([labels[row] for row in order], fontsize=7)
    ax.set(xlabel="value", title=f"{int((then > first).sum())} of {len(first)} answers gained")
    ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.11), ncols=2)
    return ax


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("plots need matplotlib, which is not installed; pip install matplotlib.") from error
    _, ax = pyplot.subplots(figsize=(5.5, 4), layout="constrained")
    return ax


def _finite(numbers: ArrayLike, what: str) -> NDArray[np.float64]:
    array = np.asarray(numbers, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0 or not np.isfinite(array).all():
        raise InputError(f"{what} must be a list of finite numbers, not empty, but has the shape {array.shape}.")
    return array


def _pair(one: ArrayLike, other: ArrayLike, what: str, whats: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = _finite(one, what), _finite(other, whats)
    if len(a) != len(b):
        raise InputError(f"{what} has {len(a)} numbers and {whats} {len(b)}; give both of the same texts.")
    return a, b
