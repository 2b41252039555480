"""Where output goes: odd paths, links, devices, a full disk, a reader that goes away."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import SMALL, SMALL_TRAIN, home, refused, run

import rnnnas
from rnnnas.errors import CheckpointError, DiskError, UsageError
from rnnnas.runs.files import write_atomic, write_where_told

__all__ = ["home"]  # a fixture

FULL = Path("/dev/full")
full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
LONG = "x" * 300


def show(out: Path) -> None:
    result = run("show", "DARTS_V2", "--format", "svg", "--out", str(out))
    assert result.exit_code == 0 and f"wrote {out}" in result.stderr, result.output


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    target, link = tmp_path / "deep/cell.svg", tmp_path / "link.svg"
    link.symlink_to("deep/cell.svg")
    for _ in range(2):  # the target is missing, then there
        show(link)
        assert link.is_symlink() and target.read_text().startswith("<svg")
        target.write_text("old")
    assert {path.name for path in tmp_path.iterdir()} == {"deep", "link.svg"}
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    message = refused(5, "show", "DARTS_V2", "--out", str(tmp_path / "a"))
    assert "symbolic links" in message and len(message.splitlines()) == 2


@pytest.mark.parametrize("name", ["best.pt", "thesis.docx", "notes"])
def test_a_file_that_holds_something_else_by_its_name_is_not_replaced(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text("mine")
    for words in (["show", "DARTS_V2"], ["show", "DARTS_V2", "--compare", "ENAS"]):
        assert "it is left as it is" in refused(2, *words, "--out", str(path))
    for suffixes in ((".html", ".htm"), (".onnx",)):
        with pytest.raises(UsageError, match="by its name it holds something else"):
            write_where_told(path, b"x", suffixes)
    assert path.read_text() == "mine"
    write_where_told(path, b"x", (path.suffix,))
    path.write_text("")  # nothing of it is missed
    show(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_file_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_where_told(pipe, b"cell", ())
        assert os.read(reader, 100) == b"cell"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode) and list(tmp_path.iterdir()) == [pipe]


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path: Path) -> None:
    for name in ("x" * 255, "\N{GRINNING FACE}" * 63):
        write_atomic(tmp_path / name, lambda file: file.write(b"1"))
        assert (tmp_path / name).read_bytes() == b"1"
    with pytest.raises(DiskError, match="File name too long"):
        write_atomic(tmp_path / ("x" * 256), lambda file: file.write(b"1"))


@pytest.mark.parametrize("where", [LONG, "text.txt/deeper/run"])
@pytest.mark.parametrize(
    "words",
    [
        ["search", "--corpus", "tiny", *SMALL],
        ["search", "--corpus", "tiny", *SMALL, "--fresh"],
        ["train", "--corpus", "tiny", *SMALL_TRAIN, "--genotype", "tanh0"],
        ["show", "DARTS_V2"],
    ],
    ids=["search", "fresh", "train", "show"],
)
def test_an_impossible_out_is_two_lines(words: list[str], where: str, home: Path) -> None:
    message = refused(5, *words, "--out", str(home / where))
    assert "could not be written" in message and "--out" in message
    lines = message.splitlines()
    # Where there is no compiler, a note says so before.
    assert len([line for line in lines if not line.startswith("note: ")]) == 2


def test_an_impossible_home_is_two_lines(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "checkpoints").write_text("a file")
    *_, cause, remedy = refused(5, "demo", "--corpus", "tiny").splitlines()
    assert cause.startswith("rnnnas: ") and "Not a directory" in cause and "--out" in remedy
    monkeypatch.setenv("RNNNAS_HOME", str(home / LONG))
    assert len(refused(5, "demo").splitlines()) == 2


@pytest.mark.parametrize("name", ["eval", "sample"])
def test_a_checkpoint_of_an_impossible_name(name: str) -> None:
    assert "check the path" in refused(4, name, "--checkpoint", LONG)


def test_a_model_of_an_impossible_name() -> None:
    for door in (rnnnas.load, rnnnas.sample):
        with pytest.raises(CheckpointError):
            door(LONG)


# Standard output


def output_of(stdout: object, *words: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own: only there is standard output a real descriptor."""
    return subprocess.run(
        [sys.executable, "-m", "rnnnas", *words], stdout=stdout, stderr=subprocess.PIPE,
        text=True, timeout=600,
    )  # fmt: skip


@full
@pytest.mark.parametrize("words", [["show", "DARTS_V2"], ["presets", "list", "--json"]])
def test_a_full_disk_below_standard_output(words: list[str]) -> None:
    with FULL.open("w") as device:
        done = output_of(device, *words)
    assert done.returncode == 5
    lines = done.stderr.splitlines()
    assert len(lines) == 2 and lines[0].startswith("rnnnas: standard output"), done.stderr


@pytest.mark.parametrize("words", [["show", "DARTS_V2"], ["--help"], ["presets", "list", "--json"]])
def test_a_reader_that_is_gone(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = output_of(writer, *words)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@full
def test_an_out_on_a_full_disk() -> None:
    message = refused(5, "show", "DARTS_V2", "--out", str(FULL))
    assert "/dev/full could not be written" in message
    assert stat.S_ISCHR(FULL.stat().st_mode)


@pytest.mark.skipif(os.name != "posix", reason="needs a shell's way of closing a descriptor")
def test_no_standard_output_at_all() -> None:
    code = "import os, sys; os.close(1); os.execv(sys.executable, sys.argv[1:])"
    words = [sys.executable, "-m", "rnnnas", "show", "DARTS_V2"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=600
    )
    assert (done.returncode, done.stderr) == (0, "")
