"""GDAS: one operation a choice is computed, drawn by a Gumbel softmax (Dong, Yang, CVPR 2019).

Legend: G choices, M options; see `choices.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rnnnas.nas.relax.base import Alphas, Mixture, Mixtures, Softmax, Spaces, Step, Tempered, linear
from rnnnas.nas.relax.choices import choice_softmax, choices_of, gumbel, one_hot, soft_samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Gdas(Tempered):
    """A hard sample, with the gradient of the soft one (sections 3.2 and 3.3, equations 3 to 7).

    p = softmax((α + g) / τ) over a choice's options with Gumbel noise g; the weights are the
    one-hot of the largest, exactly, and have the gradient of p. τ falls linearly.

    `reach` says where that gradient is taken in a step of the alphas: at the drawn options alone,
    so that the others need not be computed, as published; or at every option, which computes all of
    them there. A step of the weights computes the drawn ones alone either way. A cell that
    normalises a node's sum, as the recurrent one does under search, cancels the scale of a node's
    only addend, and with it nearly all of what "sampled" learns from: the alphas' gradients are
    1e-8 there, and 1e-3 with "all".

    tau_start: the temperature τ at the start of the search; -; above 0; 10 as published
    tau_end: the temperature τ at the end of the search; -; above 0; 0.1 as published
    reach: where the gradient of p is taken in a step of the alphas, at the "sampled" options or at
        "all"; at the sampled ones, as published, a recurrent cell learns next to nothing
    """

    tau_start: float = 10.0
    tau_end: float = 0.1
    reach: Literal["sampled", "all"] = "all"

    def mix(
        self,
        alphas: Alphas,
        spaces: Spaces,
        progress: float,
        generator: torch.Generator,
        step: Step = "weights",
    ) -> Mixtures:
        tau = linear(self.tau_start, self.tau_end, progress)
        mixtures = {}
        for name, space in spaces.items():
            alpha = alphas[name]
            choices = choices_of(space, alpha.device)
            logits = choices.take(alpha)
            p = ((logits + gumbel(logits, generator)) / tau).softmax(-1)
            hard = one_hot(p.argmax(-1), p.shape[-1], p)
            gradient = p - p.detach()  # zero, exactly, with the gradient of p
            everywhere = self.reach == "all" and step == "alphas"
            weights = hard + gradient if everywhere else hard + hard * gradient
            paths = None if everywhere else choices.paths(hard > 0, len(space.ops))
            mixtures[name] = Mixture(choices.put(weights, alpha), paths)
        return mixtures

    def scores(self, alphas: Alphas, spaces: Spaces) -> dict[str, Tensor]:
        return {name: choice_softmax(alphas[name], space) for name, space in spaces.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class GdasSoft(Tempered, Softmax):
    """GDAS as its authors released it for recurrent cells: soft, every operation computed.

    A Gumbel softmax over each edge's operations; τ falls linearly. (Their code also lets the
    alphas' gradients add up from step to step, the training loss' among them, and may derive
    `none`; neither is done here.)

    tau_start: the temperature τ at the start of the search; -; above 0; 10 as released
    tau_end: the temperature τ at the end of the search; -; above 0; 1 as released
    """

    tau_start: float = 10.0
    tau_end: float = 1.0

    def mix(
        self,
        alphas: Alphas,
        spaces: Spaces,
        progress: float,
        generator: torch.Generator,
        step: Step = "weights",
    ) -> Mixtures:
        tau = linear(self.tau_start, self.tau_end, progress)
        return soft_samples(alphas, spaces, tau, generator)
