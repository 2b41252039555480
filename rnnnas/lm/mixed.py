"""The recurrent cell under a mixture, for search: the readable form, and a cheaper equal one.

Legend: T steps, B streams, D embedding, H hidden, N nodes, E edges, O operations; P (E, O) the
mixture. Weights as in `cell.py`. Every state passes a batch normalisation without affine
parameters that always uses the statistics of its own (B, H) batch: running statistics would mix
all nodes and time steps (facts of the public code, where it makes evaluation wrong).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rnnnas.lm.cell import ACTIVATIONS, first_state, gated, input_product, masked
from rnnnas.nas.space import NONE, CellSpace
from rnnnas.ranks import ALONE, Ranks

EPSILON = 1e-5  # of the batch normalisation


def normalise(state: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Each of the H features to mean 0 and variance 1 over the B streams. (B, H) → (B, H).

    The statistics are those of the streams of all ranks.
    """
    centred = state - ranks.mean(state.mean(0))
    return centred * torch.rsqrt(ranks.mean(centred.square().mean(0)) + EPSILON)


def unroll_reference(
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
    """All T steps, operation by operation, as the definition says.

    s_i = BN(Σ_j Σ_f P[ji, f] u_jf), u_jf = s_j + sigmoid(c) (f(z) - s_j), [c, z] = (s_j mask) W_i.
    `none` adds nothing but takes mass. The output is the mean of s1 to sN.
    inputs (T, B, D), h (B, H), weights (E, O) → outputs (T, B, H).
    """
    outputs = []
    for x in inputs:
        states = [normalise(first_state(x, h, first, mask_x, mask_h), ranks)]
        for node, weight in enumerate(nodes):
            total = torch.zeros_like(h)
            for edge in space.rows(node):
                s = states[space.edges[edge][0]]
                product = masked(s, mask_h) @ weight
                for o, op in enumerate(space.ops):
                    if op != NONE:
                        total = total + weights[edge, o] * gated(s, product, op)
            states.append(normalise(total, ranks))
        h = torch.stack(states[1:]).mean(0)
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
    ranks: Ranks = ALONE,
) -> Tensor:
    """The same outputs with one product a node and the gate taken out of the sum over f:

    Σ_j (1 - σc_j) (P_j s_j) + σc_j Σ_f P[j, f] f(z_j), with P_j the sum over f without `none`.
    The input's part of the first product is hoisted out of time. It can be differentiated twice.
    """
    steps, streams, width = inputs.shape
    hidden = h.shape[-1]
    from_x, from_h = input_product(inputs, first, mask_x), first[width:]
    columns = [(o, op) for o, op in enumerate(space.ops) if op != NONE]
    mass = weights[:, [o for o, _ in columns]].sum(-1)  # (E,)
    outputs = []
    for t in range(steps):
        product = torch.addmm(from_x[t], masked(h, mask_h), from_h)
        state = normalise(gated(h, product, "tanh"), ranks)
        states = state.unsqueeze(0)  # (node + 1, B, H), grows by one a node
        inner = masked(state, mask_h).unsqueeze(0)  # the same, masked for the products
        for node, weight in enumerate(nodes):
            rows = space.rows(node)
            p = weights[rows.start : rows.stop]
            product = (inner.view(-1, hidden) @ weight).view(len(rows), streams, 2 * hidden)
            c, z = product.chunk(2, -1)
            gate = torch.sigmoid(c)
            mix = sum(p[:, o].view(-1, 1, 1) * ACTIVATIONS[op](z) for o, op in columns)
            carried = mass[rows.start : rows.stop].view(-1, 1, 1) * states
            state = normalise((carried + gate * (mix - carried)).sum(0), ranks)
            states = torch.cat([states, state.unsqueeze(0)])
            inner = torch.cat([inner, masked(state, mask_h).unsqueeze(0)])
        h = states[1:].mean(0)
        outputs.append(h)
    return torch.stack(outputs)
