"""Dynamic evaluation: a model that goes on learning from the text it is evaluated on.

Krause, Kahembwe, Murray, Renals: Dynamic Evaluation of Neural Sequence Models, ICML 2018: RMS
with global statistics, and decay to the trained weights. A window is scored before it is learned
from. Legend: T steps, B streams, M = T·B targets, D embedding, H hidden, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rnnnas.errors import UsageError
from rnnnas.evaluation.log_probs import Scores, target_log_probs
from rnnnas.lm.fast import cpu_library
from rnnnas.lm.loss import nats_and_gradients
from rnnnas.lm.model import RecurrentLM
from rnnnas.lm.noise import SILENCE
from rnnnas.types import Batch, HiddenState, Loss

# Targets up to which the decoder's step goes a row at a time; more are better off with a product.
FEW = 16
DECODER = ("embedding", "bias")  # the weights whose gradient the decoder makes dense


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicConfig:
    """How weights follow the text.

    lr: step size on the gradient of a window's mean loss, divided by the RMS plus `epsilon`;
    decay: rate of return to the trained weights, for a weight of average RMS; average: what that
    is: the mean over all "weights", or, as in the authors' code, the mean of the "matrices'" means,
    in which a short bias counts as much as the embedding. The rate that a weight feels is
    decay / average, so that published decays (there `lamb`) are for "matrices". steps: T of a
    window. Both rates 0: the weights stay. streams, windows: B and the number (at most) of the
    windows that the RMS is taken over, the first ones of B streams that divide the training text.
    """

    lr: float = 1e-4
    decay: float = 3e-3
    steps: int = 5
    epsilon: float = 2e-4
    streams: int = 100
    windows: int = 500
    average: Literal["weights", "matrices"] = "weights"

    def __post_init__(self) -> None:
        for name in ("lr", "decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"dynamic.{name} = {getattr(self, name)} must not be negative")
        if not 0 < self.epsilon < math.inf:
            raise UsageError(f"dynamic.epsilon = {self.epsilon} must be above 0")
        for name in ("steps", "streams", "windows"):
            if getattr(self, name) < 1:
                raise UsageError(f"dynamic.{name} = {getattr(self, name)} must be at least 1")
        if self.average not in ("weights", "matrices"):
            raise UsageError(
                f"dynamic.average = {self.average!r} must be one of 'weights', 'matrices'"
            )


@torch.enable_grad()
def gradient_rms(net: RecurrentLM, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """√MS_g by parameter: the root mean square over windows of the mean loss's gradient.

    Consecutive windows hand on their hidden state. Raises ValueError without any window.
    """
    own = {name: p.detach().requires_grad_() for name, p in net.named_parameters()}
    squares = {name: torch.zeros_like(p) for name, p in own.items()}
    hidden_state: HiddenState = None
    count = 0
    for batch in batches:
        loss: Loss = functional_call(net, own, (batch, hidden_state, {}, None))
        hidden_state = loss.hidden_state
        grads = torch.autograd.grad(loss.value, list(own.values()))
        for total, grad in zip(squares.values(), grads, strict=True):
            total.addcmul_(grad, grad)
        count += 1
    if not count:
        raise ValueError("gradient statistics need at least one window")
    return {name: total.div_(count).sqrt_() for name, total in squares.items()}


def average_rms(
    rms: Mapping[str, Tensor], average: Literal["weights", "matrices"] = "weights"
) -> float:
    """The mean of √MS_g that the decay is relative to; see `DynamicConfig`.

    The node matrices of a cell lie in one tensor here, and count one by one among "matrices".
    """
    parts = list(rms.values())
    if average == "matrices":
        parts = [m for name, r in rms.items() for m in (r if _stacked(name) else (r,))]
        return sum(float(part.mean(dtype=torch.float64)) for part in parts) / len(parts)
    numbers = sum(part.numel() for part in parts)
    return float(sum(part.sum(dtype=torch.float64) for part in parts)) / numbers


def _stacked(name: str) -> bool:
    """Whether a parameter is a cell's node matrices, (N, H, 2H)."""
    return name.rpartition(".")[2] == "nodes"


class _Outputs(nn.Module):
    """Outputs, and with targets their log-probabilities, for `functional_call`."""

    def __init__(self, net: RecurrentLM) -> None:
        super().__init__()
        self.net = net

    def forward(
        self, inputs: Tensor, hidden_state: HiddenState, targets: Tensor | None = None
    ) -> tuple[Tensor, HiddenState, Tensor | None]:
        raw, after = self.net.outputs(inputs, hidden_state, {}, SILENCE)
        if targets is None:
            return raw, after, None
        flat = target_log_probs(self.net, raw.flatten(0, 1), targets.flatten())
        return raw, after, flat.view_as(targets)


@final
class Dynamic:
    """A model's weights as they follow a text; the model's own stay as they are.

    Args:
        rms: √MS_g of every parameter, of `gradient_rms`.

    θ ← θ - lr g / (√MS_g + ε) + min(decay R, 1) (θ_g - θ), with R = √MS_g over `average_rms`: no
    weight is carried beyond its trained value θ_g.
    """

    def __init__(self, net: RecurrentLM, rms: Mapping[str, Tensor], config: DynamicConfig) -> None:
        self.config = config
        self._outputs = _Outputs(net)
        self._plain = net.config.softmaxes == 1
        self._trained = {name: p.detach().contiguous() for name, p in net.named_parameters()}
        self.weights = {name: p.clone() for name, p in self._trained.items()}
        mean = average_rms(rms, config.average)
        self._relative = config.decay / mean if mean else 0.0
        self._rms = {
            name: cpu_library.dense(rms[name], *w.shape) for name, w in self.weights.items()
        }
        self._compiled = cpu_library.usable(*self.weights.values(), *self._rms.values())
        self._dense = torch.empty_like(self.weights["embedding"])  # room for its gradient
        if self._compiled:
            return
        self._back = {name: (r * self._relative).clamp_(max=1) for name, r in self._rms.items()}
        self._step = {name: -config.lr / (r + config.epsilon) for name, r in self._rms.items()}

    def score(self, batch: Batch, hidden_state: HiddenState) -> tuple[Scores, HiddenState]:
        """Score a window, then learn from it; the next hidden state is the one before learning."""
        return (
            self._score_plain(batch, hidden_state)
            if self._plain
            else self._score_any(batch, hidden_state)
        )

    def _score_any(self, batch: Batch, hidden_state: HiddenState) -> tuple[Scores, HiddenState]:
        """By automatic differentiation, whatever the decoder."""
        own = {name: w.detach().requires_grad_() for name, w in self.weights.items()}
        with torch.enable_grad():
            raw, after, log_probs = functional_call(
                self._outputs,
                {f"net.{name}": w for name, w in own.items()},
                (batch.inputs, hidden_state, batch.targets),
            )
            grads = torch.autograd.grad(-log_probs.mean(), list(own.values()))
        with torch.no_grad():
            for name, grad in zip(own, grads, strict=True):
                self._update(name, grad)
        return Scores(raw.detach(), batch.targets, log_probs.detach()), after

    def _score_plain(self, batch: Batch, hidden_state: HiddenState) -> tuple[Scores, HiddenState]:
        """The same for a plain softmax, with the decoder's gradients by hand."""
        steps, streams = batch.inputs.shape
        own = self.weights
        inputs, targets = batch.inputs.flatten(), batch.targets.flatten()
        # The embedding's gradient is dense through the decoder and a few rows through the input.
        # The cell is given those rows alone, as an embedding of its own: a dense gradient from
        # each side, and their sum, would cost more than all the rest.
        rows = own["embedding"][inputs].requires_grad_()
        cell = {name: w.detach().requires_grad_() for name, w in own.items() if name not in DECODER}
        index = torch.arange(len(inputs), device=inputs.device).view(steps, streams)
        given = {"embedding": rows, "bias": own["bias"], **cell}
        with torch.enable_grad():
            raw, after, _ = functional_call(
                self._outputs,
                {f"net.{name}": w for name, w in given.items()},
                (index, hidden_state),
            )
        with torch.no_grad():
            x = raw.detach().flatten(0, 1)  # (M, H)
            log_probs, gradient, of_bias = self._decoded(x, targets)
            from_loss = self._through_decoder(gradient, x)
        from_rows, *from_cell = torch.autograd.grad(
            raw, [rows, *cell.values()], from_loss.view_as(raw)
        )
        with torch.no_grad():
            # What the input's rows add lies outside the decay: the step is linear in g.
            scale = self._rms["embedding"][inputs].add_(self.config.epsilon)
            own["embedding"].index_add_(0, inputs, from_rows.div_(scale), alpha=-self.config.lr)
            self._update("bias", of_bias)
            for name, grad in zip(cell, from_cell, strict=True):
                self._update(name, grad)
        scores = Scores(raw.detach(), batch.targets, log_probs.view_as(batch.targets))
        return scores, after

    def _decoded(self, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (M, D), targets (M,) → log-probabilities (M,), and gradients of the mean loss: of the
        logits (M, V) and of the bias (V,).
        """
        embedding, bias = self.weights["embedding"], self.weights["bias"]
        if self._compiled:
            # With few targets (V, D) times (D, M) takes half the time of (M, D) times (D, V).
            logits = torch.mm(embedding, x.t()).t().contiguous()
            of_bias = torch.zeros_like(bias)
            nats = nats_and_gradients(logits, bias, targets, 1 / len(x), True, of_bias)
            return -nats.to(x.dtype), logits, of_bias
        logits = torch.addmm(bias, x, embedding.t())
        at, total = targets.unsqueeze(1), logits.logsumexp(-1, keepdim=True)
        log_probs = logits.gather(1, at) - total
        gradient = logits.sub_(total).exp_().div_(len(targets))  # in the logits' place
        gradient.scatter_add_(1, at, torch.full_like(log_probs, -1 / len(x)))
        return log_probs.squeeze(1), gradient, gradient.sum(0)

    def _through_decoder(self, gradient: Tensor, x: Tensor) -> Tensor:
        """gradient (M, V), x (M, D) → the gradient of x (M, D); the embedding takes its step."""
        own = self.weights["embedding"]
        if self._compiled and len(x) <= FEW:
            x = cpu_library.dense(x, len(gradient), own.shape[1])
            back = torch.empty_like(x)
            cpu_library.function("learn_rows", own.dtype)(
                len(x), *own.shape, gradient.data_ptr(), x.data_ptr(), *self._rule("embedding"),
                back.data_ptr(), torch.get_num_threads(),
            )  # fmt: skip
            return back
        back = gradient @ own
        self._update("embedding", torch.mm(gradient.t(), x, out=self._dense))
        return back

    def _update(self, name: str, grad: Tensor) -> None:
        """One step of a weight, in place."""
        own = self.weights[name]
        if self._compiled:
            grad = cpu_library.dense(grad, *own.shape)
            cpu_library.function("learn", own.dtype)(
                own.numel(), grad.data_ptr(), *self._rule(name), torch.get_num_threads()
            )
            return
        own.lerp_(self._trained[name], self._back[name]).addcmul_(self._step[name], grad)

    def _rule(self, name: str) -> tuple[int | float, ...]:
        """What a kernel is told of a weight: addresses and rates."""
        rates = self.config.lr, self.config.epsilon, self._relative
        trained, rms, own = (t[name].data_ptr() for t in (self._trained, self._rms, self.weights))
        return trained, rms, *rates, own
