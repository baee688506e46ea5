"""`RankingHead`: the learned order of a reranker as a DSPy Parameter, which programs save and load with their state."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dspy.predict.parameter import Parameter

from dspy_qvl.embedding import IDENTITY, PROBE, Probe, dumped_probe
from dspy_qvl.errors import StateError, shown
from dspy_qvl.features import COSINE, LENGTH, OVERLAP, PRODUCT, Blocks
from dspy_qvl.reranker.judged import RANK
from dspy_qvl.reranker.passages import SCORE
from dspy_qvl.reranker.sketch import FOLDED
from dspy_qvl.state import SCHEMA, STRING, Record, array, count, encode_array, listed, load, opened, optional, sealed
from dspy_qvl.vectors import Array, Rows, dot_rows

TEXT, VALUE = "text", "value"
BLOCKS = (COSINE, OVERLAP, LENGTH, VALUE, RANK, SCORE, TEXT, PRODUCT)  # in the order of the columns, the prior first
LARGEST_COEF = 1e100


def width_of(name: str, d: int) -> int:
    """Number of columns of a block, where vectors have d."""
    return {OVERLAP: 3, TEXT: min(d, FOLDED), PRODUCT: min(d, FOLDED)}.get(name, 1)


@dataclass(frozen=True, eq=False)
class Order:
    """A learned order of passages: immutable, so that copies of a program share it.

    Attributes:
        coef: over the columns of the blocks, (d,); read-only.
        blocks: names and widths of the blocks.
        identity: settings that make the embedding model's vectors comparable; None for an anonymous callable.
        probe: the vectors that model gave for the probe texts.
        n_queries: queries it was learned from.
        value_of: digest of the value function whose values are a feature; None where they are none.
    """

    coef: Array
    blocks: Blocks
    identity: Mapping[str, str] | None
    probe: Probe
    n_queries: int
    value_of: str | None = None

    def scores(self, X: Rows) -> Array:
        """Scores of passages by their columns, (n, d) -> (n,), the same bits in any batch; higher is better."""
        return dot_rows(X, self.coef)

    def coef_of(self, name: str) -> Array:
        """Coefficients of the columns of a block that is in `blocks.names`, (width,)."""
        return self.coef[self.blocks.slices[name]]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Order":
        return self


class RankingHead(Parameter):  # type: ignore[misc]  # dspy ships no types
    """Holds the learned order of a reranker, or None; saved by DSPy, and kept by `reset()`.

    It is `Reranker.ridge`: saved programs name it so.
    """

    def __init__(self) -> None:
        self.fitted: Order | None = None

    def unfit(self) -> None:
        """Forget the learned order."""
        self.fitted = None

    def reset(self) -> None:
        """Keep the order: most optimizers reset all parameters first, to be rid of demonstrations and prompts."""

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """Everything that is saved, as DSPy saves it: the order is one entry."""
        state = self.content()
        order = state["order"]
        state["order"] = sealed(order, "" if order is None else f"learned from {order['n_queries']} queries")
        return state

    def content(self) -> dict[str, Any]:
        """Everything that is saved, as JSON; no passage and no query is in it."""
        order = self.fitted
        if order is None:
            return {"schema": SCHEMA, "order": None}
        return {
            "schema": SCHEMA,
            "order": {
                "coef": encode_array(order.coef),
                "blocks": [
                    {"name": name, "width": width}
                    for name, width in zip(order.blocks.names, order.blocks.widths, strict=True)
                ],
                "identity": None if order.identity is None else dict(order.identity),
                "probe": dumped_probe(order.probe),
                "n_queries": order.n_queries,
                "value_of": order.value_of,
            },
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Replace the learned order by a dumped one; a state that cannot be used changes nothing.

        Raises:
            StateError: another schema, or anything in it that cannot be used.
        """
        self.fitted = load(state, STATE)["order"]

    def __repr__(self) -> str:
        order = self.fitted
        return f"RankingHead({'not fitted' if order is None else f'{order.n_queries} queries'})"


def _order(blocks: list[dict[str, Any]], probe: Probe, coef: Array, **parts: Any) -> Order:
    """The order that a state holds, if its parts agree with each other.

    Raises:
        StateError: they do not.
    """
    names, widths = (tuple(block[part] for block in blocks) for part in ("name", "width"))
    d = probe.vectors.shape[1]
    if names[:1] != (COSINE,) or names != tuple(name for name in BLOCKS if name in names):
        raise StateError(f"{WHAT} has the blocks {shown(names)}; there are {', '.join(BLOCKS)}, in this order.")
    if widths != tuple(width_of(name, d) for name in names) or sum(widths) != len(coef):
        raise StateError(
            f"{WHAT} has {len(coef)} coefficients and vectors of {d} for blocks of {shown(widths)} columns."
        )
    return Order(coef, Blocks(names, widths), probe=probe, **parts)


WHAT = "the saved reranker"
ORDER: Mapping[str, Any] = {
    "blocks": listed(Record("a saved block", {"name": STRING, "width": count(1)})),
    "identity": IDENTITY,
    "probe": PROBE,
    "coef": array("float64", None, largest=LARGEST_COEF),
    "n_queries": count(0),
    "value_of": optional(STRING),
}
STATE = Record(WHAT, {"order": optional(opened(Record(WHAT, ORDER, _order)))})
