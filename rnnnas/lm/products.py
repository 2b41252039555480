"""A product with a matrix whose factors may be rounded to bfloat16.

Legend: T steps, B streams, D inputs, W columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def project(inputs: Tensor, matrix: Tensor, low: bool) -> Tensor:
    """inputs (T, B, D) times matrix (D, W): all steps at once, for it needs no recurrence.

    Args:
        low: multiply in bfloat16, forward and back; what comes out, gradients too, has the inputs'
            own type again. Without it the result can be differentiated twice, with it once.

    Returns:
        (T, B, W).
    """
    rows = inputs.flatten(0, 1)
    if low:
        product: Tensor = _RoundedProduct.apply(rows, matrix)  # type: ignore[no-untyped-call]
    else:
        product = rows @ matrix
    return product.view(*inputs.shape[:2], -1)


class _RoundedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, matrix: Tensor) -> Tensor:
        ctx.types = rows.dtype, matrix.dtype
        rounded = rows.bfloat16(), matrix.bfloat16()
        ctx.save_for_backward(*rounded)
        return torch.mm(*rounded).to(rows.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        rows, matrix = ctx.saved_tensors
        slope = slope.bfloat16()
        need_rows, need_matrix = ctx.needs_input_grad
        of_rows = torch.mm(slope, matrix.t()).to(ctx.types[0]) if need_rows else None
        of_matrix = torch.mm(rows.t(), slope).to(ctx.types[1]) if need_matrix else None
        return of_rows, of_matrix
