"""Probe texts: their vectors tell whether a model is still the one that gave earlier vectors."""

import hashlib
from dataclasses import dataclass
from typing import Any

from dspy_qvl.errors import StateError
from dspy_qvl.state import STRING, Record, array, encode_array, listed, named, optional
from dspy_qvl.vectors import SAME_COSINE, Vectors, dot_rows, is_unit

# Embedded with every fit and saved with it, so that another model is noticed whatever it calls itself.
PROBE_TEXTS = (
    "The answer is correct, complete and easy to follow.",
    "it never worked, support was rude and i want my money back!!",
    "Die Katze schläft auf dem warmen Fensterbrett.",
)


@dataclass(frozen=True)
class Probe:
    """The vectors that a model gave for `PROBE_TEXTS` when a value function was fitted.

    Attributes:
        texts: the texts, as sent.
        vectors: their unit vectors, (n_texts, d).
    """

    texts: tuple[str, ...]
    vectors: Vectors

    @property
    def digest(self) -> bytes:
        """A short stand-in for the whole."""
        return hashlib.blake2b("\0".join(self.texts).encode() + self.vectors.tobytes(), digest_size=16).digest()


def unlike(given: Vectors, expected: Vectors) -> str:
    """How the unit vectors of probe texts differ from those expected of the same model, (n_texts, d) both.

    Returns:
        "" where every cosine is at least .999, as of one model on whatever machine and in whatever batch; otherwise
        the difference, to be put into a message.
    """
    if given.shape != expected.shape:
        return f"{given.shape[1]} columns, needed {expected.shape[1]}"
    cosine = float(dot_rows(given, expected).min())
    return "" if cosine >= SAME_COSINE else f"cosine {cosine:.3f}, needed {SAME_COSINE}"


def other_model(difference: str) -> StateError:
    """The error of valuing texts, or ranking passages, with another embedding model than was learned with."""
    return StateError(
        f"this was fitted with another embedding model: {difference}. Use that model, or let this one learn anew: "
        "a value function's rated texts with migrate(path) of its file, or migrate() where it is loaded; a reranker's "
        "judged queries with unfit(), and FitValue."
    )


def dumped_probe(probe: Probe) -> dict[str, Any]:
    """Probe texts and their vectors as JSON."""
    return {"texts": list(probe.texts), "vectors": encode_array(probe.vectors)}


def _probe(texts: list[str], vectors: Vectors) -> Probe:
    if not texts or not is_unit(vectors).all():
        raise StateError("the saved probe has no unit vectors; without them another model would go unnoticed.")
    return Probe(tuple(texts), vectors)


# Readers of a state's embedding model: its identity, None for an anonymous callable, and its vectors of probe texts.
IDENTITY = optional(named(STRING))
PROBE = Record("the saved probe", {"texts": listed(STRING), "vectors": array("float32", "texts", "d")}, _probe)
