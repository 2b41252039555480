"""The folder of a prepared image corpus: written once and whole, opened by memory map.

`corpus.json` (the description) and, for train, valid and test:

- `NAME.labels`: classes by number, (n,) little-endian int64.
- `NAME.images`: small images of one size as pixels, (n, 3, h, w) uint8; larger ones as they came,
  one encoded image after another.
- `NAME.spans`, for encoded images: first byte and end of each row's image, (n, 2) int64.

Training images lie in the order of `image_splits.balanced_order`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import replace as with_changes
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnnas.data.folders import DESCRIPTION
from rnnnas.data.image_decode import decode
from rnnnas.data.text_corpus import IMAGES, any_description, damaged, unreadable
from rnnnas.data.text_sources import SPLITS
from rnnnas.errors import DataError

_BLOCK = 1 << 24  # bytes read at a time
LABELS = "<i8"  # as stored: labels and spans


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The labelled images of a split.

    name: what messages call it. labels: (n,) int64. data: read-only memory map, uint8, of pixels
    (n, 3, h, w) or of encoded images (bytes,). spans: (n, 2) int64 into the latter, else None.
    """

    name: str
    labels: npt.NDArray[np.int64]
    data: npt.NDArray[np.uint8]
    spans: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def pixels(self) -> npt.NDArray[np.uint8] | None:
        """(n, 3, h, w) uint8, or None where the images are kept encoded."""
        return self.data if self.spans is None else None

    def decoded(self, row: int) -> npt.NDArray[np.uint8]:
        """The pixels of one image, (3, h, w) uint8, decoded where they are kept encoded.

        Raises DataError where its bytes are damaged.
        """
        if self.spans is None:
            pixels: npt.NDArray[np.uint8] = self.data[row]
            return pixels
        start, end = self.spans[row]
        return decode(self.data[start:end].tobytes(), f"{self.name}, row {row + 1:,}")[0]

    def rows(self, rows: npt.NDArray[np.int64]) -> Images:
        """These rows, in this order; their pixels are copied into memory, encoded images not."""
        if self.spans is None:
            return with_changes(self, labels=self.labels[rows], data=self.data[rows])
        return with_changes(self, labels=self.labels[rows], spans=self.spans[rows])

    def part(self, start: int, stop: int) -> Images:
        """Rows start to stop. Of training images, any part has the classes in proportion."""
        spans = None if self.spans is None else self.spans[start:stop]
        data = self.data[start:stop] if self.spans is None else self.data
        return with_changes(self, labels=self.labels[start:stop], data=data, spans=spans)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageCorpus:
    """A prepared corpus of images.

    splits: train, valid and test. classes: their names, in the order of the labels.
    mean, std: of a channel (red, green, blue) over all pixels of all training images, pixel
    values scaled to [0, 1]. size: (h, w) where all images have it and are kept as pixels.
    sha256: the content hash over images, labels and what the description says of them.
    """

    name: str
    folder: Path
    description: dict[str, Any]
    splits: Mapping[str, Images]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None
    sha256: str


def files_of(description: Mapping[str, Any]) -> dict[str, str]:
    """The recorded SHA-256 of every file of a corpus, by file name."""
    return {
        f"{split}.{key}": digest
        for split in SPLITS
        for key, digest in sorted(description["splits"][split]["sha256"].items())
    }


def content_hash(description: Mapping[str, Any]) -> str:
    """The hash of a corpus: of its files, and of what training takes from the description."""
    keys = ("classes", "size", "mean", "std")
    said = {key: description[key] for key in keys} | files_of(description)
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file of any size."""
    whole = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            whole.update(block)
    return whole.hexdigest()


def read_images(folder: Path, name: str) -> ImageCorpus:
    """Open the image corpus in `folder`: files are mapped, not read.

    Raises DataError where it is damaged, or where the corpus is a text.
    """
    description = any_description(folder, name)
    if description["kind"] != IMAGES:
        raise DataError(
            f"corpus {name} is a text, it holds no images",
            "Choose a corpus of images: `rnnnas corpus list` shows what each one holds.",
        )
    if not _described(description):
        raise damaged(folder, name, f"{DESCRIPTION} is not a description of images")
    size = tuple(description["size"]) if description["size"] else None
    classes = tuple(description["classes"])
    splits = {}
    for split in SPLITS:
        rows, called = description["splits"][split]["images"], f"{name} ({split})"
        labels = _mapped(folder, name, f"{split}.labels", LABELS, (rows,))
        spans = None
        if size is None:
            spans = _mapped(folder, name, f"{split}.spans", LABELS, (rows, 2))
            shape: tuple[int, ...] = (description["splits"][split]["bytes"],)
            if not ((spans[:, 0] >= 0).all() and (spans[:, 1] <= shape[0]).all()):
                raise damaged(folder, name, f"{split}.spans leads out of {split}.images")
        else:
            shape = (rows, 3, *size)
        if not ((labels >= 0) & (labels < len(classes))).all():
            raise damaged(folder, name, f"{split}.labels holds what is no class")
        data = _mapped(folder, name, f"{split}.images", "u1", shape)
        splits[split] = Images(name=called, labels=labels, data=data, spans=spans)
    return ImageCorpus(
        name=name,
        folder=folder,
        description=description,
        splits=splits,
        classes=classes,
        mean=tuple(description["mean"]),
        std=tuple(description["std"]),
        size=size,
        sha256=description["sha256"],
    )


def _described(description: Mapping[str, Any]) -> bool:
    """Whether a description says everything that opening relies on."""
    try:
        size, classes = description["size"], description["classes"]
        splits = [description["splits"][split] for split in SPLITS]
        files = {"images", "labels"} | (set() if size else {"spans"})
        return (
            (size is None or (len(size) == 2 and all(type(n) is int and n > 0 for n in size)))
            and type(classes) is list
            and len(classes) > 1
            and all(isinstance(text, str) for text in (description["sha256"], *classes))
            and all(len(description[key]) == 3 for key in ("mean", "std"))
            and all(type(n) is float for key in ("mean", "std") for n in description[key])
            and all(type(part[k]) is int and part[k] > 0 for part in splits
                    for k in ("images", "bytes"))
            and all(set(part["sha256"]) == files for part in splits)
        )  # fmt: skip
    except (KeyError, TypeError):
        return False


def _mapped(
    folder: Path, name: str, file: str, dtype: str, shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    """A read-only memory map of one file, whose size must be what the description says."""
    path, expected = folder / file, int(np.prod(shape)) * np.dtype(dtype).itemsize
    try:
        found = path.stat().st_size
        if found != expected:
            raise damaged(folder, name, f"{file} has {found:,} bytes, not {expected:,}")
        return np.memmap(path, dtype=dtype, mode="r", shape=shape)
    except OSError as error:
        raise unreadable(path, folder, name, error) from error


def check_images(corpus: ImageCorpus) -> None:
    """Read every file again and compare its hash. Raises DataError where one byte differs."""
    for file, recorded in files_of(corpus.description).items():
        try:
            found = file_hash(corpus.folder / file)
        except OSError as error:
            path = corpus.folder / file
            raise unreadable(path, corpus.folder, corpus.name, error) from error
        if found != recorded:
            raise damaged(corpus.folder, corpus.name, f"{file} was changed since it was prepared")
    if content_hash(corpus.description) != corpus.sha256:
        raise damaged(corpus.folder, corpus.name, f"{DESCRIPTION} was changed")


def images_info(corpus: ImageCorpus) -> dict[str, Any]:
    """What `corpus info` prints of an image corpus, plain values only. Counts are images."""
    described = corpus.description
    counts = {
        split: np.bincount(part.labels, minlength=len(corpus.classes)).tolist()
        for split, part in corpus.splits.items()
    }
    return {
        "name": corpus.name,
        **{split: len(corpus.splits[split]) for split in SPLITS},
        "classes": list(corpus.classes),
        "sha256": corpus.sha256,
        "kind": IMAGES,
        "size": None if corpus.size is None else list(corpus.size),
        "mean": list(corpus.mean),
        "std": list(corpus.std),
        "class_counts": counts,
        "converted": described.get("converted", 0),
        "source": described.get("source"),
        "note": described.get("note", ""),
        "pillow": described.get("pillow"),
        "folder": str(corpus.folder),
    }
