"""The search space of densely connected blocks (Fang et al., CVPR 2020). Needs no torch.

Blocks 0 (the stem), 1, ..., N of growing width, grouped by their scale: by how much their output
is smaller than the image, a side. Block i leads on to block j where j - i ≤ M and its output is
halved at most once on the way. Block j has for every block i that leads to it a head
layer, which brings i's output to j's width and scale, and after the heads, whose outputs are added
by the routes' probabilities, K stacked layers. Every network takes one route, from 0 to N.

Legend: L layers, O operations, N blocks beside the stem, M reach, K stacked layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from rnnnas.cnn.dense.chain import likeliest
from rnnnas.cnn.dense.genotype import (
    BLOCK,
    END,
    END_OP,
    STEM,
    STEM_OP,
    Part,
    genotype_of_parts,
    mbconv,
)
from rnnnas.errors import UsageError
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.space import RowSpace, row_space

LAYERS, ROUTES = "layers", "routes"  # the two tables of choices
SKIP = "skip_connect"


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseConfig:
    """Sizes of the super-network of densely connected blocks (DenseNAS).

    stem: channels that the image is brought to, at its own size; channels; 1 or more; small, for
        CIFAR-10 on a laptop
    widths: channels of every block; channels; whole numbers from 1 that do not fall; small, for
        CIFAR-10 on a laptop
    scales: by how much a block's output is smaller than the image, a side; -; one a block, from 1
        on the same or twice the one before; images of 32 pixels end at 8
    layers: K, layers stacked in every block after its head; layers; 0 or more; few, for a laptop
    reach: M, blocks that a block may be entered from; blocks; 1 or more; few, for a laptop
    kernels: of the inverted residuals that a layer chooses from; pixels; odd numbers, each once; 3,
        5, 7 as usual in MobileNet spaces
    expansions: of these, factors on the channels inside; -; whole numbers from 1, each once; 3 and
        6 as in the paper
    end: channels of the last 1x1 convolution; channels; 1 or more; small, for CIFAR-10 on a laptop
    """

    stem: int = 16
    widths: tuple[int, ...] = (16, 24, 32, 48, 64, 96)
    scales: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
    layers: int = 3
    reach: int = 4
    kernels: tuple[int, ...] = (3, 5, 7)
    expansions: tuple[int, ...] = (3, 6)
    end: int = 128

    def __post_init__(self) -> None:
        for name, low in {"stem": 1, "layers": 0, "reach": 1, "end": 1}.items():
            if getattr(self, name) < low:
                raise UsageError(f"dense.{name} = {getattr(self, name)} must be at least {low}")
        for name in ("widths", "kernels", "expansions"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                raise UsageError(f"dense.{name} = {list(values)} must be positive numbers")
        for name in ("kernels", "expansions"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise UsageError(f"dense.{name} = {list(values)} must name each once")
        if any(kernel % 2 == 0 for kernel in self.kernels):
            raise UsageError(f"dense.kernels = {list(self.kernels)} must be odd")
        if list(self.widths) != sorted(self.widths):
            raise UsageError(f"dense.widths = {list(self.widths)} must not fall: blocks grow")
        if len(self.scales) != len(self.widths):
            raise UsageError(
                f"dense.scales = {list(self.scales)} must have {len(self.widths)} values, one a "
                f"block, as dense.widths = {list(self.widths)}"
            )
        whole = (1, *self.scales)
        if any(b not in (a, 2 * a) for a, b in zip(whole, whole[1:], strict=False)):
            raise UsageError(
                f"dense.scales = {list(self.scales)} must go on from 1 by the same scale or twice "
                "the one before"
            )


class Layer(NamedTuple):
    """A place for one operation. block: it belongs to; source: whose output enters: an earlier
    block for a head, the block itself for a stacked layer. scale: of what enters.
    """

    block: int
    source: int
    inputs: int
    outputs: int
    stride: int
    scale: int
    name: str

    @property
    def head(self) -> bool:
        return self.source != self.block


@dataclass(frozen=True)
class Layout:
    """The super-network of a `DenseConfig`: its layers, in the order of the table's rows."""

    config: DenseConfig

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every block, the stem's first."""
        return (self.config.stem, *self.config.widths)

    @property
    def scales(self) -> tuple[int, ...]:
        return (1, *self.config.scales)

    @property
    def ops(self) -> tuple[str, ...]:
        config = self.config
        return (*(mbconv(k, e) for k in config.kernels for e in config.expansions), SKIP)

    def leads(self, i: int, j: int) -> bool:
        """Whether block i may be followed by block j."""
        near = i < j <= min(i + self.config.reach, len(self.config.widths))
        return near and self.scales[j] <= 2 * self.scales[i]

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        widths, scales, made = self.widths, self.scales, []
        for j in range(1, len(widths)):
            for i in (i for i in range(j) if self.leads(i, j)):
                stride = scales[j] // scales[i]
                name = f"{i} > {j}"
                made.append(Layer(j, i, widths[i], widths[j], stride, scales[i], name))
            for k in range(self.config.layers):
                name = f"layer {k + 1} > {j}"
                made.append(Layer(j, j, widths[j], widths[j], 1, scales[j], name))
        return tuple(made)

    def rows(self, block: int, source: int) -> list[int]:
        """The rows of the layers into `block` from `source`: a head's, or all stacked ones."""
        return [row for row, x in enumerate(self.layers) if (x.block, x.source) == (block, source)]

    def spaces(self) -> dict[str, RowSpace]:
        """The choices: of each layer an operation (L, O), of each block the next one (N, M).

        A head is never skipped: it brings its input to the block's width.
        """
        names = tuple(layer.name for layer in self.layers)
        allowed = tuple(
            tuple(op != SKIP or not layer.head for op in self.ops) for layer in self.layers
        )
        blocks, steps = range(len(self.config.widths)), range(1, self.config.reach + 1)
        routes = tuple(tuple(self.leads(i, i + k) for k in steps) for i in blocks)
        return {
            LAYERS: row_space(names, self.ops, allowed),
            ROUTES: row_space(
                tuple(f"from {i}" for i in blocks), tuple(f"+{k}" for k in steps), routes,
                drawn=False,
            ),
        }  # fmt: skip

    def derive(self, scores: Mapping[str, Sequence[Sequence[float]]]) -> Genotype:
        """The likeliest route's blocks, and in their layers the best operations.

        A layer that is skipped is left out. Ties go to the earlier operation.

        Args:
            scores: tables (L, O) of layers and (N, M) of routes, which are taken relative to each
                row's sum; what is not allowed has the lowest.
        """
        space = self.spaces()[LAYERS]
        best = [
            self.ops[max(space.choices(row), key=values.__getitem__)]
            for row, values in enumerate(scores[LAYERS])
        ]
        # Of scores that do not sum to 1 (FairDARTS'), long routes would have the smaller products.
        routes = [[value / (sum(row) or 1.0) for value in row] for row in scores[ROUTES]]
        path = likeliest(routes)
        parts = [Part(STEM, 0, self.config.stem, 1, (STEM_OP,))]
        for i, j in zip(path, path[1:], strict=False):
            ops = [best[row] for row in (*self.rows(j, i), *self.rows(j, j))]
            stride = self.scales[j] // self.scales[i]
            kept = tuple(op for op in ops if op != SKIP)
            parts.append(Part(BLOCK, j, self.widths[j], stride, kept))
        parts.append(Part(END, 0, self.config.end, 1, (END_OP,)))
        return genotype_of_parts(parts)
