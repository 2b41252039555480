"""A search logs its shares and its cell after every epoch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_home import corpus as corpus
from tiny_home import find, search_config
from tiny_home import home as home

from rnnnas.data.corpus import Corpus
from rnnnas.nas.genotype import RECURRENT, Genotype
from rnnnas.nas.space import recurrent_space


def test_every_epoch_has_a_line_and_tensorboard_an_image_of_it(
    corpus: Corpus, tmp_path: Path
) -> None:
    settings = search_config(
        "epochs=2", "model.hidden=6", "model.nodes=3", "windows.streams=6", "valid_streams=6",
        "windows.limit=2", method="darts-1st",
    )  # fmt: skip
    result = find(settings, corpus, tmp_path / "run")
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    lines = [line for line in map(json.loads, text.splitlines()) if line["kind"] == "alphas"]
    epochs = [line for line in map(json.loads, text.splitlines()) if line["kind"] == "epoch"]
    assert [(line["epoch"], line["step"]) for line in lines] == [
        (e["epoch"], e["step"]) for e in epochs
    ]
    space = recurrent_space(settings.model.nodes)
    for line in lines:
        table = line[RECURRENT]
        assert len(table) == len(space.edges) and all(len(row) == len(space.ops) for row in table)
        assert all(value == round(value, 4) for row in table for value in row)
        assert [sum(row) for row in table] == pytest.approx([1.0] * len(table), abs=4e-4)
    assert lines[-1]["cell"] == result["cell"]
    assert Genotype.from_text(lines[-1]["cell"]).to_plain() == result["genotype"]
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    tags = events.Tags()
    assert set(tags["images"]) == {"views/alphas", "views/cell"}
    assert not any("alphas/" in tag for tag in tags["scalars"])
    assert min(sorted(tags["scalars"])).startswith("perplexity/")  # they come first
