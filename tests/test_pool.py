"""The buffers: never shared, used again whatever their shape, and bounded."""

from __future__ import annotations

import random

import pytest
import torch

from rnnnas.lm.fast import derived
from rnnnas.lm.fast.buffers import WORKSPACE, Workspace
from rnnnas.nas.zoo import ZOO


def test_what_is_taken_is_not_handed_out_again() -> None:
    workspace, like = Workspace(), torch.zeros(1)
    rng = random.Random(0)
    out: list[tuple[torch.Tensor, int]] = []
    for mark in range(300):
        if out and rng.random() < 0.5:
            buffer, expected = out.pop(rng.randrange(len(out)))
            assert bool((buffer == expected).all())
            workspace.give(buffer)
        else:
            buffer = workspace.take(like, rng.randint(1, 9), rng.randint(1, 50))
            buffer.fill_(mark)
            out.append((buffer, mark))


def test_a_buffer_serves_other_shapes_and_types() -> None:
    workspace = Workspace()
    first = workspace.take(torch.zeros(1), 6, 10)
    place = first.data_ptr()
    workspace.give(first)
    assert workspace.held() == 240
    other = workspace.take(torch.zeros(1, dtype=torch.float64), 5, 6)
    assert other.dtype == torch.float64 and other.shape == (5, 6) and other.data_ptr() == place
    workspace.give(other)
    again = workspace.take(torch.zeros(1, dtype=torch.bfloat16), 5, 3, 2)
    assert again.dtype == torch.bfloat16 and again.data_ptr() == place
    workspace.give(again)
    assert workspace.held() == 240, "the whole buffer came back, not the part that was asked for"
    larger = workspace.take(torch.zeros(1), 100)
    assert workspace.held() == 0, "the one that is too small made room"
    workspace.give(larger)
    workspace.clear()
    assert workspace.held() == 0


def test_windows_of_many_lengths_need_no_more_than_the_longest() -> None:
    cell = ZOO["DARTS_V2"].genotype.recurrent
    draws = torch.Generator().manual_seed(0)

    def window(steps: int) -> None:
        inputs = torch.randn(steps, 4, 6, generator=draws)
        first = torch.randn(12, 12, generator=draws).requires_grad_()
        nodes = torch.randn(8, 6, 12, generator=draws).requires_grad_()
        out = derived.unroll(inputs, torch.zeros(4, 6), first, nodes, cell, None, None)
        out.sum().backward()

    WORKSPACE.clear()
    window(55)
    longest = WORKSPACE.held()
    for steps in range(5, 56):
        window(steps)
    assert WORKSPACE.held() == longest
    WORKSPACE.clear()
    # Growing to it may leave a large buffer in a small one's place, but not one a length.
    for steps in range(5, 56):
        window(steps)
    assert WORKSPACE.held() < 2 * longest


def test_a_pool_apart_shares_nothing() -> None:
    workspace, like = Workspace(), torch.empty(0)
    outside = workspace.take(like, 8)
    workspace.give(outside)
    held = workspace.held()
    with pytest.raises(KeyError), workspace.apart():
        inside = workspace.take(like, 4)
        assert inside.data_ptr() != outside.data_ptr()
        workspace.give(inside)
        assert workspace.take(like, 2).data_ptr() == inside.data_ptr(), "used again within"
        raise KeyError  # the pool is whole again after an error too
    assert workspace.held() == held
    assert workspace.take(like, 8).data_ptr() == outside.data_ptr()
