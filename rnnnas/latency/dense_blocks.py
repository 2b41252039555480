"""Latency of dense blocks: their layers, and the chained cost of a search by them.

How layers are timed and kept stands in `layers`. Legend: L layers, O operations, N blocks,
M reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from rnnnas.cnn.dense.chain import expected_cost
from rnnnas.cnn.dense.genotype import END_OP, STEM_OP, parts_of
from rnnnas.cnn.dense.network import ConvNorm, InvertedResidual
from rnnnas.cnn.dense.space import LAYERS, ROUTES, SKIP, Layout
from rnnnas.cnn.ops import DERIVED
from rnnnas.config.images import ImageSearchConfig
from rnnnas.data.image_corpus import ImageCorpus
from rnnnas.latency.layers import (
    ROUNDS,
    LayerTable,
    Size,
    Timed,
    image_size,
    keeping,
    measure,
    scaled,
    told,
)
from rnnnas.nas.genotype import CellGene, Genotype
from rnnnas.nas.latency_price import Form, LatencyConfig, check_form, priced
from rnnnas.nas.relax.base import Mixture, Mixtures


def _layer(timed: Timed, draws: torch.Generator) -> nn.Module:
    if timed.op in (STEM_OP, END_OP):
        return ConvNorm(timed.inputs, timed.outputs, int(timed.op[-1]), DERIVED, draws)
    return InvertedResidual(timed.op, timed.inputs, timed.outputs, timed.stride, DERIVED, draws)


def _everything(layout: Layout, size: Size) -> Iterator[tuple[int, int, Timed]]:
    """(row, operation, what is timed) of all that the space allows; skips cost nothing."""
    for row, (layer, able) in enumerate(
        zip(layout.layers, layout.spaces()[LAYERS].allowed, strict=True)
    ):
        for o, op in enumerate(layout.ops):
            if able[o] and op != SKIP:
                sizes = (layer.inputs, layer.outputs, layer.stride)
                yield row, o, Timed(op, *sizes, *scaled(size, layer.scale))


def _ends(stem: int, last: int, end: int, scale: int, size: Size) -> tuple[Timed, Timed]:
    return Timed(STEM_OP, 3, stem, 1, *size), Timed(END_OP, last, end, 1, *scaled(size, scale))


def _layout_ends(layout: Layout, size: Size) -> tuple[Timed, Timed]:
    config = layout.config
    return _ends(config.stem, config.widths[-1], config.end, config.scales[-1], size)


def measure_layers(
    layout: Layout,
    size: Size,
    images: int,
    device: torch.device,
    *,
    quick: bool = True,
    seconds: float = ROUNDS,
) -> LayerTable:
    """The table of every layer of the space; as `layers.measure`."""
    wanted = {timed for _, _, timed in _everything(layout, size)} | {*_layout_ends(layout, size)}
    return measure(
        wanted, _layer, size=size, images=images, device=device, quick=quick, seconds=seconds
    )


def seconds_of(cells: Mapping[str, CellGene], table: LayerTable) -> float:
    """Predicted seconds of a batch in a derived network: the sum of its layers'.

    Raises:
        UsageError: where the table lacks one of them.
    """
    stem, *blocks, end = parts_of(Genotype(cells=cells))
    inputs, scale, total = stem.width, 1, 0.0
    for part in blocks:
        for place, op in enumerate(part.ops):
            stride = 1 if place else part.stride
            sizes = (inputs, part.width, stride)
            total += table.of(Timed(op, *sizes, *scaled(table.size, scale)))
            inputs, scale = part.width, scale * stride
    ends = _ends(stem.width, inputs, end.width, scale, table.size)
    return total + sum(map(table.of, ends))


def report(genotype: Genotype, table: LayerTable) -> str:
    """One line: the predicted latency of a derived network; raises as `seconds_of`."""
    return told(seconds_of(genotype.cells, table), table)


@dataclass(frozen=True, kw_only=True)
class DensePrice:
    """The chained cost of dense blocks, and its price: an `architect.Outer`; see
    `nas.latency_price.Price`.

    ref: seconds.
    """

    layout: Layout
    table: LayerTable
    weight: float
    form: Form
    ref: float = 0.0

    @classmethod
    def of(cls, config: LatencyConfig, layout: Layout, size: Size, table: LayerTable) -> DensePrice:
        """The price that the settings ask for; ref: that of uniform choices where it is 0.

        Raises:
            UsageError: where the table lacks a layer, or as `check_form` says.
        """
        table = replace(table, size=size)  # a table of other images lacks layers of this size
        price = cls(layout=layout, table=table, weight=config.weight, form=config.form)
        uniform = {
            name: Mixture(torch.tensor(space.allowed, dtype=torch.float64))
            for name, space in layout.spaces().items()
        }
        ref = config.ref or float(price.expected(uniform))
        check_form(config.form, ref, price._ends)
        return replace(price, ref=ref)

    @cached_property
    def _ends(self) -> float:
        """Seconds of stem and end, which every network has."""
        return sum(map(self.table.of, _layout_ends(self.layout, self.table.size)))

    @cached_property
    def _seconds(self) -> list[list[float]]:
        """(L, O), 0 for skips and for what is not allowed."""
        table = [[0.0] * len(self.layout.ops) for _ in self.layout.layers]
        for row, o, timed in _everything(self.layout, self.table.size):
            table[row][o] = self.table.of(timed)
        return table

    def expected(self, mixtures: Mixtures) -> Tensor:
        """Expected seconds of a batch, a scalar, differentiable in the mixtures' weights.

        Each layer costs the mean of its operations by their shares, and each block what
        `cnn.dense.chain.expected_cost` says. Weights that do not sum to 1 are scaled until they do.
        """
        layers, routes = (mixtures[name].weights for name in (LAYERS, ROUTES))
        shares = layers / layers.sum(-1, keepdim=True)
        each = (shares * shares.new_tensor(self._seconds)).sum(-1)  # (L,)
        nothing = each.new_zeros(())
        blocks = range(len(self.layout.widths))
        own = [nothing, *(each[self.layout.rows(j, j)].sum() for j in blocks[1:])]
        entry = [
            each[rows[0]] if (rows := self.layout.rows(i + 1 + k, i)) else nothing
            for i in blocks[:-1]
            for k in range(routes.shape[1])
        ]
        chances = routes / routes.sum(-1, keepdim=True)
        chained = expected_cost(torch.stack(own), torch.stack(entry).view_as(routes), chances)
        return self._ends + chained

    def of_cells(self, cells: Mapping[str, CellGene]) -> float:
        """Predicted seconds of a batch in a derived network."""
        return seconds_of(cells, self.table)

    def __call__(self, value: Tensor, mixtures: Mixtures) -> Tensor:
        return priced(value, self.expected(mixtures), self.weight, self.form, self.ref)


def pricing(
    config: ImageSearchConfig, corpus: ImageCorpus, device: torch.device
) -> Callable[[Path], DensePrice]:
    """What gives a search of dense blocks its price in a run folder; see `layers.keeping`.

    Raises:
        CheckpointError, UsageError: where the table that is named is none, or lacks a layer.
    """
    layout, size = Layout(config.dense), image_size(config, corpus)

    def measured() -> LayerTable:
        quick = config.model.path == "fast"
        return measure_layers(layout, size, config.batches.size, device, quick=quick)

    def price(table: LayerTable) -> DensePrice:
        return DensePrice.of(config.latency, layout, size, table)

    return keeping(config, size, {}, measured, price)
