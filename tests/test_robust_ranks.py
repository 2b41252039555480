"""A rank whose parent has gone ends by itself, also while it waits for the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rnnnas.cli import processes

WAITS = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell
import torch
from rnnnas import distributed
from rnnnas import processes
from rnnnas.ranks import rendezvous
processes.LOOK = 0.1
processes.end_with_parent()
with distributed.joined(torch.device("cpu")):
    pass
"""


def test_a_rank_that_waits_for_others_ends_when_its_parent_has_gone(tmp_path: Path) -> None:
    ranks = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    parent = str(os.getpid() + 1)  # not the one that starts it
    about = {"RNNNAS_RANKS_FILE": str(tmp_path / "store"), "RNNNAS_PARENT": parent}
    done = subprocess.run(
        [sys.executable, "-c", WAITS], env={**os.environ, **ranks, **about},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == -signal.SIGTERM, done.stderr
    assert "has gone" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_rank_that_waits_says_for_whom_and_ends_by_a_signal(
    number: signal.Signals, tmp_path: Path
) -> None:
    ranks = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    about = {"RNNNAS_RANKS_FILE": str(tmp_path / "store")}
    with subprocess.Popen(
        [sys.executable, "-c", WAITS.replace("processes.LOOK =", "rendezvous.LONG =")],
        env={**os.environ, **ranks, **about}, stderr=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stderr is not None
        assert "process 0 waits for process 1 of 2" in child.stderr.readline()
        child.send_signal(number)
        assert child.wait(600) == -number


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
@pytest.mark.parametrize(("how", "code"), [("kill -9 $$", 137), ("exit 3", 3)])
def test_a_rank_that_dies_while_starting_ends_the_others(
    how: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others wait for it, and would for hours; the folder they share goes as well."""
    rank, place = tmp_path / "rank", tmp_path / "temporary"
    place.mkdir()
    rank.write_text(f'#!/bin/sh\nif [ "$RANK" = 1 ]; then {how}; fi\nexec sleep 600\n')
    rank.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(rank))
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setattr(processes, "PATIENCE", 0.2)
    assert processes.run_all(["search"], 3) == code
    assert not any(place.iterdir())
