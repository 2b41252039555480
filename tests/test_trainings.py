"""Trainings of baselines, of several layers, of a mixture, and with finetuning: resumed exactly."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_work import zipf_text
from test_runs import CELL, CPU, crashing, metrics, run_through
from tiny_home import corpus as corpus
from tiny_home import home as home
from torch import Tensor

from rnnnas.config.plain import from_plain, to_plain
from rnnnas.config.presets import resolve
from rnnnas.config.text import TrainConfig
from rnnnas.data.corpus import Corpus, VocabOptions, add_corpus
from rnnnas.door import sample
from rnnnas.engine.job import Position
from rnnnas.engine.steps import evaluate
from rnnnas.errors import CheckpointError
from rnnnas.evaluation.run import evaluate_checkpoint, load_checkpoint
from rnnnas.optim import scheduled
from rnnnas.runs.checkpoint import load_content, save_content
from rnnnas.training.run import TrainJob, train

HOME_TEXT = zipf_text(30, 400)
SMALL = ["model.hidden=8", "windows.streams=6", "windows.limit=5", "valid_streams=4"]
SMALL += ["test_streams=4", "epochs=2", "save_seconds=0"]
STEPS = 5  # of an epoch


def config(genotype: Any, *settings: str) -> TrainConfig:
    flags = {"corpus": "tiny", "seed": 3, "genotype": genotype}
    resolved: TrainConfig = resolve(
        "train", preset="smoke", file=None, settings=[*SMALL, *settings], flags=flags
    )
    return resolved


WAYS: dict[str, tuple[Any, list[str]]] = {
    "lstm": ("LSTM", ["model.layers=2", "noise.weightdrop=0.3", "weights.momentum=0.5"]),
    "gru": ("GRU", ["model.softmaxes=2"]),
    "layers": (CELL, ["model.layers=2"]),
    "softmaxes": (CELL, ["model.softmaxes=3"]),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_training_resumes_exactly_and_its_checkpoint_stands_alone(
    way: str, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genotype, settings = WAYS[way]
    chosen = config(genotype, *settings)
    whole = train(chosen, corpus, tmp_path / "whole", device=CPU)
    with monkeypatch.context() as patch:
        stops = [0, 2, STEPS, STEPS + 1, 2 * STEPS - 1]
        crashing(patch, TrainJob, stops)
        result, crashes = run_through(train, chosen, corpus, tmp_path / "cut")
    assert crashes == len(stops) and result["digest"] == whole["digest"]
    assert result["valid_perplexity"] < corpus.vocab.size

    best = tmp_path / "cut/best.pt"
    loaded = load_checkpoint(best, CPU)
    assert loaded.config == chosen
    content = load_content(best)
    if isinstance(genotype, str):
        assert content["genotype"] == {} and loaded.genotype is None
        assert not (tmp_path / "cut/genotype.json").exists()
    else:
        assert content["genotype"] == CELL and loaded.genotype is not None
    assert evaluate_checkpoint(best, "test", device=CPU)["perplexity"] == result["test_perplexity"]
    texts = [sample(best, prompt="w0 w1", tokens=6, seed=s, device=CPU) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_baseline_under_another_name_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    job = TrainJob(config("LSTM"), corpus, CPU)
    content = job.checkpoint(Position(), 1.0)
    content["config"] = {**content["config"], "cell": "gru"}
    save_content(tmp_path / "odd.pt", content)
    with pytest.raises(CheckpointError, match="odd.pt is intact but"):
        load_checkpoint(tmp_path / "odd.pt", CPU)


@pytest.mark.parametrize("genotype", ["LSTM", "GRU"])
def test_baselines_learn(genotype: str, corpus: Corpus, tmp_path: Path) -> None:
    """Weight drop and all: clearly better than what the words' frequencies alone give."""
    lines = ("a b c d e f\n" * 300).encode()
    (tmp_path / "text.txt").write_bytes(lines)
    simple = add_corpus(f"simple-{genotype.lower()}", tmp_path / "text.txt", VocabOptions())
    chosen = config(genotype, "epochs=4", "windows.limit=0", "noise.weightdrop=0.1")
    plain = {**to_plain(chosen), "corpus": simple.name}
    result = train(from_plain(TrainConfig, plain), simple, tmp_path / "run", device=CPU)
    assert result["test_perplexity"] < 3  # seven words and line ends in turn: 7 by frequency


# Finetuning


@pytest.mark.parametrize("nonmono", [0, 1])
def test_finetuning_resumes_exactly(
    nonmono: int, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["epochs=4", "weights.finetune_epochs=2", f"weights.nonmono={nonmono}"]
    settings += ["weights.lr=100", "weights.momentum=0.5"]
    if nonmono:  # whether validation rises depends on the arithmetic, the switch must not
        monkeypatch.setattr(
            "rnnnas.training.run.averaging_starts", lambda past, loss, wait: len(past) == nonmono
        )
    chosen = config(CELL, *settings)
    whole = train(chosen, corpus, tmp_path / "whole", device=CPU)
    epochs = [x for x in metrics(tmp_path / "whole") if x["kind"] == "epoch"]
    assert len(epochs) == 6 and epochs[-1]["step"] == 6 * STEPS
    averaged = [x["averaged"] for x in epochs]
    assert averaged[-2:] == [1.0, 1.0]
    assert any(averaged[:4]) == bool(nonmono), "the case must cross the switch, or must not"
    first = 4 * STEPS
    for seconds in ("0", "1000"):  # saved after every step, and only at the start
        with monkeypatch.context() as patch:
            stops = [1, first - 1, first, first + 1, first + STEPS, 6 * STEPS - 1]
            crashing(patch, TrainJob, stops)
            again = config(CELL, *settings, f"save_seconds={seconds}")
            result, crashes = run_through(train, again, corpus, tmp_path / f"cut{seconds}")
        assert crashes == len(stops)
        best = load_content(tmp_path / f"cut{seconds}/best.pt")
        wanted = load_content(tmp_path / "whole/best.pt")
        assert all(torch.equal(w, best["weights"][n]) for n, w in wanted["weights"].items())
        assert result["test_perplexity"] == whole["test_perplexity"]
        if seconds == "0":
            assert result["digest"] == whole["digest"]


def test_finetuning_starts_from_the_best_weights_and_averages(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that was best after its first epoch goes on from there, not from its end."""
    main = 3
    spoilt: dict[int, dict[str, Tensor]] = {}
    seen: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    end_epoch, step = TrainJob.end_epoch, TrainJob.step

    def end(self: Any, at: Position, run: Any) -> dict[str, float]:
        if 0 < at.epoch < main:  # later epochs are worse
            with torch.no_grad():
                self.net.bias.add_(torch.linspace(-3, 3, len(self.net.bias)))
        values = end_epoch(self, at, run)
        spoilt[at.epoch] = {n: p.detach().clone() for n, p in self.net.named_parameters()}
        return values

    def count(self: Any, at: Position, steps: int, factor: float) -> Any:
        before = {n: p.detach().clone() for n, p in self.net.named_parameters()}
        report = step(self, at, steps, factor)
        if at.epoch >= main:
            after = {n: p.detach().clone() for n, p in self.net.named_parameters()}
            seen.append((before, after))
            # Uniformly over all weights since finetuning began.
            for name, mean in self.weights().items():
                wanted = torch.stack([own[name] for _, own in seen]).double().mean(0)
                torch.testing.assert_close(mean.double(), wanted, rtol=1e-5, atol=1e-7)
        return report

    monkeypatch.setattr(TrainJob, "end_epoch", end)
    monkeypatch.setattr(TrainJob, "step", count)
    chosen = config(CELL, f"epochs={main}", "weights.finetune_epochs=1", "weights.nonmono=0")
    train(chosen, corpus, tmp_path / "run", device=CPU)
    assert len(seen) == STEPS
    assert all(torch.equal(value, spoilt[0][name]) for name, value in seen[0][0].items())
    assert not torch.equal(seen[0][0]["bias"], spoilt[main - 1]["bias"])
    state = load_content(tmp_path / "run/state.pt")["state"]["job"]
    assert state["average"]["steps"] == STEPS and state["best_weights"] is None


def test_without_a_finetuning_nothing_more_is_kept(corpus: Corpus, tmp_path: Path) -> None:
    train(config(CELL, "epochs=1"), corpus, tmp_path / "plain", device=CPU)
    assert load_content(tmp_path / "plain/state.pt")["state"]["job"]["best_weights"] is None
    lines = []
    for epochs, folder in (
        ("weights.finetune_epochs=0", "none"),
        ("weights.finetune_epochs=1", "1"),
    ):
        train(config(CELL, epochs), corpus, tmp_path / folder, device=CPU)
        kept = [x for x in metrics(tmp_path / folder) if x["kind"] == "epoch"]
        lines.append([(x["train_perplexity"], x["valid_perplexity"]) for x in kept])
    # The main epochs are the same with it and without.
    assert len(lines[0]) == 2 and len(lines[1]) == 3 and lines[1][:2] == lines[0]


def test_best_weights_are_the_averaged_ones(corpus: Corpus, tmp_path: Path) -> None:
    """Finetuning after a switch to averaging starts from what best.pt holds."""
    chosen = config(CELL, "epochs=4", "weights.finetune_epochs=1", "weights.lr=0.5",
                    "windows.limit=20")  # fmt: skip
    starts: list[tuple[bool, int]] = []
    begin = TrainJob._begin_finetuning

    def eigenvalue_stop(self: TrainJob) -> None:
        best = load_content(tmp_path / "run/best.pt")
        begin(self)
        own = dict(self.net.named_parameters())
        same = all(torch.equal(w, own[n]) for n, w in best["weights"].items())
        starts.append((same, best["metrics"]["epoch"]))
        # No state of the old weights goes on: neither a mean nor momentum.
        assert self.average is not None and self.average.steps == 0 and not self.optimizer.state
        score = evaluate(self.net, self.valid, {}, self.weights())
        assert score.perplexity == pytest.approx(best["metrics"]["valid_perplexity"], rel=1e-9)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainJob, "_begin_finetuning", eigenvalue_stop)
        patch.setattr(
            "rnnnas.training.run.averaging_starts", lambda past, loss, wait: len(past) == 1
        )
        train(chosen, corpus, tmp_path / "run", device=CPU)
    switched = [x["averaged"] for x in metrics(tmp_path / "run") if x["kind"] == "epoch"]
    assert switched[3] == 1.0
    assert starts == [(True, 4)], "the case must be one in which averaging pays"


def test_the_schedule_spans_the_main_epochs(corpus: Corpus) -> None:
    chosen = config(CELL, "epochs=4", "weights.finetune_epochs=2", "weights.schedule=cosine")
    job = TrainJob(chosen, corpus, CPU)
    for epoch in range(6):
        at = Position(epoch=epoch, window=3, step=0, progress=(epoch + 3 / 5) / 6)
        wanted = scheduled(chosen.weights, (epoch + 3 / 5) / 4) if epoch < 4 else chosen.weights.lr
        assert math.isclose(job._learning_rate(at), wanted, rel_tol=1e-9, abs_tol=1e-9)
