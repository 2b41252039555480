"""The operations on the edges of an image cell, readable, and the layers they are made of.

Legend: B images, C channels, h and w pixels, k kernel, s stride. Every module maps (B, C, h, w)
to (B, C', ceil(h/s), ceil(w/s)). Zoph et al. 2018, appendix A.2; DARTS, section 3.1.1.

Whether a batch normalisation uses its batch or what it has seen is an argument, `train`, of every
forward pass, not a mode of the module. All weights are drawn from the generator that is handed
in, in the order of construction: torch's own layers draw from the global one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnnnas.cnn import fast_batch_norm
from rnnnas.cnn.fast_convolutions import depthwise, halves
from rnnnas.errors import UsageError

EPSILON = 1e-5  # of the batch normalisation
MOMENTUM = 0.1  # weight of a batch in the running statistics


class Norms(NamedTuple):
    """What batch normalisations own: a scale and a shift; running statistics."""

    affine: bool
    running: bool


# In search a scale would hide that an operation's weight grows, and statistics of many mixtures
# would fit none (DARTS, section 3.1.1): nothing is kept, evaluation too uses its batch.
SEARCH = Norms(affine=False, running=False)
DERIVED = Norms(affine=True, running=True)


def uniform(shape: tuple[int, ...], fan_in: int, generator: torch.Generator) -> nn.Parameter:
    """U(-r, r), r = fan_in^-1/2: He's initialisation with a = √5, where torch's layers start."""
    reach = fan_in**-0.5
    return nn.Parameter(torch.empty(shape).uniform_(-reach, reach, generator=generator))


class Norm(nn.Module):
    """Batch normalisation over B, h and w.

    `quick` is set by the network: whether `rnnnas.cnn.fast_batch_norm` may serve.
    """

    quick = False
    mean: Tensor | None
    variance: Tensor | None

    def __init__(self, channels: int, norms: Norms) -> None:
        super().__init__()
        self.norms = norms
        self.weight = nn.Parameter(torch.ones(channels)) if norms.affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if norms.affine else None
        self.register_buffer("mean", torch.zeros(channels) if norms.running else None)
        self.register_buffer("variance", torch.ones(channels) if norms.running else None)

    def forward(self, x: Tensor, train: bool) -> Tensor:
        """Where `train`, by the statistics of this batch, which enter the running ones."""
        own = train or not self.norms.running
        if self.quick and fast_batch_norm.suits(x):
            if own:
                return fast_batch_norm.batch_norm(
                    x, self.mean, self.variance, self.weight, self.bias, MOMENTUM, EPSILON
                )
            assert self.mean is not None and self.variance is not None
            return fast_batch_norm.by_running(
                x, self.mean, self.variance, self.weight, self.bias, EPSILON
            )
        return F.batch_norm(
            x, self.mean, self.variance, self.weight, self.bias, own, MOMENTUM, EPSILON
        )


class Conv(nn.Module):
    """A convolution without bias; zeros around the image keep its size at stride 1.

    kernel: pixels down and across, odd. padding: another number of zeros on every side. `quick`
    is set by the network: whether `depthwise` may serve.
    """

    quick = False

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int],
        generator: torch.Generator,
        *,
        stride: tuple[int, int] = (1, 1),
        dilation: int = 1,
        groups: int = 1,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        self.stride, self.dilation, self.groups = stride, dilation, groups
        around = (dilation * (kernel[0] - 1) // 2, dilation * (kernel[1] - 1) // 2)
        self.padding = around if padding is None else (padding, padding)
        each = inputs // groups
        self.weight = uniform((outputs, each, *kernel), each * kernel[0] * kernel[1], generator)

    def forward(self, x: Tensor) -> Tensor:
        stride, padding, dilation = self.stride, self.padding, self.dilation
        if self.weight.shape[2:].numel() == 1 and stride != (1, 1):
            # The same pixels at stride 1. torch 2.13 writes beyond its memory in the gradient of a
            # 1x1 kernel of stride 2 where images lie channels-last and have few channels.
            x, stride = x[:, :, :: stride[0], :: stride[1]], (1, 1)
        quick = self.quick and self.groups > 1
        if quick and dilation == 2 and stride == (2, 2) and not any(n % 2 for n in padding):
            # Only every other pixel is ever met: of these it is a plain kernel, at stride 1.
            x = x[:, :, ::2, ::2].contiguous(memory_format=torch.channels_last)
            stride, padding, dilation = (1, 1), (padding[0] // 2, padding[1] // 2), 1
        # Where torch's own backward pass would be slow: see `depthwise`.
        slow = stride == (1, 1) and self.weight.shape[2] * dilation > 3
        if quick and slow and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
            return depthwise(x, self.weight, dilation)
        return F.conv2d(x, self.weight, None, stride, padding, dilation, self.groups)


class Linear(nn.Module):
    """y = x Wᵀ + b. (B, inputs) → (B, outputs)."""

    def __init__(self, inputs: int, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = uniform((outputs, inputs), inputs, generator)
        self.bias = uniform((outputs,), inputs, generator)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class ReluConvNorm(nn.Module):
    """ReLU, a 1x1 convolution, normalisation: brings a cell's input to the cell's width."""

    def __init__(self, inputs: int, outputs: int, norms: Norms, generator: torch.Generator) -> None:
        super().__init__()
        self.conv = Conv(inputs, outputs, (1, 1), generator)
        self.norm = Norm(outputs, norms)

    def forward(self, x: Tensor, train: bool) -> Tensor:
        out: Tensor = self.norm(self.conv(x.relu()), train)
        return out


class FactorisedReduction(nn.Module):
    """Halves h and w: half of the outputs see the even pixels, half the odd ones diagonal to them.

    ReLU, two 1x1 convolutions of stride 2, one of them a pixel down and right, concatenated,
    normalisation. Beyond the border of an image of odd size lie zeros.
    """

    def __init__(self, inputs: int, outputs: int, norms: Norms, generator: torch.Generator) -> None:
        super().__init__()
        self.even = Conv(inputs, outputs // 2, (1, 1), generator, stride=(2, 2))
        self.odd = Conv(inputs, outputs - outputs // 2, (1, 1), generator, stride=(2, 2))
        self.norm = Norm(outputs, norms)

    def forward(self, x: Tensor, train: bool) -> Tensor:
        if self._quick(x):  # half of the pixels are never met: the ReLU need not see them
            even, odd = halves(x)
            out: Tensor = self.norm(self._joined(even.relu(), odd.relu()), train)
            return out
        out = self.norm(self.rectified(x.relu(), train), train)
        return out

    def rectified(self, r: Tensor, train: bool) -> Tensor:
        """What follows the ReLU, up to the normalisation."""
        if self._quick(r):
            return self._joined(*halves(r))
        shifted = F.pad(r[:, :, 1:, 1:], (0, r.shape[3] % 2, 0, r.shape[2] % 2))
        return torch.cat([self.even(r), self.odd(shifted)], 1)

    def _quick(self, x: Tensor) -> bool:
        return self.even.quick and x.device.type == "cpu"

    def _joined(self, even: Tensor, odd: Tensor) -> Tensor:
        """Of the pixels (B, C, h', w') that both convolutions see: see `halves`."""
        return torch.cat([F.conv2d(even, self.even.weight), F.conv2d(odd, self.odd.weight)], 1)


class Separable(nn.Module):
    """ReLU, a convolution of every channel by itself, a 1x1 convolution, normalisation."""

    def __init__(
        self,
        channels: int,
        kernel: int,
        stride: int,
        norms: Norms,
        generator: torch.Generator,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.depthwise = Conv(
            channels, channels, (kernel, kernel), generator,
            stride=(stride, stride), dilation=dilation, groups=channels,
        )  # fmt: skip
        self.pointwise = Conv(channels, channels, (1, 1), generator)
        self.norm = Norm(channels, norms)

    def forward(self, x: Tensor, train: bool) -> Tensor:
        out: Tensor = self.norm(self.rectified(x.relu(), train), train)
        return out

    def rectified(self, r: Tensor, train: bool) -> Tensor:
        """What follows the ReLU, up to the normalisation."""
        out: Tensor = self.pointwise(self.depthwise(r))
        return out


class SeparableTwice(nn.Module):
    """sep_conv_kxk: two separable convolutions in a row, the stride in the first."""

    def __init__(
        self, channels: int, kernel: int, stride: int, norms: Norms, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.first = Separable(channels, kernel, stride, norms, generator)
        self.second = Separable(channels, kernel, 1, norms, generator)

    def forward(self, x: Tensor, train: bool) -> Tensor:
        out: Tensor = self.norm(self.rectified(x.relu(), train), train)
        return out

    def rectified(self, r: Tensor, train: bool) -> Tensor:
        """What follows the first ReLU, up to the last normalisation."""
        inner = self.first.norm(self.first.rectified(r, train), train)
        return self.second.rectified(inner.relu(), train)

    @property
    def norm(self) -> Norm:
        return self.second.norm


class RowThenColumn(nn.Module):
    """conv_7x1_1x7: ReLU, a full convolution along rows, one along columns, normalisation."""

    def __init__(
        self, channels: int, stride: int, norms: Norms, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.row = Conv(channels, channels, (1, 7), generator, stride=(1, stride))
        self.column = Conv(channels, channels, (7, 1), generator, stride=(stride, 1))
        self.norm = Norm(channels, norms)

    def forward(self, x: Tensor, train: bool) -> Tensor:
        out: Tensor = self.norm(self.column(self.row(x.relu())), train)
        return out


def pool(kind: str, x: Tensor, stride: int) -> Tensor:
    """The largest, or the mean, of the 3x3 pixels around; pixels beyond the border do not count."""
    if kind == "max_pool_3x3":
        return F.max_pool2d(x, 3, stride, 1)
    return F.avg_pool2d(x, 3, stride, 1, count_include_pad=False)


class Pool(nn.Module):
    """A pool; in a search, normalised (without scale): its output would otherwise be the larger
    one wherever convolutions end in a normalisation."""

    def __init__(self, kind: str, channels: int, stride: int, norms: Norms) -> None:
        super().__init__()
        self.kind, self.stride = kind, stride
        self.norm = Norm(channels, norms) if norms == SEARCH else None

    def forward(self, x: Tensor, train: bool) -> Tensor:
        out = pool(self.kind, x, self.stride)
        return out if self.norm is None else self.norm(out, train)


class Identity(nn.Module):
    """skip_connect at stride 1."""

    def forward(self, x: Tensor, train: bool) -> Tensor:
        return x


def operation(
    op: str, channels: int, stride: int, norms: Norms, generator: torch.Generator
) -> nn.Module:
    """The module of an operation by its name; `none` has none.

    Raises:
        UsageError: where the name is unknown.
    """
    if op in ("max_pool_3x3", "avg_pool_3x3"):
        return Pool(op, channels, stride, norms)
    if op == "skip_connect":
        if stride == 1:
            return Identity()
        return FactorisedReduction(channels, channels, norms, generator)
    if op in ("sep_conv_3x3", "sep_conv_5x5", "sep_conv_7x7"):
        return SeparableTwice(channels, int(op[-1]), stride, norms, generator)
    if op in ("dil_conv_3x3", "dil_conv_5x5"):
        return Separable(channels, int(op[-1]), stride, norms, generator, dilation=2)
    if op == "conv_7x1_1x7":
        return RowThenColumn(channels, stride, norms, generator)
    raise UsageError(f"operation {op!r} has no layer in an image network")
