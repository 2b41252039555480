"""The work of the cell under a mixture on a device, in Triton.

Legend: B streams, H hidden, U units computed, HW and UW = H and U rounded up to whole tiles,
n computed edges of a node. `mixture_cuda.py` says what lies where. Shares and sums have the
columns of `cpu_library.COLUMNS`. Products are rounded to their factors' type, as on a CPU. A node
has two launches forward and three backward; its edges are worked on side by side: one after the
other, each would wait for its memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rnnnas.lm.fast.triton_derived import halves, index64, tanh_of, turned


@triton.jit
def mixed(z, by_tanh, by_relu, by_sigmoid, by_identity):
    """The mixture's sum over operations, with the values of tanh, relu and sigmoid."""
    sigmoid = tl.sigmoid(z)
    # σ(2z) by σ(z) would lose digits where σ is near 1.
    tanh = tanh_of(z, tl.sigmoid(z + z))
    relu = tl.where(z < 0, 0.0, z)
    total = by_tanh * tanh + by_sigmoid * sigmoid
    # An infinity times zero is no number.
    total += tl.where(by_relu == 0, 0.0, by_relu * relu)
    total += tl.where(by_identity == 0, 0.0, by_identity * z)
    return total, tanh, relu, sigmoid


@triton.jit
def gated(
    left, matrix, added, states, sources, shares, product, values,
    streams, hidden, units, left_stride, edge_stride, state_stride, source_width, value_width,
    WIDE: tl.constexpr, ADDED: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, UNITS: tl.constexpr, DEEP: tl.constexpr,
):  # fmt: skip
    """What every computed edge adds to a node: P s + σ(c) (Σ_f p_f f(z) - P s), of the first U.

    left (B, WIDE) and states (B, source_width) at slot `sources` (n), matrix (WIDE, 2, WIDE),
    shares (n, 5), and for the first state added (B, 2H) → product (n, B, 2, WIDE) = [c, z] without
    what is added, values (n, B, value_width).
    """
    e = index64(tl.program_id(2))
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    unit = (tl.program_id(0) * UNITS + tl.arange(0, UNITS))[None, :]
    deep = tl.arange(0, DEEP)
    there = row < streams
    inside = there & (unit < units)
    full = values.dtype.element_ty
    kind = product.dtype.element_ty
    slot = index64(tl.load(sources + e))
    lefts = left + slot * left_stride + row * WIDE + deep[None, :]
    rights = matrix + deep[:, None] * 2 * WIDE + unit
    c = tl.zeros((ROWS, UNITS), full)
    z = tl.zeros((ROWS, UNITS), full)
    c, z = halves(lefts, rights, there, c, z, WIDE, DEEP, PRECISION)
    at = product + e * edge_stride + row * 2 * WIDE + unit
    tl.store(at, c.to(kind), mask=there)
    tl.store(at + WIDE, z.to(kind), mask=there)
    c = c.to(kind).to(full)
    z = z.to(kind).to(full)
    if ADDED:
        c += tl.load(added + row * 2 * hidden + unit, mask=inside, other=0.0)
        z += tl.load(added + row * 2 * hidden + hidden + unit, mask=inside, other=0.0)
    own = shares + e * 5
    source = states + slot * state_stride + row * source_width + unit
    carried = tl.load(own) * tl.load(source, mask=inside, other=0.0)
    value, _, _, _ = mixed(
        z, tl.load(own + 1), tl.load(own + 2), tl.load(own + 3), tl.load(own + 4)
    )
    result = carried + tl.sigmoid(c) * (value - carried)
    tl.store(values + (e * streams + row) * value_width + unit, result, mask=inside)


@triton.jit
def normalise(
    values, states, sources, shares, mask, state, rstd, inner,
    streams, hidden, units, inner_units, edges, roll, epsilon, state_stride,
    FULL: tl.constexpr, INNER: tl.constexpr, PARTIAL: tl.constexpr, MASKED: tl.constexpr,
    ROWS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """A node's state: the sum of its edges' values, normalised over all B streams, and rolled.

    values (n, B, FULL) of the first `units`, states (B, FULL) at slot `sources`, shares (n, 5) →
    state (B, FULL), rstd (FULL), inner (B, INNER): the state's first `inner_units` times the mask,
    in the products' type. One instance holds some units of all streams, ROWS >= B.
    """
    row = tl.arange(0, ROWS)[:, None]
    place = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    unit = place[None, :]
    stream = row < streams
    inside = stream & (unit < units)
    total = tl.zeros((ROWS, UNITS), state.dtype.element_ty)
    for e in tl.range(edges, loop_unroll_factor=4):
        total += tl.load(values + (e * streams + row) * FULL + unit, mask=inside, other=0.0)
    if PARTIAL:  # the units that this node does not compute
        beyond = stream & (unit >= units) & (unit < hidden)
        for e in range(edges):
            source = states + index64(tl.load(sources + e)) * state_stride
            s = tl.load(source + row * FULL + unit, mask=beyond, other=0.0)
            total += tl.load(shares + e * 5) * s
    centred = tl.where(stream, total - tl.sum(total, 0)[None, :] / streams, 0.0)
    scale = 1 / tl.sqrt(tl.sum(centred * centred, 0) / streams + epsilon)
    result = centred * scale[None, :]
    # Units beyond H stay where they are, as zeros.
    to = tl.where(place < hidden, (place + roll) % hidden, place)
    tl.store(state + row * FULL + to[None, :], result, mask=stream)
    tl.store(rstd + to, scale)
    if MASKED:
        result *= tl.load(mask + row * FULL + to[None, :], mask=stream, other=0.0)
    kept = tl.where(to[None, :] < inner_units, result, 0.0).to(inner.dtype.element_ty)
    tl.store(inner + row * INNER + to[None, :], kept, mask=stream & (to[None, :] < INNER))


@triton.jit
def levels(
    gradient, state, result, streams,
    FULL: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """Means over the B streams of gradient and of gradient times state. (B, FULL) → (2, FULL)."""
    row = tl.arange(0, ROWS)[:, None]
    unit = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    at = row * FULL + unit[None, :]
    d = tl.load(gradient + at, mask=row < streams, other=0.0)
    x = tl.load(state + at, mask=row < streams, other=0.0)
    tl.store(result + unit, tl.sum(d, 0) / streams)
    tl.store(result + FULL + unit, tl.sum(d * x, 0) / streams)


@triton.jit
def retreat(
    product, added, states, sources, shares, state, rstd, means, gradient, gradients, sums, whole,
    streams, hidden, units, roll, edge_stride, state_stride, gradient_stride, sums_stride,
    source_width,
    WIDE: tl.constexpr, FULL: tl.constexpr, ADDED: tl.constexpr, SUMS: tl.constexpr,
    ROWS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """Back through `normalise` and `gated`: the products become their own gradients, in place.

    gradient (B, FULL) of the state, means as `levels` gives them; adds to gradients (B, FULL) at
    slot `sources` what comes to the predecessors directly, and to sums (row tiles, n, 5, FULL),
    whose row tiles are `sums_stride` apart, the inner products of the shares' gradients, unit by
    unit. With `added`, its gradient goes unrounded to whole (B, 2H).
    """
    e = index64(tl.program_id(2))
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    place = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    unit = place[None, :]
    there = (row < streams) & (unit < hidden)
    inside = there & (unit < units)
    full = state.dtype.element_ty
    kind = product.dtype.element_ty
    to = tl.where(place < hidden, (place + roll) % hidden, place)
    turned = row * FULL + to[None, :]
    d = tl.load(gradient + turned, mask=there, other=0.0)
    x = tl.load(state + turned, mask=there, other=0.0)
    level = tl.load(means + to)
    along = tl.load(means + FULL + to)
    scale = tl.load(rstd + to)
    d = tl.where(there, (d - level[None, :] - x * along[None, :]) * scale[None, :], 0.0)
    own = shares + e * 5
    mass = tl.load(own)
    by_tanh = tl.load(own + 1)
    by_relu = tl.load(own + 2)
    by_sigmoid = tl.load(own + 3)
    by_identity = tl.load(own + 4)
    slot = index64(tl.load(sources + e))
    s = tl.load(states + slot * state_stride + row * source_width + unit, mask=there, other=0.0)
    at = product + e * edge_stride + row * 2 * WIDE + unit
    c = tl.load(at, mask=inside, other=0.0).to(full)
    z = tl.load(at + WIDE, mask=inside, other=0.0).to(full)
    if ADDED:
        c += tl.load(added + row * 2 * hidden + unit, mask=inside, other=0.0)
        z += tl.load(added + row * 2 * hidden + hidden + unit, mask=inside, other=0.0)
    value, tanh, relu, sigmoid = mixed(z, by_tanh, by_relu, by_sigmoid, by_identity)
    opened = tl.where(inside, tl.sigmoid(c), 0.0)
    through = d * opened
    rest = d - through
    rise = by_tanh * (1 - tanh * tanh) + by_sigmoid * sigmoid * (1 - sigmoid) + by_identity
    rise += tl.where(z > 0, by_relu, 0.0)
    c_gradient = rest * opened * (value - mass * s)
    z_gradient = through * rise
    tl.store(at, c_gradient.to(kind), mask=inside)
    tl.store(at + WIDE, z_gradient.to(kind), mask=inside)
    if ADDED:
        tl.store(whole + row * 2 * hidden + unit, c_gradient, mask=inside)
        tl.store(whole + row * 2 * hidden + hidden + unit, z_gradient, mask=inside)
    reach = gradients + slot * gradient_stride + row * FULL + unit
    tl.store(reach, tl.load(reach, mask=there, other=0.0) + rest * mass, mask=there)
    if SUMS:
        into = sums + tl.program_id(1) * sums_stride + e * 5 * FULL + place
        tl.store(into, tl.load(into) + tl.sum(rest * s, 0))
        tl.store(into + FULL, tl.load(into + FULL) + tl.sum(through * tanh, 0))
        tl.store(into + 2 * FULL, tl.load(into + 2 * FULL) + tl.sum(through * relu, 0))
        tl.store(into + 3 * FULL, tl.load(into + 3 * FULL) + tl.sum(through * sigmoid, 0))
        tl.store(into + 4 * FULL, tl.load(into + 4 * FULL) + tl.sum(through * z, 0))


@triton.jit
def product_back(
    gradient, sources, matrix, mask, reach, streams, gradient_stride, reach_stride, reach_width,
    WIDE: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, UNITS: tl.constexpr, DEEP: tl.constexpr,
):  # fmt: skip
    """Adds gradient (n, B, 2 WIDE) times the matrix' transpose and mask to reach at slot `sources`.

    reach: (B, reach_width) at each slot. Its first WIDE units.
    """
    e = index64(tl.program_id(2))
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    units = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    deep = tl.arange(0, DEEP)
    there = row < streams
    full = reach.dtype.element_ty
    lefts = gradient + e * gradient_stride + row * 2 * WIDE + deep[None, :]
    rights = matrix + units[:, None] * 2 * WIDE + deep[None, :]
    total = tl.zeros((ROWS, UNITS), full)
    total = turned(lefts, rights, there, total, 2 * WIDE, DEEP, PRECISION)
    at = row * reach_width + units[None, :]
    if MASKED:
        total *= tl.load(mask + at, mask=there, other=0.0)
    to = reach + index64(tl.load(sources + e)) * reach_stride + at
    tl.store(to, tl.load(to, mask=there, other=0.0) + total, mask=there)
