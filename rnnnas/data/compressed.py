"""The bytes of a file, unpacked where it is compressed: gzip, bzip2, xz, zstd, told by content."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rnnnas.errors import DataError

SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
# Unpacked bytes of one source. WikiText-103 has 540 million.
LIMIT = 4_000_000_000
# Text packs 3 to 10 times, made-up text that repeats itself up to deflate's limit of 1032. Only
# what is large and packed like that is a bomb.
RATIO, LARGE = 200, 100_000_000


def _zstd(path: Path) -> Any:
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.OSFile(str(path), "rb"), "zstd")


_OPENERS: tuple[tuple[bytes, str, Callable[[Path], Any]], ...] = (
    (b"\x1f\x8b", "gzip", gzip.open),
    (b"BZh", "bzip2", bz2.open),
    (b"\xfd7zXZ\x00", "xz", lzma.open),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
)


def plain_name(name: str) -> str:
    """A file's name without the ending of a compressor: `a.jsonl.gz` is `a.jsonl`."""
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def file_blocks(path: Path, name: str, size: int) -> Iterator[bytes]:
    """The unpacked bytes of a file, about `size` at a time.

    Raises DataError where it cannot be read, is damaged, or unpacks to what is no text.
    """
    try:
        with path.open("rb") as file:
            head = file.read(6)
            for magic, called, opener in _OPENERS:
                if head.startswith(magic):
                    yield from _unpacked(path, name, size, called, opener)
                    return
            file.seek(0)
            while block := file.read(size):
                yield block
    except OSError as error:
        raise DataError(
            f"{name}: cannot be read ({error.strerror or error})",
            "Check the path and its permissions.",
        ) from error


def _unpacked(
    path: Path, name: str, size: int, called: str, opener: Callable[[Path], Any]
) -> Iterator[bytes]:
    total, packed = 0, os.path.getsize(path)
    try:
        with opener(path) as stream:
            while block := stream.read(size):
                total += len(block)
                if total > max(LARGE, RATIO * packed):
                    raise DataError(
                        f"{name}: {packed:,} bytes unpack to more than {total:,}, which is no text",
                        "Give plain text.",
                    )
                if total > LIMIT:
                    raise DataError(
                        f"{name}: unpacks to more than {LIMIT:,} bytes", "Give a part of it."
                    )
                yield block
    # pyarrow's errors of damaged zstd are OSErrors.
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(
            f"{name}: the {called} file is damaged ({error})", "Check or repeat the download."
        ) from error
