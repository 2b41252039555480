"""What forks of a process with torch imported have in common with processes that are started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import warm_starts

pytestmark = pytest.mark.skipif(
    subprocess.Popen is not warm_starts.WarmPopen, reason="processes are started as everywhere"
)
WORDS = [sys.executable, "-m", "rnnnas"]
TELLS = """
import os, sys, threading
print(os.getppid(), os.getcwd(), sys.argv[1:], sys.path[:2], os.environ.get("MARK"), __name__)
print("torch" in sys.modules, [n for n in sys.modules if n.split(".")[0] == "rnnnas"][:1])
print(sorted(os.listdir("/proc/self/fd"))[:4], threading.active_count(), file=sys.stderr)
print(sys.stdin.read())
sys.exit(7)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a package of our name, whose program tells what it finds."""
    package = tmp_path / "rnnnas"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(TELLS)
    return tmp_path


def told(popen: type[subprocess.Popen[Any]], place: Path) -> tuple[int, str, str]:
    environment = os.environ | {"MARK": "x", "PYTHONPATH": f"{place}{os.pathsep}/nowhere"}
    with popen(
        [*WORDS, "a", "b c"], cwd=place, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as child:  # fmt: skip
        out, error = child.communicate("read", timeout=600)
    return child.returncode, out, error


def test_a_fork_is_as_a_process_that_is_started(place: Path) -> None:
    forked = told(warm_starts.WarmPopen, place)
    started = told(warm_starts._POPEN, place)
    assert forked[0] == started[0] == 7
    assert forked[1].splitlines()[0] == started[1].splitlines()[0]
    assert forked[1].splitlines()[0].startswith(f"{os.getpid()} {place} ['a', 'b c']")
    assert forked[1].splitlines()[2] == "read"
    assert forked[2] == started[2]
    # What it is for, and that our own modules are imported anew.
    assert forked[1].splitlines()[1].startswith("True ['rnnnas']")
    assert started[1].splitlines()[1].startswith("False ['rnnnas']")


@pytest.mark.parametrize("other", [{"OMP_NUM_THREADS": "2"}, {"ONEDNN_MAX_CPU_ISA": "SSE41"}])
def test_another_environment_of_libraries_is_started_as_usual(
    place: Path, other: dict[str, str]
) -> None:
    done = subprocess.run(
        WORDS, cwd=place, env=os.environ | other, text=True, input="", capture_output=True
    )
    assert done.returncode == 7 and "False ['rnnnas']" in done.stdout


def test_it_is_ended_by_signals(place: Path) -> None:
    with subprocess.Popen(WORDS, cwd=place, stdin=subprocess.PIPE, text=True) as child:
        child.terminate()
        assert child.wait(600) == -15
