"""Searches and trainings whose windows are programs; on a card, captured ones."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import rank_work
import torch
from test_latency import table as latency_table
from test_programs import CASES, CPU, assert_same, steps_of, taping
from test_waiting import no_waits
from tiny_home import home as home

from rnnnas.config.presets import resolve
from rnnnas.data.corpus import open_corpus
from rnnnas.distributed import ALONE, Ranks
from rnnnas.engine import cuda_graphs
from rnnnas.engine.cuda_graphs import CudaGraph, CudaGraphs, cuda_graphs_for
from rnnnas.engine.job import Position
from rnnnas.errors import UsageError
from rnnnas.nas.methods import METHODS
from rnnnas.runs.checkpoint import load_content
from rnnnas.searching.run import job_of
from rnnnas.searching.supernet import SearchJob
from rnnnas.training.run import TrainJob

pytestmark = pytest.mark.usefixtures("undrawn")  # test_alphas_log looks at images


def test_the_setting() -> None:
    assert cuda_graphs_for("auto", CPU) is None and cuda_graphs_for("off", CPU) is None
    made = cuda_graphs_for("on", CPU)
    assert made is not None and not made._capture
    card = torch.device("cuda")
    made = cuda_graphs_for("auto", card)
    assert made is not None and made._capture, "by itself"
    assert (
        cuda_graphs_for("auto", card, Ranks(0, 2)) is None and cuda_graphs_for("off", card) is None
    )


class Taped(CudaGraphs):
    """Captures every form at once."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device, patience=0)
        self._capture = True


# By name, the settings of a run. A cell of one node has few paths, so that they come again.
RUNS: dict[str, tuple[str, ...]] = {"train": ()}
# Trainings of a race are captured one by one, in processes of their own.
RUNS |= {name: (f"method={name}", "model.nodes=1") for name in METHODS if name != "halving"}
RUNS |= {
    "random": (*RUNS["random"], "blackbox.cells=2", "blackbox.targets=100"),
    "evolution": (*RUNS["evolution"], "blackbox.cells=2", "blackbox.targets=100"),
    "p-darts, three nodes": ("method=p-darts", "model.nodes=3", "stages.ops=[5,3]"),
    "all reached": ("method=gdas", "model.nodes=3", "relax.reach=all"),
    "added price": (*RUNS["gdas"], "latency.weight=1"),
    "factor": (*RUNS["gdas"], "latency.weight=1", "latency.form=mul"),
    "rewarded": (*RUNS["enas"], "latency.weight=1"),
    "perturbed": (*RUNS["darts-1st"], "derive.by=perturbation", "derive.targets=100"),
    "watched": (*RUNS["darts-1st"], "stop.eigenvalue=true", "stop.every=1", "stop.steps=2"),
}
# Their alphas move by a policy, or there are none.
WEIGHTS_ALONE = ("enas", "rewarded", "proxyless-reinforce", "random", "random-ws",
                 "evolution")  # fmt: skip


# One of every kind of step; the others are for `make slow`.
KINDS = (
    "train", "darts", "darts-1st", "gdas", "enas", "random", "p-darts, three nodes", "added price",
    "perturbed",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [n if n in KINDS else pytest.param(n, marks=pytest.mark.slow) for n in RUNS]
)
def test_a_replayed_run_has_the_same_result(
    name: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = "train" if name == "train" else "search"
    table = tmp_path / "table.json"
    table.write_text(json.dumps(latency_table().to_plain()))
    runs: list[CudaGraph] = []
    original = CudaGraph.run
    monkeypatch.setattr(CudaGraph, "run", lambda self, i: (runs.append(self), original(self, i))[1])
    monkeypatch.setattr(cuda_graphs, "CudaGraphs", Taped)
    tapes = taping(monkeypatch)
    sizes = ("epochs=1", "windows.limit=8", "windows.bptt=3", "windows.halved=0.0")
    priced = (f"latency.table={table}",) if "latency.weight=1" in RUNS[name] else ()
    found = {}
    for setting in ("off", "on"):
        asked = (*sizes, *RUNS[name], *priced, f"capture={setting}")
        folder = str(tmp_path / setting)
        found[setting] = rank_work.a_run(ALONE, str(home), kind, folder, asked, "")
        assert bool(runs) == (setting == "on")
    assert len(set(runs)) == len(tapes) < len(runs), "some are replayed on other windows"
    expected = {"weights", "score"}
    if name not in ("train", *WEIGHTS_ALONE):
        expected |= {"alphas"}
    assert {program._name for program in runs} == expected
    states = [load_content(tmp_path / s / "state.pt")["state"]["job"] for s in found]
    for one, other in zip(*(s["weights"].values() for s in states), strict=True):
        assert torch.equal(one, other)
    if kind == "search":  # a training's covers its settings
        assert found["on"]["digest"] == found["off"]["digest"]
    assert found["on"]["valid_perplexity"] == found["off"]["valid_perplexity"]


def test_a_run_may_go_on_with_another_setting(home: Path, tmp_path: Path) -> None:
    config = {s: rank_work.configuration("train", f"capture={s}") for s in ("on", "off")}
    assert "capture" in config["on"].idle
    assert "capture" in rank_work.configuration("search").idle
    settings = ("epochs=1", "windows.limit=6")
    one = rank_work.a_run(ALONE, str(home), "train", str(tmp_path), (*settings, "capture=on"), "")
    two = rank_work.a_run(ALONE, str(home), "train", str(tmp_path), (*settings, "capture=off"), "")
    assert one == two


def test_a_search_that_talks_within_a_window_is_not_captured(home: Path) -> None:
    config = rank_work.configuration("search", "capture=on")
    with pytest.raises(UsageError, match="one process"):
        job_of(config, open_corpus("tiny"), CPU, Ranks(0, 2))
    assert isinstance(job_of(config, open_corpus("tiny"), CPU), SearchJob)


@pytest.mark.parametrize("kind", ["image-search", "image-train"])
def test_images_are_not_captured(kind: str) -> None:
    with pytest.raises(UsageError, match="images are never captured"):
        resolve(kind, preset=None, file=None, settings=["capture=on"], flags={})


# On a card

CARD = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@CARD
@pytest.mark.parametrize("case", CASES)
def test_captured_equals_plain_on_a_card(case: str) -> None:
    device = torch.device("cuda")
    made = CudaGraphs(device, patience=1)
    rounded = "rounded" in case
    close = {"rtol": 1e-2, "atol": 1e-3} if rounded else {"rtol": 1e-4, "atol": 1e-6}
    assert_same(steps_of(case, made, device), steps_of(case, None, device), **close)
    assert made.count == 2


@pytest.mark.gpu
@CARD
@pytest.mark.parametrize("method", ["", "darts-1st", "darts"])
def test_a_captured_epoch_does_not_wait(method: str, home: Path) -> None:
    device = torch.device("cuda")
    kind = "search" if method else "train"
    more = (f"method={method}",) if method else ()
    values: dict[str, list[float]] = {}
    for setting in ("off", "on"):
        config = rank_work.configuration(kind, f"capture={setting}", *more)
        job: Any = {"train": TrainJob, "search": SearchJob}[kind](
            config, open_corpus("tiny"), device
        )
        at = Position()
        job.begin_epoch(at)
        reports = [job.step(at, 10, 1.0).nats for _ in range(cuda_graphs.PATIENCE + 2)]
        with no_waits():
            reports += [job.step(at, 10, 1.0).nats for _ in range(5)]
        assert (job.cuda_graphs.count > 0) if setting == "on" else job.cuda_graphs is None
        values[setting] = [float(nats) for nats in reports]
    assert all(math.isfinite(nats) for nats in values["on"])
    assert values["on"] == pytest.approx(values["off"], rel=1e-4)
