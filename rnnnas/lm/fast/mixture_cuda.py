"""The fast form of the cell under a mixture on a device: the same values as `mixture.py`'s own.

Legend: T steps, B streams, H hidden, U units computed, HW and UW = H and U rounded up to whole
tiles, N nodes, E edges, O operations, n computed edges of a node. All buffers of the window lie
slot by slot, so that a matrix' gradient is one product over all steps; between U and UW, or H and
HW, they hold zeros. Products are kept, and overwritten by their own gradients on the way back.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rnnnas.lm.fast.buffers import WORKSPACE
from rnnnas.lm.fast.cpu_library import COLUMNS
from rnnnas.lm.fast.known import STREAMS as STREAMS
from rnnnas.lm.fast.matmul import accumulate, multiply
from rnnnas.lm.fast.triton_support import cut, padded, precision, rows, table, wide
from rnnnas.lm.search_cell import EPSILON, Route, picked, stretches
from rnnnas.nas.space import CellSpace

# Tiles: of products, streams x units x what is summed at once, in bfloat16 and in float32; of
# statistics, which hold all streams; of element-wise work. What others gave: benchmarks/README.md.
PRODUCT = {"ROWS": 64, "UNITS": 32, "DEEP": 64, "num_warps": 4, "num_stages": 4}
BACK = {"ROWS": 64, "UNITS": 64, "DEEP": 64, "num_warps": 4, "num_stages": 4}
WHOLE = {"ROWS": 64, "UNITS": 32, "DEEP": 64, "num_warps": 4, "num_stages": 4}
WHOLE_BACK = {"ROWS": 32, "UNITS": 64, "DEEP": 64, "num_warps": 4, "num_stages": 4}
STRIP = {"UNITS": 2, "num_warps": 4}
BLOCK = {"ROWS": 4, "UNITS": 32, "num_warps": 1}
FLAT = {"ROWS": 4, "UNITS": 64}


class _Layout:
    """What forward and backward have in common.

    from_h (HW, 2, HW), matrices (N, UW, 2, UW): see `triton_support.padded`. like: of the products'
    type. mask (B, HW), or None for ones. taken, sources: of each node, the slots of its computed
    edges' predecessors, here and on the device. shares (E', 5): of all computed edges; node i's
    begin at `starts[i]`.
    """

    def __init__(
        self, h: Tensor, from_h: Tensor, nodes: Tensor, weights: Tensor, mask: Tensor,
        space: CellSpace, ways: tuple[Route, ...], low: bool,
    ) -> None:  # fmt: skip
        from rnnnas.lm.fast import triton_derived, triton_mixture

        self.kernels, self.others = triton_mixture, triton_derived
        self.streams, self.hidden = h.shape
        self.units = nodes.shape[1]
        self.full, self.wide = wide(self.hidden), wide(self.units)
        self.type = torch.bfloat16 if low else h.dtype
        self.like = h.new_empty(0, dtype=self.type)
        self.from_h, self.matrices = padded(from_h, self.type), padded(nodes, self.type)
        self.mask = None
        if mask.dim():
            self.mask = F.pad(mask, (0, self.full - self.hidden)).contiguous()
        device = h.device
        self.counts = [len(route) for route in ways]
        self.starts = [sum(self.counts[:i]) for i in range(len(ways))]
        self.taken = [[space.edges[edge][0] for edge, _ in route] for route in ways]
        self.sources = [table(tuple(row), device) for row in self.taken]
        self.zero = table((0,), device)
        self.edges = [edge for route in ways for edge, _ in route]
        # Which columns an operation's weight counts for, and which operations an edge computes.
        columns = [
            tuple(float(name in ("mass", op)) if op in COLUMNS else 0.0 for name in COLUMNS)
            for op in space.ops
        ]
        self.columns = table(tuple(columns), device).to(h.dtype)
        everything = range(len(space.ops))
        allowed = [
            table(tuple(tuple(float(o in ops) for o in everything) for _, ops in route), device)
            for route in ways
            if route
        ]
        self.allowed = torch.cat(allowed).to(h.dtype) if allowed else weights.new_zeros(0)
        if allowed:
            self.shares = (picked(weights, self.edges) * self.allowed) @ self.columns
        self.start = table((1.0, 1.0, 0.0, 0.0, 0.0), device).to(h.dtype)  # tanh, of all
        self.flags = table((0, *(1 for _ in ways)), device)
        most = 1 << (self.streams - 1).bit_length()
        self.strip = {"ROWS": most, **STRIP}
        self.strips = (self.full // STRIP["UNITS"],)
        self.tile, self.back = (
            {**tile, "ROWS": rows(self.streams, tile["ROWS"]), "PRECISION": precision(self.like)}
            for tile in ((WHOLE, WHOLE_BACK) if self.type == torch.float32 else (PRODUCT, BACK))
        )
        self.flat = (self.full // FLAT["UNITS"], -(-self.streams // FLAT["ROWS"]))

    def blocks(self, edges: int) -> tuple[int, int, int]:
        """Of element-wise work on all units of some edges."""
        return self.full // BLOCK["UNITS"], -(-self.streams // BLOCK["ROWS"]), edges

    def grid(self, width: int, edges: int, tile: dict[str, Any]) -> tuple[int, int, int]:
        """Of products of `width` units each."""
        return width // tile["UNITS"], -(-self.streams // tile["ROWS"]), edges


class DeviceMixed(torch.autograd.Function):
    """As `mixture._MixedUnroll` for one process, for tensors that are `triton_support.usable`."""

    @staticmethod
    def forward(
        ctx: Any, from_x: Tensor, h: Tensor, from_h: Tensor, nodes: Tensor, weights: Tensor,
        mask: Tensor, space: CellSpace, ways: tuple[Route, ...], keep: bool, low: bool,
    ) -> Tensor:  # fmt: skip
        steps, streams, double = from_x.shape
        hidden, count = double // 2, len(ways)
        from_x, h = from_x.contiguous(), h.contiguous()
        own = _Layout(h, from_h, nodes, weights, mask, space, ways, low)
        keep = keep and any(ctx.needs_input_grad)
        slots = steps if keep else 1
        full, size = own.full, own.wide
        states = WORKSPACE.take(h, count + 1, slots, streams, full)
        rstd = WORKSPACE.take(h, count + 1, slots, full)
        inner = WORKSPACE.take(own.like, count + 1, slots, streams, size)  # states times the mask
        carried = WORKSPACE.take(own.like, slots + 1, streams, full)  # h before each step, likewise
        zero = WORKSPACE.take(own.like, slots, streams, 2 * full)
        products = WORKSPACE.take(own.like, max(1, len(own.edges)), slots, streams, 2 * size)
        outputs = from_x.new_empty(steps, streams, hidden)
        carried[0] = F.pad(h if own.mask is None else h * mask, (0, full - hidden))
        masked = own.mask is not None
        inner_stride, edge_stride, state_stride = (b.stride(0) for b in (inner, products, states))
        of_inner = {"FULL": full, "INNER": size, "MASKED": masked, **own.strip}
        values = WORKSPACE.take(h, max(1, *own.counts), streams, full)  # of a node's edges
        before = h
        gated, normalise, mean = own.kernels.gated, own.kernels.normalise, own.others.mean
        flags = table(tuple(range(1, count + 1)), h.device)
        for t in range(steps):
            slot, after = (t, t + 1) if keep else (0, 0)
            gated[own.grid(full, 1, own.tile)](
                carried[slot], own.from_h, from_x[t], before, own.zero, own.start, zero[slot],
                values, streams, hidden, hidden, 0, 0, 0, hidden, full,
                WIDE=full, ADDED=True,
                **own.tile,
            )  # fmt: skip
            normalise[own.strips](
                values, states[0, slot], own.zero, own.start, own.mask, states[0, slot],
                rstd[0, slot], inner[0, slot], streams, hidden, hidden, own.units, 1, 0, EPSILON,
                state_stride, PARTIAL=False, **of_inner,
            )  # fmt: skip
            for i, edges in enumerate(own.counts):
                at = own.starts[i]
                shares = own.shares[at:] if edges else own.start
                if edges:
                    gated[own.grid(size, edges, own.tile)](
                        inner[0, slot], own.matrices[i], None, states[0, slot], own.sources[i],
                        shares, products[at, slot], values, streams, hidden, own.units,
                        inner_stride, edge_stride, state_stride, full, full, WIDE=size,
                        ADDED=False, **own.tile,
                    )  # fmt: skip
                normalise[own.strips](
                    values, states[0, slot], own.sources[i], shares, own.mask,
                    states[i + 1, slot], rstd[i + 1, slot], inner[i + 1, slot], streams, hidden,
                    own.units, own.units, edges, own.units % hidden, EPSILON, state_stride,
                    PARTIAL=own.units < hidden, **of_inner,
                )  # fmt: skip
            mean[own.flat](
                states[0, slot], flags, own.mask, outputs[t], carried[after], streams, hidden,
                count, 1 / count, state_stride, WIDE=full, MASKED=masked, **FLAT,
            )  # fmt: skip
            before = outputs[t]
        WORKSPACE.give(values)
        if keep:
            ctx.save_for_backward(from_x, h, from_h, nodes, weights, outputs)
            ctx.own, ctx.buffers = own, (states, rstd, inner, carried, zero, products)
        else:
            WORKSPACE.give(states, rstd, inner, carried, zero, products)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from_x, h, from_h, nodes, weights, outputs = ctx.saved_tensors
        if ctx.buffers is None:
            raise RuntimeError("the fast cell's backward pass can run only once a forward pass")
        (states, rstd, inner, carried, zero, products), ctx.buffers = ctx.buffers, None
        own: _Layout = ctx.own
        ctx.own = None
        _, _, need_from_h, need_nodes, need_weights = ctx.needs_input_grad[:5]
        steps, streams, hidden = outputs.shape
        gradient = gradient.contiguous()
        full, size, count = own.full, own.wide, len(own.counts)
        gradients = WORKSPACE.take(states, count + 1, streams, full)
        onward = states.new_zeros(streams, full)  # the gradient of h from the step after
        sums = states.new_zeros(own.blocks(1)[1], max(1, len(own.edges)), len(COLUMNS), full)
        grad_x = torch.empty_like(from_x)
        masked = own.mask is not None
        edge_stride, state_stride, gradient_stride = (
            b.stride(0) for b in (products, states, gradients)
        )
        means = states.new_empty(2, full)
        levels, retreat = own.kernels.levels, own.kernels.retreat
        product_back = own.kernels.product_back
        of_levels = {"FULL": full, **own.strip}
        for t in reversed(range(steps)):
            own.others.spread[own.flat](
                gradient[t], onward, own.flags, gradients, streams, hidden, count + 1, 1 / count,
                WIDE=full, **FLAT,
            )  # fmt: skip
            for i, edges in reversed([*enumerate(own.counts)]):
                if not edges:
                    continue
                at = own.starts[i]
                levels[own.strips](gradients[i + 1], states[i + 1, t], means, streams, **of_levels)
                retreat[own.blocks(edges)](
                    products[at, t], None, states[0, t], own.sources[i], own.shares[at:],
                    states[i + 1, t], rstd[i + 1, t], means, gradients[i + 1], gradients, sums[0,
                    at:], None, streams, hidden, own.units, own.units % hidden, edge_stride,
                    state_stride, gradient_stride, sums.stride(0), full, WIDE=size, FULL=full,
                    ADDED=False, SUMS=need_weights, **BLOCK,
                )  # fmt: skip
                product_back[own.grid(size, edges, own.back)](
                    products[at, t], own.sources[i], own.matrices[i], own.mask, gradients, streams,
                    edge_stride, gradient_stride, full, WIDE=size, MASKED=masked, **own.back,
                )  # fmt: skip
            levels[own.strips](gradients[0], states[0, t], means, streams, **of_levels)
            retreat[own.blocks(1)](
                zero[t], from_x[t], outputs[t - 1] if t else h, own.zero, own.start, states[0, t],
                rstd[0, t], means, gradients[0], onward, sums, grad_x[t], streams, hidden, hidden,
                0,
                0, 0, 0, 0, hidden, WIDE=full, FULL=full, ADDED=True, SUMS=False, **BLOCK,
            )  # fmt: skip
            product_back[own.grid(full, 1, own.back)](
                zero[t], own.zero, own.from_h, own.mask, onward, streams, 0, 0, full,
                WIDE=full, MASKED=masked, **own.back,
            )  # fmt: skip
        grad_from_h = grad_nodes = grad_weights = None
        if need_from_h:
            whole = multiply(carried[:steps].flatten(0, 1).t(), zero.flatten(0, 1))
            grad_from_h = cut(whole, hidden).to(from_h.dtype)
        if need_nodes:
            grad_nodes = torch.zeros_like(nodes)
            for i, edges in enumerate(own.counts):
                whole, at = states.new_zeros(size, 2 * size), own.starts[i]
                for first, end in stretches(own.taken[i]):
                    left = inner[first:end].flatten(0, 2)  # (n T B, UW)
                    right = products[at : at + end - first].flatten(0, 2)
                    accumulate(whole, left.t(), right)
                    at += end - first
                if edges:
                    grad_nodes[i] = cut(whole, own.units)
        if need_weights:
            grad_weights = torch.zeros_like(weights)
            if own.edges:
                by_edge = sums.sum((0, -1), dtype=torch.float64).to(weights.dtype)
                rows = (by_edge @ own.columns.t()) * own.allowed
                at = 0
                for first, end in stretches(own.edges):
                    grad_weights[first:end] = rows[at : at + end - first]
                    at += end - first
        WORKSPACE.give(states, rstd, inner, carried, zero, products, gradients)
        own_grads = (grad_x, onward[:, :hidden], grad_from_h, grad_nodes, grad_weights)
        return (*own_grads, *(None,) * 5)
