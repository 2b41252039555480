"""Images: batches in a new order every epoch, no state between them, a convolutional network."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from torch.func import functional_call

from rnnnas.cnn.dense.genotype import is_dense
from rnnnas.cnn.dense.network import DenseNet, derived_network
from rnnnas.cnn.dense.space import Layout
from rnnnas.cnn.model import ConvNet, check_auxiliary
from rnnnas.cnn.noise import SILENCE
from rnnnas.cnn.ops import MOMENTUM
from rnnnas.cnn.space import image_spaces
from rnnnas.config.images import ImageSearchConfig, ImageTrainConfig
from rnnnas.data.image_batches import Batches, InOrder
from rnnnas.data.image_corpus import ImageCorpus, Images
from rnnnas.data.image_splits import balanced_order
from rnnnas.data.text_streams import Streams
from rnnnas.engine.cuda_graphs import CudaGraphs
from rnnnas.engine.job import Position
from rnnnas.engine.steps import generator as generator_of
from rnnnas.engine.task import AlphaBatch, Net
from rnnnas.errors import UsageError
from rnnnas.latency import dense_blocks, image_cells
from rnnnas.nas.derive import derive
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.latency_price import Price
from rnnnas.nas.relax.base import Alphas, Relaxation, Spaces
from rnnnas.types import Batch, Noise

CPU = torch.device("cpu")
FADING = 5.0  # P-DARTS: e^-0.2 an epoch, in stages of 25
SETTLED = 50  # batches that running statistics are taken of; older ones would weigh 0.5 % together


def images_of(
    corpus: ImageCorpus, split: str | Images, size: int, side: int, device: torch.device
) -> Batches:
    """A split, or a part of one, of `corpus` in batches of `size`.

    Raises:
        UsageError: where the images differ in size and `side`, in pixels, is 0.
    """
    if corpus.size is None and not side:
        raise UsageError(
            f"the images of {corpus.name} differ in size: they need one to be scaled to",
            "add --set augment.size=224",
        )
    images = corpus.splits[split] if isinstance(split, str) else split
    return Batches(images, size, device, mean=corpus.mean, std=corpus.std)


class _Images:
    """What a search and a training on images have in common."""

    measure = "accuracy"
    config: ImageSearchConfig | ImageTrainConfig
    train: Batches

    def lengths(self, epoch: int) -> list[int]:
        """A last batch of a single image is left out: nothing can be normalised by it."""
        count = len(self.train)
        if count > 1 and len(self.train.images) % self.train.size == 1:
            count -= 1
        return [1] * min(count, self.config.batches.limit or count)

    def batch(self, at: Position, steps: int) -> Batch:
        draws = generator_of(self.config.seed, "augment", at.step, CPU)
        seed = self.config.seed
        return self.train.batch(at.window, at.epoch, seed, self.config.augment, draws)

    def scaled(self, lr: float, steps: int) -> float:
        return lr

    def cuda_graphs(self) -> CudaGraphs | None:
        return None


@final
class ImageSearch(_Images):
    """See `task.SearchTask`. The alphas' images are the end of the training ones, of which any
    part has the classes in proportion.
    """

    def __init__(
        self, config: ImageSearchConfig, corpus: ImageCorpus, device: torch.device
    ) -> None:
        self.config: ImageSearchConfig = config
        self.corpus, self.device = corpus, device
        self.classes = len(corpus.classes)
        self.layout = Layout(config.dense) if config.space == "dense" else None
        self.spaces: Spaces = image_spaces(config.model.nodes)
        if self.layout is not None:
            self.spaces = self.layout.spaces()
        train, other = corpus.splits["train"], corpus.splits["valid"]
        # A single-level method has no use for images of the alphas' own.
        if config.alphas.text == "held-out" and config.relaxation.level == "valid":
            kept = int(len(train) * (1 - config.alphas.held_out))
            train, other = train.part(0, kept), train.part(kept, len(train))
        if min(len(train), len(other)) < 2:
            raise UsageError(
                f"{len(train)} images for weights and {len(other)} for alphas are too few",
                "take more images, or another alphas.held_out",
            )
        size, side = config.batches.size, config.augment.size
        self.train = images_of(corpus, train, size, side, device)
        self.alpha = images_of(corpus, other, min(size, len(other)), side, device)
        valid = corpus.splits["valid"]
        count = min(config.valid_images or len(valid), len(valid))
        if count > 1 and count % config.batches.evaluated == 1:
            count -= 1  # a last batch of one image could not be normalised by itself
        # A network under search normalises by the batch at hand: each must hold all classes, and a
        # split that came with the images may lie class by class.
        valid = valid.rows(balanced_order(valid.labels)[:count])
        judged = images_of(corpus, valid, config.batches.evaluated, side, device)
        self.valid = InOrder(judged, side)
        # Another order than the weights': both halves lie class by class in the same sequence.
        digest = hashlib.sha256(f"{config.seed}/alphas".encode()).digest()
        self.alpha_seed = int.from_bytes(digest[:4], "little")

    def network(self, stage: int, spaces: Spaces, generator: torch.Generator) -> Net:
        if self.layout is not None:
            return DenseNet(self.config.model, self.layout, self.classes, generator=generator)
        now = self.config.plan[stage]
        sizes = replace(self.config.model, layers=now.layers, skip_dropout=now.skip_dropout)
        return ConvNet(sizes, spaces, self.classes, generator=generator)

    def derive(self, relaxation: Relaxation, alphas: Alphas, spaces: Spaces) -> Genotype:
        if self.layout is None:
            return derive(relaxation, alphas, spaces, self.config.derive.limits)
        scores = relaxation.scores({name: a.detach() for name, a in alphas.items()}, spaces)
        return self.layout.derive({name: table.tolist() for name, table in scores.items()})

    def alpha_batch(self, at: Position, start: int) -> AlphaBatch:
        """One a step; only whole batches, so that all alpha steps weigh images alike."""
        count = len(self.alpha.images) // self.alpha.size
        epoch, k = divmod(at.step, count)
        draws = generator_of(self.config.seed, "augment-alphas", at.step, CPU)
        batch = self.alpha.batch(k, epoch, self.alpha_seed, self.config.augment, draws)
        return AlphaBatch(batch, start, True)

    def at(self, net: Net, stage: int, progress: float) -> Net:
        """Under the stage's dropout on identities, which fades as the code of P-DARTS lets it:
        linearly, as if to 0 at the stage's end, while the alphas are frozen, and from its full
        value again exponentially from then on (Chen et al. 2019, section 3.4).
        """
        full, warmup = self.config.plan[stage].skip_dropout, self.config.alphas.warmup
        if not full:
            return net
        assert isinstance(net, ConvNet)
        frozen = progress < warmup
        left = 1 - progress if frozen else math.exp(-FADING * (progress - warmup))
        return net.twin(skip_dropout=full * left)

    def alone(self, net: Net) -> Net:
        return net

    def scored(self, trained: int) -> Streams:
        raise UsageError("cells are not tried one by one on images")

    def pricing(self) -> Callable[[Path], Price] | None:
        if not self.config.latency.weight:
            return None
        pricing = image_cells.pricing if self.layout is None else dense_blocks.pricing
        return pricing(self.config, self.corpus, self.device)


@final
class ImageTraining(_Images):
    """See `task.TrainTask`."""

    kind = "convolutional"

    def __init__(self, config: ImageTrainConfig, corpus: ImageCorpus, device: torch.device) -> None:
        self.config: ImageTrainConfig = config
        self.corpus = corpus
        side = config.augment.size
        self.train = images_of(corpus, "train", config.batches.size, side, device)
        judged = images_of(corpus, "valid", config.batches.evaluated, side, device)
        self.valid = InOrder(judged, side)
        if config.model.auxiliary and not is_dense(config.genotype):
            check_auxiliary(config.model, side or min(corpus.size or ()))

    def network(self, generator: torch.Generator) -> Net:
        config, classes = self.config, len(self.corpus.classes)
        return derived_network(config.model, config.network, classes, generator)

    def noise(
        self, net: Any, batch: Batch, generator: torch.Generator, progress: float
    ) -> Noise:  # fmt: skip
        return net.noise(batch, generator, progress=progress)

    @torch.no_grad()
    def statistics(self, net: Net, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Running statistics of training batches, always the same ones, under `weights`.

        Those of the network go with the weights of its last steps, and an average of them with no
        weights at all (Izmailov et al. 2018, section 3.2).
        """
        buffers = {name: torch.zeros_like(value) for name, value in net.named_buffers()}
        state = {**weights, **buffers}
        count = min(SETTLED, len(self.lengths(0)))
        for k in range(count):
            batch = self.batch(Position(window=k, step=k), 1)
            functional_call(net, state, (batch, None, {}, SILENCE))  # moves the buffers in place
        filled = 1 - (1 - MOMENTUM) ** count  # the rest is the zeros that they began with
        return {name: value / filled for name, value in buffers.items()}

    def described(self) -> dict[str, Any]:
        corpus = self.corpus
        return {
            "classes": list(corpus.classes),
            "mean": list(corpus.mean),
            "std": list(corpus.std),
            "size": None if corpus.size is None else list(corpus.size),
        }
