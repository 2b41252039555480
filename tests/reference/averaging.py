"""Clipped SGD, the average of its iterates, and when averaging begins.

Polyak and Juditsky 1992; Merity, Keskar, Socher 2018, section 3 and algorithm 1 (NT-ASGD).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


def sgd(w: Weights, g: Weights, *, lr: float, clip: float, decay: float) -> dict[str, Tensor]:
    """One step: the gradient is scaled to a norm of at most `clip`, then decay is added."""
    length = torch.sqrt(sum((x**2).sum() for x in g.values()))
    coef = min(1.0, clip / (float(length) + 1e-6))
    return {n: w[n] - lr * (coef * g[n] + decay * w[n]) for n in w}


def step_size(lr: float, steps: int, bptt: int) -> float:
    """The step size of a window of `steps`: it is that of a full one in proportion, so that long
    windows do not count for less a target (section 4.1 of Merity et al.), and holds for this very
    step.
    """
    return lr * steps / bptt


def average(after_each_step: Sequence[Weights]) -> dict[str, Tensor]:
    """The mean of w1 to wn, the weights after every step since averaging began."""
    return {
        name: torch.stack([w[name] for w in after_each_step]).mean(dim=0)
        for name in after_each_step[0]
    }


def begins_after(validation_losses: Sequence[float], patience: int) -> int | None:
    """Algorithm 1: the epoch, from 0, after which averaging begins: the first whose loss is above
    the least of all but the last `patience` epochs before it; None where there is none.
    """
    for epoch, loss in enumerate(validation_losses):
        if epoch > patience and loss > min(validation_losses[: epoch - patience]):
            return epoch
    return None
