"""Running command lines on a SLURM cluster, through `submitit` (the extra `rnnnas[slurm]`).

A job that is preempted or runs out of its time gets SIGUSR2: it saves its state, is queued again,
and goes on where it was, because the same command with the same --out does. What a job ended with
stands in a small file of ours; the pickles that submitit keeps beside it are never read here.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from rnnnas.errors import CheckpointError, RnnnasError, UsageError
from rnnnas.runs.files import read_object, write_json
from rnnnas.studies.local_jobs import STOP_SECONDS, log_path

if TYPE_CHECKING:
    import submitit

TIMEOUTS = 1000  # how often a job may run out of its time and be queued again
LOST = -1  # the exit code of a job that left the queue without one
_LOST_SECONDS = 30.0  # what a network file system may take to show a file


@final
class Command:
    """`rnnnas WORDS...` as a job: returns its exit code, and writes {"exit_code"} to `done`.

    Called on the cluster; `checkpoint` is what submitit calls there on SIGUSR2.
    """

    def __init__(self, words: tuple[str, ...], log: Path, done: Path) -> None:
        self.words, self.log, self.done = words, log, done
        self.folder = Path.cwd()
        self._child: int | None = None

    def __call__(self) -> int:
        environment = dict(os.environ)
        if "SLURM_CPUS_PER_TASK" in environment:
            environment.setdefault("OMP_NUM_THREADS", environment["SLURM_CPUS_PER_TASK"])
        with self.log.open("ab") as log:
            # The scheduler sends SIGUSR2 to every process of the job: it is ours to act upon.
            child = subprocess.Popen(
                [sys.executable, "-m", "rnnnas", *self.words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.folder,
                preexec_fn=_ignore_preemption,
            )
            self._child = child.pid
            while child.poll() is None:
                time.sleep(0.1)
            self._child = None
        write_json(self.done, {"exit_code": child.returncode})
        return child.returncode

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Have the command save and end; then the same again.

        It runs in a signal's handler, amid `poll`: the child is waited for without reaping it.
        """
        import submitit

        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGTERM)
            deadline = time.monotonic() + STOP_SECONDS
            left = os.WEXITED | os.WNOWAIT | os.WNOHANG
            with contextlib.suppress(ChildProcessError):  # it was reaped already
                while os.waitid(os.P_PID, self._child, left) is None:
                    if time.monotonic() > deadline:
                        break
                    time.sleep(0.1)
        self._child = None
        return submitit.helpers.DelayedSubmission(self)


def _ignore_preemption() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


@final
class ClusterRunner:
    """Jobs of the study in `folder` as arrays of an executor of submitit.

    Args:
        queued: of the cluster's own names of jobs, those that are waiting or running still.
        attached: jobs that an earlier process of this study has submitted, with those names.
    """

    poll_seconds = 2.0

    def __init__(
        self,
        folder: Path,
        executor: submitit.Executor,
        queued: Callable[[list[str]], set[str]],
        attached: Mapping[str, str],
    ) -> None:
        self.spent: dict[str, float] = {}  # the cluster's own accounts know
        self._folder = folder
        self._executor = executor
        self._queued = queued
        self._running = dict(attached)
        self._missed: dict[str, float] = {}  # since when a job is out of the queue

    def free(self) -> int:
        return 1 << 30  # the cluster does the queueing

    def _done(self, name: str) -> Path:
        return log_path(self._folder, name).with_suffix(".exit.json")

    def start(self, jobs: Mapping[str, tuple[str, ...]]) -> dict[str, str | None]:
        log_path(self._folder, "").parent.mkdir(exist_ok=True)
        submitted = {}
        with self._executor.batch():
            for name, words in jobs.items():
                self._done(name).unlink(missing_ok=True)
                call = Command(words, log_path(self._folder, name), self._done(name))
                submitted[name] = self._executor.submit(call)
        names = {name: str(job.job_id) for name, job in submitted.items()}
        self._running.update(names)
        return dict(names)

    def _exit_code(self, name: str) -> int:
        code = read_object(self._done(name)).get("exit_code")
        if type(code) is not int:
            raise CheckpointError(
                f"{self._done(name)} is damaged: it has no exit code",
                "give the study's command again: it submits what is not done",
            )
        return code

    def ended(self) -> dict[str, int]:
        over: dict[str, int] = {}
        waiting = dict(self._running)
        for name in list(waiting):
            if self._done(name).exists():
                over[name] = self._exit_code(name)
                del waiting[name]
        there = self._queued(list(waiting.values())) if waiting else set()
        now = time.monotonic()
        for name, job in waiting.items():
            if job in there:
                self._missed.pop(name, None)
            elif now - self._missed.setdefault(name, now) > _LOST_SECONDS:
                over[name] = LOST
        for name in over:
            del self._running[name]
            self._missed.pop(name, None)
        return over

    def stop(self) -> str:
        """The jobs stay with the cluster: the study finds them again by their names."""
        if not self._running:
            return "no job was queued"
        jobs = " ".join(sorted({job.partition("_")[0] for job in self._running.values()}))
        return f"{len(self._running)} jobs stay with the cluster (scancel {jobs} would end them)"

    def kill(self) -> None:
        """Nothing runs here."""


def slurm_runner(
    folder: Path, parameters: Mapping[str, Any], attached: Mapping[str, str]
) -> ClusterRunner:
    """A runner that submits to SLURM. parameters: as `submitit.SlurmExecutor` takes them.

    Raises:
        UsageError: where submitit or SLURM's commands are missing, or a parameter is unknown.
    """
    try:
        submitit = importlib.import_module("submitit")
    except ImportError as error:
        raise UsageError(
            "--cluster slurm needs submitit, which is not installed",
            "pip install 'rnnnas[slurm]'",
        ) from error
    try:
        executor = submitit.SlurmExecutor(folder / "submitit", max_num_timeout=TIMEOUTS)
        executor.update_parameters(**{"job_name": f"rnnnas-{folder.name}"[:60], **parameters})
    except RuntimeError as error:
        raise UsageError(
            "there is no SLURM on this machine: srun was not found",
            "start the study on a login node of the cluster, or leave --cluster out",
        ) from error
    except ValueError as error:
        raise UsageError(
            f"slurm = {json.dumps(dict(parameters))}: {str(error).splitlines()[0]}",
            "parameters are those of submitit.SlurmExecutor, e.g. --set slurm.time=240",
        ) from error
    return ClusterRunner(folder, executor, _in_squeue, attached)


def _in_squeue(jobs: list[str]) -> set[str]:
    """Those of `jobs` that SLURM has waiting or running, each element of an array by itself."""
    done = subprocess.run(
        ["squeue", "--noheader", "--array", "--me", "--states=all", "--format=%i %T"],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RnnnasError(f"squeue failed: {done.stderr.strip()}", "give the same command again")
    rows = (line.split() for line in done.stdout.splitlines())
    over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY",
            "BOOT_FAIL", "DEADLINE", "PREEMPTED"}  # fmt: skip
    return {row[0] for row in rows if len(row) == 2 and row[1] not in over} & set(jobs)
