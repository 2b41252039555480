"""Descriptions of settings, the catalogue of them, files that extend others, completion."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shlex
import tomllib
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click.shell_completion
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from test_house import parse_check

from rnnnas.cli import main
from rnnnas.config.catalogue import commented
from rnnnas.config.describe import Description, Malformed, descriptions, fields_of
from rnnnas.config.plain import from_plain, to_plain
from rnnnas.config.presets import KINDS, preset_names, preset_tables, resolve
from rnnnas.errors import UsageError
from rnnnas.nas.methods import METHODS
from rnnnas.studies.plan import ALL_KINDS, resolve_study, search_config

ROOT = Path(__file__).parents[1]


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def listed(*words: str) -> list[dict[str, Any]]:
    result = run("settings", *words, "--json")
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)["settings"]
    return found


# Descriptions


def configurations() -> Iterator[type]:
    """Every dataclass that declares settings: of each kind of run, its groups, the relaxations."""
    waiting: list[Any] = [*ALL_KINDS.values(), *(m.relaxation for m in METHODS.values())]
    seen: set[type] = set()
    while waiting:
        cls = waiting.pop()
        if dataclasses.is_dataclass(cls) and isinstance(cls, type) and cls not in seen:
            seen.add(cls)
            waiting += typing.get_type_hints(cls).values()
            yield cls


def test_every_field_is_described() -> None:
    bare = [
        f"{cls.__name__}.{name}"
        for cls in configurations()
        for name, about in descriptions(cls, strict=True).items()
        if not about.meaning
    ]
    assert not bare, f"no line `name: meaning; unit; range; why` in the docstring: {bare}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """Something.

    size: how large it is, over
        two lines; units; 1 or more; a round number
    way: how it goes; the shortest
    other words: are no field.
    """

    size: int = 10
    way: Literal["here", "there"] = "here"
    loud: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived(Base):
    """Something else.

    size: how large; -; 2 or more; small
    """

    size: int = 2


def test_a_docstring_is_read_field_by_field() -> None:
    found = descriptions(Base)
    assert found["size"] == Description(
        meaning="how large it is, over two lines", unit="units", range="1 or more",
        why="a round number",
    )  # fmt: skip
    assert found["way"].range == '"here", "there"' and found["way"].why == "the shortest"
    assert found["loud"] == Description()


def test_a_subclass_describes_anew_or_inherits() -> None:
    found = descriptions(Derived)
    assert found["size"].meaning == "how large" and found["size"].unit == ""
    assert found["way"] == descriptions(Base)["way"]


def test_a_line_with_too_few_parts_is_refused() -> None:
    @dataclass
    class Wrong:
        """x: a number; 1 or more"""

        x: int = 1

    with pytest.raises(Malformed, match=r"Wrong\.x is described in 2 parts and needs 4"):
        descriptions(Wrong, strict=True)
    assert descriptions(Wrong)["x"].meaning == "a number; 1 or more"  # a user's method, say


def test_an_error_says_what_the_setting_is() -> None:
    flags = {"corpus": "tiny", "genotype": "LSTM"}
    for setting, says in {
        "weights.lr=-1": "weights.lr: step size",
        "noise.dropout=2": "share",
    }.items():
        with pytest.raises(UsageError) as failure:
            resolve("train", preset="quick", file=None, settings=[setting], flags=flags)
        assert says in failure.value.remedy


# The catalogue


def test_every_setting_is_listed_with_its_default() -> None:
    found = listed()
    for kind, cls in KINDS.items():
        mine = {one["key"]: one for one in found if kind in one["kinds"] and not one["methods"]}
        flat = {f.key: f.default for f in fields_of(cls) if not f.group}
        assert set(flat) <= set(mine)
        assert all(mine[key]["default"] == default for key, default in flat.items())
    assert {one["key"] for one in found if "gdas" in one["methods"]} == {
        "relax.tau_start", "relax.tau_end", "relax.reach",
    }  # fmt: skip


def test_presets_that_change_a_setting_are_told() -> None:
    (hidden,) = listed("model.hidden")
    changes = {(c["preset"], c["kind"]): c["value"] for c in hidden["presets"]}
    assert hidden["default"] == 300 and hidden["unit"] == "units" and hidden["range"] == "1 or more"
    assert changes["ptb", "train"] == preset_tables("ptb")["train"]["model"]["hidden"] == 850
    assert ("ptb-darts", "search") not in changes  # whose value is the default
    text = run("settings", "model.hidden").stdout
    words = " ".join(text.split())  # the list of presets is wrapped
    assert "ptb 850 (train)" in words and "default  300" in text


def test_a_group_a_kind_or_a_last_word_will_do() -> None:
    windows = listed("windows", "--kind", "train")
    assert "windows.bptt" in {one["key"] for one in windows}
    assert {one["key"].partition(".")[0] for one in windows} == {"windows"}
    assert listed("hidden", "--kind", "train")[0]["key"] == "model.hidden"
    assert {one["methods"][0] for one in listed("relax.tau_start")} == {"gdas", "gdas-soft", "snas"}
    result = run("settings", "weights.lrr")
    assert result.exit_code == 2 and "did you mean 'weights.lr'" in result.stderr


def test_the_page_of_settings_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == generate.settings_page(), "run python docs/generate.py"


# --print-config and --config


@pytest.mark.parametrize("preset", ["quick", "quick-gdas", "ptb-darts"])
def test_commented_settings_are_read_back(preset: str, tmp_path: Path) -> None:
    first = run("search", "--corpus", "ptb", "--preset", preset, "--print-config")
    assert first.exit_code == 0, first.output
    file = tmp_path / "settings.toml"
    file.write_text(first.stdout, encoding="utf-8")
    again = run("search", "--config", str(file), "--print-config")
    assert again.stdout == first.stdout
    config = resolve("search", preset=preset, file=None, settings=(), flags={"corpus": "ptb"})
    assert tomllib.loads(first.stdout) == to_plain(config)
    assert "# step size for a window" in first.stdout


def test_settings_of_the_method_that_were_not_given_stand_as_comments() -> None:
    words = ("search", "--corpus", "ptb", "--preset", "quick-gdas", "--set", "relax.tau_end=0.5")
    text = run(*words, "--print-config").stdout
    assert "\n# tau_start = 10.0\n" in text and "\ntau_end = 0.5\n" in text


def test_a_file_stands_alone(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'corpus = "ptb"\nepochs = 3\n[search]\nmethod = "gdas"\n[train]\ngenotype = "LSTM"\n',
        encoding="utf-8",
    )
    found = json.loads(run("search", "--config", str(file), "--print-config", "--json").stdout)
    assert (found["corpus"], found["method"], found["epochs"]) == ("ptb", "gdas", 3)
    trained = json.loads(run("train", "--config", str(file), "--print-config", "--json").stdout)
    assert (trained["corpus"], trained["cell"]) == ("ptb", "lstm")
    # A flag goes before the file.
    words = ("--config", str(file), "--genotype", "DARTS_V2", "--print-config", "--json")
    assert json.loads(run("train", *words).stdout)["cell"] == "derived"


def test_without_a_corpus_or_a_cell_the_error_says_where_they_go(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("epochs = 3\n", encoding="utf-8")
    for words in (["search"], ["search", "--config", str(file)], ["train", "--genotype", "LSTM"]):
        result = run(*words)
        assert result.exit_code == 2 and "no corpus is named" in result.stderr
        assert "--corpus NAME" in result.stderr
    result = run("train", "--corpus", "ptb")
    assert result.exit_code == 2 and "--genotype" in result.stderr


# Extending


def table_of(file: Path, kind: str = "search") -> Any:
    return resolve(kind, preset=None, file=file, settings=(), flags={"corpus": "ptb"})


def test_a_file_extends_a_preset(tmp_path: Path) -> None:
    file = tmp_path / "more.toml"
    file.write_text('extends = "quick"\n[windows]\nlimit = 7\n', encoding="utf-8")
    base = resolve("search", preset="quick", file=None, settings=(), flags={"corpus": "ptb"})
    found = table_of(file)
    assert found.windows.limit == 7
    # A limit that is said takes the place of the steps that the preset means.
    assert (base.least_steps, found.least_steps) == (900, 0)
    assert dataclasses.replace(found, windows=base.windows, least_steps=900) == base
    assert found.windows.bptt == base.windows.bptt


def test_what_a_file_says_itself_counts_and_what_it_extends_does_not(tmp_path: Path) -> None:
    file = tmp_path / "more.toml"
    file.write_text('extends = "quick"\n[train]\nepochs = 2\n', encoding="utf-8")
    flags = {"corpus": "ptb", "genotype": "LSTM"}
    two = resolve("train", preset=None, file=file, settings=(), flags=flags)
    assert (two.epochs, two.least_steps) == (2, 0)
    timed = {"corpus": "ptb", "method": "gdas", "seconds": 3600.0}
    assert resolve("search", preset=None, file=file, settings=(), flags=timed).windows.limit == 0
    file.write_text('extends = "quick"\n[search.windows]\nlimit = 5\n', encoding="utf-8")
    assert resolve("search", preset=None, file=file, settings=(), flags=timed).windows.limit == 5


def test_files_that_a_file_extends_are_the_users_too(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('extends = "quick"\n[search.windows]\nlimit = 5\n')
    file = tmp_path / "top.toml"
    file.write_text('extends = "base.toml"\n[search]\nvalid_streams = 4\n', encoding="utf-8")
    timed = {"corpus": "ptb", "method": "gdas", "seconds": 3600.0}
    assert resolve("search", preset=None, file=file, settings=(), flags=timed).windows.limit == 5


def test_what_is_extended_is_not_what_the_user_set(tmp_path: Path) -> None:
    """An LSTM has no place for `noise.dropoutx`, which the preset has for other cells."""
    file = tmp_path / "more.toml"
    text = 'extends = "quick"\ncorpus = "ptb"\ngenotype = "LSTM"\n'
    file.write_text(text, encoding="utf-8")
    assert run("train", "--config", str(file), "--print-config").stderr == ""
    file.write_text(text + "[noise]\ndropoutx = 0.5\n", encoding="utf-8")
    told = run("train", "--config", str(file), "--print-config").stderr
    assert told == "warning: noise.dropoutx has no effect on this training\n"


def test_a_file_extends_a_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "base.toml").write_text(
        'extends = "quick"\n[search]\nepochs = 9\n[train]\nepochs = 8\n', encoding="utf-8"
    )
    file = tmp_path / "more.toml"
    file.write_text('extends = "inner/base.toml"\n[search.model]\nhidden = 12\n', encoding="utf-8")
    found = table_of(file)
    assert (found.epochs, found.model.hidden, found.windows.limit) == (9, 12, 900)


def test_what_a_file_says_for_all_runs_goes_before_its_base(tmp_path: Path) -> None:
    file = tmp_path / "more.toml"
    file.write_text(
        'extends = "quick"\nvalid_streams = 5\n[model]\nhidden = 6\n[train]\nepochs = 9\n',
        encoding="utf-8",
    )
    found = table_of(file)
    assert (found.valid_streams, found.model.hidden, found.epochs) == (5, 6, 1)
    flags = {"corpus": "ptb", "genotype": "LSTM"}
    trained = resolve("train", preset=None, file=file, settings=(), flags=flags)
    assert (trained.valid_streams, trained.model.hidden, trained.epochs) == (5, 6, 9)
    assert trained.windows.jitter == 5.0  # of the preset's [train]


def test_what_extends_itself_or_nothing_is_refused(tmp_path: Path) -> None:
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text('extends = "two.toml"\n', encoding="utf-8")
    two.write_text('extends = "one.toml"\n', encoding="utf-8")
    with pytest.raises(UsageError, match="extends itself"):
        table_of(one)
    one.write_text('extends = "quikc"\n', encoding="utf-8")
    with pytest.raises(UsageError, match="did you mean 'quick'"):
        table_of(one)
    one.write_text("extends = 3\n", encoding="utf-8")
    with pytest.raises(UsageError, match="must be the name of a preset"):
        table_of(one)
    one.write_text('extends = "cifar10-quick"\n', encoding="utf-8")
    with pytest.raises(UsageError, match="no settings for search"):
        table_of(one)


def test_presets_say_only_what_they_change() -> None:
    for name in preset_names():
        tables = preset_tables(name)
        assert tables["about"] and "extends" not in tables
        for kind in set(tables) & set(KINDS):
            flags = {"corpus": "ptb"}
            if kind.endswith("train"):
                flags["genotype"] = "DARTS_V2"
            config = resolve(kind, preset=name, file=None, settings=(), flags=flags)
            assert from_plain(KINDS[kind], to_plain(config)) == config
            assert tomllib.loads(commented(config)) == to_plain(config)


# Completion


def completed(*words: str) -> list[str]:
    """What the shell offers for the last word."""
    shell = ShellComplete(main, {}, "rnnnas", "_RNNNAS_COMPLETE")
    return [item.value for item in shell.get_completions(list(words[:-1]), words[-1])]


def test_values_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNNAS_HOME", str(tmp_path))
    (tmp_path / "corpora" / "mine").mkdir(parents=True)
    (tmp_path / "corpora" / "mine" / "corpus.json").write_text("{}", encoding="utf-8")
    assert completed("train", "--corpus", "mi") == ["mine"]
    assert completed("corpus", "rm", "") == ["mine"]  # those alone that can be removed
    assert {"mine", "ptb", "pydocs"} <= set(completed("corpus", "info", ""))
    assert completed("search", "--preset", "quick-g") == ["quick-gdas"]
    assert completed("search", "--method", "sdarts") == ["sdarts-rs", "sdarts-adv"]
    assert "DARTS_V2" in completed("train", "--genotype", "darts")
    assert completed("train", "--set", "windows.b") == ["windows.bptt="]
    assert completed("train", "--set", "weights.schedule=co") == [
        "weights.schedule=constant", "weights.schedule=cosine",
    ]  # fmt: skip
    assert "relax.tau_end=" in completed("search", "--set", "relax.tau")
    assert completed("study", "--methods", "darts,gdas-") == ["darts,gdas-soft"]
    assert completed("settings", "model.hid") == ["model.hidden"]


def test_runs_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNNAS_HOME", str(tmp_path))
    folder = tmp_path / "checkpoints" / "lm"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    assert completed("show", str(folder)[:-1]) == [str(folder)]
    assert completed("eval", str(folder)[:-1]) != [str(folder)]  # it has no best.pt
    (folder / "best.pt").touch()
    assert completed("eval", str(folder)[:-1]) == [str(folder)]
    assert completed("sample", "--checkpoint", str(folder)[:-1]) == [str(folder)]
    for words in (["export"], ["report"], ["train", "--from"], ["runs", "compare"]):
        assert completed(*words, str(folder)[:-1]) == [str(folder)], words


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shells_that_the_page_names_get_a_script(
    shell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert f"_RNNNAS_COMPLETE={shell}_source rnnnas" in page
    cls = click.shell_completion.get_completion_class(shell)
    assert cls is not None
    monkeypatch.setattr(cls, "_check_version", staticmethod(lambda: None), raising=False)
    assert "_RNNNAS_COMPLETE" in cls(main, {}, "rnnnas", "_RNNNAS_COMPLETE").source()


def test_commands_of_the_page_parse() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    examples = re.findall(r"^(?:# \S+ )?(rnnnas .*)$", page, re.M)
    assert len(examples) > 5
    for line in examples:
        parse_check(shlex.split(line, comments=True))


def test_the_files_of_the_page_are_read(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    of_a_run, of_a_study = re.findall(r"^```toml\n(.*?)^```", page, re.S | re.M)
    file = tmp_path / "mine.toml"
    file.write_text(of_a_run, encoding="utf-8")
    found = json.loads(run("search", "--config", str(file), "--print-config", "--json").stdout)
    assert (found["corpus"], found["method"], found["windows"]["limit"]) == ("ptb", "gdas", 300)
    file.write_text(of_a_study, encoding="utf-8")
    study = resolve_study(preset=None, file=file, settings=(), flags={})
    assert (study.corpus, len(study.seeds)) == ("ptb", 5)
    warmups = [search_config(study, method).alphas.warmup for method in study.methods]
    assert warmups == [0.0, 0.5]
