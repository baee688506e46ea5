"""The human-rated data sets the benchmarks measure on; never part of the project.

Found through $DSPY_QVL_DATA, else in ../shared/data beside the checkout.
"""

import gzip
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POINTWISE = {"vader_amazon": "score", "vader_tweets": "score", "emobank": "score", "ukp_convarg_rank": "score_pct"}


@dataclass(frozen=True)
class Rated:
    """Texts of one split with their scores and groups."""

    texts: list[str]
    scores: list[float]
    groups: list[Any] | None


def data_folder() -> Path | None:
    """Where the data sets are, or None."""
    named = os.environ.get("DSPY_QVL_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[3] / "shared" / "data"
    return folder if folder.is_dir() else None


def load(name: str, split: str) -> Rated:
    """One split of a pointwise set."""
    folder = data_folder()
    if folder is None:
        raise SystemExit("no data sets here: set DSPY_QVL_DATA to the folder that holds vader_amazon.jsonl.gz, …")
    with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if row["split"] == split]
    grouped = all("group" in row for row in rows)
    return Rated(
        [row["text"] for row in rows],
        [float(row[POINTWISE[name]]) for row in rows],
        [row["group"] for row in rows] if grouped else None,
    )
