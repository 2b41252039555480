"""The recurrent cell, readable: the oracle that every faster form is tested against.

Legend: T steps, B streams, D embedding, H hidden, N nodes. A cell's weights are `first` (D+H, 2H)
for state s0 and `nodes` (N, H, 2H), one a destination node, shared by every predecessor and
operation. The left half of a product is the gate c, the right half the candidate z. No biases.
DARTS, section 3.1.2 and appendix A.2; facts of its public code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rnnnas.errors import UsageError
from rnnnas.nas import operations
from rnnnas.nas.genotype import CellGene
from rnnnas.nas.operations import function_of


def masked(state: Tensor, mask: Tensor | None) -> Tensor:
    """`state` times `mask`, where there is one."""
    return state if mask is None else state * mask


def gated(state: Tensor, product: Tensor, op: str) -> Tensor:
    """s + sigmoid(c) (f(z) - s), with [c, z] = product (..., 2H). Returns (..., H)."""
    c, z = product.chunk(2, -1)
    return state + torch.sigmoid(c) * (function_of(op)(z) - state)


def input_product(inputs: Tensor, first: Tensor, mask_x: Tensor | None) -> Tensor:
    """The input's part of the first product, of all steps at once: it needs no recurrence.

    inputs (T, B, D) → (T, B, 2H).
    """
    steps, streams, width = inputs.shape
    rows = masked(inputs, mask_x).reshape(steps * streams, width)
    return (rows @ first[:width]).view(steps, streams, -1)


def first_state(
    x: Tensor, h: Tensor, first: Tensor, mask_x: Tensor | None, mask_h: Tensor | None
) -> Tensor:
    """s0 = h + sigmoid(c) (tanh(z) - h). x (B, D), h (B, H) → (B, H); the carried h is unmasked."""
    joined = torch.cat([masked(x, mask_x), masked(h, mask_h)], -1)
    return gated(h, joined @ first, "tanh")


def step(
    x: Tensor,
    h: Tensor,
    first: Tensor,
    nodes: Tensor,
    cell: CellGene,
    mask_x: Tensor | None,
    mask_h: Tensor | None,
) -> Tensor:
    """One time step of a derived cell. x (B, D), h (B, H) → the next h (B, H).

    A node with several edges is the mean or the sum of them, as `cell.join` says; its edges share
    the node's matrix.
    """
    states = [first_state(x, h, first, mask_x, mask_h)]
    for weight, genes in zip(nodes, cell.nodes, strict=True):
        parts = [
            gated(states[source], masked(states[source], mask_h) @ weight, op)
            for op, source in genes
        ]
        joined = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
        states.append(joined / len(parts) if cell.join == "mean" and len(parts) > 1 else joined)
    return torch.stack([states[i] for i in cell.concat]).mean(0)


def unroll(
    inputs: Tensor,
    h: Tensor,
    first: Tensor,
    nodes: Tensor,
    cell: CellGene,
    mask_x: Tensor | None,
    mask_h: Tensor | None,
) -> Tensor:
    """All T steps of a derived cell. inputs (T, B, D), h (B, H) → outputs (T, B, H)."""
    outputs = []
    for x in inputs:
        h = step(x, h, first, nodes, cell, mask_x, mask_h)
        outputs.append(h)
    return torch.stack(outputs)


def check_cell(cell: CellGene) -> None:
    """Refuse what this cell cannot run.

    Raises:
        UsageError: naming the node with an unknown operation, or a cell of two inputs.
    """
    if cell.inputs != 1:
        raise UsageError(f"a recurrent cell has one input state, s0, not {cell.inputs}")
    for i, node in enumerate(cell.nodes):
        for gene in node:
            operations.check(gene.op, f"node {i + 1}")
