"""The derivative of a search network's training objective along a direction of its weights.

Legend: T steps, B streams, D embedding, H hidden, M = T B targets, V vocabulary, K softmaxes. Its
own gradient in the mixtures is the mixed second derivative of DARTS' equation 8, without a
difference of two gradients; Pearlmutter, Fast exact multiplication by the Hessian, 1994.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rnnnas.lm.cell import masked
from rnnnas.lm.fast import cpu_library, tangent_mixture
from rnnnas.lm.fast.buffers import WORKSPACE
from rnnnas.lm.fast.matmul import multiply
from rnnnas.lm.fast.tangent_mixture import Dual
from rnnnas.lm.loss import CHUNK, PenaltyConfig
from rnnnas.lm.noise import LMNoise
from rnnnas.nas.genotype import RECURRENT
from rnnnas.nas.relax.base import Mixture
from rnnnas.nas.space import CellSpace
from rnnnas.types import Batch, HiddenState


def directional(
    net: Any, weights: Mapping[str, Tensor], vector: Mapping[str, Tensor], batch: Batch,
    hidden_state: HiddenState, mixtures: Mapping[str, Mixture], noise: LMNoise, *, low: bool,
) -> Tensor:  # fmt: skip
    """The objective's derivative along `vector` at `weights`, both by parameter name: a scalar.

    It can be differentiated once, in the mixtures; the weights, the direction and the hidden state
    are constants. The mixtures' paths, all masks, layers, softmaxes and penalties are those of the
    network's own forward pass.

    Args:
        net: a `RecurrentLM` under search; its module imports this one.
        low: round the factors of products to bfloat16.
    """
    assert isinstance(net.cell, CellSpace)
    dual = {name: Dual(w.detach(), vector[name].detach()) for name, w in weights.items()}
    words = dual["embedding"]
    raw = Dual(*(F.embedding(batch.inputs, table) for table in words))
    if noise.words is not None:
        kept = F.embedding(batch.inputs, noise.words)
        raw = Dual(*(part * kept for part in raw))
    raw = _masked(raw, noise.inputs)
    if hidden_state is None:
        hidden_state = (raw.value.new_zeros(raw.value.shape[1:]),) * net.config.layers
    states = (hidden_state,) if isinstance(hidden_state, Tensor) else hidden_state
    mixture = mixtures[RECURRENT]
    for k, h in enumerate(states):
        prefix = f"layers.{k + 1}." if k else ""
        own = noise.layer(k)
        raw = tangent_mixture.unroll(
            raw, h, dual[prefix + "first"], dual[prefix + "nodes"], net.cell, mixture.weights,
            own.x, own.h, paths=mixture.paths, low=low, ranks=net.ranks,
        )  # fmt: skip
    dropped = _masked(raw, noise.outputs)
    targets = batch.targets.reshape(-1)
    rows = Dual(*(part.reshape(len(targets), -1) for part in dropped))
    if net.config.softmaxes > 1:
        fixed = dual["projections"], dual["prior"], words, dual["bias"]
        total: Tensor = _DualSoftmaxes.apply(*rows, fixed, targets)  # type: ignore[no-untyped-call]
    else:
        total = cross_entropy(rows, words, dual["bias"], targets, low=low)
    return total + penalty(net.penalty_config, raw, dropped)


def _masked(state: Dual, mask: Tensor | None) -> Dual:
    return Dual(masked(state.value, mask), masked(state.tangent, mask))


def penalty(config: PenaltyConfig, raw: Dual, dropped: Dual) -> Tensor:
    """The derivative of `loss.penalty`. A scalar."""
    total = raw.value.new_zeros(())
    if config.ar:
        total = total + 2 * config.ar * (dropped.value * dropped.tangent).mean()
    if config.tar and len(raw.value) > 1:
        steps = (part[1:] - part[:-1] for part in raw)
        total = total + 2 * config.tar * torch.mul(*steps).mean()
    return total


class _DualSoftmaxes(torch.autograd.Function):
    """The same of a mixture of softmaxes, its gradients formed a chunk of rows at a time."""

    @staticmethod
    def forward(
        ctx: Any, outputs: Tensor, doutputs: Tensor, fixed: tuple[Dual, ...], targets: Tensor
    ) -> Tensor:
        rows = len(targets)
        wanted = any(ctx.needs_input_grad[:2])
        total = outputs.new_zeros((), dtype=torch.float64)
        found: list[tuple[Tensor, ...]] = []
        step = max(1, CHUNK // len(fixed[0].value))
        for start in range(0, rows, step):
            part = slice(start, start + step)
            own = Dual(*(t[part].detach().requires_grad_(wanted) for t in (outputs, doutputs)))
            with torch.set_grad_enabled(wanted):
                moved = _moved(own, fixed, targets[part]) / rows
            total += moved.detach()
            if wanted:
                found.append(torch.autograd.grad(moved, own))
        grads = [torch.cat(parts) for parts in zip(*found, strict=True)]
        ctx.save_for_backward(*grads)
        return total.to(outputs.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return (*(g * gradient for g in ctx.saved_tensors), None, None)


def _moved(x: Dual, fixed: tuple[Dual, ...], targets: Tensor) -> Tensor:
    """The sum over some rows of the derivatives of their nats; see `softmaxes.py` for the shapes.

    The tangent of a log-softmax is the tangent of its scores less its mean under the softmax.
    """
    projections, prior, words, bias = fixed
    latent = torch.tanh(torch.einsum("mh,khd->mkd", x.value, projections.value))
    dlatent = torch.einsum("mh,khd->mkd", x.tangent, projections.value)
    dlatent = dlatent + torch.einsum("mh,khd->mkd", x.value, projections.tangent)
    dlatent = (1 - latent.square()) * dlatent
    scores = F.linear(latent, words.value, bias.value)  # (M, K, V)
    dscores = F.linear(dlatent, words.value) + F.linear(latent, words.tangent, bias.tangent)
    at = targets.view(-1, 1, 1).expand(-1, scores.shape[1], 1)
    hit = scores.log_softmax(-1).gather(-1, at).squeeze(-1)  # (M, K)
    dhit = dscores.gather(-1, at).squeeze(-1) - (scores.softmax(-1) * dscores).sum(-1)
    shares = x.value @ prior.value
    dshares = x.tangent @ prior.value + x.value @ prior.tangent
    dshares = dshares - (shares.softmax(-1) * dshares).sum(-1, keepdim=True)
    joint = (shares.log_softmax(-1) + hit).softmax(-1)
    return -(joint * (dshares + dhit)).sum()


def cross_entropy(
    outputs: Dual, weight: Dual, bias: Dual, targets: Tensor, *, low: bool = False
) -> Tensor:
    """The derivative of the mean nats a target, a chunk of rows at a time. A scalar.

    outputs (M, H), weight (V, H), bias (V,), targets (M,). With logits l, their tangents l', the
    softmax p and its mean p l' = sum p_v l'_v it is the mean of p l' - l'_target. Its gradient in
    the tangents of the outputs is (p - target) W / M, and in the outputs
    p (l' - p l') W / M + (p - target) W' / M; both are formed while the logits are at hand.

    Args:
        low: multiply matrices in bfloat16.

    Raises:
        IndexError: for a target that is no word.
    """
    result: Tensor = _DualCrossEntropy.apply(  # type: ignore[no-untyped-call]
        *outputs, *weight, *bias, targets, torch.is_grad_enabled(), low
    )
    return result


class _DualCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, outputs: Tensor, doutputs: Tensor, weight: Tensor, dweight: Tensor,
        bias: Tensor, dbias: Tensor, targets: Tensor, wanted: bool, low: bool,
    ) -> Tensor:  # fmt: skip
        rows, words = len(targets), len(weight)
        if targets.device.type == "cpu":  # of another device it would wait, which itself refuses
            lowest, highest = (int(end) for end in targets.aminmax())
            if lowest < 0 or highest >= words:  # a kernel would write beyond its rows
                wrong = lowest if lowest < 0 else highest
                raise IndexError(f"target {wrong} is not among {words} words")
        factor = torch.bfloat16 if low else outputs.dtype
        size = min(CHUNK, rows)
        x = outputs.to(factor)
        both = torch.cat([doutputs, outputs], 1).to(factor)  # [x' x]
        matrix, dmatrix = weight.to(factor), dweight.to(factor)
        beside = torch.cat([matrix, dmatrix], 1)  # [W W']
        wanted = wanted and any(ctx.needs_input_grad[:2])
        grad, dgrad = (torch.empty_like(outputs) for _ in range(2)) if wanted else (None, None)
        compiled = cpu_library.usable(outputs, doutputs, weight, dweight, bias, dbias, low=low)
        logits_at, dlogits_at = (WORKSPACE.take(x, size, words) for _ in range(2))
        total = outputs.new_zeros((), dtype=torch.float64)
        form = _compiled if compiled else _plain
        for start in range(0, rows, CHUNK):
            part = slice(start, start + CHUNK)
            target = targets[part]
            logits, dlogits = logits_at[: len(target)], dlogits_at[: len(target)]
            multiply(x[part], matrix.t(), out=logits)
            multiply(both[part], beside.t(), out=dlogits)
            total += form(logits, dlogits, bias, dbias, target, 1.0 / rows)
            if grad is None or dgrad is None:
                continue
            dgrad[part] = multiply(logits, matrix)
            grad[part] = multiply(dlogits, matrix)
            grad[part] += multiply(logits, dmatrix)
        WORKSPACE.give(logits_at, dlogits_at)
        ctx.save_for_backward(*(g for g in (grad, dgrad) if g is not None))
        return (total / rows).to(outputs.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        grads: list[Tensor | None] = [g * gradient for g in ctx.saved_tensors] or [None, None]
        return (*grads, *(None,) * 7)


def _plain(
    logits: Tensor, dlogits: Tensor, bias: Tensor, dbias: Tensor, targets: Tensor, scale: float
) -> Tensor:
    """The sum over some rows of the loss' derivatives, a scalar in float64.

    logits, dlogits (M, V): without the bias; they become scale times the gradient, and that one's
    derivative.
    """
    at = targets.unsqueeze(1)
    moved = dlogits + dbias
    shares = (logits + bias).softmax(-1)
    mean = (shares * moved).sum(-1, keepdim=True)
    result = (mean - moved.gather(1, at)).sum(dtype=torch.float64)
    dlogits.copy_(shares * (moved - mean) * scale)
    shares.scatter_add_(1, at, torch.full_like(mean, -1.0))
    logits.copy_(shares * scale)
    return result


def _compiled(
    logits: Tensor, dlogits: Tensor, bias: Tensor, dbias: Tensor, targets: Tensor, scale: float
) -> Tensor:
    """The same by a kernel; only where tensors are `cpu_library.usable`."""
    rows, words = logits.shape
    bias, dbias = cpu_library.dense(bias, words), cpu_library.dense(dbias, words)
    targets = cpu_library.dense(targets, rows).long()
    moved = torch.empty(rows, dtype=torch.float64)
    cpu_library.function("dual_losses", logits.dtype)(
        rows, words, *(t.data_ptr() for t in (logits, dlogits, bias, dbias, targets)), scale,
        moved.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return moved.sum()
