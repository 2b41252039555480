"""The fast form of a derived cell with compiled kernels: the same values as `derived.py`'s own.

Legend: T steps, B streams, H hidden, N nodes, k nodes of a group. One wide product a group, and
one kernel between two products. Of a step only the products are kept, in the precision they were
made in: (B, k, 2H) = [c, z], overwritten by their own gradients on the way back, where a kernel
computes the gates again; that costs less than to write and read them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rnnnas.lm.fast import cpu_library
from rnnnas.lm.fast.buffers import WORKSPACE
from rnnnas.lm.fast.derived_plan import Group, Plan
from rnnnas.lm.fast.matmul import multiply


class _Layout:
    """What forward and backward have in common: the factors of products, and the kernels' tables.

    from_h (H, 2H), matrices[g] (H, k 2H): in the products' type. mask (B, H), or None for ones.
    """

    def __init__(
        self, h: Tensor, from_h: Tensor, nodes: Tensor, mask: Tensor, plan: Plan, low: bool
    ) -> None:
        self.streams, self.hidden = h.shape
        self.plan, self.count = plan, len(plan.nodes)
        self.type = torch.bfloat16 if low else h.dtype
        cpu_library.dense(nodes, self.count, self.hidden, 2 * self.hidden)
        self.from_h = cpu_library.dense(from_h, self.hidden, 2 * self.hidden).to(self.type)
        self.matrices = [
            _beside([nodes[i] for i in self.members(group)]).to(self.type) for group in plan.groups
        ]
        self.mask = mask.expand_as(h).contiguous() if mask.dim() else None
        self.masked = 0 if self.mask is None else self.mask.data_ptr()
        self.threads = torch.get_num_threads()
        ops = [[cpu_library.COLUMNS.index("tanh")]]
        for group in plan.groups:
            ops.append([cpu_library.COLUMNS.index(op) for op, low, end in group.runs
                        for _ in range(low, end)])  # fmt: skip
        self._tables = [torch.tensor(row, dtype=torch.int64) for row in (*ops, plan.outputs)]
        self.tanh, *self.ops, self.outputs = (table.data_ptr() for table in self._tables)

    def members(self, group: Group) -> tuple[int, ...]:
        """The genotype's nodes in this group."""
        return self.plan.nodes[group.start - 1 : group.start - 1 + group.size]

    def products(self, buffer: Tensor, slots: int) -> tuple[Tensor, list[Tensor]]:
        """Of the first state (slots, B, 2H), and of the groups (slots, B, k 2H)."""
        first, *groups = (
            buffer[start : start + k].view(slots, self.streams, 2 * k * self.hidden)
            for start, k in ((0, 1), *((group.start, group.size) for group in self.plan.groups))
        )
        return first, groups

    def factor(self, state: Tensor) -> Tensor:
        """States (..., B, H) as products take them."""
        return (state if self.mask is None else state * self.mask).to(self.type)


def _beside(matrices: list[Tensor]) -> Tensor:
    """As one wide matrix; one alone is not copied."""
    return matrices[0] if len(matrices) == 1 else torch.cat(matrices, -1)


def _at(rows: Tensor) -> list[int]:
    """The addresses of a dense tensor's rows."""
    return [row.data_ptr() for row in rows.unbind(0)]


class CompiledUnroll(torch.autograd.Function):
    """As `derived._DerivedUnroll`, for tensors that are `cpu_library.usable`."""

    @staticmethod
    def forward(
        ctx: Any, from_x: Tensor, h: Tensor, from_h: Tensor, nodes: Tensor, mask: Tensor,
        plan: Plan, keep: bool, low: bool,
    ) -> Tensor:  # fmt: skip
        steps, streams, double = from_x.shape
        hidden, size = double // 2, streams * double // 2
        from_x, h = from_x.contiguous(), cpu_library.dense(h, streams, hidden)
        own = _Layout(h, from_h, nodes, mask, plan, low)
        keep = keep and any(ctx.needs_input_grad)
        slots = steps if keep else 1
        states = WORKSPACE.take(h, own.count + 1, slots, streams, hidden)
        buffer = WORKSPACE.take(own.from_h, own.count + 1, slots * streams * double)
        first, products = own.products(buffer, slots)
        outputs = from_x.new_empty(steps, streams, hidden)
        # Of all states and, last, of the step before; where it is the state itself, none.
        same = own.mask is None and not low
        inner = None if same else WORKSPACE.take(own.from_h, own.count + 2, streams, hidden)
        gate, mean = (cpu_library.function(name, own.type) for name in ("gate", "mean"))
        states_at, from_x_at, outputs_at = [_at(s) for s in states], _at(from_x), _at(outputs)
        inner_at = [0] * (own.count + 2) if inner is None else _at(inner)
        groups = [
            (group.source, matrix, product, _at(product), (streams, hidden, group.size,
             slots * size, ops), states_at[group.source], states_at[group.start],
             inner_at[group.start])
            for group, matrix, product, ops in zip(
                plan.groups, own.matrices, products, own.ops, strict=True)
        ]  # fmt: skip
        first_at, mean_sizes = _at(first), (streams, hidden, len(plan.outputs), slots * size)
        carried, before = own.factor(h), h.data_ptr()
        for t in range(steps):
            slot = t if keep else 0
            multiply(carried, own.from_h, out=first[slot])
            gate(
                streams, hidden, 1, 0, own.tanh, first_at[slot], from_x_at[t], before, own.masked,
                states_at[0][slot], inner_at[0], own.threads,
            )  # fmt: skip
            for source, matrix, product, at, sizes, source_at, target_at, into in groups:
                left = states[source, slot] if inner is None else inner[source]
                multiply(left, matrix, out=product[slot])
                gate(
                    *sizes, at[slot], 0, source_at[slot], own.masked, target_at[slot], into,
                    own.threads,
                )  # fmt: skip
            mean(
                *mean_sizes, own.outputs, states_at[0][slot], own.masked, outputs_at[t],
                inner_at[-1], own.threads,
            )  # fmt: skip
            carried, before = outputs[t] if inner is None else inner[-1], outputs_at[t]
        if inner is not None:
            WORKSPACE.give(inner)
        if keep:
            ctx.save_for_backward(from_x, h, from_h, nodes, mask, outputs)
            ctx.buffers, ctx.own = (states, buffer), own
        else:
            WORKSPACE.give(states, buffer)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from_x, h, from_h, nodes, mask, outputs = ctx.saved_tensors
        if ctx.buffers is None:
            raise RuntimeError("the fast cell's backward pass can run only once a forward pass")
        (states, buffer), ctx.buffers = ctx.buffers, None
        own: _Layout = ctx.own
        ctx.own = None
        plan = own.plan
        steps, streams, hidden = outputs.shape
        gradient = cpu_library.dense(gradient, steps, streams, hidden)
        first, products = own.products(buffer, steps)
        gradients = WORKSPACE.take(h, own.count + 1, streams, hidden)  # of the states
        back = WORKSPACE.take(own.from_h, streams, hidden).zero_()  # through a product
        grad_x = torch.empty_like(from_x)
        onward = torch.zeros_like(h)  # what reaches the step before, but through a product
        gate_back, spread, reach = (
            cpu_library.function(name, own.type) for name in ("gate_back", "spread", "reach")
        )
        none = torch.zeros(1, dtype=torch.int64)  # the source that `reach` adds to is the first
        gradients_at, back_at, onward_at = _at(gradients), back.data_ptr(), onward.data_ptr()
        groups = [
            (matrix.t(), product, _at(product), _at(states[group.source]),
             (streams, hidden, group.size, ops), gradients_at[group.start],
             gradients_at[group.source])
            for group, matrix, product, ops in zip(
                plan.groups, own.matrices, products, own.ops, strict=True)
        ]  # fmt: skip
        groups.reverse()
        reach_sizes = (1, streams, hidden, hidden, none.data_ptr(), back_at, own.masked)
        spread_sizes = (streams, hidden, own.count + 1, len(plan.outputs), own.outputs)
        ats = (_at(first), _at(from_x), [h.data_ptr(), *_at(outputs)][:-1], _at(grad_x))
        for t in reversed(range(steps)):
            spread(
                *spread_sizes, gradient.data_ptr() + t * gradient[0].nbytes, onward_at, back_at,
                own.masked, gradients_at[0], own.threads,
            )  # fmt: skip
            for matrix, product, at, source_at, sizes, gradient_at, to in groups:
                gate_back(*sizes, at[t], 0, source_at[t], gradient_at, to, 0, own.threads)
                multiply(product[t], matrix, out=back)
                reach(*reach_sizes, to, own.threads)
            product_at, added, before, result = (at[t] for at in ats)
            gate_back(
                streams, hidden, 1, own.tanh, product_at, added, before, gradients_at[0], onward_at,
                result, own.threads,
            )  # fmt: skip
            multiply(first[t], own.from_h.t(), out=back)
        onward.addcmul_(back.to(onward.dtype), mask)
        grad_from_h = grad_nodes = None
        if ctx.needs_input_grad[2]:
            previous = own.factor(torch.cat([h.unsqueeze(0), outputs[:-1]]))  # (T, B, H)
            grad_from_h = torch.empty_like(from_h)
            multiply(previous.flatten(0, 1).t(), first.flatten(0, 1), out=grad_from_h)
        if ctx.needs_input_grad[3]:
            grad_nodes = torch.empty_like(nodes)
            for group, product in zip(plan.groups, products, strict=True):
                left = own.factor(states[group.source]).flatten(0, 1).t()  # (H, T·B)
                members = own.members(group)
                if len(members) == 1:
                    multiply(left, product.flatten(0, 1), out=grad_nodes[members[0]])
                    continue
                # All at once: of a slice of the columns some libraries make a slow product.
                whole = multiply(left, product.flatten(0, 1)).chunk(group.size, -1)
                for node, grad in zip(members, whole, strict=True):
                    grad_nodes[node] = grad
        WORKSPACE.give(states, buffer, gradients, back)
        return grad_x, onward, grad_from_h, grad_nodes, None, None, None, None
