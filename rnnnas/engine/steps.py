"""One weight update and one evaluation pass; search and training share them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rnnnas.distributed import ALONE, Ranks
from rnnnas.engine.cuda_graphs import CudaGraphs
from rnnnas.engine.metrics import Score
from rnnnas.errors import CheckpointError
from rnnnas.nas.relax.base import Mixture
from rnnnas.optim import clip_gradients, guarded_step
from rnnnas.types import Batch, HiddenState, Loss, Noise

EVALUATION_STEPS = 70  # T of evaluation windows; the hidden state makes the value independent of it


def load_weights(net: nn.Module, weights: Mapping[str, Tensor], where: object) -> None:
    """Take over saved weights; where: what they were read from.

    Raises:
        CheckpointError: where they are those of another network.
    """
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{where} holds the weights of another network", "start anew with --fresh"
        ) from error


class Readable(Protocol):
    """What an evaluation goes through: `Streams` of text, or images `InOrder`."""

    def read(self, steps: int) -> Iterable[Batch]:
        """Every target once, in a fixed order; steps: T of a text's windows."""


def generator(seed: int, purpose: str, step: int, device: torch.device) -> torch.Generator:
    """A generator that depends on its arguments alone: nothing to save, nothing to get lost."""
    key = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(key[:8], "little"))


def weight_step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    hidden_state: HiddenState,
    mixtures: Mapping[str, Mixture],
    noise: Noise,
    *,
    lr: float,
    clip: float,
    ranks: Ranks = ALONE,
    cuda_graphs: CudaGraphs | None = None,
) -> tuple[Loss, Tensor]:
    """One step of the weights; returns the detached loss and the gradient norm before clipping.

    Where either is not finite the weights stay as they are: the caller rolls back. With several
    ranks, each with its own streams, both are the whole batch's, and so is the loss's count. The
    results are scalars on the device, and nothing here waits for it.

    Args:
        cuda_graphs: of this network; where one fits the window, it makes the loss and the
        gradients.
    """
    inputs = (batch, hidden_state, mixtures, noise)
    graph = None
    if cuda_graphs is not None:
        graph = cuda_graphs.find("weights", partial(_gradients, net), inputs)
    loss: Loss
    if graph is None:
        loss = net(*inputs)
        optimizer.zero_grad(set_to_none=True)
        loss.objective.backward()  # type: ignore[no-untyped-call]
    else:
        loss, gradients = graph.run(inputs)
        loss = loss._replace(hidden_state=state_of(loss.hidden_state, torch.clone))
        for parameter, gradient in zip(net.parameters(), gradients, strict=True):
            parameter.grad = gradient
    value, penalty = loss.value.detach().clone(), loss.penalty.detach().clone()
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    ranks.mean_([*grads, value, penalty])
    norm = clip_gradients(net, clip)
    for group in optimizer.param_groups:
        group["lr"] = lr
    guarded_step(optimizer, torch.isfinite(norm) & torch.isfinite(value))
    whole = loss._replace(value=value, penalty=penalty, count=loss.count * ranks.size)
    return whole, norm


def _gradients(
    net: nn.Module,
    batch: Batch,
    hidden_state: HiddenState,
    mixtures: Mapping[str, Mixture],
    noise: Noise,
) -> tuple[Loss, tuple[Tensor | None, ...]]:
    """The loss and its gradient in every weight, for a CUDA graph."""
    loss: Loss = net(batch, hidden_state, mixtures, noise)
    return loss, torch.autograd.grad(loss.objective, list(net.parameters()), allow_unused=True)


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    """All that a network is: its parameters, and its buffers where it has any, detached."""
    return {name: value.detach() for name, value in (*net.named_parameters(), *net.named_buffers())}


def state_of(hidden_state: HiddenState, form: Callable[[Tensor], Tensor]) -> HiddenState:
    """`form` of every state of a hidden state."""
    if hidden_state is None or isinstance(hidden_state, Tensor):
        return None if hidden_state is None else form(hidden_state)
    return tuple(form(part) for part in hidden_state)


def whole_state(hidden_state: HiddenState, ranks: Ranks) -> HiddenState:
    """The hidden state over all streams, on every rank, of the ranks' own ones (B / R, H)."""
    return state_of(hidden_state, lambda own: ranks.gather(own, 0))


def own_state(hidden_state: HiddenState, device: torch.device, ranks: Ranks) -> HiddenState:
    """A hidden state over all streams, e.g. a saved one: this rank's part of it, on `device`."""
    return state_of(hidden_state, lambda whole: ranks.own(whole, 0).to(device))


@torch.no_grad()
def evaluate(
    net: nn.Module,
    data: Readable,
    mixtures: Mapping[str, Mixture],
    weights: Mapping[str, Tensor] | None = None,
    cuda_graphs: CudaGraphs | None = None,
) -> Score:
    """The loss over all targets of `data`, state carried across windows, without noise.

    Args:
        weights: evaluated instead of the network's own, e.g. averaged ones.
        cuda_graphs: of this network, for windows that come again.
    """
    own: dict[str, Tensor] = dict(weights or net.named_parameters())
    hidden_state: HiddenState = None
    tokens = 0
    nats: list[Tensor] = []
    correct: list[Tensor] = []
    score = partial(_scored, net)
    for batch in data.read(EVALUATION_STEPS):
        # The weights are handed over, for others may lie elsewhere the next time.
        inputs = (own, batch, hidden_state, mixtures)
        loss = score(*inputs) if cuda_graphs is None else cuda_graphs.run("score", score, *inputs)
        hidden_state = loss.hidden_state
        nats.append(loss.value.double() * loss.count)
        tokens += loss.count
        if loss.correct is not None:
            correct.append(loss.correct)
    total = 0.0
    for value in torch.stack(nats).tolist() if nats else []:  # one wait for the device
        total += value
    if not correct:
        return Score(nats=total, tokens=tokens)
    first, in_top5 = torch.stack(correct).sum(0).tolist()
    return Score(nats=total, tokens=tokens, correct=first, in_top5=in_top5)


@torch.no_grad()
def _scored(
    net: nn.Module, own: Mapping[str, Tensor], batch: Batch, hidden_state: HiddenState,
    mixtures: Mapping[str, Mixture],
) -> Loss:  # fmt: skip
    """The loss of one window under weights that are handed in, for a CUDA graph."""
    loss: Loss = functional_call(net, dict(own), (batch, hidden_state, mixtures, None))
    return loss
