"""A small derived cell with compiled kernels: all steps of a window in one call, products included.

Legend: T steps, B streams, H hidden, N nodes. The same values as `derived.py`'s own form. While a
core's cache holds the cell's matrices, a library's call for each product costs more than the
product itself; larger cells go step by step (`derived_cpu.py`), by a library's products. Of a step
only the products are kept, in the precision they are rounded to: (B, 2H) = [c, z] of each state,
overwritten by their own gradients on the way back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rnnnas.lm.fast import cpu_library
from rnnnas.lm.fast.buffers import WORKSPACE
from rnnnas.lm.fast.cpu_library import tiled
from rnnnas.lm.fast.derived_plan import Plan
from rnnnas.lm.fast.matmul import multiply

# Elements of all matrices up to which a library's products, called one by one, are slower: as
# floats and as tiles (benchmarks/README.md).
LARGEST, LARGEST_TILED = 400_000, 20_000_000


def suits(hidden: int, nodes: int, *, low: bool = False) -> bool:
    """Whether a cell is small enough, with products in bfloat16 or not."""
    most = LARGEST_TILED if low and tiled() else LARGEST
    return 2 * (nodes + 1) * hidden * hidden <= most


class _Cell:
    """What forward and backward hand to the kernels: the cell's tables, its matrices and tensors.

    source[i], op[i]: of slot i, s0 first. mask (B, H), or None for ones.
    """

    def __init__(
        self, from_x: Tensor, h: Tensor, from_h: Tensor, nodes: Tensor, mask: Tensor, plan: Plan,
        low: bool,
    ) -> None:  # fmt: skip
        steps, streams, double = from_x.shape
        hidden, count = double // 2, len(plan.nodes)
        self.type = torch.bfloat16 if low else h.dtype
        self.low = low
        self.from_x, self.h = from_x.contiguous(), cpu_library.dense(h, streams, hidden)
        self.mask = mask.expand_as(h).contiguous() if mask.dim() else None
        self.source, ops, level, depth = [0], ["tanh"], [0, 1], [0]
        for group in plan.groups:
            self.source += [group.source] * group.size
            for op, low_end, end in group.runs:
                ops += [op] * (end - low_end)
            if depth[group.source] + 1 == depth[-1]:
                level[-1] += group.size
            else:
                level.append(level[-1] + group.size)
            depth += [depth[group.source] + 1] * group.size
        nodes = cpu_library.dense(nodes, count, hidden, double)
        self._matrices = [
            cpu_library.dense(from_h, hidden, double),
            *(nodes[i] for i in plan.nodes),
        ]
        rows = (
            level, self.source, [cpu_library.COLUMNS.index(op) for op in ops], plan.outputs,
            [matrix.data_ptr() for matrix in self._matrices],
        )  # fmt: skip
        self._tables = [torch.tensor(row, dtype=torch.int64) for row in rows]
        self.sizes = (steps, streams, hidden, len(level) - 1, len(plan.outputs))
        self.count = count

    @property
    def arguments(self) -> tuple[int, ...]:
        """Addresses of the tables, then of from_x, h and mask."""
        mask = 0 if self.mask is None else self.mask.data_ptr()
        tables = (table.data_ptr() for table in self._tables)
        return (*tables, self.from_x.data_ptr(), self.h.data_ptr(), mask)

    def factor(self, state: Tensor) -> Tensor:
        """States (..., B, H) as products take them."""
        return (state if self.mask is None else state * self.mask).to(self.type)


def evaluate(from_x: Tensor, h: Tensor, from_h: Tensor, nodes: Tensor, plan: Plan) -> Tensor:
    """All T steps without masks and gradients. from_x (T, B, 2H), h (B, H) → (T, B, H)."""
    cell = _Cell(from_x, h, from_h, nodes, h.new_ones(()), plan, low=False)
    return _forward(cell, keep=False)[0]


def _forward(cell: _Cell, *, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The outputs (T, B, H); and to keep states (N+1, T, B, H), products (N+1, T, B, 2H)."""
    steps, streams, hidden, *_ = cell.sizes
    slots = steps if keep else 1
    like = cell.h if cell.type == cell.h.dtype else cell.h.new_empty(0, dtype=cell.type)
    states = WORKSPACE.take(cell.h, cell.count + 1, slots, streams, hidden)
    product = WORKSPACE.take(like, cell.count + 1, slots, streams, 2 * hidden)
    outputs = cell.h.new_empty(steps, streams, hidden)
    cpu_library.function("unroll", cell.type)(
        *cell.sizes, keep, tiled(), *cell.arguments,
        states.data_ptr(), product.data_ptr(), outputs.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    if not keep:
        WORKSPACE.give(states, product)
    return outputs, states, product


class WholeUnroll(torch.autograd.Function):
    """As `derived._DerivedUnroll`, for tensors that are `cpu_library.usable` of small cells."""

    @staticmethod
    def forward(
        ctx: Any, from_x: Tensor, h: Tensor, from_h: Tensor, nodes: Tensor, mask: Tensor,
        plan: Plan, keep: bool, low: bool,
    ) -> Tensor:  # fmt: skip
        cell = _Cell(from_x, h, from_h, nodes, mask, plan, low)
        keep = keep and any(ctx.needs_input_grad)
        outputs, states, product = _forward(cell, keep=keep)
        if keep:
            ctx.save_for_backward(from_x, h, from_h, nodes, mask, outputs)
            ctx.buffers, ctx.plan, ctx.low = (states, product), plan, low
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from_x, h, from_h, nodes, mask, outputs = ctx.saved_tensors
        if ctx.buffers is None:
            raise RuntimeError("the fast cell's backward pass can run only once a forward pass")
        (states, product), ctx.buffers = ctx.buffers, None
        cell = _Cell(from_x, h, from_h, nodes, mask, ctx.plan, ctx.low)
        gradient = cpu_library.dense(gradient, *outputs.shape)
        grad_x, grad_h = torch.empty_like(cell.from_x), torch.empty_like(cell.h)
        cpu_library.function("unroll_back", cell.type)(
            *cell.sizes, tiled(), *cell.arguments,
            states.data_ptr(), outputs.data_ptr(), product.data_ptr(), gradient.data_ptr(),
            grad_x.data_ptr(), grad_h.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        grad_from_h = grad_nodes = None
        if ctx.needs_input_grad[2]:
            previous = cell.factor(torch.cat([h.unsqueeze(0), outputs[:-1]]))  # (T, B, H)
            grad_from_h = torch.empty_like(from_h)
            multiply(previous.flatten(0, 1).t(), product[0].flatten(0, 1), out=grad_from_h)
        if ctx.needs_input_grad[3]:
            grad_nodes = torch.empty_like(nodes)
            left, source = outputs, -1
            for slot, node in enumerate(ctx.plan.nodes, 1):
                if cell.source[slot] != source:  # slots of one source follow one another
                    source = cell.source[slot]
                    left = cell.factor(states[source])
                multiply(left.flatten(0, 1).t(), product[slot].flatten(0, 1), out=grad_nodes[node])
        WORKSPACE.give(states, product)
        return grad_x, grad_h, grad_from_h, grad_nodes, None, None, None, None
