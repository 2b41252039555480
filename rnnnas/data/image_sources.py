"""Labelled images of a source: class folders, a folder of parquet, a dataset of the hub.

What a folder holds is seen by its content: parquet files with a column of encoded images, or image
files. Text beside images, inside the folders of the classes, and parquet of both kinds are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from rnnnas.data.image_decode import SUFFIXES
from rnnnas.data.text_files import shown
from rnnnas.data.text_sources import SPLIT_WORDS, files_under, hidden, split_of
from rnnnas.data.text_sources import SUFFIXES as TEXT_SUFFIXES
from rnnnas.errors import DataError

Labels = npt.NDArray[np.int64]
SEPARATE = "Put them into separate folders and add each as its own corpus."


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """One split of a source.

    name: what messages call it. labels: a class a row, by number or by name. place: file and row
    of a row, for messages. encoded: a fresh iterator over the encoded images, in order.
    """

    name: str
    labels: list[int] | list[str]
    place: Callable[[int], str]
    encoded: Callable[[], Iterator[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSource:
    """Where an image corpus comes from.

    splits: train, and valid and test where there are any. classes: the names that the source
    declares; empty where only its labels tell. note: what to tell the user.
    """

    name: str
    splits: Mapping[str, Labelled]
    classes: tuple[str, ...]
    note: str = ""


def image_folder(path: Path) -> ImageSource | None:
    """The images in class folders under `path`, or None where it holds text or nothing.

    The class is the folder under `path`, or under its train, valid and test folders where it has
    those. Text beside the class folders (a README) is ignored, and the note says so.

    Raises:
        DataError: images and text mixed, images outside class folders, folders cannot be listed.
    """
    if not path.is_dir():
        return None
    images, texts = files_in(path)
    loose = [name for name in images if "/" not in name]
    if len(loose) == len(images):
        return None  # a text, perhaps with an image or two beside it
    if texts and len({PurePosixPath(name).parent for name in images}) == 1:
        return None  # one folder of images among texts: pictures of a document
    called = shown(path)
    tops = {name.split("/")[0] for name in images if "/" in name}
    splits = {top for top in tops if top.lower() in SPLIT_WORDS}
    split = bool(splits) and splits == tops
    classes = {part for name in images if (part := _class(name, split))}
    mixed = [name for name in texts if "/" in name or split_of(name) or len(classes) < 2]
    if mixed:
        raise DataError(f"{called}: holds images and text ({shown(mixed[0])})", SEPARATE)
    if splits and not split:
        raise DataError(
            f"{called}: has folders of splits ({', '.join(sorted(splits))}) and others beside "
            f"them ({shown(min(tops - splits))})",
            "Put every class folder under train, valid or test, or use no such folder.",
        )
    loose = [name for name in images if not _class(name, split)]
    if loose:
        raise DataError(
            f"{called}: {shown(loose[0])} is in no class folder",
            "Give every class a folder of its images, such as train/cat/1.png.",
        )
    found: dict[str, list[str]] = {}
    for name in images:
        top = name.split("/")[0].lower()
        found.setdefault(SPLIT_WORDS[top] if split else "train", []).append(name)
    roots = [path]
    if split:
        roots = [p for p in _folders(path) if SPLIT_WORDS.get(p.name.lower()) == "train"]
    classes = {inner.name for root in roots for inner in _folders(root)}
    note = f"images in {len(classes):,} class folders"
    taken = set(images)
    left = [name for name in files_under(path) if name not in taken]
    if left:
        more = f" and {len(left) - 10:,} more" if len(left) > 10 else ""
        note += f"; ignored files: {', '.join(map(shown, left[:10]))}{more}"
    return ImageSource(
        name=path.resolve().name,
        splits={s: _files(path, f"{called} ({s})", names, split) for s, names in found.items()},
        classes=tuple(sorted(classes)),
        note=note,
    )


def _class(name: str, split: bool) -> str:
    """The class folder in an image's relative path; empty where it lies in none."""
    parts = name.split("/")[1 if split else 0 : -1]
    return parts[0] if parts else ""


def _folders(path: Path) -> list[Path]:
    return [inner for inner in path.iterdir() if inner.is_dir() and not hidden(inner.name)]


def _files(path: Path, called: str, names: list[str], split: bool) -> Labelled:
    def encoded() -> Iterator[bytes]:
        yield from (_read(path / name) for name in names)

    return Labelled(
        name=called,
        labels=[_class(name, split) for name in names],
        place=lambda row: shown(path / names[row]),
        encoded=encoded,
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{shown(path)}: cannot be read ({error.strerror or error})",
            "Check the file and its permissions.",
        ) from error


def files_in(path: Path) -> tuple[list[str], list[str]]:
    """Image files and text files under `path`, relative and sorted, of those that `files_under`
    gives.
    """
    names = [(name, PurePosixPath(name).suffix.lower()) for name in files_under(path)]
    images = [name for name, suffix in names if suffix in SUFFIXES]
    return images, [name for name, suffix in names if suffix in TEXT_SUFFIXES]


def numbered(source: ImageSource) -> tuple[tuple[str, ...], dict[str, Labels]]:
    """The classes of a source and the labels of its splits as numbers into them, (n,) int64.

    A split without a single label (all -1, as the hub has tests whose labels are secret) is left
    out.

    Raises:
        DataError: an empty split, a label that is no class, a class without a training image, or
            fewer than two classes.
    """
    for split in source.splits.values():
        if not split.labels:
            raise DataError(f"{split.name}: holds no image", "Give images, or leave it out.")
    kept = {
        s: split for s, split in source.splits.items() if s == "train" or set(split.labels) != {-1}
    }
    if "train" not in kept:
        return source.classes, {s: np.zeros(len(x.labels), np.int64) for s, x in kept.items()}
    train = kept["train"]
    classes, first = source.classes, 0
    if not classes:
        distinct = set(train.labels)
        numbers = [label for label in distinct if isinstance(label, int)]
        # A number that is never used below the largest is a class without an image; but some
        # datasets count from 1.
        top = max(numbers, default=-1) + 1
        from_one = bool(numbers) and min(numbers) == 1 and len(distinct) == top - 1
        first = 1 if from_one else 0
        if numbers and top - first > len(distinct):
            gap = next(i for i in range(top) if i not in distinct)
            raise _unused(train, str(gap))
        classes = tuple(map(str, range(first, top) if numbers else sorted(map(str, distinct))))
    if len(classes) < 2:
        raise DataError(
            f"{source.name}: {len(classes)} class ({', '.join(map(shown, classes))})",
            "Give images of two classes or more.",
        )
    index = {name: number for number, name in enumerate(classes)}
    labels = {split: _numbers(x, index, split, first) for split, x in kept.items()}
    counts = np.bincount(labels["train"], minlength=len(classes))
    if not counts.all():
        raise _unused(train, classes[int(np.argmin(counts))])
    return classes, labels


def _unused(train: Labelled, name: str) -> DataError:
    return DataError(
        f"{train.name}: class {shown(name)!r} has no training image",
        "Add images of it, or leave the class out.",
    )


def _numbers(split: Labelled, index: Mapping[str, int], called: str, first: int) -> Labels:
    """The labels as numbers from 0. first: the number of the first class, where it has one."""
    numbers = np.empty(len(split.labels), np.int64)
    labels: Sequence[int | str] = split.labels
    for row, label in enumerate(labels):
        number = index.get(label, -1) if isinstance(label, str) else label - first
        if not 0 <= number < len(index):
            raise DataError(
                f"{split.place(row)}: label {shown(label)!r} is none of the {len(index)} classes",
                "Correct the label, or leave the image out."
                if called == "train"
                else "Correct the label, or add training images of that class.",
            )
        numbers[row] = number
    return numbers
