"""The loss over the vocabulary, in chunks: no (T·B, V) tensor is ever kept.

Legend: M = T·B targets, H hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rnnnas.errors import UsageError
from rnnnas.lm.fast import cpu_library, triton_support
from rnnnas.lm.fast.buffers import WORKSPACE
from rnnnas.lm.fast.matmul import accumulate, multiply

CHUNK = 512  # rows whose logits live at once
DEVICE_CHUNK = 1024  # likewise, on a device with kernels: its products want more rows
WORDS = 2048  # logits of a row that a device takes at once


@dataclass(frozen=True, slots=True, kw_only=True)
class PenaltyConfig:
    """Activation regularisation (Merity et al. 2018, section 4.6).

    ar: weight of the mean square of the dropped outputs; nats a squared unit; 0 or more, 0 for
        none; none, as in the DARTS paper
    tar: weight of the mean square of the difference between raw outputs one step apart; nats a
        squared unit; 0 or more, 0 for none; none, though presets take the 0.001 of the DARTS paper
    """

    ar: float = 0.0
    tar: float = 0.0

    def __post_init__(self) -> None:
        for name in ("ar", "tar"):
            if getattr(self, name) < 0:
                raise UsageError(f"penalty.{name} = {getattr(self, name)} must not be negative")


def penalty(config: PenaltyConfig, raw: Tensor, dropped: Tensor) -> Tensor:
    """AR on the dropped outputs and TAR on the raw ones, both (T, B, H). A scalar."""
    total = raw.new_zeros(())
    if config.ar:
        total = total + config.ar * dropped.square().mean()
    if config.tar and len(raw) > 1:
        total = total + config.tar * (raw[1:] - raw[:-1]).square().mean()
    return total


def cross_entropy_reference(
    outputs: Tensor, weight: Tensor, bias: Tensor, targets: Tensor
) -> Tensor:
    """Mean nats a target, as the definition says. (M, H), (V, H), (V,), (M,) → scalar."""
    return F.cross_entropy(F.linear(outputs, weight, bias), targets)


def cross_entropy(
    outputs: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, *, low: bool = False
) -> Tensor:
    """The same value, a chunk of rows at a time, its gradients formed while the logits are at hand.

    The backward pass costs nothing but a scaling; it can be differentiated once only.

    Args:
        low: multiply matrices in bfloat16. Softmax, loss, sums over chunks and the gradients that
            are handed out stay in the inputs' own type; but for the bias' on a device with kernels,
            where it is the sum of the rounded gradients that the matrix' is made of.
    """
    wanted = torch.is_grad_enabled()
    value: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        outputs, weight, bias, targets, wanted, low
    )
    return value


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        outputs: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        wanted: bool,
        low: bool,
    ) -> Tensor:
        on_device = triton_support.usable(outputs, weight, bias)
        chunk = DEVICE_CHUNK if on_device else CHUNK
        rows, size = len(targets), min(chunk, len(targets))
        ctx.present = need_x, need_w, need_b = tuple(
            wanted and need for need in ctx.needs_input_grad[:3]
        )
        if low and cpu_library.usable(outputs, weight, bias, low=True) and cpu_library.tiled():
            ctx.at_hand = True
            nats, grads = _by_tiles(outputs, weight, bias, targets, ctx.present)
            # Without gradients there is nothing to choose from.
            present = zip(grads, ctx.present, strict=False)
            ctx.save_for_backward(*(grad for grad, need in present if need))
            return (nats.sum() / rows).to(outputs.dtype)
        grad_x = torch.empty_like(outputs) if need_x else None
        grad_w = torch.zeros_like(weight) if need_w else None
        grad_b = torch.zeros_like(bias) if need_b else None
        total = outputs.new_zeros((), dtype=torch.float64)
        x_all, matrix = (outputs.bfloat16(), weight.bfloat16()) if low else (outputs, weight)
        compiled = on_device or cpu_library.usable(outputs, weight, bias, low=low)
        ctx.at_hand = compiled and not on_device  # a device's numbers would be waited for
        rounded = WORKSPACE.take(matrix, size, len(weight)) if low else None
        whole = None if compiled else WORKSPACE.take(outputs, size, len(weight))
        for start in range(0, rows, chunk):
            x, target = x_all[start : start + chunk], targets[start : start + chunk]
            out = whole if rounded is None else rounded
            logits = multiply(x, matrix.t(), out=None if out is None else out[: len(x)])
            wanted = need_x or need_w or need_b
            if on_device:
                total += _on_device(logits, bias, target, 1.0 / rows, wanted)
                factor = logits
                if grad_b is not None:
                    grad_b += factor.sum(0, dtype=grad_b.dtype)
            elif compiled:
                total += nats_and_gradients(logits, bias, target, 1.0 / rows, wanted, grad_b).sum()
                factor = logits
            else:
                assert whole is not None
                gradient = whole[: len(x)]
                total += _eager(logits, gradient, bias, target, 1.0 / rows, wanted)
                factor = logits.copy_(gradient) if low and wanted else gradient
                if grad_b is not None:
                    grad_b += gradient.sum(0)
            if grad_x is not None:
                grad_x[start : start + chunk] = multiply(factor, matrix)
            if grad_w is not None:
                accumulate(grad_w, factor.t(), x)
        WORKSPACE.give(*(buffer for buffer in (whole, rounded) if buffer is not None))
        ctx.save_for_backward(*(g for g in (grad_x, grad_w, grad_b) if g is not None))
        return (total / rows).to(outputs.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        # Usually nothing multiplies the loss: a pass over the largest matrix less.
        alone = ctx.at_hand and float(gradient) == 1.0
        grads = [
            (next(saved) if alone else next(saved) * gradient) if present else None
            for present in ctx.present
        ]
        return (*grads, None, None, None)


def _eager(
    logits: Tensor, gradient: Tensor, bias: Tensor, targets: Tensor, scale: float, wanted: bool
) -> Tensor:
    """The nats of some rows, a scalar in float64; `gradient` (M, V) becomes scale times the
    gradient.

    logits (M, V): without the bias, and where they are not rounded the very tensor `gradient` is.
    """
    at = targets.unsqueeze(1)
    torch.add(logits, bias, out=gradient)
    gradient -= gradient.amax(-1, keepdim=True)
    hit = gradient.gather(1, at)
    mass = gradient.exp_().sum(-1, keepdim=True)
    if wanted:
        gradient *= scale / mass
        gradient.scatter_add_(1, at, torch.full_like(mass, -scale))
    return (mass.log() - hit).sum(dtype=torch.float64)


def _on_device(logits: Tensor, bias: Tensor, targets: Tensor, scale: float, wanted: bool) -> Tensor:
    """The nats of some rows, a scalar in float64; with `wanted` the logits (M, V) become scale
    times the gradient. Only where tensors are `triton_support.usable`; NaN for a target that is no
    word.
    """
    from rnnnas.lm.fast import triton_loss

    rows, words = logits.shape
    nats = torch.empty(rows, dtype=bias.dtype, device=logits.device)
    with triton_support.current(bias):
        triton_loss.losses[(rows,)](
            logits, bias.contiguous(), targets.contiguous(), nats, words, scale, WANTED=wanted,
            WORDS=WORDS, num_warps=8,
        )  # fmt: skip
    return nats.sum(dtype=torch.float64)


def nats_and_gradients(
    logits: Tensor, bias: Tensor, targets: Tensor, scale: float, wanted: bool,
    by_word: Tensor | None,
) -> Tensor:  # fmt: skip
    """The nats of some rows, (M,) in float64, by a kernel; only where tensors are `usable`.

    logits (M, V), dense: without the bias; with `wanted` they become scale times the gradient,
    whose sum over the rows is added to `by_word` (V,).

    Raises:
        IndexError: for a target that is no word.
        ValueError: for logits that are not dense.
    """
    if not logits.is_contiguous():
        raise ValueError("logits must be dense: a kernel writes their gradient in their place")
    nats = torch.empty(len(logits), dtype=torch.float64)
    by_word = torch.zeros_like(bias) if by_word is None else by_word
    rows, words = logits.shape
    bias, targets = cpu_library.dense(bias, words), _words(targets, rows, words)
    cpu_library.function("losses", logits.dtype)(
        rows, words, logits.data_ptr(), bias.data_ptr(), targets.data_ptr(), scale,
        nats.data_ptr(), by_word.data_ptr(), wanted, torch.get_num_threads(),
    )  # fmt: skip
    return nats


def _by_tiles(
    outputs: Tensor, weight: Tensor, bias: Tensor, targets: Tensor,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, tuple[Tensor, ...]]:  # fmt: skip
    """The nats of all rows, (M,) in float64, and the gradients of their mean, as far as they are
    `wanted` and perhaps further: none, that of the outputs, or all three.

    By one kernel, which never has more logits than its cache holds; products alone are rounded.
    Raises IndexError for a target that is no word.
    """
    rows, (words, hidden) = len(outputs), weight.shape
    outputs = cpu_library.dense(outputs, rows, hidden)
    weight = weight.contiguous()
    bias, targets = cpu_library.dense(bias, words), _words(targets, rows, words)
    nats = torch.empty(rows, dtype=torch.float64)
    formed = (outputs, weight, bias)[: 3 if any(wanted[1:]) else int(wanted[0])]
    grads = tuple(torch.empty_like(of) for of in formed)
    places = [*(grad.data_ptr() for grad in grads), 0, 0, 0][:3]
    cpu_library.function("vocabulary", torch.bfloat16)(
        rows, words, hidden, any(wanted), outputs.data_ptr(), weight.data_ptr(), bias.data_ptr(),
        targets.data_ptr(), 1.0 / rows, nats.data_ptr(), *places, torch.get_num_threads(),
    )  # fmt: skip
    return nats, grads


def _words(targets: Tensor, rows: int, words: int) -> Tensor:
    """The targets as a kernel takes them.

    Raises:
        IndexError: for a target that is no word: a kernel would write beyond its rows.
    """
    targets = cpu_library.dense(targets, rows).long()
    low, high = (int(end) for end in targets.aminmax())
    if low < 0 or high >= words:
        raise IndexError(f"target {low if low < 0 else high} is not among {words} words")
    return targets
