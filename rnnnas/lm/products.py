"""The product of a whole window's rows with one matrix, in float32 or rounded to bfloat16.

Legend: T steps, B streams, D width of the rows, H hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def project(rows: Tensor, matrix: Tensor, *, low: bool = False) -> Tensor:
    """rows (T, B, D) times matrix (D, H) → (T, B, H), in the rows' own type.

    Args:
        low: multiply in bfloat16, forward and backward. Sums within a product are in float32 in
            the hardware; what comes out of it is rounded once. Can be differentiated once only.
    """
    if not low:
        return (rows.reshape(-1, rows.shape[-1]) @ matrix).view(*rows.shape[:-1], -1)
    product: Tensor = _Rounded.apply(rows, matrix)  # type: ignore[no-untyped-call]
    return product


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, matrix: Tensor) -> Tensor:
        a, m = rows.flatten(0, -2).bfloat16(), matrix.bfloat16()
        ctx.save_for_backward(a, m)
        ctx.dtype = rows.dtype
        return torch.mm(a, m).to(rows.dtype).view(*rows.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, m = ctx.saved_tensors
        g = slope.flatten(0, -2).bfloat16()
        grad_rows = grad_matrix = None
        if ctx.needs_input_grad[0]:
            grad_rows = torch.mm(g, m.t()).to(ctx.dtype).view(*slope.shape[:-1], -1)
        if ctx.needs_input_grad[1]:
            grad_matrix = torch.mm(a.t(), g).to(ctx.dtype)
        return grad_rows, grad_matrix
