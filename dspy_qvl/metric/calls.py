"""The record of a metric's calls in one process: texts that were scored, and failures."""

import threading
from collections import Counter
from pathlib import Path
from typing import Any

from dspy_qvl.errors import MissingTextError, TextsRefusedError, warn
from dspy_qvl.learner import KeptTexts
from dspy_qvl.metric.judgement import LOWEST, Judgement
from dspy_qvl.text import plain

FAILURES = (MissingTextError, TextsRefusedError)  # of an answer; other errors are the caller's or the model's
REASON_AT_MOST = 1000  # characters
REASONS_AT_MOST = 1000  # different ones that are counted


class Calls:
    """Scores and judgements of texts, and counts of failures; a pickle of it is empty.

    Attributes:
        scores: the score of every text that was scored, in the order of the first calls.
        judgements: the judgements made so far.
        failures: number of predictions without a text to value, by reason.
        written: number of texts, from the first one on, whose judgements a file has, by its path.
        writing: to be held while a file is written.
    """

    def __init__(self) -> None:
        self.scores: KeptTexts[float] = KeptTexts()
        self.judgements: KeptTexts[Judgement] = KeptTexts()
        self.failures: Counter[str] = Counter()
        self.written: dict[Path, int] = {}
        self.writing = threading.Lock()
        self._lock = threading.Lock()

    def count_failure(self, error: Exception) -> None:
        """Count a failure, and warn of the first one."""
        reason = reason_of(error)
        with self._lock:
            first = not self.failures
            is_kept = reason in self.failures or len(self.failures) < REASONS_AT_MOST
            self.failures[reason if is_kept else "other reasons"] += 1
        if first:
            warn(
                f"{reason} It gets the lowest score, {LOWEST:g}; so does whatever else cannot be valued, and "
                "metric.failures counts it.",
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return Calls, ()


def reason_of(error: Exception) -> str:
    """The reason of a failure, as a sentence for people."""
    if isinstance(error, TextsRefusedError):
        return f"the embedding model refuses the text: {next(iter(error.refused.values()), str(error))}."
    return plain(str(error), REASON_AT_MOST)
