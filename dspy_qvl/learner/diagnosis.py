"""The report on a value function: a verdict, the figures that decide it, and the ratings that are worth a second look.

rated texts ─► `certainty.examine` ─► verdict, figures beside baselines, length, learning curve ─┐
           └─► `certainty.suspects`, `certainty.influence` ─► ratings ───────────────────────────┴─► Diagnosis
"""

import contextlib
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dspy_qvl.certainty import Estimate, Examination, RatedRows, Selection, Verdict, examine, influence, suspects
from dspy_qvl.errors import InputError, shown
from dspy_qvl.learner.choosing import worth_of_picking
from dspy_qvl.learner.inspection import Inspection
from dspy_qvl.ridge import LeaveOneOut


@dataclass(frozen=True)
class NamedRating:
    """A rating that a report names.

    Attributes:
        row: the position of the text among the rated texts.
        text: the text.
        query: the query it was rated for, or None.
        score: its rating.
    """

    row: int
    text: str
    query: str | None
    score: float


@dataclass(frozen=True)
class AtOdds(NamedRating):
    """A rating that the others do not bear out.

    Attributes:
        value: its value under a fit that saw neither it nor the other ratings most at odds.
        deviations: score - value, in standard deviations of that difference.
    """

    value: float
    deviations: float


@dataclass(frozen=True)
class Influential(NamedRating):
    """A rating without which the values of the rated texts would be others.

    Attributes:
        change: how far the values of all rated texts would move if it were left out, root mean square.
        share: how much of its own fitted value it decides, in (0, 1].
    """

    change: float
    share: float


@dataclass(frozen=True, eq=False, repr=False)
class Diagnosis:
    """A report on a value function; print it, or end a notebook cell with it.

    Attributes:
        verdict: "useful", "weak", "no better than length", "no better than noise" or "too few to tell", as a sentence,
            and with the numbers that decide (`certainty/verdict.py`).
        examination: the figures, each with its 95 % interval.
        at_odds: the ratings that the others bear out least, the worst first.
        influential: the ratings that move the values most; none of more than 4,000 rated texts.
        tuned: True if cross-validation chose the penalty (and the weights of blocks) on the same ratings, which makes
            the figures a little too good. The tests behind the verdict use columns that no rating chose.
        picking: the worth of taking the text of the highest value of several; None of too few rated texts to tell.
    """

    verdict: Verdict
    examination: Examination
    at_odds: tuple[AtOdds, ...]
    influential: tuple[Influential, ...]
    tuned: bool
    picking: Selection | None

    def __str__(self) -> str:
        lines = [self.verdict.sentence, ""]
        for title, rows in self._tables():
            widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
            lines.append(title)
            for row in rows:
                padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
                lines.append(f"  {'  '.join(padded)}".rstrip())
            lines.append("")
        return "\n".join([*lines, *self._notes()]).rstrip()

    def __repr__(self) -> str:
        return f"Diagnosis({self.verdict.name!r}, {self.examination.n} ratings)"

    def _repr_html_(self) -> str:
        parts = [f"<p><b>{html.escape(self.verdict.sentence)}</b></p>"]
        for title, (head, *rows) in self._tables():
            cells = [f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in head)}</tr>"]
            cells += [f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
            parts.append(f"<p>{html.escape(title)}</p><table>{''.join(cells)}</table>")
        return "".join([*parts, *(f"<p>{html.escape(note)}</p>" for note in self._notes())])

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dicts, lists, numbers and strings, which JSON can hold; None for what is not defined."""
        found = self.examination
        curve = found.curve
        content = {
            "verdict": asdict(self.verdict),
            "n_texts": found.n,
            "n_examined": found.n_examined,
            "permutation_p": found.p,
            "figures": _plain(found.compared.figures),
            "baselines": {name: _plain(figures) for name, figures in found.compared.baselines.items()},
            "differences": {name: _plain(figures) for name, figures in found.compared.differences.items()},
            "length": asdict(found.length),
            "learning_curve": [
                {"n": n, **_plain(figures)} for n, figures in zip(curve.sizes, curve.figures, strict=True)
            ],
            "last_doubling": _plain(curve.last),
            "at_odds": [asdict(rating) for rating in self.at_odds],
            "influential": [asdict(rating) for rating in self.influential],
            "tuned": self.tuned,
            "picking": None if self.picking is None else _plain_picking(self.picking),
        }
        plain: dict[str, Any] = _finite(content)
        return plain

    def _tables(self) -> list[tuple[str, list[list[str]]]]:
        """The tables of the report: a title, and rows of cells, the first of them the head."""
        found = self.examination
        compared, curve = found.compared, found.curve
        tables = [
            (
                "On texts that were not learned from:",
                [
                    ["", "R²", "Spearman"],
                    ["value function", *_figures(compared.figures)],
                    *([name, *_figures(figures)] for name, figures in compared.baselines.items()),
                ],
            ),
            (
                "By the number of ratings:",
                [
                    ["ratings", "R²", "Spearman"],
                    *([str(n), *_figures(figures)] for n, figures in zip(curve.sizes, curve.figures, strict=True)),
                    *([["last doubling", *_figures(curve.last)]] if curve.last else []),
                ],
            ),
        ]
        if self.at_odds:
            rows = [
                [f"{one.score:.3g}", f"{one.value:.3g}", f"{one.deviations:+.1f}", shown(one.text)]
                for one in self.at_odds
            ]
            title = "Ratings most at odds with the others (differences in standard deviations):"
            tables.append((title, [["rated", "others say", "differs", "text"], *rows]))
        if self.influential:
            rows = [[f"{one.score:.3g}", f"{one.change:.2g}", shown(one.text)] for one in self.influential]
            title = "Ratings without which values would change most (root mean square over the rated texts):"
            tables.append((title, [["rated", "change", "text"], *rows]))
        return tables

    def _notes(self) -> list[str]:
        """The sentences below the tables: the rows behind the figures, and the tests."""
        found, numbers = self.examination, self.verdict.numbers
        of = f"{found.n} ratings" + (f", a sample of {found.n_examined} examined" if found.n_examined < found.n else "")
        groups = f" in {numbers['n_groups']:.0f} groups" if numbers["n_groups"] < numbers["n"] else ""
        notes = [
            f"{of}{groups}; 95 % intervals in brackets. Noise: p = {found.p:.3g}; beyond length: p = "
            f"{found.length.p:.3g}; a straight line in log length explains {100 * found.length.share:.0f} % of the "
            "values' variance."
        ]
        if self.picking is not None:
            notes.append(self.picking.sentence)
        if self.tuned:
            notes.append("The penalty was chosen on the same ratings, so the figures are a little too good.")
        return notes


def diagnosis_of(inspection: Inspection, rows: RatedRows, *, tuned: bool, n: int) -> Diagnosis:
    """Examine a value function through its rated texts.

    Args:
        inspection: of its fit.
        rows: its rated texts.
        tuned: True if cross-validation chose the penalty.
        n: how many ratings at odds, and influential ones, to name at most.

    Raises:
        InputError: all rated texts are one group.
    """
    fit, posterior, X, left = inspection.fit, inspection.posterior, rows.X, inspection.leave_one_out()
    found = examine(rows)
    loo = LeaveOneOut(left.residuals, left.leverages)
    named = [(fit.rated[one.row], one) for one in suspects(X, fit.scores, fit.alpha, loo, posterior.noise, n)]
    at_odds = tuple(AtOdds(one.row, of.text, of.query, one.score, one.value, one.deviations) for of, one in named)
    influential: list[Influential] = []
    moved = influence(posterior, X)
    if moved is not None:
        order = np.argsort(-moved.changes, kind="stable")[:n]  # NaN last
        order = order[np.isfinite(moved.changes[order])]
        for row, change, share in zip(order, moved.changes[order], moved.shares[order], strict=True):
            of = fit.rated[row]
            influential.append(Influential(int(row), of.text, of.query, of.score, float(change), float(share)))
    picking = None
    with contextlib.suppress(InputError):  # too few rated texts to tell
        picking = worth_of_picking(found.rows, found.compared, paired=fit.paired)
    return Diagnosis(found.verdict, found, at_odds, tuple(influential), tuned, picking)


def _figures(figures: Mapping[str, Estimate]) -> list[str]:
    return [_told(figures[name]) for name in ("r2", "spearman")]


def _told(figure: Estimate) -> str:
    """A figure with its interval."""
    if math.isnan(figure.value):
        return "-"
    value, lower, upper = (round(number, 2) + 0.0 for number in (figure.value, figure.lower, figure.upper))  # no -0.00
    return f"{value:.2f}" if math.isnan(lower) else f"{value:.2f} [{lower:.2f}, {upper:.2f}]"


def _plain(figures: Mapping[str, Estimate]) -> dict[str, dict[str, float]]:
    return {
        name: {"value": one.value, "lower": one.lower, "upper": one.upper, "se": one.se}
        for name, one in figures.items()
    }


def _plain_picking(picking: Selection) -> dict[str, Any]:
    figures = [
        {"n": one.n, "ceiling": one.ceiling, **_plain({"gain": one.gain, "judge": one.judge, "share": one.share})}
        for one in picking.best_of
    ]
    return {"best_of": figures, "enough": picking.enough, "largest": picking.largest}


def _finite(content: Any) -> Any:
    """The same with None in place of NaN and infinity."""
    if isinstance(content, Mapping):
        return {name: _finite(entry) for name, entry in content.items()}
    if isinstance(content, Sequence) and not isinstance(content, str):
        return [_finite(entry) for entry in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
