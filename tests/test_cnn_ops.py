"""The operations of image cells: sizes, and their values by sums written out here."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from rnnnas.cnn.ops import (
    DERIVED,
    SEARCH,
    Conv,
    FactorisedReduction,
    Identity,
    Linear,
    Norm,
    ReluConvNorm,
    operation,
)
from rnnnas.cnn.space import FURTHER, OPERATIONS
from rnnnas.errors import UsageError

DOUBLE = torch.float64
OPS = [*OPERATIONS[1:], *FURTHER]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=seeded(seed))


def convolve(x: Tensor, weight: Tensor, stride: Any, dilation: int = 1, groups: int = 1) -> Tensor:
    """The sum over taps; taps beyond the border count as zero, the middle one lies on the pixel."""
    (b, _, h, w), (outputs, each, down, across) = x.shape, weight.shape
    rows, columns = range(0, h, stride[0]), range(0, w, stride[1])
    out = torch.zeros(b, outputs, len(rows), len(columns), dtype=x.dtype)
    for (i, y0), (j, x0), o in itertools.product(
        enumerate(rows), enumerate(columns), range(outputs)
    ):
        first = o // (outputs // groups) * each
        for u, v in itertools.product(range(down), range(across)):
            y, z = y0 + dilation * (u - down // 2), x0 + dilation * (v - across // 2)
            if 0 <= y < h and 0 <= z < w:
                out[:, o, i, j] += x[:, first : first + each, y, z] @ weight[o, :, u, v]
    return out


def normalised(x: Tensor) -> Tensor:
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


def separable(x: Tensor, module: Any, stride: int, dilation: int = 1) -> Tensor:
    c = x.shape[1]
    x = convolve(x.clamp(min=0), module.depthwise.weight, (stride, stride), dilation, c)
    return normalised(convolve(x, module.pointwise.weight, (1, 1)))


def neighbours(x: Tensor, stride: int, reduce: Any) -> Tensor:
    """`reduce` over the up to nine pixels around every (stride-th) pixel."""
    h, w = x.shape[2:]
    rows = [
        torch.stack([reduce(x[:, :, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2])
                     for j in range(0, w, stride)], -1)
        for i in range(0, h, stride)
    ]  # fmt: skip
    return torch.stack(rows, -2)


def defined(op: str, module: Any, x: Tensor, stride: int) -> Tensor:
    """What `op` is, in a search."""
    if op == "max_pool_3x3":
        return normalised(neighbours(x, stride, lambda part: part.amax((2, 3))))
    if op == "avg_pool_3x3":
        return normalised(neighbours(x, stride, lambda part: part.mean((2, 3))))
    if op == "skip_connect" and stride == 1:
        return x
    if op == "skip_connect":
        r = torch.zeros(*x.shape[:2], x.shape[2] + 2, x.shape[3] + 2, dtype=x.dtype)
        r[:, :, : x.shape[2], : x.shape[3]] = x.clamp(min=0)
        size = [-(-n // 2) for n in x.shape[2:]]
        even, odd = r[:, :, 0::2, 0::2], r[:, :, 1::2, 1::2]
        halves = [
            torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], part[:, :, : size[0], : size[1]])
            for conv, part in ((module.even, even), (module.odd, odd))
        ]
        return normalised(torch.cat(halves, 1))
    if op.startswith("sep_conv"):
        return separable(separable(x, module.first, stride), module.second, 1)
    if op.startswith("dil_conv"):
        return separable(x, module, stride, 2)
    row = convolve(x.clamp(min=0), module.row.weight, (1, stride))
    return normalised(convolve(row, module.column.weight, (stride, 1)))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("size", [(4, 4), (5, 3)])
def test_operations_are_what_they_are_defined_as(op: str, stride: int, size: Any) -> None:
    module = operation(op, 4, stride, SEARCH, seeded(1)).double()
    x = images(2, 4, *size)
    out = module(x, True)
    assert out.shape == (2, 4, -(-size[0] // stride), -(-size[1] // stride))
    torch.testing.assert_close(out, defined(op, module, x, stride), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(module(x, False), out, rtol=0, atol=0)  # search: always its batch


@pytest.mark.parametrize("op", OPS)
def test_kernels_have_their_sizes(op: str) -> None:
    module = operation(op, 4, 1, DERIVED, seeded(1))
    kernels = sorted(p.shape[2:].numel() for n, p in module.named_parameters() if p.dim() == 4)
    side = 0 if op == "skip_connect" else int(op[-1])
    expected = {"sep": [1, 1, side**2, side**2], "dil": [1, side**2], "con": [7, 7]}
    assert kernels == expected.get(op[:3], [])


def test_a_search_alone_normalises_pools_and_owns_no_statistics() -> None:
    x = images(3, 4, 6, 6)
    for op in ("max_pool_3x3", "avg_pool_3x3"):
        derived = operation(op, 4, 1, DERIVED, seeded(0))(x, True)
        torch.testing.assert_close(
            normalised(derived), operation(op, 4, 1, SEARCH, seeded(0))(x, True)
        )
    for op in OPS:
        module = operation(op, 4, 2, SEARCH, seeded(0))
        assert not list(module.buffers())
        assert all(p.dim() == 4 for p in module.parameters())  # convolutions only


def test_derived_statistics_run_with_the_training_and_are_used_in_evaluation() -> None:
    norm = Norm(3, DERIVED).double()
    x, y = images(4, 3, 5, 5) * 3 + 1, images(4, 3, 5, 5, seed=1)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
        norm.bias.copy_(torch.tensor([0.5, 0.0, -1.0]))
    scale, shift = (t.detach().view(1, 3, 1, 1) for t in (norm.weight, norm.bias))
    torch.testing.assert_close(norm(x, True), normalised(x) * scale + shift)
    mean, variance = 0.1 * x.mean((0, 2, 3)), 0.9 + 0.1 * x.transpose(0, 1).flatten(1).var(1)
    torch.testing.assert_close(norm.mean, mean)
    torch.testing.assert_close(norm.variance, variance)
    expected = (y - mean.view(1, 3, 1, 1)) / (variance.view(1, 3, 1, 1) + 1e-5).sqrt()
    torch.testing.assert_close(norm(y, False), expected * scale + shift)
    torch.testing.assert_close(norm.mean, mean)  # evaluation leaves them


def test_weights_start_where_torch_starts_them_and_a_seed_gives_the_same() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    conv, same = (Conv(8, 16, (5, 5), seeded(3), groups=4) for _ in range(2))
    linear = Linear(400, 30, seeded(3))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(conv.weight, same.weight)
    pairs = [(conv, torch.nn.Conv2d(8, 16, 5, groups=4)), (linear, torch.nn.Linear(400, 30))]
    for (ours, theirs), fan_in in zip(pairs, (50, 400), strict=True):
        assert ours.weight.shape == theirs.weight.shape
        for weight in (ours.weight.detach(), theirs.weight.detach()):  # U(-r, r), r = fan_in^-1/2
            assert 0.97 * fan_in**-0.5 < float(weight.abs().max()) <= fan_in**-0.5
            assert float(weight.std()) == pytest.approx((3 * fan_in) ** -0.5, rel=0.08)
    assert 0.04 < linear.bias.abs().max().item() <= 0.05


def test_entries_change_widths_and_sizes() -> None:
    x = images(2, 6, 7, 8)
    narrow = ReluConvNorm(6, 4, SEARCH, seeded(0)).double()
    expected = normalised(convolve(x.clamp(min=0), narrow.conv.weight, (1, 1)))
    torch.testing.assert_close(narrow(x, True), expected)
    assert FactorisedReduction(6, 5, SEARCH, seeded(0)).double()(x, True).shape == (2, 5, 4, 4)


REACH = """
import torch
from rnnnas.cnn.ops import Conv
for inputs in (1, 2, 3, 4, 6):
    conv = Conv(inputs, 4, (1, 1), torch.Generator().manual_seed(1), stride=(2, 2))
    x = torch.randn(8, inputs, 16, 16).contiguous(memory_format=torch.channels_last)
    for _ in range(60):
        conv.weight.grad = None
        conv(x).square().sum().backward()
    own, seen = conv.weight.detach().double().flatten(1), x[:, :, ::2, ::2].double()
    out = torch.einsum("oi,bihw->bohw", own, seen)
    wanted = 2 * torch.einsum("bohw,bihw->oi", out, seen)
    torch.testing.assert_close(conv.weight.grad.double().flatten(1), wanted, rtol=1e-4, atol=1e-4)
"""


def test_few_channels_are_not_written_beyond_their_memory() -> None:
    """torch's own gradient of this convolution ends its process; hence one of its own."""
    done = subprocess.run([sys.executable, "-c", REACH], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_unknown_operations_are_refused() -> None:
    assert isinstance(operation("skip_connect", 4, 1, SEARCH, seeded(0)), Identity)
    for op in ("none", "conv_3x3"):
        with pytest.raises(UsageError, match=op):
            operation(op, 4, 1, SEARCH, seeded(0))
