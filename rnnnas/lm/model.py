"""The recurrent language model: embedding, cell, tied decoder, loss. It owns weights only.

Legend: T steps, B streams, D embedding, H hidden, V vocabulary, N nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnnnas.errors import UsageError
from rnnnas.lm import cell as derived
from rnnnas.lm import fused, mixed
from rnnnas.lm.loss import PenaltyConfig, cross_entropy, cross_entropy_reference, penalty
from rnnnas.lm.noise import SILENCE, LMNoise, NoiseConfig, draw
from rnnnas.nas.genotype import RECURRENT, CellGene
from rnnnas.nas.relax import Mixture
from rnnnas.nas.space import CellSpace
from rnnnas.types import Batch, Carry, Loss

INITIAL_RANGE = 0.04  # weights start in U(-0.04, 0.04)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Sizes, and which form of the computation runs.

    hidden: H, and D too: the decoder is tied to the embedding. nodes: N of the searched cell (a
    derived cell brings its own). path: "reference" follows the definitions and can be
    differentiated twice; "fast" gives the same values and first gradients.
    """

    hidden: int = 300
    nodes: int = 8
    path: Literal["fast", "reference"] = "fast"

    def __post_init__(self) -> None:
        for name in ("hidden", "nodes"):
            if getattr(self, name) < 1:
                raise UsageError(f"model.{name} = {getattr(self, name)} must be at least 1")


class RecurrentLM(nn.Module):
    """A word-level language model with one recurrent cell, derived or under search.

    Args:
        cell: what runs: a `CellGene` (a derived cell) or a `CellSpace` (search, under mixtures).
        generator: draws the initial weights; on the CPU, so that a seed gives the same weights
            on every device.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocabulary: int,
        cell: CellGene | CellSpace,
        *,
        noise: NoiseConfig,
        penalty: PenaltyConfig,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if isinstance(cell, CellGene):
            derived.check_cell(cell)
        nodes = len(cell.nodes) if isinstance(cell, CellGene) else cell.nodes
        hidden = config.hidden
        self.config = config
        self.cell = cell
        self.space: Mapping[str, CellSpace] = (
            {RECURRENT: cell} if isinstance(cell, CellSpace) else {}
        )
        self.noise_config = noise
        self.penalty_config = penalty

        def weight(*shape: int) -> nn.Parameter:
            fresh = torch.empty(shape)
            return nn.Parameter(fresh.uniform_(-INITIAL_RANGE, INITIAL_RANGE, generator=generator))

        self.embedding = weight(vocabulary, hidden)  # (V, D), the decoder's matrix too
        self.bias = nn.Parameter(torch.zeros(vocabulary))  # (V,) of the decoder
        self.first = weight(2 * hidden, 2 * hidden)  # (D+H, 2H)
        self.nodes = weight(nodes, hidden, 2 * hidden)  # (N, H, 2H)

    def noise(self, batch: Batch, generator: torch.Generator) -> LMNoise:
        """The masks of one window of `batch`'s streams."""
        vocabulary, hidden = self.embedding.shape
        return draw(
            self.noise_config,
            streams=batch.inputs.shape[1],
            embedding=hidden,
            hidden=hidden,
            vocabulary=vocabulary,
            dtype=self.embedding.dtype,
            generator=generator,
        )

    def outputs(
        self, inputs: Tensor, carry: Carry, mixtures: Mapping[str, Mixture], noise: LMNoise
    ) -> Tensor:
        """Raw outputs (T, B, H) of the cell for word ids (T, B)."""
        words = F.embedding(inputs, self.embedding)  # (T, B, D)
        if noise.words is not None:
            words = words * F.embedding(inputs, noise.words)
        words = derived.masked(words, noise.inputs)
        h = words.new_zeros(words.shape[1:]) if carry is None else carry
        assert isinstance(h, Tensor)
        args = (words, h, self.first, self.nodes)
        if isinstance(self.cell, CellGene):
            return derived.unroll(*args, self.cell, noise.x, noise.h)
        unroll = fused.unroll if self.config.path == "fast" else mixed.unroll_reference
        return unroll(*args, self.cell, mixtures[RECURRENT].weights, noise.x, noise.h)

    def forward(
        self,
        batch: Batch,
        carry: Carry,
        mixtures: Mapping[str, Mixture],
        noise: LMNoise | None,
    ) -> Loss:
        """The loss of one window.

        Args:
            carry: h (B, H) after the window before, or None for zeros.
            mixtures: of the cell under search; {} for a derived one.
            noise: the window's masks, or None to evaluate: no masks and no penalty.
        """
        masks = SILENCE if noise is None else noise
        raw = self.outputs(batch.inputs, carry, mixtures, masks)
        dropped = derived.masked(raw, masks.outputs)
        extra = raw.new_zeros(()) if noise is None else penalty(self.penalty_config, raw, dropped)
        loss = cross_entropy if self.config.path == "fast" else cross_entropy_reference
        targets = batch.targets.reshape(-1)
        value = loss(dropped.reshape(len(targets), -1), self.embedding, self.bias, targets)
        return Loss(value=value, count=len(targets), carry=raw[-1].detach(), penalty=extra)

    def logits(self, inputs: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """Next-word scores (T, B, V) for word ids (T, B), and the next carry; without noise."""
        raw = self.outputs(inputs, carry, {}, SILENCE)
        return F.linear(raw, self.embedding, self.bias), raw[-1].detach()
