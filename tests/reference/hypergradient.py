"""The gradient of the validation loss in the alphas.

DARTS, section 2.3: equation 6 is what is sought, d/dα L_val(w'(α), α) with w' one step of SGD on
the training loss; equation 7 is its chain rule, and equation 8 its finite difference. The
recurrent search clips the gradient of that step (appendix A.1.2); the factor is held constant.

`published` is what the released code computes instead. All functions take losses as functions of
weights and alphas that give a scalar, and return a tensor of alpha's shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Weights = dict[str, Tensor]
Loss = Callable[[Weights, Tensor], Tensor]

RADIUS = 0.01  # the footnote to equation 8: R = 0.01 / |v|
EPSILON = 1e-6  # added to a norm that is divided by


@dataclass(frozen=True)
class Sgd:
    """The weight step: size, largest norm of the gradient, weight decay."""

    lr: float
    clip: float
    decay: float


def first_order(valid: Loss, w: Weights, alpha: Tensor) -> Tensor:
    """The validation loss' own gradient: the step's size is 0."""
    a = leaf(alpha)
    return torch.autograd.grad(valid(w, a), a)[0]


def exact(train: Loss, valid: Loss, w: Weights, alpha: Tensor, sgd: Sgd) -> Tensor:
    """Equation 6, by differentiating twice."""
    a, own = leaf(alpha), {name: leaf(x) for name, x in w.items()}
    grads = torch.autograd.grad(train(own, a), list(own.values()), create_graph=True)
    g = dict(zip(w, grads, strict=True))
    coef = clip_factor(g, sgd.clip).detach()
    ahead = {n: w[n] - sgd.lr * (coef * g[n] + sgd.decay * w[n]) for n in w}
    return torch.autograd.grad(valid(ahead, a), a)[0]


def finite(train: Loss, valid: Loss, w: Weights, alpha: Tensor, sgd: Sgd) -> Tensor:
    """Equations 7 and 8."""
    g = gradient(train, w, alpha)
    coef = clip_factor(g, sgd.clip)
    ahead = {n: w[n] - sgd.lr * (coef * g[n] + sgd.decay * w[n]) for n in w}
    v = gradient(valid, ahead, alpha)
    return first_order(valid, ahead, alpha) - sgd.lr * coef * mixed_term(train, w, alpha, v)


def published(
    train: Loss, valid: Loss, w: Weights, alpha: Tensor, sgd: Sgd, tied: str = "embedding"
) -> Tensor:
    """The released code's: three departures from equations 7 and 8.

    1. w' leaves the tied embedding and decoder matrix where it was.
    2. v is clipped as a gradient is.
    3. The factor of the second term is clip / |g| also where that is above 1.

    `train` is here the loss without activation penalties, which that code adds outside of it.
    """
    g = gradient(train, w, alpha)
    coef = clip_factor(g, sgd.clip)
    ahead = {n: w[n] - sgd.lr * (coef * g[n] + sgd.decay * w[n]) for n in w}
    ahead[tied] = w[tied]
    v = gradient(valid, ahead, alpha)
    v = {n: clip_factor(v, sgd.clip) * x for n, x in v.items()}
    unclamped = sgd.clip / (norm(g) + EPSILON)
    return first_order(valid, ahead, alpha) - sgd.lr * unclamped * mixed_term(train, w, alpha, v)


def mixed_term(train: Loss, w: Weights, alpha: Tensor, v: Weights) -> Tensor:
    """Equation 8: (∇α L(w + Rv) - ∇α L(w - Rv)) / 2R."""
    r = RADIUS / norm(v)
    plus = first_order(train, {n: w[n] + r * v[n] for n in w}, alpha)
    minus = first_order(train, {n: w[n] - r * v[n] for n in w}, alpha)
    return (plus - minus) / (2 * r)


def numerical(
    train: Loss, valid: Loss, w: Weights, alpha: Tensor, sgd: Sgd, h: float = 1e-6
) -> Tensor:
    """Equation 6 from its values alone, an alpha at a time: the judge of the others.

    The clip factor is held at its value, as in them.
    """
    coef = clip_factor(gradient(train, w, alpha), sgd.clip)

    def value(a: Tensor) -> float:
        g = gradient(train, w, a)
        ahead = {n: w[n] - sgd.lr * (coef * g[n] + sgd.decay * w[n]) for n in w}
        return float(valid(ahead, a))

    result = torch.zeros_like(alpha)
    for place in range(alpha.numel()):
        shift = torch.zeros_like(alpha)
        shift.view(-1)[place] = h
        result.view(-1)[place] = (value(alpha + shift) - value(alpha - shift)) / (2 * h)
    return result


def gradient(loss: Loss, w: Weights, alpha: Tensor) -> Weights:
    """The gradient in the weights."""
    own = {name: leaf(x) for name, x in w.items()}
    grads = torch.autograd.grad(loss(own, alpha.detach()), list(own.values()))
    return dict(zip(w, grads, strict=True))


def clip_factor(g: Weights, clip: float) -> Tensor:
    """What makes the norm of g at most `clip`."""
    return torch.clamp(clip / (norm(g) + EPSILON), max=1.0)


def norm(g: Weights) -> Tensor:
    """The length of all tensors taken as one vector."""
    return torch.sqrt(sum(((x**2).sum() for x in g.values()), torch.zeros(())))


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()
