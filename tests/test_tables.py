"""Images in parquet files and in datasets of the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from sample_images import NAMES, class_folders, png, rows, small_set, table
from sample_sources import left_behind, written

from rnnnas.data import hub
from rnnnas.data.corpus import ImageCorpus, VocabOptions, add_corpus, fetch_corpus
from rnnnas.data.hub import HubId
from rnnnas.data.image_sources import ImageSource, numbered
from rnnnas.data.image_tables import image_dataset, image_parquet
from rnnnas.errors import DataError, UsageError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RNNNAS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def opened(folder: Path) -> ImageSource:
    source = image_parquet(folder, sorted(folder.rglob("*.parquet")))
    assert source is not None
    return source


def test_splits_shards_and_places(tmp_path: Path) -> None:
    table(tmp_path / "data" / "train-00000-of-00002.parquet", rows(3))
    table(tmp_path / "data" / "train-00001-of-00002.parquet", rows(2, start=3))
    table(tmp_path / "data" / "validation-00000-of-00001.parquet", rows(3, start=50))
    written(tmp_path / "README.md", "a card")
    source = opened(tmp_path)
    assert list(source.splits) == ["train", "valid"] and source.classes == NAMES
    train = source.splits["train"]
    assert list(train.encoded()) == [png(i) for i in range(5)] and train.labels == [0, 1, 2, 0, 1]
    assert train.place(2).endswith("data/train-00000-of-00002.parquet, row 3")
    assert train.place(3).endswith("data/train-00001-of-00002.parquet, row 1")
    assert source.note == "images in column 'img'"


def test_files_of_no_split_are_train(tmp_path: Path) -> None:
    table(tmp_path / "0000.parquet", rows(3))
    assert list(opened(tmp_path).splits) == ["train"]


def test_columns_are_found(tmp_path: Path) -> None:
    made = rows(3)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"image": made["img"], "label": made["label"]}, "image"),
        ({"img": [x["bytes"] for x in made["img"]], "labels": ["a", "b", "a"]}, "img"),
        ({"jpg": made["img"], "label": made["label"], "name": ["x"] * 3}, "jpg"),
    ]
    for i, (columns, column) in enumerate(cases):
        table(tmp_path / str(i) / "train.parquet", columns, names=None)
        source = opened(tmp_path / str(i))
        assert source.note == f"images in column {column!r}"
        assert list(source.splits["train"].encoded()) == [png(0), png(1), png(2)]
        assert source.splits["train"].labels == list(columns.get("label", columns.get("labels")))


def test_text_is_left_to_the_importer_of_text(tmp_path: Path) -> None:
    table(tmp_path / "train.parquet", {"text": ["a"], "label": [1]}, names=None)
    assert image_parquet(tmp_path, [tmp_path / "train.parquet"]) is None


def test_bad_tables_are_refused(tmp_path: Path) -> None:
    good = rows(3)
    no_bytes = [{"bytes": None, "path": "a.png"}]
    cases: dict[str, tuple[dict[str, dict[str, Any]], str]] = {
        "no label": ({"train": {"img": good["img"]}}, "no label column; columns: img"),
        "two": ({"train": good | {"image": good["img"]}}, "2 columns of images"),
        "mixed": ({"train": good, "test": {"text": ["a"]}}, "something else .test.parquet"),
        "columns": ({"train": good, "test": {"image": good["img"], "label": [0, 1, 2]}}, "columns"),
        "classes": ({"train": good, "test": good}, "the files differ in their classes"),
        "null": ({"train": good | {"label": [0, None, 1]}}, "train.parquet, row 2: label None"),
        "float": ({"train": good | {"label": [0.0, 1.0, 1.0]}}, "row 1: label 0.0"),
        "path": ({"train": good | {"img": good["img"][:2] + no_bytes}}, "row 3: no image bytes"),
        "unsure": ({"train": good, "0000": good}, "0000.parquet: is of no split"),
    }
    for name, (files, says) in cases.items():
        for file, columns in files.items():
            same = NAMES if name != "classes" or file == "train" else ("x", "y", "z")
            path = tmp_path / name / f"{file}.parquet"
            table(path, columns, same if "label" in columns else None)
        with pytest.raises(DataError, match=says) as caught:
            for split in opened(tmp_path / name).splits.values():
                list(split.encoded())
        assert caught.value.remedy and caught.value.exit_code == 3
    print(f"{len(cases)} kinds of bad tables refused")


def test_parquet_beside_image_files_is_refused(tmp_path: Path) -> None:
    small_set(class_folders(tmp_path))
    with pytest.raises(DataError, match="something else"):
        opened(tmp_path)


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    small_set(tmp_path)
    path = tmp_path / "x-test.parquet"
    whole = path.read_bytes()
    cuts = [whole[:-20], whole[: len(whole) // 2] + whole[len(whole) // 2 + 1 :], b""]
    hurt = bytearray(whole)
    hurt[4:600] = bytes(596)  # pages: the foot is whole
    for data in (*cuts, bytes(hurt)):
        path.write_bytes(data)
        with pytest.raises(DataError, match="x-test.parquet") as caught:
            for split in opened(tmp_path).splits.values():
                list(split.encoded())
        assert "parquet" in caught.value.cause and caught.value.remedy


def loaded(count: int, start: int, names: tuple[str, ...] = NAMES) -> datasets.Dataset:
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=list(names))}
    )
    return datasets.Dataset(pa.table(rows(count, start)).cast(features.arrow_schema)).cast(features)


def test_a_loaded_dataset_gives_what_its_parquet_gives(tmp_path: Path) -> None:
    small_set(tmp_path)
    source = image_dataset({"train": loaded(60, 0), "test": loaded(12, 1000)}, "some/test-set")
    assert source is not None and list(source.splits) == ["train", "test"]
    for split, other in opened(tmp_path).splits.items():
        assert list(source.splits[split].encoded()) == list(other.encoded())
        assert source.splits[split].labels == other.labels
    assert source.classes == NAMES
    assert source.splits["test"].place(4) == "some/test-set (test), row 5"
    assert numbered(source)[1]["train"].tolist() == [i % 3 for i in range(60)]
    text = datasets.Dataset.from_dict({"text": ["a"]})
    assert image_dataset({"train": text}, "x") is None


def test_fetching_gives_what_adding_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = small_set(tmp_path / "mirror")
    assert hub.IMAGES["cifar10"].path == "uoft-cs/cifar10"
    monkeypatch.setattr(hub, "IMAGES", {"cifar10": HubId(path=str(folder))})
    fetched = fetch_corpus("cifar10", VocabOptions())
    assert isinstance(fetched, ImageCorpus)
    assert add_corpus("cifar10", folder, VocabOptions()).sha256 == fetched.sha256
    assert left_behind() == ["cifar10"]
    with pytest.raises(UsageError, match="no vocabulary"):
        fetch_corpus("cifar10", VocabOptions(lower=True))
    with pytest.raises(UsageError, match="no vocabulary"):
        add_corpus("cifar10", folder, VocabOptions(size=100))


def test_without_network_the_remedy_is_to_add_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="cannot be fetched") as caught:
        fetch_corpus("cifar10", VocabOptions())
    assert "images elsewhere" in caught.value.remedy
    assert "rnnnas corpus add cifar10 --from FOLDER" in caught.value.remedy
    assert left_behind() == []


def test_a_text_folder_with_a_text_column_stays_text(tmp_path: Path) -> None:
    """A dataset of captions: asked for its text, it is one."""
    captions = {"image": rows(3)["img"], "caption": ["some words here " * 40] * 3}
    for split in ("train", "validation", "test"):
        table(tmp_path / f"{split}.parquet", captions, names=None)
    with pytest.raises(DataError, match="no label column"):
        add_corpus("captions", tmp_path, VocabOptions())
    corpus = add_corpus("captions", tmp_path, VocabOptions(), column="caption")
    assert not isinstance(corpus, ImageCorpus)


def test_the_column_of_the_classes_can_be_named(tmp_path: Path) -> None:
    made = rows(60)
    columns = {"img": made["img"], "fine_label": made["label"], "coarse_label": [0, 1] * 30}
    for split in ("train", "test"):
        table(tmp_path / "d" / f"{split}.parquet", columns, None)
    with pytest.raises(DataError, match="no label column; columns: img, fine_label") as caught:
        add_corpus("x", tmp_path / "d", VocabOptions())
    assert caught.value.remedy.endswith("--label fine_label")
    for label, classes in (("fine_label", 3), ("coarse_label", 2)):
        corpus = add_corpus("x", tmp_path / "d", VocabOptions(), label=label, replace=True)
        assert isinstance(corpus, ImageCorpus) and len(corpus.classes) == classes
    with pytest.raises(DataError, match="no label column 'target'"):
        add_corpus("x", tmp_path / "d", VocabOptions(), label="target")
    with pytest.raises(UsageError, match="--label is for images"):
        add_corpus("y", written(tmp_path / "t.txt"), VocabOptions(), label="target")
