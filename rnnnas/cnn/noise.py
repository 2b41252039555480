"""Every random mask of one forward pass of an image network, as values.

Legend: L cells, E edges of a derived cell, I edges of a searched cell at which skip_connect is an
identity, B images, C channels, h and w pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class CnnNoise(NamedTuple):
    """paths: (L, E, B, 1, 1, 1), 0 or 1 / (1 - p): which edge is dropped for which image
    (Larsson et al. 2017; Zoph et al. 2018, section 4.1). skips: of every cell (I, B, C, h, w),
    True where the identity stays (P-DARTS, section 3.4); `kept` is the share that stays. As
    bytes: they are as large as all skipped images together. None: nothing is dropped.
    """

    paths: Tensor | None = None
    skips: tuple[Tensor, ...] | None = None
    kept: float = 1.0


SILENCE = CnnNoise()


def draw(
    *,
    drop_path: float,
    paths: tuple[int, int, int],
    skip_dropout: float,
    skips: Sequence[tuple[int, ...]],
    dtype: torch.dtype,
    generator: torch.Generator,
) -> CnnNoise:
    """The masks of one forward pass, on the generator's device, in a fixed order.

    Args:
        drop_path, skip_dropout: the probabilities, in [0, 1).
        paths: (L, E, B). skips: of every cell (I, B, C, h, w).
    """
    device = generator.device
    dropped: Tensor | None = None
    if drop_path:
        dropped = torch.empty((*paths, 1, 1, 1), dtype=dtype, device=device)
        dropped.bernoulli_(1.0 - drop_path, generator=generator).div_(1.0 - drop_path)
    if not skip_dropout:
        return CnnNoise(paths=dropped)
    kept = 1.0 - skip_dropout
    masks = tuple(
        torch.empty(shape, dtype=torch.bool, device=device).bernoulli_(kept, generator=generator)
        for shape in skips
    )
    return CnnNoise(paths=dropped, skips=masks, kept=kept)
