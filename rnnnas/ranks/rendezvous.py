"""How the processes that share a run find each other, and notice one that dies meanwhile.

Each connects to a store, which is process 0 (or torchrun, or a file), and counts up a number there
as a sign of life until all have come. Then they form their group, for which a process that has
come needs no more than a few seconds.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from torch._C._distributed_c10d import FileStore, PrefixStore, Store, TCPStore

from rnnnas.errors import RnnnasError, UsageError, visible
from rnnnas.ranks import presence

LIMIT = "RNNNAS_RANKS_SECONDS"  # within which all have to come; 600 where it is not set
LONG = 10.0  # seconds of waiting for the others, after which that is said
TRY = 2.0  # seconds of one attempt to connect
BEAT = 0.25  # seconds between two signs of life
# A process that died is noticed after SILENCE seconds while others are awaited, and after FORMING
# and LATER seconds once all had come: 30 together, at most.
SILENCE = 10.0  # seconds without a sign of life, after which a process is taken for dead
FORMING = 12.0  # seconds that the group may take once all have come
LATER = 3.0  # seconds by which processes may notice apart that it failed
_FAILED, _FORMED = 1, 2  # how a process was over with forming the group
_AGAIN = "see what that one said, then start all of them again"


def place(name: str, default: int) -> int:
    """A number from the environment, where torchrun puts some; `default` where there is none.

    Raises:
        UsageError: where it is no number, below 0, or of more than six digits.
    """
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdigit()) or len(text) > 6:
        raise UsageError(
            f"the environment variable {name} is {text!r}, which is no number from 0 to 999999",
            f"start with torchrun or --processes, which set what is needed; or unset {name}",
        )
    return int(text)


def meet(rank: int, world: int, file: str | None, form: Callable[[Store], None]) -> None:
    """Wait for the other processes, and form the group with the store by which they met.

    They meet in `file`, or where the environment's MASTER_ADDR and MASTER_PORT say. `form` raises
    a RuntimeError where the store does not answer within `FORMING` seconds.

    Raises:
        UsageError: where the environment names no place, the others were told another number of
            processes, or one of them does not come in time.
        RnnnasError: where one of them has ended.
    """
    meeting = _Meeting(_store(rank, world, file), rank, world)
    try:
        meeting.wait_for_all()
        with _interruptible():
            meeting.form(form)
    except RuntimeError as error:  # the store does not answer, or has gone
        raise meeting.ended(0) from error
    except RnnnasError:
        if rank == 0:  # the others read it from the store, which goes with this process
            time.sleep(4 * BEAT)
        raise
    presence.withdraw()


@dataclass
class _Meeting:
    """Signs of life by rank, and what ended the meeting if anything did, kept in a store."""

    store: Store
    rank: int
    world: int

    def wait_for_all(self) -> None:
        told = int(self.store.compare_set("world", "", str(self.world)))
        if told != self.world:
            raise UsageError(
                f"WORLD_SIZE is {self.world} for process {self.rank}, and {told} for another",
                "start all of them with the same number",
            )
        if self._beat(self.rank, 1) != 1:
            raise UsageError(
                f"two processes have the RANK {self.rank}",
                f"start each with a RANK of its own, 0 to {self.world - 1}",
            )
        limit, began = _limit(), time.monotonic()
        heard = {rank: (0, began) for rank in range(self.world) if rank != self.rank}
        said: list[int] = []
        while True:
            for rank, (before, _) in heard.items():
                beats = self._beat(rank, 0)
                if beats != before:
                    heard[rank] = (beats, time.monotonic())
            missing = [rank for rank, (beats, _) in heard.items() if beats == 0]
            if not missing:
                return
            now = time.monotonic()
            for rank, (beats, when) in heard.items():
                if beats and now - when > SILENCE:
                    raise self.ended(rank)
            for rank in sorted(presence.gone().intersection(missing)):
                raise self.ended(rank)
            if now - began > limit:
                raise self._stopped(
                    UsageError(
                        f"{_named(missing)} of {self.world} did not come within {limit} seconds",
                        "start all with the same MASTER_ADDR, MASTER_PORT and WORLD_SIZE; "
                        f"{LIMIT} sets how long they wait",
                    )
                )
            if now - began > LONG and missing != said:
                _say(self.rank, f"{_named(missing)} of {self.world}")
                said = missing
            time.sleep(BEAT)
            self._beat(self.rank, 1)
            if self.store.check(["stopped"]):
                raise self._stopped(RnnnasError("", ""))

    def form(self, form: Callable[[Store], None]) -> None:
        began = time.monotonic()
        try:
            form(self.store)
            self.store.add(f"over {self.rank}", _FORMED)
            return
        except (RuntimeError, ValueError) as error:
            failure = error
        self.store.add(f"over {self.rank}", _FAILED)
        until = max(began + FORMING, time.monotonic()) + LATER
        over = [0] * self.world
        while time.monotonic() < until:
            over = [self.store.add(f"over {rank}", 0) for rank in range(self.world)]
            if all(over) and _FORMED in over:  # one that had formed it ended, or will fail as well
                raise RnnnasError(
                    f"one of {self.world} processes has ended while the others were starting",
                    _AGAIN,
                ) from failure
            if all(over):
                raise UsageError(
                    f"{self.world} processes could not connect: {str(failure).splitlines()[0]}",
                    "GLOO_SOCKET_IFNAME names the network device by which they reach each other",
                ) from failure
            time.sleep(BEAT)
        raise self.ended(over.index(0)) from failure

    def ended(self, rank: int) -> RnnnasError:
        error = _ended(rank, self.world)
        return self._stopped(error) if rank else error

    def _stopped(self, error: RnnnasError) -> RnnnasError:
        """The error that all raise: the first that one of them met."""
        cause = self.store.compare_set("stopped", "", error.cause).decode()
        return error if cause == error.cause else RnnnasError(cause, _AGAIN)

    def _beat(self, rank: int, more: int) -> int:
        return self.store.add(f"beats {rank}", more)


def _ended(rank: int, world: int) -> RnnnasError:
    return RnnnasError(
        f"process {rank} of {world} has ended while the others were starting", _AGAIN
    )


def _store(rank: int, world: int, file: str | None) -> Store:
    if file:
        if not os.path.isdir(os.path.dirname(file) or "."):  # torch would wait for it
            raise UsageError(
                f"{world} processes cannot find each other: there is no folder of {file}",
                "start with torchrun or --processes",
            )
        return FileStore(file, world)
    host, port = os.environ.get("MASTER_ADDR", "").strip(), place("MASTER_PORT", 0)
    if not host or not 0 < port < 2**16:
        lacks = f"MASTER_PORT is {port or 'not set'}" if host else "MASTER_ADDR is not set"
        raise UsageError(
            f"{world} processes cannot find each other: {lacks}",
            "start with torchrun or --processes, or give each MASTER_ADDR, the machine of process "
            "0, and MASTER_PORT, a free port there (1 to 65535)",
        )
    holds = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        socket.getaddrinfo(host, port)  # torch would try again and again
        store = _connected(host, port, rank, world, holds)
    except (RuntimeError, OSError, ValueError) as error:
        reason = "is in use" if "EADDRINUSE" in str(error) else str(error).splitlines()[0]
        raise UsageError(
            f"process {rank} of {world} cannot use {host}:{port}: {reason}",
            "start one process with RANK 0 on the machine MASTER_ADDR; MASTER_PORT is a free port "
            "there, and the same for all",
        ) from error
    store.set_timeout(timedelta(seconds=FORMING))
    return PrefixStore(f"rnnnas {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _connected(host: str, port: int, rank: int, world: int, holds: bool) -> TCPStore:
    """The store at an address, which this process `holds` or waits for."""
    began, said = time.monotonic(), False
    while True:
        try:
            return TCPStore(
                host, port, world, holds, timeout=timedelta(seconds=FORMING if holds else TRY),
                wait_for_workers=False, multi_tenant=True,
            )  # fmt: skip
        except RuntimeError:
            if holds or time.monotonic() - began > _limit():
                raise
        for other in sorted(presence.gone()):
            raise _ended(other, world)
        if time.monotonic() - began > LONG and not said:
            _say(rank, f"{host}:{port}, where process 0 listens")
            said = True
        time.sleep(BEAT)


def _limit() -> int:
    return place(LIMIT, 600)


def _named(ranks: list[int]) -> str:
    """'process 1', 'processes 1, 2 and 3'."""
    *most, last = map(str, ranks)
    return f"processes {', '.join(most)} and {last}" if most else f"process {last}"


def _say(rank: int, whom: str) -> None:
    words = f"rnnnas: process {rank} waits for {whom} (Ctrl-C ends it)"
    print(visible(words), file=sys.stderr, flush=True)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Lets SIGINT and SIGTERM end the process at once: torch waits where no handler of ours runs,
    and nothing is there yet that would have to be saved.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: it was not set from Python
                signal.signal(number, handler)
