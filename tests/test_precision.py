"""Where products are rounded to bfloat16, and where never."""

from __future__ import annotations

import pytest
import torch

from rnnnas.errors import UsageError
from rnnnas.lm import fused
from rnnnas.lm.loss import PenaltyConfig
from rnnnas.lm.model import ModelConfig, RecurrentLM, low_precision
from rnnnas.lm.noise import NoiseConfig
from rnnnas.nas.genotype import ZOO
from rnnnas.types import Batch


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
    slope = torch.randn(steps, streams, hidden, generator=draws)
    results = []
    for low in (False, True):
        leaves = [t.clone().requires_grad_() for t in tensors]
        out = fused.unroll(*leaves, cell, *masks, low=low)
        results.append([out.detach(), *torch.autograd.grad((out * slope).sum(), leaves)])
    for exact, rounded in zip(*results, strict=True):
        assert rounded.dtype == torch.float32
        error = float((rounded - exact).norm() / exact.norm())
        assert 1e-5 < error < 5e-2


def test_precision_is_what_was_asked_for() -> None:
    cpu = torch.device("cpu")
    assert low_precision(ModelConfig(precision="bfloat16"), cpu)
    assert not low_precision(ModelConfig(precision="float32"), cpu)
    # The reference follows the definitions: whatever the machine, it rounds nothing.
    assert not low_precision(ModelConfig(path="reference"), cpu)
    with pytest.raises(UsageError, match="model.path"):
        ModelConfig(path="reference", precision="bfloat16")
