"""Source text: what is read, and every kind of bad input with file, line and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from rnnnas.data import text_files as module
from rnnnas.data.text_files import (
    BLOCK,
    LINE_LIMIT,
    file_text,
    joined,
    list_text,
    read_lines,
    sliced,
)
from rnnnas.errors import DataError

GOOD = b"a first line\nand a second\n"

# name: (bytes, what the message must say). Every case is a file that must be refused.
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "only a byte-order mark": (b"\xef\xbb\xbf", "white space only|empty"),
    "blank": (b" \n\t\n\r\n\n", "white space only"),
    "NUL": (GOOD + b"one \0 NUL\n", "line 3, column 5: a NUL"),
    "binary": (bytes(range(1, 9)) * 500, "line 1: this is binary"),
    "binary after text": (b"text\n" + bytes(range(1, 9)) * 99, "line 2: this is binary"),
    "random bytes": (bytes(i * i * 7919 % 251 for i in range(5000)), "line 1"),
    "UTF-16 with mark": ("two\nlines\n".encode("utf-16"), "UTF-16"),
    "UTF-16 LE": ("two\nlines\n".encode("utf-16-le"), "UTF-16"),
    "UTF-16 BE": ("two\nlines\n".encode("utf-16-be"), "UTF-16"),
    "UTF-32": ("two\nlines\n".encode("utf-32"), "UTF-32"),
    "Latin-1": (GOOD + "caf\xe9 here\n".encode("latin-1"), "line 3, byte 4: not UTF-8"),
    "cut inside a character": (GOOD + b"caf\xc3", "line 3, byte 4: not UTF-8"),
    "HTML": (b"<!DOCTYPE html>\n<html><body>404</body></html>\n", "HTML page"),
    "HTML after a mark": (b"\xef\xbb\xbf\n <HTML lang='en'>\n<p>x</p>\n", "HTML page"),
    "XHTML": (b"<?xml version='1.0'?>\n<!-- c -->\n<html></html>\n", "HTML page"),
    "HTML after many comments": (b"<!-- c -->" * 60 + b"<html></html>\n", "HTML page"),
    "gigantic line": (GOOD + b"word-" * (LINE_LIMIT // 5 + 1) + b"\nmore\n", "line 3 is longer"),
    "gigantic last line": (b"x" * (2 * BLOCK + LINE_LIMIT), "line 1 is longer"),
    "zip": (b"PK\x03\x04" + b"abc" * 50, "a zip archive"),
    "gzip": (b"\x1f\x8b\x08\x00" + b"abc" * 50, "gzip file"),
    "docx": (b"PK\x03\x04" + b"." * 26 + b"[Content_Types].xml word/document.xml", "a Word doc"),
    "XML": (b"\xef\xbb\xbf<?xml version='1.0'?>\n<doc><p>a b</p></doc>\n" * 9, "an XML document"),
    "PostScript": (b"%!PS-Adobe-3.0\n(a b) show\n" * 9, "a PostScript document"),
    "JSON arrays": (b'["a b", 1]\n' * 9, "a JSON array"),
    "RTF": (b"{\\rtf1\\ansi hello}" * 9, "an RTF document"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer"),
    "JSON lines": (
        b'{"text": "a b", "id": 1}\n' * 9,
        "JSON lines.*columns: text, id",
    ),
    "JSON array": (b'[\n {"text": "a b"}\n]\n', "a JSON array"),
    "CSV": (b"id,text\n1,a b\n2,c d\n3,e f\n4,g h\n", "CSV with a header.*columns: id, text"),
    "tar": (b"x" * 257 + b"ustar" + b"\0" * 300, "a tar archive"),
    "parquet": (b"PAR1" + b"abc" * 50, "a parquet file"),
    "PDF": (b"%PDF-1.4\n" + b"abc" * 50, "a PDF"),
}


def write(folder: Path, data: bytes) -> Path:
    path = folder / "some.txt"
    path.write_bytes(data)
    return path


def test_bad_bytes_are_refused_with_file_line_and_remedy(tmp_path: Path) -> None:
    for name, (data, says) in BAD.items():
        path = write(tmp_path, data)
        with pytest.raises(DataError, match=says) as caught:
            read_lines(path)
        error = caught.value
        assert str(path) in error.cause, name
        assert error.remedy and error.exit_code == 3, name
    print(f"{len(BAD)} kinds of bad bytes refused")


def test_bad_paths_are_refused(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    cases = {tmp_path: "is a directory", tmp_path / "no.txt": "no such file"}
    cases[tmp_path / "pipe"] = "not a regular file"
    # The kernel refuses to read it, whoever asks: unlike a file without permissions, to root too.
    if Path("/proc/self/mem").is_file():
        cases[Path("/proc/self/mem")] = "cannot be read"
    for path, says in cases.items():
        with pytest.raises(DataError, match=says) as caught:
            read_lines(path)
        assert caught.value.remedy
    print(f"{len(cases)} kinds of bad paths refused")


def test_permissions_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    path.chmod(0)
    try:
        path.read_bytes()
    except PermissionError:
        with pytest.raises(DataError, match="Permission denied"):
            read_lines(path)
    else:
        pytest.skip("this user reads files without permission")


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (GOOD, ["a first line", "and a second"]),
        (b"no line end", ["no line end"]),
        (b"a\r\nb\r\n\r\nc", ["a", "b", "", "c"]),
        (b"\xef\xbb\xbfmarked\n", ["marked"]),
        (b"a\n\n\nb\n\n", ["a", "", "", "b", ""]),
        (
            "form\x0cfeed and \u2028 stay\nœuvre 日本\n".encode(),
            ["form\x0cfeed and \u2028 stay", "œuvre 日本"],
        ),
        (b"x" * LINE_LIMIT + b"\n", ["x" * LINE_LIMIT]),
    ],
    ids=["plain", "no end", "CRLF", "BOM", "blank lines", "separators", "longest line"],
)
def test_lines(tmp_path: Path, data: bytes, lines: list[str]) -> None:
    path = write(tmp_path, data)
    assert read_lines(path) == lines


@pytest.mark.parametrize("block", [1, 2, 3, 7])
def test_blocks_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    path = write(tmp_path, "œ a\r\n日本語 b\n\nlast".encode())
    assert read_lines(path) == ["œ a", "日本語 b", "", "last"]


def test_a_text_is_read_again_and_hashed(tmp_path: Path) -> None:
    import hashlib

    read = file_text(write(tmp_path, GOOD))
    assert list(read.lines()) == list(read.lines())
    assert read.digest is not None and read.digest() == hashlib.sha256(GOOD).hexdigest()


def test_joined_and_sliced() -> None:
    one, two = list_text("one", ["a", "b"]), list_text("two", ["c"])
    both = joined([one, two], "both")
    assert list(both.lines()) == ["a", "b", "c"]
    assert list(sliced(both, 1, 3).lines()) == ["b", "c"]
    assert joined([one], "x") is one


def test_names_are_made_visible() -> None:
    assert module.shown("a\x1b[31m\n\udcff") == "a\\x1b[31m\\x0a\\udcff"


def test_comments_without_a_page_are_text_and_are_seen_at_once(tmp_path: Path) -> None:
    """A pattern that tries every way to part them would take longer than the universe has."""
    path = tmp_path / "a.md"
    path.write_bytes(b"<!-- c -->" * 60 + b" words\n" + GOOD)
    assert next(file_text(path).lines()).endswith("words")
