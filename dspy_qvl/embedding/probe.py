"""Is this the model that something was learned with? Vectors of a few texts tell."""

import hashlib
from dataclasses import dataclass
from typing import Any

from dspy_qvl.errors import StateError
from dspy_qvl.state import STRING, Record, array, encode_array, listed, named, optional
from dspy_qvl.vectors import Vectors, is_unit

# Embedded with every fit and saved with it, so that another model is noticed whatever it calls itself.
PROBE_TEXTS = (
    "The answer is correct, complete and easy to follow.",
    "it never worked, support was rude and i want my money back!!",
    "Die Katze schläft auf dem warmen Fensterbrett.",
)


@dataclass(frozen=True)
class Probe:
    """What a model gave for `PROBE_TEXTS` when a value function was fitted.

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


def other_model(difference: str) -> StateError:
    """The refusal to value texts, or to rank passages, with another embedding model than was learned with."""
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
