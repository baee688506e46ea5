"""Reads the human-rated data sets that the benchmarks measure on; DATA.md says how to make them.

They are looked for in the folder that DSPY_QVL_DATA names, else in `data` in the checkout, else in `../shared/data`.
"""

import gzip
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POINTWISE = {"vader_amazon": "score", "vader_tweets": "score", "emobank": "score", "ukp_convarg_rank": "score_pct"}
ABSENT = "no human-rated data here: set DSPY_QVL_DATA to a folder made as tests/benchmarks/DATA.md says"


@dataclass(frozen=True)
class Rated:
    """Texts of one split with their scores and groups."""

    texts: list[str]
    scores: list[float]
    groups: list[Any] | None


def data_folder() -> Path | None:
    """The folder of the data sets, or None."""
    checkout = Path(__file__).resolve().parents[2]
    named = os.environ.get("DSPY_QVL_DATA")
    folders = [Path(named)] if named else [checkout / "data", checkout.parent / "shared" / "data"]
    return next((folder for folder in folders if folder.is_dir()), None)


def rows_of(name: str, split: str | None = None) -> list[dict[str, Any]]:
    """The rows of a data set, or of one of its splits; ends the program with a message where there are none."""
    folder = data_folder()
    path = None if folder is None else folder / f"{name}.jsonl.gz"
    if path is None or not path.exists():
        raise SystemExit(f"{ABSENT} ({name}.jsonl.gz is wanted)")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [row for row in map(json.loads, lines) if split is None or row["split"] == split]


def load(name: str, split: str) -> Rated:
    """One split of a set of texts that were rated one by one."""
    rows = rows_of(name, split)
    grouped = all("group" in row for row in rows)
    return Rated(
        [row["text"] for row in rows],
        [float(row[POINTWISE[name]]) for row in rows],
        [row["group"] for row in rows] if grouped else None,
    )
