"""P-DARTS: DARTS on a space that shrinks from stage to stage (Chen et al., ICCV 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rnnnas.nas.relax.base import Alphas, Mixture, Mixtures, Softmax, Spaces, Step, allowed_mask


@dataclass(frozen=True, slots=True, kw_only=True)
class PDarts(Softmax):
    """Softmax over what the space still allows; only that is computed.

    The stages, with a fresh network and fresh alphas each, are the search's: `stages.*`.
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
        for name, weights in self.scores(alphas, spaces).items():
            allowed = allowed_mask(spaces[name], torch.device("cpu"))
            left = tuple((e, o) for e, o in allowed.nonzero().tolist())
            mixtures[name] = Mixture(weights, None if len(left) == allowed.numel() else left)
        return mixtures
