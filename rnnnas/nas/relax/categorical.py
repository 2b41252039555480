"""A categorical policy: independent choices by softmax, moved by REINFORCE.

ProxylessNAS (Cai et al. 2019), section 3.3.2 and appendix: ten networks an update, and a baseline
that takes in .99 of each new mean reward.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rnnnas.nas.relax.base import Alphas, Spaces, allowed_softmax
from rnnnas.nas.relax.policy import Draw, Pick, Policy, Tally, one_hot
from rnnnas.nas.space import CellSpace


@dataclass(frozen=True, slots=True, kw_only=True)
class Categorical(Policy):
    """One choice a group, the groups independent.

    Where a cell keeps one edge a node, a group is a node: all its (predecessor, operation) pairs
    but `none`. Elsewhere it is an edge with its allowed operations, as in the paper.

    samples: cells drawn for one update; cells; 1 or more; 10 as in ProxylessNAS
    decay: share of the old baseline that stays when a new mean reward comes in; share; 0 to 1; 0.01
        as in ProxylessNAS, which takes in .99 of the new one
    """

    samples: int = 10
    decay: float = 0.01

    def roll(self, alphas: Alphas, spaces: Spaces, pick: Pick) -> Draw:
        tally = Tally(next(iter(alphas.values())), pick)
        mixtures = {}
        for name, space in spaces.items():
            paths = []
            for group in _groups(space):
                rows, columns = zip(*group, strict=True)
                logits = alphas[name][list(rows), list(columns)]
                paths.append(group[tally.choose(logits)])
            mixtures[name] = one_hot(space, paths, alphas[name].detach())
        return Draw(mixtures, tally.log_probability, tally.entropy)

    def scores(self, alphas: Alphas, spaces: Spaces) -> dict[str, Tensor]:
        """The probability of each (edge, operation) in its group."""
        scores = {}
        for name, space in spaces.items():
            if space.keep != 1:
                scores[name] = allowed_softmax(alphas[name], space)
                continue
            parts = []
            for node in range(space.nodes):
                rows = space.rows(node)
                masked = torch.full_like(alphas[name][rows.start : rows.stop], -torch.inf)
                for row in rows:
                    choices = space.choices(row)
                    masked[row - rows.start, choices] = alphas[name][row, choices]
                parts.append(masked.flatten().softmax(0).view_as(masked))
            scores[name] = torch.cat(parts)
        return scores


def _groups(space: CellSpace) -> list[list[tuple[int, int]]]:
    """The (edge, operation) pairs of every group that is not empty."""
    if space.keep == 1:
        return [
            [(row, op) for row in space.rows(node) for op in space.choices(row)]
            for node in range(space.nodes)
        ]
    edges = [
        [(row, op) for op, allowed in enumerate(space.allowed[row]) if allowed]
        for row in range(len(space.edges))
    ]
    return [group for group in edges if group]
