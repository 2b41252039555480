"""The search space of one cell: its nodes, edges and allowed operations. Needs no torch.

Legend: N nodes, E edges, O operations. `edges` fixes the row order of every (E, O) table.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from rnnnas.errors import UsageError
from rnnnas.nas import operations
from rnnnas.nas.genotype import MEAN, CellGene, Gene
from rnnnas.nas.operations import NONE as NONE
from rnnnas.nas.operations import RECURRENT_OPS as RECURRENT_OPS

Output = Literal["mean", "last", "loose_ends"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CellSpace:
    """All cells that a search may find.

    Node i (0-based) may take any of the `inputs + i` states before it. `keep` edges stay a node
    when a cell is derived, or all where it has fewer. `allowed` is an (E, O) table; without it
    every operation is allowed. join: what a recurrent cell's node takes of its edges, their mean or
    sum. output: what a cell gives: the "mean" of its nodes (of an image cell all of them), the
    "last" node, or the mean of its "loose_ends", which no node takes (ENAS).
    """

    inputs: int
    nodes: int
    ops: tuple[str, ...]
    keep: int
    allowed: tuple[tuple[bool, ...], ...] = ()
    join: str = MEAN
    output: Output = "mean"
    edges: tuple[tuple[int, int], ...] = field(init=False)

    def __post_init__(self) -> None:
        edges = tuple(
            (source, self.inputs + node)
            for node in range(self.nodes)
            for source in range(self.inputs + node)
        )
        object.__setattr__(self, "edges", edges)
        # An image cell tells the number of its inputs by the number of edges that its nodes keep.
        fits = self.keep == 2 if self.inputs == 2 else self.inputs == 1 and self.keep >= 1
        if self.nodes < 1 or not fits:
            raise UsageError(
                f"{self.nodes} nodes that keep {self.keep} edges over {self.inputs} inputs make "
                "no cell: it has one input and keeps at least one edge a node, or two and two"
            )
        if not self.allowed:
            everything = ((True,) * len(self.ops),) * len(edges)
            object.__setattr__(self, "allowed", everything)
        self._check_shape("allowed", self.allowed)
        for node in range(self.nodes):
            usable = [e for e in self.rows(node) if self.choices(e)]
            if len(usable) < self.kept(node):
                raise UsageError(
                    f"node {node + self.inputs} has fewer than {self.kept(node)} edges left"
                )

    def rows(self, node: int) -> range:
        """The rows of node `node` (0-based): one for each state before it, in order."""
        start = node * self.inputs + node * (node - 1) // 2
        return range(start, start + self.inputs + node)

    def kept(self, node: int) -> int:
        """How many edges node `node` (0-based) keeps: `keep`, or all that it has."""
        return min(self.keep, len(self.rows(node)))

    @property
    def labels(self) -> tuple[str, ...]:
        """What the rows of a table are called."""
        return tuple(f"s{source} > s{target}" for source, target in self.edges)

    def _check_shape(self, name: str, table: Sequence[Sequence[object]]) -> None:
        edges, ops = len(self.edges), len(self.ops)
        if len(table) != edges or any(len(row) != ops for row in table):
            raise UsageError(f"{name} must be a table of {edges} x {ops}")

    def choices(self, edge: int) -> list[int]:
        """Operations that a derived cell may use on `edge`: allowed, and not `none`."""
        return [o for o, op in enumerate(self.ops) if self.allowed[edge][o] and op != NONE]

    @property
    def concat(self) -> tuple[int, ...]:
        """All nodes: what the output of a cell is formed of where `output` is the mean."""
        return tuple(range(self.inputs, self.inputs + self.nodes))

    def cell(self, nodes: Sequence[tuple[Gene, ...]]) -> CellGene:
        """The cell of this space with these edges into its nodes."""
        concat = self.concat
        if self.output == "last":
            concat = concat[-1:]
        elif self.output == "loose_ends":
            taken = {gene.source for node in nodes for gene in node}
            concat = tuple(state for state in concat if state not in taken)
        return CellGene(nodes=tuple(nodes), concat=concat, inputs=self.inputs, join=self.join)

    def discretise(self, scores: Sequence[Sequence[float]]) -> CellGene:
        """Derive the cell: per node the `keep` best edges by their best operation but `none`.

        Args:
            scores: (E, O); higher is better. Ties go to the lower state, then the earlier
                operation (DARTS, section 2.4).

        Raises:
            UsageError: where the table has another shape or a score is not finite.
        """
        self._check_shape("scores", scores)
        if not all(math.isfinite(value) for row in scores for value in row):
            raise UsageError("scores must be finite")
        nodes = []
        for node in range(self.nodes):
            best = []
            for edge in self.rows(node):
                choices = self.choices(edge)
                if choices:
                    op = max(choices, key=lambda o: (scores[edge][o], -o))
                    best.append((-scores[edge][op], self.edges[edge][0], op))
            kept = sorted(best)[: self.kept(node)]
            nodes.append(tuple(Gene(self.ops[op], source) for _, source, op in kept))
        return self.cell(nodes)

    def discretise_within(
        self, scores: Sequence[Sequence[float]], limits: Mapping[str, int]
    ) -> CellGene:
        """As `discretise`, with no operation in more genes than `limits` grants it.

        While there are too many, the gene of smallest score is removed from the space and the cell
        derived again (P-DARTS, Chen et al. 2019, which leaves two skips to a normal cell). Of equal
        scores that of the later edge goes. A gene without which its node would keep too few edges
        stays, whatever the limit.
        """
        space = self
        while True:
            cell = space.discretise(scores)
            used = [
                (edge, self.ops.index(gene.op))
                for node, genes in enumerate(cell.nodes)
                for gene in genes
                if space._can_miss(node, edge := self.rows(node)[gene.source])
            ]
            counts = Counter(gene.op for genes in cell.nodes for gene in genes)
            over = {op for op, most in limits.items() if counts[op] > most}
            much = [(scores[edge][o], -edge, o) for edge, o in used if self.ops[o] in over]
            if not much:
                return cell
            _, back, o = min(much)
            gone = [list(row) for row in space.allowed]
            gone[-back][o] = False
            space = space.prune(gone)

    def _can_miss(self, node: int, edge: int) -> bool:
        """Whether enough edges stay to `node` when one choice of `edge` goes."""
        usable = [row for row in self.rows(node) if self.choices(row)]
        return len(self.choices(edge)) > 1 or len(usable) > self.kept(node)

    def prune(self, allowed: Sequence[Sequence[bool]]) -> CellSpace:
        """The space in which only what this one and `allowed` (E, O) both allow is left.

        Raises:
            UsageError: where the table has another shape, or a node has too few edges left.
        """
        self._check_shape("allowed", allowed)
        both = tuple(
            tuple(a and bool(b) for a, b in zip(mine, other, strict=True))
            for mine, other in zip(self.allowed, allowed, strict=True)
        )
        return replace(self, allowed=both)

    def sample(self, rng: random.Random) -> CellGene:
        """A cell drawn uniformly over the edges and operations of each node."""
        nodes = []
        for node in range(self.nodes):
            usable = [edge for edge in self.rows(node) if self.choices(edge)]
            edges = sorted(rng.sample(usable, self.kept(node)))
            nodes.append(
                tuple(
                    Gene(self.ops[rng.choice(self.choices(edge))], self.edges[edge][0])
                    for edge in edges
                )
            )
        return self.cell(nodes)

    def count(self) -> int:
        """How many different cells the space holds."""
        total = 1
        for node in range(self.nodes):
            # Ways to choose `keep` edges, each with one of its operations: the elementary
            # symmetric polynomial of degree `keep` in the edges' numbers of choices.
            keep = self.kept(node)
            ways = [1] + [0] * keep
            for edge in self.rows(node):
                for degree in range(keep, 0, -1):
                    ways[degree] += ways[degree - 1] * len(self.choices(edge))
            total *= ways[keep]
        return total


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSpace(CellSpace):
    """Choices that are made apart, one a row, of which no cell is made; see `row_space`.

    To a relaxation each row is the only edge of a node that keeps all of them, so that methods for
    cells serve here too. What a choice of each row comes to, who made the space knows.

    names: of the rows. drawn: whether a method that draws should draw here; where not, every
    option of a row takes part by its probability.
    """

    names: tuple[str, ...]
    drawn: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "edges", tuple((row, row) for row in range(self.nodes)))
        self._check_shape("allowed", self.allowed)
        for name, row in zip(self.names, self.allowed, strict=True):
            if not any(row):
                raise UsageError(f"nothing is left to choose at {name}")

    @property
    def labels(self) -> tuple[str, ...]:
        return self.names

    def rows(self, node: int) -> range:
        return range(node, node + 1)

    def discretise(self, scores: Sequence[Sequence[float]]) -> CellGene:
        raise UsageError("choices of rows make no cell")

    def sample(self, rng: random.Random) -> CellGene:
        raise UsageError("choices of rows make no cell")

    def count(self) -> int:
        return math.prod(len(self.choices(row)) for row in range(self.nodes))


def row_space(
    names: tuple[str, ...],
    ops: tuple[str, ...],
    allowed: tuple[tuple[bool, ...], ...],
    *,
    drawn: bool = True,
) -> RowSpace:
    """A space of one choice a row. allowed: (rows, O).

    Raises:
        UsageError: where a row allows nothing, or the table has another shape.
    """
    # Two: with one, the choice of a node would be that of one edge and one operation together.
    return RowSpace(
        inputs=2, nodes=len(names), ops=ops, keep=2, allowed=allowed, names=names, drawn=drawn
    )


def recurrent_space(
    nodes: int = 8,
    *,
    ops: tuple[str, ...] = RECURRENT_OPS,
    edges_per_node: int = 1,
    join: str = MEAN,
    output: Output = "mean",
) -> CellSpace:
    """A space of recurrent cells; by default that of DARTS (section 3.1.2): one edge a node, five
    operations, the mean of all nodes.

    Raises:
        UsageError: for an operation that is not registered, or is named twice, or none at all.
    """
    if len(set(ops)) != len(ops) or not set(ops) - {NONE}:
        raise UsageError(
            f"space.ops = {list(ops)} must name at least one operation beside 'none', each once"
        )
    for op in ops:
        if op != NONE:
            operations.check(op, "space.ops")
    return CellSpace(inputs=1, nodes=nodes, ops=ops, keep=edges_per_node, join=join, output=output)
