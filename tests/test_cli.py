"""The command line: the contract of names, keys and exit codes, run as a user runs it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rnnnas.cli import main
from rnnnas.errors import Interrupted

PTB = Path(__file__).parents[2] / "shared" / "data" / "ptb.zip"
SMALL = ["--preset", "smoke", "--set", "model.hidden=8", "--set", "windows.limit=4"]
SMALL += ["--set", "valid_streams=4"]
SMALL_TRAIN = [*SMALL, "--set", "test_streams=4"]


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def answer(*words: str) -> dict[str, Any]:
    """The one JSON object that a command prints on standard output."""
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    value: dict[str, Any] = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    return value


def refused(code: int, *words: str) -> str:
    """The message of a command that fails as expected: a line or two, no traceback."""
    result = run(*words)
    assert result.exit_code == code, (result.exit_code, result.output)
    assert "Traceback" not in result.output
    assert result.stdout == ""
    return result.stderr


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RNNNAS_HOME", str(tmp_path))
    lines = [f"the {a} {b} sat on the {c}" for a in "abcde" for b in "fghij" for c in "klmno"]
    (tmp_path / "text.txt").write_text("\n".join(lines * 3) + "\n", encoding="utf-8")
    assert run("corpus", "add", "tiny", "--from", str(tmp_path / "text.txt")).exit_code == 0
    return tmp_path


def test_search_train_eval_sample_show(home: Path) -> None:
    """The main way through, with the promised JSON keys."""
    found = answer("search", "--corpus", "tiny", *SMALL, "--seed", "2")
    assert {"run", "genotype", "seconds", "valid_perplexity"} <= set(found)
    assert found["run"] == str(home / "checkpoints/search-tiny-darts-s2")
    trained = answer("train", "--corpus", "tiny", *SMALL_TRAIN, "--genotype", found["run"])
    wanted = {
        "run", "checkpoint", "parameters", "seconds", "valid_perplexity", "test_perplexity",
    }  # fmt: skip
    assert wanted <= set(trained)
    assert trained["run"] == str(home / "checkpoints/train-tiny-search-tiny-darts-s2-s1")
    best = trained["checkpoint"]
    config = json.loads((Path(trained["run"]) / "config.json").read_text())["config"]
    assert config["genotype"] == found["genotype"]
    evaluated = answer("eval", "--checkpoint", best)
    assert {"split", "perplexity", "nats", "tokens", "unknown"} <= set(evaluated)
    assert evaluated["split"] == "test"
    assert evaluated["perplexity"] == pytest.approx(trained["test_perplexity"], rel=1e-6)
    valid = answer("eval", "--checkpoint", trained["run"], "--split", "valid")
    assert valid["perplexity"] == pytest.approx(trained["valid_perplexity"], rel=1e-6)
    own = home / "own.txt"
    own.write_text("the a f sat on the zebra\n" * 3, encoding="utf-8")
    assert answer("eval", "--checkpoint", best, "--text", str(own))["unknown"] == 3
    text = answer("sample", "--checkpoint", best, "--prompt", "the a", "--tokens", "5")["text"]
    assert text.startswith("the a")
    assert json.loads(run("show", found["run"], "--format", "json").stdout) == found["genotype"]
    assert run("show", found["run"], "--format", "svg").stdout.startswith("<svg")
    drawing = home / "cell.dot"
    assert run("show", "DARTS_V2", "--format", "dot", "--out", str(drawing)).exit_code == 0
    assert drawing.read_text().startswith("digraph")
    assert "58.1/55.7" in run("show", "DARTS_V2").stdout


def test_eval_that_adapts(home: Path) -> None:
    words = ["train", "--corpus", "tiny", *SMALL_TRAIN, "--genotype", "tanh0"]
    best = answer(*words)["checkpoint"]
    result = run("eval", "--checkpoint", best, "--dynamic", "--cache", "--json")
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1 and "choose dynamic" in result.stderr
    assert value["perplexity"] != value["plain_perplexity"]
    assert {"lr", "decay", "steps", "epsilon", "valid_perplexity"} <= set(value["dynamic"])
    assert {"size", "theta", "share", "valid_perplexity"} <= set(value["cache"])
    again = run("eval", "--checkpoint", best, "--dynamic", "--cache")
    assert "choose" not in again.stderr  # kept beside the checkpoint
    assert f"test perplexity {value['perplexity']:.4f}" in again.stdout
    assert f"without adapting {value['plain_perplexity']:.4f}" in again.stdout
    assert "dynamic: lr " in again.stdout and "cache: size " in again.stdout
    alone = answer("eval", "--checkpoint", best, "--cache", "--split", "valid")
    assert "dynamic" not in alone and alone["plain_perplexity"] > 0


def test_plain_output_names_the_next_step(home: Path) -> None:
    result = run("search", "--corpus", "tiny", *SMALL, "--out", str(home / "s"))
    assert result.exit_code == 0
    assert "validation perplexity" in result.stdout
    assert f"rnnnas train --corpus tiny --genotype {home / 's'}" in result.stderr
    again = run("search", "--corpus", "tiny", *SMALL, "--out", str(home / "s"))
    assert again.stdout == result.stdout
    assert "finished" in again.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["search", "--corpus", "nosuch"], 3, "nosuch"),
        (["search", "--corpus", "tiny", "--preset", "quik"], 2, "did you mean 'quick'"),
        (["search", "--corpus", "tiny", "--preset", "ptb"], 2, "no settings for search"),
        (["search", "--corpus", "tiny", "--method", "dart"], 2, "did you mean 'darts"),
        (["search", "--corpus", "tiny", "--set", "weights.lrr=1"], 2, "did you mean 'lr'"),
        (["search", "--corpus", "tiny", "--set", "epochs=many"], 2, "epochs"),
        (["search", "--corpus", "tiny", "--set", "epochs"], 2, "key=value"),
        (["search", "--corpus", "tiny", "--device", "tpu9"], 2, "--device cpu"),
        (["search", "--corpus", "tiny", "--set", "windows.streams=4000"], 3, "windows.streams=N"),
        (["search", "--corpus", "tiny", "--set", "valid_streams=4000"], 3, "valid_streams=N"),
        (["search", "--corpus", "tiny", "--config", "/no/such.toml"], 2, "such.toml"),
        (["train", "--corpus", "tiny", "--genotype", "DARTS_V3"], 2, "did you mean 'DARTS_V"),
        (["train", "--corpus", "tiny", "--genotype", "tanh0 swish1"], 2, "swish"),
        (["train", "--corpus", "tiny", "--genotype", "tanh0 relu2"], 2, "states 0 to 1"),
        (["train", "--corpus", "tiny"], 2, "--genotype"),
        (["train", "--corpus", "tiny", "--genotype", "LSTN"], 2, "did you mean 'LSTM'"),
        (["search", "--corpus", "tiny", "--set", "model.layers=2"], 2, "model.layers = 2"),
        (["show", "LSTM", "--format", "svg"], 2, "LSTM is no genotype"),
        (["eval", "--checkpoint", "/no/best.pt"], 4, "/no/best.pt"),
        (["corpus", "add", "x", "--from", "/no/file.txt"], 3, "/no/file.txt"),
        (["corpus", "info", "nosuch"], 3, "nosuch"),
        (["show", "nothing"], 2, "nothing"),
        (["presets", "show", "smok"], 2, "did you mean 'smoke'"),
        (["board", "/no/such/folder"], 2, "/no/such/folder"),
        (["nocommand"], 2, "nocommand"),
    ],
)
def test_expected_failures(words: list[str], code: int, message: str, home: Path) -> None:
    text = refused(code, *words)
    assert message in text
    assert len(text.strip().splitlines()) <= 5


def test_dry_run_and_config(home: Path) -> None:
    dry = answer("search", "--corpus", "tiny", *SMALL, "--dry-run")
    sizes = {"parameters", "steps_per_epoch", "epochs", "config"}
    assert set(dry) == {*sizes, "seconds", "memory_bytes"}
    assert dry["seconds"] > 0 and dry["memory_bytes"] > 1e6
    shown = run("search", "--corpus", "tiny", *SMALL, "--dry-run").stdout.splitlines()
    assert len(shown) == 2 and "memory" in shown[0] and "parameters" in shown[1]
    budgeted = run("search", "--corpus", "tiny", *SMALL, "--dry-run", "--minutes", "3").stdout
    assert budgeted.startswith("budget 3 minutes")
    verbose = run("search", "--corpus", "tiny", *SMALL, "--dry-run", "--verbose").stdout
    assert "[windows]" in verbose and verbose.index("parameters") < verbose.index("[windows]")
    assert (dry["steps_per_epoch"], dry["epochs"]) == (4, 2)
    cells = answer("search", "--corpus", "tiny", *SMALL, "--method", "random", "--dry-run")
    assert (cells["steps_per_cell"], cells["cells"]) == (1, 8)
    assert not (home / "checkpoints").exists()
    printed = run("search", "--corpus", "tiny", *SMALL, "--print-config").stdout
    (home / "own.toml").write_text(printed, encoding="utf-8")
    again = run("search", "--corpus", "tiny", "--config", str(home / "own.toml"), "--print-config")
    assert again.stdout == printed


def test_paper_presets_say_that_they_use_the_validation_text(home: Path) -> None:
    result = run("search", "--corpus", "tiny", *SMALL, "--set", "alphas.text=valid")
    assert "alphas are trained on the validation text" in result.stderr


def test_random_cells_by_seed(home: Path) -> None:
    genotypes = [
        json.loads(run("show", name, "--format", "json").stdout)
        for name in ("random:1", "random:1", "random:2")
    ]
    assert genotypes[0] == genotypes[1] != genotypes[2]
    dry = ["train", "--corpus", "tiny", *SMALL_TRAIN, "--dry-run", "--genotype"]
    by_seed = answer(*dry, "random", "--seed", "2")["config"]["genotype"]
    assert by_seed == genotypes[2]


@pytest.mark.parametrize(
    ("command", "entries", "parameters"),
    [
        (["search", "--preset", "ptb-darts"], 10_000, 4_810_000),
        (["train", "--preset", "ptb", "--genotype", "DARTS_V2"], 10_000, 22_960_000),
        (["train", "--preset", "wikitext-2", "--genotype", "DARTS_V2"], 33_278, 33_127_878),
    ],
    ids=lambda value: value[2] if isinstance(value, list) else str(value),
)
def test_published_parameter_counts(
    command: list[str], entries: int, parameters: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """With as many entries as the vocabularies of PTB and WikiText-2 have."""
    monkeypatch.setenv("RNNNAS_HOME", str(tmp_path))
    # Networks of this size are built, and not trained to see how long it takes.
    monkeypatch.setattr("rnnnas.searching.costs.search_seconds", lambda *args: 1.0)
    monkeypatch.setattr("rnnnas.training.costs.training_seconds", lambda *args: 1.0)
    # And what ends a line, and the unknown.
    text = " ".join(f"w{i}" for i in range(entries - 2)).replace(" w9 ", "\nw9 ", 1)
    (tmp_path / "texts").mkdir()
    for split in ("train", "valid", "test"):
        (tmp_path / f"texts/x.{split}.txt").write_text(f"{text}\n", encoding="utf-8")
    words = ["corpus", "add", "many", "--from", str(tmp_path / "texts")]
    added = answer(*words, "--vocab", "words", "--vocab-size", str(entries))
    assert [added[split] for split in ("train", "valid", "test")] == [entries] * 3
    assert added["vocabulary"] == entries and added["canonical"] is None
    assert answer(*command, "--corpus", "many", "--dry-run")["parameters"] == parameters


def in_a_process(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rnnnas", *words], env={**os.environ, "RNNNAS_HOME": str(home)},
        text=True, capture_output=True, timeout=600, check=True,
    )  # fmt: skip


def test_a_search_in_a_process_of_its_own(home: Path) -> None:
    """Plain lines, not control codes, where standard error is no terminal."""
    result = in_a_process(home, "search", "--corpus", "tiny", *SMALL, "--json")
    assert len(json.loads(result.stdout)["genotype"]["recurrent"]["nodes"]) == 8
    assert "\x1b" not in result.stderr and "ppl" in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(not PTB.exists(), reason="the Penn Treebank archive is not beside the checkout")
def test_smoke_search_on_ptb(tmp_path: Path) -> None:
    """The whole command on the real text."""
    added = in_a_process(tmp_path, "corpus", "add", "ptb", "--from", str(PTB), "--json")
    assert json.loads(added.stdout)["canonical"] is True
    result = in_a_process(tmp_path, "search", "--corpus", "ptb", "--preset", "smoke", "--json")
    assert len(json.loads(result.stdout)["genotype"]["recurrent"]["nodes"]) == 8


def test_a_refused_run_leaves_no_folder_behind(home: Path) -> None:
    out = home / "out"
    words = ["train", "--corpus", "tiny", *SMALL_TRAIN, "--genotype", "tanh0", "--out", str(out)]
    refused(3, *words, "--set", "windows.streams=5000")
    assert not out.exists()
    assert run(*words).exit_code == 0
    assert run("show", str(out)).stdout.rstrip().endswith("tanh0")


def test_a_setting_of_a_group_is_pointed_at(home: Path) -> None:
    message = refused(2, "search", "--corpus", "tiny", "--set", "dropout=0.3")
    assert "noise.dropout" in message


def test_the_seed_setting_decides_a_random_cell_too(home: Path) -> None:
    dry = ["train", "--corpus", "tiny", *SMALL_TRAIN, "--dry-run", "--genotype", "random"]
    by_flag = answer(*dry, "--seed", "5")["config"]["genotype"]
    assert by_flag == answer(*dry, "--set", "seed=5")["config"]["genotype"]
    assert by_flag != answer(*dry)["config"]["genotype"]


@pytest.mark.parametrize("name", ["LSTM", "gru"])
def test_baselines_by_name(name: str, home: Path) -> None:
    words = ["train", "--corpus", "tiny", *SMALL_TRAIN, "--genotype", name]
    words += ["--set", "noise.weightdrop=0.2", "--set", "model.layers=2"]
    words += ["--set", "model.softmaxes=2", "--set", "weights.finetune_epochs=1"]
    dry = answer(*words, "--dry-run")
    gates = {"LSTM": 4, "gru": 3}[name]
    vocabulary = answer("corpus", "info", "tiny")["vocabulary"]
    sizes = vocabulary * 9 + 2 * gates * (8 * 16 + 16) + 2 * (8 * 8 + 8)
    assert dry["parameters"] == sizes
    assert dry["config"]["cell"] == name.lower() and dry["config"]["genotype"] == {}
    trained = answer(*words)
    assert trained["run"] == str(home / f"checkpoints/train-tiny-{name}-s1")
    assert trained["parameters"] == sizes
    evaluated = answer("eval", "--checkpoint", trained["checkpoint"])
    assert evaluated["perplexity"] == pytest.approx(trained["test_perplexity"], rel=1e-6)
    shown = run("show", name).stdout
    assert shown.startswith(f"{name.upper()}: torch's own cell") and shown.count("\n") == 1


def test_extreme_temperatures(home: Path) -> None:
    words = ["train", "--corpus", "tiny", *SMALL_TRAIN, "--genotype", "tanh0"]
    best = answer(*words)["checkpoint"]
    greedy = answer("sample", "--checkpoint", best, "--temperature", "0")
    assert answer("sample", "--checkpoint", best, "--temperature", "1e-40") == greedy
    refused(2, "sample", "--checkpoint", best, "--temperature", "nan")


def test_a_moved_run_reports_where_it_is_now(home: Path) -> None:
    words = ["train", "--corpus", "tiny", *SMALL_TRAIN, "--genotype", "tanh0", "--out"]
    first = answer(*words, str(home / "a"))
    (home / "a").rename(home / "b")
    moved = answer(*words, str(home / "b"))
    assert moved == first | {"run": str(home / "b"), "checkpoint": str(home / "b/best.pt")}
    (home / "b/result.json").write_text("{}", encoding="utf-8")
    message = refused(4, *words, str(home / "b"))
    assert "result.json" in message and "its seal is gone" in message


def test_names_of_published_cells_in_any_case(home: Path) -> None:
    lower = run("show", "darts_v2", "--format", "json").stdout
    assert lower == run("show", "DARTS_V2", "--format", "json").stdout


def test_print_config_as_json(home: Path) -> None:
    config = answer("search", "--corpus", "tiny", *SMALL, "--print-config")
    assert config["corpus"] == "tiny" and config["model"]["hidden"] == 8


def test_a_damaged_corpus_is_listed_as_such(home: Path) -> None:
    (home / "corpora/tiny/corpus.json").write_text("{", encoding="utf-8")
    listed = run("corpus", "list")
    assert listed.exit_code == 0
    assert any("tiny" in line and "damaged" in line for line in listed.stdout.splitlines())


def test_too_large_a_network_is_no_traceback(home: Path) -> None:
    words = ["train", "--corpus", "tiny", *SMALL_TRAIN, "--genotype", "tanh0", "--dry-run"]
    assert "memory" in refused(2, *words, "--set", "model.hidden=30000000")


def test_a_folder_with_an_odd_name_holds_a_run(home: Path) -> None:
    out = os.fsdecode(os.fsencode(home) + b"/caf\xe9")
    words = ["train", "--corpus", "tiny", *SMALL_TRAIN, "--genotype", "tanh0", "--out", out]
    assert run(*words, "--json").exit_code == 0
    assert (Path(out) / "result.json").is_file()


def test_termination_outside_a_run_cleans_up(home: Path) -> None:
    """Preparing a corpus is interrupted: nothing half-made stays, and the exit code says so."""
    big = home / "big.txt"
    big.write_text("a b c d e f g h\n" * 2_000_000, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "rnnnas", "corpus", "add", "big", "--from", str(big)],
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 600  # a machine with other work starts processes slowly
    while time.monotonic() < deadline:
        if list((home / "corpora").glob(".big*")) or process.poll() is not None:
            break
        time.sleep(0.01)
    process.terminate()
    assert process.wait(600) == 143
    assert not list((home / "corpora").glob(".big*"))


def test_a_search_is_told_from_a_training(home: Path) -> None:
    """Its folder and its state.pt hold no model: which command trains one?"""
    out = home / "a search"  # a blank: what is printed can be pasted all the same
    words = ["search", "--corpus", "tiny", *SMALL, "--out", str(out)]
    found = run(*words)
    assert found.exit_code == 0
    for command, path in (("eval", out), ("eval", out / "state.pt"), ("sample", out)):
        message = refused(4, command, "--checkpoint", str(path))
        assert "is a search" in message and "no trained model" in message
    remedy = message.split("`")[1]
    assert remedy in found.stderr
    trained = run(*shlex.split(remedy)[1:], *SMALL_TRAIN, "--out", str(home / "a model"))
    assert trained.exit_code == 0, trained.output
    (line,) = [line for line in trained.stderr.splitlines() if line.startswith("evaluate it: ")]
    pasted = shlex.split(line.removeprefix("evaluate it: "))
    assert pasted[0] == "rnnnas" and run(*pasted[1:]).exit_code == 0
    (out / "genotype.json").unlink()  # as in a search that is not at its end
    assert "finish the search" in refused(4, "eval", "--checkpoint", str(out))


def test_what_continues_a_fresh_run_that_was_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise Interrupted("stopped by SIGINT; the state is saved in x-2", "the same", 130)

    monkeypatch.setattr("rnnnas.cli.runs._resolve", stopped)
    for words, told in (([], "the same"), (["--fresh"], "without --fresh, and with that folder")):
        done = CliRunner().invoke(main, ["train", "--corpus", "x", "--genotype", "LSTM", *words])
        assert done.exit_code == 130 and told in done.output


def test_settings_without_effect_are_warned_of(home: Path) -> None:
    def warned(genotype: str, *words: str, preset: str = "ptb") -> list[str]:
        start = ["train", "--corpus", "tiny", "--preset", preset, "--genotype", genotype]
        result = run(*start, "--print-config", *words)
        assert result.exit_code == 0
        return [line for line in result.stderr.splitlines() if "no effect" in line]

    x, nodes = ("--set", "noise.dropoutx=0.3"), ("--set", "model.nodes=4")
    assert warned("LSTM", *x, *x) == ["warning: noise.dropoutx has no effect on this training"]
    assert warned("GRU", *x, *nodes)[1:] == ["warning: model.nodes has no effect on this training"]
    assert len(warned("DARTS_V2", *nodes, *x)) == 1
    assert warned("DARTS_V2", *x) == warned("DARTS_V2", "--set", "save_seconds=9") == []
    assert warned("DARTS_V2", "--set", "capture=on") == []
    assert "dropoutx = 0.75" in run("presets", "show", "ptb").stdout
    assert warned("LSTM") == warned("LSTM", preset="wikitext-2") == []
    own = home / "own.toml"
    own.write_text("[noise]\ndropoutx = 0.3\n[model]\nnodes = 8\n", encoding="utf-8")
    assert len(warned("LSTM", "--config", str(own))) == 1  # 8 is what it is anyway
    assert warned("DARTS_V2", "--config", str(own)) == []


def test_a_small_text_gets_the_pieces_it_supports(home: Path) -> None:
    words = ["corpus", "add", "sp", "--from", str(home / "text.txt"), "--vocab", "sentencepiece"]
    added = run(*words)
    assert added.exit_code == 0
    (line,) = [line for line in added.stdout.splitlines() if line.startswith("note:")]
    size = answer("corpus", "info", "sp")["vocabulary"]
    assert line == f"note: {size:,} sentencepieces, all that the training text supports"
    words[2] = "sp2"
    assert f"at most {size} pieces" in refused(3, *words, "--vocab-size", "8000")
    asked = run(*words, "--vocab-size", str(size))
    assert asked.exit_code == 0 and "note:" not in asked.stdout
