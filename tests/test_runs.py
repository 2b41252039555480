"""Whole runs: end to end on a small text, resumed wherever they stop, killed without mercy."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from tiny_home import corpus as corpus
from tiny_home import home as home

from rnnnas.cli import main
from rnnnas.config.plain import from_plain, to_plain
from rnnnas.config.presets import resolve
from rnnnas.config.text import SearchConfig
from rnnnas.data.corpus import Corpus
from rnnnas.door import sample
from rnnnas.engine.job import Position
from rnnnas.errors import CheckpointError, Interrupted, UsageError
from rnnnas.evaluation.run import evaluate_checkpoint
from rnnnas.runs.checkpoint import load_content
from rnnnas.searching.run import search
from rnnnas.searching.supernet import SearchJob
from rnnnas.training.run import TrainJob, train

CPU = torch.device("cpu")
SEARCH = ["model.hidden=8", "model.nodes=4", "windows.streams=6", "valid_streams=6", "epochs=2"]
TRAIN = ["model.hidden=8", "windows.streams=6", "valid_streams=4", "test_streams=4", "epochs=5"]
CELL = {"recurrent": {"nodes": [[["tanh", 0]], [["relu", 1]], [["sigmoid", 1]]], "concat": [1, 3]}}


def search_config(*settings: str) -> Any:
    flags = {"corpus": "tiny", "seed": 3}
    return resolve("search", preset="smoke", file=None, settings=[*SEARCH, *settings], flags=flags)


def train_config(*settings: str) -> Any:
    flags = {"corpus": "tiny", "seed": 3, "genotype": CELL}
    return resolve("train", preset="smoke", file=None, settings=[*TRAIN, *settings], flags=flags)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Crash(Exception):
    """Stands for a process that dies."""


def crashing(monkeypatch: pytest.MonkeyPatch, job: type, stops: list[int]) -> None:
    """Make a job's step die before each of the step numbers in `stops`, once each.

    Nothing is drawn for TensorBoard any more: runs that are not cut do.
    """
    monkeypatch.setattr("rnnnas.searching.supernet._draw", lambda *_: None)
    original = job.step  # type: ignore[attr-defined]
    left = list(stops)

    def step(self: Any, at: Any, *args: Any) -> Any:
        if left and at.step == left[0]:
            left.pop(0)
            raise Crash
        return original(self, at, *args)

    monkeypatch.setattr(job, "step", step)


def run_through(run: Any, config: Any, corpus: Corpus, folder: Path) -> tuple[dict[str, Any], int]:
    """Start again after every crash, as a user would; returns the result and the crashes."""
    crashes = 0
    while True:
        try:
            return run(config, corpus, folder, device=CPU, quiet=True), crashes
        except Crash:
            crashes += 1


@pytest.mark.parametrize("method", [pytest.param("darts", marks=pytest.mark.slow), "darts-1st"])
def test_search_resumes_exactly_wherever_it_dies(
    method: str, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every method dies at two of its steps in test_methods; here one dies at every kind."""
    short = ("windows.limit=6", f"method={method}")
    whole = search(search_config(*short), corpus, tmp_path / "whole", device=CPU)
    steps = 12
    # Saved after every step in one case, and only at the end of the run in the other.
    for seconds in ("0", "1000"):
        with monkeypatch.context() as patch:
            crashing(patch, SearchJob, [0, 1, 4, 6, 7, steps - 1])
            config = search_config(f"save_seconds={seconds}", *short)
            result, crashes = run_through(search, config, corpus, tmp_path / f"cut{seconds}")
        assert crashes == 6
        assert result["digest"] == whole["digest"]
        assert result["valid_perplexity"] == whole["valid_perplexity"]
        lines = metrics(tmp_path / f"cut{seconds}")
        kinds = [(x["kind"], x["step"]) for x in lines]
        assert len(kinds) == len(set(kinds)), "a metric was logged twice"
        assert [x["epoch"] for x in lines if x["kind"] == "epoch"] == [1, 2]
    print("search: 6 stop points, saved always and never")


def test_training_resumes_exactly_before_and_after_averaging(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    averaging_from_third_epoch(monkeypatch)
    config = train_config("save_seconds=0", "windows.limit=6")
    whole = train(config, corpus, tmp_path / "whole", device=CPU)
    lines = metrics(tmp_path / "whole")
    epochs = [x for x in lines if x["kind"] == "epoch"]
    switch = [x["averaged"] for x in epochs]
    assert switch == [0.0, 0.0, 1.0, 1.0, 1.0]
    steps = epochs[-1]["step"]
    assert steps == 30
    stops = [0, 1, 5, 6, 7, 13, 20, 24, 29]
    crashing(monkeypatch, TrainJob, stops)
    result, crashes = run_through(train, config, corpus, tmp_path / "cut")
    assert crashes == len(stops)
    assert result["digest"] == whole["digest"]
    assert (tmp_path / "cut/best.pt").read_bytes() == (tmp_path / "whole/best.pt").read_bytes()
    print(f"training: {crashes} stop points, averaging on in epochs {switch}")


def averaging_from_third_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch after the second epoch whatever the losses; the rule itself is tested in optim."""
    monkeypatch.setattr(
        "rnnnas.training.run.averaging_starts", lambda past, loss, wait: len(past) == 1
    )


def test_averaged_weights_are_what_is_saved_and_reported(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    averaging_from_third_epoch(monkeypatch)
    config = train_config("weights.lr=3")
    result = train(config, corpus, tmp_path / "run", device=CPU)
    state = load_content(tmp_path / "run/state.pt")["state"]["job"]
    assert state["average"]["steps"] > 0
    best = load_content(tmp_path / "run/best.pt")
    assert best["metrics"]["epoch"] == 5, "the case must be one in which averaging pays"
    for name, weight in best["weights"].items():
        assert torch.equal(weight, state["average"]["weights"][name])
        assert not torch.equal(weight, state["weights"][name])
    evaluated = evaluate_checkpoint(tmp_path / "run/best.pt", "test", device=CPU)
    assert evaluated["perplexity"] == result["test_perplexity"]
    assert evaluated["digest"] == result["digest"]


def test_a_finished_run_says_so_and_does_nothing(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = train_config("epochs=1")
    first = train(config, corpus, tmp_path / "run", device=CPU)
    monkeypatch.setattr(TrainJob, "step", None)
    assert train(config, corpus, tmp_path / "run", device=CPU) == first


def test_another_setting_is_not_mixed_into_a_run(corpus: Corpus, tmp_path: Path) -> None:
    train(train_config("epochs=1"), corpus, tmp_path / "run", device=CPU)
    with pytest.raises(UsageError, match="weights.lr"):
        train(train_config("epochs=1", "weights.lr=3"), corpus, tmp_path / "run", device=CPU)
    again = train(
        train_config("epochs=1", "weights.lr=3"), corpus, tmp_path / "run", device=CPU, fresh=True
    )
    assert again["run"] == str(tmp_path / "run-2")


def test_seed_decides(corpus: Corpus, tmp_path: Path) -> None:
    digests = []
    for i, seed in enumerate([1, 1, 2]):
        config = search_config("epochs=1", "windows.limit=4", f"seed={seed}")
        config = from_plain(SearchConfig, to_plain(config) | {"seed": seed})
        digests.append(search(config, corpus, tmp_path / str(i), device=CPU)["digest"])
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_and_stop(
    number: signal.Signals, code: int, corpus: Corpus, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = train_config("epochs=2", "save_seconds=1000")
    whole = train(config, corpus, tmp_path / "whole", device=CPU)
    original = TrainJob.step

    def step(self: Any, at: Any, *args: Any) -> Any:
        if at.step == 13:
            os.kill(os.getpid(), number)
        return original(self, at, *args)

    with monkeypatch.context() as patch:
        patch.setattr(TrainJob, "step", step)
        with pytest.raises(Interrupted) as stopped:
            train(config, corpus, tmp_path / "run", device=CPU)
    assert stopped.value.exit_code == code
    assert load_content(tmp_path / "run/state.pt")["state"]["position"]["step"] == 14
    assert train(config, corpus, tmp_path / "run", device=CPU)["digest"] == whole["digest"]


def test_a_damaged_state_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    config = train_config("epochs=1")
    train(config, corpus, tmp_path / "run", device=CPU)
    (tmp_path / "run/result.json").unlink()
    path = tmp_path / "run/state.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError):
        train(config, corpus, tmp_path / "run", device=CPU)


def test_search_trains_weights_and_alphas_on_different_text(corpus: Corpus) -> None:
    job = SearchJob(search_config(), corpus, CPU)
    train_text = corpus.splits["train"]
    kept = int(len(train_text) * 0.9)
    assert job.train.length == kept // 6 and job.alpha.length == (len(train_text) - kept) // 6
    paper = SearchJob(search_config('alphas.text="valid"'), corpus, CPU)
    assert paper.train.length == len(train_text) // 6
    assert paper.alpha.length == len(corpus.splits["valid"]) // 6


def test_alpha_carry_is_dropped_where_the_text_starts_again(corpus: Corpus) -> None:
    job = SearchJob(search_config("windows.halved=0"), corpus, CPU)
    starts = []
    original = job.architect.step

    def spy(**kwargs: Any) -> Any:
        batch, hidden_state = kwargs["valid"]
        starts.append((job.alpha_start - len(batch.inputs), hidden_state is None))
        return original(**kwargs)

    job.architect.step = spy  # type: ignore[method-assign]
    job.begin_epoch(Position())
    windows = (job.alpha.length - 1) // 10
    for i in range(windows + 2):
        job.step(Position(step=i, start=10 * i, progress=0.5), 10, 1.0)
    expected = [(10 * (i % windows), i % windows == 0) for i in range(windows + 2)]
    assert starts == expected


def test_search_learns(corpus: Corpus, tmp_path: Path) -> None:
    """The alphas leave their start, and the network under search beats a uniform guess."""
    config = search_config("epochs=2", "windows.limit=0", "noise.dropout=0", "alphas.lr=0.05",
                           "weights.lr=3", "method=darts-1st")  # fmt: skip
    result = search(config, corpus, tmp_path / "run", device=CPU)
    lines = metrics(tmp_path / "run")
    epochs = [x for x in lines if x["kind"] == "epoch"]
    # ln 5 = 1.60944 at the start, to a millionth; later weight decay pulls the alphas back where
    # nothing is gained.
    assert min(x["alpha_entropy"] for x in epochs) < 1.609
    assert result["valid_perplexity"] < 30 < corpus.vocab.size
    assert json.loads((tmp_path / "run/genotype.json").read_text()) == result["genotype"]


def test_sampling_from_a_run(corpus: Corpus, tmp_path: Path) -> None:
    train(train_config("epochs=1"), corpus, tmp_path / "run", device=CPU)
    path = tmp_path / "run/best.pt"
    texts = [sample(path, prompt="w0 w1", tokens=12, seed=s, device=CPU) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith("w0 w1")


def command(home: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rnnnas", *words], text=True, env={**os.environ},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def killed_until_done(home: Path, words: list[str], folder: Path, kills: int) -> dict[str, Any]:
    """Start a command, kill it -9 shortly after its run folder shows life, start it again."""
    rng = random.Random(str(folder))
    done = 0
    while True:
        process = command(home, *words, "--out", str(folder), "--json")
        if done < kills:
            state = folder / "state.pt"
            stamp = state.stat().st_mtime_ns if state.exists() else 0
            for _ in range(600):
                if state.exists() and state.stat().st_mtime_ns != stamp:
                    break
                if process.poll() is not None:
                    break
                time.sleep(0.05)
            time.sleep(rng.random() * 0.3)
            if process.poll() is None:
                process.kill()
                process.communicate()
                done += 1
                continue
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        assert done == kills, f"only {done} kills before it ended"
        result: dict[str, Any] = json.loads(out)
        return result


KILLED = """
import os, signal, sys
from rnnnas.cli import main
from rnnnas.searching.supernet import SearchJob
original = SearchJob.step
def step(self, at, *args):
    if at.step == 16:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, at, *args)
SearchJob.step = step
main(sys.argv[1:])
"""


def test_a_command_killed_in_its_second_epoch_ends_with_the_same_digest(
    home: Path, tmp_path: Path
) -> None:
    words = ["search", "--corpus", "tiny", "--preset", "smoke", "--method", "darts-1st", "--json"]
    for setting in (*SEARCH, "save_seconds=0", "model.precision=float32"):
        words += ["--set", setting]

    def digest(folder: Path) -> str:
        done = CliRunner().invoke(main, [*words, "--out", str(folder)])
        assert done.exit_code == 0, done.output
        found: str = json.loads(done.stdout)["digest"]
        return found

    killed = [sys.executable, "-c", KILLED, *words, "--out", str(tmp_path / "killed")]
    done = subprocess.run(killed, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    steps = load_content(tmp_path / "killed/state.pt")["state"]["position"]["step"]
    # The last state is written when a step after it has gone well.
    assert 12 < steps < 16 and not (tmp_path / "killed/result.json").exists()
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 5])
@pytest.mark.parametrize("kind", ["search", "train"])
def test_killed_commands_end_with_the_same_digest(
    kind: str, kills: int, home: Path, tmp_path: Path
) -> None:
    words = [kind, "--corpus", "tiny", "--preset", "smoke", "--set", "save_seconds=0.05"]
    words += ["--set", "model.precision=float32"]  # here, and in processes of their own
    for setting in SEARCH[:4] if kind == "search" else TRAIN[:4]:
        words += ["--set", setting]
    if kind == "train":
        words += ["--set", "epochs=30", "--genotype", "DARTS_V2"]
    else:
        words += ["--set", "epochs=12", "--method", "darts-1st"]
    whole = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "whole"), "--json"])
    assert whole.exit_code == 0, whole.output
    result = killed_until_done(home, words, tmp_path / "killed", kills)
    assert result["digest"] == json.loads(whole.stdout)["digest"]
