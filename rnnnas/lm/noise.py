"""Every dropout mask of one window, as values.

Legend: T steps, B streams, D embedding, H hidden, V vocabulary, G gates. All masks are drawn
once a window and fixed over its steps (Gal, Ghahramani 2016; Merity et al. 2018, section 4), and
scaled by 1 / (1 - p), so that no other place need know p. None stands for a mask of ones.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from rnnnas.distributed import Ranks
from rnnnas.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseConfig:
    """Dropout: shares that are dropped in training, by their names in the literature.

    dropout: dropout of the outputs of the last layer; share; 0 to below 1; none unless a preset
        asks, since small networks need none
    dropouti: dropout of the embedded inputs; share; 0 to below 1; none unless a preset asks, since
        small networks need none
    dropoute: dropout of whole words of the embedding; share; 0 to below 1; none unless a preset
        asks, since small networks need none
    dropoutx: dropout of x inside a cell of ours, in the layers above the first too, and without a
        place in an LSTM or GRU; share; 0 to below 1; none unless a preset asks, since small
        networks need none
    dropouth: dropout of h and of every node's input inside a cell of ours, but in an LSTM or GRU of
        the outputs from one layer to the next, as in the AWD-LSTM; share; 0 to below 1; none unless
        a preset asks, since small networks need none
    weightdrop: dropout of the hidden-to-hidden weights of an LSTM or GRU (Merity et al. 2018,
        section 2); share; 0 to below 1; none unless a preset asks, since small networks need none
    """

    dropout: float = 0.0
    dropouti: float = 0.0
    dropoute: float = 0.0
    dropoutx: float = 0.0
    dropouth: float = 0.0
    weightdrop: float = 0.0

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not 0.0 <= value < 1.0:
                raise UsageError(f"noise.{f.name} = {value} must lie in [0, 1)")


class LayerNoise(NamedTuple):
    """Masks inside one layer: x (B, D), h (B, H), weights (G·H, H); None: all ones."""

    x: Tensor | None = None
    h: Tensor | None = None
    weights: Tensor | None = None


class LMNoise(NamedTuple):
    """words (V, 1), inputs (1, B, D), outputs (1, B, H); x, h and weights as in `LayerNoise`, of
    the first layer; above: of the layers above it. None: all ones.
    """

    words: Tensor | None
    inputs: Tensor | None
    x: Tensor | None
    h: Tensor | None
    outputs: Tensor | None
    weights: Tensor | None = None
    above: tuple[LayerNoise, ...] = ()

    def own(self, ranks: Ranks) -> LMNoise:
        """The masks of a rank's streams, of masks over all; those without streams as they are."""

        def part(mask: Tensor | None, dim: int = 0) -> Tensor | None:
            return None if mask is None else ranks.own(mask, dim)

        return LMNoise(
            self.words, part(self.inputs, 1), part(self.x), part(self.h), part(self.outputs, 1),
            self.weights, tuple(LayerNoise(part(a.x), part(a.h), a.weights) for a in self.above),
        )  # fmt: skip

    def layer(self, index: int) -> LayerNoise:
        """The masks inside layer `index`, counted from 0."""
        if index == 0:
            return LayerNoise(self.x, self.h, self.weights)
        return self.above[index - 1] if self.above else LayerNoise()


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
    layers: int = 1,
    gates: int = 0,
) -> LMNoise:
    """All masks of one window, on the generator's device, in a fixed order.

    Args:
        gates: G of an LSTM or GRU; 0 for a cell of ours.
    """

    def mask(share: float, *shape: int) -> Tensor | None:
        if share == 0.0:
            return None
        ones = torch.empty(shape, dtype=dtype, device=generator.device)
        return ones.bernoulli_(1.0 - share, generator=generator).div_(1.0 - share)

    def inside(width: int, share: float) -> LayerNoise:
        if gates:
            x = mask(share, streams, width)
            return LayerNoise(x, None, mask(config.weightdrop, gates * hidden, hidden))
        x = mask(config.dropoutx, streams, width)
        return LayerNoise(x, mask(config.dropouth, streams, hidden), None)

    words = mask(config.dropoute, vocabulary, 1)
    inputs = mask(config.dropouti, 1, streams, embedding)
    x, h, weights = inside(embedding, 0.0)
    outputs = mask(config.dropout, 1, streams, hidden)
    above = tuple(inside(hidden, config.dropouth) for _ in range(layers - 1))
    return LMNoise(words, inputs, x, h, outputs, weights, above)
