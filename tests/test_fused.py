"""The fast cell against the readable one: outputs and every gradient, in float64."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from rnnnas.lm import fused, mixed
from rnnnas.nas.space import recurrent_space

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
    for unroll in (mixed.unroll_reference, fused.unroll):
        inputs, h, first, nodes, weights = leaves = [t.clone().requires_grad_() for t in tensors]
        out = unroll(inputs, h, first, nodes, space, weights, mask_x, mask_h)
        slope = torch.randn(out.shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
        results.append([out, *torch.autograd.grad((out * slope).sum(), leaves)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("wanted", range(5))
def test_mixed_gradient_of_one_input_alone(wanted: int) -> None:
    """What the architect asks for: gradients of the mixture only, or of the weights only."""
    tensors, space, mask_x, mask_h = mixed_case(3)
    results = []
    for unroll in (mixed.unroll_reference, fused.unroll):
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
    expected = fused.unroll(*args)
    with torch.no_grad():
        got = fused.unroll(*args)
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
            out = fused.unroll((k + 1) * inputs, h, first, nodes, space, weights, mask_x, mask_h)
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
    out = fused.unroll(inputs, h, first, nodes, space, weights, mask_x, mask_h).sum()
    out.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        out.backward()
