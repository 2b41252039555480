"""The loop that search and training share: epochs, windows, saving, resuming, rolling back.

What differs between them is a `Job`; what is the same stands here once.
"""

from __future__ import annotations

import copy
import math
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from rnnnas.distributed import ALONE, Ranks
from rnnnas.engine.computed_by import computed_by
from rnnnas.engine.job import Job, Position, StepReport, ValidationDiverged
from rnnnas.engine.metrics import measured, perplexity
from rnnnas.errors import CheckpointError, DivergedError, Interrupted, visible
from rnnnas.processes import orphaned
from rnnnas.runs.checkpoint import plain_copy
from rnnnas.runs.folder import AnyRun
from rnnnas.runs.progress import Progress
from rnnnas.runs.signals import StopRequest

ROLLBACKS = 3  # how often a run may diverge and start again with half the step


@dataclass(slots=True)
class _Tally:
    """Sums since the last logged line and since the start of the epoch."""

    nats: float = 0.0
    tokens: int = 0
    epoch_nats: float = 0.0
    epoch_tokens: int = 0
    correct: float | None = None  # of images: how many were classified correctly
    epoch_correct: float | None = None

    def add(self, nats: float, count: int, correct: float | None) -> None:
        self.nats += nats * count
        self.epoch_nats += nats * count
        self.tokens += count
        self.epoch_tokens += count
        if correct is not None:
            self.correct = (self.correct or 0.0) + correct
            self.epoch_correct = (self.epoch_correct or 0.0) + correct

    def since_logged(self) -> dict[str, float]:
        """Perplexity, or accuracy and loss, since the last logged line."""
        return measured(self.nats, self.tokens, self.correct)

    def of_epoch(self, start: str = "") -> dict[str, float]:
        """Perplexity, or accuracy and loss, since the epoch began, under names with `start`."""
        return measured(self.epoch_nats, self.epoch_tokens, self.epoch_correct, start)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> _Tally:
        """The tally that a state holds; states of version 0.1 say `right` for correct."""
        return cls(**{name.replace("right", "correct"): value for name, value in plain.items()})


def drive(
    job: Job,
    run: AnyRun,
    *,
    kind: str,
    title: str,
    quiet: bool = False,
    ready: Callable[[bool], None] = lambda resumed: None,
    ranks: Ranks = ALONE,
) -> float:
    """Run `job` to its end, from where its run folder stands; returns the seconds it took.

    Every rank makes the same steps: what one of them alone knows, a signal or that it is time to
    save, is agreed on between two steps.

    Args:
        ready: called before the first step, with whether the job goes on from a saved state.

    Raises:
        DivergedError: after `ROLLBACKS` returns to the last good state, each with half the step.
        Interrupted: on SIGINT or SIGTERM, after the state is saved.
    """
    return _Loop(job, run, kind, ranks).run(title, quiet or not ranks.leads, ready)


@final
class _Loop:
    """The state of a run beside its job's, and the steps that a run is made of.

    at: where the run stands. lr_factor: halved by every roll-back. waiting: reports of steps that
    nobody has looked at yet; on a device that works ahead, looking would wait for it. pending: a
    state that waits to be saved: whether its last step left good weights behind, only the loss of
    the next one shows, and a state that has diverged would be none to return to.
    """

    def __init__(self, job: Job, run: AnyRun, kind: str, ranks: Ranks) -> None:
        self.job, self.folder, self.kind, self.ranks = job, run, kind, ranks
        self.at, self.tally = Position(), _Tally()
        self.lr_factor, self.rollbacks = 1.0, 0
        self.lengths: list[int] = []
        self.waiting: list[StepReport] = []
        self.norm = math.nan  # of the last step that was looked at
        self.pending: dict[str, Any] | None = None
        self.seconds_before = 0.0  # of the processes that worked on this run before
        self.began = time.perf_counter()
        self.clock, self.clock_tokens = self.began, 0  # since the last logged line

    @property
    def seconds(self) -> float:
        """Of the whole run so far."""
        return self.seconds_before + time.perf_counter() - self.began

    def run(self, title: str, quiet: bool, ready: Callable[[bool], None]) -> float:
        """As `drive`."""
        saved = self._resume()
        ready(saved is not None)
        if saved is None:
            self._save()  # what a first divergence returns to
        bar = Progress(
            title, _total_windows(self.job, self.at, len(self.lengths)), done=self.at.step,
            waits_for="preparing the first step", quiet=quiet,
        )  # fmt: skip
        with StopRequest() as stop, bar:
            self.bar = bar
            self._say_where(saved)
            self._restart_clock()
            while self.at.epoch < self.job.epochs:
                if self._step():
                    self._save_or_stop(stop)
            bar.finish()  # a search may have ended early
        return self.seconds

    # Saving and going back

    def _state(self) -> dict[str, Any]:
        return {
            "position": asdict(self.at),
            "tally": asdict(self.tally),
            "lr_factor": self.lr_factor,
            "rollbacks": self.rollbacks,
            "seconds": self.seconds,
            "arithmetic": self.job.arithmetic,
            "computed_by": computed_by(self.job, self.ranks.size),
            "job": self.job.state(),
        }

    def _save(self) -> None:
        self.pending = None
        self.folder.save_state(self._state())

    def _restore(self, saved: dict[str, Any]) -> None:
        self.job.restore(saved["job"])
        self.at, self.tally = Position(**saved["position"]), _Tally.from_plain(saved["tally"])
        more = self.at.epoch < self.job.epochs
        self.lengths = self.job.lengths(self.at.epoch) if more else []

    def _resume(self) -> dict[str, Any] | None:
        """Take over the saved state; None where there is none."""
        saved = self.folder.load_state()
        if saved is None:
            self.lengths = self.job.lengths(0) if self.job.epochs else []
            return None
        self._restore(saved)
        self.lr_factor, self.rollbacks = saved["lr_factor"], saved["rollbacks"]
        self.seconds_before = saved["seconds"]
        if self.at.window == 0 and self.job.epochs:  # of a run that is extended it is less now
            self.at = replace(self.at, progress=self.at.epoch / self.job.epochs)
        return saved

    def _say_where(self, saved: dict[str, Any] | None) -> None:
        if self.at.step:
            self.bar.line(f"continuing at epoch {self.at.epoch + 1}, window {self.at.window + 1}")
        now = self.job.arithmetic
        was = now if saved is None else saved.get("arithmetic", now)
        if was != now:
            self.bar.line(f"until here in {was}, now in {now}: the result is that of neither")
            self.folder.log("arithmetic", self.at.step, before=was, now=now)
            return
        by = computed_by(self.job, self.ranks.size)
        before = by if saved is None else saved.get("computed_by", by)
        if before != by:
            self.bar.line(f"until here by {before}, now by {by}: the last digits may differ")

    def _roll_back(self, loss: str, step: int) -> None:
        """Return to the last good state, with half the step size."""
        if self.rollbacks == ROLLBACKS:
            reason = f"the {loss} was not finite, {ROLLBACKS} times after a roll-back"
            self.folder.log("failed", step, reason=reason)  # `rnnnas runs` tells it
            raise self.ranks.rank_zero_error(
                DivergedError(
                    f"the {loss} was not finite at step {step} of epoch {self.at.epoch + 1}, "
                    f"after {ROLLBACKS} returns to the last good state",
                    "lower the step size with --set weights.lr=... and start with --fresh",
                )
            )
        good = self.folder.load_state()
        if good is None:
            raise CheckpointError(
                f"{self.folder.folder} has no state.pt any more", "start with --fresh"
            )
        self.bar.line(f"{loss} not finite at step {step}: back to the last good state, lr / 2")
        self._restore(good)
        self.lr_factor, self.rollbacks = self.lr_factor / 2, self.rollbacks + 1
        self.waiting.clear()
        self._save()

    def _save_or_stop(self, stop: StopRequest) -> None:
        """Between two steps: save where it is time, end where a signal asks for it."""
        if orphaned() and stop.signum is None:
            stop.signum = signal.SIGTERM
        signum, due = self.ranks.max_reduce(stop.signum or 0, int(self.folder.due()))
        if (signum or due) and not self._look():
            return
        # With every epoch, too: what a divergence returns to must know of the best.pt there is.
        if self.at.window == 0:  # an epoch is over, and validated
            self._save()
        elif due:
            # The next step changes the state in place.
            self.pending = copy.deepcopy(plain_copy(self._state()))
        try:
            stop.check(self._save, self.folder.folder, signum)
        except Interrupted as error:
            self.ranks.rank_zero_error(error)
            raise

    # A step, and what is told of it

    def _step(self) -> bool:
        """Do the next window, and end the epoch after its last. False where it diverged."""
        job = self.job
        if self.at.window == 0:
            self.lengths = job.lengths(self.at.epoch)
            self.bar.expect(_total_windows(job, self.at, len(self.lengths)))
            job.begin_epoch(self.at)
        report = job.step(self.at, self.lengths[self.at.window], self.lr_factor)
        self.waiting.append(report)
        self.clock_tokens += report.count
        self.at = _advance(self.at, self.lengths, job.epochs)
        epoch_over = self.at.window == len(self.lengths)
        logged = self.at.window % max(1, len(self.lengths) // 20) == 0 or epoch_over
        if logged or self.pending is not None or _at_hand(report):
            if not self._look():
                return False
            if self.pending is not None:
                self.folder.save_state(self.pending)
                self.pending = None
            self._show()
        if logged:
            self._log(report)
        return self._end_epoch() if epoch_over else True

    def _look(self) -> bool:
        """Take in the reports that wait. False where a loss diverged: the run has rolled back."""
        first = self.at.step - len(self.waiting)
        reports = zip(self.waiting, _values(self.waiting), strict=True)
        for step, (report, (nats, norm, correct)) in enumerate(reports, first):
            # A perplexity that overflows counts as not finite: such a run has diverged as well.
            if math.isfinite(perplexity(nats, 1)) and math.isfinite(norm):
                self.tally.add(nats, report.count, correct)
                self.norm = norm
                continue
            self._roll_back("loss", step)
            return False
        self.waiting.clear()
        return True

    @property
    def _speed(self) -> dict[str, float]:
        unit = "tokens" if self.tally.epoch_correct is None else "images"
        elapsed = max(time.perf_counter() - self.clock, 1e-9)
        return {f"{unit}_per_second": self.clock_tokens / elapsed}

    def _show(self) -> None:
        self.bar.update(
            self.at.step,
            **self.tally.of_epoch(),
            **self._speed,
            epoch=f"{self.at.epoch + 1}/{self.job.epochs}",
        )

    def _log(self, report: StepReport) -> None:
        self.folder.log(
            self.kind,
            self.at.step,
            **self.tally.since_logged(),
            lr=report.lr,
            gradient_norm=self.norm,
            **self._speed,
        )
        self.tally.nats, self.tally.tokens, self.tally.correct = 0.0, 0, None
        self._restart_clock()

    def _end_epoch(self) -> bool:
        """Validate, log, go on to the next epoch. False where validation diverged."""
        planned, seconds, at = self.job.epochs, self.seconds, self.at
        trained = self.tally.of_epoch("train_")
        try:
            values = self.job.end_epoch(at, self.folder)
        except ValidationDiverged:
            self._roll_back("validation loss", at.step)
            return False
        self.folder.log("epoch", at.step, epoch=at.epoch + 1, **trained, seconds=seconds, **values)
        self.bar.line(_epoch_line(at.epoch + 1, planned, trained, values))
        if self.job.epochs < planned:
            self.bar.line(f"ends early, after epoch {self.job.epochs} of {planned}")
        self.at = Position(epoch=at.epoch + 1, step=at.step, progress=at.progress)
        self.tally = _Tally()
        self._restart_clock()
        return True

    def _restart_clock(self) -> None:
        self.clock, self.clock_tokens = time.perf_counter(), 0


def _at_hand(report: StepReport) -> bool:
    """Whether looking at the report costs nothing: its values are here, or on the CPU."""
    values = (report.nats, report.norm, report.correct)
    return not any(isinstance(v, Tensor) and v.device.type != "cpu" for v in values)


def _values(reports: list[StepReport]) -> list[tuple[float, float, float | None]]:
    """(nats, norm, targets that scored best) of each report, fetched from a device at once."""
    flat: list[float | Tensor | None] = []
    for report in reports:
        flat += [report.nats, report.norm, None if report.correct is None else report.correct[0]]
    held = [value for value in flat if isinstance(value, Tensor)]
    fetched = iter(torch.stack([v.double() for v in held]).tolist() if held else ())
    here: list[Any] = [next(fetched) if isinstance(value, Tensor) else value for value in flat]
    return list(zip(here[::3], here[1::3], here[2::3], strict=True))


def finished(run: AnyRun, ranks: Ranks = ALONE, *, quiet: bool = False) -> dict[str, Any]:
    """The result of a run that is done already; says so on standard error, unless `quiet`.

    Raises:
        CheckpointError: where result.json lacks what every result has.
    """
    result = dict(run.result or {})
    if not {"run", "seconds", "digest"} <= set(result):
        raise ranks.rank_zero_error(
            CheckpointError(
                f"{run.folder / 'result.json'} is damaged",
                "move it away, and the same command reports anew from the saved state",
            )
        )
    if ranks.leads and not quiet:
        told = f"{run.folder} is finished: this is its result (--fresh runs anew)"
        print(visible(told), file=sys.stderr)
    result["run"] = str(run.folder)  # which may have been moved since
    if "checkpoint" in result:
        result["checkpoint"] = str(run.best_path)
    return result


def _advance(at: Position, lengths: list[int], epochs: int) -> Position:
    return Position(
        epoch=at.epoch,
        window=at.window + 1,
        start=at.start + lengths[at.window],
        step=at.step + 1,
        progress=(at.epoch + (at.window + 1) / len(lengths)) / epochs,
    )


def _total_windows(job: Job, at: Position, now: int) -> int:
    """Windows of the whole run: exact up to this epoch, as long as this one for the others."""
    return at.step - at.window + now * (job.epochs - at.epoch)


def _epoch_line(
    epoch: int, epochs: int, trained: dict[str, float], values: dict[str, float]
) -> str:
    parts = [f"epoch {epoch}/{epochs}"]
    parts += [f"{name.replace('_', ' ')} {value:.2f}" for name, value in trained.items()]
    parts += [f"{name.replace('_', ' ')} {value:.4g}" for name, value in values.items()]
    return ", ".join(parts)
