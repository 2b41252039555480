"""A mixture of softmaxes over the vocabulary (Yang et al. 2018, section 2.3).

p(v) = Σ_k π_k softmax(W l_k + b)_v with l_k = tanh(h P_k) and π = softmax(h U).
Legend: M = T·B targets, H hidden, D embedding, V vocabulary, K softmaxes. P (K, H, D),
U (H, K), W (V, D), b (V,).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rnnnas.lm import loss
from rnnnas.lm.fast.matmul import accumulate, multiply


def log_probabilities(
    outputs: Tensor, projections: Tensor, prior: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """log p of every word, as the definition says. outputs (..., H) → (..., V)."""
    latent = torch.tanh(torch.einsum("...h,khd->...kd", outputs, projections))
    words = F.linear(latent, weight, bias).log_softmax(-1)  # (..., K, V)
    shares = (outputs @ prior).log_softmax(-1)  # (..., K)
    return (words + shares.unsqueeze(-1)).logsumexp(-2)


def cross_entropy_reference(
    outputs: Tensor,
    projections: Tensor,
    prior: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
) -> Tensor:
    """Mean nats a target: outputs (M, H), targets (M,) → scalar."""
    return F.nll_loss(log_probabilities(outputs, projections, prior, weight, bias), targets)


def cross_entropy(
    outputs: Tensor,
    projections: Tensor,
    prior: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
) -> Tensor:
    """The same value, a chunk of rows at a time, its gradients formed while the logits are at
    hand: no more than about `loss.CHUNK` rows of V logits live at once.

    The backward pass costs nothing but a scaling; it can be differentiated once only.
    """
    wanted = torch.is_grad_enabled()
    value: Tensor = _Chunked.apply(  # type: ignore[no-untyped-call]
        outputs, projections, prior, weight, bias, targets, wanted
    )
    return value


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        outputs: Tensor,
        projections: Tensor,
        prior: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        wanted: bool,
    ) -> Tensor:
        """With ρ_k = π_k q_k / p the share that softmax k has in its target's probability:

        d nats / d logits_k = ρ_k (softmax_k - target), and d nats / d (h U)_k = π_k - ρ_k.
        """
        rows, count = len(targets), len(projections)
        hidden, width = projections.shape[1:]
        leaves = (outputs, projections, prior, weight, bias)
        need = wanted and any(ctx.needs_input_grad[:5])
        grads = [torch.zeros_like(leaf) for leaf in leaves] if need else []
        # All K projections as one product: (H, K·D).
        joined = projections.transpose(0, 1).reshape(hidden, count * width)
        into_joined = torch.zeros_like(joined) if need else joined
        total = outputs.new_zeros((), dtype=torch.float64)
        step = max(1, loss.CHUNK // count)
        for start in range(0, rows, step):
            part = slice(start, start + step)
            x = outputs[part]
            target = targets[part].repeat_interleave(count).unsqueeze(1)  # (chunk·K, 1)
            latent = torch.tanh(multiply(x, joined)).view(-1, width)  # (chunk·K, D)
            logits = multiply(latent, weight.t()).add_(bias)  # (chunk·K, V)
            logits -= logits.amax(-1, keepdim=True)
            hit = logits.gather(1, target)
            gradient = logits.exp_()  # in the logits' place
            mass = gradient.sum(-1, keepdim=True)
            shares = (x @ prior).log_softmax(-1)  # (chunk, K)
            joint = shares + (hit - mass.log()).view(-1, count)
            nats = -joint.logsumexp(-1, keepdim=True)
            total += nats.sum(dtype=torch.float64)
            if not need:
                continue
            grad_x, _, grad_prior, grad_weight, grad_bias = grads
            blame = (joint + nats).exp() / rows  # ρ / M
            column = blame.view(-1, 1)
            gradient *= column / mass
            gradient.scatter_add_(1, target, -column)
            accumulate(grad_weight, gradient.t(), latent)
            grad_bias += gradient.sum(0)
            inner = multiply(gradient, weight) * (1 - latent.square())
            inner = inner.view(-1, count * width)
            accumulate(into_joined, x.t(), inner)
            outer = shares.exp() / rows - blame
            grad_prior.addmm_(x.t(), outer)
            torch.addmm(inner @ joined.t(), outer, prior.t(), out=grad_x[part])
        if need:
            grads[1] = into_joined.view(hidden, count, width).transpose(0, 1).contiguous()
        ctx.save_for_backward(*grads)
        return (total / rows).to(outputs.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        grads = [g * gradient for g in ctx.saved_tensors] or [None] * 5
        return (*grads, None, None)
