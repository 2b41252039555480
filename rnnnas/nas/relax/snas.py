"""SNAS: soft samples, and one loss for weights and alphas (Xie et al., ICLR 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from rnnnas.nas.relax.base import Alphas, Mixtures, Softmax, Spaces, Step, Tempered
from rnnnas.nas.relax.choices import soft_samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Snas(Tempered, Softmax):
    """The concrete distribution on each edge (section 2.3, equation 4), on the training loss.

    The paper names the temperatures at both ends; between them it falls by equal ratios here, since
    they lie far apart.

    tau_start: the temperature at the start of the search; -; above 0; 1 as published
    tau_end: the temperature at the end of the search; -; above 0; 0.03 as published
    """

    level: ClassVar[Literal["valid", "train"]] = "train"

    tau_start: float = 1.0
    tau_end: float = 0.03

    def mix(
        self,
        alphas: Alphas,
        spaces: Spaces,
        progress: float,
        generator: torch.Generator,
        step: Step = "weights",
    ) -> Mixtures:
        tau = self.tau_start * (self.tau_end / self.tau_start) ** progress
        return soft_samples(alphas, spaces, tau, generator)
