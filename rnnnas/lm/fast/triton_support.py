"""What the kernels in Triton, which comes with torch for CUDA, take and ask for."""

from __future__ import annotations

import functools
import importlib.util
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from rnnnas.lm.fast.cpu_library import SWITCH, switched_off

TILE = 64  # what inner sizes are rounded up to, so that no product ends within a tile


@functools.cache
def reason(device: torch.device) -> str:
    """Why there are no kernels for this CUDA device; empty where there are."""
    if switched_off():
        return f"{SWITCH} says so"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (torch's builds for CUDA bring it on Linux)"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "Triton's products need a card of compute capability 8.0 or more"
    try:
        _try_one(device)
    except Exception as error:  # of any kind: it looks for compilers, headers and drivers
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return ""


def _try_one(device: torch.device) -> None:
    """Compile and launch a small kernel."""
    from rnnnas.lm.fast import triton_loss

    logits, nats = torch.zeros(1, 1, device=device), torch.zeros(1, device=device)
    targets = torch.zeros(1, dtype=torch.int64, device=device)
    with current(nats):
        triton_loss.losses[(1,)](logits, nats, targets, nats, 1, 1.0, WANTED=False, WORDS=16)


def current(like: Tensor) -> AbstractContextManager[Any]:
    """Within it, kernels are launched on the tensor's device: Triton takes the current one."""
    return torch.cuda.device(like.device) if like.is_cuda else nullcontext()


def usable(*tensors: Tensor) -> bool:
    """Whether the kernels take these tensors: float32, all on one CUDA device."""
    like = tensors[0]
    if any(t.device != like.device or t.dtype != torch.float32 for t in tensors):
        return False
    return like.device.type == "cuda" and not reason(like.device)


_Plain = Any  # numbers of one kind in a tuple, or such tuples in one
_TABLES: dict[tuple[str, torch.device], Tensor] = {}


def table(plain: _Plain, device: torch.device) -> Tensor:
    """Numbers on a device, int32 or float32. Copied once: a capture can record no copy from this
    process' memory, and any other window would wait for it.
    """
    key = (repr(plain), device)  # 1 and 1.0 are equal, and not the same
    if key not in _TABLES:
        made = torch.tensor(plain, device=device)
        fractions = made.is_floating_point() and made.numel()  # an empty one is of numbers of slots
        _TABLES[key] = made if fractions else made.int()
    return _TABLES[key]


def padded(matrices: Tensor, kind: torch.dtype) -> Tensor:
    """Matrices (..., U, 2U) as kernels take them: (..., W, 2, W) of type `kind`, zero beyond U."""
    *lead, units, _ = matrices.shape
    size = wide(units)
    whole = matrices.new_zeros(*lead, size, 2, size, dtype=kind)
    whole[..., :units, :, :units] = matrices.view(*lead, units, 2, units)
    return whole


def cut(whole: Tensor, units: int) -> Tensor:
    """Without its zeros, a matrix' gradient (W, 2 W): (U, 2 U)."""
    parts = whole.view(len(whole), 2, -1)[:units, :, :units]
    return parts.reshape(units, 2 * units)


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
