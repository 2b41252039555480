"""The gradient of the validation loss in the alphas: first order, finite difference, exact.

The Architect serves every network that offers the `Searchable` protocol and imports none. It
never touches a weight in place, a weight's `.grad` or a buffer, and never copies the model: each
evaluation runs the network on weights that are handed in.

Notation: w weights, w' = w - lr (coef (g) + wd w) one inner step on the training objective with
gradient g, m mixtures, L validation loss. DARTS, section 2.3, equations 6 to 8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rnnnas.distributed import ALONE, Ranks
from rnnnas.errors import UsageError
from rnnnas.nas.balance import balance
from rnnnas.nas.lookahead import (
    Weights,
    ahead,
    norm,
    published_ahead,
    published_through_step,
    through_step,
)
from rnnnas.nas.relax.base import Alphas, Mixture, Mixtures, Relaxation, Spaces
from rnnnas.optim import guarded_step
from rnnnas.types import Batch, HiddenState, InnerStep, Loss, Noise

Order = Literal["first", "finite", "exact"]
# From the validation loss and the relaxation's scores, as mixtures, to what the alphas minimise.
# Scores, and not the mixtures of the forward pass: those may be one draw, of which the gradient
# reaches only the paths that were drawn (as ProxylessNAS' latency is that of the probabilities).
Outer = Callable[[Tensor, Mixtures], Tensor]
# From a name, a function of tensors and its arguments to what it returns; the name's function does
# the same each time, so that it may be recorded (`cuda_graphs.CudaGraphs.run`).
Replay = Callable[..., Any]

PERTURBATION = 1e-2  # norm of the weights' shift in the finite difference (DARTS, section 2.3)


class Searchable(Protocol):
    """A network that owns weights only; alphas live outside."""

    space: Spaces

    def noise(self, batch: Batch, generator: torch.Generator) -> Noise:
        """Every random mask of one forward pass over `batch`."""

    def __call__(
        self, batch: Batch, hidden_state: HiddenState, mixtures: Mapping[str, Mixture], noise: Noise
    ) -> Loss:
        """The loss of `batch` under `mixtures`."""

    def named_parameters(self) -> Any: ...
    def named_buffers(self) -> Any: ...


class Window(NamedTuple):
    """What one loss is of: a batch, the hidden state that enters it, and the pass's masks."""

    batch: Batch
    state: HiddenState
    noise: Noise


Found = tuple[Loss, tuple[Tensor, ...]]  # a validation loss, and its gradients in the mixtures


class _Losses:
    """A network's losses as functions of weights and mixtures that are handed in.

    Args:
        precise: the same network without reduced precision.
        plain: whether the training objective is the loss alone, without penalties.
    """

    def __init__(self, net: Searchable, precise: Searchable, ranks: Ranks, plain: bool) -> None:
        self._net, self._precise, self._ranks, self._plain = net, precise, ranks, plain
        self.weights = {name: p.detach() for name, p in net.named_parameters()}

    def loss(
        self, weights: Weights, mixtures: Mixtures, window: Window, *, precise: bool = False
    ) -> Loss:
        """The loss of `window`; gradients that are taken of it are those of all ranks."""
        buffers = {name: b.clone() for name, b in self._net.named_buffers()}
        state = {name: self._ranks.mean_gradient(w) for name, w in weights.items()} | buffers
        shared = {
            n: m._replace(weights=self._ranks.mean_gradient(m.weights)) for n, m in mixtures.items()
        }
        net = _module(self._precise if precise else self._net)
        loss: Loss = functional_call(net, state, (window.batch, window.state, shared, window.noise))
        return loss

    def training(
        self, weights: Weights, mixtures: Mixtures, window: Window, *, precise: bool = False
    ) -> Tensor:
        """What the inner step minimises, a scalar."""
        loss = self.loss(weights, mixtures, window, precise=precise)
        return loss.value if self._plain else loss.objective

    def along(self, vector: Weights, mixtures: Mixtures, window: Window) -> Tensor:
        """The derivative of the training objective along directions of the weights."""
        shared = {
            n: m._replace(weights=self._ranks.mean_gradient(m.weights)) for n, m in mixtures.items()
        }
        moved: Tensor = cast(Any, self._net).directional(
            self.weights, vector, window.batch, window.state, shared, window.noise
        )
        return moved


def order_for(net: Searchable, order: Order, asked: str) -> Order:
    """The order that a search runs: `order`, but the exact one where it is the cheaper.

    Args:
        order: what the settings stand for.
        asked: `alphas.second_order`; only "auto" leaves a choice.
    """
    free = asked == "auto" and order == "finite"
    return "exact" if free and getattr(net, "tangents_pay", False) else order


def hypergradient(
    net: Searchable,
    alphas: Alphas,
    relaxation: Relaxation,
    *,
    train: tuple[Batch, HiddenState],
    valid: tuple[Batch, HiddenState],
    inner: InnerStep,
    order: Order,
    progress: float,
    generator: torch.Generator,
    through_clip: bool = False,
    mixtures: Mixtures | None = None,
    outer: Outer | None = None,
    ranks: Ranks = ALONE,
    precise: Searchable | None = None,
    replay: Replay | None = None,
) -> tuple[dict[str, Tensor], Loss]:
    """The gradient of the validation loss in the alphas.

    Args:
        train, valid: a batch and the hidden state that enters it, for the inner step and the outer
            loss.
        inner: the weight step that the second order looks ahead by.
        order: "first" takes w' = w; "finite" and "exact" differentiate through the inner step,
            by a central difference over the weights and without one: by the network's own tangents
            where it has them (`Searchable`), else by double backward, which a network that keeps no
            graph of its backward pass cannot serve.
        progress: share of the search that is done, in [0, 1].
        generator: draws the mixtures and the noise, each once: the three evaluations of the
            training loss see the same values, or their difference would be mostly noise.
        through_clip: also differentiate the clip factor. The published method does not: it treats
            the factor as a constant, which drops a term whenever clipping is active.
        mixtures: those to use, where they are drawn already.
        outer: what of the validation loss and the scores is differentiated, e.g. with a cost
            added; the loss itself without.
        ranks: the processes whose streams make up both batches: every gradient, the inner step's
            too, and the loss that is returned are of all of them.
        precise: the same network without reduced precision, for the two evaluations whose
            difference is taken. It decides nothing else: an inner gradient and a direction that
            are off by a part in 250 move the result by as much, but rounding in the difference of
            two nearly equal gradients would be most of it.
        replay: runs what is evaluated, all but double backward, which is never recorded.

    Returns:
        The gradients by alpha name, and the validation loss with its next hidden state, detached.
        The outer loss is `Loss.value`, without penalties.

    Raises:
        UsageError: order "exact" with the published look-ahead, which is a finite difference.
    """
    if mixtures is None:
        mixtures = relaxation.mix(alphas, net.space, progress, generator, "alphas")
    train_noise = net.noise(train[0], generator) if order != "first" else None
    lower, upper = Window(*train, train_noise), Window(*valid, net.noise(valid[0], generator))
    published = inner.published is not None
    losses = _Losses(net, precise or net, ranks, plain=published)
    # Gradients are taken in the mixtures, cut from the alphas, and go through `mix` once at the
    # end: its graph is walked a single time whatever the order.
    cut = _cut(mixtures)
    if order == "exact" and published:
        raise UsageError(
            "the published look-ahead is a finite difference: it has no exact form",
            "leave out alphas.second_order or alphas.published_lookahead",
        )
    tangents = order == "exact" and bool(getattr(net, "by_tangents", False))
    with torch.enable_grad():
        if order == "exact" and not tangents:
            loss, gradients = _exact(losses, inner, through_clip, lower, upper, cut)
        elif order != "first":
            work = partial(_second, losses, inner, through_clip, tangents)
            lr = _on_device(inner.lr, next(iter(losses.weights.values())))
            given = (lower, upper, cut, lr, dict(inner.buffers))
            loss, gradients = work(*given) if replay is None else replay("alphas", work, *given)
        else:
            plain = partial(_first, losses)
            if replay is None:
                loss, gradients = plain(upper, cut)
            else:
                loss, gradients = replay("alphas", plain, upper, cut)
    grads, shares = _minimised(loss.value, gradients, outer, relaxation, alphas, net.space)
    result = torch.autograd.grad(
        [*(m.weights for m in mixtures.values()), *shares],
        list(alphas.values()),
        grad_outputs=grads,
        allow_unused=True,
    )
    named = {
        name: torch.zeros_like(alpha) if grad is None else grad
        for (name, alpha), grad in zip(alphas.items(), result, strict=True)
    }
    value, penalty = (ranks.mean(part.detach()) for part in (loss.value, loss.penalty))
    return named, loss._replace(value=value, penalty=penalty, count=loss.count * ranks.size)


def _first(losses: _Losses, valid: Window, mixtures: Mixtures) -> Found:
    """First order: the validation loss at w itself."""
    own = _cut(mixtures)
    loss = losses.loss(losses.weights, own, valid)
    return loss, (*_grad(loss.value, _tables(own)),)


def _exact(
    losses: _Losses, inner: InnerStep, through_clip: bool, train: Window, valid: Window,
    mixtures: Mixtures,
) -> Found:  # fmt: skip
    """Second order, equation 6, by double backward: the graph of g is kept."""
    own, weights = _cut(mixtures), _leaves(losses.weights)
    objective = losses.training(weights, own, train)
    grads = torch.autograd.grad(
        objective, list(weights.values()), create_graph=True, allow_unused=True
    )
    moved = ahead(weights, _named(weights, grads), inner, constant_clip=not through_clip)
    # The weights themselves are constants of the outer problem: only g carries m.
    loss = losses.loss(moved, own, valid)
    return loss, (*_grad(loss.value, _tables(own)),)


def _second(
    losses: _Losses, inner: InnerStep, through_clip: bool, tangents: bool, train: Window,
    valid: Window, mixtures: Mixtures, lr: Tensor, buffers: Mapping[str, Tensor],
) -> Found:  # fmt: skip
    """Second order, equation 7, with the mixed derivative along v taken by the network's tangents,
    or (equation 8) from two gradients at w + Rv and w - Rv.

    Args:
        lr, buffers: those of `inner`, as tensors: they change from window to window.
    """
    inner = replace(inner, lr=lr, buffers=buffers)
    published = inner.published is not None
    own, weights = _cut(mixtures), _leaves(losses.weights)
    objective = losses.training(weights, _detached(own), train)
    gradient = _named(weights, _grad(objective, list(weights.values())))
    with torch.no_grad():
        if published:
            moved = published_ahead(losses.weights, gradient, inner)
        else:
            moved = ahead(losses.weights, gradient, inner, constant_clip=True)
    moved = _leaves(moved)
    loss = losses.loss(moved, own, valid)
    both = _grad(loss.value, [*_tables(own), *moved.values()])
    direct, vector = both[: len(own)], _named(moved, both[len(own) :])
    with torch.no_grad():
        if published:
            vector = published_through_step(vector, gradient, inner)
        else:
            vector = through_step(vector, gradient, inner, through_clip=through_clip)
    del gradient, moved, both
    if tangents:
        along = _grad(losses.along(vector, own, train), _tables(own))
    else:
        along = _difference(losses, train, own, vector)
    return loss, tuple(d - lr * a for d, a in zip(direct, along, strict=True))


def _difference(
    losses: _Losses, train: Window, mixtures: Mixtures, vector: Weights
) -> list[Tensor]:
    """The derivative along `vector`, over the weights, of the training objective's gradients in
    the mixtures: a central difference with a shift of norm `PERTURBATION`.
    """
    with torch.no_grad():
        length = norm(vector.values())
        # Where the loss does not depend on the weights the vector is zero: nothing is added.
        radius = PERTURBATION / torch.where(length > 0, length, 1.0)
        plus = {name: w + radius * vector[name] for name, w in losses.weights.items()}
        minus = {name: w - radius * vector[name] for name, w in losses.weights.items()}
    tables = _tables(mixtures)
    upper = _grad(losses.training(plus, mixtures, train, precise=True), tables)
    del plus
    lower = _grad(losses.training(minus, mixtures, train, precise=True), tables)
    return [(u - low) / (2 * radius) for u, low in zip(upper, lower, strict=True)]


def _minimised(
    value: Tensor,
    gradients: Sequence[Tensor],
    outer: Outer | None,
    relaxation: Relaxation,
    alphas: Alphas,
    spaces: Spaces,
) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of what the alphas minimise, in the mixtures and then in the scores, from
    those of the validation loss; and the scores.

    It is taken by itself: what `outer` adds may copy tables to the device, and is never recorded.
    """
    if outer is None:
        return list(gradients), []
    with torch.enable_grad():
        scores = relaxation.scores(alphas, spaces)
        cut = {n: Mixture(s.detach().requires_grad_()) for n, s in scores.items()}
        value = value.detach().requires_grad_()
        factor, *added = _grad(outer(value, cut), [value, *_tables(cut)])
    return [*(factor * g for g in gradients), *added], list(scores.values())


def _on_device(number: float | Tensor, like: Tensor) -> Tensor:
    """A number as a scalar beside `like`."""
    if isinstance(number, Tensor):
        return number
    return torch.full((), number, dtype=like.dtype, device=like.device)


def _cut(mixtures: Mixtures) -> Mixtures:
    """The same numbers as leaves that gradients are taken in."""
    return {n: m._replace(weights=m.weights.detach().requires_grad_()) for n, m in mixtures.items()}


def _detached(mixtures: Mixtures) -> Mixtures:
    return {n: m._replace(weights=m.weights.detach()) for n, m in mixtures.items()}


def _leaves(weights: Weights) -> Weights:
    return {name: w.detach().requires_grad_() for name, w in weights.items()}


def _tables(mixtures: Mixtures) -> list[Tensor]:
    return [mixture.weights for mixture in mixtures.values()]


def _grad(value: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    grads = torch.autograd.grad(value, inputs, allow_unused=True)
    return [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, grads, strict=True)]


def _named(weights: Weights, grads: Sequence[Tensor | None]) -> Weights:
    return {
        name: torch.zeros_like(w) if g is None else g
        for (name, w), g in zip(weights.items(), grads, strict=True)
    }


def _module(net: Searchable) -> nn.Module:
    if not isinstance(net, nn.Module):
        raise UsageError(f"{type(net).__name__} is not an nn.Module")
    return net


class Architect:
    """Holds the alphas' optimiser and moves them by the hypergradient.

    Args:
        outer, precise, replay: as `hypergradient` takes them.
        balanced: whether operations stay level over a cell's edges, see `balance`.
    """

    def __init__(
        self,
        net: Searchable,
        alphas: dict[str, Tensor],
        relaxation: Relaxation,
        optimizer: torch.optim.Optimizer,
        order: Order,
        outer: Outer | None = None,
        *,
        balanced: bool = False,
        ranks: Ranks = ALONE,
        precise: Searchable | None = None,
        replay: Replay | None = None,
    ) -> None:
        self.net = net
        self.alphas = alphas
        self.relaxation = relaxation
        self.optimizer = optimizer
        self.order: Order = order
        self.outer = outer
        self.balanced = balanced
        self.ranks = ranks
        self.precise = precise
        self.replay = replay

    def step(
        self,
        *,
        train: tuple[Batch, HiddenState],
        valid: tuple[Batch, HiddenState],
        inner: InnerStep,
        progress: float,
        generator: torch.Generator,
    ) -> Loss:
        """One step of the alphas; returns the validation loss with its next hidden state.

        Non-finite gradients leave the alphas as they are; the loss that is returned tells.
        """
        alphas, relaxation, spaces = self.alphas, self.relaxation, self.net.space
        mixtures = relaxation.mix(alphas, spaces, progress, generator, "alphas")
        grads, loss = hypergradient(
            self.net,
            alphas,
            relaxation,
            train=train,
            valid=valid,
            inner=inner,
            order=self.order,
            progress=progress,
            generator=generator,
            mixtures=mixtures,
            outer=self.outer,
            ranks=self.ranks,
            precise=self.precise,
            replay=self.replay,
        )
        extra = relaxation.penalty(alphas, spaces, progress)
        if extra is not None:
            gradients = torch.autograd.grad(extra, list(alphas.values()), allow_unused=True)
            for name, gradient in zip(alphas, gradients, strict=True):
                grads[name] = grads[name] if gradient is None else grads[name] + gradient
        checked = [loss.value, *grads.values()]
        sound = torch.stack([torch.isfinite(value).all() for value in checked]).all()
        before = {name: alpha.detach().clone() for name, alpha in alphas.items()}
        for name, alpha in alphas.items():
            alpha.grad = grads[name]
        moved = guarded_step(self.optimizer, sound)
        self.optimizer.zero_grad(set_to_none=True)
        if moved:
            with torch.no_grad():
                relaxation.adjust(alphas, before, mixtures, spaces)
            if self.balanced:
                balance(alphas, spaces)
        return loss._replace(value=torch.where(sound, loss.value, torch.nan))

    def state(self) -> dict[str, Any]:
        """What is kept beside alphas and optimiser: nothing."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
