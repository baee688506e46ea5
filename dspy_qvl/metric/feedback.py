"""A judgement in words, for whoever is to write better texts: the same words for the same judgement, without an LLM.

What is quoted of rated texts is cut to a length that the caller chooses, 0 for nothing, and holds nothing that could
pass for structure (`quoting.py`): optimizers copy what they are shown into prompts.
"""

import math

from dspy_qvl.metric.judgement import BEYOND, COPIED, EMPTY, REPEATED, UNLIKE, Judgement
from dspy_qvl.metric.scale import Scale
from dspy_qvl.text import REASON, RankingExample, quoted

REASON_AT_MOST = 300


def in_words(
    judgement: Judgement,
    *,
    scale: Scale,
    threshold: float,
    pessimism: float,
    n_texts: int,
    quote: int,
    caution: str | None = None,
) -> str:
    """A judgement as sentences, one a line.

    Args:
        judgement: what is said.
        scale: from values to scores; it says how many digits of a value are worth telling.
        threshold: the score that is asked for.
        pessimism: standard deviations that were taken off the value.
        n_texts: how many texts were rated; 0 where they were not kept.
        quote: characters to quote of a rated text at most.
        caution: a sentence on the value function as a whole; None for none.
    """

    def tell(value: float) -> str:
        return _number(value, scale.high - scale.low)

    unsure = "" if judgement.std is None else f", give or take {judgement.std:.2g}"
    rated = f"the {n_texts} rated texts" if n_texts else "the rated texts"
    lines = [f"Value {tell(judgement.value)}{unsure}: higher than {100 * judgement.share_below:.0f} % of {rated}."]
    careful = f", {pessimism:g} times the uncertainty taken off" if pessimism else ""
    verdict = "passes" if judgement.score >= threshold else "falls short of"
    score, asked = _apart(judgement.score, threshold)
    asked_value = scale.value(threshold)
    known = abs(asked_value - scale.low) < 3 * (scale.high - scale.low)
    as_value = f" (a value of {tell(asked_value)}{' after that' if pessimism else ''})" if known else ""
    lines.append(f"Score {score}{careful}; {verdict} the {asked} that is asked for{as_value}.")
    lines += [_neighbor(example, "higher", quote, tell(example.score)) for example in judgement.above]
    lines += [_neighbor(example, "lower", quote, tell(example.score)) for example in judgement.below]
    cautions = {
        REPEATED: f"it says the same again and again ({100 * judgement.repeated:.0f} % of it was said before); its "
        "value is not to be believed.",
        UNLIKE: "nothing like it was rated, so its value is a guess.",
        BEYOND: "its value is above every rating; it looks written to please the value function.",
        COPIED: "it is one of the rated texts.",
        EMPTY: "it says nothing, so its score is the lowest there is, whatever its value.",
    }
    said = [why for mark, why in cautions.items() if mark in judgement.marks]
    said += [] if caution is None else [caution]
    return "\n".join([*lines, *(f"Caution: {why}" for why in said)])


def failed(reason: str) -> str:
    """What is said where there is no text to value."""
    return f"No value, which counts as the lowest: {reason}"


def _neighbor(example: RankingExample, side: str, quote: int, score: str) -> str:
    said = f"Rated {side}, at {score}, and of those the most like it: {quoted(example.text, quote)}"
    if example.query is not None and quote:
        said += f" (for: {quoted(example.query, quote)})"
    if quote == 0:
        said = f"Of the texts rated {side}, the most like it was rated {score}."
    reason = (example.metadata or {}).get(REASON)
    if isinstance(reason, str) and reason.strip():
        said += f" The rater's reason: {quoted(reason, REASON_AT_MOST)}"
    return said


def _number(value: float, width: float) -> str:
    """A value with as many digits as tell apart a hundred values of a scale of this width."""
    decimals = max(0, round(2.2 - math.log10(width)))
    if abs(value) < 1e7 and decimals <= 6:
        return f"{value:.{decimals}f}"
    digits = 2 + max(0, math.ceil(math.log10(max(abs(value), width) / width)))
    return f"{value:.{digits}g}"


def _apart(score: float, other: float) -> tuple[str, str]:
    """Two scores with two digits, or as many as show that they differ."""
    for digits in range(2, 7):
        if score == other or f"{score:.{digits}f}" != f"{other:.{digits}f}":
            break
    return f"{score:.{digits}f}", f"{other:.{digits}f}"
