"""Perplexity, accuracy and loss from sums over targets."""

from __future__ import annotations

import math
from dataclasses import dataclass


def measured(nats: float, count: int, correct: float | None, start: str = "") -> dict[str, float]:
    """Sums over `count` targets as they are reported, by name: a perplexity, or of images accuracy
    in percent and loss.
    """
    if correct is None:
        return {f"{start}perplexity": perplexity(nats, count)}
    count = max(count, 1)
    return {f"{start}accuracy": 100 * correct / count, f"{start}loss": nats / count}


def perplexity(nats: float, tokens: int) -> float:
    """exp(nats / tokens), infinite where that overflows."""
    mean = nats / max(tokens, 1)
    return math.inf if mean >= 700 else math.exp(mean)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """nats: sum over the targets counted; tokens: how many were counted. Of images, correct: how
    many targets scored best; in_top5: how many were among the best five.
    """

    nats: float
    tokens: int
    correct: int | None = None
    in_top5: int | None = None

    @property
    def loss(self) -> float:
        """Mean nats a token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp of the mean; infinite where that overflows."""
        return perplexity(self.nats, self.tokens)

    @property
    def accuracy(self) -> float:
        """Percent of the images that are classified right."""
        return 100 * (self.correct or 0) / self.tokens

    @property
    def top5(self) -> float:
        """Percent of the images whose class is among the best five."""
        return 100 * (self.in_top5 or 0) / self.tokens

    @property
    def regret(self) -> float:
        """What checkpoints are chosen by, the lower the better: mean nats, or of images, where a
        loss may rise while more are right, the share that is wrong.
        """
        return self.loss if self.correct is None else 1 - self.correct / self.tokens

    @property
    def measured(self) -> dict[str, float]:
        """What is reported of it, by name."""
        if self.correct is None:
            return {"perplexity": self.perplexity}
        return {"accuracy": self.accuracy, "loss": self.loss}
