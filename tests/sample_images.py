"""Pictures, class folders and parquet files that several tests make corpora of."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

NAMES = ("cat", "dog", "owl")


def pixels(seed: int, height: int = 6, width: int = 8) -> np.ndarray:
    """(3, h, w) uint8"""
    return np.random.RandomState(seed).randint(0, 256, (3, height, width), dtype=np.uint8)


def encoded(array: np.ndarray, kind: str = "PNG") -> bytes:
    """A (3, h, w) array as the bytes of a file, PNG: lossless."""
    file = io.BytesIO()
    Image.fromarray(array.transpose(1, 2, 0)).save(file, kind)
    return file.getvalue()


def png(seed: int, height: int = 6, width: int = 8) -> bytes:
    return encoded(pixels(seed, height, width))


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def rows(count: int, start: int = 0, classes: int = 3, **size: int) -> dict[str, list[Any]]:
    """Columns img and label of `count` images, each from a seed of its own."""
    return {
        "img": [{"bytes": png(start + i, **size), "path": None} for i in range(count)],
        "label": [i % classes for i in range(count)],
    }


def table(path: Path, columns: dict[str, Any], names: tuple[str, ...] | None = NAMES) -> Path:
    """A parquet file as the hub has it, with the names of the classes where given."""
    made = pa.table(columns)
    if names:
        label = {"names": list(names), "_type": "ClassLabel"}
        told = {"info": {"features": {"img": {"_type": "Image"}, "label": label}}}
        made = made.replace_schema_metadata({"huggingface": json.dumps(told)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(made, path)
    return path


def small_set(folder: Path, train: int = 60, test: int = 12, **size: int) -> Path:
    """A parquet folder of train and test, three classes."""
    table(folder / "x-train.parquet", rows(train, **size))
    table(folder / "x-test.parquet", rows(test, start=1000, **size))
    return folder


def class_folders(folder: Path, split: str = "train", each: int = 12, start: int = 0) -> Path:
    for c, name in enumerate(NAMES):
        for i in range(each):
            put(folder / split / name / f"{i:03}.png", png(start + 100 * c + i))
    return folder
