"""Human-rated data for tests: the suite passes without it, and says so."""

from functools import cache
from typing import Any

import pytest

from tests.benchmarks import human_ratings
from tests.benchmarks.human_ratings import ABSENT, data_folder

human_data = pytest.mark.skipif(data_folder() is None, reason=ABSENT)


@cache
def rows_of(name: str, split: str) -> list[dict[str, Any]]:
    """The rows of one split of a data set, read once in a process."""
    return human_ratings.rows_of(name, split)
