"""Batches of images: which, in what order, on which device. Legend: B images a batch, n in all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rnnnas.data.image_augment import (
    TRIES,
    AugmentConfig,
    augment,
    centre_box,
    draw,
    normalised,
    random_boxes,
    resized,
)
from rnnnas.data.image_corpus import Images
from rnnnas.data.image_decode import quiet
from rnnnas.errors import UsageError
from rnnnas.types import Batch

RESIDENT = 1 << 30  # bytes of pixels that are kept on the device; more stays in the memory map


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """How images are taken.

    size: B of a training batch; images; 2 or more; 64 as in the search of DARTS
    limit: batches an epoch at most; batches; 0 or more, 0 for all images; an epoch is all images
        unless a preset wants a short one
    evaluated: B of evaluations, by which a search normalises there too; images; 2 or more;
        statistics of 250 images are steady
    """

    size: int = 64
    limit: int = 0
    evaluated: int = 250

    def __post_init__(self) -> None:
        for name, low in {"size": 2, "limit": 0, "evaluated": 2}.items():
            if getattr(self, name) < low:
                raise UsageError(f"batches.{name} = {getattr(self, name)} must be at least {low}")


class Batches:
    """The images of a split, B at a time; the last batch holds what is left.

    A batch depends on its number, the epoch, the seed and the generator given, and on nothing that
    went before.

    Args:
        images: a split, or a part of one.
        size: B.
        device: where batches are made and lie.
        mean, std: of the corpus, a value a channel.
    """

    def __init__(
        self,
        images: Images,
        size: int,
        device: torch.device,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        if size < 1:
            raise UsageError(f"{size} images a batch are too few", "Give 1 or more.")
        self.images = images
        self.size = size
        self.device = device
        self._mean = torch.tensor(mean, device=device)
        self._std = torch.tensor(std, device=device)
        self._targets = torch.from_numpy(np.array(images.labels, dtype=np.int64)).to(device)
        self._resident: Tensor | None = None
        if images.pixels is not None and images.pixels.nbytes <= RESIDENT:
            self._resident = torch.from_numpy(np.array(images.pixels)).to(device)
        # Pillow and torch let other threads run while they work on an image.
        self._pool = None if images.pixels is not None else _pool()
        self._order: tuple[tuple[int, int], Tensor] | None = None

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-len(self.images) // self.size)

    def order(self, epoch: int, seed: int) -> Tensor:
        """The permutation of the rows (n,) int64 that an epoch reads: a function of both."""
        if self._order is None or self._order[0] != (epoch, seed):
            name = hashlib.sha256(f"{seed}/images/{epoch}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(name[:8], "little") >> 1)
            self._order = (epoch, seed), torch.randperm(len(self.images), generator=generator)
        return self._order[1]

    def batch(
        self,
        k: int,
        epoch: int,
        seed: int,
        config: AugmentConfig | None,
        generator: torch.Generator,
    ) -> Batch:
        """Batch k of an epoch: inputs (B, 3, h, w) float32, normalised, targets (B,) int64.

        Args:
            config: how to vary the images; None: not at all.
            generator: what augmentation draws from; on any device.
        """
        rows = self._rows(self.order(epoch, seed), k)
        if config is None:
            return self._plain(rows, 0)
        pixels = self._pixels(rows, config.size, config.resized_crop, generator)
        draws = draw(config, pixels, generator)
        inputs = augment(pixels, draws, config, self._mean, self._std)
        return Batch(inputs, self._targets[rows.to(self.device)])

    def in_order(self, k: int, side: int = 0) -> Batch:
        """Batch k of the images as they are kept, not varied: for evaluation.

        Args:
            side: pixels; the middle of the images is scaled to it, as `AugmentConfig.size` says.
        """
        return self._plain(self._rows(torch.arange(len(self.images)), k), side)

    def _rows(self, order: Tensor, k: int) -> Tensor:
        if not 0 <= k < len(self):
            raise IndexError(f"batch {k} of {len(self)}")
        return order[k * self.size : (k + 1) * self.size]

    def _plain(self, rows: Tensor, side: int) -> Batch:
        inputs = normalised(self._pixels(rows, side, False, None), self._mean, self._std)
        return Batch(inputs, self._targets[rows.to(self.device)])

    def _pixels(
        self, rows: Tensor, side: int, anywhere: bool, generator: torch.Generator | None
    ) -> Tensor:
        """(B, 3, h, w) uint8 on the device; scaled to (side, side) where that is not 0."""
        if side:
            return self._scaled(rows, side, generator if anywhere else None).to(self.device)
        if self._resident is not None:
            return self._resident.index_select(0, rows.to(self.device))
        if self.images.pixels is None:
            raise UsageError(
                f"{self.images.name}: images of differing size need one to be scaled to",
                "Set augment.size, for ImageNet to 224.",
            )
        # In the order of the file: a page of it is then read once.
        upward, back = np.unique(rows.numpy(), return_inverse=True)
        return torch.from_numpy(self.images.pixels[upward][back]).to(self.device)

    def _scaled(self, rows: Tensor, side: int, generator: torch.Generator | None) -> Tensor:
        """(B, 3, side, side) uint8: the middle of each image, or, with a generator, any part."""
        apply = map if self._pool is None else self._pool.map
        with quiet():
            # A copy: what is mapped read-only makes no tensor.
            images = list(
                apply(lambda row: torch.from_numpy(self.images.decoded(row).copy()), rows.tolist())
            )
        sizes = torch.tensor([image.shape[1:] for image in images])
        if generator is None:
            boxes = [centre_box(*size) for size in sizes.tolist()]
        else:
            drawn = torch.rand(
                (len(rows), TRIES, 4), generator=generator, device=generator.device,
                dtype=torch.float64,
            )  # fmt: skip
            boxes = random_boxes(sizes, drawn.cpu()).tolist()
        return torch.stack(
            list(
                apply(lambda both: resized(both[0], both[1], side), zip(images, boxes, strict=True))
            )
        )


@dataclass(frozen=True, slots=True)
class InOrder:
    """The images of a split, once, as they are kept: for evaluation. side: as `Batches.in_order`
    takes it.
    """

    batches: Batches
    side: int = 0

    def read(self, steps: int) -> Iterator[Batch]:
        """Every image once; `steps` says nothing of images."""
        return (self.batches.in_order(k, self.side) for k in range(len(self.batches)))


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(torch.get_num_threads())
