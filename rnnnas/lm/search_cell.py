"""The recurrent cell under a mixture, for search: the readable form, and a cheaper equal one.

Legend: T steps, B streams, D embedding, H hidden, N nodes, E edges, O operations; P (E, O) the
mixture. Weights as in `cell.py`. Every state passes a batch normalisation without affine
parameters that always uses the statistics of its own (B, H) batch: running statistics would mix
all nodes and time steps (facts of the public code, where it makes evaluation wrong).

Partial units (PC-DARTS, Xu et al. 2020, section 3.1, whose channels they are): where `nodes` is
(N, U, 2U) with U = H/K, the first U units of every predecessor go through the operations and the
others carry s_j as with a closed gate; then a node's units are rolled by U, which stands for the
paper's shuffle, so that the next node computes those that this one carried. s0 is full.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rnnnas.distributed import ALONE, Ranks
from rnnnas.errors import UsageError
from rnnnas.lm.cell import first_state, gated, input_product, masked
from rnnnas.nas.operations import function_of
from rnnnas.nas.space import NONE, CellSpace

EPSILON = 1e-5  # of the batch normalisation

Paths = Sequence[tuple[int, int]]
Route = tuple[tuple[int, tuple[int, ...]], ...]  # of a node: (edge, its operations), rising


def routes(space: CellSpace, paths: Paths | None) -> tuple[Route, ...]:
    """What every node computes: its edges and their operations but `none`, which adds nothing.

    Args:
        paths: the (edge, operation) pairs that are computed, None for all. A node on whose paths
            there is nothing but `none` has an empty route, and its state is zero.

    Raises:
        UsageError: naming a pair that is not in the space, or a node without any path.
    """
    table: list[set[int]] = [set() for _ in space.edges]
    everything = [(e, o) for e in range(len(space.edges)) for o in range(len(space.ops))]
    for edge, op in everything if paths is None else paths:
        if not (0 <= edge < len(space.edges) and 0 <= op < len(space.ops)):
            raise UsageError(
                f"path ({edge}, {op}) is not in a space of {len(space.edges)} edges and "
                f"{len(space.ops)} operations"
            )
        table[edge].add(op)
    result = []
    for node in range(space.nodes):
        rows = space.rows(node)
        if not any(table[edge] for edge in rows):
            raise UsageError(
                f"node {node + space.inputs} has no path: all its edges would be skipped",
                "a mixture's paths name at least one (edge, operation) of every node",
            )
        kept = [(e, tuple(o for o in sorted(table[e]) if space.ops[o] != NONE)) for e in rows]
        result.append(tuple((edge, ops) for edge, ops in kept if ops))
    return tuple(result)


def normalise(state: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Each of the H features to mean 0 and variance 1 over the B streams. (B, H) → (B, H).

    The statistics are those of the streams of all ranks.
    """
    centred = state - ranks.mean(state.mean(0))
    return centred * torch.rsqrt(ranks.mean(centred.square().mean(0)) + EPSILON)


def output_shares(space: CellSpace, ways: Sequence[Route], weights: Tensor) -> Tensor | None:
    """The share v of each node in the cell's output, (N,), adding up to 1; None for equal ones.

    Args:
        ways: what is computed, as `routes` says; other weights do not count.

    `last`: the last node alone. `loose_ends`: the chance that no later node takes the
    state, over the sum of these: v_j ∝ Π_i (1 - q_ij), with q_ij the mass of edge j > i but
    `none`'s among those of all edges of node i, times the edges that it keeps, 1 at most. Where a
    cell is drawn, whose weights are 0 and 1, the loose ends have equal shares; under a soft mixture
    it can be differentiated in the weights.
    """
    if space.output == "mean":
        return None
    if space.output == "last":
        return F.pad(weights.new_ones(1), (space.nodes - 1, 0))
    free = [weights.new_ones(())] * (space.inputs + space.nodes)
    for node, route in enumerate(ways):
        mass = [torch.stack([weights[edge, o] for o in ops]).sum() for edge, ops in route]
        if not mass:
            continue
        total = torch.stack(mass).sum()
        total = torch.where(total > 0, total, torch.ones_like(total))
        for (edge, _), own in zip(route, mass, strict=True):
            taken = (own * space.kept(node) / total).clamp(max=1.0)
            source = space.edges[edge][0]
            free[source] = free[source] * (1 - taken)
    loose = torch.stack(free[space.inputs :])
    return loose / loose.sum()


def _output(states: list[Tensor], parts: Tensor | None) -> Tensor:
    """The cell's output (B, H) of its states s0 to sN."""
    made = torch.stack(states[1:])
    return made.mean(0) if parts is None else (parts.view(-1, 1, 1) * made).sum(0)


def finished(total: Tensor, units: int, ranks: Ranks) -> Tensor:
    """A node's state from its sum: normalised, and rolled where only `units` are computed."""
    state = normalise(total, ranks)
    return state if units == total.shape[-1] else state.roll(units, -1)


def _prepared(
    nodes: Tensor, space: CellSpace, weights: Tensor, mask_h: Tensor | None, paths: Paths | None
) -> tuple[tuple[Route, ...], int, Tensor | None, Tensor | None]:
    """What every step needs: the routes, the units computed U, the mask of those, and the nodes'
    shares in the output.
    """
    ways = routes(space, paths)
    units = nodes.shape[1]
    mask = None if mask_h is None else mask_h[:, :units]
    return ways, units, mask, output_shares(space, ways, weights)


def unroll_reference(
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
    ranks: Ranks = ALONE,
) -> Tensor:
    """All T steps, operation by operation, as the definition says.

    s_i = BN(Σ_j Σ_f P[ji, f] u_jf), u_jf = s_j + sigmoid(c) (f(z) - s_j), [c, z] = (s_j mask) W_i.
    `none` adds nothing but takes mass. The output is Σ_i v_i s_i, see `output_shares`: the mean of
    s1 to sN unless the space says otherwise. Whether a node's edges are added or averaged is the
    same here: the normalisation takes any factor out.
    inputs (T, B, D), h (B, H), weights (E, O) → outputs (T, B, H). paths: see `routes`, and for
    what it raises; the others are skipped whatever their weight, and get no gradient.
    """
    ways, units, mask, parts = _prepared(nodes, space, weights, mask_h, paths)
    outputs = []
    for x in inputs:
        states = [normalise(first_state(x, h, first, mask_x, mask_h), ranks)]
        for weight, route in zip(nodes, ways, strict=True):
            total = torch.zeros_like(h)
            for edge, ops in route:
                s = states[space.edges[edge][0]]
                part, rest = s[:, :units], s[:, units:]
                c, z = (masked(part, mask) @ weight).chunk(2, -1)
                gate = torch.sigmoid(c)
                for o in ops:
                    value = part + gate * (function_of(space.ops[o])(z) - part)
                    if units < s.shape[-1]:
                        value = torch.cat([value, rest], -1)
                    total = total + weights[edge, o] * value
            states.append(finished(total, units, ranks))
        h = _output(states, parts)
        outputs.append(h)
    return torch.stack(outputs)


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
    ranks: Ranks = ALONE,
) -> Tensor:
    """The same outputs with one product a node and the gate taken out of the sum over f:

    Σ_j P_j s_j + σc_j (Σ_f P[j, f] f(z_j) - P_j s_j), with P_j the sum over f without `none`.
    The input's part of the first product is hoisted out of time. It can be differentiated twice.
    """
    ways, units, mask, parts = _prepared(nodes, space, weights, mask_h, paths)
    steps, streams, width = inputs.shape
    from_x, from_h = input_product(inputs, first, mask_x), first[width:]
    plans = [_shares(space, route, weights) for route in ways]
    outputs = []
    for t in range(steps):
        product = torch.addmm(from_x[t], masked(h, mask_h), from_h)
        states = [normalise(gated(h, product, "tanh"), ranks)]
        inner = [masked(states[0][:, :units], mask)]
        for weight, route, (mass, shares) in zip(nodes, ways, plans, strict=True):
            total = torch.zeros_like(h)
            if route:
                sources = [space.edges[edge][0] for edge, _ in route]
                taken = torch.stack([states[j] for j in sources])  # (n, B, H)
                left = torch.cat([inner[j] for j in sources])
                product = (left @ weight).view(len(route), streams, 2 * units)
                c, z = product.chunk(2, -1)
                carried = mass * taken
                mix = _mixture(z, shares) - carried[..., :units]
                gained = torch.sigmoid(c) * mix
                total = carried.sum(0) + F.pad(gained.sum(0), (0, h.shape[-1] - units))
            states.append(finished(total, units, ranks))
            inner.append(masked(states[-1][:, :units], mask))
        h = _output(states, parts)
        outputs.append(h)
    return torch.stack(outputs)


# Of a node's n computed edges: an operation, the places of the edges that have it (None: all of
# them) and its weights there (m, 1, 1).
Share = tuple[str, Tensor | None, Tensor]


def stretches(places: Sequence[int]) -> list[tuple[int, int]]:
    """Rising numbers as stretches (first, end) of neighbours."""
    found: list[tuple[int, int]] = []
    for place in places:
        if found and found[-1][1] == place:
            found[-1] = (found[-1][0], place + 1)
        else:
            found.append((place, place + 1))
    return found


def picked(table: Tensor, places: Sequence[int]) -> Tensor:
    """The rows of a table at rising places.

    Views put together: an index made of a list would be copied to a device, which waits for it.
    """
    parts = [table[first:end] for first, end in stretches(places)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _shares(space: CellSpace, route: Route, weights: Tensor) -> tuple[Tensor, list[Share]]:
    """P_j (n, 1, 1) of a node's computed edges, and the weights of its operations."""
    shares: list[Share] = []
    places = range(len(route))
    numbers = torch.arange(len(route), device=weights.device)
    mass = weights.new_zeros(len(route))
    for o, op in enumerate(space.ops):
        at = [k for k in places if o in route[k][1]]
        if at:
            p = picked(weights, [route[k][0] for k in at])[:, o]
            index = None if len(at) == len(route) else picked(numbers, at)
            mass = mass + p if index is None else mass.index_add(0, index, p)
            shares.append((op, index, p.reshape(-1, 1, 1)))
    return mass.view(-1, 1, 1), shares


def _mixture(z: Tensor, shares: list[Share]) -> Tensor:
    """Σ_f P[j, f] f(z_j). (n, B, U) → (n, B, U)."""
    mix = torch.zeros_like(z)
    for op, at, p in shares:
        if at is None:
            mix = mix + p * function_of(op)(z)
        else:
            mix = mix.index_add(0, at, p * function_of(op)(z.index_select(0, at)))
    return mix
