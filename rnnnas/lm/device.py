"""What the kernels in Triton, which comes with torch for CUDA, take and ask for."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor

TILE = 64  # what inner sizes are rounded up to, so that no product ends within a tile


@functools.cache
def reason() -> str:
    """Why there are no kernels for devices; empty where there are."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (torch's builds for CUDA bring it on Linux)"
    if torch.cuda.get_device_capability() < (8, 0):
        return "Triton's products need a card of compute capability 8.0 or more"
    return ""


def usable(*tensors: Tensor) -> bool:
    """Whether the kernels take these tensors: float32, all on one CUDA device."""
    like = tensors[0]
    if any(t.device != like.device or t.dtype != torch.float32 for t in tensors):
        return False
    return like.device.type == "cuda" and not reason()


_Plain = Any  # numbers of one kind in a tuple, or such tuples in one
_TABLES: dict[tuple[str, torch.device], Tensor] = {}


def table(plain: _Plain, device: torch.device) -> Tensor:
    """Numbers on a device, int32 or float32. Copied once: a capture can record no copy from this
    process' memory, and any other window would wait for it.
    """
    key = (repr(plain), device)  # 1 and 1.0 are equal, and not the same
    if key not in _TABLES:
        made = torch.tensor(plain, device=device)
        _TABLES[key] = made if made.is_floating_point() else made.int()
    return _TABLES[key]


def padded(matrices: Tensor, kind: torch.dtype) -> Tensor:
    """Matrices (..., U, 2U) as kernels take them: (..., W, 2, W) of type `kind`, zero beyond U."""
    *lead, units, _ = matrices.shape
    size = wide(units)
    whole = matrices.new_zeros(*lead, size, 2, size, dtype=kind)
    whole[..., :units, :, :units] = matrices.view(*lead, units, 2, units)
    return whole


def precision(factor: Tensor) -> str:
    """How products of this type are taken on its device.

    Of float32 on a card as three products of tf32 parts: as exact as the library's own in float32
    (benchmarks/README.md), and by the matrix units.
    """
    return "tf32x3" if factor.dtype == torch.float32 and factor.is_cuda else "ieee"


def rows(streams: int, most: int) -> int:
    """The rows of a product's tile: not many more than there are."""
    return min(most, max(16, 1 << (streams - 1).bit_length()))


def wide(units: int) -> int:
    """W: `units` rounded up to whole tiles."""
    return -(-units // TILE) * TILE
