"""The price of dense blocks: the chained cost by a table, and tables that are measured and read."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_chain import chains
from test_dense import LAYOUT, SMALL, softmaxes

from rnnnas.cnn.dense.space import LAYERS, ROUTES, Layout
from rnnnas.cnn.ops import Conv
from rnnnas.errors import CheckpointError, UsageError
from rnnnas.latency import recurrent
from rnnnas.latency.dense_blocks import DensePrice, measure_layers, report
from rnnnas.latency.layers import LayerTable, read_layer_table
from rnnnas.nas.latency_price import LatencyConfig
from rnnnas.nas.relax.base import Mixture

CPU = torch.device("cpu")
SIZE = (9, 7)
SIDES = {1: "9x7", 2: "5x4", 4: "3x2"}  # of images, halved and rounded up


def table() -> LayerTable:
    """A made-up second for every layer, of its own name."""
    names = {"conv_3x3 3>3 s1 9x7", "conv_1x1 5>6 s1 3x2"}
    for x in LAYOUT.layers:
        for op in LAYOUT.ops[:-1]:
            names.add(f"{op} {x.inputs}>{x.outputs} s{x.stride} {SIDES[x.scale]}")
    seconds = {name: 1e-4 * (1 + (11 * k) % 17) for k, name in enumerate(sorted(names))}
    return LayerTable(
        device="cpu", processor="made up", images=8, size=SIZE, date="", seconds=seconds
    )


def price(**settings: Any) -> DensePrice:
    return DensePrice.of(LatencyConfig(weight=0.5, **settings), LAYOUT, SIZE, table())


def seconds_of(row: int, op: str) -> float:
    x = LAYOUT.layers[row]
    if op == "skip_connect":
        return 0.0
    return table().seconds[f"{op} {x.inputs}>{x.outputs} s{x.stride} {SIDES[x.scale]}"]


ENDS = table().seconds["conv_3x3 3>3 s1 9x7"] + table().seconds["conv_1x1 5>6 s1 3x2"]


@pytest.mark.parametrize("seed", range(3))
def test_the_chained_cost_is_the_mean_over_every_path(seed: int) -> None:
    mixtures = softmaxes(seed)
    layers, routes = (mixtures[name].weights.detach() for name in (LAYERS, ROUTES))
    total, mass = ENDS, 0.0
    for chain in chains(4, 3):
        steps = list(zip(chain, chain[1:], strict=False))
        p = math.prod(float(routes[i, j - i - 1]) for i, j in steps)
        mass += p
        for i, j in steps:
            for row, x in enumerate(LAYOUT.layers):
                if x.block == j and x.source in (i, j):
                    for o, op in enumerate(LAYOUT.ops):
                        if layers[row, o]:
                            total += p * float(layers[row, o]) * seconds_of(row, op)
    assert mass == pytest.approx(1)
    expected = price().expected(mixtures)
    assert float(expected.detach()) == pytest.approx(total, rel=1e-12)
    # Weights that do not sum to 1 are shares all the same.
    double = {name: Mixture(2 * m.weights) for name, m in mixtures.items()}
    assert float(price().expected(double).detach()) == pytest.approx(total, rel=1e-12)


def test_a_derived_network_costs_what_its_one_hot_mixture_does() -> None:
    for seed in range(5):
        tables = {name: m.weights.detach() for name, m in softmaxes(seed).items()}
        found = LAYOUT.derive({name: t.tolist() for name, t in tables.items()})
        chain = [0, *(int(name[5 : name.index("_")]) for name in found.cells if name[0] == "b")]
        one_hot = {
            LAYERS: torch.nn.functional.one_hot(tables[LAYERS].argmax(-1), 5).double(),
            ROUTES: tables[ROUTES].clone(),
        }
        for i, j in zip(chain, chain[1:], strict=False):
            one_hot[ROUTES][i] = 0
            one_hot[ROUTES][i, j - i - 1] = 1
        expected = price().expected({name: Mixture(t) for name, t in one_hot.items()})
        assert price().of_cells(found.cells) == pytest.approx(float(expected), rel=1e-12)
        assert f"predicted {1000 * float(expected):.2f} ms a batch" in report(found, table())


def test_the_price_is_lambda_log_cost_over_log_tau() -> None:
    mixtures, value = softmaxes(), torch.tensor(1.3, dtype=torch.float64)
    expected = float(price().expected(mixtures).detach())
    for form, wanted in (
        ("log", 1.3 + 0.5 * math.log(expected * 1e6) / math.log(700.0)),
        ("add", 1.3 + 0.5 * (expected - 7e-4) / 7e-4),
        ("mul", 1.3 * (math.log(expected * 1e6) / math.log(700.0)) ** 0.5),
    ):
        given = price(form=form, ref=7e-4)(value, mixtures)
        assert float(given.detach()) == pytest.approx(wanted, rel=1e-12)
    gradients = torch.autograd.grad(
        price(form="log", ref=7e-4)(value, mixtures), [m.weights for m in mixtures.values()]
    )
    assert all(bool((gradient != 0).any()) for gradient in gradients)


def test_the_reference_is_that_of_uniform_choices() -> None:
    uniform = {
        name: Mixture(torch.tensor(s.allowed, dtype=torch.float64))
        for name, s in LAYOUT.spaces().items()
    }
    assert price().ref == pytest.approx(float(price().expected(uniform)))
    assert price(ref=0.25).ref == 0.25
    fast = replace(table(), seconds=dict.fromkeys(table().seconds, 1e-8))
    with pytest.raises(UsageError, match=r"latency\.form = 'log' takes logarithms"):
        DensePrice.of(LatencyConfig(weight=1.0, form="log"), LAYOUT, SIZE, fast)


def test_a_measured_table_has_every_layer_and_comes_back(tmp_path: Path) -> None:
    found = measure_layers(LAYOUT, SIZE, 2, CPU, seconds=0)
    assert set(found.seconds) == set(table().seconds)
    assert all(value > 0 for value in found.seconds.values()) and found.images == 2
    path = tmp_path / "latency.json"
    path.write_text(json.dumps(asdict(found)), encoding="utf-8")
    assert read_layer_table(path) == found
    with pytest.raises(UsageError, match="no layer '.* 8x8'"):
        DensePrice.of(LatencyConfig(weight=1.0), LAYOUT, (8, 8), found)
    wide = Layout(replace(SMALL, end=7))
    with pytest.raises(UsageError, match="no layer 'conv_1x1 5>7 s1 3x2'"):
        DensePrice.of(LatencyConfig(weight=1.0), wide, SIZE, found)


def test_the_time_of_a_layer_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that multiplications move: each layer has the time of its own convolutions."""
    now = [0.0]
    monkeypatch.setattr(recurrent, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    original = Conv.forward

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = original(self, x)
        now[0] += 1e-9 * out[:, 0].numel() * self.weight.numel()
        return out

    monkeypatch.setattr(Conv, "forward", forward)
    layout = Layout(
        replace(SMALL, widths=(16, 32), scales=(1, 2), stem=16, kernels=(3,), expansions=(1, 6))
    )
    images, side = 4, 8
    seconds = measure_layers(layout, (side, side), images, CPU, seconds=0).seconds
    for expansion in (1, 6):
        inner = 16 * expansion
        weights = 16 * inner + 9 * inner + inner * 16  # widen, depthwise, narrow
        wanted = 1e-9 * images * side * side * weights
        name = f"mbconv_3x3_e{expansion} 16>16 s1 {side}x{side}"
        assert seconds[name] == pytest.approx(wanted), name


@pytest.mark.parametrize("text", ["[]", "{}", '{"seconds": {"a": "x"}}', '{"seconds": {"a": -1}}'])
def test_what_is_no_table_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(
        CheckpointError, match="no table of the latencies of layers|in place of an object"
    ):
        read_layer_table(path)
    with pytest.raises(CheckpointError, match="no table of the latencies .*missing") as error:
        read_layer_table(tmp_path / "missing.json")
    assert "a search on images" in error.value.remedy
