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
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rnnnas.distributed import ALONE, Ranks
from rnnnas.errors import UsageError
from rnnnas.nas.relax.base import Alphas, Mixture, Mixtures, Relaxation, Spaces
from rnnnas.optim import guarded_step
from rnnnas.types import Batch, HiddenState, InnerStep, Loss, Noise

Order = Literal["first", "finite", "exact"]
Weights = dict[str, Tensor]
# From the validation loss and the relaxation's scores, as mixtures, to what the alphas minimise.
# Scores, and not the mixtures of the forward pass: those may be one draw, of which the gradient
# reaches only the paths that were drawn (as ProxylessNAS' latency is that of the probabilities).
Outer = Callable[[Tensor, Mixtures], Tensor]
# From a name, a function of tensors and its arguments to what it returns; the name's function does
# the same each time, so that it may be recorded (`programs.Programs.run`).
Replay = Callable[..., Any]

PERTURBATION = 1e-2  # norm of the weights' shift in the finite difference (DARTS, section 2.3)
CLIP_EPSILON = 1e-6  # what torch's clip_grad_norm_ adds to the norm; the mirror is exact with it


class Searchable(Protocol):
    """A network that owns weights only; alphas live outside.

    One that also has an attribute `by_tangents` which is true serves the exact second order by
    `directional(weights, vector, batch, carry, mixtures, noise)`: the derivative of its objective
    along `vector` at `weights`, both by parameter name, which can be differentiated in mixtures.
    `tangents_pay` is true where that costs less than a finite difference.
    """

    space: Spaces

    def noise(self, batch: Batch, generator: torch.Generator) -> Noise:
        """Every random mask of one forward pass over `batch`."""

    def __call__(
        self, batch: Batch, hidden_state: HiddenState, mixtures: Mapping[str, Mixture], noise: Noise
    ) -> Loss:
        """The loss of `batch` under `mixtures`."""

    def named_parameters(self) -> Any: ...
    def named_buffers(self) -> Any: ...


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
        train, valid: a batch and the hidden state that enters it, for the inner step and the outer loss.
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
        The gradients by alpha name, and the validation loss with its next hidden state, detached. The
        outer loss is `Loss.value`, without penalties.
    """
    if mixtures is None:
        mixtures = relaxation.mix(alphas, net.space, progress, generator, "alphas")
    train_noise = net.noise(train[0], generator) if order != "first" else None
    valid_noise = net.noise(valid[0], generator)
    # Gradients are taken in the mixtures, cut from the alphas, and go through `mix` once at the
    # end: its graph is walked a single time whatever the order.
    cut = _cut(mixtures)
    shares = {} if outer is None else relaxation.scores(alphas, net.space)
    scored = {n: Mixture(s.detach().requires_grad_()) for n, s in shares.items()}
    leaves = [m.weights for m in (*cut.values(), *scored.values())]
    weights = {name: p.detach() for name, p in net.named_parameters()}

    def run(
        shifted: Weights, which: tuple[Batch, HiddenState], noise: Noise, by: Searchable = net,
        fixed: bool = False, under: Mixtures = cut,
    ) -> Loss:  # fmt: skip
        """The loss under weights that are handed in; `fixed`: without a gradient in mixtures."""
        buffers = {name: b.clone() for name, b in net.named_buffers()}
        state = {name: ranks.mean_gradient(w) for name, w in shifted.items()} | buffers
        mix = {n: m._replace(weights=ranks.mean_gradient(m.weights)) for n, m in under.items()}
        if fixed:
            mix = {n: m._replace(weights=m.weights.detach()) for n, m in under.items()}
        loss: Loss = functional_call(_module(by), state, (*which, mix, noise))
        return loss

    def first(
        batch: Batch, hidden_state: HiddenState, mixtures: Mixtures, noise: Noise
    ) -> tuple[Loss, tuple[Tensor, ...]]:
        """The loss and its gradients in `mixtures`: of these arguments and the weights alone."""
        own = _cut(mixtures)
        loss = run(weights, (batch, hidden_state), noise, under=own)
        return loss, (*_grad(loss.value, [m.weights for m in own.values()]),)

    def aim(value: Tensor) -> Tensor:
        return value if outer is None else outer(value, scored)

    def second(
        train: tuple[Batch, HiddenState], train_noise: Noise, valid: tuple[Batch, HiddenState],
        valid_noise: Noise, mixtures: Mixtures, lr: Tensor, buffers: Mapping[str, Tensor],
    ) -> tuple[Loss, tuple[Tensor, ...]]:  # fmt: skip
        """The same after the inner step, by a finite difference or by tangents."""
        own = _cut(mixtures)
        step = replace(inner, lr=lr, buffers=buffers)

        def along(vector: Weights) -> Tensor:
            """The training objective's derivative along a direction of the weights."""
            mean_gradient = {
                n: m._replace(weights=ranks.mean_gradient(m.weights)) for n, m in own.items()
            }
            moved: Tensor = cast(Any, net).directional(
                weights, vector, *train, mean_gradient, train_noise
            )
            return moved

        gradients, loss = _mixed_derivative(
            partial(run, under=own), along if tangents else None, weights,
            [m.weights for m in own.values()], (train, train_noise), (valid, valid_noise), step,
            through_clip, precise or net,
        )  # fmt: skip
        return loss, (*gradients,)

    tangents = order == "exact" and bool(getattr(net, "by_tangents", False))
    with torch.enable_grad():
        if order == "exact" and not tangents:
            own = {name: w.requires_grad_() for name, w in weights.items()}
            objective = run(own, train, train_noise).objective
            inner_grads = torch.autograd.grad(
                objective, list(own.values()), create_graph=True, allow_unused=True
            )
            gradient = _named(own, inner_grads)
            ahead = _ahead(own, gradient, inner, constant_clip=not through_clip)
            # The weights themselves are constants of the outer problem: only g carries m.
            loss = run(ahead, valid, valid_noise)
            grads = _grad(aim(loss.value), leaves)
        else:
            given: tuple[Any, ...] = (*valid, cut, valid_noise)
            work: Callable[..., Any] = first
            if order != "first":
                # A number on the device: it changes from window to window.
                like = next(iter(weights.values()))
                lr = inner.lr
                if not isinstance(lr, Tensor):
                    lr = torch.full((), lr, dtype=like.dtype, device=like.device)
                given = (train, train_noise, valid, valid_noise, cut, lr, dict(inner.buffers))
                work = second
            loss, gradients = work(*given) if replay is None else replay("alphas", work, *given)
            # What `outer` adds may copy tables to the device, and is never recorded. Gradients of the
            # loss, a difference's too, count as often as it does in what is minimised.
            value = loss.value.detach().requires_grad_()
            factor, *added = _grad(aim(value), [value, *leaves[len(cut) :]])
            grads = [*(factor * gradient for gradient in gradients), *added]
    result = torch.autograd.grad(
        [*(m.weights for m in mixtures.values()), *shares.values()],
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


def _cut(mixtures: Mixtures) -> Mixtures:
    """The same numbers as leaves that gradients are taken in."""
    return {n: m._replace(weights=m.weights.detach().requires_grad_()) for n, m in mixtures.items()}


def _mixed_derivative(
    run: Any,
    along: Callable[[Weights], Tensor] | None,
    weights: Weights,
    leaves: list[Tensor],
    train: tuple[tuple[Batch, HiddenState], Noise],
    valid: tuple[tuple[Batch, HiddenState], Noise],
    inner: InnerStep,
    through_clip: bool,
    precise: Searchable,
) -> tuple[list[Tensor], Loss]:
    """Equation 7, with the mixed second derivative taken at the weights along v: by `along` where
    there is one, else (equation 8) from two gradients at w + Rv and w - Rv.
    """
    own = {name: w.detach().requires_grad_() for name, w in weights.items()}
    gradient = _named(own, _grad(run(own, *train, fixed=True).objective, list(own.values())))
    with torch.no_grad():
        ahead = _ahead(weights, gradient, inner, constant_clip=True)
    ahead = {name: w.detach().requires_grad_() for name, w in ahead.items()}
    loss = run(ahead, *valid)
    both = _grad(loss.value, [*leaves, *ahead.values()])
    direct, vector = both[: len(leaves)], _named(ahead, both[len(leaves) :])
    with torch.no_grad():
        vector = _through_inner_step(vector, gradient, inner, through_clip)
    del own, gradient, ahead
    if along is not None:
        mixed = _grad(along(vector), leaves)
        return [d - inner.lr * m for d, m in zip(direct, mixed, strict=True)], loss
    with torch.no_grad():
        length = norm(vector.values())
        # Where the loss does not depend on the weights the vector is zero: nothing is added.
        radius = PERTURBATION / torch.where(length > 0, length, 1.0)
        plus = {name: w + radius * vector[name] for name, w in weights.items()}
        minus = {name: w - radius * vector[name] for name, w in weights.items()}
    upper = _grad(run(plus, *train, by=precise).objective, leaves)
    del plus
    lower = _grad(run(minus, *train, by=precise).objective, leaves)
    return [
        d - inner.lr * (u - low) / (2 * radius)
        for d, u, low in zip(direct, upper, lower, strict=True)
    ], loss


def _ahead(
    weights: Weights, gradient: Weights, inner: InnerStep, *, constant_clip: bool
) -> Weights:
    """w' after one inner step: `torch.optim.SGD` after `clip_grad_norm_`, as a function."""
    coef = _clip_factor(gradient, inner)
    coef = coef.detach() if constant_clip else coef
    moved = {}
    for name, weight in weights.items():
        start = weight.detach()
        step = coef * gradient[name] + inner.weight_decay * start
        if inner.momentum and name in inner.buffers:
            step = step + inner.momentum * inner.buffers[name]
        moved[name] = start - inner.lr * step
    return moved


def _through_inner_step(
    vector: Weights, gradient: Weights, inner: InnerStep, through_clip: bool
) -> Weights:
    """v times the derivative of the clipped gradient in the gradient: what R v is taken of."""
    coef = _clip_factor(gradient, inner)
    scaled = {name: coef * v for name, v in vector.items()}
    if through_clip and coef < 1:
        length = norm(gradient.values())
        along = _inner_product(vector, gradient) / (length * (length + CLIP_EPSILON))
        scaled = {name: s - coef * along * gradient[name] for name, s in scaled.items()}
    return scaled


def _clip_factor(gradient: Weights, inner: InnerStep) -> Tensor:
    length = norm(gradient.values())
    if not inner.clip:
        return torch.ones_like(length)
    return (inner.clip / (length + CLIP_EPSILON)).clamp(max=1.0)


def norm(tensors: Any) -> Tensor:
    """The Euclidean norm of all tensors taken as one vector."""
    lengths = torch.stack([torch.linalg.vector_norm(t) for t in tensors])
    length: Tensor = torch.linalg.vector_norm(lengths)
    return length


def _inner_product(a: Weights, b: Weights) -> Tensor:
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


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
        return loss._replace(value=torch.where(sound, loss.value, torch.nan))

    def state(self) -> dict[str, Any]:
        """What is kept beside alphas and optimiser: nothing."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
