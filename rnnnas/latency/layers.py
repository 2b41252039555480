"""Latency of image networks by their layers: timed one by one, kept, read, and told.

A layer is timed as a derived network computes it in evaluation, forward, on a batch of images that
is as large as the search's. What networks of one kind are made of, and what a search of them is
priced by, stand in `image_cells` and `dense_blocks`. Legend: C channels, B images.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from rnnnas.cnn.ops import Conv, Norm
from rnnnas.config.images import ImageSearchConfig
from rnnnas.data.image_corpus import ImageCorpus
from rnnnas.errors import CheckpointError, UsageError
from rnnnas.latency.recurrent import RUN_FILE, alternating, least, processor
from rnnnas.runs.sealed import CHANGED, read_sealed, write_sealed

P = TypeVar("P")
Size = tuple[int, int]
ROUNDS = 2.0  # seconds that all layers are timed for, at least
_GIVE = "give the latency.json of a search on images, or leave latency.table out"


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


def scaled(size: Size, scale: int) -> Size:
    """Of images of `size` after strides whose product is `scale`."""
    return -(-size[0] // scale), -(-size[1] // scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTable:
    """Seconds of layers, by `str(Timed)`, and what they were measured on.

    device: "cpu" or "cuda". processor: its name. images: B. size: of them, (h, w). date: UTC.
    network: of a search of cells, what genotypes do not tell: channels, layers and stem, as in
    `CnnConfig`; of dense blocks nothing.
    """

    device: str
    processor: str
    images: int
    size: Size
    date: str
    seconds: Mapping[str, float]
    network: Mapping[str, Any] = field(default_factory=dict)

    def of(self, timed: Timed) -> float:
        """Raises UsageError where the table has no such layer."""
        if str(timed) not in self.seconds:
            raise UsageError(
                f"the table of latencies has no layer {str(timed)!r}",
                "leave out latency.table, so that one is measured",
            )
        return self.seconds[str(timed)]


def read_layer_table(path: Path) -> LayerTable:
    """A table from a file, as a search keeps it in its run folder.

    Raises:
        CheckpointError: where it is missing, unreadable or no table of layers.
    """
    if not path.exists():
        raise CheckpointError(f"there is no table of the latencies of layers {path}", _GIVE)
    plain = read_sealed(path, CHANGED)
    try:
        seconds = {str(name): float(value) for name, value in plain["seconds"].items()}
        if not all(0 <= value < float("inf") for value in seconds.values()):
            raise ValueError("a value is no number of seconds")
        height, width = map(int, plain["size"])
        return LayerTable(
            device=str(plain["device"]), processor=str(plain["processor"]),
            images=int(plain["images"]), size=(height, width), date=str(plain["date"]),
            seconds=seconds, network=dict(plain.get("network", {})),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        cause = f"{path} is no table of the latencies of layers: {error!r}"
        raise CheckpointError(cause, _GIVE) from error


def measure(
    wanted: Iterable[Timed],
    build: Callable[[Timed, torch.Generator], nn.Module],
    *,
    size: Size,
    images: int,
    device: torch.device,
    quick: bool,
    seconds: float,
) -> LayerTable:
    """The table of all that is wanted: the least of several rounds each.

    Args:
        build: makes a layer, with weights that no one trained, called as (x, train).
        quick: whether the network has `model.path` "fast".
        seconds: rounds go on until they are over.
    """
    runs: dict[str, Callable[[], object]] = {}
    inputs: dict[tuple[int, ...], torch.Tensor] = {}  # one a shape: at 224 pixels they are large
    for timed in sorted(set(wanted)):
        shape = (images, timed.inputs, timed.height, timed.width)
        if shape not in inputs:
            x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device)
            inputs[shape] = x.contiguous(memory_format=torch.channels_last)
        layer = build(timed, torch.Generator().manual_seed(1)).to(device)
        for part in layer.modules():
            if isinstance(part, (Conv, Norm)):
                part.quick = quick
        runs[str(timed)] = partial(layer, inputs[shape], False)
    with torch.no_grad():
        found = least(alternating(runs, device, seconds), 1)
    return LayerTable(
        device=device.type,
        processor=processor(device),
        images=images,
        size=size,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=found,
    )


def told(seconds: float, table: LayerTable) -> str:
    """One line: the predicted latency of a derived network by `table`."""
    height, width = table.size
    return (
        f"predicted {1000 * seconds:.2f} ms a batch ({table.device}, {table.images} images of "
        f"{height} x {width}, forward)"
    )


def image_size(config: ImageSearchConfig, corpus: ImageCorpus) -> Size:
    """(h, w) of the images that a search sees."""
    side = config.augment.size
    size = (side, side) if side else corpus.size
    assert size is not None  # the task has refused images that differ in size
    return size


def keeping(
    config: ImageSearchConfig,
    size: Size,
    network: Mapping[str, Any],
    measured: Callable[[], LayerTable],
    price: Callable[[LayerTable], P],
) -> Callable[[Path], P]:
    """What gives a search its price in a run folder.

    The run folder keeps the table: the one that `latency.table` names, or else one that is measured
    when the search begins. A search that goes on is priced as it began.

    Args:
        size, network: of this search, whatever another's table was measured for.

    Raises:
        CheckpointError, UsageError: where the table that is named is none, or lacks a layer.
    """
    given: LayerTable | None = None
    if config.latency.table:
        given = read_layer_table(Path(config.latency.table))
        given = replace(given, size=size, network=network)
        price(given)  # refuses what does not fit

    def kept(folder: Path) -> P:
        path = folder / RUN_FILE
        if not path.is_file():
            table = given or replace(measured(), network=network)
            write_sealed(path, asdict(table))
        return price(read_layer_table(path))

    return kept
