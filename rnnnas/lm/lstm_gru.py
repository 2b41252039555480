"""LSTM and GRU as baselines: torch's own sequence kernels, and the readable form of the same.

Legend: T steps, B streams, D embedding, H hidden, G gates (4 of an LSTM, 3 of a GRU). A layer's
weights are named and shaped as in `torch.nn.LSTM` and `torch.nn.GRU`: weight_ih (G·H, D),
weight_hh (G·H, H), bias_ih and bias_hh (G·H). Its state is (h, c) of an LSTM and (h,) of a GRU,
(B, H) each.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Baseline: TypeAlias = Literal["lstm", "gru"]
State: TypeAlias = tuple[Tensor, ...]

GATES = {"lstm": 4, "gru": 3}
STATES = {"lstm": 2, "gru": 1}
_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def shapes(kind: Baseline, inputs: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """The weights of a layer that takes `inputs` features, by torch's names."""
    rows = GATES[kind] * hidden
    return dict(zip(_WEIGHTS, ((rows, inputs), (rows, hidden), (rows,), (rows,)), strict=True))


def unroll(
    kind: Baseline, inputs: Tensor, state: State, weights: Mapping[str, Tensor]
) -> tuple[Tensor, State]:
    """All T steps in one call of torch's kernel.

    inputs (T, B, D) → outputs (T, B, H) and the state after them.
    """
    flat = [weights[name] for name in _WEIGHTS]
    first, *rest = (s.unsqueeze(0) for s in state)  # (layers = 1, B, H)
    # The kernel's own dropout stays off: biases, layers, dropout, train, two directions, batch.
    options = (flat, True, 1, 0.0, torch.is_grad_enabled(), False, False)
    with warnings.catch_warnings():
        # cuDNN would rather have all weights in one block of memory. Dropped weights are new in
        # every window, so that they must be copied into one in any case.
        warnings.filterwarnings("ignore", message="RNN module weights are not part of single")
        if kind == "lstm":
            outputs, h, c = torch.lstm(inputs, (first, *rest), *options)
            return outputs, (h[0], c[0])
        outputs, h = torch.gru(inputs, first, *options)
        return outputs, (h[0],)


def unroll_reference(
    kind: Baseline, inputs: Tensor, state: State, weights: Mapping[str, Tensor]
) -> tuple[Tensor, State]:
    """The same, step by step, as the definition says; it can be differentiated twice."""
    step = _lstm_step if kind == "lstm" else _gru_step
    outputs = []
    for x in inputs:
        from_x = F.linear(x, weights["weight_ih"], weights["bias_ih"])
        from_h = F.linear(state[0], weights["weight_hh"], weights["bias_hh"])
        state = step(from_x, from_h, state)
        outputs.append(state[0])
    return torch.stack(outputs), state


def _lstm_step(from_x: Tensor, from_h: Tensor, state: State) -> State:
    """c' = f c + i g, h' = o tanh(c'); gates in the order i, f, g, o. (B, 4H) each → (h', c')."""
    i, f, g, o = (from_x + from_h).chunk(4, -1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru_step(from_x: Tensor, from_h: Tensor, state: State) -> State:
    """h' = (1 - z) n + z h; gates in the order r, z, n. (B, 3H) each → (h',).

    As in torch and cuDNN the reset gate acts on the product, not on h: n = tanh(x.. + r (h..)).
    """
    xr, xz, xn = from_x.chunk(3, -1)
    hr, hz, hn = from_h.chunk(3, -1)
    n = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
    z = torch.sigmoid(xz + hz)
    return ((1 - z) * n + z * state[0],)
