"""Chains of blocks: the expected cost and the likeliest chain, against every chain in turn."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from rnnnas.cnn.dense.chain import expected_cost, likeliest

DOUBLE = torch.float64


def chains(count: int, reach: int) -> Iterator[tuple[int, ...]]:
    """All chains from block 0 to block `count`."""

    def on(chain: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if chain[-1] == count:
            yield chain
            return
        for j in range(chain[-1] + 1, min(chain[-1] + reach, count) + 1):
            yield from on((*chain, j))

    yield from on((0,))


def random_shares(count: int, reach: int, seed: int) -> Tensor:
    """(N, M), rows that sum to 1 over the blocks that there are."""
    logits = 2 * torch.randn(
        count, reach, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)
    )
    for i in range(count):
        logits[i, count - i :] = -torch.inf
    return logits.softmax(-1)


def probability(chain: tuple[int, ...], shares: Tensor) -> float:
    return math.prod(float(shares[i, j - i - 1]) for i, j in zip(chain, chain[1:], strict=False))


SIZES = [(1, 1), (3, 1), (4, 2), (6, 3), (5, 7)]


@pytest.mark.parametrize(("count", "reach"), SIZES)
def test_the_expected_cost_is_the_mean_over_all_chains(count: int, reach: int) -> None:
    draws = torch.Generator().manual_seed(7)
    own = torch.rand(count + 1, dtype=DOUBLE, generator=draws)
    entry = torch.rand(count, reach, dtype=DOUBLE, generator=draws)
    shares = random_shares(count, reach, 1)
    everything = list(chains(count, reach))
    assert len(everything) > 4 or count < 4
    total = sum(
        probability(chain, shares)
        * (
            float(own[list(chain)].sum())
            + sum(float(entry[i, j - i - 1]) for i, j in zip(chain, chain[1:], strict=False))
        )
        for chain in everything
    )
    assert sum(probability(chain, shares) for chain in everything) == pytest.approx(1.0)
    assert float(expected_cost(own, entry, shares)) == pytest.approx(total, rel=1e-12)


def test_the_gradients_of_the_expected_cost() -> None:
    draws = torch.Generator().manual_seed(8)
    given = [
        torch.rand(*shape, dtype=DOUBLE, generator=draws).requires_grad_()
        for shape in ((5,), (4, 3), (4, 3))
    ]
    assert torch.autograd.gradcheck(expected_cost, given)


@pytest.mark.parametrize(("count", "reach"), SIZES)
@pytest.mark.parametrize("seed", range(5))
def test_the_likeliest_chain_is_found(count: int, reach: int, seed: int) -> None:
    shares = random_shares(count, reach, seed)
    best = max(chains(count, reach), key=lambda chain: probability(chain, shares))
    assert tuple(likeliest(shares.tolist())) == best


def test_the_best_chain_is_not_that_of_the_best_steps() -> None:
    """From 0 the step to 1 is likelier, but what follows it is not."""
    shares = [[0.6, 0.4], [0.5, 0.5], [1.0, 0.0]]
    assert likeliest(shares) == [0, 2, 3]


def test_ties_go_to_the_nearer_block_and_long_chains_do_not_underflow() -> None:
    assert likeliest([[0.5, 0.5], [1.0, 0.0]]) == [0, 1, 2]
    count = 3000
    shares = [[0.4, 0.5, 0.1]] * (count - 2) + [[0.45, 0.55, 0.0], [1.0, 0.0, 0.0]]
    # A step of two at 0.5 beats two of one at 0.4, though 0.5^1500 is 0 as a number.
    assert likeliest(shares) == list(range(0, count + 1, 2)) and 0.5**1500 == 0
