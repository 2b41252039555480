"""How cost grows: fits against made-up timings, the cost model against counted operations."""

from __future__ import annotations

import json
import math
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rnnnas.bench import cost_model, growth
from rnnnas.bench.cost_model import Kind, Machine, Sizes
from rnnnas.bench.fits import Fit, fit, grows_faster
from rnnnas.bench.share import computing_seconds
from rnnnas.cli import main
from rnnnas.errors import UsageError

CPU = torch.device("cpu")
TINY = Sizes(hidden=6, streams=4, steps=5, nodes=3, vocabulary=11)


class NoModules:
    """Stands in for what tells a counter which module an operation belongs to."""

    parents = frozenset({"Global"})

    def __enter__(self) -> NoModules:
        return self

    def __exit__(self, *error: object) -> None:
        return None


# Fits


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0, -1.0])
def test_a_fit_finds_the_exponent(exponent: float) -> None:
    sizes = [25, 50, 100, 200, 400]
    found = fit(sizes, [3e-4 * size**exponent for size in sizes])
    assert found.exponent == pytest.approx(exponent, abs=1e-12)
    assert found.error == pytest.approx(0.0, abs=1e-6)
    assert found.last == pytest.approx(exponent, abs=1e-12)


def test_the_standard_error_covers_the_noise() -> None:
    """Of 400 fits to noisy timings, some 94 % lie within the 97.5 % point of t with 3 degrees."""
    draws, sizes, within = random.Random(1), [1, 2, 4, 8, 16], 0
    for _ in range(400):
        found = fit(sizes, [size**1.3 * math.exp(draws.gauss(0, 0.05)) for size in sizes])
        within += abs(found.exponent - 1.3) < 3.18 * found.error
    assert 360 <= within <= 396


def test_a_constant_cost_weighs_least_at_the_end() -> None:
    sizes = [1, 2, 4, 8, 16]
    found = fit(sizes, [1 + size**2 for size in sizes])
    assert found.exponent < found.last < 2
    assert found.last == pytest.approx(math.log2(257 / 65))


def test_two_sizes_have_no_error() -> None:
    found = fit([1, 2], [5, 10])
    assert found.exponent == pytest.approx(1) and math.isnan(found.error)


@pytest.mark.parametrize(
    ("sizes", "values"), [([1], [1]), ([2, 2], [1, 2]), ([1, 2], [0, 1]), ([1, 2], [1])]
)
def test_what_has_no_exponent_is_refused(sizes: list[float], values: list[float]) -> None:
    with pytest.raises(ValueError, match="no exponent"):
        fit(sizes, values)


@pytest.mark.parametrize(
    ("measured", "faster"),
    [
        (Fit(1.0, 0.01, 1.0), False),
        (Fit(1.09, 0.01, 1.1), False),  # within what is allowed
        (Fit(1.3, 0.01, 1.1), True),
        (Fit(1.3, 0.2, 1.1), False),  # the error is as large
        (Fit(0.8, 0.01, 1.3), True),  # small sizes hide it
        (Fit(0.3, 0.01, 0.3), False),
        (Fit(1.0, math.nan, 1.0), False),
        (Fit(1.3, math.nan, 1.3), True),
    ],
)
def test_what_counts_as_too_fast(measured: Fit, faster: bool) -> None:
    assert grows_faster(measured, Fit(1.0, 0.0, 1.0)) is faster


# The cost model


@pytest.mark.parametrize("kind", ["train", "eval", "search"])
def test_the_products_are_those_that_torch_counts(kind: Kind) -> None:
    """The readable path of a tiny network: an operation after the other, counted by torch."""
    config = growth.settings_of(kind, ("model.path=reference",))
    run, _ = growth.step_of(kind, config, TINY, CPU)
    counted = FlopCounterMode(display=False)
    counted.mod_tracker = NoModules()  # type: ignore[assignment]  # which torch's own cannot be beside autograd.grad
    with counted:
        run()
    flops = cost_model.product_flops(kind, TINY)
    # The first step of a window has no need to go back to the state before it, nor has an alpha
    # step to go back through the first step at all; the readable path goes part of that way.
    first = flops["cell"] / cost_model.PASSES[kind] / TINY.steps
    assert abs(counted.get_total_flops() - sum(flops.values())) <= 2 * first


def test_weights_are_counted() -> None:
    _, net = growth.step_of("train", growth.settings_of("train", ()), TINY, CPU)
    assert sum(p.numel() for p in net.parameters()) == TINY.weights


def test_exponents_that_arithmetic_expects() -> None:
    """Where one term is all there is, the exponents are those of its formula."""
    fast_memory = Machine(products=1e9, memory=1e30)
    base = {"hidden": 64, "streams": 8, "steps": 16, "nodes": 64, "vocabulary": 1}

    def exponent(kind: Kind, name: str, **more: int) -> float:
        sizes = [Sizes(**{**base, **more, name: n * {**base, **more}[name]}) for n in (1, 2, 4)]
        values = [n.hidden if name == "hidden" else getattr(n, name) for n in sizes]
        taken = [cost_model.expected_seconds(kind, n, False, fast_memory) for n in sizes]
        return fit(values, taken).exponent

    for name, power in {"hidden": 2, "streams": 1, "steps": 1, "nodes": 1}.items():
        assert exponent("train", name) == pytest.approx(power, abs=0.03)
    assert exponent("search", "nodes") == pytest.approx(2, abs=0.03)
    assert exponent("train", "vocabulary", vocabulary=10**6) == pytest.approx(1, abs=0.03)
    assert exponent("train", "hidden", vocabulary=10**6) == pytest.approx(1, abs=0.03)


def test_processes_share_the_streams_but_not_the_weights() -> None:
    one, two = Sizes(), Sizes(processes=2)
    assert (
        cost_model.product_flops("train", two)["loss"] * 2
        == (cost_model.product_flops("train", one)["loss"])
    )
    moved = [cost_model.moved_bytes("train", sizes, True) for sizes in (one, two)]
    assert moved[1]["logits"] * 2 == moved[0]["logits"]
    assert moved[1]["weights"] > moved[0]["weights"]


@pytest.mark.parametrize("kind", ["train", "search", "eval"])
def test_the_memory_held_is_near_what_the_model_says(kind: Kind) -> None:
    """At sizes where tensors outweigh everything else, whichever kernels this machine has."""
    sizes = Sizes(hidden=48, streams=8, steps=20, nodes=4, vocabulary=2000)
    config = growth.settings_of(kind, ("model.precision=float32",))
    (found,) = growth.measure(kind, config, [sizes], CPU, sweeps=1)
    expected = sum(cost_model.held_bytes(kind, sizes, False).values())
    assert 0.6 * expected < found.bytes < 2.5 * expected


# Measuring


def test_a_process_that_waits_is_timed_on_the_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = Sizes(hidden=8, streams=2, steps=2, nodes=2, vocabulary=16)
    config = growth.settings_of("train", ("model.precision=float32",))

    def waiting(*args: Any, **more: Any) -> Any:
        return (lambda: time.sleep(0.02)), torch.nn.Linear(1, 1)

    monkeypatch.setattr(growth, "step_of", waiting)
    monkeypatch.setattr(growth, "clock_of", lambda device: time.thread_time)
    (own,) = growth.measure("train", config, [sizes], CPU, sweeps=1)
    (wall,) = growth.measure("train", config, [sizes], CPU, sweeps=1, wall=True)
    assert own.seconds < 0.01 < wall.seconds  # it sleeps for 0.02


def test_the_tracked_peak_is_what_is_held_at_once() -> None:
    def run() -> Tensor:
        a = torch.zeros(1000)
        b = a + 1
        del a
        c = torch.zeros(5000)
        del b
        return c

    assert growth.tracked_peak(run, CPU) == 4 * 6000


def test_time_outside_of_kernels_does_not_hold_theirs() -> None:
    a = torch.ones(400, 400)

    def run() -> None:
        for _ in range(5):
            a @ a
        time.sleep(0.05)

    inside, wall = computing_seconds(run)
    assert 0 < inside < wall - 0.05


def test_a_derived_cell_of_any_size() -> None:
    for nodes in (1, 2, 9, 32):
        cell = growth.derived_cell(nodes)
        assert len(cell.nodes) == nodes
        assert cell.concat == tuple(range(1, nodes + 1))


def test_a_base_that_is_too_small_is_refused() -> None:
    with pytest.raises(UsageError, match="N = 1 is too small"):
        growth.sizes_along("nodes", Sizes(nodes=1), (0.25, 0.5, 1))


def test_sizes_vary_alone() -> None:
    each = growth.sizes_along("steps", Sizes(), growth.FACTORS["steps"][0])
    assert [sizes.steps for sizes in each] == [9, 18, 35, 70, 140]
    assert {(sizes.hidden, sizes.nodes) for sizes in each} == {(100, 8)}


def make_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sizes of each quantity, and no more repetitions than it takes."""
    few = {name: ((0.5, 1, 2), (1, 2)) for name in growth.FACTORS}
    small = {"ROUND": 0.0, "MOST_PROCESSES": 1, "PROFILED": 1, "FACTORS": few, "_LARGE": 1000}
    for name, value in small.items():
        monkeypatch.setattr(growth, name, value)


@pytest.mark.parametrize("of", ["train", "search"])
def test_the_command(of: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)
    monkeypatch.setattr(growth, "BASE", TINY)
    image = tmp_path / "growth.svg"
    words = ["bench", "growth", "--of", of, "--quick", "--device", "cpu", "--out", str(image)]
    result = CliRunner().invoke(main, [*words, "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["of"] == of
    assert list(report["quantities"]) == list(growth.FACTORS)
    for row in report["quantities"].values():
        assert len(row["values"]) == len(row["seconds"]) == len(row["bytes"]) == 2
        assert min(row["seconds"] + row["bytes"]) > 0
        for what in ("time", "memory"):
            assert isinstance(row[what]["faster_than_it_must"], bool)
            assert row[what]["exponent"] == pytest.approx(
                fit(row["values"], row["seconds" if what == "time" else "bytes"]).exponent
            )
    assert 0 <= report["python"]["share"] <= 1
    drawn = ElementTree.parse(image).getroot()
    assert drawn.tag.endswith("svg")
    lines = [e for e in drawn.iter() if "line" in e.get("class", "").split()]
    assert len(lines) == 2 * 2 * len(growth.FACTORS)  # measured and expected, time and memory


def test_the_table_names_every_quantity(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)
    report: dict[str, Any] = growth.growth("eval", CPU, quick=True, base=TINY, sweeps=1)
    from rnnnas.cli.growth import table

    text = "\n".join(table(report))
    for name in growth.FACTORS:
        assert text.count(f"  {name} ") == 2
    assert "Python's share" in text


def test_options_of_growth_have_no_place_elsewhere() -> None:
    result = CliRunner().invoke(main, ["bench", "train", "--quick"])
    assert result.exit_code == 2
    assert "bench growth" in result.output


@pytest.mark.slow
def test_two_processes_make_one_step_together() -> None:
    each = [replace(TINY, processes=n) for n in (1, 2)]
    found = [growth._in_processes("train", (), sizes, 1) for sizes in each]
    assert all(one.seconds > 0 and one.bytes > 0 for one in found)
