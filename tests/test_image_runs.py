"""Whole runs on images: searched by several methods, trained, resumed wherever they stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from squares import CPU, SMALL, search_config, squares, train_config
from test_board import read
from test_runs import crashing, metrics, run_through

from rnnnas.cli import main
from rnnnas.cnn.space import OPERATIONS
from rnnnas.config.presets import resolve
from rnnnas.data.image_corpus import ImageCorpus
from rnnnas.engine.job import Position
from rnnnas.engine.steps import weights_of
from rnnnas.errors import UsageError
from rnnnas.evaluation.run import evaluate_checkpoint
from rnnnas.nas.genotype import Genotype
from rnnnas.optim import Average
from rnnnas.runs.checkpoint import load_content
from rnnnas.searching.run import SearchJob, search
from rnnnas.training.run import TrainJob, train

__all__ = ["squares"]  # a fixture

FLAGS = {"corpus": "squares"}

# What each method needs besides: PC-DARTS mixes half of the channels, P-DARTS drops at identities.
METHODS: dict[str, list[str]] = {
    "darts-1st": ["alphas.held_out=0.25"],
    "darts": ["alphas.second_order=exact", "batches.size=8", "model.nodes=1"],
    "gdas": [],
    "pc-darts": ["model.partial=2"],
    "proxyless": ["alphas.betas=[0.0, 0.999]", "alphas.weight_decay=0.0"],
    "p-darts": [
        "model.nodes=1",
        "stages.ops=[8, 3]",
        "stages.layers=[2, 3]",
        "stages.skip_dropout=[0.3, 0.5]",
    ],
    "snas": [],
}


@pytest.mark.parametrize(
    "method",
    [m if m in ("darts", "p-darts") else pytest.param(m, marks=pytest.mark.slow) for m in METHODS],
)
def test_a_search_resumes_exactly(
    method: str, squares: ImageCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = search_config(*METHODS[method], "save_seconds=0", method=method)
    whole = search(config, squares, tmp_path / "whole", device=CPU, quiet=True)
    assert set(whole) == {
        "run", "genotype", "cell", "seconds", "valid_accuracy", "arithmetic", "digest",
    }  # fmt: skip
    with monkeypatch.context() as patch:
        crashing(patch, SearchJob, [1, 3])
        result, crashes = run_through(search, config, squares, tmp_path / "cut")
    assert crashes == 2
    for key in ("digest", "valid_accuracy", "cell"):
        assert result[key] == whole[key]
    assert set(Genotype.from_plain(result["genotype"]).cells) == {"normal", "reduce"}
    lines = metrics(tmp_path / "cut")
    assert [x["epoch"] for x in lines if x["kind"] == "epoch"] == [1, 2]
    assert 0 <= result["valid_accuracy"] <= 100
    assert len({(x["kind"], x["step"]) for x in lines}) == len(lines)


def test_a_search_derives_within_its_limits(squares: ImageCorpus) -> None:
    """As preset cifar10-p-darts does: two skips in the normal cell, any number in the other."""
    preset = resolve("image-search", preset="cifar10-p-darts", file=None, settings=(), flags=FLAGS)
    limits = {"normal": {"skip_connect": 2}}
    assert preset.derive.limits == limits
    skips = []
    for settings in ([], ["derive.limits.normal.skip_connect=2"]):
        config = search_config(*settings, "model.nodes=3", method="darts-1st")
        assert config.derive.limits == (limits if settings else {})
        job = SearchJob(config, squares, CPU)
        with torch.no_grad():
            for alpha in job.alphas.values():
                alpha[:, OPERATIONS.index("skip_connect")] += 1
        cells = job.genotype().cells
        skips.append(
            {n: sum(g.op == "skip_connect" for node in c.nodes for g in node)
             for n, c in cells.items()}
        )  # fmt: skip
    assert skips == [{"normal": 6, "reduce": 6}, {"normal": 2, "reduce": 6}]


def test_a_search_of_another_seed_or_resumed_from_nothing_differs(
    squares: ImageCorpus, tmp_path: Path
) -> None:
    """So that equal digests mean something."""
    seen = set()
    for name, settings in (("a", []), ("b", ["weights.lr=0.02"]), ("c", ["augment.flip=false"]),
                           ("d", ["alphas.lr=0.04"])):  # fmt: skip
        config = search_config(*settings, "epochs=1", "model.nodes=1")
        result = search(config, squares, tmp_path / name, device=CPU, quiet=True)
        seen.add(result["digest"])
    assert len(seen) == 4


def test_an_auxiliary_classifier_that_sees_too_little_is_refused_at_once(
    squares: ImageCorpus, tmp_path: Path
) -> None:
    """Before there is a folder, and with a size that is enough: 8 pixels become 2."""
    words = ("model.auxiliary=true", "model.layers=3", "batches.limit=1", "epochs=1")
    assert squares.size is not None
    for stem, size, least in (("cifar", 4, 5), ("imagenet", 32, 33)):
        config = train_config(*words, f"model.stem={stem}", f"augment.size={size}")
        with pytest.raises(UsageError, match="less than 2 x 2") as error:
            train(config, squares, tmp_path / stem, device=CPU, quiet=True)
        assert f"{least} x {least}" in error.value.remedy and not (tmp_path / stem).exists()
        enough = train_config(*words, f"model.stem={stem}", f"augment.size={least}")
        TrainJob(enough, squares, CPU).step(Position(), 1, 1.0)


def test_settings_that_others_replace_are_known_to_be_idle() -> None:
    flags = {"corpus": "cifar10"}
    p_darts = resolve("image-search", preset="cifar10-p-darts", file=None, settings=(), flags=flags)
    assert {"model.layers", "model.skip_dropout"} <= p_darts.idle
    resized = resolve("image-train", preset="imagenet", file=None, settings=(),
                      flags={**flags, "genotype": "DARTS_V2"})  # fmt: skip
    assert "augment.crop_padding" in resized.idle
    text = resolve("search", preset="quick-p-darts", file=None, settings=(), flags={"corpus": "p"})
    assert "noise.dropouth" not in text.idle
    # Stages replace it; a race behind them does not.
    assert "model.hidden" not in text.idle
    alone = resolve("search", preset="quick-p-darts", file=None, settings=["select.by=alphas"],
                    flags={"corpus": "p"})  # fmt: skip
    assert "model.hidden" in alone.idle


def test_a_training_learns_the_colours_and_says_so(squares: ImageCorpus, tmp_path: Path) -> None:
    config = train_config("epochs=8", "batches.limit=0")
    result = train(config, squares, tmp_path / "run", device=CPU, quiet=True)
    assert set(result) == {
        "run", "checkpoint", "parameters", "seconds", "valid_accuracy", "test_accuracy", "digest",
        "arithmetic",
    }  # fmt: skip
    assert result["test_accuracy"] > 90
    best = Path(result["checkpoint"])
    test = evaluate_checkpoint(best, "test", device=CPU)
    assert test == evaluate_checkpoint(best, "test", corpus=squares, device=CPU)
    assert test["accuracy"] == result["test_accuracy"] and test["digest"] == result["digest"]
    assert (test["images"], test["split"]) == (60, "test")
    assert test["accuracy"] <= test["top5"] <= 100  # six classes
    valid = evaluate_checkpoint(best, "valid", device=CPU)
    assert valid["accuracy"] == result["valid_accuracy"] and valid["images"] < 60
    lines = metrics(tmp_path / "run")
    epochs = [x for x in lines if x["kind"] == "epoch"]
    assert max(x["valid_accuracy"] for x in epochs) == result["valid_accuracy"]
    assert epochs[-1]["train_accuracy"] > 80 > epochs[0]["train_accuracy"]
    assert {"accuracy", "loss", "lr", "gradient_norm", "images_per_second"} <= set(lines[0])
    assert not any("perplexity" in key for line in lines for key in line)
    tags = read(tmp_path / "run").Tags()
    assert {"accuracy/valid", "accuracy/train", "accuracy/train_running"} <= set(tags["scalars"])
    assert "views/cell" in tags["images"]


SMALL_PAIR = {
    "normal": {"nodes": [[["sep_conv_3x3", 0], ["skip_connect", 1]]], "concat": [2]},
    "reduce": {"nodes": [[["max_pool_3x3", 0], ["dil_conv_3x3", 1]]], "concat": [2]},
}


@pytest.mark.parametrize("averaged", [False, True])
def test_a_training_resumes_exactly_with_its_running_statistics(
    averaged: bool, squares: ImageCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["weights.finetune_epochs=1"] if averaged else ["model.auxiliary=true"]
    config = train_config("save_seconds=0", "model.drop_path=0.2", *more, genotype=SMALL_PAIR)
    whole = train(config, squares, tmp_path / "whole", device=CPU, quiet=True)
    crashing(monkeypatch, TrainJob, [1, 3, 5])
    result, crashes = run_through(train, config, squares, tmp_path / "cut")
    assert crashes == 3
    assert result["digest"] == whole["digest"] and result["test_accuracy"] == whole["test_accuracy"]
    assert (tmp_path / "cut/best.pt").read_bytes() == (tmp_path / "whole/best.pt").read_bytes()
    kept = load_content(tmp_path / "whole/state.pt")["state"]["job"]["weights"]
    stored = load_content(tmp_path / "whole/best.pt")["weights"]
    assert set(stored) == set(kept) and "stem.norm.variance" in kept
    assert not torch.equal(kept["stem.norm.mean"], torch.zeros(12))


def test_statistics_of_averaged_weights_are_their_own(squares: ImageCorpus, tmp_path: Path) -> None:
    """Against the formula: the running mean of what the stem gives under the averaged weights."""
    job = TrainJob(train_config("weights.finetune_epochs=1"), squares, CPU)
    net: Any = job.net
    with torch.no_grad():
        other = {n: p + 0.3 * torch.randn_like(p) for n, p in net.named_parameters()}
        own = {n: b.clone() for n, b in net.named_buffers()}
        found = job.task.statistics(net, other)
        mean, weight = torch.zeros(12), 0.0
        for k in range(3):  # batches.limit
            batch = job.train.batch(k, 0, 3, job.config.augment, _generator_of_augmentation(3, k))
            out = torch.conv2d(batch.inputs, other["stem.conv.weight"], padding=1)
            mean = 0.9 * mean + 0.1 * out.mean((0, 2, 3))
            weight = 0.9 * weight + 0.1
    torch.testing.assert_close(found["stem.norm.mean"], mean / weight, rtol=1e-4, atol=1e-5)
    assert set(found) == set(own) and all(torch.equal(b, own[n]) for n, b in net.named_buffers())


def test_finetuning_takes_no_statistics_over(squares: ImageCorpus) -> None:
    """Its average is of as many steps, after an epoch, as one that began in the epoch before."""
    job = TrainJob(train_config("weights.finetune_epochs=1"), squares, CPU)
    job.average = Average(dict(job.net.named_parameters()))
    job.average.steps = 3
    job.weights()
    assert job._statistics[0] == 3
    job.best_weights = {n: w + 1.0 for n, w in weights_of(job.net).items()}
    job.begin_epoch(Position(epoch=job.config.epochs))
    assert job.average is not None
    for _ in range(3):
        job.average.update(dict(job.net.named_parameters()))
    fresh = job.task.statistics(job.net, job.average.weights)
    for name, value in fresh.items():
        torch.testing.assert_close(job.weights()[name], value)


def _generator_of_augmentation(seed: int, step: int) -> torch.Generator:
    from rnnnas.engine.steps import generator

    return generator(seed, "augment", step, CPU)


def test_the_best_is_chosen_by_accuracy(
    squares: ImageCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by the loss, which may rise while more images are right."""
    from rnnnas.engine.metrics import Score
    from rnnnas.training import run as module

    scores = iter([Score(nats=10.0, tokens=10, correct=5, in_top5=9),
                   Score(nats=20.0, tokens=10, correct=6, in_top5=9),
                   Score(nats=9.0, tokens=10, correct=6, in_top5=10)])  # fmt: skip
    monkeypatch.setattr(module, "evaluate", lambda *args: next(scores))
    train(train_config("epochs=3"), squares, tmp_path / "run", device=CPU, quiet=True)
    metrics_of_best = load_content(tmp_path / "run/best.pt")["metrics"]
    assert metrics_of_best == {"epoch": 2, "step": 6, "valid_accuracy": 60.0}


# The command line


def run(*words: str, code: int = 0) -> Any:
    result = CliRunner().invoke(main, list(words))
    assert result.exit_code == code, (result.exit_code, result.output)
    assert "Traceback" not in result.output
    return result


def options(settings: list[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


QUICK = [*SMALL, "epochs=1", "batches.limit=2"]


def test_search_train_eval_show(squares: ImageCorpus, tmp_path: Path) -> None:
    words = ["search", "--corpus", "squares", *options([*QUICK, "model.nodes=2"])]
    folder = str(tmp_path / "s")
    dry = json.loads(run(*words, "--dry-run", "--json").stdout)
    assert dry["steps_per_epoch"] == 2 and dry["config"]["corpus"] == "squares"
    assert not (tmp_path / "s").exists()
    plain = run(*words, "--out", folder)
    assert "validation accuracy" in plain.stdout and "normal" in plain.stdout
    assert f"rnnnas train --corpus squares --genotype {folder}" in plain.stderr
    found = json.loads(run(*words, "--out", folder, "--json").stdout)
    shown = run("show", folder).stdout
    assert "normal" in shown and "reduce" in shown
    assert run("show", folder, "--format", "svg").stdout.startswith("<svg")
    trained = run("train", "--corpus", "squares", "--genotype", folder, *options(QUICK), "--json")
    result = json.loads(trained.stdout)
    config = json.loads((Path(result["run"]) / "config.json").read_text())["config"]
    assert config["genotype"] == found["genotype"]
    dry = json.loads(
        run("train", "--corpus", "squares", "--genotype", "random", "--dry-run", "--json").stdout
    )
    # 144 images for training, a tenth of them held out, 64 a batch.
    assert dry["steps_per_epoch"] == 3 and dry["parameters"] > 10_000
    evaluated = json.loads(run("eval", "--checkpoint", result["run"], "--json").stdout)
    assert {"split", "accuracy", "nats", "images", "top5"} <= set(evaluated)
    assert evaluated["accuracy"] == result["test_accuracy"]
    text = run("eval", "--checkpoint", result["checkpoint"], "--split", "valid").stdout
    assert f"valid accuracy {result['valid_accuracy']:.2f} %" in text
    for words in (["eval", "--dynamic"], ["eval", "--cache"], ["eval", "--text", "x.txt"]):
        message = run(*words, "--checkpoint", result["run"], code=2).stderr
        assert "image network" in message
    assert "image network" in run("sample", "--checkpoint", result["run"], code=4).stderr
    assert "is a search" in run("eval", "--checkpoint", folder, code=4).stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search", "--corpus", "squares", "--preset", "ptb-darts"],
         "preset 'ptb-darts' is for text, and this corpus holds images"),
        (["search", "--corpus", "tiny", "--preset", "cifar10-quick"],
         "preset 'cifar10-quick' is for images, and this corpus holds text"),
        (["train", "--corpus", "squares", "--genotype", "DARTS_V2", "--preset", "quick"],
         "presets that fit: cifar10-darts"),
        (["search", "--corpus", "squares", "--set", "windows.streams=3"], "setting 'windows'"),
        (["search", "--corpus", "squares", "--method", "enas"], "which is for searches on text"),
        (["search", "--corpus", "squares", "--set", "model.drop_path=0.1"], "is for trainings"),
        (["search", "--corpus", "squares", "--set", "model.partial=3"], "must divide"),
        (["search", "--corpus", "squares", "--set", "derive.limits.norml.skip_connect=2"],
         "derive.limits.norml"),
        (["search", "--corpus", "squares", "--set", "derive.limits.normal=2"],
         "derive.limits.normal"),
        (["search", "--corpus", "squares", "--set", "derive.limits.normal.skip=2"],
         "operation 'skip'"),
        (["search", "--corpus", "squares", "--set", "derive.limits.normal.skip_connect=-1"],
         "whole number"),
        (["train", "--corpus", "squares", "--genotype", "LSTM"],
         "'LSTM' is a recurrent cell, and this corpus holds images"),
        (["train", "--corpus", "squares", "--genotype", "relu0"], "published pair of cells"),
        (["train", "--corpus", "tiny", "--genotype", "NASNet"],
         "'NASNet' is a pair of image cells, and this corpus holds text"),
        (["train", "--corpus", "tiny", "--genotype", "image:DARTS_V2"],
         "ones that fit: DARTS_V1, DARTS_V2, ENAS, ENAS_LM, GDAS"),
        (["train", "--corpus", "squares", "--genotype", "DARTS_V2", "--set", "model.partial=2"],
         "is for searches"),
        (["train", "--corpus", "squares", "--genotype", "DARTS_V2", "--set", "batches.size=1"],
         "batches.size = 1 must be at least 2"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    words: list[str], message: str, squares: ImageCorpus, tmp_path: Path
) -> None:
    result = run(*words, "--out", str(tmp_path / "out"), code=2)
    assert message in result.stderr and not (tmp_path / "out").exists()


def test_a_text_cell_of_a_run_is_refused_on_images(squares: ImageCorpus, tmp_path: Path) -> None:
    file = tmp_path / "cell.json"
    file.write_text(json.dumps({"recurrent": {"nodes": [[["tanh", 0]]], "concat": [1]}}))
    words = ["train", "--corpus", "squares", "--genotype", str(file)]
    assert "an image network needs" in run(*words, code=2).stderr
