"""Latency of image cells: the layers of their network, and the price of a search by them.

How layers are timed and kept stands in `layers`. What is timed is the derived network at the
search's sizes, all channels, whatever share of them a search mixes (`model.partial`). All cells
have the stem, the entries and the joins alike; the classifier is not counted. Legend: C channels of
a cell, B images, h and w pixels, E edges, O operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rnnnas.cnn.cell import INPUTS, SKIP
from rnnnas.cnn.model import CnnConfig
from rnnnas.cnn.ops import DERIVED, FactorisedReduction, ReluConvNorm, operation
from rnnnas.cnn.space import NORMAL, REDUCE, image_spaces
from rnnnas.cnn.stems_heads import STEM_WIDTH, LargeStem, SmallStem
from rnnnas.config.images import ImageSearchConfig
from rnnnas.config.plain import from_plain
from rnnnas.data.image_corpus import ImageCorpus
from rnnnas.errors import UsageError
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
from rnnnas.nas.latency_price import EdgeCosts, LatencyPrice
from rnnnas.nas.relax.base import Spaces
from rnnnas.nas.space import NONE

ENTRY = "entry"  # what brings an output of before to a cell's width and size
JOIN = "join"  # the sums of nodes and their concatenation
STEMS = {"stem_cifar": SmallStem, "stem_imagenet": LargeStem}
_TOLD = ("channels", "layers", "stem")  # of a network, in its table


class Place(NamedTuple):
    """A cell of the network: kind, C, (h, w) of what its entries give; always: both entries and
    the join, which are there whatever the cell is.
    """

    kind: str
    channels: int
    size: Size
    always: tuple[Timed, Timed, Timed]

    def layer(self, source: int, op: str) -> Timed | None:
        """An operation on an edge out of state `source`; None where nothing is computed."""
        first = source < INPUTS
        halves = self.kind == REDUCE
        stride = 2 if halves and first else 1
        if op == NONE or (op == SKIP and stride == 1):
            return None
        size = scaled(self.size, 2) if halves and not first else self.size
        return Timed(op, self.channels, self.channels, stride, *size)


def places(model: CnnConfig, size: Size, states: Mapping[str, int]) -> tuple[Timed, list[Place]]:
    """The stem and the cells of a network, as `ConvNet` builds it, on images of `size`.

    Args:
        states: how many a cell of each kind concatenates.
    """
    large = model.stem == "imagenet"
    width = model.channels * (1 if large else STEM_WIDTH)
    older, last = (4, 8) if large else (1, 1)  # scales of the outputs of both cells before
    stem = Timed(f"stem_{model.stem}", 3, width, last, *size)
    widths, channels, cells = (width, width), model.channels, []
    for k in range(model.layers):
        kind = REDUCE if k in (model.layers // 3, 2 * model.layers // 3) else NORMAL
        channels *= 2 if kind == REDUCE else 1
        out, after = channels * states[kind], last * (2 if kind == REDUCE else 1)
        always = (
            Timed(ENTRY, widths[0], channels, last // older, *scaled(size, older)),
            Timed(ENTRY, widths[1], channels, 1, *scaled(size, last)),
            Timed(JOIN, channels, out, 1, *scaled(size, after)),
        )
        cells.append(Place(kind, channels, scaled(size, last), always))
        widths, older, last = (widths[1], out), last, after
    return stem, cells


def _concat(spaces: Spaces) -> dict[str, int]:
    return {kind: len(space.concat) for kind, space in spaces.items()}


def _everything(model: CnnConfig, size: Size, spaces: Spaces) -> Iterator[Timed]:
    """All that networks of these cells compute, each as often as it may stand there."""
    stem, cells = places(model, size, _concat(spaces))
    yield stem
    for place in cells:
        yield from place.always
        space = spaces[place.kind]
        for edge, (source, _) in enumerate(space.edges):
            for o in space.choices(edge):
                timed = place.layer(source, space.ops[o])
                if timed is not None:
                    yield timed


class _Join(nn.Module):
    """Nodes of two edges each: (B, C, h, w) → (B, states · C, h, w)."""

    def __init__(self, states: int) -> None:
        super().__init__()
        self.states = states

    def forward(self, x: Tensor, train: bool) -> Tensor:
        return torch.cat([x + x for _ in range(self.states)], 1)


def _layer(timed: Timed, draws: torch.Generator) -> nn.Module:
    if timed.op in STEMS:
        large = timed.op == "stem_imagenet"
        channels = timed.outputs // (1 if large else STEM_WIDTH)
        return STEMS[timed.op](channels, DERIVED, draws)
    if timed.op == ENTRY:
        entry = FactorisedReduction if timed.stride == 2 else ReluConvNorm
        return entry(timed.inputs, timed.outputs, DERIVED, draws)
    if timed.op == JOIN:
        return _Join(timed.outputs // timed.inputs)
    return operation(timed.op, timed.inputs, timed.stride, DERIVED, draws)


def measure_layers(
    model: CnnConfig, size: Size, images: int, device: torch.device, *, seconds: float = ROUNDS
) -> LayerTable:
    """The table of every layer of the space; as `layers.measure`."""
    table = measure(
        _everything(model, size, image_spaces(model.nodes)), _layer,
        size=size, images=images, device=device, quick=model.path == "fast", seconds=seconds,
    )  # fmt: skip
    return replace(table, network=_told(model))


def _told(model: CnnConfig) -> dict[str, Any]:
    return {name: getattr(model, name) for name in _TOLD}


def _model_of(table: LayerTable) -> CnnConfig:
    if set(table.network) != {*_TOLD}:
        raise UsageError("this table of latencies is of no search of image cells")
    return from_plain(CnnConfig, dict(table.network), "network.")


def edge_costs(table: LayerTable, spaces: Spaces) -> dict[str, EdgeCosts]:
    """What both cells cost, each summed over all places where the network has it.

    The stem is counted with the normal cell.

    Raises:
        UsageError: where the table lacks a layer.
    """
    stem, cells = places(_model_of(table), table.size, _concat(spaces))
    costs = {}
    for kind, space in spaces.items():
        seconds = [[0.0] * len(space.ops) for _ in space.edges]
        fixed = table.of(stem) if kind == NORMAL else 0.0
        for place in cells:
            if place.kind != kind:
                continue
            fixed += sum(map(table.of, place.always))
            for edge, (source, _) in enumerate(space.edges):
                for o in space.choices(edge):
                    timed = place.layer(source, space.ops[o])
                    seconds[edge][o] += 0.0 if timed is None else table.of(timed)
        costs[kind] = EdgeCosts(space=space, seconds=tuple(map(tuple, seconds)), fixed=fixed)
    return costs


def seconds_of(cells: Mapping[str, CellGene], table: LayerTable) -> float:
    """Predicted seconds of a batch in the table's network of derived cells: the sum of its layers'.

    Raises:
        UsageError: where the table lacks one of them, or is not of image cells.
    """
    states = {kind: len(cell.concat) for kind, cell in cells.items()}
    stem, made = places(_model_of(table), table.size, states)
    total = table.of(stem)
    for place in made:
        total += sum(map(table.of, place.always))
        for gene in (gene for node in cells[place.kind].nodes for gene in node):
            timed = place.layer(gene.source, gene.op)
            total += 0.0 if timed is None else table.of(timed)
    return total


def report(genotype: Genotype, table: LayerTable) -> str:
    """One line: the predicted latency of derived cells, and of which network; as `seconds_of`.

    Raises:
        UsageError: where a cell is missing, or the table is of another network.
    """
    if missing := {NORMAL, REDUCE} - set(genotype.cells):
        raise UsageError(f"there is no {' and no '.join(sorted(missing))} cell to predict of")
    model = _model_of(table)
    seconds = seconds_of(genotype.cells, table)
    return f"{told(seconds, table)}: {model.layers} cells, {model.channels} channels"


def pricing(
    config: ImageSearchConfig, corpus: ImageCorpus, device: torch.device
) -> Callable[[Path], LatencyPrice]:
    """What gives a search of image cells its price in a run folder; see `layers.keeping`.

    Raises:
        CheckpointError, UsageError: where the table that is named is none, or lacks a layer.
    """
    model = replace(config.model, layers=config.plan[0].layers)  # of its only stage
    size, spaces = image_size(config, corpus), image_spaces(model.nodes)

    def measured() -> LayerTable:
        return measure_layers(model, size, config.batches.size, device)

    def price(table: LayerTable) -> LatencyPrice:
        return LatencyPrice.of(config.latency, edge_costs(table, spaces), spaces)

    return keeping(config, size, _told(model), measured, price)
