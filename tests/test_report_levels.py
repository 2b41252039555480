"""What a report holds a run against: word frequencies, published curves, tables of latencies."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest
from sample_runs import search_run, train_run
from tiny_home import corpus as corpus
from tiny_home import home as home

from rnnnas.config.plain import to_plain
from rnnnas.config.presets import resolve
from rnnnas.data.corpus import Corpus
from rnnnas.reporting.levels import latency_of, published_of, word_frequencies
from rnnnas.reporting.page import report
from rnnnas.reporting.read import RunData, read_run
from rnnnas.runs.files import write_json
from rnnnas.training.published_curves import CURVES, PTB


def about(folder: Path, **changes: object) -> RunData:
    """The run in `folder` with other settings."""
    plain = json.loads((folder / "config.json").read_text())
    plain["config"].update(changes)
    write_json(folder / "config.json", plain)
    return read_run(folder)


def test_word_frequencies_are_those_of_the_training_text(corpus: Corpus, tmp_path: Path) -> None:
    run = about(search_run(tmp_path / "r"), corpus="tiny", corpus_sha256=corpus.sha256)
    found = word_frequencies(run)
    counts = Counter(corpus.splits["train"].tolist())
    once, twice = (sum(n == k for n in counts.values()) for k in (1, 2))
    d = once / (once + 2 * twice) if once and twice else 0.5
    total, size = len(corpus.splits["train"]), len(corpus.vocab)
    nats = [
        -math.log((max(counts[w] - d, 0) + d * len(counts) / size) / total)
        for w in corpus.splits["valid"].tolist()[1:]
    ]
    assert found == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-9)
    text = report([run.folder], tmp_path / "r.html").read_text()
    assert ">word frequencies</text>" in text


def test_of_a_corpus_that_is_not_at_hand_there_are_none(corpus: Corpus, tmp_path: Path) -> None:
    folder = search_run(tmp_path / "r")
    for changes in ({"corpus": "tiny"}, {"corpus": "nowhere"}, {"corpus": "pydocs"}):
        assert word_frequencies(about(folder, **changes)) is None  # another sha256, or missing
    assert "word frequencies" not in report([folder], tmp_path / "r.html").read_text()


def test_a_training_of_the_published_sizes_stands_beside_the_published_curve(
    tmp_path: Path,
) -> None:
    folder = train_run(tmp_path / "t")
    assert published_of(read_run(folder)) is None
    flags = {"corpus": "ptb", "genotype": "DARTS_V2"}
    config = resolve("train", preset="ptb", file=None, settings=(), flags=flags)
    run = about(folder, **json.loads(json.dumps(to_plain(config))), corpus_sha256=PTB)
    assert published_of(run) is CURVES[0]
    text = report([folder], tmp_path / "t.html").read_text()
    assert "Beside the published run" in text
    assert f"published: {CURVES[0].points[1][1]:g} at epoch (log) {CURVES[0].points[1][0]}" in text


def test_latencies_are_predicted_by_the_table_of_the_run(tmp_path: Path) -> None:
    """With nothing but the product and s0 to pay for, a star of two nodes is one group."""
    folder = search_run(tmp_path / "r", done=False)
    ops = ("tanh", "relu", "sigmoid", "identity")
    seconds = {"first": 10e-6, "products": [5e-6, 7e-6], "rests": [0, 0], "level": 0,
               "activations": {op: [0, 0] for op in ops}}  # fmt: skip
    sizes = {"device": "cpu", "processor": "p", "dtype": "float32", "hidden": 8, "streams": 4}
    write_json(folder / "latency.json", {**sizes, "steps": 5, "date": "d", "seconds": seconds})
    star, chain = "tanh0 relu0", "tanh0 relu1"
    found, of = latency_of([star, chain, "no cell", "tanh0 relu1 relu2"], read_run(folder))
    assert found == {star: pytest.approx(17.0), chain: pytest.approx(20.0)}
    assert of == "cpu, float32, H 8, B 4"
    lines = [{"kind": "candidate", "step": i, "number": i, "cell": cell, "perplexity": 90.0 + i}
             for i, cell in enumerate((star, chain), 1)]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = report([folder], tmp_path / "r.html").read_text()
    assert "Latencies of cpu, float32, H 8, B 4." in text
    assert "Latency against perplexity" in text and f"{chain}: 20.0 µs, 92" in text
