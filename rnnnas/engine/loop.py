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
from typing import Any

import torch
from torch import Tensor

from rnnnas.distributed import ALONE, Ranks, orphaned
from rnnnas.engine.job import Job, Position, StepReport, ValidationDiverged
from rnnnas.engine.metrics import measured, perplexity
from rnnnas.errors import CheckpointError, DivergedError, Interrupted
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
    correct: float | None = None  # of images: how many were classified right
    epoch_correct: float | None = None

    def add(self, nats: float, count: int, correct: float | None) -> None:
        self.nats += nats * count
        self.epoch_nats += nats * count
        self.tokens += count
        self.epoch_tokens += count
        if correct is not None:
            self.correct = (self.correct or 0.0) + correct
            self.epoch_correct = (self.epoch_correct or 0.0) + correct


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
    at, tally, lr_factor, rollbacks, before = Position(), _Tally(), 1.0, 0, 0.0
    began = time.perf_counter()
    waiting: list[StepReport] = []  # of steps that nobody has looked at yet
    norm = math.nan  # of the last step that was looked at
    # A state that waits to be saved: whether its last step left good weights behind, only the loss
    # of the next one shows, and a state that is lost itself would be none to return to.
    held: dict[str, Any] | None = None
    quiet = quiet or not ranks.leads

    def state() -> dict[str, Any]:
        return {
            "position": asdict(at),
            "tally": asdict(tally),
            "lr_factor": lr_factor,
            "rollbacks": rollbacks,
            "seconds": before + time.perf_counter() - began,
            "arithmetic": job.arithmetic,
            "job": job.state(),
        }

    def save() -> None:
        nonlocal held
        held = None
        run.save_state(state())

    def restore(saved: dict[str, Any]) -> tuple[Position, _Tally]:
        job.restore(saved["job"])
        return Position(**saved["position"]), _Tally(**saved["tally"])

    saved = run.load_state()
    if saved is not None:
        at, tally = restore(saved)
        lr_factor, rollbacks, before = saved["lr_factor"], saved["rollbacks"], saved["seconds"]
        if at.window == 0:  # of a run that has been extended, it is less than it was
            at = replace(at, progress=at.epoch / job.epochs)
    ready(saved is not None)
    if saved is None:
        save()  # what a first divergence returns to

    lengths = job.lengths(at.epoch) if at.epoch < job.epochs else []
    total = _total_windows(job, at, len(lengths))
    with StopRequest() as stop, Progress(title, total, done=at.step, quiet=quiet) as bar:
        if at.step:
            bar.line(f"continuing at epoch {at.epoch + 1}, window {at.window + 1}")
        if saved is not None and saved.get("arithmetic", job.arithmetic) != job.arithmetic:
            was = saved["arithmetic"]
            bar.line(f"until here in {was}, now in {job.arithmetic}: the result is that of neither")
            run.log("arithmetic", at.step, before=was, now=job.arithmetic)
        clock, clock_tokens = time.perf_counter(), 0

        def roll_back(loss: str, step: int) -> None:
            """To the last good state, with half the step size."""
            nonlocal at, tally, lengths, lr_factor, rollbacks
            if rollbacks == ROLLBACKS:
                raise ranks.rank_zero_error(
                    DivergedError(
                        f"the {loss} was not finite at step {step} of epoch {at.epoch + 1}, "
                        f"after {ROLLBACKS} returns to the last good state",
                        "lower the step size with --set weights.lr=... and start with --fresh",
                    )
                )
            good = run.load_state()
            assert good is not None  # one is saved before the first step
            bar.line(f"{loss} not finite at step {step}: back to the last good state, lr / 2")
            at, tally = restore(good)
            lengths = job.lengths(at.epoch)
            lr_factor, rollbacks = lr_factor / 2, rollbacks + 1
            waiting.clear()
            save()

        def look() -> bool:
            """Take in the steps that wait. False where one was lost: the run has gone back."""
            nonlocal norm
            first = at.step - len(waiting)
            reports = zip(waiting, _values(waiting), strict=True)
            for step, (report, (nats, norm, correct)) in enumerate(reports, first):
                # A perplexity that overflows counts as not finite: such a run is lost as well.
                if math.isfinite(perplexity(nats, 1)) and math.isfinite(norm):
                    tally.add(nats, report.count, correct)
                    continue
                roll_back("loss", step)
                return False
            waiting.clear()
            return True

        while at.epoch < job.epochs:
            if at.window == 0:
                lengths = job.lengths(at.epoch)
                bar.expect(_total_windows(job, at, len(lengths)))
                job.begin_epoch(at)
            report = job.step(at, lengths[at.window], lr_factor)
            waiting.append(report)
            clock_tokens += report.count
            at = _advance(at, lengths, job.epochs)
            epoch_over = at.window == len(lengths)
            logged = at.window % max(1, len(lengths) // 20) == 0 or epoch_over
            if logged or held is not None or _at_hand(report):
                if not look():
                    continue
                if held is not None:
                    run.save_state(held)
                    held = None
                now = time.perf_counter()
                speed = clock_tokens / max(now - clock, 1e-9)
                whole = tally.epoch_nats, tally.epoch_tokens, tally.epoch_correct
                unit = "tokens" if tally.epoch_correct is None else "images"
                bar.update(
                    at.step,
                    **measured(*whole),
                    **{f"{unit}_per_second": speed},
                    epoch=f"{at.epoch + 1}/{job.epochs}",
                )
            if logged:
                run.log(
                    kind,
                    at.step,
                    **measured(tally.nats, tally.tokens, tally.correct),
                    lr=report.lr,
                    gradient_norm=norm,
                    **{f"{unit}_per_second": speed},
                )
                tally.nats, tally.tokens, tally.correct = 0.0, 0, None
                clock, clock_tokens = now, 0
            if epoch_over:
                planned = job.epochs
                try:
                    trained, values = measured(*whole, "train_"), job.end_epoch(at, run)
                except ValidationDiverged:
                    roll_back("validation loss", at.step)
                    continue
                run.log(
                    "epoch", at.step, epoch=at.epoch + 1, **trained,
                    seconds=before + now - began, **values,
                )  # fmt: skip
                bar.line(_epoch_line(at.epoch + 1, planned, trained, values))
                if job.epochs < planned:
                    bar.line(f"ends early, after epoch {job.epochs} of {planned}")
                at = Position(epoch=at.epoch + 1, step=at.step, progress=at.progress)
                tally = _Tally()
                clock, clock_tokens = time.perf_counter(), 0
            if orphaned() and stop.signum is None:
                stop.signum = signal.SIGTERM
            signum, due = ranks.max_reduce(stop.signum or 0, int(run.due()))
            if (signum or due) and not look():
                continue
            # With every epoch, too: what a divergence returns to must know of the best.pt there is.
            if epoch_over:  # validated
                save()
            elif due:
                held = copy.deepcopy(plain_copy(state()))  # the next step changes it in place
            try:
                stop.check(save, run.folder, signum)
            except Interrupted as error:
                ranks.rank_zero_error(error)
                raise
    return before + time.perf_counter() - began


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


def finished(run: AnyRun, ranks: Ranks = ALONE) -> dict[str, Any]:
    """The result of a run that is done already; says so on standard error.

    Raises:
        CheckpointError: where result.json lacks what every result has.
    """
    result = dict(run.result or {})
    if not {"run", "seconds", "digest"} <= set(result):
        raise ranks.rank_zero_error(
            CheckpointError(
                f"{run.folder / 'result.json'} is damaged",
                "delete it, and the same command reports anew from the saved state",
            )
        )
    if ranks.leads:
        print(f"{run.folder} is finished: this is its result (--fresh runs anew)", file=sys.stderr)
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
