"""One embedding model that texts can be sent to: its name, its identity, its limits, and the requests made so far."""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Usage:
    """Counts of the requests to a provider so far; the difference of two counts those in between.

    Attributes:
        requests: HTTP requests that were answered, refusals among them.
        texts: vectors that came back.
        tokens: as the provider counted them.
        cost: US dollars, of the requests whose price litellm knows.
        unpriced: requests with vectors whose price it does not know.
        retries: requests made again after a failure that may pass.
    """

    requests: int = 0
    texts: int = 0
    tokens: int = 0
    cost: float = 0.0
    unpriced: int = 0
    retries: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*map(operator.add, astuple(self), astuple(other)))

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(*map(operator.sub, astuple(self), astuple(other)))

    def __str__(self) -> str:
        parts = [counted(self.requests, "request"), counted(self.texts, "text"), counted(self.tokens, "token")]
        if self.cost > 0 or not self.unpriced:
            parts.append(f"${self.cost:.4f}" if self.cost >= 1e-4 else "less than $0.0001" if self.cost > 0 else "$0")
        if self.unpriced:
            parts.append("price unknown" if self.cost <= 0 else f"{counted(self.unpriced, 'request')} of unknown price")
        if self.retries:
            parts.append(f"{self.retries:,} retries" if self.retries > 1 else "1 retry")
        return ", ".join(parts)


class Measured(NamedTuple):
    """Lengths of texts for a model in process.

    Attributes:
        tokens: of each text as the model sees it, special tokens included; of a text that is cut, those that are left.
            Bytes, of a model that pads nothing.
        budget: padded tokens of a batch that make good use of the device; infinite where nothing is padded.
        warning: says how much of texts longer than the model's window is cut, or None.
    """

    tokens: Sequence[int]
    budget: float
    warning: str | None


@dataclass(frozen=True)
class EmbeddingModel:
    """The model that a name stands for, and all that a caller of it has to know.

    Attributes:
        name: as messages call the model.
        identity: equal for two models if their vectors can be compared, for saved states; None for an anonymous
            callable.
        embed: list of texts -> (n, size); a `dspy.Embedder`, or a callable that can be handed to one.
        endpoint: address of the server, without user, password or query; part of the cache's key only.
        size: length of a full vector, or None if only the first vector tells.
        default_dim: `embedding_dim` where the caller gives none, or None for the model's own size.
        batch_size: texts a call.
        keep_on_disk: True if a vector is worth storing.
        keep_with_fit: True if the vectors of rated texts are worth saving with the fit on them.
        slots: batches that run well at once.
        width: batches of one caller at once.
        is_served: True if another process answers: it may change the model under its name, and its failures tell the
            texts they are about from the others of the batch.
        measure: list of texts -> their lengths in tokens, or None where they are only counted.
        usage: gives the counts of requests to a provider so far; None for a model without a provider.
        former: the identity that version 0.1.0 gave it, where that was another.
        is_routed: True for a caller's embedder that asks litellm.
        sent: arguments of each call beside the texts.
        secrets: strings that no message may hold.
        probe_texts: texts that it is recognised by, where they are not those of other models.
        takes_instruction: True if an instruction before a text changes its vector.
        prefix: the instruction that it repeats in each window of a long text, as it is sent; "" where it repeats none.
            Models that differ in it must not embed each other's texts.
        zero_is_blank: True if a vector of zeros says that the model knows nothing of a text, which is then valued like
            a blank one; False if such a vector is refused.
    """

    name: str
    identity: Mapping[str, str] | None
    embed: Callable[[list[str]], Any] = field(repr=False)  # a callable of the caller's may show its key
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
    prefix: str = ""
    zero_is_blank: bool = False


@dataclass(frozen=True)
class Refused:
    """A text that a model gives no vector for."""

    reason: str


class Unusable(Refused):
    """A text whose vector cannot be used."""


def counted(count: int, what: str) -> str:
    """A count with its noun: "1 text", "2,000 texts"."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def listed(items: Sequence[str], between: str = ", ") -> str:
    """The first three of some items, and how many there are beside them."""
    return between.join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")
