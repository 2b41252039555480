"""The folder of a corpus: whole or not there, and damage that shows."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from sample_sources import TEXT, left_behind, written

from rnnnas.data import folders, text_corpus
from rnnnas.data.corpus import (
    SPLITS,
    VocabOptions,
    add_corpus,
    check_unchanged,
    corpora_folder,
    list_corpora,
    open_corpus,
)
from rnnnas.data.text_files import list_text
from rnnnas.data.vocab import benchmark_words
from rnnnas.errors import DataError, DiskError

WORDS = VocabOptions()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RNNNAS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_the_same_again_is_quiet_and_other_content_needs_replace(tmp_path: Path) -> None:
    text, other = written(tmp_path / "t.txt"), written(tmp_path / "o.txt", TEXT.replace("9", "8"))
    first = add_corpus("own", text, WORDS)
    kept = (first.folder / "corpus.json").stat().st_mtime_ns
    assert add_corpus("own", text, WORDS).sha256 == first.sha256
    assert (first.folder / "corpus.json").stat().st_mtime_ns == kept
    with pytest.raises(DataError) as caught:
        add_corpus("own", other, WORDS)
    assert "--replace" in caught.value.remedy and open_corpus("own").sha256 == first.sha256
    second = add_corpus("own", other, WORDS, replace=True)
    assert second.sha256 != first.sha256 and open_corpus("own").sha256 == second.sha256
    assert left_behind() == ["own"]


def test_every_flipped_bit_and_truncation_shows(tmp_path: Path) -> None:
    good = add_corpus("own", written(tmp_path / "t.txt"), WORDS).folder
    checked = 0
    for name in ("train.bin", "valid.bin", "test.bin", "vocab.json"):
        path = good / name
        whole = path.read_bytes()
        for place in range(0, len(whole), len(whole) // 15):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << (place % 8)
            for data in (bytes(damaged), whole[:place]):
                path.write_bytes(data)
                with pytest.raises(DataError, match="own is damaged") as caught:
                    check_unchanged(open_corpus("own"))
                assert name in caught.value.cause
                checked += 1
        path.write_bytes(whole)
    check_unchanged(open_corpus("own"))
    print(f"{checked} damages found")


def test_damaged_descriptions_are_refused(tmp_path: Path) -> None:
    folder = add_corpus("own", written(tmp_path / "t.txt"), WORDS).folder
    path = folder / "corpus.json"
    good = json.loads(path.read_text())
    changes: list[Any] = [
        "",
        "[]",
        "{",
        "\xff",
        json.dumps(good | {"format": 99}),
        json.dumps(good | {"dtype": "<f8"}),
        json.dumps(good | {"splits": {}}),
        json.dumps(good | {"sha256": None}),
        json.dumps(good | {"sha256": "0" * 64}),
        json.dumps(good | {"splits": good["splits"] | {"test": {"tokens": "9"}}}),
    ]
    for text in changes:
        path.write_text(text, encoding="latin-1")
        with pytest.raises(DataError) as caught:
            check_unchanged(open_corpus("own"))
        assert str(folder) in str(caught.value)
    path.unlink()
    # Without a description nobody knows whose files these are.
    with pytest.raises(
        DataError, match=r"not a corpus that rnnnas prepared: it has no corpus\.json"
    ):
        open_corpus("own")
    with pytest.raises(DataError, match="not a corpus that rnnnas prepared"):
        add_corpus("own", tmp_path / "t.txt", WORDS, replace=True)
    assert (folder / "train.bin").exists()
    # A damaged corpus of ours is put right by adding it again, on demand.
    path.write_text(json.dumps(good))
    (folder / "train.bin").write_bytes(b"x")
    with pytest.raises(DataError, match="own is damaged") as caught:
        open_corpus("own")
    assert "--replace" in caught.value.remedy
    assert add_corpus("own", tmp_path / "t.txt", WORDS, replace=True).sha256 == good["sha256"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = written(tmp_path / "t.txt")
    first = add_corpus("own", text, WORDS)
    other = written(tmp_path / "o.txt", TEXT.replace("9", "8"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("own", "new"):
        with monkeypatch.context() as patched:
            patched.setattr(folders.os, "fsync", full)
            with pytest.raises(DiskError, match="No space left") as caught:
                add_corpus(name, other, WORDS, replace=True)
            assert caught.value.exit_code == 5
    assert left_behind() == ["own"] and open_corpus("own").sha256 == first.sha256


def test_left_overs_of_killed_preparations_go(tmp_path: Path) -> None:
    for name, age in ((".own.old.partial", 2 * 24 * 3600), (".own.new.partial", 60)):
        written(corpora_folder() / name / folders.MARK, name)
        written(corpora_folder() / name / "corpus" / "train.bin", "x")
        os.utime(corpora_folder() / name, (time.time() - age,) * 2)
    written(corpora_folder() / ".own.user.partial" / "notes.txt", "mine")
    os.utime(corpora_folder() / ".own.user.partial", (time.time() - 2 * 24 * 3600,) * 2)
    assert [entry for entry in list_corpora() if entry["name"].startswith(".")] == []
    add_corpus("own", written(tmp_path / "t.txt"), WORDS)
    # The younger one may belong to a preparation that still runs; the last one is not marked ours.
    assert left_behind() == [".own.new.partial", ".own.user.partial", "own"]


def test_two_preparations_at_once_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process wins the race between our look and our rename."""
    text = written(tmp_path / "t.txt")
    original = text_corpus._write

    def slow(folder: Path, *rest: Any) -> dict[str, Any]:
        described = original(folder, *rest)
        if not (corpora_folder() / "own").exists():
            shutil.copytree(folder, corpora_folder() / "own")
        return described

    monkeypatch.setattr(text_corpus, "_write", slow)
    corpus = add_corpus("own", text, WORDS)
    check_unchanged(corpus)
    assert left_behind() == ["own"]


def test_texts_in_memory_can_be_stored(tmp_path: Path) -> None:
    lines = ["a b c d"] * 50
    texts = {split: list_text(split, lines) for split in SPLITS}
    text_corpus.write_corpus(corpora_folder() / "m", "m", texts, benchmark_words([lines]), {})
    assert len(open_corpus("m").splits["test"]) == 250
