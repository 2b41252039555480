"""No alphas at all: every mixture is one uniform cell (Li and Talwalkar 2019, section 3.2)."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from rnnnas.nas.relax.base import Alphas, Mixtures, Relaxation, Spaces, Step
from rnnnas.nas.relax.policy import cell_mixture
from rnnnas.nas.space import CellSpace


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform(Relaxation):
    """A cell a window, drawn by `CellSpace.sample`: uniform over the cells a search may find.

    The paper switches batch normalisation off in this search; ours stays on: with it a node's
    size does not depend on which cell was drawn, and the other methods' networks have it too.
    """

    def init(self, spaces: Spaces, generator: torch.Generator) -> dict[str, Tensor]:
        return {}

    def mix(
        self,
        alphas: Alphas,
        spaces: Spaces,
        progress: float,
        generator: torch.Generator,
        step: Step = "weights",
    ) -> Mixtures:
        seed = torch.randint(2**62, (), generator=generator, device=generator.device)
        draws = random.Random(int(seed))
        like = torch.zeros((), device=generator.device)
        return {
            name: cell_mixture(space, space.sample(draws), like) for name, space in spaces.items()
        }

    def scores(self, alphas: Alphas, spaces: Spaces) -> dict[str, Tensor]:
        return {name: _shares(space) for name, space in spaces.items()}


def _shares(space: CellSpace) -> Tensor:
    """Each edge's weight spread over the operations that a cell may use on it. (E, O)."""
    table = torch.zeros(len(space.edges), len(space.ops))
    for edge in range(len(space.edges)):
        choices = space.choices(edge)
        table[edge, choices] = 1.0 / max(len(choices), 1)
    return table
