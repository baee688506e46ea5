"""Human-rated data for tests: the suite passes without it, and says so."""

import gzip
import json
from functools import cache
from typing import Any

import pytest

from tests.benchmarks.human_ratings import data_folder

ABSENT = "no human-rated data here: set DSPY_QVL_DATA to the folder that holds vader_amazon.jsonl.gz, …"
human_data = pytest.mark.skipif(data_folder() is None, reason=ABSENT)


@cache
def rows_of(name: str, split: str) -> list[dict[str, Any]]:
    """The rows of one split of a data set."""
    folder = data_folder()
    assert folder is not None
    with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [row for row in map(json.loads, lines) if row["split"] == split]
