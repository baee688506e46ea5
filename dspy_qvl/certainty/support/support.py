"""How well the rated texts support a value of a text: a conformal p-value.

Several signals say how unlike the rated texts a text is. Each rated text has the same signals, from a comparison with
the others that leaves out its own group. By one signal, the surprise of a text among m rated texts is

    -log(rank / weight),      rank = 1 + number of rated texts that are at least as unlike

and beyond the most unlike one it grows by the distance from it, in units of the mean excess of the most unlike tenth.
A text is as surprising as the most surprising of its signals; a rated text, among the others. The support is the share
of surprises that are at least as high, itself counted:

    support = (1 + number of rated texts that are at least as surprising) / (m + 1)

Where new texts are drawn as the groups of rated texts were, about 5 % of them have a support below .05: groups are to
be what is new about new texts, such as a prompt or a topic. By fewer than 20 rated texts no support is so low.

The rank of a rated text among the others counts half of the new text, which may be more unlike or less. Beyond the most
unlike rated text the distance decides, so that few rated texts can tell what is far off from what is just the first.

The variance of a value (`ridge/posterior.py`) is no signal: with it 2 to 6 in 100 more sentences of another collection
are marked (emobank, by a value function of 2,000 reviews), and no more of anything else; and only once document
frequencies are counted anew without the group of each rated text, for else it marks more honest texts too.

Source: Vovk, Gammerman & Shafer (2005), Algorithmic Learning in a Random World.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dspy_qvl.vectors import Array

SUPPORTED = 0.05  # support below which a text is unlike the rated texts

REASONS = {
    "phrases": "its words and phrases are rare or absent in the rated texts",
    "order": "its words stand in an order that is unusual in the rated texts",
    "build": "its sentences are built unlike those of the rated texts",
    "repetition": "it repeats itself",
    "characters": "it has characters that are rare or absent in the rated texts",
    "length": "it is longer than the rated texts",
    "distance": "no rated text is like it",
}
# The least unit of a signal, for one that hardly differs between rated texts; .01 of those not named here. That of
# repetition is larger: a phrase said twice is no reason for doubt, even if no rated text says one twice.
SMALLEST = {"repetition": 0.1}
# How many false alarms a signal may cause; 1 of those not named here. Fewer will do where attacks are far beyond every
# rated text.
WEIGHTS = {"repetition": 0.3, "length": 0.3}


@dataclass(frozen=True)
class _Signal:
    """One signal of the rated texts.

    Attributes:
        name: one of `REASONS`.
        values: of the rated texts, ascending, (m,).
        unit: mean excess of the most unlike tenth.
    """

    name: str
    values: tuple[float, ...]
    unit: float

    @classmethod
    def of(cls, name: str, values: Sequence[float]) -> "_Signal":
        """The signal of some rated texts, in any order."""
        ordered = sorted(values)
        tenth = ordered[-(len(ordered) // 10 + 2) :]
        excess = [value - tenth[0] for value in tenth[1:]]
        return cls(name, tuple(ordered), max(sum(excess) / max(len(excess), 1), SMALLEST.get(name, 0.01)))

    def surprise(self, value: float) -> float:
        """The surprise of a new text, by its value: the higher, the more."""
        return self._surprise(value, len(self.values) - bisect_left(self.values, value))

    def among_others(self, value: float) -> float:
        """The surprise of a rated text among the others, by its value."""
        at_least = len(self.values) - bisect_left(self.values, value) - 1
        if not at_least:
            return _Signal.of(self.name, self.values[:-1]).surprise(value)
        return self._surprise(value, at_least + 0.5)

    def _surprise(self, value: float, at_least: float) -> float:
        beyond = 0.0 if at_least or not self.values else (value - self.values[-1]) / self.unit
        return math.log(WEIGHTS.get(self.name, 1.0) / (1 + at_least)) + beyond


@dataclass(frozen=True)
class Support:
    """The support of a text by its signals, calibrated on left-out rated texts.

    It falls, or stays, as a signal grows: where a signal is only known within bounds, equal supports at both of them
    are the support. Plain Python numbers in one order: the same bits in any batch.
    """

    _signals: tuple[_Signal, ...]
    _surprises: tuple[float, ...]  # of the rated texts, ascending

    @classmethod
    def of(cls, names: Sequence[str], left_out: Array) -> "Support":
        """The support by signals that are high where a text is unlike.

        Args:
            names: the signals, each one of `REASONS`, (k,).
            left_out: those of rated texts, each compared with the texts of other groups, (m, k), finite.
        """
        columns = np.asarray(left_out, dtype=np.float64).T.tolist()
        signals = tuple(_Signal.of(name, column) for name, column in zip(names, columns, strict=True))
        surprises = [map(signal.among_others, column) for signal, column in zip(signals, columns, strict=True)]
        return cls(signals, tuple(sorted(map(max, zip(*surprises, strict=True)))))

    def __call__(self, signals: Sequence[float]) -> float:
        """The support of a text by its signals, (k,), in the order of the names; in (0, 1]."""
        highest, _ = self.most_surprising(signals)
        at_least = len(self._surprises) - bisect_left(self._surprises, highest)
        return (1 + at_least) / (len(self._surprises) + 1)

    def reason(self, signals: Sequence[float]) -> str:
        """The most surprising signal of a text, in words that follow "because"."""
        return REASONS[self.most_surprising(signals)[1]]

    def most_surprising(self, signals: Sequence[float]) -> tuple[float, str]:
        """The surprise of a text, which is the highest one of its signals, and the name of that signal."""
        surprises = self.surprises(signals)
        highest = max(surprises)
        return highest, self._signals[surprises.index(highest)].name

    def surprises(self, signals: Sequence[float]) -> list[float]:
        """The surprise of a text by each signal, (k,): -log of its rank, and above 0 beyond all rated texts."""
        return [signal.surprise(value) for signal, value in zip(self._signals, signals, strict=True)]
