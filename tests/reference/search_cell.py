"""The recurrent cell under a mixture, and the cell that is derived from one.

DARTS, sections 2.2 and 2.4 and appendix A.1.2: every node is the sum over all nodes before it of
all operations, weighed by a softmax of the edge's alphas, and is batch-normalised without scale or
shift. `none` is an operation: it adds nothing, yet takes its share.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from reference.cell import Masks, Step, first_node, highway

OPERATIONS = ("none", "tanh", "relu", "sigmoid", "identity")
EPSILON = 1e-5  # of the batch normalisation


def row(node: int, before: int) -> int:
    """The row in alpha of the edge into `node`, from 1, from the node `before`."""
    return (node - 1) * node // 2 + before


def shares(alpha: Tensor) -> Tensor:
    """The softmax of every edge's alphas. (E, O)."""
    return torch.exp(alpha) / torch.exp(alpha).sum(dim=1, keepdim=True)


def normalised(state: Tensor) -> Tensor:
    """Every unit to mean 0 and variance 1 over the streams of this very batch. (B, H)."""
    mean = state.mean(dim=0)
    variance = ((state - mean) ** 2).mean(dim=0)
    return (state - mean) / torch.sqrt(variance + EPSILON)


def search_cell(mixture: Tensor, weights: Mapping[str, Tensor], masks: Masks) -> Step:
    """The cell under `mixture` (E, O). All edges and operations into a node share its matrix; the
    output is the mean of all nodes but node 0.
    """

    def step(x: Tensor, h: Tensor) -> Tensor:
        states = [normalised(first_node(x, h, weights["first"], masks))]
        for node in range(1, len(weights["nodes"]) + 1):
            total = torch.zeros_like(h)
            for before, s in enumerate(states):
                for o, operation in enumerate(OPERATIONS):
                    if operation != "none":
                        value = highway(s, s * masks.h, weights["nodes"][node - 1], operation)
                        total = total + mixture[row(node, before), o] * value
            states.append(normalised(total))
        return sum(states[1:], torch.zeros_like(h)) / (len(states) - 1)

    return step


def derived(mixture: Tensor, nodes: int) -> list[tuple[str, int]]:
    """Per node the edge whose best operation but `none` has the largest share, and that operation;
    of equals the first (section 2.4 with k = 1).
    """
    found = []
    for node in range(1, nodes + 1):
        best, choice = -1.0, ("", 0)
        for before in range(node):
            for o, operation in enumerate(OPERATIONS):
                share = float(mixture[row(node, before), o])
                if operation != "none" and share > best:
                    best, choice = share, (operation, before)
        found.append(choice)
    return found
