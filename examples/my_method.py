"""A plug-in: an operation and a search method of one's own.

    rnnnas search --corpus pydocs --preset smoke --plugin examples/my_method.py \
        --method cool --set 'space.ops=["none", "tanh", "bump", "identity"]' --out checkpoints/cool
    rnnnas train --corpus pydocs --preset smoke --plugin examples/my_method.py \
        --genotype checkpoints/cool --out checkpoints/cool-train
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

import rnnnas
from rnnnas.nas.methods import register
from rnnnas.nas.relax import base


def bump(z: torch.Tensor) -> torch.Tensor:
    """exp(-z²): 1 at zero, and nothing far from it."""
    return torch.exp(-z * z)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cool(base.Softmax):  # its scores: the plain softmax
    """DARTS at a temperature that falls: softmax(α / τ) on each edge."""

    tau_end: float = 0.1  # τ at the end of the search; it starts at 1

    def __post_init__(self) -> None:
        base.check_positive(tau_end=self.tau_end)

    def mix(
        self, alphas: base.Alphas, spaces: base.Spaces, progress: float,
        generator: torch.Generator, step: base.Step = "weights",
    ) -> base.Mixtures:  # fmt: skip
        tau = base.linear(1.0, self.tau_end, progress)
        cold = {n: base.allowed_softmax(alphas[n] / tau, s) for n, s in spaces.items()}
        return {n: base.Mixture(weights) for n, weights in cold.items()}


rnnnas.operations.register("bump", bump, colour="#b3446c")
register(Cool)
