"""The cell under a mixture with its directional derivative: all steps of a window in one call.

Legend: T steps, B streams, H hidden, N nodes. The same values as `tangent_mixture.py`'s own form,
for cells all of whose units are computed, as `mixture_whole.py` has those without tangents.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rnnnas.lm.fast import cpu_library
from rnnnas.lm.fast.buffers import WORKSPACE
from rnnnas.lm.fast.cpu_library import tiled
from rnnnas.lm.fast.mixture_whole import MixedCell, gradient_of_mixture
from rnnnas.lm.search_cell import EPSILON, Route
from rnnnas.nas.space import CellSpace


class WholeDual(torch.autograd.Function):
    """As `tangent_mixture._DualUnroll`, for what `mixture_whole.suits` and one process."""

    @staticmethod
    def forward(
        ctx: Any, from_x: Tensor, from_dx: Tensor, h: Tensor, from_h: Tensor, dfrom_h: Tensor,
        nodes: Tensor, dnodes: Tensor, weights: Tensor, mask: Tensor, space: CellSpace,
        ways: tuple[Route, ...], low: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        cell = MixedCell(
            from_x, h, from_h, nodes, weights, mask, space, ways, low, (dfrom_h, dnodes)
        )
        keep = any(ctx.needs_input_grad)
        steps, streams, hidden, count = cell.sizes
        from_dx = cpu_library.dense(from_dx, *cell.from_x.shape)
        slots = steps if keep else 1
        like = h.new_empty(0, dtype=cell.type)
        wide = cell.blocks * cell.lanes
        made = slots if keep else 0
        buffers = [
            *(WORKSPACE.take(h, slots, count + 1, streams, wide) for _ in range(2)),
            *(WORKSPACE.take(h, slots, count + 1, wide) for _ in range(2)),
            *(WORKSPACE.take(like, made, cell.edges, streams, 2 * wide) for _ in range(2)),
        ]
        outputs, tangents = (h.new_empty(steps, streams, hidden) for _ in range(2))
        cpu_library.function("dual_window", cell.type)(
            *cell.sizes, keep, tiled(), *cell.tables, EPSILON, *cell.tensors, from_dx.data_ptr(),
            *(t.data_ptr() for t in (*buffers, outputs, tangents)), torch.get_num_threads(),
        )  # fmt: skip
        if keep:
            ctx.save_for_backward(weights, from_dx, outputs, tangents)
            ctx.buffers, ctx.cell, ctx.known = buffers, cell, (space, ways)
        else:
            WORKSPACE.give(*buffers)
        return outputs, tangents

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_value: Tensor, of_tangent: Tensor) -> tuple[Tensor | None, ...]:
        weights, from_dx, outputs, tangents = ctx.saved_tensors
        if ctx.buffers is None:
            raise RuntimeError("the cell's backward pass can run only once a forward pass")
        buffers, ctx.buffers = ctx.buffers, None
        cell: MixedCell = ctx.cell
        space, ways = ctx.known
        of_value, of_tangent = (
            cpu_library.dense(t, *outputs.shape) for t in (of_value, of_tangent)
        )
        grad_x, grad_dx = (torch.empty_like(cell.from_x) for _ in range(2))
        dots = outputs.new_empty(cell.blocks, cell.edges, len(cpu_library.COLUMNS))
        states, dstates, rstd, slant, product, dproduct = buffers
        tensors = (
            states, dstates, rstd, slant, outputs, tangents, product, dproduct, of_value,
            of_tangent, grad_x, grad_dx, dots,
        )  # fmt: skip
        cpu_library.function("dual_window_back", cell.type)(
            *cell.sizes, tiled(), *cell.tables, *cell.tensors, from_dx.data_ptr(),
            *(t.data_ptr() for t in tensors), torch.get_num_threads(),
        )  # fmt: skip
        WORKSPACE.give(*buffers)
        sums = dots.sum(0, dtype=torch.float64)[1:]
        grad_weights = gradient_of_mixture(sums, space, ways, weights)
        return grad_x, grad_dx, *(None,) * 5, grad_weights, *(None,) * 4
