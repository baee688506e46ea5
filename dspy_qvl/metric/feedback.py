"""A judgement in words, for whoever is to write better texts: the same words for the same judgement, without an LLM.

Every sentence of feedback is written here. What is quoted of rated texts is cut to a length that the caller chooses, 0
for nothing, and holds nothing that could pass for structure (`quoting.py`): optimizers copy feedback into prompts.
"""

import math

from dspy_qvl.fitting import noise_warning
from dspy_qvl.metric.judgement import BEYOND, COPIED, EMPTY, REPEATED, UNLIKE, Judgement, Scorer
from dspy_qvl.text import REASON, RankingExample, quoted

REASON_AT_MOST = 300


def in_words(judgement: Judgement, scorer: Scorer, *, threshold: float, quote: int) -> str:
    """A judgement as sentences, one a line.

    Args:
        judgement: the judgement of a text.
        scorer: gave the judgement; its scale says how many digits of a value are worth writing.
        threshold: the score that is asked for.
        quote: characters to quote of a rated text at most.
    """
    scale, fit = scorer.scale, scorer.fit
    width = scale.high - scale.low
    unsure = "" if judgement.std is None else f", give or take {judgement.std:.2g}"
    rated = f"the {fit.n_texts} rated texts" if fit.n_texts else "the rated texts"
    lines = [
        f"Value {_number(judgement.value, width)}{unsure}: higher than {100 * judgement.share_below:.0f} % of {rated}."
    ]
    careful = f", {scorer.pessimism:g} times the uncertainty taken off" if scorer.pessimism else ""
    after = " after that" if careful else ""
    if scorer.confidence is not None:
        after = " as the lower end"
        careful = f", the lower end of the {100 * scorer.confidence:g} % interval taken for the value"
    verdict = "passes" if judgement.score >= threshold else "falls short of"
    score, asked = _apart(judgement.score, threshold)
    asked_value = scale.value(threshold)
    as_value = ""
    if abs(asked_value - scale.low) < 3 * width:
        as_value = f" (a value of {_number(asked_value, width)}{after})"
    lines.append(f"Score {score}{careful}; {verdict} the {asked} that is asked for{as_value}.")
    for side, examples in (("higher", judgement.above), ("lower", judgement.below)):
        lines += [_neighbor(example, side, quote, _number(example.score, width)) for example in examples]
    cautions = {
        REPEATED: f"it says the same again and again ({100 * judgement.repeated:.0f} % of it was said before); its "
        "value is not to be believed.",
        UNLIKE: f"it is unlike the rated texts ({judgement.unlike}), so its value is a guess.",
        BEYOND: "its value is above every rating; it looks written to please the value function.",
        COPIED: "it is one of the rated texts.",
        EMPTY: "it says nothing, so its score is the lowest there is, whatever its value.",
    }
    lines += [f"Caution: {why}" for mark, why in cautions.items() if mark in judgement.marks]
    if fit.is_noise:
        lines.append(f"Caution: {noise_warning(fit.permutation_p)}")
    return "\n".join(lines)


def failed(reason: str) -> str:
    """The feedback where there is no text to value."""
    return f"No value, which counts as the lowest: {reason}"


def _neighbor(example: RankingExample, side: str, quote: int, score: str) -> str:
    """A sentence on a rated text that is like the judged one and was rated higher, or lower; and the rater's reason."""
    said = f"Of the texts rated {side}, the most like it was rated {score}."
    if quote:
        said = f"Rated {side}, at {score}, and of those the most like it: {quoted(example.text, quote)}"
        said += "" if example.query is None else f" (for: {quoted(example.query, quote)})"
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
