"""FairDARTS: every operation has a gate of its own (Chu et al., ECCV 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rnnnas.errors import UsageError
from rnnnas.nas.relax.base import Alphas, Fixed, Spaces, allowed_mask


@dataclass(frozen=True, slots=True, kw_only=True)
class FairDarts(Fixed):
    """sigmoid(α) on each operation (section 3.3): an edge's weights sum to anything up to O.

    The paper keeps every operation above a threshold, of which there may be none; here a cell is
    derived by the largest gates, since a node keeps a fixed number of edges.

    zero_one: weight of the zero-one loss, minus the mean of (sigmoid(α) - ½)² over all allowed
        operations of all cells (section 3.4, equation 5), which drives gates to 0 or 1; nats; 0 or
        more; 10 as published
    """

    zero_one: float = 10.0

    def __post_init__(self) -> None:
        if self.zero_one < 0:
            raise UsageError(f"relax.zero_one = {self.zero_one} must not be negative")

    def scores(self, alphas: Alphas, spaces: Spaces) -> dict[str, Tensor]:
        return {
            name: alphas[name].sigmoid() * allowed_mask(space, alphas[name].device)
            for name, space in spaces.items()
        }

    def penalty(self, alphas: Alphas, spaces: Spaces, progress: float) -> Tensor | None:
        if not self.zero_one:
            return None
        gates = torch.cat(
            [
                alphas[name].sigmoid()[allowed_mask(space, alphas[name].device)]
                for name, space in spaces.items()
            ]
        )
        return -self.zero_one * (gates - 0.5).square().mean()
