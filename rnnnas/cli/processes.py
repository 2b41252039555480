"""Several processes for one run: started by hand, or found started by torchrun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from rnnnas.cli.common import echo, pick_device
from rnnnas.errors import UsageError

if TYPE_CHECKING:
    import torch

    from rnnnas.distributed import Ranks

STORE_NAME = "store"  # in a scratch folder: the file by which ranks find each other
PATIENCE = 10.0  # seconds that the other processes have to end once one has failed

processes_option = click.option(
    "--processes",
    type=click.IntRange(1, 256),  # of one machine
    default=1,
    help="Share the streams out among so many processes on this machine.",
)


@contextmanager
def joined(name: str) -> Iterator[tuple[torch.device, Ranks]]:
    """The device of `--device` for this process, and the processes that share its run."""
    from rnnnas import distributed

    device = pick_device(name, distributed.local_rank() if distributed.started() else None)
    with distributed.joined(device) as group:
        yield device, group


def check_processes(processes: int, streams: int) -> None:
    """Raises UsageError, before any has started, where some processes would have no stream."""
    if processes > streams:
        raise UsageError(
            f"windows.streams = {streams} cannot be shared out among {processes} processes",
            f"give --processes a number that {streams} is a multiple of",
        )


def started_by_hand(processes: int) -> bool:
    """Whether `--processes` asks for processes that are not there yet.

    Raises:
        UsageError: under torchrun, which has its own option for their number.
    """
    text = os.environ.get("WORLD_SIZE", "").strip()
    if text in ("", "1"):
        return processes > 1
    from rnnnas.distributed import started
    from rnnnas.ranks.rendezvous import place

    world = place("WORLD_SIZE", 1)
    started()  # refuses what is half set
    if world > 1 and processes not in (1, world):
        raise UsageError(
            f"--processes {processes} was given to one of {world} processes",
            "start rnnnas itself with --processes, or torchrun without it",
        )
    return world == 1 and processes > 1


def run_all(words: Sequence[str], processes: int) -> int:
    """Run `rnnnas WORDS` as `processes` ranks that find each other by a file; the exit code.

    Nothing listens beyond the loopback interface: there is no store with a port of its own.
    SIGINT and SIGTERM are passed on once; where one rank fails the others are ended.
    """
    from rnnnas.processes import scratch_folder

    with scratch_folder() as folder:
        children: list[subprocess.Popen[bytes]] = []
        asked: list[int] = []  # signals that came before all had started

        def forward(signum: int, frame: FrameType | None) -> None:
            asked.append(signum)
            for child in children:
                if child.poll() is None:
                    child.send_signal(signum)

        before = {s: signal.signal(s, forward) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            for rank in range(processes):
                child = subprocess.Popen(
                    [sys.executable, "-m", "rnnnas", *words],
                    env=_environment(rank, processes, folder / STORE_NAME),
                    # Ctrl-C in a terminal reaches a whole group: it should come once, from here.
                    start_new_session=True,
                )
                children.append(child)
                if asked:
                    child.send_signal(asked[0])
            return _wait(children)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for child in children:
                if child.poll() is None:
                    child.kill()
                child.wait()


def _environment(rank: int, processes: int, store: Path) -> dict[str, str]:
    from rnnnas.distributed import STORE
    from rnnnas.processes import PARENT
    from rnnnas.studies.local_jobs import threads_each

    parent = {} if sys.platform == "win32" else {PARENT: str(os.getpid())}
    return {
        "OMP_NUM_THREADS": str(threads_each(processes)),  # unless the user has set it
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        STORE: str(store),
        **parent,
    }


def _wait(children: list[subprocess.Popen[bytes]]) -> int:
    """Until all have ended; the exit code is that of a rank that was killed, rank 0's, or that of
    the first to fail.
    """
    failed: int | None = None
    deadline = float("inf")
    while None in (ended := [child.poll() for child in children]):  # every one is asked
        codes = [code for code in ended if code]
        if codes and failed is None:
            failed, deadline = codes[0], time.monotonic() + PATIENCE
        if time.monotonic() > deadline:  # they wait for one that has gone
            break
        time.sleep(0.05)
    for rank, child in enumerate(children):
        if (child.returncode or 0) < 0:  # it could say nothing itself
            name = signal.Signals(-child.returncode).name
            echo(f"rnnnas: process {rank} of {len(children)} was ended by {name}", err=True)
            echo("  the same command goes on from the last saved state", err=True)
            return 128 - child.returncode
    codes = [child.returncode or 0 for child in children]
    return codes[0] or failed or next((c for c in codes if c), 0)
