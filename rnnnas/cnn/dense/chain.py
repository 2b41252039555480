"""Chains of blocks, each of which leads on to one of those after it by a probability.

Legend: blocks 0, 1, ..., N; block 0 begins every chain and block N ends it. p (N, M): row i is the
distribution over the blocks i + 1, ..., i + M that block i may lead to, and 0 beyond N.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def expected_cost(own: Tensor, entry: Tensor, shares: Tensor) -> Tensor:
    """What a chain costs on average: a scalar, differentiable in all arguments.

    The chained cost of DenseNAS (Fang et al., CVPR 2020), from the last block backward:
    c_N = own_N and c_i = own_i + Σ_k p_ik (entry_ik + c_(i+1+k)). It is c_0, the mean over all
    chains by their probabilities, of which there may be exponentially many.

    Args:
        own: (N + 1,), of each block but how it is entered. entry: (N, M), of entering block
            i + 1 + k from block i. shares: p.
    """
    last = len(own) - 1
    costs = [own[last]]  # of blocks i + 1, i + 2, ..., N
    for i in range(last - 1, -1, -1):
        total = own[i]
        for k, cost in enumerate(costs[: shares.shape[1]]):
            total = total + shares[i, k] * (entry[i, k] + cost)
        costs.insert(0, total)
    return costs[0]


def likeliest(shares: Sequence[Sequence[float]]) -> list[int]:
    """The chain of the largest product of probabilities, as block numbers from 0 to N.

    From the last block backward, b_N = 0 and b_i = max_k log p_ik + b_(i+1+k) (Viterbi; so
    the paper derives too); ties go to the nearer block.
    """
    last = len(shares)
    best = [0.0] * (last + 1)
    step = [0] * last
    for i in range(last - 1, -1, -1):
        logs = [math.log(p) if p > 0 else -math.inf for p in shares[i][: last - i]]
        values = [log + best[i + 1 + k] for k, log in enumerate(logs)]
        best[i] = max(values)
        step[i] = values.index(best[i])
    chain = [0]
    while chain[-1] < last:
        chain.append(chain[-1] + 1 + step[chain[-1]])
    return chain
