"""The fast forms of the image network against the readable ones: values, gradients, twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rnnnas.cnn import fast_batch_norm
from rnnnas.cnn.fast_convolutions import depthwise
from rnnnas.cnn.model import CnnConfig, ConvNet
from rnnnas.cnn.noise import SILENCE
from rnnnas.cnn.ops import Conv
from rnnnas.cnn.space import image_spaces
from rnnnas.cnn.zoo import ZOO
from rnnnas.nas.relax.base import Mixture
from rnnnas.types import Batch

DOUBLE = torch.float64


@pytest.fixture(autouse=True, params=[1, fast_batch_norm.LEAST], ids=["own norm", "torch's norm"])
def least(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The own batch normalisation serves images as small as these, or does not."""
    monkeypatch.setattr(fast_batch_norm, "LEAST", request.param)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def results(path: Any, cells: Any, p: Any, noisy: bool, **settings: Any) -> list[Tensor]:
    """The loss, its gradients in the mixtures, images and weights."""
    config = CnnConfig(channels=4, layers=3, path=path, **settings)
    net = ConvNet(config, cells, 5, generator=seeded(0)).double()
    draws = seeded(1)
    images = torch.randn(3, 3, 7, 6, dtype=DOUBLE, generator=draws).requires_grad_()
    batch = Batch(images, torch.randint(5, (3,), generator=draws))
    noise = net.noise(batch, seeded(2)) if noisy else None
    loss = net(batch, None, p, noise)
    leaves = [*(m.weights for m in p.values()), images, *net.parameters()]
    grads = torch.autograd.grad(loss.objective, leaves, allow_unused=True)
    return [loss.value, *(torch.zeros(()) if g is None else g for g in grads), *net.buffers()]


PATHS = {
    "all": None,
    "one a node": ((0, 4), (3, 3), (5, 1), (10, 7)),
    "two of an edge, and none": ((1, 0), (1, 5), (4, 0), (7, 2), (7, 3), (12, 4)),
}


@pytest.mark.parametrize("paths", PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize(("partial", "dropout"), [(1, 0.0), (2, 0.3)])
def test_the_fast_search_is_the_readable_one(paths: Any, partial: int, dropout: float) -> None:
    draws = seeded(4)
    p = {
        name: Mixture(torch.rand(14, 8, dtype=DOUBLE, generator=draws).requires_grad_(), paths)
        for name in image_spaces()
    }
    both = [
        results(path, image_spaces(), p, True, partial=partial, skip_dropout=dropout)
        for path in ("fast", "reference")
    ]
    for fast, slow in zip(*both, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("noisy", [True, False])
@pytest.mark.parametrize("name", ["DARTS_V2", "AMOEBANET"])
def test_the_fast_derived_network_is_the_readable_one(name: str, noisy: bool) -> None:
    cells = ZOO[name].genotype
    both = [
        results(path, cells, {}, noisy, auxiliary=True, drop_path=0.3)
        for path in ("fast", "reference")
    ]
    for fast, slow in zip(*both, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("k", [3, 5, 7])
def test_depthwise_and_its_gradients_and_theirs(k: int, dilation: int) -> None:
    draws = seeded(k)
    x = torch.randn(2, 3, 7, 6, dtype=DOUBLE, generator=draws)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    w = torch.randn(3, 1, k, k, dtype=DOUBLE, generator=draws).requires_grad_()
    ours = depthwise(x, w, dilation)
    theirs = F.conv2d(x, w, None, 1, dilation * (k - 1) // 2, dilation, 3)
    seed = torch.randn(ours.shape, dtype=DOUBLE, generator=draws)
    torch.testing.assert_close(ours, theirs)
    twice = []
    for out in (ours, theirs):
        first = torch.autograd.grad((out.tanh() * seed).sum(), (x, w), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), (x, w))
        twice.append([*first, *second])
    for a, b in zip(*twice, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [(8, 6), (7, 6), (5, 9)])
@pytest.mark.parametrize("k", [3, 5])
def test_a_dilated_kernel_of_stride_two_is_a_plain_one_of_every_other_pixel(
    k: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rnnnas.cnn import ops

    conv = Conv(3, 3, (k, k), seeded(1), stride=(2, 2), dilation=2, groups=3).double()
    x = torch.randn(2, 3, *size, dtype=DOUBLE, generator=seeded(k)).requires_grad_()
    slow = F.conv2d(x, conv.weight, None, 2, k - 1, 2, 3)
    torch.testing.assert_close(conv(x), slow)
    seen: list[tuple[Any, ...]] = []

    def spy(x: Tensor, w: Tensor, b: None, *rest: Any) -> Tensor:
        seen.append((tuple(x.shape[2:]), *rest))
        return original(x, w, b, *rest)

    original = F.conv2d
    monkeypatch.setattr(ops.F, "conv2d", spy)
    conv.quick = True
    fast = conv(x)
    half = tuple(-(-n // 2) for n in size)
    assert seen[0][0] == half and all(r[1] in (1, (1, 1)) and r[3] == 1 for r in seen)
    seed = torch.randn(fast.shape, dtype=DOUBLE, generator=seeded(2))
    both = [torch.autograd.grad((out * seed).sum(), (x, conv.weight)) for out in (fast, slow)]
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_the_own_backward_pass_runs_where_torchs_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    from rnnnas.cnn import ops

    seen: list[tuple[int, int]] = []

    def spy(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
        seen.append((weight.shape[2], dilation))
        return depthwise(x, weight, dilation)

    monkeypatch.setattr(ops, "depthwise", spy)
    batch = Batch(torch.randn(2, 3, 8, 8), torch.tensor([0, 1]))
    for path, expected in (("fast", {(5, 1), (3, 2), (5, 2)}), ("reference", set())):
        net = ConvNet(CnnConfig(channels=4, layers=2, path=path), image_spaces(), 2,
                      generator=seeded(0))  # fmt: skip
        p = {name: Mixture(torch.full((14, 8), 0.1)) for name in image_spaces()}
        net(batch, None, p, SILENCE)
        assert set(seen) == expected
        seen.clear()
    assert all(not c.quick for c in net.modules() if isinstance(c, Conv))
