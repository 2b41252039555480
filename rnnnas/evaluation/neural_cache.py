"""The continuous cache: words come again after states like the ones they came after before.

Grave, Joulin, Usunier: Improving Neural Language Models with a Continuous Cache, ICLR 2017.
Legend: T steps, B streams, H hidden, S pairs kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from rnnnas.errors import UsageError
from rnnnas.evaluation.log_probs import Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """size: S, the last positions that are remembered; theta: how sharply the cache prefers
    similar states (0: it counts words); share: λ, the cache's part of the mixture (0: no cache).
    """

    size: int = 2000
    theta: float = 0.3
    share: float = 0.1

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UsageError(f"cache.size = {self.size} must be at least 1")
        if not 0 <= self.theta < math.inf:
            raise UsageError(f"cache.theta = {self.theta} must be a number that is not negative")
        if not 0 <= self.share < 1:
            raise UsageError(f"cache.share = {self.share} must lie in [0, 1)")


@final
class Cache:
    """The cache of B streams as their windows go by.

    p(w) ∝ Σ_i exp(theta h_t · h_i) [x_{i+1} = w] over the last `size` positions i < t, where
    x_{i+1} is the target of position i. Only the targets' probabilities are formed, no (T, B, V).
    """

    def __init__(self, size: int, theta: float) -> None:
        self._size, self._theta = size, theta
        self._states: Tensor | None = None  # (B, S, H), oldest first
        self._words: Tensor | None = None  # (B, S)

    @torch.no_grad()
    def log_probs(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """log p of each target under the cache alone; then the window is remembered.

        outputs (T, B, H), targets (T, B) → (T, B): -inf for a word the cache does not hold, nan
        while it holds none at all.
        """
        queries, following = outputs.transpose(0, 1), targets.t()
        states, words = queries, following
        if self._states is not None and self._words is not None:
            states = torch.cat([self._states, queries], 1)
            words = torch.cat([self._words, following], 1)
        steps, kept = len(outputs), states.shape[1]
        # Position t of the window lies at `kept - steps + t`; it sees the `size` places before.
        ago = torch.arange(kept - steps, kept, device=outputs.device).unsqueeze(1) - torch.arange(
            kept, device=outputs.device
        )
        hidden = (ago < 1) | (ago > self._size)  # (T, S+T)
        weights = torch.baddbmm(
            outputs.new_zeros(()), queries, states.transpose(1, 2), beta=0, alpha=self._theta
        ).masked_fill_(hidden, -math.inf)  # (B, T, S+T)
        total = weights.logsumexp(-1)
        weights.masked_fill_(words.unsqueeze(1) != following.unsqueeze(2), -math.inf)
        found = weights.logsumexp(-1)
        # A copy: a view would keep every window's whole tensor alive.
        self._states = states[:, -self._size :].clone()
        self._words = words[:, -self._size :].clone()
        return (found - total).t()


def mixed(log_probs: Tensor, cached: Tensor, share: float) -> Tensor:
    """log((1 - share) p_model + share p_cache); the model's own where the cache is empty (nan)."""
    if share == 0:
        return log_probs
    both = torch.logaddexp(log_probs + math.log1p(-share), cached + math.log(share))
    return torch.where(cached.isnan(), log_probs, both)


def with_cache(scores: Scores, cache: Cache, share: float) -> Scores:
    """The same window with the mixture's log-probabilities."""
    cached = cache.log_probs(scores.outputs, scores.targets)
    return scores._replace(log_probs=mixed(scores.log_probs, cached, share))
