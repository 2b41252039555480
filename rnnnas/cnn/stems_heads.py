"""What stands before the first cell of an image network and beside the last: stems and heads.

Legend: B images, C channels, h and w pixels. Sizes are those of the DARTS paper's appendices.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnnnas.cnn.ops import Conv, Linear, Norm, Norms
from rnnnas.errors import UsageError

STEM_WIDTH = 3  # channels after the stem of small images, in units of a cell's


class SmallStem(nn.Module):
    """For images as small as CIFAR's: a 3x3 convolution to 3C channels. Both outputs are it."""

    def __init__(self, channels: int, norms: Norms, generator: torch.Generator) -> None:
        super().__init__()
        self.width = STEM_WIDTH * channels
        self.conv = Conv(3, self.width, (3, 3), generator)
        self.norm = Norm(self.width, norms)

    def forward(self, images: Tensor, train: bool) -> tuple[Tensor, Tensor]:
        """(B, 3, h, w) → twice (B, 3C, h, w)."""
        out = self.norm(self.conv(images), train)
        return out, out


class LargeStem(nn.Module):
    """For images as large as ImageNet's: three 3x3 convolutions of stride 2, the outputs of the
    second and the third."""

    def __init__(self, channels: int, norms: Norms, generator: torch.Generator) -> None:
        super().__init__()
        self.width = channels
        widths = (3, channels // 2, channels, channels)
        self.convs = nn.ModuleList(
            Conv(a, b, (3, 3), generator, stride=(2, 2))
            for a, b in zip(widths, widths[1:], strict=False)
        )
        self.norms = nn.ModuleList(Norm(width, norms) for width in widths[1:])

    def forward(self, images: Tensor, train: bool) -> tuple[Tensor, Tensor]:
        """(B, 3, h, w) → (B, C, h/4, w/4) and (B, C, h/8, w/8)."""
        out = self.norms[0](self.convs[0](images), train).relu()
        older: Tensor = self.norms[1](self.convs[1](out), train)
        last: Tensor = self.norms[2](self.convs[2](older.relu()), train)
        return older, last


class Auxiliary(nn.Module):
    """A second classifier on a middle cell's output, which shortens the way of the gradient.

    ReLU, mean over two 5x5 windows a side (so they lie 3 pixels apart at CIFAR's 8 pixels and 2
    at ImageNet's 7), 1x1 to 128 channels, 2x2 to 768, linear (Szegedy et al. 2015, section 5; sizes
    of NASNet).

    Args:
        norm: whether a batch normalisation follows the 2x2 convolution too. The DARTS paper's head
            on CIFAR has it; its head on ImageNet has none there.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        norms: Norms,
        generator: torch.Generator,
        *,
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.narrow = Conv(channels, 128, (1, 1), generator)
        self.first = Norm(128, norms)
        self.join = Conv(128, 768, (2, 2), generator, padding=0)
        self.second = Norm(768, norms) if norm else None
        self.classifier = Linear(768, classes, generator)

    def forward(self, x: Tensor, train: bool) -> Tensor:
        """(B, C, h, w) → scores (B, classes).

        Raises:
            UsageError: where the images are too small for two windows a side.
        """
        size = x.shape[2], x.shape[3]
        if min(size) < 2:
            raise UsageError(
                f"the auxiliary classifier sees only {size[0]} x {size[1]} pixels of these images",
                "train with model.auxiliary=false, or on larger images",
            )
        # Larger than five pixels where these would leave a gap, smaller where there are fewer.
        kernel = [min(max(5, math.ceil(n / 2)), n - 1) for n in size]
        stride = [n - k for n, k in zip(size, kernel, strict=True)]
        out = F.avg_pool2d(x.relu(), kernel, stride)
        out = self.first(self.narrow(out), train).relu()
        out = self.join(out)
        if self.second is not None:
            out = self.second(out, train)
        out = out.relu()
        scores: Tensor = self.classifier(out.flatten(1))
        return scores
