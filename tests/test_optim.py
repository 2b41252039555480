"""Optimisers against formulas by hand, schedules, and the switch to averaging."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rnnnas.errors import UsageError
from rnnnas.optim import (
    AlphaConfig,
    Average,
    WeightConfig,
    alpha_optimizer,
    averaging_starts,
    inner_step,
    scheduled,
    weight_optimizer,
)

DOUBLE = torch.float64


class Two(nn.Module):
    """Two weights of three numbers and one of two."""

    def __init__(self) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(0)
        self.a = nn.Parameter(torch.randn(3, dtype=DOUBLE, generator=draws))
        self.b = nn.Parameter(torch.randn(2, dtype=DOUBLE, generator=draws))


def gradients(net: Two, seed: int) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(p.shape, dtype=DOUBLE, generator=draws)
        for name, p in net.named_parameters()
    }


# Schedules


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.5, 0.999, 1.0])
def test_schedules(progress: float) -> None:
    assert scheduled(WeightConfig(lr=7.0), progress) == 7.0
    linear = scheduled(WeightConfig(lr=7.0, schedule="linear"), progress)
    assert linear == pytest.approx(7.0 - 7.0 * progress, abs=1e-12)
    cosine = scheduled(WeightConfig(lr=7.0, schedule="cosine"), progress)
    assert cosine == pytest.approx(3.5 + 3.5 * math.cos(math.pi * progress), abs=1e-12)
    assert min(linear, cosine) >= 0


def test_the_cosine_falls_all_the_way() -> None:
    config = WeightConfig(lr=1.0, schedule="cosine")
    values = [scheduled(config, i / 100) for i in range(101)]
    assert values == sorted(values, reverse=True)
    assert values[0] == 1.0 and values[50] == pytest.approx(0.5) and values[100] < 1e-12


# Optimisers


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_weights_move_by_sgd(momentum: float) -> None:
    net = Two()
    optimizer = weight_optimizer(net, WeightConfig(lr=0.5, momentum=momentum, weight_decay=0.1))
    expected = {name: p.detach().clone() for name, p in net.named_parameters()}
    speed = {name: torch.zeros_like(p) for name, p in expected.items()}
    for step in range(4):
        for name, p in net.named_parameters():
            p.grad = gradients(net, step)[name]
        optimizer.step()
        for name, w in expected.items():
            speed[name] = momentum * speed[name] + gradients(net, step)[name] + 0.1 * w
            expected[name] = w - 0.5 * speed[name]
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-12, atol=1e-14)


def test_alphas_move_by_adam_with_the_decay_in_the_gradient() -> None:
    config = AlphaConfig(lr=0.03, betas=(0.5, 0.9), weight_decay=0.2)
    alpha = torch.tensor([0.3, -1.2], dtype=DOUBLE, requires_grad=True)
    optimizer = alpha_optimizer({"recurrent": alpha}, config)
    assert type(optimizer) is torch.optim.Adam  # AdamW decays another way
    expected, m, v = [0.3, -1.2], [0.0, 0.0], [0.0, 0.0]
    for step in range(1, 6):
        gradient = [math.sin(step), math.cos(3.0 * step)]
        alpha.grad = torch.tensor(gradient, dtype=DOUBLE)
        optimizer.step()
        for k in range(2):
            g = gradient[k] + 0.2 * expected[k]
            m[k] = 0.5 * m[k] + 0.5 * g
            v[k] = 0.9 * v[k] + 0.1 * g * g
            mean, square = m[k] / (1 - 0.5**step), v[k] / (1 - 0.9**step)
            expected[k] -= 0.03 * mean / (math.sqrt(square) + 1e-8)
        assert alpha.tolist() == pytest.approx(expected, rel=1e-10)


def test_the_defaults_are_the_published_ones() -> None:
    alphas = AlphaConfig()
    assert (alphas.lr, alphas.betas, alphas.weight_decay) == (3e-3, (0.9, 0.999), 1e-3)
    assert (WeightConfig().lr, WeightConfig().clip, WeightConfig().momentum) == (20.0, 0.25, 0.0)
    assert alphas.text == "held-out"


def test_the_inner_step_reads_the_optimiser() -> None:
    net = Two()
    optimizer = weight_optimizer(net, WeightConfig(lr=0.5, momentum=0.9, weight_decay=0.1))
    before = inner_step(net, optimizer, 0.3, lr=0.25)
    assert (before.lr, before.clip, before.weight_decay, before.momentum) == (0.25, 0.3, 0.1, 0.9)
    assert before.buffers == {}
    for name, p in net.named_parameters():
        p.grad = gradients(net, 0)[name]
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer.step()
    after = inner_step(net, optimizer, 0.3, lr=0.25)
    assert set(after.buffers) == {"a", "b"}
    for name, buffer in after.buffers.items():
        torch.testing.assert_close(buffer, gradients(net, 0)[name] + 0.1 * start[name])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"nesterov": True, "momentum": 0.9}, "nesterov"),
        ({"dampening": 0.1, "momentum": 0.9}, "dampening"),
        ({"maximize": True}, "maximize"),
    ],
)
def test_the_inner_step_refuses_what_it_does_not_mirror(
    options: dict[str, Any], named: str
) -> None:
    net = Two()
    with pytest.raises(UsageError, match=named):
        inner_step(net, torch.optim.SGD(net.parameters(), lr=0.1, **options), 0.0, lr=0.1)


def test_the_inner_step_refuses_other_optimisers_and_groups() -> None:
    net = Two()
    groups = [{"params": [net.a]}, {"params": [net.b]}]
    for optimizer in (torch.optim.Adam(net.parameters()), torch.optim.SGD(groups, lr=0.1)):
        with pytest.raises(UsageError, match="plain SGD with one group"):
            inner_step(net, optimizer, 0.0, lr=0.1)


# Averaging


@pytest.mark.parametrize(("dtype", "close"), [(DOUBLE, 1e-13), (torch.float32, 1e-5)])
def test_the_average_is_the_arithmetic_mean(dtype: torch.dtype, close: float) -> None:
    draws = torch.Generator().manual_seed(0)
    weights = {"a": torch.zeros(3, 2, dtype=dtype), "b": torch.zeros(4, dtype=dtype)}
    average = Average(weights)
    history: list[dict[str, Tensor]] = []
    for step in range(1, 41):
        for w in weights.values():
            w.copy_(torch.randn(w.shape, dtype=dtype, generator=draws) + 5)
        average.update(weights)
        history.append({name: w.double().clone() for name, w in weights.items()})
        assert average.steps == step
        for name, mean in average.weights.items():
            total = torch.zeros_like(history[0][name])
            for past in history:
                total = total + past[name]
            torch.testing.assert_close(mean.double(), total / step, rtol=close, atol=close)


def test_the_weights_before_the_first_step_have_no_share() -> None:
    average = Average({"a": torch.full((2,), 1e6)})
    average.update({"a": torch.tensor([1.0, 2.0])})
    assert average.weights["a"].tolist() == [1.0, 2.0]


def test_the_average_is_its_own_and_spares_the_weights() -> None:
    weights = {"a": torch.ones(2, requires_grad=True)}
    average = Average(weights)
    for _ in range(3):
        average.update(weights)
    assert average.weights["a"].data_ptr() != weights["a"].data_ptr()
    assert not average.weights["a"].requires_grad
    with torch.no_grad():
        weights["a"].mul_(7)
    assert average.weights["a"].tolist() == [1.0, 1.0]


def rule(losses: list[float], nonmono: int) -> int | None:
    """The epoch after which averaging is on, by algorithm 1 of Merity et al. 2018, literally:
    t > n and v_t > min over l in {0, ..., t - n - 1} of v_l."""
    for t, loss in enumerate(losses):
        if nonmono and t > nonmono and any(loss > losses[k] for k in range(t - nonmono)):
            return t
    return None


@pytest.mark.parametrize("nonmono", [0, 1, 2, 5])
def test_averaging_starts_by_the_rule(nonmono: int) -> None:
    draws = random.Random(nonmono)
    started = set()
    for _ in range(300):
        losses = [draws.choice([1.0, 2.0, 3.0, 4.0, 5.0]) - 0.4 * t for t in range(14)]
        found = next(
            (t for t in range(14) if averaging_starts(losses[:t], losses[t], nonmono)), None
        )
        assert found == rule(losses, nonmono)
        started.add(found)
    assert started == {None} if nonmono == 0 else len(started) > 3


def test_averaging_on_a_curve_that_flattens() -> None:
    losses = [5.0, 4.0, 3.0, 2.9, 2.8, 2.85, 2.9, 2.95]
    starts = [averaging_starts(losses[:t], losses[t], 2) for t in range(len(losses))]
    # Epoch 6 is as good as the least of epochs 0 to 3; epoch 7 is above the least of 0 to 4.
    assert starts == [False] * 7 + [True]
    assert not any(averaging_starts([4.0 - t for t in range(k)], 4.0 - k, 1) for k in range(9))
    assert not averaging_starts([1.0] * 9, 1.0, 5)  # as good as the best is no rise
    assert not averaging_starts([1.0] * 9, math.nan, 5)


# Settings


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"lr": 0.0}, "weights.lr = 0.0"),
        ({"lr": -1.0}, "weights.lr = -1.0"),
        ({"lr": math.nan}, "weights.lr = nan"),
        ({"clip": -0.1}, "weights.clip = -0.1"),
        ({"weight_decay": -1e-9}, "weights.weight_decay"),
        ({"momentum": -0.5}, "weights.momentum"),
        ({"nonmono": -1}, "weights.nonmono = -1"),
    ],
)
def test_bad_settings_of_weights_are_refused(bad: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError) as caught:
        WeightConfig(**bad)
    assert named in caught.value.cause


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"lr": 0.0}, "alphas.lr = 0.0"),
        ({"weight_decay": -1.0}, "alphas.weight_decay = -1.0"),
        ({"betas": (0.9, 1.0)}, "alphas.betas = (0.9, 1.0)"),
        ({"betas": (-0.1, 0.9)}, "alphas.betas"),
        ({"warmup": 1.0}, "alphas.warmup = 1.0"),
        ({"warmup": -0.1}, "alphas.warmup = -0.1"),
        ({"held_out": 0.0}, "alphas.held_out = 0.0"),
        ({"held_out": 1.0}, "alphas.held_out = 1.0"),
    ],
)
def test_bad_settings_of_alphas_are_refused(bad: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError) as caught:
        AlphaConfig(**bad)
    assert named in caught.value.cause


def test_no_step_imports_torchs_compiler() -> None:
    """It takes a second of processor time, and nothing here is compiled."""
    code = (
        "import sys, torch\n"
        "from rnnnas.optim import WeightConfig, guarded_step, weight_optimizer\n"
        "net = torch.nn.Linear(2, 2)\n"
        "made = weight_optimizer(net, WeightConfig())\n"
        "made.zero_grad()\n"
        "net(torch.ones(1, 2)).sum().backward()\n"
        "guarded_step(made, torch.tensor(True))\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
