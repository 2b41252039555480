"""The network of densely connected blocks: under mixtures, for search, and derived.

Legend: B images, C channels, h and w pixels, P (L, O) and R (N, M) the mixtures of layers and
routes. Fang et al., CVPR 2020; see `cnn/dense/space.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnnnas.cnn.cell import by_edge
from rnnnas.cnn.dense.genotype import is_dense, mbconv_sizes, parts_of
from rnnnas.cnn.dense.space import LAYERS, ROUTES, SKIP, Layout
from rnnnas.cnn.model import CnnConfig, ConvNet, image_loss, low_precision
from rnnnas.cnn.noise import SILENCE, CnnNoise
from rnnnas.cnn.ops import DERIVED, SEARCH, Conv, Linear, Norm, Norms
from rnnnas.errors import UsageError
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.relax.base import Mixture
from rnnnas.nas.space import CellSpace
from rnnnas.types import Batch, HiddenState, Loss


class InvertedResidual(nn.Module):
    """mbconv_kxk_ee (MobileNetV2: Sandler et al. 2018; e1 has its first convolution here too).

    A 1x1 convolution to e times the channels, one of every channel by itself with kernel k, a 1x1
    convolution to the outputs; each normalised, the first two followed by ReLU6. The input is added
    where it has the output's shape.
    """

    def __init__(
        self,
        op: str,
        inputs: int,
        outputs: int,
        stride: int,
        norms: Norms,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        kernel, expansion = mbconv_sizes(op)
        inner = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.widen = Conv(inputs, inner, (1, 1), generator)
        self.first = Norm(inner, norms)
        self.depthwise = Conv(
            inner, inner, (kernel, kernel), generator, stride=(stride, stride), groups=inner
        )
        self.second = Norm(inner, norms)
        self.narrow = Conv(inner, outputs, (1, 1), generator)
        self.third = Norm(outputs, norms)

    def forward(self, x: Tensor, train: bool) -> Tensor:
        """(B, C, h, w) → (B, C', ceil(h/s), ceil(w/s))."""
        out = F.relu6(self.first(self.widen(x), train))
        out = F.relu6(self.second(self.depthwise(out), train))
        out = self.third(self.narrow(out), train)
        total: Tensor = x + out if self.residual else out
        return total


class ConvNorm(nn.Module):
    """A convolution and a normalisation, followed by ReLU6: the stem and the end."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, norms: Norms, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.conv = Conv(inputs, outputs, (kernel, kernel), generator)
        self.norm = Norm(outputs, norms)

    def forward(self, x: Tensor, train: bool) -> Tensor:
        out: Tensor = F.relu6(self.norm(self.conv(x), train))
        return out


class DenseNet(nn.Module):
    """An image classifier of dense blocks: all of them, under mixtures, or a derived path.

    Args:
        config: of it, path, precision and label_smoothing.
        blocks: a `Layout` (search), or the `Genotype` of a dense network.
        generator: draws the initial weights; on the CPU.

    Raises:
        UsageError: where a setting has no place in such a network.
    """

    def __init__(
        self,
        config: CnnConfig,
        blocks: Layout | Genotype,
        classes: int,
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        check_settings(config)
        self.config = config
        self.layout = blocks if isinstance(blocks, Layout) else None
        self.genotype = blocks if isinstance(blocks, Genotype) else None
        self.space: Mapping[str, CellSpace] = {} if self.layout is None else self.layout.spaces()
        # As in the other network: ends keep their scale in a search, operations do not.
        norms = DERIVED if self.genotype else Norms(affine=True, running=False)
        self.layers = nn.ModuleList()
        if isinstance(blocks, Layout):
            stem, last, end = blocks.widths[0], blocks.widths[-1], blocks.config.end
            self.stem = ConvNorm(3, stem, 3, norms, generator)
            for layer, able in zip(blocks.layers, self.space[LAYERS].allowed, strict=True):
                sizes = (layer.inputs, layer.outputs, layer.stride)
                usable = [op for op, a in zip(blocks.ops, able, strict=True) if a and op != SKIP]
                made = {op: InvertedResidual(op, *sizes, SEARCH, generator) for op in usable}
                self.layers.append(nn.ModuleDict(made))
        else:
            first, *middle, ending = parts_of(blocks)
            last, end = first.width, ending.width
            self.stem = ConvNorm(3, last, 3, norms, generator)
            for part in middle:
                for place, op in enumerate(part.ops):
                    stride = 1 if place else part.stride
                    made_one = InvertedResidual(op, last, part.width, stride, DERIVED, generator)
                    self.layers.append(made_one)
                    last = part.width
        self.end = ConvNorm(last, end, 1, norms, generator)
        self.classifier = Linear(end, classes, generator)
        for module in self.modules():
            if isinstance(module, (Conv, Norm)):
                module.quick = config.path == "fast"

    def noise(self, batch: Batch, generator: torch.Generator, *, progress: float = 1.0) -> CnnNoise:
        """Nothing is masked in this network."""
        return SILENCE

    def in_float32(self) -> DenseNet:
        """The same weights in a network that rounds no product: for finite differences."""
        other = copy.copy(self)
        other.config = replace(self.config, precision="float32")
        return other

    def _blocks(self, x: Tensor, mixtures: Mapping[str, Mixture], train: bool) -> Tensor:
        """The last block's output, of the stem's. (B, C, h, w) → (B, C', h', w')."""
        if self.layout is None:
            for layer in self.layers:
                x = layer(x, train)
            return x
        layout, routes = self.layout, mixtures[ROUTES]
        chosen = by_edge(self.space[LAYERS], mixtures[LAYERS])
        taken = by_edge(self.space[ROUTES], routes)
        # None: no route that is taken leads there.
        outs: list[Tensor | None] = [x]
        for j in range(1, len(layout.widths)):
            total: Tensor | None = None
            for i, source in enumerate(outs):
                if source is None or j - i - 1 not in taken[i]:
                    continue
                (row,) = layout.rows(j, i)
                head = self._layer(row, chosen[row], source, mixtures[LAYERS], train)
                head = routes.weights[i, j - i - 1] * head
                total = head if total is None else total + head
            for row in layout.rows(j, j):
                if total is not None:
                    total = self._layer(row, chosen[row], total, mixtures[LAYERS], train)
            outs.append(total)
        last = outs[-1]
        assert last is not None  # every block leads on to some later one
        return last

    def _layer(self, row: int, ops: list[int], x: Tensor, mixture: Mixture, train: bool) -> Tensor:
        """Σ_o P[row, o] o(x) over the operations that are computed."""
        modules = self.layers[row]
        assert isinstance(modules, nn.ModuleDict)
        total: Tensor | None = None
        for o in ops:
            op = self.space[LAYERS].ops[o]
            out = mixture.weights[row, o] * (x if op == SKIP else modules[op](x, train))
            total = out if total is None else total + out
        assert total is not None  # every layer has an operation
        return total

    def _scores(
        self, images: Tensor, mixtures: Mapping[str, Mixture], noise: CnnNoise | None
    ) -> Tensor:
        train = noise is not None
        if self.config.path == "fast":
            images = images.contiguous(memory_format=torch.channels_last)
        low = train and images.dtype == torch.float32 and low_precision(self.config, images.device)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=low):
            last = self.end(self._blocks(self.stem(images, train), mixtures, train), train)
        scores: Tensor = self.classifier(last.mean((2, 3)).to(self.classifier.weight.dtype))
        return scores

    def logits(self, images: Tensor, mixtures: Mapping[str, Mixture] | None = None) -> Tensor:
        """Scores (B, classes) of images (B, 3, h, w), as in evaluation; `mixtures` of a search."""
        return self._scores(images, mixtures or {}, None)

    def forward(
        self,
        batch: Batch,
        hidden_state: HiddenState,
        mixtures: Mapping[str, Mixture],
        noise: CnnNoise | None,
    ) -> Loss:
        """The mean cross entropy of a batch of images; arguments as of `ConvNet`."""
        scores = self._scores(batch.inputs, mixtures, noise)
        smooth = self.config.label_smoothing if noise is not None else 0.0
        return image_loss(scores, batch.targets, smooth)


def check_settings(config: CnnConfig) -> None:
    """Raises UsageError where a setting would act on nothing in a network of dense blocks."""
    for name, only in (
        ("stem", "cifar"), ("partial", 1), ("skip_dropout", 0.0), ("auxiliary", False),
        ("drop_path", 0.0),
    ):  # fmt: skip
        if getattr(config, name) != only:
            raise UsageError(
                f"model.{name} = {getattr(config, name)} has no place in a network of dense blocks",
                "take --preset cifar10-dense, or leave the setting out",
            )


def derived_network(
    config: CnnConfig, genotype: Genotype, classes: int, generator: torch.Generator
) -> ConvNet | DenseNet:
    """The network that a genotype describes, of cells or of dense blocks."""
    kind = DenseNet if is_dense(genotype.cells) else ConvNet
    return kind(config, genotype, classes, generator=generator)
