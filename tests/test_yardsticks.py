"""N-grams and bytes beside a model's perplexity: the same tokens, right numbers, honest words."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny_home import corpus, find, home, search_config  # noqa: F401  (fixtures)

from rnnnas.cli import main
from rnnnas.config.presets import resolve
from rnnnas.data.corpus import Corpus, VocabOptions, add_corpus
from rnnnas.data.ngrams import bigram_model, bigram_perplexity, unigram_perplexity
from rnnnas.data.yardsticks import Yardsticks, bits_per_byte, compared, text_bytes, yardsticks
from rnnnas.training.run import train

CPU = torch.device("cpu")


def test_of_one_stream_they_are_those_of_the_corpus(corpus: Corpus) -> None:  # noqa: F811
    given = yardsticks(corpus, "test")
    texts = corpus.splits["train"], corpus.splits["test"], corpus.vocab.size
    assert given.unigram == pytest.approx(unigram_perplexity(*texts), rel=1e-12)
    assert given.bigram == pytest.approx(bigram_perplexity(*texts), rel=1e-12)


def test_of_several_streams_they_are_of_the_targets_alone(corpus: Corpus) -> None:  # noqa: F811
    tokens, streams = np.asarray(corpus.splits["valid"]), 7
    length = len(tokens) // streams
    model = bigram_model(np.asarray(corpus.splits["train"]), corpus.vocab.size)
    logs = []
    for stream in range(streams):
        for place in range(1, length):
            here = stream * length + place
            pair = tokens[here - 1 : here], tokens[here : here + 1]
            logs.append(math.log(float(model.probabilities(*pair)[0])))
    expected = math.exp(-sum(logs) / len(logs))
    assert len(logs) == streams * (length - 1)
    assert yardsticks(corpus, "valid", streams).bigram == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["words", "sentencepiece"])
def test_bytes_are_those_of_the_text(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNNNAS_HOME", str(tmp_path))
    texts = {}
    for split in ("train", "valid", "test"):
        lines = [f"das größte {split} ist {k % 7} ≥ {k % 5}" for k in range(60)]
        lines.insert(9, "")
        texts[split] = "\n".join(lines) + "\n"
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / "text" / f"{split}.txt").write_text(texts[split], encoding="utf-8")
    made = add_corpus("own", tmp_path / "text", VocabOptions(kind=kind))
    assert isinstance(made, Corpus)
    split = "train"  # all of its words are known
    assert text_bytes(made, split) == len(texts[split].encode("utf-8"))
    # A corpus of an earlier version does not say it: counted from its tokens.
    recorded = made.description["splits"][split].pop("bytes")
    assert recorded == text_bytes(made, split) == len(texts[split].encode("utf-8"))


def test_bits_per_byte() -> None:
    # Two tokens of ln 4 nats are four bits, over eight bytes.
    assert bits_per_byte(math.log(4), 2, 8) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("value", "loses"),
    [(90.0, None), (100.0, "bigram"), (150.0, "bigram"), (250.0, "unigram"),
     (math.inf, "unigram"), (math.nan, "unigram")],
)  # fmt: skip
def test_a_model_that_loses_is_told_so(value: float, loses: str | None) -> None:
    given = Yardsticks(unigram=200.0, bigram=100.0)
    lines = compared(value, given, whose="this model", remedy="train longer")
    assert "100.00" in lines[0] and "200.00" in lines[0]
    warnings = [line for line in lines if "worse than" in line]
    assert len(warnings) == (loses is not None)
    if loses is not None:
        assert f"a {loses} model's" in warnings[0] and "train longer" in warnings[0]


@pytest.mark.parametrize(("value", "loses"), [(150.0, False), (200.0, True), (math.nan, True)])
def test_a_search_may_end_above_a_bigram_model(value: float, loses: bool) -> None:
    given = Yardsticks(unigram=200.0, bigram=100.0)
    lines = compared(value, given, whose="the best cell", remedy="search longer", found=True)
    assert "100.00" in lines[0], "it is shown all the same"
    assert any("worse than a unigram" in line for line in lines) is loses
    assert len(lines) == 1 + loses


def test_results_hold_what_they_are_held_against(
    corpus: Corpus,  # noqa: F811
    tmp_path: Path,
) -> None:
    settings = ["model.hidden=8", "valid_streams=3", "test_streams=3", "epochs=1"]
    config = resolve(
        "train", preset="smoke", file=None, settings=settings,
        flags={"corpus": "tiny", "genotype": "LSTM"},
    )  # fmt: skip
    result = train(config, corpus, tmp_path / "t", device=CPU, quiet=True)
    assert result["bigram_perplexity"] == yardsticks(corpus, "test", 3).bigram
    assert result["unigram_perplexity"] == yardsticks(corpus, "test", 3).unigram
    tokens = len(corpus.splits["test"])
    nats = math.log(result["test_perplexity"]) * tokens
    size = text_bytes(corpus, "test")
    assert result["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-9)
    kept = json.loads((tmp_path / "t" / "result.json").read_text())
    assert kept["bits_per_byte"] == result["bits_per_byte"]

    found = find(
        search_config("model.hidden=8", "epochs=1", "valid_streams=16"), corpus, tmp_path / "s"
    )
    assert found["bigram_perplexity"] == yardsticks(corpus, "valid", 16).bigram


def test_a_training_that_is_too_short_says_what_to_do(home: Path) -> None:  # noqa: F811
    words = ["train", "--corpus", "tiny", "--genotype", "LSTM", "--preset", "smoke"]
    words += ["--hidden", "4", "--epochs", "1", "--set", "windows.limit=1"]
    words += ["--set", "valid_streams=4", "--set", "test_streams=4"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert "WARNING: this model is worse than a unigram model" in result.stderr
    assert "--minutes" in result.stderr
