"""A study on images: errors in place of perplexities, from the plan to the tables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sample_images import class_folders
from test_study import Fake

from rnnnas.cli import main
from rnnnas.data.corpus import VocabOptions, add_corpus
from rnnnas.errors import UsageError
from rnnnas.reporting.read import read_study
from rnnnas.reporting.study_section import study_section
from rnnnas.studies.execute import Execution
from rnnnas.studies.finished import study_text
from rnnnas.studies.listing import list_runs
from rnnnas.studies.measure import loss_of, measure_of
from rnnnas.studies.plan import Sizes, StudyConfig, resolve_study, search_config, train_config
from rnnnas.studies.record import Record

SIZES = Sizes({"train": range(1000)})


def plan(*settings: str) -> StudyConfig:
    sets = ['methods=["gdas"]', *settings]
    return resolve_study(preset="study-images", settings=sets, flags={"corpus": "pics"})


def test_errors_are_what_is_left_of_accuracies() -> None:
    assert loss_of({"valid_accuracy": 70.0, "test_accuracy": 60.5}, "test") == 39.5
    assert loss_of({"valid_perplexity": 12}, "valid") == 12.0
    assert loss_of({}, "valid") is None and loss_of({"test_perplexity": None}, "test") is None
    assert measure_of([{"valid_accuracy": 3.0}]) == "error" and measure_of([{}]) == "perplexity"


def test_steps_are_batches() -> None:
    config = plan("search.epochs=3", "short.batches.size=64", "short.batches.limit=5")
    # Half of 1,000 images, 32 a batch, at most 100 batches.
    assert SIZES.steps(search_config(config, "gdas")) == 3 * 16
    short = train_config(config, "short")
    assert SIZES.steps(short) == 5 and SIZES.tokens(short) == 5 * 64
    assert SIZES.steps(train_config(config, "final")) == 3 * 16


def test_the_cell_of_the_least_error_is_chosen(tmp_path: Path) -> None:
    accuracy = {"train-gdas-s1": 40.0, "train-gdas-s2": 55.0, "train-random-r1": 50.0,
                "train-random-r2": 45.0, "final-gdas-s2-t1": 66.0}  # fmt: skip

    def give(name: str) -> Any:
        value = accuracy.get(name, 30.0)
        result = {"valid_accuracy": value, "seconds": 5.0, "cell": "{}"}
        return result if name.startswith("search") else {**result, "test_accuracy": value - 1}

    record = Record.open(tmp_path, plan(), "sha")
    said: list[str] = []
    runner = Fake(tmp_path, give)
    result = Execution(record, SIZES, runner, set(), (), said.append).run()
    own = result["methods"]["gdas"]
    assert result["measure"] == "error" and own["chosen"]["seed"] == 2
    assert own["best_valid"] == 45.0 and own["random_best_of_n"] == 50.0
    assert own["test"]["mean"] == 35.0
    assert {cell["valid_error"] for cell in own["cells"]} == {60.0, 45.0}
    words = runner.words["train-random-r2"]
    assert words[words.index("--genotype") + 1] == "random:2"
    assert any("valid error 45.00" in line for line in said)
    assert "Errors in percent" in study_text(result, "text")
    assert "perplexit" not in study_text(result, "text").lower()


def test_paired_tests_of_errors(tmp_path: Path) -> None:
    config = plan("finals=all", "seeds=[1,2,3]", "random_cells=3", 'fixed=["DARTS_V2"]')

    def give(name: str) -> Any:
        if name.startswith("search"):
            return {"valid_accuracy": 30.0, "seconds": 5.0, "cell": "{}"}
        error = 20.0 if name.startswith("final-gdas") else 40.0
        return {"valid_accuracy": 50.0, "test_accuracy": 100.0 - error, "seconds": 1.0}

    record = Record.open(tmp_path, config, "sha")
    result = Execution(record, SIZES, Fake(tmp_path, give), set(), (), lambda text: None).run()
    assert result["rows"]["gdas"]["test"]["mean"] == pytest.approx(20.0)
    assert result["rows"]["gdas"]["random_same_cost"]["test_error"] == pytest.approx(40.0)
    assert "-50.0 %" in study_text(result, "text")
    page = study_section(read_study(tmp_path), "s")
    assert "test error, gdas" in page and "test error (%)" in page
    assert "perplexit" not in page.lower()
    figures = next(one for one in list_runs(tmp_path.parent) if one.path == tmp_path).figures
    assert not any("perplexity" in name for name in figures)
    assert "test error" in study_text(result, "csv")
    with pytest.raises(UsageError, match="fixed cell"):
        plan("finals=all", 'fixed=["LSTM"]')
    # Random cells have four nodes, whatever is searched.
    with pytest.raises(UsageError, match="random cells of 4 nodes"):
        plan("search.model.nodes=2")


@pytest.fixture
def pics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("RNNNAS_HOME", str(tmp_path))
    class_folders(tmp_path / "images", "test", 4, start=5000)
    add_corpus("pics", class_folders(tmp_path / "images", "train", 40), VocabOptions())
    yield tmp_path


def test_the_medium_must_fit(pics: Path) -> None:
    wrong = CliRunner().invoke(main, ["study", "--corpus", "pics", "--preset", "study-smoke"])
    assert wrong.exit_code == 2 and "holds images" in wrong.output
    assert "study-images" in wrong.output


@pytest.mark.slow
def test_a_study_on_images_from_end_to_end(pics: Path) -> None:
    sets = ["search.epochs=1", "search.batches.limit=2", "search.batches.size=8",
            "search.model.layers=3", "short.batches.limit=2", "final.batches.limit=2",
            "final.epochs=1", "random_cells=1", "short.model.layers=3", "final.model.layers=3",
            "seeds=[1]",
            'methods=["darts-1st"]', "search.batches.evaluated=8"]  # fmt: skip
    words = ["study", "--corpus", "pics", "--preset", "study-images", "--jobs", "1"]
    words += [word for text in sets for word in ("--set", text)]
    listed = CliRunner().invoke(main, [*words, "--dry-run", "--json"])
    assert listed.exit_code == 0 and json.loads(listed.stdout)["seconds"] > 0, listed.output
    done = CliRunner().invoke(main, [*words, "--out", str(pics / "s"), "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    own = result["methods"]["darts-1st"]
    assert own["valid"]["n"] == 1 and 0 <= own["test"]["mean"] <= 100
    assert own["cost"]["search"]["processor_seconds"] > 0
    page = CliRunner().invoke(main, ["report", str(pics / "s")])
    assert page.exit_code == 0, page.output
    assert "validation error" in next((pics / "s").glob("*.html")).read_text()
