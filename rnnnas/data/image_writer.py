"""Preparing an image corpus: decode every image once, split, and write the folder."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from rnnnas.data import image_splits
from rnnnas.data.folders import DESCRIPTION, hidden_sibling, install, sync_folder, write_synced
from rnnnas.data.image_corpus import LABELS, check_images, content_hash, file_hash, read_images
from rnnnas.data.image_decode import Pixels, decode, quiet, size_of
from rnnnas.data.image_sources import ImageSource, Labelled, numbered
from rnnnas.data.text_corpus import FORMAT, IMAGES, sealed
from rnnnas.data.text_files import shown
from rnnnas.data.text_sources import SPLITS
from rnnnas.errors import DataError, DiskError

SMALL = 96  # pixels a side: up to here images are kept as pixels, above as they came
_PEEK = 1000  # images whose sizes decide which
_CHUNK = 64  # images decoded at a time


def write_images(folder: Path, name: str, source: ImageSource, *, replace: bool = False) -> None:
    """Prepare `source` and put the corpus at `folder`, all or nothing.

    Every image is decoded once, so that a bad one is found now and not in the middle of a run.
    The same content there already is left as it is.

    Raises:
        DataError: bad images or labels (file and row), an empty split, small images of differing
            size, or other content at `folder` and not `replace`.
        DiskError: the files cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with hidden_sibling(folder) as hidden, quiet():
            sha256 = _write(hidden, name, source)["sha256"]
            install(hidden, folder, name, lambda: _same_content(folder, name, sha256), replace)
    except OSError as error:
        raise DiskError(
            f"{shown(folder)}: the corpus cannot be written ({error.strerror or error})",
            "Free some space or check the permissions of the folder; nothing was left behind.",
        ) from error


def _same_content(folder: Path, name: str, sha256: str) -> bool:
    try:
        there = read_images(folder, name)
        check_images(there)
    except DataError:
        return False
    return there.sha256 == sha256


def _write(folder: Path, name: str, source: ImageSource) -> dict[str, Any]:
    """Write every file of the corpus into the empty `folder`; returns the description."""
    classes, labels = numbered(source)
    plan = image_splits.plan(labels, source.name)
    size = _size(source.splits["train"])
    moments, converted = _Moments(), 0
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(_Writer(folder, split, len(part.rows), size))
            for split, part in plan.parts.items()
        }
        for key in labels:
            homes = {split: _homes(plan.parts[split], key, len(labels[key])) for split in SPLITS}
            for row, data, pixels, changed in _decoded(source.splits[key], encoded=size is None):
                _check_size(pixels, size, source.splits[key], row)
                converted += changed
                for split, home in homes.items():
                    if home[row] >= 0:
                        writers[split].put(int(home[row]), pixels, data)
                if homes["train"][row] >= 0:
                    moments.add(pixels)
    mean, std = moments.result(source.splits["train"].name)
    splits = {}
    for split, part in plan.parts.items():
        write_synced(
            folder / f"{split}.labels", labels[part.source][part.rows].astype(LABELS).tobytes()
        )
        if size is None:
            write_synced(folder / f"{split}.spans", writers[split].spans.astype(LABELS).tobytes())
        files = ("images", "labels") + (("spans",) if size is None else ())
        splits[split] = {
            "images": len(part.rows),
            "bytes": (folder / f"{split}.images").stat().st_size,
            "sha256": {file: file_hash(folder / f"{split}.{file}") for file in files},
        }
    notes = [source.note, plan.note]
    if converted:
        notes.append(f"{converted:,} images were converted to RGB")
    description: dict[str, Any] = {
        "format": FORMAT,
        "name": name,
        "kind": IMAGES,
        "classes": list(classes),
        "size": size,
        "mean": mean,
        "std": std,
        "splits": splits,
        "converted": converted,
        "source": shown(source.name),
        "note": "; ".join(note for note in notes if note),
        "pillow": version("pillow"),
    }
    description["sha256"] = content_hash(description)
    description = sealed(description)
    write_synced(folder / DESCRIPTION, (json.dumps(description, indent=1) + "\n").encode())
    sync_folder(folder)
    return description


def _size(train: Labelled) -> list[int] | None:
    """[h, w] of small images, which are kept as pixels; None for larger ones.

    Raises DataError where small images differ in size.
    """
    first: tuple[int, int] | None = None
    odd = ""
    for row, data in enumerate(islice(train.encoded(), _PEEK)):
        size = size_of(data, train.place(row))
        if max(size) > SMALL:
            return None
        first = first or size
        if size != first and not odd:
            odd = _differs(train.place(row), size, first)
    if odd:
        raise DataError(odd, _ONE_SIZE)
    return None if first is None else list(first)


_ONE_SIZE = f"Scale the images to one size; only those above {SMALL} pixels may differ."


def _differs(where: str, size: tuple[int, ...], first: tuple[int, ...]) -> str:
    return f"{where}: is {size[1]} x {size[0]} pixels, images before it {first[1]} x {first[0]}"


def _check_size(pixels: Pixels, size: list[int] | None, split: Labelled, row: int) -> None:
    if size is not None and list(pixels.shape[1:]) != size:
        raise DataError(_differs(split.place(row), pixels.shape[1:], tuple(size)), _ONE_SIZE)


def _homes(part: image_splits.Part, source: str, rows: int) -> npt.NDArray[np.int64]:
    """For each row of a split of the source, where it stands in the part, or -1."""
    homes = np.full(rows, -1, np.int64)
    if part.source == source:
        homes[part.rows] = np.arange(len(part.rows))
    return homes


def _decoded(split: Labelled, *, encoded: bool) -> Iterator[tuple[int, bytes, Pixels, bool]]:
    """(row, encoded bytes, pixels, converted?) of every image, in order."""

    def one(item: tuple[int, bytes]) -> tuple[int, bytes, Pixels, bool]:
        row, data = item
        pixels, changed = decode(data, split.place(row))
        return row, data, pixels, changed

    rows = enumerate(split.encoded())
    if not encoded:  # small images cost more to hand over to a thread than to decode
        yield from map(one, rows)
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while chunk := list(islice(rows, _CHUNK)):
            yield from pool.map(one, chunk)


class _Writer:
    """The images of one split, put in any order."""

    def __init__(self, folder: Path, split: str, rows: int, size: list[int] | None) -> None:
        self._file: BinaryIO = (folder / f"{split}.images").open("wb")
        self._bytes = 0 if size is None else 3 * size[0] * size[1]  # of an image as pixels
        self.spans = np.zeros((rows, 2), np.int64)

    def put(self, row: int, pixels: Pixels, data: bytes) -> None:
        # Not through a memory map: a full disk would kill the process, not raise.
        if self._bytes:
            self._file.seek(row * self._bytes)
            self._file.write(pixels.tobytes())
        else:
            start = self._file.tell()
            self._file.write(data)
            self.spans[row] = start, start + len(data)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())


class _Moments:
    """Sums over pixels in integers, so that mean and deviation do not depend on the order."""

    def __init__(self) -> None:
        self._count, self._sums, self._squares = 0, [0, 0, 0], [0, 0, 0]

    def add(self, pixels: Pixels) -> None:
        flat = pixels.reshape(3, -1).astype(np.uint32)
        self._count += flat.shape[1]
        for c, (s, q) in enumerate(
            zip(flat.sum(1, dtype=np.uint64), (flat * flat).sum(1, dtype=np.uint64), strict=True)
        ):
            self._sums[c] += int(s)
            self._squares[c] += int(q)

    def result(self, name: str) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, of values scaled to [0, 1]."""
        n = self._count
        mean = [s / (255 * n) for s in self._sums]
        # n q - s^2 is exact: Python's integers.
        std = [
            math.sqrt((n * q - s * s) / (255 * n) ** 2)
            for s, q in zip(self._sums, self._squares, strict=True)
        ]
        if not all(std):
            raise DataError(
                f"{name}: a colour channel never varies, so that it cannot be normalised",
                "Give images that show something.",
            )
        return mean, std
