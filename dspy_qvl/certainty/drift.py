"""A test of whether texts, in the order they come, are still of the kind that was rated.

    rated texts ─┬─► half of the groups ─► Wording, Support: the surprise of a text, a fixed function
                 └─► the other half ─► surprises ─┐
    new texts in order ─► surprises ──────────────┴─► ranks p_t ─► bets ─► wealth ─► alarm at 100

p_t is the share of the surprises of the other half and of texts 1 to t that are higher than that of text t, where each
tie, itself included, counts as a random part (seeded). If the other half and the new texts are exchangeable, all p_t
are independent and uniform on (0, 1), whatever the function: it saw none of these texts. Ranks among the other half
alone would not be independent.

The wealth starts at 1 and is bet against uniform p by four bets, each of mean 1: 1, 1/2 + p, 3/2 - p, 1 / (2 sqrt p).
Before each text, .1 % of the capital of each bet is shared out evenly. Without drift the wealth reaches 100 in at most
1 of 100 runs, however long they are (Ville's inequality). Rated texts whose group is large depend on each other, and so
do texts of one prompt that come one after another; the promise does not hold for those.

Source: Vovk, Nouretdinov & Gammerman (2003), Testing Exchangeability On-Line; Vovk et al. (2021), Retrain or not
retrain: conformal test martingales for change-point detection (the jumps).
"""

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.certainty.support import SIGNALS, Support, Wording, apart, words_of
from dspy_qvl.errors import InputError
from dspy_qvl.fitting import folded
from dspy_qvl.vectors import Array

WEALTH = 100.0  # of the alarm
JUMP = 0.001
LARGEST = 1e300  # a higher wealth is given as this
FEWEST, FEWEST_OF_HALF = 20, 5  # rated texts, copies counted once
CALIBRATING = 2000  # rated texts at most that new ones are ranked among
N_WORDS = 10

RESPECTS = {
    "phrases": "words and phrases that are rare or absent in the rated texts",
    "order": "words in an order that is unusual in the rated texts",
    "build": "sentences that are built unlike those of the rated texts",
    "repetition": "repetition",
    "characters": "characters that are rare or absent in the rated texts",
    "length": "length: they are longer than the rated texts",
}
ORDINARY = "they are more ordinary than the rated texts: fewer of them are unusual in any respect"


@dataclass(frozen=True, eq=False)
class Drift:
    """How texts, in their order, compare with the rated texts.

    Attributes:
        texts: the texts that were tested, in their order: each once, and none that was rated.
        p_values: the rank of the surprise of each, (n_texts,), in (0, 1]; low where a text is unlike those before it.
        wealth: after each text, (n_texts,), at most 1e300.
        alarm: position of the first text at which the wealth is 100 or more, or None.
        since: where there is an alarm, the position of the text from which on the best bet won; else None.
        respect: where there is an alarm, what sets the texts since then apart most, as a noun phrase; else None.
        new_words: words that no rated text has, and the number of the texts since then that have them, the most
            frequent first; none without an alarm.
        n_compared: rated texts that they were ranked among.
    """

    texts: tuple[str, ...]
    p_values: Array
    wealth: Array
    alarm: int | None
    since: int | None
    respect: str | None
    new_words: tuple[tuple[str, int], ...]
    n_compared: int

    def __str__(self) -> str:
        n, highest = len(self.texts), max([1.0, *self.wealth.tolist()])
        if self.alarm is None or self.since is None:
            return f"no alarm in {n:,} texts: the wealth was at most {highest:.3g}; an alarm needs {WEALTH:g}"
        lines = [
            f"alarm at text {self.alarm + 1:,} of {n:,}: they are not of the kind that was rated (wealth "
            f"{self.wealth[self.alarm]:.3g}; without drift it reaches {WEALTH:g} in at most 1 of {WEALTH:g} runs)",
            f"new since text {self.since + 1:,}: {self.respect}",
        ]
        if self.new_words:
            words = ", ".join(f"{word} (in {count:,})" for word, count in self.new_words)
            lines.append(f"frequent words that no rated text has: {words}")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class DriftTest:
    """The rated texts, ready to test texts for drift.

    Attributes:
        calibration: the surprises of rated texts that the surprise was not fitted on, (n_compared,).
        seed: of the split, and of ties.
    """

    calibration: Array
    seed: int
    _support: Support
    _wording: Wording
    _typical: Array  # mean surprise of those rated texts by each signal, (6,)
    _rated: frozenset[str]
    _words: frozenset[str]

    @classmethod
    def of(cls, texts: Sequence[str], groups: Sequence[int] | NDArray[np.intp], seed: int = 0) -> "DriftTest":
        """Split the rated texts by whole groups: half of them fit the surprise, the others are ranked by it.

        Args:
            texts: the rated texts, (n,).
            groups: the number of the group of each, (n,); if all are of one, each text is a group of its own.
            seed: of the split, and of ties.

        Raises:
            InputError: fewer than 20 different texts, or groups so uneven that a half has fewer than 5.
        """
        rated = frozenset(map(folded, texts))
        if len(rated) < FEWEST:
            raise InputError(
                f"a test for drift needs at least {FEWEST} different rated texts, but there are {len(rated)}; rate "
                "more, or look at the marks of single judgements."
            )
        rng, members = np.random.default_rng(seed), apart(groups)
        fitting = _half(members, rng)
        fitted = [texts[row] for row in np.flatnonzero(fitting).tolist()]
        others = [texts[row] for row in rng.permutation(np.flatnonzero(~fitting)).tolist()]
        kept = _once(others, map(folded, fitted))[:CALIBRATING]
        if (fewest := min(len(_once(fitted, ())), len(kept))) < FEWEST_OF_HALF:
            raise InputError(
                f"a test for drift needs {FEWEST_OF_HALF} different rated texts in each of two halves without a group "
                f"in common, but one has {fewest}; rate texts of more groups, or give another seed."
            )
        wording = Wording.of(fitted, members[fitting])
        support = Support.of(SIGNALS, wording.left_out)
        surprises = np.array([support.surprises(wording.signals(text)) for text in kept])
        words = frozenset(word for text in texts for word in words_of(text))
        return cls(surprises.max(axis=1), seed, support, wording, surprises.mean(axis=0), rated, words)

    def __call__(self, texts: Iterable[str]) -> Drift:
        """Test texts in their order; copies of a text, and of rated texts, are left out.

        The order matters: another one may raise an alarm elsewhere, or none. More texts at the end leave what was said
        of the first ones as it was.
        """
        tested = tuple(_once(texts, self._rated))
        surprises = np.array([self._support.surprises(self._wording.signals(text)) for text in tested])
        surprises = surprises.reshape(len(tested), len(SIGNALS))
        p_values = smoothed_ranks(self.calibration, surprises.max(axis=1), self.seed)
        wealth = betting(p_values)
        alarms = np.flatnonzero(wealth >= WEALTH)
        if not len(alarms):
            return Drift(tested, p_values, wealth, None, None, None, (), len(self.calibration))
        alarm = int(alarms[0])
        since, unlike = _rise(p_values[: alarm + 1])
        excess = surprises[since:].mean(axis=0) - self._typical
        respect = RESPECTS[SIGNALS[int(np.argmax(excess))]] if unlike else ORDINARY
        return Drift(
            tested, p_values, wealth, alarm, since, respect, self._new_words(tested[since:]), len(self.calibration)
        )

    def _new_words(self, texts: Iterable[str]) -> tuple[tuple[str, int], ...]:
        """The words of most texts that no rated text has, with the number of these texts."""
        spread = Counter(word for text in texts for word in set(words_of(text)) - self._words if word[0].isalpha())
        return tuple(sorted(spread.items(), key=lambda found: (-found[1], found[0]))[:N_WORDS])


def smoothed_ranks(calibration: Array, scores: Array, seed: int) -> Array:
    """The rank of each score among those before it and the calibrating ones, as p-values, (n,), in (0, 1].

    p_t = (number of higher ones + u_t * number of equal ones, itself included) / (n_calibration + t), u_t uniform.

    Args:
        calibration: scores by the same function, which saw neither them nor the others, (n_calibration,).
        scores: those that are tested, in their order, (n,).
        seed: of u.
    """
    before, p_values = sorted(calibration.tolist()), np.empty(len(scores))
    shares = 1 - np.random.default_rng([seed, 1]).random(len(scores))  # in (0, 1]: p is never 0
    for row, (score, share) in enumerate(zip(scores.tolist(), shares.tolist(), strict=True)):
        insort(before, score)
        higher = len(before) - bisect_right(before, score)
        equal = len(before) - higher - bisect_left(before, score)
        p_values[row] = (higher + share * equal) / len(before)
    return p_values


def betting(p_values: Array) -> Array:
    """The wealth after each p-value, (n,), of bets against uniform ones; it starts at 1, and is at most 1e300."""
    logs, log, capital = np.empty(len(p_values)), 0.0, np.full(4, 0.25)
    for row, bets in enumerate(_bets(p_values)):
        capital = ((1 - JUMP) * capital + JUMP / 4) * bets
        total = float(capital.sum())
        capital /= total
        log += np.log(total)
        logs[row] = log
    return np.asarray(np.exp(np.minimum(logs, np.log(LARGEST))))


def _bets(p_values: Array) -> Array:
    """The factor by which each p-value multiplies the capital of each bet, (n, 4)."""
    p = p_values
    return np.column_stack([np.ones(len(p)), 0.5 + p, 1.5 - p, 0.5 / np.sqrt(p)])


def _rise(p_values: Array) -> tuple[int, bool]:
    """The position from which on the bet that won most up to the end won it, and True if it bet on low p-values."""
    logs = np.vstack([np.zeros(3), np.log(_bets(p_values)[:, 1:]).cumsum(axis=0)])
    best = int(np.argmax(logs[-1] - logs.min(axis=0)))
    return int(np.argmin(logs[:, best])), best > 0


def _half(members: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.bool_]:
    """True for the texts of about half of the groups, chosen at random: (n,)."""
    groups = rng.permutation(np.unique(members))
    return np.isin(members, groups[: len(groups) // 2])


def _once(texts: Iterable[str], known: Iterable[str]) -> list[str]:
    """The texts in their order, without copies of known ones (`folded`) or of those before."""
    new: dict[str, str] = {}
    seen = frozenset(known)
    for text in texts:
        if (key := folded(text)) not in seen:
            new.setdefault(key, text)
    return list(new.values())
