"""The fast form of a derived cell: one autograd node a window, its backward pass by hand.

Legend: T steps, B streams, H hidden, N nodes. Same values and gradients as `cell.unroll`, which is
the oracle. Nodes that take the same state are computed together: one batched product for their
gates and candidates, written where they stay and overwritten by their own gradients on the way
back. The gradients of all matrices are formed after the last step, from all T·B rows at once.
With `low` every product takes its factors rounded to bfloat16; all else stays as it is.
Where there are kernels, `derived_whole.py` does the same for small cells, `derived_cpu.py` for
large ones in training, and `derived_cuda.py` on a CUDA device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rnnnas.lm.cell import masked
from rnnnas.lm.fast import cpu_library, derived_whole, triton_support
from rnnnas.lm.fast.buffers import WORKSPACE
from rnnnas.lm.fast.derived_cpu import CompiledUnroll
from rnnnas.lm.fast.derived_cuda import DeviceUnroll
from rnnnas.lm.fast.derived_plan import Group, Plan, plan
from rnnnas.lm.fast.matmul import multiply, project
from rnnnas.nas.genotype import CellGene

# Streams up to which an evaluation costs little more than reading the matrices once a step.
STREAMED = 10


def unroll(
    inputs: Tensor,
    h: Tensor,
    first: Tensor,
    nodes: Tensor,
    cell: CellGene,
    mask_x: Tensor | None,
    mask_h: Tensor | None,
    *,
    low: bool = False,
) -> Tensor:
    """All T steps. inputs (T, B, D), h (B, H) → outputs (T, B, H).

    The backward pass runs once; it can be neither repeated nor differentiated again.

    Args:
        low: multiply matrices in bfloat16. Element-wise work, sums and the gradients that are
            handed out stay in the inputs' own type.
    """
    width = inputs.shape[-1]
    from_x = project(masked(inputs, mask_x), first[:width], low)
    mask = h.new_ones(()) if mask_h is None else mask_h
    if triton_support.usable(h, from_x, first, nodes, mask):
        form: type[torch.autograd.Function] = DeviceUnroll
    elif not torch.is_grad_enabled() and not low and mask_h is None:
        evaluate = _evaluate
        if cpu_library.usable(h, from_x, first, nodes):
            if len(h) <= STREAMED:
                evaluate = _stream
            elif derived_whole.suits(h.shape[1], len(nodes)):
                evaluate = derived_whole.evaluate
        return evaluate(from_x, h, first[width:], nodes, plan(cell))
    elif not cpu_library.usable(h, from_x, first, nodes, mask, low=low):
        form = _DerivedUnroll
    else:
        whole = derived_whole.suits(h.shape[1], len(nodes), low=low)
        form = derived_whole.WholeUnroll if whole else CompiledUnroll
    args = (from_x, h, first[width:], nodes, mask, plan(cell), torch.is_grad_enabled(), low)
    with triton_support.current(h):
        outputs: Tensor = form.apply(*args)  # type: ignore[no-untyped-call]
    return outputs


def _evaluate(from_x: Tensor, h: Tensor, from_h: Tensor, nodes: Tensor, plan: Plan) -> Tensor:
    """All T steps without masks and gradients. from_x (T, B, 2H), h (B, H) → (T, B, H).

    With one stream a step is over as soon as the matrices have been read once: all views are
    made before the first step, since making them would cost as much as the arithmetic.
    """
    steps, streams, double = from_x.shape
    hidden, count = double // 2, len(plan.nodes)
    state = from_x.new_empty(count + 1, streams, hidden)
    half = from_x.new_empty(2 * (count + 1), streams, hidden)  # σ(c) and f(z), as in training
    across = torch.stack(from_h.chunk(2, -1))  # (2, H, H): a batch keeps all threads busy
    groups = []
    for group in plan.groups:
        k, source = group.size, state[group.source]
        part = half[2 * group.start : 2 * (group.start + k)]
        values = [(op, part[k + low : k + high]) for op, low, high in group.runs]
        target = state[group.start : group.start + k]
        inner = source.expand(2 * k, streams, hidden)
        matrix = _matrices(nodes, group, plan.nodes)
        groups.append((source, inner, matrix, part, part[:k], part[k:], values, target))
    outputs = from_x.new_empty(steps, streams, hidden)
    mean = [*range(count + 1)] == [0, *plan.outputs]  # all states but s0: a slice
    both, gate0, value0 = half[:2], half[0], half[1]
    carried = h
    inputs = from_x.view(steps, streams, 2, hidden).transpose(1, 2).unbind(0)  # (2, B, H) each
    for x, out in zip(inputs, outputs.unbind(0), strict=True):
        torch.bmm(carried.expand(2, streams, hidden), across, out=both).add_(x)
        torch.lerp(carried, value0.tanh_(), gate0.sigmoid_(), out=state[0])
        for source, inner, matrix, part, gate, value, values, target in groups:
            torch.bmm(inner, matrix, out=part)
            gate.sigmoid_()
            for op, z in values:
                activate_(op, z)
            torch.lerp(source, value, gate, out=target)
        carried = torch.mean(state[1:] if mean else state[list(plan.outputs)], 0, out=out)
    return outputs


def _stream(from_x: Tensor, h: Tensor, from_h: Tensor, nodes: Tensor, plan: Plan) -> Tensor:
    """The same for few streams by a kernel that reads every matrix once a step, as it lies."""
    steps, streams, double = from_x.shape
    sources, ops, level = [0], [cpu_library.COLUMNS.index("tanh")], [0, 1]
    for group in plan.groups:
        sources += [group.source] * group.size
        for op, low, high in group.runs:
            ops += [cpu_library.COLUMNS.index(op)] * (high - low)
        level.append(group.start + group.size)
    hidden = double // 2
    matrices = [
        cpu_library.dense(m, hidden, double) for m in (from_h, *(nodes[i] for i in plan.nodes))
    ]
    from_x, h = from_x.contiguous(), cpu_library.dense(h, streams, hidden)
    state = from_x.new_empty(len(sources), streams, hidden)
    outputs = from_x.new_empty(steps, streams, hidden)
    numbers = (level, sources, ops, plan.outputs, [m.data_ptr() for m in matrices])
    tables = [torch.tensor(row, dtype=torch.int64) for row in numbers]
    cpu_library.function("evaluate", h.dtype)(
        steps, streams, hidden, len(level) - 1, len(plan.outputs),
        *(t.data_ptr() for t in (*tables, from_x, h, state, outputs)), torch.get_num_threads(),
    )  # fmt: skip
    return outputs


def _matrices(nodes: Tensor, group: Group, order: tuple[int, ...]) -> Tensor:
    """The group's matrices, first those of all gates, then of all candidates. (2k, H, H)."""
    # An index made of a list would be copied to a device, which waits for it.
    members = order[group.start - 1 : group.start - 1 + group.size]
    chosen = torch.stack([nodes[i] for i in members])  # (k, H, 2H)
    return torch.cat(chosen.chunk(2, -1))


class _DerivedUnroll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, from_x: Tensor, h: Tensor, from_h: Tensor, nodes: Tensor, mask: Tensor,
        plan: Plan, keep: bool, low: bool,
    ) -> Tensor:  # fmt: skip
        steps, streams, double = from_x.shape
        hidden, count = double // 2, len(plan.nodes)
        keep = keep and any(ctx.needs_input_grad)
        slots = steps if keep else 1
        states = WORKSPACE.take(from_x, slots, count + 1, streams, hidden)
        # σ(c) and f(z): of s0 in the first two rows, then group by group, gates before candidates.
        halves = WORKSPACE.take(from_x, slots, 2 * (count + 1), streams, hidden)
        outputs = from_x.new_empty(steps, streams, hidden)
        factor = torch.bfloat16 if low else from_x.dtype
        across = from_h.to(factor)
        matrices = [_matrices(nodes, group, plan.nodes).to(factor) for group in plan.groups]
        widest = 2 * max(group.size for group in plan.groups)
        rounded = WORKSPACE.take(across, widest, streams, hidden) if low else None
        mean = [*range(count + 1)] == [0, *plan.outputs]  # all states but s0: a slice
        carried = h
        for t in range(steps):
            state, half = states[t if keep else 0], halves[t if keep else 0]
            both = multiply((carried * mask).to(factor), across) + from_x[t]
            torch.sigmoid(both[:, :hidden], out=half[0])
            half[1].copy_(both[:, hidden:])
            activate_("tanh", half[1])
            torch.lerp(carried, half[1], half[0], out=state[0])
            for group, matrix in zip(plan.groups, matrices, strict=True):
                source, k = state[group.source], group.size
                inner = (source * mask).to(factor).expand(2 * k, streams, hidden)
                part = half[2 * group.start : 2 * (group.start + k)]  # (2k, B, H)
                if rounded is None:
                    torch.bmm(inner, matrix, out=part)
                else:
                    part.copy_(torch.bmm(inner, matrix, out=rounded[: 2 * k]))
                gate, value = part[:k].sigmoid_(), part[k:]
                for op, start, end in group.runs:
                    activate_(op, value[start:end])
                torch.lerp(source, value, gate, out=state[group.start : group.start + k])
            chosen = state[1:] if mean else torch.stack([state[i] for i in plan.outputs])
            carried = torch.mean(chosen, 0, out=outputs[t])
        if rounded is not None:
            WORKSPACE.give(rounded)
        if keep:
            ctx.save_for_backward(h, from_h, nodes, mask, outputs)
            ctx.buffers, ctx.plan, ctx.factor = (states, halves), plan, factor
        else:
            WORKSPACE.give(states, halves)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        h, from_h, nodes, mask, outputs = ctx.saved_tensors
        if ctx.buffers is None:
            raise RuntimeError("the fast cell's backward pass can run only once a forward pass")
        (states, halves), ctx.buffers = ctx.buffers, None
        plan: Plan = ctx.plan
        factor: torch.dtype = ctx.factor
        steps, streams, hidden = outputs.shape
        count = len(plan.nodes)
        across = from_h.to(factor).t()
        backs = [_matrices(nodes, group, plan.nodes).to(factor).mT for group in plan.groups]
        gradients = WORKSPACE.take(outputs, count + 1, streams, hidden)  # of the states
        # The gradients of c and z as factors of products, the gradients of all matrices among
        # them: row by row of `halves`, over all steps.
        factors = WORKSPACE.take(across, 2 * count, steps, streams, hidden)
        grad_x = outputs.new_empty(steps, streams, 2 * hidden)
        onward = torch.zeros_like(h)  # the gradient of h from the step after
        for t in reversed(range(steps)):
            state, half = states[t], halves[t]
            gradients.zero_()
            share = (gradient[t] + onward).div_(len(plan.outputs))
            for chosen in plan.outputs:
                gradients[chosen] = share
            for group, back in zip(reversed(plan.groups), reversed(backs), strict=True):
                k = group.size
                part = half[2 * group.start : 2 * (group.start + k)]
                gate, value = part[:k], part[k:]
                rest = _through_gate_(
                    gradients[group.start : group.start + k], state[group.source], gate, value,
                    group.runs,
                )  # fmt: skip
                # Through the product: (2k, B, H) times (2k, H, H), added up.
                left = factors[2 * group.start - 2 : 2 * (group.start + k) - 2, t].copy_(part)
                inner = torch.bmm(left, back).sum(0, dtype=outputs.dtype)
                gradients[group.source] += rest.sum(0).addcmul_(inner, mask)
            before = h if t == 0 else outputs[t - 1]
            rest = _through_gate_(gradients[0], before, half[0], half[1], (("tanh", 0, streams),))
            grad_x[t, :, :hidden], grad_x[t, :, hidden:] = half[0], half[1]
            onward = rest.addcmul_(multiply(grad_x[t].to(factor), across).to(rest.dtype), mask)
        grad_from_h = grad_nodes = None
        if ctx.needs_input_grad[2]:
            previous = (torch.cat([h.unsqueeze(0), outputs[:-1]]) * mask).to(factor)  # (T, B, H)
            grad_from_h = multiply(previous.flatten(0, 1).t(), grad_x.flatten(0, 1).to(factor))
            grad_from_h = grad_from_h.to(outputs.dtype)
        if ctx.needs_input_grad[3]:
            grad_nodes = _matrix_gradients(nodes, plan, states, factors, mask)
        WORKSPACE.give(states, halves, gradients, factors)
        return grad_x, onward, grad_from_h, grad_nodes, None, None, None, None


def _through_gate_(
    gradient: Tensor, source: Tensor, gate: Tensor, value: Tensor,
    runs: tuple[tuple[str, int, int], ...],
) -> Tensor:  # fmt: skip
    """Back through s + g (f - s): gate and value become the gradients of c and z, in place.

    Returns the gradient that reaches the source directly, gradient (1 - g). All (k, B, H).
    """
    through = gradient * gate  # of f
    rest = gradient - through
    risen = value - source
    for op, low, high in runs:
        _through_activation_(op, value[low:high], through[low:high])
    gate.mul_(rest).mul_(risen)  # gradient g (1 - g) (f - s)
    return rest


def _matrix_gradients(
    nodes: Tensor, plan: Plan, states: Tensor, factors: Tensor, mask: Tensor
) -> Tensor:
    """The gradient of all node matrices, (N, H, 2H), from all rows of all steps."""
    steps, _, streams, hidden = states.shape
    rows = steps * streams
    result = torch.empty_like(nodes)
    for group in plan.groups:
        k = group.size
        inner = (states[:, group.source] * mask).to(factors.dtype).view(rows, hidden).t()
        gradient = factors[2 * group.start - 2 : 2 * (group.start + k) - 2].view(
            2 * k, rows, hidden
        )
        grads = torch.bmm(inner.expand(2 * k, hidden, rows), gradient)
        for i in range(k):
            node = plan.nodes[group.start - 1 + i]
            result[node, :, :hidden], result[node, :, hidden:] = grads[i], grads[k + i]
    return result


def activate_(op: str, z: Tensor) -> None:
    """z becomes f(z)."""
    if op == "tanh":
        z.tanh_()
    elif op == "sigmoid":
        z.sigmoid_()
    elif op == "relu":
        z.clamp_min_(0.0)
    else:
        assert op == "identity"


def _through_activation_(op: str, f: Tensor, gradient: Tensor) -> None:
    """f, the activation's value, becomes gradient times its derivative."""
    if op == "tanh":  # 1 - f²
        torch.addcmul(gradient, gradient, f.mul_(f), value=-1.0, out=f)
    elif op == "sigmoid":  # f (1 - f)
        torch.mul(gradient, f - f * f, out=f)
    elif op == "relu":  # 1 where z > 0, and there only f > 0
        f.sign_().mul_(gradient)
    else:
        f.copy_(gradient)
