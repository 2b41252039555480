"""Latency on this machine: tables that are measured, kept and read, and cells that are timed.

A table is measured with the fast cell itself, on cells that are made for it: "stars", whose k
nodes all take s0 by one operation, and a chain. What a window of T steps takes is divided by T, the
input's product for all steps included. Legend: T steps, B streams, H hidden, N nodes.
"""

from __future__ import annotations

import datetime
import platform
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from rnnnas.config.text import SearchConfig
from rnnnas.distributed import ALONE, Ranks
from rnnnas.errors import CheckpointError, UsageError
from rnnnas.home import home
from rnnnas.lm.fast.derived import unroll
from rnnnas.lm.fast.known import has_kernels
from rnnnas.lm.model import low_precision
from rnnnas.nas.genotype import RECURRENT, CellGene, Gene
from rnnnas.nas.latency_price import MICROSECOND, LatencyPrice, RecurrentCosts
from rnnnas.nas.space import NONE, RECURRENT_OPS, recurrent_space
from rnnnas.runs.sealed import CHANGED, read_sealed, write_sealed

K = TypeVar("K", bound=Hashable)

RUN_FILE = "latency.json"  # the table that a search was priced by, in its run folder
_ROUNDS = 5  # at least, of each window
_CHAIN = ("chain", 0)
_ANEW = "measure one: rnnnas bench latency"


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyTable:
    """Costs of a time step, and what they were measured on.

    device: "cpu" or "cuda". processor: its name. dtype: that products' factors were rounded to.
    steps: T of the windows. date: UTC. kernels: whether the cell had its compiled kernels; tables
    of earlier versions do not say, and count as measured with them.
    """

    device: str
    processor: str
    dtype: str
    hidden: int
    streams: int
    steps: int
    date: str
    costs: RecurrentCosts
    kernels: bool = True

    def to_plain(self) -> dict[str, Any]:
        """Plain values; `from_plain` is the inverse."""
        costs = self.costs
        return {
            **{name: getattr(self, name) for name in _ABOUT},
            "kernels": self.kernels,
            "seconds": {
                "first": costs.first,
                "products": list(costs.products),
                "rests": list(costs.rests),
                "activations": {op: list(row) for op, row in costs.activations.items()},
                "level": costs.level,
            },
        }

    @classmethod
    def from_plain(cls, plain: Any) -> LatencyTable:
        """Raises KeyError, TypeError or ValueError where something is missing or of no use,
        UsageError where the numbers do not fit together.
        """
        seconds = plain["seconds"]
        costs = RecurrentCosts(
            first=float(seconds["first"]),
            products=tuple(map(float, seconds["products"])),
            rests=tuple(map(float, seconds["rests"])),
            activations={op: tuple(map(float, s)) for op, s in seconds["activations"].items()},
            level=float(seconds["level"]),
        )
        about = {name: kind(plain[name]) for name, kind in _ABOUT.items()}
        return cls(costs=costs, kernels=bool(plain.get("kernels", True)), **about)

    def describe(self) -> str:
        """'cpu, float32, H 300, B 256'."""
        return f"{self.device}, {self.dtype}, H {self.hidden}, B {self.streams}"


_ABOUT: dict[str, type] = {
    "device": str, "processor": str, "dtype": str, "hidden": int, "streams": int, "steps": int,
    "date": str,
}  # fmt: skip


def read_table(path: Path) -> LatencyTable:
    """A table from a file.

    Raises:
        CheckpointError: where it is missing, unreadable or no table of latencies.
    """
    if not path.exists():
        raise CheckpointError(f"there is no table of latencies {path}", _ANEW)
    plain = read_sealed(path, CHANGED)
    try:
        return LatencyTable.from_plain(plain)
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        raise CheckpointError(f"{path} is no table of latencies: {error!r}", _ANEW) from error


def default_path(device: torch.device, hidden: int, streams: int) -> Path:
    """Where the table of these sizes lies by default."""
    return home() / f"latency-{device.type}-H{hidden}-B{streams}.json"


# Measuring


def alternating(
    runs: Mapping[K, Callable[[], object]], device: torch.device, seconds: float
) -> dict[K, list[float]]:
    """Seconds of each of `runs`, in rounds, so that a slow minute of the machine meets all alike.

    Args:
        seconds: rounds go on until they are over, and there are `_ROUNDS` at least.
    """

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    taken: dict[K, list[float]] = {key: [] for key in runs}
    for run in runs.values():
        run()
    start = time.perf_counter()
    rounds = 0
    while rounds < _ROUNDS or time.perf_counter() - start < seconds:
        for key, run in runs.items():
            wait()
            began = time.perf_counter()
            run()
            wait()
            taken[key].append(time.perf_counter() - began)
        rounds += 1
    return taken


def least(times: dict[K, list[float]], share: int) -> dict[K, float]:
    return {key: min(values) / share for key, values in times.items()}


def _window(
    cell: CellGene, hidden: int, streams: int, steps: int, device: torch.device, low: bool
) -> Callable[[], object]:
    """A forward pass of the fast cell over one window of random states."""
    draws = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return (0.08 * torch.rand(*shape, generator=draws) - 0.04).to(device)

    nodes = random(len(cell.nodes), hidden, 2 * hidden)
    inputs, first = random(steps, streams, hidden), random(2 * hidden, 2 * hidden)
    h = random(streams, hidden)

    def run() -> None:
        with torch.no_grad():
            unroll(inputs, h, first, nodes, cell, None, None, low=low)

    return run


def _cell(sources: list[int], op: str = "identity") -> CellGene:
    nodes = tuple((Gene(op, source),) for source in sources)
    return CellGene(nodes=nodes, concat=tuple(range(1, len(sources) + 1)))


def measure_table(
    config: SearchConfig,
    device: torch.device,
    *,
    seconds: float = 3.0,
    say: Callable[[str], None] = lambda text: None,
) -> LatencyTable:
    """The table for `model.hidden`, `model.nodes`, `windows.streams` and `.bptt` on `device`.

    The least of several rounds each. s0 and the groups come from whole windows of the fast cell:
    a chain of n nodes takes first + n g_1, a star of k first + g_k. An activation is what a star
    takes more with it than with the identity, which costs nothing: measured for 1 and for all N
    nodes, in between on the straight line. Products are timed by themselves; what is left of a
    group is its rest.

    Args:
        seconds: of rounds of windows, about; large sizes take longer.
    """
    hidden, streams, steps = config.model.hidden, config.windows.streams, config.windows.bptt
    count = config.model.nodes
    low = low_precision(config.model, device)
    sizes = range(1, count + 1)
    length = max(4, count)
    ops = [op for op in RECURRENT_OPS if op != NONE]
    say("windows of the fast cell")
    cells = {("identity", k): _cell([0] * k) for k in sizes}
    cells |= {(op, k): _cell([0] * k, op) for op in ops for k in {1, count}}
    cells[_CHAIN] = _cell(list(range(length)))
    runs = {key: _window(c, hidden, streams, steps, device, low) for key, c in cells.items()}
    whole = least(alternating(runs, device, seconds), steps)
    star = {k: whole["identity", k] for k in sizes}
    dearer = {(op, k): max(0.0, whole[op, k] - star[k]) for op in ops for k in (1, count)}
    one = max(0.0, whole[_CHAIN] - star[1]) / (length - 1)
    first = star[1] - one
    groups = [one, *(max(0.0, star[k] - first) for k in sizes[1:])]
    say("products")
    alone = {k: _product(k, hidden, streams, device, low, steps) for k in sizes}
    bare = least(alternating(alone, device, seconds / 4), steps)
    products = [min(bare[k], group) for k, group in zip(sizes, groups, strict=True)]
    return LatencyTable(
        device=device.type,
        processor=processor(device),
        dtype="bfloat16" if low else "float32",
        hidden=hidden,
        streams=streams,
        steps=steps,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        kernels=has_kernels(device),
        costs=RecurrentCosts(
            first=first,
            products=tuple(products),
            rests=tuple(g - p for g, p in zip(groups, products, strict=True)),
            activations={op: _between(dearer[op, 1], dearer[op, count], count) for op in ops},
        ),
    )


def _product(
    k: int, hidden: int, streams: int, device: torch.device, low: bool, repeats: int
) -> Callable[[], object]:
    """The product of k nodes that share a predecessor, gates and candidates."""
    dtype = torch.bfloat16 if low else torch.float32
    inner = torch.randn(streams, hidden, device=device).to(dtype).expand(2 * k, streams, hidden)
    matrix = torch.randn(2 * k, hidden, hidden, device=device).to(dtype)
    out = torch.empty(2 * k, streams, hidden, device=device, dtype=dtype)

    def run() -> None:
        for _ in range(repeats):
            torch.bmm(inner, matrix, out=out)

    return run


def _between(one: float, all_: float, count: int) -> tuple[float, ...]:
    """From what one node and all `count` take, what 1 to `count` do: on a straight line."""
    return tuple(one + (all_ - one) * i / max(1, count - 1) for i in range(count))


def processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.processor() or platform.machine()}, {threads} thread(s)"


def measure_cell(
    cell: CellGene, table: LatencyTable, device: torch.device, *, seconds: float = 1.0
) -> tuple[float, float]:
    """Seconds of a time step of a derived cell at the table's sizes: median and least of windows.

    Other work on the machine moves the median; a table holds the least.
    """
    low = table.dtype == "bfloat16"
    run = _window(cell, table.hidden, table.streams, table.steps, device, low)
    times = alternating({0: run}, device, seconds)[0]
    return statistics.median(times) / table.steps, min(times) / table.steps


# Searches and images


def given_table(config: SearchConfig, device: torch.device) -> LatencyTable | None:
    """The table that a search is to be priced by, or None where one is to be measured.

    A table that the settings name is taken whatever it was measured on: a cell may be searched
    here for another machine. One in the default place must be of the same kind of device and
    sizes, which its name says, of the same dtype, with kernels where there are some now, and have
    enough nodes.

    Raises:
        CheckpointError: where it is missing or damaged.
        UsageError: where it does not fit the search, or its price cannot be formed.
    """
    if config.latency.table:
        return _fitting(config, read_table(Path(config.latency.table)))
    path = default_path(device, config.model.hidden, config.windows.streams)
    if not path.is_file():
        return None
    table = read_table(path)
    dtype = "bfloat16" if low_precision(config.model, device) else "float32"
    if (table.dtype, table.kernels) != (dtype, has_kernels(device)):
        return None
    if len(table.costs.products) < config.model.nodes:
        return None
    return _fitting(config, table)


def _fitting(config: SearchConfig, table: LatencyTable) -> LatencyTable:
    price_of(config, table)  # refuses what does not fit
    return table


def price_of(config: SearchConfig, table: LatencyTable, ranks: Ranks = ALONE) -> LatencyPrice:
    """The price of latency in a search by `table`."""
    spaces = {RECURRENT: config.cell_space}
    return LatencyPrice.of(config.latency, {RECURRENT: table.costs}, spaces, ranks.mean)


def run_price(
    config: SearchConfig,
    folder: Path,
    given: LatencyTable | None,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> LatencyPrice:
    """The price of a search in run folder `folder`, by the table that is kept there.

    Where none is yet, `given` is kept, or one that is measured now: a search that goes on is
    priced as it began, whatever has been measured since.
    """

    def settle() -> dict[str, Any]:
        path = folder / RUN_FILE
        if not path.is_file():
            write_sealed(path, (given or measure_table(config, device)).to_plain())
        return read_table(path).to_plain()

    return price_of(config, LatencyTable.from_plain(ranks.on_rank_zero(settle)), ranks)


def report(cell: CellGene, table: LatencyTable, device: torch.device | None) -> str:
    """One line: the predicted latency of a cell, and the measured one on `device` where given.

    Raises:
        UsageError: where the table ends before the cell does, lacks an operation, or is of another
            kind of device; or the cell has more than one edge a node.
    """
    space = recurrent_space(len(cell.nodes))
    table.costs.check(space)
    other = {gene.op for node in cell.nodes for gene in node} - set(space.ops)
    if other or any(len(node) != 1 for node in cell.nodes):
        raise UsageError(
            f"a table of latencies has no operation {', '.join(sorted(other))}"
            if other
            else "a table of latencies is of cells with one edge a node"
        )
    parts = [f"predicted {table.costs.of_cell(cell) / MICROSECOND:.1f} µs a time step"]
    if device is not None:
        if device.type != table.device:
            raise UsageError(
                f"this table is of {table.device}, and the device is {device.type}",
                "give --device, or measure a table there: rnnnas bench latency",
            )
        median, least = (s / MICROSECOND for s in measure_cell(cell, table, device))
        parts.append(f"measured {median:.1f} µs (median of windows; least {least:.1f})")
    return f"{', '.join(parts)} ({table.describe()}, forward)"
