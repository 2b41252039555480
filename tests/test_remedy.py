"""The remedy for a training that loses to a count of words fits how it went."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from rnnnas.cli import main
from rnnnas.training.remedy import remedy


def run_with(folder: Path, *curve: tuple[float, float]) -> Path:
    """A folder whose metrics.jsonl has these perplexities, (train, valid) of each epoch."""
    folder.mkdir(exist_ok=True)
    lines = [
        {"kind": "epoch", "step": 10 * n, "epoch": n, "train_perplexity": t, "valid_perplexity": v}
        for n, (t, v) in enumerate(curve, 1)
    ]
    text = "".join(json.dumps(line) + "\n" for line in [{"kind": "train", "step": 1}, *lines])
    (folder / "metrics.jsonl").write_text(text + '{"kind": "ep', encoding="utf-8")
    return folder


def test_the_remedy_fits_the_curve(tmp_path: Path) -> None:
    improving = run_with(tmp_path / "a", (500, 520), (400, 430), (300, 330))
    assert remedy(improving, 200) == "train longer, with more --epochs N or --minutes N"
    assert "more units" in remedy(improving, 16)
    worse = run_with(tmp_path / "b", (300, 320), (250, 300), (240, 310), (230, 320), (225, 330))
    behind = run_with(tmp_path / "c", (300, 320), (100, 300), (50, 290))
    for folder, there, other in ((worse, "225.0", "330.0"), (behind, "50.0", "290.0")):
        told = remedy(folder, 200)
        assert f"(perplexity {there}) far better than other text ({other})" in told
        assert "fewer units" in told and "train longer" not in told
    unvalidated = tmp_path / "d"
    unvalidated.mkdir()
    assert remedy(unvalidated, 200).startswith("train longer")


def test_a_training_that_loses_says_so_with_a_remedy_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the remedy, followed, does what it says: more epochs and units lose by less."""
    monkeypatch.setenv("RNNNAS_HOME", str(tmp_path))
    words = ["the", "a", "cat", "dog", "sees", "hears", "and", "runs", "sleeps", "far"]
    lines = [" ".join(words[(i * k + k) % 10] for k in range(2, 9)) for i in range(600)]
    (tmp_path / "t.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    added = CliRunner().invoke(main, ["corpus", "add", "t", "--from", str(tmp_path / "t.txt")])
    assert added.exit_code == 0, added.output

    def trained(*more: str) -> tuple[float, str]:
        run = CliRunner().invoke(
            main, ["train", "--corpus", "t", "--genotype", "LSTM", "--lr", "5", "--set",
                   "valid_streams=1", "--set", "windows.streams=4", "--out",
                   str(tmp_path / more[-1]), *more],
        )  # fmt: skip
        assert run.exit_code == 0, run.output
        warnings = [line for line in run.stderr.splitlines() if line.startswith("WARNING")]
        result = json.loads((tmp_path / more[-1] / "result.json").read_text(encoding="utf-8"))
        return result["test_perplexity"] / result["bigram_perplexity"], "\n".join(warnings)

    before, told = trained("--epochs", "1", "--hidden", "4")
    assert before > 1 and told.count("\n") == 0
    assert "more --epochs N" in told and "more units with --hidden N" in told
    after, _ = trained("--epochs", "6", "--hidden", "32")
    assert after < before
