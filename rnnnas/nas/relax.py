"""Relaxations: how alphas become a mixture of operations, and how a cell is read off them.

Legend: E edges, O operations. A relaxation leaks into neither networks, optimiser nor loop: a
network sees a `Mixture`, computed once a forward pass and never per time step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rnnnas.errors import UsageError, nearest
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.space import CellSpace

Spaces = Mapping[str, CellSpace]
Alphas = Mapping[str, Tensor]

INITIAL_SCALE = 1e-3  # DARTS: alphas start at 1e-3 * N(0, 1), so that no operation is ahead


class Mixture(NamedTuple):
    """What the edges of a cell do.

    weights: (E, O), the weight of each operation on each edge.
    paths: the (edge, operation) pairs that are computed, in rising order, or None for all. A
    network skips the others whatever their weight, products and all; no gradient reaches them.
    """

    weights: Tensor
    paths: tuple[tuple[int, int], ...] | None = None


class Relaxation(Protocol):
    """A method of turning alphas into mixtures; small, frozen, and without state of its own."""

    def init(self, spaces: Spaces, generator: torch.Generator) -> dict[str, Tensor]:
        """Fresh parameters, by name, on the generator's device; leaves that require gradients."""

    def mix(
        self, alphas: Alphas, spaces: Spaces, progress: float, generator: torch.Generator
    ) -> dict[str, Mixture]:
        """The mixture of every cell, differentiable in `alphas`; may sample.

        Args:
            progress: share of the search that is done, in [0, 1]; schedules depend on it alone.
        """

    def scores(self, alphas: Alphas, spaces: Spaces) -> dict[str, Tensor]:
        """Scores (E, O) to derive each cell by; deterministic."""


class Darts:
    """Softmax over the allowed operations of each edge (DARTS, equation 2)."""

    def init(self, spaces: Spaces, generator: torch.Generator) -> dict[str, Tensor]:
        return {
            name: (
                INITIAL_SCALE
                * torch.randn(
                    len(space.edges), len(space.ops), generator=generator, device=generator.device
                )
            ).requires_grad_()
            for name, space in spaces.items()
        }

    def mix(
        self, alphas: Alphas, spaces: Spaces, progress: float, generator: torch.Generator
    ) -> dict[str, Mixture]:
        return {name: Mixture(weights) for name, weights in self.scores(alphas, spaces).items()}

    def scores(self, alphas: Alphas, spaces: Spaces) -> dict[str, Tensor]:
        return {name: _allowed_softmax(alphas[name], space) for name, space in spaces.items()}


def _allowed_softmax(alphas: Tensor, space: CellSpace) -> Tensor:
    """Softmax over each row's allowed operations; exactly zero elsewhere. (E, O)."""
    if all(all(row) for row in space.allowed):
        return alphas.softmax(-1)
    allowed = torch.tensor(space.allowed, device=alphas.device)
    # A row without any allowed operation would be 0/0: it keeps zeros.
    masked = alphas.masked_fill(~allowed, -torch.inf)
    masked = masked.masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    return masked.softmax(-1) * allowed


METHODS: dict[str, Relaxation] = {"darts": Darts(), "darts-1st": Darts()}


def relaxation(method: str) -> Relaxation:
    """The relaxation of a search method.

    Raises:
        UsageError: where the method is unknown, with the nearest known name.
    """
    if method not in METHODS:
        raise UsageError(
            f"method {method!r} is unknown{nearest(method, list(METHODS))}",
            f"methods: {', '.join(METHODS)}",
        )
    return METHODS[method]


def derive(method: Relaxation, alphas: Alphas, spaces: Spaces) -> Genotype:
    """The genotype that the alphas stand for: `CellSpace.discretise` of the scores."""
    with torch.no_grad():
        scores = method.scores(alphas, spaces)
    cells = {name: space.discretise(scores[name].tolist()) for name, space in spaces.items()}
    return Genotype(cells=cells)
