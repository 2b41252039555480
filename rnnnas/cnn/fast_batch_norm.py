"""Batch normalisation of channels-last images on a CPU: torch's values and gradients, in less time.

Legend: B images, C channels, h and w pixels, M = B·h·w, K pixels side by side. An image in
channels-last order is an (M, C) matrix, and an (M/K, K·C) one: rows of K pixels.

torch's own kernels go along the C numbers of a pixel: 8 to 24 of them fill no vectors, and 12 leave
a rest each time (benchmarks/README.md). Here everything runs on rows of K pixels, that is on a few
hundred columns, and only what was summed once a column is joined to channels. Both gradients are
written out, and theirs too, which the exact second order of a search needs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

WIDE = 512  # columns at most: sums and scales of so many stay in the first cache
# Pixels. Of fewer the many small calls take longer than what they save: half as many, a search's
# step of 32 images, were slower by a few percent, 64 images of 32 x 32 faster.
LEAST = 48 * 32 * 32
_ATEN = torch.ops.aten


def suits(x: Tensor) -> bool:
    """Whether the functions here are faster than torch's for images x (B, C, h, w), and right."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and x.numel() >= LEAST * x.shape[1]
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def batch_norm(
    x: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    epsilon: float,
) -> Tensor:
    """Normalise by the statistics of this batch, as `F.batch_norm(..., training=True)` does.

    Args:
        x: (B, C, h, w), such that `suits(x)`.
        mean, variance: (C,) running statistics, updated in place, or None.
        weight, bias: (C,) scale and shift, or None for 1 and 0.
    """
    with torch.no_grad():
        columns = _columns(x)
        means, variances = torch.batch_norm_update_stats(columns, None, None, 0.0)
        # The variance of all pixels: that within columns, and that of the columns' means.
        between, own = torch.var_mean(means.view(-1, x.shape[1]), 0, correction=0)
        own_variance = variances.view(-1, x.shape[1]).mean(0) + between
        if mean is not None and variance is not None:
            count = x.numel() // x.shape[1]
            mean.mul_(1 - momentum).add_(own, alpha=momentum)
            unbiased = momentum * count / (count - 1)
            variance.mul_(1 - momentum).add_(own_variance, alpha=unbiased)
        rstd = (own_variance + epsilon).rsqrt()
    out: Tensor = _Normalise.apply(x, weight, bias, own, rstd)  # type: ignore[no-untyped-call]
    return out


def by_running(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    epsilon: float,
) -> Tensor:
    """`F.batch_norm(..., training=False)`: by statistics (C,) of before. x as in `batch_norm`."""
    return _scaled(x, weight, bias, mean, (variance + epsilon).rsqrt())


class _Normalise(torch.autograd.Function):
    """weight (x - mean) rstd + bias, where mean and rstd (C,) are those of x, as numbers."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, rstd)
        return _scaled(x, weight, bias, mean, rstd)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        for_x, for_weight, for_bias = _Gradient.apply(  # type: ignore[no-untyped-call]
            grad, x, weight, mean, rstd
        )
        _, weighed, shifted, *_ = ctx.needs_input_grad
        return for_x, for_weight if weighed else None, for_bias if shifted else None, None, None


class _Gradient(torch.autograd.Function):
    """The gradients of `_Normalise` in x, weight and bias.

    With z = (x - m) s, means ⟨·⟩ over a channel, and P(v) = v - ⟨v⟩ - z ⟨v z⟩, they are
    weight s P(grad), Σ grad z and Σ grad. dz/dx is s P, and ds/dx is -s² z / M; of these two the
    gradients in `backward` follow.
    """

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(grad, x, weight, mean, rstd)
        count = x.numel() // x.shape[1]
        plain, along = _sums(grad, x, mean, rstd)
        scale = rstd if weight is None else weight * rstd
        share = scale * (-1 / count)
        for_x = _combined(grad, scale, x, along * share, plain * share, mean, rstd)
        return for_x, along, plain

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, x, weight, mean, rstd = ctx.saved_tensors
        u, u_weight, u_bias = grads
        u = u.contiguous(memory_format=torch.channels_last)
        count = x.numel() // x.shape[1]
        scale = rstd if weight is None else weight * rstd
        g0, gz = (total / count for total in _sums(grad, x, mean, rstd))
        u0, uz = (total / count for total in _sums(u, x, mean, rstd))
        ug = _sums(u, grad, torch.zeros_like(mean), torch.ones_like(mean))[1] / count
        inner = ug - u0 * g0 - uz * gz  # ⟨u P(grad)⟩
        by_p = u_weight - scale * uz
        for_grad = _combined(u, scale, x, by_p, u_bias - scale * u0, mean, rstd)
        by_u, by_grad = -scale * rstd * gz, rstd * by_p
        by_z = -scale * rstd * inner - by_u * uz - by_grad * gz
        shift = -by_u * u0 - by_grad * g0
        for_x = _combined(u, by_u, x, by_z, shift, mean, rstd)
        columns = _columns(for_x)
        columns.addcmul_(_columns(grad), _repeated(by_grad, columns))
        for_weight = None if weight is None else rstd * inner * count
        return for_grad, for_x, for_weight, None, None


def _columns(x: Tensor) -> Tensor:
    """x (B, C, h, w), channels-last, as (M/K, K·C) with K a power of two, without a copy."""
    pixels, channels = x.numel() // x.shape[1], x.shape[1]
    side = pixels & -pixels  # the largest power of two that divides it
    while side > 1 and side * channels > WIDE:
        side //= 2
    return x.permute(0, 2, 3, 1).reshape(-1, side * channels)


def _repeated(value: Tensor, columns: Tensor) -> Tensor:
    """value (C,) once for every pixel of a row of `columns`. (K·C,)."""
    # `repeat` does the same in five times as many calls.
    return value.expand(columns.shape[1] // len(value), -1).reshape(-1)


def _images(columns: Tensor, like: Tensor) -> Tensor:
    """The images whose `_columns` these are."""
    b, c, h, w = like.shape
    return columns.view(b, h, w, c).permute(0, 3, 1, 2)


def _scaled(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor
) -> Tensor:
    """weight (x - mean) rstd + bias, in one pass over x."""
    scale = rstd if weight is None else weight * rstd
    shift = -mean * scale if bias is None else torch.addcmul(bias, mean, scale, value=-1)
    columns = _columns(x)
    shift, scale = _repeated(shift, columns), _repeated(scale, columns)
    return _images(torch.addcmul(shift, columns, scale), x)


def _sums(v: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Σ v and Σ v (x - mean) rstd over a channel, (C,) each, in one pass over v and x."""
    columns = _columns(x)
    means = _repeated(mean, columns)
    # What torch's backward pass sums for the bias and the weight of a normalisation by statistics
    # of before, with variance 1: the one call that makes both sums at once.
    _, along, plain = _ATEN.native_batch_norm_backward(
        _columns(v), columns, None, means, torch.ones_like(means), None, None, False, 0.0,
        [False, True, True],
    )  # fmt: skip
    return plain.view(-1, len(mean)).sum(0), along.view(-1, len(mean)).sum(0) * rstd


def _combined(
    v: Tensor, by_v: Tensor, x: Tensor, by_z: Tensor, shift: Tensor, mean: Tensor, rstd: Tensor
) -> Tensor:
    """v by_v + z by_z + shift with z = (x - mean) rstd; v and x images, all else (C,)."""
    columns, by_x = _columns(x), by_z * rstd
    shift = torch.addcmul(shift, by_x, mean, value=-1)
    out = torch.addcmul(_repeated(shift, columns), columns, _repeated(by_x, columns))
    return _images(out.addcmul_(_columns(v), _repeated(by_v, columns)), x)
