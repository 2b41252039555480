"""The iterations of DARTS as its public code has them: what the fast path is timed against.

One parameter a node, one product a node over all its predecessors, every operation over all edges
by itself, the statistics of torch's own batch normalisation, logits of all targets at once, and
autograd through all of it. An alpha step goes back to all weights, and the second order changes
the weights in place for its two ends, as there. Masks, though, are drawn once (`lm/noise.py`), and
the carried states and clipping are ours: values and gradients equal the readable network's.
Legend: T steps, B streams, H hidden, N nodes, U units computed (H, or H/K of a partial cell).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnnnas.errors import UsageError
from rnnnas.lm import softmaxes
from rnnnas.lm.cell import masked
from rnnnas.lm.loss import penalty
from rnnnas.lm.model import RecurrentLM
from rnnnas.lm.noise import SILENCE, LayerNoise, LMNoise
from rnnnas.lm.search_cell import EPSILON
from rnnnas.nas.architect import PERTURBATION
from rnnnas.nas.genotype import RECURRENT, CellGene
from rnnnas.nas.operations import function_of
from rnnnas.nas.relax.base import Alphas, Mixture, Relaxation
from rnnnas.nas.space import NONE, CellSpace
from rnnnas.types import Batch, HiddenState, Loss


class _Cell(nn.Module):
    """One layer: `first` (D+H, 2H), and for every node a parameter of its own, (U, 2U)."""

    def __init__(self, first: Tensor, nodes: Tensor, cell: CellGene | CellSpace) -> None:
        super().__init__()
        self.cell = cell
        self.first = nn.Parameter(first.detach().clone())
        self.nodes = nn.ParameterList(nn.Parameter(w.detach().clone()) for w in nodes)

    def forward(
        self, inputs: Tensor, h: Tensor, mixture: Tensor | None, noise: LayerNoise
    ) -> Tensor:
        """inputs (T, B, D), h (B, H) → outputs (T, B, H)."""
        outputs = []
        for x in inputs.unbind(0):
            joined = torch.cat([masked(x, noise.x), masked(h, noise.h)], -1)
            s0 = _gated(h, joined.mm(self.first), "tanh")
            if isinstance(self.cell, CellGene):
                h = self._derived(self.cell, s0, noise.h)
            else:
                assert mixture is not None
                h = self._mixed(self.cell, s0, mixture, noise.h)
            outputs.append(h)
        return torch.stack(outputs)

    def _derived(self, cell: CellGene, s0: Tensor, mask: Tensor | None) -> Tensor:
        states = [s0]
        for weight, ((op, source),) in zip(self.nodes, cell.nodes, strict=True):
            s = states[source]
            states.append(_gated(s, masked(s, mask).mm(weight), op))
        return torch.stack([states[i] for i in cell.concat], -1).mean(-1)

    def _mixed(self, space: CellSpace, s0: Tensor, mixture: Tensor, mask: Tensor | None) -> Tensor:
        hidden, units = s0.shape[-1], len(self.nodes[0])
        mask = None if mask is None else mask[:, :units]
        states = _normalised(s0).unsqueeze(0)  # (n, B, H), grown node by node
        for i, weight in enumerate(self.nodes):
            part = states[..., :units]
            product = masked(part, mask).reshape(-1, units).mm(weight)
            c, z = product.view(len(states), -1, 2 * units).chunk(2, -1)
            gate = torch.sigmoid(c)
            rows = mixture[space.rows(i).start : space.rows(i).stop]
            total = torch.zeros_like(s0)
            for o, op in enumerate(space.ops):
                if op == NONE:
                    continue
                value = part + gate * (function_of(op)(z) - part)
                if units < hidden:
                    value = torch.cat([value, states[..., units:]], -1)
                total = total + (rows[:, o].view(-1, 1, 1) * value).sum(0)
            state = _normalised(total)
            if units < hidden:
                state = state.roll(units, -1)
            states = torch.cat([states, state.unsqueeze(0)])
        return states[1:].mean(0)


def _gated(state: Tensor, product: Tensor, op: str) -> Tensor:
    c, z = product.chunk(2, -1)
    return state + torch.sigmoid(c) * (function_of(op)(z) - state)


def _normalised(state: Tensor) -> Tensor:
    return F.batch_norm(state, None, None, training=True, eps=EPSILON)


class Classic(nn.Module):
    """The network of the public code, with the weights of `net`, which has a cell of ours.

    Raises:
        UsageError: for an LSTM or GRU, which the public code does not have.
    """

    def __init__(self, net: RecurrentLM) -> None:
        super().__init__()
        if isinstance(net.cell, str):
            raise UsageError(f"the public code of DARTS has no {net.cell}")
        self.config, self.penalty_config = net.config, net.penalty_config
        self.embedding = nn.Parameter(net.embedding.detach().clone())
        self.bias = nn.Parameter(net.bias.detach().clone())
        pairs = [(net.first, net.nodes)]
        pairs += [(own["first"], own["nodes"]) for own in net.layers.values()]  # type: ignore[index]
        self.cells = nn.ModuleList(_Cell(first, nodes, net.cell) for first, nodes in pairs)
        if net.config.softmaxes > 1:
            self.projections = nn.Parameter(net.projections.detach().clone())
            self.prior = nn.Parameter(net.prior.detach().clone())

    def forward(
        self,
        batch: Batch,
        hidden_state: HiddenState,
        mixtures: Mapping[str, Mixture],
        noise: LMNoise | None,
    ) -> Loss:
        """The loss of one window, as `RecurrentLM.forward`; noise: None to evaluate."""
        masks = SILENCE if noise is None else noise
        table = self.embedding if masks.words is None else self.embedding * masks.words
        raw = masked(F.embedding(batch.inputs, table), masks.inputs)
        if hidden_state is None:
            hidden_state = (raw.new_zeros(raw.shape[1:]),) * len(self.cells)
        states = (hidden_state,) if isinstance(hidden_state, Tensor) else hidden_state
        mixture = mixtures[RECURRENT].weights if mixtures else None
        after: tuple[Tensor, ...] = ()
        for k, (cell, h) in enumerate(zip(self.cells, states, strict=True)):
            raw = cell(raw, h, mixture, masks.layer(k))
            after += (raw[-1].detach(),)
        dropped = masked(raw, masks.outputs)
        extra = raw.new_zeros(()) if noise is None else penalty(self.penalty_config, raw, dropped)
        targets = batch.targets.reshape(-1)
        rows = dropped.reshape(len(targets), -1)
        if self.config.softmaxes > 1:
            value = softmaxes.cross_entropy_reference(
                rows, self.projections, self.prior, self.embedding, self.bias, targets
            )
        else:
            scores = F.linear(rows, self.embedding, self.bias).log_softmax(-1)
            value = F.nll_loss(scores, targets)
        return Loss(value=value, count=len(targets), hidden_state=after, penalty=extra)


def search_iteration(
    net: Classic, alphas: Alphas, relaxation: Relaxation, adam: torch.optim.Optimizer,
    sgd: torch.optim.Optimizer, batch: Batch, draw: Callable[[], LMNoise], generator: Any, *,
    second: bool, lr: float, clip: float, weight_decay: float,
) -> dict[str, Tensor]:  # fmt: skip
    """An alpha step and a weight step; returns the alphas' gradients.

    Args:
        draw: the masks of a window.
        second: look ahead by one weight step, and take the difference; else the first order.
    """
    space = {RECURRENT: next(c.cell for c in net.cells if isinstance(c.cell, CellSpace))}

    def mixtures() -> dict[str, Mixture]:
        return dict(relaxation.mix(alphas, space, 0.5, generator, "alphas"))

    tables = list(alphas.values())
    adam.zero_grad(set_to_none=True)
    net.zero_grad(set_to_none=True)
    if second:
        _second_order(net, tables, mixtures, batch, draw(), draw(), lr, clip, weight_decay)
    else:
        net(batch, None, mixtures(), draw()).value.backward()
    grads = {name: alpha.grad.clone() for name, alpha in alphas.items() if alpha.grad is not None}
    adam.step()
    with torch.no_grad():
        fixed = mixtures()
    train_iteration(net, sgd, batch, fixed, draw(), lr=lr, clip=clip)
    return grads


def _second_order(
    net: Classic, tables: list[Tensor], mixtures: Callable[[], dict[str, Mixture]], batch: Batch,
    train_noise: LMNoise, valid_noise: LMNoise, lr: float, clip: float, weight_decay: float,
) -> None:  # fmt: skip
    """Equations 6 to 8, into the alphas' `.grad`; the weights end as they began."""
    weights = list(net.parameters())
    start = [w.detach().clone() for w in weights]
    inner = torch.autograd.grad(net(batch, None, mixtures(), train_noise).objective, weights)
    length = torch.stack([g.norm() for g in inner]).norm()
    factor = (clip / (length + 1e-6)).clamp(max=1.0) if clip else torch.ones_like(length)
    with torch.no_grad():
        for w, g in zip(weights, inner, strict=True):
            w.sub_(lr * (factor * g + weight_decay * w))
    net(batch, None, mixtures(), valid_noise).value.backward()
    vector = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
    radius = PERTURBATION / torch.stack([v.norm() for v in vector]).norm()
    ends = []
    for step in (radius, -radius):
        with torch.no_grad():
            for w, s, v in zip(weights, start, vector, strict=True):
                w.copy_(s + step * v)
        objective = net(batch, None, mixtures(), train_noise).objective
        ends.append(torch.autograd.grad(objective, tables))
    with torch.no_grad():
        for table, upper, lower in zip(tables, *ends, strict=True):
            assert table.grad is not None
            table.grad -= lr * factor * (upper - lower) / (2 * radius)
        for w, s in zip(weights, start, strict=True):
            w.copy_(s)


def train_iteration(
    net: Classic, sgd: torch.optim.Optimizer, batch: Batch, mixtures: Mapping[str, Mixture],
    noise: LMNoise, *, lr: float, clip: float,
) -> tuple[Loss, Tensor]:  # fmt: skip
    """A weight step; returns the loss and the gradient's norm before clipping."""
    sgd.zero_grad(set_to_none=True)
    loss: Loss = net(batch, None, mixtures, noise)
    loss.objective.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(net.parameters(), clip or math.inf)
    for group in sgd.param_groups:
        group["lr"] = lr
    sgd.step()
    return loss._replace(value=loss.value.detach(), penalty=loss.penalty.detach()), norm
