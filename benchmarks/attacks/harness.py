"""Commands of rnnnas in forked processes, and what became of each attempt."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VERDICTS = ("refused", "same", "silent", "traceback", "lost")
FAULTS = ("silent", "traceback", "lost")
REFUSALS = (2, 3, 4, 5, 6)
CPU_SECONDS = 60  # that a command may compute; no limit of time, for the machine is shared
LIMIT = 900.0  # seconds after which a command waits for ever
SAID = ("warning", "note:", "anew", "not kept", "changed", "damaged", "ignored", "goes on")


@dataclass(frozen=True)
class Outcome:
    """How a command ended. code: its exit code, below 0 a signal; None where it took too long."""

    code: int | None
    out: str
    err: str

    @property
    def crashed(self) -> bool:
        """Whether it ended as no command may, whatever it was given."""
        return self.code is None or self.code == 1 or self.code < 0 or "Traceback" in self.err

    @property
    def refused(self) -> bool:
        return self.code in REFUSALS and 1 <= len(self.err.strip().splitlines()) <= 12

    @property
    def said(self) -> bool:
        return any(word in self.err.lower() for word in SAID)

    def told(self) -> Any:
        """What it printed, without what differs between two equal runs."""
        try:
            value = json.loads(self.out)
        except ValueError:
            return self.out
        return (
            {k: v for k, v in value.items() if k not in VARIES}
            if isinstance(value, dict)
            else value
        )


_ENDS = {signal.SIGINT, signal.SIGTERM}
VARIES = ("seconds", "run", "checkpoint", "tokens_per_second", "folder", "source")


@dataclass
class Sheet:
    """The results of a campaign: counts of verdicts, and a line for every fault."""

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def note(self, verdict: str, about: str, outcome: Outcome | None = None) -> None:
        self.counts[verdict] += 1
        if verdict in FAULTS:
            ended = ""
            if outcome is not None:
                last = (outcome.err.strip().splitlines() or ["-"])[-1][:160]
                ended = f": exit code {outcome.code}, {last}"
            self.faults.append(f"{verdict}: {about}{ended}")

    def add(self, other: Mapping[str, Any]) -> None:
        self.counts.update(other["counts"])
        self.faults += other["faults"]

    def row(self) -> str:
        tried = sum(self.counts.values())
        return (
            f"| {self.name} | {tried} | " + " | ".join(str(self.counts[v]) for v in VERDICTS) + " |"
        )


def preload() -> None:
    """Import everything once: what is forked need not. No tensor is computed here."""
    import rnnnas

    for module in pkgutil.walk_packages(rnnnas.__path__, "rnnnas."):
        if "triton_" not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    import torch.utils.tensorboard  # noqa: F401


def start(
    words: Sequence[str], place: Path, *, env: Mapping[str, str] | None = None,
    most_bytes: int | None = None, cwd: Path | None = None,
) -> int:  # fmt: skip
    """Start `rnnnas WORDS` in a forked process, whose output goes to files in `place`; its pid.

    most_bytes: that a file may have, as on a disk that is full.
    """
    place.mkdir(parents=True, exist_ok=True)
    # A signal that comes before the command begins waits until it does.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
    number = os.fork()
    if number:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDS)
        return number
    code = 1
    try:
        os.setsid()
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(place / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ.update(env or {})
        os.chdir(cwd or place)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
        if most_bytes is not None:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
        from rnnnas.cli import main

        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDS)
        main(list(words))
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        begun = Path(frames[-1].filename).name not in ("harness.py", "signal.py")
        if isinstance(error, KeyboardInterrupt) and not begun:
            code = 130  # it came before the command's first line, while Python would still start
        else:
            traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def wait(number: int, place: Path, limit: float = LIMIT) -> Outcome:
    """The outcome of a process that `start` began; ended where it takes longer than `limit`."""
    deadline = time.monotonic() + limit
    while True:
        done, status = os.waitpid(number, os.WNOHANG)
        if done:
            code: int | None = os.waitstatus_to_exitcode(status)
            break
        if time.monotonic() > deadline:
            os.killpg(number, signal.SIGKILL)
            os.waitpid(number, 0)
            code = None
            break
        time.sleep(0.005)
    out, err = ((place / name).read_bytes().decode("utf-8", "replace") for name in ("out", "err"))
    return Outcome(code, out, err)


def run(words: Sequence[str], place: Path, limit: float = LIMIT, **options: Any) -> Outcome:
    """The outcome of `rnnnas WORDS`."""
    return wait(start(words, place, **options), place, limit)


def copied(pristine: Path, place: Path) -> Path:
    """A fresh copy of a folder."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(pristine, place, symlinks=True)
    return place


Attempt = Callable[[Sheet, random.Random, Path, int], None]


def campaign(
    name: str, count: int, attempt: Attempt, work: Path, *, seed: int, workers: int
) -> Sheet:
    """Make `count` attempts, shared out among forked workers; each attempt has its own seed."""
    began, children = time.monotonic(), []
    for worker in range(workers):
        number = os.fork()
        if number:
            children.append(number)
            continue
        place = work / f"{name.replace(' ', '-')}-{worker}"
        sheet = Sheet(name)
        try:
            for i in range(worker, count, workers):
                attempt(sheet, random.Random(f"{seed} {name} {i}"), place, i)
        except BaseException:
            sheet.note("traceback", f"the campaign itself: {traceback.format_exc()}")
        finally:
            told = json.dumps({"counts": sheet.counts, "faults": sheet.faults})
            (work / f"{name}-{worker}.json").write_text(told)
            os._exit(0)
    for number in children:
        os.waitpid(number, 0)
    sheet = Sheet(name)
    for worker in range(workers):
        sheet.add(json.loads((work / f"{name}-{worker}.json").read_text()))
    print(f"{name}: {sum(sheet.counts.values())} in {time.monotonic() - began:.0f} s", flush=True)
    for line in sheet.faults:
        print(f"  {line}", flush=True)
    return sheet
