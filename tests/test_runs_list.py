"""Lists of runs, two of them compared, and checkpoints named where people type them."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from tiny_home import home as home

import rnnnas
from rnnnas.cli import main
from rnnnas.evaluation import language_model
from rnnnas.evaluation import line_scores as line_scores_module
from rnnnas.evaluation.language_model import LanguageModel
from rnnnas.evaluation.line_scores import line_scores, total
from rnnnas.runs.files import Lock
from rnnnas.studies.comparison import compare_runs
from rnnnas.studies.listing import info_of, list_runs

KEPT = Path(__file__).parent / "version_0_1"  # finished and interrupted runs, written by rnnnas
SIZES = ["--preset", "smoke", "--set", "model.hidden=8", "--set", "windows.limit=3"]
SIZES += ["--set", "valid_streams=4", "--set", "test_streams=4", "--set", "epochs=1"]
SIZES += ["--device", "cpu"]


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def answer(*words: object) -> dict[str, Any]:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    value: dict[str, Any] = json.loads(result.stdout)
    return value


@pytest.fixture(scope="module")
def lstm(home: Path) -> Path:
    """The folder of a small trained LSTM."""
    folder = home / "checkpoints" / "lstm"
    result = run("train", "--corpus", "tiny", "--genotype", "LSTM", *SIZES, "--out", folder)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def model(lstm: Path) -> LanguageModel:
    loaded = rnnnas.load(lstm, device="cpu")
    assert isinstance(loaded, LanguageModel)
    return loaded


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    for name in ("search", "train", "lstm", "interrupted", "image-train"):
        shutil.copytree(KEPT / name, folder / name)
    return folder


# Listing


def test_runs_are_listed_with_what_they_are_and_gave(kept: Path) -> None:
    found = {Path(one["path"]).name: one for one in answer("runs", kept)["runs"]}
    assert set(found) == {"search", "train", "lstm", "interrupted", "image-train"}
    search, lstm, images = found["search"], found["lstm"], found["image-train"]
    assert (search["kind"], search["state"], search["what"]) == ("search", "finished", "darts")
    assert lstm["what"] == "LSTM" and images["kind"] == "image-train"
    result = json.loads((kept / "lstm" / "result.json").read_text(encoding="utf-8"))
    assert lstm["figures"] == {name: result[name] for name in lstm["figures"]}
    assert lstm["figures"]["test_perplexity"] == result["test_perplexity"]
    assert lstm["seconds"] == result["seconds"]
    assert "test_accuracy" in images["figures"]


def test_a_folder_for_the_hub_is_no_run(lstm: Path, model: LanguageModel, tmp_path: Path) -> None:
    model.export("hf", out=tmp_path / "runs" / "model")
    assert rnnnas.list_runs(tmp_path / "runs") == []


def test_an_interrupted_run_says_at_which_epoch(kept: Path) -> None:
    info = info_of(kept / "interrupted")
    lines = (kept / "interrupted" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    over = sum(json.loads(line)["kind"] == "epoch" for line in lines)
    assert info.state == "stopped" and info.done == over < info.total
    assert info.progress() == f"stopped at epoch {over} of {info.total}"


def test_a_run_that_is_held_is_running(kept: Path) -> None:
    lock = Lock(kept / "interrupted")
    try:
        assert info_of(kept / "interrupted").state == "running"
    finally:
        lock.release()
    # The file still names this process, which is alive, and holds it no longer.
    assert info_of(kept / "interrupted").state == "stopped"


def test_a_damaged_run_is_listed_as_such(kept: Path) -> None:
    (kept / "train" / "config.json").write_text('{"kind": "train"}', encoding="utf-8")
    (kept / "lstm" / "config.json").write_text("{", encoding="utf-8")
    states = {one.path.name: one.state for one in list_runs(kept)}
    assert states["train"] == states["lstm"] == "damaged" and states["search"] == "finished"
    assert run("runs", kept).exit_code == 0


def test_the_latest_comes_first(kept: Path) -> None:
    for age, name in enumerate(("search", "train", "lstm")):
        for file in (kept / name).iterdir():
            os.utime(file, (2e9 - age, 2e9 - age))
    assert [one.path.name for one in list_runs(kept)][:3] == ["search", "train", "lstm"]


def test_a_run_that_diverged_has_failed(home: Path) -> None:
    folder = home / "checkpoints" / "diverged"
    words = ["--set", "weights.lr=1e30", "--set", "weights.clip=0", "--out", folder]
    result = run("train", "--corpus", "tiny", "--genotype", "GRU", *SIZES, *words)
    assert result.exit_code == 6, result.output
    info = info_of(folder)
    assert info.state == "failed" and "not finite" in info.progress()


def test_a_study_is_one_line_and_its_runs_are_listed_in_it(kept: Path) -> None:
    study = kept / "study"
    shutil.copytree(kept / "search", study / "search-darts-1st-s1")
    plain = {
        "kind": "study",
        "plan": {"config": {"corpus": "sentences", "methods": ["darts-1st", "gdas"]}},
        "jobs": {"a": {"state": "done"}, "b": {"state": "failed"}},
        "result": {"methods": {"gdas": {"test": {"mean": 61.5}}, "x": {"test": {"mean": None}}}},
    }
    (study / "study.json").write_text(json.dumps(plain), encoding="utf-8")
    (info,) = [one for one in list_runs(kept) if one.path.is_relative_to(study)]
    assert (info.kind, info.what, info.state) == ("study", "darts-1st, gdas", "failed")
    assert info.figures == {"gdas: test_perplexity": 61.5} and (info.done, info.total) == (1, 2)
    assert {one.path.name for one in list_runs(study)} == {"study", "search-darts-1st-s1"}
    assert "gdas 61.50" in run("runs", kept).stdout


def test_no_runs_are_no_error_and_no_folder_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNNNAS_HOME", str(tmp_path))
    assert answer("runs") == {"runs": []} and rnnnas.list_runs() == []
    result = run("runs", tmp_path / "nowhere")
    assert result.exit_code == 2 and "there is no folder" in result.stderr


# Comparing


def test_two_runs_are_compared(kept: Path) -> None:
    told = answer("runs", "compare", kept / "lstm", kept / "train" / "best.pt")
    first, second = (
        json.loads((kept / name / "config.json").read_text(encoding="utf-8"))["config"]
        for name in ("lstm", "train")
    )
    assert told["figures"]["parameters"][0] != told["figures"]["parameters"][1]
    assert told["cells"][0] is None and told["cells"][1] == second["genotype"]
    for key, (a, b) in told["settings"].items():
        group, _, name = key.rpartition(".")
        one, other = (table[group] if group else table for table in (first, second))
        assert one.get(name) == a != b == other.get(name)
    text = run("runs", "compare", kept / "lstm", kept / "train").stdout
    assert "test_perplexity" in text and "recurrent cell:" in text


def test_settings_that_differ_are_told(home: Path, lstm: Path) -> None:
    other = home / "checkpoints" / "other"
    words = ["--set", "weights.lr=7", "--seed", "9", "--out", other]
    assert run("train", "--corpus", "tiny", "--genotype", "LSTM", *SIZES, *words).exit_code == 0
    found = compare_runs(lstm, other).settings
    assert found == {"seed": (1, 9), "weights.lr": (found["weights.lr"][0], 7.0)}
    assert found["weights.lr"][0] != 7.0


def test_of_three_runs_the_second_may_differ_alone(home: Path, lstm: Path) -> None:
    other = home / "checkpoints" / "alone"
    words = ["--set", "weights.lr=6", "--out", other]
    assert run("train", "--corpus", "tiny", "--genotype", "LSTM", *SIZES, *words).exit_code == 0
    found = compare_runs(lstm, other, lstm)
    rate = found.settings["weights.lr"]
    assert found.settings == {"weights.lr": (rate[0], 6.0, rate[0])} and rate[0] != 6.0
    result = json.loads((other / "result.json").read_text(encoding="utf-8"))
    for name in ("bigram_perplexity", "bits_per_byte", "parameters", "seconds"):
        assert found.figures[name][1] == result[name]


def test_what_is_no_run_is_not_compared(kept: Path, tmp_path: Path) -> None:
    result = run("runs", "compare", kept / "lstm", tmp_path)
    assert result.exit_code == 2 and "is no run" in result.stderr


# Checkpoints where people type them


def test_eval_and_sample_take_a_folder_or_an_option(lstm: Path) -> None:
    told = answer("eval", lstm)
    assert (
        told == answer("eval", "--checkpoint", lstm / "best.pt") == answer("eval", lstm / "best.pt")
    )
    text = answer("sample", lstm, "--tokens", 5)["text"]
    assert text == answer("sample", "--checkpoint", lstm, "--tokens", 5)["text"]
    for words in (["eval"], ["sample"], ["eval", lstm, "--checkpoint", lstm.parent]):
        result = run(*words)
        assert result.exit_code == 2 and "Traceback" not in result.output


def test_show_draws_the_cell_of_a_checkpoint(kept: Path, lstm: Path) -> None:
    shown = answer_text("show", kept / "train" / "best.pt", "--format", "json")
    config = json.loads((kept / "train" / "config.json").read_text(encoding="utf-8"))["config"]
    assert json.loads(shown) == config["genotype"]
    for where in (lstm, lstm / "best.pt"):
        said = answer_text("show", where)
        assert "LSTM of one layer of 8 units, trained on tiny" in said
    result = run("show", lstm, "--format", "svg")
    assert result.exit_code == 2 and "no genotype" in result.stderr
    damaged = kept / "train" / "best.pt"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert run("show", damaged).exit_code == 4


def answer_text(*words: object) -> str:
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


# Samples


def test_samples_have_seeds_of_their_own(lstm: Path, model: LanguageModel) -> None:
    told = answer("sample", lstm, "--count", 3, "--seed", 4, "--tokens", 9, "--prompt", "w1")
    assert told["samples"] == [model.sample("w1", 9, seed=seed) for seed in (4, 5, 6)]
    assert told["text"] == told["samples"][0] and len(set(told["samples"])) == 3
    result = run("sample", lstm, "--count", 3, "--seed", 4, "--tokens", 9, "--prompt", "w1")
    ended = [text if text.endswith("\n") else text + "\n" for text in told["samples"]]
    assert result.stdout == "".join(ended)


def test_options_of_sampling_reach_the_model(lstm: Path, model: LanguageModel) -> None:
    words = ("--tokens", 30, "--top-k", 2, "--top-p", 0.9, "--temperature", 0.7, "--lines", 1)
    expected = model.sample("", 30, top_k=2, top_p=0.9, temperature=0.7, lines=1)
    assert answer("sample", lstm, *words)["text"] == expected
    assert answer("sample", lstm, "--tokens", 6, "--top-k", 1)["text"] == model.sample(
        "", 6, temperature=0
    )
    for wrong in (["--top-p", 0], ["--top-p", 1.5], ["--top-k", -1], ["--count", 0]):
        assert run("sample", lstm, *wrong).exit_code == 2


def test_unknown_words_are_written_only_where_asked(lstm: Path) -> None:
    words = ("sample", lstm, "--tokens", 400, "--temperature", 5)
    assert "<unk>" not in answer(*words)["text"]
    assert "<unk>" in answer(*words, "--unknown")["text"]


# Scores


LINES = ["w1 w2 w3", "", "w0 nobody w1", "w5 w5"]


def independent(model: LanguageModel, lines: list[str]) -> list[float]:
    """A line's log-probability, token by token in float64 and with no chunks."""
    found, state = [], None
    last = torch.tensor([model.vocab.eos])
    for line in lines:
        sum_ = 0.0
        for token in model.vocab.encode([line]).tokens.tolist():
            logits, state = model.step(last, state)
            row = [float(value) for value in logits[0]]
            top = max(row)
            sum_ += row[token] - top - math.log(sum(math.exp(value - top) for value in row))
            last = torch.tensor([token])
        found.append(sum_)
    return found


def test_lines_are_scored_one_by_one(model: LanguageModel) -> None:
    with torch.no_grad():
        expected = independent(model, LINES)
    found = list(line_scores(model, LINES))
    assert [one.log_prob for one in found] == pytest.approx(expected, abs=1e-4)
    assert [one.tokens for one in found] == [4, 1, 4, 3]
    assert [one.unknown for one in found] == [0, 0, 1, 0]
    every = total(found)
    assert every.log_prob == pytest.approx(float(model.log_probs("\n".join(LINES)).sum()), abs=1e-4)
    assert every.perplexity == pytest.approx(math.exp(-sum(expected) / 12), rel=1e-4)
    assert (every.tokens, every.unknown) == (12, 1)


def test_long_lines_are_scored_in_parts_that_go_on(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """512 steps at a time: here 2, where a line has 4."""
    text = "\n".join(LINES)
    whole = [one.log_prob for one in line_scores(model, LINES)], model.log_probs(text)
    for module in (language_model, line_scores_module):
        monkeypatch.setattr(module, "_CHUNK", 2)
    parts = [one.log_prob for one in line_scores(model, LINES)], model.log_probs(text)
    assert parts[0] == pytest.approx(whole[0], abs=1e-5)
    assert torch.allclose(parts[1], whole[1], atol=1e-5)


def test_a_line_by_itself_does_not_depend_on_those_before(model: LanguageModel) -> None:
    found = [one.log_prob for one in line_scores(model, LINES, restart=True)]
    alone = [next(line_scores(model, [line])).log_prob for line in LINES]
    assert found == pytest.approx(alone, abs=1e-6)
    assert found[3] != pytest.approx([one.log_prob for one in line_scores(model, LINES)][3])


def test_score_prints_a_table_or_json_lines(
    lstm: Path, model: LanguageModel, tmp_path: Path
) -> None:
    file = tmp_path / "text.txt"
    file.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    result = run("score", file, "--checkpoint", lstm)
    assert result.exit_code == 0, result.output
    head, *rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert head == ["line", "log_prob", "tokens", "unknown", "perplexity", "text"]
    scores = list(line_scores(model, LINES))
    for row, one in zip(rows[:-1], scores, strict=True):
        assert (int(row[0]), row[5]) == (one.line, one.text)
        assert float(row[1]) == pytest.approx(one.log_prob, abs=1e-4)
        assert float(row[4]) == pytest.approx(one.perplexity, rel=1e-4)
    assert rows[-1][0] == "all" and float(rows[-1][4]) == pytest.approx(
        total(scores).perplexity, abs=1e-4
    )
    told = run("score", file, "--checkpoint", lstm / "best.pt", "--json")
    plain = [json.loads(line) for line in told.stdout.splitlines()]
    assert [one["log_prob"] for one in plain[:-1]] == [one.log_prob for one in scores]
    assert rnnnas.score(model, LINES) == rnnnas.score(lstm, LINES, device="cpu") == scores
    assert plain[-1]["line"] is None and plain[-1]["tokens"] == 12
    missing = run("score", tmp_path / "none.txt", "--checkpoint", lstm)
    assert missing.exit_code == 3 and not missing.stdout  # no head of a table without rows


def test_files_of_another_encoding_are_scored_and_evaluated(lstm: Path, tmp_path: Path) -> None:
    text = "".join(f"{line}\n" for line in LINES)
    plain, other = tmp_path / "plain.txt", tmp_path / "other.txt"
    plain.write_text(text, encoding="utf-8")
    other.write_bytes(text.encode("utf-16"))
    refused = run("score", other, "--checkpoint", lstm)
    assert refused.exit_code == 3 and "--encoding utf-16" in refused.stderr
    same = [run("score", file, "--checkpoint", lstm, *more).stdout
            for file, more in ((plain, ()), (other, ("--encoding", "utf-16")))]  # fmt: skip
    assert same[0] == same[1] and len(same[0].splitlines()) == 6
    same = [run("eval", lstm, "--json", "--text", file, *more).stdout
            for file, more in ((plain, ()), (other, ("--encoding", "utf-16")))]  # fmt: skip
    assert same[0] == same[1] and json.loads(same[0])["split"] == "text"
    assert run("eval", lstm, "--encoding", "utf-16").exit_code == 2
    assert run("score", plain, "--checkpoint", lstm, "--encoding", "utf-99").exit_code == 2


def test_a_row_of_scores_is_one_line_for_every_reader(lstm: Path, tmp_path: Path) -> None:
    """A carriage return inside a line, which readers of such tables take for its end."""
    file = tmp_path / "text.txt"
    file.write_bytes(b"w1 w2\rw3\tw1\nw2\n")
    rows = run("score", file, "--checkpoint", lstm).stdout_bytes.decode().split("\n")
    assert rows[1].endswith("\tw1 w2 w3 w1") and not any("\r" in row for row in rows)
