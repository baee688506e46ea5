"""One embedding model that texts can be sent to: how it is called, what it is, and what it costs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Usage:
    """What was asked of a provider so far; the difference of two says what happened in between.

    Attributes:
        requests: HTTP requests that were answered, refusals among them.
        texts: vectors that came back.
        tokens: as the provider counted them.
        cost: US dollars, of the requests whose price litellm knows.
        unpriced: requests with vectors whose price it does not know.
        retries: tries after a failure that may pass.
    """

    requests: int = 0
    texts: int = 0
    tokens: int = 0
    cost: float = 0.0
    unpriced: int = 0
    retries: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(*(getattr(self, field.name) - getattr(other, field.name) for field in fields(self)))

    def __str__(self) -> str:
        counts = ((self.requests, "request"), (self.texts, "text"), (self.tokens, "token"))
        parts = [counted(count, what) for count, what in counts]
        if self.cost > 0 or not self.unpriced:
            parts.append(f"${self.cost:.4f}" if self.cost >= 1e-4 else "less than $0.0001" if self.cost > 0 else "$0")
        if self.unpriced:
            parts.append("price unknown" if self.cost <= 0 else f"{counted(self.unpriced, 'request')} of unknown price")
        if self.retries:
            parts.append(f"{self.retries:,} retries" if self.retries > 1 else "1 retry")
        return ", ".join(parts)


Embed = Callable[[list[str]], Any]


class Measured(NamedTuple):
    """What texts cost a model in process.

    Attributes:
        tokens: of each text, as the model sees it.
        budget: padded tokens of a batch.
        warning: what is lost of texts longer than the model's window, or None.
    """

    tokens: Sequence[int]
    budget: int
    warning: str | None


@dataclass(frozen=True)
class Backend:
    """What one model name means.

    Attributes:
        name: how messages call the model.
        identity: what makes two vectors comparable, for saved states; None for an anonymous callable.
        endpoint: where the model is served, without user, password or query; part of the cache's key only.
        size: length of a full vector, or None if only the first vector tells.
        default_dim: `embedding_dim` where the caller gives none, or None for the model's own size.
        embed: list of texts -> (n, size); a `dspy.Embedder`, or what can be handed to one.
        batch_size: texts a call.
        keep_on_disk: whether a vector is worth storing.
        keep_with_fit: whether the vectors of rated texts are worth saving with what was learned from them.
        slots: batches that run well at once.
        width: how many of them one caller may have.
        is_served: whether another process answers: it may change the model under its name, and its failures tell the
            texts they are about from the others of the batch.
        measure: list of texts -> what they cost, or None where they are only counted.
        usage: what was asked of a provider so far, or None where nobody is paid.
        former: the identity that version 0.1.0 gave it, where that was another.
        is_routed: whether it is a caller's embedder that asks litellm.
        sent: what each call says beside the texts.
        secrets: what no message may hold.
        probe_texts: what it is known by, where that is not what other models are asked.
        takes_instruction: whether an instruction before a text changes its vector.
    """

    name: str
    identity: Mapping[str, str] | None
    embed: Embed = field(repr=False)  # a callable of the caller's may show its key
    endpoint: str = ""
    size: int | None = None
    default_dim: int | None = None
    batch_size: int = 32
    keep_on_disk: bool = True
    keep_with_fit: bool = True
    slots: int = 1
    width: int = 1
    is_served: bool = False
    measure: Callable[[Sequence[str]], Measured] | None = None
    usage: Callable[[], Usage] | None = None
    former: Mapping[str, str] | None = None
    is_routed: bool = False
    sent: Mapping[str, Any] = field(default_factory=dict, repr=False)
    secrets: Sequence[str] = field(default=(), repr=False)
    probe_texts: tuple[str, ...] | None = None
    takes_instruction: bool = True


@dataclass(frozen=True)
class Refused:
    """A text that a model gives no vector for."""

    reason: str


class Unusable(Refused):
    """A text whose vector cannot be used."""


def counted(count: int, what: str) -> str:
    """A count with its noun: "1 text", "2,000 texts"."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
