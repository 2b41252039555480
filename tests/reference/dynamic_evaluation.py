"""Dynamic evaluation: the weights take a step on each window after it was scored.

Krause, Kahembwe, Murray, Renals: Dynamic Evaluation of Neural Sequence Models, ICML 2018,
section 4: RMSprop-like steps with statistics of the training text (equation 6), and a decay
towards the trained weights that is in proportion to them (equations 7 and 8).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


def root_mean_square(gradients: Sequence[Weights]) -> dict[str, Tensor]:
    """√MS_g of every weight over the windows of the training text."""
    return {
        name: torch.sqrt(torch.stack([g[name] ** 2 for g in gradients]).mean(dim=0))
        for name in gradients[0]
    }


def mean_over_weights(rms: Weights) -> float:
    """The average of √MS_g over all weights, each counted alike: the paper's."""
    return float(torch.cat([r.flatten() for r in rms.values()]).mean())


def mean_over_matrices(rms: Weights) -> float:
    """The average of the means of all matrices and vectors, each counted alike: the authors' code.

    nodes (N, H, 2H) are N matrices.
    """
    parts = [r for name, r in rms.items() if name != "nodes"] + list(rms["nodes"])
    return sum(float(part.mean()) for part in parts) / len(parts)


def step(
    theta: Weights,
    trained: Weights,
    gradient: Weights,
    rms: Weights,
    *,
    lr: float,
    decay: float,
    epsilon: float,
    mean: float,
) -> dict[str, Tensor]:
    """The weights after a window whose mean loss has this gradient; no weight is carried by the
    decay beyond where it was trained to.
    """
    moved = {}
    for name, w in theta.items():
        pull = torch.clamp(decay * rms[name] / mean, max=1.0)
        moved[name] = w - lr * gradient[name] / (rms[name] + epsilon) + pull * (trained[name] - w)
    return moved
