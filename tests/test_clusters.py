"""Whole studies: on this machine, killed without mercy; and on a real SLURM of one machine.

SLURM is not installed here: where slurmctld, slurmd and munged are missing (Debian: slurmctld,
slurmd, slurm-client, munge) its tests are skipped. Everything listens on loopback only.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rnnnas.data.corpus import open_corpus
from rnnnas.studies.local_jobs import cores

pytestmark = pytest.mark.slow
STUDY = ["study", "--corpus", "hmm", "--preset", "study-smoke", "--json"]
STUDY += ["--set", "search.epochs=4"]
PROGRAMS = ["slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue", "scontrol"]


def command(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rnnnas", *words], text=True, env={**os.environ},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> tuple[dict[str, Any], str]:
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    result: dict[str, Any] = json.loads(out)
    return result, err


def until(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError("it took too long")


def digests(folder: Path) -> dict[str, str]:
    return {
        path.parent.name: json.loads(path.read_text())["digest"]
        for path in sorted(folder.glob("*/result.json"))
    }


def measured(result: dict[str, Any]) -> dict[str, Any]:
    """A report without what differs between two studies of the same plan: seconds and places."""
    methods = {
        name: {key: value for key, value in own.items() if key != "seconds"}
        for name, own in result["methods"].items()
    }
    return {**{k: v for k, v in result.items() if k not in ("run", "seconds")}, "methods": methods}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RNNNAS_HOME", str(folder))
        open_corpus("hmm")
        yield folder


@pytest.fixture(scope="module")
def whole(home: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """A study that nothing disturbed: its report and the digests of its runs."""
    result, _ = finish(command(*STUDY))
    return result, digests(Path(result["run"]))


def test_a_study_that_is_killed_ends_the_same(
    home: Path, whole: tuple[dict[str, Any], dict[str, str]], tmp_path: Path
) -> None:
    """kill -9 of the study alone, twice: its jobs save and end by themselves. Then SIGTERM."""
    folder = tmp_path / "s"
    words = [*STUDY, "--out", str(folder), "--jobs", "2"]
    rng = random.Random(1)
    for kill in range(2):
        process = command(*words)
        until(lambda wanted=2 * kill + 1: len(list(folder.glob("*/state.pt"))) >= wanted)
        time.sleep(rng.random())
        process.kill()
        process.communicate()
    process = command(*words)
    until(lambda: len(list(folder.glob("*/state.pt"))) >= 5)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 143, err
    assert "the same command continues it" in err
    result, _ = finish(command(*words))
    assert digests(folder) == whole[1]
    assert measured(result) == measured(whole[0])
    print("study: 2 kills, 1 SIGTERM")


# SLURM


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/d.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/d.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=sched_interval=2
ReturnToService=2
JobRequeue=1
KillWait=60
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A SLURM of this one machine, for as long as the module runs."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if os.getuid():
        pytest.skip("slurmd starts jobs as their user: it needs root")
    pytest.importorskip("submitit")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    for part in (folder, *list(folder.parents)[:2]):
        part.chmod(0o755)  # munged refuses a socket that others cannot reach
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    conf = folder / "slurm.conf"
    conf.write_text(
        CONF.format(
            host=socket.gethostname().partition(".")[0], user="root", folder=folder,
            ports=(free_port(), free_port()), cpus=cores(),
        )
    )  # fmt: skip
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    daemons = [
        ["munged", "--force", "--foreground", f"--key-file={key}",
         f"--socket={folder}/munge.sock", f"--pid-file={folder}/munged.pid",
         f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed"],
        ["slurmctld", "-D"],
        ["slurmd", "-D"],
    ]  # fmt: skip
    started = []
    with (folder / "daemons.log").open("ab") as log, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(conf))
        try:
            for words in daemons:
                started.append(subprocess.Popen(words, env=environment, stdout=log, stderr=log))
                if words[0] == "munged":
                    until((folder / "munge.sock").exists)
            until(lambda: "idle" in told("sinfo", "--noheader"))
            yield folder
        finally:
            for process in reversed(started):
                process.terminate()
                process.wait(timeout=600)


def told(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True).stdout


def test_a_study_on_slurm(
    home: Path, whole: tuple[dict[str, Any], dict[str, str]], slurm: Path, tmp_path: Path
) -> None:
    """A job is preempted, and the study itself killed and started again: the same digests."""
    folder = tmp_path / "s"
    words = [*STUDY, "--out", str(folder), "--cluster", "slurm", "--partition", "test",
             "--set", "slurm.time=30"]  # fmt: skip
    process = command(*words)
    name = "search-darts-1st-s1"
    until((folder / name / "metrics.jsonl").exists)
    job = json.loads((folder / "study.json").read_text())["jobs"][name]["cluster_job"]
    told("scancel", "--signal=USR2", job)
    process.kill()
    process.communicate()
    result, err = finish(command(*words))
    assert digests(folder) == whole[1], err
    assert measured(result) == measured(whole[0])
    assert result["failed"] == []
    log = (folder / f"logs/{name}.log").read_text()
    assert "stopped by SIGTERM; the state is saved" in log and "continuing at epoch" in log
    assert "Requeued job" in (folder / f"submitit/{job}_0_log.out").read_text()
    print(f"slurm: job {job} preempted, the study killed")


def test_a_job_that_is_cancelled_saves_and_is_submitted_again(
    home: Path, slurm: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "s"
    words = [*STUDY, "--out", str(folder), "--cluster", "slurm", "--partition", "test",
             "--set", "slurm.time=30", "--seeds", "1"]  # fmt: skip
    process = command(*words)
    name = "search-darts-1st-s1"
    until((folder / name / "metrics.jsonl").exists)
    job = json.loads((folder / "study.json").read_text())["jobs"][name]["cluster_job"]
    told("scancel", job)
    result, err = finish(process)
    assert f"{name}: was stopped from elsewhere, and goes on" in err
    assert result["failed"] == []
