"""Black-box search: strategies that propose a cell and are told its loss. Needs no torch.

A strategy's state is the history of what it was told: every draw depends on the seed and on the
number of cells told so far alone, so that asking twice gives the same cell, before and after a
resume.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, final

from rnnnas.errors import UsageError
from rnnnas.nas.genotype import Gene, Genotype
from rnnnas.nas.space import CellSpace

Spaces = Mapping[str, CellSpace]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlackboxConfig:
    """How cells are tried one by one, and how much each may cost.

    By default the scores of all cells together cost no more than a forward pass of the training.

    cells: how many are tried; cells; 0 or more, 0 for as many as the method says; each method knows
        its own
    windows: weight steps that a cell trained from scratch gets; windows; 0 or more, 0 for the
        search's own number shared out evenly; methods then cost the same
    targets: a cell is scored on the first so many targets of the alphas' text, or on all of it
        where it is shorter; tokens; 0 or more, 0 for as many in all as the search trains on, a
        window at least; methods then cost the same
    weights: of an evolution, whether every cell is trained from "scratch", or all have "shared"
        weights, trained under uniformly drawn cells before; weights of a cell's own tell cells
        apart
    population: P of regularised evolution; cells; 1 or more; small, since few cells are tried
    sample: S of regularised evolution, cells of which the best has a child; cells; 1 or more;
        small, as the population is
    budget: what all trainings of a race by halving cost together; full trainings of `windows`
        weight steps each; 2 or more; the number of cells follows
    rung: weight steps of a race's first rung, at least; steps; 1 or more; below, the train loss
        says little of a cell
    draws: of a race's first cells three in four are each the best, by structure, of so many that
        are drawn at random; cells; 1 or more, 1 for uniform draws alone; with 4 they are ahead of
        uniform ones before any training
    """

    cells: int = 0
    windows: int = 0
    targets: int = 0
    weights: Literal["scratch", "shared"] = "scratch"
    population: int = 8
    sample: int = 3
    budget: float = 16.0
    rung: int = 100
    draws: int = 4

    def __post_init__(self) -> None:
        lows = {"cells": 0, "windows": 0, "targets": 0, "population": 1, "sample": 1}
        lows |= {"budget": 2, "rung": 1, "draws": 1}
        for name, low in lows.items():
            if getattr(self, name) < low:
                raise UsageError(f"blackbox.{name} = {getattr(self, name)} must be at least {low}")


class Scored(NamedTuple):
    """A cell that was tried. loss: mean nats a target; infinite where its training diverged."""

    genotype: Genotype
    loss: float


class Strategy(ABC):
    """Proposes `total` cells, one after the other; lower losses are better.

    Args:
        seed: decides every draw. total: cells to try.
    """

    def __init__(self, spaces: Spaces, seed: int, total: int) -> None:
        self.spaces = spaces
        self.seed = seed
        self.total = total
        self.most: int | None = None  # cells that there are, where none comes twice
        self.history: list[Scored] = []

    @property
    def done(self) -> bool:
        """Whether all cells are tried."""
        return len(self.history) >= self.total

    @property
    def best(self) -> Scored:
        """The cell of the lowest loss, the first of equals.

        Raises:
            ValueError: before anything was told.
        """
        return min(self.history, key=lambda scored: scored.loss)

    @abstractmethod
    def ask(self) -> Genotype:
        """The cell to try next; the same until `tell`."""

    def tell(self, genotype: Genotype, loss: float) -> None:
        """Note the loss of the cell that `ask` gave; one that is no number counts as infinite."""
        self.history.append(Scored(genotype, math.inf if math.isnan(loss) else loss))

    def state(self) -> list[Any]:
        """The history as plain values; the inverse is `restore`."""
        return [[scored.genotype.to_plain(), scored.loss] for scored in self.history]

    def restore(self, state: list[Any]) -> None:
        """Take over what `state` gave."""
        self.history = [Scored(Genotype.from_plain(plain), loss) for plain, loss in state]

    def _draws(self) -> random.Random:
        return random.Random(f"{self.seed}/{type(self).__name__}/{len(self.history)}")


@final
class RandomCells(Strategy):
    """Uniform cells without replacement: no cell twice, and no more than the space holds."""

    def __init__(self, spaces: Spaces, seed: int, total: int) -> None:
        there = math.prod(space.count() for space in spaces.values())
        super().__init__(spaces, seed, min(total, there))
        self.most = there

    def ask(self) -> Genotype:
        draws = self._draws()
        seen = [scored.genotype for scored in self.history]
        while (drawn := uniform(self.spaces, draws)) in seen:
            pass
        return drawn


@final
class Evolution(Strategy):
    """Regularised evolution (Real et al. 2019, algorithm 1).

    The first P cells are uniform. Then the best of S members, drawn from the population with
    replacement, has a child with one gene changed; the child enters and the oldest member leaves,
    however good it is: the population is the last P cells that were told.
    """

    def __init__(
        self, spaces: Spaces, seed: int, total: int, *, population: int, sample: int
    ) -> None:
        super().__init__(spaces, seed, total)
        self.size = population
        self.sample = sample

    @property
    def population(self) -> list[Scored]:
        """The members that are alive, the oldest first."""
        return self.history[-self.size :]

    def ask(self) -> Genotype:
        draws = self._draws()
        if len(self.history) < self.size:
            return uniform(self.spaces, draws)
        tournament = draws.choices(self.population, k=self.sample)
        parent = min(tournament, key=lambda scored: scored.loss)
        return mutated(parent.genotype, self.spaces, draws)


def uniform(spaces: Spaces, draws: random.Random) -> Genotype:
    """A genotype whose every cell is drawn by `CellSpace.sample`."""
    return Genotype(cells={name: space.sample(draws) for name, space in spaces.items()})


def mutated(genotype: Genotype, spaces: Spaces, draws: random.Random) -> Genotype:
    """A genotype of the same spaces that differs in one gene: its operation or its predecessor.

    Which of the two is a fair coin where both can change; then a gene, then the new value, are
    drawn uniformly.

    Raises:
        UsageError: where the spaces leave no gene a choice.
    """
    places = [
        (name, node, slot)
        for name, cell in genotype.cells.items()
        for node, genes in enumerate(cell.nodes)
        for slot in range(len(genes))
    ]
    kinds = [
        [(place, options) for place in places if (options := of(genotype, spaces, place))]
        for of in (_operations, _predecessors)
    ]
    able = [kind for kind in kinds if kind]
    if not able:
        raise UsageError("the search space holds a single cell: there is nothing to mutate")
    (name, node, slot), options = draws.choice(draws.choice(able))
    cell = genotype.cells[name]
    genes = list(cell.nodes[node])
    genes[slot] = draws.choice(options)
    nodes = (*cell.nodes[:node], tuple(genes), *cell.nodes[node + 1 :])
    return Genotype(cells={**genotype.cells, name: spaces[name].cell(nodes)})


def _operations(genotype: Genotype, spaces: Spaces, place: tuple[str, int, int]) -> list[Gene]:
    """The gene at `place` with every other operation that its edge may use."""
    name, node, slot = place
    space, gene = spaces[name], genotype.cells[name].nodes[node][slot]
    others = (space.ops[o] for o in space.choices(space.rows(node)[gene.source]))
    return [Gene(op, gene.source) for op in others if op != gene.op]


def _predecessors(genotype: Genotype, spaces: Spaces, place: tuple[str, int, int]) -> list[Gene]:
    """The gene at `place` from every state that the node does not use and may take it from."""
    name, node, slot = place
    space, genes = spaces[name], genotype.cells[name].nodes[node]
    op = space.ops.index(genes[slot].op)
    used = {gene.source for gene in genes}
    return [
        Gene(genes[slot].op, source)
        for source, row in enumerate(space.rows(node))
        if source not in used and op in space.choices(row)
    ]
