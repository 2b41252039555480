"""Texts that look like something else: order of bytes, wrong encodings, titles, blank files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sample_sources import text_of, written, zipped

from rnnnas.cli import main
from rnnnas.data.corpus import SPLITS, Corpus, VocabOptions, add_corpus, remove_corpus
from rnnnas.data.encodings import byte_order
from rnnnas.errors import DataError

BYTES = VocabOptions(kind="bytes")
GERMAN = "".join(f"Zeile {i}: Grüße, Füße und {i * 7} Äpfel.\n" for i in range(200))
CHINESE = "".join(f"第{'一二三四五'[i % 5]}行文字，说明如何使用。\n" for i in range(200))
RUSSIAN = "".join(f"Строка {i}: несколько слов подряд.\n" for i in range(200))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RNNNAS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def added(source: Path, **options: Any) -> str:
    corpus = add_corpus("own", source, BYTES, replace=True, **options)
    assert isinstance(corpus, Corpus)
    return "".join(text_of(corpus, split) for split in SPLITS)


def note_of(source: Path) -> str:
    return str(add_corpus("own", source, BYTES, replace=True).description["note"])


@pytest.mark.parametrize("whole", [GERMAN, CHINESE], ids=["German", "Chinese"])
@pytest.mark.parametrize("order", ["le", "be"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["no mark", "mark"])
def test_utf_16_of_either_order(tmp_path: Path, whole: str, order: str, mark: str) -> None:
    path = written(tmp_path / "t.txt", f"{mark}{whole}".encode(f"utf-16-{order}"))
    with pytest.raises(DataError, match="encoded in UTF-16") as caught:
        added(path)
    advised = caught.value.remedy.split("--encoding ")[1].split(",")[0]
    for encoding in (advised, "utf-16", f"utf-16-{order}"):
        assert added(path, encoding=encoding) == whole
    other = {"le": "be", "be": "le"}[order]
    with pytest.raises(DataError, match="in the other order") as caught:
        added(path, encoding=f"utf-16-{other}")
    again = caught.value.remedy.removeprefix("Give --encoding ").removesuffix(".")
    assert added(path, encoding=again) == whole


def test_utf_32_and_an_order_that_nothing_tells(tmp_path: Path) -> None:
    for order in ("le", "be"):
        path = written(tmp_path / "t.txt", GERMAN.encode(f"utf-32-{order}"))
        assert added(path, encoding="utf-32") == GERMAN
    assert byte_order("abc".encode("utf-16-le")) == byte_order(b"") == ""
    zeros = "00000000\n" * 400  # whose bytes are wide spaces in the other order
    for order in ("le", "be"):
        path = written(tmp_path / "t.txt", zeros.encode(f"utf-16-{order}"))
        assert added(path, encoding="utf-16") == zeros
    path = written(tmp_path / "t.txt", ("x" * 500).encode("utf-16-le"))
    with pytest.raises(DataError, match="nothing says the order"):
        added(path, encoding="utf-16")


@pytest.mark.parametrize("encoding", ["latin-1", "windows-1252", "koi8-r", "gb18030", "ascii"])
def test_utf_8_is_not_read_as_something_else(tmp_path: Path, encoding: str) -> None:
    path = written(tmp_path / "t.txt", GERMAN)
    with pytest.raises(DataError, match="this is UTF-8, not"):
        added(path, encoding=encoding)
    assert added(path) == GERMAN
    # Plain ASCII, and a character or two that are UTF-8 by chance, are what was said.
    plain = "a line of it\n" * 200
    assert added(written(tmp_path / "p.txt", plain), encoding=encoding) == plain
    chance = plain.encode() + "Ã¼\n".encode("latin-1")
    assert "Ã¼" in added(written(tmp_path / "c.txt", chance), encoding="latin-1")


@pytest.mark.parametrize(
    ("whole", "encoding"),
    [(RUSSIAN, "koi8-r"), (RUSSIAN, "windows-1251"), (CHINESE, "gb18030"), (CHINESE, "big5")],
)
def test_no_latin_encoding_is_advised_for_another_script(
    tmp_path: Path, whole: str, encoding: str
) -> None:
    whole = whole if encoding != "big5" else whole.replace("说", "說").replace("何", "何")
    path = written(tmp_path / "t.txt", whole.encode(encoding))
    with pytest.raises(DataError, match="not UTF-8") as caught:
        added(path)
    assert "1252" not in f"{caught.value}" and encoding in caught.value.remedy
    assert added(path, encoding=encoding) == whole


def documents(folder: Path, **named: str) -> Path:
    """Twelve documents, and those named, whose texts say what they are."""
    for n in range(12):
        written(folder / f"part{n % 3}" / f"{n}-page.md", f"page {n} of it\n" * 60)
    for name, text in named.items():
        written(folder / "guide" / f"{name.replace('_', '-')}.md", text)
    return folder


def test_titles_among_many_documents_are_no_splits(tmp_path: Path) -> None:
    """`training.md` and `6-testing.md` of a project's documentation, in a folder and a zip."""
    named = {"training": "how to train\n" * 60, "6-testing": "how to test\n" * 60,
             "install-test": "how to install\n" * 60}  # fmt: skip
    folder = documents(tmp_path / "docs", **named)
    whole = added(folder)
    members = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.md")}
    assert len(members) == 15 and len(whole) == sum(map(len, members.values()))
    for word in ("page 11", "how to train", "how to test", "how to install"):
        assert whole.count(word) == 60
    assert "15 files were joined" in note_of(folder) and "ignored" not in note_of(folder)
    assert added(zipped(tmp_path / "docs.zip", dict(members))) == whole


def test_splits_beside_many_small_files_stay_splits(tmp_path: Path) -> None:
    """As in an archive with READMEs and licences: more files than splits, with less text."""
    folder = tmp_path / "set"
    for split in SPLITS:
        written(folder / f"x.{split}.txt", f"{split} line\n" * 200)
    for n in range(9):
        written(folder / f"NOTES{n}.md", "a note\n" * 9)
    corpus = add_corpus("own", folder, BYTES)
    assert isinstance(corpus, Corpus)
    assert all(text_of(corpus, s) == f"{s} line\n" * 200 for s in SPLITS)
    # One long text beside a valid and a test file is still a train split without its name.
    for split in SPLITS:
        written(tmp_path / "two" / f"{'book' if split == 'train' else split}.txt", GERMAN)
    written(tmp_path / "two" / "book.txt", GERMAN * 20)
    with pytest.raises(DataError, match="no train split"):
        added(tmp_path / "two")


def test_blank_files_of_many_are_left_out(tmp_path: Path) -> None:
    folder = documents(tmp_path / "docs")
    whole = added(folder)
    written(folder / "part1" / "empty.md", "")
    written(folder / "part2" / "blank.md", " \n\n")
    assert added(folder) == whole
    remove_corpus("own")  # the same content is left as it is, with its note
    assert "ignored files: part1/empty.md, part2/blank.md" in note_of(folder)
    for split in SPLITS:
        written(tmp_path / "set" / split / "a.txt", GERMAN)
    written(tmp_path / "set" / "train" / "b.txt", "")
    assert added(tmp_path / "set") == GERMAN * 3
    assert note_of(tmp_path / "set") == "ignored files: train/b.txt"
    written(tmp_path / "set" / "test" / "a.txt", "")
    with pytest.raises(DataError, match="empty"):
        added(tmp_path / "set")
    written(tmp_path / "none" / "a.txt", "\n")
    written(tmp_path / "none" / "b.txt", "")
    with pytest.raises(DataError, match="white space only|empty"):
        added(tmp_path / "none")


def test_blank_tables_of_many_are_left_out(tmp_path: Path) -> None:
    rows = "".join(f"{i},a line of it {i}\n" for i in range(400))
    written(tmp_path / "t" / "a.csv", f"id,text\n{rows}")
    written(tmp_path / "t" / "b.csv", "id,text\n")
    written(tmp_path / "t" / "c.csv", "")
    assert len(added(tmp_path / "t", column="text").splitlines()) == 400


def test_what_to_do_with_pages_and_short_texts(tmp_path: Path) -> None:
    written(tmp_path / "site" / "a.html", "<html><body>text</body></html>")
    with pytest.raises(DataError, match=r"there are a\.html") as caught:
        added(tmp_path / "site")
    assert "pandoc -t plain" in caught.value.remedy
    with pytest.raises(DataError, match="at least 2 and 100 are needed") as caught:
        add_corpus("own", written(tmp_path / "s.txt", "five words in a line\n" * 100),
                   VocabOptions(kind="words"))  # fmt: skip
    assert "2,000 words" in caught.value.remedy
    enough = written(tmp_path / "e.txt", "five words in a line\n" * 400)
    add_corpus("own", enough, VocabOptions(kind="words"))


def test_words_that_are_unknown_throughout(tmp_path: Path) -> None:
    """Numbers: nearly every one occurs once, in train as well, which is no other kind of text."""
    numbers = "".join(f"{i * 7919} {i * 104729} {i * 1299709} 5\n" for i in range(1000))
    source = written(tmp_path / "n.txt", numbers)
    found = CliRunner().invoke(main, ["corpus", "add", "n", "--from", str(source)])
    assert found.exit_code == 0, found.output
    assert "more than half of train is <unk>" in found.output
    assert "another language" not in found.output and "--vocab sentencepiece" in found.output


@pytest.mark.parametrize("column", [None, "text"])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_array_is_told_what_it_is(
    tmp_path: Path, column: str | None, indent: int | None
) -> None:
    """Whether its name says JSON, which once made columns of a CSV of its objects, or not."""
    rows = json.dumps([{"text": f"a line of it, {i}"} for i in range(300)], indent=indent)
    for name in ("a.json", "a.txt"):
        with pytest.raises(DataError, match="JSON") as caught:
            added(written(tmp_path / name, rows), column=column)
        assert "jq -c '.[]'" in caught.value.remedy and "CSV" not in str(caught.value)
