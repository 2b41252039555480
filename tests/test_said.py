"""What commands say at their end: that a time says what it counts."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from rnnnas.cli import main
from rnnnas.cli.common import took


def test_a_time_says_what_it_counts() -> None:
    assert took({"seconds": 61.2}) == "61 s of steps and validation"
    budget = {"seconds": 61.2, "spent_seconds": 116.6, "budget_seconds": 120.0}
    assert took(budget) == (
        "61 s of steps and validation; 117 s of the 120 given, start and end included"
    )


def test_a_training_ends_with_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNNAS_HOME", str(tmp_path))
    text = tmp_path / "t.txt"
    text.write_text("a b c d e f g\n" * 400, encoding="utf-8")
    words = ["--corpus", "t", "--epochs", "1", "--hidden", "4", "--set", "windows.limit=2"]
    run = CliRunner().invoke(main, ["corpus", "add", "t", "--from", str(text)])
    assert run.exit_code == 0, run.output
    run = CliRunner().invoke(main, ["train", "--genotype", "LSTM", *words])
    assert run.exit_code == 0 and " s of steps and validation\n" in run.stdout, run.output
