"""Trainings of several cells at a time, each in a process of its own with one thread.

Small networks gain little from a second thread: two trainings side by side take about as long as
one with two threads, or with any load beside them much less. What a training gives does not depend
on how many there are, for each has one thread.

A worker is `python -m rnnnas.searching.side_by_side`. It reads one JSON object a line from standard
input, first
what the race is, then trials, and writes one a line. At the end of its input it saves and
stops: that comes, too, where the process that started it was killed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, final

import rnnnas
from rnnnas.config.plain import from_plain
from rnnnas.config.text import SearchConfig
from rnnnas.errors import RnnnasError
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.halving import Trial
from rnnnas.processes import PARENT, answers, end_with_parent

_TELL_SECONDS = 0.5  # between two messages of how far a training is
_STOP_SECONDS = 120.0  # what a worker has to save in
_OBEY_SECONDS = 5.0  # after a SIGTERM, for the process that started a worker to end it


def file_of(folder: Path, trial: Trial) -> Path:
    """The file of a trial's training in the folder of a race."""
    again = f"-draw{trial.draw}" if trial.draw else ""
    return folder / f"cell-{trial.number:04}{again}.pt"


@dataclass(frozen=True, slots=True)
class Stage:
    """How far a trial is: `step` steps of its training are done; ended: it is over."""

    trial: Trial
    step: int
    ended: bool = False


@final
class Workers:
    """Processes that train cells; made at the first trials, ended by `close`.

    Args:
        race: what a worker must know: config, corpus, folder, save_seconds, plugins, as plain
            values.
    """

    def __init__(self, race: dict[str, Any], count: int) -> None:
        self._race, self._count = race, count
        self._processes: list[subprocess.Popen[bytes]] = []
        self._selector = selectors.DefaultSelector()
        self._unread: dict[int, bytes] = {}  # by worker: the beginning of a line

    def _begin(self, count: int) -> None:
        root = str(Path(rnnnas.__file__).parent.parent)
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {
            "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), PARENT: str(os.getpid()),
        }  # fmt: skip
        if sys.platform == "win32":  # a process there may be started by way of another
            del environment[PARENT]
        while len(self._processes) < min(count, self._count):
            process = subprocess.Popen(
                [sys.executable, "-m", "rnnnas.searching.side_by_side"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                # Ctrl-C in a terminal reaches a whole group: it should come once, from here.
                start_new_session=True,
            )
            assert process.stdout is not None
            os.set_blocking(process.stdout.fileno(), False)
            self._selector.register(process.stdout, selectors.EVENT_READ, len(self._processes))
            self._processes.append(process)
            self._send(process, self._race)

    def _send(self, process: subprocess.Popen[bytes], message: dict[str, Any]) -> None:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: its output says why
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()

    def carry_out(self, trials: Sequence[Trial]) -> Generator[Stage | None, None, None]:
        """Train all trials to their ends; yields how far they are, or None now and then.

        Left early, it has every worker save where it is.

        Raises:
            RnnnasError: what a worker raised, or that one was killed.
        """
        left = deque(trials)
        busy: dict[int, Trial] = {}
        self._begin(len(left))
        try:
            while left or busy:
                for number, process in enumerate(self._processes):
                    if left and number not in busy:
                        busy[number] = left.popleft()
                        self._send(process, _plain(busy[number]))
                yield None
                for number, message in self._messages(0.2):
                    if "error" in message:
                        error = RnnnasError(message["error"], message["remedy"])
                        error.exit_code = message["exit_code"]
                        raise error
                    trial, step = busy[number], int(message["step"])
                    if message["ended"]:
                        del busy[number]
                    yield Stage(trial, step, message["ended"])
        finally:
            if busy:
                self._stop()

    def _messages(self, seconds: float) -> Iterator[tuple[int, dict[str, Any]]]:
        for key, _ in self._selector.select(seconds):
            number = key.data
            if not (data := os.read(key.fd, 1 << 16)):
                code = self._processes[number].wait()
                raise RnnnasError(
                    f"a process that trained a cell ended with code {code}",
                    "the same command goes on from the last saved state",
                )
            *lines, rest = (self._unread.get(number, b"") + data).split(b"\n")
            self._unread[number] = rest
            yield from ((number, json.loads(line)) for line in lines)

    def _stop(self) -> None:
        """Have every worker save and end."""
        for process in self._processes:
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
        deadline = time.monotonic() + _STOP_SECONDS
        for process in self._processes:
            assert process.stdout is not None
            while process.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(BlockingIOError):  # or it waits for room in the pipe
                    os.read(process.stdout.fileno(), 1 << 16)
                time.sleep(0.02)
            process.kill()
            process.wait()
            process.stdout.close()
        self._processes.clear()
        self._selector.close()
        self._selector = selectors.DefaultSelector()
        self._unread.clear()

    def close(self) -> None:
        """End all processes; what is under way is saved."""
        self._stop()


def _plain(trial: Trial) -> dict[str, Any]:
    return {**trial._asdict(), "genotype": trial.genotype.to_plain()}


@final
class _Inbox:
    """The objects that come on standard input, a line each."""

    def __init__(self) -> None:
        self._data = b""
        self.closed = False

    def take(self, *, wait: bool) -> dict[str, Any] | None:
        """The next object; None where there is none, now or, if `wait`, ever."""
        while b"\n" not in self._data and not self.closed:
            if not wait and not self._ready():
                return None
            block = os.read(0, 1 << 16)
            self.closed = not block
            self._data += block
        if b"\n" not in self._data:
            return None
        line, _, self._data = self._data.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    @staticmethod
    def _ready() -> bool:
        with selectors.DefaultSelector() as selector:
            selector.register(0, selectors.EVENT_READ)
            return bool(selector.select(0))


def _work(out: BinaryIO) -> None:
    """What a worker does until its input ends."""
    from rnnnas.data.text_corpus import read_corpus
    from rnnnas.plugins.load import load
    from rnnnas.searching.cell_training import CellTraining, Course

    inbox = _Inbox()
    race = inbox.take(wait=True)
    if race is None:
        return
    import torch

    torch.set_num_threads(1)
    load(*race["plugins"])
    config = from_plain(SearchConfig, race["config"])
    corpus = read_corpus(Path(race["corpus"]), race["name"])
    course = Course(config, corpus, torch.device("cpu"))
    while (plain := inbox.take(wait=True)) is not None:
        trial = Trial(**{**plain, "genotype": Genotype.from_plain(plain["genotype"])})
        path = file_of(Path(race["folder"]), trial)
        training = CellTraining(course, trial.genotype, trial.draw, path)
        told = -math.inf
        with contextlib.closing(training.stretch(trial, race["save_seconds"])) as steps:
            for step in steps:
                if time.monotonic() - told >= _TELL_SECONDS:
                    told = time.monotonic()
                    _tell(out, step=step, ended=False)
                    inbox.take(wait=False)  # nothing but its end can come now
                if inbox.closed:
                    return
        _tell(out, step=training.step, ended=True)


def _tell(out: BinaryIO, **message: Any) -> None:
    out.write(json.dumps(message).encode() + b"\n")
    out.flush()


def _end_input(*_: object) -> None:
    """Have standard input be at its end, also for what is reading from it."""
    end, other = os.pipe()
    os.close(other)
    os.dup2(end, 0)


def main() -> None:
    """A worker: see the module."""
    # A terminal's Ctrl-C and a study's stop reach the process that started this one, which
    # closes our input. A SIGTERM to this one alone is obeyed a little later.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, _end_input)
        signal.signal(
            signal.SIGTERM, lambda *_: signal.setitimer(signal.ITIMER_REAL, _OBEY_SECONDS)
        )
    end_with_parent()
    out = answers()
    try:
        with contextlib.suppress(BrokenPipeError):
            _work(out)
    except RnnnasError as error:
        _tell(out, error=error.cause, remedy=error.remedy, exit_code=error.exit_code)


if __name__ == "__main__":
    main()
