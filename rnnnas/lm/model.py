"""The recurrent language model: embedding, cell, tied decoder, loss. It owns weights only.

Legend: T steps, B streams, D embedding, H hidden, V vocabulary, N nodes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnnnas.errors import UsageError
from rnnnas.lm import cell as derived
from rnnnas.lm import fused, fused_mixed, mixed
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
    precision: of the decoder's products in training, the largest ones: "auto" is bfloat16 where
    the machine multiplies it in hardware, else float32. Evaluation is always float32, and so are
    weights, sums and the loss.
    """

    hidden: int = 300
    nodes: int = 8
    path: Literal["fast", "reference"] = "fast"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        for name in ("hidden", "nodes"):
            if getattr(self, name) < 1:
                raise UsageError(f"model.{name} = {getattr(self, name)} must be at least 1")
        if self.path == "reference" and self.precision == "bfloat16":
            raise UsageError("model.precision = 'bfloat16' needs model.path = 'fast'")


def low_precision(config: ModelConfig, device: torch.device) -> bool:
    """Whether training products run in bfloat16 on `device`."""
    if config.path == "reference" or config.precision == "float32":
        return False
    if config.precision == "bfloat16":
        return True
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    supported: bool = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return supported


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

    def in_float32(self) -> RecurrentLM:
        """The same weights in a network that rounds no product: for finite differences.

        A perturbation of norm 0.01 over millions of weights lies below bfloat16's resolution.
        """
        twin = copy.copy(self)
        twin.config = replace(self.config, precision="float32")
        # Its own table of the same parameters: a functional call swaps entries for its duration.
        twin._parameters = dict(self._parameters)
        return twin

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
            run = fused.unroll if self.config.path == "fast" else derived.unroll
            return run(*args, self.cell, noise.x, noise.h)
        search = fused_mixed.unroll if self.config.path == "fast" else mixed.unroll_reference
        return search(*args, self.cell, mixtures[RECURRENT].weights, noise.x, noise.h)

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
        targets = batch.targets.reshape(-1)
        args = (dropped.reshape(len(targets), -1), self.embedding, self.bias, targets)
        if self.config.path == "fast":
            low = noise is not None and low_precision(self.config, raw.device)
            value = cross_entropy(*args, low=low and raw.dtype == torch.float32)
        else:
            value = cross_entropy_reference(*args)
        return Loss(value=value, count=len(targets), carry=raw[-1].detach(), penalty=extra)

    def logits(self, inputs: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """Next-word scores (T, B, V) for word ids (T, B), and the next carry; without noise."""
        raw = self.outputs(inputs, carry, {}, SILENCE)
        return F.linear(raw, self.embedding, self.bias), raw[-1].detach()
