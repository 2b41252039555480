"""The cell under a mixture with compiled kernels: all steps of a window in one call, products too.

Legend: T steps, B streams, H hidden, N nodes, E computed edges, O operations. The same values as
`mixture.py`'s own form, for cells all of whose units are computed. What follows a product takes it
from a core's cache, not from memory, where those of a window fill hundreds of megabytes; kept is
what the way back needs, in the precision that products are rounded to.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rnnnas.distributed import Ranks
from rnnnas.lm.fast import cpu_library
from rnnnas.lm.fast.buffers import WORKSPACE
from rnnnas.lm.fast.cpu_library import tiled
from rnnnas.lm.fast.matmul import multiply
from rnnnas.lm.search_cell import EPSILON, Route
from rnnnas.nas.space import CellSpace

# Elements of all matrices up to which a library's products, called one by one, are slower: as
# floats and as tiles (benchmarks/README.md).
LARGEST, LARGEST_TILED = 800_000, 20_000_000


def suits(hidden: int, nodes: int, *, low: bool = False) -> bool:
    """Whether a cell is small enough, with products in bfloat16 or not."""
    most = LARGEST_TILED if low and tiled() else LARGEST
    return 2 * (nodes + 1) * hidden * hidden <= most


def takes(
    tensors: tuple[Tensor, ...], h: Tensor, nodes: Tensor, ranks: Ranks, *, low: bool
) -> bool:
    """Whether one call of kernels computes a window. h (B, H), nodes (N, U, 2H), among tensors."""
    count, units, _ = nodes.shape
    if ranks.size > 1 or units < h.shape[1] or not cpu_library.usable(*tensors, low=low):
        return False
    return suits(units, count, low=low)


class MixedCell:
    """What forward and backward hand to the kernels: the cell's tables, its matrices and tensors.

    Edge 0 is the first state's, from the step before; the others are the computed ones, in order.
    direction: of the matrices from_h and nodes, for kernels that have tangents.
    """

    def __init__(
        self, from_x: Tensor, h: Tensor, from_h: Tensor, nodes: Tensor, weights: Tensor,
        mask: Tensor, space: CellSpace, ways: tuple[Route, ...], low: bool,
        direction: tuple[Tensor, Tensor] | None = None,
    ) -> None:  # fmt: skip
        steps, streams, double = from_x.shape
        hidden, count = double // 2, len(ways)
        self.type = torch.bfloat16 if low else h.dtype
        self.from_x, self.h = from_x.contiguous(), cpu_library.dense(h, streams, hidden)
        self.mask = mask.expand_as(h).contiguous() if mask.dim() else None
        self._matrices: list[Tensor] = []  # kept while kernels read them
        places = [
            self._places(*pair, count, hidden)
            for pair in ((from_h, nodes), *([] if direction is None else [direction]))
        ]
        first, source = [0, 1], [0]
        shares = [[1.0 if name in ("mass", "tanh") else 0.0 for name in cpu_library.COLUMNS]]
        known = weights.tolist()
        for route in ways:
            for edge, ops in route:
                source.append(space.edges[edge][0])
                row = [0.0] * len(cpu_library.COLUMNS)
                for o in ops:
                    row[0] += known[edge][o]
                    row[cpu_library.COLUMNS.index(space.ops[o])] = known[edge][o]
                shares.append(row)
            first.append(len(source))
        self._tables = [torch.tensor(row, dtype=torch.int64) for row in (first, source, *places)]
        self._shares = torch.tensor(shares, dtype=h.dtype)
        self.sizes = (steps, streams, hidden, count)
        self.edges = len(source)
        self.lanes = cpu_library.lanes(h.dtype)
        self.blocks = -(-hidden // self.lanes)

    def _places(self, from_h: Tensor, nodes: Tensor, count: int, hidden: int) -> list[int]:
        """Addresses of the matrices (H, 2H), the first state's first."""
        own = cpu_library.dense(from_h, hidden, 2 * hidden)
        rest = cpu_library.dense(nodes, count, hidden, 2 * hidden)
        self._matrices += [own, rest]
        return [own.data_ptr(), *(matrix.data_ptr() for matrix in rest)]

    @property
    def tables(self) -> tuple[int, ...]:
        """Addresses of the tables and of the shares, then of the directions where there are any."""
        first, source, matrices, *directions = (table.data_ptr() for table in self._tables)
        return first, source, matrices, self._shares.data_ptr(), *directions

    @property
    def tensors(self) -> tuple[int, ...]:
        """Addresses of from_x, h and mask."""
        mask = 0 if self.mask is None else self.mask.data_ptr()
        return self.from_x.data_ptr(), self.h.data_ptr(), mask


class WholeMixed(torch.autograd.Function):
    """As `mixture._MixedUnroll`, for tensors that are `cpu_library.usable` and whole units."""

    @staticmethod
    def forward(
        ctx: Any, from_x: Tensor, h: Tensor, from_h: Tensor, nodes: Tensor, weights: Tensor,
        mask: Tensor, space: CellSpace, ways: tuple[Route, ...], keep: bool, low: bool,
    ) -> Tensor:  # fmt: skip
        cell = MixedCell(from_x, h, from_h, nodes, weights, mask, space, ways, low)
        keep = keep and any(ctx.needs_input_grad)
        steps, streams, hidden, count = cell.sizes
        slots = steps if keep else 1
        like = h.new_empty(0, dtype=cell.type)
        wide = cell.blocks * cell.lanes
        states = WORKSPACE.take(h, slots, count + 1, streams, wide)
        rstd = WORKSPACE.take(h, slots, count + 1, wide)
        product = WORKSPACE.take(like, slots if keep else 0, cell.edges, streams, 2 * wide)
        outputs = h.new_empty(steps, streams, hidden)
        cpu_library.function("window", cell.type)(
            *cell.sizes, keep, tiled(), *cell.tables, EPSILON, *cell.tensors,
            states.data_ptr(), rstd.data_ptr(), product.data_ptr(), outputs.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        if keep:
            ctx.save_for_backward(from_x, h, from_h, nodes, weights, mask, outputs)
            ctx.buffers, ctx.known = (states, rstd, product), (space, ways, low)
        else:
            WORKSPACE.give(states, rstd, product)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from_x, h, from_h, nodes, weights, mask, outputs = ctx.saved_tensors
        if ctx.buffers is None:
            raise RuntimeError("the fast cell's backward pass can run only once a forward pass")
        (states, rstd, product), ctx.buffers = ctx.buffers, None
        space, ways, low = ctx.known
        cell = MixedCell(from_x, h, from_h, nodes, weights, mask, space, ways, low)
        gradient = cpu_library.dense(gradient, *outputs.shape)
        grad_x, grad_h = torch.empty_like(cell.from_x), torch.empty_like(cell.h)
        grad_nodes = nodes.new_empty(nodes.shape) if ctx.needs_input_grad[3] else None
        dots = h.new_empty(cell.blocks, cell.edges, len(cpu_library.COLUMNS))
        cpu_library.function("window_back", cell.type)(
            *cell.sizes, tiled(), *cell.tables, *cell.tensors,
            states.data_ptr(), rstd.data_ptr(), outputs.data_ptr(), product.data_ptr(),
            gradient.data_ptr(), grad_x.data_ptr(), grad_h.data_ptr(),
            0 if grad_nodes is None else grad_nodes.data_ptr(), dots.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        WORKSPACE.give(states, rstd, product)
        grad_from_h = grad_weights = None
        if ctx.needs_input_grad[2]:
            before = torch.cat([h.unsqueeze(0), outputs[:-1]]) * mask  # (T, B, H)
            left, right = (a.flatten(0, 1).to(cell.type) for a in (before, grad_x))
            grad_from_h = multiply(left.t(), right).to(from_h.dtype)
        if ctx.needs_input_grad[4]:
            grad_weights = gradient_of_mixture(
                dots.sum(0, dtype=torch.float64)[1:], space, ways, weights
            )
        return grad_x, grad_h, grad_from_h, grad_nodes, grad_weights, *(None,) * 5


def gradient_of_mixture(
    sums: Tensor, space: CellSpace, ways: tuple[Route, ...], like: Tensor
) -> Tensor:
    """The gradient (E, O) of the mixture, zero where nothing was computed, of the kernels' sums."""
    rows = iter(sums.tolist())
    grad = [[0.0] * len(space.ops) for _ in space.edges]
    for route in ways:
        for edge, ops in route:
            own = next(rows)
            for o in ops:
                grad[edge][o] = own[0] + own[cpu_library.COLUMNS.index(space.ops[o])]
    return torch.tensor(grad, dtype=like.dtype)
