"""The derived recurrent cell and the language model around it.

Liu, Simonyan, Yang: DARTS, ICLR 2019, section 3.1.2 and appendix A.2. A node is a highway layer
over an earlier node (Zilly et al. 2017). Dropout as in Gal and Ghahramani 2016 and Merity et al.
2018: one mask a window, the same at all of its steps, scaled by 1 / (1 - p).

Legend: T steps, B streams, H units of state and of an embedding, V words, N nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor], Tensor]  # x (B, H), h (B, H) → the next h (B, H)

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": lambda z: (torch.exp(z) - torch.exp(-z)) / (torch.exp(z) + torch.exp(-z)),
    "relu": lambda z: torch.where(z > 0, z, torch.zeros_like(z)),
    "sigmoid": lambda z: 1 / (1 + torch.exp(-z)),
    "identity": lambda z: z,
}


@dataclass(frozen=True)
class Masks:
    """One window's dropout masks: of words (V, 1), of embedded inputs and outputs (1, B, H), of x
    and of the states inside the cell (B, H).
    """

    words: Tensor
    inputs: Tensor
    x: Tensor
    h: Tensor
    outputs: Tensor


def ones(vocabulary: int, streams: int, units: int) -> Masks:
    """No dropout."""
    one = torch.ones(1, streams, units, dtype=torch.float64)
    words = torch.ones(vocabulary, 1, dtype=torch.float64)
    return Masks(words, one, one[0], one[0], one)


def highway(state: Tensor, seen: Tensor, matrix: Tensor, function: str) -> Tensor:
    """A gate c and a candidate z from `seen`, by one matrix: c f(z) + (1 - c) state. (B, H)."""
    units = state.shape[1]
    c = FUNCTIONS["sigmoid"](seen @ matrix[:, :units])
    z = seen @ matrix[:, units:]
    return c * FUNCTIONS[function](z) + (1 - c) * state


def first_node(x: Tensor, h: Tensor, first: Tensor, masks: Masks) -> Tensor:
    """Node 0: from the input and the state before, side by side, by tanh. first (2H, 2H)."""
    return highway(h, torch.cat([x * masks.x, h * masks.h], dim=1), first, "tanh")


def derived_cell(
    nodes: Sequence[tuple[str, int]],
    concat: Sequence[int],
    weights: Mapping[str, Tensor],
    masks: Masks,
) -> Step:
    """The cell whose node i+1 applies `nodes[i]`, a function and the node before it; its output is
    the mean of the nodes `concat`.
    """

    def step(x: Tensor, h: Tensor) -> Tensor:
        states = [first_node(x, h, weights["first"], masks)]
        for i, (function, before) in enumerate(nodes):
            s = states[before]
            states.append(highway(s, s * masks.h, weights["nodes"][i], function))
        return sum((states[i] for i in concat), torch.zeros_like(h)) / len(concat)

    return step


@dataclass(frozen=True)
class Pass:
    """A forward pass: loss, mean nats a target; penalty; outputs (T, B, H); log_probs (T, B)."""

    loss: Tensor
    penalty: Tensor
    outputs: Tensor
    log_probs: Tensor


def language_model(
    step: Step,
    weights: Mapping[str, Tensor],
    words: Tensor,
    targets: Tensor,
    h: Tensor,
    masks: Masks,
    *,
    ar: float = 0.0,
    tar: float = 0.0,
) -> Pass:
    """Embed, run the cell, decode by the embedding's own matrix (Press and Wolf 2017).

    words, targets (T, B). ar, tar: weights of the activation penalties (Merity, McCann, Socher
    2017): mean square of what is decoded, and of the raw outputs' change from step to step.
    """
    embedding = weights["embedding"] * masks.words  # (V, H): whole words are dropped
    raw, log_probs = [], []
    for t in range(len(words)):
        h = step(embedding[words[t]] * masks.inputs[0], h)
        raw.append(h)
        scores = (h * masks.outputs[0]) @ weights["embedding"].T + weights["bias"]  # (B, V)
        top = scores.max(dim=1, keepdim=True).values.detach()
        log_sum = top[:, 0] + torch.log(torch.exp(scores - top).sum(dim=1))
        hit = torch.stack([scores[b, targets[t, b]] for b in range(len(h))])
        log_probs.append(hit - log_sum)
    outputs, table = torch.stack(raw), torch.stack(log_probs)
    dropped = outputs * masks.outputs
    penalty = ar * (dropped**2).mean()
    if len(words) > 1:
        penalty = penalty + tar * ((outputs[1:] - outputs[:-1]) ** 2).mean()
    return Pass(-table.mean(), penalty, outputs, table)
