"""From a file, a folder or a zip archive to the texts of the three splits.

A file is cut by lines into contiguous blocks: the first 90 % train, 5 % valid, 5 % test. In a
folder or an archive, files named for a split (`ptb.train.txt`, `wiki.valid.tokens`,
`data/test-0.txt`, or all files in a folder `train/`) are that split; where no file is, all text
files are joined in sorted order and cut like one file. Archives are read member by member and never
extracted.
"""

from __future__ import annotations

import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rnnnas.data.text_files import BLOCK, Text, bytes_text, file_text, joined, shown, sliced
from rnnnas.errors import DataError

SPLITS = ("train", "valid", "test")
SHARES = (90, 5, 5)  # percent of the lines
SUFFIXES = (".txt", ".text", ".tokens", ".md", ".rst", ".raw", ".train", ".valid", ".test", ".dev")

# Bytes, unpacked, of all members that are read. WikiText-103 has 540 million.
ZIP_LIMIT = 4_000_000_000
# Text packs 3 to 10 times, made-up text that repeats itself up to deflate's limit of 1032. Only
# what is large and packed like that is a bomb.
ZIP_RATIO, ZIP_LARGE = 200, 100_000_000

# What zipfile raises for truncated, altered or exotically packed members.
_DAMAGED = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, KeyError,
    ValueError, OSError,
)  # fmt: skip

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a corpus comes from: a name for the description, and the texts of its splits."""

    name: str
    splits: Mapping[str, Text]
    ignored: tuple[str, ...] = ()  # files of a folder or archive that belong to no split


def split_of(name: str) -> str | None:
    """The split that a file's path stands for, or None.

    The file's own name decides (`wiki.train.tokens`); else a folder named exactly like a split.
    Words count, not substrings: `latest.txt` is no test split.
    """
    path = PurePosixPath(name)
    words = _split_words(path)
    words += [part for part in reversed(path.parts[:-1]) if part.lower() in SPLIT_WORDS]
    return SPLIT_WORDS[words[0].lower()] if words else None


def _split_words(path: PurePosixPath) -> list[str]:
    """The words of splits in a file's own name."""
    return [w for w in re.split(r"[^a-z]+", path.name.lower()) if w in SPLIT_WORDS]


def missing_split(name: str, present: list[str], missing: list[str], files: str) -> DataError:
    """The error for a source that has some of the splits, but not all."""
    return DataError(
        f"{name}: no {' and no '.join(missing)} split (present: {', '.join(present)})",
        f"Add {files} for {' and '.join(missing)}, or give one text, which is cut "
        f"{'/'.join(map(str, SHARES))} into train, valid and test.",
    )


def open_source(path: Path) -> Source:
    """The source at `path`. Raises DataError where it holds no usable text."""
    if path.is_dir():
        return _folder(path)
    text = file_text(path)
    if path.suffix.lower() == ".zip":
        return _archive(path)
    return Source(name=path.name, splits=_cut(text))


def parquet_files(path: Path) -> list[Path]:
    """The parquet files anywhere in the folder `path`, sorted; none where it is no folder.

    Raises DataError as `files_under` does.
    """
    if not path.is_dir():
        return []
    return [path / name for name in files_under(path) if name.endswith(".parquet")]


def files_under(path: Path) -> list[str]:
    """The files anywhere in a folder, relative and sorted; hidden ones left out.

    Raises:
        DataError: a folder that cannot be listed, or one that is a link: what it leads to would
            be left out of a corpus without a word.
    """
    found = []

    def fail(error: OSError) -> None:
        raise DataError(
            f"{shown(error.filename or path)}: cannot be listed ({error.strerror})",
            "Check its permissions.",
        ) from error

    for folder, inner, files in os.walk(path, onerror=fail):
        inner[:] = [name for name in inner if not hidden(name)]
        for name in inner:
            if os.path.islink(os.path.join(folder, name)):
                raise DataError(
                    f"{shown(os.path.join(folder, name))}: is a link to a folder, which is not "
                    "followed",
                    "Put the folder itself there.",
                )
        here = Path(folder).relative_to(path)
        found += [(here / name).as_posix() for name in files if not hidden(name)]
    return sorted(found)


def _folder(folder: Path) -> Source:
    found = [name for name in files_under(folder) if (folder / name).is_file()]
    texts = {name: file_text(folder / name) for name in _readable(found)}
    return _assemble(folder.resolve().name, shown(folder), texts)


def _archive(path: Path) -> Source:
    name = shown(path)
    try:
        archive = zipfile.ZipFile(path)
    except _DAMAGED as error:
        raise DataError(
            f"{name}: not a zip archive that can be read ({error})", "Check or repeat the download."
        ) from error
    with archive:
        # The last of several members of one name wins, as when an archive is unpacked.
        members = {info.filename: info for info in archive.infolist() if not info.is_dir()}
    wanted = _readable(sorted(members))
    total = sum(members[member].file_size for member in wanted)
    if total > ZIP_LIMIT:
        raise DataError(
            f"{name}: unpacks to {total:,} bytes, more than {ZIP_LIMIT:,}",
            "Unpack what you need of it and give the folder.",
        )
    texts = {}
    for member in wanted:
        info, called = members[member], f"{name}!{shown(member)}"
        if info.file_size > max(ZIP_LARGE, ZIP_RATIO * info.compress_size):
            raise DataError(
                f"{called}: {info.file_size:,} bytes in {info.compress_size:,} are no text",
                "Give an archive of plain text.",
            )
        if info.flag_bits & 1:
            raise DataError(f"{called}: is encrypted", "Unpack it and give the folder.")
        texts[member] = _member_text(path, member, called)
    return _assemble(path.name, name, texts)


def _member_text(path: Path, member: str, called: str) -> Text:
    """A member's text. zipfile reads no more than the size that the archive declares for it."""

    def blocks() -> Iterator[bytes]:
        try:
            with zipfile.ZipFile(path) as archive, archive.open(member) as file:
                while block := file.read(BLOCK):
                    yield block
        except _DAMAGED as error:
            raise DataError(
                f"{called}: is damaged ({error})", "Check or repeat the download."
            ) from error

    return bytes_text(blocks, called)


def _readable(names: Iterable[str]) -> list[str]:
    """The text files among relative paths: hidden ones and those of macOS's archiver left out."""
    return [
        name
        for name in names
        if PurePosixPath(name).suffix.lower() in SUFFIXES
        and not any(map(hidden, PurePosixPath(name).parts))
    ]


def hidden(part: str) -> bool:
    return part.startswith((".", "__MACOSX")) and part != ".."


def _assemble(name: str, called: str, texts: Mapping[str, Text]) -> Source:
    """The splits out of the text files of a folder or archive, by relative path."""
    if not texts:
        raise DataError(
            f"{called}: holds no text file ({', '.join(SUFFIXES)}) and no parquet",
            "Give a text file, a folder or zip archive of text files, or a folder of class folders "
            "that hold images.",
        )
    parts: dict[str, list[Text]] = {split: [] for split in SPLITS}
    named: dict[str, list[str]] = {split: [] for split in SPLITS}  # by the file's own name
    ignored = []
    for path, text in texts.items():
        split = split_of(path)
        if split is None:
            ignored.append(path)
            continue
        parts[split].append(text)
        if _split_words(PurePosixPath(path)):
            named[split].append(path)
    for split, paths in named.items():
        if len({re.sub(r"\d+", "0", path) for path in paths}) > 1:
            raise DataError(
                f"{called}: several texts are named {split}: {', '.join(map(shown, paths))}",
                "Put the files of one text into a folder of their own. Parts of one differ in "
                "numbers alone (train-0.txt, train-1.txt), or lie in a folder (train/).",
            )
    missing = [split for split in SPLITS if not parts[split]]
    if len(missing) == len(SPLITS):
        return Source(name=name, splits=_cut(joined(list(texts.values()), called)))
    if missing:
        present = [split for split in SPLITS if parts[split]]
        raise missing_split(called, present, missing, "a file (such as NAME.valid.txt)")
    splits = {split: joined(parts[split], f"{called} ({split})") for split in SPLITS}
    return Source(name=name, splits=splits, ignored=tuple(ignored))


def _cut(text: Text) -> Mapping[str, Text]:
    """One text as three contiguous blocks of its lines, by `SHARES`."""
    lines = sum(1 for _ in text.lines())
    first, second = (lines * SHARES[0] // 100, lines * (SHARES[0] + SHARES[1]) // 100)
    bounds = ((0, first), (first, second), (second, lines))
    return {split: sliced(text, *bound) for split, bound in zip(SPLITS, bounds, strict=True)}
