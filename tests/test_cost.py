"""The price of latency against enumeration, numerical derivatives and its own formulas."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
import torch
from test_architect import TRAIN, VALID, Identity, Quadratic
from test_policy import TINY, Table, seeded, update
from torch import Tensor

from rnnnas.errors import UsageError
from rnnnas.lm.fast.derived import plan
from rnnnas.nas import latency_price
from rnnnas.nas.architect import hypergradient
from rnnnas.nas.genotype import CellGene, Genotype
from rnnnas.nas.latency_price import LatencyConfig, LatencyPrice, OperationCosts, RecurrentCosts
from rnnnas.nas.reinforce import Reinforce
from rnnnas.nas.relax.base import Mixture, Mixtures
from rnnnas.nas.relax.categorical import Categorical
from rnnnas.nas.relax.policy import cell_mixture
from rnnnas.nas.space import RECURRENT_OPS, CellSpace, recurrent_space
from rnnnas.types import InnerStep

DOUBLE = torch.float64
OPS = RECURRENT_OPS[1:]
TWO = CellSpace(inputs=2, nodes=3, ops=("none", "a", "b", "c"), keep=2)
TWO_COSTS = OperationCosts(seconds={"a": 1e-5, "b": 7e-5, "c": 2e-4}, fixed=3e-5)


def costs(nodes: int = 8, level: float = 0.0, seed: int = 0) -> RecurrentCosts:
    """Any table whatever: no row is linear, none like another."""
    rng = random.Random(seed)

    def row() -> tuple[float, ...]:
        return tuple(rng.uniform(1e-5, 1e-4) for _ in range(nodes))

    return RecurrentCosts(
        first=3e-5, products=row(), rests=row(), activations={op: row() for op in OPS}, level=level
    )


def by_the_plan(cell: CellGene, table: RecurrentCosts) -> float:
    """The cost of what the fast cell does, group by group and run by run."""
    total = table.first
    depth = {0: 0}
    for group in plan(cell).groups:
        total += table.products[group.size - 1] + table.rests[group.size - 1]
        for slot in range(group.start, group.start + group.size):
            depth[slot] = depth[group.source] + 1
        for op, start, end in group.runs:
            total += table.activations[op][end - start - 1]
    return total + table.level * max(depth.values())


def weights_of(space: CellSpace, seed: int = 1) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    shape = len(space.edges), len(space.ops)
    return torch.rand(shape, dtype=DOUBLE, generator=draws).requires_grad_()


def every_cell(space: CellSpace) -> list[tuple[CellGene, list[tuple[int, int]]]]:
    """All cells of a space that keeps one edge, with the (edge, operation) of each node."""
    nodes = [
        [(e, o) for e in space.rows(node) for o in space.choices(e)] for node in range(space.nodes)
    ]
    found = []
    for chosen in itertools.product(*nodes):
        words = [f"{space.ops[o]}{space.edges[e][0]}" for e, o in chosen]
        found.append((Genotype.from_text(" ".join(words)).recurrent, list(chosen)))
    return found


@pytest.mark.parametrize("seed", range(12))
def test_a_cell_costs_what_its_plan_takes(seed: int) -> None:
    table = costs(level=2e-5, seed=seed)
    cell = recurrent_space(8).sample(random.Random(seed))
    assert table.of_cell(cell) == pytest.approx(by_the_plan(cell, table), rel=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_one_cell_alone_is_expected_to_cost_what_it_costs(seed: int) -> None:
    space, table = recurrent_space(8), costs(level=2e-5, seed=seed)
    cell = space.sample(random.Random(seed))
    mixture = cell_mixture(space, cell, torch.zeros((), dtype=DOUBLE))
    expected = float(table.expected(mixture.weights, space))
    assert expected == pytest.approx(table.of_cell(cell), rel=1e-12)


PRUNED = recurrent_space(3).prune(
    [[True] * 5, [True, False, True, True, False], [True] * 5,
     [False] * 5, [False, True, True, False, True], [True] * 5]
)  # fmt: skip


@pytest.mark.parametrize("space", [recurrent_space(3), PRUNED], ids=["whole", "pruned"])
def test_the_expectation_is_that_over_all_cells(space: CellSpace) -> None:
    """Each node chooses by itself, by its weights but those of `none`: every cell is counted."""
    table, weights = costs(3), weights_of(space).detach()
    total = chance = 0.0
    for cell, chosen in every_cell(space):
        share = 1.0
        for node, (edge, op) in enumerate(chosen):
            able = [(e, o) for e in space.rows(node) for o in space.choices(e)]
            share *= float(weights[edge, op]) / sum(float(weights[e, o]) for e, o in able)
        chance += share
        total += share * table.of_cell(cell)
    assert chance == pytest.approx(1.0, rel=1e-12)
    assert float(table.expected(weights, space)) == pytest.approx(total, rel=1e-12)


def test_depths_are_expected_exactly_and_the_critical_path_from_below() -> None:
    space, weights = recurrent_space(3), weights_of(recurrent_space(3)).detach()
    level = costs(3, level=1.0)
    shares = latency_price.choice_shares(weights, space)
    mean, longest = [0.0] * 3, 0.0
    for cell, chosen in every_cell(space):
        share = math.prod(float(shares[edge, op]) for edge, op in chosen)
        depth = [0]
        for ((_, source),) in cell.nodes:
            depth.append(depth[source] + 1)
        mean = [m + share * d for m, d in zip(mean, depth[1:], strict=True)]
        longest += share * max(depth)
    taken = torch.zeros(3, 4, dtype=DOUBLE)
    for (source, target), row in zip(space.edges, shares, strict=True):
        taken[target - 1, source] = row.sum()
    assert latency_price.expected_depths(taken).tolist() == pytest.approx(mean, rel=1e-12)
    path = float(level.expected(weights, space) - costs(3).expected(weights, space))
    assert path == pytest.approx(max(mean), rel=1e-9)
    assert path < longest < 1.5 * path  # Jensen: how far it may lie below, here


@pytest.mark.parametrize("level", [0.0, 5e-5])
@pytest.mark.parametrize("kind", ["recurrent", "pruned", "two edges"])
def test_gradients_against_finite_differences(kind: str, level: float) -> None:
    space = {"recurrent": recurrent_space(5), "pruned": PRUNED, "two edges": TWO}[kind]
    table = TWO_COSTS if kind == "two edges" else costs(space.nodes, level=level)
    weights = weights_of(space)
    (gradient,) = torch.autograd.grad(1e4 * table.expected(weights, space), [weights])
    assert float(gradient.abs().sum()) > 0
    for edge in range(len(space.edges)):
        for op in range(len(space.ops)):
            shift = torch.zeros_like(weights)
            shift[edge, op] = 1e-5
            with torch.no_grad():
                up, down = (1e4 * table.expected(weights + s, space) for s in (shift, -shift))
            assert float(gradient[edge, op]) == pytest.approx(float(up - down) / 2e-5, abs=1e-7)
            if not space.allowed[edge][op] or space.ops[op] == "none":
                assert float(gradient[edge, op]) == 0


def test_two_edges_a_node_cost_the_sum_of_what_they_are_expected_to() -> None:
    """Against ProxylessNAS' sum, with expected numbers of edges in the place of probabilities."""
    weights = weights_of(TWO).detach()
    total, row = 3e-5, 0
    for node in range(3):
        rows = range(row, row + 2 + node)
        row += 2 + node
        mass = sum(float(weights[e, o]) for e in rows for o in (1, 2, 3))
        for e in rows:
            for o, op in enumerate(("a", "b", "c"), 1):
                total += 2 * float(weights[e, o]) / mass * TWO_COSTS.seconds[op]
    assert float(TWO_COSTS.expected(weights, TWO)) == pytest.approx(total, rel=1e-12)
    cell = TWO.sample(random.Random(4))
    mixture = cell_mixture(TWO, cell, torch.zeros((), dtype=DOUBLE))
    ops = [gene.op for node in cell.nodes for gene in node]
    assert TWO_COSTS.of_cell(cell) == pytest.approx(
        3e-5 + sum(TWO_COSTS.seconds[op] for op in ops), rel=1e-12
    )
    expected = TWO_COSTS.expected(mixture.weights, TWO)
    assert float(expected) == pytest.approx(TWO_COSTS.of_cell(cell), rel=1e-12)


def test_nothing_drawn_costs_nothing_and_gives_no_gradient() -> None:
    weights = torch.zeros(len(TWO.edges), len(TWO.ops), dtype=DOUBLE)
    weights[:, 0] = 1.0  # `none` everywhere
    weights.requires_grad_()
    expected = TWO_COSTS.expected(weights, TWO)
    assert float(expected.detach()) == 3e-5
    (gradient,) = torch.autograd.grad(expected, [weights])
    assert bool(torch.isfinite(gradient).all()) and float(gradient.abs().max()) < 1e-3


@pytest.mark.parametrize("level", [0.0, 3e-5])
def test_deeper_costs_more(level: float) -> None:
    """From all nodes on s0 to a chain, one node further in each step."""
    row = tuple(1e-5 * (4 + n) for n in range(8))  # wider products cost more, apart far more
    flat = {op: (1e-6,) * 8 for op in OPS}
    table = RecurrentCosts(first=3e-5, products=row, rests=row, activations=flat, level=level)
    seconds = []
    for chained in range(8):
        sources = [min(node, chained) for node in range(8)]
        cell = Genotype.from_text(" ".join(f"relu{s}" for s in sources)).recurrent
        seconds.append(table.of_cell(cell))
    assert seconds == sorted(set(seconds))


def test_count_distribution_against_enumeration() -> None:
    chances = torch.rand(4, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    found = latency_price.count_distribution(chances)
    for m in range(3):
        by_hand = [0.0] * 5
        for happens in itertools.product([0, 1], repeat=4):
            p = [float(chances[i, m]) if h else 1 - float(chances[i, m])
                 for i, h in enumerate(happens)]  # fmt: skip
            by_hand[sum(happens)] += math.prod(p)
        assert found[m].tolist() == pytest.approx(by_hand, rel=1e-12)


def test_the_mean_of_random_cells() -> None:
    for space in (recurrent_space(3), PRUNED):
        table, total = costs(3), 0.0
        for cell, chosen in every_cell(space):
            usable = [sum(bool(space.choices(e)) for e in space.rows(n)) for n in range(3)]
            share = math.prod(
                1 / (usable[n] * len(space.choices(e))) for n, (e, _) in enumerate(chosen)
            )
            total += share * table.of_cell(cell)
        assert latency_price.mean_cost(table, space) == pytest.approx(total, rel=1e-12)


def price(form: str, weight: float = 0.3, ref: float = 4e-4) -> LatencyPrice:
    config = LatencyConfig(weight=weight, form=form, ref=ref)  # type: ignore[arg-type]
    return LatencyPrice.of(config, {"recurrent": costs()}, {"recurrent": recurrent_space()})


@pytest.mark.parametrize("form", ["add", "mul"])
def test_the_forms_against_their_formulas(form: str) -> None:
    weights = weights_of(recurrent_space())
    value = torch.tensor(5.0, dtype=DOUBLE, requires_grad=True)
    given = price(form)(value, {"recurrent": Mixture(weights)})
    gradients = torch.autograd.grad(given, [value, weights])
    latency = costs().expected(weights, recurrent_space())
    if form == "add":
        formula = value + 0.3 * (latency - 4e-4) / 4e-4
    else:
        formula = value * (torch.log(latency * 1e6) / math.log(400.0)) ** 0.3
    torch.testing.assert_close(given, formula, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients, torch.autograd.grad(formula, [value, weights]))


def test_where_processes_share_a_batch_the_gradient_is_that_of_the_whole_loss() -> None:
    """Two processes with losses 4 and 6; the second hand's mean is 5 on both."""
    weights = weights_of(recurrent_space())
    whole = price("mul")(torch.tensor(5.0, dtype=DOUBLE), {"recurrent": Mixture(weights)})
    (wanted,) = torch.autograd.grad(whole, [weights])
    config = LatencyConfig(weight=0.3, form="mul", ref=4e-4)
    for own in (4.0, 6.0):
        mean = lambda value: torch.full_like(value, 5.0)  # noqa: E731
        shared = LatencyPrice.of(
            config, {"recurrent": costs()}, {"recurrent": recurrent_space()}, mean
        )
        given = shared(torch.tensor(own, dtype=DOUBLE), {"recurrent": Mixture(weights)})
        torch.testing.assert_close(torch.autograd.grad(given, [weights])[0], wanted)


class Drawn(Identity):
    """A relaxation that runs one operation, and whose draw carries no gradient for the others."""

    def mix(self, alphas: Any, *_: Any) -> dict[str, Mixture]:
        hard = torch.tensor([[0.0, 1.0, 0.0]], dtype=DOUBLE)
        return {"cell": Mixture(alphas["cell"] * hard, ((0, 1),))}


@pytest.mark.parametrize("order", ["first", "finite", "exact"])
def test_a_price_reaches_all_alphas_through_the_scores(order: Any) -> None:
    """d (L q·α) = q·α dL + L q, with dL as without a price."""
    net, q = Quadratic(7), torch.tensor([0.3, -0.2, 0.5], dtype=DOUBLE)
    draws = torch.Generator().manual_seed(5)
    alphas = {"cell": torch.randn(1, 3, dtype=DOUBLE, generator=draws).requires_grad_()}
    settings: dict[str, Any] = {
        "train": TRAIN, "valid": VALID, "inner": InnerStep(lr=0.3), "order": order,
        "progress": 0.0, "generator": draws,
    }  # fmt: skip
    plain, loss = hypergradient(net, alphas, Drawn(), **settings)
    assert plain["cell"][0, 0] == 0 and plain["cell"][0, 2] == 0

    def outer(value: Tensor, scores: Mixtures) -> Tensor:
        return value * (scores["cell"].weights[0] @ q)

    priced, same = hypergradient(net, alphas, Drawn(), **settings, outer=outer)
    torch.testing.assert_close(same.value, loss.value)
    along = alphas["cell"].detach()[0] @ q
    expected = along * plain["cell"][0] + loss.value * q
    torch.testing.assert_close(priced["cell"][0], expected, rtol=1e-7, atol=1e-9)


def test_without_a_reference_it_is_the_mean_random_cell() -> None:
    assert price("add", ref=0.0).ref == latency_price.mean_cost(costs(), recurrent_space())


def test_a_policy_is_rewarded_by_what_its_cells_cost() -> None:
    space = recurrent_space()
    cell = space.sample(random.Random(3))
    mixture = cell_mixture(space, cell, torch.zeros((), dtype=DOUBLE))
    factor = price("add", weight=0.07).reward_factor({"recurrent": mixture})
    assert factor == pytest.approx((4e-4 / costs().of_cell(cell)) ** 0.07, rel=1e-12)


class Even(Table):
    """A network that every cell serves alike."""

    def __init__(self, space: CellSpace) -> None:
        super().__init__(space)
        self.costs.zero_()


def test_reinforce_multiplies_rewards_by_the_factor() -> None:
    """All cells have one loss; alphas go where the factor is large, and nowhere without one."""

    def likely(faster: float) -> tuple[float, float | None]:
        net = Even(TINY)
        policy = Categorical(samples=4, reward=1.0, decay=0.0)
        alphas = policy.init(net.space, seeded(0))
        adam = torch.optim.Adam(alphas.values(), lr=0.05)

        def factor(mixtures: Mixtures) -> float:
            return faster if float(mixtures["recurrent"].weights[1].sum()) > 0 else 1.0

        reinforce = Reinforce(net, alphas, policy, adam, factor)
        for seed in range(100):
            update(reinforce, seed)
        shares = policy.scores(alphas, net.space)["recurrent"]
        return float(shares[1].detach().sum()), reinforce.baseline  # node 2 takes s0

    chance, baseline = likely(2.0)
    assert chance > 0.9 and baseline is not None and 1.0 <= baseline <= 2.0
    chance, baseline = likely(1.0)
    assert 0.49 < chance < 0.51 and baseline == 1.0


def test_what_cannot_be_priced_is_refused() -> None:
    spaces = {"recurrent": recurrent_space()}
    with pytest.raises(UsageError, match="ends at 5 nodes"):
        LatencyPrice.of(LatencyConfig(weight=1.0), {"recurrent": costs(5)}, spaces)
    fast = RecurrentCosts(first=1e-7, products=(1e-6,) * 8, rests=(1e-6,) * 8,
                          activations={op: (1e-6,) * 8 for op in OPS})  # fmt: skip
    with pytest.raises(UsageError, match="microsecond"):
        LatencyPrice.of(LatencyConfig(weight=1.0, form="mul"), {"recurrent": fast}, spaces)
    assert LatencyPrice.of(LatencyConfig(weight=1.0), {"recurrent": fast}, spaces).ref > 0
    with pytest.raises(UsageError, match="one edge a node"):
        costs().check(TWO)
    with pytest.raises(UsageError, match="no operation 'a'"):
        OperationCosts(seconds={"b": 1.0, "c": 1.0}).check(TWO)
    with pytest.raises(UsageError, match="negative"):
        LatencyConfig(weight=-0.1)
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="no number of seconds"):
            RecurrentCosts(first=bad, products=(1.0,), rests=(1.0,), activations={})
    with pytest.raises(UsageError, match="one value for each"):
        RecurrentCosts(first=1.0, products=(1.0,), rests=(1.0, 2.0), activations={})
