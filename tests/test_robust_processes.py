"""Temporary folders of processes that were killed are cleared, and nothing else is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rnnnas import processes
from rnnnas.processes import clear_scratch, scratch_folder
from rnnnas.runs.files import remove_temporaries, write_atomic

HOLDS = """
import os, sys
from pathlib import Path
from rnnnas.processes import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "store").write_text("x")
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_a_scratch_folder_goes_with_its_block_and_after_a_kill_at_the_next(tmp_path: Path) -> None:
    with scratch_folder(tmp_path) as folder:
        (folder / "x").touch()
        assert folder.parent == tmp_path and clear_scratch(tmp_path) == 0  # its process lives
    assert not any(tmp_path.iterdir())
    users = [tmp_path / "rnnnas-notes", tmp_path / (folder.name[:-1] + "g")]
    for path in users:
        path.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        left = Path(child.stdout.readline().strip())
        assert clear_scratch(tmp_path) == 0 and (left / "store").exists()
        child.send_signal(signal.SIGKILL)
        child.wait(600)
    assert left.exists()
    with scratch_folder(tmp_path):
        assert not left.exists()
    assert sorted(tmp_path.iterdir()) == sorted(users)


def test_a_link_by_the_name_of_a_scratch_folder_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thesis").mkdir()
    monkeypatch.setattr(os, "getpid", lambda: 2**22 + 1)  # no process has such a number
    (tmp_path / processes._scratch_name()).symlink_to(tmp_path / "thesis")
    assert clear_scratch(tmp_path) == 0
    (tmp_path / processes._scratch_name()).mkdir()
    assert clear_scratch(tmp_path) == 1


def test_a_temporary_that_is_being_written_stays(tmp_path: Path) -> None:
    seen = []

    def write(file: object) -> None:
        seen.append(remove_temporaries(tmp_path))  # as another command does

    write_atomic(tmp_path / "x", write)
    assert seen == [0] and [path.name for path in tmp_path.iterdir()] == ["x"]


WATCHED = """
import sys, time
from rnnnas import processes
processes.LOOK = processes.GRACE = 0.05
processes.end_with_parent()
print("here", flush=True)
time.sleep(600)
"""


def test_a_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    """At its very start: nothing of torch has been imported yet."""
    about = {**os.environ, processes.PARENT: str(os.getpid())}
    with subprocess.Popen(
        [sys.executable, "-c", WATCHED], env=about, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == "here\n"
        assert child.poll() is None  # its parent is here
        child.kill()
    gone = {**os.environ, processes.PARENT: str(os.getpid() + 1)}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED], env=gone, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == -signal.SIGTERM and "has gone" in done.stderr


def test_jobs_of_a_study_are_told_whose_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rnnnas.studies import local_jobs

    started: list[dict[str, str]] = []

    class Started:
        def __init__(self, words: list[str], *, env: dict[str, str], **options: object) -> None:
            started.append(env)

    monkeypatch.setattr(local_jobs.subprocess, "Popen", Started)
    local_jobs.LocalRunner(tmp_path, 1).start({"a": ("show", "DARTS_V2")})
    assert started[0][processes.PARENT] == str(os.getpid())


WORKER = """
import sys
from rnnnas.searching import side_by_side
side_by_side._OBEY_SECONDS = 0.05
original = side_by_side._Inbox.take
def take(self, **options):
    print("waits", flush=True)
    return original(self, **options)
side_by_side._Inbox.take = take
side_by_side.main()
"""


def test_a_worker_of_a_race_obeys_a_signal_and_ends_with_its_input() -> None:
    for ends in ("signal", "input"):
        with subprocess.Popen(
            [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stderr=subprocess.PIPE
        ) as child:
            assert child.stderr is not None and child.stdin is not None
            assert child.stderr.readline() == b"waits\n"
            if ends == "signal":
                child.send_signal(signal.SIGTERM)
            else:
                child.stdin.close()
            assert child.wait(600) == 0


def test_a_process_that_measures_alone_is_told_whose_it_is() -> None:
    from rnnnas.bench.recurrent import apart

    assert apart(os.getenv, processes.PARENT) == str(os.getpid())
