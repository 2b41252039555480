"""Carrying a study out: what is ready runs, what is finished is not run again."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, final

from rnnnas.data.corpus import AnyCorpus, check_unchanged
from rnnnas.data.image_corpus import ImageCorpus
from rnnnas.errors import CheckpointError, Interrupted, UsageError
from rnnnas.runs.files import Lock, disk_errors, remove_temporaries
from rnnnas.runs.sealed import read_result
from rnnnas.runs.signals import StopRequest
from rnnnas.studies.budget import StudyPace, planned_seconds, retimed
from rnnnas.studies.formats import rendered
from rnnnas.studies.local_jobs import LocalRunner, Runner, last_words
from rnnnas.studies.measure import loss_of, measure_of
from rnnnas.studies.paired_table import paired_notes, paired_report, paired_sheets
from rnnnas.studies.plan import (
    DEFAULT_PRESET,
    Job,
    Sizes,
    StudyConfig,
    command,
    final_jobs,
    first_jobs,
)
from rnnnas.studies.record import Record, free_folder
from rnnnas.studies.report import choose, report, show_on_board, summary_on_board
from rnnnas.studies.slurm import slurm_runner

DIVERGED = 6  # an exit code: the same command would diverge again
STOPPED = {143, -15}  # ended by SIGTERM from elsewhere, e.g. preempted: no failure
SETTLED = ("done", "failed", "skipped")

Cluster = Literal["local", "slurm"]


def study(
    config: StudyConfig,
    corpus: AnyCorpus,
    folder: Path,
    *,
    cluster: Cluster = "local",
    slots: int = 1,
    more: tuple[str, ...] = (),
    fresh: bool = False,
    pace: StudyPace | None = None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Carry a study out in `folder`, or go on with the one in it; returns its report.

    Args:
        slots: jobs at a time on this machine.
        more: words added to every command line, e.g. --device.
        pace: of a study whose jobs have time budgets, by which the later ones get more or less.
        say: gets a line a job.

    Raises:
        Interrupted: on SIGINT and SIGTERM, once the jobs here have saved and ended.
        RnnnasError: as `Record.open` and `slurm_runner` say.
    """
    check_medium(config, corpus)
    check_unchanged(corpus)
    folder = (free_folder(folder) if fresh else folder).absolute()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file, not a folder", "give another folder with --out")
    began = folder.exists()
    if began:
        Record.open(folder, config, corpus.sha256)  # what it refuses leaves no trace
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = Lock(folder)
    try:
        remove_temporaries(folder)
        record = Record.open(folder, config, corpus.sha256)
        attached = {
            name: str(job["cluster_job"])
            for name, job in record.jobs.items()
            if job["state"] == "running" and job.get("cluster_job")
        }
        if attached and cluster != "slurm":
            raise UsageError(
                f"{len(attached)} jobs of {folder} are with the cluster", "give --cluster slurm"
            )
        runner: Runner
        if cluster == "slurm":
            runner = slurm_runner(folder, record.config.slurm, attached)
        else:
            # A corpus that was opened elsewhere is found there by the jobs, too.
            runner = LocalRunner(folder, slots, corpus.folder.parent.parent.absolute())
        if pace is not None:
            pace.restore(record.budget or {})
        execution = Execution(record, Sizes(corpus.splits), runner, set(attached), more, say, pace)
        return execution.run()
    finally:
        lock.release()


@final
class Execution:
    """A study under way. running: jobs that the runner has already."""

    def __init__(
        self, record: Record, sizes: Sizes, runner: Runner, running: set[str],
        more: tuple[str, ...], say: Callable[[str], None], pace: StudyPace | None = None,
    ) -> None:  # fmt: skip
        self.record, self.sizes, self.runner = record, sizes, runner
        self.running, self.more, self.say, self.pace = running, more, say, pace
        self.planned = {} if pace is None else planned_seconds(record.config)
        self.firsts = first_jobs(record.config, sizes)
        self.results: dict[str, dict[str, Any]] = {}  # of finished jobs, by name
        self._finals: tuple[Mapping[str, int], list[Job]] | None = None  # by what was chosen
        self.foreign: set[str] = set()  # run by a process that an earlier start left behind

    def jobs(self) -> list[Job]:
        """All jobs that are known: the final ones once every cell is trained."""
        firsts = self.firsts
        if not all(self._is(job, *SETTLED) for job in firsts):
            return firsts
        chosen = choose(firsts, self.results)
        if self._finals is None or self._finals[0] != chosen:  # asked for at every poll
            self._finals = chosen, final_jobs(self.record.config, chosen, self.sizes)
        return [*firsts, *self._finals[1]]

    def run(self) -> dict[str, Any]:
        """Until every job is settled; returns the report, which study.json then holds."""
        self._begin()
        with StopRequest() as stop:
            try:
                while not self._settle():
                    self._start()
                    stop.check(self._save, self.record.folder)
                    time.sleep(self.runner.poll_seconds)
            except Interrupted as interrupted:
                said = self.runner.stop()
                for name in list(self.runner.spent):
                    self._add_spent(name)
                self._save()
                raise Interrupted(
                    f"{interrupted.cause}; {said}", interrupted.remedy, interrupted.exit_code
                ) from interrupted
            finally:
                self.runner.kill()  # after a second Ctrl-C, or a full disk; else nothing runs
        return self._finish()

    def _begin(self) -> None:
        """Take the folders at their word, and give what failed its other chances."""
        retries = self.record.config.retries
        for job in self.firsts:
            self.record.job(job.name)
        for name, entry in self.record.jobs.items():
            again = entry["failures"] <= retries and entry.get("exit_code") != DIVERGED
            if name in self.running:
                continue
            if (self.record.folder / name / "result.json").exists():
                entry["state"] = "done"
            elif entry["state"] != "failed" or again:
                entry["state"] = "waiting"
        self._skip()
        self.record.save()
        for _ in range(2):  # the final jobs are known by the results of the others
            self._look()
        if not all(self._is(job, *SETTLED) for job in self.jobs()):
            self.record.result = None  # of the study before it grew
            self.record.save()
        done = len(self.results)
        count = len(self.firsts) + self._finals_expected()
        self.say(f"{count} jobs in {self.record.folder}" + (f", {done} done" if done else ""))

    def _finals_expected(self) -> int:
        config = self.record.config
        if config.finals == "all":  # they are among the first
            return 0
        return (len(config.methods) + 1) * len(config.final_seeds)

    def _look(self) -> None:
        """Note every job whose run folder holds a result."""
        for job in self.jobs():
            entry = self.record.job(job.name)
            path = self.record.folder / job.name / "result.json"
            known = job.name in self.results or job.name in self.running
            if not known and path.exists():
                self.results[job.name] = _result(path)
                entry["state"] = "done"

    def _settle(self) -> bool:
        """Take in what has ended; whether every job is settled then."""
        ended = self.runner.ended()
        for name, code in ended.items():
            self.running.discard(name)
            if self.pace is not None:
                kind = next(job.kind for job in self.jobs() if job.name == name)
                self.pace.ended(name, kind, self.planned)
            self._end(name, code)
        for name in [name for name in self.foreign if not self._in_use(name)]:
            self.foreign.discard(name)
            ended[name] = 0
            self._look()
        self._skip()
        if any(self._is(job, "done") and job.name not in self.results for job in self.jobs()):
            self._look()  # a final training of an earlier start, of a cell that is chosen again
        if ended:
            self._save()
        return all(self._is(job, *SETTLED) for job in self.jobs())

    def _skip(self) -> None:
        """Leave out the trainings of cells whose search failed."""
        for job in self.firsts:  # a search stands before the training of its cell
            if job.after and self.record.job(job.after)["state"] in ("failed", "skipped"):
                self.record.job(job.name).update(state="skipped", message=f"{job.after} failed")

    def _is(self, job: Job, *states: str) -> bool:
        return self.record.job(job.name)["state"] in states

    def _end(self, name: str, code: int) -> None:
        entry = self.record.job(name)
        self._add_spent(name)
        path = self.record.folder / name / "result.json"
        if code == 0 and path.exists():
            self.results[name] = _result(path)
            entry.update(state="done")
            entry.pop("message", None)
            self.say(f"{name}: {_headline(self.results[name])}; {self._time_left()}")
            return
        if code in STOPPED:
            entry.update(state="waiting")
            self.say(f"{name}: was stopped from elsewhere, and goes on")
            return
        entry["failures"] += 1
        entry.update(exit_code=code, message=last_words(self.record.folder, name))
        again = entry["failures"] <= self.record.config.retries and code != DIVERGED
        entry["state"] = "waiting" if again else "failed"
        then = "trying again" if again else "given up"
        self.say(f"{name}: FAILED with exit code {code}, {then}: {entry['message']}")

    def _add_spent(self, name: str) -> None:
        """Note what a job spent since it was started last, beside what it had before."""
        if name in self.runner.spent:
            entry = self.record.job(name)
            before = entry.get("processor_seconds", 0.0)
            entry["processor_seconds"] = round(before + self.runner.spent.pop(name), 3)

    def _start(self) -> None:
        """Start what is ready, as far as there is room."""
        ready: dict[str, tuple[str, ...]] = {}
        for job in self.jobs():
            if len(ready) >= self.runner.free():
                break
            if (
                not self._is(job, "waiting")
                or job.name in self.foreign
                or (job.after and job.after not in self.results)
            ):
                continue
            if self._in_use(job.name):
                self.foreign.add(job.name)
                self.say(f"{job.name}: runs since an earlier start of this study; waiting for it")
                continue
            words = command(self._timed(job, ready), self.record.folder)
            ready[job.name] = (*words, *self.more)
        if ready:
            for name, cluster_job in self.runner.start(ready).items():
                self.record.job(name).update(state="running", cluster_job=cluster_job)
                self.running.add(name)
                if self.pace is not None:
                    self.pace.started(name)
            self._save()

    def _timed(self, job: Job, ready: Mapping[str, Any]) -> Job:
        """The job with the time that it gets now."""
        if self.pace is None:
            return job
        jobs = self.jobs()
        waiting = [j.kind for j in jobs if self._is(j, "waiting") and j.name not in ready]
        if len(jobs) == len(self.firsts):
            waiting += ["final"] * self._finals_expected()
        running = [j for j in jobs if j.name in self.running or j.name in ready]
        seconds = self.pace.of(job.kind, self.planned, waiting, running)
        return dataclasses.replace(job, words=retimed(job.words, seconds))

    def _save(self) -> None:
        if self.pace is not None:
            self.record.budget = self.pace.to_plain()
        self.record.save()

    def _in_use(self, name: str) -> bool:
        """Whether a process holds the run folder of a job: one that outlived its study."""
        folder = self.record.folder / name
        if not folder.is_dir():
            return False
        try:
            Lock(folder).release()
        except UsageError:
            return True
        return False

    def _time_left(self) -> str:
        """Jobs settled, and how long the others take at the speed of those like them."""
        jobs = self.jobs()
        done = [job for job in jobs if job.name in self.results]
        settled = sum(self._is(job, *SETTLED) for job in jobs)
        final = self._finals_expected() if len(jobs) == len(self.firsts) else 0
        left = sum(
            seconds_of(job, done, self.results) for job in jobs if not self._is(job, *SETTLED)
        )
        slots = min(max(1, self.runner.free() + len(self.running)), len(jobs))
        also = ", without the final trainings" if final else ""
        minutes, seconds = divmod(round(left / slots), 60)
        return f"{settled}/{len(jobs) + final} jobs, about {minutes}:{seconds:02} left{also}"

    def _finish(self) -> dict[str, Any]:
        every = self.record.config.finals == "all"
        told = paired_report if every else report
        result = told(self.record, self.jobs(), self.results)
        if result != self.record.result:
            if every:
                text = rendered(paired_sheets(result), paired_notes(result), "markdown")
                summary_on_board(self.record.folder, text)
            else:
                show_on_board(self.record.folder, result)
            self.record.result = result
            self._save()
        return {"run": str(self.record.folder), **result}


def check_medium(config: StudyConfig, corpus: AnyCorpus) -> None:
    """Raises UsageError where the study is for text and the corpus holds images, or reverse."""
    holds = "images" if isinstance(corpus, ImageCorpus) else "text"
    if holds != config.medium:
        fits = "study-images" if holds == "images" else DEFAULT_PRESET
        raise UsageError(
            f"this study is for {config.medium}, and the corpus {corpus.name} holds {holds}",
            f"take a study that fits it: --preset {fits}",
        )


def seconds_of(job: Job, done: list[Job], results: dict[str, dict[str, Any]]) -> float:
    """What `job` should take: its steps at the pace of finished jobs, of its own method and kind
    if there are any, else of its kind, else of all.
    """
    for same in (
        [d for d in done if (d.kind, d.method) == (job.kind, job.method)],
        [d for d in done if d.kind == job.kind],
        done,
    ):
        if same:
            spent = sum(results[d.name]["seconds"] for d in same)
            return float(job.steps * spent / max(1, sum(d.steps for d in same)))
    return 0.0


def _result(path: Path) -> dict[str, Any]:
    result = read_result(path.parent) or {}
    told = next((k for k in ("valid_perplexity", "valid_accuracy") if k in result), None)
    numbers = (result.get("seconds"), (result[told] or 0.0) if told else None)
    if not all(type(number) in (int, float) for number in numbers):
        raise CheckpointError(
            f"{path} is damaged: it lacks its seconds or its perplexity",
            "move it away, and the study's command reports anew from the saved state",
        )
    return result


def _headline(result: dict[str, Any]) -> str:
    value = loss_of(result, "valid")
    shown = "not finite" if value is None else f"{value:.2f}"
    return f"done in {result['seconds']:.0f} s, valid {measure_of([result])} {shown}"
