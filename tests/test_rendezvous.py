"""Ranks that nobody watches over: one that dies while starting ends the others, by name."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from rnnnas import distributed
from rnnnas.errors import RnnnasError, UsageError
from rnnnas.ranks import presence, rendezvous

CPU = torch.device("cpu")
Join = Callable[[], None]


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port: int = place.getsockname()[1]
        return port


def die(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def dies(moment: str) -> None:
    """Have this process die at a moment of its start."""
    if moment == "announced":
        beat = rendezvous._Meeting._beat

        def last(self: Any, rank: int, more: int) -> int:
            here = [beat(self, other, 0) for other in range(self.world - 1)]
            return die() if min(here) > 1 else beat(self, rank, more)

        rendezvous._Meeting._beat = last  # type: ignore[method-assign]
    elif moment == "forming":
        dist.init_process_group = die
    elif moment == "formed":
        distributed.Ranks.__init__ = die  # type: ignore[method-assign]


def rank_process(folder: Path, env: dict[str, str], moment: str, seconds: dict[str, float]) -> None:
    """A rank of a run that does next to nothing; writes what came of it."""
    os.environ.update(env)
    for name, value in seconds.items():
        setattr(rendezvous, name, value)
    distributed.FORMING = rendezvous.FORMING
    dies(moment)
    try:
        with distributed.joined(CPU) as ranks:
            group = dist.distributed_c10d._get_default_group()
            options = group._get_backend(CPU).options
            assert options._timeout == distributed._PATIENCE
            told = ranks.broadcast(f"all {ranks.size}")
    except RnnnasError as error:
        told = f"{error.cause}\n{error.remedy}"
    (folder / f"told{env['RANK']}").write_text(told)


def start(
    folder: Path, world: int, *, deaths: dict[int, str] | None = None, env: Any = None,
    **seconds: float,
) -> dict[int, str]:  # fmt: skip
    """What came of each rank that did not die; a death may be "absent", too."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch is imported once for all
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
    about = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world)}
    processes = {}
    for rank in range(world):
        moment = (deaths or {}).get(rank, "")
        if moment != "absent":
            given = {**about, "RANK": str(rank), **(env or {}).get(rank, {})}
            rest = (folder, given, moment, {"BEAT": 0.05, "LATER": 1.0, **seconds})
            processes[rank] = context.Process(target=rank_process, args=rest)
    for process in processes.values():
        process.start()
    for process in processes.values():
        process.join(100)
    over = {rank: process.exitcode for rank, process in processes.items()}
    for process in processes.values():
        process.kill()
    died = {rank: -signal.SIGKILL for rank, moment in (deaths or {}).items() if moment != "absent"}
    assert over == {rank: died.get(rank, 0) for rank in processes}
    return {r: (folder / f"told{r}").read_text() for r in processes if r not in died}


def test_ranks_that_are_started_by_hand_find_each_other(tmp_path: Path) -> None:
    assert start(tmp_path, 3) == dict.fromkeys(range(3), "all 3")


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("moment", ["announced", "forming", "formed"])
def test_a_rank_that_dies_while_starting_ends_the_others(
    moment: str, victim: int, tmp_path: Path
) -> None:
    """Before all have come, where the last never does; while they connect; and after it."""
    deaths = {victim: moment, **({3: "absent"} if moment == "announced" else {})}
    seconds = {"announced": {"SILENCE": 3.0}, "forming": {"FORMING": 2.0}, "formed": {}}[moment]
    world = len(deaths) + 2
    told = start(tmp_path, world, deaths=deaths, **seconds)
    assert len(told) == 2
    for rank, text in told.items():
        ended = f"{world} has ended while the others were starting"
        said = [f"process {victim} of {ended}"]
        if moment == "formed":  # some may not have been over with it
            said += [f"process {rank} of {world} stopped: another one has ended"]
            said += [f"one of {world} processes has ended while the others started"]
        cause, remedy = text.splitlines()
        assert cause in said and remedy.startswith("see what that one said")


def test_a_rank_that_never_comes_is_awaited_so_long(tmp_path: Path) -> None:
    env = {rank: {rendezvous.LIMIT: "1"} for rank in range(2)}
    told = start(tmp_path, 4, deaths={2: "absent", 3: "absent"}, env=env)
    assert len(told) == 2
    for text in told.values():
        assert text.startswith("processes 2 and 3 of 4 did not come within 1 seconds\n")
    alone = start(tmp_path, 2, deaths={0: "absent"}, env={1: {rendezvous.LIMIT: "1"}})
    assert alone[1].startswith("process 1 of 2 cannot use 127.0.0.1:")
    assert "start one process with RANK 0" in alone[1]


def test_processes_of_different_starts_are_told_apart() -> None:
    store = dist.HashStore()
    rendezvous._Meeting(store, 0, 1).wait_for_all()
    with pytest.raises(UsageError, match="two processes have the RANK 0"):
        rendezvous._Meeting(store, 0, 1).wait_for_all()
    with pytest.raises(UsageError, match="WORLD_SIZE is 2 for process 1, and 1 for another"):
        rendezvous._Meeting(store, 1, 2).wait_for_all()


def test_processes_that_cannot_connect_are_not_called_dead() -> None:
    def form(store: dist.Store) -> None:
        store.set("over 1", str(other))
        raise RuntimeError("no route\nframe #0")

    other = rendezvous._FORMED
    with pytest.raises(RnnnasError, match="one of 2 processes has ended"):
        rendezvous._Meeting(dist.HashStore(), 0, 2).form(form)
    other = rendezvous._FAILED
    with pytest.raises(UsageError, match="2 processes could not connect") as caught:
        rendezvous._Meeting(dist.HashStore(), 0, 2).form(form)
    assert caught.value.cause.endswith(": no route")


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        ({}, "MASTER_ADDR is not set"),
        ({"MASTER_ADDR": " ", "MASTER_PORT": "29500"}, "MASTER_ADDR is not set"),
        ({"MASTER_ADDR": "localhost", "MASTER_PORT": ""}, "MASTER_PORT is not set"),
        ({"MASTER_ADDR": "localhost", "MASTER_PORT": "70000"}, "MASTER_PORT is 70000"),
        ({"MASTER_ADDR": "localhost", "MASTER_PORT": "a"}, "MASTER_PORT is 'a'"),
        ({"MASTER_ADDR": "a b", "MASTER_PORT": "29500"}, "cannot use a b:29500"),
        ({"MASTER_ADDR": "a..b", "MASTER_PORT": "29500"}, "cannot use a..b:29500"),
    ],
)
def test_an_address_that_is_none_is_refused_at_once(
    given: dict[str, str], cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=cause) as caught:
        rendezvous._store(1, 2, None)
    assert caught.value.remedy and "\n" not in caught.value.cause


def test_a_port_that_another_program_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(UsageError, match=f"127.0.0.1:{port}: is in use"):
            rendezvous._store(0, 2, None)


def test_a_file_to_meet_in_needs_its_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder of"):
        rendezvous._store(0, 2, str(tmp_path / "gone" / "store"))


LIVES = """
import sys
from rnnnas.ranks import presence
presence.announce()
print("here", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_a_rank_that_dies_before_it_reaches_the_others_is_noticed_on_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it lived before this one or came later, and also while nobody has asked for it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(presence, "_here", None)
    about = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500", "WORLD_SIZE": "4", "RANK": "0"}
    for name, value in about.items():
        monkeypatch.setenv(name, value)

    def lives(rank: int, **other: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", LIVES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "RANK": str(rank), "TMPDIR": str(tmp_path), **other},
        )  # fmt: skip
        assert child.stdout is not None and child.stdout.readline() == "here\n"
        return child

    before = lives(1)
    presence.announce()
    later, foreign = lives(2), lives(3, MASTER_PORT="29501")
    try:
        for child in (later, foreign):
            child.kill()
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
        assert presence.gone() == {2}
        with pytest.raises(RnnnasError, match="process 2 of 4 has ended"):
            rendezvous._Meeting(dist.HashStore(), 0, 4).wait_for_all()
        before.communicate("")  # ends by itself, and takes its folder with it
        assert presence.gone() == {1, 2}
        again = lives(2)
        assert presence.gone() == {1}
        again.communicate("")
        presence.withdraw()
        assert presence.gone() == set() and not any(tmp_path.iterdir())
    finally:
        for child in (before, later, foreign):
            child.kill()
            child.communicate()


WAITS = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell
import torch
from rnnnas import distributed
from rnnnas.ranks import presence, rendezvous
rendezvous.LONG = rendezvous.TRY = 0.1
with distributed.joined(torch.device("cpu")):
    pass
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("rank", "whom"), [(0, "process 1 of 2"), (1, "127.0.0.1:")])
def test_a_rank_that_waits_says_for_whom_and_ends_by_a_signal(
    rank: int, whom: str, number: signal.Signals
) -> None:
    env = {
        "WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
        "TORCH_CPP_LOG_LEVEL": "FATAL",  # as the command sets it
        "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-c", WAITS], env={**os.environ, **env}, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stderr is not None
        assert f"process {rank} waits for {whom}" in child.stderr.readline()
        time.sleep(0.1)
        child.send_signal(number)
        assert child.wait(60) == -number
