"""Weights in fewer bytes: int8 with a scale a row, and float16, widened where they are used.

Legend: a row is one output of a product: a word of the decoder, a unit of a gate, a channel of a
convolution. Its scale is its largest absolute value / 127, and its weights are scale times int8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Dtype: TypeAlias = Literal["float32", "float16", "int8"]
DTYPES: tuple[Dtype, ...] = ("float32", "float16", "int8")

LARGEST = 127  # of int8; -128 is not used, so that the range is symmetric
_SMALL = 1024  # weights: below that, packing saves no bytes worth naming
# Weights that stand to the right of their product: x (., in) @ w (..., in, out).
_RIGHT = ("first", "nodes", "projections", "prior")


def packs(name: str, value: Tensor) -> bool:
    """Whether a weight of this name is packed: a matrix or larger, of a size that is worth it."""
    return value.is_floating_point() and value.dim() > 1 and value.numel() >= _SMALL


def summed(name: str, value: Tensor) -> tuple[int, ...]:
    """The dimensions of a weight that its product sums over."""
    if name.rpartition(".")[2] in _RIGHT:
        return (value.dim() - 2,)
    return tuple(range(1, value.dim()))


def to_int8(name: str, value: Tensor) -> tuple[Tensor, Tensor]:
    """A weight as int8 of its shape, and the float32 scales, 1 wide where the product sums.

    A row of zeros has the scale 1.
    """
    scale = value.abs().amax(summed(name, value), keepdim=True) / LARGEST
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (value / scale).round().clamp(-LARGEST, LARGEST).to(torch.int8), scale


def rounded(state: Mapping[str, Tensor], dtype: Dtype) -> dict[str, Tensor]:
    """The weights as they are after packing and widening again: float32 of the same shapes."""
    out = {}
    for name, value in state.items():
        out[name] = value.detach()
        if dtype == "int8" and packs(name, value):
            quantised, scale = to_int8(name, value.detach())
            out[name] = quantised.float() * scale
        elif dtype == "float16" and packs(name, value):
            out[name] = value.detach().half().float()
    return out


def fits_float16(state: Mapping[str, Tensor]) -> bool:
    """Whether float16 has room for every weight: its largest number is 65,504."""
    most = torch.finfo(torch.float16).max
    return all(bool((v.abs() <= most).all()) for k, v in state.items() if packs(k, v))
