"""Latency of dense blocks: layers timed one by one, and the chained cost of a search by them.

A layer is timed as a derived network computes it in evaluation, forward, on a batch of images that
is as large as the search's. Legend: L layers, O operations, N blocks, M reach, B images.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rnnnas.cnn.dense import ConvNorm, InvertedResidual
from rnnnas.cnn.dense_genes import END_OP, STEM_OP, parts_of
from rnnnas.cnn.dense_space import LAYERS, ROUTES, SKIP, Layout
from rnnnas.cnn.ops import DERIVED
from rnnnas.config import AnySearch
from rnnnas.data.images import ImageCorpus
from rnnnas.errors import CheckpointError, UsageError
from rnnnas.files import read_json, write_json
from rnnnas.image_config import ImageSearchConfig
from rnnnas.latency import RUN_FILE, alternating, least, processor
from rnnnas.nas.chain import expected_cost
from rnnnas.nas.cost import Form, LatencyConfig, check_form, priced
from rnnnas.nas.genotype import CellGene, Genotype
from rnnnas.nas.relax.base import Mixture, Mixtures

Size = tuple[int, int]
ROUNDS = 2.0  # seconds that all layers are timed for, at least


class Timed(NamedTuple):
    """What a time is of: an operation, its channels, stride, and the size of what enters it."""

    op: str
    inputs: int
    outputs: int
    stride: int
    height: int
    width: int

    def __str__(self) -> str:
        channels = f"{self.inputs}>{self.outputs}"
        return f"{self.op} {channels} s{self.stride} {self.height}x{self.width}"

    def module(self) -> nn.Module:
        """The layer, with weights that no one trained."""
        draws = torch.Generator().manual_seed(1)
        if self.op in (STEM_OP, END_OP):
            kernel = int(self.op[-1])
            return ConvNorm(self.inputs, self.outputs, kernel, DERIVED, draws)
        return InvertedResidual(self.op, self.inputs, self.outputs, self.stride, DERIVED, draws)


def _at(size: Size, scale: int) -> Size:
    return -(-size[0] // scale), -(-size[1] // scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseTable:
    """Seconds of layers, by `str(Timed)`, and what they were measured on.

    device: "cpu" or "cuda". processor: its name. images: B. size: of them, (h, w). date: UTC.
    """

    device: str
    processor: str
    images: int
    size: Size
    date: str
    seconds: Mapping[str, float]

    def of(self, timed: Timed) -> float:
        """Raises UsageError where the table has no such layer."""
        if str(timed) not in self.seconds:
            raise UsageError(
                f"the table of latencies has no layer {str(timed)!r}",
                "leave out latency.table, so that one is measured",
            )
        return self.seconds[str(timed)]


def read_dense_table(path: Path) -> DenseTable:
    """A table from a file, as a search keeps it in its run folder.

    Raises:
        CheckpointError: where it is missing, unreadable or no table of layers.
    """
    plain = read_json(path)
    try:
        seconds = {str(name): float(value) for name, value in plain["seconds"].items()}
        if not all(0 <= value < float("inf") for value in seconds.values()):
            raise ValueError("a value is no number of seconds")
        height, width = map(int, plain["size"])
        return DenseTable(
            device=str(plain["device"]), processor=str(plain["processor"]),
            images=int(plain["images"]), size=(height, width), date=str(plain["date"]),
            seconds=seconds,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is no table of the latencies of layers: {error!r}",
            "give the latency.json of a search of dense blocks, or leave latency.table out",
        ) from error


def _everything(layout: Layout, size: Size) -> Iterator[tuple[int, int, Timed]]:
    """(row, operation, what is timed) of all that the space allows; skips cost nothing."""
    for row, (layer, able) in enumerate(
        zip(layout.layers, layout.spaces()[LAYERS].allowed, strict=True)
    ):
        for o, op in enumerate(layout.ops):
            if able[o] and op != SKIP:
                sizes = (layer.inputs, layer.outputs, layer.stride)
                yield row, o, Timed(op, *sizes, *_at(size, layer.scale))


def _ends(stem: int, last: int, end: int, scale: int, size: Size) -> tuple[Timed, Timed]:
    return Timed(STEM_OP, 3, stem, 1, *size), Timed(END_OP, last, end, 1, *_at(size, scale))


def _layout_ends(layout: Layout, size: Size) -> tuple[Timed, Timed]:
    config = layout.config
    return _ends(config.stem, config.widths[-1], config.end, config.scales[-1], size)


def measure_layers(
    layout: Layout, size: Size, images: int, device: torch.device, *, seconds: float = ROUNDS
) -> DenseTable:
    """The table of every layer of the space: the least of several rounds each."""
    wanted = {timed for _, _, timed in _everything(layout, size)} | {*_layout_ends(layout, size)}
    runs: dict[str, Callable[[], object]] = {}
    inputs: dict[tuple[int, ...], torch.Tensor] = {}  # one a shape: at 224 pixels they are large
    for timed in sorted(wanted):
        shape = (images, timed.inputs, timed.height, timed.width)
        if shape not in inputs:
            x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device)
            inputs[shape] = x.contiguous(memory_format=torch.channels_last)
        runs[str(timed)] = partial(timed.module().to(device), inputs[shape], False)
    with torch.no_grad():
        found = least(alternating(runs, device, seconds), 1)
    return DenseTable(
        device=device.type,
        processor=processor(device),
        images=images,
        size=size,
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        seconds=found,
    )


def seconds_of(cells: Mapping[str, CellGene], table: DenseTable) -> float:
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
            total += table.of(Timed(op, *sizes, *_at(table.size, scale)))
            inputs, scale = part.width, scale * stride
    ends = _ends(stem.width, inputs, end.width, scale, table.size)
    return total + sum(map(table.of, ends))


def report(genotype: Genotype, table: DenseTable) -> str:
    """One line: the predicted latency of a derived network; raises as `seconds_of`."""
    seconds = seconds_of(genotype.cells, table)
    height, width = table.size
    return (
        f"predicted {1000 * seconds:.2f} ms a batch ({table.device}, {table.images} images of "
        f"{height} x {width}, forward)"
    )


@dataclass(frozen=True, kw_only=True)
class DensePrice:
    """The chained cost of dense blocks, and its price: an `architect.Outer`; see `nas.cost.Price`.

    ref: seconds.
    """

    layout: Layout
    table: DenseTable
    weight: float
    form: Form
    ref: float = 0.0

    @classmethod
    def of(cls, config: LatencyConfig, layout: Layout, size: Size, table: DenseTable) -> DensePrice:
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
        `nas.chain.expected_cost` says. Weights that do not sum to 1 are scaled so that they do.
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
    config: AnySearch, corpus: object, device: torch.device
) -> Callable[[Path], DensePrice] | None:
    """What gives a search of dense blocks its price in a run folder; None where it has none.

    The run folder keeps the table: the one that `latency.table` names, or else one that is measured
    when the search begins. A search that goes on is priced as it began.

    Raises:
        CheckpointError, UsageError: where the table that is named is none, or lacks a layer.
    """
    if not isinstance(config, ImageSearchConfig) or not config.latency.weight:
        return None
    assert isinstance(corpus, ImageCorpus)
    layout, side = Layout(config.dense), config.augment.size
    size = (side, side) if side else corpus.size
    assert size is not None  # the task has refused pictures that differ in size
    given: DenseTable | None = None
    if config.latency.table:
        given = read_dense_table(Path(config.latency.table))
        DensePrice.of(config.latency, layout, size, given)  # refuses what does not fit

    def price(folder: Path) -> DensePrice:
        path = folder / RUN_FILE
        if not path.is_file():
            table = given or measure_layers(layout, size, config.batches.size, device)
            write_json(path, asdict(table))
        return DensePrice.of(config.latency, layout, size, read_dense_table(path))

    return price
