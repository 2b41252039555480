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
from rnnnas.lm.pool import POOL

CHUNK = 512  # rows whose logits live at once


@dataclass(frozen=True, slots=True, kw_only=True)
class PenaltyConfig:
    """Activation regularisation (Merity et al. 2018, section 4.6), in nats a squared unit.

    ar: weight of the mean square of the dropped outputs; tar: of the mean square of the
    difference between raw outputs one step apart.
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
    """The same value, `CHUNK` rows at a time, its gradients formed while the logits are at hand.

    The backward pass costs nothing but a scaling; it can be differentiated once only.

    Args:
        low: multiply matrices in bfloat16. Softmax, loss, sums over chunks and the gradients that
            are handed out stay in the inputs' own type.
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
        rows, size = len(targets), min(CHUNK, len(targets))
        need_x, need_w, need_b = (wanted and need for need in ctx.needs_input_grad[:3])
        grad_x = torch.empty_like(outputs) if need_x else None
        grad_w = torch.zeros_like(weight) if need_w else None
        grad_b = torch.zeros_like(bias) if need_b else None
        total = outputs.new_zeros((), dtype=torch.float64)
        x_all, matrix = (outputs.bfloat16(), weight.bfloat16()) if low else (outputs, weight)
        whole = POOL.take(outputs, size, len(weight))
        rounded = POOL.take(matrix, size, len(weight)) if low else whole
        for start in range(0, rows, CHUNK):
            x, target = x_all[start : start + CHUNK], targets[start : start + CHUNK].unsqueeze(1)
            logits, small = whole[: len(x)], rounded[: len(x)]  # (chunk, V)
            if low:
                torch.add(torch.mm(x, matrix.t(), out=small), bias, out=logits)
            else:
                torch.addmm(bias, x, matrix.t(), out=logits)
            logits -= logits.amax(-1, keepdim=True)
            hit = logits.gather(1, target)
            slope = logits.exp_()  # in the logits' place
            mass = slope.sum(-1, keepdim=True)
            total += (mass.log() - hit).sum(dtype=torch.float64)
            if not (need_x or need_w or need_b):
                continue
            slope /= mass * rows
            slope.scatter_add_(1, target, torch.full_like(mass, -1.0 / rows))
            factor = small.copy_(slope) if low else slope
            if grad_x is not None:
                grad_x[start : start + CHUNK] = torch.mm(factor, matrix)
            if grad_w is not None and low:
                grad_w += torch.mm(factor.t(), x)
            elif grad_w is not None:
                grad_w.addmm_(factor.t(), x)
            if grad_b is not None:
                grad_b += slope.sum(0)
        POOL.give(whole, *([rounded] if low else []))
        ctx.save_for_backward(*(g for g in (grad_x, grad_w, grad_b) if g is not None))
        ctx.present = (need_x, need_w, need_b)
        return (total / rows).to(outputs.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        grads = [next(saved) * slope if present else None for present in ctx.present]
        return (*grads, None, None, None)
