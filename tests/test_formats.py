"""Tables in every format, a finished study shown again, and what its jobs cost."""

from __future__ import annotations

import csv
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_paired import plan as paired_plan
from test_study import SIZES, Fake, execute, numbers, plan

from rnnnas.cli import main
from rnnnas.config.text import TrainConfig
from rnnnas.data.text_streams import epoch_lengths
from rnnnas.errors import CheckpointError, UsageError
from rnnnas.studies.execute import Execution
from rnnnas.studies.finished import finished_study, study_text
from rnnnas.studies.formats import Sheet, rendered
from rnnnas.studies.local_jobs import LocalRunner
from rnnnas.studies.plan import RANDOM, Sizes, train_config
from rnnnas.studies.record import Record
from rnnnas.studies.report import _compared, _tau_note

SHEET = Sheet(title="a & b", head=("name", "5 % a|b"), rows=[("x_1, y", "1 ± 2"), ("z", "-")])


def test_formats_by_hand() -> None:
    assert rendered([SHEET], ["note"], "text").splitlines() == [
        "name    5 % a|b", "x_1, y  1 ± 2", "z       -", "", "note"
    ]  # fmt: skip
    assert rendered([SHEET, SHEET], ["note"], "csv").split("\n\n")[1].splitlines() == [
        "name,5 % a|b", '"x_1, y",1 ± 2', "z,-"
    ]  # fmt: skip
    assert rendered([SHEET], ["note"], "markdown").splitlines() == [
        r"| name | 5 % a\|b |", "| --- | --- |", "| x_1, y | 1 ± 2 |", "| z | - |", "", "note"
    ]  # fmt: skip
    latex = rendered([SHEET], ["note"], "latex")
    assert r"\begin{tabular}{lr}" in latex and r"name & 5 \% a|b \\" in latex
    assert r"x\_1, y & 1 $\pm$ 2 \\" in latex and latex.endswith("% note")
    assert rendered([Sheet(title="", head=("a",), rows=[])], [], "text") == ""


def test_a_finished_study_is_shown_again(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    result, _, _ = execute(folder, plan(), numbers())
    assert finished_study(folder) == result
    before = (folder / "study.json").stat().st_mtime_ns

    def shown(form: str) -> str:
        done = CliRunner().invoke(main, ["study", "--out", str(folder), "--format", form])
        assert done.exit_code == 0, done.output
        return done.stdout

    assert json.loads(shown("json")) == result
    tables = shown("csv").split("\n\n")
    rows = list(csv.DictReader(tables[0].splitlines()))
    assert [row["cells"] for row in rows] == list(result["methods"])
    costs = list(csv.DictReader(tables[1].splitlines()))
    steps = result["methods"]["darts-1st"]["cost"]["search"]["steps"]
    assert costs[0]["search steps"] == f"{steps:,}" and costs[0]["search processor s"] == "(10)"
    assert costs[1]["search steps"] == "-"  # random cells are not searched
    assert shown("latex").count(r"\toprule") == 2 and "| cells |" in shown("markdown")
    assert "Kendall" in shown("text")
    assert (folder / "study.json").stat().st_mtime_ns == before
    # A study of an earlier version has no costs.
    for own in result["methods"].values():
        del own["cost"]
    assert "cost of each" not in study_text(result, "text")


@pytest.mark.parametrize(
    "words", [["--set", "retries=2"], ["--minutes", "3"], ["--jobs", "2"], ["--dry-run"]]
)
def test_showing_a_study_takes_nothing_that_would_run_it(tmp_path: Path, words: list[str]) -> None:
    folder = tmp_path / "s"
    execute(folder, plan(), numbers())
    done = CliRunner().invoke(main, ["study", "--out", str(folder), *words])
    assert done.exit_code == 2 and f"{words[0]} has no place in showing" in done.output


def test_what_is_no_finished_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no study"):
        finished_study(tmp_path)
    record = Record(tmp_path / "s", plan(), "sha")
    record.folder.mkdir()
    record.save()
    with pytest.raises(UsageError, match="not finished"):
        finished_study(tmp_path / "s")
    path = tmp_path / "s/study.json"
    path.write_text(path.read_text().replace('"hmm"', '"hm"'))
    with pytest.raises(CheckpointError):
        finished_study(tmp_path / "s")
    bare = CliRunner().invoke(main, ["study"])
    assert bare.exit_code == 2 and "no corpus is named" in bare.output
    wrong = ["study", "--out", str(tmp_path / "s"), "--methods", "darts"]
    assert CliRunner().invoke(main, wrong).exit_code == 2


def test_random_search_at_the_same_cost(tmp_path: Path) -> None:
    """The best of two of three random cells by validation, by hand."""
    config = paired_plan('own={"random@2"={blackbox={cells=2}},"random@4"={blackbox={cells=4}}}')
    valid, test = {1: 30.0, 2: 10.0, 3: 20.0}, {1: 5.0, 2: 6.0, 3: 7.0}

    def give(name: str) -> Any:
        if name.startswith("search"):
            return {"cell": "tanh0 relu1", "valid_perplexity": 1.0, "seconds": 2.0}
        if name.startswith("final-random-r"):
            seed = int(name.split("-")[2][1:])
            return {"valid_perplexity": valid[seed], "test_perplexity": test[seed], "seconds": 1.0}
        return {"valid_perplexity": 1.0, "test_perplexity": 9.0, "seconds": 1.0}

    record = Record.open(tmp_path, config, "0" * 64)
    runner = Fake(tmp_path, give)
    for seed in (1, 2, 3):
        runner.spent[f"search-random@2-s{seed}"] = 4.0 + seed
    result = Execution(record, SIZES, runner, set(), (), lambda text: None).run()
    row = result["rows"]["random@2"]
    searched = row["cost"]["search"]["steps"]
    trained = result["rows"][RANDOM]["cost"]["final"]["steps"]
    n = min(max(1, round(searched / trained)), 3)
    # Pairs: 1 2 -> 2, 1 3 -> 3, 2 3 -> 2; singly each; of three the best by validation.
    expected = {1: 6.0, 2: (6 + 7 + 6) / 3, 3: 6.0}[n]
    assert row["random_same_cost"]["n"] == n
    assert row["random_same_cost"]["test_perplexity"] == pytest.approx(expected)
    assert result["rows"]["LSTM"]["random_same_cost"] is None
    assert row["cost"]["search"]["processor_seconds"] == pytest.approx(6.0)
    assert result["rows"]["random@4"]["cost"]["search"]["processor_seconds"] is None
    assert f"(best of {n})" in study_text(result, "text")


def test_targets_are_those_of_the_windows() -> None:
    config: TrainConfig = train_config(plan(), "short")
    sizes = Sizes({"train": range(20_000)})
    steps = sizes.steps(config)
    lengths = [
        length
        for epoch in range(config.epochs)
        for length in epoch_lengths(config.windows, 20_000 // config.windows.streams, 1, epoch)
    ]
    mean = sum(lengths) / len(lengths)
    assert sizes.tokens(config) / (steps * config.windows.streams) == pytest.approx(mean, rel=0.15)


def test_processor_seconds_of_a_job_and_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that only sleeps spends next to nothing; one whose child works is charged for it."""
    module = tmp_path / "rnnnas_fake"
    module.mkdir()
    work = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n"
    (module / "work.py").write_text(work)
    (module / "__main__.py").write_text(
        "import subprocess, sys, pathlib\n"
        "if sys.argv[1] == 'busy':\n"
        "    here = pathlib.Path(__file__).with_name('work.py')\n"
        "    subprocess.run([sys.executable, str(here)], check=True)\n"
        "sys.exit(int(sys.argv[2]))\n"
    )
    monkeypatch.setattr(sys, "executable", str(_python(tmp_path, module)))
    runner = LocalRunner(tmp_path, 2)
    runner.start({"busy": ("busy", "0"), "idle": ("idle", "6")})
    codes: dict[str, int] = {}
    deadline = time.monotonic() + 600
    while len(codes) < 2 and time.monotonic() < deadline:
        codes |= runner.ended()
        time.sleep(0.01)
    assert codes == {"busy": 0, "idle": 6}
    assert runner.spent["busy"] >= 0.3 and math.isfinite(runner.spent["idle"])


def _python(folder: Path, module: Path) -> Path:
    """A stand-in for Python that runs `module` whatever -m names."""
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} -S {module} "$@"\n')
    script.chmod(0o755)
    return script


def test_an_order_that_is_turned_round_is_no_chance_either() -> None:
    for tau in (-0.9, 0.9):
        assert "beyond chance" in _tau_note(10, tau, 0.5)
    assert "within chance" in _tau_note(10, -0.4, 0.5)


def test_the_best_final_test_is_the_least() -> None:
    tests = {"darts": 90.0, "halving": 80.0, "gdas": 85.0, "enas": None}
    result = {
        "methods": {name: {"test": {"mean": mean}} for name, mean in tests.items()},
        "unigram_perplexity": 600.0, "bigram_perplexity": 160.0,
    }  # fmt: skip
    first, *_ = _compared(result)
    assert "80.00, of halving" in first and "50 % below" in first
