"""What lies between the products of `tangent_mixture.py`, values and tangents together.

Legend: B streams, H hidden, N nodes, E edges, O operations; U units computed, n computed edges of a
node, m of one block. Of an edge with weights p, mass P, product [c, z] and source s, a dot for the
tangent: g = sigmoid(c), gain = sum_f p_f f(z) - P s, rise = sum_f p_f f'(z), and

    total' = P s' + g' gain + g gain',  g' = g (1 - g) c',  gain' = rise z' - P s'.

`Elementwise` is made of torch's operations and runs everywhere; `Compiled` gives the same values in
one pass each. d is a gradient as a plain pass has it (of a tangent here), dd its derivative along
the direction (the gradient of a value here).
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rnnnas.distributed import Ranks
from rnnnas.lm.fast import cpu_library
from rnnnas.lm.fast.mixture_plan import Block, Node
from rnnnas.lm.search_cell import EPSILON


class Elementwise:
    """The work of one pass over a window.

    Args:
        like: (B, H), of the states' type. units: U. mask: (B, H), or a single 1.
    """

    def __init__(
        self, like: Tensor, plan: Sequence[Node], units: int, mask: Tensor, ranks: Ranks
    ) -> None:
        self.plan = plan
        self.units = units
        self.mask = mask[:, :units] if mask.dim() else mask
        self.ranks = ranks
        self._prepare(like)

    def _prepare(self, like: Tensor) -> None:
        # By node: of every computed edge, what the mass and the operations' weights get.
        columns = len(cpu_library.COLUMNS)
        self._dots = [like.new_zeros(len(node.sources), columns) for node in self.plan]

    def mix(
        self, i: int, product: Tensor, dproduct: Tensor, states: Tensor, dstates: Tensor,
        total: Tensor, dtotal: Tensor,
    ) -> None:  # fmt: skip
        """The totals of node `i` and their tangents, (B, H).

        product, dproduct (n, B, 2U); states, dstates (N+1, B, H).
        """
        units = self.units
        total.zero_()
        dtotal.zero_()
        product, dproduct = _edges(product), _edges(dproduct)
        for block in self.plan[i].blocks:
            part = slice(block.at, block.at + block.size)
            rows = slice(block.source, block.source + block.size)
            s, ds = states[rows], dstates[rows]
            c, z, dc, dz = _halves(product[part], dproduct[part], total.dtype)
            gate = torch.sigmoid(c)
            value, rise, _ = _mixed(block, z)
            gain = value - block.mass * s[..., :units]
            dgain = rise * dz - block.mass * ds[..., :units]
            total += (block.mass * s).sum(0)
            dtotal += (block.mass * ds).sum(0)
            total[:, :units] += (gate * gain).sum(0)
            dtotal[:, :units] += (gate * ((1 - gate) * dc * gain + dgain)).sum(0)

    def mix_back(
        self, i: int, product: Tensor, dproduct: Tensor, states: Tensor, dstates: Tensor,
        gradient: Tensor, dgradient: Tensor, d: Tensor, dd: Tensor, dense: Tensor, pair: Tensor,
    ) -> None:  # fmt: skip
        """Back through `mix`: gradient and dslope (B, H) are d and dd of the totals.

        Writes dense (n, B, 2U) and pair (n, B, 4U): of the products d, and dd beside d. Adds what
        reaches the predecessors directly to their d and dd (N+1, B, H), and keeps the mixture's dd.
        """
        units = self.units
        product, dproduct = _edges(product), _edges(dproduct)
        inside, dinside = gradient[:, :units], dgradient[:, :units]
        for block in self.plan[i].blocks:
            part = slice(block.at, block.at + block.size)
            rows = slice(block.source, block.source + block.size)
            s, ds = states[rows], dstates[rows]
            own, down = s[..., :units], ds[..., :units]
            c, z, dc, dz = _halves(product[part], dproduct[part], gradient.dtype)
            gate = torch.sigmoid(c)
            dgate = gate * (1 - gate) * dc
            value, rise, bend = _mixed(block, z)
            gain, dgain = value - block.mass * own, rise * dz - block.mass * down
            through, rest = inside * gate, inside * (1 - gate)
            dthrough = dinside * gate + inside * dgate
            drest = dinside - dthrough
            of_c, of_z = rest * gate * gain, through * rise
            dof_c = drest * gate * gain + rest * (dgate * gain + gate * dgain)
            dof_z = dthrough * rise + through * bend * dz
            dense[part] = torch.cat([of_c, of_z], -1).to(dense.dtype)
            pair[part] = torch.cat([dof_c, dof_z, of_c, of_z], -1).to(pair.dtype)
            d[rows, :, :units] += rest * block.mass
            dd[rows, :, :units] += drest * block.mass
            d[rows, :, units:] += gradient[:, units:] * block.mass
            dd[rows, :, units:] += dgradient[:, units:] * block.mass
            sums = self._dots[i][part]
            sums[:, 0] += (drest * own + rest * down).sum((1, 2))
            beyond = dgradient[:, units:] * s[..., units:] + gradient[:, units:] * ds[..., units:]
            sums[:, 0] += beyond.sum((1, 2))
            for _, op in block.ops:
                f, first, _ = _derivatives(op, z)
                at = cpu_library.COLUMNS.index(op)
                sums[:, at] += (dthrough * f + through * first * dz).sum((1, 2))

    def reach(self, i: int, back: Tensor, gradients: Tensor) -> None:
        """Add what comes back through node `i`'s product, (n, B, U), to its sources' gradients."""
        for block in self.plan[i].blocks:
            own = back[block.at : block.at + block.size].to(gradients.dtype)
            part = gradients[block.source : block.source + block.size, :, : self.units]
            part.addcmul_(own, self.mask)

    def normalise(
        self, raw: Tensor, draw: Tensor, state: Tensor, dstate: Tensor, rstd: Tensor,
        slant: Tensor, inner: Tensor, pair: Tensor, roll: int,
    ) -> None:  # fmt: skip
        """A node's state and its tangent (B, H) of its totals, rolled by `roll` units.

        With y the state, 1/rstd its deviation: y' = rstd (x' - mean x' - y slant), slant = mean
        y x'. Writes rstd and slant (H), and the state times the mask as the next products take it:
        inner (B, U), and pair (B, 2U) = [y' y].
        """
        mean = self.ranks.mean(torch.stack([raw.mean(0), draw.mean(0)]))
        centred, dcentred = raw - mean[0], draw - mean[1]
        spread = self.ranks.mean(torch.stack([centred.square().mean(0), (centred * draw).mean(0)]))
        scale = torch.rsqrt(spread[0] + EPSILON)
        along = spread[1] * scale
        result = centred * scale
        tangent = (dcentred - result * along) * scale
        for place, tensor in ((state, result), (dstate, tangent), (rstd, scale), (slant, along)):
            place.copy_(tensor.roll(roll, -1) if roll else tensor)
        units = self.units
        inner.copy_(state[:, :units] * self.mask)
        pair[:, :units] = dstate[:, :units] * self.mask
        pair[:, units:] = inner

    def normalise_back(
        self, d: Tensor, dd: Tensor, state: Tensor, dstate: Tensor, rstd: Tensor, slant: Tensor,
        roll: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """d and dd of the totals from those of the state. All (B, H)."""
        level, along, dlevel, dalong = self.ranks.mean(
            torch.stack([t.mean(0) for t in (d, d * state, dd, dd * state + d * dstate)])
        )
        result = (d - level - state * along) * rstd
        tangent = (dd - dlevel - dstate * along - state * dalong - slant * result) * rstd
        if roll:
            result, tangent = result.roll(-roll, -1), tangent.roll(-roll, -1)
        return result, tangent

    def _sums(self) -> list[Tensor]:
        """Of every node's computed edges, (n, 5) by COLUMNS."""
        return self._dots

    def gathered(self, like: Tensor) -> Tensor:
        """dd (E, O) of the mixture `like`, zero where nothing was computed."""
        grad = torch.zeros_like(like)
        for node, sums in zip(self.plan, self._sums(), strict=True):
            for block in node.blocks:
                own = sums[block.at : block.at + block.size]
                for o, op in block.ops:
                    column = own[:, 0] + own[:, cpu_library.COLUMNS.index(op)]
                    grad[block.edge : block.edge + block.size, o] = column
        return grad


def _edges(product: Tensor) -> Tensor:
    """(n, B, 2U), also where it is that of the one edge of the first state."""
    return product if product.dim() == 3 else product.unsqueeze(0)


def _halves(product: Tensor, dproduct: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """c, z and their tangents."""
    return [half.to(dtype) for both in (product, dproduct) for half in both.chunk(2, -1)]


def _derivatives(op: str, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """f(z), f'(z), f''(z)."""
    if op == "tanh":
        f = torch.tanh(z)
        rise = 1 - f * f
        return f, rise, -2 * f * rise
    if op == "sigmoid":
        f = torch.sigmoid(z)
        rise = f * (1 - f)
        return f, rise, rise * (1 - 2 * f)
    nothing = torch.zeros_like(z)
    if op == "relu":
        return torch.clamp_min(z, 0.0), (z > 0).to(z.dtype), nothing
    assert op == "identity"
    return z, torch.ones_like(z), nothing


def _mixed(block: Block, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over a block's operations: p f(z), p f'(z), p f''(z), (m, B, U) each."""
    sums = [torch.zeros_like(z) for _ in range(3)]
    for (_, op), p in zip(block.ops, block.shares, strict=True):
        for total, part in zip(sums, _derivatives(op, z), strict=True):
            total += p * part
    return sums[0], sums[1], sums[2]


class Compiled(Elementwise):
    """The same by `kernels_tangent.cpp`; for tensors that are `cpu_library.usable`."""

    def _prepare(self, like: Tensor) -> None:
        streams, hidden = like.shape
        whole = (streams, self.units)
        self._mask = self.mask.expand(whole).contiguous() if self.mask.dim() else None
        self._masked = 0 if self._mask is None else self._mask.data_ptr()
        self._threads = torch.get_num_threads()
        parts = math.ceil(streams / cpu_library.PART)
        self._tables, self._parts, self._given, self._sizes = [], [], [], []
        for node in self.plan:
            n = len(node.sources)
            table = like.new_zeros(n, len(cpu_library.COLUMNS))
            for block in node.blocks:
                own = table[block.at : block.at + block.size]
                own[:, 0] = block.mass.view(-1)
                for (_, op), p in zip(block.ops, block.shares, strict=True):
                    own[:, cpu_library.COLUMNS.index(op)] = p.view(-1)
            sources = (ctypes.c_int64 * n)(*node.sources)
            self._tables.append((table, sources))
            self._parts.append(like.new_zeros(parts, n, len(cpu_library.COLUMNS)))
            self._given.append((ctypes.addressof(sources), table.data_ptr()))
            self._sizes.append((n, streams, hidden, self.units))

    def mix(
        self, i: int, product: Tensor, dproduct: Tensor, states: Tensor, dstates: Tensor,
        total: Tensor, dtotal: Tensor,
    ) -> None:  # fmt: skip
        cpu_library.function("dual_mix", product.dtype)(
            *self._sizes[i], *self._given[i],
            *(t.data_ptr() for t in (product, dproduct, states, dstates, total, dtotal)),
            self._threads,
        )  # fmt: skip

    def mix_back(
        self, i: int, product: Tensor, dproduct: Tensor, states: Tensor, dstates: Tensor,
        gradient: Tensor, dgradient: Tensor, d: Tensor, dd: Tensor, dense: Tensor, pair: Tensor,
    ) -> None:  # fmt: skip
        tensors = (
            product, dproduct, states, dstates, gradient, dgradient, d, dd, dense, pair,
        self._parts[i] )  # fmt: skip
        cpu_library.function("dual_mix_back", product.dtype)(
            *self._sizes[i], *self._given[i], *(t.data_ptr() for t in tensors), self._threads
        )

    def reach(self, i: int, back: Tensor, gradients: Tensor) -> None:
        cpu_library.function("reach", back.dtype)(
            *self._sizes[i], self._given[i][0], back.data_ptr(), self._masked, gradients.data_ptr(),
            self._threads,
        )  # fmt: skip

    def normalise(
        self, raw: Tensor, draw: Tensor, state: Tensor, dstate: Tensor, rstd: Tensor,
        slant: Tensor, inner: Tensor, pair: Tensor, roll: int,
    ) -> None:  # fmt: skip
        if self.ranks.size > 1:
            super().normalise(raw, draw, state, dstate, rstd, slant, inner, pair, roll)
            return
        cpu_library.function("dual_normalise", inner.dtype)(
            *raw.shape, self.units, roll, EPSILON, raw.data_ptr(), draw.data_ptr(), self._masked,
            *(t.data_ptr() for t in (state, dstate, rstd, slant, inner, pair)), self._threads,
        )  # fmt: skip

    def normalise_back(
        self, d: Tensor, dd: Tensor, state: Tensor, dstate: Tensor, rstd: Tensor, slant: Tensor,
        roll: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        if self.ranks.size > 1:
            return super().normalise_back(d, dd, state, dstate, rstd, slant, roll)
        result, tangent = torch.empty_like(d), torch.empty_like(d)
        cpu_library.function("dual_normalise_back", d.dtype)(
            *d.shape, roll,
            *(t.data_ptr() for t in (d, dd, state, dstate, rstd, slant, result, tangent)),
            self._threads,
        )  # fmt: skip
        return result, tangent

    def _sums(self) -> list[Tensor]:
        return [parts.sum(0, dtype=torch.float64).to(parts.dtype) for parts in self._parts]
