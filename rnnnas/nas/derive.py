"""Settings of deriving a cell, and deriving within limits on its operations."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from rnnnas.errors import UsageError, nearest
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.relax.base import Alphas, Relaxation, Spaces

Limits = Mapping[str, Mapping[str, int]]  # of a cell, in how many genes an operation may stand


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitConfig:
    """How the cells of an image network are read off the scores.

    limits: at most so many genes of a derived cell have an operation, see
        `CellSpace.discretise_within`; genes; a table a cell, as {normal = {skip_connect = 2}};
        none, though P-DARTS keeps two identities
    """

    limits: dict[str, dict[str, int]] = field(default_factory=dict)

    def check(self, cells: Collection[str], ops: Collection[str]) -> None:
        """Refuse limits of a cell or of an operation that there is not.

        Raises:
            UsageError: naming the setting and what there is.
        """
        for cell, most in self.limits.items():
            if cell not in cells or not isinstance(most, Mapping):
                raise UsageError(
                    f"derive.limits.{cell} = {most} must be a table of a cell of this network: "
                    f"{', '.join(cells)}"
                )
            for op, count in most.items():
                if op not in ops:
                    raise UsageError(
                        f"derive.limits.{cell} has the operation {op!r}{nearest(op, list(ops))}",
                        f"operations: {', '.join(ops)}",
                    )
                if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                    raise UsageError(
                        f"derive.limits.{cell}.{op} = {count} must be a whole number, 0 or more"
                    )


def derive(
    relaxation: Relaxation, alphas: Alphas, spaces: Spaces, limits: Limits | None = None
) -> Genotype:
    """The genotype that the alphas stand for: `CellSpace.discretise_within` of the scores."""
    scores = relaxation.scores({name: a.detach() for name, a in alphas.items()}, spaces)
    cells = {
        name: space.discretise_within(scores[name].tolist(), (limits or {}).get(name, {}))
        for name, space in spaces.items()
    }
    return Genotype(cells=cells)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeriveConfig:
    """How the recurrent cell is read off a search that has moved alphas.

    by: "scores", as each method does, or "perturbation", what hurts most when it is masked (Wang et
        al. 2021); scores cost nothing
    order: of the edges and then of the nodes that are decided, drawn by the seed or as they are
        numbered; at random as published
    tune_windows: weight steps between two decisions; windows; 0 or more; few, since a search has as
        many decisions as edges
    lr: constant step size of these, as a share of `weights.lr`; share; above 0; small, since the
        weights are trained already
    targets: each mask is scored on the first so many targets of the alphas' text, or on all of it
        where it is shorter; tokens; 0 or more, 0 for as many in all as the search trains on;
        deriving then costs about as much as searching
    """

    by: Literal["scores", "perturbation"] = "scores"
    order: Literal["random", "node"] = "random"
    tune_windows: int = 10
    lr: float = 0.1
    targets: int = 0

    def __post_init__(self) -> None:
        for name in ("tune_windows", "targets"):
            if getattr(self, name) < 0:
                raise UsageError(f"derive.{name} = {getattr(self, name)} must not be negative")
        if not self.lr > 0:
            raise UsageError(f"derive.lr = {self.lr} must be positive")
