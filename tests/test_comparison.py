"""Two programs on the same questions: which is better, and how sure, from ratings of a few answers."""

import copy
import csv
import pickle
import random
import re
import warnings
from itertools import pairwise

import dspy
import numpy as np
import pytest
from dspy.utils.dummies import DummyLM

from dspy_qvl import FitValue, InputError, QVLWarning, Qwen3EmbeddingValueLearner, ValueMetric, compare
from dspy_qvl.certainty import difference
from tests.conftest import BAD, GOOD, PLAIN, rated

N = 80


def answers_of(share: float, seed: int) -> dict[str, str]:
    """Answers to N questions, in which each of six words is a good one with this probability."""
    rng = random.Random(seed)
    said = {}
    for row in range(N):
        words = [rng.choice(GOOD if rng.random() < share else BAD) for _ in range(6)] + rng.choices(PLAIN, k=4)
        said[f"How is it, number {row}?"] = " ".join([*words, f"a{row}"])
    return said


class Desk(dspy.Module):
    """A program that looks its answers up, crashes where there is none, and counts its runs."""

    def __init__(self, answers: dict[str, str]) -> None:
        super().__init__()
        self.answers, self.asked = answers, []

    def forward(self, question):
        self.asked.append(question)
        return dspy.Prediction(answer=self.answers[question])


A, B = answers_of(0.7, 1), answers_of(0.4, 2)
DEVSET = [dspy.Example(question=question).with_inputs("question") for question in A]


def judged(text: str, question: str = "") -> float:
    """The rating of a text: two points a good word, less a point of what the value function cannot see."""
    return 2.0 * sum(word in GOOD for word in text.split()) - len(question + text) % 3


@pytest.fixture
def metric(trained):
    return ValueMetric(trained, text="answer")


@pytest.fixture
def found(metric):
    return compare(Desk(A), Desk(B), DEVSET, metric)


def filled(path, rate=judged, **how):
    """Fill in the column "rating" of a file, and save it as a spreadsheet may."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        rating = rate(row["text"], row["question"])
        row["rating"] = row["rating"] if rating is None else rating
    save(path, rows, **how)
    return rows


def save(path, rows, **how):
    with open(path, "w", encoding=how.pop("encoding", "utf-8"), newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), **how)
        writer.writeheader()
        writer.writerows(rows)


def read_back(found, path, rate=judged, **how):
    path.unlink(missing_ok=True)
    found.write_ratings(path)
    filled(path, rate, **how)
    return found.read_ratings(path)


# What it says


def test_each_program_is_run_once_and_ratings_are_those_of_a_few_of_its_answers(metric, trained, tmp_path):
    a, b = Desk(A), Desk(B)
    found = read_back(compare(a, b, DEVSET, metric, 20), tmp_path / "to_rate.csv")
    assert sorted(a.asked) == sorted(b.asked) == sorted(A)
    ratings = np.full((2, N), np.nan)
    for row in found.drawn:
        question = DEVSET[row].question
        ratings[:, row] = judged(A[question], question), judged(B[question], question)
    assert np.isfinite(ratings).sum(axis=1).tolist() == [20, 20]
    values = [trained.predict_many(list(said.values())) for said in (A, B)]
    expected = difference(*values, *ratings)
    assert (found.difference.value, found.difference.se) == pytest.approx((expected.value, expected.se))
    assert found.better == "A"
    assert found.values_alone.value == pytest.approx(expected.values_alone.value)
    assert found.values_alone.half_width == pytest.approx(expected.values_alone.half_width)
    head, of_a, of_b, counts, *rest = str(found).splitlines()
    assert head.split() == ["mean", "value", "failures", "mean", "rating"]
    means = [f"{np.mean(v):.4g} 0 {np.nanmean(y):.4g}" for v, y in zip(values, ratings, strict=True)]
    assert [of_a.split(), of_b.split()] == [["A", *means[0].split()], ["B", *means[1].split()]]
    assert counts == "80 questions; 20 drawn to be rated, 40 of 40 texts rated"
    assert "\n".join(rest) == str(found.difference)
    assert "A is better" in rest[1]


def test_without_ratings_it_says_what_values_say_and_that_they_can_be_wrong(found):
    assert found.difference is None
    assert found.better is None
    assert f"A - B {found.values_alone} by values alone, no rating used\n    this can be confidently wrong" in str(
        found
    )
    assert "0 of 60 texts rated" in str(found)


def test_figures_do_not_depend_on_threads_and_draws_only_on_the_seed(metric, found):
    with dspy.context(num_threads=1):
        alone = compare(Desk(A), Desk(B), DEVSET, metric)
    assert (alone.a.texts, alone.a.values, alone.drawn) == (found.a.texts, found.a.values, found.drawn)
    assert str(alone) == str(found)
    assert compare(Desk(A), Desk(B), DEVSET, metric, random_state=1).drawn != found.drawn
    given = [[dspy.Prediction(answer=text) for text in said.values()] for said in (A, B)]
    assert str(compare(*given, DEVSET, metric)) == str(found)


def test_programs_with_a_language_model_are_programs(metric):
    program = dspy.Predict("question -> answer")
    program.set_lm(DummyLM([{"answer": "love perfect"}] * N))
    found = compare(program, Desk(B), DEVSET, metric)
    assert set(found.a.texts) == {"love perfect"}
    assert found.values_alone.value > 0


def test_more_questions_are_drawn_beside_those_that_were(found, tmp_path):
    path = tmp_path / "to_rate.csv"
    some = read_back(found.draw(10), path)
    more = some.draw(40)
    assert more.drawn[:10] == some.drawn
    assert str(more.difference) == str(some.difference)
    more.write_ratings(path)
    rows = filled(path, lambda text, question: None)
    assert sum(row["rating"] != "" for row in rows) == 20
    assert read_back(more, path).difference.half_width < some.difference.half_width
    assert len(found.draw(1000).drawn) == N


def test_the_group_of_a_question_reaches_the_interval(metric, tmp_path):
    grouped = compare(Desk(A), Desk(B), DEVSET, metric, group=lambda row: int(re.sub(r"\D", "", row.question)) % 8)
    assert read_back(grouped, tmp_path / "to_rate.csv").difference.n_groups == 8


def test_it_survives_copies_and_pickles(found, tmp_path):
    rated_now = read_back(found, tmp_path / "to_rate.csv")
    for one in (copy.deepcopy(rated_now), pickle.loads(pickle.dumps(rated_now))):
        assert str(one) == str(rated_now)
        assert one.a.outputs[3].answer == list(A.values())[3]
        assert str(one.read_ratings(tmp_path / "to_rate.csv")) == str(rated_now)
    with pytest.raises(AttributeError, match="cannot assign to field"):
        rated_now.n_ratings = 3
    assert b"Desk" not in pickle.dumps(rated_now)  # no program is kept
    assert "better='A'" in repr(rated_now)
    assert rated_now._repr_html_().startswith("<pre>")


# Failures, copies


def test_a_failure_has_the_lowest_rating_without_being_rated(metric, trained, tmp_path):
    lost = list(A)[::4]
    broken = {question: text for question, text in A.items() if question not in lost}
    mute = {**B, lost[0]: " "}
    found = compare(Desk(broken), Desk(mute), DEVSET, metric, N)
    assert (found.a.n_failed, found.b.n_failed) == (20, 1)
    assert found.a.outputs[0] is None
    assert found.a.values[0] == min(trained.training_scores)
    result = read_back(found, tmp_path / "to_rate.csv", lambda text, question: 5.0 if text.endswith("a1") else 7.0)
    assert result.difference.n_rated == N
    lowest = min(trained.training_scores)
    # One five a program; of A's other answers 20 are failures, of B's one.
    assert result.difference.value == pytest.approx((20 * lowest + 5 + 59 * 7 - (lowest + 5 + 78 * 7)) / N)
    with pytest.warns(QVLWarning, match="an answer was rated -9, lower than the 0 that a failure counts as"):
        read_back(found, tmp_path / "to_rate.csv", lambda text, question: -9.0 if text.endswith("a1") else 7.0)
    worse = compare(Desk(broken), Desk(mute), DEVSET, metric, N, failure_rating=-10)
    assert (worse.a.values[0], worse.a.values[1]) == (-10, found.a.values[1])
    result = read_back(worse, tmp_path / "to_rate.csv", lambda text, question: -9.0 if text.endswith("a1") else 7.0)
    assert result.difference.value == pytest.approx(19 * (-10 - 7) / N)


def test_of_a_file_half_filled_failures_of_both_count_by_half(metric, tmp_path):
    some = {question: text for question, text in A.items() if question not in list(A)[:40]}
    found = compare(Desk(some), Desk({q: B[q] for q in some}), DEVSET, metric, N)
    result = read_back(found, tmp_path / "to_rate.csv", lambda text, q: 5.0 if int(re.sub(r"\D", "", q)) % 2 else None)
    assert np.isfinite(result._rated[:, 40:]).sum(axis=1).tolist() == [20, 20]
    assert np.isfinite(result._rated[:, :40]).sum(axis=1).tolist() == [20, 20]


def test_the_same_answer_of_both_is_rated_once_and_differs_by_nothing(metric, tmp_path):
    shared = {**B, **{question: A[question] for question in list(A)[:40]}}
    found = compare(Desk(A), Desk(shared), DEVSET, metric, N)
    found.write_ratings(tmp_path / "to_rate.csv")
    assert len(filled(tmp_path / "to_rate.csv")) == 40 + 2 * 40
    result = found.read_ratings(tmp_path / "to_rate.csv")
    assert np.array_equal(result._rated[0, :40], result._rated[1, :40])
    assert "40 with the same answer of both" in str(result)
    same = read_back(compare(Desk(A), Desk(A), DEVSET, metric), tmp_path / "same.csv")
    assert (same.difference.value, same.better) == (0.0, None)


def test_copies_of_a_question_are_drawn_together_and_one_text_to_many_questions_is_many_rows(metric, tmp_path):
    twice = [*DEVSET[:10], *DEVSET[:10]]
    found = compare(Desk(dict.fromkeys(A, "love perfect")), Desk(B), twice, metric, 4)
    assert len(found.drawn) == 8
    assert len({twice[row].question for row in found.drawn}) == 4
    found.write_ratings(tmp_path / "to_rate.csv")
    assert sum(row["text"] == "love perfect" for row in filled(tmp_path / "to_rate.csv")) == 4
    assert found.read_ratings(tmp_path / "to_rate.csv").difference.n_groups == 4


def test_answers_that_were_learned_from_are_named(metric, trained):
    learned = [example.text for example in trained.ridge.examples[:5]]
    known = {**A, **dict(zip(A, learned, strict=False))}
    with pytest.warns(QVLWarning, match=r"learned from 5 of the answers.*and others") as told:
        found = compare(Desk(known), Desk(B), DEVSET, metric)
    assert sum(repr(text[:20])[:-1] in str(told[0].message) for text in learned) == 3
    assert "5 answers are texts that were learned from" in str(found)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "learned" not in str(compare(Desk(A), Desk(B), DEVSET, metric))


def test_texts_are_rendered_as_they_were_learned_and_inputs_are_shown_with_their_names(tmp_path):
    rows = [dspy.Example(ask=f"Which {n}?", say=text, stars=score) for n, (text, score) in enumerate(rated(40))]
    fit = FitValue(text="{say}!", query="ask", score="stars", alphas=[0.001, 0.01, 0.1])
    value = fit.compile(Qwen3EmbeddingValueLearner("lexical", 256, cache_dir=tmp_path), trainset=rows)
    devset = [dspy.Example(ask=f"Who {n}?", tone=n).with_inputs("ask", "tone") for n in range(6)]
    said = [[dspy.Prediction(say=f"{word} {n}") for n in range(6)] for word in ("love", "awful")]
    found = compare(*said, devset, ValueMetric(value))
    assert found.questions[1] == "ask: Who 1?\ntone: 1"
    assert found.a.texts[1] == "love 1!"
    assert found.b.values[2] == value.predict("awful 2!", "Who 2?")


# The file


def test_the_file_is_blind(found, tmp_path):
    found.write_ratings(tmp_path / "to_rate.csv")
    rows = filled(tmp_path / "to_rate.csv", lambda text, question: None)
    assert all(list(row) == ["question", "text", "rating"] and row["rating"] == "" for row in rows)
    assert {(row["question"], row["text"]) for row in rows} == {
        (DEVSET[row].question, said[DEVSET[row].question]) for row in found.drawn for said in (A, B)
    }
    of_a = [A[row["question"]] == row["text"] for row in rows]
    assert sum(of_a) == 30
    assert 8 < sum(of_a[:30]) < 22  # neither program stands first
    assert 10 < sum(first != second for first, second in pairwise(of_a)) < 50  # nor do they alternate


def test_no_cell_is_a_formula_and_spreadsheets_may_change_what_they_change(metric, tmp_path):
    nasty = ["=1+1", "+1", "-1", "@x", "\t=1", " =1", "'quoted", "a\r\nb", "ctrl\0\x07", "é, ü; “ß”", "long " * 9000]
    devset = [dspy.Example(question=f"={n}").with_inputs("question") for n in range(len(nasty))]
    said = [[dspy.Prediction(answer=f"{text}{more}") for text in nasty] for more in ("", " worse")]
    found, path = compare(*said, devset, metric), tmp_path / "to_rate.csv"
    found.write_ratings(path)
    for row in filled(path, lambda text, question: None):
        for cell in (row["question"], row["text"]):
            assert cell.lstrip()[0] not in "=+-@\t\r"
            assert len(cell) < 32_767

    def changed(text, question):
        return 1.5 if text.endswith("worse") else 4.5

    expected = read_back(found, path, changed)
    assert expected.difference.n_rated == len(nasty)
    rows = filled(path, changed)
    for row in rows:
        row["text"] = row["text"].replace("\n", "\r\n") + " "
        row["question"] = row["question"].removeprefix("'")
        row["rating"] = str(row["rating"]).replace(".", ",")
    save(path, [{"rater": "Jo", **row} for row in rows[::-1]], delimiter=";", encoding="utf-8-sig")
    assert str(found.read_ratings(path)) == str(expected)


def test_a_text_rated_by_several_has_the_mean_and_rows_may_stay_empty(found, tmp_path):
    path = tmp_path / "to_rate.csv"
    found.write_ratings(path)
    rows = filled(path)
    save(
        path,
        [*rows, *({**row, "rating": row["rating"] + 1} for row in rows[:50]), *({**row, "rating": ""} for row in rows)],
    )
    result = found.read_ratings(path)
    assert result.ratings[rows[0]["question"], rows[0]["text"]] == rows[0]["rating"] + 0.5
    assert result.ratings[rows[55]["question"], rows[55]["text"]] == rows[55]["rating"]
    assert found.ratings == {}


def test_files_that_cannot_be_used_are_refused(found, tmp_path):
    path = tmp_path / "to_rate.csv"
    found.write_ratings(path)
    whole = path.read_bytes()
    rows = filled(path)
    others = [{**rows[0], "text": "another"}]
    of_a = [row for row in rows if A[row["question"]] == row["text"]]
    for changed, message in [
        (others, "rates 'another', which is none of the answers drawn"),
        ([{**row, "question": "?"} for row in rows], "which is none of the answers drawn"),
        ([rows[0], {**rows[1], "rating": "good"}], r"the rating in row 3 of .* must be a number .* it is 'good'"),
        ([{**rows[0], "rating": "nan"}], "the rating in row 2 of .* must be finite"),
        ([{**rows[0], "rating": "1e80"}], "the rating in row 2 of .* must lie within"),
        ([{**row, "rating": " "} for row in rows], "holds no rating; fill in the column 'rating'"),
        ([{"question": "q", "rating": "1"}], "has no column text; give the file that write_ratings wrote"),
        (of_a, "only answers of one of the programs were rated"),
    ]:
        save(path, changed)
        with pytest.raises(InputError, match=message):
            found.read_ratings(path)
    for content, message in [
        ("é".encode("latin-1"), "is not UTF-8; save it as 'CSV UTF-8'"),
        (b"", "has no column question and no column text and no column rating"),
        (b"question,text,rating\n" + b"x" * 200_000, "cannot be read as CSV: field larger than"),
    ]:
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            found.read_ratings(path)
    with pytest.raises(InputError, match="cannot be read"):
        found.read_ratings(tmp_path / "none.csv")
    with pytest.raises(InputError, match="is a folder; give the path of a file"):
        found.write_ratings(tmp_path)
    path.unlink()
    found.write_ratings(path)
    assert path.read_bytes() == whole
    assert [one.name for one in tmp_path.iterdir() if one.suffix != ".db" and one.is_file()] == ["to_rate.csv"]


def test_people_s_work_is_not_written_over(found, tmp_path):
    path = tmp_path / "to_rate.csv"
    for _ in range(2):  # nobody has rated yet
        found.write_ratings(path)
    filled(path)
    done = path.read_bytes()
    with pytest.raises(InputError, match="holds ratings that were not read, which writing would lose"):
        found.write_ratings(path)
    assert path.read_bytes() == done
    result = found.read_ratings(path)
    result.draw(40).write_ratings(path)
    assert str(result.read_ratings(path)) == str(result)
    with pytest.raises(InputError, match="n_ratings must be a whole number of at least 30"):
        result.draw(10)
    path.write_text("something else")
    with pytest.raises(InputError, match="has no column question"):
        found.write_ratings(path)


def test_arguments_that_cannot_be_used_are_refused_before_a_program_is_run(metric):
    a = Desk(A)
    for arguments, settings, message in [
        ((a, 3, DEVSET, metric), {}, "program must be a program, or its predictions for the devset, but got int"),
        ((a, [None], DEVSET, metric), {}, "there are 1 predictions for 80 examples"),
        ((a, a, [], metric), {}, "devset must be a list of .*examples, but got an empty one"),
        ((a, a, [{"question": "q"}], metric), {}, r"devset\[0\] does not say what the program is given"),
        ((a, a, DEVSET, len), {}, "metric must be a ValueMetric, which values answers, but got builtin"),
        ((a, a, DEVSET, metric, 0), {}, "n_ratings must be a whole number of at least 1"),
        ((a, a, DEVSET, metric), {"random_state": -1}, "random_state must be a whole number of at least 0"),
        ((a, a, DEVSET, metric), {"failure_rating": "0"}, "failure_rating must be a number"),
        ((a, a, DEVSET, metric), {"confidence": 2}, "confidence must lie between 0 and 1"),
        ((a, a, DEVSET, metric), {"group": "document"}, r"devset\[0\] has no field 'document' for its group"),
        ((a, a, DEVSET, metric), {"group": lambda row: [1]}, "the groups of the devset must be strings or numbers"),
    ]:
        with pytest.raises(InputError, match=message):
            compare(*arguments, **settings)
    assert a.asked == []
    nothing = compare([None] * N, [None] * N, DEVSET, metric)
    assert (nothing.a.n_failed, nothing.values_alone.value) == (N, 0.0)
    with pytest.raises(InputError, match="neither program gave an answer to the questions drawn"):
        nothing.write_ratings("to_rate.csv")
