"""The optimiser's one pass over the weights, against torch's plain steps, bit by bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rnnnas.optim import WeightConfig, clip_gradients, guarded_step, weight_optimizer


class Tied(nn.Module):
    """A matrix and a row, of sizes that no vector unit divides."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(3)
        self.matrix = nn.Parameter(torch.randn(331, 77, generator=draws, dtype=dtype))
        self.row = nn.Parameter(torch.randn(331, generator=draws, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("clip", [0.0, 0.25, 1e9])
def test_a_step_has_the_bits_of_torchs_plain_one(
    dtype: torch.dtype, momentum: float, clip: float
) -> None:
    """Clipped or not, with momentum or without: the optimiser's one pass, against its two."""
    ours, plain = Tied(dtype), Tied(dtype)
    config = WeightConfig(lr=20.0, momentum=momentum, weight_decay=8e-7)
    one = weight_optimizer(ours, config)
    two = torch.optim.SGD(
        plain.parameters(), lr=20.0, momentum=momentum, weight_decay=8e-7, foreach=False,
        fused=False,
    )  # fmt: skip
    draws = torch.Generator().manual_seed(4)
    for _ in range(3):
        for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
            a.grad = 0.01 * torch.randn(a.shape, generator=draws, dtype=dtype)
            b.grad = a.grad.clone()
        norm = clip_gradients(ours, clip)
        expected = nn.utils.clip_grad_norm_(plain.parameters(), clip or float("inf"))
        assert torch.equal(norm, expected)
        assert guarded_step(one, torch.tensor(True))
        two.step()
        for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
            assert torch.equal(a, b)


def test_nothing_moves_on_unsound_values() -> None:
    net = Tied(torch.float32)
    before = net.matrix.detach().clone()
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    assert not guarded_step(weight_optimizer(net, WeightConfig()), torch.tensor(False))
    assert torch.equal(net.matrix, before)


def test_a_gradient_that_lies_otherwise_moves_its_own_weights() -> None:
    net = Tied(torch.float64)
    before = net.matrix.detach().clone()
    gradient = torch.randn(77, 331, dtype=torch.float64).t()
    net.matrix.grad, net.row.grad = gradient, torch.zeros_like(net.row)
    guarded_step(weight_optimizer(net, WeightConfig(lr=0.5)), torch.tensor(True))
    torch.testing.assert_close(net.matrix.detach(), before - 0.5 * gradient, rtol=0, atol=1e-15)
