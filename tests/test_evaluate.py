"""Checkpoints evaluated on splits and texts, sampled from, and refused where they do not fit."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rnnnas.config.plain import from_plain, to_plain
from rnnnas.config.text import TrainConfig
from rnnnas.data.corpus import Corpus, VocabOptions, add_corpus, open_corpus
from rnnnas.door import sample
from rnnnas.engine.job import Position
from rnnnas.errors import CheckpointError, DataError, UsageError
from rnnnas.evaluation.run import LEAK_MARGIN, evaluate_checkpoint, load_checkpoint
from rnnnas.nas.genotype import Genotype
from rnnnas.runs.checkpoint import load_content, save_content
from rnnnas.training.run import TrainJob

KEYS = {"split", "perplexity", "nats", "tokens", "unknown", "digest", "word_perplexity",
        "bits_per_byte", "unknown_share"}  # fmt: skip
CPU = torch.device("cpu")
CELL = Genotype.from_text("tanh0 relu1 sigmoid1 concat 1,3")


def make_corpus(folder: Path, name: str, seed: int, **options: Any) -> Corpus:
    draws = random.Random(seed)
    words = [f"w{i}" for i in range(25)]
    lines = [" ".join(draws.choices(words, k=draws.randint(0, 9))) for _ in range(600)]
    text = folder / f"{name}.txt"
    text.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return add_corpus(name, text, VocabOptions(**options))


def make_checkpoint(path: Path, corpus: Corpus, **settings: Any) -> str:
    """The best.pt of a model whose weights are large enough to have opinions."""
    plain = {
        "corpus": corpus.name, "genotype": CELL.to_plain(), "valid_streams": 3,
        "model": {"hidden": 6}, "noise": {"dropout": 0.5}, "windows": {"streams": 2}, **settings,
    }  # fmt: skip
    job = TrainJob(from_plain(TrainConfig, plain), corpus, CPU)
    with torch.no_grad():
        for p in job.net.parameters():
            p.mul_(30)
        job.net.bias.copy_(torch.linspace(-1, 1, corpus.vocab.size))
    return save_content(path, job.checkpoint(Position(epoch=2, step=9), 12.5))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RNNNAS_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def corpus(home: Path) -> Corpus:
    return make_corpus(home, "tiny", 0)


@pytest.fixture(scope="module")
def best(home: Path, corpus: Corpus) -> Path:
    make_checkpoint(home / "best.pt", corpus)
    return home / "best.pt"


@torch.no_grad()
def nats_of(path: Path, rows: Sequence[Sequence[int]]) -> list[float]:
    """Nats of every target, one token at a time in float64, each row from a zero state."""
    net = load_checkpoint(path, CPU).net.double()
    nats = []
    for row in rows:
        hidden_state = None
        for word, following in zip(row[:-1], row[1:], strict=True):
            logits, hidden_state = net.logits(torch.tensor([[word]]), hidden_state)
            scores = logits[0, 0].tolist()
            nats.append(math.log(sum(map(math.exp, scores))) - scores[following])
    return nats


def as_rows(tokens: Any, streams: int) -> list[list[int]]:
    length = len(tokens) // streams
    return [[int(i) for i in tokens[b * length : (b + 1) * length]] for b in range(streams)]


# On a split


@pytest.mark.parametrize(("split", "streams"), [("valid", 3), ("test", 1), ("train", 1)])
def test_a_split(best: Path, corpus: Corpus, split: str, streams: int) -> None:
    result = evaluate_checkpoint(best, split, device=CPU)
    nats = nats_of(best, as_rows(corpus.splits[split], streams))
    beside = {"unigram_perplexity", "bigram_perplexity"}
    assert set(result) == KEYS | beside
    assert (result["split"], result["unknown"]) == (split, 0)
    assert result["tokens"] == len(nats) == streams * (len(corpus.splits[split]) // streams - 1)
    assert result["nats"] == pytest.approx(sum(nats) / len(nats), rel=1e-5)
    assert result["perplexity"] == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-4)
    assert result["perplexity"] == pytest.approx(math.exp(result["nats"]), rel=1e-12)


def test_streams_follow_the_settings(home: Path, corpus: Corpus, tmp_path: Path) -> None:
    path = home / "streams.pt"
    make_checkpoint(path, corpus, test_streams=5, valid_streams=2)
    sizes = {split: len(corpus.splits[split]) for split in ("valid", "test")}
    tested = evaluate_checkpoint(path, "test", device=CPU)
    valid = evaluate_checkpoint(path, "valid", device=CPU)
    assert tested["tokens"] == 5 * (sizes["test"] // 5 - 1)
    assert valid["tokens"] == 2 * (sizes["valid"] // 2 - 1)
    text = tmp_path / "own.txt"  # a text is one stream, whatever the settings say
    text.write_text("w1 w2 w3\n" * 5, encoding="utf-8")
    assert evaluate_checkpoint(path, text=text, device=CPU)["tokens"] == 19


def test_an_open_corpus_saves_opening_it(best: Path, corpus: Corpus) -> None:
    opened = evaluate_checkpoint(best, "valid", corpus=corpus, device=CPU)
    assert opened == evaluate_checkpoint(best, "valid", device=CPU)


def test_what_a_checkpoint_holds(best: Path, corpus: Corpus) -> None:
    loaded = load_checkpoint(best, CPU)
    assert loaded.genotype == CELL and loaded.config.genotype == CELL.to_plain()
    assert loaded.config.noise.dropout == 0.5 and loaded.config.valid_streams == 3
    assert loaded.vocab.words == corpus.vocab.words
    assert (loaded.corpus, loaded.corpus_sha256) == ("tiny", corpus.sha256)
    assert loaded.metrics == {"epoch": 3, "step": 9, "valid_perplexity": 12.5}
    weights = load_content(best)["weights"]
    for name, p in loaded.net.named_parameters():
        assert torch.equal(p.detach(), weights[name])


def test_the_digest_is_the_one_that_was_written(home: Path, corpus: Corpus) -> None:
    digest = make_checkpoint(home / "digest.pt", corpus)
    assert evaluate_checkpoint(home / "digest.pt", "valid", device=CPU)["digest"] == digest
    assert make_checkpoint(home / "again.pt", corpus) == digest
    assert make_checkpoint(home / "other.pt", corpus, seed=2) != digest


def test_another_corpus_of_that_name_is_refused(
    best: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = dataclasses.replace(corpus, sha256="0" * 64)
    with pytest.raises(DataError, match="'tiny' here is not the one") as caught:
        evaluate_checkpoint(best, "test", corpus=other, device=CPU)
    assert "--text" in caught.value.remedy
    monkeypatch.setenv("RNNNAS_HOME", str(tmp_path))
    with pytest.raises(DataError, match="no corpus 'tiny'"):
        evaluate_checkpoint(best, "test", device=CPU)
    make_corpus(tmp_path, "tiny", 1)
    with pytest.raises(DataError, match="is not the one this model was trained on"):
        evaluate_checkpoint(best, "test", device=CPU)


def test_a_corpus_that_was_changed_is_refused(
    best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNNNAS_HOME", str(tmp_path))
    changed = make_corpus(tmp_path, "tiny", 0)
    evaluate_checkpoint(best, "test", device=CPU)  # the same text: the same corpus
    path = changed.folder / "test.bin"
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.unlink()  # not in place: the file may be mapped
    path.write_bytes(data)
    with pytest.raises(DataError, match="test.bin was changed"):
        evaluate_checkpoint(best, "test", device=CPU)


# Against a known bound


@pytest.mark.parametrize(("above", "leak"), [(0.5, False), (0.99, False), (1.01, False),
                                             (1.03, True), (2.0, True)])  # fmt: skip
def test_a_perplexity_below_the_bound_is_a_leak(
    best: Path, corpus: Corpus, above: float, leak: bool
) -> None:
    assert LEAK_MARGIN == 0.02
    plain = evaluate_checkpoint(best, "test", device=CPU)
    assert "leak" not in plain and "best_perplexity" not in plain
    bound = above * plain["perplexity"]
    bounds = {"train": 1.0, "valid": 1.0, "test": bound}
    known = dataclasses.replace(
        corpus, description={**corpus.description, "best_perplexity": bounds}
    )
    result = evaluate_checkpoint(best, "test", corpus=known, device=CPU)
    assert result["best_perplexity"] == bound and result["leak"] is leak
    assert evaluate_checkpoint(best, "valid", corpus=known, device=CPU)["leak"] is False


# On a text


def test_a_text_with_unknown_words(best: Path, corpus: Corpus, tmp_path: Path) -> None:
    text = tmp_path / "own.txt"
    text.write_text("w1 w2 dragon\n\nw3 <unk> W1 unicorn\n", encoding="utf-8")
    result = evaluate_checkpoint(best, "valid", text=text, device=CPU)
    index = {word: i for i, word in enumerate(corpus.vocab.words)}
    words = ["w1", "w2", "<unk>", "<eos>", "<eos>", "w3", "<unk>", "<unk>", "<unk>", "<eos>"]
    nats = nats_of(best, [[index[word] for word in words]])
    # `<unk>` that the text itself says is no unknown word; `W1` is, for case is kept.
    assert (result["split"], result["unknown"], result["tokens"]) == ("text", 3, 9)
    assert result["nats"] == pytest.approx(sum(nats) / 9, rel=1e-5)
    assert set(result) == KEYS
    assert result["unknown_share"] == 0.4  # of ten tokens, the text's own included
    size = len(text.read_bytes())
    assert result["bits_per_byte"] == pytest.approx(sum(nats) / 9 * 10 / math.log(2) / size)
    with pytest.raises(UsageError, match="no split 'dev'"):
        evaluate_checkpoint(best, "dev", device=CPU)


def test_a_text_needs_no_corpus(
    best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNNNAS_HOME", str(tmp_path / "nothing"))
    text = tmp_path / "own.txt"
    text.write_text("w1 w2\n", encoding="utf-8")
    assert evaluate_checkpoint(best, text=text, device=CPU)["tokens"] == 2


@pytest.mark.parametrize("data", [b"", b"\n"])
def test_too_short_a_text_is_refused(best: Path, tmp_path: Path, data: bytes) -> None:
    text = tmp_path / "own.txt"
    text.write_bytes(data)
    with pytest.raises(DataError, match="own.txt"):
        evaluate_checkpoint(best, text=text, device=CPU)
    with pytest.raises(DataError, match="none.txt"):
        evaluate_checkpoint(best, text=tmp_path / "none.txt", device=CPU)


def test_perplexity_a_word_for_sentencepiece(home: Path, tmp_path: Path) -> None:
    corpus = make_corpus(home, "pieces", 3, kind="sentencepiece", size=280)
    path = home / "pieces.pt"
    make_checkpoint(path, corpus)
    tokens = [int(i) for i in corpus.splits["test"]]
    lines = corpus.vocab.decode(tokens).split("\n")[:-1]
    words = sum(len(line.split()) + 1 for line in lines)
    assert words != len(tokens)
    result = evaluate_checkpoint(path, "test", device=CPU)
    nats = nats_of(path, [tokens])
    mean = sum(nats) / len(nats)
    # The first token of a text is no target: it is charged the mean of the others.
    expected = math.exp(mean * len(tokens) / words)
    assert result["word_perplexity"] == pytest.approx(expected, rel=1e-4)
    assert result["perplexity"] == pytest.approx(math.exp(mean), rel=1e-4)
    text = tmp_path / "own.txt"
    text.write_text("\n".join(lines) + "\n", encoding="utf-8")
    again = evaluate_checkpoint(path, text=text, device=CPU)
    assert again["word_perplexity"] == pytest.approx(result["word_perplexity"], rel=1e-12)
    assert again["unknown"] == 0


# Sampling


def greedy(path: Path, prompt: list[str], count: int) -> list[str]:
    """The likeliest next word, the whole text read anew each time."""
    loaded = load_checkpoint(path, CPU)
    words = list(loaded.vocab.words)
    text = ["<eos>", *prompt]
    for _ in range(count):
        ids = torch.tensor([[words.index(word)] for word in text])
        with torch.no_grad():
            logits, _ = loaded.net.logits(ids, None)
        scores = logits[-1, 0].tolist()
        text.append(words[scores.index(max(scores))])
    return text[1:]


def spelt(words: list[str]) -> str:
    return "\n".join(" ".join(line.split()) for line in " ".join(words).split("<eos>"))


@pytest.mark.parametrize("prompt", ["", "w1", "w3 w4 w5"])
def test_temperature_zero_is_greedy(best: Path, prompt: str) -> None:
    found = sample(best, prompt=prompt, tokens=12, temperature=0, device=CPU)
    assert found == spelt(greedy(best, prompt.split(), 12))
    assert sample(best, prompt=prompt, tokens=12, temperature=0, seed=2, device=CPU) == found
    cold = sample(best, prompt=prompt, tokens=12, temperature=1e-4, device=CPU)
    assert cold == found


def test_a_seed_gives_one_text(best: Path) -> None:
    torch.manual_seed(1)
    first = sample(best, tokens=30, seed=5, device=CPU)
    torch.manual_seed(2)
    assert sample(best, tokens=30, seed=5, device=CPU) == first
    assert sample(best, tokens=30, seed=6, device=CPU) != first
    assert first.startswith(sample(best, tokens=10, seed=5, device=CPU))


def test_a_sample_goes_on_from_its_prompt_by_so_many_tokens(best: Path) -> None:
    text = sample(best, prompt="w1 w2 dragon", tokens=7, device=CPU)
    assert text.startswith("w1 w2 dragon ") and "<unk>" not in text
    assert len(text.split()) + text.count("\n") == 3 + 7


def test_temperature_is_a_division_of_the_logits(best: Path) -> None:
    """Counts of the first word over seeds against the softmax of logits / temperature."""
    loaded = load_checkpoint(best, CPU)
    with torch.no_grad():
        logits, _ = loaded.net.logits(torch.tensor([[loaded.vocab.eos]]), None)
    chances = (logits[0, 0].double() / 0.5).softmax(-1)
    top = int(chances.argmax())
    p = float(chances[top])
    assert 0.05 < p < 0.95
    draws = 150
    word = loaded.vocab.decode([top])
    hits = sum(
        sample(best, tokens=1, temperature=0.5, seed=seed, device=CPU) == word
        for seed in range(draws)
    )
    assert abs(hits / draws - p) < 4 * math.sqrt(p * (1 - p) / draws)


# What is refused


def broken(content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Contents that no training writes, each with a name."""
    for key in ("config", "genotype", "vocabulary", "corpus", "weights", "metrics"):
        yield f"without {key}", {k: v for k, v in content.items() if k != key}
    for key in ("config", "genotype", "vocabulary", "corpus", "weights"):
        for value in (None, 3, [], "x", {}):
            yield f"{key} is {value!r}", {**content, key: value}
    yield "unknown setting", {**content, "config": {**content["config"], "colour": 1}}
    yield "other kind of cell", {
        **content, "genotype": {"normal": content["genotype"]["recurrent"]}
    }  # fmt: skip
    weights = content["weights"]
    yield "missing weight", {**content, "weights": {"bias": weights["bias"]}}
    yield "extra weight", {**content, "weights": {**weights, "more": weights["bias"]}}
    short = {**weights, "bias": weights["bias"][:-1].clone()}
    yield "weight of another shape", {**content, "weights": short}
    few = {**content["vocabulary"], "words": content["vocabulary"]["words"][:-1]}
    yield "vocabulary of another size", {**content, "vocabulary": few}
    yield "a state, not a model", {"position": {}, "job": {"weights": weights}}
    yield "nothing", {}


def test_other_content_is_refused(best: Path, tmp_path: Path) -> None:
    path = tmp_path / "odd.pt"
    count = 0
    for name, content in broken(load_content(best)):
        save_content(path, content)
        with pytest.raises(CheckpointError, match="odd.pt is intact but") as caught:
            load_checkpoint(path, CPU)
        assert "rnnnas train" in caught.value.remedy, name
        count += 1
    print(f"{count} contents refused")
    assert count > 35


def test_damage_is_refused(best: Path, tmp_path: Path) -> None:
    data = best.read_bytes()
    path = tmp_path / "best.pt"
    for place in range(0, len(data), len(data) // 40):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(CheckpointError, match="best.pt"):
            evaluate_checkpoint(path, "test", device=CPU)
        path.write_bytes(data[:place])
        with pytest.raises(CheckpointError, match="best.pt"):
            sample(path, device=CPU)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_checkpoint(path, CPU)


def test_the_settings_of_a_checkpoint_are_complete(best: Path) -> None:
    """Later defaults must not change what an old checkpoint means."""
    loaded = load_checkpoint(best, CPU)
    assert load_content(best)["config"] == to_plain(loaded.config)


def test_opening_by_name_reads_the_current_corpus(home: Path, best: Path) -> None:
    assert open_corpus("tiny").sha256 == load_checkpoint(best, CPU).corpus_sha256
