"""Running command lines: in processes here, and as submitit's jobs."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from rnnnas.cli import main
from rnnnas.config.presets import resolve
from rnnnas.data.corpus import VocabOptions, add_corpus, open_corpus
from rnnnas.errors import UsageError
from rnnnas.runs.checkpoint import load_content
from rnnnas.searching.blackbox import CandidateJob
from rnnnas.searching.supernet import SearchJob
from rnnnas.studies import estimate
from rnnnas.studies.estimate import search_seconds
from rnnnas.studies.local_jobs import LocalRunner, cores, last_words, log_path
from rnnnas.studies.plan import study_name
from rnnnas.studies.slurm import LOST, ClusterRunner, Command, slurm_runner

LONG = (
    "search", "--corpus", "tiny", "--preset", "smoke", "--set", "epochs=2000", "--set",
    "model.hidden=8", "--set", "save_seconds=0.2", "--set", "valid_streams=4", "--method",
    "darts-1st",
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a corpus of 7,200 words."""
    home = tmp_path_factory.mktemp("home")
    lines = [f"the {a} {b} sat on the {c}" for a in "abcdef" for b in "fghij" for c in "klmno"]
    (home / "text.txt").write_text("\n".join(lines * 8) + "\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RNNNAS_HOME", str(home))
        add_corpus("tiny", home / "text.txt", VocabOptions())
    return home


@pytest.fixture
def home(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RNNNAS_HOME", str(tiny))
    return tiny


def until(condition: Callable[[], Any], seconds: float = 600.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError("it took too long")


def test_processes_end_with_their_codes_and_leave_their_words(tmp_path: Path) -> None:
    runner = LocalRunner(tmp_path, 2)
    runner.start({"good": ("presets", "show", "smoke"), "bad": ("presets", "show", "smok")})
    assert runner.free() == 0
    codes: dict[str, int] = {}
    until(lambda: codes.update(runner.ended()) or len(codes) == 2)
    assert codes == {"good": 0, "bad": 2} and runner.free() == 2
    assert "[train.weights]" in log_path(tmp_path, "good").read_text()
    assert last_words(tmp_path, "bad").startswith("preset 'smok' is unknown")
    assert last_words(tmp_path, "none").startswith("no log")


def test_cores_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert LocalRunner(tmp_path, 1)._environment["OMP_NUM_THREADS"] == str(cores())
    assert LocalRunner(tmp_path, 100)._environment["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert LocalRunner(tmp_path, 100)._environment["OMP_NUM_THREADS"] == "3"


def test_stopping_lets_a_run_save(home: Path, tmp_path: Path) -> None:
    runner = LocalRunner(tmp_path, 1)
    run = tmp_path / "run"
    runner.start({"run": (*LONG, "--out", str(run), "--json")})
    until((run / "metrics.jsonl").exists)
    assert runner.stop() == "1 jobs were stopped and saved"
    assert runner.free() == 1
    assert "stopped by SIGTERM; the state is saved" in last_words(tmp_path, "run")
    assert load_content(run / "state.pt")["state"]["position"]["step"] > 0


# submitit, on this machine


class Queue:
    """What submitit's own local executor runs, in the place of a scheduler."""

    def __init__(self, folder: Path) -> None:
        submitit = pytest.importorskip("submitit")
        self.executor = submitit.LocalExecutor(folder)
        self.executor.update_parameters(timeout_min=10, signal_delay_s=5)
        self.jobs: dict[str, Any] = {}
        submit = self.executor._internal_process_submissions

        def note(delayed: Any) -> Any:
            jobs = submit(delayed)
            self.jobs.update((job.job_id, job) for job in jobs)
            return jobs

        self.executor._internal_process_submissions = note

    def queued(self, names: list[str]) -> set[str]:
        return {name for name in names if name in self.jobs and not self.jobs[name].done()}


def test_a_preempted_job_saves_is_queued_again_and_goes_on(home: Path, tmp_path: Path) -> None:
    words = [w if w != "epochs=2000" else "epochs=4" for w in LONG]
    queue = Queue(tmp_path / "submitit")
    runner = ClusterRunner(tmp_path, queue.executor, queue.queued, {})
    run = tmp_path / "run"
    names = runner.start({"run": (*words, "--out", str(run), "--json")})
    (job,) = queue.jobs.values()
    assert names == {"run": job.job_id}
    until((run / "metrics.jsonl").exists)
    # The task, not submitit's controller: it is what a scheduler would signal.
    (task,) = [int(p) for p in Path(f"/proc/{job.job_id}/task/{job.job_id}/children").read_text()
               .split()]  # fmt: skip
    os.kill(task, signal.SIGUSR2)
    codes: dict[str, int] = {}
    until(lambda: codes.update(runner.ended()) or codes)
    assert codes == {"run": 0}
    log = log_path(tmp_path, "run").read_text()
    assert log.count("stopped by SIGTERM; the state is saved") == 1
    assert log.count("continuing at epoch") == 1
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [x["epoch"] for x in lines if x["kind"] == "epoch"] == [1, 2, 3, 4]
    assert json.loads((run / "result.json").read_text())["run"] == str(run)
    job.wait()


def test_a_study_finds_its_cluster_jobs_again(home: Path, tmp_path: Path) -> None:
    queue = Queue(tmp_path / "submitit")
    first = ClusterRunner(tmp_path, queue.executor, queue.queued, {})
    names = first.start({"bad": ("presets", "show", "smok")})
    assert "1 jobs stay with the cluster (scancel" in first.stop()
    attached = {name: str(job) for name, job in names.items()}
    again = ClusterRunner(tmp_path, queue.executor, queue.queued, attached)
    codes: dict[str, int] = {}
    until(lambda: codes.update(again.ended()) or codes)
    assert codes == {"bad": 2}
    assert again.stop() == "no job was queued"
    next(iter(queue.jobs.values())).wait()


def test_a_job_that_left_the_queue_without_a_word_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rnnnas.studies.slurm._LOST_SECONDS", 0.2)
    there = {"7_0", "7_1"}
    runner = ClusterRunner(tmp_path, None, lambda jobs: there & set(jobs), {"a": "7_0", "b": "7_1"})  # type: ignore[arg-type]
    assert runner.ended() == {}
    there.discard("7_1")
    assert runner.ended() == {}  # its file may be on its way
    time.sleep(0.3)
    assert runner.ended() == {"b": LOST}
    assert runner.ended() == {}


def test_a_command_is_a_callable_that_tells_its_exit_code(tmp_path: Path) -> None:
    call = Command(("presets", "show", "smok"), tmp_path / "log", tmp_path / "exit.json")
    assert call() == 2
    assert json.loads((tmp_path / "exit.json").read_text()) == {"exit_code": 2}
    assert "smok" in (tmp_path / "log").read_text()


def test_missing_parts_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "submitit", None)
        with pytest.raises(UsageError) as error:
            slurm_runner(tmp_path, {}, {})
        assert "rnnnas[slurm]" in error.value.remedy
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no SLURM on this machine"):
        slurm_runner(tmp_path, {}, {})
    srun = tmp_path / "srun"
    srun.write_text("#!/bin/sh\n")
    srun.chmod(0o755)
    with pytest.raises(UsageError, match="Unavailable parameter"):
        slurm_runner(tmp_path, {"tmie": 3}, {})


# The command


def test_a_dry_run_lists_jobs_and_estimates(home: Path) -> None:
    words = ["study", "--corpus", "tiny", "--preset", "study-smoke", "--dry-run", "--json"]
    for stage in ("search", "short", "final"):
        words += ["--set", f"{stage}.valid_streams=4"]
    for stage in ("short", "final"):
        words += ["--set", f"{stage}.test_streams=4"]
    result = CliRunner().invoke(main, [*words, "--seeds", "2", "--jobs", "2"])
    assert result.exit_code == 0, result.output
    listed = json.loads(result.stdout)
    jobs = {job["name"]: job for job in listed["jobs"]}
    assert list(jobs) == [
        "search-darts-1st-s1", "search-darts-1st-s2", "train-darts-1st-s1", "train-darts-1st-s2",
        "train-random-r1", "train-random-r2", "final-darts-1st", "final-random-cells",
    ]  # fmt: skip
    assert jobs["search-darts-1st-s1"]["steps"] == 12
    assert jobs["final-random-cells"]["steps"] == 40
    assert jobs["train-random-r1"]["command"][:4] == ["rnnnas", "train", "--corpus", "tiny"]
    assert all(job["seconds"] > 0 for job in jobs.values())
    assert listed["seconds"] == pytest.approx(sum(j["seconds"] for j in jobs.values()) / 2)
    assert not (home / "checkpoints").exists()


class Clock:
    """A clock by which a step of any job takes 1 s and an evaluation 2 s, and nothing else any."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        clock = SimpleNamespace(perf_counter=lambda: self.now)
        monkeypatch.setattr(estimate, "time", clock)
        for job in (SearchJob, CandidateJob):
            monkeypatch.setattr(job, "step", partial(self.passes, 1.0))
        monkeypatch.setattr(estimate, "evaluate", partial(self.passes, 2.0))

    def passes(self, seconds: float, *args: Any, **kwargs: Any) -> None:
        self.now += seconds


def test_cells_that_are_tried_count(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the shared weights, or each trained from scratch."""
    Clock(monkeypatch)
    seconds, corpus = {}, open_corpus("tiny")
    for method, cells in (("random-ws", 1), ("random-ws", 2000), ("random", 2)):
        settings = ("model.hidden=8", "windows.streams=4", "valid_streams=4", "windows.limit=4",
                    f"blackbox.cells={cells}", "blackbox.targets=500")  # fmt: skip
        flags = {"corpus": "tiny", "method": method}
        chosen = resolve("search", preset="smoke", file=None, settings=settings, flags=flags)
        seconds[method, cells] = search_seconds(chosen, corpus, torch.device("cpu"))
    # One pass over the text of a score, 480 tokens, takes 2 s; 4 streams share out 500 targets.
    score = 2.0 * (500 + 4) / len(corpus.splits["valid"])
    steps, passes = 2 * 4 * 1.0, 2 * 2.0  # in 2 epochs of 4 windows; an evaluation after each
    for cells in (1, 2000):
        wanted = estimate.START_SECONDS + steps + passes + cells * score
        assert seconds["random-ws", cells] == pytest.approx(wanted)
    # The same number of steps is shared out among cells trained from scratch.
    assert seconds["random", 2] == pytest.approx(estimate.START_SECONDS + steps + 2 * score)


@pytest.mark.parametrize(
    ("count", "given", "slots", "threads"),
    [(2, [], 2, 1), (1, [], 1, 1), (64, [], 4, 16), (64, ["--jobs", "3"], 3, 21)],
)
def test_jobs_share_out_the_cores(
    home: Path, monkeypatch: pytest.MonkeyPatch, count: int, given: list[str], slots: int,
    threads: int,
) -> None:  # fmt: skip
    """One job a core and 4 at most, unless it is said; the estimate is for that."""
    monkeypatch.setattr("rnnnas.studies.local_jobs.cores", lambda: count)
    monkeypatch.setattr("rnnnas.studies.estimate.torch.get_num_threads", lambda: 64)
    seen: list[int] = []
    monkeypatch.setattr("rnnnas.studies.estimate.torch.set_num_threads", seen.append)
    listed = {"jobs": [], "seconds": 60.0}
    monkeypatch.setattr("rnnnas.studies.estimate._estimate", lambda *args: listed)
    line = ["study", "--corpus", "tiny", "--preset", "study-smoke", "--device", "cpu", *given]
    result = CliRunner().invoke(main, [*line, "--dry-run"])
    assert f"about 1 minutes, {slots} at a time" in result.output
    assert seen == [threads, 64]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--seeds", "x"], "neither a number"),
        (["--seeds", "0"], "seeds"),
        (["--methods", "dartz"], "did you mean 'darts'"),
        (["--preset", "quick"], "no settings for study"),
        (["--set", "shrt.epochs=2"], "did you mean 'short'"),
    ],
)
def test_wrong_words_are_refused(home: Path, words: list[str], named: str) -> None:
    line = ["study", "--corpus", "tiny", "--preset", "study-smoke", *words]
    result = CliRunner().invoke(main, line)
    assert result.exit_code == 2 and named in result.stderr, result.output
    assert "Traceback" not in result.output


def test_a_study_of_ones_own_from_a_file(home: Path, tmp_path: Path) -> None:
    """One method in two settings, over a preset; corpus, jobs and folder are named by it."""
    file = tmp_path / "warmth.toml"
    file.write_text(
        'extends = "study-smoke"\n'
        "[study]\n"
        'corpus = "tiny"\n'
        'methods = ["darts-1st@cold", "darts-1st@warm"]\n'
        "[study.search]\nvalid_streams = 4\n"
        "[study.short]\nvalid_streams = 4\ntest_streams = 4\n"
        "[study.final]\nvalid_streams = 4\ntest_streams = 4\n"
        '[study.own."darts-1st@warm".alphas]\nwarmup = 0.5\n',
        encoding="utf-8",
    )
    line = ["study", "--config", str(file), "--seeds", "1", "--device", "cpu", "--dry-run"]
    result = CliRunner().invoke(main, [*line, "--json"])
    assert result.exit_code == 0, result.output
    jobs = {job["name"]: job["command"] for job in json.loads(result.stdout)["jobs"]}
    assert "alphas.warmup=0.5" in jobs["search-darts-1st@warm-s1"]
    assert "alphas.warmup=0.5" not in jobs["search-darts-1st@cold-s1"]
    assert jobs["search-darts-1st@cold-s1"][:4] == ["rnnnas", "search", "--corpus", "tiny"]
    assert study_name("tiny", None, file) == "study-tiny-warmth"
    assert study_name("tiny", "study-smoke", file) == "study-tiny-smoke"
    for more, named in ((["--preset", "table"], "--config has no place"),
                        (["--against", "t.csv"], "--config has no place")):  # fmt: skip
        refused = CliRunner().invoke(main, ["study", "--config", str(file), *more])
        assert refused.exit_code == 2 and named in refused.stderr, refused.output
    file.write_text("[study]\nmethods = ['darts-1st']\n", encoding="utf-8")
    refused = CliRunner().invoke(main, ["study", "--config", str(file)])
    assert refused.exit_code == 2 and "no corpus is named" in refused.stderr
