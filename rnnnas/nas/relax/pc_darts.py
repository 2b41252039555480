"""PC-DARTS: shares of edges beside shares of operations (Xu et al., ICLR 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rnnnas.nas.relax.base import Alphas, Fixed, Spaces, allowed_softmax, fresh


@dataclass(frozen=True, slots=True, kw_only=True)
class PcDarts(Fixed):
    """softmax(α) over an edge's operations times softmax(β) over a node's edges (equation 3).

    "NAME.beta", (E, 1), stands beside the alphas of cell NAME. That only a share of a state's
    features passes the mixture is the network's doing, `model.partial`.
    """

    def init(self, spaces: Spaces, generator: torch.Generator) -> dict[str, Tensor]:
        parameters = {}
        for name, space in spaces.items():
            edges = len(space.edges)
            parameters[name] = fresh(edges, len(space.ops), generator=generator)
            parameters[f"{name}.beta"] = fresh(edges, 1, generator=generator)
        return parameters

    def scores(self, alphas: Alphas, spaces: Spaces) -> dict[str, Tensor]:
        scores = {}
        for name, space in spaces.items():
            beta = alphas[f"{name}.beta"]
            usable = torch.tensor([[any(row)] for row in space.allowed], device=beta.device)
            beta = beta.masked_fill(~usable, -torch.inf)
            rows = [space.rows(node) for node in range(space.nodes)]
            shares = torch.cat([beta[r.start : r.stop].softmax(0) for r in rows])
            scores[name] = allowed_softmax(alphas[name], space) * shares
        return scores
