"""One weight step as a function of weights and their gradient, and what comes back through it.

Notation: w weights, g the gradient of the training objective at w, coef = min(1, clip / |g|),
w' = w - lr (coef g + wd w) (DARTS, section 2.3; the clipping is that of its recurrent search).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from rnnnas.types import InnerStep

Weights = dict[str, Tensor]

CLIP_EPSILON = 1e-6  # what torch's clip_grad_norm_ adds to the norm; the mirror is exact with it


def ahead(weights: Weights, gradient: Weights, inner: InnerStep, *, constant_clip: bool) -> Weights:
    """w' after one inner step: `torch.optim.SGD` after `clip_grad_norm_`, as a function.

    Args:
        constant_clip: whether coef is a constant that no gradient goes through.
    """
    coef = clip_factor(gradient, inner)
    coef = coef.detach() if constant_clip else coef
    moved = {}
    for name, weight in weights.items():
        start = weight.detach()
        step = coef * gradient[name] + inner.weight_decay * start
        if inner.momentum and name in inner.buffers:
            step = step + inner.momentum * inner.buffers[name]
        moved[name] = start - inner.lr * step
    return moved


def through_step(
    vector: Weights, gradient: Weights, inner: InnerStep, *, through_clip: bool
) -> Weights:
    """v times the derivative of the clipped gradient in the gradient, v = `vector`: coef v, and
    with `through_clip` the part that coef's own derivative adds.
    """
    coef = clip_factor(gradient, inner)
    scaled = {name: coef * v for name, v in vector.items()}
    if through_clip and coef < 1:
        length = norm(gradient.values())
        along = _inner_product(vector, gradient) / (length * (length + CLIP_EPSILON))
        scaled = {name: s - coef * along * gradient[name] for name, s in scaled.items()}
    return scaled


def published_ahead(weights: Weights, gradient: Weights, inner: InnerStep) -> Weights:
    """w' as the published code has it: the tied embedding and decoder matrix stays at w.

    That code builds a second network and loads w' into it by name. The tied matrix has two names
    there, of which the second still holds w and is loaded last.
    """
    assert inner.published is not None
    moved = ahead(weights, gradient, inner, constant_clip=True)
    return {name: weights[name] if name in inner.published else w for name, w in moved.items()}


def published_through_step(vector: Weights, gradient: Weights, inner: InnerStep) -> Weights:
    """What the published code takes in place of `through_step`: clip / |g|, which grows without
    limit where g is small, times v clipped as a gradient is, that of the tied matrix included.
    """
    if not inner.clip:
        return dict(vector)
    unclamped = inner.clip / (norm(gradient.values()) + CLIP_EPSILON)
    factor = unclamped * clip_factor(vector, inner)
    return {name: factor * v for name, v in vector.items()}


def clip_factor(gradient: Weights, inner: InnerStep) -> Tensor:
    """coef, a scalar: what clipping multiplies a gradient by; 1 without clipping."""
    length = norm(gradient.values())
    if not inner.clip:
        return torch.ones_like(length)
    return (inner.clip / (length + CLIP_EPSILON)).clamp(max=1.0)


def norm(tensors: Iterable[Tensor]) -> Tensor:
    """The Euclidean norm of all tensors taken as one vector."""
    lengths = torch.stack([torch.linalg.vector_norm(t) for t in tensors])
    length: Tensor = torch.linalg.vector_norm(lengths)
    return length


def _inner_product(a: Weights, b: Weights) -> Tensor:
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()
