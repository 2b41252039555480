"""Adapting evaluations of checkpoints, and that their settings come from validation text alone."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rnnnas.config.plain import from_plain
from rnnnas.config.text import TrainConfig
from rnnnas.data.corpus import Corpus, VocabOptions, add_corpus
from rnnnas.data.text_streams import Streams
from rnnnas.engine.job import Position
from rnnnas.errors import CheckpointError, DataError, DiskError, DivergedError
from rnnnas.evaluation import adaptive
from rnnnas.evaluation.adaptive import DEFAULT, Adapting, climb, evaluate_adapting
from rnnnas.evaluation.dynamic import Dynamic, DynamicConfig, gradient_rms
from rnnnas.evaluation.neural_cache import CacheConfig
from rnnnas.evaluation.run import evaluate_checkpoint, load_checkpoint
from rnnnas.nas.genotype import Genotype
from rnnnas.runs.checkpoint import save_content
from rnnnas.training.run import TrainJob

CPU = torch.device("cpu")
KEYS = {"split", "perplexity", "nats", "tokens", "unknown", "digest", "plain_perplexity"}
KEYS |= {"word_perplexity", "bits_per_byte", "unigram_perplexity", "bigram_perplexity"}
KEYS |= {"unknown_share"}
DYNAMIC = {"dynamic": True, "quiet": True}
CACHE = {"cache": True, "quiet": True}
BOTH = {**DYNAMIC, **CACHE}
OFF = dataclasses.replace(DEFAULT, lr=0.0, decay=0.0)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RNNNAS_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def corpus(home: Path) -> Corpus:
    """A text whose few words change every 40 lines."""
    draws = random.Random(1)
    lines = []
    for _ in range(40):
        words = [f"w{draws.randrange(25)}" for _ in range(4)]
        lines += [" ".join(draws.choices(words, k=draws.randint(1, 5))) for _ in range(40)]
    (home / "tiny.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return add_corpus("tiny", home / "tiny.txt", VocabOptions())


@pytest.fixture(scope="module")
def original(home: Path, corpus: Corpus) -> Path:
    return write_checkpoint(home / "best.pt", corpus, 1)


def write_checkpoint(path: Path, corpus: Corpus, seed: int) -> Path:
    plain = {
        "corpus": corpus.name, "genotype": Genotype.from_text("tanh0 relu1").to_plain(),
        "seed": seed, "valid_streams": 3, "test_streams": 2, "model": {"hidden": 8},
        "windows": {"streams": 4},
    }  # fmt: skip
    job = TrainJob(from_plain(TrainConfig, plain), corpus, CPU)
    with torch.no_grad():
        for p in job.net.parameters():
            p.mul_(10)
    save_content(path, job.checkpoint(Position(epoch=2, step=9), 12.5))
    return path


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer targets and trials than usual, and none of the step sizes (1e-3 and more) by which it
    depends on a processor's rounding whether this small network diverges on the test text.
    """
    monkeypatch.setattr(adaptive, "TARGETS", 250)
    monkeypatch.setattr(adaptive, "LRS", (5e-5, 1e-4, 2e-4, 5e-4))
    monkeypatch.setattr(adaptive, "SIZES", (20, 100))
    monkeypatch.setattr(adaptive, "THETAS", (0.0, 0.3))
    monkeypatch.setattr(adaptive, "SHARES", (0.1, 0.3))


@pytest.fixture
def best(original: Path, tmp_path: Path) -> Path:
    """A checkpoint in a folder of its own."""
    path = tmp_path / "best.pt"
    path.write_bytes(original.read_bytes())
    return path


class Watched(Mapping[str, Any]):
    """Splits that note which of them are read."""

    def __init__(self, splits: Mapping[str, Any]) -> None:
        self.splits, self.read = splits, list[str]()

    def __getitem__(self, name: str) -> Any:
        self.read.append(name)
        return self.splits[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.splits)

    def __len__(self) -> int:
        return len(self.splits)


# What the settings are chosen by


def test_choosing_reads_train_and_valid_only(
    best: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every token that reaches a stream while settings are chosen is of those two texts."""
    seen: list[np.ndarray] = []

    class Noted(Streams):
        def __init__(self, tokens: np.ndarray, *rest: Any) -> None:
            seen.append(np.array(tokens))
            super().__init__(tokens, *rest)

    monkeypatch.setattr(adaptive, "Streams", Noted)
    watched = Watched(corpus.splits)
    known = dataclasses.replace(corpus, splits=watched)
    work = Adapting(load_checkpoint(best, CPU).net, lambda: known, CPU, True)
    chosen = work.tune_dynamic()
    work.tune_cache(None)
    work.tune_cache(DynamicConfig(lr=1e-3))
    assert chosen["valid_tokens"] == 250
    assert sorted(watched.read) == ["train", "valid"]  # each once
    texts = [np.array(corpus.splits["valid"][:251]), np.array(corpus.splits["train"])]
    assert len(seen) == 2 and all(any(np.array_equal(s, t) for t in texts) for s in seen)


def test_what_is_evaluated_does_not_change_what_is_chosen(
    original: Path, corpus: Corpus, tmp_path: Path
) -> None:
    """Another test text, a split or a file: the same settings, chosen by the same numbers."""
    chosen = []
    text = tmp_path / "own.txt"
    text.write_text("w1 w2 w3 w1\n" * 30, encoding="utf-8")
    other = {**corpus.splits, "test": np.array(corpus.splits["test"])[::-1].copy()}
    changed = dataclasses.replace(corpus, splits=other)
    cases: list[dict[str, Any]] = [
        {"split": "test"}, {"split": "test", "corpus": changed}, {"split": "valid"},
        {"text": text},
    ]  # fmt: skip
    for i, case in enumerate(cases):
        path = tmp_path / f"{i}.pt"
        path.write_bytes(original.read_bytes())
        # The chosen steps are too long for some of these texts, depending on the processor.
        with contextlib.suppress(DivergedError):
            evaluate_checkpoint(path, device=CPU, **case, **BOTH)
        kept = json.loads((tmp_path / f"{i}.dynamic.json").read_text())
        assert {"dynamic", "both"} <= set(kept)
        chosen.append((kept["dynamic"], kept["both"]))
    assert all(each == chosen[0] for each in chosen)


def test_the_choice_is_the_best_of_what_was_tried(best: Path, corpus: Corpus) -> None:
    work = Adapting(load_checkpoint(best, CPU).net, lambda: corpus, CPU, True)
    report = work.tune_dynamic()
    plain = report["valid_plain_perplexity"]
    assert report["valid_perplexity"] < 0.9 * plain
    config = settings(DynamicConfig, report)

    def perplexity(config: DynamicConfig) -> float:
        windows = list(work.scores(work.valid, config, ""))
        return math.exp(-float(torch.cat([w.log_probs for w in windows]).mean()))

    assert perplexity(config) == pytest.approx(report["valid_perplexity"], rel=1e-5)
    assert perplexity(OFF) == pytest.approx(plain, rel=1e-6)
    at = adaptive.DECAYS.index(config.decay)  # the last to be chosen: no neighbour is better
    for neighbour in adaptive.DECAYS[max(0, at - 1) : at + 2]:
        near = perplexity(dataclasses.replace(config, decay=neighbour))
        assert near >= report["valid_perplexity"] * (1 - 1e-6)
    memory = work.tune_cache(None)
    assert memory["size"] in (20, 100) and memory["theta"] in (0.0, 0.3)
    assert memory["valid_perplexity"] < plain and memory["valid_plain_perplexity"] == plain


def test_what_does_not_help_stays_off(
    best: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that only harm, and shares that only harm."""
    monkeypatch.setattr(adaptive, "DEFAULT", dataclasses.replace(DEFAULT, lr=50.0))
    monkeypatch.setattr(adaptive, "LRS", (50.0, 1e6))
    monkeypatch.setattr(adaptive, "SIZES", (1,))
    monkeypatch.setattr(adaptive, "SHARES", (1 - 1e-12,))
    result = evaluate_checkpoint(best, "test", device=CPU, **BOTH)
    assert result["dynamic"]["lr"] == 0 and result["cache"]["share"] == 0
    assert result["perplexity"] == pytest.approx(result["plain_perplexity"], rel=1e-6)


@pytest.mark.parametrize(
    ("losses", "start", "found"),
    [([5, 4, 3, 2, 1], 2, 4), ([1, 2, 3, 4, 5], 2, 0), ([3, 1, 2, 9, 0], 2, 1),
     ([2, 2, 2], 1, 1), ([1, math.inf, math.inf], 1, 0), ([4, 3, 1, 3, 0], 3, 4)],
)  # fmt: skip
def test_climb(losses: list[float], start: int, found: int) -> None:
    assert climb(range(len(losses)), start, lambda i: losses[i]) == found


# The evaluation itself


def settings(cls: type[Any], report: dict[str, Any]) -> Any:
    return cls(**{k: v for k, v in report.items() if not k.startswith("valid_")})


def by_hand(
    path: Path,
    corpus: Corpus,
    moving: DynamicConfig | None,
    memory: CacheConfig | None,
) -> float:
    """Mean nats a target of test: windows one after another, the cache by its definition."""
    net = load_checkpoint(path, CPU).net
    streams = Streams(corpus.splits["test"], 1, CPU)
    work = Adapting(net, lambda: corpus, CPU, True)
    dynamic = Dynamic(net, work.rms, moving or OFF)
    hidden_state = None
    states: list[torch.Tensor] = []
    words: list[int] = []
    nats = 0.0
    for start, steps in streams.windows(5):
        scores, hidden_state = dynamic.score(streams.window(start, steps), hidden_state)
        for h, word, log_p in zip(scores.outputs, scores.targets, scores.log_probs, strict=True):
            state = h[0].double()
            p = math.exp(float(log_p))
            if memory is not None and states:
                past = torch.stack(states[-memory.size :])
                weights = (memory.theta * past @ state).exp()
                same = torch.tensor(words[-memory.size :]) == int(word)
                cached = float(weights[same].sum() / weights.sum())
                p = (1 - memory.share) * p + memory.share * cached
            nats -= math.log(p)
            states.append(state)
            words.append(int(word))
    return nats / len(words)


@pytest.mark.parametrize("options", [DYNAMIC, CACHE, BOTH], ids=["dynamic", "cache", "both"])
def test_the_asked_combination(
    home: Path, corpus: Corpus, tmp_path: Path, options: dict[str, bool]
) -> None:
    path = write_checkpoint(tmp_path / "best.pt", corpus, 2)
    before = path.read_bytes()
    result = evaluate_checkpoint(path, "test", device=CPU, **options)
    on = {name for name in ("dynamic", "cache") if options.get(name)}
    assert set(result) == KEYS | on
    moving = settings(DynamicConfig, result["dynamic"]) if "dynamic" in on else None
    memory = settings(CacheConfig, result["cache"]) if "cache" in on else None
    assert result["nats"] == pytest.approx(by_hand(path, corpus, moving, memory), rel=1e-5)
    assert result["perplexity"] == pytest.approx(math.exp(result["nats"]), rel=1e-12)
    plain = math.exp(by_hand(path, corpus, None, None))
    assert result["plain_perplexity"] == pytest.approx(plain, rel=1e-5)
    assert (
        result["tokens"] == len(corpus.splits["test"]) - 1
    )  # one stream, whatever the settings say
    assert result["perplexity"] < 0.9 * plain
    assert path.read_bytes() == before


def test_gradient_statistics_are_of_as_many_windows_as_asked(best: Path, corpus: Corpus) -> None:
    net = load_checkpoint(best, CPU).net
    given = {"windows": 3, "streams": 4, "steps": 6}
    found = Adapting(net, lambda: corpus, CPU, True, given=given).rms
    streams = Streams(corpus.splits["train"], 4, CPU)
    for count, same in ((3, True), (2, False)):
        rms = gradient_rms(net, [streams.window(*w) for w in streams.windows(6)[:count]])
        assert all(torch.allclose(found[name], rms[name]) for name in rms) == same


def test_the_model_stays_as_it_was(best: Path, corpus: Corpus, tmp_path: Path) -> None:
    net = load_checkpoint(best, CPU).net
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    text = Streams(corpus.splits["test"], 1, CPU)
    evaluate_adapting(net, text, lambda: corpus, saved=tmp_path / "s.json", digest="d", **BOTH)
    for name, p in net.named_parameters():
        assert torch.equal(p, before[name]) and p.grad is None and p.requires_grad


def test_a_loss_that_is_no_number_is_an_error(best: Path, corpus: Corpus, tmp_path: Path) -> None:
    net = load_checkpoint(best, CPU).net
    with torch.no_grad():
        net.bias[0] = math.nan
    text = Streams(corpus.splits["test"], 1, CPU)
    with pytest.raises(DivergedError, match="became non-finite"):
        evaluate_adapting(
            net,
            text,
            lambda: corpus,
            saved=tmp_path / "s.json",
            digest="d",
            **{**BOTH, "dynamic": False},
        )


# What is kept


def test_settings_are_chosen_once(best: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluate_checkpoint(best, "test", device=CPU, **BOTH)
    kept = best.with_name("best.dynamic.json")
    content = json.loads(kept.read_text())
    assert content["digest"] == first["digest"] and content["dynamic"] == first["dynamic"]
    assert content["both"] == first["cache"] and "cache" not in content

    def fail(*_: Any) -> Any:
        raise AssertionError("chosen again")

    with monkeypatch.context() as patch:
        patch.setattr(Adapting, "tune_dynamic", fail)
        patch.setattr(Adapting, "tune_cache", fail)
        assert evaluate_checkpoint(best, "test", device=CPU, **BOTH) == first
        alone = evaluate_checkpoint(best, "test", device=CPU, **DYNAMIC)
        assert alone["dynamic"] == first["dynamic"]
        # The cache alone has settings of its own.
        with pytest.raises(AssertionError, match="chosen again"):
            evaluate_checkpoint(best, "test", device=CPU, **CACHE)
    evaluate_checkpoint(best, "test", device=CPU, **CACHE)
    assert set(json.loads(kept.read_text())) == {*content, "cache"}
    # What is chosen beside a given setting does not take its place.
    before = kept.read_bytes()
    for _ in range(2):
        evaluate_checkpoint(best, "test", device=CPU, given={"lr": 1e-4}, **DYNAMIC)
    assert kept.read_bytes() == before
    assert len(list(best.parent.glob("best.dynamic-*.json"))) == 1


def test_a_choice_that_was_stopped_goes_on(best: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No trial is made twice, and what is chosen is what an undisturbed choice takes."""
    made: list[DynamicConfig | None] = []
    left = [3]
    original = Adapting.scores

    def scores(self: Any, streams: Any, config: Any, title: str) -> Any:
        if title.startswith("choose"):
            if len(made) == left[0]:
                raise KeyboardInterrupt
            made.append(config)
        return original(self, streams, config, title)

    monkeypatch.setattr(Adapting, "scores", scores)
    with pytest.raises(KeyboardInterrupt):
        evaluate_checkpoint(best, "test", device=CPU, **DYNAMIC)
    left[0] = 1000
    again = evaluate_checkpoint(best, "test", device=CPU, **DYNAMIC)
    assert len(set(made)) == len(made) > 3
    best.with_name("best.dynamic.json").unlink()
    assert evaluate_checkpoint(best, "test", device=CPU, **DYNAMIC) == again


@pytest.mark.parametrize("damage", ["digest", "tried", "words", "value", "kind", "missing", "gone"])
def test_settings_that_do_not_fit_are_chosen_anew(best: Path, damage: str) -> None:
    first = evaluate_checkpoint(best, "test", device=CPU, **CACHE)
    kept = best.with_name("best.dynamic.json")
    whole = kept.read_text()
    content = json.loads(whole)
    if damage in ("digest", "tried"):
        content = {**content, damage: "other", "cache": {**content["cache"], "share": 0.3}}
    elif damage == "value":
        content["cache"]["share"] = 7.0
    elif damage == "kind":
        content["cache"] = "all"
    elif damage == "missing":
        del content["cache"]["share"]
    kept.write_text("{" if damage == "words" else json.dumps(content), encoding="utf-8")
    if damage == "gone":
        kept.unlink()
    assert evaluate_checkpoint(best, "test", device=CPU, **CACHE) == first
    assert kept.read_text() == whole


def test_a_folder_that_cannot_be_written(
    best: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, value: Any) -> None:
        raise DiskError(f"{path} could not be written: no", "")

    expected = evaluate_checkpoint(best, "test", device=CPU, **CACHE)
    best.with_name("best.dynamic.json").unlink()
    monkeypatch.setattr(adaptive, "write_sealed", refuse)
    assert evaluate_checkpoint(best, "test", device=CPU, cache=True) == expected
    told = capsys.readouterr()
    assert "best.dynamic.json could not be written" in told.err and told.out == ""


def test_a_text_needs_the_corpus_only_to_choose(
    best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "own.txt"
    text.write_text("w1 w2 dragon w1 w1\n" * 10, encoding="utf-8")
    first = evaluate_checkpoint(best, text=text, device=CPU, **CACHE)
    assert (first["split"], first["unknown"], first["tokens"]) == ("text", 10, 59)
    monkeypatch.setenv("RNNNAS_HOME", str(tmp_path / "nothing"))
    assert evaluate_checkpoint(best, text=text, device=CPU, **CACHE) == first
    with pytest.raises(DataError, match="no corpus 'tiny'"):
        evaluate_checkpoint(best, text=text, device=CPU, **DYNAMIC)


def test_damage_to_the_checkpoint_is_refused(best: Path) -> None:
    data = bytearray(best.read_bytes())
    data[len(data) // 2] ^= 1
    best.write_bytes(data)
    with pytest.raises(CheckpointError):
        evaluate_checkpoint(best, "test", device=CPU, **BOTH)
