"""What version 0.1 left on disk is still read: corpora, runs, checkpoints, presets, genotypes.

`version_0_1/` was written by that version, in float32 on a CPU; `recorded.json` there holds what
its commands printed. Only commands and files are used here, so that no module's place matters.
Sums of float32 differ between processors in their last bits, hence no digest is compared.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rnnnas.cli import main

KEPT = Path(__file__).parent / "version_0_1"
RECORDED: dict[str, Any] = json.loads((KEPT / "recorded.json").read_text(encoding="utf-8"))
FIGURES = ("perplexity", "valid_perplexity", "test_perplexity", "nats")
CLOSE = 1e-3
# How the runs were started; the corpus, the seed and all else stand in `preset.toml`.
SEARCH = ["search", "--corpus", "sentences", "--device", "cpu", "--json"]
TRAIN = ["train", "--corpus", "sentences", "--preset", "smoke", "--seed", "3", "--device", "cpu",
         "--json", "--set", "model.precision=float32", "--set", "model.hidden=16",
         "--set", "windows.streams=8", "--set", "valid_streams=4", "--set", "test_streams=4",
         "--set", "epochs=2"]  # fmt: skip
SAVED_ALWAYS = ["--set", "save_seconds=0"]  # as the interrupted runs were


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of what the version left, whose corpora are the home folder's."""
    folder = tmp_path / "old"
    shutil.copytree(KEPT, folder)
    monkeypatch.setenv("RNNNAS_HOME", str(folder / "home"))
    yield folder


def printed(*words: str) -> str:
    done = CliRunner().invoke(main, list(words))
    assert done.exit_code == 0, done.output
    return done.stdout


def result_of(*words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(printed(*words))
    return found


def assert_close(found: dict[str, Any], recorded: dict[str, Any]) -> None:
    """Perplexities and nats agree, and everything else that is no digest is equal."""
    for key, value in recorded.items():
        if key in FIGURES:
            assert found[key] == pytest.approx(value, rel=CLOSE), key
        elif key != "digest":
            assert found[key] == value, key


@pytest.mark.parametrize(("kind", "name"), [("text", "sentences"), ("images", "stripes")])
def test_a_corpus_opens_with_its_counts(kind: str, name: str, old: Path) -> None:
    info = result_of("corpus", "info", name, "--json")
    recorded = dict(RECORDED[kind])
    del recorded["name"]
    note = recorded.pop("note")
    assert {key: info[key] for key in recorded} == recorded
    assert info["note"].startswith(note) and "an earlier version" in info["note"]


def test_a_preset_file_resolves_to_the_same_settings(old: Path) -> None:
    """Settings that are new may join them; none is gone or changed."""
    words = [*SEARCH, "--config", str(old / "preset.toml"), "--print-config"]
    resolved = result_of(*words)
    recorded = json.loads((old / "search/config.json").read_text(encoding="utf-8"))["config"]
    del recorded["corpus_sha256"]  # a run's, which no preset has

    def assert_holds(now: dict[str, Any], before: dict[str, Any]) -> None:
        for key, value in before.items():
            if isinstance(value, dict) and value:
                assert_holds(now[key], value)
            else:
                assert now[key] == value, key

    assert_holds(resolved, recorded)


@pytest.mark.parametrize("place", ["search", "train", "genotype.json"])
def test_a_cell_is_shown_from_a_run_or_a_file(place: str, old: Path) -> None:
    shown = json.loads(printed("show", str(old / place), "--format", "json"))
    assert shown == RECORDED["search"]["genotype"]
    assert "sigmoid" in printed("show", str(old / place))


@pytest.mark.parametrize(
    ("run", "recorded"),
    [("train", "eval"), ("image-train", "image-eval")],
)
def test_a_checkpoint_measures_what_it_measured(run: str, recorded: str, old: Path) -> None:
    checkpoint = str(old / run / "best.pt")
    found = result_of("eval", "--checkpoint", checkpoint, "--device", "cpu", "--json")
    assert_close(found, RECORDED[recorded])
    # What names a checkpoint is its content alone, on every processor.
    assert found["digest"] == RECORDED[recorded]["digest"] == RECORDED[run]["digest"]


def test_a_baseline_checkpoint_measures_what_it_measured(old: Path) -> None:
    checkpoint = str(old / "lstm/best.pt")
    found = result_of("eval", "--checkpoint", checkpoint, "--device", "cpu", "--json")
    assert found["perplexity"] == pytest.approx(RECORDED["lstm"]["test_perplexity"], rel=CLOSE)


def test_a_checkpoint_writes(old: Path) -> None:
    words = ["sample", "--checkpoint", str(old / "train"), "--prompt", "the cat", "--tokens", "8"]
    text = result_of(*words, "--device", "cpu", "--json")["text"]
    assert text.startswith("the cat") and len(text.split()) > 5


def test_a_finished_run_gives_its_result_again(old: Path) -> None:
    """The same command with the same folder: nothing is computed anew, to the digest."""
    found = result_of(*SEARCH, "--config", str(old / "preset.toml"), "--out", str(old / "search"))
    assert_close(found, RECORDED["search"])
    assert found["digest"] == RECORDED["search"]["digest"]


@pytest.mark.parametrize("kind", ["search", "train"])
def test_an_interrupted_run_goes_on_to_the_recorded_result(kind: str, old: Path) -> None:
    if kind == "search":
        words = [*SEARCH, "--config", str(old / "preset.toml")]
        run, recorded = old / "interrupted", RECORDED["resumed"]
    else:
        words = [*TRAIN, "--genotype", str(old / "genotype.json")]
        run, recorded = old / "interrupted-train", RECORDED["resumed-train"]
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert not (run / "result.json").exists()
    found = result_of(*words, *SAVED_ALWAYS, "--out", str(run))
    assert_close(found, recorded)
    after = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    kept = len(lines) // 2  # what came after the last saved state is computed again
    assert kept and after[:kept] == lines[:kept], "it has begun anew"
    assert len(after) > len(lines) and (run / "result.json").is_file()


def test_a_found_cell_of_that_version_is_trained(old: Path) -> None:
    found = result_of(*TRAIN, "--genotype", str(old / "search"), "--out", str(old / "again"))
    assert_close(found, RECORDED["train"])
