"""Preparing images: what is stored, its statistics, and bad images refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sample_images import NAMES, class_folders, encoded, pixels, png, put, rows, small_set, table
from sample_sources import left_behind

from rnnnas.data import image_writer
from rnnnas.data.corpus import (
    ImageCorpus,
    VocabOptions,
    add_corpus,
    check_unchanged,
    corpora_folder,
    corpus_info,
    open_images,
)
from rnnnas.data.image_splits import balanced_order
from rnnnas.errors import DataError, DiskError

DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RNNNAS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def added(folder: Path, name: str = "x", **options: Any) -> ImageCorpus:
    corpus = add_corpus(name, folder, VocabOptions(), **options)
    assert isinstance(corpus, ImageCorpus)
    return corpus


def test_small_images_are_stored_as_pixels(tmp_path: Path) -> None:
    corpus = added(small_set(tmp_path / "s"))
    assert (corpus.name, corpus.classes, corpus.size) == ("x", NAMES, (6, 8))
    labels = np.arange(60) % 3
    order = balanced_order(labels)
    expected = {"train": order[:54], "valid": order[54:], "test": np.arange(12) + 1000}
    for split, source in expected.items():
        images = corpus.splits[split]
        assert isinstance(images.pixels, np.memmap) and images.pixels.dtype == np.uint8
        assert np.array_equal(images.pixels, np.stack([pixels(int(i)) for i in source]))
        wanted = labels[source] if split != "test" else np.arange(12) % 3
        assert images.labels.tolist() == wanted.tolist() and len(images) == len(source)
        assert np.array_equal(images.decoded(3), pixels(int(source[3])))
        with pytest.raises(ValueError, match="read-only"):
            images.pixels[0] = 0
    values = np.stack([pixels(int(i)) for i in order[:54]]).astype(np.float64) / 255
    assert np.allclose(corpus.mean, values.mean((0, 2, 3)), rtol=1e-13, atol=0)
    assert np.allclose(corpus.std, values.std((0, 2, 3)), rtol=1e-12, atol=0)
    assert "valid is the last tenth, held out" in corpus.description["note"]


def test_large_images_keep_their_bytes(tmp_path: Path) -> None:
    """Of differing sizes, one of them small: the hub's layout of ImageNet, its test unlabelled."""
    sizes = [(100 + i, 120 - 3 * i) for i in range(30)]
    sizes[4] = (20, 17)
    pictures = [encoded(pixels(i, *size), "JPEG") for i, size in enumerate(sizes)]

    def columns(chosen: list[int], labels: list[int]) -> dict[str, Any]:
        return {"image": [{"bytes": pictures[i]} for i in chosen], "label": labels}

    data = tmp_path / "s" / "data"
    first, second = list(range(12)), list(range(12, 20))
    table(data / "train-00000-of-00002.parquet", columns(first, [i % 2 for i in first]), None)
    table(data / "train-00001-of-00002.parquet", columns(second, [i % 2 for i in second]), None)
    table(
        data / "validation-00000-of-00001.parquet", columns(list(range(20, 26)), [0, 1] * 3), None
    )
    table(data / "test-00000-of-00001.parquet", columns(list(range(26, 30)), [-1] * 4), None)
    corpus = added(tmp_path / "s")
    assert corpus.size is None and {s: len(x) for s, x in corpus.splits.items()} == {
        "train": 18, "valid": 2, "test": 6,
    }  # fmt: skip
    order = balanced_order(np.arange(20) % 2)
    expected = {"train": order[:18], "valid": order[18:], "test": np.arange(20, 26)}
    flat = []
    for split, source in expected.items():
        images = corpus.splits[split]
        assert images.pixels is None and images.spans is not None
        for row, i in enumerate(source):
            start, end = images.spans[row]
            assert images.data[start:end].tobytes() == pictures[i]
            there = np.asarray(Image.open(io.BytesIO(pictures[i]))).transpose(2, 0, 1)
            assert np.array_equal(images.decoded(row), there)
            assert images.labels[row] == i % 2
            if split == "train":
                flat.append(there.reshape(3, -1))
    values = np.concatenate(flat, 1) / 255  # every pixel once, whatever its image's size
    assert np.allclose(corpus.mean, values.mean(1), rtol=1e-12, atol=0)
    assert np.allclose(corpus.std, values.std(1), rtol=1e-11, atol=0)
    assert "the source's validation images are test" in corpus.description["note"]
    part = corpus.splits["train"].part(3, 9)
    assert len(part) == 6 and np.array_equal(part.decoded(1), corpus.splits["train"].decoded(4))
    check_unchanged(corpus)


def test_class_folders_and_parquet_of_the_same_images_agree(tmp_path: Path) -> None:
    class_folders(tmp_path / "f", "train"), class_folders(tmp_path / "f", "test", 3, 500)
    for split, each, start in (("train", 12, 0), ("test", 3, 500)):
        seeds = [start + 100 * c + i for c in range(3) for i in range(each)]
        columns = {"img": [{"bytes": png(seed)} for seed in seeds]}
        columns["label"] = [c for c in range(3) for _ in range(each)]
        table(tmp_path / "p" / f"{split}.parquet", columns)
    assert added(tmp_path / "f", "f").sha256 == added(tmp_path / "p", "p").sha256


def test_the_same_again_is_quiet_and_other_content_needs_replace(tmp_path: Path) -> None:
    first = added(small_set(tmp_path / "s"))
    kept = (first.folder / "corpus.json").stat().st_mtime_ns
    assert added(tmp_path / "s").sha256 == first.sha256
    assert (first.folder / "corpus.json").stat().st_mtime_ns == kept
    other = small_set(tmp_path / "o", train=90)
    with pytest.raises(DataError) as caught:
        added(other)
    assert "--replace" in caught.value.remedy and open_images("x").sha256 == first.sha256
    assert added(other, replace=True).sha256 != first.sha256
    assert len(open_images("x").splits["train"]) == 81 and left_behind() == ["x"]


def test_other_labels_or_class_names_are_other_content(tmp_path: Path) -> None:
    first = added(small_set(tmp_path / "s"))
    columns = rows(60)
    table(tmp_path / "s" / "x-train.parquet", columns, ("cat", "dog", "yak"))
    table(tmp_path / "s" / "x-test.parquet", rows(12, start=1000), ("cat", "dog", "yak"))
    second = added(tmp_path / "s", replace=True)
    columns["label"][0], columns["label"][1] = 1, 0
    table(tmp_path / "s" / "x-train.parquet", columns, ("cat", "dog", "yak"))
    third = added(tmp_path / "s", replace=True)
    assert len({first.sha256, second.sha256, third.sha256}) == 3


def test_modes_are_converted_and_counted(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "f")
    grey = io.BytesIO()
    Image.fromarray(pixels(5)[0]).save(grey, "PNG")
    put(folder / "train" / "cat" / "003.png", grey.getvalue())
    corpus = added(folder)
    assert corpus_info(corpus)["converted"] == 1
    assert "1 images were converted to RGB" in corpus.description["note"]


def test_bad_images_are_refused_with_file_and_row_and_leave_nothing(tmp_path: Path) -> None:
    def parquet(**changed: tuple[int, bytes]) -> Any:
        def make(folder: Path) -> None:
            for split, count in (("train", 60), ("test", 12)):
                columns = rows(count)
                if split in changed:
                    row, data = changed[split]
                    columns["img"][row] = {"bytes": data, "path": None}
                table(folder / f"{split}.parquet", columns)

        return make

    def folders(name: str, data: bytes) -> Any:
        def make(folder: Path) -> None:
            put(class_folders(folder) / name, data)

        return make

    def one_colour(folder: Path) -> None:
        for name in NAMES:
            for i in range(12):
                put(folder / name / f"{i}.png", encoded(np.full((3, 6, 8), 9, np.uint8)))

    cut = png(1)[:60]
    cases: dict[str, tuple[Any, str]] = {
        "text": (parquet(train=(7, b"no image")), "train.parquet, row 8: not an image that can be"),
        "cut": (parquet(test=(11, cut)), "test.parquet, row 12: not an image that can be read"),
        "size": (parquet(train=(3, png(1, 7, 8))), "row 4: is 8 x 7 pixels, .* it 8 x 6"),
        "test size": (parquet(test=(0, png(1, 6, 9))), "test.parquet, row 1: is 9 x 6 pixels"),
        "file": (folders("train/dog/zz.png", b""), "train/dog/zz.png: not an image"),
        "other": (folders("train/dog/zz.png", png(1, 8, 8)), "train/dog/zz.png: is 8 x 8 pixels"),
        "colour": (one_colour, "a colour channel never varies"),
    }  # fmt: skip
    for name, (make, says) in cases.items():
        make(tmp_path / name)
        with pytest.raises(DataError, match=says) as caught:
            added(tmp_path / name)
        assert caught.value.remedy and caught.value.exit_code == 3
        assert left_behind() == []
    print(f"{len(cases)} kinds of bad images refused")


def test_small_images_beyond_those_looked_at_first_must_fit_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_writer, "_PEEK", 5)
    columns = rows(60)
    columns["img"][40] = {"bytes": png(1, 100, 100), "path": None}
    table(tmp_path / "train.parquet", columns)
    with pytest.raises(DataError, match="row 41: is 100 x 100 pixels, images before it 8 x 6"):
        added(tmp_path)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = added(small_set(tmp_path / "s"))
    other = small_set(tmp_path / "o", train=90)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("x", "new"):
        with monkeypatch.context() as patched:
            patched.setattr(image_writer.os, "fsync", full)
            with pytest.raises(DiskError, match="No space left") as caught:
                added(other, name, replace=True)
            assert caught.value.exit_code == 5
    assert left_behind() == ["x"] and open_images("x").sha256 == first.sha256


def cifar(split: str) -> Path:
    path = DATA / f"cifar10-{split}.parquet"
    if not path.exists():
        pytest.skip(f"{path.name} is not there")
    return path


def test_cifar_test_images_alone(tmp_path: Path) -> None:
    """10,000 images, the one split of the source: a tenth each is held out."""
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "images.parquet").symlink_to(cifar("test"))
    corpus = added(tmp_path / "c")
    assert {s: len(x) for s, x in corpus.splits.items()} == {
        "train": 8000, "valid": 1000, "test": 1000,
    }  # fmt: skip
    counts = corpus_info(corpus)["class_counts"]
    assert counts == {"train": [800] * 10, "valid": [100] * 10, "test": [100] * 10}
    assert corpus.size == (32, 32) and corpus.classes[0] == "airplane"


@pytest.mark.slow
def test_cifar_to_the_image() -> None:
    cifar("train"), cifar("test")
    corpus = added(DATA, "cifar10")
    info = corpus_info(corpus)
    assert [info[split] for split in ("train", "valid", "test")] == [45_000, 5_000, 10_000]
    assert info["class_counts"]["valid"] == [500] * 10 and len(info["classes"]) == 10
    # Published for all 50,000 lossless images: .4914 .4822 .4465 and .2470 .2435 .2616.
    assert np.allclose(info["mean"], (0.4914, 0.4822, 0.4465), atol=2e-3)
    assert np.allclose(info["std"], (0.2470, 0.2435, 0.2616), atol=3e-3)
    assert [path.name for path in corpora_folder().iterdir()] == ["cifar10"]
