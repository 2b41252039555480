"""The demo: what it compares, and how it keeps to three minutes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_work import zipf_text
from tiny_home import corpus as corpus
from tiny_home import home as home

from rnnnas.config.plain import to_plain
from rnnnas.config.presets import resolve
from rnnnas.config.text import TrainConfig
from rnnnas.data.corpus import Corpus, corpus_info
from rnnnas.nas.genotype import Genotype
from rnnnas.studies.demo import demo, seconds_of_training, shortened_race

HOME_TEXT = zipf_text(30, 400)
CPU = torch.device("cpu")
SEARCHED = [
    "model.hidden=6", "model.precision=float32", "model.nodes=3", "windows.streams=6",
    "valid_streams=6", "epochs=1", "windows.limit=6", "weights.schedule=cosine", "method=halving",
    "blackbox.windows=8", "blackbox.budget=4", "blackbox.rung=2",
]  # fmt: skip
TRAINED = ["model.hidden=6", "epochs=1", "valid_streams=6", "test_streams=6"]


def rungs_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for line in lines if (row := json.loads(line))["kind"] == "rung"]


def test_the_demo_compares_what_was_trained_the_same_way(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = resolve
    seen: list[dict[str, Any]] = []

    def small(kind: str, *, flags: dict[str, Any], **more: Any) -> Any:
        settings = SEARCHED if kind == "search" else TRAINED
        resolved = original(kind, preset="smoke", file=None, settings=settings, flags=flags)
        if kind == "train":
            seen.append(to_plain(resolved))
        return resolved

    monkeypatch.setattr("rnnnas.studies.demo.resolve", small)
    said: list[str] = []
    result = demo("tiny", tmp_path, seed=2, device=CPU, say=said.append)
    seen = seen[-6:]  # before them, those whose steps were counted
    assert [cell["cell"] for cell in seen] == [*["derived"] * 2, "lstm", *["derived"] * 3]
    for settings in seen:
        assert {k: v for k, v in settings.items() if k not in ("cell", "genotype")} == {
            k: v for k, v in seen[0].items() if k not in ("cell", "genotype")
        }
    tests = [cell["test_perplexity"] for cell in result["random_cells"]]
    assert len(tests) == 3 and result["random_mean_test_perplexity"] == pytest.approx(
        sum(tests) / 3
    )
    rungs = rungs_of(tmp_path / "demo-tiny-s2-search")
    met = [row["cell"] for row in rungs if row["rung"] == 0 and row["origin"] == "random"]
    assert [cell["cell"] for cell in result["random_cells"]] == met[:3]
    # Of the two of the least held-out loss, the better on the validation text.
    whole = [row for row in rungs if row["heldout_loss"] is not None]
    finals = sorted(whole, key=lambda row: row["heldout_loss"])[:2]
    other = result["other_finalist"]
    assert {result["cell"], other["cell"]} == {row["cell"] for row in finals}
    assert result["valid_perplexity"] <= other["valid_perplexity"]
    assert Genotype.from_plain(result["genotype"]) == Genotype.from_text(result["cell"])
    for cell in (result, other, *result["random_cells"]):
        kept = [
            sealed
            for folder in result["runs"].values()
            if (sealed := json.loads((Path(folder) / "result.json").read_text()))
            and sealed.get("test_perplexity") == cell["test_perplexity"]
        ]
        assert kept and kept[0]["valid_perplexity"] == cell["valid_perplexity"]
    for key in ("test_perplexity", "lstm_test_perplexity", "bigram_perplexity", "seconds"):
        assert math.isfinite(result[key])
    again = demo("tiny", tmp_path, seed=2, device=CPU, say=said.append)
    assert {**again, "seconds": 0} == {**result, "seconds": 0}


@pytest.mark.parametrize(("takes", "windows"), [(10.0, 500), (160.0, 120), (1e9, 20)])
def test_a_demos_race_fits_the_machine(
    takes: float, windows: int, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    config = resolve("search", preset="demo", file=None, settings=(), flags={"corpus": "tiny"})
    monkeypatch.setattr("rnnnas.studies.demo.race_seconds", lambda job: takes)
    short = shortened_race(config, corpus, tmp_path, CPU, said.append)
    rung = min(100, round(0.3 * windows))
    assert short == replace(config, blackbox=replace(config.blackbox, windows=windows, rung=rung))
    assert [f"{windows} steps a training instead of 500" in line for line in said] == [True] * (
        windows < 500
    )
    # What was begun goes on with its steps, however fast the machine is now.
    begun = {"config": {"blackbox": {"windows": 321}}}
    (tmp_path / "config.json").write_text(json.dumps(begun))
    kept = shortened_race(config, corpus, tmp_path, CPU, said.append)
    assert kept.blackbox.windows == 321


def test_a_demos_trainings_fit_what_the_race_left(corpus: Corpus, tmp_path: Path) -> None:
    """On two cores six trainings are three rounds: whole ones, or each a third of the time."""
    whole = 4.0 + 2 * (corpus_info(corpus)["train"] // (16 * 15)) * 0.5
    for workers, rounds in ((1, 6), (2, 3), (8, 1)):
        for left in (1.01 * rounds * whole, 1e9):
            assert seconds_of_training(corpus, tmp_path, 0.5, left, workers) is None
        short = 0.9 * rounds * whole
        each = seconds_of_training(corpus, tmp_path, 0.5, short, workers)
        assert each == pytest.approx(short / rounds, abs=0.1)
    assert seconds_of_training(corpus, tmp_path, 1e9, -5.0, 2) == 8.0
    for seconds in (0.0, 12.5):
        (tmp_path / "config.json").write_text(json.dumps({"config": {"seconds": seconds}}))
        assert seconds_of_training(corpus, tmp_path, 0.5, 1.0, 2) == (seconds or None)


def test_a_slow_machine_trains_all_cells_for_the_same_time(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    def small(kind: str, *, flags: dict[str, Any], **more: Any) -> Any:
        settings = SEARCHED if kind == "search" else ["model.hidden=6", "valid_streams=6"]
        return resolve(kind, preset="smoke", file=None, settings=settings, flags=flags)

    def trained(config: TrainConfig, corpus: Corpus, folder: Path, **more: Any) -> dict[str, Any]:
        given.append(config.seconds)
        figures = {"valid_perplexity": 3.0 + len(given), "test_perplexity": 5.0}
        return {"run": str(folder), "parameters": 7, **figures}

    monkeypatch.setattr("rnnnas.studies.demo.resolve", small)
    monkeypatch.setattr("rnnnas.studies.demo.train", trained)
    monkeypatch.setattr("rnnnas.studies.demo.seconds_of_training", lambda *args: 8.0)
    said: list[str] = []
    result = demo("tiny", tmp_path, seed=2, device=CPU, say=said.append)
    assert given == [8.0] * 6
    assert any("8 seconds a training" in line for line in said)
    assert result["runs"]["found"] == str(tmp_path / "demo-tiny-s2-finalist-1")
