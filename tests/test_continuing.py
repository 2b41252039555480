"""A way on: a finished training is extended, and another one starts from its weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from tiny_home import corpus, home  # noqa: F401  (fixtures)

from rnnnas.cli import main
from rnnnas.cli.runs import _check_length
from rnnnas.config.presets import resolve
from rnnnas.data.corpus import Corpus, VocabOptions, add_corpus
from rnnnas.errors import DataError, UsageError
from rnnnas.runs.checkpoint import load_content
from rnnnas.training.in_memory import _Memory
from rnnnas.training.run import TrainJob, train
from rnnnas.training.start import read_start

CPU = torch.device("cpu")
TRAIN = ["model.hidden=8", "windows.streams=6", "valid_streams=4", "test_streams=4"]


def train_config(*settings: str, **flags: Any) -> Any:
    flags = {"corpus": "tiny", "seed": 3, "genotype": "GRU", **flags}
    return resolve("train", preset="smoke", file=None, settings=[*TRAIN, *settings], flags=flags)


def run(config: Any, corpus: Corpus, folder: Path, **more: Any) -> dict[str, Any]:  # noqa: F811
    return train(config, corpus, folder, device=CPU, quiet=True, **more)


def lines(folder: Path) -> list[Mapping[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_more_epochs_extend_a_finished_run_exactly(
    corpus: Corpus,  # noqa: F811
    tmp_path: Path,
) -> None:
    """At a constant step size the extended run is, bit by bit, the longer one."""
    whole = run(train_config("epochs=4"), corpus, tmp_path / "whole")
    first = run(train_config("epochs=2"), corpus, tmp_path / "run")
    assert first["run"] == str(tmp_path / "run")
    again = run(train_config("epochs=4"), corpus, tmp_path / "run")
    assert again["valid_perplexity"] == whole["valid_perplexity"]
    states = [load_content(tmp_path / name / "state.pt")["state"]["job"] for name in ("run",
              "whole")]  # fmt: skip
    for name, weight in states[0]["weights"].items():
        assert torch.equal(weight, states[1]["weights"][name])
    epochs = [line["epoch"] for line in lines(tmp_path / "run") if line["kind"] == "epoch"]
    assert epochs == [1, 2, 3, 4]
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["config"]["epochs"] == 4
    # Finished once more: the same command reports, and does nothing.
    assert run(train_config("epochs=4"), corpus, tmp_path / "run")["digest"] == again["digest"]


def test_an_extended_schedule_is_that_of_the_longer_run(
    corpus: Corpus,  # noqa: F811
    tmp_path: Path,
) -> None:
    settings = ["weights.schedule=linear", "weights.nonmono=0"]
    run(train_config("epochs=2", *settings), corpus, tmp_path / "run")
    run(train_config("epochs=4", *settings), corpus, tmp_path / "run")
    run(train_config("epochs=4", *settings), corpus, tmp_path / "whole")
    for name in ("run", "whole"):
        logged = [line for line in lines(tmp_path / name) if line["kind"] == "train"]
        half = len(logged) // 2
        rates = [line["lr"] for line in logged[half:]]
        if name == "run":
            extended = rates
    assert extended == rates and max(rates) < 20.0 * 0.51 * 1.4


def test_fewer_epochs_are_refused(corpus: Corpus, tmp_path: Path) -> None:  # noqa: F811
    run(train_config("epochs=2"), corpus, tmp_path / "run")
    with pytest.raises(UsageError, match="not cut") as error:
        run(train_config("epochs=1"), corpus, tmp_path / "run")
    assert "--from" in error.value.remedy
    with pytest.raises(UsageError, match="not cut"):
        run(train_config("windows.limit=20", seconds=60.0), corpus, tmp_path / "run")
    assert (tmp_path / "run" / "result.json").exists()


def test_a_training_starts_from_a_checkpoint(
    corpus: Corpus,  # noqa: F811
    tmp_path: Path,
) -> None:
    first = run(train_config("epochs=2"), corpus, tmp_path / "first")
    content = load_content(tmp_path / "first" / "best.pt")
    # A step size that moves nothing: what is reported are the weights it began with.
    config = train_config("epochs=1", "weights.lr=1e-30")
    still = run(config, corpus, tmp_path / "still", start=tmp_path / "first")
    assert still["valid_perplexity"] == pytest.approx(first["valid_perplexity"], rel=1e-9)
    kept = load_content(tmp_path / "still" / "best.pt")
    for name, weight in kept["weights"].items():
        assert torch.equal(weight, content["weights"][name])
    assert kept["config"]["start"] == first["digest"]
    # With a step size that does, it goes on learning, and is another run than one from scratch.
    on = run(train_config("epochs=3"), corpus, tmp_path / "on", start=tmp_path / "first/best.pt")
    assert on["valid_perplexity"] <= first["valid_perplexity"]
    with pytest.raises(UsageError, match="start is"):
        run(train_config("epochs=3"), corpus, tmp_path / "on")


def test_finetuning_begins_at_the_start_where_nothing_was_better(
    corpus: Corpus,  # noqa: F811
    tmp_path: Path,
) -> None:
    run(train_config("epochs=1"), corpus, tmp_path / "first")
    begins = read_start(tmp_path / "first")
    config = train_config("epochs=1", "weights.finetune_epochs=1")
    config = dataclasses.replace(config, start=begins.digest)
    job = TrainJob(config, corpus, CPU, start=begins)
    memory: Any = _Memory()
    job.keep_start(memory)
    with torch.no_grad():
        for weight in job.net.parameters():
            weight += 1.0  # worse, as after a step that is too long
    job._begin_finetuning()
    for name, weight in job.net.named_parameters():
        assert torch.equal(weight, begins.weights[name])


def test_a_start_that_is_only_named_is_refused(corpus: Corpus, tmp_path: Path) -> None:  # noqa: F811
    config = dataclasses.replace(train_config("epochs=1"), start="d1" * 32)
    with pytest.raises(UsageError, match="goes on from") as error:
        run(config, corpus, tmp_path / "run")
    assert "--from" in error.value.remedy and not (tmp_path / "run").exists()


def test_a_start_resumes_exactly(
    corpus: Corpus,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rnnnas.training.run import TrainJob

    class Crash(Exception):
        pass

    run(train_config("epochs=1"), corpus, tmp_path / "first")
    config = train_config("epochs=2", "save_seconds=0")
    whole = run(config, corpus, tmp_path / "whole", start=tmp_path / "first")
    step, left = TrainJob.step, [0, 3, 21]

    def dying(self: TrainJob, at: Any, *args: Any) -> Any:
        if left and at.step == left[0]:
            left.pop(0)
            raise Crash
        return step(self, at, *args)

    monkeypatch.setattr(TrainJob, "step", dying)
    for _ in range(3):
        with pytest.raises(Crash):
            run(config, corpus, tmp_path / "cut", start=tmp_path / "first")
    assert (
        run(config, corpus, tmp_path / "cut", start=tmp_path / "first")["digest"]
        == (whole["digest"])
    )


@pytest.fixture
def other(corpus: Corpus, home: Path) -> Corpus:  # noqa: F811
    """Another text in the words of the first."""
    words = [word for word in corpus.vocab.words if not word.startswith("<")]
    text = "\n".join(" ".join(words[k % 7 :: 5]) for k in range(400)) + "\n"
    (home / "other.txt").write_text(text, encoding="utf-8")
    found = add_corpus("other", home / "other.txt", VocabOptions(like=corpus.name))
    assert isinstance(found, Corpus)
    return found


def test_a_start_goes_over_to_another_text_of_the_same_vocabulary(
    corpus: Corpus,  # noqa: F811
    other: Corpus,
    tmp_path: Path,
) -> None:
    run(train_config("epochs=1"), corpus, tmp_path / "first")
    config = train_config("epochs=2", corpus="other")
    tuned = run(config, other, tmp_path / "tuned", start=tmp_path / "first")
    kept = load_content(tmp_path / "tuned" / "best.pt")
    assert kept["corpus"]["name"] == "other" and kept["metrics"]["epoch"] >= 1
    assert tuned["test_perplexity"] < 50


def test_a_start_that_does_not_fit_is_refused(
    corpus: Corpus,  # noqa: F811
    home: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    run(train_config("epochs=1"), corpus, tmp_path / "first")
    text = "\n".join(f"other words {k % 9} in lines {k % 5}" for k in range(400)) + "\n"
    (home / "strange.txt").write_text(text, encoding="utf-8")
    strange = add_corpus("strange", home / "strange.txt", VocabOptions())
    assert isinstance(strange, Corpus)
    with pytest.raises(DataError, match="another vocabulary"):
        run(train_config(corpus="strange"), strange, tmp_path / "a", start=tmp_path / "first")
    with pytest.raises(UsageError, match=r"model\.hidden is 8 there and 9 here"):
        run(train_config("model.hidden=9"), corpus, tmp_path / "b", start=tmp_path / "first")
    with pytest.raises(UsageError, match="another network"):
        run(train_config(genotype="LSTM"), corpus, tmp_path / "c", start=tmp_path / "first")
    assert not any((tmp_path / name).exists() for name in "abc")


def test_the_command_takes_cell_settings_and_corpus_from_the_start(
    home: Path,  # noqa: F811
) -> None:
    def ran(*words: str) -> dict[str, Any]:
        result = CliRunner().invoke(main, ["train", *words, "--json"])
        assert result.exit_code == 0, result.output
        value: dict[str, Any] = json.loads(result.stdout)
        return value

    sets = [word for setting in TRAIN for word in ("--set", setting)]
    first = ran(
        "--corpus", "tiny", "--preset", "smoke", "--genotype", "GRU", "--epochs", "1", *sets
    )
    more = ran("--from", first["run"], "--epochs", "2")
    assert more["run"].endswith("train-tiny-from-train-tiny-GRU-s1-s1")
    config = json.loads((Path(more["run"]) / "config.json").read_text())["config"]
    assert (config["cell"], config["model"]["hidden"], config["epochs"]) == ("gru", 8, 2)
    assert more["valid_perplexity"] <= first["valid_perplexity"]
    refused = CliRunner().invoke(main, ["train", "--corpus", "tiny"])
    assert refused.exit_code == 2 and "--from" in refused.stderr


def test_a_start_that_had_a_budget_does_not_say_how_long(
    home: Path,  # noqa: F811
    corpus: Corpus,  # noqa: F811
    tmp_path: Path,
) -> None:
    from rnnnas.runs.checkpoint import load_content, save_content
    from rnnnas.training.start import read_start

    run(train_config("epochs=1"), corpus, tmp_path / "first")
    best = tmp_path / "first" / "best.pt"
    content = load_content(best)
    content["config"]["weights"]["finetune_epochs"] = 2  # a part of its length
    save_content(best, content)
    assert "finetune_epochs" not in read_start(best).settings()["weights"]
    content["config"]["weights"]["finetune_epochs"] = 0
    content["config"]["seconds"] = 60.0
    save_content(best, content)
    words = ["train", "--from", str(best), "--out", str(tmp_path / "more"), "--print-config"]
    told = CliRunner().invoke(main, words)
    assert told.exit_code == 2 and "--minutes or --epochs" in told.output
    told = CliRunner().invoke(main, [*words, "--epochs", "1", "--json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["epochs"] == 1


def test_more_time_extends_a_run_that_had_a_budget(
    corpus: Corpus,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rnnnas.engine.budget import Costs, Stopwatch, read_plan
    from rnnnas.training import run as training
    from rnnnas.training.run import TrainJob

    now, step = [0.0], TrainJob.step

    def slow(self: TrainJob, *args: Any) -> Any:
        now[0] += 0.1
        return step(self, *args)

    monkeypatch.setattr(TrainJob, "step", slow)
    costs = Costs(step=0.1, validation=0.01, end=0.1)
    monkeypatch.setattr(training, "training_costs", lambda *_: costs)

    def timed(seconds: float) -> dict[str, Any]:
        watch = Stopwatch(clock=lambda: now[0])
        return run(train_config(seconds=seconds), corpus, tmp_path / "run", stopwatch=watch)

    first, half = timed(5.0), now[0]
    assert 4.0 < half <= 5.0 and first["steps"] == pytest.approx(10 * half, abs=1)
    on = timed(10.0)
    assert 9.0 < now[0] <= 10.2 and on["steps"] == pytest.approx(10 * now[0], abs=1)
    plan = read_plan(tmp_path / "run")
    assert plan is not None and (plan.first, plan.seconds) == (5.0, 10.0)
    assert timed(10.0)["digest"] == on["digest"] and now[0] <= 10.2  # done: nothing more is run


@pytest.mark.parametrize("said", ["minutes=2", "epochs=3", "--set epochs=3", "--set seconds=600"])
def test_a_training_that_goes_on_from_a_budget_is_told_its_length(said: str) -> None:
    nothing: dict[str, Any] = dict.fromkeys(("minutes", "seconds", "epochs", "preset", "file"))
    nothing["settings"] = ()
    with pytest.raises(UsageError, match="how long is this one to be"):
        _check_length(nothing, 60.0, Path("there"))
    with pytest.raises(UsageError):
        _check_length(nothing | {"settings": ("epochs_of=3",)}, 60.0, Path("there"))
    if said.startswith("--set"):
        own = nothing | {"settings": (said.partition(" ")[2],)}
    else:
        own = nothing | {said.partition("=")[0]: 2}
    _check_length(own, 60.0, Path("there"))
    _check_length(nothing, 0.0, Path("there"))
