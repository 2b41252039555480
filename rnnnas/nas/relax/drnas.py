"""DrNAS: shares of operations drawn from a Dirichlet distribution (Chen et al., ICLR 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rnnnas.errors import UsageError
from rnnnas.nas.relax.base import (
    Alphas,
    Mixture,
    Mixtures,
    Relaxation,
    Spaces,
    Step,
    allowed_mask,
    allowed_softmax,
)

LEAST = 1e-3  # concentration: below it a draw is one-hot to the last digit, and gradients overflow


@dataclass(frozen=True, slots=True, kw_only=True)
class DrNas(Relaxation):
    """θ ~ Dirichlet(elu(α) + 1) on each edge, differentiated through the draw (section 3.1).

    A cell is derived by the mean of θ.

    l2: weight of ½ Σ α² in the alphas' objective, which keeps the concentrations near 1, and which
        `alphas.weight_decay` adds to; -; 0 or more; 1e-3 as published
    """

    l2: float = 1e-3

    def __post_init__(self) -> None:
        if self.l2 < 0:
            raise UsageError(f"relax.l2 = {self.l2} must not be negative")

    def mix(
        self,
        alphas: Alphas,
        spaces: Spaces,
        progress: float,
        generator: torch.Generator,
        step: Step = "weights",
    ) -> Mixtures:
        mixtures = {}
        for name, space in spaces.items():
            concentration = concentrations(alphas[name])
            # θ is a softmax of logarithms of gamma draws, and a Gamma(a) draw is a Gamma(a + 1)
            # draw times u^(1/a): in this form nothing under- or overflows, however small a is.
            gamma = torch._standard_gamma(concentration + 1, generator=generator)
            luck = torch.rand(
                concentration.shape,
                generator=generator,
                device=concentration.device,
                dtype=concentration.dtype,
            )
            least = torch.finfo(luck.dtype).tiny
            logs = gamma.clamp_min(least).log() + luck.clamp_min(least).log() / concentration
            mixtures[name] = Mixture(allowed_softmax(logs, space))
        return mixtures

    def scores(self, alphas: Alphas, spaces: Spaces) -> dict[str, Tensor]:
        scores = {}
        for name, space in spaces.items():
            alpha = alphas[name]
            mass = concentrations(alpha) * allowed_mask(space, alpha.device)
            scores[name] = mass / mass.sum(-1, keepdim=True).clamp_min(LEAST)
        return scores

    def penalty(self, alphas: Alphas, spaces: Spaces, progress: float) -> Tensor | None:
        if not self.l2:
            return None
        return 0.5 * self.l2 * torch.stack([alphas[name].square().sum() for name in spaces]).sum()


def concentrations(alpha: Tensor) -> Tensor:
    """elu(α) + 1, at least `LEAST`. (E, O)."""
    return (F.elu(alpha) + 1).clamp_min(LEAST)
