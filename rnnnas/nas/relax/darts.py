"""DARTS: every operation of every edge, weighted by a softmax (Liu et al. 2019, equation 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rnnnas.nas.relax.base import (
    Alphas,
    Mixture,
    Mixtures,
    Relaxation,
    Spaces,
    Step,
    allowed_softmax,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Darts(Relaxation):
    """Softmax over the allowed operations of each edge."""

    def mix(
        self,
        alphas: Alphas,
        spaces: Spaces,
        progress: float,
        generator: torch.Generator,
        step: Step = "weights",
    ) -> Mixtures:
        return {name: Mixture(weights) for name, weights in self.scores(alphas, spaces).items()}

    def scores(self, alphas: Alphas, spaces: Spaces) -> dict[str, Tensor]:
        return {name: allowed_softmax(alphas[name], space) for name, space in spaces.items()}
