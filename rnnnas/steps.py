"""One weight update and one evaluation pass; search and training share them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rnnnas.data.streams import Streams
from rnnnas.nas.relax.base import Mixture
from rnnnas.types import Batch, Carry, Loss, Noise

EVALUATION_STEPS = 70  # T of evaluation windows; the carry makes the value independent of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """nats: sum over the targets counted; tokens: how many were counted."""

    nats: float
    tokens: int

    @property
    def loss(self) -> float:
        """Mean nats a token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp of the mean; infinite where that overflows."""
        return math.inf if self.loss >= 700 else math.exp(self.loss)


def generator(seed: int, purpose: str, step: int, device: torch.device) -> torch.Generator:
    """A generator that depends on its arguments alone: nothing to save, nothing to get lost."""
    key = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(key[:8], "little"))


def carry_to(carry: Carry, device: torch.device) -> Carry:
    """A carry, e.g. a saved one, on `device`."""
    if carry is None or isinstance(carry, Tensor):
        return None if carry is None else carry.to(device)
    return tuple(part.to(device) for part in carry)


def weight_step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    carry: Carry,
    mixtures: Mapping[str, Mixture],
    noise: Noise,
    *,
    lr: float,
    clip: float,
) -> tuple[Loss, float]:
    """One step of the weights; returns the detached loss and the gradient norm before clipping.

    Where either is not finite the weights stay as they are: the caller rolls back.
    """
    loss: Loss = net(batch, carry, mixtures, noise)
    optimizer.zero_grad(set_to_none=True)
    loss.objective.backward()  # type: ignore[no-untyped-call]
    norm = float(nn.utils.clip_grad_norm_(net.parameters(), clip or math.inf))
    if math.isfinite(norm) and math.isfinite(float(loss.value.detach())):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    return loss._replace(value=loss.value.detach(), penalty=loss.penalty.detach()), norm


@torch.no_grad()
def evaluate(
    net: nn.Module,
    streams: Streams,
    mixtures: Mapping[str, Mixture],
    weights: Mapping[str, Tensor] | None = None,
) -> Score:
    """The loss over all targets of `streams`, state carried across windows, without noise.

    Args:
        weights: evaluated instead of the network's own, e.g. averaged ones.
    """
    own: dict[str, Tensor] = dict(weights or net.named_parameters())
    carry: Carry = None
    nats = 0.0
    tokens = 0
    for start, steps in streams.windows(EVALUATION_STEPS):
        batch = streams.window(start, steps)
        loss: Loss = functional_call(net, own, (batch, carry, mixtures, None))
        carry = loss.carry
        nats += float(loss.value) * loss.count
        tokens += loss.count
    return Score(nats=nats, tokens=tokens)
