"""How the fast mixed cell is computed: node by node, the computed edges of each in blocks.

Legend: B streams, E edges, O operations, N nodes; U units computed, n computed edges of a node, m
of one block.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rnnnas.lm.search_cell import Route, picked
from rnnnas.nas.space import CellSpace


class Block(NamedTuple):
    """Neighbouring computed edges of one node that have the same operations.

    source, edge: the first one's predecessor and row of the mixture. at: its place among the
    node's computed edges. ops: rows and names of the operations. shares: their weights, (m, 1, 1)
    each; mass (m, 1, 1), what they sum to, and minus, the same negated.
    """

    source: int
    edge: int
    at: int
    size: int
    ops: tuple[tuple[int, str], ...]
    shares: list[Tensor]
    mass: Tensor
    minus: Tensor


class Node(NamedTuple):
    """sources: the predecessors of its n computed edges. masses: (1, n), those of its blocks."""

    blocks: list[Block]
    sources: list[int]
    masses: Tensor


def plan_of(space: CellSpace, ways: tuple[Route, ...], weights: Tensor, most: int) -> list[Node]:
    """How every node is computed, in blocks of at most `most` edges."""
    plan = []
    for route in ways:
        groups: list[list[tuple[int, tuple[int, ...]]]] = []
        for edge, ops in route:
            last = groups[-1] if groups else []
            if last and len(last) < most and last[-1] == (edge - 1, ops):
                last.append((edge, ops))
            else:
                groups.append([(edge, ops)])
        blocks, at = [], 0
        for group in groups:
            (edge, ops), size = group[0], len(group)
            p = weights[edge : edge + size]
            shares = [p[:, o].contiguous().view(-1, 1, 1) for o in ops]
            names = tuple((o, space.ops[o]) for o in ops)
            mass = picked(p.t(), ops).sum(0).view(-1, 1, 1)
            source = space.edges[edge][0]
            blocks.append(Block(source, edge, at, size, names, shares, mass, -mass))
            at += size
        sources = [space.edges[edge][0] for edge, _ in route]
        masses = torch.cat([weights.new_empty(0), *(block.mass.view(-1) for block in blocks)])
        plan.append(Node(blocks, sources, masses.unsqueeze(0)))
    return plan


def start_of(h: Tensor) -> Node:
    """The cell's first state, h + σ(c) (tanh(z) - h), as a node with the one source h."""
    one = h.new_ones(1, 1, 1)
    block = Block(0, 0, 0, 1, ((0, "tanh"),), [one], one, -one)
    return Node([block], [0], one.view(1, 1))


def taken(states: Tensor, node: Node) -> Tensor:
    """The states that a node's computed edges come from, (n, B, U), of (N+1, B, U)."""
    return picked(states, node.sources)
