"""The recurrent language model: embedding, layers, tied decoder, loss. It owns weights only.

Legend: T steps, B streams, D embedding, H hidden, V vocabulary, N nodes,
K softmaxes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnnnas.distributed import ALONE, Ranks
from rnnnas.errors import UsageError
from rnnnas.lm import cell as derived
from rnnnas.lm import lstm_gru, search_cell, softmaxes
from rnnnas.lm.fast import cpu_library
from rnnnas.lm.fast import derived as fused
from rnnnas.lm.fast import mixture as fused_mixed
from rnnnas.lm.fast.directional import directional
from rnnnas.lm.fast.known import reason_against
from rnnnas.lm.loss import PenaltyConfig, cross_entropy, cross_entropy_reference, penalty
from rnnnas.lm.lstm_gru import Baseline
from rnnnas.lm.noise import SILENCE, LayerNoise, LMNoise, NoiseConfig, draw
from rnnnas.nas.genotype import RECURRENT, CellGene
from rnnnas.nas.relax.base import Mixture
from rnnnas.nas.space import CellSpace
from rnnnas.types import Batch, HiddenState, Loss

INITIAL_RANGE = 0.04  # weights start in U(-0.04, 0.04)
TIED = "embedding"  # the parameter that is the decoder's matrix too


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Sizes of a recurrent network, and which form of the computation runs.

    "reference" follows the definitions operation by operation; "eager" gives the same values at
    less cost; both can be differentiated twice. "fast" gives the same values and first gradients;
    a cell that it does not know is computed as by "eager", with the rest of the model fast.
    Evaluation is always float32, and so are weights, sums and the loss.

    hidden: H, units of the state, and of the embedding, which the decoder is tied to; units; 1 or
        more; 300 as in the search of the DARTS paper, whose training has 850
    nodes: N, nodes of the searched cell, since a derived cell brings its own; nodes; 1 or more; 8
        as in the DARTS paper
    path: which form of the computation runs, "reference", "eager" or "fast"; all give the same
        values and this one does so soonest
    precision: of training's products of our cells and of the plain softmax, "auto" for bfloat16
        where the machine multiplies it in hardware; losses differ by less than seeds do
    layers: recurrent layers, each reading the outputs of the one below; layers; 1 or more, 1 in a
        search; 1 as in the DARTS paper
    softmaxes: K of a mixture of softmaxes (Yang et al. 2018); softmaxes; 1 or more, 1 for a plain
        softmax; 1 as in the DARTS paper, since each costs a decoder
    partial: in a search, 1/partial of a state's units go through the operations (PC-DARTS); -; a
        divisor of `model.hidden`, 1 for all; all of them, as every method but PC-DARTS does
    """

    hidden: int = 300
    nodes: int = 8
    path: Literal["fast", "eager", "reference"] = "fast"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    layers: int = 1
    softmaxes: int = 1
    partial: int = 1

    def __post_init__(self) -> None:
        for name in ("hidden", "nodes", "layers", "softmaxes", "partial"):
            if getattr(self, name) < 1:
                raise UsageError(f"model.{name} = {getattr(self, name)} must be at least 1")
        for name, most in MOST.items():
            if getattr(self, name) > most:
                raise UsageError(
                    f"model.{name} = {getattr(self, name)} cannot be meant: at most {most} fit "
                    "the memory and the time of any training"
                )
        if self.hidden % self.partial:
            raise UsageError(
                f"model.partial = {self.partial} does not divide model.hidden = {self.hidden}"
            )
        if self.path != "fast" and self.precision == "bfloat16":
            raise UsageError("model.precision = 'bfloat16' needs model.path = 'fast'")


# Beyond what can be trained by far: refused at once, instead of after minutes of building.
MOST = {"layers": 100, "nodes": 256, "hidden": 1_000_000, "softmaxes": 1_000}


def cell_path(
    config: ModelConfig, cell: CellGene | CellSpace | Baseline
) -> Literal["fast", "eager", "reference"]:
    """The form in which `cell` is computed: the one that is set, or what stands in for it."""
    if config.path != "fast" or isinstance(cell, str):
        return config.path
    return "eager" if reason_against(cell) else "fast"


def low_precision(config: ModelConfig, device: torch.device) -> bool:
    """Whether training products run in bfloat16 on `device`."""
    if config.path != "fast" or config.precision == "float32":
        return False
    if config.precision == "bfloat16":
        return True
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return cpu_library.has_bfloat16()


class RecurrentLM(nn.Module):
    """A word-level language model of one kind of recurrent cell.

    Args:
        cell: what runs: a `CellGene` (a derived cell), a `CellSpace` (search, under mixtures),
            or the name of a baseline.
        generator: draws the initial weights; on the CPU, so that a seed gives the same weights
            on every device.
        ranks: the processes among which the streams of a batch are shared out.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocabulary: int,
        cell: CellGene | CellSpace | Baseline,
        *,
        noise: NoiseConfig,
        penalty: PenaltyConfig,
        generator: torch.Generator,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__()
        if isinstance(cell, CellGene):
            derived.check_cell(cell)
        hidden = config.hidden
        self.config = config
        self.cell = cell
        self.space: Mapping[str, CellSpace] = (
            {RECURRENT: cell} if isinstance(cell, CellSpace) else {}
        )
        self.noise_config = noise
        self.ranks = ranks
        self.penalty_config = penalty

        def weight(*shape: int, reach: float = INITIAL_RANGE) -> nn.Parameter:
            fresh = torch.empty(shape)
            return nn.Parameter(fresh.uniform_(-reach, reach, generator=generator))

        self.embedding = weight(vocabulary, hidden)  # (V, D), the decoder's matrix too
        self.bias = nn.Parameter(torch.zeros(vocabulary))  # (V,) of the decoder
        reach = hidden**-0.5  # where torch's own LSTM, GRU and linear layers start
        self.layers = nn.ModuleDict()  # weights by layer, "1" the lowest
        if isinstance(cell, str):
            shapes = lstm_gru.shapes(cell, hidden, hidden)
            for k in range(config.layers):
                own = {name: weight(*shape, reach=reach) for name, shape in shapes.items()}
                self.layers[str(k + 1)] = nn.ParameterDict(own)
        else:
            nodes = len(cell.nodes) if isinstance(cell, CellGene) else cell.nodes
            units = hidden // config.partial
            sizes = {"first": (2 * hidden, 2 * hidden), "nodes": (nodes, units, 2 * units)}
            self.first = weight(*sizes["first"])  # (D+H, 2H), of the lowest layer
            self.nodes = weight(*sizes["nodes"])  # (N, U, 2U), U = H/partial
            for k in range(1, config.layers):
                own = {name: weight(*size) for name, size in sizes.items()}
                self.layers[str(k + 1)] = nn.ParameterDict(own)
        if config.softmaxes > 1:
            self.projections = weight(config.softmaxes, hidden, hidden, reach=reach)  # (K, H, D)
            self.prior = weight(hidden, config.softmaxes, reach=reach)  # (H, K)

    def noise(self, batch: Batch, generator: torch.Generator) -> LMNoise:
        """The masks of one window of `batch`'s streams.

        They are drawn for the streams of all ranks, so that each of these sees the same noise
        whatever the number of ranks.
        """
        vocabulary, hidden = self.embedding.shape
        drawn = draw(
            self.noise_config,
            streams=batch.inputs.shape[1] * self.ranks.size,
            embedding=hidden,
            hidden=hidden,
            vocabulary=vocabulary,
            dtype=self.embedding.dtype,
            generator=generator,
            layers=self.config.layers,
            gates=lstm_gru.GATES[self.cell] if isinstance(self.cell, str) else 0,
        )
        return drawn if self.ranks.size == 1 else drawn.own(self.ranks)

    def alone(self) -> RecurrentLM:
        """The same weights in a network whose batches are whole: for what one rank does alone."""
        twin = self._twin()
        twin.ranks = ALONE
        return twin

    def in_float32(self) -> RecurrentLM:
        """The same weights in a network that rounds no product: for finite differences.

        A perturbation of norm 0.01 over millions of weights lies below bfloat16's resolution.
        """
        twin = self._twin()
        twin.config = replace(self.config, precision="float32")
        return twin

    def twice(self) -> RecurrentLM:
        """The same weights in a network of whole batches that can be differentiated twice."""
        twin = self.alone()
        path = "eager" if self.config.path == "fast" else self.config.path
        twin.config = replace(self.config, path=path, precision="float32")
        return twin

    @property
    def by_tangents(self) -> bool:
        """Whether `directional` serves this network's exact second order."""
        return isinstance(self.cell, CellSpace) and cell_path(self.config, self.cell) == "fast"

    @property
    def tangents_pay(self) -> bool:
        """Whether the exact second order takes less time than the finite difference.

        It does where products are rounded to bfloat16, which the difference's two ends cannot be,
        on a CPU with compiled kernels. On a CUDA device it has torch's operations alone.
        """
        device = self.embedding.device
        if not self.by_tangents or device.type != "cpu" or self.embedding.dtype != torch.float32:
            return False
        return low_precision(self.config, device) and cpu_library.built().library is not None

    def directional(
        self, weights: Mapping[str, Tensor], vector: Mapping[str, Tensor], batch: Batch,
        hidden_state: HiddenState, mixtures: Mapping[str, Mixture], noise: LMNoise | None,
    ) -> Tensor:  # fmt: skip
        """The objective's derivative along `vector` at `weights`; see `directional.directional`."""
        low = noise is not None and self.embedding.dtype == torch.float32
        low = low and low_precision(self.config, self.embedding.device)
        masks = SILENCE if noise is None else noise
        return directional(self, weights, vector, batch, hidden_state, mixtures, masks, low=low)

    def _twin(self) -> RecurrentLM:
        twin = copy.copy(self)
        # Its own table of the same parameters: a functional call swaps entries for its duration.
        twin._parameters = dict(self._parameters)
        return twin

    def outputs(
        self,
        inputs: Tensor,
        hidden_state: HiddenState,
        mixtures: Mapping[str, Mixture],
        noise: LMNoise,
        low: bool = False,
    ) -> tuple[Tensor, HiddenState]:
        """Raw outputs (T, B, H) of the last layer for word ids (T, B), and the next hidden state.

        low: whether the fast cell multiplies in bfloat16.
        """
        words = F.embedding(inputs, self.embedding)  # (T, B, D)
        if noise.words is not None:
            words = words * F.embedding(inputs, noise.words)
        raw = derived.masked(words, noise.inputs)
        layers = self.config.layers
        each = lstm_gru.STATES[self.cell] if isinstance(self.cell, str) else 1
        if hidden_state is None:
            hidden_state = (words.new_zeros(words.shape[1:]),) * (layers * each)
        states = (hidden_state,) if isinstance(hidden_state, Tensor) else hidden_state
        after: tuple[Tensor, ...] = ()
        for k in range(layers):
            state = states[k * each : (k + 1) * each]
            raw, state = self._layer(k, raw, state, mixtures, noise.layer(k), low)
            after += tuple(s.detach() for s in state)
        alone = layers == 1 and not isinstance(self.cell, str)
        return raw, after[0] if alone else after

    def _layer(
        self,
        k: int,
        inputs: Tensor,
        state: tuple[Tensor, ...],
        mixtures: Mapping[str, Mixture],
        noise: LayerNoise,
        low: bool,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Outputs (T, B, H) of layer `k`, counted from 0, and its state after them."""
        fast = cell_path(self.config, self.cell) == "fast"
        name = str(k + 1)
        own: Mapping[str, Tensor] = {}
        if name in self.layers:
            own = dict(cast(nn.ParameterDict, self.layers[name]).items())
        if isinstance(self.cell, str):
            weights = dict(own)
            weights["weight_hh"] = derived.masked(weights["weight_hh"], noise.weights)
            run = lstm_gru.unroll if fast else lstm_gru.unroll_reference
            return run(self.cell, derived.masked(inputs, noise.x), state, weights)
        first, nodes = (own["first"], own["nodes"]) if own else (self.first, self.nodes)
        args = (inputs, state[0], first, nodes)
        if isinstance(self.cell, CellGene) and fast:
            raw = fused.unroll(*args, self.cell, noise.x, noise.h, low=low)
        elif isinstance(self.cell, CellGene):
            raw = derived.unroll(*args, self.cell, noise.x, noise.h)
        else:
            mixture = mixtures[RECURRENT]
            more, paths = (self.cell, mixture.weights, noise.x, noise.h), mixture.paths
            if fast:
                raw = fused_mixed.unroll(*args, *more, paths=paths, low=low, ranks=self.ranks)
            else:
                literal = self.config.path == "reference"
                search = search_cell.unroll_reference if literal else search_cell.unroll
                raw = search(*args, *more, paths=paths, ranks=self.ranks)
        return raw, (raw[-1],)

    def forward(
        self,
        batch: Batch,
        hidden_state: HiddenState,
        mixtures: Mapping[str, Mixture],
        noise: LMNoise | None,
    ) -> Loss:
        """The loss of one window.

        Args:
            hidden_state: the states after the window before, layer by layer, (B, H) each: h of a
                cell of ours (a single layer's not in a tuple), h and c of an LSTM, h of a GRU; None
                for zeros.
            mixtures: of the cell under search; {} for any other.
            noise: the window's masks, or None to evaluate: no masks and no penalty.
        """
        masks = SILENCE if noise is None else noise
        # Evaluation never rounds; neither does any other type than float32, a test's say.
        low = noise is not None and self.embedding.dtype == torch.float32
        low = low and low_precision(self.config, self.embedding.device)
        raw, after = self.outputs(batch.inputs, hidden_state, mixtures, masks, low)
        dropped = derived.masked(raw, masks.outputs)
        extra = raw.new_zeros(()) if noise is None else penalty(self.penalty_config, raw, dropped)
        fast = self.config.path == "fast"
        targets = batch.targets.reshape(-1)
        rows = dropped.reshape(len(targets), -1)
        decoder = (self.embedding, self.bias, targets)
        if self.config.softmaxes > 1:
            mixture = softmaxes.cross_entropy if fast else softmaxes.cross_entropy_reference
            value = mixture(rows, self.projections, self.prior, *decoder)
        elif fast:
            value = cross_entropy(rows, *decoder, low=low)
        else:
            value = cross_entropy_reference(rows, *decoder)
        return Loss(value=value, count=len(targets), hidden_state=after, penalty=extra)

    def scores(self, outputs: Tensor) -> Tensor:
        """Next-word scores (..., V) for the last layer's outputs (..., H): their softmax is p.

        With a mixture of softmaxes they are log p itself.
        """
        if self.config.softmaxes > 1:
            return softmaxes.log_probabilities(
                outputs, self.projections, self.prior, self.embedding, self.bias
            )
        return F.linear(outputs, self.embedding, self.bias)

    def logits(self, inputs: Tensor, hidden_state: HiddenState) -> tuple[Tensor, HiddenState]:
        """Next-word scores (T, B, V) for word ids (T, B), and the next hidden state; without
        noise.
        """
        raw, after = self.outputs(inputs, hidden_state, {}, SILENCE)
        return self.scores(raw), after
