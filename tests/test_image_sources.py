"""Class folders: recognised by content, and what is mixed or misplaced refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import features
from sample_images import NAMES, class_folders, encoded, pixels, png, put
from sample_sources import TEXT, written

from rnnnas.data.image_decode import decode
from rnnnas.data.image_sources import ImageSource, Labelled, image_folder, numbered
from rnnnas.errors import DataError


def opened(folder: Path) -> ImageSource:
    source = image_folder(folder)
    assert source is not None
    return source


def test_class_folders_without_splits_are_train(tmp_path: Path) -> None:
    source = opened(class_folders(tmp_path, ".", each=3))
    assert list(source.splits) == ["train"] and source.classes == NAMES
    train = source.splits["train"]
    assert train.labels == [name for name in NAMES for _ in range(3)]
    assert list(train.encoded()) == [png(100 * c + i) for c in range(3) for i in range(3)]
    assert train.place(4).endswith("dog/001.png") and "3 class folders" in source.note


@pytest.mark.parametrize("valid", ["valid", "validation", "val", "VAL"])
def test_splits_above_the_classes(tmp_path: Path, valid: str) -> None:
    for start, split in enumerate(("train", valid, "test")):
        class_folders(tmp_path, split, each=2, start=1000 * start)
    source = opened(tmp_path)
    assert {s: len(x.labels) for s, x in source.splits.items()} == {
        "train": 6, "valid": 6, "test": 6,
    }  # fmt: skip
    assert next(iter(source.splits["valid"].encoded())) == png(1000)
    assert numbered(source)[1]["test"].tolist() == [0, 0, 1, 1, 2, 2]


def test_images_may_lie_deeper_and_other_files_are_left_out(tmp_path: Path) -> None:
    class_folders(tmp_path, each=1)
    put(tmp_path / "train" / "cat" / "images" / "z.JPG", png(7))
    put(tmp_path / "train" / "cat" / ".hidden.png", png(8))
    put(tmp_path / "__MACOSX" / "train" / "cat" / "a.png", png(9))
    put(tmp_path / "train" / "cat" / "notes.bin", b"1")
    written(tmp_path / "README.md", "pictures of mine")
    source = opened(tmp_path)
    assert source.splits["train"].labels == ["cat", "cat", "dog", "owl"]
    assert source.note.endswith("ignored files: README.md, train/cat/notes.bin")


def test_text_is_no_image_folder(tmp_path: Path) -> None:
    written(tmp_path / "a.txt", TEXT)
    put(tmp_path / "logo.png", png(1))
    assert image_folder(tmp_path) is None and image_folder(tmp_path / "a.txt") is None


def test_pictures_of_a_document_are_no_corpus(tmp_path: Path) -> None:
    """One folder of images among texts, as documents have."""
    written(tmp_path / "book.txt", TEXT)
    put(tmp_path / "figures" / "1.png", png(1))
    put(tmp_path / "figures" / "2.png", png(2))
    assert image_folder(tmp_path) is None


def test_what_is_mixed_or_misplaced_is_refused(tmp_path: Path) -> None:
    def text_within(folder: Path) -> None:
        class_folders(folder)
        written(folder / "train" / "dog" / "dog.txt", TEXT)

    def text_of_a_split(folder: Path) -> None:
        class_folders(folder, ".")
        written(folder / "train.txt", TEXT)

    def beside_splits(folder: Path) -> None:
        class_folders(folder)
        put(folder / "cow" / "1.png", png(1))

    def beside_classes(folder: Path) -> None:
        class_folders(folder, ".")
        put(folder / "1.png", png(1))

    def no_classes(folder: Path) -> None:
        put(folder / "train" / "1.png", png(1))
        put(folder / "test" / "1.png", png(1))

    cases = {
        text_within: "holds images and text .train/dog/dog.txt",
        text_of_a_split: "holds images and text .train.txt",
        beside_splits: "folders of splits .train. and others beside them .cow",
        beside_classes: "1.png is in no class folder",
        no_classes: "test/1.png is in no class folder",
    }
    for make, says in cases.items():
        folder = tmp_path / make.__name__
        make(folder)
        with pytest.raises(DataError, match=says) as caught:
            image_folder(folder)
        assert caught.value.remedy and caught.value.exit_code == 3
    print(f"{len(cases)} folders refused")


def source_of(train: Any, test: Any = None, classes: tuple[str, ...] = ()) -> ImageSource:
    given = {"train": train} | ({} if test is None else {"test": test})
    splits = {
        split: Labelled(
            name=f"x ({split})", labels=labels, place=f"x.{split}, row {{}}".format,
            encoded=lambda: iter(()),
        )
        for split, labels in given.items()
    }  # fmt: skip
    return ImageSource(name="x", splits=splits, classes=classes)


def test_labels_become_numbers() -> None:
    cases: list[tuple[ImageSource, tuple[str, ...], list[int]]] = [
        (source_of(["b", "a", "b"]), ("a", "b"), [1, 0, 1]),
        (source_of([2, 0, 1]), ("0", "1", "2"), [2, 0, 1]),
        (source_of([1, 0], classes=("z", "y")), ("z", "y"), [1, 0]),
        (source_of(["y", "z"], classes=("z", "y")), ("z", "y"), [1, 0]),
    ]
    for source, classes, expected in cases:
        found, labels = numbered(source)
        assert found == classes and labels["train"].tolist() == expected
        assert labels["train"].dtype == np.int64


def test_a_split_without_any_label_is_left_out() -> None:
    assert list(numbered(source_of([0, 1], [-1, -1]))[1]) == ["train"]
    with pytest.raises(DataError, match="x.test, row 1: label '-1' is none of the 2 classes"):
        numbered(source_of([0, 1], [0, -1]))


def test_bad_labels_are_refused() -> None:
    cases = [
        (source_of([0, 1, 5], classes=("a", "b")), "x.train, row 2: label '5' is none of the 2"),
        (source_of([0, 1], [1, 2]), "x.test, row 1: label '2' is none of the 2 classes"),
        (source_of([0, -3, 1]), "x.train, row 1: label '-3'"),
        (source_of(["a", "b"], ["c"]), "x.test, row 0: label 'c'"),
        (source_of([0, 1, 3]), "x .train.: class '2' has no training image"),
        (source_of([0, 10**15]), "class '1' has no training image"),
        (source_of([0, 1], classes=("a", "b", "c")), "class 'c' has no training image"),
        (source_of([0, 0]), "x: 1 class "),
        (source_of(["a"]), "x: 1 class .a."),
        (source_of([]), "x .train.: holds no image"),
        (source_of([0, 1], []), "x .test.: holds no image"),
    ]
    for source, says in cases:
        with pytest.raises(DataError, match=says) as caught:
            numbered(source)
        assert caught.value.remedy
    print(f"{len(cases)} kinds of bad labels refused")


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    (class_folders(tmp_path) / "train" / "yak").mkdir()
    with pytest.raises(DataError, match="class 'yak' has no training image"):
        numbered(opened(tmp_path))


def test_jfif_and_avif_are_images_and_the_rest_is_said(tmp_path: Path) -> None:
    class_folders(tmp_path, ".", each=2)
    put(tmp_path / "cat" / "x.jfif", encoded(pixels(1), "JPEG"))
    kinds = ["x.jfif"]
    if features.check("avif"):
        put(tmp_path / "cat" / "y.AVIF", encoded(pixels(2), "AVIF"))
        kinds.append("y.AVIF")
    put(tmp_path / "dog" / "z.heic", b"x")
    put(tmp_path / "dog" / "no-suffix", b"x")
    source = opened(tmp_path)
    assert source.splits["train"].labels.count("cat") == 2 + len(kinds)
    assert "ignored files: dog/no-suffix, dog/z.heic" in source.note
    for data in source.splits["train"].encoded():
        assert decode(data, "x")[0].shape == (3, 6, 8)
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match="link to a file that is not there"):
        image_folder(tmp_path)


def test_labels_may_count_from_1(tmp_path: Path) -> None:
    def split(labels: list[int]) -> Labelled:
        return Labelled(name="x", labels=labels, place=lambda row: f"row {row}",
                        encoded=lambda: iter(()))  # fmt: skip

    splits = {"train": split([1, 3, 2, 1]), "test": split([3, 1])}
    classes, labels = numbered(ImageSource(name="x", splits=splits, classes=()))
    assert classes == ("1", "2", "3")
    assert labels["train"].tolist() == [0, 2, 1, 0] and labels["test"].tolist() == [2, 0]
    bad = {"train": split([1, 2]), "test": split([0])}
    with pytest.raises(DataError, match="label '0' is none of the 2 classes"):
        numbered(ImageSource(name="x", splits=bad, classes=()))
