"""DenseNAS: one option a choice for the weights, two for the alphas (Fang et al., CVPR 2020).

Legend: G choices, M options; see `choices.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rnnnas.nas.relax.base import (
    Alphas,
    Mixture,
    Mixtures,
    Relaxation,
    Spaces,
    Step,
    allowed_softmax,
)
from rnnnas.nas.relax.choices import Choices, choice_softmax, choices_of, gumbel, settle
from rnnnas.nas.space import CellSpace, RowSpace


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseNas(Relaxation):
    """Options are drawn by softmax(α), routes are all taken.

    In a weight step one option of each choice is drawn, and has weight 1. In a step of the alphas
    two are drawn without replacement, and their weights are the softmax over the two. `adjust`
    then puts alphas that were not drawn back, and moves the two by one amount, so that Σ exp(α)
    over them is what it was: every other option keeps its probability. In spaces that are not
    drawn from, as the routes between blocks are, the weights are softmax(α) in both steps.

    Alphas start near 0: weights that are trained ahead of them see uniform draws.
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
            choices = _drawn(space, alpha)
            if choices is None:
                mixtures[name] = Mixture(allowed_softmax(alpha, space))
                continue
            logits = choices.take(alpha)
            # The largest of logits with Gumbel noise are draws without replacement.
            noisy = logits.detach() + gumbel(logits, generator)
            count = min(2, logits.shape[-1]) if step == "alphas" else 1
            drawn = noisy.topk(count).indices  # (G, 1 or 2)
            # An only option has a rival that is not there, with share 0.
            shares = logits.gather(1, drawn).softmax(-1)
            weights = torch.zeros_like(logits).scatter(1, drawn, shares)
            picked = torch.zeros_like(choices.present).scatter(1, drawn, True)
            paths = choices.paths(picked, len(space.ops))
            mixtures[name] = Mixture(choices.put(weights, alpha), paths)
        return mixtures

    def scores(self, alphas: Alphas, spaces: Spaces) -> dict[str, torch.Tensor]:
        return {
            name: allowed_softmax(alphas[name], space)
            if _drawn(space, alphas[name]) is None
            else choice_softmax(alphas[name], space)
            for name, space in spaces.items()
        }

    def adjust(self, alphas: Alphas, before: Alphas, mixtures: Mixtures, spaces: Spaces) -> None:
        for name, space in spaces.items():
            alpha = alphas[name]
            choices = _drawn(space, alpha)
            if choices is not None:
                settle(choices, alpha, before[name], mixtures[name])


def _drawn(space: CellSpace, like: torch.Tensor) -> Choices | None:
    """The choices that are drawn, or None where all options take part."""
    if isinstance(space, RowSpace) and not space.drawn:
        return None
    return choices_of(space, like.device)
