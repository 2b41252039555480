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
from rnnnas.studies.demo import demo, shortened_race, shortened_trainings

HOME_TEXT = zipf_text(30, 400)
CPU = torch.device("cpu")
SEARCHED = [
    "model.hidden=6", "model.precision=float32", "model.nodes=3", "windows.streams=6",
    "valid_streams=6", "epochs=1", "windows.limit=6", "weights.schedule=cosine", "method=halving",
    "blackbox.windows=8", "blackbox.budget=6", "blackbox.rung=2",
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
    # Finalists and three random cells, each once where it is both; before them in `seen`, those
    # whose steps were counted.
    different = {cell["cell"] for cell in (*result["finalists"], *result["random_cells"])}
    seen = seen[-1 - len(different) :]
    cells = [cell["cell"] for cell in seen]
    best = len(result["finalists"])
    assert cells == [*["derived"] * best, "lstm", *["derived"] * (len(different) - best)]
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
    # Of those that the race trained in full, the best on the validation text.
    whole = [row for row in rungs if row["heldout_loss"] is not None]
    finals = sorted(whole, key=lambda row: row["heldout_loss"])
    assert [cell["cell"] for cell in result["finalists"]] == [row["cell"] for row in finals[:4]]
    # The found one is the best in validation of these and of the random ones beside them.
    trained = [*result["finalists"], *result["random_cells"]]
    least = min(trained, key=lambda cell: cell["valid_perplexity"])
    assert {key: result[key] for key in least} == least
    assert result["origin"] == ("race" if least in result["finalists"] else "random")
    assert Genotype.from_plain(result["genotype"]) == Genotype.from_text(result["cell"])
    for cell in trained:
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


@pytest.mark.parametrize(("takes", "windows"), [(10.0, 500), (160.0, 100), (1e9, 25)])
def test_a_demos_race_fits_the_machine(
    takes: float, windows: int, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    config = resolve("search", preset="demo", file=None, settings=(), flags={"corpus": "tiny"})
    monkeypatch.setattr("rnnnas.studies.demo.race_seconds", lambda job: takes)
    short = shortened_race(config, corpus, tmp_path, CPU, said.append)
    assert short.blackbox.windows == windows
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


@pytest.mark.parametrize(
    ("room", "share", "field"),
    [(4.0, None, (4, 3)), (3.9, None, (2, 3)), (3.0, None, (2, 3)), (2.9, None, (1, 2)),
     (2.0, None, (1, 2)), (1.9, 0.9, (1, 2)), (1.3, 0.5, (1, 2)), (1.0, 0.5, (1, 2)),
     (0.5, 0.2, (1, 2)), (0.0, 0.05, (1, 2))],
)  # fmt: skip
def test_a_demos_trainings_fit_what_the_race_left(
    room: float, share: float | None, field: tuple[int, int], corpus: Corpus, tmp_path: Path
) -> None:
    """On two cores four trainings are two rounds, six are three, eight are four."""

    def taken(settings: tuple[str, ...]) -> TrainConfig:
        flags = {"corpus": "tiny", "genotype": "LSTM"}
        found: TrainConfig = resolve(
            "train", preset="demo", file=None, settings=settings, flags=flags
        )
        return found

    said: list[str] = []
    kept = tmp_path / "trainings.json"
    a_pass = corpus_info(corpus)["train"] // (16 * 15)
    usual = 2 * a_pass
    settings, chosen = shortened_trainings(corpus, kept, room * usual, 2, said.append)
    assert chosen == field
    found = taken(settings)
    if share is None:
        assert settings == () and not said
    else:
        assert "steps a training instead of" in said[0]
        steps = found.epochs * (found.windows.limit or a_pass)
        assert steps == pytest.approx(max(1, share * usual), abs=2)
    # What was begun goes on as it is, however fast the machine is now.
    for room in (1.0, 1e9):
        assert shortened_trainings(corpus, kept, room, 2, said.append) == (settings, field)
