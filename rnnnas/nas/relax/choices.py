"""The choices that a cell is made of, and the draws that sampling methods make of them.

Legend: E edges, O operations, G choices, M the most options that any choice has. Where a cell
keeps one edge a node, a choice is a node's: one (predecessor, operation) pair out of all but
`none`, which no cell can be derived to: a node drawn so would be nothing, and a normalisation of
nothing multiplies gradients by hundreds. Where it keeps two, a choice is an edge's: one operation,
and `none` leaves the edge out.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from rnnnas.nas.relax.base import Alphas, Mixture, Mixtures, Spaces, allowed_softmax
from rnnnas.nas.space import NONE, CellSpace

Paths = tuple[tuple[int, int], ...]


class Choices(NamedTuple):
    """The choices of one cell, as positions in the flat (E·O,) table.

    places: (G, M) int64, padded; present: (G, M) bool, False where padded. Only allowed
    operations stand here.
    """

    places: Tensor
    present: Tensor

    def take(self, table: Tensor) -> Tensor:
        """The options' values of a table (E, O), minus infinity where there is none. (G, M)."""
        return table.reshape(-1)[self.places].masked_fill(~self.present, -torch.inf)

    def put(self, options: Tensor, like: Tensor) -> Tensor:
        """The inverse: a table of `like`'s shape (E, O), zero where no option stands."""
        flat = options.new_zeros(like.numel())
        flat = flat.scatter(0, self.places[self.present], options[self.present])
        return flat.view(like.shape)

    def paths(self, picked: Tensor, operations: int) -> Paths:
        """The (edge, operation) pairs of the options where `picked` (G, M) is True, rising."""
        flat = sorted(self.places[picked & self.present].tolist())
        return tuple(divmod(i, operations) for i in flat)


@lru_cache(maxsize=64)
def choices_of(space: CellSpace, device: torch.device) -> Choices:
    """The choices of a cell; an edge of which nothing is allowed makes none."""
    nodes = [list(space.rows(node)) for node in range(space.nodes)]
    owners = nodes if space.keep == 1 else [[edge] for rows in nodes for edge in rows]
    count = len(space.ops)
    able = [o for o in range(count) if space.keep > 1 or space.ops[o] != NONE]
    options = [
        [edge * count + o for edge in rows for o in able if space.allowed[edge][o]]
        for rows in owners
    ]
    options = [choice for choice in options if choice]
    most = max(map(len, options))
    places = [choice + [0] * (most - len(choice)) for choice in options]
    present = [[m < len(choice) for m in range(most)] for choice in options]
    return Choices(torch.tensor(places, device=device), torch.tensor(present, device=device))


def gumbel(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise, -log Exp(1), of `like`'s shape and type; always finite.

    An exponential draw may be 0 in floating point, of which the logarithm is infinite: such a
    draw is made again.
    """
    draws = torch.empty_like(like, requires_grad=False).exponential_(generator=generator)
    while bool((bad := ~((draws > 0) & torch.isfinite(draws))).any()):
        again = torch.empty_like(draws).exponential_(generator=generator)
        draws = torch.where(bad, again, draws)
    return -draws.log()


def soft_samples(
    alphas: Alphas, spaces: Spaces, tau: float, generator: torch.Generator
) -> Mixtures:
    """A Gumbel softmax over each edge's allowed operations, softmax((α + g) / tau)."""
    noisy = {name: alphas[name] + gumbel(alphas[name], generator) for name in spaces}
    return {n: Mixture(allowed_softmax(noisy[n] / tau, space)) for n, space in spaces.items()}


def one_hot(picked: Tensor, options: int, like: Tensor) -> Tensor:
    """(G,) int64 → (G, options) of `like`'s type, 1 at the picked option."""
    return torch.nn.functional.one_hot(picked, options).to(like.dtype)


def settle(choices: Choices, alpha: Tensor, before: Tensor, mixture: Mixture) -> None:
    """Undo what an optimiser did to options that were not drawn, and move a choice's drawn ones by
    one amount, in place, so that Σ exp over these is what it was: every other option keeps its
    probability, whatever the optimiser's momentum and weight decay.

    Args:
        alpha, before: (E, O), after and before the optimiser's step.
        mixture: whose `paths` are what was drawn.
    """
    drawn = torch.zeros_like(alpha)
    for edge, op in mixture.paths or ():
        drawn[edge, op] = 1
    picked = choices.take(drawn) > 0  # (G, M)
    old, new = choices.take(before), choices.take(alpha)
    shift = _mass(old, picked) - _mass(new, picked)  # (G, 1); of nothing drawn, not a number
    moved = torch.where(picked, new + shift, old)
    known = choices.put(torch.ones_like(moved), alpha) > 0
    alpha.copy_(torch.where(known, choices.put(moved, alpha), before))


def _mass(logits: Tensor, picked: Tensor) -> Tensor:
    """The logarithm of Σ exp over what was picked. (G, M) → (G, 1)."""
    return logits.masked_fill(~picked, -torch.inf).logsumexp(-1, keepdim=True)


def choice_softmax(table: Tensor, space: CellSpace) -> Tensor:
    """The probability of each option within its choice, (E, O); zero where not allowed."""
    choices = choices_of(space, table.device)
    return choices.put(choices.take(table).softmax(-1), table)
