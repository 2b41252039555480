"""How the cost of a step grows: time and memory against each of its sizes, beside a cost model.

Legend: T steps in time, B streams, H hidden, V vocabulary, N nodes, P processes.
"""

from __future__ import annotations

import dataclasses
import gc
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from rnnnas.bench.cost_model import (
    FORMULA,
    Kind,
    Machine,
    Sizes,
    expected_seconds,
    held_bytes,
)
from rnnnas.bench.fits import Fit, fit, grows_faster
from rnnnas.bench.recurrent import check_settings, search_step
from rnnnas.bench.share import python_share
from rnnnas.config.presets import resolve
from rnnnas.distributed import ALONE, STORE, Ranks, joined
from rnnnas.engine.cuda_graphs import PATIENCE, cuda_graphs_for, synchronise
from rnnnas.engine.steps import weight_step
from rnnnas.errors import UsageError
from rnnnas.lm.fast.buffers import WORKSPACE
from rnnnas.lm.fast.matmul import multiply
from rnnnas.lm.model import RecurrentLM, low_precision
from rnnnas.nas.genotype import CellGene, Gene
from rnnnas.optim import alpha_optimizer, weight_optimizer
from rnnnas.processes import end_with, scratch_folder
from rnnnas.types import Batch

KINDS: tuple[Kind, ...] = ("search", "train", "eval")
BASE = Sizes()
# Each quantity alone takes these multiples of its base value; `--quick` takes the second of each.
FACTORS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "hidden": ((0.5, 1, 2, 4, 8), (0.5, 1, 2)),
    "streams": ((0.25, 0.5, 1, 2, 4), (0.5, 1, 2)),
    "steps": ((0.25, 0.5, 1, 2, 4), (0.5, 1, 2)),
    "nodes": ((0.25, 0.5, 1, 2, 4), (0.5, 1, 2)),
    "vocabulary": ((0.25, 0.5, 1, 2, 4), (0.5, 1, 2)),
}
LETTERS = {
    "hidden": "H", "streams": "B", "steps": "T", "nodes": "N", "vocabulary": "V", "processes": "P",
}  # fmt: skip
MOST_PROCESSES = 2
SWEEPS = 5  # over all sizes of a quantity, so that no size has the quiet moments to itself
ROUND = 0.1  # seconds that a size is measured for in one sweep, and once at the least
PROFILED = 20  # steps under a profiler, of which the one with the least outside of kernels counts
_LARGE = 8_000_000  # numbers of a tensor that no cache holds, for the memory's rate
_OPS = ("tanh", "relu", "sigmoid", "relu", "identity")


class Measured(NamedTuple):
    """seconds: the least of all repetitions. bytes: the tracked peak of a step in one process."""

    seconds: float
    bytes: int


def derived_cell(nodes: int) -> CellGene:
    """A cell of any number of nodes, as deep for its size as published ones are."""
    genes = tuple((Gene(_OPS[i % len(_OPS)], (i + 1) // 2),) for i in range(nodes))
    return CellGene(nodes=genes, concat=tuple(range(1, nodes + 1)))


def base_sizes(config: Any, kind: Kind) -> Sizes:
    """The sizes that the settings say, at which every quantity but one stays."""
    windows = config.windows
    return dataclasses.replace(
        BASE, hidden=config.model.hidden, streams=windows.streams, steps=windows.bptt,
        nodes=config.model.nodes,
    )  # fmt: skip


def settings_of(kind: Kind, settings: Sequence[str]) -> Any:
    """The paper's settings at the base's sizes, changed by `--set` texts."""
    check_settings(settings)
    own = (
        f"model.hidden={BASE.hidden}", f"model.nodes={BASE.nodes}",
        f"windows.streams={BASE.streams}", f"windows.bptt={BASE.steps}", *settings,
    )  # fmt: skip
    if kind == "search":
        flags: dict[str, Any] = {"corpus": "ptb", "method": "darts-1st"}
        return resolve("search", preset="ptb-darts", file=None, settings=own, flags=flags)
    flags = {"corpus": "ptb", "genotype": "DARTS_V2"}
    return resolve("train", preset="ptb", file=None, settings=own, flags=flags)


def step_of(
    kind: Kind, config: Any, sizes: Sizes, device: torch.device, ranks: Ranks = ALONE
) -> tuple[Callable[[], object], RecurrentLM]:
    """One step of `sizes` on random words, and the network that it is a step of."""
    draws = torch.Generator().manual_seed(1)
    model = dataclasses.replace(config.model, hidden=sizes.hidden, nodes=sizes.nodes)
    searched = dataclasses.replace(config, model=model).cell_space if kind == "search" else None
    net = RecurrentLM(
        model, sizes.vocabulary, searched or derived_cell(sizes.nodes),
        noise=config.noise, penalty=config.penalty, generator=draws, ranks=ranks,
    ).to(device)  # fmt: skip
    shape = (sizes.steps + 1, sizes.streams)
    words = ranks.own(torch.randint(sizes.vocabulary, shape, generator=draws), 1).to(device)
    batch = Batch(words[:-1], words[1:])
    masks = torch.Generator(device=device).manual_seed(2)
    if kind == "eval":
        return lambda: _evaluated(net, batch), net
    graphs = cuda_graphs_for("auto", device, path=model.path)
    optimizer = weight_optimizer(net, config.weights)
    lr, clip = config.weights.lr, config.weights.clip

    if kind == "train":
        return lambda: weight_step(
            net, optimizer, batch, None, {}, net.noise(batch, masks), lr=lr, clip=clip,
            ranks=ranks, cuda_graphs=graphs,
        ), net  # fmt: skip
    method = config.relaxation
    alphas = {n: a.to(device) for n, a in method.init(net.space, draws).items()}
    alphas = {n: a.detach().requires_grad_() for n, a in alphas.items()}
    adam = alpha_optimizer(alphas, config.alphas)
    step = search_step(
        net, config, alphas, adam, optimizer, batch, masks, cuda_graphs=graphs, ranks=ranks
    )
    return step, net


@torch.no_grad()
def _evaluated(net: RecurrentLM, batch: Batch) -> object:
    return net(batch, None, {}, None)


def clock_of(device: torch.device) -> Callable[[], float]:
    """What a step is timed by: with one thread its own processor time, in which the turns of other
    programs do not count, else the time on the wall.
    """
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.thread_time if alone else time.perf_counter


def tracked_peak(run: Callable[[], object], device: torch.device) -> int:
    """Bytes that torch's allocator hands out during `run` and holds at once, at the most.

    On a CPU what was allocated before does not count, nor what libraries allocate for themselves;
    on a CUDA device all that is allocated there does.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        kept = run()
    del kept
    assert found.profiler is not None
    results = found.profiler.kineto_results
    events = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
    held = most = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        held += size
        most = max(most, held)
    return most


def measure(
    kind: Kind, config: Any, each: Sequence[Sizes], device: torch.device, *, sweeps: int = SWEEPS,
    ranks: Ranks = ALONE, wall: bool = False,
) -> list[Measured]:  # fmt: skip
    """Time and memory of a step at each of the sizes, which take turns.

    Args:
        wall: time on the wall, even of one thread: of a process that waits for others.
    """
    runs, peaks = [], []
    for sizes in each:
        WORKSPACE.clear()
        gc.collect()
        # The networks of the sizes before stay, and are not this one's.
        others = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        run, net = step_of(kind, config, sizes, device, ranks)
        weights = sum(p.numel() * p.element_size() for p in net.parameters())
        before = -others if device.type == "cuda" else weights
        # The first step, which allocates what all later ones use again.
        peaks.append(before + tracked_peak(run, device))
        runs.append(run)
    for run in runs:  # again: now with the buffers that the next steps find
        for _ in range(1 if device.type == "cpu" else PATIENCE + 2):
            run()
    best = [float("inf")] * len(runs)
    clock = time.perf_counter if wall else clock_of(device)
    for _ in range(sweeps):
        for i, run in enumerate(runs):
            spent = 0.0
            while True:
                if ranks.size > 1:
                    ranks.max_reduce(0)  # both begin together
                synchronise(device)
                began = clock()
                run()
                synchronise(device)
                took = clock() - began
                best[i] = min(best[i], took)
                spent += took
                # All processes make the same number of steps: the slowest says when to stop.
                if ranks.max_reduce(int(spent > ROUND))[0]:
                    break
    return [Measured(seconds, peak) for seconds, peak in zip(best, peaks, strict=True)]


def machine_rates(sizes: Sizes, device: torch.device, low: bool) -> Machine:
    """What this machine reaches in the largest product of a step, and in one pass over memory."""
    clock = clock_of(device)

    def least(run: Callable[[], object]) -> float:
        best = float("inf")
        for _ in range(12):
            synchronise(device)
            began = clock()
            run()
            synchronise(device)
            best = min(best, clock() - began)
        return max(best, 1e-9)

    rows, hidden, words = sizes.streams * sizes.steps, sizes.hidden, sizes.vocabulary
    dtype = torch.bfloat16 if low else torch.float32
    left, right = (torch.randn(n, hidden, device=device).to(dtype) for n in (rows, words))
    out = torch.empty(rows, words, device=device, dtype=dtype)
    products = 2 * rows * hidden * words / least(lambda: multiply(left, right.t(), out=out))
    a, b = (torch.ones(_LARGE, device=device) for _ in range(2))
    memory = 3 * 4 * _LARGE / least(lambda: torch.add(a, b, out=b))
    return Machine(products, memory)


def sizes_along(name: str, base: Sizes, factors: Sequence[float]) -> list[Sizes]:
    """The base with one quantity at each multiple of its base value, rising, none twice."""
    start: int = getattr(base, name)
    values = sorted({max(1, round(start * factor)) for factor in factors})
    if len(values) < 2:
        raise UsageError(
            f"{LETTERS[name]} = {start} is too small a base to vary",
            "choose a larger one with --set",
        )
    return [dataclasses.replace(base, **{name: value}) for value in values]


def row(
    name: str, kind: Kind, each: Sequence[Sizes], found: Sequence[Measured], low: bool,
    machine: Machine,
) -> dict[str, Any]:  # fmt: skip
    """What is reported of one quantity: the measurements, and both fits with their verdicts."""
    values = [getattr(sizes, name) for sizes in each]
    model = {
        "time": [expected_seconds(kind, sizes, low, machine) for sizes in each],
        "memory": [sum(held_bytes(kind, sizes, low).values()) for sizes in each],
    }
    taken = {"time": [m.seconds for m in found], "memory": [float(m.bytes) for m in found]}
    report: dict[str, Any] = {"values": values, "seconds": taken["time"]}
    report |= {"bytes": [m.bytes for m in found], "expected_seconds": model["time"]}
    report["expected_bytes"] = model["memory"]
    for what in ("time", "memory"):
        measured, expected = fit(values, taken[what]), fit(values, model[what])
        report[what] = verdict(measured, expected)
    return report


def verdict(measured: Fit, expected: Fit) -> dict[str, Any]:
    """Both fits as they are reported."""
    return {
        "exponent": measured.exponent, "error": measured.error, "last": measured.last,
        "expected": expected.exponent, "expected_last": expected.last,
        "faster_than_it_must": grows_faster(measured, expected),
    }  # fmt: skip


def growth(
    kind: Kind,
    device: torch.device,
    *,
    settings: Sequence[str] = (),
    quick: bool = False,
    base: Sizes | None = None,
    sweeps: int = SWEEPS,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure how a step's time and memory grow with every quantity alone.

    Args:
        quick: three sizes of each instead of five.
        base: other sizes than those of the settings, for tests.
        sweeps: over all sizes of a quantity; the least time counts.

    Returns:
        of (the kind of step), base (its sizes), threads, clock, formula, machine (the rates),
        python (its share of a step of the base, on a CPU only), and by quantity what `row` reports.
    """
    config = settings_of(kind, settings)
    base = base or base_sizes(config, kind)
    low = low_precision(config.model, device) and kind != "eval"
    machine = machine_rates(base, device, low)
    rows: dict[str, Any] = {}
    for name, (factors, few) in FACTORS.items():
        each = sizes_along(name, base, few if quick else factors)
        values = ", ".join(f"{getattr(sizes, name):,}" for sizes in each)
        say(f"{LETTERS[name]} ({name}): {values}")
        found = measure(kind, config, each, device, sweeps=sweeps)
        rows[name] = row(name, kind, each, found, low, machine)
    many = _processes_possible(kind, base, device)
    if many > 1:
        say(f"P (processes): 1, {many}")
        each = [dataclasses.replace(base, processes=n) for n in (1, many)]
        found = [_in_processes(kind, tuple(settings), sizes, sweeps) for sizes in each]
        rows["processes"] = row("processes", kind, each, found, low, machine)
    WORKSPACE.clear()
    clock = "processor time of the thread" if clock_of(device) is time.thread_time else "wall"
    report: dict[str, Any] = {
        "of": kind, "base": dataclasses.asdict(base), "low_precision": low,
        "threads": torch.get_num_threads(), "clock": clock, "formula": FORMULA,
        "machine": {"flops_per_second": machine.products, "bytes_per_second": machine.memory},
    }  # fmt: skip
    if device.type == "cpu":
        say("Python's share of a step")
        at = rows["streams"]["values"].index(base.streams)
        report["python"] = _python(kind, config, base, rows["streams"]["seconds"][at], sweeps)
    return report | {"quantities": rows}


def _python(kind: Kind, config: Any, base: Sizes, seconds: float, sweeps: int) -> dict[str, float]:
    """Python's share of a step that takes `seconds`, by the lesser of two upper bounds.

    outside_seconds: of the step under a profiler, the time outside of kernels. smallest_seconds:
    of a step that makes the same calls on next to nothing. share: the lesser over `seconds`.
    """
    device = torch.device("cpu")
    small = dataclasses.replace(base, hidden=8, streams=2, vocabulary=16)
    (smallest,) = measure(kind, config, [small], device, sweeps=sweeps)
    run, _ = step_of(kind, config, base, device)
    run()
    outside = python_share(run, seconds, PROFILED).outside
    least = min(outside, smallest.seconds)
    return {
        "outside_seconds": outside, "smallest_seconds": smallest.seconds, "seconds": seconds,
        "share": min(1.0, least / seconds),
    }  # fmt: skip


def _processes_possible(kind: Kind, base: Sizes, device: torch.device) -> int:
    """How many processes are tried beside one: none where they would share a core, or where there
    is nothing that they share.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    even = base.streams % MOST_PROCESSES == 0
    usable = device.type == "cpu" and kind != "eval" and even and not os.environ.get("WORLD_SIZE")
    return MOST_PROCESSES if usable and (cores or 1) >= MOST_PROCESSES else 1


def _in_processes(
    kind: Kind, settings: tuple[str, ...], sizes: Sizes, sweeps: int
) -> Measured:  # fmt: skip
    """A step that `sizes.processes` fresh processes of one thread make together, over gloo."""
    context = multiprocessing.get_context("spawn")
    with (
        scratch_folder() as folder,
        ProcessPoolExecutor(
            sizes.processes, mp_context=context, initializer=end_with, initargs=(os.getpid(),)
        ) as workers,
    ):
        store = str(folder / "store")
        waiting = [
            workers.submit(_rank, rank, store, kind, settings, sizes, sweeps)
            for rank in range(sizes.processes)
        ]
        found = [one.result() for one in waiting]
    return Measured(max(m.seconds for m in found), max(m.bytes for m in found))


def _rank(
    rank: int, store: str, kind: Kind, settings: tuple[str, ...], sizes: Sizes, sweeps: int
) -> Measured:  # fmt: skip
    """What one of the processes measures. Times on the wall: it waits for the others, too."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(sizes.processes), LOCAL_WORLD_SIZE=str(sizes.processes),
        LOCAL_RANK=str(rank),
    )  # fmt: skip
    os.environ[STORE] = str(Path(store))
    torch.set_num_threads(1)
    device = torch.device("cpu")
    with joined(device) as ranks:
        config = settings_of(kind, settings)
        (found,) = measure(kind, config, [sizes], device, sweeps=sweeps, ranks=ranks, wall=True)
    return found
