"""What the command says: no control characters, no traceback, two lines for a half-set start."""

from __future__ import annotations

import dataclasses
import io
import re
import sys
from pathlib import Path

import pytest

import rnnnas
from rnnnas import cli, distributed
from rnnnas.cli.common import echo
from rnnnas.cli.memory import memory_errors
from rnnnas.cli.processes import started_by_hand
from rnnnas.config.images import ImageTrainConfig
from rnnnas.config.plain import to_plain
from rnnnas.config.text import TrainConfig
from rnnnas.errors import UsageError, visible
from rnnnas.runs.progress import Progress

BAD = [chr(c) for c in (*range(32), *range(127, 160)) if chr(c) not in "\t\n"]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main(list(words))
    told = capsys.readouterr()
    return int(str(caught.value.code)), told.out + told.err


@pytest.mark.parametrize("bad", BAD, ids=[f"{ord(c):02x}" for c in BAD])
def test_control_characters_become_visible(bad: str) -> None:
    assert visible(f"a{bad}b\t\nä") == f"a\\x{ord(bad):02x}b\t\nä"


def test_text_that_no_encoding_has_becomes_visible() -> None:
    assert visible("a\ud800") == "a\\ud800"


def test_a_terminal_gets_no_control_characters_and_a_file_gets_the_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for terminal in (True, False):
        out = io.StringIO()
        monkeypatch.setattr(out, "isatty", lambda: terminal)  # noqa: B023
        monkeypatch.setattr(sys, "stdout", out)
        echo("a\x9b2Jb")
        assert ("\x9b" in out.getvalue()) is not terminal


def test_lines_beside_a_progress_bar_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    Progress("x", 0).line("a\x1b[2J")
    told = capsys.readouterr()
    assert "\x1b" not in told.out + told.err and "\\x1b[2J" in told.out + told.err


@pytest.mark.parametrize(
    "words",
    [("show", "sigmoid0 re\x1b]0;x\x07lu1"), ("show", "\x9b2J"), ("sh\x1bow",),
     ("train", "--corp\x1bus"), ("eval", "no\x1bthing"), ("show", "x\udc80 y1")],
)  # fmt: skip
def test_errors_hold_no_control_characters(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code, told = run(capsys, *words)
    assert code in (2, 4) and not any(bad in told for bad in BAD)
    assert "Traceback" not in told


@pytest.mark.parametrize("said", ["", "cannot allocate memory: 9 GB"])
def test_out_of_memory_ends_in_a_line_and_a_remedy(
    said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError(said) if said else MemoryError

    monkeypatch.setattr(cli.main.commands["presets"].commands["list"], "callback", fail)
    code, told = run(capsys, "presets", "list")
    assert code == 2 and "not enough memory" in told and "lower" in told


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")]
)
def test_the_remedy_for_want_of_memory_names_settings_that_there_are(
    error: Exception, images: bool
) -> None:
    with pytest.raises(UsageError, match="not enough memory") as caught, memory_errors(images):
        raise error
    named = re.findall(r"\b[a-z]+\.[a-z]+\b", caught.value.remedy)
    kind = ImageTrainConfig if images else TrainConfig
    groups = {f.name: f.default_factory for f in dataclasses.fields(kind)}
    assert len(named) == 3
    for group, key in map(_parts, named):
        assert key in to_plain(groups[group]())  # type: ignore[misc]
    assert "--fresh" in caught.value.remedy  # the folder holds the settings that were too much


def _parts(setting: str) -> tuple[str, str]:
    group, _, key = setting.partition(".")
    return group, key


def test_other_errors_of_a_run_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_errors(False):
        raise RuntimeError("shapes do not fit")


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": " "}, "RANK is not set"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE is '-2'"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE is '99"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is 0"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is 2, but WORLD_SIZE is 2"),
    ],
)
def test_a_half_set_environment_is_refused(
    given: dict[str, str], cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    for asked in (distributed.started, lambda: started_by_hand(1)):
        with pytest.raises(UsageError, match=cause) as caught:
            asked()
        assert caught.value.remedy


def test_an_empty_environment_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "")
    assert not distributed.started() and started_by_hand(2)
    monkeypatch.setenv("RANK", "1")  # it would do everything, and say nothing
    with pytest.raises(UsageError, match="RANK is 1, but WORLD_SIZE is not set"):
        distributed.started()
    monkeypatch.setenv("LOCAL_RANK", "x")
    with pytest.raises(UsageError, match="LOCAL_RANK"):
        distributed.local_rank()


def test_all_that_is_printed_beside_results_goes_through_visible() -> None:
    """A name in it could hold an escape sequence. `echo` does it for the commands."""
    package = Path(rnnnas.__file__).parent
    raw = re.compile(r"""(?<![\w.])(print\((?!\)|visible\(|")|click\.echo\()""")
    found = [
        f"{path.relative_to(package)}:{number}: {line.strip()}"
        for path in sorted(package.rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if raw.search(line) and not line.lstrip().startswith("#")
    ]
    allowed = ("cli/common.py", "distributed.py")  # `echo` itself; numbers of processes alone
    assert [line for line in found if not line.startswith(allowed)] == []


def test_a_title_above_a_progress_bar_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("search on a\x1b[2J", 1):
        pass
    told = capsys.readouterr()
    assert "\x1b" not in told.out + told.err


@pytest.mark.parametrize(("coding", "text"), [("utf-8", "a\ud800b\udce9"), ("ascii", "2 \u2264 3")])
def test_what_an_encoding_lacks_is_no_traceback(
    coding: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=coding, write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    echo(text)
    assert raw.getvalue().decode(coding) == ascii(text)[1:-1] + "\n"
