"""Whole runs on dense blocks: searched, priced, trained, shown, resumed wherever they stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from squares import CPU, squares, train_config
from test_image_runs import options, run
from test_runs import crashing, metrics, run_through

from rnnnas.cnn.dense.genotype import parts_of
from rnnnas.config.presets import resolve
from rnnnas.data.image_corpus import ImageCorpus
from rnnnas.nas.genotype import Genotype
from rnnnas.runs.checkpoint import load_content
from rnnnas.searching.run import SearchJob, search
from rnnnas.training.run import TrainJob, train

__all__ = ["squares"]  # a fixture

TINY = [
    "dense.stem=4", "dense.widths=[4, 6, 8]", "dense.scales=[1, 2, 2]", "dense.layers=1",
    "dense.reach=2", "dense.kernels=[3]", "dense.expansions=[1, 2]", "dense.end=8",
    "batches.size=16", "batches.evaluated=20", "batches.limit=3", "epochs=2", "valid_images=0",
    "alphas.lr=0.05",
]  # fmt: skip


def search_config(*settings: str, method: str = "densenas") -> Any:
    return resolve(
        "image-search", preset="cifar10-dense", file=None, settings=[*TINY, *settings],
        flags={"corpus": "squares", "seed": 3, "method": method},
    )  # fmt: skip


@pytest.fixture(scope="module")
def found(squares: ImageCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished search."""
    folder = tmp_path_factory.mktemp("found") / "run"
    search(search_config(), squares, folder, device=CPU, quiet=True)
    return folder


@pytest.fixture(scope="module")
def measured(squares: ImageCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of latencies that a search measured for itself."""
    folder = tmp_path_factory.mktemp("measured") / "run"
    config = search_config("latency.weight=1", "epochs=1", "batches.limit=1")
    search(config, squares, folder, device=CPU, quiet=True)
    return folder / "latency.json"


@pytest.mark.parametrize("priced", [False, True])
def test_a_search_resumes_exactly(
    priced: bool, squares: ImageCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    settings = ["save_seconds=0"]
    if priced:
        table = request.getfixturevalue("measured")
        settings += ["latency.weight=0.1", "latency.form=log", f"latency.table={table}"]
    config = search_config(*settings)
    whole = search(config, squares, tmp_path / "whole", device=CPU, quiet=True)
    keys = {"run", "genotype", "cell", "seconds", "valid_accuracy", "arithmetic", "digest"}
    assert set(whole) == keys | ({"latency_us"} if priced else set())
    crashing(monkeypatch, SearchJob, [1, 3, 5])  # before and after the alphas begin, at step 2
    result, crashes = run_through(search, config, squares, tmp_path / "cut")
    assert crashes == 3
    for key in ("digest", "valid_accuracy", "cell"):
        assert result[key] == whole[key]
    assert parts_of(Genotype.from_plain(result["genotype"]))[-2].number == 3
    last = [x for x in metrics(tmp_path / "cut") if x["kind"] == "epoch"][-1]
    assert ("expected_latency_us" in last) == priced and last["alpha_entropy"] > 0
    if priced:
        assert last["cell_latency_us"] == pytest.approx(result["latency_us"])


def test_alphas_and_routes_move_when_the_warm_up_is_over(
    squares: ImageCorpus, tmp_path: Path
) -> None:
    seen = {}
    for warmup in (0.33, 0.9):
        folder = tmp_path / str(warmup)
        settings = [f"alphas.warmup={warmup}", "alphas.weight_decay=0"]
        search(search_config(*settings), squares, folder, device=CPU, quiet=True)
        seen[warmup] = load_content(folder / "state.pt")["state"]["job"]["alphas"]
    for name in ("layers", "routes"):
        assert float(seen[0.9][name].abs().max()) < 0.01  # as they began
        assert float(seen[0.33][name].abs().max()) > 0.03


def test_a_price_finds_faster_networks(
    measured: Path, squares: ImageCorpus, tmp_path: Path
) -> None:
    """By a table in which every layer takes the same time: all is skipped, and few blocks stay."""
    settings = ["alphas.lr=0.3", "alphas.warmup=0", "epochs=6"]
    table = json.loads(measured.read_text())
    del table["sealed"]
    table["seconds"] = dict.fromkeys(table["seconds"], 1e-3)
    path = tmp_path / "same.json"
    path.write_text(json.dumps(table), encoding="utf-8")
    config = search_config(*settings, "latency.weight=100", f"latency.table={path}")
    result = search(config, squares, tmp_path / "fast", device=CPU, quiet=True)
    # Stem, end, and a head each of two blocks: from 0 over 1 or 2 to 3.
    assert result["latency_us"] == pytest.approx(4000.0)
    kept = json.loads((tmp_path / "fast/latency.json").read_text())
    assert kept.pop("sealed") and kept == table
    line = "predicted 4.00 ms a batch (cpu, 16 images of 16 x 16, forward)"
    assert line in run("show", str(tmp_path / "fast")).stdout
    shown = run("show", str(tmp_path / "fast"), "--latency", str(measured))
    assert "predicted" in shown.stdout and line not in shown.stdout


@pytest.mark.parametrize("method", ["darts", "gdas", "proxyless", "pc-darts", "snas"])
def test_other_methods_search_it(method: str, squares: ImageCorpus, tmp_path: Path) -> None:
    config = search_config("epochs=1", "alphas.warmup=0", method=method)
    result = search(config, squares, tmp_path / "run", device=CPU, quiet=True)
    assert parts_of(Genotype.from_plain(result["genotype"]))


def test_a_training_resumes_exactly(
    found: Path, squares: ImageCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = train_config("save_seconds=0", "weights.finetune_epochs=1", genotype=str(found))
    whole = train(config, squares, tmp_path / "whole", device=CPU, quiet=True)
    crashing(monkeypatch, TrainJob, [1, 4, 7])
    result, crashes = run_through(train, config, squares, tmp_path / "cut")
    assert crashes == 3 and result["digest"] == whole["digest"]
    assert (tmp_path / "cut/best.pt").read_bytes() == (tmp_path / "whole/best.pt").read_bytes()
    weights = load_content(tmp_path / "whole/best.pt")["weights"]
    assert "stem.norm.mean" in weights and float(weights["layers.0.first.mean"].abs().max()) > 0


def test_a_found_network_learns_the_colours(
    found: Path, squares: ImageCorpus, tmp_path: Path
) -> None:
    config = train_config("epochs=12", "batches.limit=0", "weights.lr=0.1", genotype=str(found))
    result = train(config, squares, tmp_path / "run", device=CPU, quiet=True)
    assert result["test_accuracy"] > 80


def test_search_train_eval_show(squares: ImageCorpus, tmp_path: Path) -> None:
    words = ["--corpus", "squares", "--preset", "cifar10-dense"]
    out = str(tmp_path / "s")
    dry = json.loads(run("search", *words, *options(TINY), "--dry-run", "--json").stdout)
    assert dry["steps_per_epoch"] == 3 and dry["config"]["space"] == "dense"
    plain = run("search", *words, *options(TINY), "--out", out)
    assert "dense network: " in plain.stdout and "validation accuracy" in plain.stdout
    shown = run("show", out).stdout
    assert "  end         8" in shown and "mbconv_3x3_e" in shown
    assert run("show", out, "--format", "svg").stdout.startswith("<svg")
    assert "recurrent" in run("show", out, "--measure", code=2).stderr
    assert "predicted" not in shown
    quick = options(["epochs=1", "batches.limit=2", "batches.size=16"])
    trained = run("train", *words, "--genotype", out, *quick, "--json",
                  "--out", str(tmp_path / "t"))  # fmt: skip
    result = json.loads(trained.stdout)
    assert result["parameters"] > 100
    evaluated = json.loads(run("eval", "--checkpoint", result["run"], "--json").stdout)
    assert evaluated["accuracy"] == result["test_accuracy"]
    assert run("show", result["run"]).stdout.splitlines()[2:] == shown.splitlines()[2:]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "p-darts"], "stages prune cells"),
        (["--set", "stages.ops=[5, 3]"], "stages prune cells"),
        (["--set", "stages.skip_dropout=[0.1]"], "stages prune cells"),
        (["--set", "stages.layers=[3]"], "stages prune cells"),
        (["--method", "proxyless-reinforce"], "draws cells, and dense blocks make none"),
        (["--set", "model.partial=2"], "no place in a network of dense blocks"),
        (["--set", "dense.reach=0"], "dense.reach = 0 must be at least 1"),
        (["--set", "latency.weight=1", "--set", "latency.table=nowhere.json"], "nowhere.json"),
    ],
)
def test_what_does_not_fit_is_refused(
    words: list[str], message: str, squares: ImageCorpus, tmp_path: Path
) -> None:
    command = ["search", "--corpus", "squares", "--preset", "cifar10-dense", *words]
    code = 4 if "nowhere.json" in message else 2
    assert message in run(*command, "--out", str(tmp_path / "o"), code=code).stderr
    assert not (tmp_path / "o").exists()


def test_settings_without_effect_are_told(squares: ImageCorpus) -> None:
    command = ["search", "--corpus", "squares", "--preset", "cifar10-dense", "--print-config"]
    told = run(*command, "--set", "model.channels=8", "--set", "latency.form=log").stderr
    assert "model.channels has no effect" in told and "latency.form has no effect" in told
    told = run(*command, "--set", "space=cells", "--set", "dense.end=9").stderr
    assert "dense.end has no effect" in told
