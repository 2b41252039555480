"""The folder of an image corpus: damage shows, kinds are told apart, and what is listed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from sample_images import NAMES, class_folders, small_set
from sample_sources import written

from rnnnas.cli import main
from rnnnas.data.corpus import (
    VocabOptions,
    add_corpus,
    check_unchanged,
    corpora_folder,
    corpus_info,
    list_corpora,
    open_any,
    open_corpus,
    open_images,
)
from rnnnas.errors import DataError

WORDS = VocabOptions()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RNNNAS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("side", [8, 97])
def test_every_flipped_bit_and_truncation_shows(tmp_path: Path, side: int) -> None:
    """Pixels, and encoded pictures with their spans."""
    source = small_set(tmp_path / "s", train=12, test=6, height=side, width=side)
    folder = add_corpus("own", source, WORDS).folder
    files = sorted(path for path in folder.iterdir() if path.name != "corpus.json")
    assert len(files) == (6 if side == 8 else 9)
    checked = 0
    for path in files:
        whole = path.read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 8)):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << (place % 8)
            for data in (bytes(damaged), whole[:place]):
                path.write_bytes(data)
                with pytest.raises(DataError, match="own is damaged") as caught:
                    check_unchanged(open_images("own"))
                assert path.stem in caught.value.cause and caught.value.remedy
                checked += 1
        path.write_bytes(whole)
    check_unchanged(open_images("own"))
    files[0].unlink()
    with pytest.raises(DataError, match=files[0].name):
        open_images("own")
    print(f"{checked} damages found")


def test_damaged_descriptions_are_refused(tmp_path: Path) -> None:
    folder = add_corpus("own", small_set(tmp_path / "s"), WORDS).folder
    path = folder / "corpus.json"
    good = json.loads(path.read_text())
    changes: list[Any] = ["", "[]", "{", "\xff", json.dumps({"format": 1})]
    for key, value in (
        ("format", 9), ("size", [6]), ("size", None), ("size", [6.0, 8]), ("size", [8, 6]),
        ("classes", []), ("classes", [1, 2, 3]), ("classes", ["a", "b"]), ("mean", [0.5]),
        ("mean", [0.1, 0.2, 0.3]), ("std", ["a", "b", "c"]), ("sha256", None),
        ("sha256", "0" * 64), ("splits", {}), ("splits", {"train": 1}), ("kind", "words"),
        ("classes", ["a", "b", "c"]),
    ):  # fmt: skip
        changes.append(json.dumps(good | {key: value}))
    for text in changes:
        path.write_text(text, encoding="latin-1")
        with pytest.raises(DataError) as caught:
            check_unchanged(open_images("own"))
        assert caught.value.remedy
    path.write_text(json.dumps(good))
    check_unchanged(open_images("own"))
    print(f"{len(changes)} descriptions refused")


def test_kinds_are_told_apart(tmp_path: Path) -> None:
    add_corpus("pictures", small_set(tmp_path / "s"), WORDS)
    add_corpus("words", written(tmp_path / "t.txt"), WORDS)
    assert open_any("pictures").sha256 == open_images("pictures").sha256
    assert open_any("words").sha256 == open_corpus("words").sha256
    with pytest.raises(DataError, match="corpus pictures holds images, not text") as caught:
        open_corpus("pictures")
    assert "rnnnas corpus list" in caught.value.remedy
    with pytest.raises(DataError, match="corpus words is a text, it holds no images") as caught:
        open_images("words")
    assert "rnnnas corpus list" in caught.value.remedy
    for opening in (open_any, open_images):
        with pytest.raises(DataError, match="no corpus 'pictuers' .did you mean 'pictures'"):
            opening("pictuers")
        with pytest.raises(DataError, match="corpus cifar10 is not prepared yet") as caught:
            opening("cifar10")
        assert "rnnnas corpus add cifar10 --from FOLDER" in caught.value.remedy
    # One kind does not take the other's place unasked.
    with pytest.raises(DataError, match="exists with other content"):
        add_corpus("words", tmp_path / "s", WORDS)
    with pytest.raises(DataError, match="exists with other content"):
        add_corpus("pictures", tmp_path / "t.txt", WORDS)


def test_info_and_list(tmp_path: Path) -> None:
    add_corpus("pictures", small_set(tmp_path / "s"), WORDS)
    info = corpus_info(open_any("pictures"))
    assert {k: info[k] for k in ("train", "valid", "test", "classes", "size", "kind")} == {
        "train": 54, "valid": 6, "test": 12, "classes": list(NAMES), "size": [6, 8],
        "kind": "images",
    }  # fmt: skip
    assert info["class_counts"] == {"train": [18] * 3, "valid": [2] * 3, "test": [4] * 3}
    assert json.loads(json.dumps(info)) == info and len(info["mean"]) == len(info["std"]) == 3
    shutil.copytree(corpora_folder() / "pictures", corpora_folder() / "hurt")
    (corpora_folder() / "hurt" / "test.images").write_bytes(b"")
    listed = {entry["name"]: entry for entry in list_corpora()}
    assert (listed["pictures"]["images"], listed["pictures"]["classes"]) == (72, 3)
    assert listed["pictures"]["tokens"] is None and listed["pictures"]["prepared"]
    assert "damaged" in listed["hurt"]["note"]
    (corpora_folder() / "pictures" / "test.images").write_bytes(bytes(12 * 3 * 6 * 8))
    with pytest.raises(DataError, match="was changed since it was prepared"):
        corpus_info(open_any("pictures"))


def test_parts_are_balanced(tmp_path: Path) -> None:
    train = open_images(add_corpus("p", small_set(tmp_path / "s"), WORDS).name).splits["train"]
    half = train.part(0, 27)
    assert np.bincount(half.labels).tolist() == [9, 9, 9] and half.pixels is not None
    assert half.pixels.shape == (27, 3, 6, 8) and np.shares_memory(half.pixels, train.data)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["corpus", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_line(tmp_path: Path) -> None:
    folder = str(class_folders(tmp_path / "f"))
    assert "p: 30 / 3 / 3 images, 3 classes" in run("add", "p", "--from", folder)
    told = json.loads(run("add", "p", "--from", folder, "--json"))
    assert told["classes"] == list(NAMES) and told["train"] == 30 and told["sha256"]
    assert "3 class folders" in told["note"]
    info = run("info", "p")
    for line in ("30 images, 10 to 10 a class", "8 x 6 pixels", "(cat, dog, owl)", "mean", "std",
                 "valid and test are a tenth each, held out", "sha256"):  # fmt: skip
        assert line in info, line
    assert json.loads(run("info", "p", "--json"))["classes"] == list(NAMES)
    assert "36 images  images in 3 class folders" in run("list")
    refused = CliRunner().invoke(main, ["corpus", "add", "q", "--from", folder, "--lower"])
    assert refused.exit_code == 2 and "no vocabulary" in refused.output
    refused = CliRunner().invoke(main, ["search", "--corpus", "p", "--preset", "smoke"])
    assert refused.exit_code == 2 and "images" in refused.output
