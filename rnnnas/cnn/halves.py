"""The even pixels of images and those diagonal to them, with a backward pass that fills once.

Legend: B images, C channels, h and w pixels, h' = ceil(h/2), w' = ceil(w/2).

A factorised reduction sees a quarter of the pixels by one convolution and a quarter by another.
Convolutions of stride 2, a slice and a pad each have an image of full size, mostly zeros, for a
gradient, and the slice's is in another order of memory than the rest (benchmarks/README.md). Here
both quarters are taken once, and their gradients are put into one image. Taking and putting are
each other's gradient, so that they can be differentiated again and again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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
