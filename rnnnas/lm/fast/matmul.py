"""Matrix products of the fast path: where they run, and with factors rounded to bfloat16.

Legend: T steps, B streams, D inputs, W columns.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rnnnas.lm.fast import openblas

# oneDNN's product of float32 matrices, as torch's compiler calls it. torch.mm calls MKL's, which on
# other makers' processors took twice as long (benchmarks/README.md). None where it is missing.
_ONEDNN = (
    getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and platform.machine() in ("x86_64", "AMD64")
    else None
)
SMALL = 2_000_000  # multiplications below which its cost a call eats the gain
# The same of OpenBLAS: one thread alone gains from about 8 million, two from about 2. It is one
# number for all, so that the threads' number changes no result, up to `openblas.PARTS`.
SMALL_OPENBLAS = 4_000_000
# On Intel's own processors MKL took 0.6 to 1.0 of oneDNN's time for every layout that was timed, so
# that nothing is gained there.
_FOREIGN = openblas.maker() != "GenuineIntel"
# With AVX-512 oneDNN is then the faster one for every dense layout. With AVX2 both are as fast, so
# that the copies decide that it makes of factors and results (benchmarks/README.md).
_WIDE = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
# Columns of b from which a bfloat16 factor a with dense columns is copied first: with AMX its
# product took 1.4 to 2.1 times as long as the copy and the product of that.
MANY = 1024


def multiply(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a (M, K) times b (K, W) by the fastest library, without a graph. (M, W), `out` if given.

    `out` may have another type than the factors.
    """
    a = _with_dense_rows(a, b)
    own = out if out is None or out.dtype == a.dtype else None  # where a library can write it
    if _suits_openblas(a, b, own):
        product = openblas.multiply(a, b, own)
    elif _suits_onednn(a, b, copied=out is not None):
        assert _ONEDNN is not None
        product = _ONEDNN(a, b.t(), None, "none", [], "")
    else:
        product = torch.mm(a, b) if own is None else torch.mm(a, b, out=own)
    return product if out is None or out is product else out.copy_(product)


def accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total (M, W) += a (M, K) times b (K, W), likewise; `total` may have another type."""
    a = _with_dense_rows(a, b)
    if total.dtype != a.dtype:
        total += multiply(a, b)
    elif _suits_openblas(a, b, total):
        openblas.multiply(a, b, total, add=True)
    elif _suits_onednn(a, b, copied=True):
        total += multiply(a, b)
    else:
        torch.addmm(total, a, b, out=total)


def _suits_openblas(a: Tensor, b: Tensor, out: Tensor | None) -> bool:
    large = a.shape[0] * a.shape[1] * b.shape[1] > SMALL_OPENBLAS
    return large and openblas.leads() and openblas.usable(a, b, out)


def _suits_onednn(a: Tensor, b: Tensor, copied: bool) -> bool:
    """Whether oneDNN multiplies these factors, and faster than MKL.

    A slice of columns is left to MKL: oneDNN takes it as `b` by its reference kernel alone, which
    needed 30 to 240 times as long.

    Args:
        copied: the product is wanted in a place of its own, where oneDNN does not write it.
    """
    if _ONEDNN is None or not _FOREIGN or a.dtype != torch.float32 or a.device.type != "cpu":
        return False
    if a.shape[0] * a.shape[1] * b.shape[1] <= SMALL:
        return False
    if _WIDE:
        return _dense(a) and _dense(b)
    return not copied and a.is_contiguous() and b.t().is_contiguous()


def _with_dense_rows(a: Tensor, b: Tensor) -> Tensor:
    """`a`, or its copy where that is worth it."""
    copied = a.dtype == torch.bfloat16 and a.device.type == "cpu" and b.shape[1] >= MANY
    return a.contiguous() if copied else a


def _dense(matrix: Tensor) -> bool:
    """Whether the matrix or its transpose lies in memory without gaps."""
    return matrix.is_contiguous() or matrix.t().is_contiguous()


def project(inputs: Tensor, matrix: Tensor, low: bool) -> Tensor:
    """inputs (T, B, D) times matrix (D, W): all steps at once, for it needs no recurrence.

    The result can be differentiated once. Raises TypeError for factors of different types.

    Args:
        low: multiply in bfloat16, forward and back; what comes out, gradients too, has the inputs'
            own type again.

    Returns:
        (T, B, W).
    """
    product: Tensor = _Product.apply(  # type: ignore[no-untyped-call]
        inputs.flatten(0, 1), matrix, torch.bfloat16 if low else inputs.dtype
    )
    return product.view(*inputs.shape[:2], -1)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, matrix: Tensor, factor: torch.dtype) -> Tensor:
        ctx.type = rows.dtype
        if rows.dtype != matrix.dtype:
            raise TypeError(f"factors of {rows.dtype} and {matrix.dtype}")
        factors = rows.to(factor), matrix.to(factor)
        ctx.save_for_backward(*factors)
        return multiply(*factors).to(rows.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, matrix = ctx.saved_tensors
        gradient = gradient.to(rows.dtype)
        need_rows, need_matrix, _ = ctx.needs_input_grad
        of_rows = multiply(gradient, matrix.t()).to(ctx.type) if need_rows else None
        of_matrix = multiply(rows.t(), gradient).to(ctx.type) if need_matrix else None
        return of_rows, of_matrix, None
