"""A cell trained for a time is held against an LSTM that had the same time on the same text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rnnnas.cli import runs as commands
from rnnnas.runs.files import write_json
from rnnnas.runs.sealed import write_result
from rnnnas.studies.equal_time import Beside, lstm_beside
from rnnnas.studies.listing import list_runs


def kept(
    folder: Path, *, cell: str = "lstm", sha: str = "a", start: str = "", **result: Any
) -> Path:
    """A finished training as it lies on disk."""
    folder.mkdir()
    config = {"corpus": "book", "corpus_sha256": sha, "cell": cell, "genotype": {}, "start": start}
    write_json(folder / "config.json", {"kind": "train", "config": config})
    write_result(folder, {"run": str(folder), "seconds": 50.0, **result})
    return folder


def test_a_line_says_who_is_better() -> None:
    beside = Beside(path=Path("checkpoints/book"), test=80.0)
    line = "an LSTM of the same time: 80.00 (checkpoints/book); this cell is 10 % below it"
    assert beside.line(72.0) == line
    assert beside.line(88.0).startswith("WARNING") and "by 10 %" in beside.line(88.0)


def test_it_is_found_by_text_cell_and_time(tmp_path: Path) -> None:
    mine = kept(tmp_path / "mine", cell="derived", budget_seconds=60.0, test_perplexity=70.0)
    kept(tmp_path / "gru", cell="gru", budget_seconds=60.0, test_perplexity=1.0)
    kept(tmp_path / "other", sha="b", budget_seconds=60.0, test_perplexity=2.0)
    kept(tmp_path / "longer", budget_seconds=120.0, test_perplexity=3.0)
    kept(tmp_path / "epochs", test_perplexity=4.0)
    assert lstm_beside(mine, 60.0, list_runs(tmp_path)) is None
    lstm = kept(tmp_path / "lstm", budget_seconds=60.0, test_perplexity=75.0)
    assert lstm_beside(mine, 60.0, list_runs(tmp_path)) == Beside(path=lstm, test=75.0)
    # What went on from another's weights had the other's time as well.
    longer = {"start": "d1", "budget_seconds": 60.0}
    kept(tmp_path / "on", **longer, test_perplexity=60.0)
    assert lstm_beside(mine, 60.0, list_runs(tmp_path)) == Beside(path=lstm, test=75.0)
    cell = kept(tmp_path / "cell-on", cell="derived", **longer, test_perplexity=50.0)
    assert lstm_beside(cell, 60.0, list_runs(tmp_path)) is None
    assert lstm_beside(tmp_path / "nothing", 60.0, list_runs(tmp_path)) is None


def test_the_command_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "checkpoints_folder", lambda: tmp_path / "checkpoints")
    mine = kept(tmp_path / "mine", cell="derived", budget_seconds=60.0, test_perplexity=70.0)
    result = {"run": str(mine), "budget_seconds": 60.0, "test_perplexity": 70.0}
    commands._say_lstm(result, "book")
    assert "train --corpus book --genotype LSTM --seconds 60" in capsys.readouterr().err
    kept(tmp_path / "lstm", budget_seconds=60.0, test_perplexity=60.0)
    commands._say_lstm(result, "book")
    assert "WARNING: this cell is worse than an LSTM of the same time, 60.00" in (
        capsys.readouterr().err
    )
