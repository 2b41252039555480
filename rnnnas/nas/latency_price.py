"""What a cell costs to run: predicted from a table, and expected under a mixture.

Legend: N nodes, S states (inputs and nodes), E edges, O operations, M groups. All operations of
the recurrent cell take one product of the same size, so that what varies is which nodes share a
predecessor (they are one wider product), the activations, and the depth.

A mixture's weights w (E, O) stand for a distribution over cells: node i keeps operation o of its
edge e with probability p_eo = w_eo / Σ w over the node's edges and operations but `none`, apart
from all other nodes (times `keep`, where a node keeps several: expected numbers). A relaxation
that normalises every edge by itself, as DARTS does, tells edges apart by the share of `none`
alone: there p is flatter than what is derived from it, and a price has no hold on edges whose
`none` a stage has pruned.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from rnnnas.errors import UsageError
from rnnnas.nas.genotype import CellGene
from rnnnas.nas.relax.base import Mixtures, Spaces
from rnnnas.nas.space import NONE, CellSpace

MICROSECOND = 1e-6
Form = Literal["add", "mul", "log"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyConfig:
    """The price of latency in what the alphas minimise.

    "add" minimises L + weight (E - ref) / ref, "mul" L (log E / log ref)^weight, with E and ref in
    microseconds (ProxylessNAS, equation 6 and its code's `add#linear` and `mul#log`), "log" L +
    weight log E / log ref (DenseNAS: Fang et al. 2020, with ref as its τ); with logarithms of
    milliseconds, 15 of them, the same weight would pull 3.55 times as hard. A policy's rewards are
    multiplied by (ref / latency)^weight instead, whatever the form (its equation 8).

    weight: how much a slow cell is worse; nats, or an exponent; 0 or more, 0 for no price; none
        unless you ask for fast cells
    form: how the price enters the loss, "add", "mul" or "log"; a sum is read most easily
    ref: the latency that counts as neither fast nor slow; seconds a time step, of images a batch; 0
        or more, 0 for the mean of random cells, or of uniform choices among dense blocks; chance is
        the natural measure
    table: file of latencies that `rnnnas bench latency` writes, or of images a search's
        latency.json; -; a path, "" for the one in its default place, or else one measured when the
        search begins; so that nothing needs to be prepared
    """

    weight: float = 0.0
    form: Form = "add"
    ref: float = 0.0
    table: str = ""

    def __post_init__(self) -> None:
        if self.weight < 0 or self.ref < 0:
            raise UsageError(
                f"latency.weight = {self.weight} and latency.ref = {self.ref} must not be "
                "negative: a positive weight makes slow cells worse"
            )


class Costs(Protocol):
    """What cells of one kind cost, in seconds."""

    @property
    def floor(self) -> float:
        """What all of them cost alike: no cell costs less."""

    def check(self, space: CellSpace) -> None:
        """Raises UsageError where cells of `space` cannot be priced."""

    def of_cell(self, cell: CellGene) -> float:
        """Of a derived cell."""

    def expected(self, weights: Tensor, space: CellSpace) -> Tensor:
        """Of the cells that a mixture (E, O) stands for: a scalar, differentiable in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationCosts:
    """Cells whose operations cost what they cost one by one: their sum (ProxylessNAS, equation 5).

    seconds: of one operation on one edge, by name. fixed: of all else.
    """

    seconds: Mapping[str, float]
    fixed: float = 0.0

    @property
    def floor(self) -> float:
        return self.fixed

    def check(self, space: CellSpace) -> None:
        _check_operations(self.seconds, space)

    def of_cell(self, cell: CellGene) -> float:
        return self.fixed + sum(self.seconds[gene.op] for node in cell.nodes for gene in node)

    def expected(self, weights: Tensor, space: CellSpace) -> Tensor:
        price = weights.new_tensor([self.seconds.get(op, 0.0) for op in space.ops])
        return self.fixed + (choice_shares(weights, space) * price).sum()


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeCosts:
    """Cells whose operations cost more on some edges than on others: their sum, as above.

    space: of the cells. seconds: (E, O), of an operation on an edge, wherever the network has such
    a cell, all together. fixed: of all else.
    """

    space: CellSpace
    seconds: tuple[tuple[float, ...], ...]
    fixed: float = 0.0

    @property
    def floor(self) -> float:
        return self.fixed

    def check(self, space: CellSpace) -> None:
        if (space.edges, space.ops, space.keep) != (
            self.space.edges, self.space.ops, self.space.keep,
        ):  # fmt: skip
            raise UsageError("this table of latencies is for cells with other edges or operations")

    def of_cell(self, cell: CellGene) -> float:
        rows, column = self.space.rows, self.space.ops.index
        return self.fixed + sum(
            self.seconds[rows(node)[gene.source]][column(gene.op)]
            for node, genes in enumerate(cell.nodes)
            for gene in genes
        )

    def expected(self, weights: Tensor, space: CellSpace) -> Tensor:
        shares = choice_shares(weights, space)
        return self.fixed + (shares * weights.new_tensor(self.seconds)).sum()


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrentCosts:
    """One time step of the recurrent cell as `lm/fast/derived.py` computes it, in seconds.

    first: of s0. products: of one batched product for 1, 2, ... N nodes that share a predecessor.
    rests: of all else of such a group but the activations (mask, gates, interpolation, output).
    activations: by operation, of 1 to N nodes together. level: what each level of the critical
    path adds by itself; 0 where groups run one after the other, as in the fast cell.

    A cell costs first + level · depth + Σ_j (products + rests)[n_j] + Σ_jo activations[o][n_jo],
    where n_j nodes take state j and n_jo of them by operation o.
    """

    first: float
    products: tuple[float, ...]
    rests: tuple[float, ...]
    activations: Mapping[str, tuple[float, ...]]
    level: float = 0.0

    def __post_init__(self) -> None:
        lists = [self.products, self.rests, *self.activations.values()]
        if not self.products or any(len(values) != len(self.products) for values in lists):
            raise UsageError("a table of latencies needs one value for each number of nodes")
        values = [self.first, self.level, *(value for row in lists for value in row)]
        if not all(math.isfinite(value) and value >= 0 for value in values):
            raise UsageError("a table of latencies holds a value that is no number of seconds")

    @property
    def floor(self) -> float:
        return self.first

    def check(self, space: CellSpace) -> None:
        if space.keep != 1:
            raise UsageError("this table of latencies is for recurrent cells, one edge a node")
        if space.nodes > len(self.products):
            raise UsageError(
                f"the table of latencies ends at {len(self.products)} nodes, and the cell has "
                f"{space.nodes}",
                f"measure one: rnnnas bench latency --set model.nodes={space.nodes}",
            )
        _check_operations(self.activations, space)

    def of_cell(self, cell: CellGene) -> float:
        depth = [0]
        for ((_, source),) in cell.nodes:
            depth.append(depth[source] + 1)
        groups = Counter(source for ((_, source),) in cell.nodes)
        runs = Counter((source, op) for ((op, source),) in cell.nodes)
        total = self.first + self.level * max(depth)
        total += sum(self.products[n - 1] + self.rests[n - 1] for n in groups.values())
        return total + sum(self.activations[op][n - 1] for (_, op), n in runs.items())

    def expected(self, weights: Tensor, space: CellSpace) -> Tensor:
        """The sums over groups are exact: how many nodes take state j is a sum of independent
        draws, whose distribution is formed node by node. The depth is that of `expected_depths`.
        """
        shares = choice_shares(weights, space)
        priced = [o for o, op in enumerate(space.ops) if op != NONE]
        states = space.inputs + space.nodes
        # taken[i, j, o]: the probability that node i takes state j by operation o.
        rows = [
            torch.nn.functional.pad(shares[r.start : r.stop], (0, 0, 0, states - len(r)))
            for r in map(space.rows, range(space.nodes))
        ]
        taken = torch.stack(rows)[:, :, priced]  # (N, S, O - 1)
        parts = torch.cat([taken.sum(-1, keepdim=True), taken], -1)  # the group, then its runs
        chances = count_distribution(parts.flatten(1))  # (M, N + 1)
        whole = [p + r for p, r in zip(self.products, self.rests, strict=True)]
        prices = [whole, *(self.activations[space.ops[o]] for o in priced)]
        table = weights.new_tensor([[0.0, *row[: space.nodes]] for row in prices])
        total = self.first + (chances * table.repeat(states, 1)).sum()
        if self.level:
            total = total + self.level * expected_depths(taken.sum(-1)).amax()
        return total


def _check_operations(known: Mapping[str, object], space: CellSpace) -> None:
    missing = [op for op in space.ops if op != NONE and op not in known]
    if missing:
        raise UsageError(f"the table of latencies has no operation {missing[0]!r}")


def choice_shares(weights: Tensor, space: CellSpace) -> Tensor:
    """p (E, O) of the module's head; `none` and what is not allowed have none.

    A node without any weight, which only sampling with `none` gives, costs nothing.
    """
    able = [[o in space.choices(e) for o in range(len(space.ops))] for e in range(len(space.edges))]
    kept = weights * torch.tensor(able, device=weights.device)
    nodes = []
    for node in range(space.nodes):
        rows = space.rows(node)
        part = kept[rows.start : rows.stop]
        total = part.sum()
        nodes.append(part * (space.keep / torch.where(total > 0, total, 1.0)))
    return torch.cat(nodes)


def count_distribution(chances: Tensor) -> Tensor:
    """How many of N independent events happen, M times over. (N, M) → (M, N + 1)."""
    count, groups = chances.shape
    found = chances.new_zeros(groups, count + 1)
    found[:, 0] = 1.0
    for happens in chances.unsqueeze(-1):  # (M, 1)
        one_more = torch.nn.functional.pad(found[:, :-1], (1, 0))
        found = found * (1 - happens) + one_more * happens
    return found


def expected_depths(taken: Tensor) -> Tensor:
    """d_i = 1 + Σ_j p_ij d_j, the expected depth of every node. taken (N, S) → (N,).

    Each is exact. A cell's critical path is the largest depth, whose expectation is at least the
    largest of these; for a one-hot mixture they are equal.
    """
    inputs = taken.shape[1] - taken.shape[0]
    depths = [taken.new_zeros(())] * inputs
    for row in taken:
        depths.append(1 + (row[: len(depths)] * torch.stack(depths)).sum())
    return torch.stack(depths[inputs:])


def mean_cost(costs: Costs, space: CellSpace) -> float:
    """The expected seconds of cells drawn by `CellSpace.sample`."""
    weights = torch.zeros(len(space.edges), len(space.ops), dtype=torch.float64)
    for edge in range(len(space.edges)):
        for op in space.choices(edge):
            weights[edge, op] = 1 / len(space.choices(edge))
    return float(costs.expected(weights, space))


def check_form(form: Form, ref: float, floor: float) -> None:
    """Raises UsageError where a latency may lie below a microsecond, where logarithms are negative.

    ref, floor: seconds; no network costs less than `floor`.
    """
    if form != "add" and min(ref, floor) <= MICROSECOND:
        raise UsageError(
            f"latency.form = {form!r} takes logarithms of microseconds: cells of less than one "
            "have no price in it",
            "take --set latency.form=add",
        )


def priced(
    value: Tensor,
    expected: Tensor,
    weight: float,
    form: Form,
    ref: float,
    mean: Callable[[Tensor], Tensor] = lambda value: value,
) -> Tensor:
    """What the alphas minimise: the loss `value` under the price `LatencyConfig` describes.

    Args:
        expected: E in seconds. mean: of a value over the processes that share a run.
    """
    expected = expected.to(value.dtype)
    if form == "add":
        return value + weight * (expected - ref) / ref
    logs = torch.log(expected / MICROSECOND) / math.log(ref / MICROSECOND)
    if form == "log":
        return value + weight * logs
    factor = logs**weight
    # As a product, but where processes share a batch the factor's gradient is that of the whole
    # batch's loss, as it is on one process.
    return value * factor.detach() + mean(value.detach()) * (factor - factor.detach())


class Price(Protocol):
    """What latency adds to the alphas' objective: an `architect.Outer`."""

    def expected(self, mixtures: Mixtures) -> Tensor:
        """Expected seconds, a scalar, differentiable in the mixtures' weights."""

    def of_cells(self, cells: Mapping[str, CellGene]) -> float:
        """Predicted seconds of what was derived."""

    def __call__(self, value: Tensor, mixtures: Mixtures) -> Tensor:
        """The loss `value` with its price."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyPrice:
    """What latency adds to the alphas' objective: an `architect.Outer`, and a policy's factor.

    costs: by cell name. ref: seconds. mean: of a value over the processes that share a run.
    """

    costs: Mapping[str, Costs]
    spaces: Spaces
    weight: float
    form: Form
    ref: float
    mean: Callable[[Tensor], Tensor] = lambda value: value

    @classmethod
    def of(
        cls,
        config: LatencyConfig,
        costs: Mapping[str, Costs],
        spaces: Spaces,
        mean: Callable[[Tensor], Tensor] = lambda value: value,
    ) -> LatencyPrice:
        """The price that the settings ask for.

        Raises:
            UsageError: where the costs do not fit the spaces, or, for "mul" and "log", a latency
                may lie below a microsecond, where logarithms are negative.
        """
        for name, space in spaces.items():
            costs[name].check(space)
        ref = config.ref or sum(mean_cost(costs[name], space) for name, space in spaces.items())
        floor = sum(costs[name].floor for name in spaces)
        check_form(config.form, ref, floor)
        return cls(
            costs=costs, spaces=spaces, weight=config.weight, form=config.form, ref=ref, mean=mean
        )

    def expected(self, mixtures: Mixtures) -> Tensor:
        """Expected seconds of all cells, a scalar, differentiable in the mixtures' weights."""
        parts = [
            self.costs[name].expected(mixtures[name].weights, space)
            for name, space in self.spaces.items()
        ]
        return torch.stack(parts).sum()

    def of_cells(self, cells: Mapping[str, CellGene]) -> float:
        """Predicted seconds of derived cells."""
        return sum(self.costs[name].of_cell(cells[name]) for name in self.spaces)

    def __call__(self, value: Tensor, mixtures: Mixtures) -> Tensor:
        expected = self.expected(mixtures)
        return priced(value, expected, self.weight, self.form, self.ref, self.mean)

    def reward_factor(self, mixtures: Mixtures) -> float:
        """(ref / latency)^weight of drawn cells: a policy's reward is multiplied by it."""
        with torch.no_grad():
            return math.pow(self.ref / float(self.expected(mixtures)), self.weight)
