"""The work of a derived cell on a device, in Triton: a product and its gates in one launch.

Legend: T steps, B streams, H hidden, W = H rounded up to whole tiles, N nodes, k nodes of a group.
On a device a step of few streams takes as long as its launches; here a group of nodes has one
forward and two backward. `derived_cuda.py` says what lies where; units beyond H hold zeros.
Products are rounded to their factors' type before the gates, as on a CPU, so that going back sees
what was seen.
"""

from __future__ import annotations

import triton
import triton.language as tl

TANH = tl.constexpr(1)  # as `cpu_library.COLUMNS` counts them
RELU = tl.constexpr(2)
SIGMOID = tl.constexpr(3)


@triton.jit
def tanh_of(z, sigmoid):
    """tanh(z), by `sigmoid` of 2z; its relative error in float32 is at most 5e-7.

    2 σ(2z) - 1 loses all digits near 0. For |z| < 1/2 the polynomial in z² is used whose relative
    error is the least, 3e-12.
    """
    u = z * z
    p = u * -0.0010342926154736148 + 0.0034570214184155882
    p = p * u - 0.0088409691285917935
    p = p * u + 0.021867576089145196
    p = p * u - 0.053968175117804742
    p = p * u + 0.13333333210779014
    p = p * u - 0.33333333333021018
    return tl.where((z > -0.5) & (z < 0.5), z + z * (u * p), sigmoid + sigmoid - 1)


@triton.jit
def activated(op, z):
    """f(z) of the operation numbered `op`; NaN stays."""
    sigmoid = tl.sigmoid(tl.where(op == TANH, z + z, z))
    value = tl.where(op == TANH, tanh_of(z, sigmoid), tl.where(op == SIGMOID, sigmoid, z))
    return tl.where((op == RELU) & (z < 0), 0.0, value)


@triton.jit
def risen(op, z, value):
    """f'(z), by z and the value f(z)."""
    bent = tl.where(op == TANH, 1 - value * value, value * (1 - value))
    straight = tl.where((op == RELU) & (z <= 0), 0.0, 1.0)
    return tl.where((op == TANH) | (op == SIGMOID), bent, straight)


@triton.jit
def index64(index):
    """The index of a slot in the type of its offset: all slots of a window lie in one buffer, which
    can have more elements than an int32 counts.
    """
    return tl.cast(index, tl.int64)


@triton.jit
def halves(
    lefts, rights, there, c, z, WIDE: tl.constexpr, DEEP: tl.constexpr, PRECISION: tl.constexpr
):
    """c and z plus rows of factors times columns of both halves of a matrix (WIDE, 2, WIDE).

    lefts, rights: where the first tiles lie, rows x DEEP and DEEP x units.
    """
    for _ in range(0, WIDE, DEEP):
        left = tl.load(lefts, mask=there, other=0.0)
        c = tl.dot(left, tl.load(rights), c, input_precision=PRECISION, out_dtype=c.dtype)
        z = tl.dot(left, tl.load(rights + WIDE), z, input_precision=PRECISION, out_dtype=z.dtype)
        lefts += DEEP
        rights += DEEP * 2 * WIDE
    return c, z


@triton.jit
def turned(
    lefts, rights, there, total, LENGTH: tl.constexpr, DEEP: tl.constexpr, PRECISION: tl.constexpr
):
    """total plus rows of LENGTH gradients times a matrix' transpose, its tiles read as they lie.

    lefts, rights: where the first tiles lie, rows x DEEP and units x DEEP.
    """
    for _ in range(0, LENGTH, DEEP):
        left = tl.load(lefts, mask=there, other=0.0)
        right = tl.trans(tl.load(rights))
        total = tl.dot(left, right, total, input_precision=PRECISION, out_dtype=total.dtype)
        lefts += DEEP
        rights += DEEP
    return total


@triton.jit
def gate(
    factor, matrix, added, source, mask, ops, product, state, inner,
    streams, hidden, source_width, node_stride, state_stride,
    WIDE: tl.constexpr, ADDED: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, UNITS: tl.constexpr, DEEP: tl.constexpr,
):  # fmt: skip
    """States of a group's nodes: s + σ(c) (f(z) - s), [c, z] = factor times matrix (+ added).

    factor (B, W), matrix (k, W, 2, W), added (B, 2H), source (B, source_width), mask (B, W),
    ops (k) → product (k, B, 2, W) with nodes `node_stride` apart, state and inner (k, B, W) with
    nodes `state_stride` apart: inner is the state times the mask in the factors' type.
    """
    i = index64(tl.program_id(2))
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    units = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    deep = tl.arange(0, DEEP)
    row = rows[:, None]
    unit = units[None, :]
    there = row < streams
    whole = there & (unit < hidden)
    kind = product.dtype.element_ty
    full = state.dtype.element_ty
    lefts = factor + row * WIDE + deep[None, :]
    rights = matrix + i * 2 * WIDE * WIDE + deep[:, None] * 2 * WIDE + unit
    c = tl.zeros((ROWS, UNITS), full)
    z = tl.zeros((ROWS, UNITS), full)
    c, z = halves(lefts, rights, there, c, z, WIDE, DEEP, PRECISION)
    c = c.to(kind)
    z = z.to(kind)
    at = product + index64(i) * node_stride + row * 2 * WIDE + unit
    tl.store(at, c, mask=there)
    tl.store(at + WIDE, z, mask=there)
    c = c.to(full)
    z = z.to(full)
    if ADDED:
        c += tl.load(added + row * 2 * hidden + unit, mask=whole, other=0.0)
        z += tl.load(added + row * 2 * hidden + hidden + unit, mask=whole, other=0.0)
    s = tl.load(source + row * source_width + unit, mask=whole, other=0.0)
    result = s + tl.sigmoid(c) * (activated(tl.load(ops + i), z) - s)
    result = tl.where(whole, result, 0.0)
    to = i * state_stride + row * WIDE + unit
    tl.store(state + to, result, mask=there)
    if MASKED:
        result *= tl.load(mask + row * WIDE + unit, mask=there, other=0.0)
    tl.store(inner + to, result.to(kind), mask=there)


@triton.jit
def mean(
    states, chosen, mask, result, inner, streams, hidden, count, share, state_stride,
    WIDE: tl.constexpr, MASKED: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """The mean of the states at the slots `chosen`, of which there are `count` = 1 / share.

    → result (B, H), and inner (B, W): times the mask, in the factors' type.
    """
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    unit = (tl.program_id(0) * UNITS + tl.arange(0, UNITS))[None, :]
    there = row < streams
    total = tl.zeros((ROWS, UNITS), result.dtype.element_ty)
    for k in range(count):
        place = index64(tl.load(chosen + k)) * state_stride
        total += tl.load(states + place + row * WIDE + unit, mask=there, other=0.0)
    total *= share
    tl.store(result + row * hidden + unit, total, mask=there & (unit < hidden))
    if MASKED:
        total *= tl.load(mask + row * WIDE + unit, mask=there, other=0.0)
    tl.store(inner + row * WIDE + unit, total.to(inner.dtype.element_ty), mask=there)


@triton.jit
def spread(
    gradient, onward, flags, gradients, streams, hidden, count, share,
    WIDE: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """Gradients of all `count` states: (gradient + onward) share where their flag is 1, else 0.

    gradient (B, H), onward (B, W), which becomes 0, flags (count) → gradients (count, B, W).
    """
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    unit = (tl.program_id(0) * UNITS + tl.arange(0, UNITS))[None, :]
    there = row < streams
    at = row * WIDE + unit
    arrived = tl.load(gradient + row * hidden + unit, mask=there & (unit < hidden), other=0.0)
    total = (arrived + tl.load(onward + at, mask=there, other=0.0)) * share
    tl.store(onward + at, tl.zeros_like(total), mask=there)
    for i in range(count):
        own = tl.where(tl.load(flags + i) == 1, total, 0.0)
        tl.store(gradients + i * streams * WIDE + at, own, mask=there)


@triton.jit
def gate_back(
    product, added, source, ops, gradients, reach, whole, streams, hidden, nodes, source_width,
    node_stride, WIDE: tl.constexpr, ADDED: tl.constexpr,
    ROWS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """Back through `gate`'s element-wise part: the products become their own gradients.

    gradients (k, B, W) of the nodes' states; adds to reach (B, W), the source's gradient, what
    comes to it directly. With `added`, its gradient goes unrounded to whole (B, 2H).
    """
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    unit = (tl.program_id(0) * UNITS + tl.arange(0, UNITS))[None, :]
    there = row < streams
    inside = there & (unit < hidden)
    full = gradients.dtype.element_ty
    kind = product.dtype.element_ty
    s = tl.load(source + row * source_width + unit, mask=inside, other=0.0)
    total = tl.zeros((ROWS, UNITS), full)
    for i in range(nodes):
        at = product + index64(i) * node_stride + row * 2 * WIDE + unit
        c = tl.load(at, mask=there, other=0.0).to(full)
        z = tl.load(at + WIDE, mask=there, other=0.0).to(full)
        if ADDED:
            c += tl.load(added + row * 2 * hidden + unit, mask=inside, other=0.0)
            z += tl.load(added + row * 2 * hidden + hidden + unit, mask=inside, other=0.0)
        d = tl.load(gradients + (i * streams + row) * WIDE + unit, mask=there, other=0.0)
        op = tl.load(ops + i)
        opened = tl.sigmoid(c)
        value = activated(op, z)
        through = d * opened
        rest = d - through
        c = rest * opened * (value - s)
        z = through * risen(op, z, value)
        tl.store(at, c.to(kind), mask=there)
        tl.store(at + WIDE, z.to(kind), mask=there)
        if ADDED:
            tl.store(whole + row * 2 * hidden + unit, c, mask=inside)
            tl.store(whole + row * 2 * hidden + hidden + unit, z, mask=inside)
        total += rest
    to = reach + row * WIDE + unit
    tl.store(to, tl.load(to, mask=there, other=0.0) + total, mask=there)


@triton.jit
def product_back(
    product, matrix, mask, reach, streams, nodes, node_stride,
    WIDE: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, UNITS: tl.constexpr, DEEP: tl.constexpr,
):  # fmt: skip
    """Adds to reach (B, W) the gradients (k, B, 2, W) times the matrices' transposes and mask."""
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    units = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    deep = tl.arange(0, DEEP)
    there = row < streams
    full = reach.dtype.element_ty
    total = tl.zeros((ROWS, UNITS), full)
    for i in range(nodes):
        lefts = product + index64(i) * node_stride + row * 2 * WIDE + deep[None, :]
        rights = matrix + i * 2 * WIDE * WIDE + units[:, None] * 2 * WIDE + deep[None, :]
        total = turned(lefts, rights, there, total, 2 * WIDE, DEEP, PRECISION)
    at = row * WIDE + units[None, :]
    if MASKED:
        total *= tl.load(mask + at, mask=there, other=0.0)
    to = reach + at
    tl.store(to, tl.load(to, mask=there, other=0.0) + total, mask=there)
