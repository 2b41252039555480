"""Relaxations that sample whole cells: what a policy is, and a cell as a mixture."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rnnnas.errors import UsageError
from rnnnas.nas.genotype import CellGene, Genotype
from rnnnas.nas.relax.base import Alphas, Mixture, Mixtures, Relaxation, Spaces, Step
from rnnnas.nas.space import NONE, CellSpace

# Chooses one of the entries of a vector of log-probabilities.
Pick = Callable[[Tensor], int]


class Draw(NamedTuple):
    """Cells drawn from a policy.

    mixtures: one-hot and without gradient. log_probability: of all choices together, and
    entropy: the sum of the entropies of the distributions they were drawn from; both scalars
    in nats, differentiable in the alphas.
    """

    mixtures: Mixtures
    log_probability: Tensor
    entropy: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy(Relaxation):
    """A distribution over cells that is moved by REINFORCE (`nas.reinforce`).

    samples: cells drawn for one update; cells; 1 or more; 1 as in ENAS
    reward: c of the reward c / perplexity; -; above 0; 80 as in ENAS
    decay: share of the old baseline that stays when a new mean reward comes in; share; 0 to 1;
        0.999 as in ENAS
    entropy: weight of the policy's entropy; -; 0 or more; none unless a method asks for it
    """

    samples: int = 1
    reward: float = 80.0
    decay: float = 0.999
    entropy: float = 0.0

    def __post_init__(self) -> None:
        if self.samples < 1 or not self.reward > 0:
            raise UsageError(
                f"relax.samples = {self.samples} must be at least 1, and "
                f"relax.reward = {self.reward} positive"
            )
        if not 0 <= self.decay <= 1 or self.entropy < 0:
            raise UsageError(
                f"relax.decay = {self.decay} must lie in [0, 1], and "
                f"relax.entropy = {self.entropy} must not be negative"
            )

    @abstractmethod
    def roll(self, alphas: Alphas, spaces: Spaces, pick: Pick) -> Draw:
        """Make every choice of every cell, in a fixed order, by `pick`."""

    def sample(
        self, alphas: Alphas, spaces: Spaces, progress: float, generator: torch.Generator
    ) -> Draw:
        """Cells drawn from the policy."""

        def drawn(log_probabilities: Tensor) -> int:
            shares = log_probabilities.detach().exp()
            return int(torch.multinomial(shares, 1, generator=generator))

        return self.roll(alphas, spaces, drawn)

    def mix(
        self,
        alphas: Alphas,
        spaces: Spaces,
        progress: float,
        generator: torch.Generator,
        step: Step = "weights",
    ) -> Mixtures:
        with torch.no_grad():
            return self.sample(alphas, spaces, progress, generator).mixtures


class Tally:
    """Sums up the choices of one draw."""

    def __init__(self, like: Tensor, pick: Pick) -> None:
        self.log_probability = like.new_zeros(())
        self.entropy = like.new_zeros(())
        self._pick = pick

    def choose(self, logits: Tensor) -> int:
        """One of the entries of `logits` (n,), by the softmax over them."""
        logs = logits.log_softmax(-1)
        index = self._pick(logs)
        self.log_probability = self.log_probability + logs[index]
        self.entropy = self.entropy - (logs.exp() * logs).sum()
        return index


def one_hot(space: CellSpace, paths: list[tuple[int, int]], like: Tensor) -> Mixture:
    """The mixture with weight 1 on each (edge, operation) of `paths` and 0 elsewhere.

    `none` adds nothing: it takes the weight of its edge and is not computed. Of a node on whose
    edges there is nothing else it stays among the mixture's paths, which name every node.
    """
    weights = like.new_zeros(len(space.edges), len(space.ops))
    for edge, op in paths:
        weights[edge, op] = 1.0
    computed = [(edge, op) for edge, op in paths if space.ops[op] != NONE]
    for node in range(space.nodes):
        own = set(space.rows(node))
        if own.isdisjoint(edge for edge, _ in computed):
            computed += [(edge, op) for edge, op in paths if edge in own]
    return Mixture(weights, tuple(sorted(computed)))


def cell_mixture(space: CellSpace, cell: CellGene, like: Tensor) -> Mixture:
    """The mixture that computes `cell` and nothing else."""
    paths = [
        (space.rows(node)[gene.source], space.ops.index(gene.op))
        for node, genes in enumerate(cell.nodes)
        for gene in genes
    ]
    return one_hot(space, paths, like)


def mixtures_of(genotype: Genotype, spaces: Spaces, like: Tensor) -> Mixtures:
    """The mixtures under which a network that is searched computes `genotype` and nothing else.

    Args:
        like: gives the dtype and the device.
    """
    return {name: cell_mixture(space, genotype.cells[name], like) for name, space in spaces.items()}
