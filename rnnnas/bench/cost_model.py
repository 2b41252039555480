"""The arithmetic and the memory that a step needs, as functions of its sizes.

Legend: T steps in time, B streams, H hidden, V vocabulary, N nodes, P processes. E edges of a
node's product: N for a derived cell, whose nodes have one predecessor each, N(N+1)/2 for a cell
under a mixture. W = V H + V + 2 H² (2 + N) weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from rnnnas.lm.loss import CHUNK

Kind = Literal["search", "train", "eval"]

FLOAT, ROUNDED = 4, 2  # bytes of a number, and of one that is rounded to bfloat16
# Forward passes that the products of a step amount to: an evaluation has one; a training step goes
# back to the inputs and to the weights, too; a search step is a training step and an alpha step,
# which has no gradient of weights.
PASSES: dict[Kind, int] = {"eval": 1, "train": 3, "search": 5}
WINDOWS: dict[Kind, int] = {"eval": 1, "train": 1, "search": 2}
# Times that a number is read or written, at the least. A logit: written by its product, read and
# written by the softmax, read by one product or two. A gate or a candidate forward: written by its
# product, read, and its state written and read; backward three times as much. A weight in training:
# cleared and summed up as a gradient, rounded, measured for clipping, and moved.
LOGIT = {"eval": 3, "train": 5, "search": 9}
GATE = {"eval": 4, "train": 16, "search": 32}
WEIGHT = {"eval": 1, "train": 12, "search": 16}
EXCHANGE = 6  # of a gradient that processes share: packed, sent, received, divided, unpacked


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What the cost of a step depends on.

    hidden: H. streams: B. steps: T. nodes: N. vocabulary: V. processes: P, which share the streams.
    """

    hidden: int = 100
    streams: int = 16
    steps: int = 35
    nodes: int = 8
    vocabulary: int = 10_000
    processes: int = 1

    def edges(self, kind: Kind) -> int:
        """E, the matrix products of all nodes for one row."""
        return self.nodes * (self.nodes + 1) // 2 if kind == "search" else self.nodes

    @property
    def weights(self) -> int:
        """W, how many numbers the network learns."""
        tied = self.vocabulary * (self.hidden + 1)
        return tied + 2 * self.hidden**2 * (2 + self.nodes)


class Machine(NamedTuple):
    """products: floating-point operations a second in large products. memory: bytes a second."""

    products: float
    memory: float


FORMULA = (
    "seconds = passes * 2 T B H (V + 2 H (2 + E)) / P / product rate"
    " + (logits T B V / P + gates T B 2H (1 + E) / P + weights W) / memory rate;"
    " E = N, in a search N (N + 1) / 2; W = V H + V + 2 H^2 (2 + N)"
)


def product_flops(kind: Kind, sizes: Sizes) -> dict[str, int]:
    """Floating-point operations of all products of a step in one process, by where they are."""
    rows = sizes.streams * sizes.steps // sizes.processes
    each = PASSES[kind] * 2 * rows * sizes.hidden
    # No alpha lies behind the words: an alpha step does not go back to them.
    to_words = PASSES[kind] - (kind == "search")
    return {
        "loss": each * sizes.vocabulary,
        "input": each // PASSES[kind] * to_words * 2 * sizes.hidden,
        "cell": each * 2 * sizes.hidden * (1 + sizes.edges(kind)),
    }


def moved_bytes(kind: Kind, sizes: Sizes, low: bool) -> dict[str, float]:
    """Bytes that a step reads and writes between its products, in one process, by what they are.

    low: whether products, and so logits and gates, are rounded to bfloat16.
    """
    rows = sizes.streams * sizes.steps / sizes.processes
    product = ROUNDED if low and kind != "eval" else FLOAT
    gates = 2 * sizes.hidden * (1 + sizes.edges(kind))
    shared = EXCHANGE if sizes.processes > 1 and kind != "eval" else 0
    return {
        "logits": LOGIT[kind] * product * rows * sizes.vocabulary,
        "gates": GATE[kind] * product * rows * gates,
        "weights": float((WEIGHT[kind] + shared) * FLOAT * sizes.weights),
    }


def expected_seconds(kind: Kind, sizes: Sizes, low: bool, machine: Machine) -> float:
    """Seconds of a step whose products and whose passes over memory run at the machine's rates."""
    products = sum(product_flops(kind, sizes).values()) / machine.products
    return products + sum(moved_bytes(kind, sizes, low).values()) / machine.memory


def held_bytes(kind: Kind, sizes: Sizes, low: bool) -> dict[str, float]:
    """Bytes that a step must hold at once, in one process, by what they are.

    weights: the weights themselves, and in training their gradient, that of the tied matrix a
    second time while it is scaled, and its rounded copy. window: what the backward pass needs of
    every time step. logits: of the rows whose logits live at once.
    """
    low = low and kind != "eval"
    product = ROUNDED if low else FLOAT
    rows = sizes.streams * sizes.steps / sizes.processes
    units, edges = sizes.hidden, sizes.edges(kind)
    tied = sizes.vocabulary * units
    chunk = min(CHUNK, rows) * sizes.vocabulary
    if kind == "eval":
        kept = 4 * rows * units * FLOAT  # inputs, their product with 2H columns, outputs
        return {"weights": FLOAT * sizes.weights, "window": kept, "logits": FLOAT * chunk}
    states = (sizes.nodes + 1) * rows * units * FLOAT
    products = (edges + 1) * rows * 2 * units * product
    sequences = 6 * rows * units * FLOAT
    return {
        "weights": FLOAT * (2 * sizes.weights + tied) + (ROUNDED * tied if low else 0),
        "window": states + products + sequences,
        "logits": product * chunk,
    }
