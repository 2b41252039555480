"""The image network: stem, cells, classifier, loss. It owns weights only.

Legend: B images, C channels of the first cells, h and w pixels, L cells, E edges, K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnnnas.cnn import fast_cell
from rnnnas.cnn.cell import DerivedCell, MixedCell
from rnnnas.cnn.noise import SILENCE, CnnNoise, draw
from rnnnas.cnn.ops import DERIVED, Conv, Linear, Norm, Norms
from rnnnas.cnn.space import NORMAL, REDUCE, check_genotype
from rnnnas.cnn.stems_heads import Auxiliary, LargeStem, SmallStem
from rnnnas.errors import UsageError
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.relax.base import Mixture
from rnnnas.nas.space import CellSpace
from rnnnas.types import Batch, HiddenState, Loss

# Of an evaluation at a time, on a CPU: 64 images of 32 x 32. What 250 of them need at once is no
# longer cached, and given back to the system after every layer (benchmarks/README.md).
PIXELS = 64 * 32 * 32
TOP = 5  # places in which a right class counts for the top-5 accuracy


@dataclass(frozen=True, slots=True, kw_only=True)
class CnnConfig:
    """Sizes of an image network, what training adds, and which form of the computation runs.

    Evaluation is always float32, and so are weights and loss.

    channels: C of the first cells, which a reduction cell doubles; channels; 1 or more; 16 as in
        the search of DARTS, whose training has 36
    layers: L, cells one after the other, of which those at L // 3 and 2L // 3 are reductions;
        cells; 1 or more; 8 as in the search of DARTS, whose training has 20
    nodes: of the searched cells, since derived ones bring their own; nodes; 1 or more; 4 as in
        DARTS
    stem: "cifar" keeps the images' size, "imagenet" divides it by 8; for small images
    partial: in a search, 1/partial of the channels go through the operations (PC-DARTS); -; a
        divisor of `model.channels`, 1 for all; all of them, as every method but PC-DARTS does
    skip_dropout: in a search, the share of an identity's outputs that is dropped (P-DARTS); share;
        0 to below 1; none, as every method but P-DARTS does
    auxiliary: in a training, whether a second classifier after cell 2L // 3 adds its loss; not in
        searches, where trainings of DARTS have it
    auxiliary_weight: weight of that loss; -; 0 or more; 0.4 as in DARTS
    auxiliary_norm: whether that classifier's last convolution is normalised; the published head for
        CIFAR is and that for ImageNet is not
    drop_path: in a training, the share of edges dropped at its end, growing from 0; share; 0 to
        below 1; none, where trainings of DARTS take 0.2
    label_smoothing: in a training, the share of the target's mass spread over all classes; share; 0
        to below 1; none, where DARTS on ImageNet takes 0.1
    path: "reference" follows the definitions operation by operation, "fast" gives the same values
        and gradients; this one does so sooner
    precision: of training's convolutions, "auto" for bfloat16 on a GPU that has it and float32 on a
        CPU; bfloat16 is slower backwards on a CPU (benchmarks/README.md)
    """

    channels: int = 16
    layers: int = 8
    nodes: int = 4
    stem: Literal["cifar", "imagenet"] = "cifar"
    partial: int = 1
    skip_dropout: float = 0.0
    auxiliary: bool = False
    auxiliary_weight: float = 0.4
    auxiliary_norm: bool = True
    drop_path: float = 0.0
    label_smoothing: float = 0.0
    path: Literal["fast", "reference"] = "fast"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        for name in ("channels", "layers", "nodes", "partial"):
            if getattr(self, name) < 1:
                raise UsageError(f"model.{name} = {getattr(self, name)} must be at least 1")
        if self.layers > MOST_LAYERS:
            raise UsageError(
                f"model.layers = {self.layers} cannot be meant: at most {MOST_LAYERS} cells fit "
                "the memory and the time of any training"
            )
        for name in ("skip_dropout", "drop_path", "label_smoothing"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UsageError(f"model.{name} = {getattr(self, name)} must lie in [0, 1)")
        if self.auxiliary_weight < 0:
            raise UsageError(
                f"model.auxiliary_weight = {self.auxiliary_weight} must not be negative"
            )
        if self.channels % self.partial:
            raise UsageError(
                f"model.partial = {self.partial} must divide model.channels = {self.channels}"
            )
        if self.stem == "imagenet" and self.channels < 2:
            raise UsageError("model.channels must be at least 2 with model.stem = 'imagenet'")


MOST_LAYERS = 1_000  # refused at once, instead of after minutes of building


def low_precision(config: CnnConfig, device: torch.device) -> bool:
    """Whether training's convolutions run in bfloat16 on `device`."""
    if config.precision != "auto":
        return config.precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return False


def check_auxiliary(config: CnnConfig, side: int) -> None:
    """Refuse an auxiliary classifier that would see less than two windows a side.

    Args:
        side: of the images, in pixels.
    """
    # As in `ConvNet`: the reductions up to the cell that it stands behind.
    halvings = len({config.layers // 3, 2 * config.layers // 3})
    halvings += 3 if config.stem == "imagenet" else 0
    if side <= 2**halvings:
        raise UsageError(
            f"the auxiliary classifier would see less than 2 x 2 pixels of images of {side}",
            f"train with model.auxiliary=false, or on images of at least {2**halvings + 1} x "
            f"{2**halvings + 1} pixels",
        )


class ConvNet(nn.Module):
    """An image classifier of L cells.

    Args:
        cells: what the cells are: a `Genotype` (derived), or the `CellSpace` of the normal and of
            the reduction cell (search, under mixtures).
        generator: draws the initial weights; on the CPU, so that a seed gives the same weights
            on every device.

    Raises:
        UsageError: where a setting has no place in such a network.
    """

    def __init__(
        self,
        config: CnnConfig,
        cells: Mapping[str, CellSpace] | Genotype,
        classes: int,
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.config = config
        self.genotype = check_genotype(cells) if isinstance(cells, Genotype) else None
        self.space: Mapping[str, CellSpace] = {} if isinstance(cells, Genotype) else dict(cells)
        _check(config, cells)
        # The stem of a search keeps its scale, as published: no mixture lies before it.
        norms = DERIVED if self.genotype else Norms(affine=True, running=False)
        stem = SmallStem if config.stem == "cifar" else LargeStem
        self.stem = stem(config.channels, norms, generator)
        reductions = {config.layers // 3, 2 * config.layers // 3}
        self.kinds = [REDUCE if k in reductions else NORMAL for k in range(config.layers)]
        self.side = 2 * config.layers // 3  # the cell that the auxiliary classifier sees
        self.cells = nn.ModuleList()
        self.auxiliary: Auxiliary | None = None
        widths, channels = (self.stem.width, self.stem.width), config.channels
        halve = config.stem == "imagenet"
        for k, kind in enumerate(self.kinds):
            reduce = kind == REDUCE
            channels *= 2 if reduce else 1
            if isinstance(cells, Genotype):
                gene = cells.cells[kind]
                self.cells.append(
                    DerivedCell(gene, widths, channels, generator, reduce=reduce, halve=halve)
                )
                out = channels * len(gene.concat)
            else:
                space = cells[kind]
                self.cells.append(
                    MixedCell(
                        space, widths, channels, generator,
                        reduce=reduce, halve=halve, partial=config.partial,
                    )
                )  # fmt: skip
                out = channels * space.nodes
            widths, halve = (widths[1], out), reduce
            if config.auxiliary and k == self.side:
                self.auxiliary = Auxiliary(
                    out, classes, norms, generator, norm=config.auxiliary_norm
                )
        self.classifier = Linear(widths[1], classes, generator)
        for module in self.modules():
            if isinstance(module, (Conv, Norm)):
                module.quick = config.path == "fast"

    def noise(self, batch: Batch, generator: torch.Generator, *, progress: float = 1.0) -> CnnNoise:
        """The masks of one forward pass over `batch`.

        Args:
            progress: share of the training that is done, in [0, 1]: drop-path grows with it
                (Zoph et al. 2018, section 4.1), and a network keeps no time of its own. The
                default is for search, where nothing depends on it.
        """
        images, config = batch.inputs, self.config
        sizes = []
        if config.skip_dropout:
            h, w = images.shape[2:]
            for _ in range(3 if config.stem == "imagenet" else 0):
                h, w = -(-h // 2), -(-w // 2)
            for cell in self.cells:
                assert isinstance(cell, MixedCell)
                if cell.reduce:
                    h, w = -(-h // 2), -(-w // 2)
                sizes.append((len(cell.identities), len(images), cell.mixed, h, w))
        edges = max(
            len(cell.edges) for cell in self.cells if isinstance(cell, (MixedCell, DerivedCell))
        )
        return draw(
            drop_path=config.drop_path * progress,
            paths=(config.layers, edges, len(images)),
            skip_dropout=config.skip_dropout,
            skips=sizes,
            dtype=self.classifier.weight.dtype,
            generator=generator,
        )

    def twin(self, **changes: Any) -> ConvNet:
        """The same weights, shared, under other settings, as skip_dropout=0.2.

        For settings that change as a search proceeds: a network keeps no time of its own.

        Raises:
            UsageError: where a setting would change which weights there are.
        """
        fixed = set(changes) - {"skip_dropout", "drop_path", "label_smoothing", "precision"}
        if fixed:
            raise UsageError(f"{', '.join(sorted(fixed))} cannot differ in a network's twin")
        other = copy.copy(self)
        other.config = replace(self.config, **changes)
        _check(other.config, self.genotype or self.space)
        return other

    def in_float32(self) -> ConvNet:
        """The same weights in a network that rounds no product: for finite differences.

        A perturbation of norm 0.01 over millions of weights lies below bfloat16's resolution.
        """
        return self.twin(precision="float32")

    def _scores(
        self, images: Tensor, mixtures: Mapping[str, Mixture], noise: CnnNoise | None
    ) -> tuple[Tensor, Tensor | None]:
        """The classifier's scores (B, K), and in training the auxiliary one's."""
        train, masks = noise is not None, noise or SILENCE
        beside = None
        literal = self.config.path == "reference"
        if not literal:
            some = max(1, PIXELS // images.shape[2:].numel())
            # With statistics of before, images have nothing to do with each other.
            alone = noise is None and self.genotype is not None
            if alone and images.device.type == "cpu" and len(images) > some:
                parts = [
                    self._scores(part, mixtures, None)[0] for part in torch.split(images, some)
                ]
                return torch.cat(parts), None
            images = images.contiguous(memory_format=torch.channels_last)
        low = train and images.dtype == torch.float32 and low_precision(self.config, images.device)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=low):
            older, last = self.stem(images, train)
            for k, cell in enumerate(self.cells):
                if isinstance(cell, MixedCell):
                    skips = None if masks.skips is None else masks.skips[k]
                    mixture = mixtures[self.kinds[k]]
                    run = cell if literal else partial(fast_cell.run, cell)
                    out = run(older, last, mixture, skips, masks.kept, train)
                else:
                    out = cell(older, last, None if masks.paths is None else masks.paths[k], train)
                older, last = last, out
                if self.auxiliary is not None and k == self.side and train:
                    beside = self.auxiliary(last, train)
        pooled = last.mean((2, 3)).to(self.classifier.weight.dtype)
        scores: Tensor = self.classifier(pooled)
        return scores, None if beside is None else beside.to(scores.dtype)

    def logits(self, images: Tensor, mixtures: Mapping[str, Mixture] | None = None) -> Tensor:
        """Scores (B, K) of images (B, 3, h, w), as in evaluation; `mixtures` of a search."""
        return self._scores(images, mixtures or {}, None)[0]

    def forward(
        self,
        batch: Batch,
        hidden_state: HiddenState,
        mixtures: Mapping[str, Mixture],
        noise: CnnNoise | None,
    ) -> Loss:
        """The mean cross entropy of a batch of images.

        What training adds is the penalty: label smoothing's difference to the plain cross entropy
        (Szegedy et al. 2016, section 7), and the weighted loss of the auxiliary classifier.

        Args:
            hidden_state: None; images come one by one.
            mixtures: of both cells under search; {} for derived ones.
            noise: of this pass, or None to evaluate: no masks, no penalty, and normalisation by
                the running statistics where there are any.
        """
        scores, beside = self._scores(batch.inputs, mixtures, noise)
        smooth = self.config.label_smoothing if noise is not None else 0.0
        loss = image_loss(scores, batch.targets, smooth)
        if beside is None:
            return loss
        side = F.cross_entropy(beside, batch.targets, label_smoothing=smooth)
        return loss._replace(penalty=loss.penalty + self.config.auxiliary_weight * side)


def image_loss(scores: Tensor, targets: Tensor, smooth: float) -> Loss:
    """The cross entropy of scores (B, K); its penalty is what label smoothing adds to it."""
    value = F.cross_entropy(scores, targets)
    penalty = value.new_zeros(())
    if smooth:
        penalty = penalty + F.cross_entropy(scores, targets, label_smoothing=smooth)
        penalty = penalty - value
    correct = _correct(scores.detach(), targets)
    return Loss(
        value=value, count=len(targets), hidden_state=None, penalty=penalty, correct=correct
    )


def _correct(scores: Tensor, targets: Tensor) -> Tensor:
    """How many targets (B,) have the best of the scores (B, K), and one of the best five. (2,)."""
    own = scores.gather(1, targets[:, None])
    # Ties, and scores that are no number, count as above: who tells nothing apart is never right.
    above = (~(scores < own)).sum(1) - 1
    return torch.stack([(above < 1).sum(), (above < TOP).sum()])


def _check(config: CnnConfig, cells: Mapping[str, CellSpace] | Genotype) -> None:
    """Refuse settings that would act on nothing."""
    if isinstance(cells, Genotype):
        idle = {"partial": config.partial != 1, "skip_dropout": config.skip_dropout > 0}
        what = "a derived network"
    else:
        idle = {"auxiliary": config.auxiliary, "drop_path": config.drop_path > 0}
        what = "a search"
    for name, given in idle.items():
        if given:
            raise UsageError(f"model.{name} = {getattr(config, name)} has no place in {what}")
