"""Cells by perturbation: the algorithm against a second writing of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from sample_spaces import CNN, SPACES, seeded
from tiny_home import home as home
from torch import Tensor

from rnnnas.errors import DivergedError
from rnnnas.nas.genotype import Gene, Genotype
from rnnnas.nas.perturbation import Decision, Perturbation
from rnnnas.nas.relax.base import Mixtures
from rnnnas.nas.space import CellSpace, recurrent_space

DOUBLE = torch.float64
Tables = dict[str, Tensor]


def allowed_scores(spaces: Mapping[str, CellSpace], seed: int) -> Tables:
    """Shares of the allowed operations that add up to 1 on an edge."""
    tables = {}
    for name, space in spaces.items():
        shares = torch.rand(len(space.edges), len(space.ops), generator=seeded(seed), dtype=DOUBLE)
        shares = shares * torch.tensor(space.allowed)
        tables[name] = shares / shares.sum(-1, keepdim=True).clamp_min(1e-9)
    return tables


def rough(tables: Tables) -> float:
    """Some loss that is not linear in the weights, and in which all of them meet."""
    flat = torch.cat([table.reshape(-1) for table in tables.values()])
    mix = torch.randn(20, len(flat), generator=seeded(7), dtype=DOUBLE)
    return float((mix @ flat).tanh().square().sum())


def by_hand(spaces: Mapping[str, CellSpace], tables: Tables) -> Genotype:
    """Algorithm 1 of the paper on `rough`, edges and nodes as they are numbered, no tuning."""
    now = {name: table.clone() for name, table in tables.items()}

    def without(name: str, edge: int, op: int | None) -> float:
        tried = {n: t.clone() for n, t in now.items()}
        if op is None:
            tried[name][edge] = 0
        else:
            tried[name][edge, op] = 0
        return rough(tried)

    picked: dict[tuple[str, int], str] = {}
    for name, space in spaces.items():
        for edge in range(len(space.edges)):
            able = [o for o, op in enumerate(space.ops) if space.allowed[edge][o] and op != "none"]
            if able:
                best = max(able, key=lambda o: without(name, edge, o))  # noqa: B023
                whole = float(now[name][edge].sum())
                now[name][edge] = 0
                now[name][edge, best] = whole
                picked[name, edge] = space.ops[best]
    cells = {}
    for name, space in spaces.items():
        nodes = []
        for node in range(space.nodes):
            rows = [e for e in space.rows(node) if (name, e) in picked]
            ranked = sorted(rows, key=lambda e: -without(name, e, None))  # noqa: B023
            for edge in ranked[space.kept(node) :]:
                now[name][edge] = 0
            genes = [
                Gene(picked[name, e], space.edges[e][0]) for e in sorted(ranked[: space.kept(node)])
            ]
            nodes.append(tuple(genes))
        cells[name] = space.cell(nodes)
    return Genotype(cells=cells)


def weights_of(mixtures: Mixtures) -> Tables:
    return {name: m.weights for name, m in mixtures.items()}


def settle(plan: Perturbation, loss: Any = rough) -> Genotype:
    while not plan.done:
        while plan.open:
            plan.tell(loss(weights_of(plan.ask())))
        plan.decide()
    return plan.genotype()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", SPACES)
def test_the_algorithm_written_twice(kind: str, seed: int) -> None:
    spaces = SPACES[kind]
    tables = allowed_scores(spaces, seed)
    plan = Perturbation(spaces, tables, "node", seed)
    assert plan.tried == 0
    found = settle(plan)
    assert found == by_hand(spaces, tables)
    assert plan.tried == plan.total
    by_score = {n: space.discretise(tables[n].tolist()) for n, space in spaces.items()}
    if kind != "one node":
        assert found.cells != by_score, "the case must be one in which scores say something else"
    for name, space in spaces.items():
        for i, node in enumerate(found.cells[name].nodes):
            assert len(node) == len({gene.source for gene in node}) == space.kept(i)
            for op, source in node:
                assert op != "none" and space.allowed[space.rows(i)[source]][space.ops.index(op)]


@pytest.mark.parametrize("spaces", [{"r": recurrent_space(2)}, {"n": CNN, "e": CNN}])
def test_what_hurts_most_is_kept_though_its_score_is_small(spaces: dict[str, CellSpace]) -> None:
    """A loss in which one operation and `keep` edges of every node matter; random order."""
    tables, wanted = {}, {}
    for name, space in spaces.items():
        wanted[name] = {e: 1 + (e + 1) % (len(space.ops) - 1) for e in range(len(space.edges))}
        tables[name] = torch.full((len(space.edges), len(space.ops)), 0.3, dtype=DOUBLE)
        for edge, op in wanted[name].items():
            tables[name][edge, op] = 0.05  # the smallest of its edge

    def loss(weights: Tables) -> float:
        total = 0.0
        for name, space in spaces.items():
            for (edge, op), (source, _) in zip(wanted[name].items(), space.edges, strict=True):
                # Later sources matter more, and an edge at all only by its wanted operation.
                total += (1 + source) * math.exp(-float(weights[name][edge, op]))
        return total

    for seed in range(3):
        cell = settle(Perturbation(spaces, tables, "random", seed), loss).cells
        for name, space in spaces.items():
            for i, node in enumerate(cell[name].nodes):
                last = range(space.inputs + i)[-space.keep :]
                assert [gene.source for gene in node] == list(last)
                for op, source in node:
                    assert op == space.ops[wanted[name][space.rows(i)[source]]]


def test_a_masked_operation_has_no_weight_and_no_path() -> None:
    space = recurrent_space(2)
    table = allowed_scores({"r": space}, 1)["r"]
    plan = Perturbation({"r": space}, {"r": table}, "node", 0)
    masked = plan.ask()["r"]
    expected = table.clone()
    expected[0, 1] = 0
    assert torch.equal(masked.weights, expected)
    real = [(e, o) for e in range(3) for o in range(1, 5)]
    assert masked.paths == tuple(real[1:])
    for loss in (1.0, 3.0, 2.0, 0.0):
        plan.tell(loss)
    assert not plan.open and plan.decide().kept == (2,)  # relu
    decided = plan.mixtures()["r"]
    expected = table.clone()
    expected[0] = torch.tensor([0, 0, 1, 0, 0])
    torch.testing.assert_close(decided.weights, expected)
    assert decided.paths == ((0, 2), *real[4:])
    while plan.plan[len(plan.kept)].kind == "operation":
        while plan.open:
            plan.tell(0.0)
        assert plan.decide().kept == (1,)  # a tie: the first, tanh
    assert plan.plan[-1] == Decision("r", "edges", 1)
    without = plan.ask()["r"]
    assert without.paths == ((0, 2), (2, 1)) and float(without.weights[1].abs().sum()) == 0
    plan.tell(1.0)
    plan.tell(2.0)
    assert plan.decide().kept == (2,) and plan.done
    assert plan.genotype().cells["r"].nodes == ((Gene("relu", 0),), (Gene("tanh", 1),))


def test_orders_and_what_is_no_decision() -> None:
    spaces = SPACES["two cells"]
    tables = allowed_scores(spaces, 0)
    plans = [Perturbation(spaces, tables, "random", seed).plan for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]
    for plan in (plans[0], Perturbation(spaces, tables, "node", 1).plan):
        kinds = [decision.kind for decision in plan]
        assert kinds == sorted(kinds, reverse=True), "operations come first"
        assert set(plan) == set(plans[2]) and len(set(plan)) == len(plan)
    assert Decision("normal", "edges", 0) not in plans[0]  # it has two edges, and keeps two
    single = recurrent_space(1).prune([[1, 0, 1, 0, 0]])  # type: ignore[list-item]
    lone = Perturbation({"r": single}, {"r": torch.tensor([[0.9, 0, 0.1, 0, 0]])}, "node", 0)
    assert lone.total == 0 and not lone.open
    assert lone.decide().losses == () and lone.genotype().cells["r"].nodes == ((Gene("relu", 0),),)


def test_lost_losses_hurt_most_and_all_lost_is_divergence() -> None:
    space = recurrent_space(1)
    plan = Perturbation({"r": space}, allowed_scores({"r": space}, 0), "node", 0)
    for loss in (5.0, math.nan, 7.0, 6.0):
        plan.tell(loss)
    assert plan.decide().kept == (2,)
    again = Perturbation({"r": space}, allowed_scores({"r": space}, 0), "node", 0)
    for _ in range(4):
        again.tell(math.inf)
    with pytest.raises(DivergedError, match="whatever was masked"):
        again.decide()
