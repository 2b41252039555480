"""The settings of a complete table: every cell of a small space, trained with several seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rnnnas.errors import UsageError
from rnnnas.nas.operations import NONE, RECURRENT_OPS
from rnnnas.nas.space import CellSpace, recurrent_space

BY_TABLE = ("corpus", "genotype", "seed")  # what the table sets for every training


def _preset() -> dict[str, Any]:
    return {"preset": "table"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TableConfig:
    """Every cell of a space, each trained with the same few seeds.

    corpus: name of the text that is trained on; -; a prepared corpus (`rnnnas corpus list`); no
        default, since only you know
    nodes: of every cell; nodes; 1 or more; 3 nodes of four operations are 384 cells
    ops: operations of an edge, one edge a node; -; names, each once, without `none`; those of the
        DARTS paper
    seeds: of the trainings of every cell; -; whole numbers from 0, each once; three, to tell cells
        from chance
    stretches: parts of equal length that a training's curve is told in, each by the mean train
        loss of its second half; parts; 1 or more; ten, among which is the first rung of a search
        by halving
    train: settings of the trainings, over their preset; -; a table; a training of a few seconds
    """

    corpus: str
    nodes: int = 3
    ops: tuple[str, ...] = tuple(op for op in RECURRENT_OPS if op != NONE)
    seeds: tuple[int, ...] = (1, 2, 3)
    stretches: int = 10
    train: dict[str, Any] = field(default_factory=_preset)

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.stretches < 1:
            raise UsageError(
                f"nodes = {self.nodes} and stretches = {self.stretches} must be at least 1"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise UsageError(
                f"seeds = {list(self.seeds)} must be whole numbers from 0, each once, at least one"
            )
        if NONE in self.ops:
            raise UsageError(f"ops = {list(self.ops)}: with {NONE!r} a cell would be there twice")
        if not isinstance(self.train, Mapping):
            raise UsageError(f"train is a group of settings, not the value {self.train!r}")
        for key in BY_TABLE:
            if key in self.train:
                raise UsageError(
                    f"train.{key} = {self.train[key]!r} has no place in a table, which sets it",
                    "a table's own: --corpus, --seeds",
                )
        _ = self.space  # refuses unknown operations

    @property
    def space(self) -> CellSpace:
        """The cells that the table holds."""
        return recurrent_space(self.nodes, ops=self.ops)
