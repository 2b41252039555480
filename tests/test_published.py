"""Published curves: their numbers, which training they are for, and both in metrics and chart."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.util import tensor_util
from test_runs import Crash, crashing, metrics

from rnnnas.config.presets import resolve
from rnnnas.config.text import TrainConfig
from rnnnas.data.corpus import Corpus, VocabOptions, add_corpus
from rnnnas.training import published_curves as module
from rnnnas.training.published_curves import CURVES, PTB, curve_for, published
from rnnnas.training.run import TrainJob, train

ARCHIVE = Path(__file__).parents[2] / "shared" / "data" / "ptb.zip"
CELL = {"recurrent": {"nodes": [[["tanh", 0]], [["relu", 1]]], "concat": [1, 2]}}


def paper(*settings: str, genotype: Any = "DARTS_V2") -> TrainConfig:
    flags = {"corpus": "ptb", "genotype": genotype}
    resolved: TrainConfig = resolve(
        "train", preset="ptb", file=None, settings=settings, flags=flags
    )
    return resolved


def test_the_numbers_at_published_epochs() -> None:
    known = {95: 70.0, 300: 64.0, 500: 61.9, 1600: 59.5, 2600: 58.5, 3600: 58.2}
    for epoch, perplexity in known.items():
        assert published(PTB, paper(), epoch) == perplexity
    assert published(PTB, paper(), 94) is None and published(PTB, paper(), 1) is None
    longer = paper("epochs=4000", "weights.finetune_epochs=9")
    assert published(PTB, longer, 3600) == 58.2 and published(PTB, longer, 3601) is None


def test_between_them_it_is_linear_in_the_logarithm() -> None:
    middle = math.sqrt(300 * 500)  # half way between them in log(epoch): 387.3
    before, after = published(PTB, paper(), 387), published(PTB, paper(), 388)
    assert before is not None and after is not None
    assert before > (64.0 + 61.9) / 2 > after and before - after < 0.02
    wanted = 59.5 + (58.5 - 59.5) * (math.log(2000) - math.log(1600)) / math.log(2600 / 1600)
    assert published(PTB, paper(), 2000) == pytest.approx(wanted, rel=1e-12)
    assert math.floor(middle) == 387
    chosen = paper()
    values = [published(PTB, chosen, epoch) for epoch in range(95, 3601)]
    falling = [value for value in values if value is not None]
    assert len(falling) == len(values) and falling == sorted(falling, reverse=True)


def test_which_trainings_have_a_curve() -> None:
    ours = ["weights.lr=10", "seed=5", "noise.dropout=0.5", "windows.bptt=70", "epochs=300"]
    for same in (paper(), *map(paper, ours), paper(genotype="random:3")):
        assert curve_for(PTB, same) is CURVES[0]
    others = ["model.hidden=849", "windows.streams=32", "model.layers=2", "model.softmaxes=5",
              "windows.limit=100"]  # fmt: skip
    for other in (*map(paper, others), paper(genotype="LSTM")):
        assert curve_for(PTB, other) is None and published(PTB, other, 300) is None
    assert published("0" * 64, paper(), 300) is None
    assert published(PTB, paper("epochs=299", "weights.finetune_epochs=9"), 300) is None


@pytest.mark.skipif(not ARCHIVE.exists(), reason="the Penn Treebank is not beside the checkout")
def test_the_canonical_text_is_the_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNNAS_HOME", str(tmp_path))
    added = add_corpus("any-name", ARCHIVE, VocabOptions())
    assert added.description["canonical"] is True and added.sha256 == PTB


# In a training


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Corpus]:
    folder = tmp_path_factory.mktemp("home")
    rng = random.Random(0)
    lines = [" ".join(rng.choices([f"w{i}" for i in range(20)], k=8)) for _ in range(300)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RNNNAS_HOME", str(folder))
        yield add_corpus("tiny", folder / "text.txt", VocabOptions())


@pytest.fixture
def faked(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published setting made small: this text, H = 8, batch 6, three epochs."""
    points = ((2, 19.0), (3, 18.0))
    small = replace(
        CURVES[0], corpus_sha256=corpus.sha256, hidden=8, streams=6, points=points, source="a table"
    )
    monkeypatch.setattr(module, "CURVES", (small,))


def small(genotype: Any, *settings: str) -> TrainConfig:
    given = ["model.hidden=8", "windows.streams=6", "windows.limit=0", "windows.bptt=20",
             "valid_streams=4", "test_streams=4", "epochs=3", *settings]  # fmt: skip
    flags = {"corpus": "tiny", "genotype": genotype}
    resolved: TrainConfig = resolve("train", preset="smoke", file=None, settings=given, flags=flags)
    return resolved


def events_of(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def texts(events: EventAccumulator, tag: str) -> list[tuple[int, bytes]]:
    return [
        (event.step, tensor_util.make_ndarray(event.tensor_proto).item())
        for event in events.Tensors(tag)
    ]


@pytest.mark.usefixtures("faked")
def test_a_training_has_both_curves_in_one_chart(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(small(CELL), corpus, tmp_path, device=torch.device("cpu"))
    epochs = [line for line in metrics(tmp_path) if line["kind"] == "epoch"]
    assert [line.get("published_valid_perplexity") for line in epochs] == [None, 19.0, 18.0]
    shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch ")]
    assert "published" not in shown[0] and "published valid perplexity 19" in shown[1]

    events = events_of(tmp_path)
    own, other = "perplexity/valid", "perplexity/published_valid"
    curve = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in (own, other)}
    assert [step for step, _ in curve[own]] == [line["step"] for line in epochs]
    assert curve[other] == [(epochs[1]["step"], 19.0), (epochs[2]["step"], 18.0)]
    ((step, data),) = texts(events, "custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(data)
    ((chart,),) = (category.chart for category in layout.category)
    assert step == 0 and "published from epoch 2 on" in chart.title
    assert list(chart.multiline.tag) == [f"^{own}$", f"^{other}$"]
    names = events.summary_metadata["custom_scalars__config__"].plugin_data.plugin_name
    assert names == "custom_scalars"
    assert texts(events, "published/text_summary") == [(0, b"a table")]


@pytest.mark.usefixtures("faked")
def test_the_chart_and_the_cell_outlive_a_crash(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, cpu = small(CELL, "save_seconds=0"), torch.device("cpu")
    crashing(monkeypatch, TrainJob, [0, 3])
    for _ in range(2):
        with pytest.raises(Crash):
            train(chosen, corpus, tmp_path, device=cpu)
    train(chosen, corpus, tmp_path, device=cpu)
    events = events_of(tmp_path)
    charts = texts(events, "custom_scalars__config__")
    assert charts and len(set(charts)) == 1
    assert [image.step for image in events.Images("views/cell")] == [0]
    assert texts(events, "genotype/text_summary") == [(0, b"tanh0 relu1")]


@pytest.mark.usefixtures("faked")
@pytest.mark.parametrize("way", ["width", "baseline"])
def test_no_other_training_gets_a_chart(way: str, corpus: Corpus, tmp_path: Path) -> None:
    chosen = small(CELL, "model.hidden=9") if way == "width" else small("LSTM")
    train(chosen, corpus, tmp_path, device=torch.device("cpu"))
    assert "published" not in (tmp_path / "metrics.jsonl").read_text()
    events = events_of(tmp_path)
    tags = events.Tags()
    assert not any("published" in tag for tag in (*tags["scalars"], *tags["tensors"]))
    assert "custom_scalars__config__" not in tags["tensors"]
    # A derived cell is drawn all the same, once; a baseline has no genotype to draw.
    drawn = way == "width"
    assert ("views/cell" in tags["images"]) == ("genotype/text_summary" in tags["tensors"]) == drawn
    if drawn:
        assert [image.step for image in events.Images("views/cell")] == [0]
