"""Own text: files, folders and archives as splits; bad ones are refused and leave nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from sample_sources import TEXT, left_behind, text_of, three, written, zipped
from test_text import BAD

from rnnnas.data import text_sources
from rnnnas.data.corpus import (
    SPLITS,
    VocabOptions,
    add_corpus,
    corpus_info,
)
from rnnnas.data.text_sources import split_of
from rnnnas.errors import DataError

WORDS = VocabOptions()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RNNNAS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_file_is_cut_by_lines(tmp_path: Path) -> None:
    corpus = add_corpus("own", written(tmp_path / "t.txt"), VocabOptions(size=1000))
    lines = TEXT.splitlines()
    assert text_of(corpus, "train").splitlines() == lines[:360]
    # Words that train lacks are <unk>: the numbers of later lines.
    expected = [f"line <unk> of words {i % 9} and more {i % 4} words" for i in range(360, 380)]
    assert text_of(corpus, "valid").splitlines() == expected
    assert corpus.description["splits"]["valid"]["unknown"] == 20
    assert corpus_info(corpus)["unknown"] == {"train": 0, "valid": 20, "test": 20}


def test_folders_and_archives_by_name(tmp_path: Path) -> None:
    texts = {split: f"{split} line here\n" * 60 for split in SPLITS}
    layouts = {
        "plain": {s: f"{s}.txt" for s in SPLITS},
        "wiki": {s: f"wiki/wiki.{s}.tokens" for s in SPLITS},
        "long": {"train": "training.md", "valid": "my_validation_set.txt", "test": "TEST.TXT"},
        "dev": {"train": "a-train-0.txt", "valid": "a-dev.txt", "test": "a-test.txt"},
        "folders": {s: f"{s}/part.txt" for s in SPLITS},
    }
    for name, files in layouts.items():
        members = {files[s]: texts[s] for s in SPLITS} | {
            "latest.txt": "x\n",
            ".hid/train.txt": "y",
        }
        for path, text in members.items():
            written(tmp_path / name / path, text)
        for source in (tmp_path / name, zipped(tmp_path / f"{name}.zip", members)):
            corpus = add_corpus(f"c-{name}-{source.suffix[1:]}", source, WORDS)
            for split in SPLITS:
                assert text_of(corpus, split).startswith(
                    f"{split if split == 'train' else '<unk>'} "
                )
            assert corpus.description["note"] == "ignored files: latest.txt"
    print(f"{2 * len(layouts)} layouts")


def test_names_are_words_not_substrings() -> None:
    names = {
        "wiki.train.tokens": "train",
        "data/validation-00000-of-00001.txt": "valid",
        "test/a.txt": "test",
        "latest.txt": None,
        "developer.md": None,
        "my-test-data/a.txt": None,
        "train/test.txt": "test",
    }
    assert {name: split_of(name) for name in names} == names


def test_files_of_no_split_are_joined_in_sorted_order(tmp_path: Path) -> None:
    half = len(TEXT.splitlines()) // 2
    lines = TEXT.splitlines(keepends=True)
    members: dict[str, str | bytes] = {
        "b.txt": "".join(lines[half:]),
        "a.txt": "".join(lines[:half]),
        "__MACOSX/a.txt": b"\0",
        "picture.png": b"\0",
    }
    whole = add_corpus("whole", written(tmp_path / "t.txt"), WORDS)
    joined = add_corpus("joined", zipped(tmp_path / "z.zip", members), WORDS)
    assert joined.sha256 == whole.sha256


def test_two_texts_of_one_split_are_not_joined(tmp_path: Path) -> None:
    """As in the archive of Penn Treebank, which has its characters beside its words."""
    members: dict[str, str | bytes] = {f"ptb.{s}.txt": TEXT for s in SPLITS}
    spelt = dict(members) | {f"ptb.char.{s}.txt": TEXT for s in SPLITS}
    with pytest.raises(DataError, match=r"several texts are named train: ptb.char.train.txt, ptb"):
        add_corpus("own", zipped(tmp_path / "z.zip", spelt), WORDS)
    assert left_behind() == []
    parts: dict[str, str | bytes] = {f"{s}-{n}.txt": TEXT for s in SPLITS for n in (1, 12)}
    inside: dict[str, str | bytes] = {f"{s}/{n}.txt": TEXT for s in SPLITS for n in "ab"}
    one, two = (add_corpus(name, zipped(tmp_path / f"{name}.zip", each), WORDS)
                for name, each in (("one", parts), ("two", inside)))  # fmt: skip
    assert one.sha256 == two.sha256


def test_folders_that_are_links_or_closed_are_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = three(tmp_path / "folder")
    more = written(tmp_path / "elsewhere" / "test.txt").parent
    (folder / "more").symlink_to(more, target_is_directory=True)
    with pytest.raises(DataError, match="more: is a link to a folder"):
        add_corpus("own", folder, WORDS)
    (folder / "more").unlink()
    (folder / "shut").mkdir()
    listed = os.scandir

    def closed(path: str) -> Any:
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(DataError, match=r"shut: cannot be listed \(Permission denied\)"):
        add_corpus("own", folder, WORDS)
    assert left_behind() == []


@pytest.mark.parametrize("absent", SPLITS)
def test_a_missing_split_is_held_out_of_train(tmp_path: Path, absent: str) -> None:
    members: dict[str, str | bytes] = {f"{s}.txt": TEXT for s in SPLITS if s != absent}
    for name, text in members.items():
        written(tmp_path / "folder" / name, text)
    for source in (tmp_path / "folder", zipped(tmp_path / "z.zip", members)):
        if absent == "train":
            with pytest.raises(DataError, match="no train split") as caught:
                add_corpus("own", source, WORDS)
            assert str(source) in caught.value.cause and absent in caught.value.remedy
            assert left_behind() == []
            continue
        corpus = add_corpus("own", source, VocabOptions(size=1000))
        lines = TEXT.splitlines(keepends=True)
        assert {s: corpus.units(s).lines for s in SPLITS} == dict.fromkeys(SPLITS, 400) | {
            "train": 380,
            absent: 20,
        }
        assert text_of(corpus, "train") == "".join(lines[:380])
        assert f"{absent} is the last 5 % of train" in corpus.description["note"]


def test_bad_bytes_leave_nothing(tmp_path: Path) -> None:
    """Every kind of bad text, as a file, in a folder and in an archive, in any split."""
    checked = 0
    for number, (kind, (data, says)) in enumerate(BAD.items()):
        split = SPLITS[number % 3]
        members: dict[str, str | bytes] = {f"{s}.txt": data if s == split else TEXT for s in SPLITS}
        for place in (
            written(tmp_path / "bad.txt", data),
            three(tmp_path / "folder", **{split: data}),
            zipped(tmp_path / "bad.zip", members),
        ):
            with pytest.raises(DataError, match=says) as caught:
                add_corpus("own", place, WORDS)
            assert str(place) in caught.value.cause, kind
            assert caught.value.remedy and caught.value.exit_code == 3
            assert place.is_file() or split in caught.value.cause
            assert left_behind() == [], kind
            checked += 1
    print(f"{checked} bad sources refused, nothing left")


def test_bad_sources_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = zipped(tmp_path / "good.zip", {f"{s}.txt": TEXT for s in SPLITS})
    whole = good.read_bytes()
    middle = bytearray(whole)
    middle[60] ^= 0xFF  # inside the first member's packed bytes
    locked = bytearray(whole)
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := whole.find(mark, at + 1)) >= 0:
            locked[at + flags] |= 1
    first = whole.find(b"PK\x01\x02")  # of the archive's own list
    version, named = bytearray(whole), bytearray(whole)
    version[first + 6] |= 0x40  # what is needed to unpack it
    named[first + 9] |= 0x08  # its name is UTF-8,
    named[first + 46] = 0xFF  # and this is not
    (tmp_path / "nothing").mkdir()
    monkeypatch.setattr(text_sources, "ZIP_LARGE", 1_000_000)
    cases: dict[Path, str] = {
        tmp_path / "absent.txt": "no such file",
        tmp_path / "absent.zip": "no such file",
        tmp_path / "nothing": "holds no text file",
        written(tmp_path / "pictures" / "a.png").parent: "holds no text file",
        zipped(tmp_path / "none.zip", {"a.png": b"x"}): "holds no text file",
        written(tmp_path / "cut.zip", whole[: len(whole) // 2]): "not a zip archive",
        written(tmp_path / "text.zip", TEXT): "not a zip archive",
        written(tmp_path / "bits.zip", bytes(middle)): "is damaged|not a zip archive",
        written(tmp_path / "locked.zip", bytes(locked)): "is encrypted",
        written(tmp_path / "version.zip", bytes(version)): "not a zip archive",
        written(tmp_path / "name.zip", bytes(named)): "not a zip archive|is damaged",
        zipped(tmp_path / "bomb.zip", {"a.txt": b"a\n" * 2_000_000}): "are no text",
        written(tmp_path / "few.txt", "one two\n" * 50): "valid split has 2 lines and 6 tokens",
        written(tmp_path / "one.txt", "word " * 5000): "train split has 0 lines",
        three(tmp_path / "short", test="word " * 500): "test split has 1 lines",
    }
    for path, says in cases.items():
        with pytest.raises(DataError, match=says) as caught:
            add_corpus("own", path, WORDS)
        assert path.name in caught.value.cause and caught.value.remedy, path
        assert left_behind() == [], path
    monkeypatch.setattr(text_sources, "ZIP_LIMIT", 1000)
    with pytest.raises(DataError, match="unpacks to"):
        add_corpus("own", good, WORDS)
    print(f"{len(cases) + 1} bad sources refused")


def test_absolute_names_in_archives_are_harmless(tmp_path: Path) -> None:
    outside = tmp_path / "outside.train.txt"
    members = {str(outside): TEXT, "../x.valid.txt": TEXT, "/x.test.txt": TEXT}
    add_corpus("own", zipped(tmp_path / "z.zip", dict(members)), WORDS)
    assert not outside.exists() and not (tmp_path / "x.valid.txt").exists()
    assert left_behind() == ["own"]


def test_an_archive_of_many_members_is_listed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members: dict[str, str | bytes] = {f"{n}.txt": "a line of words\n" * 9 for n in range(300)}
    path = zipped(tmp_path / "z.zip", members)
    opened = []
    original = text_sources.zipfile.ZipFile.__init__

    def counted(self: Any, *rest: Any, **named: Any) -> None:
        opened.append(rest)
        original(self, *rest, **named)

    monkeypatch.setattr(text_sources.zipfile.ZipFile, "__init__", counted)
    assert len(add_corpus("own", path, WORDS).splits["train"]) > 9000 and len(opened) == 1
