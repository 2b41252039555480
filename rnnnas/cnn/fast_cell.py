"""The cell under a mixture, with what its edges share computed once: same values, less work.

Legend as in `cell.py`. Exactly equal, but for rounding, because
- every convolution's operation begins with a ReLU of its state: one a state serves all edges;
- a pool and its normalisation own no weights: one a state and stride serves all edges;
- P[e, o] · BN(z) is a normalisation whose scale is P[e, o]: no pass of its own;
- the channels' shuffle and concatenation are linear: one a node serves all its edges.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rnnnas.cnn import fast_batch_norm
from rnnnas.cnn.cell import SKIP, MixedCell, by_edge, shuffle
from rnnnas.cnn.ops import EPSILON, Identity, Pool
from rnnnas.nas.relax.base import Mixture
from rnnnas.nas.space import NONE


class _State:
    """A state with what edges share of it. x (B, C, h, w); the first `mixed` channels pass."""

    def __init__(self, x: Tensor, mixed: int) -> None:
        self.inner = x[:, :mixed] if mixed < x.shape[1] else x
        self.rest = x[:, mixed:]
        self.made: dict[Any, Tensor] = {}

    def rectified(self) -> Tensor:
        if "relu" not in self.made:
            self.made["relu"] = self.inner.relu()
        return self.made["relu"]

    def pooled(self, module: Pool, train: bool) -> Tensor:
        key = module.kind, module.stride
        if key not in self.made:
            self.made[key] = module(self.inner, train)
        return self.made[key]

    def bypass(self, stride: int) -> Tensor:
        if stride == 1:
            return self.rest
        if "bypass" not in self.made:
            self.made["bypass"] = F.max_pool2d(self.rest, 2, 2, ceil_mode=True)
        return self.made["bypass"]


def run(
    cell: MixedCell,
    older: Tensor,
    last: Tensor,
    mixture: Mixture,
    skips: Tensor | None,
    kept: float,
    train: bool,
) -> Tensor:
    """What `cell(...)` gives, of the same arguments."""
    entries = cell.entries(older, last, train)
    states = [_State(x, cell.mixed) for x in entries]
    chosen = by_edge(cell.space, mixture)
    shares = [row.unbind() for row in mixture.weights.unbind()]
    # Copies: torch 2.13's backward pass reads past a scale of stride 0 in channels-last order.
    wide = mixture.weights[:, :, None].repeat(1, 1, cell.mixed)
    scales = [row.unbind() for row in wide.unbind()]
    outputs = []
    for node in range(cell.space.nodes):
        total: Tensor | None = None
        bypass: Tensor | None = None
        for edge in cell.space.rows(node):
            state, row = states[cell.space.edges[edge][0]], mixture.weights[edge]
            for o in chosen[edge]:
                if cell.space.ops[o] != NONE:
                    mask = None if skips is None else (skips, kept)
                    op, share, scale = cell.space.ops[o], shares[edge][o], scales[edge][o]
                    term = _term(cell, edge, op, state, share, scale, mask, train)
                    total = term if total is None else total + term
            if cell.partial > 1 and chosen[edge]:
                share = row if len(chosen[edge]) == len(row) else row[chosen[edge]]
                term = share.sum() * state.bypass(cell.stride(edge))
                bypass = term if bypass is None else bypass + term
        size = [-(-n // (2 if cell.reduce else 1)) for n in entries[1].shape[2:]]
        if total is None:
            total = entries[1].new_zeros((len(last), cell.mixed, *size))
        if cell.partial > 1:
            if bypass is None:
                bypass = entries[1].new_zeros((len(last), entries[1].shape[1] - cell.mixed, *size))
            total = shuffle(torch.cat([total, bypass], 1), cell.partial)
        outputs.append(total)
        states.append(_State(total, cell.mixed))
    return torch.cat(outputs, 1)


def _term(
    cell: MixedCell,
    edge: int,
    op: str,
    state: _State,
    weight: Tensor,
    scale: Tensor,
    mask: tuple[Tensor, float] | None,
    train: bool,
) -> Tensor:
    """weight · op(state). (B, C/K, h', w'). scale: weight once a channel, (C/K,)."""
    module: Any = cell.operations(edge)[op]
    if isinstance(module, Pool):
        return weight * state.pooled(module, train)
    if isinstance(module, Identity):
        if op == SKIP and mask is not None:
            return state.inner * mask[0][cell.identities.index(edge)] * (weight / mask[1])
        return weight * state.inner
    out = module.rectified(state.rectified(), train)
    if fast_batch_norm.suits(out):
        return fast_batch_norm.batch_norm(out, None, None, scale, None, 0.0, EPSILON)
    return F.batch_norm(out, None, None, scale, None, True, 0.0, EPSILON)
