"""Judgements as lines of JSON, appended to a file: the texts, their values and marks, and nothing else.

No rated text, key or other setting is written; the texts that were scored are, so the file is as private as they are.
"""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dspy_qvl.errors import InputError
from dspy_qvl.metric.judgement import Judgement

RATED = ("above", "below")  # rated texts, which the metric's owner has


def append(path: Path, judgements: Iterable[Judgement]) -> None:
    """Append judgements to a file, one a line, all of them in one write.

    A line that an earlier, broken write left unfinished is ended first.

    Raises:
        InputError: the file cannot be written, or the disk is full.
    """
    lines = "".join(f"{as_line(judgement)}\n" for judgement in judgements).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+", buffering=0) as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                lines = lines if file.read(1) == b"\n" else b"\n" + lines
            if file.write(lines) != len(lines):
                raise OSError("no more than a part was written")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}); give another path.") from error


def as_line(judgement: Judgement) -> str:
    """A judgement as JSON in ASCII, without the rated texts it names; null for a number that is not finite."""
    fields: dict[str, Any] = {name: value for name, value in vars(judgement).items() if name not in RATED}
    for name, value in fields.items():
        if isinstance(value, float) and not math.isfinite(value):
            fields[name] = None
    return json.dumps(fields, allow_nan=False)
