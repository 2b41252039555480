"""REINFORCE: a policy over cells is moved by the validation loss of the cells it draws.

It needs no gradient through the network. Williams 1992; ENAS (Pham et al. 2018, section 2.2);
ProxylessNAS (Cai et al. 2019, section 3.3.2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rnnnas.nas.architect import Searchable
from rnnnas.nas.relax.base import Mixtures
from rnnnas.nas.relax.policy import Policy
from rnnnas.types import Batch, HiddenState, InnerStep, Loss


class Reinforce:
    """Holds the policy's optimiser and moves its parameters; used like an `Architect`.

    An update draws n cells with losses L_i on the validation window, without noise, under the
    shared weights. Rewards R_i = c exp(-L_i); the baseline b starts at the first mean reward and
    is then b ← decay b + (1 - decay) mean R, before it is used, as in both papers' code; what is
    minimised is mean_i [-(R_i - b) log p_i - entropy H_i], with R and b constant. The present
    rewards' part in b only scales the expected gradient, by 1 - (1 - decay) / n.

    Args:
        factor: of drawn cells, what their reward is multiplied by: (ref / latency)^weight
            (ProxylessNAS, equation 8).
    """

    def __init__(
        self,
        net: Searchable,
        alphas: dict[str, Tensor],
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        factor: Callable[[Mixtures], float] | None = None,
    ) -> None:
        self.net = net
        self.alphas = alphas
        self.policy = policy
        self.optimizer = optimizer
        self.factor = factor
        self.baseline: float | None = None

    def step(
        self,
        *,
        train: tuple[Batch, HiddenState],
        valid: tuple[Batch, HiddenState],
        inner: InnerStep,
        progress: float,
        generator: torch.Generator,
    ) -> Loss:
        """One update; returns the mean validation loss, with the last cell's hidden state.

        `train` and `inner` have no part in it. Where a loss or a gradient is not finite the
        alphas and the baseline stay as they are; the loss that is returned tells.
        """
        policy, spaces = self.policy, self.net.space
        draws, losses, rewards = [], [], []
        for _ in range(policy.samples):
            drawn = policy.sample(self.alphas, spaces, progress, generator)
            with torch.no_grad():
                loss = self.net(*valid, drawn.mixtures, None)
            draws.append(drawn)
            losses.append(loss.value)
            price = 1.0 if self.factor is None else self.factor(drawn.mixtures)
            rewards.append(policy.reward * float(torch.exp(-loss.value)) * price)
        mean = sum(rewards) / len(rewards)
        baseline = mean
        if self.baseline is not None:
            baseline = policy.decay * self.baseline + (1 - policy.decay) * mean
        objective = torch.stack(
            [
                -(reward - baseline) * drawn.log_probability - policy.entropy * drawn.entropy
                for reward, drawn in zip(rewards, draws, strict=True)
            ]
        ).mean()
        extra = policy.penalty(self.alphas, spaces, progress)
        if extra is not None:
            objective = objective + extra
        grads = torch.autograd.grad(objective, list(self.alphas.values()), allow_unused=True)
        value = torch.stack(losses).mean()
        checked = [value, *(grad for grad in grads if grad is not None)]
        if not all(bool(torch.isfinite(tensor).all()) for tensor in checked):
            return loss._replace(value=torch.full_like(value, torch.nan))
        for alpha, grad in zip(self.alphas.values(), grads, strict=True):
            alpha.grad = grad
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.baseline = baseline
        return loss._replace(value=value)

    def state(self) -> dict[str, Any]:
        """What is kept beside alphas and optimiser; the inverse is `restore`."""
        return {"baseline": self.baseline}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.baseline = state["baseline"]
