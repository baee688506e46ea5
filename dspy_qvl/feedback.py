"""A judgement in words, for whoever is to write better texts: the same words for the same judgement, without an LLM.

What is quoted of rated texts is cut to a length that the caller chooses, 0 for nothing: optimizers copy what they are
shown into prompts.
"""

from dspy_qvl.judge import BEYOND, EMPTY, REPEATED, UNLIKE, Judgement
from dspy_qvl.text import RankingExample

REASON = "reason"  # the entry of metadata in which a rater says why
REASON_AT_MOST = 300


def in_words(judgement: Judgement, *, threshold: float, passing_value: float, n_texts: int, quote: int) -> str:
    """A judgement as sentences, one a line.

    Args:
        judgement: what is said.
        threshold: the score that is asked for.
        passing_value: the value that has this score.
        n_texts: how many texts were rated; 0 where they were not kept.
        quote: characters to quote of a rated text at most.
    """
    passed = judgement.score >= threshold
    rated = f"the {n_texts} rated texts" if n_texts else "the rated texts"
    unsure = "" if judgement.std is None else f", give or take {judgement.std:.2g}"
    lines = [
        f"Value {judgement.value:.3g}{unsure}: higher than {100 * judgement.share_below:.0f} % of {rated}. "
        f"Score {judgement.score:.2f}; {'passes' if passed else 'falls short of'} the {threshold:.2f} that is asked "
        f"for (a value of {passing_value:.3g})."
    ]
    lines += [_neighbor(example, "higher", quote) for example in judgement.above]
    lines += [_neighbor(example, "lower", quote) for example in judgement.below]
    if REPEATED in judgement.marks:
        lines.append(
            f"Caution: it says the same again and again ({100 * judgement.repeated:.0f} % of it was said before); "
            "its value is not to be believed."
        )
    if UNLIKE in judgement.marks:
        lines.append("Caution: nothing like it was rated, so its value is a guess.")
    if BEYOND in judgement.marks:
        lines.append("Caution: its value is above every rating; it looks written to please the value function.")
    if EMPTY in judgement.marks:
        lines.append("Caution: it says nothing.")
    return "\n".join(lines)


def failed(reason: str) -> str:
    """What is said where there is no text to value."""
    return f"No value, which counts as the lowest: {reason}"


def _neighbor(example: RankingExample, side: str, quote: int) -> str:
    said = f'Rated {side}, at {example.score:.3g}, and of those the most like it: "{_cut(example.text, quote)}"'
    if quote == 0:
        said = f"Of the texts rated {side}, the most like it was rated {example.score:.3g}."
    reason = (example.metadata or {}).get(REASON)
    if isinstance(reason, str) and reason.strip():
        said += f' The rater\'s reason: "{_cut(reason, REASON_AT_MOST)}"'
    return said


def _cut(text: str, limit: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[:limit].rstrip()}…"
