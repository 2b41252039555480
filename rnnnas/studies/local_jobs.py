"""Running command lines: each in a process of its own on this machine, a few at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, final

from rnnnas.processes import PARENT
from rnnnas.runs.files import disk_errors

STOP_SECONDS = 120.0  # what a job has to save its state in
LOGS = "logs"  # a study's folder of what its jobs said


class Runner(Protocol):
    """Where jobs run."""

    poll_seconds: float
    # Processor seconds of jobs that ended, with the processes that they started; where it is known.
    spent: dict[str, float]

    def free(self) -> int:
        """How many more jobs may be started now."""

    def start(self, jobs: Mapping[str, tuple[str, ...]]) -> dict[str, str | None]:
        """Start jobs, name to the words after `rnnnas`; returns the cluster's own names, if any."""

    def ended(self) -> dict[str, int]:
        """The jobs that ended since the last call, with their exit codes."""

    def stop(self) -> str:
        """On an interruption: see that no work is lost; returns what became of the jobs."""

    def kill(self) -> None:
        """End what runs here at once."""


def log_path(folder: Path, name: str) -> Path:
    """Where the standard output and error of a job of the study in `folder` go."""
    return folder / LOGS / f"{name}.log"


def last_words(folder: Path, name: str) -> str:
    """The message in a job's log: its last line that begins with `rnnnas:`, or its last line."""
    try:
        text = log_path(folder, name).read_bytes()[-20_000:].decode("utf-8", "replace")
    except OSError as error:
        return f"no log: {error.strerror}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [line.removeprefix("rnnnas: ") for line in lines if line.startswith("rnnnas: ")]
    return (said or lines or ["it said nothing"])[-1]


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_each(slots: int) -> int:
    """Threads of each of `slots` jobs that share out this machine's cores."""
    return max(1, cores() // slots)


@final
class LocalRunner:
    """`slots` processes at a time on this machine.

    The cores are shared out: OMP_NUM_THREADS is cores / slots unless it is set. A job is the head
    of its own session, so that a Ctrl-C reaches it through `stop` alone; where the study itself
    is killed, its jobs notice it, save and end.

    Args:
        home: where they look for corpora; None: where this process does.
    """

    poll_seconds = 0.1

    def __init__(self, folder: Path, slots: int, home: Path | None = None) -> None:
        self._folder = folder
        self._slots = slots
        self.spent: dict[str, float] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        parent = {} if sys.platform == "win32" else {PARENT: str(os.getpid())}
        self._environment = {"OMP_NUM_THREADS": str(threads_each(slots)), **os.environ, **parent}
        if home is not None:
            self._environment["RNNNAS_HOME"] = str(home)

    def free(self) -> int:
        return self._slots - len(self._running)

    def start(self, jobs: Mapping[str, tuple[str, ...]]) -> dict[str, str | None]:
        for name, words in jobs.items():
            path = log_path(self._folder, name)
            with disk_errors(path):
                path.parent.mkdir(exist_ok=True)
                log = path.open("ab")
            with log:
                self._running[name] = subprocess.Popen(
                    [sys.executable, "-m", "rnnnas", *words],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environment,
                    start_new_session=True,
                )
        return dict.fromkeys(jobs)

    def ended(self) -> dict[str, int]:
        codes = {name: self._poll(name) for name in self._running}
        over = {name: code for name, code in codes.items() if code is not None}
        for name in over:
            del self._running[name]
        return over

    def _poll(self, name: str) -> int | None:
        """The exit code of a job that has ended; notes what it spent."""
        process = self._running[name]
        if process.returncode is None and hasattr(os, "wait4"):
            number, status, usage = os.wait4(process.pid, os.WNOHANG)
            if number:
                process.returncode = os.waitstatus_to_exitcode(status)
                self.spent[name] = usage.ru_utime + usage.ru_stime
            return process.returncode
        return process.poll()

    def stop(self) -> str:
        """SIGTERM to every job, which saves its state; waits for all of them."""
        count = len(self._running)
        for process in self._running.values():
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while self._running and time.monotonic() < deadline:
            self.ended()
            time.sleep(0.05)
        self.kill()
        return f"{count} jobs were stopped and saved" if count else "no job was running"

    def kill(self) -> None:
        """SIGKILL: a run goes on from its last saved state all the same."""
        for process in self._running.values():
            process.kill()
            process.wait()
        self._running.clear()
