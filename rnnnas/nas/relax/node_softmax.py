"""I-DARTS: one softmax over all operations of all edges into a node (Jiang et al., EMNLP 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rnnnas.nas.relax.base import Alphas, Fixed, Spaces, allowed_mask


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSoftmax(Fixed):
    """Edges compete with each other as operations do: a node's shares sum to 1."""

    def scores(self, alphas: Alphas, spaces: Spaces) -> dict[str, Tensor]:
        scores = {}
        for name, space in spaces.items():
            alpha = alphas[name]
            masked = alpha.masked_fill(~allowed_mask(space, alpha.device), -torch.inf)
            nodes = []
            for node in range(space.nodes):
                rows = masked[space.rows(node).start : space.rows(node).stop]
                nodes.append(rows.reshape(-1).softmax(0).view(rows.shape))
            scores[name] = torch.cat(nodes)
        return scores
