"""Augmentation of image batches: chance first, as values, then tensor operations.

Legend: B images, h and w their height and width in pixels, S the side that images are scaled to.
`Draws` holds everything random of one batch; what is done with it depends on nothing else. The
order: crop, flip, jitter, normalisation, cutout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from rnnnas.errors import UsageError

# Random resized crops (Szegedy et al. 2015): share of the area, ratio of width to height.
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
TRIES = 10  # boxes drawn until one fits
CENTRE = 7 / 8  # of the shorter side: what an evaluation sees, 224 of 256 pixels
GREY = (0.299, 0.587, 0.114)  # luma of red, green and blue (ITU-R BT.601)


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig:
    """How training images are varied.

    crop_padding: black pixels on every side, out of which a crop of the old size is taken, not with
        `augment.resized_crop`; pixels; 0 or more; 4 as is usual on CIFAR-10
    flip: whether half of the images are mirrored left to right; as is usual for photographs
    cutout: side of a square that is set to 0 after normalisation (DeVries, Taylor 2017); pixels; 0
        or more, 0 for none; none in searches, where trainings of DARTS take 16
    jitter: brightness, contrast and saturation are scaled by factors in [1 - jitter, 1 + jitter];
        share; 0 to 1; none, where 0.4 is common for ImageNet
    resized_crop: whether a random part of the image is scaled to `augment.size` (Szegedy et al.
        2015); for large images alone
    size: S, the side that images are scaled to, in evaluation too; pixels; 0 or more, 0 for as they
        are; images of a corpus mostly have the right size
    """

    crop_padding: int = 4
    flip: bool = True
    cutout: int = 0
    jitter: float = 0.0
    resized_crop: bool = False
    size: int = 0

    def __post_init__(self) -> None:
        for name in ("crop_padding", "cutout", "size"):
            if getattr(self, name) < 0:
                raise UsageError(
                    f"augment.{name} = {getattr(self, name)} must not be negative",
                    "Give a number of pixels, or 0 for none.",
                )
        if not 0 <= self.jitter <= 1:
            raise UsageError(
                f"augment.jitter = {self.jitter} must lie in [0, 1]", "0.4 is common for ImageNet."
            )
        if self.resized_crop and not self.size:
            raise UsageError(
                "augment.resized_crop needs a size to scale to",
                "Set augment.size, for ImageNet to 224.",
            )


class Draws(NamedTuple):
    """What chance decides of one batch; None where it is not asked.

    top, left: (B,) int64, of the crop in the padded image. flipped: (B,) bool. factors: (B, 3)
    float32, of brightness, contrast and saturation. hole: (B, 2) int64, centre of the cutout.
    """

    top: Tensor | None = None
    left: Tensor | None = None
    flipped: Tensor | None = None
    factors: Tensor | None = None
    hole: Tensor | None = None


def draw(config: AugmentConfig, images: Tensor, generator: torch.Generator) -> Draws:
    """Everything random about `images` (B, 3, h, w), drawn on the generator's device.

    The result lies on the device of the images.
    """
    count, _, height, width = images.shape

    def integers(high: int) -> Tensor:
        drawn = torch.randint(high, (count,), generator=generator, device=generator.device)
        return drawn.to(images.device)

    def uniform(columns: int) -> Tensor:
        drawn = torch.rand((count, columns), generator=generator, device=generator.device)
        return drawn.to(images.device)

    top = left = flipped = factors = hole = None
    if config.crop_padding and not config.resized_crop:
        top, left = integers(2 * config.crop_padding + 1), integers(2 * config.crop_padding + 1)
    if config.flip:
        flipped = integers(2).bool()
    if config.jitter:
        factors = 1 + config.jitter * (2 * uniform(3) - 1)
    if config.cutout:
        hole = torch.stack((integers(height), integers(width)), 1)
    return Draws(top, left, flipped, factors, hole)


def augment(
    images: Tensor, draws: Draws, config: AugmentConfig, mean: Tensor, std: Tensor
) -> Tensor:
    """Vary and normalise uint8 images (B, 3, h, w): float32 of the same shape."""
    if draws.top is not None and draws.left is not None:
        images = crop(images, draws.top, draws.left, config.crop_padding)
    if draws.flipped is not None:
        images = flip(images, draws.flipped)
    if draws.factors is None:
        normal = normalised(images, mean, std)
    else:
        varied = jitter(images.float().div_(255), draws.factors)
        normal = varied.sub_(mean.view(3, 1, 1)).div_(std.view(3, 1, 1))
    return normal if draws.hole is None else cut_out(normal, draws.hole, config.cutout)


def normalised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(x / 255 - mean) / std of images (B, 3, h, w), mean and std (3,): a float32 of its own."""
    shift, scale = (255 * mean).view(3, 1, 1), (255 * std).view(3, 1, 1)
    return (images.float() - shift).div_(scale)


def crop(images: Tensor, top: Tensor, left: Tensor, padding: int) -> Tensor:
    """Out of images (B, 3, h, w) padded with zeros, the (h, w) from (top, left), each (B,)."""
    count, channels, height, width = images.shape
    padded = functional.pad(images, (padding,) * 4)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    # One gather over flat pixels: indexing by three tensors took five times as long.
    places = rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]
    places = places.view(count, 1, -1).expand(count, channels, -1)
    return padded.view(count, channels, -1).gather(2, places).view(images.shape)


def flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Images (B, 3, h, w), mirrored left to right where flipped (B,) says so."""
    return torch.where(flipped.view(-1, 1, 1, 1), images.flip(3), images)


def jitter(images: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast and saturation of float images (B, 3, h, w) in [0, 1], in this order.

    Each mixes the image with another by a factor f of factors (B, 3), f x + (1 - f) y, clipped to
    [0, 1]: y is black, the image's mean grey, and its own grey values.
    """
    brightness, contrast, saturation = (f.view(-1, 1, 1, 1) for f in factors.unbind(1))
    images = (images * brightness).clamp_(0, 1)
    images = torch.lerp(_grey(images).mean((2, 3), keepdim=True), images, contrast).clamp_(0, 1)
    return torch.lerp(_grey(images), images, saturation).clamp_(0, 1)


def _grey(images: Tensor) -> Tensor:
    """(B, 1, h, w)"""
    weights = images.new_tensor(GREY).view(3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def cut_out(images: Tensor, hole: Tensor, length: int) -> Tensor:
    """Images (B, 3, h, w) with a square of `length` set to zero (DeVries and Taylor 2017).

    It begins length // 2 above and left of its centre, hole (B, 2) in rows and columns, and is
    clipped at the borders.
    """
    height, width = images.shape[2:]
    start = hole - length // 2
    rows = torch.arange(height, device=images.device) - start[:, :1]
    columns = torch.arange(width, device=images.device) - start[:, 1:]
    inside = ((rows >= 0) & (rows < length))[:, :, None] & ((columns >= 0) & (columns < length))[
        :, None, :
    ]
    return images.masked_fill(inside[:, None], 0)


def random_boxes(sizes: Tensor, drawn: Tensor) -> Tensor:
    """Boxes of a random area and ratio, somewhere in images of `sizes`.

    Of up to `TRIES` boxes the first that fits in counts; where none does, the largest box in the
    middle whose ratio lies in `RATIO`.

    Args:
        sizes: (B, 2) int64, height and width of each image.
        drawn: (B, TRIES, 4) float64, uniform in [0, 1): area, ratio, top, left.

    Returns:
        (B, 4) int64: top, left, height, width.
    """
    height, width = sizes.double().unsqueeze(2).unbind(1)  # (B, 1) each
    share = AREA[0] + (AREA[1] - AREA[0]) * drawn[..., 0]
    low, high = map(math.log, RATIO)
    ratio = torch.exp(low + (high - low) * drawn[..., 1])
    area = share * height * width
    box = torch.stack(((area / ratio).sqrt().round(), (area * ratio).sqrt().round()), 2)
    room = sizes[:, None] + 1 - box
    top_left = (drawn[..., 2:] * room).floor()
    fits = ((box >= 1) & (room >= 1)).all(2)
    first = fits.int().argmax(1)  # the first of the largest
    found = torch.cat((top_left, box), 2)[torch.arange(len(sizes)), first]
    clamped = torch.cat(
        (torch.minimum(height, (width / RATIO[0]).round()),
         torch.minimum(width, (height * RATIO[1]).round())), 1
    )  # fmt: skip
    middle = torch.cat((((sizes - clamped) / 2).floor(), clamped), 1)
    return torch.where(fits.any(1, keepdim=True), found, middle).long()


def centre_box(height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of the middle square of `CENTRE` of the shorter side."""
    side = max(1, round(min(height, width) * CENTRE))
    return (height - side) // 2, (width - side) // 2, side, side


def resized(image: Tensor, box: tuple[int, int, int, int], side: int) -> Tensor:
    """The box of a uint8 image (3, h, w), scaled to (3, S, S): uint8, rounded.

    Bilinear, with the filter widened where the image shrinks, so that no pixel is skipped.
    """
    top, left, height, width = box
    part = image[None, :, top : top + height, left : left + width].float()
    scaled = functional.interpolate(
        part, (side, side), mode="bilinear", align_corners=False, antialias=True
    )
    return scaled[0].round_().clamp_(0, 255).to(torch.uint8)
