"""SmoothDARTS: weights that do well near the mixture too (Chen, Hsieh, ICML 2020).

The alphas' step is that of DARTS; a weight step is taken under mixtures that are moved by up to
ε in every entry, ε growing linearly over the search.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rnnnas.errors import UsageError
from rnnnas.nas.relax.base import (
    LossGradients,
    Mixtures,
    Softmax,
    Spaces,
    allowed_mask,
    check_positive,
    linear,
)
from rnnnas.nas.space import CellSpace


@dataclass(frozen=True, slots=True, kw_only=True)
class Smooth(Softmax):
    """What both variants share: ε at the start and at the end of the search.

    epsilon_start: ε, how far a share may be moved, at the start of the search; share; above 0; 0.03
        as published
    epsilon_end: ε at the end of the search; share; above 0; 0.3 as published
    """

    epsilon_start: float = 0.03
    epsilon_end: float = 0.3

    def __post_init__(self) -> None:
        check_positive(epsilon_start=self.epsilon_start, epsilon_end=self.epsilon_end)

    def epsilon(self, progress: float) -> float:
        return linear(self.epsilon_start, self.epsilon_end, progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class SdartsRandom(Smooth):
    """SDARTS-RS: moved at random, uniformly in [-ε, ε] (equation 4)."""

    def perturb(
        self,
        mixtures: Mixtures,
        spaces: Spaces,
        progress: float,
        generator: torch.Generator,
        gradients: LossGradients,
    ) -> Mixtures:
        return moved(mixtures, spaces, self.epsilon(progress), generator)


@dataclass(frozen=True, slots=True, kw_only=True)
class SdartsAdversarial(Smooth):
    """SDARTS-ADV: moved to where the training loss is high, by projected ascent (equation 5).

    From a random start, `steps` steps of 2ε/steps along the gradient's sign, each projected back to
    within ε and onto shares. An edge's shares sum to 1 in the end, so that an entry can lie a
    little further off than ε. Where the loss is no higher there, the mixtures stay.

    steps: of the ascent, where a weight step costs `steps` + 3 passes; steps; 1 or more; 7 as
        published
    """

    steps: int = 7

    def __post_init__(self) -> None:
        Smooth.__post_init__(self)
        if self.steps < 1:
            raise UsageError(f"relax.steps = {self.steps} must be at least 1")

    def perturb(
        self,
        mixtures: Mixtures,
        spaces: Spaces,
        progress: float,
        generator: torch.Generator,
        gradients: LossGradients,
    ) -> Mixtures:
        epsilon = self.epsilon(progress)
        calm, _ = gradients(mixtures)
        tried = moved(mixtures, spaces, epsilon, generator)
        for _ in range(self.steps):
            _, up = gradients(tried)
            climbed = {}
            for name, mixture in mixtures.items():
                start, now = mixture.weights.detach(), tried[name].weights
                now = now + 2 * epsilon / self.steps * up[name].sign()
                now = start + (now - start).clamp(-epsilon, epsilon)
                climbed[name] = mixture._replace(weights=shares(now, start, spaces[name]))
            tried = climbed
        risen, _ = gradients(tried)
        return tried if bool(risen > calm) else mixtures


def moved(
    mixtures: Mixtures, spaces: Spaces, epsilon: float, generator: torch.Generator
) -> Mixtures:
    """The mixtures with every entry moved uniformly within [-epsilon, epsilon], as shares."""
    result = {}
    for name, mixture in mixtures.items():
        start = mixture.weights.detach()
        noise = torch.empty_like(start).uniform_(-epsilon, epsilon, generator=generator)
        result[name] = mixture._replace(weights=shares(start + noise, start, spaces[name]))
    return result


def shares(table: Tensor, start: Tensor, space: CellSpace) -> Tensor:
    """`table` (E, O) brought back to shares: cut to [0, 1], each edge's sum made 1.

    Where nothing of an edge is left, the largest entry of `start` takes all. What is not allowed
    stays zero.
    """
    allowed = allowed_mask(space, table.device)
    cut = table.clamp(0, 1) * allowed
    total = cut.sum(-1, keepdim=True)
    largest = torch.nn.functional.one_hot(start.argmax(-1), table.shape[-1]).to(table.dtype)
    return torch.where(total > 0, cut / total.clamp_min(1e-30), largest * allowed)
