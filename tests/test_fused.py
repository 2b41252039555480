"""The fast cell against the readable one: outputs and every gradient, in float64."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rnnnas.lm import cell as derived
from rnnnas.lm import search_cell
from rnnnas.lm.fast import derived as fused
from rnnnas.lm.fast import mixture
from rnnnas.nas.space import recurrent_space
from rnnnas.nas.zoo import ZOO

DOUBLE = torch.float64


def mixed_case(seed: int) -> tuple[list[Tensor], Any, Tensor | None, Tensor | None]:
    """Random sizes, weights, masks and mixtures; rows of the mixture may be pruned to zeros."""
    rng = random.Random(seed)
    nodes, hidden, width = rng.randint(1, 8), rng.randint(1, 6), rng.randint(1, 6)
    steps, streams = rng.randint(1, 5), rng.randint(2, 6)
    draws = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=DOUBLE, generator=draws)

    space = recurrent_space(nodes)
    weights = rand(len(space.edges), 5).softmax(-1)
    if rng.random() < 0.5:
        weights = weights * (rand(len(space.edges), 5) > -0.5)
    tensors = [
        rand(steps, streams, width), rand(streams, hidden),
        rand(width + hidden, 2 * hidden), rand(nodes, hidden, 2 * hidden), weights,
    ]  # fmt: skip
    mask_x = rand(streams, width).abs() if rng.random() < 0.5 else None
    mask_h = rand(streams, hidden).abs() if rng.random() < 0.5 else None
    return tensors, space, mask_x, mask_h


@pytest.mark.parametrize("seed", range(25))
def test_mixed_values_and_gradients(seed: int) -> None:
    tensors, space, mask_x, mask_h = mixed_case(seed)
    results = []
    for unroll in (search_cell.unroll_reference, mixture.unroll):
        inputs, h, first, nodes, weights = leaves = [t.clone().requires_grad_() for t in tensors]
        out = unroll(inputs, h, first, nodes, space, weights, mask_x, mask_h)
        gradient = torch.randn(
            out.shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)
        )
        results.append([out, *torch.autograd.grad((out * gradient).sum(), leaves)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("wanted", range(5))
def test_mixed_gradient_of_one_input_alone(wanted: int) -> None:
    """What the architect asks for: gradients of the mixture only, or of the weights only."""
    tensors, space, mask_x, mask_h = mixed_case(3)
    results = []
    for unroll in (search_cell.unroll_reference, mixture.unroll):
        leaves = [t.clone() for t in tensors]
        leaves[wanted].requires_grad_()
        inputs, h, first, nodes, weights = leaves
        out = unroll(inputs, h, first, nodes, space, weights, mask_x, mask_h)
        results.append(torch.autograd.grad(out.square().sum(), leaves[wanted])[0])
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)


def test_mixed_without_gradients_keeps_nothing() -> None:
    tensors, space, mask_x, mask_h = mixed_case(4)
    inputs, h, first, nodes, weights = [t.clone().requires_grad_() for t in tensors]
    args = (inputs, h, first, nodes, space, weights, mask_x, mask_h)
    expected = mixture.unroll(*args)
    with torch.no_grad():
        got = mixture.unroll(*args)
    assert not got.requires_grad
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_two_windows_at_once_do_not_share_buffers() -> None:
    """A pool that handed a buffer out twice would mix the gradients of two windows."""
    cases = [mixed_case(6), mixed_case(6)]
    grads = []
    for together in (False, True):
        leaves = [[t.clone().requires_grad_() for t in c[0]] for c in cases]
        outs = []
        found = []
        for k, (own, (_, space, mask_x, mask_h)) in enumerate(zip(leaves, cases, strict=True)):
            inputs, h, first, nodes, weights = own
            out = mixture.unroll((k + 1) * inputs, h, first, nodes, space, weights, mask_x, mask_h)
            if together:
                outs.append(out)
            else:
                found.append(torch.autograd.grad(out.square().sum(), own))
        if together:
            found = [
                torch.autograd.grad(out.square().sum(), own)
                for out, own in zip(outs, leaves, strict=True)
            ]
        grads.append(found)
    for alone, beside in zip(*grads, strict=True):
        for a, b in zip(alone, beside, strict=True):
            assert torch.equal(a, b)


def test_a_second_backward_pass_is_refused() -> None:
    tensors, space, mask_x, mask_h = mixed_case(7)
    inputs, h, first, nodes, weights = [t.clone().requires_grad_() for t in tensors]
    out = mixture.unroll(inputs, h, first, nodes, space, weights, mask_x, mask_h).sum()
    out.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        out.backward()


def derived_case(seed: int) -> tuple[list[Tensor], Any, Tensor | None, Tensor | None]:
    """A random cell, from the space or with a concat of its own, sizes, weights and masks."""
    rng = random.Random(seed)
    nodes, hidden, width = rng.randint(1, 9), rng.randint(1, 6), rng.randint(1, 6)
    steps, streams = rng.randint(1, 5), rng.randint(1, 6)
    cell = recurrent_space(nodes).sample(rng)
    if rng.random() < 0.5:
        concat = tuple(sorted(rng.sample(range(1, nodes + 1), rng.randint(1, nodes))))
        cell = replace(cell, concat=concat)
    draws = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=DOUBLE, generator=draws)

    tensors = [
        rand(steps, streams, width), rand(streams, hidden),
        rand(width + hidden, 2 * hidden), rand(nodes, hidden, 2 * hidden),
    ]  # fmt: skip
    mask_x = rand(streams, width).abs() if rng.random() < 0.5 else None
    mask_h = rand(streams, hidden).abs() if rng.random() < 0.5 else None
    return tensors, cell, mask_x, mask_h


@pytest.mark.parametrize("seed", range(40))
def test_derived_values_and_gradients(seed: int) -> None:
    tensors, cell, mask_x, mask_h = derived_case(seed)
    results = []
    for unroll in (derived.unroll, fused.unroll):
        inputs, h, first, nodes = leaves = [t.clone().requires_grad_() for t in tensors]
        out = unroll(inputs, h, first, nodes, cell, mask_x, mask_h)
        gradient = torch.randn(
            out.shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)
        )
        grads = torch.autograd.grad((out * gradient).sum(), leaves, allow_unused=True)
        results.append([out, *grads])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ZOO)
def test_derived_zoo(name: str) -> None:
    cell = ZOO[name].genotype.recurrent
    draws = torch.Generator().manual_seed(0)
    shapes = ((3, 4, 5), (4, 5), (10, 10), (len(cell.nodes), 5, 10))
    tensors = [torch.randn(*s, dtype=DOUBLE, generator=draws) for s in shapes]
    results = []
    for unroll in (derived.unroll, fused.unroll):
        leaves = [t.clone().requires_grad_() for t in tensors]
        inputs, h, first, nodes = leaves
        out = unroll(inputs, h, first, nodes, cell, None, None)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_plan_groups_by_predecessor_and_depth() -> None:
    """DARTS_V2 takes states 0,1,1,1,2,5,3,5: five products in four levels instead of eight."""
    cell = ZOO["DARTS_V2"].genotype.recurrent
    made = fused.plan(cell)
    assert [group.size for group in made.groups] == [1, 3, 1, 1, 2]
    assert sorted(made.nodes) == list(range(8))
    known = {0}
    slots = {0: 0} | {node + 1: i + 1 for i, node in enumerate(made.nodes)}
    for group in made.groups:
        assert group.source in known
        for op, low, high in group.runs:
            for k in range(low, high):
                gene = cell.nodes[made.nodes[group.start + k - 1]][0]
                assert (gene.op, slots[gene.source]) == (op, group.source)
        known |= set(range(group.start, group.start + group.size))
    assert known == set(range(9))


def test_derived_without_gradients_and_twice() -> None:
    tensors, cell, mask_x, mask_h = derived_case(4)
    inputs, h, first, nodes = [t.clone().requires_grad_() for t in tensors]
    args = (inputs, h, first, nodes, cell, mask_x, mask_h)
    expected = fused.unroll(*args)
    with torch.no_grad():
        torch.testing.assert_close(fused.unroll(*args), expected, rtol=1e-12, atol=1e-12)
    expected.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        expected.sum().backward()
