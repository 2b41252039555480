"""Runs whose loss is no longer finite: they go back, halve the step, and in the end give up."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_home import corpus as corpus
from tiny_home import home as home
from tiny_home import search_config as searches

from rnnnas.config.presets import resolve
from rnnnas.data.corpus import Corpus
from rnnnas.engine import loop
from rnnnas.errors import DivergedError
from rnnnas.evaluation.run import load_checkpoint
from rnnnas.runs.checkpoint import load_content
from rnnnas.runs.folder import Run
from rnnnas.searching import supernet
from rnnnas.searching.run import search
from rnnnas.training import run as train_module
from rnnnas.training.run import TrainJob, train

CPU = torch.device("cpu")
SEARCH = ["model.hidden=8", "model.nodes=4", "windows.streams=6", "valid_streams=6"]
SEARCH += ["method=darts-1st"]
TRAIN = ["model.hidden=8", "windows.streams=6", "valid_streams=4", "test_streams=4"]
CELL = {"recurrent": {"nodes": [[["tanh", 0]], [["relu", 1]], [["sigmoid", 1]]], "concat": [1, 3]}}


def search_config(*settings: str) -> Any:
    return searches(*SEARCH, *settings)


def train_config(*settings: str) -> Any:
    flags = {"corpus": "tiny", "seed": 3, "genotype": CELL}
    return resolve("train", preset="smoke", file=None, settings=[*TRAIN, *settings], flags=flags)


@pytest.mark.parametrize("save_seconds", [0, 600])
def test_divergence_rolls_back_halves_and_gives_up(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_seconds: int
) -> None:
    """Two bad moments: overcome, with the step halved twice. A lasting one: exit 6 after three, and
    a best.pt that no return to an earlier state has replaced by a worse one.
    """
    original = TrainJob.step
    seen: list[float] = []
    bad = [25, 27]

    def step(self: Any, at: Any, steps: int, factor: float) -> Any:
        seen.append(factor)
        report = original(self, at, steps, factor)
        if bad and at.step == bad[0]:
            bad.pop(0)
            with torch.no_grad():
                self.net.first.fill_(torch.nan)
            return report._replace(nats=float("nan"))
        return report

    monkeypatch.setattr(TrainJob, "step", step)
    kept: list[float] = []
    write = TrainJob.checkpoint

    def noted(self: Any, at: Any, measured: float) -> Any:
        kept.append(measured)
        return write(self, at, measured)

    monkeypatch.setattr(TrainJob, "checkpoint", noted)
    config = train_config("epochs=2", f"save_seconds={save_seconds}")
    result = train(config, corpus, tmp_path / "overcome", device=CPU)
    assert sorted(set(seen)) == [0.25, 0.5, 1.0]
    assert result["test_perplexity"] < 100
    monkeypatch.setattr(
        TrainJob, "step",
        lambda self, at, steps, f: original(self, at, steps, f)._replace(norm=float("inf"))
        if at.step >= 25 else original(self, at, steps, f),
    )  # fmt: skip
    kept.clear()
    with pytest.raises(DivergedError) as error:
        train(config, corpus, tmp_path / "lasting", device=CPU)
    assert kept == sorted(kept, reverse=True) and len(kept) == 1
    assert error.value.exit_code == 6
    # What was good before stays usable.
    assert load_checkpoint(tmp_path / "lasting/best.pt", CPU).metrics["epoch"] == 1
    assert load_content(tmp_path / "lasting/state.pt")["state"]["rollbacks"] == loop.ROLLBACKS


@pytest.mark.parametrize("kind", ["train", "search"])
def test_a_loss_lost_on_validation_text_alone_goes_back_too(
    kind: str, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    module = {"train": train_module, "search": supernet}[kind]
    original, calls = module.evaluate, 0

    def diverged_once(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        score = original(*args, **kwargs)
        return replace(score, nats=math.inf) if calls == 2 else score

    monkeypatch.setattr(module, "evaluate", diverged_once)
    if kind == "train":
        train(train_config("epochs=2"), corpus, tmp_path / "run", device=CPU)
    else:
        search(search_config("epochs=2"), corpus, tmp_path / "run", device=CPU)
    assert "validation loss not finite at step" in capsys.readouterr().err
    state = load_content(tmp_path / "run/state.pt")["state"]
    assert state["rollbacks"] == 1 and state["lr_factor"] == 0.5
    lines = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    epochs = [line["epoch"] for line in lines if line["kind"] == "epoch"]
    assert epochs == [1, 2]
    monkeypatch.setattr(
        module, "evaluate", lambda *a, **k: replace(original(*a, **k), nats=math.nan)
    )
    with pytest.raises(DivergedError, match="the validation loss was not finite"):
        if kind == "train":
            train(train_config("epochs=2"), corpus, tmp_path / "lasting", device=CPU)
        else:
            search(search_config("epochs=2"), corpus, tmp_path / "lasting", device=CPU)
    assert not (tmp_path / "lasting/best.pt").exists()


def test_a_real_divergence_never_reaches_best(corpus: Corpus, tmp_path: Path) -> None:
    """A step size far too large: the loss overflows by itself."""
    config = train_config("weights.lr=1e30", "weights.clip=0", "epochs=2")
    with pytest.raises(DivergedError):
        train(config, corpus, tmp_path / "run", device=CPU)
    assert not (tmp_path / "run/best.pt").exists()


def test_weights_that_a_step_has_ruined_are_not_saved(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the loss of the next step shows them: a state is saved when that step has proved it."""
    original, bad = TrainJob.step, [25]

    def step(self: Any, at: Any, steps: int, factor: float) -> Any:
        report = original(self, at, steps, factor)
        if bad and at.step == bad[0]:  # its own loss is fine, from before the update
            bad.pop()
            with torch.no_grad():
                self.net.first.fill_(torch.nan)
        return report

    monkeypatch.setattr(TrainJob, "step", step)
    result = train(train_config("save_seconds=0"), corpus, tmp_path / "run", device=CPU)
    state = load_content(tmp_path / "run/state.pt")["state"]
    assert state["rollbacks"] == 1 and state["lr_factor"] == 0.5
    assert math.isfinite(result["test_perplexity"])


def test_a_state_on_disk_is_one_moment(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step that proves it changes weights in place, and not what was kept of them."""
    states: list[Any] = []
    monkeypatch.setattr(Run, "save_state", lambda self, content: states.append(content))
    monkeypatch.setattr(Run, "due", lambda self: True)
    train(train_config("epochs=1"), corpus, tmp_path / "run", device=CPU)
    firsts = [float(s["job"]["weights"]["first"].sum()) for s in states]
    assert len(states) > 10 and len(set(firsts[1:-1])) == len(firsts) - 2
    assert [s["position"]["step"] for s in states[1:5]] == [1, 2, 3, 4]


def test_other_kernels_threads_or_libraries_are_told_of(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    original = TrainJob.end_epoch

    def stopped(self: Any, at: Any, run: Any) -> Any:
        if at.epoch == 1:
            raise KeyboardInterrupt
        return original(self, at, run)

    config = train_config("epochs=2", "model.precision=float32")
    with monkeypatch.context() as patch:
        patch.setattr(TrainJob, "end_epoch", stopped)
        patch.setattr(loop, "computed_by", lambda *_: "float32 on cpu, torch 1.0, no kernels")
        with pytest.raises(KeyboardInterrupt):
            train(config, corpus, tmp_path / "run", device=CPU)
    capsys.readouterr()
    train(config, corpus, tmp_path / "run", device=CPU)
    told = capsys.readouterr().err
    assert "until here by float32 on cpu, torch 1.0, no kernels, now by float32 on cpu" in told
    stored = json.loads((tmp_path / "run/result.json").read_text())
    assert f"torch {torch.__version__}" in stored["sealed"]["computed_by"]


def test_other_arithmetic_is_told_of(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    original = TrainJob.end_epoch

    def stopped(self: Any, at: Any, run: Any) -> Any:
        if at.epoch == 1:
            raise KeyboardInterrupt
        return original(self, at, run)

    config = train_config("epochs=2", "model.precision=float32")
    with monkeypatch.context() as patch:
        patch.setattr(TrainJob, "end_epoch", stopped)
        patch.setattr(TrainJob, "arithmetic", "bfloat16 on cuda")
        with pytest.raises(KeyboardInterrupt):
            train(config, corpus, tmp_path / "run", device=CPU)
    capsys.readouterr()
    result = train(config, corpus, tmp_path / "run", device=CPU)
    assert "until here in bfloat16 on cuda, now in float32 on cpu" in capsys.readouterr().err
    assert result["arithmetic"] == "float32 on cpu"
    lines = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    changes = [line for line in lines if line["kind"] == "arithmetic"]
    assert [(line["before"], line["now"]) for line in changes] == [
        ("bfloat16 on cuda", "float32 on cpu")
    ]
