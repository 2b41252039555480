"""Text as people have it: encodings, packers, tables, folders, titles; and remedies, followed."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import shlex
import socket
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from sample_sources import left_behind, text_of, written, zipped

from rnnnas.cli import main
from rnnnas.data import text_files as text_module
from rnnnas.data.borders import broken
from rnnnas.data.corpus import SPLITS, VocabOptions, add_corpus
from rnnnas.data.text_files import Text
from rnnnas.data.text_sources import natural, split_of
from rnnnas.errors import DataError, UsageError

BYTES = VocabOptions(kind="bytes")
LINES = [f"Zeile {i}: Grüße, naïve “Füße” und {i * 7} Äpfel." for i in range(200)]
WHOLE = "".join(f"{line}\n" for line in LINES)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RNNNAS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def added(source: Path, **options: Any) -> str:
    """The text of all splits of the corpus made of a source, byte for byte."""
    corpus = add_corpus("own", source, BYTES, replace=True, **options)
    whole = "".join(text_of(corpus, split) for split in SPLITS)
    assert sum(corpus.units(s).bytes or 0 for s in SPLITS) == len(whole.encode())
    return whole


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["corpus", "add", *words])


def as_zstd(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


@pytest.mark.parametrize(
    ("encoding", "asked"),
    [("utf-16", "utf-16"), ("utf-16-be", "UTF-16BE"), ("cp1252", "windows-1252"),
     ("utf-8-sig", "utf-8-sig"), ("utf-32", "utf-32")],
)  # fmt: skip
def test_encodings(tmp_path: Path, encoding: str, asked: str) -> None:
    path = written(tmp_path / "t.txt", WHOLE.encode(encoding))
    assert added(path, encoding=asked) == WHOLE
    with pytest.raises(UsageError, match="not known"):
        add_corpus("own", path, BYTES, encoding="latin-99")


def test_latin_1_and_a_wrong_encoding(tmp_path: Path) -> None:
    plain = WHOLE.replace("“", '"').replace("”", '"')
    assert added(written(tmp_path / "l.txt", plain.encode("latin-1")), encoding="latin-1") == plain
    with pytest.raises(DataError, match=r"not ascii \(near byte") as caught:
        added(written(tmp_path / "t.txt", plain.encode("latin-1")), encoding="ascii")
    assert "--encoding" in caught.value.remedy


def test_the_advice_for_another_encoding_works(tmp_path: Path) -> None:
    """One Windows-1252 line among UTF-8, and a file that is Windows-1252 throughout."""
    rows = [f"{line}\n".encode() for line in LINES]
    rows[150] = f"{LINES[150]}\n".encode("windows-1252")
    cases = {"mixed": b"".join(rows), "windows-1252": WHOLE.encode("windows-1252")}
    for encoding, data in cases.items():
        path = written(tmp_path / f"{encoding}.txt", data)
        with pytest.raises(DataError, match="not UTF-8") as caught:
            added(path)
        assert f"--encoding {encoding}" in caught.value.remedy
        assert added(path, encoding=encoding) == WHOLE
    assert "1 lines are not UTF-8 and 199 others are" in str(pytest.raises(
        DataError, lambda: added(tmp_path / "mixed.txt")).value)  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [WHOLE.replace("\n", "\r\n"), WHOLE.replace("\n", "\r"), "\ufeff" + WHOLE,
     WHOLE[: WHOLE.index("Zeile 99")] + "\ufeff" + WHOLE[WHOLE.index("Zeile 99") :]],
    ids=["CRLF", "CR", "mark at the head", "mark in the middle"],
)  # fmt: skip
def test_line_ends_and_marks(tmp_path: Path, data: str) -> None:
    assert added(written(tmp_path / "t.txt", data)) == WHOLE


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", as_zstd)],
)
def test_packed_files(tmp_path: Path, suffix: str, pack: Any) -> None:
    packed = pack(WHOLE.encode())
    assert added(written(tmp_path / f"t.txt.{suffix}", packed)) == WHOLE
    assert added(written(tmp_path / "named-otherwise", packed)) == WHOLE
    folder = written(tmp_path / "folder" / f"a.txt.{suffix}", packed).parent
    assert added(folder) == WHOLE
    rows = "".join(json.dumps({"text": line}) + "\n" for line in LINES).encode()
    assert added(written(tmp_path / f"t.jsonl.{suffix}", pack(rows)), column="text") == WHOLE
    with pytest.raises(DataError, match="damaged"):
        added(written(tmp_path / "cut", packed[: len(packed) * 2 // 3]))


def test_packed_nonsense_is_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnnnas.data.compressed.LARGE", 1_000_000)
    with pytest.raises(DataError, match="is no text"):
        added(written(tmp_path / "bomb.gz", gzip.compress(b"a\n" * 2_000_000)))


def as_csv(delimiter: str) -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerows([["id", "text"], *([str(i), line] for i, line in enumerate(LINES))])
    return out.getvalue()


def test_columns(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"id": i, "text": line}) + "\n" for i, line in enumerate(LINES))
    tables = {
        "a.jsonl": rows,
        "b.csv": as_csv(","),
        "c.tsv": as_csv("\t"),
        "d.csv": as_csv(";"),
        "e.txt": rows,
    }
    for name, data in tables.items():
        path = written(tmp_path / name, data)
        with pytest.raises(DataError, match="not plain text; columns: id, text") as caught:
            added(path)
        assert "--column text" in caught.value.remedy
        assert added(path, column="text") == WHOLE
        with pytest.raises(DataError, match="no column 'body'; columns: id, text"):
            added(path, column="body")
        folder = written(tmp_path / f"{name}-folder" / "train" / name, data).parent.parent
        for split in ("valid", "test"):
            written(folder / split / name, data)
        if name != "e.txt":
            assert added(folder, column="text") == WHOLE * 3
            with pytest.raises(DataError, match="but tables") as caught:
                added(folder)
            assert "--column" in caught.value.remedy
    assert left_behind() == ["own"]


def test_a_table_by_its_name_is_not_read_as_text(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "col a,col b\n" + "x y,some z\n" * 300)
    with pytest.raises(DataError, match="columns: col a, col b"):
        added(path)
    assert added(path, column="col b") == "some z\n" * 300


def test_rows_of_several_lines_and_bad_rows(tmp_path: Path) -> None:
    rows = [{"text": f"one {i}\ntwo\n"} for i in range(200)]
    whole = "".join(row["text"] for row in rows)
    jsonl = "".join(json.dumps(row) + "\n" for row in rows)
    assert added(written(tmp_path / "a.jsonl", jsonl), column="text") == whole
    table = "text\n" + "".join('"' + row["text"] + '"\n' for row in rows)
    assert added(written(tmp_path / "a.csv", table), column="text") == whole
    cases = {
        '{"text": null}': "row 201: no text",
        '{"text": 3}': "line 201: column 'text' holds no text",
        '{"other": "x"}': "no column 'text'",
        '{"text": "\\ud800"}': "half a character",
        "[1]": "no JSON object",
        '{"text"': "line 201: not JSON",
        "[" * 60_000: "line 201: not JSON",
    }
    for row, says in cases.items():
        with pytest.raises(DataError, match=says):
            added(written(tmp_path / "bad.jsonl", f"{jsonl}{row}\n"), column="text")
    with pytest.raises(DataError, match="3 fields, the header has 2"):
        added(written(tmp_path / "bad.csv", "id,text\n1,a\n2,b,c\n"), column="text")


def test_addresses_and_wrong_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", None)  # nothing may ask the network
    found = run("own", "--from", "https://example.org/books/book.txt")
    assert found.exit_code == 2 and "curl -L -o book.txt" in found.output
    found = run("own", "--from", "")
    assert found.exit_code == 2 and "--from is empty" in found.output
    written(tmp_path / "my book.txt", WHOLE)
    with pytest.raises(DataError, match="no such file") as caught:
        added(tmp_path / "my bok.txt")
    assert "my book.txt" in caught.value.remedy
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError) as caught:
        added(Path("~/my book.txt"))
    assert str(tmp_path / "my book.txt") in caught.value.remedy


def test_odd_names_are_exactly_what_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a[1]*", "b::c", "zwei Wörter 日本", "~", "-x'{y}"]
    for name in names:
        folder = tmp_path / name
        for split in SPLITS:
            written(folder / f"{split}.txt", WHOLE)
        monkeypatch.chdir(folder)
        assert added(folder) == WHOLE * 3 == added(Path("."))
        assert added(written(folder / "one" / f"{name}.txt", WHOLE)) == WHOLE
        assert added(zipped(folder / f"{name}.zip", {f"{name}.txt": WHOLE})) == WHOLE
    rows = pa.table({"text": LINES})
    for name in names:
        (tmp_path / name / "p").mkdir()
        pq.write_table(rows, tmp_path / name / "p" / f"train-{name}.parquet")
        written(tmp_path / name / "p" / "README.md", "---\nconfigs: [{config_name: x, data_files: "
                "[{split: train, path: 'https://example.org/x'}]}]\n---\n")  # fmt: skip
        monkeypatch.setattr(socket, "socket", None)
        assert added(tmp_path / name / "p") == WHOLE


def test_chapters_are_joined_in_natural_order(tmp_path: Path) -> None:
    chapters = {f"ch{n}.md": f"# Chapter {n}\n" + f"words of {n}\n" * 40 for n in range(1, 13)}
    for name, data in chapters.items():
        written(tmp_path / "book" / name, data)
    assert added(tmp_path / "book") == "".join(chapters.values())
    members: dict[str, str | bytes] = dict(sorted(chapters.items()))
    assert added(zipped(tmp_path / "b.zip", members)) == "".join(chapters.values())
    assert sorted(["a10", "a9", "a", "10", "9", "a9b"], key=natural) == [
        *("9", "10", "a", "a9", "a9b", "a10")
    ]


@pytest.mark.parametrize("name", ["a.docx", "b.ODT", "c.epub", "d.xlsx"])
def test_a_document_is_known_by_its_name_too(name: str, tmp_path: Path) -> None:
    """Not every program writes the parts of a document in the usual order."""
    path = zipped(tmp_path / name, {"docProps/app.xml": "x", "media/1.png": "y"})
    with pytest.raises(DataError, match="not plain text") as caught:
        add_corpus("own", path, BYTES)
    assert "Save it as plain text" in caught.value.remedy


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    folder = written(tmp_path / "book" / "ch1.txt", WHOLE).parent
    for name in ("ch2", "a.log", "b.jfif", "x.gz", "c.docx", "ch1.txt.gz"):
        written(folder / name, b"x")
    corpus = add_corpus("own", folder, BYTES)
    assert (
        "ignored files: a.log, b.jfif, c.docx, ch1.txt.gz, ch2, x.gz" in corpus.description["note"]
    )
    (folder / "ch3.txt").symlink_to(folder / "nowhere.txt")
    with pytest.raises(DataError, match="link to a file that is not there"):
        added(folder)
    with pytest.raises(DataError, match=r"there are a\.log, ch2"):
        added(written(tmp_path / "none" / "ch2", "x").parent.joinpath("a.log").touch()
              or tmp_path / "none")  # fmt: skip


def test_titles_are_no_splits(tmp_path: Path) -> None:
    assert split_of("strangers on a train.txt") is None
    assert split_of("the test of time.md") is None
    assert split_of("train.txt") == split_of("my-train 1.txt") == "train"
    for name in ("strangers on a train.txt", "b.txt"):
        written(tmp_path / "books" / name, WHOLE)
    assert added(tmp_path / "books") == WHOLE * 2
    written(tmp_path / "more" / "a-train-journey.txt", WHOLE)
    written(tmp_path / "more" / "b.txt", WHOLE)
    assert added(tmp_path / "more") == WHOLE * 2


def lines_by_split() -> dict[str, int]:
    from rnnnas.data.corpus import open_corpus

    return {split: open_corpus("own").units(split).lines for split in SPLITS}


def test_cuts_lie_between_documents_or_paragraphs(tmp_path: Path) -> None:
    paragraphs = "".join("a line of it\n" * 6 + "\n" for _ in range(100))
    added(written(tmp_path / "p.txt", paragraphs))
    counts = lines_by_split()
    assert [counts[s] % 7 for s in SPLITS] == [0, 0, 0] and abs(counts["train"] - 630) <= 7
    for n in range(100):
        written(tmp_path / "d" / f"{n}.txt", "a line of it\n" * 7)
    added(tmp_path / "d")
    assert lines_by_split() == {"train": 630, "valid": 35, "test": 35}
    for n, size in enumerate((91, 5, 5)):
        written(tmp_path / "e" / f"{n}.txt", "a line of it and more than that\n" * size * 10)
    added(tmp_path / "e")
    assert lines_by_split() == {"train": 910, "valid": 50, "test": 50}


@pytest.mark.parametrize("end", [". ", "。"])
def test_a_book_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    book = "".join(f"Sentence number {i} of it all{end}" for i in range(2000))
    corpus = add_corpus("own", written(tmp_path / "b.txt", book), BYTES)
    whole = "".join(text_of(corpus, split) for split in SPLITS)
    assert whole == "".join(f"Sentence number {i} of it all{end.strip()}\n" for i in range(2000))
    assert "broken into sentences: 1 became 2,000" in corpus.description["note"]
    monkeypatch.setattr(
        text_module, "LINE_LIMIT", 30_000
    )  # a line that does not fit is broken, too
    assert added(tmp_path / "b.txt") == whole
    monkeypatch.setattr(text_module, "BLOCK", 777)
    assert added(tmp_path / "b.txt") == whole


def test_breaking_a_line_loses_nothing_but_the_space_between() -> None:
    line = 'He said "Go." Then he left. (It was late.) “Yes.” So it was… “为什么？”她说。好！ ' * 40
    mended, note = broken(Text("b", lambda: iter([line])))
    parts = list(mended.lines())
    assert "broken into sentences" in note and len(parts) > 200
    assert "".join("".join(parts).split()) == "".join(line.split())
    assert parts[:3] == ['He said "Go."', "Then he left.", "(It was late.)"]
    assert parts[4:8] == ["So it was…", "“为什么？”", "她说。", "好！"]


def test_shown_commands_can_be_pasted(tmp_path: Path, home: Path) -> None:
    own = written(home / "corpora" / "book" / "my own.txt", WHOLE)
    found = run("book", "--from", str(own))
    words = shlex.split(found.output.partition("name: rnnnas ")[2])
    assert CliRunner().invoke(main, words).exit_code == 0
    assert os.listdir(own.parent) == ["my own.txt"]


def test_all_words_different_and_another_language(tmp_path: Path) -> None:
    different = "".join(f"w{i} v{i}\n" for i in range(1000))
    path = written(tmp_path / "d.txt", different)
    with pytest.raises(DataError, match="none of the words occurs twice") as caught:
        add_corpus("own", path, VocabOptions(kind="words"))
    assert "--vocab sentencepiece" in caught.value.remedy
    folder = written(tmp_path / "f" / "train.txt", "the same words again\n" * 100).parent
    for split in ("valid", "test"):
        written(folder / f"{split}.txt", different)
    found = run("own", "--from", str(folder))
    assert found.exit_code == 0 and "warning: test is mostly unknown words" in found.output


def test_one_parquet_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": LINES}), tmp_path / "x.parquet")
    assert added(tmp_path / "x.parquet") == WHOLE
