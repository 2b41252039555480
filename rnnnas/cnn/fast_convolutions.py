"""A convolution of every channel by itself, with a backward pass of two forward convolutions.

Legend: B images, C channels, h and w pixels, k kernel, p zeros around, d dilation.

On a CPU torch's own backward pass of such a convolution is 3 to 20 times as slow as its forward
pass where the kernel is 5x5 or dilated (benchmarks/README.md). Both gradients are convolutions of
the same kind: that of the image takes the turned kernel, and that of the kernel takes the image
and, as a kernel of h x w, the gradient that arrives. Both are written in torch's operations, so
that they can be differentiated again.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        return _convolve(x, weight, dilation)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        (grad,) = grads
        for_x = for_weight = None
        if ctx.needs_input_grad[0]:
            for_x = depthwise(grad, weight.flip(2, 3), ctx.dilation)
        if ctx.needs_input_grad[1]:
            for_weight = _correlate(x, grad, weight.shape[2], ctx.dilation)
        return for_x, for_weight, None


def _convolve(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    around = dilation * (weight.shape[2] - 1) // 2
    return F.conv2d(x, weight, None, 1, around, dilation, weight.shape[0])


def _correlate(x: Tensor, grad: Tensor, k: int, d: int) -> Tensor:
    """G[c, u, v] = Σ_b,y,z x[b, c, y + d u - p, z + d v - p] grad[b, c, y, z]. (C, 1, k, k)."""
    b, c, h, w = grad.shape
    p = d * (k - 1) // 2
    planes, kernels = x.reshape(1, b * c, h, w), grad.reshape(b * c, 1, h, w)
    each = F.conv2d(planes, kernels, None, d, p, 1, b * c)
    return each.view(b, c, 1, k, k).sum(0)


def depthwise(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """x (B, C, h, w) by weight (C, 1, k, k), k odd, at stride 1 and its own size."""
    out: Tensor = _Depthwise.apply(x, weight, dilation)  # type: ignore[no-untyped-call]
    return out


ORDER = torch.channels_last


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (B, C, h, w) → the pixels (2i, 2j), and (2i + 1, 2j + 1) or zeros beyond the border.

    Both are (B, C, h', w'), channels-last.
    """
    even, odd = _Take.apply(x)  # type: ignore[no-untyped-call]
    return even, odd


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.size = h, w = x.shape[2:]
        even = x[:, :, ::2, ::2].contiguous(memory_format=ORDER)
        odd = x[:, :, 1::2, 1::2]
        if h % 2 or w % 2:
            inner, odd = odd, torch.zeros_like(even, memory_format=ORDER)
            odd[:, :, : h // 2, : w // 2] = inner
        return even, odd.contiguous(memory_format=ORDER)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x: Tensor = _Put.apply(*grads, ctx.size)  # type: ignore[no-untyped-call]
        return x


class _Put(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, even: Tensor, odd: Tensor, size: tuple[int, int]) -> Tensor:
        h, w = size
        b, c = even.shape[:2]
        x = even.new_zeros((b, h, w, c)).permute(0, 3, 1, 2)
        x[:, :, ::2, ::2] = even
        x[:, :, 1::2, 1::2] = odd[:, :, : h // 2, : w // 2]
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        return *halves(grads[0]), None
