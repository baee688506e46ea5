"""One of five verdicts on a value function, by a rule that is written down.

    told from noise?   no ─► could so many ratings show a useful one, and does the interval rule it out?
                                yes ─► "no better than noise"         no ─► "too few to tell"
                       yes ─► told from length?   no ─► "no better than length", where length orders the texts
                                                  yes ─► Spearman .3 or more ─► "useful", else "weak"

Told from noise means that at most 5 % of shuffles of the ratings are learned as well, and that the interval of Spearman
lies above 0; told from length, that at most 5 % of shuffles of what length leaves over of the ratings are. So ratings
that are noise pass for "useful" or "weak" in at most 5 % of cases.

With a Spearman correlation of r, pairs of texts are put in the right order with probability 1/2 + asin(2 sin(pi r / 6))
/ pi (for normal scores): 60 % at .3, which is useful; 57 % at .2, and a value function below that is taken for useless.

So many ratings are enough to tell Spearman .2 from 0: the two-sided 95 % interval then excludes one or the other with
probability 80 % or more.

    n = deff (((z_.975 + z_.8) / atanh .2)^2 + 3) = 194 deff,      deff = 1 + (sum m_g^2 / n - 1) icc(y) icc(values)

deff is the design effect of groups of sizes m_g, whose ratings and values are both alike (icc: the correlation of two
rows of one group). By chance the interval may rule Spearman .2 out with fewer ratings; then they still are too few. So
are ratings in fewer than 5 groups, of which an interval says nothing.

Source: Fisher (1921) for atanh; Moulton (1986), Random group effects and the precision of regression estimates.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.certainty.verdict.comparison import Comparison
from dspy_qvl.certainty.verdict.estimate import Estimate
from dspy_qvl.certainty.verdict.length import BeyondLength
from dspy_qvl.certainty.verdict.rated_rows import RatedRows
from dspy_qvl.fitting import LEVEL, variances_of
from dspy_qvl.vectors import Array

USEFUL, NEGLIGIBLE = 0.3, 0.2  # Spearman
SURE, POWER = 1.959964, 0.841621  # quantiles of the normal distribution at .975 and .8
NEEDED = ((SURE + POWER) / math.atanh(NEGLIGIBLE)) ** 2 + 3  # ratings that are not in groups
FEWEST = 5  # groups: draws of fewer are too much alike for an interval
ALIKE = 1.5  # design effect from which on other groups are advised
VERDICTS = ("useful", "weak", "no better than length", "no better than noise", "too few to tell")


@dataclass(frozen=True)
class Verdict:
    """A verdict on a value function.

    Attributes:
        name: one of `VERDICTS`.
        sentence: the verdict as a plain sentence.
        numbers: by name, those that decided: "n", "n_groups", "design" (the design effect), "needed" (ratings enough to
            tell Spearman .2 from 0), "more" (ratings to add; 0 unless there are too few), "p", "p_length",
            "spearman", "spearman_lower", "spearman_upper", "length_spearman", "length_spearman_lower".
        better: baselines that order the texts clearly better.
    """

    name: str
    sentence: str
    numbers: Mapping[str, float]
    better: tuple[str, ...] = ()


def verdict_on(rated: RatedRows, p: float, compared: Comparison, length: BeyondLength) -> Verdict:
    """Judge a value function by the rule above.

    Args:
        rated: the rated texts.
        p: of the permutation test against noise.
        compared: its figures out of fold, with those of "length" among the baselines.
        length: the test of what is beyond length.
    """
    spearman, by_length = compared.figures["spearman"], compared.baselines["length"]["spearman"]
    design = design_effect(rated.y, compared.values, rated.groups)
    needed = two_digits(design * NEEDED)
    numbers: dict[str, float] = {
        "n": len(rated),
        "n_groups": rated.n_groups,
        "design": design,
        "needed": needed,
        "more": 0,
        "p": p,
        "p_length": length.p,
        "spearman": spearman.value,
        "spearman_lower": spearman.lower,
        "spearman_upper": spearman.upper,
        "length_spearman": by_length.value,
        "length_spearman_lower": by_length.lower,
    }
    name = verdict_of(numbers)
    if name == "too few to tell":
        # A few more would hardly change what could not be told from so many.
        numbers["more"] = two_digits(max(needed - len(rated), len(rated)))
    sentence = _SENTENCES[name].format(
        **numbers,
        ratings=f"{len(rated)} ratings" + (f" in {rated.n_groups} groups" if rated.n_groups < len(rated) else ""),
        percent=100 * p,
        percent_length=100 * length.p,
        figure=_told(spearman),
        shown=_shown(spearman),
    )
    if numbers["more"] and (design >= ALIKE or rated.n_groups < FEWEST):
        sentence += _OF_OTHER_GROUPS
    better = compared.better
    if better:
        sentence += f" The baseline {' and '.join(map(repr, better))} orders the texts clearly better."
    return Verdict(name, sentence, numbers, better)


def verdict_of(numbers: Mapping[str, float]) -> str:
    """The verdict that the numbers of `Verdict` decide; a figure that is not defined shows no skill."""
    if numbers["n_groups"] < FEWEST:
        return "too few to tell"
    if not (numbers["p"] <= LEVEL and numbers["spearman_lower"] > 0):
        ruled_out = not numbers["spearman_upper"] >= NEGLIGIBLE
        return "no better than noise" if ruled_out and numbers["n"] >= numbers["needed"] else "too few to tell"
    if numbers["p_length"] > LEVEL and numbers["length_spearman_lower"] > 0:
        return "no better than length"
    return "useful" if numbers["spearman"] >= USEFUL else "weak"


_SENTENCES = {
    "useful": "Useful: on texts that it did not learn from it ranks as the ratings do with a Spearman correlation of "
    "{shown}.",
    "weak": "Weak: it is better than noise, but on texts that it did not learn from the Spearman correlation with the "
    "ratings is only {shown}.",
    "no better than length": "No better than length: what the length of a text does not explain cannot be told from "
    "noise ({percent_length:.3g} % of its shuffles are learned as well); length alone gives a Spearman correlation of "
    "{length_spearman:.2f}, the value function {spearman:.2f}.",
    "no better than noise": "No better than noise: {percent:.3g} % of shuffles of the {ratings} are learned as well, "
    "and on texts that it did not learn from there is {figure}.",
    "too few to tell": "Too few to tell: {ratings} do not tell the value function from noise "
    "({percent:.3g} % of their shuffles are learned as well; {figure}), nor rule out that it is of use; rate about "
    "{more} more.",
}
_OF_OTHER_GROUPS = " Ratings of one group are alike: rate texts of other groups."


def _shown(figure: Estimate) -> str:
    """A figure, and its interval if it has one."""
    value, lower, upper = (round(number, 2) + 0.0 for number in (figure.value, figure.lower, figure.upper))  # no -0.00
    return f"{value:.2f}" if math.isnan(lower) else f"{value:.2f} (95 % interval {lower:.2f} to {upper:.2f})"


def _told(spearman: Estimate) -> str:
    """A correlation in words, where there may be none."""
    if math.isnan(spearman.value):
        return "no Spearman correlation, since all values are equal"
    return f"a Spearman correlation of {_shown(spearman)}"


def design_effect(y: Array, values: Array, groups: NDArray[np.intp]) -> float:
    """How many ratings in groups say as much as one apart, at least 1.

    Args:
        y: scores, (n,).
        values: the value of each row under a fit that never saw it, (n,).
        groups: the group of each row, numbered from 0, (n,).
    """
    sizes = np.bincount(groups)
    return 1 + (float(sizes @ sizes) / len(y) - 1) * intraclass(y, groups) * intraclass(values, groups)


def intraclass(y: Array, groups: NDArray[np.intp]) -> float:
    """The correlation of two rows of one group, in [0, 1], by the analysis of variance; 0 where no group has two."""
    if not 1 < len(np.bincount(groups)) < len(y):
        return 0.0
    between, within = variances_of(y, groups)
    return between / (between + within) if between > 0 else 0.0


def two_digits(number: float) -> int:
    """A number above 0, rounded up to two digits."""
    unit = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return int(math.ceil(number / unit) * unit)
