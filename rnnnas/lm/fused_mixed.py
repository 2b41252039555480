"""The fast form of the cell under a mixture: one autograd node a window, its backward by hand.

Legend: T steps, B streams, H hidden, N nodes, E edges, O operations, n predecessors of a node.
Same values and gradients as `mixed.unroll_reference`, which is the oracle. What makes it fast:
one product a node over all its predecessors; gates and candidates are written where the
products stand and are overwritten by their own gradients on the way back; the activations are
computed again there instead of being kept; large buffers are reused from window to window, since
fresh pages cost as much as the arithmetic on them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rnnnas.lm.cell import input_product
from rnnnas.lm.mixed import EPSILON
from rnnnas.lm.pool import POOL
from rnnnas.nas.space import NONE, CellSpace
from rnnnas.ranks import ALONE, Ranks


def unroll(
    inputs: Tensor,
    h: Tensor,
    first: Tensor,
    nodes: Tensor,
    space: CellSpace,
    weights: Tensor,
    mask_x: Tensor | None,
    mask_h: Tensor | None,
    ranks: Ranks = ALONE,
) -> Tensor:
    """All T steps. inputs (T, B, D), h (B, H), weights (E, O) → outputs (T, B, H).

    The backward pass runs once; it can be neither repeated nor differentiated again.
    """
    from_x, from_h = input_product(inputs, first, mask_x), first[inputs.shape[-1] :]
    mask = h.new_ones(()) if mask_h is None else mask_h
    keep = torch.is_grad_enabled()
    outputs: Tensor = _MixedUnroll.apply(  # type: ignore[no-untyped-call]
        from_x, h, from_h, nodes, weights, mask, space, keep, ranks
    )
    return outputs


class _Window:
    """The buffers of one window; with `keep`, one slot a step, else one slot for all."""

    def __init__(self, like: Tensor, steps: int, streams: int, hidden: int, nodes: int) -> None:
        self.states = POOL.take(like, steps, nodes + 1, streams, hidden)  # s0 .. sN
        self.rstd = POOL.take(like, steps, nodes + 1, hidden)  # of the normalisations
        # σ(c) and z of s0 and of every node; later their gradients.
        self.gates = [POOL.take(like, steps, max(n, 1), streams, hidden) for n in range(nodes + 1)]
        self.inner = [POOL.take(like, steps, max(n, 1), streams, hidden) for n in range(nodes + 1)]

    def give_back(self) -> None:
        POOL.give(self.states, self.rstd, *self.gates, *self.inner)


def _normalise(raw: Tensor, out: Tensor, rstd: Tensor, ranks: Ranks) -> None:
    """Batch statistics of (B, H), of all ranks' streams; see `mixed.normalise`."""
    if ranks.size > 1:
        torch.sub(raw, ranks.mean(raw.mean(0)), out=out)
        torch.rsqrt(ranks.mean(out.square().mean(0)).add_(EPSILON), out=rstd)
        out.mul_(rstd)
        return
    result, _, scale = torch.native_batch_norm(raw, None, None, None, None, True, 0.0, EPSILON)
    out.copy_(result)
    rstd.copy_(scale)


def _through_normalise(slope: Tensor, state: Tensor, rstd: Tensor, ranks: Ranks) -> Tensor:
    """The gradient before a normalisation from the one after it. (B, H)."""
    along, level = (slope * state).mean(0), slope.mean(0)
    if ranks.size > 1:
        along, level = ranks.mean(torch.stack([along, level]))
    return (slope - level).addcmul_(state, along, value=-1.0).mul_(rstd)


class _MixedUnroll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        from_x: Tensor,
        h: Tensor,
        from_h: Tensor,
        nodes: Tensor,
        weights: Tensor,
        mask: Tensor,
        space: CellSpace,
        keep: bool,
        ranks: Ranks,
    ) -> Tensor:
        steps, streams, double = from_x.shape
        hidden, count = double // 2, len(nodes)
        keep = keep and any(ctx.needs_input_grad)
        window = _Window(from_x, steps if keep else 1, streams, hidden, count)
        outputs = from_x.new_empty(steps, streams, hidden)
        inner = POOL.take(from_x, count + 1, streams, hidden)  # states times the mask
        work = [POOL.take(from_x, count, streams, hidden) for _ in range(2)]
        columns = [(o, op) for o, op in enumerate(space.ops) if op != NONE]
        mass = weights[:, [o for o, _ in columns]].sum(-1)  # (E,)
        shares = weights.view(*weights.shape, 1, 1)
        carried = h
        for t in range(steps):
            slot = t if keep else 0
            states, rstd = window.states[slot], window.rstd[slot]
            gate, z = window.gates[0][slot, 0], window.inner[0][slot, 0]
            both = torch.addmm(from_x[t], carried * mask, from_h)
            torch.sigmoid(both[:, :hidden], out=gate)
            z.copy_(both[:, hidden:])
            _normalise(torch.lerp(carried, z.tanh(), gate), states[0], rstd[0], ranks)
            torch.mul(states[0], mask, out=inner[0])
            for node in range(count):
                rows = space.rows(node)
                n = len(rows)
                gate, z = window.gates[n][slot], window.inner[n][slot]  # (n, B, H)
                left = inner[:n].view(n * streams, hidden)
                torch.mm(left, nodes[node, :, :hidden], out=gate.view(n * streams, hidden))
                torch.mm(left, nodes[node, :, hidden:], out=z.view(n * streams, hidden))
                gate.sigmoid_()
                mix, f = work[0][:n], work[1][:n]
                _mixture(z, columns, shares[rows.start : rows.stop], mix, f)
                carry = torch.mul(states[:n], mass[rows.start : rows.stop].view(n, 1, 1), out=f)
                # (1 - σc) P s + σc Σ_f p_f f(z), summed over the predecessors.
                torch.lerp(carry, mix, gate, out=mix)
                _normalise(mix.sum(0), states[n], rstd[n], ranks)
                torch.mul(states[n], mask, out=inner[n])
            carried = torch.mean(states[1:], 0, out=outputs[t])
        POOL.give(inner, *work)
        if keep:
            ctx.save_for_backward(h, from_h, nodes, weights, mask, outputs)
            ctx.window, ctx.space, ctx.ranks = window, space, ranks
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
        space: CellSpace = ctx.space
        _, _, need_from_h, need_nodes, need_weights = ctx.needs_input_grad[:5]
        steps, streams, hidden = outputs.shape
        count = len(nodes)
        columns = [(o, op) for o, op in enumerate(space.ops) if op != NONE]
        mass = weights[:, [o for o, _ in columns]].sum(-1)
        shares = weights.view(*weights.shape, 1, 1)
        grad_x = outputs.new_empty(steps, streams, 2 * hidden)
        grad_nodes = torch.zeros_like(nodes) if need_nodes else None
        grad_weights = torch.zeros_like(weights) if need_weights else None
        slopes = POOL.take(outputs, count + 1, streams, hidden)  # of the states
        inner = POOL.take(outputs, count + 1, streams, hidden)
        work = [POOL.take(outputs, count, streams, hidden) for _ in range(5)]
        onward = torch.zeros_like(h)  # the gradient of h from the step after
        for t in reversed(range(steps)):
            states, rstd = window.states[t], window.rstd[t]
            torch.mul(states, mask, out=inner)
            slopes[0].zero_()
            slopes[1:] = (slope[t] + onward).div_(count)
            for node in reversed(range(count)):
                rows = space.rows(node)
                n = len(rows)
                gate, z = window.gates[n][t], window.inner[n][t]
                total = _through_normalise(slopes[n], states[n], rstd[n], ctx.ranks)  # (B, H)
                q, rest, mix, rise, f = (buffer[:n] for buffer in work)
                torch.mul(total, gate, out=q)
                torch.sub(total, q, out=rest)  # total (1 - σc)
                p = shares[rows.start : rows.stop]
                part = None if grad_weights is None else grad_weights[rows.start : rows.stop]
                _mixture_slopes(z, q, columns, p, mix, rise, f, part)
                if part is not None:
                    part[:, [o for o, _ in columns]] += _dots(rest, states[:n]).unsqueeze(1)
                rest_mass = mass[rows.start : rows.stop].view(n, 1, 1)
                mix.addcmul_(states[:n], rest_mass, value=-1.0)  # Σ_f p_f f(z) - P s
                # d/dc = total σc (1 - σc) (mix - P s), in the gate's place; d/dz = q Σ_f p_f f'(z).
                gate.mul_(rest).mul_(mix)
                torch.mul(q, rise, out=z)
                slopes[:n].addcmul_(rest, rest_mass)
                rows_left = n * streams
                back = f.view(rows_left, hidden)
                torch.mm(gate.view(rows_left, hidden), nodes[node, :, :hidden].t(), out=back)
                back.addmm_(z.view(rows_left, hidden), nodes[node, :, hidden:].t())
                slopes[:n].addcmul_(f, mask)
                if grad_nodes is not None:
                    left = inner[:n].view(rows_left, hidden).t()
                    grad_nodes[node, :, :hidden].addmm_(left, gate.view(rows_left, hidden))
                    grad_nodes[node, :, hidden:].addmm_(left, z.view(rows_left, hidden))
            before = h if t == 0 else outputs[t - 1]
            gate, f0 = window.gates[0][t, 0], window.inner[0][t, 0].tanh_()
            total = _through_normalise(slopes[0], states[0], rstd[0], ctx.ranks)
            q0 = total * gate
            grad_x[t, :, hidden:] = q0.addcmul(q0, f0.square(), value=-1.0)
            rest0 = total - q0
            grad_x[t, :, :hidden] = rest0 * gate * (f0 - before)
            onward = rest0.addcmul_(grad_x[t] @ from_h.t(), mask)
        grad_from_h = None
        if need_from_h:
            previous = torch.cat([h.unsqueeze(0), outputs[:-1]]) * mask  # (T, B, H)
            grad_from_h = previous.flatten(0, 1).t() @ grad_x.flatten(0, 1)
        POOL.give(slopes, inner, *work)
        window.give_back()
        return grad_x, onward, grad_from_h, grad_nodes, grad_weights, None, None, None, None


def _mixture(
    z: Tensor, columns: list[tuple[int, str]], shares: Tensor, mix: Tensor, f: Tensor
) -> None:
    """mix = Σ_f p_f f(z); `f` is scratch. z (n, B, H), shares (n, O, 1, 1)."""
    mix.zero_()
    for o, op in columns:
        mix.addcmul_(_activate(op, z, f), shares[:, o])


def _activate(op: str, z: Tensor, out: Tensor) -> Tensor:
    """f(z), in `out` (or z itself for the identity)."""
    if op == "identity":
        return z
    if op == "tanh":
        # 2 σ(2z) - 1: four passes, and still 4 times as fast as torch.tanh on a CPU.
        return torch.mul(z, 2.0, out=out).sigmoid_().mul_(2.0).sub_(1.0)
    if op == "sigmoid":
        return torch.sigmoid(z, out=out)
    assert op == "relu"
    return torch.clamp_min(z, 0.0, out=out)


def _mixture_slopes(
    z: Tensor, q: Tensor, columns: list[tuple[int, str]], shares: Tensor,
    mix: Tensor, rise: Tensor, f: Tensor, grad: Tensor | None,
) -> None:  # fmt: skip
    """mix = Σ_f p_f f(z) and rise = Σ_f p_f f'(z); adds q · f(z) to `grad` (n, O) of the shares."""
    mix.zero_()
    rise.copy_(shares[:, [o for o, op in columns if op in ("tanh", "identity")]].sum(1))
    for o, op in columns:
        p = shares[:, o]
        value = _activate(op, z, f)
        mix.addcmul_(value, p)
        if grad is not None:
            grad[:, o] += _dots(q, value)
        if op == "tanh":  # 1 - f²
            rise.addcmul_(f.mul_(f), p, value=-1.0)
        elif op == "sigmoid":  # f - f²
            rise.addcmul_(f, p).addcmul_(f.mul_(f), p, value=-1.0)
        elif op == "relu":  # 1 where z > 0
            rise.addcmul_(f.sign_(), p)


def _dots(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each of n pairs. (n, B, H) twice → (n,)."""
    return torch.stack([torch.dot(x, y) for x, y in zip(a.flatten(1), b.flatten(1), strict=True)])
