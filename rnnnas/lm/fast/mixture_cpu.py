"""What the fast mixed cell computes between its products, forward and backward.

Legend: B streams, E edges, O operations, H hidden, N nodes; U units computed, n computed edges of
a node, m of one block. `Elementwise` is made of torch's operations and runs everywhere;
`Compiled` gives the same values in one pass each.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rnnnas.distributed import Ranks
from rnnnas.lm.fast import cpu_library
from rnnnas.lm.fast.buffers import WORKSPACE
from rnnnas.lm.fast.mixture_plan import Node, taken
from rnnnas.lm.search_cell import EPSILON


class Elementwise:
    """The work of one pass over a window.

    Args:
        like: (B, H), of the states' type. units: U. mask: (B, H), or a single 1.
        gradients: whether the mixture's gradient will be asked for.
    """

    def __init__(
        self, like: Tensor, plan: Sequence[Node], units: int, mask: Tensor, ranks: Ranks,
        gradients: bool = False,
    ) -> None:  # fmt: skip
        self.plan = plan
        self.units = units
        self.mask = mask[:, :units] if mask.dim() else mask
        self.ranks = ranks
        self.gradients = gradients
        self._prepare(like)

    def _prepare(self, like: Tensor) -> None:
        plan = self.plan
        self._dots: list[Tensor] = []
        most = max([block.size for node in plan for block in node.blocks], default=0)
        kinds = max([len(block.ops) for node in plan for block in node.blocks], default=0)
        self._work = WORKSPACE.take(like, 6 + kinds, most, like.shape[0], self.units)

    def close(self) -> None:
        """Hand the buffers back."""
        WORKSPACE.give(self._work)

    def mix(self, i: int, product: Tensor, states: Tensor, total: Tensor) -> None:
        """total = Σ_j P_j s_j + σ(c_j) (Σ_f P[j, f] f(z_j) - P_j s_j) of node `i`.

        product (n, B, 2U) = [c, z], states (N+1, B, H) → total (B, H).
        """
        node, units, work = self.plan[i], self.units, self._work
        if not node.blocks:
            total.zero_()
            return
        hidden_state = taken(states, node).flatten(1)
        torch.mm(node.masses, hidden_state, out=total.view(1, -1))  # Σ_j P_j s_j
        inside = total[:, :units]
        cs, zs = product[..., :units], product[..., units:]
        for block in node.blocks:
            m, at = block.size, block.at
            gate, z, gain, f = (work if m == work.shape[1] else work[:, :m]).unbind(0)[:4]
            gate.copy_(cs[at : at + m]).sigmoid_()
            z.copy_(zs[at : at + m])
            torch.mul(states[block.source : block.source + m, :, :units], block.minus, out=gain)
            for (_, op), p in zip(block.ops, block.shares, strict=True):
                gain.addcmul_(_activate(op, z, f), p)
            if m == 1:
                inside.addcmul_(gate[0], gain[0])
            else:
                inside += gain.mul_(gate).sum(0)

    def mix_back(
        self, i: int, product: Tensor, states: Tensor, gradient: Tensor, gradients: Tensor
    ) -> None:
        """Back through `mix`: the product becomes its own gradient, in place.

        gradient (B, H): the gradient of the total. Adds what reaches the predecessors directly to
        their `gradients` (N+1, B, H), and keeps the inner products of the mixture's gradient: of
        gradient and s, then edge by edge of gradient σ(c) with the values of all operations and
        with s.
        """
        node, units, work = self.plan[i], self.units, self._work
        cs, zs = product[..., :units], product[..., units:]
        inside, rest_units = gradient[:, :units], gradient[:, units:]
        if self.gradients:
            self._dots.append(torch.mv(taken(states, node).flatten(1), gradient.flatten()))
        for block in node.blocks:
            m, at, source, count = block.size, block.at, block.source, len(block.ops)
            gate, q, rest, gain, rise, *_ = (work if m == work.shape[1] else work[:, :m]).unbind(0)
            values = work[5 : 6 + count, :m]  # of the operations; the last is z, the identity's too
            z = values[count - 1] if block.ops[-1][1] == "identity" else values[count]
            s = states[source : source + m, :, :units]
            c_part, z_part = cs[at : at + m], zs[at : at + m]
            reach = gradients[source : source + m]
            gate.copy_(c_part).sigmoid_()
            z.copy_(z_part)
            torch.mul(gate, inside, out=q)
            torch.sub(inside, q, out=rest)  # gradient (1 - σ(c))
            reach[..., :units].addcmul_(rest, block.mass)
            if units < gradient.shape[-1]:
                reach[..., units:].addcmul_(rest_units, block.mass)
            torch.mul(s, block.minus, out=gain)
            for value, (_, op), p in zip(values.unbind(0), block.ops, block.shares, strict=False):
                result = _activate(op, z, value)
                gain.addcmul_(result, p)
                if result.data_ptr() != value.data_ptr():
                    value.copy_(result)  # the identity, where it is not the last operation
            if self.gradients:
                for e in range(m):
                    own = q[e].view(-1)
                    self._dots.append(torch.mv(values[:count, e].flatten(1), own))
                    self._dots.append(torch.dot(own, s[e].flatten()).view(1))
            c_part.copy_(gain.mul_(rest).mul_(gate))  # d/dc = gradient σ (1 - σ) gain
            rise.zero_()
            for value, (_, op), p in zip(values.unbind(0), block.ops, block.shares, strict=False):
                _add_rise(op, value, p, rise)
            z_part.copy_(rise.mul_(q))  # d/dz = gradient σ Σ_f p_f f'(z)

    def reach(self, i: int, back: Tensor, gradients: Tensor) -> None:
        """Add what comes back through node `i`'s product, (n, B, U), to its sources' gradients."""
        for block in self.plan[i].blocks:
            own = back[block.at : block.at + block.size]
            if own.dtype != gradients.dtype:
                own = self._work[0, : block.size].copy_(own)
            part = gradients[block.source : block.source + block.size, :, : self.units]
            part.addcmul_(own, self.mask)

    def normalise(self, raw: Tensor, state: Tensor, rstd: Tensor, inner: Tensor, roll: int) -> None:
        """Batch statistics of raw (B, H) over the streams of all ranks; see
        `search_cell.normalise`.

        Writes state (B, H), rolled by `roll` units as in `search_cell.finished`, what it was scaled
        by, rstd (H), and inner (B, U): the state times the mask, as the next products take it.
        """
        if self.ranks.size > 1:
            result = raw - self.ranks.mean(raw.mean(0))
            scale = torch.rsqrt(self.ranks.mean(result.square().mean(0)).add_(EPSILON))
            result.mul_(scale)
        else:
            result, _, scale = torch.native_batch_norm(
                raw, None, None, None, None, True, 0.0, EPSILON
            )
        if roll:
            result, scale = result.roll(roll, -1), scale.roll(roll)
        state.copy_(result)
        rstd.copy_(scale)
        torch.mul(state[:, : self.units], self.mask, out=inner)

    def normalise_back(self, gradient: Tensor, state: Tensor, rstd: Tensor, roll: int) -> Tensor:
        """The gradient before `normalise` from the one after it. (B, H)."""
        along, level = (gradient * state).mean(0), gradient.mean(0)
        if self.ranks.size > 1:
            along, level = self.ranks.mean(torch.stack([along, level]))
        result = (gradient - level).addcmul_(state, along, value=-1.0).mul_(rstd)
        return result.roll(-roll, -1) if roll else result

    def gathered(self, steps: int, like: Tensor) -> Tensor:
        """The gradient (E, O) of the mixture `like`, zero where nothing was computed.

        Of every operation with weight p: gradient σ f(z), and gradient (1 - σ) s through P.
        """
        grad = torch.zeros_like(like)
        if not self._dots:
            return grad
        sums = torch.cat(self._dots).view(steps, -1).sum(0)
        start = 0
        for node in reversed(self.plan):
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


class Compiled(Elementwise):
    """The same by `kernels_*.cpp`; for tensors that are `cpu_library.usable`."""

    def _prepare(self, like: Tensor) -> None:
        streams, hidden = like.shape
        rows, units = streams, self.units
        whole = (streams, self.units)
        self._mask = self.mask.expand(whole).contiguous() if self.mask.dim() else None
        self._masked = 0 if self._mask is None else self._mask.data_ptr()
        self._threads = torch.get_num_threads()
        self._tables, self._sources, self._sums = [], [], []
        parts = math.ceil(streams / cpu_library.PART)
        for node in self.plan:
            n = len(node.sources)
            table = like.new_zeros(n, len(cpu_library.COLUMNS))
            for block in node.blocks:
                own = table[block.at : block.at + block.size]
                own[:, 0] = block.mass.view(-1)
                for (_, op), p in zip(block.ops, block.shares, strict=True):
                    own[:, cpu_library.COLUMNS.index(op)] = p.view(-1)
            self._tables.append(table)
            self._sources.append((ctypes.c_int64 * n)(*node.sources))
            self._sums.append(like.new_zeros(parts, n, len(cpu_library.COLUMNS)))
        self._sizes = [(len(node.sources), rows, hidden, units) for node in self.plan]
        self._given = [
            (ctypes.addressof(sources), table.data_ptr())
            for sources, table in zip(self._sources, self._tables, strict=True)
        ]

    def close(self) -> None:
        pass

    def mix(self, i: int, product: Tensor, states: Tensor, total: Tensor) -> None:
        cpu_library.function("mix", product.dtype)(
            *self._sizes[i], *self._given[i], product.data_ptr(), states.data_ptr(),
            total.data_ptr(), self._threads,
        )  # fmt: skip

    def mix_back(
        self, i: int, product: Tensor, states: Tensor, gradient: Tensor, gradients: Tensor
    ) -> None:
        cpu_library.function("mix_back", product.dtype)(
            *self._sizes[i], *self._given[i], product.data_ptr(), states.data_ptr(),
            gradient.data_ptr(), gradients.data_ptr(), self._sums[i].data_ptr(), self._threads,
        )  # fmt: skip

    def reach(self, i: int, back: Tensor, gradients: Tensor) -> None:
        cpu_library.function("reach", back.dtype)(
            *self._sizes[i], self._given[i][0], back.data_ptr(), self._masked, gradients.data_ptr(),
            self._threads,
        )  # fmt: skip

    def normalise(self, raw: Tensor, state: Tensor, rstd: Tensor, inner: Tensor, roll: int) -> None:
        if self.ranks.size > 1:
            super().normalise(raw, state, rstd, inner, roll)
            return
        cpu_library.function("normalise", inner.dtype)(
            *raw.shape, self.units, roll, EPSILON, raw.data_ptr(), self._masked,
            state.data_ptr(), rstd.data_ptr(), inner.data_ptr(), self._threads,
        )  # fmt: skip

    def normalise_back(self, gradient: Tensor, state: Tensor, rstd: Tensor, roll: int) -> Tensor:
        if self.ranks.size > 1:
            return super().normalise_back(gradient, state, rstd, roll)
        total = torch.empty_like(gradient)
        cpu_library.function("normalise_back", gradient.dtype)(
            *gradient.shape, roll, gradient.data_ptr(), state.data_ptr(), rstd.data_ptr(),
            total.data_ptr(), self._threads,
        )  # fmt: skip
        return total

    def gathered(self, steps: int, like: Tensor) -> Tensor:
        grad = torch.zeros_like(like)
        for node, parts in zip(self.plan, self._sums, strict=True):
            sums = parts.sum(0, dtype=torch.float64).to(grad.dtype)
            for block in node.blocks:
                own = sums[block.at : block.at + block.size]
                for o, op in block.ops:
                    column = own[:, 0] + own[:, cpu_library.COLUMNS.index(op)]
                    grad[block.edge : block.edge + block.size, o] = column
        return grad


def _activate(op: str, z: Tensor, out: Tensor) -> Tensor:
    """f(z), in `out` (or z itself for the identity)."""
    if op == "identity":
        return z
    if op == "tanh":
        return torch.tanh(z, out=out)
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
