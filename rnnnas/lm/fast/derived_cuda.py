"""The fast form of a derived cell on a device: the same values as `derived.py`'s own.

Legend: T steps, B streams, H hidden, W = H rounded up to whole tiles, N nodes. All buffers of the
window lie slot by slot, as `plan` numbers the states, so that each matrix' gradient is one product
over all steps; between H and W they hold zeros. Of a step are kept the products, overwritten by
their own gradients on the way back, the states, and what the next products took of these.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rnnnas.lm.fast.buffers import WORKSPACE
from rnnnas.lm.fast.cpu_library import COLUMNS
from rnnnas.lm.fast.derived_plan import Plan
from rnnnas.lm.fast.matmul import multiply
from rnnnas.lm.fast.triton_support import TILE, cut, padded, precision, rows, table, wide

# Tiles: of products, streams x units x what is summed at once, in bfloat16 and in float32; of
# element-wise work. What others gave: benchmarks/README.md.
PRODUCT = {"ROWS": 64, "UNITS": 16, "DEEP": 128, "num_warps": 4, "num_stages": 4}
BACK = {"ROWS": 64, "UNITS": 16, "DEEP": 128, "num_warps": 4, "num_stages": 4}
WHOLE = {"ROWS": 32, "UNITS": 16, "DEEP": 64, "num_warps": 4, "num_stages": 4}
WHOLE_BACK = {"ROWS": 32, "UNITS": 16, "DEEP": 128, "num_warps": 4, "num_stages": 3}
FLAT = {"ROWS": 4, "UNITS": 64}


class _Layout:
    """What forward and backward have in common: padded factors, tables, and the kernels' tiles.

    matrices (N+1, W, 2, W): of the first state, then slot by slot; see `triton_support.padded`.
    like: of the products' type. mask (B, W), or None for ones.
    """

    def __init__(
        self, h: Tensor, from_h: Tensor, nodes: Tensor, mask: Tensor, plan: Plan, low: bool
    ) -> None:
        from rnnnas.lm.fast import triton_derived

        self.kernels = triton_derived
        self.streams, self.hidden = h.shape
        self.wide = wide(self.hidden)
        self.plan = plan
        self.type = torch.bfloat16 if low else h.dtype
        self.like = h.new_empty(0, dtype=self.type)
        self.matrices = padded(torch.stack([from_h, *(nodes[i] for i in plan.nodes)]), self.type)
        self.mask = None
        if mask.dim():
            self.mask = F.pad(mask, (0, self.wide - self.hidden)).contiguous()
        ops = [COLUMNS.index("tanh")]
        for group in plan.groups:
            for op, start, end in group.runs:
                ops += [COLUMNS.index(op)] * (end - start)
        flags = [int(slot in plan.outputs) for slot in range(len(plan.nodes) + 1)]
        self.ops, self.outputs, self.flags = (
            table(tuple(row), h.device) for row in (ops, plan.outputs, flags)
        )
        self.options = {
            "WIDE": self.wide, "MASKED": self.mask is not None, "PRECISION": precision(self.like),
        }  # fmt: skip
        tiles = (WHOLE, WHOLE_BACK) if self.type == torch.float32 else (PRODUCT, BACK)
        self.tile, self.back = (
            {**tile, "ROWS": rows(self.streams, tile["ROWS"])} for tile in tiles
        )
        if self.wide % self.tile["DEEP"]:
            self.tile["DEEP"] = TILE

    def grid(self, tile: dict[str, int], nodes: int = 1) -> tuple[int, int, int]:
        """One instance a tile of streams and units, for each of some nodes."""
        return self.wide // tile["UNITS"], -(-self.streams // tile["ROWS"]), nodes


class DeviceUnroll(torch.autograd.Function):
    """As `derived._DerivedUnroll`, for tensors that are `triton_support.usable`."""

    @staticmethod
    def forward(
        ctx: Any, from_x: Tensor, h: Tensor, from_h: Tensor, nodes: Tensor, mask: Tensor,
        plan: Plan, keep: bool, low: bool,
    ) -> Tensor:  # fmt: skip
        steps, streams, double = from_x.shape
        from_x, h = from_x.contiguous(), h.contiguous()
        own = _Layout(h, from_h, nodes, mask, plan, low)
        keep = keep and any(ctx.needs_input_grad)
        slots = steps if keep else 1
        count, size = len(plan.nodes), own.wide
        states = WORKSPACE.take(h, count + 1, slots, streams, size)
        inner = WORKSPACE.take(own.like, count + 1, slots, streams, size)  # states times the mask
        carried = WORKSPACE.take(own.like, slots + 1, streams, size)  # h before each step, likewise
        products = WORKSPACE.take(own.like, count + 1, slots, streams, 2, size)
        outputs = from_x.new_empty(steps, streams, double // 2)
        carried[0] = F.pad(h if own.mask is None else h * mask, (0, size - h.shape[1]))
        strides = (products.stride(0), states.stride(0))
        flat = {"WIDE": size, "MASKED": own.mask is not None, **FLAT}
        product = {**own.options, **own.tile}
        gate, mean = own.kernels.gate, own.kernels.mean
        before = h
        for t in range(steps):
            slot, after = (t, t + 1) if keep else (0, 0)
            gate[own.grid(own.tile)](
                carried[slot], own.matrices, from_x[t], before, own.mask, own.ops,
                products[0, slot], states[0, slot], inner[0, slot],
                streams, own.hidden, own.hidden, *strides, **product,
                ADDED=True,
            )  # fmt: skip
            for group in plan.groups:
                gate[own.grid(own.tile, group.size)](
                    inner[group.source, slot], own.matrices[group.start], None,
                    states[group.source, slot], own.mask, own.ops[group.start :],
                    products[group.start, slot], states[group.start, slot],
                    inner[group.start, slot], streams, own.hidden, size, *strides,
                    **product, ADDED=False,
                )  # fmt: skip
            mean[own.grid(FLAT)](
                states[0, slot], own.outputs, own.mask, outputs[t], carried[after], streams,
                own.hidden, len(plan.outputs), 1 / len(plan.outputs), states.stride(0),
                **flat,
            )  # fmt: skip
            before = outputs[t]
        if keep:
            ctx.save_for_backward(from_x, h, from_h, nodes, outputs)
            ctx.own, ctx.buffers = own, (states, inner, carried, products)
        else:
            WORKSPACE.give(states, inner, carried, products)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from_x, h, from_h, nodes, outputs = ctx.saved_tensors
        if ctx.buffers is None:
            raise RuntimeError("the fast cell's backward pass can run only once a forward pass")
        (states, inner, carried, products), ctx.buffers = ctx.buffers, None
        own: _Layout = ctx.own
        ctx.own = None
        plan, size, hidden = own.plan, own.wide, own.hidden
        steps, streams, _ = outputs.shape
        gradient = gradient.contiguous()
        gradients = WORKSPACE.take(states, len(states), streams, size)
        onward = states.new_zeros(streams, size)  # the gradient of h from the step after
        grad_x = torch.empty_like(from_x)
        options = {"WIDE": size, **FLAT}
        product = {**own.options, **own.back}
        flat, tiles = own.grid(FLAT), own.grid(own.back)
        gate_back, product_back = own.kernels.gate_back, own.kernels.product_back
        for t in reversed(range(steps)):
            own.kernels.spread[flat](
                gradient[t], onward, own.flags, gradients, streams, hidden, len(states),
                1 / len(plan.outputs), **options,
            )  # fmt: skip
            for group in reversed(plan.groups):
                at, reach = products[group.start, t], gradients[group.source]
                gate_back[flat](
                    at, None, states[group.source, t], own.ops[group.start :],
                    gradients[group.start], reach, None, streams, hidden, group.size, size,
                    products.stride(0), **options, ADDED=False,
                )  # fmt: skip
                product_back[tiles](
                    at, own.matrices[group.start], own.mask, reach, streams, group.size,
                    products.stride(0), **product,
                )  # fmt: skip
            gate_back[flat](
                products[0, t], from_x[t], outputs[t - 1] if t else h, own.ops, gradients[0],
                onward, grad_x[t], streams, hidden, 1, hidden, products.stride(0), **options,
                ADDED=True,
            )  # fmt: skip
            product_back[tiles](
                products[0, t], own.matrices, own.mask, onward, streams, 1, products.stride(0),
                **product,
            )  # fmt: skip
        grad_from_h = grad_nodes = None
        if ctx.needs_input_grad[2]:
            grad_from_h = _gradient(carried[:steps], products[0], hidden).to(from_h.dtype)
        if ctx.needs_input_grad[3]:
            grad_nodes = torch.empty_like(nodes)
            for group in plan.groups:
                for slot in range(group.start, group.start + group.size):
                    node = grad_nodes[plan.nodes[slot - 1]]
                    node.copy_(_gradient(inner[group.source], products[slot], hidden))
        WORKSPACE.give(states, inner, carried, products, gradients)
        return grad_x, onward[:, :hidden], grad_from_h, grad_nodes, None, None, None, None


def _gradient(left: Tensor, right: Tensor, hidden: int) -> Tensor:
    """A matrix' gradient (H, 2H) by its factor (T, B, W) and its product's (T, B, 2, W)."""
    return cut(multiply(left.flatten(0, 1).t(), right.flatten(2).flatten(0, 1)), hidden)
