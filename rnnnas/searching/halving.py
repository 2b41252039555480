"""Carrying a race of cells out: successive halving from its plan to the winner, resumed exactly."""

from __future__ import annotations

import contextlib
import math
import statistics
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, final

import torch

from rnnnas.config.plain import to_plain
from rnnnas.config.text import SearchConfig
from rnnnas.data.corpus import Corpus
from rnnnas.engine.budget import RaceClock
from rnnnas.engine.computed_by import computed_by
from rnnnas.engine.cuda_graphs import CudaGraphs
from rnnnas.engine.job import Position, StepReport
from rnnnas.engine.metrics import perplexity
from rnnnas.errors import CheckpointError, DivergedError, visible
from rnnnas.nas.genotype import RECURRENT, Genotype, cell_text
from rnnnas.nas.halving import Decision, Entrant, Proposal, Prospect, Race, Standing, Trial
from rnnnas.nas.operations import NONE, known_elsewhere
from rnnnas.nas.race_pace import decide, decisions, plain_of
from rnnnas.nas.race_plan import Plan, children_of, plan_of
from rnnnas.plugins import load as plugins
from rnnnas.runs.files import disk_errors
from rnnnas.runs.folder import Run
from rnnnas.runs.progress import Progress
from rnnnas.runs.signals import StopRequest
from rnnnas.searching.cell_training import CellTraining, Course
from rnnnas.searching.side_by_side import Stage, Workers, file_of

FOLDER = "candidates"  # of a run: the trainings' files
_POINTS = 20  # of a candidate's curve
_WIDTH = 160  # of the table
_ROWS = 6  # of a rung in the table, at least where there are so many cells


def plan_from(config: SearchConfig, course: Course) -> Plan:
    """The plan that the settings of a search by halving ask for."""
    black = config.blackbox
    cells = config.cell_space.count()
    return plan_of(black.budget, course.steps, least=black.rung, cells=cells)


@final
class HalvingJob:
    """A race of cells on text under the settings of a search.

    Until `run` it also serves as a `job.Job` whose epochs are trainings of its first cell, for
    what only looks at sizes and times steps.

    Args:
        proposed: cells that race beside random ones; `guards` random ones take part at least.
        workers: trainings at a time; on a CPU by default as many as torch has threads. What the
            race finds does not depend on it.
    """

    def __init__(
        self,
        config: SearchConfig,
        corpus: Corpus,
        device: torch.device,
        *,
        proposed: Sequence[Proposal] = (),
        guards: int = 0,
        workers: int | None = None,
    ) -> None:
        self.config, self.corpus, self.device = config, corpus, device
        self.course = Course(config, corpus, device)
        self.plan = plan_from(config, self.course)
        self._spaces = {RECURRENT: config.cell_space}
        self._proposed, self._guards = tuple(proposed), guards
        self.race = self._new_race()
        count = torch.get_num_threads() if workers is None else workers
        ops = [op for op in config.cell_space.ops if op != NONE]
        alone = device.type != "cpu" or not known_elsewhere(ops)
        self.workers = 1 if alone else max(1, count)
        self.valid_perplexity = math.nan
        self._first: CellTraining | None = None
        self._nats: dict[tuple[int, int], list[float]] = {}  # curves, by number and draw
        self.clock: RaceClock | None = None  # by which cells are given up or added

    def _new_race(self) -> Race:
        return Race(
            self._spaces, self.config.seed, self.plan, self._proposed, guards=self._guards,
            draws=self.config.blackbox.draws,
        )  # fmt: skip

    # What looks at sizes and times steps

    @property
    def epochs(self) -> int:
        """Cells that are trained at most, wholly or in part."""
        return self.plan.cells

    @property
    def sample(self) -> CellTraining:
        if self._first is None:
            genotype = self.race.entrants[0].genotype
            self._first = CellTraining(self.course, genotype, 0, None)
        return self._first

    @property
    def net(self) -> torch.nn.Module:
        return self.sample.net

    @property
    def cuda_graphs(self) -> CudaGraphs | None:
        assert self.net is not None  # made with it
        return self.sample.cuda_graphs

    measure = "perplexity"

    @property
    def arithmetic(self) -> str:
        return self.course.arithmetic

    def lengths(self, epoch: int) -> list[int]:
        """T of every window of a full training."""
        return [steps for _, steps in self.course.windows(0)]

    def begin_epoch(self, at: Position) -> None:
        self._first = None

    def step(self, at: Position, steps: int, lr_factor: float) -> StepReport:
        """A weight step of the first cell."""
        self.sample.advance()
        return StepReport(self.sample.nats[-1], steps, 0.0, self.config.weights.lr)

    # The race

    def run(self, run: Run, *, title: str, quiet: bool) -> float:
        """Race to the end, from where the run folder stands; returns the seconds of the whole run.

        What an earlier part of the run left in its state, e.g. a finished search, is kept there.

        Raises:
            DivergedError: where no full training came to a finite loss.
            Interrupted: on SIGINT or SIGTERM, after everything is saved.
            CheckpointError: where the state is of another race, or a candidate's file damaged.
        """
        saved = run.load_state() or {}
        before, began = float(saved.get("seconds", 0.0)), time.perf_counter()
        base = int(saved.get("position", {}).get("step", 0))
        self.race = self._new_race()
        resumed = "race" in saved
        if resumed:
            try:
                self.race.restore(saved["race"], decisions(saved.get("decided", [])))
            except (ValueError, KeyError, TypeError) as error:
                raise CheckpointError(
                    f"{run.state_path} is the state of another race", "start anew with --fresh"
                ) from error
        if self.clock is not None:
            if saved.get("ended"):
                self.race.end()
            if resumed:
                self.clock.resume(float(saved.get("spent", 0.0)))
            self.race.decide = self._decide
        folder = run.folder / FOLDER
        with disk_errors(folder):
            folder.mkdir(exist_ok=True)

        def save() -> None:
            seconds = before + time.perf_counter() - began
            extra = {"race": self.race.state(), "seconds": seconds, "arithmetic": self.arithmetic,
                     "computed_by": computed_by(self)}  # fmt: skip
            if self.clock is not None:
                extra |= {
                    "spent": self.clock.spent(), "decided": plain_of(self.race.decided),
                    "ended": self.race.ended,
                }  # fmt: skip
            run.save_state({**saved, **extra})

        race = self.race
        total = race.steps + race.steps_left
        with (
            StopRequest() as stop,
            Progress(title, total, done=race.steps, quiet=quiet) as bar,
            contextlib.closing(self._trainer(folder, run)) as trainer,
        ):
            self._announce(bar, resumed, run)
            if resumed:
                self._say_where(saved, bar, run, base)
            while not race.done:
                trials = race.due()
                at = {t.number: 0 for t in trials}
                begun: dict[int, int] = {}  # of each trial, the step that it stood at
                over = len(race.standings)
                bar_base = race.steps
                beside = min(self.workers, len(trials))
                if self.clock is not None:
                    self.clock.rung()
                with contextlib.closing(trainer.carry_out(trials)) as stages:
                    for stage in stages:
                        if stage is not None:
                            number = stage.trial.number
                            at[number] = stage.step - stage.trial.start
                            begun.setdefault(number, at[number])
                            bar.update(bar_base + sum(at.values()), **_shown(race))
                            if self.clock is not None:
                                here = sum(at.values()) - sum(begun.values())
                                self.clock.passed(here / beside)
                        if stage is not None and stage.ended:
                            training = self._training(folder, stage.trial)
                            self._nats[stage.trial.number, stage.trial.draw] = training.nats
                            race.tell(stage.trial, training.outcome(stage.trial))
                        if len(race.standings) == over and run.due():
                            save()
                        if self.clock is not None and self.clock.late and race.finished():
                            race.end()
                        if stop.signum is not None or race.done:
                            break
                if len(race.standings) > over:
                    self._log(run, base, folder, race.standings[over:])
                    bar.line(_rung_line(race.standings[over:]))
                    bar.expect(race.steps + race.steps_left)
                    save()
                if race.ended:
                    bar.line("the time is up: the best of the cells that were trained in full wins")
                    save()
                    bar.finish()
                stop.check(save, run.folder)
                self._clean(folder)
        winner = self._winner()
        if not math.isfinite(self.valid_perplexity):
            trial = Trial(winner.number, winner.genotype, 0, 0, self.plan.steps, True)
            self.valid_perplexity = self._training(folder, trial).validate()
        if not quiet:
            print_table(race.standings, winner)
        return before + time.perf_counter() - began

    def _decide(self, there: Prospect) -> Decision | None:
        """What the clock changes of the plan: see `race_pace.decide`."""
        assert self.clock is not None
        children = children_of(self.plan.steps, self.config.blackbox.rung)
        return decide(
            there, self.clock.room, whole=self.clock.whole, workers=self.workers, children=children
        )

    def _trainer(self, folder: Path, run: Run) -> Workers | _Here:
        most = max(each.cells for each in self.plan.rounds)
        save_seconds = self.config.save_seconds
        if self.workers == 1 or most == 1:
            return _Here(self.course, folder, save_seconds)
        race = {
            "config": to_plain(self.config),
            "corpus": str(self.corpus.folder.absolute()),
            "name": self.corpus.name,
            "folder": str(folder.absolute()),
            "save_seconds": save_seconds,
            "plugins": [str(path) for path in plugins.files()],
        }
        return Workers(race, min(self.workers, most))

    def _training(self, folder: Path, trial: Trial) -> CellTraining:
        return CellTraining(self.course, trial.genotype, trial.draw, file_of(folder, trial))

    def _say_where(self, saved: dict[str, Any], bar: Progress, run: Run, base: int) -> None:
        """Say, and keep, that cells of one race are trained by two arithmetics."""
        now = self.arithmetic
        was = saved.get("arithmetic", now)
        if was != now:
            bar.line(f"until here in {was}, now in {now}: the result is that of neither")
            run.log("arithmetic", base + self.race.steps, before=was, now=now)
            return
        by = computed_by(self)
        if (before := saved.get("computed_by", by)) != by:
            bar.line(f"until here by {before}, now by {by}: the last digits may differ")

    def _announce(self, bar: Progress, resumed: bool, run: Run) -> None:
        """Say the plan, or where the race goes on."""
        race, plan = self.race, self.plan
        if resumed:
            bar.line(f"continuing after {race.steps:,} of {plan.total_steps:,} steps")
            return
        bar.line(
            f"plan: {plan.cells} cells, {plan.total_steps:,} steps, the cost of {plan.cost:.1f} "
            f"full trainings of {plan.steps} steps; {self.workers} at a time"
        )
        for line in plan.lines():
            bar.line(f"  {line}")

    def _log(self, run: Run, base: int, folder: Path, standings: Sequence[Standing]) -> None:
        """The lines of a rung that is over: `rung`s, the cells' curves, and what left the race."""
        race = self.race
        for s in standings:
            number, cell = s.entrant.number, cell_text(s.entrant.genotype)
            run.log(
                "rung",
                s.stop,
                rung=s.rung,
                number=number,
                cell=cell,
                origin=s.entrant.origin,
                draw=s.draw,
                train_loss=s.outcome.train,
                heldout_loss=s.outcome.heldout,
                kept=s.kept,
                parent=s.entrant.parent,
            )
        for s in standings:
            trial = Trial(s.entrant.number, s.entrant.genotype, s.draw, 0, s.stop, False)
            nats = self._nats.get((trial.number, trial.draw))
            if nats is None:  # told before the run was resumed
                nats = self._training(folder, trial).nats
            first = max(
                (
                    o.stop
                    for o in race.standings
                    if (o.entrant.number, o.draw) == (s.entrant.number, s.draw) and o.stop < s.stop
                ),
                default=0,
            )
            every = max(1, self.plan.steps // _POINTS)
            name = f"cell_{s.entrant.number:03}" + (f"_draw{s.draw}" if s.draw else "")
            for end in range(first + every - first % every, s.stop + 1, every):
                part = nats[end - every : end]
                run.log("curve", end, **{name: math.fsum(part) / len(part) if part else math.inf})
        for s in standings:
            if s.draw or (s.kept and s.stop != self.plan.steps):
                continue
            heldout = math.inf if s.outcome.heldout is None else s.outcome.heldout
            best = [race.scores(n)[0] for n in race.finished()[:1]]
            run.log(
                "candidate",
                base + race.steps,
                number=s.entrant.number,
                cell=cell_text(s.entrant.genotype),
                steps=s.stop,
                train_perplexity=perplexity(s.outcome.train, 1),
                perplexity=perplexity(heldout, 1),
                best_perplexity=perplexity(best[0], 1) if best else None,
            )

    def _clean(self, folder: Path) -> None:
        """Delete the files of trainings that do not go on; a saved state must know that first."""
        race = self.race
        wanted = {file_of(folder, t) for t in race.due()}
        wanted |= {
            file_of(folder, Trial(n, race.entrants[n].genotype, 0, 0, 0, False))
            for n in race.finished()
        }
        with disk_errors(folder):
            for path in folder.glob("cell-*.pt"):
                if path not in wanted:
                    path.unlink()

    def _winner(self) -> Entrant:
        """The cell that has won.

        Raises:
            DivergedError: where every training diverged.
        """
        winner = self.race.winner
        if winner is None:
            raise DivergedError(
                f"the loss of all {len(self.race.entrants)} cells became non-finite",
                "lower the step size with --set weights.lr=... and start with --fresh",
            )
        return winner

    def genotype(self) -> Genotype:
        """The cell that has won."""
        return self._winner().genotype

    def origin(self) -> str:
        """What proposed the cell that has won: a method, a publication, structure, or chance."""
        entrant = self._winner()
        child = entrant.parent is not None
        while entrant.parent is not None:
            entrant = self.race.entrants[entrant.parent]
        return f"child of {entrant.origin}" if child else entrant.origin

    def finalists(self) -> list[str]:
        """The cells that were trained in full, the winner first, then the best of the rest."""
        race, winner = self.race, self._winner()
        rest = [number for number in race.finished() if number != winner.number]
        rest.sort(key=lambda n: (-len(race.scores(n)), statistics.fmean(race.scores(n)), n))
        return [cell_text(race.entrants[number].genotype) for number in (winner.number, *rest)]

    def random_cells(self) -> list[str]:
        """The random cells of the race, in the order they were drawn in."""
        return [cell_text(e.genotype) for e in self.race.entrants if e.origin == "random"]

    def measured(self) -> dict[str, float]:
        """The validation result to report, by name; nothing was chosen by it."""
        return {"valid_perplexity": self.valid_perplexity}

    def outcome(self) -> dict[str, Any]:
        """What the result's digest covers beside the genotype."""
        return {"race": self.race.state()}


@final
class _Here:
    """Trains cells in this process, one after the other."""

    def __init__(self, course: Course, folder: Path, save_seconds: float) -> None:
        self._course, self._folder, self._save_seconds = course, folder, save_seconds

    def carry_out(self, trials: Sequence[Trial]) -> Generator[Stage | None, None, None]:
        """Train all trials to their ends, and say how far they are before every step; left early,
        the training under way is saved.
        """
        for trial in trials:
            path = file_of(self._folder, trial)
            training = CellTraining(self._course, trial.genotype, trial.draw, path)
            for step in training.stretch(trial, self._save_seconds):
                yield Stage(trial, step)
            yield Stage(trial, training.step, ended=True)

    def close(self) -> None:
        """Nothing runs beside."""


def _shown(race: Race) -> dict[str, float | str]:
    best = race.finished()[:1]
    shown: dict[str, float | str] = {"cells": f"{len(race.due())} to go"}
    if best:
        shown["best"] = perplexity(race.scores(best[0])[0], 1)
    return shown


def _rung_line(standings: Sequence[Standing]) -> str:
    """'rung 1, step 100: 24 cells, train perplexity 812.41 to 1,102.80, 6 go on'."""
    by = "held-out" if standings[0].outcome.heldout is not None else "train"
    values = [perplexity(_by_loss(s), 1) for s in standings]
    kept = sum(s.kept for s in standings)
    diverged = sum(not math.isfinite(value) for value in values)
    finite = [value for value in values if math.isfinite(value)]
    spread = f"{by} perplexity {min(finite):,.2f} to {max(finite):,.2f}, " if finite else ""
    also = f", {diverged} diverged" if diverged else ""
    return (
        f"rung {standings[0].rung + 1}, step {standings[0].stop}: {len(standings)} cells, "
        f"{spread}{kept} kept{also}"
    )


def print_table(standings: Sequence[Standing], winner: Entrant) -> None:
    """The race as a table on standard error: the best cells of every rung, the best first."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("step", "cell", "", "from", "train ppl", "held-out ppl", ""):
        number = "ppl" in name
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    last = max((s.rung for s in standings if s.entrant == winner), default=-1)
    for rung in sorted({s.rung for s in standings}):
        ranked = sorted((s for s in standings if s.rung == rung), key=_by_loss)
        shown = max(_ROWS, sum(s.kept for s in ranked))
        for place, s in enumerate(ranked[:shown]):
            entrant, heldout = s.entrant, s.outcome.heldout
            child = entrant.parent is not None
            origin = f"child of {entrant.parent}" if child else entrant.origin
            won = entrant == winner and rung == last
            table.add_row(
                "" if place else str(s.stop),
                str(entrant.number),
                visible(cell_text(entrant.genotype)),
                f"{origin}, again" if s.draw else origin,
                _value(s.outcome.train),
                "" if heldout is None else _value(heldout),
                "winner" if won else "on" if s.kept and rung < standings[-1].rung else "",
            )
        if len(ranked) > shown:
            rest = ranked[shown:]
            worst = [s.outcome.train for s in rest if math.isfinite(s.outcome.train)]
            until = "" if not worst else f"to {_value(max(worst))}"
            table.add_row("", "", f"and {len(rest)} more", "", until, "", "")
    # Wider than a narrow terminal, whose lines then wrap: a cell that is cut off is of no use.
    width = max(Console(file=sys.stderr).width, _WIDTH)
    Console(file=sys.stderr, width=width, markup=False, emoji=False).print(table)


def _by_loss(s: Standing) -> float:
    return s.outcome.train if s.outcome.heldout is None else s.outcome.heldout


def _value(loss: float) -> str:
    return f"{perplexity(loss, 1):,.2f}" if math.isfinite(loss) else "diverged"
