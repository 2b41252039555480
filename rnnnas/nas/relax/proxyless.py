"""ProxylessNAS: binary gates, at most two paths at a time (Cai, Zhu, Han, ICLR 2019).

Legend: G choices, M options; see `choices.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rnnnas.nas.relax.base import Alphas, Mixture, Mixtures, Relaxation, Spaces, Step
from rnnnas.nas.relax.choices import choice_softmax, choices_of, gumbel, one_hot, settle


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxyless(Relaxation):
    """One path in a weight step, two in a step of the alphas (sections 3.2.1 and 3.2.2).

    In a weight step one option of each choice is drawn by softmax(α), and has weight 1. In a step
    of the alphas two are drawn without replacement, and of the two one by their renormalised
    shares p: its gate g is 1, the other's 0, both are computed, and
    ∂L/∂α_i = Σ_j ∂L/∂g_j p_j (δ_ij - p_i) over the pair (equation 4). `adjust` then moves both
    alphas by one amount, so that what the pair weighs against all other options stays as it was,
    and undoes what the optimiser's momentum or weight decay did to those that were not drawn.

    As published the optimiser has neither: `alphas.betas` (0, 0.999), `alphas.weight_decay` 0.
    """

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
            alpha = alphas[name]
            choices = choices_of(space, alpha.device)
            logits = choices.take(alpha)
            # The largest of logits with Gumbel noise are draws without replacement.
            noisy = logits.detach() + gumbel(logits, generator)
            pair = min(2, logits.shape[-1]) if step == "alphas" else 1
            drawn = noisy.topk(pair).indices  # (G, 1 or 2)
            # An only option has a rival that is not there, with share 0.
            p = logits.gather(1, drawn).softmax(-1)
            luck = p.new_empty(len(p)).uniform_(generator=generator)  # in [0, 1)
            active = (luck >= p.detach()[:, 0]).long().clamp_max(pair - 1)
            gates = one_hot(active, pair, p) + (p - p.detach())
            weights = torch.zeros_like(logits).scatter(1, drawn, gates)
            picked = torch.zeros_like(choices.present).scatter(1, drawn, True)
            paths = choices.paths(picked, len(space.ops))
            mixtures[name] = Mixture(choices.put(weights, alpha), paths)
        return mixtures

    def scores(self, alphas: Alphas, spaces: Spaces) -> dict[str, Tensor]:
        return {name: choice_softmax(alphas[name], space) for name, space in spaces.items()}

    def adjust(self, alphas: Alphas, before: Alphas, mixtures: Mixtures, spaces: Spaces) -> None:
        for name, space in spaces.items():
            choices = choices_of(space, alphas[name].device)
            settle(choices, alphas[name], before[name], mixtures[name])
