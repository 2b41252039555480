"""Every dropout mask of one window, as values.

Legend: T steps, B streams, D embedding, H hidden, V vocabulary. All masks are drawn once a window
and fixed over its steps (Gal, Ghahramani 2016; Merity et al. 2018, section 4), and scaled by
1 / (1 - p), so that no other place need know p. None stands for a mask of ones.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from rnnnas.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseConfig:
    """Shares dropped, in [0, 1), by their names in the literature.

    dropout: outputs of the cell; dropouti: embedded inputs; dropoute: whole words of the
    embedding; dropoutx: x inside the cell; dropouth: h and every node's input inside the cell.
    """

    dropout: float = 0.0
    dropouti: float = 0.0
    dropoute: float = 0.0
    dropoutx: float = 0.0
    dropouth: float = 0.0

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not 0.0 <= value < 1.0:
                raise UsageError(f"noise.{f.name} = {value} must lie in [0, 1)")


class LMNoise(NamedTuple):
    """words (V, 1), inputs (1, B, D), x (B, D), h (B, H), outputs (1, B, H); None: all ones."""

    words: Tensor | None
    inputs: Tensor | None
    x: Tensor | None
    h: Tensor | None
    outputs: Tensor | None


SILENCE = LMNoise(None, None, None, None, None)


def draw(
    config: NoiseConfig,
    *,
    streams: int,
    embedding: int,
    hidden: int,
    vocabulary: int,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> LMNoise:
    """All masks of one window, on the generator's device, in a fixed order."""

    def mask(share: float, *shape: int) -> Tensor | None:
        if share == 0.0:
            return None
        ones = torch.empty(shape, dtype=dtype, device=generator.device)
        return ones.bernoulli_(1.0 - share, generator=generator).div_(1.0 - share)

    return LMNoise(
        words=mask(config.dropoute, vocabulary, 1),
        inputs=mask(config.dropouti, 1, streams, embedding),
        x=mask(config.dropoutx, streams, embedding),
        h=mask(config.dropouth, streams, hidden),
        outputs=mask(config.dropout, 1, streams, hidden),
    )
