"""Stages of a search: the space shrinks from one to the next while the network grows.

P-DARTS (Chen et al., ICCV 2019). Each stage trains a fresh network and fresh alphas on the space
that the stage before has left; the scores at a stage's end decide what stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rnnnas.errors import UsageError
from rnnnas.nas.space import NONE, CellSpace

COUNT = 3  # stages of P-DARTS
SHRINK = 0.625  # of the operations that stay an edge: 8, 5, 3 in the paper; 5, 3, 2 for five


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConfig:
    """The stages of a search; they share the epochs equally, and each has schedules and a warm-up
    of its own.

    ops: operations an edge may use in each stage, `none` counted, the first all there are;
        operations; whole numbers from 1 that do not grow, [] for one stage or for the method's own;
        each method knows its own
    predecessors: edges a node may use in each stage; edges; whole numbers from 0, 0 for all, [] for
        all in every stage; all, as in P-DARTS
    hidden: H of each stage's network; units; whole numbers from 1, [] for equal steps from half of
        `model.hidden` to all of it; the network grows as in P-DARTS
    dropouth: `noise.dropouth` of each stage; share; each 0 to below 1, [] for `noise.dropouth` in
        all; the same noise in every stage
    """

    ops: tuple[int, ...] = ()
    predecessors: tuple[int, ...] = ()
    hidden: tuple[int, ...] = ()
    dropouth: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("ops", 1), ("predecessors", 0), ("hidden", 1)):
            if any(value < least for value in getattr(self, name)):
                raise UsageError(f"stages.{name} = {list(getattr(self, name))}: at least {least}")
        if not all(0 <= value < 1 for value in self.dropouth):
            raise UsageError(f"stages.dropouth = {list(self.dropouth)} must lie in [0, 1)")
        if list(self.ops) != sorted(self.ops, reverse=True):
            raise UsageError(f"stages.ops = {list(self.ops)} must not grow: what is gone stays so")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageStageConfig:
    """The stages of a search on images.

    ops: operations an edge may use in each stage, `none` counted, the first all there are;
        operations; whole numbers from 1 that do not grow, [] for one stage or for the method's own;
        each method knows its own
    predecessors: edges a node may use in each stage; edges; whole numbers from 0, 0 for all, [] for
        all in every stage; all, as in P-DARTS
    layers: cells of each stage's network; cells; whole numbers from 1, [] for equal steps from half
        of `model.layers` to all; the network grows as in P-DARTS
    skip_dropout: `model.skip_dropout` at the beginning of each stage; share; each 0 to below 1, []
        for `model.skip_dropout` in all; the same in every stage
    """

    ops: tuple[int, ...] = ()
    predecessors: tuple[int, ...] = ()
    layers: tuple[int, ...] = ()
    skip_dropout: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        StageConfig(ops=self.ops, predecessors=self.predecessors)  # the same rules
        if any(value < 1 for value in self.layers):
            raise UsageError(f"stages.layers = {list(self.layers)}: at least 1")
        if not all(0 <= value < 1 for value in self.skip_dropout):
            raise UsageError(f"stages.skip_dropout = {list(self.skip_dropout)} must lie in [0, 1)")


class ImageStage(NamedTuple):
    """ops and predecessors as in `Stage`; layers and skip_dropout of the network."""

    ops: int
    predecessors: int
    layers: int
    skip_dropout: float


class Stage(NamedTuple):
    """ops: an edge may use, predecessors: a node may use (0: all), hidden and dropouth: of the
    network.
    """

    ops: int
    predecessors: int
    hidden: int
    dropouth: float


def plan(
    config: StageConfig, *, staged: bool, operations: int, keep: int, hidden: int, partial: int,
    dropouth: float,
) -> tuple[Stage, ...]:  # fmt: skip
    """The stages of a search; one where neither the settings nor the method ask for more.

    Args:
        staged: whether the method has stages by itself. operations: O of the whole space. keep:
            edges that a node of a derived cell has.
        hidden, dropouth: of the search, for what the settings leave open. partial: divides the
            units of every stage.

    Raises:
        UsageError: where the lists do not fit each other, the space or `partial`.
    """
    ops, predecessors = _narrowing(config, staged, operations, keep, ("hidden", "dropouth"))
    sizes = config.hidden or _growing(hidden, len(ops), partial)
    if any(size % partial for size in sizes):
        raise UsageError(
            f"model.partial = {partial} does not divide stages.hidden = {list(sizes)}",
            "each node computes hidden / partial units",
        )
    dropped = config.dropouth or (dropouth,) * len(ops)
    return tuple(Stage(*values) for values in zip(ops, predecessors, sizes, dropped, strict=True))


def image_plan(
    config: ImageStageConfig, *, staged: bool, operations: int, keep: int, layers: int,
    skip_dropout: float,
) -> tuple[ImageStage, ...]:  # fmt: skip
    """As `plan`. layers, skip_dropout: of the search, for what the settings leave open."""
    ops, predecessors = _narrowing(config, staged, operations, keep, ("layers", "skip_dropout"))
    sizes = config.layers or _growing(layers, len(ops))
    dropped = config.skip_dropout or (skip_dropout,) * len(ops)
    return tuple(
        ImageStage(*values) for values in zip(ops, predecessors, sizes, dropped, strict=True)
    )


def _narrowing(
    config: StageConfig | ImageStageConfig, staged: bool, operations: int, keep: int,
    others: tuple[str, ...],
) -> tuple[tuple[int, ...], tuple[int, ...]]:  # fmt: skip
    """Operations an edge and predecessors a node in every stage, checked with the other lists."""
    ops = config.ops
    if not ops:
        ops = (operations,)
        for _ in range(COUNT - 1 if staged else 0):
            ops = (*ops, max(1, round(ops[-1] * SHRINK)))
    count = len(ops)
    if ops[0] < operations:
        raise UsageError(
            f"stages.ops = {list(ops)} must begin with {operations}, the whole space: before the "
            "first stage there are no scores to drop operations by"
        )
    for name in ("predecessors", *others):
        if len(getattr(config, name)) not in (0, count):
            raise UsageError(
                f"stages.{name} = {list(getattr(config, name))} must have {count} values, "
                f"one a stage, as stages.ops = {list(ops)}"
            )
    if config.predecessors and config.predecessors[0]:
        raise UsageError("stages.predecessors must begin with 0, for all of them")
    if any(0 < count < keep for count in config.predecessors):
        raise UsageError(
            f"stages.predecessors = {list(config.predecessors)}: a node of a cell keeps {keep} "
            f"edges, so that no stage may leave it fewer",
            f"give 0, for all, or {keep} and more",
        )
    return ops, config.predecessors or (0,) * count


def _growing(size: int, count: int, unit: int = 1) -> tuple[int, ...]:
    """From half of `size` to all of it, in equal steps rounded up to multiples of `unit`."""
    growth = [1.0] if count == 1 else [0.5 + 0.5 * i / (count - 1) for i in range(count)]
    return tuple(math.ceil(size * share / unit) * unit for share in growth)


def stage_at(progress: float, count: int) -> int:
    """The stage, from 0, of a window that begins at `progress` in [0, 1] of the search."""
    return min(count - 1, int(progress * count + 1e-9))  # a third, three times, is one whole


def progress_within(progress: float, stage: int, count: int) -> float:
    """The share of stage `stage` that is done at `progress` of the whole search, in [0, 1]."""
    return min(1.0, max(0.0, progress * count - stage))


def strongest(
    space: CellSpace, scores: Sequence[Sequence[float]], stage: Stage | ImageStage
) -> CellSpace:
    """The space in which what scores best stays: operations of each edge, then edges of each node.

    An edge always keeps its best operation besides `none`, and edges are compared by it, as
    when a cell is derived. Ties go to the earlier operation and the lower state.

    Args:
        scores: (E, O); higher is better.

    Raises:
        UsageError: where too few edges of a node would stay.
    """
    keep = [[False] * len(space.ops) for _ in space.edges]
    best: list[float] = []
    for edge, row in enumerate(scores):
        order = sorted(
            (o for o in range(len(space.ops)) if space.allowed[edge][o]),
            key=lambda o, row=row: (-row[o], o),  # type: ignore[misc]
        )
        real = [o for o in order if space.ops[o] != NONE]
        best.append(row[real[0]] if real else -math.inf)
        # With `none` the only one to stay, the edge would be lost by operations, not by edges.
        kept = order[: stage.ops]
        for o in real[:1] if real and real[0] not in kept else kept:
            keep[edge][o] = True
    for node in range(space.nodes):
        rows = sorted(space.rows(node), key=lambda edge: (-best[edge], edge))
        for edge in rows[stage.predecessors or len(rows) :]:
            keep[edge] = [False] * len(space.ops)
    return space.prune(keep)
