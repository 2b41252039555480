"""Ending a search before it collapses: the rule of RobustDARTS on what it reports.

DARTS-ES (Zela et al., ICLR 2020, section 4.3): the largest eigenvalue of the validation loss'
Hessian in the alphas is averaged over a few reports; where that average has grown too much since
4 reports ago, the search ends with the cell of then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from rnnnas.errors import UsageError

LAG = 4  # reports between the averages that are compared


@dataclass(frozen=True, slots=True, kw_only=True)
class StopConfig:
    """Early stopping by the dominant eigenvalue of the alphas' Hessian (Zela et al. 2020).

    eigenvalue: whether it is reported, and the search stops by it; not unless asked for, since a
        report costs many passes
    every: f, epochs between two reports; epochs; 1 or more, at most `epochs`; 2 keeps reports cheap
    window: reports in a local average, which is centred, so that after epoch e the last there is
        belongs to epoch e - f (window - 1) / 2; reports; odd, 1 or more; 5 as published
    ratio: the search ends where that average is more than so many times the one of 4 reports
        before; -; above 0; 1.3, where the paper's rule is the inverse, 0.75
    earliest: epoch before whose cell the search does not go back, counted from 1; epochs; 0 or
        more; 10, since early cells are chance
    streams: B of the window of the alphas' text that the Hessian is taken on; streams; 0 or 2 or
        more, 0 for all the search has; memory grows with it
    steps: T of that window; tokens; 0 or more, 0 for all the search has; memory grows with it
    """

    eigenvalue: bool = False
    every: int = 2
    window: int = 5
    ratio: float = 1.3
    earliest: int = 10
    streams: int = 32
    steps: int = 20

    def __post_init__(self) -> None:
        for name, low in {
            "every": 1, "window": 1, "earliest": 0, "streams": 0, "steps": 0,
        }.items():  # fmt: skip
            if getattr(self, name) < low:
                raise UsageError(f"stop.{name} = {getattr(self, name)} must be at least {low}")
        if self.window % 2 == 0:
            raise UsageError(f"stop.window = {self.window} must be odd: the average is centred")
        if self.streams == 1:
            raise UsageError("stop.streams = 1 must be at least 2: search normalises over streams")
        if not self.ratio > 0:
            raise UsageError(f"stop.ratio = {self.ratio} must be positive")


def goes_back_to(config: StopConfig, eigenvalues: Sequence[float]) -> int | None:
    """The epoch whose cell the search ends with, or None where it goes on.

    With window 5 a search that ends after epoch e goes back to epoch e - 6f: that of the older of
    both averages.

    Args:
        eigenvalues: of all reports so far; the first is that of epoch f.
    """
    window = config.window
    if len(eigenvalues) < window + LAG:
        return None
    now = math.fsum(eigenvalues[-window:]) / window
    then = math.fsum(eigenvalues[-window - LAG : -LAG]) / window
    epoch = (len(eigenvalues) - LAG - window // 2) * config.every
    # An average that is not positive, or not finite, has no ratio to speak of.
    if epoch < config.earliest or not then > 0 or not math.isfinite(now):
        return None
    return epoch if now / then > config.ratio else None


@final
class EarlyStop:
    """The reports of a search, and what follows from them."""

    def __init__(self, config: StopConfig) -> None:
        self.config = config
        self.eigenvalues: list[float] = []
        self.genotypes: list[dict[str, Any]] = []  # plain, of the same epochs
        self.stopped_at: int | None = None  # the epoch after which the search ended
        self.goes_back_to: int | None = None  # the epoch whose cell it ends with

    def due(self, epoch: int) -> bool:
        """Whether a report follows epoch `epoch`, counted from 1."""
        return epoch % self.config.every == 0

    def report(self, epoch: int, eigenvalue: float, genotype: dict[str, Any]) -> bool:
        """Take in what there is after `epoch`; returns whether the search ends with it."""
        self.eigenvalues.append(eigenvalue)
        self.genotypes.append(genotype)
        self.goes_back_to = goes_back_to(self.config, self.eigenvalues)
        if self.goes_back_to is None:
            return False
        self.stopped_at = epoch
        return True

    @property
    def genotype(self) -> dict[str, Any] | None:
        """The cell that the search ended with, plain; None where it was not stopped."""
        if self.goes_back_to is None:
            return None
        return self.genotypes[self.goes_back_to // self.config.every - 1]

    def told(self) -> dict[str, int]:
        """What a result says of it: nothing where the search was not stopped."""
        if self.stopped_at is None or self.goes_back_to is None:
            return {}
        return {"stopped_at_epoch": self.stopped_at, "genotype_epoch": self.goes_back_to}

    def state(self) -> dict[str, Any]:
        """What `restore` needs, plain."""
        return {
            "eigenvalues": list(self.eigenvalues),
            "genotypes": list(self.genotypes),
            "stopped_at": self.stopped_at,
            "goes_back_to": self.goes_back_to,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.eigenvalues = list(state["eigenvalues"])
        self.genotypes = list(state["genotypes"])
        self.stopped_at = state["stopped_at"]
        self.goes_back_to = state["goes_back_to"]
