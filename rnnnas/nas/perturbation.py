"""Deriving a cell by what hurts when it is taken away, not by alphas: DARTS-PT.

Wang et al., "Rethinking Architecture Selection in Differentiable NAS" (ICLR 2021), algorithm 1:
first every edge, in some order, keeps the operation without which the loss is highest, then every
node the edges without which it is. Between two decisions weights are tuned under what is decided.

Legend: E edges, O operations.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, final

from torch import Tensor

from rnnnas.errors import DivergedError
from rnnnas.nas.genotype import Gene, Genotype
from rnnnas.nas.relax.base import Mixture, Mixtures, Spaces


class Decision(NamedTuple):
    """One decision. place: an edge, or a node counted from 0, of cell `cell`."""

    cell: str
    kind: Literal["operation", "edges"]
    place: int


class Decided(NamedTuple):
    """What was decided. kept: operations or edges; losses: mean nats a target without each
    candidate, empty where there was but one.
    """

    decision: Decision
    candidates: tuple[int, ...]
    losses: tuple[float, ...]
    kept: tuple[int, ...]


@final
class Perturbation:
    """The decisions that make a cell of a network under mixtures, one after the other.

    What stands for the mixture is `scores`: what a deterministic method computes under, and the
    softmax of a sampling one's alphas. A masked operation has weight zero while all others keep
    theirs (nothing is shared out anew), and is left out of the mixture's paths, so that products
    that only it needs are saved. A decided edge gives all its weight, `none`'s share too, to its
    operation: weight 1 where each row of the scores adds up to 1. An edge that is masked or not
    kept has weight zero and no paths. `none` is no candidate.

    Args:
        scores: (E, O) of each cell, not negative.

    Usage: while not `done`, give the loss under `ask()` to `tell` as long as there are `open`
    candidates, then `decide`.
    """

    def __init__(self, spaces: Spaces, scores: Mapping[str, Tensor], order: str, seed: int) -> None:
        self.spaces = spaces
        self.scores = {name: scores[name].detach() for name in spaces}
        rng = random.Random(f"{seed}/perturbation")
        edges = [
            Decision(name, "operation", edge)
            for name, space in spaces.items()
            for edge in range(len(space.edges))
            if space.choices(edge)
        ]
        nodes = [
            Decision(name, "edges", node)
            for name, space in spaces.items()
            for node in range(space.nodes)
            if len(self._usable(name, node)) > space.kept(node)
        ]
        if order == "random":
            rng.shuffle(edges)
            rng.shuffle(nodes)
        self.plan = (*edges, *nodes)
        self.kept: list[tuple[int, ...]] = []  # of the decisions that are made
        self.losses: list[float] = []  # of the present one's candidates

    def _usable(self, cell: str, node: int) -> list[int]:
        space = self.spaces[cell]
        return [edge for edge in space.rows(node) if space.choices(edge)]

    def _candidates(self, decision: Decision) -> tuple[int, ...]:
        if decision.kind == "edges":
            return tuple(self._usable(decision.cell, decision.place))
        return tuple(self.spaces[decision.cell].choices(decision.place))

    @property
    def total(self) -> int:
        """How many masks are tried in all."""
        counts = [len(self._candidates(decision)) for decision in self.plan]
        return sum(count for count in counts if count > 1)

    @property
    def tried(self) -> int:
        """How many of them are told already."""
        counts = [len(self._candidates(decision)) for decision in self.plan[: len(self.kept)]]
        return sum(count for count in counts if count > 1) + len(self.losses)

    @property
    def done(self) -> bool:
        """Whether all is decided."""
        return len(self.kept) == len(self.plan)

    @property
    def open(self) -> bool:
        """Whether the present decision has a candidate whose mask was not told yet."""
        count = len(self._candidates(self.plan[len(self.kept)]))
        return count > 1 and len(self.losses) < count

    def mixtures(self) -> Mixtures:
        """The mixtures as far as they are decided."""
        return self._built({})

    def ask(self) -> Mixtures:
        """The same with the next candidate masked."""
        decision = self.plan[len(self.kept)]
        candidate = self._candidates(decision)[len(self.losses)]
        if decision.kind == "edges":
            return self._built({(decision.cell, candidate): None})
        return self._built({(decision.cell, decision.place): candidate})

    def _built(self, masks: Mapping[tuple[str, int], int | None]) -> Mixtures:
        """masks: the operation that is masked on an edge of a cell, None for all of them."""
        chosen, gone = self._settled()
        gone |= {place for place, op in masks.items() if op is None}
        built = {}
        for name, space in self.spaces.items():
            scores = self.scores[name]
            weights = scores.new_zeros(scores.shape)
            paths = []
            for edge in range(len(space.edges)):
                if (name, edge) in gone:
                    continue
                op = chosen.get((name, edge))
                if op is not None:
                    weights[edge, op] = scores[edge].sum()
                    paths.append((edge, op))
                    continue
                weights[edge] = scores[edge]
                masked = masks.get((name, edge))
                if masked is not None:
                    weights[edge, masked] = 0.0
                paths += [(edge, o) for o in space.choices(edge) if o != masked]
            built[name] = Mixture(weights, tuple(paths))
        return built

    def _settled(self) -> tuple[dict[tuple[str, int], int], set[tuple[str, int]]]:
        """The operation of each (cell, edge) that has one, and the edges that were not kept."""
        chosen: dict[tuple[str, int], int] = {}
        gone: set[tuple[str, int]] = set()
        for (cell, kind, place), kept in zip(self.plan, self.kept, strict=False):
            if kind == "operation":
                (chosen[cell, place],) = kept
            else:
                gone |= {(cell, edge) for edge in self._usable(cell, place) if edge not in kept}
        return chosen, gone

    def tell(self, loss: float) -> None:
        """Take in the loss under what `ask` gave, mean nats a target; not finite: it diverged."""
        self.losses.append(loss if math.isfinite(loss) else math.inf)

    def decide(self) -> Decided:
        """Keep that without which the loss is highest; ties go to the lower number.

        Raises:
            DivergedError: where the loss was finite under no mask.
        """
        decision = self.plan[len(self.kept)]
        candidates, losses = self._candidates(decision), tuple(self.losses)
        if losses and not any(math.isfinite(loss) for loss in losses):
            raise DivergedError(
                "the loss was not finite whatever was masked",
                "lower the step size with --set derive.lr=... and start with --fresh",
            )
        space = self.spaces[decision.cell]
        count = 1 if decision.kind == "operation" else space.kept(decision.place)
        loss_of = dict(zip(candidates, losses or (0.0,), strict=True))
        kept = sorted(sorted(candidates, key=lambda c: (-loss_of[c], c))[:count])
        self.kept.append(tuple(kept))
        self.losses = []
        return Decided(decision, candidates, losses, tuple(kept))

    def genotype(self) -> Genotype:
        """The cells, once all is decided."""
        chosen, gone = self._settled()
        cells = {}
        for name, space in self.spaces.items():
            nodes = tuple(
                tuple(
                    Gene(space.ops[chosen[name, edge]], space.edges[edge][0])
                    for edge in self._usable(name, node)
                    if (name, edge) not in gone
                )
                for node in range(space.nodes)
            )
            cells[name] = space.cell(nodes)
        return Genotype(cells=cells)

    def state(self) -> dict[str, Any]:
        """What `restore` needs, plain."""
        return {"kept": [list(kept) for kept in self.kept], "losses": list(self.losses)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        self.kept = [tuple(kept) for kept in state["kept"]]
        self.losses = list(state["losses"])
