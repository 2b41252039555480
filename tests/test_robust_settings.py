"""Settings that cannot be meant: no traceback, no endless reading, nothing taken by accident."""

from __future__ import annotations

from pathlib import Path

import pytest

from rnnnas.config import plain
from rnnnas.config.plain import DEPTH, value_of
from rnnnas.config.preset_files import _file_tables
from rnnnas.errors import UsageError


@pytest.mark.parametrize("text", ["0x" + "f" * 9_000, "5\nother = 3", "1\n[x]", "9" * 5_000])
def test_a_value_that_is_no_single_setting_is_a_word(text: str) -> None:
    assert value_of(text) == text


@pytest.mark.parametrize(
    ("text", "value"), [(".5", 0.5), ("2.", 2.0), ("-.25", -0.25), ("+1.e-3", 1e-3)]
)
def test_a_number_may_be_written_short(text: str, value: float) -> None:
    assert value_of(text) == value


@pytest.mark.parametrize("text", [".", "-.", "1.2.3", ".e3", "v1."])
def test_what_only_looks_like_a_short_number_is_a_word(text: str) -> None:
    assert value_of(text) == text


def test_settings_nested_deeper_than_any_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.toml"
    path.write_text("a." * 3_000 + "a = 1")
    with pytest.raises(UsageError, match=f"nested deeper than {DEPTH} levels"):
        _file_tables(path)
    path.write_text("seed = 0x" + "f" * 9_000)
    with pytest.raises(UsageError, match="more than 64 bits"):
        _file_tables(path)


@pytest.mark.parametrize("key", ["a.", '"a b" . ', "'a'.", "x = {a."])
def test_a_key_of_many_levels_is_refused_before_it_is_parsed(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parser of Python's library takes the square of the number of levels."""
    *before, level = key.rpartition("{")
    text = "".join(before) + level * 100 + "b = 1"
    monkeypatch.setattr(plain.tomllib, "loads", lambda text: {"parsed": text})
    with pytest.raises(RecursionError, match="nested deeper"):
        plain.parse_toml(text)
    assert plain.parse_toml("a.b.c = 'one.two.three'")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="this system has no /dev/zero")
def test_a_file_without_an_end_is_refused() -> None:
    with pytest.raises(UsageError, match="more than 10,000,000 bytes"):
        _file_tables(Path("/dev/zero"))


def test_files_that_extend_one_another_for_ever_are_refused(tmp_path: Path) -> None:
    for i in range(80):
        (tmp_path / f"{i}.toml").write_text(f'extends = "{i + 1}.toml"\n')
    with pytest.raises(UsageError, match="extend one another"):
        _file_tables(tmp_path / "0.toml")
