"""The quickstart is run on its own reviews and on a user's ratings, and what it prints is held against them."""

import csv
import gzip
import json
import random
import re
import runpy
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.neighbors import KNeighborsRegressor

from dspy_qvl import Qwen3EmbeddingValueLearner
from tests.conftest import rated
from tests.human_data import human_data, rows_of

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
QUICKSTART = EXAMPLES / "quickstart.py"
ALPHAS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)

FIVE = [("It works", 4.0), ("It broke", 1.0), ("Fine, I suppose", 3.0), ("Love it", 5.0), ("Never again", 1.5)]
SAME_LENGTH = [(f"text {number:03d}", float(number % 5)) for number in range(30)]
NOISE = [(text, random.Random(text).randint(1, 10)) for text, _ in rated(60)]
CLIPPED = [(text, min(max(score, 4.0), 8.0)) for text, score in rated(60)]

with (EXAMPLES / "reviews.csv").open(encoding="utf-8", newline="") as file:
    ROWS = list(csv.DictReader(file))
REVIEWS = [(row["text"], float(row["score"])) for row in ROWS]


@pytest.fixture
def quickstart(tmp_path, monkeypatch, capsys):
    """Runs the quickstart in an empty folder and gives what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, rows=None, columns=("text", "score")):
        if rows is not None:
            with open("mine.csv", "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([columns, *rows])
            arguments = ("--data", "mine.csv", *arguments)
        monkeypatch.setattr(sys, "argv", [str(QUICKSTART), *arguments])
        runpy.run_path(str(QUICKSTART), run_name="__main__")
        return capsys.readouterr().out

    return run


def learned(rows):
    """A learner that went the way of the quickstart, and the reports it gave."""
    learner = Qwen3EmbeddingValueLearner("lexical", cache_dir=None)
    learner.add_training_examples(rows)
    return learner, learner.optimize_hyperparameters(ALPHAS), learner.train()


def ranking(printed):
    """(value, rating, text and remark) of every line of a ranking of the user's own texts."""
    lines = printed.split("   value   rated\n")[1].split("\n\n")[0].splitlines()
    return [(float(line[:8]), float(line[8:16]), line[18:]) for line in lines if re.match(r" *-?\d", line)]


@pytest.mark.parametrize(
    "rows", [None, FIVE, FIVE[:2], SAME_LENGTH, NOISE], ids=["reviews", "five", "two", "same length", "noise"]
)
def test_no_figure_of_the_quickstart_is_nan(quickstart, rows):
    printed = quickstart(rows=rows)
    assert not re.search(r"\b(nan|inf|none)\b", printed, re.IGNORECASE)
    assert "-0.00" not in printed


@human_data
def test_no_figure_of_the_quickstart_is_nan_on_real_ratings(quickstart):
    rows = [(row["text"], row["score"]) for row in rows_of("vader_tweets", "test")]
    printed = quickstart(rows=rows)
    assert printed.startswith(f"{len(rows)} rated texts")
    assert not re.search(r"[ -](nan|inf|none)\b", printed.split("\nyour texts")[0], re.IGNORECASE)


def test_every_figure_of_the_quickstart_carries_its_standard_error(quickstart):
    printed, (_, _, metrics) = quickstart(), learned(REVIEWS)
    for prefix, figures in [("val", metrics), ("oof", metrics), ("val", metrics["baselines"]["nearest"])]:
        for name in (f"{prefix}_r2", f"{prefix}_spearman"):
            assert f"{figures[name]:.2f} ± {figures[f'{name}_se']:.2f}" in printed


@pytest.mark.parametrize(
    ("rows", "verdict"), [(NOISE, "Cannot be told from noise: "), (rated(60), "More than noise: at most ")]
)
def test_the_quickstart_says_whether_ratings_are_noise(quickstart, rows, verdict):
    printed, (_, chosen, _) = quickstart(rows=rows), learned(rows)
    assert f"{verdict}{100 * chosen['permutation_p']:.3g} % of shuffles" in printed


def test_the_quickstart_ranks_the_users_own_texts_and_no_product_review(quickstart):
    rows = rated(60)
    printed, (learner, _, _) = quickstart(rows=rows), learned(rows)
    left_out = dict(zip(learner.training_texts, learner.leave_one_out().values.round(2), strict=True))
    best_first = sorted(left_out, key=lambda text: -left_out[text])
    shown = ranking(printed)
    assert len(shown) == 6
    for (value, rating, text), expected in zip(shown, best_first[:3] + best_first[-3:], strict=True):
        assert expected.startswith(text.split("…")[0].split("  [")[0])
        assert (value, rating) == (pytest.approx(left_out[expected], abs=0.06), dict(rows)[expected])
    assert re.search(r"inside a DSPy program.*: '(.*)…'", printed)[1] in best_first[0]
    for text in [*(text for text, _ in REVIEWS), "Excellent quality, quiet and easy to clean."]:
        assert text[:40] not in printed


@pytest.mark.parametrize("rows", [CLIPPED, [(text, 12 - score) for text, score in CLIPPED], FIVE])
def test_a_value_that_no_rating_reaches_says_so(quickstart, rows):
    low, high = min(score for _, score in rows), max(score for _, score in rows)
    printed = quickstart(rows=rows)
    shown = ranking(printed)
    for value, _, text in shown:
        assert (f"[above the highest rating, {high:g}]" in text) == (value > high)
        assert (f"[below the lowest rating, {low:g}]" in text) == (value < low)
    assert ("values lie on a straight line" in printed) == any(not low <= value <= high for value, _, _ in shown)
    assert rows == FIVE or shown[0][0] > high


def test_the_quickstart_reads_columns_of_any_name(quickstart):
    columns = ("Review Text", "Stars (1-5)")
    printed = quickstart("--text-column", columns[0], "--score-column", columns[1], rows=FIVE, columns=columns)
    assert sorted((text, rating) for _, rating, text in ranking(printed)) == sorted(FIVE)


@pytest.mark.parametrize("name", ["mine.csv", "mine.csv.gz", "mine.jsonl", "mine.jsonl.gz"])
def test_the_quickstart_takes_the_users_own_ratings(quickstart, capsys, name):
    rows = [{"body": text, "stars": score} for text, score in REVIEWS[:60]]
    with (gzip.open if name.endswith(".gz") else open)(name, "wt", encoding="utf-8", newline="") as file:
        if "csv" in name:
            writer = csv.DictWriter(file, ["body", "stars"])
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    printed = quickstart("--data", name, "--text-column", "body", "--score-column", "stars")
    assert printed.startswith("60 rated texts, model lexical")
    with pytest.raises(SystemExit, match="2"):
        quickstart("--data", name)
    told = "has the columns: body, stars; name yours with --text-column and --score-column"
    assert told in capsys.readouterr().err


def test_a_saved_value_function_loads_by_the_line_that_is_printed(quickstart):
    rows = rated(60)
    printed, (learner, _, _) = quickstart("--save", "kept/mine.qvl", rows=rows), learned(rows)
    names = {}
    exec(re.search(r"in Python:\n  (.*)\n", printed)[1], names)
    texts = [text for text, _ in rated(20, seed=5)]
    assert names["value"].rank_texts(texts) == learner.rank_texts(texts)


def test_without_save_the_value_function_is_thrown_away_and_it_says_so(quickstart, tmp_path):
    assert "thrown away" in quickstart(rows=FIVE)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.csv"]


@pytest.mark.parametrize(("path", "words"), [("mine.csv", "is your data"), (".", "is a folder")])
def test_ratings_and_folders_are_not_overwritten(quickstart, tmp_path, capsys, path, words):
    with pytest.raises(SystemExit, match="2"):
        quickstart("--save", path, rows=FIVE)
    assert f"error: --save {path} {words}; name a file of its own.\n" in capsys.readouterr().err
    assert (tmp_path / "mine.csv").read_text(encoding="utf-8").startswith("text,score\nIt works,4.0\n")


# The reviews


def test_no_two_reviews_are_alike():
    sentences = [part.lower() for text, _ in REVIEWS for part in re.split(r"(?<=[.!?])\s+", text)]
    assert len(set(sentences)) == len(sentences)
    runs = []
    for text, _ in REVIEWS:
        words = re.findall(r"\w+", text.lower())
        runs.append({tuple(words[at : at + 3]) for at in range(len(words) - 2)})
    assert max(len(a & b) / len(a | b) for a, b in combinations(runs, 2)) < 0.15


def test_the_length_of_a_review_tells_nothing():
    n_words = [len(text.split()) for text, _ in REVIEWS]
    assert (len(REVIEWS), min(n_words) <= 4, 100 <= max(n_words) <= 120) == (240, True, True)
    assert abs(spearmanr(n_words, [score for _, score in REVIEWS]).statistic) < 0.1


def test_the_value_function_of_the_reviews_is_ahead_of_neighbours_and_no_better_than_plausible():
    learner, _, metrics = learned(REVIEWS)
    X, y = learner.embed(learner.training_texts), np.array(learner.training_scores)
    nearest = cross_val_predict(
        KNeighborsRegressor(5, metric="cosine"), X, y, cv=KFold(5, shuffle=True, random_state=0)
    )
    assert spearmanr(y, nearest).statistic < metrics["oof_spearman"] < 0.65
