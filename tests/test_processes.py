"""Real commands as several processes: by torchrun, and by `--processes`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rank_work
import torch
from click.testing import CliRunner
from tiny_home import home as home

from rnnnas.cli import main, processes, runs
from rnnnas.cli.common import pick_device
from rnnnas.cli.processes import started_by_hand
from rnnnas.distributed import ALONE
from rnnnas.errors import UsageError
from rnnnas.runs.checkpoint import load_content

SETTINGS = [
    "model.hidden=8", "windows.streams=6", "windows.limit=8", "valid_streams=6", "test_streams=4",
    "model.precision=float32", "weights.lr=2", "weights.nonmono=0",
]  # fmt: skip
RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def words(out: Path, *settings: str) -> list[str]:
    found = ["train", "--corpus", "tiny", "--preset", "smoke", "--seed", "3", "--json"]
    found += ["--genotype", "sigmoid0 relu1 tanh1", "--out", str(out), "--device", "cpu"]
    for setting in (*SETTINGS, *settings):
        found += ["--set", setting]
    return found


def command(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *arguments], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={k: v for k, v in os.environ.items() if k not in RANKS},
    )  # fmt: skip


# Slow, since now and then a process of torchrun's aborts when it ends, after its work is done.
@pytest.mark.slow
def test_torchrun(home: Path, tmp_path: Path) -> None:
    launched = command(
        "torch.distributed.run", "--nproc-per-node", "2",
        "-m", "rnnnas", *words(tmp_path / "both", "epochs=2"),
    )  # fmt: skip
    out, err = launched.communicate(timeout=600)
    assert launched.returncode == 0, err
    result = json.loads(out)  # one object: one rank reports
    settings = (*SETTINGS, "epochs=2")
    alone = rank_work.a_run(ALONE, str(home), "train", str(tmp_path / "one"), settings, "")
    assert result["test_perplexity"] == pytest.approx(alone["test_perplexity"], rel=1e-5)
    one, two = (load_content(tmp_path / name / "best.pt")["weights"] for name in ("one", "both"))
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-5, atol=1e-5)
    assert err.count("epoch 2/2, train") == 1


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def listening(pid: int) -> list[str]:
    """Addresses, in the hex of /proc/net, at which a process waits for connections."""
    held = set()
    for handle in Path(f"/proc/{pid}/fd").iterdir():
        try:
            held.add(os.readlink(handle))
        except FileNotFoundError:  # closed meanwhile
            continue
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            field = line.split()
            if field[3] == "0A" and f"socket:[{field[9]}]" in held:
                found.append(field[1].partition(":")[0])
    return found


LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("ends", ["term", pytest.param("orphans", marks=pytest.mark.slow)])
def test_processes_by_hand(ends: str, home: Path, tmp_path: Path) -> None:
    """They listen on loopback only, stop together when asked to, and do not outlive their start."""
    run = tmp_path / "run"
    process = command("rnnnas", *words(run, "epochs=100000"), "--processes", "2")
    metrics = run / "metrics.jsonl"
    deadline = time.monotonic() + 600
    while not metrics.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert metrics.exists(), process.communicate()
    ranks = children(process.pid)
    assert len(ranks) == 2
    addresses = [address for pid in [process.pid, *ranks] for address in listening(pid)]
    assert len(addresses) >= 2, "each rank waits for the other"
    assert set(addresses) <= LOOPBACK, addresses
    if ends == "orphans":
        process.kill()
        process.wait()
        deadline = time.monotonic() + 600
        while any(Path(f"/proc/{pid}").exists() for pid in ranks) and time.monotonic() < deadline:
            time.sleep(0.05)
    else:
        process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=600)
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    assert out == "" and err.count("stopped by SIGTERM") == 1, err
    assert process.returncode == (143 if ends == "term" else -signal.SIGKILL)
    assert load_content(run / "state.pt")["state"]["position"]["step"] > 0


@pytest.mark.slow
def test_an_error_is_said_once(home: Path, tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    process = command("rnnnas", *words(tmp_path), "--processes", "2")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 2 and out == ""
    assert err.count("holds files but no run") == 1 and "Traceback" not in err


def test_torchrun_and_processes_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    assert started_by_hand(2) and not started_by_hand(1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert not started_by_hand(1) and not started_by_hand(2)
    with pytest.raises(UsageError, match="--processes 3"):
        started_by_hand(3)


def test_processes_without_a_stream_are_refused_before_they_start(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "run_all", lambda *_: pytest.fail("they were started"))
    result = CliRunner().invoke(main, [*words(tmp_path / "x"), "--processes", "7"])
    assert isinstance(result.exception, SystemExit) and result.exit_code == 2
    assert "windows.streams = 6 cannot be shared out among 7 processes" in result.stderr
    assert "256" in CliRunner().invoke(main, [*words(tmp_path), "--processes", "1000000"]).stderr


def test_each_process_takes_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    made = torch.zeros(1)
    monkeypatch.setattr(torch, "zeros", lambda *_, device, dtype: made.to(dtype))
    assert str(pick_device("cuda", 1)) == "cuda:1" and str(pick_device("cpu", 1)) == "cpu"
    assert str(pick_device("cuda")) == "cuda" and str(pick_device("cuda:1")) == "cuda:1"
    with pytest.raises(UsageError, match="one device for several"):
        pick_device("cuda:1", 0)


def test_a_device_that_cannot_compute_losses_is_refused() -> None:
    with pytest.raises(UsageError, match="device 'meta' cannot be used"):
        pick_device("meta")


def test_float32_is_not_rounded_by_a_gpu() -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    pick_device("cpu")
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


def sleeping(seconds: float, code: int = 0) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sh", "-c", f"sleep {seconds}; exit {code}"])


def test_a_process_that_was_killed_is_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also while the others notice nothing, and whatever they say of it afterwards."""
    monkeypatch.setattr(processes, "PATIENCE", 0.2)
    for seconds, code in ((30, 0), (0.1, 1)):
        pair = [sleeping(seconds, code), sleeping(30)]
        pair[1].kill()
        assert processes._wait(pair) == 128 + signal.SIGKILL
        assert "process 1 of 2 was ended by SIGKILL" in capsys.readouterr().err
        assert code or pair[0].poll() is None, "it was not waited for"
        pair[0].kill()
        pair[0].wait()
    pair = [sleeping(0), sleeping(0, 3)]
    assert processes._wait(pair) == 3 and processes._wait([sleeping(0), sleeping(0)]) == 0
    assert capsys.readouterr().err == ""


def test_processes_share_the_cores_they_may_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("rnnnas.studies.local_jobs.cores", lambda: 6)
    assert processes._environment(0, 2, tmp_path)["OMP_NUM_THREADS"] == "3"
