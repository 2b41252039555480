"""Derived and mixed cells against formulas written out element by element, and each other."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from rnnnas.errors import UsageError
from rnnnas.lm import cell as derived
from rnnnas.lm import search_cell
from rnnnas.lm.fast import mixture
from rnnnas.nas.genotype import CellGene, Gene
from rnnnas.nas.space import CellSpace, recurrent_space
from rnnnas.nas.zoo import ZOO

DOUBLE = torch.float64


def rand(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v))


SCALAR = {
    "tanh": math.tanh,
    "relu": lambda v: max(v, 0.0),
    "sigmoid": sigmoid,
    "identity": lambda v: v,
}


def candidate(state: list[float], inner: list[float], matrix: Tensor, op: str) -> list[float]:
    """s + σ(c) (f(z) - s) for one stream, number by number."""
    hidden = len(state)
    product = [
        sum(inner[i] * float(matrix[i, k]) for i in range(len(inner))) for k in range(2 * hidden)
    ]
    return [
        s + sigmoid(product[k]) * (SCALAR[op](product[hidden + k]) - s) for k, s in enumerate(state)
    ]


def times(state: list[float], mask: Tensor) -> list[float]:
    return [s * float(m) for s, m in zip(state, mask, strict=True)]


@pytest.mark.parametrize("seed", range(4))
def test_derived_step_number_by_number(seed: int) -> None:
    space = recurrent_space(4)
    cell = space.sample(random.Random(seed))
    hidden, width, streams = 3, 2, 2
    x, h = rand(seed, streams, width), rand(seed + 1, streams, hidden)
    first = rand(seed + 2, width + hidden, 2 * hidden)
    nodes = rand(seed + 3, 4, hidden, 2 * hidden)
    mx, mh = rand(seed + 4, streams, width), rand(seed + 5, streams, hidden)
    result = derived.step(x, h, first, nodes, cell, mx, mh)
    for b in range(streams):
        carried = h[b].tolist()
        joined = times(x[b].tolist(), mx[b]) + times(carried, mh[b])
        states = [candidate(carried, joined, first, "tanh")]
        for i, ((op, source),) in enumerate(cell.nodes):
            s = states[source]
            states.append(candidate(s, times(s, mh[b]), nodes[i], op))
        expected = [sum(column) / 4 for column in zip(*states[1:], strict=True)]
        torch.testing.assert_close(result[b], torch.tensor(expected, dtype=DOUBLE))


def test_concat_chooses_the_states_of_the_output() -> None:
    cell = CellGene(nodes=((Gene("tanh", 0),), (Gene("relu", 1),)), concat=(2,))
    both = CellGene(nodes=cell.nodes, concat=(1, 2))
    only_first = CellGene(nodes=cell.nodes, concat=(1,))
    x, h, first, nodes = rand(0, 2, 3), rand(1, 2, 3), rand(2, 6, 6), rand(3, 2, 3, 6)
    outputs = [derived.step(x, h, first, nodes, c, None, None) for c in (cell, both, only_first)]
    torch.testing.assert_close(outputs[1], (outputs[0] + outputs[2]) / 2)


def test_unroll_carries_the_state() -> None:
    cell = ZOO["DARTS_V2"].genotype.recurrent
    inputs, h = rand(0, 3, 2, 4), rand(1, 2, 4)
    first, nodes = rand(2, 8, 8), rand(3, 8, 4, 8)
    whole = derived.unroll(inputs, h, first, nodes, cell, None, None)
    start = derived.unroll(inputs[:1], h, first, nodes, cell, None, None)
    rest = derived.unroll(inputs[1:], start[-1], first, nodes, cell, None, None)
    torch.testing.assert_close(whole, torch.cat([start, rest]))


@pytest.mark.parametrize("name", ZOO)
def test_zoo_cells_run(name: str) -> None:
    cell = ZOO[name].genotype.recurrent
    derived.check_cell(cell)
    count = len(cell.nodes)
    out = derived.unroll(
        rand(0, 2, 3, 4), rand(1, 3, 4), rand(2, 8, 8), rand(3, count, 4, 8), cell, None, None
    )
    assert out.shape == (2, 3, 4) and bool(torch.isfinite(out).all())


def test_check_cell_names_what_is_wrong() -> None:
    with pytest.raises(UsageError, match="node 1 uses 'swish'"):
        derived.check_cell(CellGene(nodes=((Gene("swish", 0),),), concat=(1,)))
    two = ((Gene("tanh", 0), Gene("tanh", 1)), (Gene("tanh", 0), Gene("tanh", 1)))
    with pytest.raises(UsageError, match="one input state"):
        derived.check_cell(CellGene(nodes=two, concat=(2, 3)))


def test_normalise_is_batch_normalisation_with_batch_statistics() -> None:
    state = rand(0, 5, 3, scale=2.0) + 1
    expected = torch.nn.functional.batch_norm(state, None, None, training=True)
    torch.testing.assert_close(search_cell.normalise(state), expected)


@pytest.mark.parametrize("seed", range(3))
def test_mixed_reference_number_by_number(seed: int) -> None:
    """One step with `none` taking mass, for every stream, with the normalisation by hand."""
    space = recurrent_space(2)
    hidden, streams = 2, 3
    x, h = rand(seed, 1, streams, hidden), rand(seed + 1, streams, hidden)
    first, nodes = rand(seed + 2, 4, 4), rand(seed + 3, 2, hidden, 4)
    mh = rand(seed + 5, streams, hidden).abs()
    p = rand(seed + 6, 3, 5).softmax(-1)

    def normal(rows: list[list[float]]) -> list[list[float]]:
        out = [[0.0] * hidden for _ in rows]
        for k in range(hidden):
            column = [row[k] for row in rows]
            mean = sum(column) / streams
            var = sum((v - mean) ** 2 for v in column) / streams
            for b, v in enumerate(column):
                out[b][k] = (v - mean) / math.sqrt(var + 1e-5)
        return out

    carried = h.tolist()
    joined = [x[0, b].tolist() + times(carried[b], mh[b]) for b in range(streams)]
    states = [normal([candidate(carried[b], joined[b], first, "tanh") for b in range(streams)])]
    for node in range(2):
        rows = []
        for b in range(streams):
            total = [0.0] * hidden
            for j in range(node + 1):
                edge = node * (node + 1) // 2 + j
                s = states[j][b]
                for o, op in enumerate(space.ops):
                    if op != "none":
                        u = candidate(s, times(s, mh[b]), nodes[node], op)
                        total = [t + float(p[edge, o]) * v for t, v in zip(total, u, strict=True)]
            rows.append(total)
        states.append(normal(rows))
    expected = [
        [(states[1][b][k] + states[2][b][k]) / 2 for k in range(hidden)] for b in range(streams)
    ]
    for unroll in (search_cell.unroll_reference, search_cell.unroll, mixture.unroll):
        result = unroll(x, h, first, nodes, space, p, None, mh)
        torch.testing.assert_close(result[0], torch.tensor(expected, dtype=DOUBLE))


@pytest.mark.parametrize(
    ("seed", "nodes", "hidden", "width", "streams", "masks"),
    [(0, 8, 5, 5, 4, True), (1, 3, 4, 6, 2, False), (2, 1, 3, 3, 7, True), (3, 5, 2, 4, 3, False)],
)
def test_cheap_mixture_equals_the_reference_with_gradients(
    seed: int, nodes: int, hidden: int, width: int, streams: int, masks: bool
) -> None:
    space = recurrent_space(nodes)
    weights = rand(seed, len(space.edges), 5).softmax(-1)
    tensors = [
        rand(seed + 1, 4, streams, width), rand(seed + 2, streams, hidden),
        rand(seed + 3, width + hidden, 2 * hidden), rand(seed + 4, nodes, hidden, 2 * hidden),
        weights,
    ]  # fmt: skip
    mask_x = rand(seed + 5, streams, width).abs() if masks else None
    mask_h = rand(seed + 6, streams, hidden).abs() if masks else None
    results = []
    for unroll in (search_cell.unroll_reference, search_cell.unroll):
        leaves = [t.clone().requires_grad_() for t in tensors]
        inputs, h, first, matrices, p = leaves
        out = unroll(inputs, h, first, matrices, space, p, mask_x, mask_h)
        gradient = rand(seed + 7, *out.shape)
        results.append([out, *torch.autograd.grad((out * gradient).sum(), leaves)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_mixture_on_one_path_is_the_derived_cell_normalised() -> None:
    """With all mass on a genotype's genes only those edges act."""
    space = recurrent_space(3)
    cell = space.sample(random.Random(1))
    weights = torch.zeros(len(space.edges), 5, dtype=DOUBLE)
    for node, ((op, source),) in enumerate(cell.nodes):
        weights[space.rows(node)[source], space.ops.index(op)] = 1.0
    x, h, first, nodes = rand(0, 4, 3), rand(1, 4, 3), rand(2, 6, 6), rand(3, 3, 3, 6)
    states = [search_cell.normalise(derived.first_state(x, h, first, None, None))]
    for weight, ((op, source),) in zip(nodes, cell.nodes, strict=True):
        s = states[source]
        states.append(search_cell.normalise(derived.gated(s, s @ weight, op)))
    expected = torch.stack(states[1:]).mean(0)
    result = search_cell.unroll(x.unsqueeze(0), h, first, nodes, space, weights, None, None)
    torch.testing.assert_close(result[0], expected)


def test_pruned_operations_get_nothing() -> None:
    space = recurrent_space(2)
    assert isinstance(space, CellSpace)
    weights = torch.zeros(3, 5, dtype=DOUBLE)
    out = search_cell.unroll(
        rand(0, 2, 4, 3), rand(1, 4, 3), rand(2, 6, 6), rand(3, 2, 3, 6), space, weights, None, None
    )
    assert torch.equal(out, torch.zeros_like(out))
