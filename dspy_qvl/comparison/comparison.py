"""Runs two programs on the same questions, and says which is better, from ratings of some answers and values of all."""

import html
import os
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from dspy_qvl.certainty import Difference, Interval, difference, mean_value
from dspy_qvl.comparison import sheet
from dspy_qvl.errors import InputError, check_confidence, check_count, check_score, shown, warn
from dspy_qvl.measures import numbered
from dspy_qvl.metric import Answers, ValueMetric, check_program, groups_of
from dspy_qvl.text import FromExample, as_string, checked_examples, text_of
from dspy_qvl.vectors import Array

NAMED = 3  # texts that a warning names


@dataclass(frozen=True, eq=False)
class Answered:
    """The answers of one program, one a question.

    Attributes:
        outputs: its predictions; None where it crashed.
        texts: the text of each that is valued and rated; None of a failure.
        values: their values, on the raters' scale; of a failure its rating.
        learned: the questions, by position, to which its answer is a text that the value function learned from.
    """

    outputs: tuple[Any, ...]
    texts: tuple[str | None, ...]
    values: tuple[float, ...]
    learned: tuple[int, ...]

    @property
    def n_failed(self) -> int:
        """Number of failures."""
        return self.texts.count(None)


@dataclass(frozen=True, eq=False, repr=False)
class ProgramComparison:
    """A comparison of programs A and B on the same questions; print it to read it.

    Attributes:
        questions: the inputs of each example, as raters see them.
        a, b: the answers.
        groups: the group of each question.
        n_ratings: the distinct questions that are drawn to be rated, both answers of each.
        failure_rating: what a failure counts as.
        random_state: seed of what is drawn, and of the order of the rows of the file.
        confidence: of the intervals.
        ratings: the ratings read so far.
    """

    questions: tuple[str, ...]
    a: Answered
    b: Answered
    groups: tuple[Hashable, ...]
    n_ratings: int
    failure_rating: float
    random_state: int
    confidence: float
    ratings: Mapping[sheet.Key, float] = field(default_factory=dict)

    # Ratings

    @cached_property
    def drawn(self) -> tuple[int, ...]:
        """The positions of the questions to rate, in the order of the draw; copies of a question are drawn together."""
        numbers = numbered([sheet.key_of(question, "") for question in self.questions])
        order = np.random.default_rng([self.random_state, 0]).permutation(int(numbers.max()) + 1)
        return tuple(row for number in order[: self.n_ratings] for row in np.flatnonzero(numbers == number).tolist())

    def draw(self, n_ratings: int) -> "ProgramComparison":
        """The same comparison with another number of questions to rate; those of a smaller number are among them.

        Raises:
            InputError: not a whole number above 0, or fewer than there were when ratings were read.
        """
        return replace(self, n_ratings=check_count(n_ratings, "n_ratings", self.n_ratings if self.ratings else 1))

    def write_ratings(self, path: str | os.PathLike[str]) -> None:
        """Write the answers to rate as CSV, with the columns "question", "text" and "rating", to be filled in.

        Rows are in random order and do not say whose answer they show; an answer that both gave is one row. Ratings
        read so far are filled in. Raters use the scale of the ratings that the value function learned from.

        Raises:
            InputError: a path that is a folder or cannot be written, no answer among the questions drawn, or a file
                that is there and holds ratings that were not read: people's work is not written over.
        """
        rows = list({row.key: row for row in self._rows()}.values())
        if not rows:
            raise InputError("neither program gave an answer to the questions drawn, so there is nothing to rate.")
        order = np.random.default_rng([self.random_state, 1]).permutation(len(rows))
        sheet.write(path, [rows[place] for place in order])

    def read_ratings(self, path: str | os.PathLike[str]) -> "ProgramComparison":
        """The same comparison with the ratings of a file that `write_ratings` wrote; the programs are not run again.

        Rows are known by question and text, in any order; a text in several rows, of several raters, has the mean of
        their ratings. Ratings read before stay, but for texts that the file rates anew. Rows may stay empty, but only
        by chance: whoever leaves out what is hard to rate changes the result.

        Raises:
            InputError: no such file, one of another kind, a rated text that is none of those drawn, a rating that is no
                number, or none of one of the programs.
        """
        read = sheet.read(path, (row.key for row in self._rows()))
        found = replace(self, ratings={**self.ratings, **read})
        if np.isnan(found._rated).all(axis=1).any():
            raise InputError(
                "only answers of one of the programs were rated, so there is nothing to compare them with; rate more."
            )
        lowest = min(read.values())
        if lowest < self.failure_rating and self.a.n_failed + self.b.n_failed:
            warn(
                f"an answer was rated {lowest:g}, lower than the {self.failure_rating:g} that a failure counts as; if "
                "that is not meant, say what it counts as with failure_rating=."
            )
        return found

    def _rows(self) -> Iterator[sheet.Row]:
        """The answers to the questions drawn, A's first."""
        for answered in (self.a, self.b):
            for row in self.drawn:
                text = answered.texts[row]
                if text is not None:
                    question = self.questions[row]
                    yield sheet.Row(question, text, self.ratings.get(sheet.key_of(question, text)))

    @cached_property
    def _rated(self) -> Array:
        """The ratings of the answers of A and of B, NaN where nobody rated, (2, n_questions).

        A failure is rated without raters. It counts where the other answer was rated. Where both failed it counts in
        the share in which answers were rated: if all did, a file that is half filled would hold too many failures.
        """
        ratings = np.full((2, len(self.questions)), np.nan)
        if not self.ratings:
            return ratings
        failed = np.array([[text is None for text in answered.texts] for answered in (self.a, self.b)])
        for row in self.drawn:
            for place, answered in enumerate((self.a, self.b)):
                text = answered.texts[row]
                if text is not None:
                    ratings[place, row] = self.ratings.get(sheet.key_of(self.questions[row], text), np.nan)
        drawn = np.array(self.drawn)
        rated = ~np.isnan(ratings)
        share = rated.sum() / (~failed[:, drawn]).sum()
        both = drawn[(failed[0] & failed[1])[drawn]]
        ratings[failed & rated[::-1]] = self.failure_rating
        ratings[:, both[: round(share * len(both))]] = self.failure_rating
        return ratings

    # Figures

    @cached_property
    def difference(self) -> Difference | None:
        """The mean rating of A less that of B with its interval, on the raters' scale; None until ratings are read."""
        if not self.ratings:
            return None
        values = (self.a.values, self.b.values)
        return difference(*values, *self._rated, groups=self.groups, confidence=self.confidence)

    @cached_property
    def values_alone(self) -> Interval:
        """The difference of the mean values; its interval knows nothing of how wrong values are."""
        apart = np.array(self.a.values) - np.array(self.b.values)
        return mean_value(apart, apart, groups=self.groups, confidence=self.confidence).ratings_alone

    @property
    def better(self) -> str | None:
        """The better program, "A" or "B"; None where that cannot be told, and until ratings are read."""
        return None if self.difference is None else self.difference.better

    def __str__(self) -> str:
        return "\n".join([*self._table(), self._counts(), self._said()])

    def __repr__(self) -> str:
        rated = f"{len(self.ratings)} texts rated" if self.ratings else "no text rated"
        return f"ProgramComparison({len(self.questions)} questions, {rated}, better={self.better!r})"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    def _table(self) -> list[str]:
        rows = [["", "mean value", "failures", "mean rating"]]
        for name, answered, ratings in zip("AB", (self.a, self.b), self._rated, strict=True):
            rating = "-" if np.isnan(ratings).all() else f"{np.nanmean(ratings):.4g}"
            rows.append([name, f"{np.mean(answered.values):.4g}", str(answered.n_failed), rating])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]

    def _counts(self) -> str:
        """The numbers of questions, of answers that are the same, and of answers drawn and rated."""
        same = sum(a == b is not None for a, b in zip(self.a.texts, self.b.texts, strict=True))
        keys = {row.key for row in self._rows()}
        counts = [f"{len(self.questions)} questions"]
        counts += [f"{same} with the same answer of both"] if same else []
        n_rated = len(keys & set(self.ratings))
        counts.append(f"{len(self.drawn)} drawn to be rated, {n_rated} of {len(keys)} texts rated")
        n_learned = len(self.a.learned) + len(self.b.learned)
        counts += [f"{n_learned} answers are texts that were learned from"] if n_learned else []
        return "; ".join(counts)

    def _said(self) -> str:
        if self.difference is not None:
            return str(self.difference)
        return (
            f"A - B {self.values_alone} by values alone, no rating used\n"
            "    this can be confidently wrong: no number of questions tells how far values are from ratings\n"
            "    write_ratings(path) writes the answers drawn; have people rate them, then read_ratings(path)"
        )


def compare(
    program_a: Any,
    program_b: Any,
    devset: Any,
    metric: ValueMetric,
    n_ratings: int = 30,
    *,
    group: FromExample | None = None,
    failure_rating: float | None = None,
    random_state: int = 0,
    confidence: float = 0.95,
) -> ProgramComparison:
    """Compare two programs on the same questions: by values now, by ratings of a few answers once people gave them.

        found = compare(program_a, program_b, devset, metric)
        found.write_ratings("to_rate.csv")                     # people fill in the column "rating"
        print(found.read_ratings("to_rate.csv"))               # which is better, and how sure

    Values alone can be confidently wrong: they have errors that more questions do not average out. Ratings of questions
    drawn at random correct them, and values take noise away from the ratings (`certainty.difference`). For that the
    value function must not have learned from these answers; a warning names those it did.

    Args:
        program_a: a program, which is run once on the inputs of each example, or its predictions, one an example. Where
            it crashes or gives no text the answer is a failure.
        program_b: the other one.
        devset: the questions, as dspy.Examples with inputs; they need no labels.
        metric: renders and values the answers.
        n_ratings: the number of questions to draw for rating, both answers of each, so of 30 up to 60 texts; all where
            there are no more.
        group: the document, prompt or user that an example belongs to, whose answers are alike: the name of a field, or
            a callable. Left out, questions are independent of each other; copies of a question belong together.
        failure_rating: what a failure counts as, on the raters' scale, without being rated. Left out, the lowest rating
            that the value function learned from.
        random_state: seed of what is drawn.
        confidence: of the intervals, in (0, 1).

    Returns:
        A `ProgramComparison`; it keeps the outputs, not the programs.

    Raises:
        InputError: something that is no program, no devset, no `ValueMetric`, or an argument that cannot be used.
        EmbeddingError: the embedding model failed.
    """
    if not isinstance(metric, ValueMetric):
        raise InputError(f"metric must be a ValueMetric, which values answers, but got {type(metric).__name__}.")
    n_ratings, random_state = check_count(n_ratings, "n_ratings", 1), check_count(random_state, "random_state", 0)
    confidence = check_confidence(confidence)
    failure_rating = None if failure_rating is None else check_score(failure_rating, "failure_rating")
    examples = checked_examples(devset, "devset")
    for program in (program_a, program_b):  # before either is run
        check_program(program, examples)
    questions = tuple(_question(example) for example in examples)
    groups: list[Hashable] = [sheet.key_of(question, "") for question in questions]
    if group is not None:
        groups = groups_of(examples, group)
    both = [metric.answers(examples, program) for program in (program_a, program_b)]
    lowest = both[0].lowest if failure_rating is None else failure_rating
    learned = {text_of(item) for one in both for row in one.learned if (item := one.items[row]) is not None}
    if learned:
        named = ", ".join(shown(text) for text in sorted(learned)[:NAMED])
        warn(
            f"the value function learned from {len(learned)} of the answers, so their values follow ratings that it "
            f"saw, and the comparison may be off; leave their questions out: {named}"
            f"{' and others' if len(learned) > NAMED else ''}."
        )
    a, b = (_answered(one, lowest) for one in both)
    return ProgramComparison(questions, a, b, tuple(groups), n_ratings, lowest, random_state, confidence)


def _answered(answers: Answers, failure_rating: float) -> Answered:
    texts = tuple(None if item is None else text_of(item) for item in answers.items)
    valued = zip(texts, answers.values.tolist(), strict=True)
    values = tuple(failure_rating if text is None else value for text, value in valued)
    return Answered(tuple(answers.outputs), texts, values, tuple(answers.learned))


def _question(example: Any) -> str:
    """The inputs of an example as a person reads them: a single one alone, several with their names."""
    inputs = example.inputs() if getattr(example, "_input_keys", None) is not None else example
    fields = {name: as_string(inputs[name]) for name in inputs.keys()}  # noqa: SIM118
    return next(iter(fields.values())) if len(fields) == 1 else "\n".join(f"{name}: {fields[name]}" for name in fields)
