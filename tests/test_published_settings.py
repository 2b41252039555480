"""Settings that follow the published code: who may set them, what they do, and what is older."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from squares import search_config as image_search_config
from squares import squares
from squares import train_config as image_train_config
from test_runs import CPU, corpus, home, search_config, train_config

from rnnnas.cli import main
from rnnnas.cnn.model import CnnConfig, ConvNet
from rnnnas.cnn.zoo import ZOO
from rnnnas.config.presets import preset_names, preset_tables, resolve
from rnnnas.data.corpus import Corpus, open_corpus
from rnnnas.data.image_corpus import ImageCorpus
from rnnnas.engine.job import Position
from rnnnas.errors import UsageError
from rnnnas.evaluation.dynamic import Dynamic
from rnnnas.evaluation.run import evaluate_checkpoint
from rnnnas.optim import AlphaConfig
from rnnnas.runs.checkpoint import load_content, save_content
from rnnnas.searching.run import search
from rnnnas.searching.selection import race_config
from rnnnas.searching.supernet import SearchJob
from rnnnas.training.run import TrainJob, train

__all__ = ["corpus", "home", "squares"]  # fixtures

# The look-ahead


def test_no_preset_and_no_default_takes_the_published_look_ahead() -> None:
    assert not AlphaConfig().published_lookahead
    for name in preset_names():
        assert "published_lookahead" not in repr(preset_tables(name))


def test_a_search_hands_the_rule_to_its_alpha_step(corpus: Corpus) -> None:
    """The look-ahead is that of the setting, at the step size of the window."""
    moved = {}
    for rule in ("false", "true"):
        job = SearchJob(search_config("method=darts", f"alphas.published_lookahead={rule}",
                                      "alphas.warmup=0", "model.precision=float32"),
                        corpus, CPU)  # fmt: skip
        seen: list[Any] = []
        original = job.architect.step  # type: ignore[union-attr]

        def spy(original: Any = original, seen: Any = seen, **given: Any) -> Any:
            seen.append(given["inner"])
            return original(**given)

        job.architect.step = spy  # type: ignore[method-assign, union-attr]
        job.begin_epoch(Position())
        job.step(Position(progress=0.5), 5, 0.5)
        (inner,) = seen
        assert inner.published == (frozenset({"embedding"}) if rule == "true" else None)
        assert inner.lr == pytest.approx(20.0 * 5 / 10 * 0.5)
        moved[rule] = job.alphas["recurrent"].detach().clone()
    assert not torch.equal(moved["false"], moved["true"])


def test_the_race_behind_such_a_search_can_be_made() -> None:
    """It looks ahead of nothing, and its cells learn on the same text as the search's."""
    config = search_config("method=darts", "alphas.published_lookahead=true", "select.by=race")
    race = race_config(config)
    assert not race.alphas.published_lookahead
    assert race.alphas.held_out == config.alphas.held_out


@pytest.mark.parametrize(
    "settings",
    [["method=darts-1st"], ["method=gdas"], ["method=random-ws"],
     ["method=darts", "alphas.second_order=exact", "model.path=eager"]],
)  # fmt: skip
def test_searches_that_do_not_look_ahead_refuse_the_rule(settings: list[str]) -> None:
    with pytest.raises(UsageError, match="published_lookahead"):
        search_config(*settings, "alphas.published_lookahead=true")


@pytest.mark.parametrize("method", ["darts", "darts-1st"])
def test_searches_on_images_refuse_the_rule(method: str) -> None:
    with pytest.raises(UsageError, match="search on text"):
        image_search_config(
            "alphas.published_lookahead=true", "alphas.second_order=finite", method=method
        )


def test_an_older_run_goes_on(corpus: Corpus, tmp_path: Path) -> None:
    """Its config.json lacks the setting; under the new rule it would be another search."""
    config = search_config("epochs=1", "method=darts")
    result = search(config, corpus, tmp_path / "run", device=CPU, quiet=True)
    path = tmp_path / "run/config.json"
    stored = json.loads(path.read_text())
    del stored["config"]["alphas"]["published_lookahead"], stored["sealed"]
    result_path = tmp_path / "run/result.json"
    told = json.loads(result_path.read_text())
    del told["sealed"]
    result_path.write_text(json.dumps(told))
    path.write_text(json.dumps(stored))
    assert search(config, corpus, tmp_path / "run", device=CPU)["digest"] == result["digest"]
    other = search_config("epochs=1", "method=darts", "alphas.published_lookahead=true")
    with pytest.raises(UsageError, match="published_lookahead is false there and true here"):
        search(other, corpus, tmp_path / "run", device=CPU)


# The auxiliary head for ImageNet


def head_of(**settings: Any) -> Any:
    cells = ZOO["DARTS_V2"].genotype
    config = CnnConfig(channels=4, layers=3, auxiliary=True, **settings)
    return ConvNet(config, cells, 5, generator=torch.Generator().manual_seed(0)).auxiliary


def test_the_preset_for_imagenet_has_the_published_head() -> None:
    """One batch normalisation, of 2 · 128 numbers; that for CIFAR has a second one of 2 · 768."""
    flags = {"corpus": "pictures", "genotype": "DARTS_V2"}
    heads = {}
    for preset in ("imagenet", "cifar10-darts"):
        model = resolve("image-train", preset=preset, file=None, settings=[], flags=flags).model
        assert model.auxiliary
        heads[preset] = model.auxiliary_norm
    assert heads == {"imagenet": False, "cifar10-darts": True}
    counts = [sum(p.numel() for p in head_of(auxiliary_norm=n).parameters()) for n in (True, False)]
    assert counts[0] - counts[1] == 2 * 768
    assert CnnConfig().auxiliary_norm


def test_the_head_without_its_last_normalisation() -> None:
    """ReLU, mean of 5x5 windows, 1x1, normalisation, ReLU, 2x2, ReLU, linear."""
    head = head_of(auxiliary_norm=False, stem="imagenet").double()
    x = torch.randn(3, 64, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = x[:, : head.narrow.weight.shape[1]]
    out = torch.nn.functional.avg_pool2d(x.relu(), 5, 2)
    out = torch.nn.functional.conv2d(out, head.narrow.weight)
    out = torch.nn.functional.batch_norm(
        out, None, None, head.first.weight, head.first.bias, training=True
    ).relu()
    out = torch.nn.functional.conv2d(out, head.join.weight).relu().flatten(1)
    expected = out @ head.classifier.weight.T + head.classifier.bias
    torch.testing.assert_close(head(x, True), expected)


def test_an_older_checkpoint_loads_with_its_second_normalisation(
    squares: ImageCorpus, tmp_path: Path
) -> None:
    job = TrainJob(image_train_config("model.auxiliary=true"), squares, CPU)
    content = job.checkpoint(Position(), 50.0)
    assert "auxiliary.second.weight" in content["weights"]
    del content["config"]["model"]["auxiliary_norm"]  # written before there was such a setting
    path = tmp_path / "best.pt"
    save_content(path, content)
    assert 0 <= evaluate_checkpoint(path, "valid", device=CPU)["accuracy"] <= 100
    newer = TrainJob(
        image_train_config("model.auxiliary=true", "model.auxiliary_norm=false"), squares, CPU
    )
    assert "auxiliary.second.weight" not in newer.checkpoint(Position(), 50.0)["weights"]


# Dynamic evaluation


@pytest.fixture(scope="module")
def best(home: Path) -> Path:
    corpus = open_corpus("tiny")
    result = train(train_config("epochs=1"), corpus, home / "run", device=CPU, quiet=True)
    return Path(result["checkpoint"])


def test_given_settings_of_dynamic_evaluation_are_not_chosen(
    best: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    original = Dynamic.__init__

    def noted(self: Any, net: Any, rms: Any, config: Any) -> None:
        made.append(config)
        original(self, net, rms, config)

    monkeypatch.setattr(Dynamic, "__init__", noted)
    given = {"lr": 2e-4, "decay": 0.02, "epsilon": 1e-3, "average": "matrices", "steps": 7}
    result = evaluate_checkpoint(best, device=CPU, dynamic=True, given=given, quiet=True)
    assert len(set(made)) == 1  # once on validation text, once on the text itself
    assert {key: result["dynamic"][key] for key in given} == given
    made.clear()
    evaluate_checkpoint(best, device=CPU, dynamic=True, given={"lr": 2e-4}, quiet=True)
    assert len({c.decay for c in made}) > 1 and {c.lr for c in made} == {2e-4}
    content = load_content(best)
    assert content["config"]["corpus"] == "tiny"


def test_the_average_of_the_decay_matters(best: Path) -> None:
    given = {"lr": 1e-3, "decay": 0.01, "epsilon": 1e-3}
    found = [
        evaluate_checkpoint(
            best, device=CPU, dynamic=True, given={**given, "average": average}, quiet=True
        )["nats"]
        for average in ("weights", "matrices")
    ]
    assert found[0] != found[1]


def run(*words: str) -> Any:
    return CliRunner().invoke(main, ["eval", *words])


def test_the_command_takes_settings_of_dynamic_evaluation(best: Path) -> None:
    sets = [
        f"dynamic.{text}" for text in ("lr=1e-4", "decay=0.02", "epsilon=1e-3", "average=matrices")
    ]
    words = ["--checkpoint", str(best), "--dynamic", *(w for s in sets for w in ("--set", s))]
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert "dynamic: lr 0.0001, decay 0.02" in result.stdout and "average matrices" in result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--set", "dynamic.lr=1"], "is for --dynamic"),
     (["--dynamic", "--set", "lr=1"], "no setting of --dynamic"),
     (["--dynamic", "--set", "dynamic.lr"], "no setting of --dynamic"),
     (["--dynamic", "--set", "dynamic.speed=1"], "there is no setting 'dynamic.speed'"),
     (["--dynamic", "--set", "dynamic.average=words"], "dynamic.average")],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(
    best: Path, words: list[str], message: str
) -> None:
    result = run("--checkpoint", str(best), *words)
    assert result.exit_code == UsageError.exit_code and message in result.output
