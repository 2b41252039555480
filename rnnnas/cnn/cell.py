"""The cells of an image network, readable: under a mixture, for search, and derived.

Legend: B images, C channels of the cell, h and w pixels, E edges, O operations, P (E, O) the
mixture, K the inverse of the share of channels that is mixed. A cell takes the outputs of the two
cells before it; in a reduction cell the edges from these have stride 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnnnas.cnn.ops import (
    DERIVED,
    SEARCH,
    FactorisedReduction,
    Norms,
    ReluConvNorm,
    operation,
)
from rnnnas.errors import UsageError
from rnnnas.nas.genotype import CellGene
from rnnnas.nas.relax.base import Mixture
from rnnnas.nas.space import NONE, CellSpace

INPUTS = 2
SKIP = "skip_connect"


class Entries(nn.Module):
    """Brings the outputs of both cells before to this cell's width and size.

    halve: the cell just before was a reduction, so that the one before that has twice the size.
    """

    def __init__(
        self,
        widths: tuple[int, int],
        channels: int,
        norms: Norms,
        generator: torch.Generator,
        *,
        halve: bool,
    ) -> None:
        super().__init__()
        older = FactorisedReduction if halve else ReluConvNorm
        self.older = older(widths[0], channels, norms, generator)
        self.last = ReluConvNorm(widths[1], channels, norms, generator)

    def forward(self, older: Tensor, last: Tensor, train: bool) -> list[Tensor]:
        return [self.older(older, train), self.last(last, train)]


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Channel c of group g becomes channel c · groups + g, so that groups meet in the next edge."""
    b, channels, h, w = x.shape
    split = x.reshape(b, groups, channels // groups, h, w)
    return split.transpose(1, 2).reshape(x.shape)


def by_edge(space: CellSpace, mixture: Mixture) -> list[list[int]]:
    """For every edge the operations that are computed: those of `paths`, or all allowed.

    Raises:
        UsageError: where a path is not allowed in the space: there is nothing to compute it by.
    """
    allowed = [[o for o, able in enumerate(row) if able] for row in space.allowed]
    if mixture.paths is None:
        return allowed
    chosen: list[list[int]] = [[] for _ in space.edges]
    for edge, o in mixture.paths:
        if o not in allowed[edge]:
            raise UsageError(f"path {space.ops[o]!r} of edge {edge} is not in the search space")
        chosen[edge].append(o)
    return chosen


class MixedCell(nn.Module):
    """A cell under a mixture.

    Node i is Σ_e Σ_o P[e, o] o(state), over the edges e into it and their operations o.

    With partial = K > 1 (PC-DARTS, section 3.1) only the first C/K channels of a state pass the
    operations; the others bypass them, max-pooled 2x2 where the edge has stride 2, and the
    channels are shuffled. There the coefficient of an edge, beta, scales all of its output.
    In a mixture beta is multiplied into the row of operations, whose softmax sums to one: so the
    bypass is scaled by the sum of the edge's row, `none` included.
    """

    def __init__(
        self,
        space: CellSpace,
        widths: tuple[int, int],
        channels: int,
        generator: torch.Generator,
        *,
        reduce: bool,
        halve: bool,
        partial: int,
    ) -> None:
        super().__init__()
        self.space, self.reduce, self.partial = space, reduce, partial
        self.mixed = channels // partial
        self.entries = Entries(widths, channels, SEARCH, generator, halve=halve)
        self.edges = nn.ModuleList()
        for edge, row in enumerate(space.allowed):
            usable = [op for op, able in zip(space.ops, row, strict=True) if able and op != NONE]
            stride = self.stride(edge)
            made = {op: operation(op, self.mixed, stride, SEARCH, generator) for op in usable}
            self.edges.append(nn.ModuleDict(made))
        # The edges whose skip_connect is an identity: where P-DARTS drops.
        self.identities = tuple(
            edge
            for edge in range(len(space.edges))
            if SKIP in self.operations(edge) and self.stride(edge) == 1
        )

    def stride(self, edge: int) -> int:
        return 2 if self.reduce and self.space.edges[edge][0] < INPUTS else 1

    def operations(self, edge: int) -> nn.ModuleDict:
        """The modules on an edge, by operation; `none` has none."""
        module = self.edges[edge]
        assert isinstance(module, nn.ModuleDict)
        return module

    def forward(
        self,
        older: Tensor,
        last: Tensor,
        mixture: Mixture,
        skips: Tensor | None,
        kept: float,
        train: bool,
    ) -> Tensor:
        """Outputs of the two cells before (B, ., h, w) → (B, N·C, h', w').

        skips: (I, B, C/K, h', w'), as in `CnnNoise`, or None.
        """
        states: list[Tensor] = self.entries(older, last, train)
        chosen = by_edge(self.space, mixture)
        size = [-(-n // (2 if self.reduce else 1)) for n in states[1].shape[2:]]
        for node in range(self.space.nodes):
            # No path may lead into a node: it then is zero.
            total = states[1].new_zeros((*states[1].shape[:2], *size))
            for edge in self.space.rows(node):
                if chosen[edge]:
                    x = states[self.space.edges[edge][0]]
                    row = mixture.weights[edge]
                    total = total + self._edge(edge, chosen[edge], x, row, skips, kept, train)
            states.append(total)
        return torch.cat(states[INPUTS:], 1)

    def _edge(
        self,
        edge: int,
        chosen: list[int],
        x: Tensor,
        row: Tensor,
        skips: Tensor | None,
        kept: float,
        train: bool,
    ) -> Tensor:
        """The output of one edge. x (B, C, h, w), row (O,) → (B, C, h', w')."""
        inner, stride = x[:, : self.mixed], self.stride(edge)
        size = [-(-n // stride) for n in x.shape[2:]]
        total = inner.new_zeros((*inner.shape[:2], *size))
        ops = self.operations(edge)
        for o in chosen:
            op = self.space.ops[o]
            if op == NONE:
                continue
            out = ops[op](inner, train)
            if op == SKIP and stride == 1 and skips is not None:
                out = out * skips[self.identities.index(edge)] / kept
            total = total + row[o] * out
        if self.partial == 1:
            return total
        rest = x[:, self.mixed :]
        if stride == 2:
            rest = F.max_pool2d(rest, 2, 2, ceil_mode=True)
        return shuffle(torch.cat([total, row[chosen].sum() * rest], 1), self.partial)


class DerivedCell(nn.Module):
    """A derived cell: node i is the sum of its edges; the output concatenates the genes' concat."""

    def __init__(
        self,
        gene: CellGene,
        widths: tuple[int, int],
        channels: int,
        generator: torch.Generator,
        *,
        reduce: bool,
        halve: bool,
    ) -> None:
        super().__init__()
        self.gene = gene
        self.entries = Entries(widths, channels, DERIVED, generator, halve=halve)
        self.edges = nn.ModuleList()
        self.dropped = []  # whether drop-path may drop an edge
        for op, source in (edge for node in gene.nodes for edge in node):
            stride = 2 if reduce and source < INPUTS else 1
            self.edges.append(operation(op, channels, stride, DERIVED, generator))
            # An identity carries what is there already: dropping it would cut the cell in two.
            self.dropped.append(not (op == SKIP and stride == 1))

    def forward(self, older: Tensor, last: Tensor, paths: Tensor | None, train: bool) -> Tensor:
        """Outputs of the two cells before (B, ., h, w) → (B, len(concat)·C, h', w').

        paths: (E or more, B, 1, 1, 1), edges in the order of the gene, or None.
        """
        states: list[Tensor] = self.entries(older, last, train)
        edge = 0
        for node in self.gene.nodes:
            total: Tensor | None = None
            for gene in node:
                out = self.edges[edge](states[gene.source], train)
                if paths is not None and self.dropped[edge]:
                    # The mask is float32: rounded to bfloat16, 1 / (1 - p) would be off by 0.4 %.
                    out = (out * paths[edge]).to(out.dtype)
                total = out if total is None else total + out
                edge += 1
            assert total is not None  # a CellGene has no node without an edge
            states.append(total)
        return torch.cat([states[state] for state in self.gene.concat], 1)
