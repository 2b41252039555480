"""Where products are rounded to bfloat16, and where never."""

from __future__ import annotations

from typing import Any

import arithmetic
import pytest
import torch

from rnnnas.errors import UsageError
from rnnnas.lm.fast import derived
from rnnnas.lm.loss import PenaltyConfig
from rnnnas.lm.model import ModelConfig, RecurrentLM, low_precision
from rnnnas.lm.noise import NoiseConfig
from rnnnas.nas.architect import hypergradient
from rnnnas.nas.relax.darts import Darts
from rnnnas.nas.space import recurrent_space
from rnnnas.nas.zoo import ZOO
from rnnnas.types import Batch, InnerStep


def test_float32_twin_shares_the_weights_and_rounds_nothing() -> None:
    """bfloat16 rounds in training alone, and not in the network that the architect differs by."""
    draws = torch.Generator().manual_seed(0)
    net = RecurrentLM(
        ModelConfig(hidden=8, precision="bfloat16"), 50, ZOO["DARTS_V2"].genotype.recurrent,
        noise=NoiseConfig(), penalty=PenaltyConfig(), generator=draws,
    )  # fmt: skip
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(20)
    words = torch.randint(50, (6, 4), generator=draws)
    batch = Batch(words[:-1], words[1:])
    twin = net.in_float32()
    assert all(a is b for a, b in zip(net.parameters(), twin.parameters(), strict=True))
    noise = net.noise(batch, draws)
    rounded, exact = (float(n(batch, None, {}, noise).value.detach()) for n in (net, twin))
    evaluated = float(net(batch, None, {}, None).value.detach())
    assert rounded != exact == evaluated
    assert rounded == pytest.approx(exact, rel=1e-2)
    moved = {name: p.detach() + 1.0 for name, p in twin.named_parameters()}
    torch.func.functional_call(twin, moved, (batch, None, {}, noise))
    assert all(a is b for a, b in zip(net.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("name", ["DARTS_V2", "ENAS", "NAO"])
def test_the_rounded_cell_stays_close_to_the_exact_one(name: str) -> None:
    """Outputs and every gradient, to a few roundings of 2^-9; a wrong product is far outside."""
    draws = torch.Generator().manual_seed(1)
    cell = ZOO[name].genotype.recurrent
    steps, streams, width, hidden = 7, 12, 20, 24
    shapes = (
        (steps, streams, width), (streams, hidden), (width + hidden, 2 * hidden),
        (len(cell.nodes), hidden, 2 * hidden),
    )  # fmt: skip
    tensors = [torch.randn(*shape, generator=draws) * scale
               for shape, scale in zip(shapes, (1.0, 0.5, 0.2, 0.2), strict=True)]  # fmt: skip
    masks = [(torch.rand(streams, size, generator=draws) > 0.3) / 0.7 for size in (width, hidden)]
    gradient = torch.randn(steps, streams, hidden, generator=draws)
    results = []
    for low in (False, True):
        leaves = [t.clone().requires_grad_() for t in tensors]
        out = derived.unroll(*leaves, cell, *masks, low=low)
        results.append([out.detach(), *torch.autograd.grad((out * gradient).sum(), leaves)])
    for exact, rounded in zip(*results, strict=True):
        assert rounded.dtype == torch.float32
        error = float((rounded - exact).norm() / exact.norm())
        assert 1e-5 < error < 5e-2


def test_the_ends_of_the_finite_difference_are_not_rounded() -> None:
    """With a precise twin the second-order term is right, although all else is rounded."""
    draws = torch.Generator().manual_seed(0)
    sizes = {"hidden": 32, "nodes": 3}
    nets = {
        name: RecurrentLM(
            ModelConfig(path=path, precision=name, **sizes), 60, recurrent_space(3),  # type: ignore[arg-type]
            noise=NoiseConfig(), penalty=PenaltyConfig(),
            generator=torch.Generator().manual_seed(1),
        )
        for name, path in (("bfloat16", "fast"), ("float32", "eager"))
    }  # fmt: skip
    method = Darts()
    alphas = method.init(nets["float32"].space, draws)
    words = torch.randint(60, (9, 16), generator=draws)
    others = torch.randint(60, (9, 16), generator=draws)
    inner = InnerStep(lr=1.0, clip=0.25)

    def gradient(name: str, order: Any, precise: Any = None) -> torch.Tensor:
        grads, _ = hypergradient(
            nets[name], alphas, method, train=(Batch(words[:-1], words[1:]), None),
            valid=(Batch(others[:-1], others[1:]), None), inner=inner, order=order, progress=0.5,
            generator=torch.Generator().manual_seed(2), precise=precise,
        )  # fmt: skip
        return grads["recurrent"]

    exact, first = gradient("float32", "exact"), gradient("float32", "first")
    twin = nets["bfloat16"].in_float32()
    with_twin = gradient("bfloat16", "finite", twin)
    without = gradient("bfloat16", "finite")
    assert (exact - first).norm() > 0.2 * first.norm()  # there is a second-order term to get right

    def error(found: torch.Tensor) -> float:
        return float((found - exact).norm() / exact.norm())

    assert error(with_twin) < 0.05
    assert error(without) > 3 * error(with_twin)


def test_precision_is_what_was_asked_for() -> None:
    cpu = torch.device("cpu")
    assert low_precision(ModelConfig(precision="bfloat16"), cpu)
    assert not low_precision(ModelConfig(precision="float32"), cpu)
    # The reference follows the definitions: whatever the machine, it rounds nothing.
    assert not low_precision(ModelConfig(path="reference"), cpu)
    with pytest.raises(UsageError, match="model.path"):
        ModelConfig(path="reference", precision="bfloat16")


@pytest.mark.parametrize(
    ("avx512", "amx", "low"),
    [(False, False, False), (True, False, True), (False, True, True), (True, True, True)],
)
def test_auto_rounds_where_the_processor_multiplies_bfloat16(
    avx512: bool, amx: bool, low: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    cpu = torch.device("cpu")
    assert low_precision(ModelConfig(), cpu) is low
    assert not low_precision(ModelConfig(path="eager"), cpu)
    assert low_precision(ModelConfig(precision="bfloat16"), cpu)
    assert not low_precision(ModelConfig(precision="float32"), cpu)


@pytest.mark.parametrize("able", [False, True])
def test_auto_on_a_card_asks_the_card(able: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulated products do not count, and what the processor has does not matter."""

    def supported(including_emulation: bool = True) -> bool:
        return able or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: not able)
    assert low_precision(ModelConfig(), torch.device("cuda")) is able


def test_auto_is_what_the_tests_set() -> None:
    """The pin of `arithmetic.py` holds, whatever the processor of this machine."""
    assert low_precision(ModelConfig(), torch.device("cpu")) is (
        arithmetic.precision() == "bfloat16"
    )
