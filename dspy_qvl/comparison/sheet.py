"""The file in which people rate answers: CSV for any spreadsheet, a row for each text, with an empty column "rating".

A spreadsheet changes what it saves: line breaks, delimiters, cells that look like formulas. Therefore cells are written
so that none of them is a formula, and rows are found again by their words, whatever the white space between them.
"""

import csv
import io
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from dspy_qvl.errors import InputError, check_score, shown
from dspy_qvl.state import checked_path, checked_target, opened_plain, write_bytes

COLUMNS = ("question", "text", "rating")
LONGEST = 32_000  # characters of a cell; spreadsheets cut those of more than 32,767
CONTROL = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f]")
FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]|\t")
DELIMITERS = ",;\t"  # the second where the comma is the decimal sign

Key = tuple[str, str]  # question and text, as they are found again


class Row(NamedTuple):
    """A text to be rated.

    Attributes:
        question: what it is an answer to.
        text: the text.
        rating: None where nobody rated it yet.
    """

    question: str
    text: str
    rating: float | None

    @property
    def key(self) -> Key:
        """Question and text, equal for all copies of them."""
        return key_of(self.question, self.text)


def key_of(question: str, text: str) -> Key:
    """Question and text, equal for all copies of them, and for what a spreadsheet makes of their cells."""
    first, second = (" ".join(_cell(one).removeprefix("'").split()) for one in (question, text))
    return first, second


def write(path: str | os.PathLike[str], rows: Iterable[Row]) -> None:
    """Write rows as CSV, whole or not at all, in UTF-8 with the mark that spreadsheets know it by.

    Raises:
        InputError: a path that is a folder or cannot be written, or a file that is there and is no such file, or holds
            ratings that the rows have not: people's work is not written over.
    """
    target, rows = checked_target(path), list(rows)
    if target.exists():
        known = {row.key: row.rating for row in rows}
        if any(known.get(row.key) != rating for row, rating in _filled(target)):
            raise InputError(
                f"{target} is there, and holds ratings that were not read, which writing would lose; read them with "
                "read_ratings, or give another path."
            )
    file = io.StringIO(newline="")
    writer = csv.writer(file, quoting=csv.QUOTE_ALL)
    writer.writerow(COLUMNS)
    for row in rows:
        rating = "" if row.rating is None else repr(row.rating).removesuffix(".0")
        writer.writerow([_cell(row.question), _cell(row.text), rating])
    write_bytes(target, file.getvalue().encode("utf-8-sig"))


def read(path: str | os.PathLike[str], known: Iterable[Key]) -> dict[Key, float]:
    """The ratings in a file that `write` wrote and people filled in; of a text in several rows, their mean.

    Other columns are ignored, and so are rows without a rating.

    Args:
        path: the file.
        known: the questions and texts that may be in it.

    Raises:
        InputError: no file, another kind of file, a rated text that is not known, a rating that is no number, or none.
    """
    target, may_be = checked_path(path), set(known)
    found: dict[Key, list[float]] = {}
    for row, rating in _filled(target):
        if row.key not in may_be:
            raise InputError(
                f"{target} rates {shown(row.text)}, which is none of the answers drawn; change nothing but the "
                "ratings, and read the file with the comparison that wrote it."
            )
        found.setdefault(row.key, []).append(rating)
    if not found:
        raise InputError(f"{target} holds no rating; fill in the column 'rating', with numbers.")
    return {key: math.fsum(ratings) / len(ratings) for key, ratings in found.items()}


def _filled(target: Path) -> Iterator[tuple[Row, float]]:
    """The rows of a file that have a rating, each with it.

    Raises:
        InputError: no file, another kind of file, or a rating that is no number.
    """
    try:
        with opened_plain(target) as file:
            lines = file.read().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{target} cannot be read ({error.strerror or error}).") from error
    except UnicodeDecodeError:
        raise InputError(f"{target} is not UTF-8; save it as 'CSV UTF-8'.") from None
    delimiter = max(DELIMITERS, key=lines.split("\n", 1)[0].count)
    table = csv.DictReader(io.StringIO(lines, newline=""), delimiter=delimiter)
    try:
        missing = [name for name in COLUMNS if name not in (table.fieldnames or ())]
        if missing:
            raise InputError(
                f"{target} has no column {' and no column '.join(missing)}; give the file that write_ratings wrote, "
                "filled in and saved as CSV."
            )
        for number, row in enumerate(table, start=2):
            question, text, rating = ((row[name] or "").strip() for name in COLUMNS)
            if rating:
                decimal = rating if delimiter == "," else rating.replace(",", ".")
                value = _number(decimal, f"the rating in row {number} of {target}")
                yield Row(question, text, value), value
    except csv.Error as error:
        raise InputError(f"{target} cannot be read as CSV: {error}.") from None


def _cell(text: str) -> str:
    """A text as a cell that no spreadsheet takes for a formula, cuts, or cannot show."""
    plain = CONTROL.sub(" ", text.encode("utf-8", "replace").decode())
    if len(plain) > LONGEST:
        plain = f"{plain[:LONGEST]}…"
    return f"'{plain}" if FORMULA.match(plain) else plain


def _number(written: str, what: str) -> float:
    try:
        number = float(written)
    except ValueError:
        raise InputError(
            f"{what} must be a number on the raters' scale, but it is {shown(written)}; leave it empty where nobody "
            "rated."
        ) from None
    return check_score(number, what)
