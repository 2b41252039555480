"""Which files belong to a run, and which settings may change when it goes on."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from test_runs import CPU, Crash, corpus, crashing, home, search_config, train_config

from rnnnas.config.plain import from_plain, to_plain
from rnnnas.config.presets import resolve
from rnnnas.config.text import SearchConfig, TrainConfig
from rnnnas.data.corpus import Corpus
from rnnnas.engine.job import Position
from rnnnas.errors import CheckpointError, UsageError
from rnnnas.nas.halving import SelectConfig
from rnnnas.runs.checkpoint import load_content, save_content
from rnnnas.runs.folder import Run
from rnnnas.searching.run import search
from rnnnas.searching.supernet import SearchJob
from rnnnas.training.run import TrainJob, train

__all__ = ["corpus", "home"]  # fixtures


def run_id(folder: Path) -> str:
    text: str = json.loads((folder / "config.json").read_text())["run"]
    return text


# state.pt


def test_every_run_has_an_id_and_its_state_bears_it(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with Run.open(tmp_path / name, "train", {"seed": 1}) as run:
            run.save_state({"step": 1})
        with Run.open(tmp_path / name, "train", {"seed": 1}) as run:
            assert run.load_state() == {"step": 1}
        assert load_content(tmp_path / name / "state.pt")["run"] == run_id(tmp_path / name)
    assert run_id(tmp_path / "a") != run_id(tmp_path / "b")


def test_the_state_of_another_run_is_refused_and_nothing_is_cut(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with Run.open(tmp_path / name, "train", {"seed": 1}) as run:
            run.log("train", 1, loss=1.0)
            if name == "a":
                run.save_state({"step": 1})
            run.log("train", 2, loss=1.0)
    shutil.copy(tmp_path / "a/state.pt", tmp_path / "b/state.pt")
    before = (tmp_path / "b/metrics.jsonl").read_bytes()
    with (
        Run.open(tmp_path / "b", "train", {"seed": 1}) as run,
        pytest.raises(CheckpointError) as caught,
    ):
        run.load_state()
    assert caught.value.exit_code == 4 and "state.pt" in caught.value.remedy
    assert run_id(tmp_path / "a") in caught.value.cause
    assert run_id(tmp_path / "b") in caught.value.cause
    assert (tmp_path / "b/metrics.jsonl").read_bytes() == before
    (tmp_path / "b/state.pt").unlink()  # the remedy
    with Run.open(tmp_path / "b", "train", {"seed": 1}) as run:
        assert run.load_state() is None


def without_id(folder: Path) -> None:
    """Make a run folder what it was before runs had an id."""
    about = json.loads((folder / "config.json").read_text())
    del about["run"], about["sealed"]
    (folder / "config.json").write_text(json.dumps(about))
    content = load_content(folder / "state.pt")
    del content["run"]
    save_content(folder / "state.pt", content)


def test_folders_without_an_id_go_on_as_before(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with Run.open(tmp_path / name, "train", {"seed": 1}) as run:
            run.save_state({"step": 1})
    without_id(tmp_path / "old")
    for step in (1, 2):
        with Run.open(tmp_path / "old", "train", {"seed": 1}) as run:
            assert run.load_state() == {"step": step}
            run.save_state({"step": 2})
    state = (tmp_path / "old/state.pt").read_bytes()
    # Neither goes into the other.
    for source, target in (("new", "old"), ("old", "new")):
        shutil.copy(tmp_path / source / "state.pt", tmp_path / target / "state.pt")
        with (
            Run.open(tmp_path / target, "train", {"seed": 1}) as run,
            pytest.raises(CheckpointError, match="without an id"),
        ):
            run.load_state()
        (tmp_path / "old/state.pt").write_bytes(state)


def test_a_search_with_a_foreign_state_is_refused(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = search_config("method=darts-1st", "epochs=1", "save_seconds=0")
    for name in ("a", "b"):
        crashing(monkeypatch, SearchJob, [3])
        with pytest.raises(Crash):
            search(chosen, corpus, tmp_path / name, device=CPU, quiet=True)
    shutil.copy(tmp_path / "a/state.pt", tmp_path / "b/state.pt")
    with pytest.raises(CheckpointError, match="is the state of run"):
        search(chosen, corpus, tmp_path / "b", device=CPU, quiet=True)
    search(chosen, corpus, tmp_path / "a", device=CPU, quiet=True)


# best.pt


@pytest.mark.parametrize("moment", ["going on", "reporting"])
def test_a_foreign_best_is_refused(
    moment: str, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, own = train_config("epochs=1", "weights.lr=3"), train_config("epochs=2")
    train(other, corpus, tmp_path / "other", device=CPU, quiet=True)
    foreign = tmp_path / "other/best.pt"
    if moment == "reporting":
        train(own, corpus, tmp_path / "own", device=CPU, quiet=True)
        (tmp_path / "own/result.json").unlink()
    else:
        with monkeypatch.context() as patch, pytest.raises(Crash):
            crashing(patch, TrainJob, [30])  # in the second epoch
            kept = train_config("epochs=2", "save_seconds=0")
            train(kept, corpus, tmp_path / "own", device=CPU, quiet=True)
    best = (tmp_path / "own/best.pt").read_bytes()
    shutil.copy(foreign, tmp_path / "own/best.pt")
    with monkeypatch.context() as patch, pytest.raises(CheckpointError) as caught:
        patch.setattr(TrainJob, "step", None)  # refused before anything is trained
        train(own, corpus, tmp_path / "own", device=CPU, quiet=True)
    assert "weights.lr is 3.0 there and 20.0 here" in caught.value.cause
    assert "best.pt" in caught.value.remedy
    (tmp_path / "own/best.pt").unlink()
    with pytest.raises(CheckpointError, match=r"best\.pt cannot be read"):
        train(own, corpus, tmp_path / "own", device=CPU, quiet=True)
    (tmp_path / "own/best.pt").write_bytes(best)
    result = train(own, corpus, tmp_path / "own", device=CPU, quiet=True)
    whole = train(own, corpus, tmp_path / "whole", device=CPU, quiet=True)
    assert result["test_perplexity"] == whole["test_perplexity"]


def test_a_best_of_another_text_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    chosen = train_config("epochs=1")
    train(chosen, corpus, tmp_path, device=CPU, quiet=True)
    (tmp_path / "result.json").unlink()
    content = load_content(tmp_path / "best.pt")
    content["corpus"]["sha256"] = "0" * 64
    save_content(tmp_path / "best.pt", content)
    with pytest.raises(CheckpointError, match="corpus_sha256"):
        train(chosen, corpus, tmp_path, device=CPU, quiet=True)


# Settings that may change


def test_a_run_goes_on_with_another_interval_of_saving(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(train_config("epochs=2"), corpus, tmp_path / "whole", device=CPU, quiet=True)
    crashing(monkeypatch, TrainJob, [13])
    with pytest.raises(Crash):
        chosen = train_config("epochs=2", "save_seconds=0")
        train(chosen, corpus, tmp_path / "cut", device=CPU, quiet=True)
    changed = train_config("epochs=2", "save_seconds=50", "model.nodes=3")
    result = train(changed, corpus, tmp_path / "cut", device=CPU, quiet=True)
    assert result["test_perplexity"] == whole["test_perplexity"]
    with pytest.raises(UsageError, match=r"weights.lr is 20.0 there and 3.0 here") as caught:
        other = train_config("epochs=2", "save_seconds=9", "weights.lr=3")
        train(other, corpus, tmp_path / "cut", device=CPU)
    assert "save_seconds" not in caught.value.cause


def lstm(*settings: str) -> TrainConfig:
    resolved: TrainConfig = resolve(
        "train", preset="smoke", file=None, settings=settings,
        flags={"corpus": "tiny", "genotype": "LSTM"},
    )  # fmt: skip
    return resolved


def test_what_is_idle() -> None:
    plain = {f"derive.{k}" for k in ("order", "tune_windows", "lr", "targets")}
    plain |= {"save_seconds", "capture"}
    plain |= {f"stop.{k}" for k in ("every", "window", "ratio", "earliest", "streams", "steps")}
    plain |= {"latency.form", "latency.ref", "latency.table", "blackbox.budget", "blackbox.rung"}
    plain |= {"space.join", "blackbox.draws", "windows.shortest", "windows.longer"}
    untried = ("cells", "windows", "targets", "weights", "population", "sample")
    plain |= {f"blackbox.{k}" for k in untried}
    plain |= {f"select.{f.name}" for f in fields(SelectConfig)} - {"select.by"}
    assert search_config().idle == plain
    raced = plain - {f"select.{f.name}" for f in fields(SelectConfig)}
    raced -= {"blackbox.draws", "blackbox.targets"}
    assert search_config("select.by=race").idle == raced
    assert "blackbox.draws" not in search_config("method=halving").idle
    assert search_config("method=darts-1st").idle == plain | {"alphas.second_order"}
    assert search_config("alphas.text=valid").idle == plain | {"alphas.held_out"}
    alphas = {"alphas.lr", "alphas.betas", "alphas.weight_decay", "alphas.warmup"}
    for method in ("random", "random-ws", "evolution", "halving"):
        assert alphas | {"select.points"} <= search_config(f"method={method}").idle
    assert "blackbox.population" not in search_config("method=evolution").idle
    assert "blackbox.cells" not in search_config("method=enas").idle
    assert "windows.longer" not in search_config("windows.jitter=5").idle
    staged = ["method=darts-1st", "stages.ops=[5,3]", "stages.hidden=[4,8]"]
    assert "model.hidden" in search_config(*staged).idle
    assert "model.hidden" not in search_config(*staged, "select.by=race").idle
    used = search_config("derive.by=perturbation", "derive.tune_windows=0").idle
    assert used == {k for k in plain if not k.startswith("derive.")} | {"derive.lr"}
    used = search_config("stop.eigenvalue=true", "stop.every=1").idle
    assert used == {k for k in plain if not k.startswith("stop.")}
    trained = {"save_seconds", "capture", "model.nodes"}
    assert train_config().idle == trained
    assert "windows.longer" in train_config("windows.jitter=0").idle
    both = trained | {"noise.dropoutx"}
    assert lstm().idle == both | {"noise.dropouth"} and lstm("model.layers=2").idle == both


CASES: list[tuple[Any, dict[str, Any]]] = [
    (train_config(), {"save_seconds": 5, "model.nodes": 2}),
    (lstm(), {"noise.dropoutx": 0.4, "noise.dropouth": 0.4}),
    (lstm("model.layers=2"), {"noise.dropoutx": 0.4}),
    (search_config("method=darts-1st"), {"alphas.second_order": "exact"}),
    (search_config("alphas.text=valid"), {"alphas.held_out": 0.3}),
    (search_config(), {"windows.shortest": 2, "windows.longer": 3}),
    (search_config("method=random-ws"), {"alphas.lr": 0.5, "alphas.warmup": 0.5}),
    (search_config(), {"blackbox.cells": 3, "blackbox.windows": 7, "blackbox.targets": 40}),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_what_is_idle_changes_no_weight(case: int, corpus: Corpus) -> None:
    chosen, changes = CASES[case]
    plain = to_plain(chosen)
    if "weights" in plain:
        plain["windows"]["limit"] = 3
    ends = []
    for changed in ({}, changes):
        again: dict[str, Any] = json.loads(json.dumps(plain))
        for key, value in changed.items():
            assert key in chosen.idle
            group, _, name = key.rpartition(".")
            (again[group] if group else again)[name] = value
        kind = SearchConfig if isinstance(chosen, SearchConfig) else TrainConfig
        job_of: Any = SearchJob if kind is SearchConfig else TrainJob
        job = job_of(from_plain(kind, again), corpus, CPU)
        job.begin_epoch(Position())
        start = 0
        for i, steps in enumerate(job.lengths(0)[:3]):
            job.step(Position(window=i, step=i, start=start, progress=0.5), steps, 1.0)
            start += steps
        ends.append(job.state()["weights"])
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
