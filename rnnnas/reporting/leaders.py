"""The cells that a search held for the best, one after the other: by epoch, rung or trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rnnnas.reporting.read import Frame, RunData, genotype_from, number


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """frames: in order, each with its number in `epoch`. noun: what is numbered, "epoch", "rung" or
    "cell". total: how many of them there are, or of a run under way that moves alphas are planned.
    """

    noun: str
    frames: Sequence[Frame]
    total: int

    def caption(self, frame: Frame) -> str:
        """'epoch 3 of 14'."""
        return f"{self.noun} {frame.epoch} of {self.total}"


def history_of(run: RunData) -> History:
    """The cell after every epoch of a search that moves alphas; the best cell of every rung of a
    halving; of another search by trials the best cell so far, wherever it became another one. No
    frames of other runs.
    """
    if run.frames:
        frames, noun, total = list(run.frames), run.noun, run.epochs
    elif run.of("rung"):
        frames, noun = _rungs(run), "rung"
        total = max((f.epoch for f in frames), default=0)
    else:
        frames, noun = _trials(run), "cell"
        total = len(run.of("candidate"))
    return History(noun=noun, frames=[f for f in frames if f.genotype is not None], total=total)


def rungs_of(run: RunData) -> dict[int, list[Mapping[str, Any]]]:
    """The lines of a halving's rungs, by number from 1."""
    rungs: dict[int, list[Mapping[str, Any]]] = {}
    for line in run.of("rung"):
        rung = number(line.get("rung"))
        if rung is not None:
            rungs.setdefault(int(rung) + 1, []).append(line)
    return dict(sorted(rungs.items()))


def judged_by(lines: Sequence[Mapping[str, Any]]) -> str:
    """The loss that a rung was decided by: held-out, where all of its cells have one."""
    held_out = all(number(line.get("heldout_loss")) is not None for line in lines)
    return "heldout_loss" if held_out else "train_loss"


def _frame(at: int, line: Mapping[str, Any]) -> Frame:
    cell = str(line.get("cell", ""))
    return Frame(epoch=at, cell=cell, genotype=genotype_from(cell), tables={})


def _rungs(run: RunData) -> list[Frame]:
    frames = []
    for rung, lines in rungs_of(run).items():
        name = judged_by(lines)
        losses = [(loss, i) for i, line in enumerate(lines)
                  if (loss := number(line.get(name))) is not None]  # fmt: skip
        if losses:
            frames.append(_frame(rung, lines[min(losses)[1]]))
    return frames


def _trials(run: RunData) -> list[Frame]:
    frames: list[Frame] = []
    best = float("inf")
    for i, line in enumerate(run.of("candidate"), 1):
        value = number(line.get("perplexity"))
        if value is not None and value < best:
            best = value
            frames.append(_frame(i, line))
    return frames
