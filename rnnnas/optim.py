"""Optimisers and what follows from them: schedules, averaging, and the step the architect mirrors.

A schedule is a pure function of progress in [0, 1]; nothing here counts steps by itself.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rnnnas.errors import UsageError
from rnnnas.types import InnerStep

_CLIP_EPSILON = 1e-6  # what torch adds to the norm before it divides by it


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightConfig:
    """SGD on the weights, and the switch to averaging.

    lr: step size for a window of `bptt` tokens, which scales with a window's length; -; above 0; 20
        as in the DARTS paper
    schedule: of lr over the run; averaging needs a step size that stays, as in the DARTS paper
    clip: largest norm of the gradient, which is scaled down to it; -; 0 or more, 0 for no limit;
        0.25 as in the DARTS paper
    weight_decay: weight of half the squared norm of the weights; -; 0 or more; none, though presets
        take the paper's 5e-7 and 8e-7
    momentum: share of the last step that is added to the next; share; 0 or more; none, as in the
        DARTS paper on text
    nonmono: averaging starts after the epoch whose validation loss is above the least of all but
        the last `nonmono` epochs before it (NT-ASGD, Merity et al. 2018, algorithm 1); epochs; 0 or
        more, 0 for never; never, since short trainings end before it pays
    finetune_epochs: epochs after the others, at the step size `lr` whatever the schedule, from the
        best weights and averaging from their first step (Merity et al. 2018, section 5); epochs; 0
        or more; none, since they lengthen a training
    """

    lr: float = 20.0
    schedule: Literal["constant", "cosine", "linear", "exponential"] = "constant"
    clip: float = 0.25
    weight_decay: float = 0.0
    momentum: float = 0.0
    nonmono: int = 0
    finetune_epochs: int = 0

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise UsageError(f"weights.lr = {self.lr} must be positive")
        for name in ("clip", "weight_decay", "momentum", "nonmono", "finetune_epochs"):
            if getattr(self, name) < 0:
                raise UsageError(f"weights.{name} = {getattr(self, name)} must not be negative")
        if self.schedule == "exponential" and not self.end > 0:
            raise UsageError(
                "weights.schedule = 'exponential' needs a step size to end at, above 0",
                "trainings on images have one: --set weights.lr_end=0.0001",
            )

    @property
    def end(self) -> float:
        """What the schedule falls to."""
        return 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageWeightConfig(WeightConfig):
    """SGD on the weights of an image network, where lr is that of any batch.

    lr: step size at the beginning; -; above 0; 0.025 as in DARTS (appendix A.1.1)
    lr_end: what the schedule falls to at the end of the run; -; 0 to `weights.lr`, above 0 for
        "exponential"; 0 as in the training of DARTS
    schedule: of lr over the run, where "exponential" multiplies by one factor every epoch; cosine
        as in DARTS
    clip: largest norm of the gradient, which is scaled down to it; -; 0 or more, 0 for no limit; 5
        as in DARTS
    weight_decay: weight of half the squared norm of the weights; -; 0 or more; 3e-4 as in DARTS
    momentum: share of the last step that is added to the next; share; 0 or more; 0.9 as in DARTS
    """

    lr: float = 0.025
    lr_end: float = 0.0
    schedule: Literal["constant", "cosine", "linear", "exponential"] = "cosine"
    clip: float = 5.0
    weight_decay: float = 3e-4
    momentum: float = 0.9

    def __post_init__(self) -> None:
        WeightConfig.__post_init__(self)
        if not 0 <= self.lr_end <= self.lr:
            raise UsageError(
                f"weights.lr_end = {self.lr_end} must lie between 0 and weights.lr = {self.lr}"
            )
        if self.lr_end and self.schedule == "constant":
            raise UsageError(
                f"weights.lr_end = {self.lr_end} has no place in a constant schedule",
                "add --set weights.schedule=cosine",
            )

    @property
    def end(self) -> float:
        return self.lr_end


@dataclass(frozen=True, slots=True, kw_only=True)
class AlphaConfig:
    """Adam on the alphas.

    lr: step size; -; above 0; 3e-3 as in the DARTS paper on text
    betas: decay of the first and of the second moment; share; each 0 to below 1; 0.9 and 0.999 as
        in the DARTS paper on text
    weight_decay: weight of half the squared norm of the alphas; -; 0 or more; 1e-3 as in the DARTS
        paper
    warmup: share of the search, or of each stage, during which only weights move; share; 0 to below
        1; none, as in the DARTS paper
    text: what alphas are trained on, "held-out" for the last `held_out` share of the training text,
        which weights then do not see (but for its words' frequencies, where `output_bias` begins at
        them), or "valid" for the validation text, as the DARTS paper does;
        what is held out leaves validation an independent measure
    held_out: share of the training text that alphas are trained on; share; above 0 and below 1; a
        tenth costs the weights little
    second_order: how a second-order search differentiates through the weight step, "exact", or
        "finite" by a difference of two gradients as the DARTS paper does, "auto" for the cheapest
        way that is right; exact for images, where the difference is mostly noise, and on text
        where a CPU multiplies in bfloat16 by compiled kernels, else finite (benchmarks/README.md)
    balanced: whether all operations of a cell keep the same mean alpha over its edges, so that none
        wins on most of them by how much signal it passes (docs/methods.md); off, as in the DARTS
        paper
    published_lookahead: whether a second-order search on text takes the published code's look-ahead
        in place of the gradient of the paper's equation (docs/methods.md says how they differ); for
        reproductions, no method or preset takes it
    """

    lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-3
    warmup: float = 0.0
    text: Literal["held-out", "valid"] = "held-out"
    held_out: float = 0.1
    second_order: Literal["auto", "finite", "exact"] = "auto"
    balanced: bool = False
    published_lookahead: bool = False

    def __post_init__(self) -> None:
        if not self.lr > 0 or self.weight_decay < 0:
            raise UsageError(
                f"alphas.lr = {self.lr} must be positive, and "
                f"alphas.weight_decay = {self.weight_decay} must not be negative"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UsageError(f"alphas.betas = {self.betas} must lie in [0, 1)")
        if self.published_lookahead and self.second_order == "exact":
            raise UsageError(
                "alphas.published_lookahead is a finite difference: "
                "alphas.second_order = 'exact' has no place beside it",
                "leave one of the two out",
            )
        if not 0 <= self.warmup < 1 or not 0 < self.held_out < 1:
            raise UsageError(
                f"alphas.warmup = {self.warmup} must lie in [0, 1), and "
                f"alphas.held_out = {self.held_out} between 0 and 1"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageAlphaConfig(AlphaConfig):
    """Adam on the alphas of an image network.

    lr: step size; -; above 0; 3e-4 as in DARTS (appendix A.1.1)
    betas: decay of the first and of the second moment; share; each 0 to below 1; 0.5 and 0.999 as
        in DARTS
    held_out: share of the training images that alphas are trained on; share; above 0 and below 1;
        half, as in DARTS
    """

    lr: float = 3e-4
    betas: tuple[float, float] = (0.5, 0.999)
    held_out: float = 0.5


def scheduled(config: WeightConfig, progress: float) -> float:
    """The step size at `progress` in [0, 1], for a window of full length."""
    above = config.lr - config.end
    if config.schedule == "cosine":
        return config.end + above * 0.5 * (1.0 + math.cos(math.pi * progress))
    if config.schedule == "linear":
        return config.end + above * (1.0 - progress)
    if config.schedule == "exponential":
        return float(config.lr * (config.end / config.lr) ** progress)
    return config.lr


def _spare_the_compiler() -> None:
    """Keep torch's optimisers from importing torch's compiler, which nothing here uses.

    They ask it to leave them alone when they are first called, for which it is imported: a second
    of processor time at the start of every training. What they look up is the answer of an earlier
    call; where a version of torch keeps it elsewhere, they import it as ever.
    """
    asks = torch._disable_dynamo(lambda: None).__code__  # type: ignore[attr-defined]
    for method in vars(torch.optim.Optimizer).values():
        if getattr(method, "__code__", None) is asks:
            inner = method.__wrapped__
            if not hasattr(inner, "__dynamo_disable"):
                inner.__dynamo_disable = inner


_spare_the_compiler()


@torch.no_grad()
def _step(optimizer: torch.optim.Optimizer) -> None:
    """One step, without what is wrapped about it, which would import the compiler as well."""
    inspect.unwrap(type(optimizer).step)(optimizer)


def weight_optimizer(net: nn.Module, config: WeightConfig) -> torch.optim.SGD:
    """SGD over all weights; its step size is set before every step."""
    weights = list(net.parameters())
    return torch.optim.SGD(
        weights,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=_fused(weights) or _in_one_pass(weights, config.momentum),
    )


def alpha_optimizer(alphas: Mapping[str, Tensor], config: AlphaConfig) -> torch.optim.Adam:
    """Adam over the alphas, weight decay as an L2 term in the gradient (as in DARTS)."""
    return torch.optim.Adam(
        list(alphas.values()),
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=_fused(alphas.values()),
    )


def _fused(tensors: Iterable[Tensor]) -> bool | None:
    """True on a CUDA device, where one kernel moves all weights and heeds a flag in its memory."""
    return True if all(t.is_cuda for t in tensors) else None


def _in_one_pass(weights: Iterable[Tensor], momentum: float) -> bool | None:
    """True on a CPU for dense weights without momentum: one pass over memory moves them to the same
    bits as torch's other ways do in two, with a tensor of their size between. With momentum the
    last few numbers of a tensor may differ in their last bit.
    """
    dense = all(w.device.type == "cpu" and w.is_contiguous() for w in weights)
    return True if dense and not momentum else None


def _at_hand(scalar: Tensor) -> bool:
    """Whether a number can be read without waiting for a device."""
    return scalar.device.type == "cpu"


def clip_gradients(net: nn.Module, clip: float) -> Tensor:
    """Scale the gradients of a network down to the norm `clip`, 0 for no limit; returns their norm
    before, a scalar.

    As `torch.nn.utils.clip_grad_norm_`, whose factor a CPU need not multiply by where it is 1.
    """
    weights = list(net.parameters())
    norm = nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None])
    most = clip or math.inf
    if not _at_hand(norm) or not bool(most / (norm + _CLIP_EPSILON) >= 1):
        nn.utils.clip_grads_with_norm_(weights, most, norm)
    return norm


def guarded_step(optimizer: torch.optim.Optimizer, sound: Tensor) -> bool:
    """One step of `optimizer` where `sound`, a scalar bool, is true; else nothing moves.

    Fused kernels of a device read the flag where it lies, so that this process need not wait for
    it. Returns False where it is known that nothing moved.
    """
    if not _at_hand(sound) and all(group.get("fused") for group in optimizer.param_groups):
        optimizer.found_inf = (~sound).float()  # type: ignore[attr-defined]
        _step(optimizer)
        return True
    moves = bool(sound)
    if moves:
        for group in optimizer.param_groups:
            for weight in group["params"] if group.get("fused") else ():
                # A fused kernel of a CPU takes a gradient to lie as its weight does.
                if weight.grad is not None and not weight.grad.is_contiguous():
                    weight.grad = weight.grad.contiguous()
        _step(optimizer)
    return moves


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Take over what `state_dict` gave, perhaps on another device: how a step is computed, fused
    or not, stays as it is here.
    """
    groups = [
        {**saved, **{name: own[name] for name in ("fused", "foreach") if name in own}}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})


def inner_step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    clip: float,
    *,
    lr: float,
    published: frozenset[str] | None = None,
) -> InnerStep:
    """The next step of `optimizer` on `net`, of size `lr` after clipping at `clip`, for the
    architect.

    Args:
        published: as in `InnerStep`.

    Raises:
        UsageError: for anything the architect does not mirror.
    """
    groups = optimizer.param_groups
    if type(optimizer) is not torch.optim.SGD or len(groups) != 1:
        raise UsageError(
            f"the architect looks ahead by plain SGD with one group, not {type(optimizer).__name__}"
        )
    group: dict[str, Any] = groups[0]
    for option in ("nesterov", "dampening", "maximize"):
        if group[option]:
            raise UsageError(f"the architect's look-ahead does not mirror SGD's {option}")
    buffers = {
        name: state["momentum_buffer"]
        for name, p in net.named_parameters()
        if (state := optimizer.state.get(p)) and state.get("momentum_buffer") is not None
    }
    return InnerStep(
        lr=lr,
        clip=clip,
        weight_decay=group["weight_decay"],
        momentum=group["momentum"],
        buffers=buffers,
        published=published,
    )


def averaging_starts(history: list[float], loss: float, nonmono: int) -> bool:
    """Whether NT-ASGD switches after an epoch with validation `loss`, given those before it."""
    return nonmono > 0 and len(history) > nonmono and loss > min(history[:-nonmono])


class Average:
    """The uniform average of the weights after every step since it began (ASGD with t0 = 0)."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.steps = 0
        self.weights = {name: w.detach().clone() for name, w in weights.items()}

    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Take in the weights after one more step."""
        self.steps += 1
        new = [weights[name].detach() for name in self.weights]
        torch._foreach_lerp_(list(self.weights.values()), new, 1.0 / self.steps)
