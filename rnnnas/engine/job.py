"""TODO-DOC rnnnas.engine.job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from rnnnas.runs.folder import AnyRun


class ValidationDiverged(Exception):
    """The loss on validation text is not finite: the run has diverged, though no step showed it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a run stands: the window that comes next. start: its first token in each stream;
    step: windows done over all epochs; progress: share of the run that is done, in [0, 1].
    """

    epoch: int = 0
    window: int = 0
    start: int = 0
    step: int = 0
    progress: float = 0.0


class StepReport(NamedTuple):
    """nats: mean a target; count: targets; norm: of the gradient before clipping; lr: used;
    right: of images, as in `types.Loss`.

    nats and norm are of all ranks' streams, as is the count. Where they are scalars on a device
    that works ahead of this process, looking at them would make it wait: `drive` does so at its
    logging points only.
    """

    nats: float | Tensor
    count: int  # type: ignore[assignment]  # the field's name wins over tuple.count
    norm: float | Tensor
    lr: float
    correct: Tensor | None = None


class Job(Protocol):
    """What is done in a window and after an epoch.

    A job may end early: where `end_epoch` leaves no more than the epochs that are done in
    `epochs`, that was the last one. Its state then says so.
    """

    epochs: int

    @property
    def arithmetic(self) -> str:
        """What its products are computed in here, and where: "bfloat16 on cpu"."""

    def lengths(self, epoch: int) -> list[int]:
        """T of every window of an epoch; depends on its arguments and the seed alone."""

    def begin_epoch(self, at: Position) -> None:
        """Before the first window of an epoch."""

    def step(self, at: Position, steps: int, lr_factor: float) -> StepReport:
        """Do the window `at`; `lr_factor` scales every step size, 1 unless the run diverged."""

    def end_epoch(self, at: Position, run: AnyRun) -> dict[str, float]:
        """After the last window: what to log for the epoch, `valid_perplexity` among it.

        Raises:
            ValidationDiverged: where validation shows that the run has diverged; nothing is kept then.
        """

    def state(self) -> dict[str, Any]:
        """All that `restore` needs to go on exactly."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
