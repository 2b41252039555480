"""Second-order gradients through the image network, against the two-level problem in numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rnnnas.cnn import fast_batch_norm
from rnnnas.cnn.model import CnnConfig, ConvNet
from rnnnas.cnn.space import OPERATIONS
from rnnnas.nas import architect
from rnnnas.nas.architect import hypergradient
from rnnnas.nas.relax.base import Mixture
from rnnnas.nas.relax.darts import Darts
from rnnnas.nas.space import CellSpace
from rnnnas.types import Batch, InnerStep

DOUBLE = torch.float64
SPACE = CellSpace(inputs=2, nodes=1, ops=OPERATIONS, keep=2)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def case(seed: int, path: Any, partial: int) -> tuple[ConvNet, Any, Any]:
    config = CnnConfig(
        channels=4, layers=3, nodes=1, path=path, partial=partial, skip_dropout=0.2
    )  # fmt: skip
    net = ConvNet(
        config, {"normal": SPACE, "reduce": SPACE}, 3, generator=seeded(seed)
    ).double()  # fmt: skip
    draws = seeded(seed + 100)
    batches = [
        Batch(
            torch.randn(4, 3, 8, 8, dtype=DOUBLE, generator=draws),
            torch.randint(3, (4,), generator=draws),
        )
        for _ in range(2)
    ]
    return net, (batches[0], None), (batches[1], None)


def unrolled(
    net: ConvNet, alphas: dict[str, Tensor], train: Any, valid: Any, inner: InnerStep
) -> float:
    """L_val(w'(alpha)), one step of SGD with momentum written out on a copy of the weights."""
    draws = seeded(7)
    noise = net.noise(train[0], draws), net.noise(valid[0], draws)
    mixtures = {name: Mixture(alpha.softmax(-1)) for name, alpha in alphas.items()}
    kept = {n: p.detach().clone() for n, p in net.named_parameters()}
    net.zero_grad()
    net(*train, mixtures, noise[0]).objective.backward()
    with torch.no_grad():
        for n, p in net.named_parameters():
            assert p.grad is not None
            p -= inner.lr * (
                inner.momentum * inner.buffers[n] + p.grad + inner.weight_decay * p
            )  # fmt: skip
        value = float(net(*valid, mixtures, noise[1]).value)
        for n, p in net.named_parameters():
            p.copy_(kept[n])
    net.zero_grad()
    return value


@pytest.mark.parametrize("path", ["fast", "reference"])
@pytest.mark.parametrize("partial", [1, 2])
def test_exact_order_is_the_derivative_of_the_unrolled_problem(
    path: Any, partial: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        fast_batch_norm, "LEAST", 1
    )  # so that the own normalisation serves: fast, twice
    net, train, valid = case(partial, path, partial)
    draws = seeded(3)
    alphas = {
        name: torch.randn(2, 8, dtype=DOUBLE, generator=draws).requires_grad_()
        for name in ("normal", "reduce")
    }
    buffers = {n: 0.05 * torch.randn(p.shape, dtype=DOUBLE, generator=draws)
               for n, p in net.named_parameters()}  # fmt: skip
    inner = InnerStep(lr=0.05, weight_decay=3e-4, momentum=0.9, buffers=buffers)

    def gradient(order: Any) -> Tensor:
        grads, _ = hypergradient(
            net, alphas, Darts(), train=train, valid=valid, inner=inner, order=order,
            progress=0.0, generator=seeded(7),
        )  # fmt: skip
        return torch.cat([grads[name].flatten() for name in alphas])

    exact = gradient("exact")
    # Along three directions in the space of both cells' alphas.
    size, h = exact.numel(), 1e-6
    directions = torch.randn(3, size, dtype=DOUBLE, generator=draws)
    numbers = []
    for direction in directions:
        ends = []
        for sign in (1, -1):
            parts = direction.split(size // 2)
            moved = {
                n: a.detach() + sign * h * part.view_as(a)
                for (n, a), part in zip(alphas.items(), parts, strict=True)
            }
            ends.append(unrolled(net, moved, train, valid, inner))
        numbers.append((ends[0] - ends[1]) / (2 * h))
    numeric = torch.tensor(numbers, dtype=DOUBLE)
    scale = float(numeric.norm())
    assert float((directions @ exact - numeric).norm()) / scale < 1e-5
    term = float((gradient("first") - exact).norm())
    assert float((directions @ gradient("first") - numeric).norm()) / scale > 1e-3
    monkeypatch.setattr(architect, "PERTURBATION", 1e-5)
    assert float((gradient("finite") - exact).norm()) < 1e-3 * term
