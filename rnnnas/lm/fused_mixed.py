"""The fast form of the cell under a mixture: one autograd node a window, its backward by hand.

Legend: T steps, B streams, H hidden, N nodes, E edges, O operations; U units computed (H, or
H/K of a partial cell), n computed predecessors of a node, m of one block. Same values and
gradients as `mixed.unroll_reference`, which is the oracle. What makes it fast: one product a node
over all its computed predecessors; only the products are kept, in the precision they were made
in, and their gradients take their places on the way back; what is element-wise is computed
again, a few edges at a time, so that it stays in the cache; large buffers are reused from window
to window, since fresh pages cost as much as the arithmetic on them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rnnnas.lm.blocks import Node, plan_of, taken
from rnnnas.lm.cell import masked
from rnnnas.lm.mixed import EPSILON, Paths, Route, routes
from rnnnas.lm.pool import POOL
from rnnnas.lm.products import project
from rnnnas.nas.space import CellSpace
from rnnnas.ranks import ALONE, Ranks

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
        paths: what is computed, as in `mixed.unroll_reference`; a skipped edge costs no product.
        low: round the factors of all products to bfloat16. Everything else, and the sums of the
            weights' gradients over time, stays float32, as all tensors must then be.

    Raises:
        UsageError: as `mixed.routes`.
    """
    ways = routes(space, paths)
    width = inputs.shape[-1]
    from_x = project(masked(inputs, mask_x), first[:width], low)
    mask = h.new_ones(()) if mask_h is None else mask_h
    keep = torch.is_grad_enabled()
    outputs: Tensor = _MixedUnroll.apply(  # type: ignore[no-untyped-call]
        from_x, h, first[width:], nodes, weights, mask, space, ways, keep, low, ranks
    )
    return outputs


class _Window:
    """The buffers of one window; with `keep`, one slot a step, else one slot for all.

    states (N+1, B, H): s0 .. sN; rstd (N+1, H) of their normalisations; zero (B, 2H): the product
    of s0; products: of each node, (n, B, 2U). Later the products' gradients lie in their places.
    """

    def __init__(self, h: Tensor, nodes: Tensor, plan: list[Node], steps: int) -> None:
        streams, hidden = h.shape
        self.states = POOL.take(h, steps, len(plan) + 1, streams, hidden)
        self.rstd = POOL.take(h, steps, len(plan) + 1, hidden)
        self.zero = POOL.take(h, steps, streams, 2 * hidden)
        self.products = [
            POOL.take(nodes, steps, len(node.sources), streams, nodes.shape[-1]) for node in plan
        ]

    def give_back(self) -> None:
        POOL.give(self.states, self.rstd, self.zero, *self.products)


def _normalise(raw: Tensor, out: Tensor, rstd: Tensor, units: int, ranks: Ranks) -> None:
    """Batch statistics of (B, H) over the streams of all ranks; see `mixed.normalise`.

    Rolled by `units` if those are not all; see `mixed.finished`.
    """
    if ranks.size > 1:
        result = raw - ranks.mean(raw.mean(0))
        scale = torch.rsqrt(ranks.mean(result.square().mean(0)).add_(EPSILON))
        result.mul_(scale)
    else:
        result, _, scale = torch.native_batch_norm(raw, None, None, None, None, True, 0.0, EPSILON)
    if units != raw.shape[-1]:
        result, scale = result.roll(units, -1), scale.roll(units)
    out.copy_(result)
    rstd.copy_(scale)


def _through_normalise(
    slope: Tensor, state: Tensor, rstd: Tensor, units: int, ranks: Ranks
) -> Tensor:
    """The gradient before `_normalise` from the one after it. (B, H)."""
    along, level = (slope * state).mean(0), slope.mean(0)
    if ranks.size > 1:
        along, level = ranks.mean(torch.stack([along, level]))
    result = (slope - level).addcmul_(state, along, value=-1.0).mul_(rstd)
    return result if units == state.shape[-1] else result.roll(-units, -1)


class _MixedUnroll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, from_x: Tensor, h: Tensor, from_h: Tensor, nodes: Tensor, weights: Tensor,
        mask: Tensor, space: CellSpace, ways: tuple[Route, ...], keep: bool, low: bool,
        ranks: Ranks,
    ) -> Tensor:  # fmt: skip
        steps, streams, double = from_x.shape
        hidden, units = double // 2, nodes.shape[1]
        keep = keep and any(ctx.needs_input_grad)
        # A device hides its memory's latency by itself: there only launches count.
        most = max(1, BLOCK // (streams * units)) if h.device.type == "cpu" else space.nodes
        plan = plan_of(space, ways, weights, most)
        matrix_h, matrices = (from_h.bfloat16(), nodes.bfloat16()) if low else (from_h, nodes)
        window = _Window(h, matrices, plan, steps if keep else 1)
        outputs = from_x.new_empty(steps, streams, hidden)
        inner = POOL.take(matrices, len(plan) + 1, streams, units)  # states times the mask
        most = max([block.size for node in plan for block in node.blocks], default=0)
        work = POOL.take(h, 4, most, streams, units)
        total = POOL.take(h, streams, hidden)
        mask_u = mask[:, :units] if mask.dim() else mask
        lowest = -h.new_ones(1)
        carried = h
        for t in range(steps):
            slot = t if keep else 0
            states, rstd, zero = window.states[slot], window.rstd[slot], window.zero[slot]
            if low:
                left = (carried * mask).bfloat16()
                torch.add(from_x[t], torch.mm(left, matrix_h), out=zero)
            else:
                torch.addmm(from_x[t], carried * mask, from_h, out=zero)
            gate, f = zero[:, :hidden].sigmoid(), zero[:, hidden:].contiguous()
            _tanh(f, f, lowest)
            _normalise(torch.lerp(carried, f, gate), states[0], rstd[0], hidden, ranks)
            torch.mul(states[0, :, :units], mask_u, out=inner[0])
            for i, node in enumerate(plan):
                if node.blocks:
                    product = window.products[i][slot]  # (n, B, 2U)
                    left = taken(inner, node).view(-1, units)
                    torch.mm(left, matrices[i], out=product.view(-1, 2 * units))
                    carry = taken(states, node).view(-1, streams * hidden)
                    torch.mm(node.masses, carry, out=total.view(1, -1))  # Σ_j P_j s_j
                    _through(node, product, states, total[:, :units], work, lowest)
                else:
                    total.zero_()
                _normalise(total, states[i + 1], rstd[i + 1], units, ranks)
                torch.mul(states[i + 1, :, :units], mask_u, out=inner[i + 1])
            carried = torch.mean(states[1:], 0, out=outputs[t])
        POOL.give(inner, total, work)
        if keep:
            ctx.save_for_backward(h, from_h, nodes, weights, mask, outputs)
            ctx.window, ctx.plan, ctx.low, ctx.ranks = window, plan, low, ranks
        else:
            window.give_back()
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
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
        dots: list[Tensor] | None = [] if need_weights else None
        slopes = POOL.take(outputs, count + 1, streams, hidden)  # of the states
        inner = POOL.take(matrices, count + 1, streams, units)
        widest = max(len(node.sources) for node in plan)
        reached = POOL.take(matrices, widest, streams, units)
        most = max([block.size for node in plan for block in node.blocks], default=0)
        work = POOL.take(outputs, 5 + weights.shape[1], most, streams, units)
        mask_u = mask[:, :units] if mask.dim() else mask
        lowest = -h.new_ones(1)
        onward = torch.zeros_like(h)  # the gradient of h from the step after
        for t in reversed(range(steps)):
            states, rstd = window.states[t], window.rstd[t]
            if need_nodes:
                torch.mul(states[..., :units], mask_u, out=inner)
            slopes[0].zero_()
            slopes[1:] = (slope[t] + onward).div_(count)
            for i, node in reversed([*enumerate(plan)]):
                if not node.blocks:
                    continue
                product = window.products[i][t]  # (n, B, 2U)
                total = _through_normalise(slopes[i + 1], states[i + 1], rstd[i + 1], units, ranks)
                if dots is not None:
                    dots.append(torch.mv(taken(states, node).flatten(1), total.flatten()))
                _back_through(node, product, states, slopes, total, work, lowest, dots)
                rows = product.view(-1, 2 * units)
                back = reached[: len(node.sources)]
                torch.mm(rows, matrices[i].t(), out=back.view(-1, units))
                for block in node.blocks:
                    own = back[block.at : block.at + block.size]
                    own = work[0, : block.size].copy_(own) if low else own
                    reach = slopes[block.source : block.source + block.size, :, :units]
                    reach.addcmul_(own, mask_u)
                if grad_nodes is not None and low:
                    grad_nodes[i] += torch.mm(taken(inner, node).view(-1, units).t(), rows)
                elif grad_nodes is not None:
                    grad_nodes[i].addmm_(taken(inner, node).view(-1, units).t(), rows)
            before = h if t == 0 else outputs[t - 1]
            zero = window.zero[t]
            gate, f0 = zero[:, :hidden].sigmoid(), zero[:, hidden:].contiguous()
            _tanh(f0, f0, lowest)
            total = _through_normalise(slopes[0], states[0], rstd[0], hidden, ranks)
            q0 = total * gate
            grad_x[t, :, hidden:] = q0.addcmul(q0, f0.square(), value=-1.0)
            rest0 = total - q0
            grad_x[t, :, :hidden] = rest0 * gate * (f0 - before)
            own = torch.mm(grad_x[t].to(matrix_h.dtype), matrix_h.t())
            onward = rest0.addcmul_(own.to(rest0.dtype), mask)
        grad_from_h = None
        if need_from_h:
            previous = torch.cat([h.unsqueeze(0), outputs[:-1]]) * mask  # (T, B, H)
            left, right = (a.flatten(0, 1).to(matrix_h.dtype) for a in (previous, grad_x))
            grad_from_h = torch.mm(left.t(), right).to(from_h.dtype)
        grad_weights = None if dots is None else _gathered(dots, plan, steps, weights)
        POOL.give(slopes, inner, reached, work)
        window.give_back()
        return grad_x, onward, grad_from_h, grad_nodes, grad_weights, *(None,) * 6


def _through(
    node: Node, product: Tensor, states: Tensor, total: Tensor, work: Tensor, lowest: Tensor
) -> None:
    """Add σc (Σ_f p_f f(z) - P s) of every edge to the node's sum.

    product (n, B, 2U), states (N+1, B, H), total (B, U), work (4, m, B, U).
    """
    units = total.shape[-1]
    cs, zs = product[..., :units], product[..., units:]
    for block in node.blocks:
        m, at = block.size, block.at
        gate, z, gain, f = (work if m == work.shape[1] else work[:, :m]).unbind(0)
        gate.copy_(cs[at : at + m]).sigmoid_()
        z.copy_(zs[at : at + m])
        torch.mul(states[block.source : block.source + m, :, :units], block.minus, out=gain)
        for (_, op), p in zip(block.ops, block.shares, strict=True):
            gain.addcmul_(_activate(op, z, f, lowest), p)
        if m == 1:
            total.addcmul_(gate[0], gain[0])
        else:
            total += gain.mul_(gate).sum(0)


def _back_through(
    node: Node, product: Tensor, states: Tensor, slopes: Tensor, total: Tensor, work: Tensor,
    lowest: Tensor, dots: list[Tensor] | None,
) -> None:  # fmt: skip
    """Back through a node's edges: its products become their own gradients.

    total (B, H): the gradient of the node's sum. Adds what reaches the predecessors directly to
    their `slopes`; work (5 + O, m, B, U). Adds to `dots`, edge by edge, the inner products of
    total σc with the values of all operations and with s.
    """
    units = product.shape[-1] // 2
    cs, zs = product[..., :units], product[..., units:]
    inside, rest_units = total[:, :units], total[:, units:]
    for block in node.blocks:
        m, at, source, count = block.size, block.at, block.source, len(block.ops)
        gate, q, rest, gain, rise, *_ = (work if m == work.shape[1] else work[:, :m]).unbind(0)
        values = work[5 : 6 + count, :m]  # of the operations; the last is z, the identity's too
        z = values[count - 1] if block.ops[-1][1] == "identity" else values[count]
        s = states[source : source + m, :, :units]
        c_part, z_part = cs[at : at + m], zs[at : at + m]
        reach = slopes[source : source + m]
        gate.copy_(c_part).sigmoid_()
        z.copy_(z_part)
        torch.mul(gate, inside, out=q)
        torch.sub(inside, q, out=rest)  # total (1 - σc)
        reach[..., :units].addcmul_(rest, block.mass)
        if units < total.shape[-1]:
            reach[..., units:].addcmul_(rest_units, block.mass)
        torch.mul(s, block.minus, out=gain)
        for value, (_, op), p in zip(values.unbind(0), block.ops, block.shares, strict=False):
            result = _activate(op, z, value, lowest)
            gain.addcmul_(result, p)
            if result.data_ptr() != value.data_ptr():
                value.copy_(result)  # the identity, where it is not the last operation
        if dots is not None:
            for e in range(m):
                own = q[e].view(-1)
                dots.append(torch.mv(values[:count, e].flatten(1), own))
                dots.append(torch.dot(own, s[e].flatten()).view(1))
        c_part.copy_(gain.mul_(rest).mul_(gate))  # d/dc = total σc (1 - σc) gain
        rise.zero_()
        for value, (_, op), p in zip(values.unbind(0), block.ops, block.shares, strict=False):
            _add_rise(op, value, p, rise)
        z_part.copy_(rise.mul_(q))  # d/dz = total σc Σ_f p_f f'(z)


def _gathered(dots: list[Tensor], plan: list[Node], steps: int, weights: Tensor) -> Tensor:
    """The gradient (E, O) of the mixture, zero where nothing was computed.

    `dots`: by step and node, last first: n inner products of total and s, then edge by edge
    those that `_back_through` adds. P's gradient, of total (1 - σc) and s, is their difference.
    """
    grad = torch.zeros_like(weights)
    if dots:
        sums = torch.cat(dots).view(steps, -1).sum(0)
        start = 0
        for node in reversed(plan):
            carried = sums[start : start + len(node.sources)]
            start += len(node.sources)
            for block in node.blocks:
                m, count = block.size, len(block.ops)
                own = sums[start : start + m * (count + 1)].view(m, count + 1)
                start += own.numel()
                mass = carried[block.at : block.at + m] - own[:, count]
                for k, (o, _) in enumerate(block.ops):
                    grad[block.edge : block.edge + m, o] = mass + own[:, k]
    return grad


def _tanh(z: Tensor, out: Tensor, lowest: Tensor) -> Tensor:
    """2 σ(2z) - 1, in `out`: three passes, and still 5 times as fast as torch.tanh on a CPU.

    lowest: -1 as a tensor, which costs less to hand over than a number.
    """
    torch.add(z, z, out=out).sigmoid_()
    return torch.add(lowest, out, alpha=2.0, out=out)


def _activate(op: str, z: Tensor, out: Tensor, lowest: Tensor) -> Tensor:
    """f(z), in `out` (or z itself for the identity)."""
    if op == "identity":
        return z
    if op == "tanh":
        return _tanh(z, out, lowest)
    if op == "sigmoid":
        return torch.sigmoid(z, out=out)
    assert op == "relu"
    return torch.clamp_min(z, 0.0, out=out)


def _add_rise(op: str, value: Tensor, p: Tensor, rise: Tensor) -> None:
    """rise += p f'(z), by the value f(z), which is lost."""
    if op == "tanh":  # 1 - f²
        rise.add_(torch.ops.aten.tanh_backward.grad_input(p, value, grad_input=value))
    elif op == "sigmoid":  # f (1 - f)
        rise.add_(torch.ops.aten.sigmoid_backward.grad_input(p, value, grad_input=value))
    elif op == "relu":  # 1 where z > 0
        rise.addcmul_(value.sign_(), p)
    else:
        rise.add_(p)
