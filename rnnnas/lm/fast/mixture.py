"""The fast form of the cell under a mixture: one autograd node a window, its backward by hand.

Legend: T steps, B streams, H hidden, N nodes, E edges, O operations; U units computed (H, or
H/K of a partial cell), n computed predecessors of a node, m of one block. Same values and
gradients as `search_cell.unroll_reference`, which is the oracle. Where there are kernels and all
units are computed, `mixture_whole.py` does the same in one call, but for very large cells. What
makes the form here fast: one product a node over all its computed predecessors; only the products
are kept, in the precision they were made in, and their gradients take their places on the way
back; what is element-wise is computed again, a few edges at a time, so that it stays in the cache;
large buffers are reused from window to window, since fresh pages cost as much as the arithmetic
on them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rnnnas.distributed import ALONE, Ranks
from rnnnas.lm.cell import masked
from rnnnas.lm.fast import cpu_library, mixture_cuda, mixture_whole, triton_support
from rnnnas.lm.fast.buffers import WORKSPACE
from rnnnas.lm.fast.matmul import accumulate, multiply, project
from rnnnas.lm.fast.mixture_cpu import Compiled, Elementwise
from rnnnas.lm.fast.mixture_cuda import DeviceMixed
from rnnnas.lm.fast.mixture_plan import Node, plan_of, start_of, taken
from rnnnas.lm.fast.mixture_whole import WholeMixed
from rnnnas.lm.search_cell import Paths, Route, routes
from rnnnas.nas.space import CellSpace

# Elements of a block's element-wise work at once: larger ones leave the cache, smaller ones cost
# more calls (benchmarks/README.md).
BLOCK = 100_000


def unroll(
    inputs: Tensor,
    h: Tensor,
    first: Tensor,
    nodes: Tensor,
    space: CellSpace,
    weights: Tensor,
    mask_x: Tensor | None,
    mask_h: Tensor | None,
    *,
    paths: Paths | None = None,
    low: bool = False,
    ranks: Ranks = ALONE,
) -> Tensor:
    """All T steps. inputs (T, B, D), h (B, H), weights (E, O) → outputs (T, B, H).

    The backward pass runs once; it can be neither repeated nor differentiated again.

    Args:
        paths: what is computed, as in `search_cell.unroll_reference`; a skipped edge costs no
        product. low: round the factors of all products to bfloat16. Everything else, and the sums
            of the weights' gradients over time, stays float32, as all tensors must then be.

    Raises:
        UsageError: as `search_cell.routes`.
    """
    ways = routes(space, paths)
    width = inputs.shape[-1]
    from_x = project(masked(inputs, mask_x), first[:width], low)
    mask = h.new_ones(()) if mask_h is None else mask_h
    keep = torch.is_grad_enabled()
    tensors = (from_x, h, first[width:], nodes, weights, mask)
    outputs: Tensor
    if ranks.size == 1 and len(h) <= mixture_cuda.STREAMS and triton_support.usable(*tensors):
        with triton_support.current(h):
            outputs = DeviceMixed.apply(*tensors, space, ways, keep, low)  # type: ignore[no-untyped-call]
    elif mixture_whole.takes(tensors, h, nodes, ranks, low=low):
        outputs = WholeMixed.apply(*tensors, space, ways, keep, low)  # type: ignore[no-untyped-call]
    else:
        outputs = _MixedUnroll.apply(*tensors, space, ways, keep, low, ranks)  # type: ignore[no-untyped-call]
    return outputs


class _Window:
    """The buffers of one window; with `keep`, one slot a step, else one slot for all.

    states (N+1, B, H): s0 .. sN; rstd (N+1, H) of their normalisations; zero (B, 2H): the product
    of s0; products: of each node, (n, B, 2U). Later the products' gradients lie in their places.
    """

    def __init__(self, h: Tensor, nodes: Tensor, plan: list[Node], steps: int) -> None:
        streams, hidden = h.shape
        self.states = WORKSPACE.take(h, steps, len(plan) + 1, streams, hidden)
        self.rstd = WORKSPACE.take(h, steps, len(plan) + 1, hidden)
        self.zero = WORKSPACE.take(h, steps, streams, 2 * hidden)
        self.products = [
            WORKSPACE.take(nodes, steps, len(node.sources), streams, nodes.shape[-1])
            for node in plan
        ]

    def give_back(self) -> None:
        WORKSPACE.give(self.states, self.rstd, self.zero, *self.products)


def _work_of(
    form: type[Elementwise], like: Tensor, plan: list[Node], units: int, mask: Tensor,
    ranks: Ranks, gradients: bool = False,
) -> tuple[Elementwise, Elementwise]:  # fmt: skip
    """What lies between the products: of the first state, and of the nodes."""
    first = form(like, [start_of(like)], like.shape[1], mask, ranks)
    return first, form(like, plan, units, mask, ranks, gradients)


class _MixedUnroll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, from_x: Tensor, h: Tensor, from_h: Tensor, nodes: Tensor, weights: Tensor,
        mask: Tensor, space: CellSpace, ways: tuple[Route, ...], keep: bool, low: bool,
        ranks: Ranks,
    ) -> Tensor:  # fmt: skip
        steps, streams, double = from_x.shape
        hidden, units = double // 2, nodes.shape[1]
        h = h.contiguous()  # kernels take addresses of dense tensors
        keep = keep and any(ctx.needs_input_grad)
        # A device hides its memory's latency by itself: there only launches count.
        most = max(1, BLOCK // (streams * units)) if h.device.type == "cpu" else space.nodes
        plan = plan_of(space, ways, weights, most)
        matrix_h, matrices = (from_h.bfloat16(), nodes.bfloat16()) if low else (from_h, nodes)
        window = _Window(h, matrices, plan, steps if keep else 1)
        outputs = from_x.new_empty(steps, streams, hidden)
        inner = WORKSPACE.take(matrices, len(plan) + 1, streams, units)  # states times the mask
        total = WORKSPACE.take(h, streams, hidden)
        tensors = (h, from_x, from_h, nodes, weights, mask)
        form = Compiled if cpu_library.usable(*tensors, low=low) else Elementwise
        start, work = _work_of(form, h, plan, units, mask, ranks)
        roll = units % hidden
        carried = h
        for t in range(steps):
            slot = t if keep else 0
            states, rstd, zero = window.states[slot], window.rstd[slot], window.zero[slot]
            multiply((carried * mask).to(matrix_h.dtype), matrix_h, out=zero).add_(from_x[t])
            start.mix(0, zero.unsqueeze(0), carried.unsqueeze(0), total)
            work.normalise(total, states[0], rstd[0], inner[0], 0)
            for i, node in enumerate(plan):
                product = window.products[i][slot]  # (n, B, 2U)
                if node.blocks:
                    left = taken(inner, node).view(-1, units)
                    multiply(left, matrices[i], out=product.view(-1, 2 * units))
                work.mix(i, product, states, total)
                work.normalise(total, states[i + 1], rstd[i + 1], inner[i + 1], roll)
            carried = torch.mean(states[1:], 0, out=outputs[t])
        WORKSPACE.give(inner, total)
        start.close()
        work.close()
        if keep:
            ctx.save_for_backward(h, from_h, nodes, weights, mask, outputs)
            ctx.window, ctx.plan, ctx.low, ctx.ranks, ctx.form = window, plan, low, ranks, form
        else:
            window.give_back()
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        h, from_h, nodes, weights, mask, outputs = ctx.saved_tensors
        window: _Window | None = ctx.window
        if window is None:
            raise RuntimeError("the fast cell's backward pass can run only once a forward pass")
        ctx.window = None
        plan: list[Node] = ctx.plan
        low: bool = ctx.low
        ranks: Ranks = ctx.ranks
        _, _, need_from_h, need_nodes, need_weights = ctx.needs_input_grad[:5]
        steps, streams, hidden = outputs.shape
        count, units = len(plan), nodes.shape[1]
        matrix_h, matrices = (from_h.bfloat16(), nodes.bfloat16()) if low else (from_h, nodes)
        grad_x = outputs.new_empty(steps, streams, 2 * hidden)
        grad_nodes = torch.zeros_like(nodes) if need_nodes else None
        gradients = WORKSPACE.take(outputs, count + 1, streams, hidden)  # of the states
        inner = WORKSPACE.take(matrices, count + 1, streams, units)
        widest = max(len(node.sources) for node in plan)
        reached = WORKSPACE.take(matrices, widest, streams, units)
        start, work = _work_of(ctx.form, h, plan, units, mask, ranks, need_weights)
        mask_u = mask[:, :units] if mask.dim() else mask
        roll = units % hidden
        onward = torch.zeros_like(h)  # the gradient of h from the step after
        for t in reversed(range(steps)):
            states, rstd = window.states[t], window.rstd[t]
            if need_nodes:
                torch.mul(states[..., :units], mask_u, out=inner)
            gradients[0].zero_()
            gradients[1:] = (gradient[t] + onward).div_(count)
            for i, node in reversed([*enumerate(plan)]):
                if not node.blocks:
                    continue
                product = window.products[i][t]  # (n, B, 2U)
                total = work.normalise_back(gradients[i + 1], states[i + 1], rstd[i + 1], roll)
                work.mix_back(i, product, states, total, gradients)
                rows = product.view(-1, 2 * units)
                back = reached[: len(node.sources)]
                multiply(rows, matrices[i].t(), out=back.view(-1, units))
                work.reach(i, back, gradients)
                if grad_nodes is not None:
                    accumulate(grad_nodes[i], taken(inner, node).view(-1, units).t(), rows)
            before = (h if t == 0 else outputs[t - 1]).unsqueeze(0)
            zero = window.zero[t]
            total = work.normalise_back(gradients[0], states[0], rstd[0], 0)
            onward.zero_()
            start.mix_back(0, zero.unsqueeze(0), before, total, onward.unsqueeze(0))
            grad_x[t] = zero
            own = multiply(zero.to(matrix_h.dtype), matrix_h.t())
            onward.addcmul_(own.to(onward.dtype), mask)
        grad_from_h = None
        if need_from_h:
            previous = torch.cat([h.unsqueeze(0), outputs[:-1]]) * mask  # (T, B, H)
            left, right = (a.flatten(0, 1).to(matrix_h.dtype) for a in (previous, grad_x))
            grad_from_h = multiply(left.t(), right).to(from_h.dtype)
        grad_weights = work.gathered(steps, weights) if need_weights else None
        WORKSPACE.give(gradients, inner, reached)
        start.close()
        work.close()
        window.give_back()
        return grad_x, onward, grad_from_h, grad_nodes, grad_weights, *(None,) * 6
