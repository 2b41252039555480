"""The strategies against their definitions: no cell twice, one gene a mutation, ageing."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable

import pytest
from sample_spaces import OPEN

from rnnnas.errors import UsageError
from rnnnas.nas.genotype import Gene, Genotype
from rnnnas.nas.space import CellSpace, recurrent_space
from rnnnas.nas.strategies import BlackboxConfig, Evolution, RandomCells, Strategy, mutated, uniform

CNN = CellSpace(inputs=2, nodes=3, ops=("none", "pool", "skip", "conv"), keep=2)
HALF = recurrent_space(5).prune(
    [[(row + op) % 2 == 0 or op == 1 for op in range(5)] for row in range(15)]
)
SPACES: dict[str, dict[str, CellSpace]] = {
    "recurrent": {"recurrent": recurrent_space()},
    "pruned": {"recurrent": HALF},
    "two cells": {"normal": CNN, "reduce": CNN},
    **OPEN,
}
TINY = {"recurrent": recurrent_space(2)}  # 4 · 8 cells

MAKE: dict[str, Callable[..., Strategy]] = {
    "random": lambda spaces, seed, total: RandomCells(spaces, seed, total),
    "evolution": lambda spaces, seed, total: Evolution(
        spaces, seed, total, population=4, sample=2
    ),
}  # fmt: skip


def genes(genotype: Genotype) -> dict[tuple[str, int, int], Gene]:
    """Every gene by its place."""
    return {
        (name, node, slot): gene
        for name, cell in genotype.cells.items()
        for node, both in enumerate(cell.nodes)
        for slot, gene in enumerate(both)
    }


def distance(one: Genotype, other: Genotype) -> int:
    a, b = genes(one), genes(other)
    assert set(a) == set(b)
    return sum(a[place] != b[place] for place in a)


def check(genotype: Genotype, spaces: dict[str, CellSpace]) -> None:
    """Every gene is one that the space allows, and a node's predecessors differ."""
    for name, space in spaces.items():
        for node, both in enumerate(genotype.cells[name].nodes):
            assert len({gene.source for gene in both}) == len(both) == space.kept(node)
            for op, source in both:
                row = space.edges.index((source, node + space.inputs))
                assert op != "none" and space.allowed[row][space.ops.index(op)]


def cost(genotype: Genotype) -> float:
    """A loss that has one best cell of the recurrent space: 'tanh0 tanh0 ...'."""
    return sum((gene.op != "tanh") + gene.source for gene in genes(genotype).values())


def told(strategy: Strategy, count: int = 10**6) -> list[Genotype]:
    """Ask and tell, at most `count` times; the cells in order."""
    cells = []
    while not strategy.done and len(cells) < count:
        cells.append(strategy.ask())
        strategy.tell(cells[-1], cost(cells[-1]))
    return cells


@pytest.mark.parametrize("kind", MAKE)
def test_a_seed_decides_and_a_history_is_all_there_is_to_restore(kind: str) -> None:
    spaces = SPACES["two cells"]
    whole = told(MAKE[kind](spaces, 1, 12))
    assert len(whole) == 12
    assert told(MAKE[kind](spaces, 1, 12)) == whole != told(MAKE[kind](spaces, 2, 12))
    first = MAKE[kind](spaces, 1, 12)
    told(first, 7)
    assert first.ask() == first.ask() == whole[7]
    again = MAKE[kind](spaces, 1, 12)
    again.restore(first.state())
    assert again.history == first.history and again.best == first.best
    assert told(again) == whole[7:] and again.done


def test_the_best_is_the_first_of_the_lowest_and_no_number_is_the_worst() -> None:
    strategy = RandomCells(TINY, 1, 5)
    cells = []
    for loss in (math.nan, 2.0, 1.0, 1.0, math.inf):
        cells.append(strategy.ask())
        strategy.tell(cells[-1], loss)
    assert strategy.best == (cells[2], 1.0)
    assert strategy.history[0].loss == math.inf


def test_random_cells_never_repeat_and_end_with_the_space() -> None:
    cells = told(RandomCells(TINY, 3, 1000))
    assert len(cells) == TINY["recurrent"].count() == 32
    assert len({str(cell) for cell in cells}) == 32
    for cell in cells:
        check(cell, TINY)


@pytest.mark.parametrize("kind", SPACES)
def test_a_mutation_changes_one_gene_and_stays_in_the_space(kind: str) -> None:
    draws = random.Random(0)
    changed: Counter[str] = Counter()
    for _ in range(300):
        before = uniform(SPACES[kind], draws)
        after = mutated(before, SPACES[kind], draws)
        check(after, SPACES[kind])
        assert distance(before, after) == 1
        a, b = genes(before), genes(after)
        ((old, new),) = [(a[place], b[place]) for place in a if a[place] != b[place]]
        assert (old.op == new.op) != (old.source == new.source)
        changed["operation" if old.source == new.source else "predecessor"] += 1
        for name, space in SPACES[kind].items():
            assert after.cells[name] == space.cell(after.cells[name].nodes)
    if kind != "pruned":  # where an edge has fewer operations the coin may have one side
        assert abs(changed["operation"] - 150) < 4 * math.sqrt(300 / 4)


def test_mutations_reach_every_neighbour_evenly() -> None:
    """From 'tanh0 relu1': 3 + 3 operations share a half, the one predecessor has the other."""
    draws = random.Random(1)
    start = Genotype.from_text("tanh0 relu1")
    counts = Counter(mutated(start, TINY, draws).to_text() for _ in range(2000))
    every = [
        f"{a}0 {b}{j}"
        for a in ("tanh", "relu", "sigmoid", "identity")
        for b in ("tanh", "relu", "sigmoid", "identity")
        for j in (0, 1)
        if (a != "tanh") + ((b, j) != ("relu", 1)) == 1 and (b == "relu" or j == 1)
    ]
    assert set(counts) == set(every) and len(every) == 7
    for text, count in counts.items():
        share = 1 / 2 if text == "tanh0 relu0" else 1 / 12
        assert abs(count - 2000 * share) < 5 * math.sqrt(2000 * share * (1 - share))


def test_a_space_of_one_cell_cannot_be_mutated() -> None:
    single = {"recurrent": CellSpace(inputs=1, nodes=1, ops=("none", "tanh"), keep=1)}
    with pytest.raises(UsageError, match="nothing to mutate"):
        mutated(Genotype.from_text("tanh0"), single, random.Random(0))


def test_evolution_begins_uniformly_and_then_breeds_the_best_that_lives() -> None:
    """A tournament of 200 among 5 has the best of them but once in 10^19."""
    spaces = SPACES["recurrent"]
    strategy = Evolution(spaces, 5, 60, population=5, sample=200)
    alive: list[tuple[float, Genotype]] = []
    for number in range(60):
        child = strategy.ask()
        check(child, spaces)
        if number >= 5:
            parent = min(alive, key=lambda member: member[0])[1]
            assert distance(parent, child) == 1
        # The best by far comes early: it must be forgotten when its time is over.
        loss = -100.0 if number == 2 else cost(child) + number / 100  # no ties
        strategy.tell(child, loss)
        alive.append((loss, child))
        if len(alive) > 5:
            alive.pop(0)  # the oldest, not the worst
        assert [(member.loss, member.genotype) for member in strategy.population] == alive
    assert strategy.best.loss == -100.0, "what has died is still the best of the history"


def test_a_tournament_of_one_breeds_every_member_alike() -> None:
    spaces = SPACES["recurrent"]
    parents: Counter[int] = Counter()
    for seed in range(200):
        strategy = Evolution(spaces, seed, 10, population=4, sample=1)
        members = told(strategy, 4)
        child = strategy.ask()
        parents.update(i for i, member in enumerate(members) if distance(member, child) == 1)
    assert sum(parents.values()) == 200
    assert all(abs(count - 50) < 4 * math.sqrt(200 * 3 / 16) for count in parents.values())


def test_evolution_finds_what_random_search_does_not() -> None:
    spaces = SPACES["recurrent"]
    evolved, drawn = Evolution(spaces, 1, 300, population=20, sample=8), RandomCells(spaces, 1, 300)
    told(evolved)
    told(drawn)
    assert evolved.best.loss <= 3 < drawn.best.loss


def test_settings_out_of_range_are_named() -> None:
    for name in ("cells", "windows", "targets", "population", "sample"):
        with pytest.raises(UsageError, match=f"blackbox.{name} = -1"):
            BlackboxConfig(**{name: -1})  # type: ignore[arg-type]


def test_it_needs_no_torch() -> None:
    code = "import sys, rnnnas.nas.strategies; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
