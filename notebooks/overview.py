"""Draws the picture of the README, for light and for dark pages, and prints the figures that are written in it.

    python notebooks/overview.py [FOLDER]

The 240 rated replies of `examples/replies.csv` (written for this project) are valued out of fold: five times a learner
is fitted on the replies to four fifths of the questions, penalty included, and values the replies to the rest. The two
files, `overview-light.png` and `overview-dark.png`, are written to the folder, by default the one of this script.
"""

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

from dspy_qvl import Qwen3EmbeddingValueLearner, measures

HERE = Path(__file__).resolve().parent
REPLIES = HERE.parent / "examples" / "replies.csv"
ALPHAS = (0.03, 0.1, 0.3, 1.0, 3.0)
N_FOLDS, N_NEAREST = 5, 5

THEMES = {
    "light": {"page": "#ffffff", "box": "#f2f5f8", "ink": "#1f2933", "grey": "#6b7785", "blue": "#2a6f97"},
    "dark": {"page": "#0d1117", "box": "#1b222c", "ink": "#e6edf3", "grey": "#94a3b3", "blue": "#62b0db"},
}
ORANGE = "#e8893a"  # is read on either page

STEPS = (
    ("rated texts", "a few dozen to\na few thousand,\nby people or a judge"),
    ("embedding", "Qwen3, a hosted model\nor the built-in one;\neach text only once"),
    ("ridge regression", "penalty and feature\nweights chosen by\ncross-validation"),
    ("value ± std", "on the raters' scale;\nthe same text always\nhas the same value"),
)
USES = (
    "metric for DSPy's optimizers",
    "best of N drafts, Refine",
    "order of retrieved passages",
    "score inside a program",
)


def out_of_fold() -> tuple[list[str], np.ndarray, dict[str, np.ndarray]]:
    """The question and the rating of each reply, and its value by the learner and by two baselines, out of fold."""
    with REPLIES.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    texts, questions = [row["reply"] for row in rows], [row["question"] for row in rows]
    scores, lengths = np.array([float(row["score"]) for row in rows]), np.log1p([len(text) for text in texts])
    names = list(dict.fromkeys(questions))
    mixed = np.random.default_rng(0).permutation(len(names))
    fold_of = {names[number]: place % N_FOLDS for place, number in enumerate(mixed)}
    folds = np.array([fold_of[question] for question in questions])
    values = {name: np.empty(len(rows)) for name in ("value function", "5 nearest replies", "length")}
    for fold in range(N_FOLDS):
        known, new = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        learner = Qwen3EmbeddingValueLearner("lexical", cache_dir=None)
        learner.add_training_examples([(texts[row], scores[row], {"question": questions[row]}) for row in known])
        learner.optimize_hyperparameters(ALPHAS, groups="question")
        values["value function"][new] = learner.predict_many([texts[row] for row in new])
        near = [[example.score for example, _ in learner.nearest(texts[row], N_NEAREST)] for row in new]
        values["5 nearest replies"][new] = np.mean(near, axis=1)
        values["length"][new] = np.polyval(np.polyfit(lengths[known], scores[known], 1), lengths[new])
    return questions, scores, values


def draw(theme: str, scores: np.ndarray, values: np.ndarray, agreement: dict[str, tuple[float, float]]) -> Any:
    """The figure: the way of a text on top, values against ratings and the baselines below."""
    colours = THEMES[theme]
    figure = pyplot.figure(figsize=(10, 5.8), dpi=160, facecolor=colours["page"])
    draw_steps(figure.add_axes((0.0, 0.66, 1.0, 0.34)), colours)
    draw_values(figure.add_axes((0.07, 0.1, 0.43, 0.49)), colours, scores, values)
    draw_agreement(figure.add_axes((0.68, 0.1, 0.29, 0.49)), colours, agreement)
    return figure


def draw_steps(ax: Any, colours: dict[str, str]) -> None:
    """Boxes from rated texts to a value, and what the value is used for."""
    ax.set(xlim=(0, 10), ylim=(0.12, 2.12))
    ax.axis("off")
    shape = {"boxstyle": "round,pad=0,rounding_size=0.09", "mutation_aspect": 1}
    for number, (title, text) in enumerate(STEPS):
        left, last = 0.22 + 1.94 * number, number == len(STEPS) - 1
        edge = colours["blue"] if last else "none"
        ax.add_patch(FancyBboxPatch((left, 0.45), 1.62, 1.4, facecolor=colours["box"], edgecolor=edge, **shape))
        ax.text(left + 0.81, 1.6, title, ha="center", va="center", size=10.5, weight="bold", color=colours["ink"])
        ax.text(left + 0.81, 0.97, text, ha="center", va="center", size=8.2, color=colours["grey"], linespacing=1.45)
        if not last:
            draw_arrow(ax, (left + 1.66, 1.15), (left + 1.9, 1.15), colours["grey"])
    for number, use in enumerate(USES):
        y = 1.84 - 0.46 * number
        draw_arrow(ax, (7.7, 1.15), (8.02, y), colours["grey"])
        ax.text(8.06, y, use, ha="left", va="center", size=8, color=colours["ink"])


def draw_arrow(ax: Any, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    """A thin arrow."""
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=8, color=colour, linewidth=1, shrinkA=0))


def draw_values(ax: Any, colours: dict[str, str], scores: np.ndarray, values: np.ndarray) -> None:
    """Values against ratings, with the line on which they agree."""
    ax.plot([0, 10], [0, 10], color=ORANGE, linewidth=1.4, zorder=1)
    ax.text(10.4, 10.75, "line: value = rating", color=ORANGE, size=9, ha="right", va="bottom")
    ax.scatter(scores, values, s=17, color=colours["blue"], alpha=0.65, linewidths=0, zorder=2)
    ax.set(xlim=(-0.4, 10.4), ylim=(-0.4, 10.4), xticks=range(0, 11, 2), yticks=range(0, 11, 2))
    ax.set_xlabel("rating")
    ax.set_ylabel("value, learned from other replies")
    ax.set_title(f"{len(scores)} rated replies", size=10.5, loc="left", pad=9, color=colours["ink"])
    paint(ax, colours)


def draw_agreement(ax: Any, colours: dict[str, str], agreement: dict[str, tuple[float, float]]) -> None:
    """Bars of the Spearman correlations with the ratings, with their standard errors."""
    for row, (name, (spearman, error)) in enumerate(reversed(agreement.items())):
        colour = colours["blue"] if name == "value function" else colours["grey"]
        ax.barh(row, spearman, height=0.5, color=colour, alpha=0.9)
        ax.plot([spearman - error, spearman + error], [row, row], color=colours["ink"], linewidth=1.4)
        ax.text(max(spearman, 0) + error + 0.03, row, f"{spearman:.2f}", va="center", size=9, color=colours["ink"])
    ax.set_yticks(range(len(agreement)), list(reversed(agreement)))
    ax.set(xlim=(min(0, *(s - e for s, e in agreement.values())) - 0.02, 1), ylim=(-0.6, len(agreement) - 0.4))
    ax.set_xlabel("Spearman correlation ± standard error")
    ax.set_title("agreement with the ratings", size=10.5, loc="left", pad=9, color=colours["ink"])
    paint(ax, colours)
    ax.tick_params(axis="y", length=0, labelsize=9)


def paint(ax: Any, colours: dict[str, str]) -> None:
    """The colours of an axes that stands on a page."""
    ax.set_facecolor(colours["page"])
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(colours["grey"])
    ax.tick_params(colors=colours["grey"], labelcolor=colours["ink"], labelsize=8.5)
    for label in (ax.xaxis.label, ax.yaxis.label):
        label.set(color=colours["ink"], size=9)


def main() -> None:
    """Value the replies out of fold, print how far the values agree, and draw."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    questions, scores, values = out_of_fold()
    agreement = {}
    for name, guess in values.items():
        error = measures.standard_error(measures.bootstrap(scores, guess, questions)["spearman"])
        agreement[name] = (measures.spearman(scores, guess), error)
        print(f"{name}: Spearman {agreement[name][0]:.2f} ± {error:.2f}")
    pyplot.switch_backend("Agg")
    for theme in THEMES:
        figure = draw(theme, scores, values["value function"], agreement)
        figure.canvas.draw()
        picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])
        picture.quantize(64).save(folder / f"overview-{theme}.png", optimize=True)  # a third of the bytes
        pyplot.close(figure)


if __name__ == "__main__":
    main()
