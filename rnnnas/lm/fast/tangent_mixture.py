"""The cell under a mixture with its directional derivative: one autograd node a window, by hand.

Legend: T steps, B streams, D inputs, H hidden, N nodes, E edges, O operations; U units computed,
n computed edges of a node. A dot marks the derivative along a direction V of the weights W, which
is a tangent; inputs have tangents of their own, the mixture has none. With s the states:

    p = s W,  p' = s' W + s V = [s' s] [W; V]

and so on, operation by operation (Pearlmutter 1994, the R operator). Going back, the gradient of
a tangent is the gradient that the loss itself would have, and the gradient of a value is the
derivative of that one along V:

    ds = dp W^T,  ds' = dp' W^T + dp V^T = [dp' dp] [W V]^T

so that a window takes 6 products a weight, 2 of which have their longer sides doubled. Nothing
here is a small difference: products may be rounded as in any other pass. Where all units are
computed, `tangent_whole.py` does the same in one call, but for very large cells.
`mixed.unroll`, differentiated twice, is the oracle.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rnnnas.distributed import ALONE, Ranks
from rnnnas.lm.cell import masked
from rnnnas.lm.fast import cpu_library, mixture_whole
from rnnnas.lm.fast.buffers import WORKSPACE
from rnnnas.lm.fast.matmul import multiply, project
from rnnnas.lm.fast.mixture_plan import Node, plan_of, start_of, taken
from rnnnas.lm.fast.tangent_elementwise import Compiled, Elementwise
from rnnnas.lm.fast.tangent_whole import WholeDual
from rnnnas.lm.search_cell import Paths, Route, routes
from rnnnas.nas.space import CellSpace


class Dual(NamedTuple):
    """A value and its tangent, of one shape."""

    value: Tensor
    tangent: Tensor


def unroll(
    inputs: Dual, h: Tensor, first: Dual, nodes: Dual, space: CellSpace, weights: Tensor,
    mask_x: Tensor | None, mask_h: Tensor | None, *, paths: Paths | None = None,
    low: bool = False, ranks: Ranks = ALONE,
) -> Dual:  # fmt: skip
    """All T steps and their tangents. inputs (T, B, D), h (B, H), weights (E, O) -> (T, B, H).

    first (D+H, 2H), nodes (N, U, 2U): the weights and the direction. Gradients reach the inputs,
    their tangents and the mixture; the weights and h are constants, and h has no tangent. The
    backward pass runs once.

    Args:
        paths: what is computed, as in `search_cell.unroll_reference`.
        low: round the factors of all products to bfloat16.

    Raises:
        UsageError: as `search_cell.routes`.
    """
    ways = routes(space, paths)
    width = inputs.value.shape[-1]
    x, dx = (masked(part, mask_x) for part in inputs)
    from_x = project(x, first.value[:width], low)
    # [x' x] [W; V]: the tangent of the input's part of the first product.
    stacked = torch.cat([first.value[:width], first.tangent[:width]])
    from_dx = project(torch.cat([dx, x], -1), stacked, low)
    mask = h.new_ones(()) if mask_h is None else mask_h
    tensors = (
        from_x, from_dx, h, first.value[width:], first.tangent[width:], *nodes, weights, mask,
    )  # fmt: skip
    outputs: Tensor
    tangents: Tensor
    if mixture_whole.takes(tensors, h, nodes.value, ranks, low=low):
        outputs, tangents = WholeDual.apply(*tensors, space, ways, low)  # type: ignore[no-untyped-call]
    else:
        outputs, tangents = _DualUnroll.apply(*tensors, space, ways, low, ranks)  # type: ignore[no-untyped-call]
    return Dual(outputs, tangents)


class _Window:
    """The buffers of one window, one slot a step.

    states, their tangents (N+1, B, H); rstd and slant (N+1, H) of their normalisations; zero and
    dzero (B, 2H): the products of s0; products, dproducts: of each node, (n, B, 2U).
    """

    def __init__(self, h: Tensor, like: Tensor, units: int, plan: list[Node], steps: int) -> None:
        streams, hidden = h.shape
        count = len(plan) + 1
        self.states, self.dstates = (
            WORKSPACE.take(h, steps, count, streams, hidden) for _ in range(2)
        )
        self.rstd, self.slant = (WORKSPACE.take(h, steps, count, hidden) for _ in range(2))
        self.zero, self.dzero = (WORKSPACE.take(h, steps, streams, 2 * hidden) for _ in range(2))
        self.products, self.dproducts = (
            [WORKSPACE.take(like, steps, len(node.sources), streams, 2 * units) for node in plan]
            for _ in range(2)
        )

    def give_back(self) -> None:
        WORKSPACE.give(self.states, self.dstates, self.rstd, self.slant, self.zero, self.dzero)
        WORKSPACE.give(*self.products, *self.dproducts)


class _Matrices:
    """Weights and direction as factors of products, in the products' type.

    by_h (H, 2H) and by_pair_h (2H, 2H) = [W; V] of the first state, and by_node, by_pair of the
    nodes; back_h (2H, H) and back_pair_h (4H, H) = [W V]^T, back and back_pair likewise.
    """

    def __init__(
        self, from_h: Tensor, dfrom_h: Tensor, nodes: Tensor, dnodes: Tensor, low: bool
    ) -> None:
        self.type = torch.bfloat16 if low else from_h.dtype
        from_h, dfrom_h, nodes, dnodes = (t.to(self.type) for t in (from_h, dfrom_h, nodes, dnodes))
        self.like = nodes.new_empty(0)
        self.by_h, self.by_node = from_h, nodes
        self.by_pair_h = torch.cat([from_h, dfrom_h])
        self.by_pair = torch.cat([nodes, dnodes], 1)
        self.back_h, self.back = from_h.t(), nodes.mT
        self.back_pair_h = torch.cat([from_h, dfrom_h], 1).t()
        self.back_pair = torch.cat([nodes, dnodes], 2).mT


class _DualUnroll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, from_x: Tensor, from_dx: Tensor, h: Tensor, from_h: Tensor, dfrom_h: Tensor,
        nodes: Tensor, dnodes: Tensor, weights: Tensor, mask: Tensor, space: CellSpace,
        ways: tuple[Route, ...], low: bool, ranks: Ranks,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        steps, streams, double = from_x.shape
        hidden, units = double // 2, nodes.shape[1]
        h = h.contiguous()  # kernels take addresses of dense tensors
        plan = plan_of(space, ways, weights, space.nodes)
        own = _Matrices(from_h, dfrom_h, nodes, dnodes, low)
        window = _Window(h, own.like, units, plan, steps)
        outputs, tangents = (from_x.new_empty(steps, streams, hidden) for _ in range(2))
        # States times the mask, alone and beside their tangents: [s' s].
        inner = WORKSPACE.take(own.like, len(plan) + 1, streams, units)
        pair = WORKSPACE.take(own.like, len(plan) + 1, streams, 2 * units)
        total, dtotal = (WORKSPACE.take(h, streams, hidden) for _ in range(2))
        compiled = cpu_library.usable(h, from_x, from_dx, nodes, weights, mask, low=low)
        form = Compiled if compiled else Elementwise
        start = form(h, [start_of(h)], hidden, mask, ranks)
        work = form(h, plan, units, mask, ranks)
        roll = units % hidden
        before, dbefore = h, torch.zeros_like(h)
        for t in range(steps):
            states, dstates = window.states[t], window.dstates[t]
            rstd, slant = window.rstd[t], window.slant[t]
            zero, dzero = window.zero[t], window.dzero[t]
            left = before * mask
            both = torch.cat([dbefore * mask, left], -1).to(own.type)
            multiply(left.to(own.type), own.by_h, out=zero).add_(from_x[t])
            multiply(both, own.by_pair_h, out=dzero).add_(from_dx[t])
            start.mix(0, zero, dzero, before.unsqueeze(0), dbefore.unsqueeze(0), total, dtotal)
            work.normalise(
                total, dtotal, states[0], dstates[0], rstd[0], slant[0], inner[0], pair[0], 0
            )
            for i, node in enumerate(plan):
                product, dproduct = window.products[i][t], window.dproducts[i][t]
                if node.blocks:
                    left, both = (taken(a, node).flatten(0, 1) for a in (inner, pair))
                    multiply(left, own.by_node[i], out=product.view(-1, 2 * units))
                    multiply(both, own.by_pair[i], out=dproduct.view(-1, 2 * units))
                work.mix(i, product, dproduct, states, dstates, total, dtotal)
                work.normalise(
                    total, dtotal, states[i + 1], dstates[i + 1], rstd[i + 1], slant[i + 1],
                    inner[i + 1], pair[i + 1], roll,
                )  # fmt: skip
            before = torch.mean(states[1:], 0, out=outputs[t])
            dbefore = torch.mean(dstates[1:], 0, out=tangents[t])
        WORKSPACE.give(inner, pair, total, dtotal)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(h, weights, mask, outputs, tangents)
            ctx.window, ctx.plan, ctx.own, ctx.form, ctx.ranks = window, plan, own, form, ranks
        else:
            window.give_back()
        return outputs, tangents

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_value: Tensor, of_tangent: Tensor) -> tuple[Tensor | None, ...]:
        """d: the gradients of tangents, as a plain pass has them; dd: those of values."""
        h, weights, mask, outputs, tangents = ctx.saved_tensors
        window: _Window | None = ctx.window
        if window is None:
            raise RuntimeError("the cell's backward pass can run only once a forward pass")
        ctx.window = None
        plan: list[Node] = ctx.plan
        own: _Matrices = ctx.own
        steps, streams, hidden = outputs.shape
        count, units = len(plan), own.by_node.shape[1]
        grad_x, grad_dx = (outputs.new_empty(steps, streams, 2 * hidden) for _ in range(2))
        d, dd = (WORKSPACE.take(outputs, count + 1, streams, hidden) for _ in range(2))
        widest = max(1, *(len(node.sources) for node in plan))
        dense = WORKSPACE.take(own.like, widest, streams, 2 * units)
        pair = WORKSPACE.take(own.like, widest, streams, 4 * units)
        reached = WORKSPACE.take(own.like, widest, streams, units)
        pair_h = WORKSPACE.take(outputs, 1, streams, 4 * hidden)
        start = ctx.form(h, [start_of(h)], hidden, mask, ctx.ranks)
        work = ctx.form(h, plan, units, mask, ctx.ranks)
        roll = units % hidden
        onward, donward = torch.zeros_like(h), torch.zeros_like(h)
        nothing = torch.zeros_like(h)
        for t in reversed(range(steps)):
            states, dstates = window.states[t], window.dstates[t]
            rstd, slant = window.rstd[t], window.slant[t]
            for gradients, gradient, rest in (
                (d, of_tangent[t], onward),
                (dd, of_value[t], donward),
            ):
                gradients[0].zero_()
                gradients[1:] = (gradient + rest).div_(count)
            for i, node in reversed([*enumerate(plan)]):
                n = len(node.sources)
                if not n:
                    continue
                totals = work.normalise_back(
                    d[i + 1], dd[i + 1], states[i + 1], dstates[i + 1], rstd[i + 1], slant[i + 1],
                    roll,
                )  # fmt: skip
                work.mix_back(
                    i, window.products[i][t], window.dproducts[i][t], states, dstates, *totals,
                    d, dd, dense[:n], pair[:n],
                )  # fmt: skip
                back = reached[:n]
                multiply(dense[:n].view(-1, 2 * units), own.back[i], out=back.view(-1, units))
                work.reach(i, back, d)
                multiply(pair[:n].view(-1, 4 * units), own.back_pair[i], out=back.view(-1, units))
                work.reach(i, back, dd)
            before, dbefore = (outputs[t - 1], tangents[t - 1]) if t else (h, nothing)
            totals = work.normalise_back(d[0], dd[0], states[0], dstates[0], rstd[0], slant[0], 0)
            onward.zero_()
            donward.zero_()
            start.mix_back(
                0, window.zero[t], window.dzero[t], before.unsqueeze(0), dbefore.unsqueeze(0),
                *totals, onward.unsqueeze(0), donward.unsqueeze(0), grad_dx[t].unsqueeze(0), pair_h,
            )  # fmt: skip
            grad_x[t] = pair_h[0, :, : 2 * hidden]
            back = multiply(grad_dx[t].to(own.type), own.back_h)
            onward.addcmul_(back.to(onward.dtype), mask)
            back = multiply(pair_h[0].to(own.type), own.back_pair_h)
            donward.addcmul_(back.to(onward.dtype), mask)
        grad_weights = work.gathered(weights)
        WORKSPACE.give(d, dd, dense, pair, reached, pair_h)
        window.give_back()
        return grad_x, grad_dx, *(None,) * 5, grad_weights, *(None,) * 5
